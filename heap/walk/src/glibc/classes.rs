//! Live chunks by size, in a fixed table.

use super::Chunks;
use super::layout::{GRAIN, SMALLEST_LARGE};

/// Chunks below [`SMALLEST_LARGE`] have a class for each size, others four in
/// each power of two.
const SMALL: usize = (SMALLEST_LARGE / GRAIN) as usize;
/// Classes up to 2^46 bytes.
const ALL: usize = SMALL + 36 * 4;
/// Classes that are told.
const TOLD: usize = 10;

/// Live chunks of about one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeClass {
    /// Smallest chunk of it, header included.
    pub from_bytes: u64,
    /// Biggest.
    pub to_bytes: u64,
    /// What there is.
    pub chunks: Chunks,
}

/// All classes.
pub struct Classes(Vec<Chunks>);

impl Default for Classes {
    fn default() -> Self {
        Classes(vec![Chunks::default(); ALL])
    }
}

impl Classes {
    /// A chunk is live.
    pub fn add(&mut self, bytes: u64) {
        self.0[class(bytes)].add(bytes);
    }

    /// It was counted, but is free.
    pub fn take(&mut self, bytes: u64) {
        self.0[class(bytes)].take(Chunks { chunks: 1, bytes });
    }

    /// Those with most bytes.
    pub fn biggest(&self) -> Vec<SizeClass> {
        let mut all: Vec<SizeClass> = self
            .0
            .iter()
            .enumerate()
            .filter(|(_, chunks)| chunks.chunks > 0)
            .map(|(index, chunks)| {
                let (from_bytes, to_bytes) = range(index);
                SizeClass { from_bytes, to_bytes, chunks: *chunks }
            })
            .collect();
        all.sort_by_key(|class| std::cmp::Reverse(class.chunks.bytes));
        all.truncate(TOLD);
        all
    }
}

fn class(bytes: u64) -> usize {
    if bytes < SMALLEST_LARGE {
        return (bytes / GRAIN) as usize;
    }
    let power = bytes.ilog2();
    let quarter = (bytes >> (power - 2) & 3) as usize;
    (SMALL + (power as usize - 10) * 4 + quarter).min(ALL - 1)
}

fn range(index: usize) -> (u64, u64) {
    let Some(beyond) = index.checked_sub(SMALL) else {
        return (index as u64 * GRAIN, index as u64 * GRAIN);
    };
    let unit = 1u64 << (beyond / 4 + 8);
    let from = unit * (4 + beyond as u64 % 4);
    (from, from + unit - GRAIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_is_within_its_class() {
        for bytes in (32..100_000u64).chain([1 << 20, (1 << 20) + 16, 1 << 30, (1 << 46) - 16]).filter(|b| b % 16 == 0)
        {
            let (from, to) = range(class(bytes));
            assert!((from..=to).contains(&bytes), "{bytes} in {from}..={to}");
        }
        assert_eq!(class(u64::MAX), ALL - 1);
    }
}
