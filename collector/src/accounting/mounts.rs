//! On which file systems files lie, from `/proc/PID/mountinfo`
//! (proc_pid_mountinfo(5)), so that none is asked that could make us wait.

use std::collections::HashMap;

/// Mounts as a process sees them.
#[derive(Debug, Default)]
pub struct Mounts {
    /// Type by mount ID, as fdinfo has it.
    by_id: HashMap<u64, Kind>,
    /// Type by device, as maps has it.
    by_device: HashMap<String, Kind>,
    /// Where a tmpfs can be seen whole, as the process sees it.
    pub tmpfs: Vec<String>,
}

/// What is to be known of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Files are memory: tmpfs and devtmpfs (pages of ramfs count as page cache).
    Tmpfs,
    /// Huge pages, which have a counter of their own.
    Hugetlbfs,
    /// On a disk of this machine, or in memory.
    Local,
    /// Over another, whose pages it has: cachestat(2) of such a file sees none.
    Layered,
    /// Whoever serves it may be held, or far away; or it has no pages.
    Other,
}

/// File systems whose pages we look for. Others may be served by a process that is
/// held itself (fuse, 9p), or by another machine (nfs, cifs, ceph).
const LOCAL: [&str; 13] =
    ["bcachefs", "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "ramfs", "squashfs", "vfat", "xfs", "zfs"];

impl Kind {
    fn of(name: &str) -> Self {
        match name {
            "tmpfs" | "devtmpfs" => Kind::Tmpfs,
            "hugetlbfs" => Kind::Hugetlbfs,
            // The layers below are not known, but are local nearly always.
            "overlay" => Kind::Layered,
            name if LOCAL.contains(&name) => Kind::Local,
            _ => Kind::Other,
        }
    }

    /// Of a file that is on no mount, by the names that the kernel gives it.
    #[must_use]
    pub fn of_unmounted(name: &str) -> Self {
        let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
        if starts(&["/anon_hugepage"]) {
            Kind::Hugetlbfs
        } else if starts(&["/memfd:", "/SYSV", "/dev/zero (deleted)"]) {
            Kind::Tmpfs
        } else {
            Kind::Other
        }
    }
}

impl Mounts {
    /// Of a process; empty where it is gone.
    #[must_use]
    pub fn of(pid: i32) -> Self {
        let text = std::fs::read(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        Self::parse(&String::from_utf8_lossy(&text))
    }

    fn parse(text: &str) -> Self {
        let mut mounts = Mounts::default();
        let mut seen = std::collections::HashSet::new();
        for line in text.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let left: Vec<&str> = left.split(' ').collect();
            let (&[id, _, device, root, place, ..], Some(kind)) = (&left[..], right.split(' ').next()) else {
                continue;
            };
            let kind = Kind::of(kind);
            id.parse().ok().map(|id| mounts.by_id.insert(id, kind));
            mounts.by_device.insert(device.to_owned(), kind);
            if kind == Kind::Tmpfs && root == "/" && seen.insert(device) {
                let place = crate::cgroup::unescape(place);
                // One that another is mounted over is not to be seen.
                if !mounts.tmpfs.contains(&place) {
                    mounts.tmpfs.push(place);
                }
            }
        }
        mounts
    }

    /// Of the mount with this ID.
    #[must_use]
    pub fn by_id(&self, id: u64) -> Option<Kind> {
        self.by_id.get(&id).copied()
    }

    /// Of a mapping's device, like `fe:00` in hexadecimal, and name.
    #[must_use]
    pub fn of_mapping(&self, device: &str, name: &str) -> Kind {
        let decimal = device.split_once(':').and_then(|(major, minor)| {
            let number = |text| u32::from_str_radix(text, 16).ok();
            Some(format!("{}:{}", number(major)?, number(minor)?))
        });
        let mounted = decimal.and_then(|device| self.by_device.get(&device)).copied();
        match Kind::of_unmounted(name) {
            Kind::Other => mounted.unwrap_or(Kind::Other),
            kind => kind,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
        23 22 0:21 / /dev/shm rw - tmpfs tmpfs rw\n\
        24 22 0:21 /sub /mnt/part rw - tmpfs tmpfs rw\n\
        25 22 0:30 / /mnt/with\\040space rw - tmpfs none rw\n\
        26 22 0:31 / /net rw - nfs4 host:/ rw\n\
        27 22 0:32 / /huge rw - hugetlbfs none rw\n\
        28 23 0:33 / /dev/shm rw - tmpfs over rw\n";

    #[test]
    fn files_are_known_by_mount_and_by_device() {
        let mounts = Mounts::parse(MOUNTS);
        assert_eq!(mounts.by_id(22), Some(Kind::Local));
        assert_eq!((mounts.by_id(26), mounts.by_id(99)), (Some(Kind::Other), None));
        assert_eq!(mounts.tmpfs, ["/dev/shm", "/mnt/with space"]);
        assert_eq!(mounts.of_mapping("fe:00", "/usr/bin/x"), Kind::Local);
        assert_eq!(mounts.of_mapping("00:15", "/dev/shm/x"), Kind::Tmpfs);
        assert_eq!(mounts.of_mapping("00:20", "/huge/x"), Kind::Hugetlbfs);
        // The kernel's own mounts are nowhere to be seen.
        assert_eq!(mounts.of_mapping("00:01", "/memfd:x (deleted)"), Kind::Tmpfs);
        assert_eq!(mounts.of_mapping("00:01", "/SYSV0000002a (deleted)"), Kind::Tmpfs);
        assert_eq!(mounts.of_mapping("00:0f", "/anon_hugepage (deleted)"), Kind::Hugetlbfs);
        assert_eq!(mounts.of_mapping("00:77", "/x"), Kind::Other);
    }

    #[test]
    fn damaged_lines_are_left_out() {
        let mounts =
            Mounts::parse("x - tmpfs\n1 2 3:4 / - \n - \n22 1 254:0 / / rw ext4\n\u{fffd} 1 9:9 / /x rw - tmpfs\n");
        assert!(mounts.by_id.is_empty(), "{mounts:?}");
        assert_eq!(mounts.of_mapping(":", ""), Kind::Other);
        assert_eq!(mounts.of_mapping("zz:1", "/x"), Kind::Other);
    }
}
