//! From counters and what was found to a tree that adds up.
//!
//! What the kernel counts gives the nodes their sizes; what was found is put below. A
//! part that nobody found is a node of its own.

mod kernel;
mod parts;

use super::counters::Counters;
use super::found::{Family, Found, FoundFile, FoundProcess};
use super::mounts::Kind;
use crate::cgroup::Version;
use crate::incident::accounting::{AccountNode, HOLDERS, Owner};
use crate::incident::units::{bytes, count};
use kernel::kernel_memory;
use parts::{by_process, fit, keep, of_process, sockets, sum};

/// What is less than this part of all is told together.
const LEAST: u64 = 2_000;

const PAGES: &str = "pagemap and kpagecgroup";
const CACHED: &str = "pagemap, mincore(2) and kpagecgroup";

/// The tree of what is charged, and nodes for what is counted elsewhere.
#[must_use]
pub fn build(counters: &Counters, found: &Found) -> (AccountNode, Vec<AccountNode>) {
    let least = counters.usage / LEAST;
    let mut parts = vec![
        anonymous(counters, found, least),
        shared_memory(counters, found, least),
        page_cache(counters, found, least),
        kernel_memory(counters, found, least),
        sockets_of_the_network(counters, found, least),
        huge_pages(counters, found),
    ];
    let sum = sum(&parts);
    // The root of version 2 has no memory.current.
    let usage = if counters.usage == 0 { sum } else { counters.usage };
    let source = match counters.version {
        Version::V1 => "memory.usage_in_bytes",
        Version::V2 => "memory.current",
    };
    let at_most = counters.ahead_at_most();
    let ahead = usage.saturating_sub(sum).min(at_most);
    parts.push(AccountNode::unexplained(
        format!("charged in advance by CPUs (up to {})", bytes(at_most)),
        ahead,
        "what no counter of memory.stat has",
    ));
    let rest = AccountNode::unexplained("in no counter that this kernel has", 0, "what no counter of memory.stat has");
    let root = AccountNode::leaf("all that is charged", usage, source).split(parts, rest);
    (root, beside(counters, found, least))
}

fn anonymous(counters: &Counters, found: &Found, least: u64) -> AccountNode {
    let mut parts: Vec<AccountNode> = found.processes.iter().map(|process| own_pages(process, least)).collect();
    parts = keep(parts, least, "smaller processes");
    let common: u64 = found.common.values().sum();
    let names = found.common.iter().map(|(name, bytes)| AccountNode::leaf(name, *bytes, PAGES)).collect();
    parts.push(
        AccountNode::leaf("pages that processes have in common", common, PAGES)
            .split(keep(names, least, "other mappings"), AccountNode::default()),
    );
    let source = counters.source("rss", "anon");
    let rest =
        AccountNode::unexplained("in no page table that was looked at", 0, format!("{source}, less what was found"));
    AccountNode::leaf("anonymous memory", counters.anon(), source).split(parts, rest)
}

fn own_pages(process: &FoundProcess, least: u64) -> AccountNode {
    let mappings = process.anonymous.iter().map(|mapping| {
        let what = match mapping.mappings {
            1 => mapping.name.clone(),
            n => format!("{} ({})", mapping.name, count(n, "mapping")),
        };
        let node = AccountNode::leaf(what, mapping.bytes, PAGES);
        match mapping.range {
            Some((start, end)) => node.owned(Owner::Mapping { pid: process.pid, start, end }),
            None => node,
        }
    });
    let mappings: Vec<_> = mappings.collect();
    let sum = mappings.iter().map(|mapping| mapping.bytes).sum();
    of_process(process, sum, PAGES).split(keep(mappings, least, "smaller mappings"), AccountNode::default())
}

