//! What the kernel counts of a memcg, the same for both versions.
//!
//! Sources: `Documentation/admin-guide/cgroup-v2.rst` (memory.stat),
//! `Documentation/admin-guide/cgroup-v1/memory.rst`, mm/memcontrol.c and
//! mm/memcontrol-v1.c. Counters that a kernel lacks are `None`, never 0.

use crate::cgroup::{Memcg, Version};
use crate::size::can_be;
use std::collections::BTreeMap;

/// Pages that a CPU charges at once, for each memcg that it remembers
/// (MEMCG_CHARGE_BATCH, include/linux/memcontrol.h): charged, and used by nobody yet.
const BATCH_PAGES: u64 = 64;

/// Counters of a memcg and its descendants, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counters {
    /// Interface version.
    pub version: Version,
    /// All that is charged.
    pub usage: u64,
    /// `memory.stat` as it is.
    pub stat: BTreeMap<String, u64>,
    /// Version 1: `memory.kmem.usage_in_bytes`.
    pub kmem: Option<u64>,
    /// Version 1: `memory.kmem.tcp.usage_in_bytes`, which is not in `usage`.
    pub tcp: Option<u64>,
    /// Version 2: `memory.swap.current`.
    pub swap: Option<u64>,
    /// Memcgs in it, itself included.
    pub memcgs: u64,
    /// CPUs that can hold a batch.
    pub cpus: u64,
    /// Bytes of a page.
    pub page: u64,
}

impl Counters {
    /// Reads them; a file that is not there is a counter that is not there.
    #[must_use]
    pub fn read(memcg: &Memcg) -> Self {
        let number = |file| memcg.read_number(file).ok().flatten().and_then(can_be);
        let v1 = memcg.version() == Version::V1;
        // Reading memory.stat has the kernel collect what CPUs hold back; usage is exact.
        let stat = memcg.stat().unwrap_or_default();
        Counters {
            version: memcg.version(),
            usage: memcg.usage().ok().and_then(can_be).unwrap_or(0),
            stat,
            kmem: v1.then(|| number("memory.kmem.usage_in_bytes")).flatten(),
            tcp: v1.then(|| number("memory.kmem.tcp.usage_in_bytes")).flatten(),
            swap: if v1 { None } else { number("memory.swap.current") },
            memcgs: memcg.subtree().len() as u64,
            cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
            page: crate::snapshot::page_size(),
        }
    }

    /// A key of memory.stat, of the whole subtree.
    fn stat(&self, key: &str) -> Option<u64> {
        let value = match self.version {
            Version::V1 => self.stat.get(&format!("total_{key}")).or_else(|| self.stat.get(key)),
            Version::V2 => self.stat.get(key),
        };
        can_be(*value?)
    }

    /// The key of memory.stat that has a version's counter, for `source`.
    #[must_use]
    pub fn source(&self, v1: &str, v2: &str) -> String {
        match self.version {
            Version::V1 if v1.starts_with("memory.") => v1.to_owned(),
            Version::V1 => format!("memory.stat: total_{v1}"),
            Version::V2 => format!("memory.stat: {v2}"),
        }
    }

    /// Anonymous memory that somebody has mapped.
    #[must_use]
    pub fn anon(&self) -> u64 {
        let key = if self.version == Version::V1 { "rss" } else { "anon" };
        self.stat(key).unwrap_or(0)
    }

    /// tmpfs, shared memory and memfd.
    #[must_use]
    pub fn shmem(&self) -> u64 {
        self.stat("shmem").unwrap_or(0)
    }

    /// Page cache without `shmem`.
    #[must_use]
    pub fn cache(&self) -> u64 {
        let key = if self.version == Version::V1 { "cache" } else { "file" };
        self.stat(key).unwrap_or(0).saturating_sub(self.shmem())
    }

    /// Page cache that is to be written, or being written.
    #[must_use]
    pub fn dirty(&self) -> (u64, u64) {
        let keys = if self.version == Version::V1 { ["dirty", "writeback"] } else { ["file_dirty", "file_writeback"] };
        (self.stat(keys[0]).unwrap_or(0), self.stat(keys[1]).unwrap_or(0))
    }

    /// All kernel memory, where the kernel counts it together (v2: since 5.18).
    #[must_use]
    pub fn kernel(&self) -> Option<u64> {
        match self.version {
            Version::V1 => self.kmem,
            Version::V2 => self.stat("kernel"),
        }
    }

    /// A part of the kernel memory by its name in version 2, which is where there are
    /// such counters.
    #[must_use]
    pub fn kernel_part(&self, key: &str) -> Option<u64> {
        if self.version == Version::V1 { None } else { self.stat(key) }
    }

    /// Swapped out.
    #[must_use]
    pub fn swapped(&self) -> u64 {
        self.swap.or_else(|| self.stat("swap")).unwrap_or(0)
    }

    /// Most that may be charged in advance.
    #[must_use]
    pub fn ahead_at_most(&self) -> u64 {
        self.cpus * self.memcgs * BATCH_PAGES * self.page
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::cgroup::parse_keyed;

    /// Counters from texts, as a kernel gave them.
    pub fn of(version: Version, usage: u64, stat: &str, kmem: Option<u64>) -> Counters {
        let stat = parse_keyed(stat);
        Counters { version, usage, stat, kmem, tcp: None, swap: None, memcgs: 1, cpus: 2, page: 4096 }
    }

    #[test]
    fn version_one_counts_the_whole_subtree() {
        let c =
            of(Version::V1, 100, "cache 1\nrss 2\nshmem 1\ntotal_cache 40\ntotal_rss 50\ntotal_shmem 30\n", Some(9));
        assert_eq!((c.anon(), c.shmem(), c.cache(), c.kernel()), (50, 30, 10, Some(9)));
        assert_eq!(c.source("rss", "anon"), "memory.stat: total_rss");
        assert_eq!(c.ahead_at_most(), 2 * 64 * 4096);
    }

    #[test]
    fn counters_that_a_kernel_lacks_are_not_there() {
        let old = of(Version::V2, 100, "anon 50\nfile 40\nshmem 30\nslab 5\n", None);
        assert_eq!((old.kernel(), old.kernel_part("vmalloc"), old.kernel_part("slab")), (None, None, Some(5)));
        let damaged = of(Version::V2, 100, "anon\nfile -4\nshmem x\n\u{0}\nfile_dirty 99999999999999999999\n", None);
        assert_eq!((damaged.anon(), damaged.cache(), damaged.dirty(), damaged.kernel()), (0, 0, (0, 0), None));
        // More than any machine has.
        let absurd = of(Version::V2, 100, "anon 18446744073709551615\nfile 9223372036854775807\nshmem 5\n", None);
        assert_eq!((absurd.anon(), absurd.cache(), absurd.shmem()), (0, 0, 5));
        // More shared memory than files: read at two moments.
        assert_eq!(of(Version::V2, 100, "file 10\nshmem 20\n", None).cache(), 0);
    }
}
