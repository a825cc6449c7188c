//! CPython's frames. Words: `_PyRuntime`, the version, `PyCode_Type`, the last two
//! 0 where they are not known; more are code objects that somebody recorded.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reprieve_heap_fuzz::Input;
use reprieve_heap_walk::cpython::{Codes, Interpreter, Place, stacks};

fuzz_target!(|input: &[u8]| {
    let mut input = Input::parse(input);
    let known = |word: u64| (word != 0).then_some(word);
    let version = known(input.word(1)).map(|version| version as u32);
    let place = Place { runtime: input.word(0), version, code_type: known(input.word(2)) };
    if let Ok(threads) = stacks(&mut input.memory, place) {
        assert!(threads.len() <= 1 << 16);
    }
    if let Ok(interpreter) = Interpreter::open(&mut input.memory, place) {
        let mut codes = Codes::default();
        for &code in input.words.iter().skip(3) {
            if let Some(code) = codes.get(&interpreter, &mut input.memory, code, None) {
                let _ = code.line(Some(code.first_line));
            }
        }
    }
});
