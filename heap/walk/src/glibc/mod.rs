//! glibc's malloc: what it gave out, and what it holds free.
//!
//! In go a [`Memory`], a way to ask which pages are present ([`Pages`]) and where
//! glibc's variables and the mappings are ([`Place`]); out come sums for each
//! arena ([`Malloc`]). No symbols are needed: the arena is found by its look.
//! Chunks are counted as malloc_info(3) counts them, headers included.
//!
//! Each heap is walked from its first chunk to its top. A chunk there is free
//! when the next one says so; those in fastbins and in the caches of threads
//! (tcache) say that they are in use, and are counted free by walking their
//! lists. A process that was stopped inside malloc may have a list or a chunk
//! half changed: what lies behind is told as unknown, in [`Arena::unknown_bytes`]
//! and in [`Malloc::gaps`].

mod arenas;
mod classes;
mod find;
mod heaps;
mod layout;
mod lists;
mod mmapped;

pub use classes::SizeClass;

use crate::search::{END, PAGE};
use crate::{Bounded, Memory};
use std::ops::Range;

/// Sentences kept.
const MAX_GAPS: usize = 8;

/// Which pages of the process are in memory.
pub trait Pages {
    /// Bytes of `pages`, whose ends are multiples of 4096, that are in memory;
    /// `None` where that is not known.
    fn present_bytes(&mut self, pages: Range<u64>) -> Option<u64>;
}

/// Where to look.
#[derive(Debug, Clone)]
pub struct Place<'p> {
    /// Writable mappings of glibc, or of a static program.
    pub data: &'p [Range<u64>],
    /// The mapping that brk(2) moves, `[heap]`.
    pub heap: Option<Range<u64>>,
    /// All writable mappings, in order.
    pub writable: &'p [Range<u64>],
    /// Anonymous ones of them, without `[heap]` and stacks, in order.
    pub anonymous: &'p [Range<u64>],
}

impl Place<'_> {
    /// The writable mapping that an address is in.
    fn mapping(&self, address: u64) -> Option<&Range<u64>> {
        let after = self.writable.partition_point(|range| range.start <= address);
        self.writable.get(after.checked_sub(1)?).filter(|range| range.contains(&address))
    }

    fn holds(&self, address: u64) -> bool {
        self.mapping(address).is_some()
    }
}

/// Chunks and their bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Chunks {
    /// How many.
    pub chunks: u64,
    /// Bytes, headers included.
    pub bytes: u64,
}

impl Chunks {
    fn add(&mut self, bytes: u64) {
        self.chunks += 1;
        self.bytes += bytes;
    }

    fn take(&mut self, other: Chunks) {
        self.chunks = self.chunks.saturating_sub(other.chunks);
        self.bytes = self.bytes.saturating_sub(other.bytes);
    }

    fn join(&mut self, other: Chunks) {
        self.chunks += other.chunks;
        self.bytes += other.bytes;
    }
}

/// An arena.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Arena {
    /// Its `malloc_state`; the first of the list is the main arena.
    pub address: u64,
    /// Bytes that it has from the system, as it says (`system_mem`).
    pub system_bytes: u64,
    /// What of its heaps is in memory, where that is known.
    pub resident_bytes: Option<u64>,
    /// Heaps walked.
    pub heaps: u64,
    /// Given out.
    pub live: Chunks,
    /// Free, in the caches of threads.
    pub tcache: Chunks,
    /// Free, in fastbins.
    pub fastbins: Chunks,
    /// Free, in the unsorted bin.
    pub unsorted: Chunks,
    /// Free, in small bins.
    pub small: Chunks,
    /// Free, in large bins.
    pub large: Chunks,
    /// All of the free ones that is in memory, where that is known.
    pub free_resident_bytes: Option<u64>,
    /// Never given out, or given back: from the last chunk to the end.
    pub top_bytes: u64,
    /// What of it is in memory, where that is known.
    pub top_resident_bytes: Option<u64>,
    /// Heads of heaps and ends between them.
    pub overhead_bytes: u64,
    /// What the walk did not reach.
    pub unknown_bytes: u64,
}

