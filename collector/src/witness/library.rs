//! The library that programs are started with.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// `libreprieve_heap.so`, built with this program.
const LIBRARY: &[u8] = include_bytes!(env!("REPRIEVE_HEAP_LIBRARY"));

/// Puts the library where every user of the machine can read it, once for each
/// version of it; returns its path.
pub fn install() -> io::Result<PathBuf> {
    install_as(&directory(), &format!("libreprieve_heap-{:016x}.so", fnv1a(LIBRARY)))
}

/// Puts it into a folder under a name; returns its path. Programs that have loaded
/// another of that name keep it.
pub fn install_as(dir: &Path, name: &str) -> io::Result<PathBuf> {
    if LIBRARY.is_empty() {
        return Err(io::Error::other("libreprieve_heap.so is for x86-64 only"));
    }
    DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    let path = dir.join(name);
    if fs::read(&path).is_ok_and(|there| there == LIBRARY) {
        return Ok(path);
    }
    // By a rename, since another may be loading it now.
    let new = dir.join(format!(".{}", std::process::id()));
    let _ = fs::remove_file(&new);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o755).open(&new)?;
    file.write_all(LIBRARY)?;
    // Whatever the umask: the service may be another user's.
    file.set_permissions(fs::Permissions::from_mode(0o755))?;
    fs::rename(&new, &path)?;
    Ok(path)
}

/// `/run/reprieve` for root, the user's own run-time folder for others
/// (XDG base directory specification).
fn directory() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return PathBuf::from("/run/reprieve");
    }
    let own = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    own.filter(|dir| dir.is_dir())
        .unwrap_or_else(|| Path::new("/tmp").join(format!("reprieve-{}", nix::unistd::geteuid())))
        .join("reprieve")
}

/// FNV-1a, 64 bits: tells versions apart, guards against nothing.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}
