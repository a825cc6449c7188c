//! From sampled pages to who made a process grow: what is still in memory, scaled.

use super::book::View;
use super::layout::{Class, Range};
use super::samples::{Kind, Sample};
use super::stacks::{StackId, Stacks};
use crate::incident::growth::{Growth, GrowthBasis, GrowthStack};
use crate::incident::model::HeapFrame;
use crate::snapshot::{Entry, Pagemap, page_size};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::time::Instant;

/// Entries of a page map read at once.
const ENTRIES: usize = 4096;

/// Where samples were lost: periods that one stands for at most. Each CPU counts its own
/// faults, so one alone may stand for more than one period.
const MOST_PERIODS: u64 = 4;

/// Samples that should be there and are not.
#[derive(Debug, Clone, Copy)]
pub struct Loss {
    /// How many.
    pub samples: u64,
    /// Bytes of a period's small pages, which one sample is about.
    pub period_bytes: u64,
}

/// What one stack has of one kind of memory.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Share {
    bytes: f64,
    variance: f64,
    samples: u64,
}

/// What a process grew by.
#[derive(Debug, Default)]
pub struct Grown {
    shares: BTreeMap<(StackId, u8), Share>,
    unseen_bytes: u64,
    /// Whether time was up before all mappings were looked at.
    pub is_late: bool,
}

/// Kinds in the order of their place in a key.
const KINDS: [Kind; 4] = [Kind::Direct, Kind::Shared, Kind::Stack, Kind::Heap];

fn number(kind: Kind) -> u8 {
    KINDS.iter().position(|&other| other == kind).unwrap_or(KINDS.len() - 1) as u8
}

impl Grown {
    fn add(&mut self, stack: StackId, kind: Kind, bytes: f64, variance: f64, samples: u64) {
        let share = self.shares.entry((stack, number(kind))).or_default();
        share.bytes += bytes;
        share.variance += variance;
        share.samples += samples;
    }

    /// Divides what a mapping has in memory among the samples that are in it. What is more
    /// than they stand for is that of samples that were lost, as far as those can be.
    fn divide(&mut self, bytes: u64, there: &HashMap<(StackId, Kind), u64>, loss: Loss) {
        let all: u64 = there.values().sum();
        if all == 0 {
            self.unseen_bytes += bytes;
            return;
        }
        let beyond = bytes.saturating_sub(all.saturating_mul(MOST_PERIODS * loss.period_bytes));
        let lost = beyond.min(loss.samples.saturating_mul(loss.period_bytes));
        self.unseen_bytes += lost;
        let each = (bytes - lost) as f64 / all as f64;
        for (&(stack, kind), &count) in there {
            // Each sample is one of these or not, and of one alone it is not known better
            // than to a sample. All of one mapping are known to the byte.
            let share = count as f64 / all as f64;
            let variance = if count == all { 0.0 } else { (count as f64 * (1.0 - share)).max(1.0) * each * each };
            self.add(stack, kind, each * count as f64, variance, count);
        }
    }

    /// Takes what the program mapped itself for memory whose first touch tells little, as a
    /// malloc's.
    pub fn distrust_mapped(&mut self) {
        let mapped: Vec<(StackId, u8)> =
            self.shares.keys().copied().filter(|&(_, kind)| kind == number(Kind::Direct)).collect();
        for key in mapped {
            if let Some(share) = self.shares.remove(&key) {
                self.add(key.0, Kind::Heap, share.bytes, share.variance, share.samples);
            }
        }
    }

    /// With the frames that its stacks need. `bias` is that of a module in the process.
    #[must_use]
    pub fn into_growth(
        self,
        basis: GrowthBasis,
        scale_to: Option<u64>,
        stacks: &Stacks,
        bias: impl Fn(u32) -> u64,
    ) -> Growth {
        let sum: f64 = self.shares.values().map(|share| share.bytes).sum();
        let factor = scale_to.filter(|_| sum > 0.0).map_or(1.0, |bytes| bytes as f64 / sum);
        let mut frames = Frames::default();
        let mut by_kind = [0.0; KINDS.len()];
        let mut by_stack: BTreeMap<StackId, (Share, f64)> = BTreeMap::new();
        for ((stack, kind), share) in self.shares {
            let bytes = share.bytes * factor;
            by_kind[usize::from(kind)] += bytes;
            let (all, reliable) = by_stack.entry(stack).or_default();
            all.bytes += bytes;
            all.variance += share.variance * factor * factor;
            all.samples += share.samples;
            *reliable += if KINDS[usize::from(kind)].is_reliable() { bytes } else { 0.0 };
        }
        let mut listed: Vec<GrowthStack> = by_stack
            .into_iter()
            .map(|(id, (share, reliable))| {
                let (places, cut) = stacks.get(id);
                GrowthStack {
                    frames: places.map(|place| frames.index_of(place, &bias)).collect(),
                    cut,
                    bytes: share.bytes.round() as u64,
                    sigma_bytes: share.variance.sqrt() as u64,
                    samples: share.samples,
                    reliable_bytes: reliable.round() as u64,
                }
            })
            .collect();
        listed.sort_by_key(|stack| std::cmp::Reverse(stack.bytes));
        let [direct_bytes, shared_bytes, stack_bytes, heap_bytes] = by_kind.map(|bytes| bytes.round() as u64);
        Growth {
            basis,
            samples: listed.iter().map(|stack| stack.samples).sum(),
            bytes: direct_bytes + shared_bytes + stack_bytes + heap_bytes,
            direct_bytes,
            shared_bytes,
            stack_bytes,
            heap_bytes,
            unseen_bytes: self.unseen_bytes,
            frames: frames.list,
            stacks: listed,
        }
    }
}

