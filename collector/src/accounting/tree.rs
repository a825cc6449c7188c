//! From counters and what was found to a tree that adds up.
//!
//! What the kernel counts gives the nodes their sizes; what was found is put below. A
//! part that nobody found is a node of its own.

use super::counters::Counters;
use super::found::{Family, Found, FoundFile, FoundProcess};
use super::mounts::Kind;
use crate::cgroup::Version;
use crate::incident::accounting::{AccountKind, AccountNode, HOLDERS, Owner};
use crate::incident::units::{bytes, count};

/// Parts of one node told one by one, at most.
const MOST_PARTS: usize = 64;
/// What is less than this part of all is told together.
const LEAST: u64 = 2_000;

const PAGES: &str = "pagemap and kpagecgroup";
const CACHED: &str = "pagemap, mincore(2) and kpagecgroup";

/// The tree of what is charged, and nodes for what is counted elsewhere.
#[must_use]
pub fn build(counters: &Counters, found: &Found) -> (AccountNode, Vec<AccountNode>) {
    let least = counters.usage / LEAST;
    let parts = vec![
        anonymous(counters, found, least),
        shared_memory(counters, found, least),
        page_cache(counters, found, least),
        kernel_memory(counters, found, least),
        sockets_of_the_network(counters, found, least),
        huge_pages(counters, found),
    ];
    let sum: u64 = parts.iter().map(|part| part.bytes).sum();
    // The root of version 2 has no memory.current.
    let usage = if counters.usage == 0 { sum } else { counters.usage };
    let source = match counters.version {
        Version::V1 => "memory.usage_in_bytes",
        Version::V2 => "memory.current",
    };
    let at_most = counters.ahead_at_most();
    let ahead = usage.saturating_sub(sum).min(at_most);
    let mut parts = parts;
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
    let rest = AccountNode::unexplained("in no page table that was looked at", 0, format!("{source}, less what was found"));
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

fn of_process(process: &FoundProcess, bytes: u64, source: &str) -> AccountNode {
    AccountNode::leaf(format!("{} [{}]", process.comm, process.pid), bytes, source)
        .owned(Owner::Process { pid: process.pid, comm: process.comm.clone() })
}

fn shared_memory(counters: &Counters, found: &Found, least: u64) -> AccountNode {
    let sure = files(found, |kind| kind == Kind::Tmpfs);
    let left = counters.shmem().saturating_sub(sum(&sure));
    let mut claims = unsure(found, |kind| kind == Kind::Tmpfs);
    // Who made it is another word than who is charged; that little is told in its name.
    claims.extend(found.segments.iter().map(|(name, bytes)| AccountNode::leaf(name, *bytes, "/proc/sysvipc/shm")));
    let parts = sure.into_iter().chain(fit(claims, left)).collect();
    let source = counters.source("shmem", "shmem");
    let rest = AccountNode::unexplained("of files that nobody here has open", 0, format!("{source}, less what was found"));
    AccountNode::leaf("tmpfs and shared memory", counters.shmem(), source).split(keep(parts, least, "smaller files"), rest)
}

fn page_cache(counters: &Counters, found: &Found, least: u64) -> AccountNode {
    let is_cache = |kind| matches!(kind, Kind::Local | Kind::Other);
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
        rest.source.push_str(&format!("; of the whole page cache {} is dirty and {} is being written", bytes(dirty), bytes(writeback)));
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

fn kernel_memory(counters: &Counters, found: &Found, least: u64) -> AccountNode {
    let stacks = by_process(found, |process| process.threads * found.kernel_stack, "threads, of /proc/PID/task");
    let tables = by_process(found, |process| process.page_tables, "VmPTE of /proc/PID/status");
    let mut buffers = sockets(found, Family::Kernel);
    let (in_pipes, pipes) = found.pipes;
    buffers.push(AccountNode::leaf(count(pipes, "pipe"), in_pipes, "FIONREAD"));
    let buffers = keep(buffers, least, "smaller sockets");

    let Some(total) = counters.kernel() else { return kernel_parts(counters, stacks, tables, buffers, least, None) };
    if counters.version == Version::V2 {
        return kernel_parts(counters, stacks, tables, buffers, least, Some(total));
    }
    let group = |what: &str, parts: Vec<AccountNode>| {
        let node = AccountNode::leaf(what, sum(&parts), "as its parts");
        node.split(keep(parts, least, "smaller processes"), AccountNode::default())
    };
    let mut parts = vec![group("kernel stacks", stacks), group("page tables", tables)];
    parts.push(group("unix sockets and pipes", buffers));
    let source = "memory.kmem.usage_in_bytes";
    let rest = AccountNode::unexplained(
        "slab, per-CPU data, vmalloc (version 1 tells no more)",
        0,
        format!("{source}, less what was found"),
    );
    AccountNode::leaf("kernel memory", total, source).split(fit(parts, total), rest)
}

/// Kernel memory of version 2, which counts its parts.
fn kernel_parts(
    counters: &Counters,
    stacks: Vec<AccountNode>,
    tables: Vec<AccountNode>,
    buffers: Vec<AccountNode>,
    least: u64,
    total: Option<u64>,
) -> AccountNode {
    let counted = |what: &str, key: &str| {
        let bytes = counters.kernel_part(key).unwrap_or(0);
        AccountNode::leaf(what, bytes, format!("memory.stat: {key}"))
    };
    let with = |node: AccountNode, parts: Vec<AccountNode>, rest: &str| {
        let parts = fit(keep(parts, least, "smaller processes"), node.bytes);
        let rest = AccountNode::leaf(rest, 0, format!("{}, less what was found", node.source));
        node.split(parts, rest)
    };
    let mut parts = vec![
        with(counted("kernel stacks", "kernel_stack"), stacks, "of others"),
        with(counted("page tables", "pagetables"), tables, "of others"),
        counted("page tables of virtual machines", "sec_pagetables"),
        counted("per-CPU data", "percpu"),
        counted("vmalloc", "vmalloc"),
        counted("slab, reclaimable (dentries, inodes)", "slab_reclaimable"),
        counted("slab, not reclaimable", "slab_unreclaimable"),
        counted("compressed swap (zswap)", "zswap"),
    ];
    let known = sum(&parts);
    let total = total.unwrap_or(known);
    let left = total.saturating_sub(known);
    let buffers = fit(buffers, left);
    if !buffers.is_empty() {
        let node = AccountNode::leaf("unix sockets and pipes", sum(&buffers), "as its parts");
        parts.push(node.split(buffers, AccountNode::default()));
    }
    let source = "memory.stat: kernel";
    let rest = AccountNode::unexplained("other kernel memory", 0, format!("{source}, less its parts"));
    AccountNode::leaf("kernel memory", total, source).split(parts, rest)
}

fn by_process(found: &Found, bytes: impl Fn(&FoundProcess) -> u64, source: &str) -> Vec<AccountNode> {
    found.processes.iter().map(|process| of_process(process, bytes(process), source)).collect()
}

fn sockets(found: &Found, family: Family) -> Vec<AccountNode> {
    let of_family = found.sockets.iter().filter(|((of, _), _)| *of == family);
    of_family
        .map(|((_, peer), all)| {
            let who = if peer.is_empty() { "without a name".to_owned() } else { format!("to {peer}") };
            let owner = Owner::Sockets {
                peer: peer.clone(),
                sockets: all.sockets,
                pids: all.pids.iter().copied().take(HOLDERS).collect(),
            };
            AccountNode::leaf(format!("{} {who}", count(all.sockets, "socket")), all.bytes, "SO_MEMINFO").owned(owner)
        })
        .collect()
}

/// Buffers that version 2 counts; in version 1 they are beside.
fn sockets_of_the_network(counters: &Counters, found: &Found, least: u64) -> AccountNode {
    let total = counters.kernel_part("sock").unwrap_or(0);
    let parts = fit(keep(sockets(found, Family::Network), least, "smaller sockets"), total);
    let rest = AccountNode::unexplained("of sockets that nobody here has open", 0, "memory.stat: sock, less what was found");
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
    beside.push(AccountNode::leaf("swapped out", counters.swapped(), source).split(keep(parts, least, "smaller processes"), rest));
    if let Some(tcp) = counters.tcp {
        let parts = fit(keep(sockets(found, Family::Network), least, "smaller sockets"), tcp);
        let source = "memory.kmem.tcp.usage_in_bytes";
        let rest = AccountNode::unexplained("of sockets that nobody here has open", 0, format!("{source}, less what was found"));
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

fn sum(parts: &[AccountNode]) -> u64 {
    parts.iter().map(|part| part.bytes).sum()
}

/// Makes parts that are not known to be charged here no more than `total`, each by
/// its share; what is below them shrinks with them.
fn fit(mut parts: Vec<AccountNode>, total: u64) -> Vec<AccountNode> {
    parts.retain(|part| part.bytes > 0);
    let all = sum(&parts);
    if all > total {
        parts.iter_mut().for_each(|part| shrink(part, total, all));
        parts.retain(|part| part.bytes > 0);
    }
    parts
}

fn shrink(node: &mut AccountNode, to: u64, of: u64) {
    let share = |bytes: u64| (u128::from(bytes) * u128::from(to) / u128::from(of)) as u64;
    node.bytes = share(node.bytes);
    node.children.iter_mut().for_each(|child| shrink(child, to, of));
    // Rounding down leaves some bytes to none of them.
    let lost = node.bytes.saturating_sub(sum(&node.children));
    if let Some(first) = node.children.first_mut() {
        first.bytes += lost;
    }
}

/// The biggest parts one by one, the others together as `others`.
fn keep(mut parts: Vec<AccountNode>, least: u64, others: &str) -> Vec<AccountNode> {
    parts.retain(|part| part.bytes > 0);
    parts.sort_by_key(|part| std::cmp::Reverse(part.bytes));
    let kept = parts.iter().take(MOST_PARTS).take_while(|part| part.bytes > least).count();
    let small = parts.split_off(kept);
    if let Some(first) = small.first() {
        let bytes = sum(&small);
        let what = if small.len() == 1 { first.what.clone() } else { format!("{} {others}", small.len()) };
        let kind = if small.iter().any(|part| part.kind == AccountKind::Unexplained) {
            AccountKind::Unexplained
        } else {
            AccountKind::Explained
        };
        parts.push(AccountNode { kind, ..AccountNode::leaf(what, bytes, first.source.clone()) });
    }
    parts
}
