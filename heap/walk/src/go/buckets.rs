//! The list of buckets: one for each stack and size.
//!
//! A bucket (`type bucket`), in words: 0 next in its hash chain, 1 allnext,
//! 2 typ (1 is memory), 3 hash, 4 size, 5 nstk; then nstk program counters; then
//! a `memRecord`: the published cycle and three future ones. A cycle is allocs,
//! frees, alloc_bytes, free_bytes up to Go 1.26, and allocs, frees since 1.27.

use super::{DEFAULT_RATE, Program, search};
use crate::estimate::{Sum, probability};
use crate::memory::{Bounded, Memory};
use std::fmt;

/// `memProfile`.
const TYPE: u64 = 1;
/// Bytes of a bucket before its stack.
const HEADER: u64 = 48;
/// `maxProfStackDepth` (1.23); 32 before.
const MAX_DEPTH: u64 = 1024;
/// Bytes of a page at least, on every machine that Go runs on.
const PAGE: u64 = 4096;
/// Most bytes a block can have.
const MAX_SIZE: u64 = 1 << 47;
/// Buckets that are read. Each takes hundreds of bytes of the target.
const MAX_BUCKETS: usize = 1 << 17;
/// Buckets whose stacks are read: those that own most.
const MAX_STACKS: usize = 1 << 14;
/// Program counters of all of them.
const MAX_COUNTERS: u64 = 1 << 19;
/// Bytes read in all.
const MAX_BYTES: u64 = 128 << 20;
/// Buckets that tell how a cycle is laid out.
const SAMPLED: usize = 64;

/// What a program allocated.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// Mean bytes between samples.
    pub rate: u64,
    /// Buckets, those that own most first.
    pub records: Vec<Record>,
    /// In use by all, those without a record too.
    pub inuse: Sum,
    /// Ever allocated by all.
    pub alloc: Sum,
    /// Buckets whose stack was left out or could not be read.
    pub without_stack: u64,
    /// Buckets of which a part was not in memory, and counts as never written.
    pub partly_absent: u64,
    /// Whether the list could not be followed to its end.
    pub is_cut: bool,
}

/// One stack and size.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// As the runtime has it: a program counter behind each call, innermost
    /// first, inlined functions too.
    pub counters: Vec<u64>,
    /// In use.
    pub inuse: Sum,
    /// Ever allocated.
    pub alloc: Sum,
}

/// Why there is no profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// `runtime.MemProfileRate` is 0.
    Off,
    /// There are no buckets: nothing was sampled, or they were not found.
    NoBuckets,
    /// A variable that was asked for was not in memory.
    Absent,
    /// The buckets are of a kind that is not known.
    Unknown,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::Off => "runtime.MemProfileRate is 0",
            Refusal::NoBuckets => "no sample was found",
            Refusal::Absent => "a page of its variables was not in memory",
            Refusal::Unknown => "its profile is laid out in an unknown way",
        })
    }
}

/// A bucket without its stack.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    at: u64,
    pub(super) next: u64,
    pub(super) hash: u64,
    pub(super) size: u64,
    pub(super) depth: u64,
}

/// What was counted in one.
#[derive(Debug, Clone, Copy)]
struct Counted {
    bucket: Bucket,
    allocated: u64,
    freed: u64,
    is_partly_absent: bool,
}

/// Words of a cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cycle {
    /// Two counts, and the bytes of both.
    Four,
    /// Two counts.
    Two,
}

/// Reads the profile of a program that does not move.
pub fn walk(memory: &mut dyn Memory, program: &Program) -> Result<Profile, Refusal> {
    let mut memory = Bounded::new(memory, MAX_BYTES);
    let rate = match program.rate {
        Some(at) => memory.u64(at).ok_or(Refusal::Absent)?,
        None => DEFAULT_RATE,
    };
    if rate == 0 {
        return Err(Refusal::Off);
    }
    let head = match program.buckets {
        Some(at) => memory.u64(at).ok_or(Refusal::Absent)?,
        None => search::head(&mut memory, &program.zeroed).ok_or(Refusal::NoBuckets)?,
    };
    if head == 0 {
        return Err(Refusal::NoBuckets);
    }
    let cycle = layout(&mut memory, head).ok_or(Refusal::Unknown)?;
    let (mut counted, mut is_cut) = count(&mut memory, head, cycle);
    if counted.is_empty() {
        return Err(Refusal::Unknown);
    }
    let buckets = counted.len() as u64;
    let partly_absent = counted.iter().filter(|one| one.is_partly_absent).count() as u64;
    let (mut inuse, mut alloc) = (Sum::default(), Sum::default());
    for one in &counted {
        inuse.join(&one.inuse(rate));
        alloc.join(&one.alloc(rate));
    }
    counted.sort_by(|a, b| b.rank(rate).total_cmp(&a.rank(rate)));
    counted.truncate(MAX_STACKS);
    let mut counters_left = MAX_COUNTERS;
    let mut records = Vec::new();
    for one in &counted {
        let Some(left) = counters_left.checked_sub(one.bucket.depth) else { break };
        counters_left = left;
        if let Some(counters) = one.bucket.counters(&mut memory) {
            records.push(Record { counters, inuse: one.inuse(rate), alloc: one.alloc(rate) });
        }
    }
    is_cut |= memory.is_used_up();
    let without_stack = buckets - records.len() as u64;
    Ok(Profile { rate, without_stack, partly_absent, records, inuse, alloc, is_cut })
}

