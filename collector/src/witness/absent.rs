//! Why nothing is known of a heap, by looking.

use crate::incident::model::Process;
use crate::witness::{TABLE_NAME, Target};
use reprieve_symbolizer::Image;
use std::fs;

/// Part of the library's name, whatever folder and version it is from.
const LIBRARY_NAME: &str = "libreprieve_heap";
/// getauxval(3): the program runs with rights that its user has not.
const AT_SECURE: u64 = 23;

/// Why the library recorded nothing in a process, and what to do.
#[must_use]
pub fn why(process: &Process, target: &Target<'_>) -> String {
    let has = |name: &str| target.maps.iter().any(|map| map.name.contains(name));
    let reason = if has(TABLE_NAME) {
        "the table had no slab left for it, or it is just starting; try again"
    } else if has(LIBRARY_NAME) {
        "the library in it found no table: REPRIEVE_HEAP is not in its environment, or RLIMIT_AS or RLIMIT_FSIZE leave \
         no room for one"
    } else {
        match executable(process, target).map(Image::interpreter) {
            Some(None) => "it is a static program, into which no library can be loaded",
            _ if is_secure(target.pid) => {
                "it runs setuid or with capabilities of its file (AT_SECURE), and then LD_PRELOAD is not obeyed"
            }
            Some(Some(interpreter)) if interpreter.contains("ld-musl") => {
                "its C library is musl; the library needs glibc"
            }
            _ => {
                "it was started without libreprieve_heap.so, or its parent cleared the environment; `reprieve heap env` \
                 prints what to set"
            }
        }
    };
    format!("its heap is not known: {reason}")
}

/// Whether the executable brings a malloc of its own, in front of the library's.
#[must_use]
pub fn has_own_malloc(process: &Process, target: &Target<'_>) -> bool {
    executable(process, target).is_some_and(|image| image.exports("malloc"))
}

fn executable<'t>(process: &Process, target: &'t Target<'_>) -> Option<&'t Image> {
    let name = process.exe.as_deref()?;
    let map = target.maps.iter().find(|map| map.name == name)?;
    target.modules.iter().find(|module| module.range.contains(&map.start)).map(|module| &module.image)
}

/// From the vector that the kernel keeps for it: no page of the target is read
/// (proc_pid_auxv(5)).
fn is_secure(pid: i32) -> bool {
    let words = fs::read(format!("/proc/{pid}/auxv")).unwrap_or_default();
    let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
    words.chunks_exact(16).any(|pair| word(&pair[..8]) == AT_SECURE && word(&pair[8..]) != 0)
}
