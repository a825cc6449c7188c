//! What is live of each stack, read from the table without a copy of it: for a record that
//! is made again and again while the program runs.

use super::table::{HeapTable, own_id};
use crate::snapshot::{Pagemap, page_size};
use reprieve_heap_table::{Home, LiveSample, probability, visit_live};
use std::collections::BTreeMap;

/// Processes whose mappings are looked into.
const PROCESSES: usize = 64;
/// Pages of mappings that are asked about for one record (64 MiB): the guardian must not be
/// away from its bell for longer than a millisecond or so.
const PAGES: u64 = 1 << 14;
/// Stacks that are summed up; what is at more counts as the rest.
const STACKS: usize = 1 << 14;

/// From this size on an allocator maps a block by itself (M_MMAP_THRESHOLD of mallopt(3) as it is
/// at first), and nothing of it is in memory before it is touched.
const BIG_BLOCK: u64 = 128 << 10;

/// Whether the pages of a sample have to be looked at to know what it has in memory.
pub(super) fn is_looked_at(sample: &LiveSample) -> bool {
    sample.mapping || sample.usable >= BIG_BLOCK
}

/// A stack of a process, as long as that has its home in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct StackKey {
    home: u32,
    sequence: u32,
    stack: u32,
}

impl StackKey {
    /// Slab and sequence of the home, and the stack's key in its table. A region of 64 MiB
    /// has places below 2^32 only.
    #[must_use]
    pub fn new(home: usize, sequence: u64, stack: u64) -> Self {
        StackKey { home: home as u32, sequence: sequence as u32, stack: stack as u32 }
    }
}

/// Live bytes of the biggest stacks at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StackTotals {
    /// In order of their keys; without a size where it is not known.
    kept: Vec<(StackKey, Option<u64>)>,
    /// Live at stacks that are not among them.
    pub rest_bytes: u64,
}

impl StackTotals {
    /// What a stack had; `None` where that could not be sized. One that is not there had
    /// nothing, or is one of the small ones in the rest.
    #[must_use]
    pub fn find(&self, key: StackKey) -> Option<u64> {
        match self.kept.binary_search_by_key(&key, |(key, _)| *key) {
            Ok(at) => self.kept.get(at).and_then(|(_, bytes)| *bytes),
            Err(_) => Some(0),
        }
    }

    /// Bytes of memory that it takes.
    #[must_use]
    pub fn kept_bytes(&self) -> usize {
        self.kept.capacity() * size_of::<(StackKey, Option<u64>)>()
    }
}

/// Sums up what is live now, and keeps the `most` biggest stacks. `pids` are those whose
/// mappings may be looked into.
#[must_use]
pub fn of(table: &HeapTable, pids: &[i32], most: usize) -> StackTotals {
    let mut sums: BTreeMap<StackKey, Option<f64>> = BTreeMap::new();
    let mut rest = 0.0;
    let mut pages_left = PAGES;
    let mut maps = Pagemaps::new(pids);
    let region = table.region();
    let period = region.settings().period;
    visit_live(region, |home, is_forked, sample| {
        // Its parent's while that lives; who has lost his parent is told too little here.
        if sample.inherited && is_forked {
            return;
        }
        let bytes = resident(&home, &sample, &mut maps, &mut pages_left);
        let bytes = bytes.map(|bytes| bytes as f64 / probability(sample.asked, period, libm::exp));
        let key = StackKey::new(home.slab, home.sequence, sample.stack);
        if sums.len() >= STACKS && !sums.contains_key(&key) {
            rest += bytes.unwrap_or(0.0);
            return;
        }
        let sum = sums.entry(key).or_insert(Some(0.0));
        *sum = sum.zip(bytes).map(|(sum, bytes)| sum + bytes);
    });
    biggest(sums, most, rest)
}

