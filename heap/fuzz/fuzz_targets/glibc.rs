//! glibc's malloc. Lists: data, heap, writable, anonymous.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reprieve_heap_fuzz::Input;
use reprieve_heap_walk::glibc::{Pages, Place, walk};
use std::ops::Range;

/// Every second page is there.
struct Half;

impl Pages for Half {
    fn present_bytes(&mut self, pages: Range<u64>) -> Option<u64> {
        pages.end.checked_sub(pages.start).map(|bytes| bytes / 2)
    }
}

fuzz_target!(|input: &[u8]| {
    let mut input = Input::parse(input);
    let (data, heap, writable, anonymous) = (input.list(0), input.list(1), input.list(2), input.list(3));
    let place = Place { data: &data, heap: heap.into_iter().next(), writable: &writable, anonymous: &anonymous };
    if let Some(malloc) = walk(&mut input.memory, &mut Half, &place, 4 << 20) {
        assert!(malloc.arenas.len() <= 1 << 16 && malloc.gaps.len() <= 64);
    }
});
