//! The facts of an ELF file, its symbols, and unwinding through it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reprieve_symbolizer::{DebugDirs, Image, Registers, Svma, Unwinder};
use reprieve_symbolizer_fuzz::{addresses, ask};

const FRAMES: usize = 64;

fuzz_target!(|input: &[u8]| {
    let Ok(image) = Image::from_bytes(input.to_vec()) else { return };
    assert!(image.build_id().is_none_or(|id| id.as_str().len() <= 128));
    assert!(image.interpreter().is_none_or(|path| path.len() <= input.len() * 3));
    let _ = (image.exports("malloc"), image.bias(0x7000_0000, 0x1000), image.bias(0, u64::MAX));
    let _ = (image.biases(0x7000_0000, 0x1000).count(), image.biases(0, u64::MAX).count());
    for (address, size) in image.symbols(&["main", "whole"]).into_iter().flatten() {
        // What a file says of a symbol need not be in it.
        assert!(image.at(address).is_none_or(|rest| rest.len() <= input.len()), "{address:?} {size}");
    }
    for name in [".text", ".bss", ".symtab", ".gopclntab"] {
        if let Some((range, bytes)) = image.section_data(name) {
            assert!(range.start <= range.end && bytes.len() <= input.len(), "{range:?}");
        }
    }
    ask(&image, None, &DebugDirs { dirs: Vec::new() });
    let mut unwinder = Unwinder::new();
    unwinder.add_module(0x1000..u64::MAX, 0, &image, "fuzzed");
    for Svma(ip) in addresses(&image).into_iter().step_by(5) {
        let registers = Registers { ip, sp: 0x7000, fp: 0x7010, lr: 0 };
        // A stack whose words are addresses of code and of the stack itself.
        let mut read = |at: u64| (at < 0x10_0000).then_some(if at & 8 == 0 { at + 64 } else { ip ^ at });
        assert!(unwinder.unwind(&registers, &mut read, FRAMES).frames.len() <= FRAMES);
    }
});
