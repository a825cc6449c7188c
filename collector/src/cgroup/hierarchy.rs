//! Where the memory controller is mounted and where we stand in it.

use super::CgroupError;
use std::fs;
use std::path::{Path, PathBuf};

/// Version of the cgroup interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy per controller.
    V1,
    /// The unified hierarchy.
    V2,
}

impl Version {
    /// 1 or 2.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Version::V1 => 1,
            Version::V2 => 2,
        }
    }
}

/// A mounted controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Interface version.
    pub version: Version,
    /// Mount point, like `/sys/fs/cgroup/memory`.
    pub mount: PathBuf,
    /// Our own cgroup below the mount point, starting with `/`.
    pub own: String,
}

impl Hierarchy {
    /// Finds the memory controller.
    ///
    /// A version 1 mount wins, since a controller bound to version 1 is absent
    /// from version 2.
    pub fn memory() -> Result<Self, CgroupError> {
        Self::find("memory")?.ok_or(CgroupError::NoController)
    }

    /// Finds a controller; `None` where it is not mounted.
    pub fn find(controller: &str) -> Result<Option<Self>, CgroupError> {
        let read =
            |path: &str| fs::read_to_string(path).map_err(|source| CgroupError::Read { path: path.into(), source });
        Ok(Self::parse(controller, &read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?, |mount| {
            // Something else may be mounted over it.
            let is_visible = mount.join("cgroup.procs").exists();
            let listed = || fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
            // Always there and never listed, unless a version 1 mount has it
            // (perf_event_cgrp_subsys, kernel/events/core.c).
            is_visible.then(|| format!("{} perf_event", listed()))
        }))
    }

    /// [`Hierarchy::find`] on given texts: mountinfo as in
    /// proc_pid_mountinfo(5), cgroup membership as in cgroups(7). `look` gives
    /// version 2's list of controllers, `None` where no cgroup is to be seen.
    #[must_use]
    pub fn parse(
        controller: &str,
        mountinfo: &str,
        membership: &str,
        look: impl Fn(&Path) -> Option<String>,
    ) -> Option<Self> {
        let mut found: Option<(Version, PathBuf, String)> = None;
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let left: Vec<&str> = left.split(' ').collect();
            let right: Vec<&str> = right.split(' ').collect();
            let (Some(root), Some(mount)) = (left.get(3), left.get(4)) else {
                continue;
            };
            let mount = PathBuf::from(unescape(mount));
            let Some(v2_controllers) = look(&mount) else { continue };
            match right.first() {
                Some(&"cgroup") if right.get(2).is_some_and(|o| o.split(',').any(|o| o == controller)) => {
                    found = Some((Version::V1, mount, unescape(root)));
                    break;
                }
                Some(&"cgroup2") if found.is_none() && v2_controllers.split_whitespace().any(|c| c == controller) => {
                    found = Some((Version::V2, mount, unescape(root)));
                }
                _ => {}
            }
        }
        let (version, mount, root) = found?;
        let own = membership
            .lines()
            .filter_map(|line| {
                let mut fields = line.splitn(3, ':');
                let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
                let ours = match version {
                    Version::V1 => controllers.split(',').any(|c| c == controller),
                    Version::V2 => id == "0" && controllers.is_empty(),
                };
                ours.then(|| path.to_owned())
            })
            .next()
            .unwrap_or_else(|| "/".to_owned());
        // A bind mount of a subtree: paths in /proc are from the real root.
        let own = match own.strip_prefix(root.trim_end_matches('/')) {
            Some("") => "/".to_owned(),
            Some(rest) if rest.starts_with('/') => rest.to_owned(),
            _ => "/".to_owned(),
        };
        Some(Hierarchy { version, mount, own })
    }
}

/// Undoes the octal escapes of mountinfo (space, tab, newline, backslash).
#[must_use]
pub fn unescape(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
    const HYBRID: &str = "30 23 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
        31 23 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        32 23 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n";

    #[test]
    fn unified() {
        let h = Hierarchy::parse("memory", V2, "0::/user.slice/x.scope\n", |_| Some("cpu memory".into())).unwrap();
        assert_eq!(h.version, Version::V2);
        assert_eq!(h.mount, Path::new("/sys/fs/cgroup"));
        assert_eq!(h.own, "/user.slice/x.scope");
    }

    #[test]
    fn hybrid_takes_the_bound_version() {
        let membership = "5:memory:/a/b\n3:cpu,cpuacct:/\n0::/\n";
        let h = Hierarchy::parse("memory", HYBRID, membership, |_| Some("pids".into())).unwrap();
        assert_eq!((h.version, h.own.as_str()), (Version::V1, "/a/b"));
        let cpu = Hierarchy::parse("cpu", HYBRID, membership, |_| Some(String::new())).unwrap();
        assert_eq!(cpu.mount, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
    }

    #[test]
    fn absent_controller() {
        assert_eq!(Hierarchy::parse("memory", V2, "0::/\n", |_| Some("cpu io".into())), None);
    }

    #[test]
    fn a_hidden_mount_is_none() {
        assert_eq!(Hierarchy::parse("memory", HYBRID, "5:memory:/\n", |_| None), None);
    }

    #[test]
    fn container_sees_a_subtree() {
        let mounts = "1 2 0:3 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let h = Hierarchy::parse("memory", mounts, "0::/docker/abc/init\n", |_| Some("memory".into())).unwrap();
        assert_eq!(h.own, "/init");
    }
}
