//! Chunk after chunk through a heap.

use super::layout::{GRAIN, SMALLEST, SMALLEST_LARGE, bit, chunk, tcache};
use super::{Arena, PAGE, Pages, Walk};
use crate::Memory;

/// Caches of threads that are followed.
const MAX_TCACHES: usize = 4096;

impl<M: Memory + ?Sized, P: Pages + ?Sized> Walk<'_, M, P> {
    /// Adds the chunks from `start` to `end` to `sums`. `is_left`: no top begins
    /// at `end`, and malloc has left two or so words before it (sysmalloc, "fencepost").
    pub(super) fn region(&mut self, sums: &mut Arena, start: u64, end: u64, is_left: bool) {
        let mut at = start;
        if at == end {
            return;
        }
        let Some(mut word) = self.memory.u64(at.wrapping_add(chunk::SIZE)) else { return self.unread(at) };
        while at < end {
            let bytes = word & !bit::ALL;
            if is_left && bytes <= GRAIN && end - at <= 2 * SMALLEST {
                sums.overhead_bytes += end - at;
                return;
            }
            if bytes < SMALLEST || !bytes.is_multiple_of(GRAIN) || bytes > end - at || word & bit::IS_MMAPPED != 0 {
                return self.gap(format!(
                    "malloc's chunk at {at:#x} has an impossible size: what lies behind it up to {end:#x} is unknown"
                ));
            }
            let next = at + bytes;
            // The last one is never free: it would be part of top.
            let next_word = if next == end {
                bit::PREV_INUSE
            } else {
                match self.memory.u64(next + chunk::SIZE) {
                    Some(word) => word,
                    None => return self.unread(next),
                }
            };
            if next_word & bit::PREV_INUSE == 0 {
                let kind = if bytes < SMALLEST_LARGE { &mut sums.small } else { &mut sums.large };
                kind.add(bytes);
                let resident = self.resident_chunk(at, bytes);
                sums.free_resident_bytes = sums.free_resident_bytes.zip(resident).map(|(sum, more)| sum + more);
            } else {
                sums.live.add(bytes);
                self.classes.add(bytes);
                if bytes == tcache::CHUNK && self.tcaches.len() < MAX_TCACHES && self.may_be_tcache(at) {
                    self.tcaches.push(at);
                }
            }
            (at, word) = (next, next_word);
        }
    }

    fn unread(&mut self, at: u64) {
        if !self.memory.is_used_up() {
            self.gap(format!(
                "malloc's chunk at {at:#x} could not be read (not in memory, or late): its heap is unknown from there on"
            ));
        }
    }

    /// Bytes of a free chunk in present pages. Its first words and the ones
    /// behind it were read, so their pages are there.
    fn resident_chunk(&mut self, at: u64, bytes: u64) -> Option<u64> {
        let inner = (at + chunk::FD).next_multiple_of(PAGE)..(at + bytes) / PAGE * PAGE;
        if inner.is_empty() {
            return Some(bytes);
        }
        let absent = (inner.end - inner.start).saturating_sub(self.pages.present_bytes(inner)?);
        Some(bytes - absent)
    }

    /// Whether a chunk looks like a thread's cache that is not empty.
    fn may_be_tcache(&mut self, at: u64) -> bool {
        let mut bytes = [0; tcache::BYTES];
        if !self.memory.read(at + chunk::FD, &mut bytes) {
            return false;
        }
        let (counts, heads) = bytes.split_at(tcache::BINS * 2);
        let mut filled = false;
        for (count, head) in counts.chunks_exact(2).zip(heads.chunks_exact(8)) {
            let count = u16::from_le_bytes(count.try_into().unwrap_or_default());
            let head = u64::from_le_bytes(head.try_into().unwrap_or_default());
            // An entry may just be taken out or put in.
            if head % GRAIN != 0 || (count > 1 && head == 0) || (head != 0 && !self.place.holds(head)) {
                return false;
            }
            filled |= head != 0;
        }
        filled
    }
}
