//! Lists of parts: made, kept short, and cut to what there is.

use crate::accounting::found::{Family, Found, FoundProcess};
use crate::incident::accounting::{AccountKind, AccountNode, HOLDERS, Owner};
use crate::incident::units::count;

/// Parts of one node told one by one, at most.
const MOST_PARTS: usize = 64;

/// A process, with what of it is meant.
pub fn of_process(process: &FoundProcess, bytes: u64, source: &str) -> AccountNode {
    AccountNode::leaf(format!("{} [{}]", process.comm, process.pid), bytes, source)
        .owned(Owner::Process { pid: process.pid, comm: process.comm.clone() })
}

/// All processes, each with what `bytes` says of it.
pub fn by_process(found: &Found, bytes: impl Fn(&FoundProcess) -> u64, source: &str) -> Vec<AccountNode> {
    found.processes.iter().map(|process| of_process(process, bytes(process), source)).collect()
}

/// Sockets of a family, by their other end.
pub fn sockets(found: &Found, family: Family) -> Vec<AccountNode> {
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

/// Bytes of all of them.
pub fn sum(parts: &[AccountNode]) -> u64 {
    parts.iter().map(|part| part.bytes).sum()
}

/// Makes parts that are not known to be charged here no more than `total`, each by
/// its share; what is below them shrinks with them.
pub fn fit(mut parts: Vec<AccountNode>, total: u64) -> Vec<AccountNode> {
    parts.retain(|part| part.bytes > 0);
    let all = sum(&parts);
    if all > total {
        parts.iter_mut().for_each(|part| shrink(part, total, all));
        parts.retain(|part| part.bytes > 0);
    }
    parts
}

fn shrink(node: &mut AccountNode, to: u64, of: u64) {
    node.bytes = (u128::from(node.bytes) * u128::from(to) / u128::from(of)) as u64;
    node.children.iter_mut().for_each(|child| shrink(child, to, of));
    node.children.retain(|child| child.bytes > 0);
    // Rounding down leaves some bytes to none of them.
    let lost = node.bytes.saturating_sub(sum(&node.children));
    if let Some(first) = node.children.first_mut() {
        first.bytes += lost;
    }
}

/// The biggest parts one by one, the others together as `others`.
pub fn keep(mut parts: Vec<AccountNode>, least: u64, others: &str) -> Vec<AccountNode> {
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
