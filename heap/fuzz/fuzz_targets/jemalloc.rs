//! jemalloc's profile. Lists: data and code.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reprieve_heap_fuzz::Input;
use reprieve_heap_walk::jemalloc::{Place, walk};

fuzz_target!(|input: &[u8]| {
    let mut input = Input::parse(input);
    let (data, code) = (input.list(0), input.list(1));
    if let Some(profile) = walk(&mut input.memory, &Place { data: &data, code: &code }, 4 << 20) {
        assert!(profile.stacks.iter().all(|stack| stack.addresses.len() <= 128));
        assert!(profile.stacks.iter().all(|stack| stack.live.sum(profile.period).bytes >= 0.0));
    }
});
