//! Maps of generated code.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reprieve_symbolizer::{Avma, Outcome, perf_map};

/// Longest part of a name that is kept; each byte of it may become three.
const MOST_NAME: usize = 3 * 1024;

fuzz_target!(|input: &[u8]| {
    let sorted = [0, 0xfff, 0x1000, 0x1008, 0x2000, 0x7f00_0000_1010, u64::MAX - 1, u64::MAX].map(Avma);
    let (frames, outcome) = perf_map(&mut &*input, &sorted, u64::MAX);
    assert_eq!(frames.len(), sorted.len());
    assert!(matches!(outcome, Outcome::Used | Outcome::Damaged), "{outcome:?}");
    for (index, frame) in frames.iter().enumerate() {
        assert!(frame.as_ref().is_none_or(|f| f.function.len() <= 16 << 10 && f.line != Some(0)));
        assert!(frame.iter().filter_map(|f| f.file.as_ref()).all(|file| file.len() <= MOST_NAME));
        // One alone is what it is among others.
        assert_eq!(perf_map(&mut &*input, &sorted[index..=index], u64::MAX), (vec![frame.clone()], outcome));
    }
    // To a limit, and no byte more is needed to know that it is there.
    let (_, cut) = perf_map(&mut &*input, &sorted, input.len() as u64 / 2);
    assert!(input.len() < 2 || cut == Outcome::TooLarge, "{cut:?}");
});