/// All buckets, and whether the list broke off.
fn count(memory: &mut Bounded<'_, dyn Memory + '_>, head: u64, cycle: Cycle) -> (Vec<Counted>, bool) {
    let mut counted: Vec<Counted> = Vec::new();
    let mut list = List::at(head);
    while let Some(bucket) = list.next(memory) {
        counted.push(bucket.counted(memory, cycle));
    }
    if list.is_ring {
        // Each of it counts once.
        counted.sort_by_key(|one| one.bucket.at);
        counted.dedup_by_key(|one| one.bucket.at);
    }
    (counted, list.at != 0)
}

/// A list that is followed for so long, or until it turns out to be a ring
/// (Brent, 1980).
pub(super) struct List {
    /// The next bucket; 0 after the last.
    pub(super) at: u64,
    pub(super) length: usize,
    marked: u64,
    is_ring: bool,
}

impl List {
    pub(super) fn at(head: u64) -> Self {
        List { at: head, length: 0, marked: 0, is_ring: false }
    }

    pub(super) fn next(&mut self, memory: &mut dyn Memory) -> Option<Bucket> {
        if self.at == 0 || self.is_ring || self.length == MAX_BUCKETS {
            return None;
        }
        let bucket = Bucket::read(memory, self.at)?;
        self.length += 1;
        if self.length.is_power_of_two() {
            self.marked = self.at;
        }
        self.at = bucket.next;
        self.is_ring = self.at == self.marked;
        Some(bucket)
    }
}

/// How cycles are laid out: in four words the bytes are the count times the
/// size. A bucket of which nothing is counted tells nothing, and one that is
/// being written may tell the wrong thing, so the most win.
fn layout(memory: &mut Bounded<'_, dyn Memory + '_>, head: u64) -> Option<Cycle> {
    let (mut four, mut two) = (0, 0);
    let mut list = List::at(head);
    while list.length < SAMPLED
        && let Some(bucket) = list.next(memory)
    {
        let mut words = [0; 16];
        bucket.words(memory, &mut words);
        let fits = |c: &[u64]| {
            let bytes = |count: u64| count.wrapping_mul(bucket.size);
            c[2] == bytes(c[0]) && c[3] == bytes(c[1])
        };
        let all_fit = words.chunks_exact(4).all(fits);
        let informative = words.chunks_exact(4).any(|c| c[0] != 0 || c[1] != 0);
        four += u32::from(all_fit && informative);
        two += u32::from(!all_fit);
    }
    match (four, two) {
        (0, 0) => None,
        (four, two) if four >= two => Some(Cycle::Four),
        _ => Some(Cycle::Two),
    }
}

impl Bucket {
    /// A memory profile's bucket, as far as can be told without its stack.
    pub(super) fn read(memory: &mut dyn Memory, at: u64) -> Option<Self> {
        let mut bytes = [0; HEADER as usize];
        if !at.is_multiple_of(8) || !memory.read(at, &mut bytes) {
            return None;
        }
        let word = |index: usize| u64::from_le_bytes(bytes[index * 8..][..8].try_into().expect("eight bytes"));
        let bucket = Bucket { at, next: word(1), hash: word(3), size: word(4), depth: word(5) };
        let is_one = word(2) == TYPE && (1..=MAX_DEPTH).contains(&bucket.depth) && bucket.size <= MAX_SIZE;
        is_one.then_some(bucket)
    }

    /// Its stack.
    pub(super) fn counters(&self, memory: &mut dyn Memory) -> Option<Vec<u64>> {
        let mut bytes = vec![0; self.depth as usize * 8];
        memory.read(self.at.checked_add(HEADER)?, &mut bytes).then(|| words(&bytes).collect())
    }

