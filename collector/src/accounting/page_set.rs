//! Which page frames were counted already.

use std::collections::BTreeMap;

/// Page frames that one piece of the set is for: 128 MiB of them, in 4 KiB.
const PIECE: u64 = 512 * 64;

/// A set of page frame numbers: a bit for each page of the machine near which there
/// is any, so that a TiB takes 32 MiB at most, however often its pages are mapped.
#[derive(Debug, Default)]
pub struct PageSet {
    pieces: BTreeMap<u64, Box<[u64; 512]>>,
}

impl PageSet {
    /// Whether it has a page frame.
    #[must_use]
    pub fn contains(&self, pfn: u64) -> bool {
        let piece = self.pieces.get(&(pfn / PIECE));
        piece.is_some_and(|piece| piece[(pfn % PIECE / 64) as usize] & (1 << (pfn % 64)) != 0)
    }

    /// Adds a page frame; whether it is new.
    pub fn insert(&mut self, pfn: u64) -> bool {
        let piece = self.pieces.entry(pfn / PIECE).or_insert_with(|| Box::new([0; 512]));
        let word = &mut piece[(pfn % PIECE / 64) as usize];
        let bit = 1 << (pfn % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_page_is_new_once() {
        let mut set = PageSet::default();
        let pfns = [0, 1, 63, 64, PIECE - 1, PIECE, PIECE * 7 + 5, (1 << 55) - 1];
        assert!(pfns.iter().all(|&pfn| !set.contains(pfn) && set.insert(pfn) && set.contains(pfn)));
        assert!(!pfns.iter().any(|&pfn| set.insert(pfn)));
        assert!(!set.contains(2) && set.insert(2));
        assert_eq!(set.pieces.len(), 4);
    }
}
