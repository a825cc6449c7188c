//! Go's memory profile. Words: `mbuckets` and `MemProfileRate`, 0 where they are
//! not known. List: variables to be searched.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reprieve_heap_fuzz::Input;
use reprieve_heap_walk::go::{Program, walk};

fuzz_target!(|input: &[u8]| {
    let mut input = Input::parse(input);
    let known = |word: u64| (word != 0).then_some(word);
    let program = Program { buckets: known(input.word(0)), rate: known(input.word(1)), zeroed: input.list(0) };
    if let Ok(profile) = walk(&mut input.memory, &program) {
        assert!(profile.records.len() <= 1 << 20);
        assert!(profile.inuse.bytes >= 0.0, "{:?}", profile.inuse);
    }
});
