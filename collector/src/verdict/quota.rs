//! A throttled program's share of a CPU.

use crate::cgroup::{self, CgroupError, CpuGroup, Hierarchy, Memcg, Version, note};
use crate::hold::pay;
use crate::hold::watchdog::{Debt, Line};
use std::fs;
use std::path::PathBuf;

/// Least share of one CPU, in percent: with less it could not even free memory.
const LEAST_PERCENT: u32 = 2;
/// The kernel takes no smaller quota (`min_cfs_quota_period`, kernel/sched/core.c).
const LEAST_US: u64 = 1000;
/// What version 2 is given, which is also the kernel's default.
const PERIOD_US: u64 = 100_000;

/// A quota; what was there before comes back when it is dropped, or when we die, or when the
/// next guard finds that watchdog and guard have died.
#[derive(Debug)]
pub struct Quota {
    file: PathBuf,
    before: String,
    /// What we wrote; anything else is somebody else's.
    written: String,
    percent: u32,
    /// From where on it limits nothing.
    ceiling: u32,
    period_us: u64,
    version: Version,
    watchdog: Option<Line>,
}

impl Quota {
    /// Gives a memcg `percent` of a CPU; `None` where its CPU cannot be limited, or would
    /// be ours, too.
    pub fn set(
        memcg: &Memcg,
        cpu: Option<&CpuGroup>,
        percent: u32,
        watchdog: Option<&Line>,
    ) -> Result<Option<Self>, CgroupError> {
        let (file, period_us, version) = match (cpu, memcg.version()) {
            (Some(group), _) => (group.dir().join("cpu.cfs_quota_us"), group.period_us().into(), Version::V1),
            (None, Version::V2) if !memcg.has_us() => (memcg.dir().join("cpu.max"), PERIOD_US, Version::V2),
            (None, _) => return Ok(None),
        };
        let before = match fs::read_to_string(&file) {
            Ok(text) => text.trim().to_owned(),
            // Without the cpu controller memory.high alone is the throttle.
            Err(_) if cpu.is_none() => return Ok(None),
            Err(source) => return Err(CgroupError::Read { path: file, source }),
        };
        let all = 100 * std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        let ceiling = percent_of(&before, period_us).map_or(all, |own| own.min(all));
        let mut quota = Quota {
            file,
            written: before.clone(),
            before,
            percent: ceiling,
            ceiling,
            period_us,
            version,
            watchdog: watchdog.cloned(),
        };
        // First, for the moment in between.
        quota.remember();
        match quota.change(percent.min(ceiling)) {
            Ok(_) => Ok(Some(quota)),
            Err(_) if cpu.is_none() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Share of one CPU.
    pub fn percent(&self) -> u32 {
        self.percent
    }

    /// What is to be written again.
    pub fn debt(&self) -> Debt {
        Debt { file: self.file.clone(), content: self.before.clone() }
    }

    /// Gives it another share; false where somebody else has written one, which counts.
    pub fn change(&mut self, percent: u32) -> Result<bool, CgroupError> {
        let value = self.period_us * u64::from(percent) / 100;
        let value = match self.version {
            Version::V1 => value.max(LEAST_US).to_string(),
            Version::V2 => format!("{} {}", value.max(LEAST_US), self.period_us),
        };
        if !self.is_ours() {
            return Ok(false);
        }
        fs::write(&self.file, &value).map_err(|source| CgroupError::Write {
            path: self.file.clone(),
            value: value.clone(),
            source,
        })?;
        (self.written, self.percent) = (value, percent);
        Ok(true)
    }

    /// Halves it, as far as it goes.
    pub fn tighten(&mut self) -> Result<bool, CgroupError> {
        // Who has had less from the beginning keeps that.
        self.change((self.percent / 2).max(LEAST_PERCENT).min(self.percent))
    }

    /// Doubles it, up to so much; false where it is over with that: it would limit nothing
    /// any more, or is somebody else's.
    pub fn loosen(&mut self, at_most: u32) -> Result<bool, CgroupError> {
        let percent = (self.percent * 2).max(1).min(at_most);
        if percent >= self.ceiling { Ok(false) } else { self.change(percent) }
    }

    fn is_ours(&self) -> bool {
        fs::read_to_string(&self.file).is_ok_and(|text| text.trim() == self.written)
    }

    /// Has the watchdog know, and the cgroup itself.
    fn remember(&self) {
        self.watchdog.iter().for_each(|line| drop(line.owe(self.debt())));
        if let (Some(dir), Some(name)) = (self.file.parent(), self.file.file_name()) {
            let maker = cgroup::name_of_own_group();
            // Without the right to it, it takes the watchdog's death as well to lose it.
            let _ = note::QUOTA.keep(dir, &format!("{maker}\n{} {}\n", name.to_string_lossy(), self.before));
        }
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        if self.is_ours() {
            // It may be gone with its cgroup.
            let _ = fs::write(&self.file, &self.before);
        }
        self.watchdog.iter().for_each(|line| drop(line.paid(&self.file)));
        self.file.parent().iter().for_each(|dir| note::QUOTA.forget(dir));
    }
}

/// The share of a CPU that a quota allows; `None` for one that allows all.
fn percent_of(text: &str, period_us: u64) -> Option<u32> {
    let mut words = text.split_whitespace().map(str::parse::<u64>);
    let quota = words.next()?.ok()?;
    let period = words.next().and_then(Result::ok).unwrap_or(period_us);
    u32::try_from(quota * 100 / period.max(1)).ok()
}

/// Lifts the throttle that a guard left which died with its watchdog. `cpu` is where quotas
/// are on version 1.
pub fn undo(memcg: &Memcg, cpu: Option<&Hierarchy>) {
    let dir = match (memcg.version(), cpu) {
        (Version::V2, _) => memcg.dir().to_owned(),
        (Version::V1, Some(cpu)) => Memcg::at(cpu, memcg.path()).dir().to_owned(),
        (Version::V1, None) => return,
    };
    let Some(text) = note::QUOTA.read(&dir) else { return };
    let (maker, debt) = text.split_once('\n').unwrap_or_default();
    if maker != cgroup::name_of_own_group() && !cgroup::maker_is_dead(maker) {
        return;
    }
    if let Some((file, content)) = debt.trim_end().split_once(' ') {
        let _ = pay(&Debt { file: dir.join(file), content: content.to_owned() });
    }
    note::QUOTA.forget(&dir);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memcg(dir: &tempfile::TempDir) -> Memcg {
        let hierarchy = Hierarchy { version: Version::V2, mount: dir.path().into(), own: "/".to_owned() };
        Memcg::at(&hierarchy, "/")
    }

    #[test]
    fn what_was_there_before_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let memcg = memcg(&dir);
        // Without the cpu controller there is none.
        assert!(Quota::set(&memcg, None, 10, None).unwrap().is_none());
        let file = dir.path().join("cpu.max");
        fs::write(&file, "50000 200000\n").unwrap();
        let quota = Quota::set(&memcg, None, 10, None).unwrap().expect("a quota");
        assert_eq!(fs::read_to_string(&file).unwrap(), "10000 100000");
        drop(quota);
        assert_eq!(fs::read_to_string(&file).unwrap(), "50000 200000");
    }

    #[test]
    fn it_goes_down_and_up_by_steps_within_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cpu.max");
        fs::write(&file, "50000 100000\n").unwrap();
        let mut quota = Quota::set(&memcg(&dir), None, 10, None).unwrap().expect("a quota");
        let mut told = Vec::new();
        for _ in 0..3 {
            assert!(quota.tighten().unwrap());
            told.push(quota.percent());
        }
        while quota.loosen(100).unwrap() {
            told.push(quota.percent());
        }
        assert_eq!(told, [5, 2, 2, 4, 8, 16, 32]);
        assert!(quota.loosen(10).unwrap() && quota.percent() == 10);
        drop(quota);
        // Whoever has less than a throttle would give keeps it.
        fs::write(&file, "1000 100000\n").unwrap();
        let mut quota = Quota::set(&memcg(&dir), None, 10, None).unwrap().expect("a quota");
        assert!(quota.percent() == 1 && quota.tighten().unwrap() && quota.percent() == 1);
    }