impl Arena {
    /// All that is free in bins and caches.
    #[must_use]
    pub fn free(&self) -> Chunks {
        let mut all = Chunks::default();
        for kind in [self.tcache, self.fastbins, self.unsorted, self.small, self.large] {
            all.join(kind);
        }
        all
    }
}

/// Blocks with a mapping of their own.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Mmapped {
    /// As malloc counts them.
    pub chunks: Chunks,
    /// What of them is in memory; `None` where they were not all found.
    pub resident_bytes: Option<u64>,
}

/// State of glibc's malloc.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Malloc {
    /// Arenas, the main one first.
    pub arenas: Vec<Arena>,
    /// Blocks with mappings of their own, where that is known.
    pub mmapped: Option<Mmapped>,
    /// Live chunks of arenas by size, those with most bytes first.
    pub classes: Vec<SizeClass>,
    /// What could not be had, in sentences.
    pub gaps: Vec<String>,
}

/// Walks all arenas, with at most `budget_bytes` of reads, eight for each chunk
/// at least; `None` where malloc was never used, or is not glibc's.
pub fn walk<M, P>(memory: &mut M, pages: &mut P, place: &Place<'_>, budget_bytes: u64) -> Option<Malloc>
where
    M: Memory + ?Sized,
    P: Pages + ?Sized,
{
    // Sums of addresses in there cannot overflow then.
    let all = place.data.iter().chain(place.writable).chain(place.anonymous).chain(&place.heap);
    if all.into_iter().any(|range| range.end > END || range.start > range.end) {
        return None;
    }
    let mut memory = Bounded::new(memory, budget_bytes);
    let found = find::find(&mut memory, place)?;
    let mut walk = Walk {
        memory,
        pages,
        place,
        heap_max: found.parameters.map_or(layout::heap::MAX, |p| p.heap_max),
        heaps: Vec::new(),
        tcaches: Vec::new(),
        classes: classes::Classes::default(),
        malloc: Malloc::default(),
    };
    walk.arenas(&found);
    walk.lists();
    walk.mmapped(&found);
    if walk.memory.is_used_up() {
        walk.gap("malloc has more chunks than were looked at in the time".to_owned());
    }
    walk.malloc.classes = walk.classes.biggest();
    Some(walk.malloc)
}

/// A walk under way.
struct Walk<'w, M: ?Sized, P: ?Sized> {
    memory: Bounded<'w, M>,
    pages: &'w mut P,
    place: &'w Place<'w>,
    heap_max: u64,
    /// Heaps of threads' arenas.
    heaps: Vec<Range<u64>>,
    /// What may be caches of threads, by the address of the chunk.
    tcaches: Vec<u64>,
    classes: classes::Classes,
    malloc: Malloc,
}

impl<M: Memory + ?Sized, P: Pages + ?Sized> Walk<'_, M, P> {
    fn gap(&mut self, sentence: String) {
        if self.malloc.gaps.len() < MAX_GAPS {
            self.malloc.gaps.push(sentence);
        }
    }

    /// Bytes of any range that lie in present pages.
    fn resident(&mut self, range: Range<u64>) -> Option<u64> {
        let (first, last) = (range.start / PAGE * PAGE, range.end.checked_next_multiple_of(PAGE)?);
        if range.is_empty() {
            return Some(0);
        }
        let mut bytes = self.pages.present_bytes(first..last)?;
        // The ends are not all of their page.
        let lead = range.start - first;
        if lead > 0 && self.pages.present_bytes(first..first + PAGE)? > 0 {
            bytes = bytes.saturating_sub(lead);
        }
        let tail = last - range.end;
        if tail > 0 && self.pages.present_bytes(last - PAGE..last)? > 0 {
            bytes = bytes.saturating_sub(tail);
        }
        Some(bytes)
    }
}

#[cfg(test)]
mod tests;
