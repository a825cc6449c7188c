//! What the fuzz targets in collector/fuzz feed: parsers and sums of the accounting, which
//! are private otherwise. Nobody else's interface.

use super::charges::Charges;
use super::counters::Counters;
use super::found::{Found, FoundProcess};
use super::mappings::{Pages, Seen};
use super::mounts::Mounts;
use super::{kernel, leftovers, tree};
use crate::cgroup::{Version, parse_keyed};
use crate::incident::accounting::{AccountNode, Accounting};
use crate::size::can_be;
use crate::snapshot::{Entry, smaps};
use std::fs::File;
use std::time::{Duration, Instant};

/// What the kernel says of a memcg and its processes, as text.
#[derive(Debug, Clone, Copy, Default)]
pub struct Texts<'t> {
    /// Whether the interface is version 1.
    pub is_v1: bool,
    /// `memory.current` or `memory.usage_in_bytes`.
    pub usage: u64,
    /// `memory.stat`.
    pub stat: &'t str,
    /// Counters that have files of their own: kmem, tcp, swap.
    pub others: [Option<u64>; 3],
    /// `/proc/meminfo` and `/proc/loadavg`.
    pub machine: [&'t str; 2],
    /// `/proc/sysvipc/shm`.
    pub segments: &'t str,
    /// `/proc/PID/status` and `smaps` of each process.
    pub processes: &'t [(&'t str, &'t str)],
}

/// The tree that comes of it, without any page having been looked at.
#[must_use]
pub fn account(texts: &Texts<'_>) -> Accounting {
    let [kmem, tcp, swap] = texts.others.map(|number| number.and_then(can_be));
    let counters = Counters {
        version: if texts.is_v1 { Version::V1 } else { Version::V2 },
        usage: can_be(texts.usage).unwrap_or(0),
        stat: parse_keyed(texts.stat),
        kmem,
        tcp,
        swap,
        memcgs: 3,
        cpus: 4,
        page: 4096,
    };
    let mut found = Found {
        segments: leftovers::parse_segments(texts.segments),
        kernel_stack: kernel::of_all(texts.machine[0], texts.machine[1]).unwrap_or(0),
        ..Found::default()
    };
    for (pid, (status, mappings)) in (1..).zip(texts.processes) {
        let own = kernel::parse(status, counters.page);
        let memory = smaps::parse(mappings.as_bytes()).map(|(memory, _)| memory).unwrap_or_default();
        found.processes.push(FoundProcess {
            pid,
            threads: status.lines().count() as u64,
            page_tables: own.page_tables,
            hugetlb: own.hugetlb,
            swap: can_be(memory.swap_pss_bytes).unwrap_or(0),
            ..FoundProcess::default()
        });
    }
    let (root, beside) = tree::build(&counters, &found);
    Accounting { root, beside, usage_after_bytes: 0, elsewhere_bytes: 0, took_us: 0, gaps: found.gaps }
}

/// Panics unless each node is its children, but for what it says that they are more.
pub fn assert_adds_up(accounting: &Accounting) {
    let nodes = accounting.beside.iter().chain([&accounting.root]);
    nodes.for_each(|node| {
        node.walk(&mut |node: &AccountNode, _| {
            let parts: u64 = node.children.iter().map(|part| part.bytes).sum();
            assert!(node.children.is_empty() || parts == node.bytes + node.excess_bytes, "{node:#?}");
            assert!(node.children.iter().all(|part| part.bytes > 0 && !part.source.is_empty()), "{node:#?}");
        });
    });
    let (explained, unexplained) = accounting.sums();
    assert!(explained + unexplained >= accounting.root.bytes, "the leaves are no less than the whole");
}

/// Bytes of entries of a page map that `kpagecgroup` says are charged to these inodes: of
/// pages that are the process's own, common, of files, and charged elsewhere; the first time
/// that they are counted, and the second.
#[must_use]
pub fn count_pages(entries: &[u64], kpagecgroup: File, ours: Vec<u64>) -> [[u64; 4]; 2] {
    let entries: Vec<Entry> = entries.iter().map(|&entry| Entry(entry)).collect();
    let mut pages = Pages::new(Charges::by(kpagecgroup, ours), Instant::now() + Duration::from_secs(60));
    [(); 2].map(|()| {
        let mut seen = Seen::default();
        entries.chunks(4096).for_each(|entries| pages.count(entries, &mut seen));
        [seen.own, seen.common, seen.filed, seen.elsewhere]
    })
}

/// How many mounts of tmpfs a mountinfo has, and whether a mapping of a device and a name
/// lies in one.
#[must_use]
pub fn mounts(mountinfo: &str, device: &str, name: &str) -> (usize, bool) {
    let mounts = Mounts::parse(mountinfo);
    (mounts.tmpfs.len(), mounts.of_mapping(device, name) == super::mounts::Kind::Tmpfs)
}