    #[test]
    fn what_somebody_else_writes_counts() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cpu.max");
        fs::write(&file, "max 100000\n").unwrap();
        let mut quota = Quota::set(&memcg(&dir), None, 10, None).unwrap().expect("a quota");
        fs::write(&file, "30000 100000\n").unwrap();
        assert!(!quota.loosen(100).unwrap() && !quota.tighten().unwrap());
        drop(quota);
        assert_eq!(fs::read_to_string(&file).unwrap(), "30000 100000\n");
    }

    #[test]
    fn the_next_guard_lifts_what_the_dead_left() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let memcg = memcg(&dir);
        let file = dir.path().join("cpu.max");
        fs::write(&file, "max 100000\n").unwrap();
        // Both died before it was dropped.
        std::mem::forget(Quota::set(&memcg, None, 10, None).unwrap().expect("a quota"));
        let note = note::QUOTA.read(dir.path()).unwrap();
        let start = crate::snapshot::process::start_ticks(1).unwrap();
        let (_, debt) = note.split_once('\n').unwrap();
        note::QUOTA.keep(dir.path(), &format!("reprieve-1-{start}\n{debt}")).unwrap();
        undo(&memcg, None);
        assert_eq!(fs::read_to_string(&file).unwrap(), "10000 100000", "its maker lives");
        note::QUOTA.keep(dir.path(), &format!("reprieve-1-0\n{debt}")).unwrap();
        undo(&memcg, None);
        assert_eq!(fs::read_to_string(&file).unwrap(), "max 100000");
        assert_eq!(note::QUOTA.read(dir.path()), None);
    }
}
