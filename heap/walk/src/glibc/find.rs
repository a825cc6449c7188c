//! `main_arena` and `mp_` without symbols, by what they must look like.

use super::layout::{ARENA_TEST, GRAIN, MMAP_THRESHOLD, PARAMETERS, Parameters, arena, heap};
use super::{PAGE, Place};
use crate::Memory;

/// Most bytes of variables that are searched: glibc's own are 60 KiB, those of a
/// static program may be more.
const MAX_DATA: u64 = 8 << 20;
/// Bytes that are searched at a time, and those behind that a structure may take.
const BLOCK: u64 = 64 << 10;
const OVERLAP: u64 = arena::BYTES;
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
    let mut left = MAX_DATA;
    for range in place.data {
        let end = range.end.min(range.start.saturating_add(left));
        left -= end.saturating_sub(range.start);
        let mut block = range.start.next_multiple_of(8);
        while block < end {
            let words = words(memory, block, (BLOCK + OVERLAP).min((end - block) & !7));
            for (index, at) in (block..end.min(block + BLOCK)).step_by(8).enumerate() {
                let window = Words { base: at, words: words.get(index..).unwrap_or_default() };
                if found.is_none() && is_main_arena(&window, place) {
                    found = Some(at);
                }
                if parameters.is_none() {
                    parameters = PARAMETERS.iter().find_map(|layout| settings(&window, layout, place));
                }
            }
            block += BLOCK;
        }
    }
    Some(Found { main_arena: found?, parameters })
}

/// Words of a range; those of absent pages, which nobody has written to, are 0.
fn words<M: Memory + ?Sized>(memory: &mut M, start: u64, bytes: u64) -> Vec<u64> {
    let mut raw = vec![0; bytes as usize];
    let mut at = 0;
    while at < raw.len() {
        // To the end of the page.
        let address = start.wrapping_add(at as u64);
        let end = raw.len().min(at + (PAGE - address % PAGE) as usize);
        if !memory.read(address, &mut raw[at..end]) {
            raw[at..end].fill(0);
        }
        at = end;
    }
    raw.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default())).collect()
}

/// Words from an address on.
struct Words<'w> {
    base: u64,
    words: &'w [u64],
}

impl Words<'_> {
    fn at(&self, offset: u64) -> u64 {
        self.words.get((offset / 8) as usize).copied().unwrap_or(0)
    }

    fn half(&self, offset: u64) -> u64 {
        self.at(offset & !7) >> (offset % 8 * 8) & 0xffff_ffff
    }
}

/// Empty bins point at themselves, others at chunks; `top` is in a mapping or,
/// before the first chunk, the unsorted bin; the circle of arenas starts well.
fn is_main_arena(words: &Words<'_>, place: &Place<'_>) -> bool {
    let here = words.base;
    if words.words.len() < (arena::BYTES / 8) as usize {
        return false;
    }
    let (top, next) = (words.at(arena::TOP), words.at(arena::NEXT));
    let is_chunk = |address: u64| address != 0 && address % GRAIN == 0;
    if !is_chunk(top) || next == 0 || next % 8 != 0 {
        return false;
    }
    if !(top == arena::bin(here, 0) || place.holds(top)) || !(next == here || place.holds(next)) {
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
    if words.words.len() < (layout.bytes / 8) as usize {
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
    let threshold = words.at(MMAP_THRESHOLD);
    let cores = words.at(ARENA_TEST);
    let huge = layout.hp_pagesize.map_or(0, |offset| words.at(offset));
    let sound = mmaps <= allowed.max(ever)
        && mmaps <= ever
        && bytes <= most
        && bytes % PAGE == 0
        && bytes >= mmaps.saturating_mul(PAGE)
        && (sbrk_base == 0 || place.heap.as_ref().is_some_and(|h| h.contains(&sbrk_base)))
        && threshold <= heap::MAX / 2
        && (1..1 << 20).contains(&cores)
        && (huge == 0 || (huge.is_power_of_two() && (PAGE..=1 << 30).contains(&huge)));
    // heap_max_size of malloc/arena.c.
    let heap_max = if huge == 0 { heap::MAX } else { huge * 4 };
    sound.then_some(Settings { mmaps, mmapped_bytes: bytes, sbrk_base, heap_max })
}
