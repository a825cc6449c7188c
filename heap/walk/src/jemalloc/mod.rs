//! jemalloc's own heap profile, as it keeps it with `prof:true`.
//!
//! In go a [`Memory`] and where jemalloc's variables and code are ([`Place`]); out
//! comes what each stack holds ([`Profile`]). The table of stacks (`bt2gctx`) has
//! no symbol in a stripped library; it is found by its look and by what it points
//! at: an entry's key lies in its data, and the counters there point back. A
//! layout that is not this one is not found, and nothing of it is believed.
//!
//! Source: src/prof_data.c, src/ckh.c and prof_structs.h of jemalloc 5.3.0, 64-bit,
//! as compiled without CKH_COUNT.

mod layout;

use crate::search::{END, Words, search};
use crate::{Bounded, Memory, Sum, probability};
use layout::{TDATA_EXPIRED, ckh, gctx, tctx};
use std::ops::Range;

/// Most cells of the table.
const MAX_CELLS: u64 = 1 << 22;
/// Most addresses kept, of all stacks.
const MAX_ADDRESSES: usize = 1 << 20;
/// Most frames of a stack (`PROF_BT_MAX`).
const MAX_FRAMES: u64 = 128;
/// Threads that allocated from one stack.
const MAX_THREADS: usize = 1 << 16;
/// Nodes on the way down a red-black tree of so many.
const MAX_DEPTH: usize = 64;
/// Counts of objects are multiplied by this (`1 << SC_LG_TINY_MIN`).
const SHIFT: f64 = 8.0;

/// Where to look.
#[derive(Debug, Clone)]
pub struct Place<'p> {
    /// Writable mappings of jemalloc's library, or of the program it is part of.
    pub data: &'p [Range<u64>],
    /// Its code.
    pub code: &'p [Range<u64>],
}

/// Sums of sampled objects.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct Counts {
    /// Objects that were sampled.
    pub samples: u64,
    /// Their usable bytes.
    pub sampled_bytes: u64,
    /// Objects that these stand for, as jemalloc estimates (`prof_unbias`).
    pub objects: f64,
    /// Bytes that these stand for.
    pub bytes: u64,
}

impl Counts {
    fn add(&mut self, words: &[u64; 4]) {
        let [samples, shifted, sampled, bytes] = *words;
        self.samples = self.samples.saturating_add(samples);
        self.sampled_bytes = self.sampled_bytes.saturating_add(sampled);
        self.objects += shifted as f64 / SHIFT;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// As an estimate, with its error as if all objects of the stack were of one
    /// size.
    #[must_use]
    pub fn sum(&self, period: u64) -> Sum {
        let size = self.sampled_bytes as f64 / self.samples.max(1) as f64;
        let p = probability(size as u64, period);
        Sum { bytes: self.bytes as f64, objects: self.objects, ..Sum::of(self.samples, size, p) }
    }
}

/// A stack and what it holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Stack {
    /// Return addresses, innermost first; those inside jemalloc come first.
    pub addresses: Vec<u64>,
    /// Whether it has as many frames as jemalloc records.
    pub cut: bool,
    /// What was not freed.
    pub live: Counts,
    /// What was ever allocated; nothing without `prof_accum:true`.
    pub ever: Counts,
}

/// jemalloc's profile.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// Mean bytes between samples.
    pub period: u64,
    /// Stacks.
    pub stacks: Vec<Stack>,
    /// What could not be had, in sentences.
    pub gaps: Vec<String>,
}

/// Reads the profile with at most `budget_bytes` of reads; `None` where there is
/// none, or not of this layout.
pub fn walk<M: Memory + ?Sized>(memory: &mut M, place: &Place<'_>, budget_bytes: u64) -> Option<Profile> {
    if place.data.iter().chain(place.code).any(|range| range.end > END || range.start > range.end) {
        return None;
    }
    let mut memory = Bounded::new(memory, budget_bytes);
    let (table, lg_sample) = find(&mut memory, place)?;
    let mut profile = Profile { period: 1 << lg_sample, stacks: Vec::new(), gaps: Vec::new() };
    let (mut seen, mut odd, mut addresses) = (0u64, 0u64, 0);
    let mut unread = false;
    for cell in 0..table.cells {
        let Some((key, data)) = table.cell(&mut memory, cell) else {
            unread = true;
            continue;
        };
        if key == 0 {
            continue;
        }
        seen += 1;
        match stack(&mut memory, key, data) {
            Some(stack) if addresses + stack.addresses.len() <= MAX_ADDRESSES => {
                addresses += stack.addresses.len();
                if stack.live.samples > 0 || stack.ever.samples > 0 {
                    profile.stacks.push(stack);
                }
            }
            _ => odd += 1,
        }
    }
    if unread || odd > 0 || seen != table.count {
        profile.gaps.push(format!(
            "jemalloc's profile was changing or not all in memory: {} of {} stacks were read",
            seen - odd,
            table.count.max(seen)
        ));
    }
    Some(profile)
}

/// `bt2gctx`.
#[derive(Clone, Copy)]
struct Table {
    at: u64,
    cells: u64,
    count: u64,
}

impl Table {
    fn cell<M: Memory + ?Sized>(&self, memory: &mut M, index: u64) -> Option<(u64, u64)> {
        let at = self.at.checked_add(index * ckh::CELL)?;
        Some((memory.u64(at)?, memory.u64(at.checked_add(8)?)?))
    }
}

