//! What a memcg's files said before a guardian wrote to them, kept with the memcg.
//!
//! An extended attribute of its folder lives as long as the memcg does, and outlives
//! guardian and watchdog. It is a trusted one (xattr(7)): whoever may write to a memcg
//! that was delegated must not make us write there what he likes.

use super::Memcg;
use nix::errno::Errno;
use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What is said of the limits.
pub const LIMITS: Note = Note(c"trusted.reprieve.before");
/// What is said of the CPU quota, which on version 1 is another folder's.
pub const QUOTA: Note = Note(c"trusted.reprieve.quota");
/// Longest note.
const MOST_BYTES: usize = 4096;

/// An attribute that notes are kept in.
#[derive(Debug, Clone, Copy)]
pub struct Note(&'static CStr);

fn folder(dir: &Path) -> io::Result<CString> {
    CString::new(dir.as_os_str().as_bytes()).map_err(io::Error::other)
}

impl Note {
    /// Keeps a note with a folder, in place of an older one.
    ///
    /// # Errors
    ///
    /// EPERM without CAP_SYS_ADMIN in the first user namespace.
    pub fn keep(self, dir: &Path, text: &str) -> io::Result<()> {
        let dir = folder(dir)?;
        // SAFETY: two C strings and as many bytes as the live text has.
        let result = unsafe { libc::setxattr(dir.as_ptr(), self.0.as_ptr(), text.as_ptr().cast(), text.len(), 0) };
        Errno::result(result).map(drop).map_err(io::Error::from)
    }

    /// The note, if there is one.
    #[must_use]
    pub fn read(self, dir: &Path) -> Option<String> {
        let dir = folder(dir).ok()?;
        let mut bytes = vec![0_u8; MOST_BYTES];
        // SAFETY: two C strings, and a live buffer of the size that is told.
        let length = unsafe { libc::getxattr(dir.as_ptr(), self.0.as_ptr(), bytes.as_mut_ptr().cast(), bytes.len()) };
        bytes.truncate(usize::try_from(length).ok()?);
        String::from_utf8(bytes).ok()
    }

    /// Forgets it.
    pub fn forget(self, dir: &Path) {
        let Ok(dir) = folder(dir) else { return };
        // SAFETY: two C strings. ENODATA: there is none.
        unsafe { libc::removexattr(dir.as_ptr(), self.0.as_ptr()) };
    }
}

/// Keeps a note of a memcg's limits.
///
/// # Errors
///
/// As [`Note::keep`].
pub fn keep(memcg: &Memcg, text: &str) -> io::Result<()> {
    LIMITS.keep(memcg.dir(), text)
}

/// The note of its limits.
#[must_use]
pub fn read(memcg: &Memcg) -> Option<String> {
    LIMITS.read(memcg.dir())
}

/// Forgets it.
pub fn forget(memcg: &Memcg) {
    LIMITS.forget(memcg.dir());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::{Hierarchy, Version};

    #[test]
    fn a_note_is_kept_until_it_is_forgotten() {
        // Any folder has attributes; where the file system has none, none is found.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let hierarchy = Hierarchy { version: Version::V1, mount: dir.path().to_owned(), own: "/".to_owned() };
        let memcg = Memcg::at(&hierarchy, "/");
        assert_eq!(read(&memcg), None);
        keep(&memcg, "1").unwrap();
        keep(&memcg, "2 3").unwrap();
        assert_eq!(read(&memcg).as_deref(), Some("2 3"));
        forget(&memcg);
        assert_eq!(read(&memcg), None);
    }
}
