//! Reading the table of processes that may be running, frozen, dead or hostile.

use crate::MAX_FRAMES;
use crate::layout::{MAX_MORE, SAMPLES_PER_SLAB, SLAB_BYTES, home, kind, sample, stack};
use crate::region::Region;
use crate::sweep::Home;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// What one process has recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessTable {
    /// Slab of its home.
    pub home: usize,
    /// PID in its own namespace.
    pub pid: u64,
    /// Inode of that namespace.
    pub pid_namespace: u64,
    /// Of two homes of one process the later is its own.
    pub sequence: u64,
    /// Address at which the process had mapped the region.
    pub base: u64,
    /// Slab of the home that it was forked from, or 0.
    pub parent: usize,
    /// Samples taken.
    pub taken: u64,
    /// Samples that found no room.
    pub lost_samples: u64,
    /// Their estimated bytes.
    pub lost_bytes: u64,
    /// Blocks and mappings that were not freed.
    pub live: Vec<LiveSample>,
    /// Stacks by the number that a sample gives; also of those that are freed.
    pub stacks: BTreeMap<u64, Stack>,
}

/// A sampled block that was not freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiveSample {
    /// Its address.
    pub address: u64,
    /// Bytes it can hold.
    pub usable: u64,
    /// Bytes asked for.
    pub asked: u64,
    /// Key in [`ProcessTable::stacks`].
    pub stack: u64,
    /// A mapping, whose pages need not be there.
    pub mapping: bool,
    /// There before the process was forked.
    pub inherited: bool,
}

/// A stack and what was ever allocated with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stack {
    /// The words of its frames, innermost first ([`crate::frames`]).
    pub frames: Vec<u64>,
    /// Whether frames are missing at the outer end.
    pub cut: bool,
    /// Estimated bytes.
    pub alloc_bytes: u64,
    /// Estimated blocks.
    pub alloc_objects: u64,
    /// Samples behind the estimates.
    pub alloc_samples: u64,
    /// Variance of `alloc_bytes`, in KiB squared.
    pub alloc_variance_kib2: u64,
    /// Variance of `alloc_objects`.
    pub alloc_objects_variance: u64,
}

/// Reads all homes. Time and memory are bounded by the size of the region,
/// whatever it holds.
#[must_use]
pub fn read(region: Region<'_>) -> Vec<ProcessTable> {
    // Stacks of honest writers do not overlap, though children share them; then
    // there is room, for the rest is samples and filters.
    let mut budget = region.words().bytes() / 8;
    (1..region.state().slabs)
        .filter(|&slab| region.owner(slab) == (kind::HOME, slab))
        .filter_map(|slab| read_home(region, slab, &mut budget))
        .collect()
}

/// `budget`: words of stacks that may still be read.
fn read_home(region: Region<'_>, slab: usize, budget: &mut usize) -> Option<ProcessTable> {
    let words = region.words();
    let base = slab * SLAB_BYTES;
    let word = |field: usize| words.load(base + field);
    if word(home::STATE) != home::STATE_LIVE {
        return None;
    }
    let mut table = ProcessTable {
        home: slab,
        pid: word(home::PID),
        pid_namespace: word(home::PID_NAMESPACE),
        sequence: word(home::SEQUENCE),
        base: word(home::BASE),
        parent: usize::try_from(word(home::PARENT)).unwrap_or(0) / SLAB_BYTES,
        taken: word(home::TAKEN),
        lost_samples: word(home::LOST_SAMPLES),
        lost_bytes: word(home::LOST_BYTES),
        live: Vec::new(),
        stacks: BTreeMap::new(),
    };
    each_live(region, slab, &mut |sample| table.live.push(sample));
    for index in 0..home::STACK_INDEX_COUNT {
        let mut at = word(home::STACK_INDEX + index * 8);
        // A chain that comes back to a stack that is known ends there.
        while !table.stacks.contains_key(&at) {
            let Some((stack, next)) = read_stack(region, at, budget) else { break };
            table.stacks.insert(at, stack);
            at = next;
        }
    }
    // Those from before a fork are in the parent's slabs.
    for sample in &table.live {
        if !table.stacks.contains_key(&sample.stack)
            && let Some((stack, _)) = read_stack(region, sample.stack, budget)
        {
            // What the parent allocated is not ours.
            let stack = Stack { frames: stack.frames, cut: stack.cut, ..Stack::default() };
            table.stacks.insert(sample.stack, stack);
        }
    }
    Some(table)
}