/// The table, and the binary logarithm of the sampling period.
fn find<M: Memory + ?Sized>(memory: &mut M, place: &Place<'_>) -> Option<(Table, u32)> {
    let (mut table, mut lg_sample) = (None, None);
    search(memory, place.data, ckh::BYTES, |memory, words| {
        if table.is_none() {
            table = as_table(words, place).filter(|table| holds_stacks(memory, table));
        }
        // Where the period is tiny, a table of sizes looks the same.
        match as_lg_sample(words) {
            Some(lg) if lg_sample.is_none_or(|known| known < lg) => lg_sample = Some(lg),
            _ => {}
        }
        false
    });
    Some((table?, lg_sample?))
}

/// Whether the words may be the hash table of a profile.
fn as_table(words: &Words<'_>, place: &Place<'_>) -> Option<Table> {
    if !words.has(ckh::BYTES) {
        return None;
    }
    let is_code = |address: u64| place.code.iter().any(|range| range.contains(&address));
    let (min, current) = (words.half(ckh::BUCKETS), words.half(ckh::BUCKETS + 4));
    let (hash, keycomp, at) = (words.at(ckh::HASH), words.at(ckh::KEYCOMP), words.at(ckh::TAB));
    if min != ckh::PROF_BUCKETS || current < min || current > 28 || !is_code(hash) || !is_code(keycomp) {
        return None;
    }
    let cells = 1 << (current as u32 + ckh::LG_CELLS);
    let count = words.at(ckh::COUNT);
    (at != 0 && at % 64 == 0 && count <= cells && cells <= MAX_CELLS).then_some(Table { at, cells, count })
}

/// Whether the first entry of the table is a stack; an empty table may be one.
fn holds_stacks<M: Memory + ?Sized>(memory: &mut M, table: &Table) -> bool {
    for index in 0..table.cells {
        match table.cell(memory, index) {
            Some((0, 0)) => {}
            Some((key, data)) => return frames_of(memory, key, data).is_some(),
            None => return false,
        }
    }
    true
}

/// Where frames are and how many, of an entry that is a stack.
fn frames_of<M: Memory + ?Sized>(memory: &mut M, key: u64, data: u64) -> Option<(u64, u64)> {
    if data == 0 || !data.is_multiple_of(8) || key != data.checked_add(gctx::BT)? {
        return None;
    }
    let vec = memory.u64(key)?;
    let length = u64::from(memory.u32(key.checked_add(8)?)?);
    (vec == data.checked_add(gctx::VEC)? && length <= MAX_FRAMES).then_some((vec, length))
}

/// The period, where these words are `prof_unbiased_sz`: for each size class,
/// what an object of that size stands for (`prof_unbias_map_init`).
fn as_lg_sample(words: &Words<'_>) -> Option<u32> {
    /// Size classes, from the first on.
    const SIZES: [f64; 6] = [8.0, 16.0, 32.0, 48.0, 64.0, 80.0];
    let first = words.at(0);
    if !(8..1 << 48).contains(&first) || words.at(8) <= first {
        return None;
    }
    let unbiased = |size: f64, lg: u32| (size / (1.0 - libm::exp(-size / 2f64.powi(lg as i32)))).round();
    let fits = |lg: &u32| {
        let within = |(index, size): (usize, &f64)| {
            // The last bit of exp(3), for a big period.
            (words.at(index as u64 * 8) as f64 - unbiased(*size, *lg)).abs() <= 2f64.powi(2 * *lg as i32 - 52)
        };
        SIZES.iter().enumerate().all(within)
    };
    // The first is little more than the period, if that is more than its size.
    let near = first.ilog2();
    if near > 3 { Some(near).filter(fits) } else { (0..=3).find(fits) }
}

/// A stack with the sums of all threads; `None` where it is none.
fn stack<M: Memory + ?Sized>(memory: &mut M, key: u64, data: u64) -> Option<Stack> {
    let (vec, length) = frames_of(memory, key, data)?;
    let mut bytes = [0; MAX_FRAMES as usize * 8];
    let bytes = &mut bytes[..length as usize * 8];
    if !memory.read(vec, bytes) {
        return None;
    }
    let mut stack = Stack {
        addresses: bytes.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().unwrap_or_default())).collect(),
        cut: length == MAX_FRAMES,
        live: Counts::default(),
        ever: Counts::default(),
    };
    // Depth first, with the right sides that are still to be seen.
    let mut waiting: Vec<u64> = Vec::new();
    let mut node = memory.u64(data.checked_add(gctx::TCTXS)?)?;
    let mut seen = 0;
    loop {
        if node == 0 {
            match waiting.pop() {
                Some(next) => node = next,
                None => return Some(stack),
            }
            continue;
        }
        seen += 1;
        let field = |offset: u64| node.checked_add(offset);
        if seen > MAX_THREADS || waiting.len() > MAX_DEPTH || memory.u64(field(tctx::GCTX)?)? != data {
            return None;
        }
        let expired = memory.u64(field(tctx::TDATA)?)?.checked_add(TDATA_EXPIRED).and_then(|at| memory.u8(at));
        if memory.u32(field(tctx::STATE)?)? != tctx::INITIALIZING && expired == Some(0) {
            let mut words = [0; 64];
            if !memory.read(field(tctx::CNTS)?, &mut words) {
                return None;
            }
            let word = |index: usize| {
                words.get(index * 8..index * 8 + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
            };
            stack.live.add(&[word(0), word(1), word(2), word(3)]);
            stack.ever.add(&[word(4), word(5), word(6), word(7)]);
        }
        let right = memory.u64(field(tctx::RIGHT_RED)?)? & !1;
        if right != 0 {
            waiting.push(right);
        }
        node = memory.u64(field(tctx::LEFT)?)?;
    }
}

#[cfg(test)]
mod tests;
