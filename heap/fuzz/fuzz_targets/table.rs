//! The table of sampled allocations: a valid one, with words changed at will.
//! The reader must end, in bounds, with no more than the memory can hold.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reprieve_heap_table::layout::{SLAB_BYTES, kind};
use reprieve_heap_table::{Allocation, Region, Settings, Words, Writer, read, sweep};
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

const SLABS: usize = 6;
/// A change: the word's number, and its value.
const CHANGE: usize = 2 + 1 + 8;

fuzz_target!(|input: &[u8]| {
    static VALID: OnceLock<Vec<u64>> = OnceLock::new();
    let memory: Vec<AtomicU64> = VALID.get_or_init(valid).iter().map(|&word| AtomicU64::new(word)).collect();
    let words = Words::new(&memory);
    for change in input.chunks_exact(CHANGE) {
        let place = usize::from(u16::from_le_bytes([change[0], change[1]])) | usize::from(change[2]) << 16;
        let value = u64::from_le_bytes(change[3..].try_into().unwrap_or_default());
        words.store(place % memory.len() * 8, value);
    }
    let Ok(region) = Region::open(words) else { return };
    let tables = read(region);
    let stack_words: usize = tables.iter().flat_map(|t| t.stacks.values()).map(|s| s.frames.len()).sum();
    assert!(stack_words <= memory.len() * 4, "{stack_words} words of stacks");
    let live: usize = tables.iter().map(|t| t.live.len()).sum();
    assert!(live <= SLABS * SLAB_BYTES / 32, "{live} samples");
    // What the guardian does with it beside reading.
    let state = region.state();
    assert!(state.next <= state.slabs && state.ready <= state.slabs);
    sweep(region, 1 << 20, |home| home.pid % 2 == 0);
    let _ = region.take(kind::HOME, 0);
});

/// A parent with more samples than its home holds, and a child.
fn valid() -> Vec<u64> {
    let memory: Vec<AtomicU64> = (0..SLABS * SLAB_BYTES / 8).map(|_| AtomicU64::new(0)).collect();
    let words = Words::new(&memory);
    let region = Region::format(words, Settings { period: 1024, mapping: 65536, seed: 1 }).expect("it is big enough");
    region.set_ready(SLABS);
    let parent = Writer::claim(region, (Some(100), 1), 1, None).expect("a slab is free");
    for i in 0..1500u64 {
        parent.insert(&Allocation {
            key: 0x10_0000 + i * 256,
            usable: 100 + i,
            asked: 100 + i,
            probability: 0.1,
            mapping: i % 50 == 0,
            frames: &[0x1000 + i % 7, 0x2000 + i % 3, 0x3000],
            cut: i % 11 == 0,
        });
    }
    let _ = Writer::claim(region, (Some(101), 1), 1, Some(parent));
    memory.into_iter().map(AtomicU64::into_inner).collect()
}
