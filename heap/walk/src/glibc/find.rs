//! `main_arena` and `mp_` without symbols, by what they must look like.

use super::layout::{ARENA_TEST, GRAIN, PARAMETERS, Parameters, arena, heap};
use super::{PAGE, Place};
use crate::Memory;
use crate::search::{Words, search};

/// Bins of 127 that are empty even in a heap in great disorder.
const EMPTY_BINS: u64 = 8;

/// What was found.
#[derive(Debug, Default, Clone, Copy)]
pub struct Found {
    /// `main_arena`.
    pub main_arena: u64,
    /// `mp_`.
    pub parameters: Option<Settings>,
}

/// What is read of `mp_`.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Mapped chunks.
    pub mmaps: u64,
    /// Their bytes.
    pub mmapped_bytes: u64,
    /// Start of the main heap; 0 before there is one.
    pub sbrk_base: u64,
    /// What heaps of other arenas are aligned to.
    pub heap_max: u64,
}

/// Searches the variables; `None` where no arena was ever used.
pub fn find<M: Memory + ?Sized>(memory: &mut M, place: &Place<'_>) -> Option<Found> {
    let mut found = None;
    let mut parameters = None;
    search(memory, place.data, arena::BYTES, |_, window| {
        if found.is_none() && is_main_arena(window, place) {
            found = Some(window.base);
        }
        if parameters.is_none() {
            parameters = PARAMETERS.iter().find_map(|layout| settings(window, layout, place));
        }
        found.is_some() && parameters.is_some()
    });
    Some(Found { main_arena: found?, parameters })
}

/// Empty bins point at themselves, others at chunks; `top` is in a mapping or,
/// before the first chunk, the unsorted bin; the circle of arenas starts well.
///
/// Bins alone do not tell: two bins before the arena all but two are empty just as well, and
/// fastbins stand where `top` would be.
fn is_main_arena(words: &Words<'_>, place: &Place<'_>) -> bool {
    let here = words.base;
    if !words.has(arena::BYTES) {
        return false;
    }
    let (top, next) = (words.at(arena::TOP), words.at(arena::NEXT));
    let is_chunk = |address: u64| address != 0 && address.is_multiple_of(GRAIN);
    if !is_chunk(top) || next == 0 || next % 8 != 0 {
        return false;
    }
    let is_unused = top == arena::bin(here, 0);
    if !is_unused && (!place.holds(top) || words.at(arena::SYSTEM_MEM) == 0) {
        return false;
    }
    // Other arenas lie behind the head of their first heap, which begins a page.
    if next != here && !(place.holds(next) && heap::BYTES.contains(&(next % PAGE))) {
        return false;
    }
    if words.at(arena::ATTACHED_THREADS) > 1 << 22 {
        return false;
    }
    // A chunk may just be taken out of one.
    let (mut empty, mut odd) = (0, 0);
    for bin in 0..arena::BIN_COUNT {
        let own = arena::bin(here, bin);
        let (fd, bk) = (words.at(arena::BINS + bin * 16), words.at(arena::BINS + bin * 16 + 8));
        match (fd == own, bk == own) {
            (true, true) => empty += 1,
            (false, false) if is_chunk(fd) && is_chunk(bk) => {}
            _ => odd += 1,
        }
    }
    empty >= EMPTY_BINS && odd <= 1
}

/// Counts in `mp_` bound each other, and the tcache's are small.
fn settings(words: &Words<'_>, layout: &Parameters, place: &Place<'_>) -> Option<Settings> {
    if !words.has(layout.bytes) {
        return None;
    }
    let bins = words.at(layout.tcache_bins);
    let (biggest, count) = (words.at(layout.tcache_bins + 8), words.at(layout.tcache_bins + 16));
    // The most that tunables allow.
    if !(1..=64).contains(&bins) || biggest > 1032 || biggest < (bins - 1) * GRAIN || count > 0xffff {
        return None;
    }
    let mmaps = words.half(layout.n_mmaps);
    let (allowed, ever) = (words.half(layout.n_mmaps + 4), words.half(layout.n_mmaps + 8));
    let (bytes, most) = (words.at(layout.mmapped_mem), words.at(layout.mmapped_mem + 8));
    let sbrk_base = words.at(layout.sbrk_base);
    let cores = words.at(ARENA_TEST);
    let huge = layout.hp_pagesize.map_or(0, |offset| words.at(offset));
    let sound = mmaps <= allowed.max(ever)
        && mmaps <= ever
        && bytes <= most
        && bytes % PAGE == 0
        && bytes >= mmaps.saturating_mul(PAGE)
        && (sbrk_base == 0 || place.heap.as_ref().is_some_and(|h| h.contains(&sbrk_base)))
        && (1..1 << 20).contains(&cores)
        && (huge == 0 || (huge.is_power_of_two() && (PAGE..=1 << 30).contains(&huge)));
    // heap_max_size of malloc/arena.c.
    let heap_max = if huge == 0 { heap::MAX } else { huge.saturating_mul(4) };
    sound.then_some(Settings { mmaps, mmapped_bytes: bytes, sbrk_base, heap_max })
}
