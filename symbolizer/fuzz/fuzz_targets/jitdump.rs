//! Dumps of generated code.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reprieve_symbolizer::{Avma, Outcome, jitdump};
use std::io::Cursor;

/// Longest part of a name that is kept; each byte of it may become three.
const MOST_NAME: usize = 3 * 1024;

fuzz_target!(|input: &[u8]| {
    let sorted = [0, 0x1000, 0x1008, 0x103f, 0x2000, 0x5008, 0x6020, u64::MAX].map(Avma);
    let (frames, outcome) = jitdump(&mut Cursor::new(input), &sorted);
    assert_eq!(frames.len(), sorted.len());
    assert!(matches!(outcome, Outcome::Used | Outcome::Damaged), "{outcome:?}");
    for (index, frame) in frames.iter().enumerate() {
        assert!(frame.as_ref().is_none_or(|f| f.function.len() <= 16 << 10 && f.line != Some(0)));
        assert!(frame.iter().filter_map(|f| f.file.as_ref()).all(|file| file.len() <= MOST_NAME));
        let (alone, _) = jitdump(&mut Cursor::new(input), &sorted[index..=index]);
        // Another address may lie in a damaged record, which ends reading early.
        assert!(outcome == Outcome::Damaged || alone[0] == *frame, "{alone:?} {frame:?}");
    }
});