/// Calls `visit` for each sampled block that was not freed, process by process, without a
/// copy of anything: for who looks often. As [`read`], it trusts nothing.
pub fn visit_live(region: Region<'_>, mut visit: impl FnMut(Home, bool, LiveSample)) {
    for slab in (1..region.state().slabs).filter(|&slab| region.owner(slab) == (kind::HOME, slab)) {
        let word = |field: usize| region.words().load(slab * SLAB_BYTES + field);
        if word(home::STATE) == home::STATE_LIVE {
            let home = Home {
                slab,
                pid: word(home::PID),
                pid_namespace: word(home::PID_NAMESPACE),
                sequence: word(home::SEQUENCE),
            };
            let is_forked = word(home::PARENT) != 0;
            each_live(region, slab, &mut |sample| visit(home, is_forked, sample));
        }
    }
}

/// All live samples of the home in `slab`.
fn each_live(region: Region<'_>, slab: usize, visit: &mut dyn FnMut(LiveSample)) {
    let base = slab * SLAB_BYTES;
    let word = |field: usize| region.words().load(base + field);
    let more = usize::try_from(word(home::SAMPLE_SLABS)).unwrap_or(MAX_MORE).min(MAX_MORE);
    let mut tables = alloc::vec![(base + home::SAMPLES, home::SAMPLE_COUNT)];
    for place in 0..more {
        let slab_of_samples = usize::try_from(word(home::MORE_SAMPLES + place * 8)).unwrap_or(0);
        let at = slab_of_samples.saturating_mul(SLAB_BYTES);
        // One slab listed twice would count twice.
        if region.owner(slab_of_samples) == (kind::SAMPLES, slab) && tables.iter().all(|(known, _)| *known != at) {
            tables.push((at, SAMPLES_PER_SLAB));
        }
    }
    for (at, count) in tables {
        (0..count).filter_map(|place| read_sample(region, at + place * sample::BYTES)).for_each(&mut *visit);
    }
}

fn read_sample(region: Region<'_>, at: usize) -> Option<LiveSample> {
    let word = |field| region.words().load(at + field);
    let address = word(sample::KEY);
    if address <= sample::BUSY {
        return None;
    }
    let flags = word(sample::STACK);
    let sample = LiveSample {
        address,
        usable: word(sample::USABLE),
        asked: word(sample::ASKED),
        stack: flags & !(sample::FLAG_MAPPING | sample::FLAG_INHERITED),
        mapping: flags & sample::FLAG_MAPPING != 0,
        inherited: flags & sample::FLAG_INHERITED != 0,
    };
    // A process that runs may have freed it and written another meanwhile.
    (word(sample::KEY) == address).then_some(sample)
}

/// A stack, and the next of its chain.
fn read_stack(region: Region<'_>, at: u64, budget: &mut usize) -> Option<(Stack, u64)> {
    let words = region.words();
    let base = usize::try_from(at).ok()?;
    if base < SLAB_BYTES || !base.is_multiple_of(8) || base >= words.bytes() {
        return None;
    }
    let word = |field: usize| words.load(base + field);
    let length = (word(stack::LENGTH) & 0xffff_ffff) as usize;
    if length > MAX_FRAMES || base.checked_add(stack::FRAMES + length * 8)? > words.bytes() {
        return None;
    }
    *budget = budget.checked_sub(stack::FRAMES / 8 + length)?;
    let stack = Stack {
        frames: (0..length).map(|i| word(stack::FRAMES + i * 8)).collect(),
        cut: word(stack::LENGTH) & stack::FLAG_CUT != 0,
        alloc_bytes: word(stack::ALLOC_BYTES),
        alloc_objects: word(stack::ALLOC_OBJECTS) / 1024,
        alloc_samples: word(stack::ALLOC_SAMPLES),
        alloc_variance_kib2: word(stack::ALLOC_VARIANCE),
        alloc_objects_variance: word(stack::ALLOC_OBJECTS_VARIANCE),
    };
    Some((stack, word(stack::NEXT)))
}