fn shared_memory(counters: &Counters, found: &Found, least: u64) -> AccountNode {
    let sure = files(found, |kind| kind == Kind::Tmpfs);
    let left = counters.shmem().saturating_sub(sum(&sure));
    let mut claims = unsure(found, |kind| kind == Kind::Tmpfs);
    // Who is charged for a segment nobody tells: it counts as far as there is room.
    claims.extend(found.segments.iter().map(|(name, bytes)| AccountNode::leaf(name, *bytes, "/proc/sysvipc/shm")));
    let parts = sure.into_iter().chain(fit(claims, left)).collect();
    let source = counters.source("shmem", "shmem");
    let rest =
        AccountNode::unexplained("of files that nobody here has open", 0, format!("{source}, less what was found"));
    AccountNode::leaf("tmpfs and shared memory", counters.shmem(), source)
        .split(keep(parts, least, "smaller files"), rest)
}

fn page_cache(counters: &Counters, found: &Found, least: u64) -> AccountNode {
    let is_cache = |kind| matches!(kind, Kind::Local | Kind::Layered | Kind::Other);
    let sure = files(found, is_cache);
    let left = counters.cache().saturating_sub(sum(&sure));
    let parts = sure.into_iter().chain(fit(unsure(found, is_cache), left)).collect();
    let source = counters.source("cache - total_shmem", "file - shmem");
    let (dirty, writeback) = counters.dirty();
    let mut rest = AccountNode::unexplained(
        "of files that nobody here has open or mapped",
        0,
        format!("{source}, less what was found"),
    );
    if dirty + writeback > 0 {
        rest.source.push_str(&format!(
            "; of the whole page cache {} is dirty and {} is being written",
            bytes(dirty),
            bytes(writeback)
        ));
    }
    AccountNode::leaf("page cache", counters.cache(), source).split(keep(parts, least, "smaller files"), rest)
}

/// Pages of files, which are known to be charged here.
fn files(found: &Found, is_kind: impl Fn(Kind) -> bool) -> Vec<AccountNode> {
    let of_kind = found.files.iter().filter(|(_, file)| file.kind.is_some_and(&is_kind) && file.bytes > 0);
    of_kind
        .map(|(key, file)| {
            let source = if file.is_looked_at { CACHED } else { PAGES };
            let dirty = AccountNode::leaf("to be written", file.dirty.min(file.bytes), "cachestat(2)");
            let clean = AccountNode::leaf("clean", 0, "cachestat(2)");
            // tmpfs is never written, and so always dirty.
            let parts = if file.kind == Some(Kind::Tmpfs) { Vec::new() } else { vec![dirty] };
            let node = AccountNode::leaf(&file.path, file.bytes, source).owned(owner(key.inode, file));
            node.split(parts, clean)
        })
        .collect()
}

/// Pages of files of which nobody told who is charged.
fn unsure(found: &Found, is_kind: impl Fn(Kind) -> bool) -> Vec<AccountNode> {
    let of_kind = found.files.iter().filter(|(_, file)| file.kind.is_some_and(&is_kind) && file.unsure > 0);
    of_kind
        .map(|(key, file)| {
            let what = format!("{} (whoever is charged)", file.path);
            AccountNode::leaf(what, file.unsure, "cachestat(2)").owned(owner(key.inode, file))
        })
        .collect()
}

fn owner(inode: u64, file: &FoundFile) -> Owner {
    Owner::File {
        path: file.path.clone(),
        inode,
        pids: file.pids.iter().copied().take(HOLDERS).collect(),
        holders: file.pids.len() as u64,
    }
}

/// Buffers that version 2 counts; in version 1 they are beside.
fn sockets_of_the_network(counters: &Counters, found: &Found, least: u64) -> AccountNode {
    let total = counters.kernel_part("sock").unwrap_or(0);
    let parts = fit(keep(sockets(found, Family::Network), least, "smaller sockets"), total);
    let rest =
        AccountNode::unexplained("of sockets that nobody here has open", 0, "memory.stat: sock, less what was found");
    AccountNode::leaf("network buffers", total, "memory.stat: sock").split(parts, rest)
}

