//! One look at a memcg, as cheap as can be: a few small files that the kernel has in its
//! counters. No page table is walked and no mapping is locked for it, as smaps_rollup would.

use crate::cgroup::{Memcg, Version};
use crate::witness::HeapTable;
use crate::witness::totals::{self, StackTotals};
use std::fs;
use std::time::Instant;

/// Kinds of what is charged, as version 2 names them.
pub(super) const KINDS: [&str; 5] = ["anon", "file", "shmem", "kernel", "sock"];
/// Processes that are looked at.
const LOOKED_AT: usize = 256;

/// What was seen.
#[derive(Debug, Clone)]
pub struct Record {
    /// When.
    pub at: Instant,
    /// Charged.
    pub usage_bytes: u64,
    /// By [`KINDS`]; `None` where the kernel does not count it.
    pub kinds: [Option<u64>; KINDS.len()],
    /// Anonymous and shared memory of processes, those with most first.
    pub processes: Vec<(i32, u64)>,
    /// Live heap by stack.
    pub heap: Option<StackTotals>,
}

impl Record {
    /// Looks now, and keeps so many `processes`, those with most; looks at the heap where there is a table, keeping so many `stacks`.
    pub(super) fn take(memcg: &Memcg, most: usize, heap: Option<(&HeapTable, usize)>) -> Option<Self> {
        let at = Instant::now();
        let usage_bytes = memcg.usage().ok()?;
        let pids = memcg.pids().unwrap_or_default();
        let own = |&pid: &i32| Some((pid, own_memory(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)?));
        let mut all: Vec<(i32, u64)> = pids.iter().take(LOOKED_AT).filter_map(own).collect();
        all.sort_unstable_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        all.truncate(most);
        all.shrink_to_fit();
        let heap = heap.map(|(table, most)| totals::of(table, &pids, most));
        Some(Record { at, usage_bytes, kinds: kinds(memcg), processes: all, heap })
    }

    /// Bytes of memory that it takes.
    pub(super) fn kept_bytes(&self) -> usize {
        let processes = self.processes.capacity() * size_of::<(i32, u64)>();
        size_of::<Self>() + processes + self.heap.as_ref().map_or(0, StackTotals::kept_bytes)
    }
}

/// RssAnon and RssShmem of `/proc/PID/status` (proc_pid_status(5)); `None` for a kernel
/// thread or a dead process, which have no memory.
fn own_memory(status: &str) -> Option<u64> {
    let of = |key: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        value.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    Some((of("RssAnon")? + of("RssShmem")?) * 1024)
}

fn kinds(memcg: &Memcg) -> [Option<u64>; KINDS.len()] {
    let stat = memcg.stat().unwrap_or_default();
    let of = |key: &str| stat.get(key).copied();
    // Shared memory is in the page cache, in both versions.
    let file = |cache: Option<u64>, shmem: Option<u64>| Some(cache?.saturating_sub(shmem?));
    match memcg.version() {
        Version::V1 => {
            let kernel = memcg.read_number("memory.kmem.usage_in_bytes").ok().flatten();
            let (cache, shmem) = (of("total_cache"), of("total_shmem"));
            [of("total_rss"), file(cache, shmem), shmem, kernel, None]
        }
        Version::V2 => [of("anon"), file(of("file"), of("shmem")), of("shmem"), of("kernel"), of("sock")],
    }
}

#[cfg(test)]
mod tests {
    use super::own_memory;

    #[test]
    fn files_are_nobodys_own() {
        let status = "Name:\tcat\nVmRSS:\t   100 kB\nRssAnon:\t      12 kB\nRssFile:\t 80 kB\nRssShmem:\t       8 kB\n";
        assert_eq!(own_memory(status), Some(20 << 10));
        assert_eq!(own_memory("Name:\tkthreadd\n"), None);
    }
}
