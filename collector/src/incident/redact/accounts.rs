//! Of what a memcg is charged for: sizes stay, owners lose their names.

use super::words::Redactor;
use crate::incident::accounting::{AccountNode, Accounting, Owner};

/// Calls `add` for names that the nodes' texts could have in them.
pub(super) fn collect(accounting: &Accounting, add: &mut dyn FnMut(&str)) {
    for node in accounting.beside.iter().chain([&accounting.root]) {
        node.walk(&mut |node, _| match &node.owner {
            Some(Owner::Process { comm, .. }) => add(comm),
            Some(Owner::File { path, .. }) => add(path),
            Some(Owner::Sockets { peer, .. }) => add(peer),
            Some(Owner::Mapping { .. }) | None => {}
        });
    }
}

impl Redactor<'_> {
    pub(super) fn accounting(&self, accounting: Accounting) -> Accounting {
        let Accounting { root, beside, usage_after_bytes, elsewhere_bytes, took_us, gaps } = accounting;
        Accounting {
            root: self.node(root),
            beside: beside.into_iter().map(|node| self.node(node)).collect(),
            usage_after_bytes,
            elsewhere_bytes,
            took_us,
            gaps: gaps.iter().map(|gap| self.sentence(gap)).collect(),
        }
    }

    fn node(&self, node: AccountNode) -> AccountNode {
        let AccountNode { what, bytes, kind, source, owner, excess_bytes, children } = node;
        AccountNode {
            what: self.sentence(&what),
            bytes,
            kind,
            source: self.sentence(&source),
            owner: owner.map(|owner| self.owner(owner)),
            excess_bytes,
            children: children.into_iter().map(|child| self.node(child)).collect(),
        }
    }

    fn owner(&self, owner: Owner) -> Owner {
        match owner {
            Owner::Process { pid, comm } => Owner::Process { pid, comm: self.path(&comm) },
            Owner::Mapping { pid, start, end } => Owner::Mapping { pid, start, end },
            Owner::File { path, inode, pids, holders } => Owner::File { path: self.path(&path), inode, pids, holders },
            Owner::Sockets { peer, sockets, pids } => Owner::Sockets { peer: self.path(&peer), sockets, pids },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incident::redact::Key;
    use std::collections::BTreeSet;

    fn accounting() -> Accounting {
        let file = |path: &str| Owner::File { path: path.to_owned(), inode: 5, pids: vec![7], holders: 1 };
        let process = Owner::Process { pid: 7, comm: "my shop".to_owned() };
        let mapping = Owner::Mapping { pid: 7, start: 4096, end: 8192 };
        let peer = Owner::Sockets { peer: "10.0.0.1:80".to_owned(), sockets: 1, pids: vec![7] };
        let leaf = |what: &str, owner: Owner| AccountNode::leaf(what, 10, "pagemap and kpagecgroup").owned(owner);
        let parts = vec![
            AccountNode { children: vec![leaf("[anon: acme]", mapping)], ..leaf("my shop [7]", process) },
            leaf("/dev/shm/acme", file("/dev/shm/acme")),
            leaf("/memfd:x y (deleted)", file("/memfd:x y (deleted)")),
            leaf("1 socket to 10.0.0.1:80", peer),
        ];
        let rest =
            AccountNode::unexplained("in no counter that this kernel has", 0, "what no counter of memory.stat has");
        Accounting {
            root: AccountNode::leaf("all that is charged", 100, "memory.current").split(parts, rest),
            beside: Vec::new(),
            usage_after_bytes: 100,
            elsewhere_bytes: 0,
            took_us: 1,
            gaps: vec!["my shop [7]: its pages: gone".to_owned()],
        }
    }

    #[test]
    fn names_go_and_sizes_and_our_own_words_stay() {
        let mut names = BTreeSet::new();
        collect(&accounting(), &mut |name| {
            names.insert(name.to_owned());
        });
        let key = Key::from_bytes(b"a key of some length");
        let redacted = Redactor::new(&key, names).accounting(accounting());
        let text = serde_json::to_string(&redacted).unwrap();
        for name in ["shop", "acme", "10.0.0.1", "memfd", "x y", "shm"] {
            assert!(!text.contains(name), "{name} in {text}");
        }
        assert_eq!(redacted.sums(), accounting().sums());
        let AccountNode { what, source, children, .. } = &redacted.root;
        assert_eq!((what.as_str(), source.as_str()), ("all that is charged", "memory.current"));
        let whats: Vec<&str> = children.iter().map(|child| child.what.as_str()).collect();
        assert!(whats.contains(&"in no counter that this kernel has"), "{whats:?}");
        assert!(whats.iter().any(|what| what.ends_with(" [7]") && what.len() == 16), "{whats:?}");
        assert!(whats.iter().any(|what| what.starts_with("1 socket to ")), "{whats:?}");
        assert!(whats.iter().any(|what| what.ends_with(" (deleted)")), "{whats:?}");
        assert!(children.iter().any(|child| child.source == "pagemap and kpagecgroup"), "{children:?}");
    }
}
