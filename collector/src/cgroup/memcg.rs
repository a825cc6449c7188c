//! One memcg: its files by meaning, the same for both versions.

use super::{CgroupError, Hierarchy, Version};
use crate::guardian::is_one_of_us;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// From here on version 1 means unlimited (`PAGE_COUNTER_MAX` pages,
/// include/linux/page_counter.h, whatever the page size).
pub const UNLIMITED: u64 = i64::MAX as u64 & !0xffff;

/// A memory cgroup.
///
/// Holds only its path; the kernel may remove or change it at any time, so
/// every method can fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memcg {
    version: Version,
    dir: PathBuf,
    path: String,
}

impl Memcg {
    /// The memcg at `path` (starting with `/`) below the hierarchy's mount.
    #[must_use]
    pub fn at(hierarchy: &Hierarchy, path: &str) -> Self {
        Memcg {
            version: hierarchy.version,
            dir: hierarchy.mount.join(path.trim_start_matches('/')),
            path: path.to_owned(),
        }
    }

    /// The memcg a person names: absolute folder, or path below the mount.
    pub fn named(hierarchy: &Hierarchy, name: &Path) -> Result<Self, CgroupError> {
        let below = match name.strip_prefix(&hierarchy.mount) {
            Ok(below) => below.to_owned(),
            Err(_) => name.strip_prefix("/").unwrap_or(name).to_owned(),
        };
        let memcg = Self::at(hierarchy, &format!("/{}", below.display()));
        let marker = match hierarchy.version {
            Version::V1 => "memory.usage_in_bytes",
            // The root of version 2 has no memory.current.
            Version::V2 => "cgroup.procs",
        };
        if memcg.dir.join(marker).exists() { Ok(memcg) } else { Err(CgroupError::NotAMemcg { path: name.to_owned() }) }
    }

    /// The nearest memcg with a limit, from our own upwards.
    pub fn limited_around_us(hierarchy: &Hierarchy) -> Option<Self> {
        let mut paths = Path::new(&hierarchy.own).ancestors();
        paths.find_map(|path| {
            let memcg = Self::at(hierarchy, &path.display().to_string());
            memcg.limit().is_ok_and(|limit| limit.is_some()).then_some(memcg)
        })
    }

