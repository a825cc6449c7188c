//! What files of a memcg are to say again, and how that is written.

use super::watchdog::Debt;
use crate::cgroup::Memcg;
use nix::errno::Errno;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};

/// The limit of version 2. Written below the usage it has the kernel reclaim, and then
/// kill (memory_max_write, mm/memcontrol.c); that of version 1 is refused then.
const MAX: &str = "memory.max";
/// Share of the limit, and bytes, that must be free below it: the usage may grow before it
/// is written.
const ROOM_SHARE: u64 = 64;
const ROOM_MIN_BYTES: u64 = 1 << 20;

/// What `file` of a memcg is to say again.
pub fn debt(memcg: &Memcg, file: &str, content: impl Into<String>) -> Debt {
    Debt { file: memcg.dir().join(file), content: content.into() }
}

/// Writes it.
///
/// # Errors
///
/// EBUSY for a limit below the usage, also where the kernel would kill for it.
pub fn pay(debt: &Debt) -> io::Result<()> {
    if debt.file.ends_with(MAX) {
        let now = fs::read_to_string(&debt.file)?;
        // A full memcg whose limit is as it should be owes nothing.
        if now.trim() == debt.content {
            return Ok(());
        }
        if !fits(debt) {
            return Err(Errno::EBUSY.into());
        }
    }
    // It is not made where it is gone with its memcg.
    OpenOptions::new().write(true).truncate(true).open(&debt.file)?.write_all(debt.content.as_bytes())
}

/// Whether what is in use fits below a limit.
fn fits(limit: &Debt) -> bool {
    let Ok(bytes) = limit.content.parse::<u64>() else { return true };
    let usage = fs::read_to_string(limit.file.with_file_name("memory.current"));
    let usage = usage.ok().and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0);
    usage.saturating_add((bytes / ROOM_SHARE).max(ROOM_MIN_BYTES)) <= bytes
}

/// Whether a write may succeed later. Gone with the memcg is fine; there is nobody to
/// tell anything else.
pub fn is_for_now(error: &io::Error) -> bool {
    // EINVAL: a limit above memory+swap's, which comes down only after it.
    [Errno::EBUSY, Errno::EINVAL].iter().any(|&errno| error.raw_os_error() == Some(errno as i32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_never_written_below_the_usage() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, mib: u64| fs::write(dir.path().join(name), format!("{}\n", mib << 20)).unwrap();
        let limit = Debt { file: dir.path().join(MAX), content: (64_u64 << 20).to_string() };
        let says = || fs::read_to_string(&limit.file).unwrap().trim().parse::<u64>().unwrap() >> 20;
        // It is gone, and stays so.
        assert!(!is_for_now(&pay(&limit).unwrap_err()) && !limit.file.exists());
        write(MAX, 128);
        for in_use in [100, 64] {
            write("memory.current", in_use);
            assert!(is_for_now(&pay(&limit).unwrap_err()), "{in_use}");
            assert_eq!(says(), 128);
        }
        write("memory.current", 63);
        pay(&limit).unwrap();
        assert_eq!(says(), 64);
        // One that is full as it should be.
        write("memory.current", 64);
        pay(&limit).unwrap();
        // Whoever had none is as he was.
        pay(&Debt { content: "max".to_owned(), ..limit.clone() }).unwrap();
        assert_eq!(fs::read_to_string(&limit.file).unwrap(), "max");
    }
}
