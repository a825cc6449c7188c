//! The cache outside the checkout: where it is, its keys and its lock.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The cache directory, made if absent: `$REPRIEVE_CACHE`,
/// `$XDG_CACHE_HOME/reprieve` or `~/.cache/reprieve`.
pub(super) fn directory() -> Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let path = match (variable("REPRIEVE_CACHE"), variable("XDG_CACHE_HOME"), variable("HOME")) {
        (Some(path), _, _) => path,
        (None, Some(base), _) => base.join("reprieve"),
        (None, None, Some(home)) => home.join(".cache/reprieve"),
        (None, None, None) => bail!("no place for a cache: set REPRIEVE_CACHE, XDG_CACHE_HOME or HOME"),
    };
    fs::create_dir_all(&path).with_context(|| format!("{}: the cache directory cannot be made", path.display()))?;
    path.canonicalize().with_context(|| format!("{}: the cache directory cannot be resolved", path.display()))
}

/// A 64-bit FNV-1a hash over fields, for the names of cache entries.
///
/// Not against an adversary: whoever can write into the cache needs no collision.
pub(super) struct Key(u64);

impl Key {
    /// The hash of nothing: FNV's offset basis.
    pub(super) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Adds a field. Its length goes in first, so that a byte cannot move
    /// from one field to the next unnoticed.
    pub(super) fn field(mut self, bytes: &[u8]) -> Self {
        self.bytes(&(bytes.len() as u64).to_le_bytes());
        self.bytes(bytes);
        self
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// The key as 16 hexadecimal digits.
    pub(super) fn hex(&self) -> String {
        format!("{:016x}", self.0)
    }
}

/// An exclusive lock on a file of the cache; given back when dropped.
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the lock on `path`, and says so if it has to.
    pub(super) fn take(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("{}: the lock file cannot be made", path.display()))?;
        // SAFETY: flock(2) reads nothing but its two integers, and `file`
        // keeps the descriptor open during the call.
        let at_once = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
        if at_once != 0 {
            eprintln!("waiting for another task that holds {}", path.display());
            loop {
                // SAFETY: as above.
                if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } == 0 {
                    break;
                }
                let error = std::io::Error::last_os_error();
                if error.kind() != std::io::ErrorKind::Interrupted {
                    return Err(error).with_context(|| format!("{}: cannot be locked", path.display()));
                }
            }
        }
        Ok(Self { _file: file })
    }
}

/// A directory that is gone, with all it holds, when dropped.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// Makes `path`, empty: what was left there by a task that was killed goes.
    pub(super) fn make(path: PathBuf) -> Result<Self> {
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("{}: cannot be cleared", path.display()))?;
        }
        fs::create_dir_all(&path).with_context(|| format!("{}: cannot be made", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A kernel's tree is a hundred thousand files, for which some disks take
        // minutes: nobody waits for them.
        let doomed = self.0.with_extension(format!("doomed-{}", std::process::id()));
        let deleted = fs::rename(&self.0, &doomed)
            .and_then(|()| Command::new("rm").arg("-rf").arg(&doomed).stdin(Stdio::null()).spawn());
        if let Err(error) = deleted {
            eprintln!("{}: left behind: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv_1a() {
        // The published vector for the string "foobar", without our length prefix.
        let mut key = Key::new();
        key.bytes(b"foobar");
        assert_eq!(key.hex(), "85944171f73967e8");
    }

    #[test]
    fn fields_do_not_run_into_each_other() {
        assert_ne!(Key::new().field(b"ab").field(b"c").hex(), Key::new().field(b"a").field(b"bc").hex());
    }

    #[test]
    fn scratch_goes_with_its_owner() {
        let path = std::env::temp_dir().join(format!("reprieve-scratch-{}", std::process::id()));
        let scratch = Scratch::make(path.clone()).unwrap();
        fs::write(scratch.path().join("file"), "x").unwrap();
        drop(scratch);
        assert!(!path.exists());
    }
}