    /// Words of its record; whether all of them were in memory. Those that were not
    /// are zero: the runtime hands out fresh pages for buckets, and the newest one may
    /// end in a page that nobody wrote to yet, least of all where memory ran out.
    fn words(&self, memory: &mut dyn Memory, out: &mut [u64]) -> bool {
        let mut bytes = [0; 128];
        let bytes = &mut bytes[..out.len() * 8];
        let is_whole = self.at.checked_add(HEADER + self.depth * 8).is_some_and(|at| {
            let here = (PAGE - at % PAGE).min(bytes.len() as u64) as usize;
            let (first, rest) = bytes.split_at_mut(here);
            let mut there = |at: u64, part: &mut [u8]| {
                let is_there = memory.read(at, part);
                if !is_there {
                    part.fill(0);
                }
                is_there
            };
            let is_first_there = there(at, first);
            // Both are asked for, so that one does not hide the other.
            let is_rest_there = rest.is_empty() || at.checked_add(here as u64).is_some_and(|at| there(at, rest));
            is_first_there && is_rest_there
        });
        out.iter_mut().zip(words(bytes)).for_each(|(out, word)| *out = word);
        is_whole
    }

    /// All four cycles added up. The runtime's own sums wrap around too: frees of
    /// a cycle may be more than its allocations.
    fn counted(self, memory: &mut dyn Memory, cycle: Cycle) -> Counted {
        let mut words = [0; 16];
        let (length, step) = match cycle {
            Cycle::Four => (16, 4),
            Cycle::Two => (8, 2),
        };
        let is_partly_absent = !self.words(memory, &mut words[..length]);
        let sum = |first: usize| words[first..length].iter().step_by(step).fold(0, |sum: u64, w| sum.wrapping_add(*w));
        Counted { bucket: self, allocated: sum(0), freed: sum(1), is_partly_absent }
    }
}

impl Counted {
    /// What so many of its samples stand for (`scaleHeapSample` in
    /// `runtime/pprof/protomem.go`).
    fn sum(&self, samples: u64, rate: u64) -> Sum {
        Sum::of(samples, self.bucket.size as f64, probability(self.bucket.size, rate))
    }

    fn alloc(&self, rate: u64) -> Sum {
        self.sum(self.allocated, rate)
    }

    fn inuse(&self, rate: u64) -> Sum {
        self.sum(self.allocated.saturating_sub(self.freed), rate)
    }

