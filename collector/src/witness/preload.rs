//! Live heap by stack, from the table of a process that has the library.

use crate::incident::model::{Estimate, Heap, HeapFrame, HeapStack, Witness};
use crate::snapshot::{LoadedModule, Pagemap, locate, page_size};
use crate::witness::{ProcessTables, TABLE_NAME, Target};
use reprieve_heap_table::{LiveSample, ProcessTable, Stack, probability};
use reprieve_symbolizer::Avma;
use std::collections::BTreeMap;

/// Pages of mappings that are asked about; what lies beyond counts as present.
const MAX_PAGES: u64 = 1 << 20;

/// What the library recorded in a process, or why that could not be read; `None`
/// where it recorded nothing.
pub fn look(target: &Target<'_>, tables: &ProcessTables) -> Option<Result<Heap, String>> {
    // The table of the program that it was before an exec is not its own.
    let is_mapped = |t: &ProcessTable| target.maps.iter().any(|m| m.start == t.base && m.name.contains(TABLE_NAME));
    match tables.by_pid.get(&target.pid).filter(|(_, table)| is_mapped(table)) {
        Some((period, table)) => {
            Some(Ok(heap(table, *period, Pagemap::open(target.pid).ok().as_ref(), target.modules)))
        }
        None => tables.unread.get(&target.pid).cloned().map(Err),
    }
}

/// Distinct frames that are kept: programs have tens of thousands at most, but the
/// table is the target's word.
const MAX_FRAMES: usize = 1 << 18;

/// What `table` says, with one sample in `period` bytes on average.
#[must_use]
fn heap(table: &ProcessTable, period: u64, pagemap: Option<&Pagemap>, modules: &[LoadedModule]) -> Heap {
    let mut frames = Frames::default();
    let mut pages_left = MAX_PAGES;
    let mut stacks: BTreeMap<u64, (Sum, Vec<u32>)> = BTreeMap::new();
    for sample in &table.live {
        let usable = resident(sample, pagemap, &mut pages_left);
        let (sum, _) = stacks.entry(sample.stack).or_default();
        sum.add(usable, probability(sample.asked, period, f64::exp));
    }
    for (key, stack) in &table.stacks {
        let (_, indices) = stacks.entry(*key).or_default();
        if frames.list.len() < MAX_FRAMES {
            *indices = stack.frames.iter().map(|&address| frames.index_of(address, modules)).collect();
        }
    }
    let mut total = Sum::default();
    let mut ever = Sum::default();
    let mut listed: Vec<HeapStack> = stacks
        .into_iter()
        .map(|(key, (sum, frames))| {
            total.join(&sum);
            let stack = table.stacks.get(&key);
            if let Some(stack) = stack {
                ever.join(&Sum::of_all(stack));
            }
            HeapStack {
                cut: stack.is_none_or(|s| s.cut || s.frames.len() != frames.len()),
                frames,
                inuse: sum.estimate(),
                alloc: stack.map_or(Estimate::default(), |stack| Sum::of_all(stack).estimate()),
            }
        })
        .collect();
    listed.sort_by_key(|stack| std::cmp::Reverse((stack.inuse.bytes, stack.alloc.bytes)));
    Heap {
        witness: Witness::Preload,
        period_bytes: period,
        lost_samples: table.lost_samples,
        lost_bytes: table.lost_bytes,
        inuse: total.estimate(),
        alloc: ever.estimate(),
        frames: frames.list,
        stacks: listed,
    }
}

/// Bytes of a block; of a mapping, those that are in memory.
fn resident(sample: &LiveSample, pagemap: Option<&Pagemap>, pages_left: &mut u64) -> u64 {
    let page = page_size();
    let pages = sample.usable.div_ceil(page);
    let Some(pagemap) = pagemap.filter(|_| sample.mapping && pages <= *pages_left) else { return sample.usable };
    *pages_left -= pages;
    let mut present = vec![false; pages as usize];
    match pagemap.present(sample.address, &mut present) {
        Ok(()) => present.iter().filter(|there| **there).count() as u64 * page,
        Err(_) => sample.usable,
    }
}

/// An estimate as it adds up.
#[derive(Default)]
struct Sum {
    bytes: f64,
    objects: f64,
    samples: u64,
    variance: f64,
}

impl Sum {
    /// A sample stands for 1/p others; the variance of that is (1-p)/p²
    /// (Horvitz and Thompson, 1952).
    fn add(&mut self, bytes: u64, p: f64) {
        let p = p.clamp(f64::MIN_POSITIVE, 1.0);
        let weighted = bytes as f64 / p;
        self.bytes += weighted;
        self.objects += 1.0 / p;
        self.samples += 1;
        self.variance += weighted * weighted * (1.0 - p);
    }

    /// What a stack ever allocated, which the library sums up itself.
    fn of_all(stack: &Stack) -> Self {
        Sum {
            bytes: stack.alloc_bytes as f64,
            objects: stack.alloc_objects as f64,
            samples: stack.alloc_samples,
            variance: stack.alloc_variance_kib2 as f64 * 1024.0 * 1024.0,
        }
    }

    fn join(&mut self, other: &Sum) {
        self.bytes += other.bytes;
        self.objects += other.objects;
        self.samples += other.samples;
        self.variance += other.variance;
    }

    fn estimate(&self) -> Estimate {
        Estimate {
            bytes: self.bytes as u64,
            objects: self.objects as u64,
            samples: self.samples,
            sigma_bytes: self.variance.sqrt() as u64,
        }
    }
}

/// Distinct return addresses.
#[derive(Default)]
struct Frames {
    list: Vec<HeapFrame>,
    known: BTreeMap<u64, u32>,
}

impl Frames {
    fn index_of(&mut self, address: u64, modules: &[LoadedModule]) -> u32 {
        *self.known.entry(address).or_insert_with(|| {
            // A return address stands behind its call.
            let at = locate(Avma(address.wrapping_sub(1)), modules);
            self.list.push(HeapFrame { address, at, named: None });
            self.list.len() as u32 - 1
        })
    }
}
