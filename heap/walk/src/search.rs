//! Variables without symbols, found by what they must look like.

use crate::Memory;
use std::ops::Range;

/// Page of x86-64.
pub(crate) const PAGE: u64 = 4096;
/// No mapping ends beyond (Documentation/arch/x86/x86_64/5level-paging.rst).
pub(crate) const END: u64 = 1 << 56;
/// Most bytes of variables that are searched: those of a library are less, those
/// of a static program may be more.
const MAX_DATA: u64 = 8 << 20;
/// Bytes that are searched at a time.
const BLOCK: u64 = 64 << 10;

/// Words from an address on.
pub(crate) struct Words<'w> {
    /// The address.
    pub(crate) base: u64,
    words: &'w [u64],
}

impl Words<'_> {
    /// The word at an offset that is a multiple of 8; 0 beyond the end.
    pub(crate) fn at(&self, offset: u64) -> u64 {
        self.words.get((offset / 8) as usize).copied().unwrap_or(0)
    }

    /// The 32 bits at an offset that is a multiple of 4.
    pub(crate) fn half(&self, offset: u64) -> u64 {
        self.at(offset & !7) >> (offset % 8 * 8) & 0xffff_ffff
    }

    /// Whether so many bytes are there.
    pub(crate) fn has(&self, bytes: u64) -> bool {
        self.words.len() as u64 >= bytes / 8
    }
}

/// Shows `look` the words from each address in `data` on, at least `most` bytes
/// of them where there are so many, until it says that it is done.
pub(crate) fn search<M: Memory + ?Sized>(
    memory: &mut M,
    data: &[Range<u64>],
    most: u64,
    mut look: impl FnMut(&mut M, &Words<'_>) -> bool,
) {
    let mut left = MAX_DATA;
    for range in data {
        let end = range.end.min(range.start.saturating_add(left));
        left -= end.saturating_sub(range.start);
        let mut block = range.start.next_multiple_of(8);
        while block < end {
            let words = words(memory, block, (BLOCK + most).min((end - block) & !7));
            for (index, base) in (block..end.min(block + BLOCK)).step_by(8).enumerate() {
                if look(memory, &Words { base, words: words.get(index..).unwrap_or_default() }) {
                    return;
                }
            }
            block += BLOCK;
        }
    }
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