    /// More is more interesting.
    fn rank(&self, rate: u64) -> f64 {
        // What is in use goes before all that is not.
        self.inuse(rate).bytes + self.alloc(rate).bytes * 1e-12
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::go::search::hash;
    use std::collections::BTreeMap;

    /// A program's memory, of words.
    #[derive(Default)]
    struct Words(BTreeMap<u64, u64>);

    impl Memory for Words {
        fn read(&mut self, address: u64, out: &mut [u8]) -> bool {
            out.iter_mut().enumerate().all(|(index, byte)| {
                let Some(at) = address.checked_add(index as u64) else { return false };
                let Some(word) = self.0.get(&(at & !7)) else { return false };
                *byte = word.to_le_bytes()[(at % 8) as usize];
                true
            })
        }
    }

    const VARIABLES: u64 = 0x5000;
    const FIRST: u64 = 0x7f00_0000_0000;

    impl Words {
        fn put(&mut self, at: u64, words: &[u64]) {
            for (index, &word) in words.iter().enumerate() {
                self.0.insert(at + index as u64 * 8, word);
            }
        }

        /// A bucket before all others; cycles as (allocs, frees).
        fn bucket(&mut self, at: u64, size: u64, stack: &[u64], cycles: [(u64, u64); 4], cycle: Cycle) {
            let next = self.0.get(&VARIABLES).copied().unwrap_or(0);
            self.put(at, &[0xdead, next, TYPE, hash(stack, size), size, stack.len() as u64]);
            self.put(at + HEADER, stack);
            let record: Vec<u64> = cycles
                .iter()
                .flat_map(|&(a, f)| match cycle {
                    Cycle::Four => vec![a, f, a.wrapping_mul(size), f.wrapping_mul(size)],
                    Cycle::Two => vec![a, f],
                })
                .collect();
            // A page is in memory or is not.
            self.put(at + HEADER + stack.len() as u64 * 8, &[0; 16]);
            self.put(at + HEADER + stack.len() as u64 * 8, &record);
            self.put(VARIABLES, &[at]);
        }

        fn of_two_sites(cycle: Cycle) -> Self {
            let mut words = Words::default();
            words.put(VARIABLES, &[0, DEFAULT_RATE, 0, 0, 0, 0, 0, 0]);
            words.bucket(FIRST, 1024, &[1, 2, 3], [(100, 10), (0, 0), (5, 0), (7, 20)], cycle);
            words.bucket(FIRST + 0x1000, 1 << 20, &[4, 2, 3], [(0, 0), (0, 0), (0, 0), (3, 0)], cycle);
            words
        }
    }

    fn told() -> Program {
        Program { buckets: Some(VARIABLES), zeroed: Vec::new(), rate: Some(VARIABLES + 8) }
    }

    fn searched() -> Program {
        Program { buckets: None, zeroed: vec![0..0, VARIABLES..VARIABLES + 16], rate: None }
    }

    #[test]
    fn both_layouts_with_and_without_symbols() {
        for cycle in [Cycle::Four, Cycle::Two] {
            for program in [told(), searched()] {
                let profile = walk(&mut Words::of_two_sites(cycle), &program).unwrap();
                assert_eq!((profile.rate, profile.is_cut, profile.without_stack), (DEFAULT_RATE, false, 0));
                let [small, large] = &profile.records[..] else { panic!("{profile:#?}") };
                assert_eq!((&large.counters[..], &small.counters[..]), (&[4, 2, 3][..], &[1, 2, 3][..]));
                assert_eq!((small.inuse.samples, small.alloc.samples, large.inuse.samples), (82, 112, 3));
                // 1/(1-exp(-2)) and 1/(1-exp(-1/512)), as runtime/pprof scales.
                assert!((large.inuse.bytes - 3.0 * 1_212_696.6).abs() < 10.0, "{large:?}");
                assert!((small.inuse.objects - 82.0 * 512.500_16).abs() < 1.0, "{small:?}");
                // A sample of 1 KiB stands for 512 KiB; one of 1 MiB hardly for more than itself.
                let sigma = (82.0 * (1.0 - 1.0 / 512.5_f64)).sqrt() * 524_800.0;
                assert!((small.inuse.variance.sqrt() - sigma).abs() < 1000.0, "{small:?}");
                assert!(large.inuse.variance.sqrt() < 800_000.0, "{large:?}");
            }
        }
    }

    #[test]
    fn nothing_to_be_seen_is_told() {
        let mut words = Words::of_two_sites(Cycle::Four);
        words.put(VARIABLES + 8, &[0]);
        assert_eq!(walk(&mut words, &told()), Err(Refusal::Off));
        words.put(VARIABLES, &[0, 1]);
        assert_eq!(walk(&mut words, &told()), Err(Refusal::NoBuckets));
        assert_eq!(walk(&mut words, &searched()), Err(Refusal::NoBuckets));
        assert_eq!(walk(&mut Words::default(), &told()), Err(Refusal::Absent));
        words.put(VARIABLES, &[FIRST + 8]);
        assert_eq!(walk(&mut words, &told()), Err(Refusal::Unknown));
    }

    #[test]
    fn a_list_that_breaks_off_or_bites_its_tail() {
        let mut words = Words::of_two_sites(Cycle::Four);
        words.put(FIRST + 8, &[0xc0_0000_0000]);
        let profile = walk(&mut words, &told()).unwrap();
        assert_eq!((profile.records.len(), profile.is_cut), (2, true));
        words.put(FIRST + 8, &[FIRST + 0x1000]);
        let profile = walk(&mut words, &told()).unwrap();
        assert_eq!((profile.records.len(), profile.is_cut, profile.inuse.samples), (2, true, 85));
    }

    /// The newest bucket ends where no page was touched yet: it counts for what is
    /// there, and does not hide the others.
    #[test]
    fn a_bucket_that_ends_in_an_untouched_page() {
        for cycle in [Cycle::Four, Cycle::Two] {
            let mut words = Words::of_two_sites(cycle);
            // Eight words of the bucket in one page, the end of its record in the next.
            let at = FIRST + 0x4000 - HEADER - 2 * 8 - 4 * 8;
            words.bucket(at, 4096, &[5, 3], [(2, 0), (0, 0), (0, 0), (0, 0)], cycle);
            for word in (FIRST + 0x4000..FIRST + 0x4000 + 128).step_by(8) {
                words.0.remove(&word);
            }
            for program in [told(), searched()] {
                let profile = walk(&mut words, &program).unwrap();
                assert_eq!((profile.is_cut, profile.partly_absent, profile.without_stack), (false, 1, 0));
                assert_eq!(profile.inuse.samples, 87, "{profile:#?}");
                assert!(profile.records.iter().any(|r| r.counters == [5, 3] && r.inuse.samples == 2));
            }
        }
    }

    /// Any word may be anything.
    #[test]
    fn hostile_words() {
        let honest = Words::of_two_sites(Cycle::Two).0;
        for &at in honest.keys() {
            for word in [0, 1, 7, 1 << 20, 1 << 47, FIRST, FIRST + 0x1000, u64::MAX, u64::MAX - 7, 1 << 63] {
                let mut words = Words(honest.clone());
                words.0.insert(at, word);
                let _ = walk(&mut words, &told());
                let _ = walk(&mut words, &searched());
            }
            let mut words = Words(honest.clone());
            words.0.remove(&at);
            let _ = walk(&mut words, &told());
            let _ = walk(&mut words, &searched());
        }
    }
}