    /// Interface version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its path below the mount point, starting with `/`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether it still exists, which it does as long as its memory is counted: the kernel takes
    /// away that file before the folder (cgroup_destroy_locked, css_clear_dir), and who reads it
    /// meanwhile gets ENODEV. The root of version 2 has no such file, and is never removed.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.path() == "/" || self.dir.join(self.usage_name()).exists()
    }

    /// Reads a file of the memcg.
    pub fn read(&self, file: &str) -> Result<String, CgroupError> {
        let path = self.dir.join(file);
        fs::read_to_string(&path).map_err(|source| CgroupError::Read { path, source })
    }

    /// Writes a file of the memcg.
    pub fn write(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        let path = self.dir.join(file);
        fs::write(&path, value).map_err(|source| CgroupError::Write { path, value: value.to_owned(), source })
    }

    /// Reads a number; `None` for v2's `max`.
    pub fn read_number(&self, file: &str) -> Result<Option<u64>, CgroupError> {
        let content = self.read(file)?;
        match content.trim() {
            "max" => Ok(None),
            text => text
                .parse()
                .map(Some)
                .map_err(|_| CgroupError::Content { path: self.dir.join(file), content: text.to_owned() }),
        }
    }

    /// Reads a `key value` file; lines of another shape are left out.
    pub fn read_keyed(&self, file: &str) -> Result<BTreeMap<String, u64>, CgroupError> {
        Ok(parse_keyed(&self.read(file)?))
    }

    fn usage_name(&self) -> &'static str {
        match self.version {
            Version::V1 => "memory.usage_in_bytes",
            Version::V2 => "memory.current",
        }
    }

    /// Bytes charged.
    pub fn usage(&self) -> Result<u64, CgroupError> {
        Ok(self.read_number(self.usage_name())?.unwrap_or(0))
    }

    /// The file that has the bytes charged, for who reads it often.
    pub fn open_usage(&self) -> io::Result<File> {
        File::open(self.dir().join(self.usage_name()))
    }

    /// The hard limit in bytes; `None` is unlimited.
    pub fn limit(&self) -> Result<Option<u64>, CgroupError> {
        match self.version {
            Version::V1 => {
                let limit = self.read_number("memory.limit_in_bytes")?;
                Ok(limit.filter(|&bytes| bytes < UNLIMITED))
            }
            Version::V2 => self.read_number("memory.max"),
        }
    }

    /// Most bytes ever charged, where the kernel counts it (v2: since 5.19).
    #[must_use]
    pub fn peak(&self) -> Option<u64> {
        let file = match self.version {
            Version::V1 => "memory.max_usage_in_bytes",
            Version::V2 => "memory.peak",
        };
        self.read_number(file).ok().flatten()
    }

    /// `memory.stat`.
    pub fn stat(&self) -> Result<BTreeMap<String, u64>, CgroupError> {
        self.read_keyed("memory.stat")
    }

    /// Event counters.
    pub fn events(&self) -> Result<BTreeMap<String, u64>, CgroupError> {
        match self.version {
            Version::V1 => {
                let mut events = self.read_keyed("memory.oom_control")?;
                if let Ok(Some(count)) = self.read_number("memory.failcnt") {
                    events.insert("failcnt".to_owned(), count);
                }
                Ok(events)
            }
            Version::V2 => self.read_keyed("memory.events"),
        }
    }

    /// How often the kernel's OOM killer killed here and below. On version 1 those of a
    /// memcg that was removed are not among them any more.
    pub fn kernel_kills(&self) -> Result<u64, CgroupError> {
        let own = |memcg: &Memcg| Ok(memcg.events()?.get("oom_kill").copied().unwrap_or(0));
        let kills = own(self)?;
        Ok(match self.version {
            // There a kill counts for the victim's memcg alone (memcg_memory_event,
            // include/linux/memcontrol.h).
            Version::V1 => kills + self.subtree().iter().skip(1).filter_map(|memcg| own(memcg).ok()).sum::<u64>(),
            Version::V2 => kills,
        })
    }

    /// Whether the guardian is in it.
    #[must_use]
    pub fn has_us(&self) -> bool {
        let own = std::process::id() as i32;
        self.subtree().iter().any(|memcg| memcg.own_pids().is_ok_and(|pids| pids.contains(&own)))
    }

    /// Threads of the memcg and its descendants, but for our own.
    pub fn tids(&self) -> Result<Vec<i32>, CgroupError> {
        self.members(match self.version {
            Version::V1 => "tasks",
            Version::V2 => "cgroup.threads",
        })
    }

    /// Processes of the memcg and its descendants, but for ourselves.
    pub fn pids(&self) -> Result<Vec<i32>, CgroupError> {
        self.members("cgroup.procs")
    }

    fn members(&self, file: &str) -> Result<Vec<i32>, CgroupError> {
        let mut members = Vec::new();
        for (depth, memcg) in self.subtree().into_iter().enumerate() {
            match memcg.read(file) {
                // 0 is a process outside our PID namespace: not addressable.
                Ok(text) => members.extend(text.lines().filter_map(|l| l.parse().ok()).filter(|&id: &i32| id != 0)),
                // A descendant may vanish between the listing and the read.
                Err(_) if depth > 0 => {}
                Err(error) => return Err(error),
            }
        }
        members.sort_unstable();
        members.dedup();
        let our_threads = crate::snapshot::tids_of(std::process::id() as i32);
        members.retain(|&id| !is_one_of_us(id) && our_threads.binary_search(&id).is_err());
        Ok(members)
    }

    /// Processes of the memcg itself.
    pub fn own_pids(&self) -> Result<Vec<i32>, CgroupError> {
        Ok(self.read("cgroup.procs")?.lines().filter_map(|l| l.parse().ok()).filter(|&id| id != 0).collect())
    }

    /// Bytes that the memcg may keep when memory is short: the more of
    /// `memory.min` and `memory.low`, on version 1 the soft limit.
    #[must_use]
    pub fn reservation(&self) -> u64 {
        let of = |file| self.read_number(file).ok().flatten().unwrap_or(0);
        match self.version {
            // Unlimited is how version 1 says that none was set.
            Version::V1 => Some(of("memory.soft_limit_in_bytes")).filter(|&b| b < UNLIMITED).unwrap_or(0),
            Version::V2 => of("memory.min").max(of("memory.low")),
        }
    }

    /// Whether it lives and dies as one (`memory.oom.group`, v2).
    #[must_use]
    pub fn is_one_job(&self) -> bool {
        self.read_number("memory.oom.group").is_ok_and(|flag| flag == Some(1))
    }

    /// The memcg and all its descendants, parents first.
    #[must_use]
    pub fn subtree(&self) -> Vec<Memcg> {
        let mut memcgs = vec![self.clone()];
        let mut next = 0;
        while next < memcgs.len() {
            let entries = fs::read_dir(&memcgs[next].dir).into_iter().flatten().flatten();
            let folders = entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
            let children: Vec<_> = folders.map(|e| memcgs[next].child(&e.file_name().to_string_lossy())).collect();
            memcgs.extend(children);
            next += 1;
        }
        memcgs
    }

    fn child(&self, name: &str) -> Memcg {
        let path = format!("{}/{name}", self.path.trim_end_matches('/'));
        Memcg { version: self.version, dir: self.dir.join(name), path }
    }

    /// Sends SIGKILL to everybody in the memcg and its descendants. Where
    /// `cgroup.kill` is (v2, since 5.14) nobody escapes by forking; elsewhere
    /// those who are born meanwhile live on.
    pub fn kill(&self) -> Result<(), CgroupError> {
        if self.dir.join("cgroup.kill").exists() {
            return self.write("cgroup.kill", "1");
        }
        for pid in self.pids()? {
            // ESRCH: it has just ended.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        Ok(())
    }

    /// Removes the memcg and its empty descendants.
    pub fn remove(&self) -> Result<(), CgroupError> {
        for memcg in self.subtree().into_iter().rev() {
            match fs::remove_dir(&memcg.dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(CgroupError::Write { path: memcg.dir, value: "(remove)".to_owned(), source: error });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Lines of `key value`; those of another shape are left out.
#[must_use]
pub fn parse_keyed(text: &str) -> BTreeMap<String, u64> {
    let pair = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}