/// Frames of a growth, each once.
#[derive(Default)]
struct Frames {
    list: Vec<HeapFrame>,
    by_place: HashMap<super::stacks::Frame, u32>,
}

impl Frames {
    fn index_of(&mut self, place: super::stacks::Frame, bias: &impl Fn(u32) -> u64) -> u32 {
        *self.by_place.entry(place).or_insert_with(|| {
            let look_up = place.at.map_or(place.address, |at| at.svma.wrapping_add(bias(at.module)));
            // As of a heap's frames: what is looked up is one less.
            self.list.push(HeapFrame { address: look_up.wrapping_add(1), at: place.at, named: None });
            self.list.len() as u32 - 1
        })
    }
}

/// What of a living process's samples is still in memory, and what that stands for.
/// Of one that has its parent's memory since a fork only what is its own counts: the
/// rest is its parent's growth.
pub fn present(
    pid: i32,
    view: &mut View,
    is_forked: bool,
    samples: &[(u64, Sample)],
    loss: Loss,
    until: Instant,
) -> io::Result<Grown> {
    let page = page_size();
    let pagemap = Pagemap::open(pid)?;
    let mut entries = vec![Entry(0); ENTRIES];
    let mut grown = Grown::default();
    let mut there = HashMap::new();
    for range in view.layout.ranges.clone() {
        if Instant::now() >= until {
            grown.is_late = true;
            break;
        }
        let from = samples.partition_point(|(number, _)| number * page < range.start);
        let mut own = samples[from..].iter().take_while(|(number, _)| number * page < range.end).peekable();
        there.clear();
        let mut pages = 0;
        pagemap.each_present(range.start, range.end, &mut entries, |at, entries| {
            for (index, _) in entries.iter().enumerate().filter(|(_, entry)| counts(**entry, range, is_forked)) {
                pages += 1;
                let number = at / page + index as u64;
                while own.next_if(|(sampled, _)| *sampled < number).is_some() {}
                if let Some((_, sample)) = own.next_if(|(sampled, _)| *sampled == number) {
                    *there.entry((sample.stack, kind(sample, number * page, range, view))).or_default() += 1;
                }
            }
            // What was seen until then counts.
            Instant::now() < until
        })?;
        if pages > 0 {
            grown.divide(pages * page, &there, loss);
        }
    }
    Ok(grown)
}

/// Whether a page is memory that the process grew by.
fn counts(entry: Entry, range: Range, is_forked: bool) -> bool {
    let is_right = entry.is_file() == (range.class == Class::Shared);
    entry.is_present() && is_right && (!is_forked || entry.is_exclusive())
}

/// What a page is now that the mappings are known.
fn kind(sample: &Sample, address: u64, range: Range, view: &mut View) -> Kind {
    match (sample.kind, range.class) {
        (Kind::Stack, Class::Anonymous | Class::Stack) => Kind::Stack,
        (_, Class::Anonymous) => view.anonymous(address),
        (_, Class::Heap) => Kind::Heap,
        (_, Class::Stack) => Kind::Stack,
        (_, Class::File) => Kind::Direct,
        (_, Class::Shared) => Kind::Shared,
    }
}

