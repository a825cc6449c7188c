//! Blocks that have a mapping of their own.

use super::find::Found;
use super::layout::{GRAIN, bit};
use super::{Chunks, Mmapped, PAGE, Pages, Walk};
use crate::Memory;

/// Pages in memory that are no chunk's start and are passed over, in all.
const MAX_PASSED: u32 = 1 << 14;
/// The same of pages that are not in memory, like most of threads' stacks.
const MAX_ABSENT: u32 = 1 << 18;

impl<M: Memory + ?Sized, P: Pages + ?Sized> Walk<'_, M, P> {
    /// What malloc counted, and how much of it is in memory, where all of them
    /// are found: a chunk begins a page, and the kernel joins mappings.
    pub(super) fn mmapped(&mut self, found: &Found) {
        self.heaps.sort_unstable_by_key(|heap| heap.start);
        let counted = found.parameters.map(|p| Chunks { chunks: p.mmaps, bytes: p.mmapped_bytes });
        let mut seen = Chunks::default();
        let mut resident = Some(0u64);
        let (mut passed, mut absent) = (0, 0);
        for mapping in self.place.anonymous {
            if counted == Some(seen) {
                break;
            }
            let mut at = mapping.start.next_multiple_of(PAGE);
            while at < mapping.end && passed < MAX_PASSED && absent < MAX_ABSENT {
                // Heaps of arenas are no such blocks.
                let before = self.heaps.partition_point(|heap| heap.start <= at);
                if let Some(heap) = self.heaps[..before].last().filter(|heap| heap.contains(&at)) {
                    at = heap.end;
                    continue;
                }
                if self.pages.present_bytes(at..at + PAGE) == Some(0) {
                    absent += 1;
                    at += PAGE;
                    continue;
                }
                match self.mmapped_chunk(at, mapping.end) {
                    Some(bytes) => {
                        seen.add(bytes);
                        resident = resident.and_then(|sum| Some(sum + self.pages.present_bytes(at..at + bytes)?));
                        at += bytes;
                    }
                    None => {
                        passed += 1;
                        at += PAGE;
                    }
                }
            }
        }
        self.malloc.mmapped = match counted {
            Some(chunks) => Some(Mmapped { chunks, resident_bytes: resident.filter(|_| seen == chunks) }),
            None => Some(Mmapped { chunks: seen, resident_bytes: resident }).filter(|_| seen.chunks > 0),
        };
    }

    /// Bytes of the mapped chunk at `at`, if it is one: sysmalloc_mmap sets a
    /// size of whole pages with that one bit, and nothing before.
    fn mmapped_chunk(&mut self, at: u64, end: u64) -> Option<u64> {
        let before = self.memory.u64(at)?;
        let word = self.memory.u64(at + 8)?;
        let bytes = word & !bit::ALL;
        let is_one = before % GRAIN == 0 && before < PAGE && word & bit::ALL == bit::IS_MMAPPED;
        (is_one && bytes > 0 && bytes.is_multiple_of(PAGE) && bytes <= end - at).then_some(bytes)
    }
}
