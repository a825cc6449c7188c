//! Live heap by stack, from the table of a process that has the library.

use crate::incident::model::{Estimate, Heap, HeapFrame, HeapStack};
use crate::snapshot::{LoadedModule, Pagemap, locate, page_size};
use reprieve_heap_table::{LiveSample, ProcessTable, probability};
use reprieve_symbolizer::Avma;
use std::collections::BTreeMap;

/// Pages of mappings that are asked about; what lies beyond counts as present.
const MAX_PAGES: u64 = 1 << 20;

/// What `table` says, with one sample in `period` bytes on average.
#[must_use]
pub fn heap(table: &ProcessTable, period: u64, pagemap: Option<&Pagemap>, modules: &[LoadedModule]) -> Heap {
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
        *indices = stack.frames.iter().map(|&address| frames.index_of(address, modules)).collect();
    }
    let mut total = Sum::default();
    let mut listed: Vec<HeapStack> = stacks
        .into_iter()
        .map(|(key, (sum, frames))| {
            total.join(&sum);
            let stack = table.stacks.get(&key);
            HeapStack {
                frames,
                cut: stack.is_none_or(|s| s.cut),
                inuse: sum.estimate(),
                alloc: stack.map_or(Estimate::default(), |s| Estimate {
                    bytes: s.alloc_bytes,
                    objects: s.alloc_objects,
                    samples: s.alloc_samples,
                    sigma_bytes: ((s.alloc_variance_kib2 as f64).sqrt() * 1024.0) as u64,
                }),
            }
        })
        .collect();
    listed.sort_by_key(|stack| std::cmp::Reverse((stack.inuse.bytes, stack.alloc.bytes)));
    Heap {
        witness: "preload".to_owned(),
        period_bytes: period,
        lost_samples: table.lost_samples,
        lost_bytes: table.lost_bytes,
        inuse: total.estimate(),
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
            self.list.push(HeapFrame { address, at });
            self.list.len() as u32 - 1
        })
    }
}