/// hugetlb, where it is charged (mount option memory_hugetlb_accounting, since 6.7).
fn huge_pages(counters: &Counters, found: &Found) -> AccountNode {
    let total = counters.kernel_part("hugetlb").unwrap_or(0);
    let parts = fit(by_process(found, |process| process.hugetlb, "HugetlbPages of /proc/PID/status"), total);
    let rest = AccountNode::unexplained("of nobody here", 0, "memory.stat: hugetlb, less what was found");
    AccountNode::leaf("huge pages of hugetlb", total, "memory.stat: hugetlb").split(parts, rest)
}

fn beside(counters: &Counters, found: &Found, least: u64) -> Vec<AccountNode> {
    let mut beside = Vec::new();
    let source = match counters.version {
        Version::V1 => "memory.stat: total_swap",
        Version::V2 => "memory.swap.current",
    };
    let parts = fit(by_process(found, |process| process.swap, "SwapPss of /proc/PID/smaps"), counters.swapped());
    let rest = AccountNode::unexplained("of nobody here", 0, format!("{source}, less what was found"));
    beside.push(
        AccountNode::leaf("swapped out", counters.swapped(), source)
            .split(keep(parts, least, "smaller processes"), rest),
    );
    if let Some(tcp) = counters.tcp {
        let parts = fit(keep(sockets(found, Family::Network), least, "smaller sockets"), tcp);
        let source = "memory.kmem.tcp.usage_in_bytes";
        let rest = AccountNode::unexplained(
            "of sockets that nobody here has open",
            0,
            format!("{source}, less what was found"),
        );
        beside.push(AccountNode::leaf("TCP buffers (version 1 does not charge them)", tcp, source).split(parts, rest));
    }
    if counters.kernel_part("hugetlb").is_none() {
        let parts = by_process(found, |process| process.hugetlb, "HugetlbPages of /proc/PID/status");
        let node = AccountNode::leaf("huge pages of hugetlb, mapped (not charged)", sum(&parts), "as its parts");
        beside.push(node.split(parts, AccountNode::default()));
    }
    beside.retain(|node| node.bytes > 0);
    beside
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounting::counters::tests::of;
    use crate::accounting::found::{FileKey, FoundMapping, FoundSockets};
    use crate::incident::accounting::AccountKind;

    const MIB: u64 = 1 << 20;
    const ELSEWHERE: &str = "in no counter that this kernel has";

    /// Each node is its children, but for what it says that they are more; the leaves
    /// are the root.
    fn assert_adds_up(root: &AccountNode) {
        root.walk(&mut |node, _| {
            if !node.children.is_empty() {
                assert_eq!(sum(&node.children), node.bytes + node.excess_bytes, "{node:#?}");
            }
            assert!(node.bytes > 0 && !node.source.is_empty(), "{node:#?}");
        });
    }

    fn find<'n>(root: &'n AccountNode, what: &str) -> &'n AccountNode {
        let mut found = None;
        root.walk(&mut |node, _| {
            if found.is_none() && node.what.starts_with(what) {
                found = Some(node);
            }
        });
        found.unwrap_or_else(|| panic!("no {what:?} in {root:#?}"))
    }

    fn process(pid: i32, anonymous: u64) -> FoundProcess {
        let mapping = FoundMapping {
            name: "[heap]".to_owned(),
            range: Some((0x1000, 0x1000 + anonymous)),
            mappings: 1,
            bytes: anonymous,
        };
        FoundProcess {
            pid,
            comm: "victim".to_owned(),
            anonymous: vec![mapping],
            threads: 4,
            page_tables: MIB,
            ..FoundProcess::default()
        }
    }

    fn file(found: &mut Found, path: &str, kind: Kind, bytes: u64) {
        let key = FileKey { device: "00:01".to_owned(), inode: found.files.len() as u64 };
        let pids = (1..100).collect();
        found
            .files
            .insert(key, FoundFile { path: path.to_owned(), kind: Some(kind), bytes, pids, ..FoundFile::default() });
    }

    /// What a host with version 1 gave while a program had 64 MiB and a file.
    const V1: &str =
        "cache 20971520\ntotal_cache 20971520\ntotal_rss 67108864\ntotal_shmem 16777216\ntotal_dirty 1048576\n";

    #[test]
    fn version_one_with_an_owner_for_each_part() {
        let counters = of(Version::V1, 96 * MIB, V1, Some(7 * MIB));
        let mut found = Found { kernel_stack: 16384, ..Found::default() };
        found.processes = vec![process(7, 40 * MIB), process(8, 8 * MIB)];
        found.common.insert("[heap]".to_owned(), 16 * MIB);
        file(&mut found, "/memfd:x", Kind::Tmpfs, 15 * MIB);
        file(&mut found, "/var/log/x", Kind::Local, 3 * MIB);
        found.sockets.insert((Family::Kernel, String::new()), FoundSockets { sockets: 3, bytes: MIB, pids: vec![7] });
        let (root, beside) = build(&counters, &found);
        assert_adds_up(&root);
        assert_eq!((root.bytes, root.excess_bytes, beside.len()), (96 * MIB, 0, 0));
        let parts: Vec<_> = root.children.iter().map(|c| (c.what.as_str(), c.bytes / MIB)).collect();
        assert_eq!(
            parts[..4],
            [("anonymous memory", 64), ("tmpfs and shared memory", 16), ("kernel memory", 7), (ELSEWHERE, 4)]
        );
        assert_eq!(find(&root, "page cache").bytes, 4 * MIB);
        assert_eq!(find(&root, "victim [7]").bytes, 40 * MIB);
        assert_eq!(find(&root, "pages that").children[0].bytes, 16 * MIB);
        let memfd = find(&root, "/memfd:x");
        let Some(Owner::File { pids, holders: 99, .. }) = &memfd.owner else { panic!("{memfd:?}") };
        assert_eq!((memfd.bytes, pids.len()), (15 * MIB, HOLDERS));
        // 3 MiB of tables, stacks and sockets are known of 7.
        let unknown = find(&root, "slab, per-CPU");
        assert_eq!((unknown.kind, unknown.bytes), (AccountKind::Unexplained, 7 * MIB - 3 * MIB - 8 * 16384));
        // What CPUs can have charged ahead, and what nobody can explain.
        assert_eq!(find(&root, "charged in advance").bytes, counters.ahead_at_most());
        assert_eq!(find(&root, "in no counter").bytes, 5 * MIB - counters.ahead_at_most());
        assert!(find(&root, "of files that nobody here has open or mapped").source.contains("1.0 MiB is dirty"));
    }

    const V2: &str = "anon 10485760\nfile 5242880\nkernel 8388608\nkernel_stack 131072\npagetables 2097152\n\
        sec_pagetables 0\npercpu 4096\nsock 3145728\nvmalloc 8192\nshmem 1048576\nzswap 0\nslab_reclaimable 1048576\n\
        slab_unreclaimable 2097152\nslab 3145728\n";

    #[test]
    fn version_two_with_the_kernels_own_parts() {
        let usage = (10 + 5 + 8 + 3) * MIB;
        let counters = of(Version::V2, usage, V2, None);
        let mut found = Found { kernel_stack: 16384, pipes: (MIB, 16), ..Found::default() };
        found.processes = vec![process(7, 10 * MIB)];
        let peer = (Family::Network, "10.0.0.1:80".to_owned());
        found.sockets.insert(peer, FoundSockets { sockets: 1, bytes: 2 * MIB, pids: vec![7] });
        let (root, _) = build(&counters, &found);
        assert_adds_up(&root);
        assert_eq!(find(&root, "1 socket to 10.0.0.1:80").bytes, 2 * MIB);
        assert_eq!(find(&root, "of sockets that nobody").bytes, MIB);
        assert_eq!(find(&root, "kernel stacks").children.iter().map(|c| c.bytes).collect::<Vec<_>>(), [65536, 65536]);
        assert_eq!(find(&root, "slab, not reclaimable").bytes, 2 * MIB);
        assert_eq!(find(&root, "unix sockets and pipes").bytes, MIB);
        let known = 131_072 + 2 * MIB + 4096 + 8192 + 3 * MIB + MIB;
        assert_eq!(find(&root, "other kernel memory").bytes, 8 * MIB - known);
    }

    #[test]
    fn an_old_kernel_a_root_and_nothing_at_all() {
        // Before 5.18 the parts are the whole; the root has no memory.current.
        let old = V2.replace("kernel 8388608\n", "");
        let (root, _) = build(&of(Version::V2, 0, &old, None), &Found::default());
        assert_adds_up(&root);
        assert_eq!(find(&root, "kernel memory").bytes, 131_072 + 2 * MIB + 4096 + 8192 + 3 * MIB);
        assert_eq!(root.bytes, sum(&root.children));
        for version in [Version::V1, Version::V2] {
            let (root, beside) = build(&of(version, 64 * MIB, "", None), &Found::default());
            assert_adds_up(&root);
            assert!(root.children.iter().all(|c| c.kind == AccountKind::Unexplained) && beside.is_empty());
            let (root, _) = build(&of(version, 0, "", None), &Found::default());
            assert_eq!((root.bytes, root.children.len()), (0, 0));
        }
    }

    #[test]
    fn what_is_not_known_to_be_charged_is_no_more_than_there_is() {
        let counters = of(Version::V1, 20 * MIB, "total_cache 10485760\ntotal_shmem 4194304\n", Some(2 * MIB));
        let mut found = Found { kernel_stack: 16384, ..Found::default() };
        found.processes = vec![process(7, 0), process(8, 0), process(9, 0)];
        found.segments = vec![("SysV segment 0".to_owned(), 6 * MIB), ("SysV segment 1".to_owned(), 2 * MIB)];
        file(&mut found, "/log", Kind::Local, MIB);
        found.files.values_mut().for_each(|file| file.unsure = 100 * MIB);
        let (root, _) = build(&counters, &found);
        assert_adds_up(&root);
        assert_eq!((find(&root, "SysV segment 0").bytes, find(&root, "SysV segment 1").bytes), (3 * MIB, MIB));
        assert_eq!(find(&root, "/log (whoever is charged)").bytes, 5 * MIB);
        let tables = find(&root, "page tables");
        assert!(tables.bytes < 2 * MIB && tables.children.len() == 3, "{tables:#?}");
        // Pages are counted: too many of them are told, not hidden.
        found.processes = vec![process(7, 3 * MIB)];
        let (root, _) = build(&of(Version::V1, 20 * MIB, "total_rss 1048576\n", None), &found);
        assert_eq!(find(&root, "anonymous memory").excess_bytes, 2 * MIB);
    }

    #[test]
    fn thousands_of_parts_are_some() {
        let counters = of(Version::V2, 1 << 30, "anon 1073741824\nfile 536870912\n", None);
        let processes = (0..3000).map(|pid| process(pid, (u64::from(pid % 7 == 0) * 2 + 1) << 16)).collect();
        let mut found = Found { processes, ..Found::default() };
        (0..5000).for_each(|index| file(&mut found, &format!("/f/{index}"), Kind::Local, 65536));
        let (root, _) = build(&counters, &found);
        assert_adds_up(&root);
        let mut nodes = 0;
        root.walk(&mut |_, _| nodes += 1);
        assert!(nodes < 300, "{nodes}");
        assert_eq!(find(&root, "page cache").children[0].what, "5000 smaller files");
    }
}