fn biggest(sums: BTreeMap<StackKey, Option<f64>>, most: usize, mut rest: f64) -> StackTotals {
    let mut all: Vec<(StackKey, Option<f64>)> = sums.into_iter().collect();
    if all.len() > most {
        // Those without a size first: of them nothing must be concluded.
        let size = |bytes: &Option<f64>| bytes.unwrap_or(f64::INFINITY);
        all.select_nth_unstable_by(most, |(_, a), (_, b)| size(b).total_cmp(&size(a)));
        rest += all[most..].iter().filter_map(|(_, bytes)| *bytes).sum::<f64>();
        all.truncate(most);
    }
    all.sort_unstable_by_key(|(key, _)| *key);
    // A vector of its own: this one has room for all of them.
    let kept = all.into_iter().map(|(key, bytes)| (key, bytes.map(|bytes| bytes as u64)));
    let mut exact = Vec::with_capacity(kept.len());
    exact.extend(kept);
    StackTotals { kept: exact, rest_bytes: rest as u64 }
}

/// Bytes of a block; of a mapping and of a big block, those that are in memory, as an incident
/// counts them. `None` for a mapping that cannot be looked into, or is too big to; such a block has
/// what it was asked for.
fn resident(home: &Home, sample: &LiveSample, maps: &mut Pagemaps, pages_left: &mut u64) -> Option<u64> {
    if !is_looked_at(sample) {
        return Some(sample.usable);
    }
    present(home, sample, maps, pages_left).or((!sample.mapping).then_some(sample.usable))
}

fn present(home: &Home, sample: &LiveSample, maps: &mut Pagemaps, pages_left: &mut u64) -> Option<u64> {
    let pages = sample.usable.div_ceil(page_size());
    *pages_left = pages_left.checked_sub(pages)?;
    let mut present = vec![false; pages as usize];
    maps.of(home)?.present(sample.address, &mut present).ok()?;
    Some((present.iter().filter(|there| **there).count() as u64 * page_size()).min(sample.usable))
}

/// Page maps of processes as they are needed.
struct Pagemaps {
    /// PID and namespace as they see themselves, and our PID.
    pids: Vec<(Option<(u64, u64)>, i32)>,
    open: BTreeMap<usize, Option<Pagemap>>,
    are_known: bool,
}

impl Pagemaps {
    fn new(pids: &[i32]) -> Self {
        let pids = pids.iter().take(PROCESSES).map(|&pid| (None, pid)).collect();
        Pagemaps { pids, open: BTreeMap::new(), are_known: false }
    }

    fn of(&mut self, home: &Home) -> Option<&Pagemap> {
        // Most programs have no such mappings: nobody is asked before there is one.
        if !std::mem::replace(&mut self.are_known, true) {
            self.pids.iter_mut().for_each(|(id, pid)| *id = own_id(*pid));
        }
        let pids = &self.pids;
        let find = || {
            let is_it = |id: (u64, u64)| id.0 == home.pid && (home.pid_namespace == 0 || id.1 == home.pid_namespace);
            let (_, pid) = pids.iter().find(|(id, _)| id.is_some_and(is_it))?;
            Pagemap::open(*pid).ok()
        };
        self.open.entry(home.slab).or_insert_with(find).as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_biggest_are_kept_and_the_rest_is_told() {
        let key = |stack| StackKey::new(1, 7, stack);
        let sums = [(key(8), Some(10.0)), (key(16), Some(500.0)), (key(24), None), (key(32), Some(30.0))];
        let totals = biggest(sums.into(), 2, 1.0);
        assert_eq!(totals.find(key(16)), Some(500));
        assert_eq!(totals.find(key(24)), None, "of unknown size");
        assert_eq!((totals.find(key(8)), totals.rest_bytes), (Some(0), 41));
        assert_eq!(totals.find(StackKey::new(1, 8, 16)), Some(0), "another process has the slab");
        assert!(totals.kept_bytes() <= 2 * 32);
    }
}
