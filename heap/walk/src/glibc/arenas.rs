//! The circle of arenas and their heaps.

use super::find::{Found, Settings};
use super::layout::{GRAIN, arena, heap};
use super::{Arena, Pages, Walk};
use crate::Memory;

/// Arenas looked at; malloc makes eight for each core by itself.
const MAX_ARENAS: usize = 4096;
/// Heaps of an arena, of 64 MiB each.
const MAX_HEAPS: u64 = 1 << 14;

impl<M: Memory + ?Sized, P: Pages + ?Sized> Walk<'_, M, P> {
    /// Walks every arena.
    pub(super) fn arenas(&mut self, found: &Found) {
        let mut at = found.main_arena;
        loop {
            let sums = if at == found.main_arena {
                self.main_arena(at, found.parameters.as_ref())
            } else {
                match self.other_arena(at) {
                    Some(sums) => sums,
                    None => return self.gap(format!("what should be an arena of malloc at {at:#x} is none")),
                }
            };
            self.malloc.arenas.push(sums);
            at = match self.memory.u64(at.wrapping_add(arena::NEXT)) {
                Some(next) if next == found.main_arena => return,
                Some(next) => next,
                None => return self.gap("an arena of malloc could not be read: those after it are missing".to_owned()),
            };
            let known = self.malloc.arenas.iter().any(|arena| arena.address == at);
            if known || self.malloc.arenas.len() == MAX_ARENAS {
                return self.gap("the circle of malloc's arenas does not close".to_owned());
            }
        }
    }

    /// The arena that brk(2) feeds.
    fn main_arena(&mut self, at: u64, parameters: Option<&Settings>) -> Arena {
        let mut sums = self.arena_at(at);
        let Some(top) = self.memory.u64(at + arena::TOP).filter(|&top| top != arena::bin(at, 0)) else { return sums };
        let in_heap = self.place.heap.clone().filter(|heap| heap.contains(&top));
        // Where brk(2) failed, mmap(2) gave it memory.
        let Some(mapping) = in_heap.clone().or_else(|| self.place.mapping(top).cloned()) else { return sums };
        let base = parameters.map_or(0, |p| p.sbrk_base);
        let base = if in_heap.is_some() && mapping.contains(&base) { base } else { mapping.start };
        let start = base.next_multiple_of(GRAIN);
        sums.overhead_bytes += start - base;
        sums.heaps = 1;
        self.region(&mut sums, start, top, false);
        // Its size word may not be written yet, and its page not be there.
        let size = self.memory.u64(top.wrapping_add(8)).map(|word| word & !7);
        let left = mapping.end - top;
        sums.top_bytes = size.filter(|&size| size >= GRAIN && size <= left).unwrap_or(left);
        sums.top_resident_bytes = self.resident(top..top + sums.top_bytes);
        sums.resident_bytes = self.resident(base..top + sums.top_bytes);
        if in_heap.is_none() {
            self.gap("malloc's main arena has memory outside [heap]: only its last part was walked".to_owned());
        }
        self.finish(sums)
    }

    /// A thread's arena: it lies at the start of its first heap, and each heap
    /// points to the one before. `None` where that is not so.
    fn other_arena(&mut self, at: u64) -> Option<Arena> {
        let first = at & !(self.heap_max - 1);
        let head = heap::BYTES.into_iter().find(|&bytes| at - first == bytes).filter(|_| self.place.holds(at))?;
        let mut sums = self.arena_at(at);
        let top = self.memory.u64(at.checked_add(arena::TOP)?)?;
        let mut here = top & !(self.heap_max - 1);
        let mut resident = Some(0u64);
        let mut end_of_chunks = top;
        loop {
            let size = self.memory.u64(here.checked_add(heap::SIZE)?)?;
            let is_its = self.memory.u64(here + heap::ARENA)? == at;
            let end = here.checked_add(size)?;
            if !is_its || size > self.heap_max || !self.place.mapping(here)?.contains(&end.checked_sub(1)?) {
                return None;
            }
            // The first chunk is aligned behind the head, and the arena.
            let start = if here == first { at.checked_add(arena::BYTES)? } else { here + head };
            let start = start.checked_next_multiple_of(GRAIN)?;
            if end_of_chunks < start || end_of_chunks > end {
                return None;
            }
            sums.overhead_bytes += start - here;
            sums.heaps += 1;
            if end > here {
                self.heaps.push(here..end);
            }
            self.region(&mut sums, start, end_of_chunks, end_of_chunks == end);
            if end_of_chunks == top {
                sums.top_bytes = end - top;
                sums.top_resident_bytes = self.resident(top..end);
            }
            resident = resident.and_then(|sum| Some(sum + self.resident(here..end)?));
            if here == first {
                break;
            }
            here = self.memory.u64(here + heap::PREV)?;
            if !here.is_multiple_of(self.heap_max) || sums.heaps >= MAX_HEAPS {
                return None;
            }
            end_of_chunks = here.checked_add(self.memory.u64(here.checked_add(heap::SIZE)?)?)?;
        }
        sums.resident_bytes = resident;
        Some(self.finish(sums))
    }

    fn arena_at(&mut self, at: u64) -> Arena {
        let system_bytes = self.memory.u64(at.wrapping_add(arena::SYSTEM_MEM)).unwrap_or(0);
        Arena { address: at, system_bytes, free_resident_bytes: Some(0), ..Arena::default() }
    }

    /// What is not accounted for was not reached.
    fn finish(&mut self, mut sums: Arena) -> Arena {
        let known = [sums.live.bytes, sums.free().bytes, sums.top_bytes, sums.overhead_bytes];
        let known = known.into_iter().fold(0, u64::saturating_add);
        sums.unknown_bytes = sums.system_bytes.saturating_sub(known);
        if sums.unknown_bytes > 0 && self.malloc.gaps.is_empty() && !self.memory.is_used_up() {
            let (bytes, at) = (sums.unknown_bytes, sums.address);
            self.gap(format!(
                "malloc's arena at {at:#x} counts {bytes} B more than its heaps have: a thread was growing or trimming it, \
                 or the program calls sbrk itself"
            ));
        }
        sums
    }
}
