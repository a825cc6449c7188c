//! Names as symbol tables and debug information have them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reprieve_symbolizer::demangle;

fuzz_target!(|input: &[u8]| {
    let name = String::from_utf8_lossy(input);
    assert!(demangle(&name).len() <= 16 << 10);
    // Most of what is not mangled is no name.
    assert!(demangle(&format!("_Z{name}")).len() <= 16 << 10);
    assert!(demangle(&format!("_R{name}")).len() <= 16 << 10);
});
