//! Where every charged byte went, as plain data: a tree that adds up.
//!
//! A node with children is at least their sum; what they do not explain is a child
//! of its own. So the leaves add up to the root, which is what the kernel charges,
//! but for what `excess_bytes` tells.

use serde::{Deserialize, Serialize};

/// What a memcg is charged for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Accounting {
    /// All of it: `memory.current` or `memory.usage_in_bytes` when the look began.
    pub root: AccountNode,
    /// What is counted elsewhere: swap, and what the version has counters of its own
    /// for.
    pub beside: Vec<AccountNode>,
    /// Charged when the look ended: what changed meanwhile is in no node.
    pub usage_after_bytes: u64,
    /// Mapped or cached by these processes' files and charged to other memcgs.
    pub elsewhere_bytes: u64,
    /// What the look took.
    pub took_us: u64,
    /// What could not be looked at, each a sentence.
    pub gaps: Vec<String>,
}

/// A part of what is charged.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AccountNode {
    /// What it is, for people.
    pub what: String,
    /// How much.
    pub bytes: u64,
    /// Whether it is known what it is for.
    pub kind: AccountKind,
    /// File and key of the counter, or how it was counted.
    pub source: String,
    /// Whose it is, where it has an owner.
    pub owner: Option<Owner>,
    /// What the children are more than `bytes`: counters of the kernel are late by
    /// some pages, and what moves is counted twice. 0 mostly.
    pub excess_bytes: u64,
    /// Its parts, the biggest first.
    pub children: Vec<AccountNode>,
}

/// Whether something is known of a part of the charge.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccountKind {
    /// It is known what it is for.
    #[default]
    Explained,
    /// It has a name and a size, but what it is for is not known.
    Unexplained,
}

/// Whose a part of the charge is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Owner {
    /// A process.
    Process {
        /// In our PID namespace.
        pid: i32,
        /// Its name.
        comm: String,
    },
    /// A mapping of a process.
    Mapping {
        /// Of which.
        pid: i32,
        /// First address.
        start: u64,
        /// End, exclusive.
        end: u64,
    },
    /// A file.
    File {
        /// As the first process that has it sees it; " (deleted)" included.
        path: String,
        /// Its inode.
        inode: u64,
        /// Who has it open or mapped, at most [`HOLDERS`] of them.
        pids: Vec<i32>,
        /// How many have.
        holders: u64,
    },
    /// Sockets with the same other end.
    Sockets {
        /// Address and port, path, or empty where there is none.
        peer: String,
        /// How many.
        sockets: u64,
        /// Who has them, at most [`HOLDERS`] of them.
        pids: Vec<i32>,
    },
}

/// Most PIDs told of who holds something.
pub const HOLDERS: usize = 16;

impl AccountNode {
    /// A part without parts.
    #[must_use]
    pub fn leaf(what: impl Into<String>, bytes: u64, source: impl Into<String>) -> Self {
        AccountNode { what: what.into(), bytes, source: source.into(), ..AccountNode::default() }
    }

    /// The same, of which nobody knows what it is for.
    #[must_use]
    pub fn unexplained(what: impl Into<String>, bytes: u64, source: impl Into<String>) -> Self {
        AccountNode { kind: AccountKind::Unexplained, ..Self::leaf(what, bytes, source) }
    }

    /// With an owner.
    #[must_use]
    pub fn owned(mut self, owner: Owner) -> Self {
        self.owner = Some(owner);
        self
    }

    /// Splits it into those of `parts` that are not empty, and `rest`, whose size is
    /// what they leave. Without any part it stays whole, and is what the rest would
    /// have been.
    #[must_use]
    pub fn split(mut self, parts: Vec<AccountNode>, mut rest: AccountNode) -> Self {
        self.children = parts;
        self.children.retain(|part| part.bytes > 0);
        if self.children.is_empty() {
            self.kind = rest.kind;
            return self;
        }
        let sum: u64 = self.children.iter().map(|part| part.bytes).sum();
        self.excess_bytes = sum.saturating_sub(self.bytes);
        rest.bytes = self.bytes.saturating_sub(sum);
        if rest.bytes > 0 {
            self.children.push(rest);
        }
        self.children.sort_by_key(|child| std::cmp::Reverse(child.bytes));
        self
    }

    /// Calls `visit` for the node and all below it, parents first, with their depth.
    pub fn walk<'a>(&'a self, visit: &mut dyn FnMut(&'a AccountNode, usize)) {
        self.walk_from(0, visit);
    }

    fn walk_from<'a>(&'a self, depth: usize, visit: &mut dyn FnMut(&'a AccountNode, usize)) {
        visit(self, depth);
        self.children.iter().for_each(|child| child.walk_from(depth + 1, visit));
    }
}

impl Accounting {
    /// Bytes in leaves that are explained, and in those that are not.
    #[must_use]
    pub fn sums(&self) -> (u64, u64) {
        let (mut explained, mut unexplained) = (0, 0);
        self.root.walk(&mut |node, _| {
            if node.children.is_empty() {
                match node.kind {
                    AccountKind::Explained => explained += node.bytes,
                    AccountKind::Unexplained => unexplained += node.bytes,
                }
            }
        });
        (explained, unexplained)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest() -> AccountNode {
        AccountNode::unexplained("rest", 0, "")
    }

    #[test]
    fn the_leaves_add_up() {
        let parts =
            vec![AccountNode::leaf("a", 30, ""), AccountNode::leaf("none", 0, ""), AccountNode::leaf("b", 50, "")];
        let node = AccountNode::leaf("all", 100, "").split(parts, rest());
        let names: Vec<_> = node.children.iter().map(|c| (c.what.as_str(), c.bytes)).collect();
        assert_eq!(names, [("b", 50), ("a", 30), ("rest", 20)]);
        let accounting = Accounting {
            root: node,
            beside: Vec::new(),
            usage_after_bytes: 100,
            elsewhere_bytes: 0,
            took_us: 0,
            gaps: Vec::new(),
        };
        assert_eq!(accounting.sums(), (80, 20));
    }

    #[test]
    fn too_much_is_told_and_nothing_is_a_leaf() {
        let node = AccountNode::leaf("all", 10, "").split(vec![AccountNode::leaf("a", 14, "")], rest());
        assert_eq!((node.excess_bytes, node.children.len()), (4, 1));
        let node = AccountNode::leaf("all", 10, "").split(vec![AccountNode::leaf("a", 0, "")], rest());
        assert_eq!((node.kind, node.children.len()), (AccountKind::Unexplained, 0));
    }
}
