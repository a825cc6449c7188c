//! Kernel memory: counted by its parts in version 2, guessed from what is known of
//! processes in version 1.

use super::parts::{by_process, fit, keep, sockets, sum};
use crate::accounting::counters::Counters;
use crate::accounting::found::{Family, Found};
use crate::cgroup::Version;
use crate::incident::accounting::AccountNode;
use crate::incident::units::count;

/// All that the kernel has for the memcg, but for network buffers.
pub fn kernel_memory(counters: &Counters, found: &Found, least: u64) -> AccountNode {
    let stacks = by_process(found, |process| process.threads * found.kernel_stack, "threads, of /proc/PID/task");
    let tables = by_process(found, |process| process.page_tables, "VmPTE of /proc/PID/status");
    let mut buffers = sockets(found, Family::Kernel);
    let (in_pipes, pipes) = found.pipes;
    buffers.push(AccountNode::leaf(count(pipes, "pipe"), in_pipes, "FIONREAD"));
    let buffers = keep(buffers, least, "smaller sockets");

    if counters.version == Version::V2 {
        return kernel_parts(counters, stacks, tables, buffers, least);
    }
    let total = counters.kernel().unwrap_or(0);
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
    let total = counters.kernel().unwrap_or(known);
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
