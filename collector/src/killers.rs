//! Other programs that kill for memory: who of them runs, and what they leave behind.
//!
//! Two killers do not know of each other: one frees the memory that the other was about to
//! decide about, or kills whom the other wanted to keep.

use crate::cgroup::Memcg;
use crate::incident::model::OtherKiller;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A program that kills for memory.
#[derive(Debug)]
struct Known {
    /// Its name (`/proc/PID/comm`, at most 15 bytes).
    comm: &'static str,
    /// How the two get along.
    remedy: &'static str,
}

/// All that are known.
const KNOWN: [Known; 6] = [
    Known {
        comm: OOMD,
        remedy: "set ManagedOOMPreference=omit in the units that reprieve guards, or `systemctl disable --now systemd-oomd`",
    },
    Known { comm: "earlyoom", remedy: "give it --avoid with their names, or `systemctl disable --now earlyoom`" },
    Known { comm: "nohang", remedy: "raise its soft thresholds, or `systemctl disable --now nohang`" },
    Known { comm: "oomd", remedy: "leave their cgroups out of its rulesets" },
    Known { comm: "bustd", remedy: "`systemctl disable --now bustd`" },
    Known {
        comm: "kubelet",
        remedy: "it evicts pods for the node's memory; set evictionHard below what reprieve keeps free",
    },
];

/// It counts what it does in attributes of cgroups.
const OOMD: &str = "systemd-oomd";
/// Processes that it killed there (systemd, src/oom/oomd-util.c).
const OOMD_KILLS: &str = "user.oomd_kill";

/// Those that run.
#[must_use]
pub fn active() -> Vec<OtherKiller> {
    active_in(Path::new("/proc"))
}

fn active_in(proc: &Path) -> Vec<OtherKiller> {
    let entries = std::fs::read_dir(proc).into_iter().flatten().flatten();
    let mut found: Vec<OtherKiller> = entries
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let comm = std::fs::read_to_string(entry.path().join("comm")).ok()?;
            let known = KNOWN.iter().find(|known| known.comm == comm.trim_end_matches('\n'))?;
            Some(OtherKiller { pid, name: known.comm.to_owned(), kills_here: None })
        })
        .collect();
    found.sort_by_key(|killer| killer.pid);
    found
}

/// What to do about one.
#[must_use]
pub fn remedy(name: &str) -> &'static str {
    KNOWN.iter().find(|known| known.comm == name).map_or("", |known| known.remedy)
}

/// Their names, each once.
#[must_use]
pub fn names(killers: &[OtherKiller]) -> Vec<String> {
    let mut names: Vec<String> = killers.iter().map(|killer| killer.name.clone()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// `earlyoom [12]`, with commas between them.
#[must_use]
pub fn told(killers: &[OtherKiller]) -> String {
    let each: Vec<String> = killers.iter().map(|killer| format!("{} [{}]", killer.name, killer.pid)).collect();
    each.join(", ")
}

/// Those that run, with what is known of their deeds in a memcg.
#[must_use]
pub fn active_at(memcg: &Memcg) -> Vec<OtherKiller> {
    let mut found = active();
    for killer in found.iter_mut().filter(|killer| killer.name == OOMD) {
        killer.kills_here = Some(oomd_kills(memcg));
    }
    found
}

/// How many processes systemd-oomd has killed in a memcg.
#[must_use]
pub fn oomd_kills(memcg: &Memcg) -> u64 {
    let Ok(dir) = CString::new(memcg.dir().as_os_str().as_bytes()) else { return 0 };
    let Ok(name) = CString::new(OOMD_KILLS) else { return 0 };
    // Decimal digits of 64 bits.
    let mut text = [0_u8; 24];
    // SAFETY: two C strings, and a live buffer of the size that is told.
    let length = unsafe { libc::getxattr(dir.as_ptr(), name.as_ptr(), text.as_mut_ptr().cast(), text.len()) };
    let text = usize::try_from(length).ok().and_then(|length| text.get(..length)).unwrap_or_default();
    std::str::from_utf8(text).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::{Hierarchy, Version};
    use std::fs;

    #[test]
    fn they_are_known_by_their_names() {
        let proc = tempfile::tempdir().unwrap();
        let put = |pid: &str, comm: &str| {
            fs::create_dir(proc.path().join(pid)).unwrap();
            fs::write(proc.path().join(pid).join("comm"), format!("{comm}\n")).unwrap();
        };
        [("20", "earlyoom"), ("7", "systemd-oomd"), ("21", "earlyoom"), ("8", "earlyoomx"), ("sys", "earlyoom")]
            .iter()
            .for_each(|(pid, comm)| put(pid, comm));
        let found = active_in(proc.path());
        assert_eq!(told(&found), "systemd-oomd [7], earlyoom [20], earlyoom [21]");
        assert_eq!(names(&found), ["earlyoom", "systemd-oomd"]);
        for known in KNOWN {
            assert!(known.comm.len() <= 15 && !remedy(known.comm).is_empty(), "{known:?}");
        }
    }

    #[test]
    fn what_oomd_counts_is_read() {
        // tmpfs has no such attributes before Linux 6.6.
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let hierarchy = Hierarchy { version: Version::V2, mount: dir.path().to_owned(), own: "/".to_owned() };
        let memcg = Memcg::at(&hierarchy, "/");
        assert_eq!(oomd_kills(&memcg), 0);
        let path = CString::new(dir.path().as_os_str().as_bytes()).unwrap();
        // SAFETY: C strings and the two bytes of a literal.
        let result = unsafe { libc::setxattr(path.as_ptr(), c"user.oomd_kill".as_ptr(), c"17".as_ptr().cast(), 2, 0) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        assert_eq!(oomd_kills(&memcg), 17);
    }
}
