//! DWARF that is spread over files: dwz's alternate, split units and their package, a
//! separate debug file. The first file of the input is the program.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reprieve_symbolizer::{DebugDirs, Image};
use reprieve_symbolizer_fuzz::{ask, files};
use std::fs;
use std::sync::OnceLock;

/// Beside the program; `seeds/make` names them so.
const BESIDE: [&str; 4] = ["shared.debug", "p.dwp", "p.dwo", "p.debug"];

fuzz_target!(|input: &[u8]| {
    // In memory, as far as it goes: every input writes these.
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    let dir = DIR.get_or_init(|| tempfile::tempdir_in("/dev/shm").expect("tmpfs")).path();
    let files = files(input);
    let Some(image) = files.first().and_then(|program| Image::from_bytes(program.to_vec()).ok()) else { return };
    for (index, name) in BESIDE.iter().enumerate() {
        match files.get(index + 1).filter(|file| !file.is_empty()) {
            Some(file) => fs::write(dir.join(name), file).expect("there is room"),
            None => drop(fs::remove_file(dir.join(name))),
        }
    }
    // Only there: what else is on this machine would make each run another.
    let dirs = DebugDirs { dirs: vec![dir.to_owned()] };
    ask(&image, Some(&dir.join("p")), &dirs);
});
