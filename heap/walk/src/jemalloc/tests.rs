//! A profile made by hand, whole and broken.

use super::*;
use std::collections::BTreeMap;

const DATA: u64 = 0x7f00_0000_0000;
const CODE: u64 = 0x7e00_0000_0000;
const TAB: u64 = 0x7d00_0000_0000;
const STACKS: u64 = 0x7c00_0000_0000;

#[derive(Clone, Default)]
struct Heap {
    words: BTreeMap<u64, u64>,
    reads: u64,
}

impl Memory for Heap {
    fn read(&mut self, address: u64, out: &mut [u8]) -> bool {
        self.reads += 1;
        let mapped = [DATA..DATA + 0x2000, TAB..TAB + 0x800, STACKS..STACKS + 0x4000];
        let Some(end) = address.checked_add(out.len() as u64) else { return false };
        if !mapped.iter().any(|range| range.contains(&address) && end <= range.end) {
            return false;
        }
        for (at, byte) in (address..).zip(out) {
            *byte = self.words.get(&(at & !7)).copied().unwrap_or(0).to_le_bytes()[(at & 7) as usize];
        }
        true
    }
}

fn walked(heap: &mut Heap) -> Option<Profile> {
    let (data, code) = (DATA..DATA + 0x2000, CODE..CODE + 0x1000);
    walk(heap, &Place { data: std::slice::from_ref(&data), code: std::slice::from_ref(&code) }, 1 << 20)
}

/// Two stacks, the first with three threads, sampled once in 64 KiB.
fn sample() -> Heap {
    let mut heap = Heap::default();
    let mut put = |at: u64, words: &[u64]| {
        heap.words.extend((at..).step_by(8).zip(words.iter().copied()));
    };
    put(DATA + 0x80, &[1, 2, 5 | 5 << 32, CODE + 8, CODE + 64, TAB]);
    let period = 65536.0f64;
    let unbiased =
        [8.0, 16.0, 32.0, 48.0, 64.0, 80.0].map(|size| (size / (1.0 - f64::exp(-size / period))).round() as u64);
    put(DATA + 0x400, &unbiased);
    let tdata = STACKS + 0x3000;
    put(tdata, &[1]);
    let mut stack = |cell: u64, at: u64, frames: &[u64], root: u64| {
        put(TAB + cell * ckh::CELL, &[at + gctx::BT, at]);
        put(at + gctx::TCTXS, &[root]);
        put(at + gctx::BT, &[at + gctx::VEC, frames.len() as u64]);
        put(at + gctx::VEC, frames);
    };
    let (one, two) = (STACKS, STACKS + 0x800);
    stack(3, one, &[CODE + 1, CODE + 2, CODE + 3], STACKS + 0x1000);
    stack(70, two, &[CODE + 1], STACKS + 0x1600);
    let mut thread = |at: u64, gctx: u64, left: u64, right: u64, counts: [u64; 8]| {
        put(at, &[tdata]);
        put(at + tctx::CNTS, &counts);
        put(at + tctx::GCTX, &[gctx]);
        put(at + tctx::LEFT, &[left, right | 1, 1 << 32]);
    };
    thread(STACKS + 0x1000, one, STACKS + 0x1200, STACKS + 0x1400, [1, 80, 64, 640, 2, 160, 128, 1280]);
    thread(STACKS + 0x1200, one, 0, 0, [1, 80, 64, 640, 0, 0, 0, 0]);
    thread(STACKS + 0x1400, one, 0, 0, [1, 80, 64, 640, 0, 0, 0, 0]);
    thread(STACKS + 0x1600, two, 0, 0, [1, 8, 1 << 20, 1 << 20, 0, 0, 0, 0]);
    heap
}

#[test]
fn threads_of_a_stack_add_up() {
    let profile = walked(&mut sample()).unwrap();
    assert_eq!((profile.period, profile.stacks.len(), profile.gaps.len()), (65536, 2, 0));
    let first = &profile.stacks[0];
    assert_eq!(first.addresses, [CODE + 1, CODE + 2, CODE + 3]);
    assert_eq!(first.live, Counts { samples: 3, sampled_bytes: 192, objects: 30.0, bytes: 1920 });
    assert_eq!(first.ever, Counts { samples: 2, sampled_bytes: 128, objects: 20.0, bytes: 1280 });
    // A block of sixteen periods is sampled for sure.
    assert!(profile.stacks[1].live.sum(65536).variance < 1e6 && first.live.sum(65536).variance > 1e9);
}

#[test]
fn threads_from_before_a_reset_are_left_out() {
    let mut heap = sample();
    heap.words.insert(STACKS + 0x3000 + 32, 1 << 8);
    assert_eq!(walked(&mut heap).unwrap().stacks.len(), 0);
}

#[test]
fn another_layout_is_not_found() {
    let mut heap = sample();
    heap.words.insert(STACKS + gctx::BT, STACKS + gctx::VEC - 32);
    assert_eq!(walked(&mut heap), None);
    // Of which only a part is so, is told.
    let mut heap = sample();
    heap.words.insert(STACKS + 0x1600 + tctx::GCTX, STACKS);
    let profile = walked(&mut heap).unwrap();
    assert!(profile.stacks.len() == 1 && profile.gaps[0].contains("1 of 2 stacks"), "{profile:#?}");
}

#[test]
fn a_tree_that_bites_its_tail_ends() {
    let mut heap = sample();
    heap.words.insert(STACKS + 0x1200 + tctx::LEFT, STACKS + 0x1000);
    assert_eq!(walked(&mut heap).unwrap().stacks.len(), 1);
    assert!(heap.reads <= 1 << 17);
}

#[test]
fn no_damage_ends_in_a_panic_or_a_long_walk() {
    let whole = sample();
    let places: Vec<u64> = whole.words.keys().copied().collect();
    let mut seed = 88_172_645_463_325_252u64;
    let mut next = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..1000 {
        let mut heap = whole.clone();
        for _ in 0..1 + next() % 4 {
            let at = places[(next() % places.len() as u64) as usize];
            let word = match next() % 4 {
                0 => next(),
                1 => u64::MAX - next() % 64,
                2 => places[(next() % places.len() as u64) as usize],
                _ => whole.words[&at] ^ 1 << (next() % 64),
            };
            heap.words.insert(at, word);
        }
        walked(&mut heap);
        assert!(heap.reads <= 1 << 17, "{} reads", heap.reads);
    }
}
