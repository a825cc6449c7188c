//! What a memcg is worth, and who of several goes first: of a machine's jobs, and of those
//! below a memcg.

use crate::cgroup::{Memcg, Which};
use std::cmp::Reverse;
use std::os::unix::ffi::OsStrExt;

/// Extended attribute of a job's cgroup: a number, the larger the more important.
pub const PRIORITY: &str = "user.reprieve.priority";

/// Who goes first has the least: those over their reservation before all others, then the
/// lowest priority, then whoever is over by most.
#[must_use]
pub fn order(priority: i32, size_bytes: u64, reservation_bytes: u64) -> impl Ord + use<> {
    let over = size_bytes.saturating_sub(reservation_bytes);
    (over == 0, priority, Reverse(over), Reverse(size_bytes))
}

/// What is configured of some memcgs.
#[derive(Debug, Clone, PartialEq)]
pub struct Said {
    /// Which; all of them without.
    pub matches: Option<Which>,
    /// Their priority.
    pub priority: Option<i32>,
    /// What each may keep when memory is short.
    pub reservation_bytes: Option<u64>,
}

/// What is configured of all of them; the last that has a word on a memcg wins.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Worths(pub Vec<Said>);

impl Worths {
    fn configured<T>(&self, path: &str, word: impl Fn(&Said) -> Option<T>) -> Option<T> {
        let about = |said: &&Said| said.matches.as_ref().is_none_or(|which| which.matches(path));
        self.0.iter().rev().filter(about).find_map(word)
    }

    /// The priority that the configuration gives the memcg at `path`.
    #[must_use]
    pub fn configured_priority(&self, path: &str) -> Option<i32> {
        self.configured(path, |said| said.priority)
    }

    /// The reservation that the configuration gives the memcg at `path`.
    #[must_use]
    pub fn configured_reservation(&self, path: &str) -> Option<u64> {
        self.configured(path, |said| said.reservation_bytes)
    }

    /// What the configuration says, or else its owner, in [`PRIORITY`].
    #[must_use]
    pub fn priority(&self, memcg: &Memcg) -> Option<i32> {
        self.configured_priority(memcg.path()).or_else(|| attribute(memcg))
    }

    /// What the configuration says, or else the memcg's own files.
    #[must_use]
    pub fn reservation(&self, memcg: &Memcg) -> u64 {
        self.configured_reservation(memcg.path()).unwrap_or_else(|| memcg.reservation())
    }

    /// Whether somebody has said that it is a job.
    #[must_use]
    pub fn is_job(&self, memcg: &Memcg) -> bool {
        self.priority(memcg).is_some() || self.configured_reservation(memcg.path()).is_some()
    }
}

/// What the owner of a cgroup says it is worth.
fn attribute(memcg: &Memcg) -> Option<i32> {
    let path = std::ffi::CString::new(memcg.dir().as_os_str().as_bytes()).ok()?;
    let name = std::ffi::CString::new(PRIORITY).ok()?;
    let mut value = [0u8; 16];
    // SAFETY: both strings end with a NUL and live through the call; the kernel writes
    // at most as many bytes as it is told there are.
    let length = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    let text = std::str::from_utf8(value.get(..usize::try_from(length).ok()?)?).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::{Hierarchy, Version};
    use std::fs;

    #[test]
    fn the_configuration_wins_over_the_owner_and_a_later_word_over_an_earlier() {
        // Any folder has attributes; user.* of tmpfs is since Linux 6.6.
        let dir = tempfile::tempdir().unwrap();
        for name in ["owned", "both", "none"] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("memory.low"), "4096\n").unwrap();
        }
        for name in ["owned", "both"] {
            let path = std::ffi::CString::new(dir.path().join(name).as_os_str().as_bytes()).unwrap();
            // SAFETY: two C strings and two bytes that live through the call.
            let set = unsafe {
                libc::setxattr(path.as_ptr(), c"user.reprieve.priority".as_ptr(), b"-3".as_ptr().cast(), 2, 0)
            };
            assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
        }
        let hierarchy = Hierarchy { version: Version::V2, mount: dir.path().to_owned(), own: "/".to_owned() };
        let memcg = |path: &str| Memcg::at(&hierarchy, path);
        let said = |glob: Option<&str>, priority, reservation_bytes| Said {
            matches: glob.map(|glob| Which::at(glob).unwrap()),
            priority,
            reservation_bytes,
        };
        let worths = Worths(vec![said(Some("/b*"), Some(1), Some(9)), said(Some("/both"), Some(2), None)]);
        assert_eq!(["/owned", "/both", "/none"].map(|path| worths.priority(&memcg(path))), [Some(-3), Some(2), None]);
        assert_eq!(["/owned", "/both"].map(|path| worths.reservation(&memcg(path))), [4096, 9]);
        assert_eq!(["/owned", "/both", "/none"].map(|path| worths.is_job(&memcg(path))), [true, true, false]);
        assert_eq!(Worths(vec![said(None, Some(7), None)]).priority(&memcg("/none")), Some(7));
    }
}
