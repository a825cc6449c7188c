//! Memcgs that others made and limited: taken under a brake, and left as they were.
//!
//! What has to be written to leave one is known three times: to us, to the watchdog, and
//! to the memcg itself, for the next guardian when both of us have died.

use super::debt::{debt, pay};
use super::watchdog::Debt;
use super::{Brake, BrakeChoice, BrakeError, HighBrake, ReserveBrake, V1Brake};
use crate::cgroup::{self, Memcg, Version, note};

/// Line of a note that says how far the limit is above that of before: of what is written to the
/// kernel, some may be lent for a while, and is no limit.
const GRANTED: &str = "granted";

/// Arms a brake on a memcg that others made and limited, and that we are not in, until
/// [`Brake::put_back`]. `cushion` is for brakes that hold below the kernel's limit.
pub fn adopt(memcg: &Memcg, choice: BrakeChoice, cushion: Cushion) -> Result<Box<dyn Brake>, BrakeError> {
    undo(memcg)?;
    if memcg.limit()?.is_none() {
        return Err(BrakeError::Unlimited { path: memcg.path().to_owned() });
    }
    let has = memcg.version();
    let wrong = |brake, needs| Err(BrakeError::WrongVersion { brake, needs, has: has.number() });
    match (choice, has) {
        (BrakeChoice::Auto | BrakeChoice::V1, Version::V1) => Ok(Box::new(V1Brake::adopt(memcg.clone(), cushion)?)),
        (BrakeChoice::Auto, Version::V2) if ReserveBrake::is_there() => {
            Ok(Box::new(ReserveBrake::adopt(memcg.clone(), false)?))
        }
        (BrakeChoice::Reserve, Version::V2) => Ok(Box::new(ReserveBrake::adopt(memcg.clone(), false)?)),
        (BrakeChoice::Auto | BrakeChoice::High, Version::V2) => Ok(Box::new(HighBrake::adopt(memcg.clone())?)),
        (BrakeChoice::V1, _) => wrong("v1", 1),
        (BrakeChoice::High, _) => wrong("high", 2),
        (BrakeChoice::Reserve, _) => wrong("reserve", 2),
    }
}

/// How far above the limit the kernel's own stands on version 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cushion {
    /// As far as noticing takes.
    Auto,
    /// So many bytes.
    Bytes(u64),
}

/// Undoes what a guardian that died with its watchdog left of an adoption.
///
/// # Errors
///
/// Another guardian, which lives, has adopted it.
pub fn undo(memcg: &Memcg) -> Result<(), BrakeError> {
    let Some(text) = note::read(memcg) else { return Ok(()) };
    let (maker, text) = text.split_once('\n').unwrap_or_default();
    if maker != cgroup::name_of_own_group() && !cgroup::maker_is_dead(maker) {
        return Err(BrakeError::Guarded { path: memcg.path().to_owned() });
    }
    let writes = text.lines().filter_map(|line| line.split_once(' ')).filter(|(file, _)| *file != GRANTED);
    let undone = writes.filter(|(file, content)| pay(&debt(memcg, file, *content)).is_err()).count();
    // A limit that is refused, since more is in use, stays too high for now; nobody is
    // held by it.
    if undone == 0 {
        note::forget(memcg);
    }
    Ok(())
}

/// What [`undo`] could not write to a limit's file, since more was in use: a guardian before
/// us had raised it.
pub(super) fn noted(memcg: &Memcg, file: &str) -> Option<u64> {
    let note = note::read(memcg)?;
    note.lines().find_map(|line| line.strip_prefix(file)?.strip_prefix(' ')?.trim().parse().ok())
}

/// What the guardian before us had granted and could not take back.
pub(super) fn noted_grant(memcg: &Memcg) -> Option<u64> {
    noted(memcg, GRANTED)
}

/// Remembers with the memcg itself what [`undo`] has to write, and who we are.
pub(super) fn remember(memcg: &Memcg, writes: &[Debt]) {
    remember_with(memcg, writes, 0);
}

/// The same with what is granted.
pub(super) fn remember_with(memcg: &Memcg, writes: &[Debt], granted: u64) {
    let line = |debt: &Debt| Some(format!("{} {}\n", debt.file.file_name()?.to_str()?, debt.content));
    let lines: String = writes.iter().filter_map(line).collect();
    // Without the right to it, it takes the watchdog's death as well to lose it.
    let _ = note::keep(memcg, &format!("{}\n{lines}{GRANTED} {granted}\n", cgroup::name_of_own_group()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Hierarchy;
    use std::fs;

    #[test]
    fn only_what_the_dead_left_is_undone() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let hierarchy = Hierarchy { version: Version::V1, mount: dir.path().to_owned(), own: "/".to_owned() };
        let memcg = Memcg::at(&hierarchy, "/");
        let limit = dir.path().join("memory.limit_in_bytes");
        fs::write(&limit, "200").unwrap();
        let writes = [Debt { file: limit.clone(), content: "100".to_owned() }];
        // The first process of the machine lives, and is not we.
        let start = crate::snapshot::process::start_ticks(1).unwrap();
        note::keep(&memcg, &format!("reprieve-1-{start}\nmemory.limit_in_bytes 100\n")).unwrap();
        assert!(undo(&memcg).unwrap_err().to_string().contains("another reprieve guards"));
        assert_eq!(fs::read_to_string(&limit).unwrap(), "200");
        note::keep(&memcg, "reprieve-1-0\nmemory.limit_in_bytes 100\n").unwrap();
        undo(&memcg).unwrap();
        assert_eq!((&*fs::read_to_string(&limit).unwrap(), note::read(&memcg)), ("100", None));
        fs::write(&limit, "200").unwrap();
        remember(&memcg, &writes);
        undo(&memcg).unwrap();
        assert_eq!((&*fs::read_to_string(&limit).unwrap(), note::read(&memcg)), ("100", None));
        // What was granted is no file's.
        remember_with(&memcg, &writes, 7);
        assert_eq!(noted_grant(&memcg), Some(7));
        undo(&memcg).unwrap();
        assert_eq!((note::read(&memcg), noted_grant(&memcg)), (None, None));
        // What cannot be written is kept.
        remember(&memcg, &[Debt { file: dir.path().join("none").join("x"), content: "1".to_owned() }]);
        fs::create_dir(dir.path().join("x")).unwrap();
        undo(&memcg).unwrap();
        assert!(note::read(&memcg).is_some());
    }
}
