//! The kernel's list of its functions.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reprieve_symbolizer::{Outcome, kallsyms, kernel_base};

/// Longest line that is looked at.
const MOST_LINE: usize = 1024;

fuzz_target!(|input: &[u8]| {
    let sorted = [0, 1, 0x1000, 0x107f, 0x2000, 0x2200_1005, 0xffff_ffff_f9ff_0008, u64::MAX];
    let base = kernel_base(&mut &*input);
    for with_modules in [false, true] {
        let (frames, outcome) = kallsyms(&mut &*input, &sorted, with_modules, u64::MAX);
        assert_eq!(frames.len(), sorted.len());
        assert!(matches!(outcome, Outcome::Used | Outcome::Damaged | Outcome::Hidden), "{outcome:?}");
        assert_eq!(outcome == Outcome::Hidden, base == Err(Outcome::Hidden));
        assert!(frames[0].is_none() && (base.is_ok() || frames.iter().all(Option::is_none)));
        for (index, frame) in frames.iter().enumerate() {
            assert!(frame.as_ref().is_none_or(|f| !f.function.is_empty() && f.function.len() <= MOST_LINE));
            // One alone is what it is among others.
            assert_eq!(kallsyms(&mut &*input, &sorted[index..=index], with_modules, u64::MAX).0, [frame.clone()]);
        }
    }
    // To a limit, and no byte more is needed to know that it is there.
    let (_, cut) = kallsyms(&mut &*input, &sorted, true, input.len() as u64 / 2);
    assert!(input.len() < 2 || matches!(cut, Outcome::TooLarge | Outcome::Hidden), "{cut:?}");
});
