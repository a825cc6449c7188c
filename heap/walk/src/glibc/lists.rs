//! Free chunks that are in lists and look in use, and those not yet sorted.

use super::layout::{GRAIN, SMALLEST_LARGE, arena, bit, chunk, heap, tcache};
use super::{Chunks, Pages, Walk};
use crate::Memory;

/// Chunks of a list that are followed: far beyond what is seen, and the walk
/// ends in a loop too.
const MAX_LIST: u64 = 1 << 22;

impl<M: Memory + ?Sized, P: Pages + ?Sized> Walk<'_, M, P> {
    /// Walks all lists and moves what is in them to where it belongs.
    pub(super) fn lists(&mut self) {
        // Caches of threads have the same key in each entry.
        let mut key = None;
        for at in std::mem::take(&mut self.tcaches) {
            self.tcache(at.wrapping_add(chunk::FD), &mut key);
        }
        for index in 0..self.malloc.arenas.len() {
            self.fastbins(index);
            self.unsorted(index);
        }
    }

    /// A thread's cache. An entry is the block itself: the next one, then a key:
    /// one for the process since 2.34, the cache's own address before.
    fn tcache(&mut self, at: u64, key: &mut Option<u64>) {
        for bin in 0..tcache::BINS as u64 {
            let Some(count) = self.memory.u32(at + bin * 2).map(|word| u64::from(word & 0xffff)) else { return };
            let Some(mut entry) = self.memory.u64(at + tcache::BINS as u64 * 2 + bin * 8) else { return };
            let bytes = (bin + 2) * GRAIN;
            let mut followed = 0;
            // One may just be put in before it is counted.
            while entry != 0 && followed <= count {
                let own_key = self.memory.u64(entry.wrapping_add(tcache::KEY));
                let fits = own_key.is_some_and(|own| own != 0 && (own == at || *key.get_or_insert(own) == own));
                if !fits || !self.has_size(entry.wrapping_sub(chunk::FD), bytes) {
                    return;
                }
                let Some(index) = self.arena_of(entry - chunk::FD) else { return };
                self.classes.take(bytes);
                let arena = &mut self.malloc.arenas[index];
                arena.tcache.add(bytes);
                self.was_live(index, bytes);
                followed += 1;
                let Some(next) = self.next(entry, |walk, next| walk.has_size(next.wrapping_sub(chunk::FD), bytes))
                else {
                    break;
                };
                entry = next;
            }
        }
    }

    fn fastbins(&mut self, index: usize) {
        let at = self.malloc.arenas[index].address;
        for bin in 0..arena::FASTBIN_COUNT {
            let bytes = (bin + 2) * GRAIN;
            let Some(mut entry) = self.memory.u64(at + arena::FASTBINS + bin * 8) else { return };
            let most = self.malloc.arenas[index].system_bytes / bytes;
            let mut followed = 0;
            while entry != 0 && self.has_size(entry, bytes) && followed < most.min(MAX_LIST) {
                self.classes.take(bytes);
                self.malloc.arenas[index].fastbins.add(bytes);
                self.was_live(index, bytes);
                followed += 1;
                match self.next(entry.wrapping_add(chunk::FD), |walk, next| walk.has_size(next, bytes)) {
                    Some(next) => entry = next,
                    None => {
                        self.gap(format!("a list of free chunks of {bytes} B is broken: its rest counts as live"));
                        break;
                    }
                }
            }
        }
    }

    /// The unsorted bin, from its oldest chunk on, since those lie in order.
    fn unsorted(&mut self, index: usize) {
        let at = self.malloc.arenas[index].address;
        let own = arena::bin(at, 0);
        let Some(mut entry) = self.memory.u64(at + arena::BINS + 8) else { return };
        let free = self.malloc.arenas[index].small.chunks + self.malloc.arenas[index].large.chunks;
        let (mut small, mut large) = (Chunks::default(), Chunks::default());
        while entry != own && small.chunks + large.chunks < free.min(MAX_LIST) {
            let Some(bytes) = self.memory.u64(entry.wrapping_add(chunk::SIZE)).map(|word| word & !bit::ALL) else {
                break;
            };
            if entry % GRAIN != 0 || bytes % GRAIN != 0 || bytes == 0 {
                break;
            }
            if bytes < SMALLEST_LARGE {
                small.add(bytes);
            } else {
                large.add(bytes);
            }
            let Some(next) = self.memory.u64(entry.wrapping_add(chunk::BK)) else { break };
            entry = next;
        }
        let whole = entry == own || self.memory.is_used_up();
        let arena = &mut self.malloc.arenas[index];
        // What was not walked as free cannot be here.
        if small.bytes > arena.small.bytes || large.bytes > arena.large.bytes {
            return self.gap("the unsorted bin of malloc has more than its heaps: it was not told apart".to_owned());
        }
        arena.small.take(small);
        arena.large.take(large);
        arena.unsorted.join(small);
        arena.unsorted.join(large);
        if !whole {
            self.gap("the unsorted bin of malloc is broken: its rest counts as sorted".to_owned());
        }
    }

    /// The next of a list behind the pointer at `field`: since 2.32 it is mixed
    /// with its own address ("safe-linking"), before it is plain. Which one shows
    /// in what `fits`; 0 is the end, `None` neither.
    fn next(&mut self, field: u64, fits: impl Fn(&mut Self, u64) -> bool) -> Option<u64> {
        let word = self.memory.u64(field)?;
        let mixed = word ^ (field >> 12);
        if mixed == 0 || (mixed.is_multiple_of(GRAIN) && fits(self, mixed)) {
            return Some(mixed);
        }
        (word == 0 || (word % GRAIN == 0 && fits(self, word))).then_some(word)
    }

    fn has_size(&mut self, at: u64, bytes: u64) -> bool {
        at.is_multiple_of(GRAIN)
            && self.place.holds(at)
            && self
                .memory
                .u64(at.wrapping_add(chunk::SIZE))
                .is_some_and(|word| word & !(bit::ALL & !bit::IS_MMAPPED) == bytes)
    }

    /// Index of the arena that a chunk in use is of.
    fn arena_of(&mut self, at: u64) -> Option<usize> {
        if self.memory.u64(at.wrapping_add(chunk::SIZE))? & bit::NON_MAIN_ARENA == 0 {
            return Some(0);
        }
        let own = self.memory.u64((at & !(self.heap_max - 1)) + heap::ARENA)?;
        self.malloc.arenas.iter().position(|arena| arena.address == own)
    }

    /// A chunk that was counted live is free. Lists hold small chunks, and
    /// both ends of each were read: all of it is in memory.
    fn was_live(&mut self, index: usize, bytes: u64) {
        let arena = &mut self.malloc.arenas[index];
        arena.live.take(Chunks { chunks: 1, bytes });
        arena.free_resident_bytes = arena.free_resident_bytes.map(|sum| sum + bytes);
    }
}