/// What is remembered of a process that ended; each sample stands for `pages` pages.
#[must_use]
pub fn remembered(samples: &[(u64, Sample)], pages: u64) -> Grown {
    let each = (pages * page_size()) as f64;
    let mut counts: HashMap<(StackId, Kind), u64> = HashMap::new();
    for (_, sample) in samples {
        *counts.entry((sample.stack, sample.kind)).or_default() += 1;
    }
    let mut grown = Grown::default();
    for ((stack, kind), count) in counts {
        grown.add(stack, kind, each * count as f64, count as f64 * each * each, count);
    }
    grown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::witness::growth::stacks::Frame;

    const NO_LOSS: Loss = Loss { samples: 0, period_bytes: 1 };

    fn stacks() -> (Stacks, [StackId; 2]) {
        let mut stacks = Stacks::new();
        let frame = |address| Frame { at: None, address };
        let ids = [stacks.add(&[frame(10), frame(30)], false), stacks.add(&[frame(20), frame(30)], true)];
        (stacks, ids)
    }

    #[test]
    fn a_mapping_is_divided_among_its_samples() {
        let (stacks, [a, b]) = stacks();
        let mut grown = Grown::default();
        grown.divide(4000, &HashMap::from([((a, Kind::Heap), 3), ((b, Kind::Direct), 1)]), NO_LOSS);
        grown.divide(500, &HashMap::from([((b, Kind::Stack), 7)]), NO_LOSS);
        grown.divide(77, &HashMap::new(), NO_LOSS);
        let growth = grown.into_growth(GrowthBasis::Present, None, &stacks, |_| 0);
        assert_eq!((growth.bytes, growth.unseen_bytes, growth.samples), (4500, 77, 11));
        assert_eq!((growth.direct_bytes, growth.shared_bytes), (1000, 0));
        assert_eq!((growth.stack_bytes, growth.heap_bytes), (500, 3000));
        assert_eq!(growth.reliable_bytes(), 1500);
        let listed: Vec<_> = growth.stacks.iter().map(|s| (s.bytes, s.samples, s.reliable_bytes, s.cut)).collect();
        assert_eq!(listed, [(3000, 3, 0, false), (1500, 8, 1500, true)]);
        // Three of four: ± one sample and a bit; what is all of a mapping is certain.
        assert_eq!(growth.stacks[0].sigma_bytes, 1000);
        let frames: Vec<Vec<u64>> = growth
            .stacks
            .iter()
            .map(|stack| stack.frames.iter().map(|&index| growth.frames[index as usize].address).collect())
            .collect();
        assert_eq!((frames, growth.frames.len()), (vec![vec![11, 31], vec![21, 31]], 3));
    }

    #[test]
    fn what_is_distrusted_is_no_more_reliable_and_no_less() {
        let (stacks, [a, b]) = stacks();
        let mut grown = Grown::default();
        grown.divide(4000, &HashMap::from([((a, Kind::Heap), 3), ((a, Kind::Direct), 1)]), NO_LOSS);
        grown.divide(500, &HashMap::from([((b, Kind::Shared), 7)]), NO_LOSS);
        grown.distrust_mapped();
        let growth = grown.into_growth(GrowthBasis::Present, None, &stacks, |_| 0);
        assert_eq!((growth.bytes, growth.direct_bytes, growth.heap_bytes), (4500, 0, 4000));
        assert_eq!((growth.reliable_bytes(), growth.samples), (500, 11));
        assert_eq!(growth.stacks[0].reliable_bytes, 0);
    }

    #[test]
    fn where_samples_were_lost_the_others_do_not_stand_for_them() {
        let (stacks, [a, b]) = stacks();
        let there = HashMap::from([((a, Kind::Direct), 3), ((b, Kind::Direct), 1)]);
        // Of 1000 the four stand for 400 at most; what was lost is about 25 each.
        for (samples, unseen) in [(0, 0), (8, 200), (24, 600), (u64::MAX, 600)] {
            let mut grown = Grown::default();
            grown.divide(1000, &there, Loss { samples, period_bytes: 25 });
            let growth = grown.into_growth(GrowthBasis::Present, None, &stacks, |_| 0);
            assert_eq!((growth.bytes, growth.unseen_bytes), (1000 - unseen, unseen), "{samples}");
            let told: Vec<u64> = growth.stacks.iter().map(|stack| stack.bytes).collect();
            assert_eq!(told, [(1000 - unseen) / 4 * 3, (1000 - unseen) / 4]);
        }
    }

    #[test]
    fn who_ended_has_what_the_kernel_says() {
        let (stacks, [a, b]) = stacks();
        let sample = |stack| Sample { time: 1, stack, kind: Kind::Heap };
        let samples: Vec<(u64, Sample)> = (0..100).map(|n| (n, sample(if n < 75 { a } else { b }))).collect();
        let pages = 64;
        let plain = remembered(&samples, pages).into_growth(GrowthBasis::EndedUnscaled, None, &stacks, |_| 0);
        assert_eq!(plain.bytes, 100 * 64 * page_size());
        let scaled = remembered(&samples, pages).into_growth(GrowthBasis::Ended, Some(1 << 20), &stacks, |_| 0);
        assert_eq!((scaled.bytes, scaled.stacks[0].bytes), (1 << 20, 3 << 18));
        let nothing = remembered(&[], pages).into_growth(GrowthBasis::Ended, Some(1 << 20), &stacks, |_| 0);
        assert_eq!((nothing.bytes, nothing.stacks.len()), (0, 0));
    }
}
