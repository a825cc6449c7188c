//! Functions, inlined ones and lines, of DWARF in the file itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reprieve_symbolizer::{DebugDirs, Image};
use reprieve_symbolizer_fuzz::ask;

fuzz_target!(|input: &[u8]| {
    if let Ok(image) = Image::from_bytes(input.to_vec()) {
        ask(&image, None, &DebugDirs { dirs: Vec::new() });
    }
});
