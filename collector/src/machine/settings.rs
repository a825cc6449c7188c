//! What of the machine is set otherwise while it is watched, and put back.

use crate::cgroup::Memcg;
use crate::hold::watchdog::Debt;
use crate::run::RunError;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Whether compaction may move pages that are locked in memory (`mlock(2)`). Who
/// touches one in that moment takes a page fault and waits until it is moved, which
/// is why kernels for real time have 0 there
/// (Documentation/admin-guide/sysctl/vm.rst).
const COMPACT_LOCKED: &str = "/proc/sys/vm/compact_unevictable_allowed";

/// What is set, not set yet.
#[derive(Debug)]
pub struct Settings {
    /// File and content, in the order of putting back.
    put_back: Vec<Debt>,
}

impl Settings {
    /// For a watch of `root`.
    pub fn of(root: &Memcg) -> Self {
        let debt = |file: PathBuf, content: &str| Debt { file, content: content.to_owned() };
        let mut put_back: Vec<Debt> =
            ["memory.oom.delay_ms", "memory.oom.reserve"].map(|file| debt(root.dir().join(file), "0")).into();
        if fs::read_to_string(COMPACT_LOCKED).is_ok_and(|value| value.trim() == "1") {
            put_back.push(debt(COMPACT_LOCKED.into(), "1"));
        }
        Settings { put_back }
    }

    /// For whoever puts it back when we cannot.
    pub fn put_back(&self) -> Vec<Debt> {
        self.put_back.clone()
    }

    /// Leaves locked pages where they are, keeps `reserve_bytes` free, and lets holds
    /// last up to `delay`, until what it returns is dropped. With it, what could not be
    /// done and does not prevent a watch.
    ///
    /// # Errors
    ///
    /// When the root's files cannot be written.
    pub fn write(
        self,
        root: &Memcg,
        reserve_bytes: u64,
        delay: Duration,
    ) -> Result<(Written, Option<String>), RunError> {
        let written = Written(self);
        let moves = written.0.put_back.iter().any(|debt| debt.file == Path::new(COMPACT_LOCKED));
        let missing = moves.then(|| fs::write(COMPACT_LOCKED, "0").err()).flatten();
        root.write("memory.oom.reserve", &reserve_bytes.to_string())?;
        root.write("memory.oom.delay_ms", &delay.as_millis().min(60_000).to_string())?;
        let missing = missing
            .map(|error| format!("compaction may delay a decision ({COMPACT_LOCKED}: {error}); have it set to 0"));
        Ok((written, missing))
    }
}

/// What was set; put back when dropped.
#[derive(Debug)]
pub struct Written(Settings);

impl Drop for Written {
    fn drop(&mut self) {
        for Debt { file, content } in &self.0.put_back {
            let _ = fs::write(file, content);
        }
    }
}
