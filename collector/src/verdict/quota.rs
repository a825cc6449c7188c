//! A throttled program's share of a CPU.

use crate::cgroup::{CgroupError, CpuGroup, Memcg, Version};
use crate::hold::watchdog::{Debt, Line};
use std::fs;
use std::path::PathBuf;

/// A quota; what was there before comes back when it is dropped, or when we die.
#[derive(Debug)]
pub struct Quota<'a> {
    file: PathBuf,
    before: String,
    watchdog: Option<&'a Line>,
}

impl<'a> Quota<'a> {
    /// Gives a memcg `percent` of a CPU; `None` where its CPU cannot be limited, or would
    /// be ours, too.
    pub fn set(
        memcg: &Memcg,
        cpu: Option<&CpuGroup>,
        percent: u32,
        watchdog: Option<&'a Line>,
    ) -> Result<Option<Self>, CgroupError> {
        let (file, value) = match (cpu, memcg.version()) {
            (Some(group), _) => (group.dir().join("cpu.cfs_quota_us"), (group.period_us() / 100 * percent).to_string()),
            (None, Version::V2) if !memcg.has_us() => {
                (memcg.dir().join("cpu.max"), format!("{} 100000", percent * 1000))
            }
            (None, _) => return Ok(None),
        };
        let written = |source| CgroupError::Write { path: file.clone(), value: value.clone(), source };
        let before = match fs::read_to_string(&file) {
            Ok(text) => text.trim().to_owned(),
            // Without the cpu controller memory.high alone is the throttle.
            Err(_) if cpu.is_none() => return Ok(None),
            Err(error) => return Err(written(error)),
        };
        let quota = Quota { file: file.clone(), before: before.clone(), watchdog };
        // First, for the moment in between.
        quota.watchdog.iter().for_each(|line| drop(line.owe(Debt { file: file.clone(), content: before.clone() })));
        match fs::write(&file, &value) {
            Ok(()) => Ok(Some(quota)),
            Err(_) if cpu.is_none() => Ok(None),
            Err(error) => Err(written(error)),
        }
    }
}

impl Drop for Quota<'_> {
    fn drop(&mut self) {
        // It may be gone with its cgroup.
        let _ = fs::write(&self.file, &self.before);
        self.watchdog.iter().for_each(|line| drop(line.paid(&self.file)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Hierarchy;

    #[test]
    fn what_was_there_before_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let hierarchy = Hierarchy { version: Version::V2, mount: dir.path().into(), own: "/".to_owned() };
        let memcg = Memcg::at(&hierarchy, "/");
        // Without the cpu controller there is none.
        assert!(Quota::set(&memcg, None, 10, None).unwrap().is_none());
        let file = dir.path().join("cpu.max");
        fs::write(&file, "50000 200000\n").unwrap();
        let quota = Quota::set(&memcg, None, 10, None).unwrap().expect("a quota");
        assert_eq!(fs::read_to_string(&file).unwrap(), "10000 100000");
        drop(quota);
        assert_eq!(fs::read_to_string(&file).unwrap(), "50000 200000");
    }
}
