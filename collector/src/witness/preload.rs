//! Live heap by stack, from the table of a process that has the library.

use super::{Frames, estimate};
use crate::incident::model::{Heap, HeapFrame, HeapStack, Witness};
use crate::snapshot::{Pagemap, page_size};
use crate::witness::python::{self, Python};
use crate::witness::totals::{StackKey, StackTotals, is_looked_at};
use crate::witness::{ProcessTables, TABLE_NAME, Target};
use reprieve_heap_table::{self as words, LiveSample, ProcessTable, Stack, probability};
use reprieve_heap_walk::Sum;
use std::collections::BTreeMap;

/// Pages of mappings that are asked about; what lies beyond counts as present.
const MAX_PAGES: u64 = 1 << 20;
/// Distinct frames that are kept: programs have tens of thousands at most, but the
/// table is the target's word.
const MAX_FRAMES: usize = 1 << 18;

/// What the library recorded in a process, or why that could not be read; `None`
/// where it recorded nothing. `python` names the frames of that interpreter.
pub fn look(
    target: &mut Target<'_>,
    tables: &ProcessTables,
    mut python: Option<&mut Python>,
) -> Option<Result<Heap, String>> {
    // The table of the program that it was before an exec is not its own.
    let is_mapped = |t: &ProcessTable| target.maps.iter().any(|m| m.start == t.base && m.name.contains(TABLE_NAME));
    let Some((period, table)) = tables.by_pid.get(&target.pid).filter(|(_, table)| is_mapped(table)) else {
        return tables.unread.get(&target.pid).cloned().map(Err);
    };
    let mut frames = Frames::default();
    let mut stacks: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    for (&key, stack) in &table.stacks {
        if frames.list.len() >= MAX_FRAMES {
            break;
        }
        let indices = words::frames(&stack.frames).map(|frame| match frame {
            words::Frame::Native(address) => frames.native(address, target.modules),
            words::Frame::Script(script) => {
                let named = match &mut python {
                    Some(python) => python.recorded(target.memory, script),
                    None => python::unknown(),
                };
                frames.named(script.code, named)
            }
        });
        stacks.insert(key, indices.collect());
    }
    let before = tables.before.as_ref().filter(|_| !tables.have_own.contains(&target.pid));
    Some(Ok(heap(table, *period, Pagemap::open(target.pid).ok().as_ref(), &stacks, frames.list, before)))
}

/// What `table` says, with one sample in `period` bytes on average; `stacks` are
/// its stacks as indices in `frames`; `before` is what was live in the record to compare with.
#[must_use]
fn heap(
    table: &ProcessTable,
    period: u64,
    pagemap: Option<&Pagemap>,
    stacks: &BTreeMap<u64, Vec<u32>>,
    frames: Vec<HeapFrame>,
    before: Option<&StackTotals>,
) -> Heap {
    /// What is live, what was ever allocated, and what was live in the record that is compared.
    type Sums = (Sum, Sum, Option<u64>);
    let mut pages_left = MAX_PAGES;
    // Of a stack that is not there, all is missing.
    let is_cut = |stack: u64| !stacks.contains_key(&stack) || table.stacks.get(&stack).is_none_or(|s| s.cut);
    // By frames: instructions of one line are one stack.
    let nothing = || -> Sums { (Sum::default(), Sum::default(), before.map(|_| 0)) };
    let mut sums: BTreeMap<(&[u32], bool), Sums> = BTreeMap::new();
    for sample in &table.live {
        let usable = resident(sample, pagemap, &mut pages_left);
        let key = (stacks.get(&sample.stack).map_or(&[][..], Vec::as_slice), is_cut(sample.stack));
        let p = probability(sample.asked, period, libm::exp);
        sums.entry(key).or_insert_with(nothing).0.join(&Sum::of(1, usable as f64, p));
    }
    for (key, stack) in &table.stacks {
        let then = before.and_then(|b| b.find(StackKey::new(table.home, table.sequence, *key)));
        let key = (stacks.get(key).map_or(&[][..], Vec::as_slice), is_cut(*key));
        let (_, ever, had) = sums.entry(key).or_insert_with(nothing);
        ever.join(&ever_allocated(stack));
        *had = had.zip(then).map(|(had, then)| had + then);
    }
    let (mut inuse, mut alloc) = (Sum::default(), Sum::default());
    let mut listed: Vec<HeapStack> = sums
        .into_iter()
        .map(|((frames, cut), (own, ever, before_bytes))| {
            inuse.join(&own);
            alloc.join(&ever);
            HeapStack { frames: frames.to_vec(), cut, inuse: estimate(&own), alloc: estimate(&ever), before_bytes }
        })
        .collect();
    listed.sort_by_key(|stack| std::cmp::Reverse((stack.inuse.bytes, stack.alloc.bytes)));
    Heap {
        witness: Witness::Preload,
        period_bytes: period,
        lost_samples: table.lost_samples,
        lost_bytes: table.lost_bytes,
        inuse: estimate(&inuse),
        alloc: estimate(&alloc),
        frames,
        stacks: listed,
    }
}

/// Bytes of a block; of a mapping and of a big block, those that are in memory.
fn resident(sample: &LiveSample, pagemap: Option<&Pagemap>, pages_left: &mut u64) -> u64 {
    let page = page_size();
    let pages = sample.usable.div_ceil(page);
    let Some(pagemap) = pagemap.filter(|_| is_looked_at(sample) && pages <= *pages_left) else { return sample.usable };
    *pages_left -= pages;
    let mut present = vec![false; pages as usize];
    match pagemap.present(sample.address, &mut present) {
        // A block begins and ends within a page.
        Ok(()) => (present.iter().filter(|there| **there).count() as u64 * page).min(sample.usable),
        Err(_) => sample.usable,
    }
}

/// What a stack ever allocated, which the library sums up itself.
fn ever_allocated(stack: &Stack) -> Sum {
    Sum {
        bytes: stack.alloc_bytes as f64,
        objects: stack.alloc_objects as f64,
        samples: stack.alloc_samples,
        variance: stack.alloc_variance_kib2 as f64 * 1024.0 * 1024.0,
        objects_variance: stack.alloc_objects_variance as f64,
    }
}
