//! A ring of page faults, and what is remembered of it: eight bytes say where in the stream
//! it begins, two how much is read at once, and the rest are records.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reprieve::snapshot::page_size;
use reprieve::witness::growth::hostile::{RING_BYTES, remember};

/// `struct perf_event_header`.
const HEADER_BYTES: u64 = 8;

fuzz_target!(|input: &[u8]| {
    let Some((begin, rest)) = input.split_first_chunk() else { return };
    let Some((most, bytes)) = rest.split_first_chunk() else { return };
    let most = usize::from(u16::from_le_bytes(*most));
    let told = remember(u64::from_le_bytes(*begin), bytes, most).expect("there is memory");
    // Nothing is told twice, and nothing that is not there.
    let all = bytes.len().min(RING_BYTES) as u64;
    assert!(told.stack_bytes + HEADER_BYTES * told.records <= all, "{told:?}");
    // Where one record is not whole it is not known where the next begins.
    assert!(told.records + told.broken > 0 || all == 0, "{told:?}");
    assert!(told.unplaced <= told.faults && told.faults <= told.records, "{told:?}");
    let samples: u64 = told.growths.iter().map(|growth| growth.samples).sum();
    assert!(samples <= told.faults - told.unplaced, "{told:?}");
    for growth in &told.growths {
        assert_eq!(growth.bytes, growth.samples * page_size(), "{growth:?}");
        assert_eq!(growth.bytes, growth.reliable_bytes() + growth.heap_bytes, "{growth:?}");
        let stacks: u64 = growth.stacks.iter().map(|stack| stack.bytes).sum();
        assert_eq!(stacks, growth.bytes, "{growth:?}");
        assert!(growth.stacks.iter().all(|stack| stack.reliable_bytes <= stack.bytes), "{growth:?}");
    }
});
