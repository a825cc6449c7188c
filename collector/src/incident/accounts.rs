//! The accounting for readers: rows of a table, a sentence, and a profile.

use super::accounting::{AccountKind, AccountNode, Accounting};
use super::model::Incident;
use super::units::{bytes, count, micros};
use reprieve_flamegraph::{Frame, FrameKind, Profile, Sample, SampleType};

/// What has a row of its own: what is 0.1 % of the whole when it is rounded.
const LEAST_SHARE: f64 = 0.0005;
/// Parts of one node that are shown; the others are told by their number.
const PARTS: usize = 6;

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountRow {
    /// Size, for people.
    pub bytes: String,
    /// Share of the whole, for people; empty beside it.
    pub share: String,
    /// How deep in the tree.
    pub depth: usize,
    /// What it is.
    pub what: String,
    /// Counter, or how it was counted.
    pub source: String,
    /// Whether it is not known what it is for.
    pub is_unexplained: bool,
}

/// What has no row of its own: too small for one.
#[derive(Debug, Default)]
struct Crumbs {
    parts: usize,
    bytes: u64,
    unexplained_bytes: u64,
}

impl Crumbs {
    fn add(&mut self, nodes: &[&AccountNode]) {
        self.parts += nodes.len();
        self.bytes += nodes.iter().map(|node| node.bytes).sum::<u64>();
        self.unexplained_bytes += nodes.iter().map(|node| unexplained_bytes(node)).sum::<u64>();
    }

    fn row(&self, whole: u64) -> AccountRow {
        let of_which = match self.unexplained_bytes {
            0 => String::new(),
            unexplained => format!(", {} of it without explanation", bytes(unexplained)),
        };
        AccountRow {
            bytes: bytes(self.bytes),
            share: percent(self.bytes, whole),
            depth: 1,
            what: format!("{} of less than 0.05 % each{of_which}", count(self.parts as u64, "part")),
            source: String::new(),
            is_unexplained: false,
        }
    }
}

/// Rows in the order of the tree, then one for what is too small for its own: those
/// that nothing is below add up to the whole. What is beside it comes last.
#[must_use]
pub fn rows(incident: &Incident) -> Vec<AccountRow> {
    let Some(accounting) = &incident.accounting else { return Vec::new() };
    let mut rows = Vec::new();
    let mut crumbs = Crumbs::default();
    add(&accounting.root, 0, Some(accounting.root.bytes), &mut rows, &mut crumbs);
    if crumbs.bytes > 0 {
        rows.push(crumbs.row(accounting.root.bytes));
    }
    // Of what has no whole nothing is too small.
    accounting.beside.iter().for_each(|node| add(node, 0, None, &mut rows, &mut Crumbs::default()));
    rows
}

fn add(node: &AccountNode, depth: usize, whole: Option<u64>, rows: &mut Vec<AccountRow>, crumbs: &mut Crumbs) {
    let share = |bytes: u64| whole.map_or(String::new(), |whole| percent(bytes, whole));
    rows.push(AccountRow {
        bytes: bytes(node.bytes),
        share: share(node.bytes),
        depth,
        what: node.what.clone(),
        source: node.source.clone(),
        is_unexplained: node.kind == AccountKind::Unexplained,
    });
    let is_row = |bytes: u64| whole.is_none_or(|whole| has_row(bytes, whole));
    let kept = node.children.iter().take(PARTS).take_while(|child| is_row(child.bytes)).count();
    node.children[..kept].iter().for_each(|child| add(child, depth + 1, whole, rows, crumbs));
    // An unexplained one is not told by its number alone if it has a size to speak of.
    let (unexplained, others): (Vec<_>, Vec<_>) =
        node.children[kept..].iter().partition(|node| node.kind == AccountKind::Unexplained && is_row(node.bytes));
    let more: u64 = others.iter().map(|child| child.bytes).sum();
    if more > 0 && is_row(more) {
        rows.push(AccountRow {
            bytes: bytes(more),
            share: share(more),
            depth: depth + 1,
            what: format!("{} more", others.len()),
            source: String::new(),
            is_unexplained: false,
        });
    } else if kept + unexplained.len() > 0 {
        crumbs.add(&others);
    } // Else nothing is below the node's own row, which tells of them all.
    unexplained.into_iter().for_each(|child| add(child, depth + 1, whole, rows, crumbs));
}

fn has_row(bytes: u64, whole: u64) -> bool {
    bytes as f64 >= whole as f64 * LEAST_SHARE
}

/// A share for people. What is too small for a row may be so in sum, too.
fn percent(bytes: u64, whole: u64) -> String {
    if bytes < whole && !has_row(bytes, whole) {
        return "< 0.1 %".to_owned();
    }
    format!("{:.1} %", bytes as f64 / whole.max(1) as f64 * 100.0)
}

/// Bytes in leaves that are not explained.
fn unexplained_bytes(node: &AccountNode) -> u64 {
    let mut sum = 0;
    node.walk(&mut |node, _| {
        if node.children.is_empty() && node.kind == AccountKind::Unexplained {
            sum += node.bytes;
        }
    });
    sum
}

/// What it came to, in one sentence; `None` without a memcg.
#[must_use]
pub fn line(incident: &Incident) -> Option<String> {
    let accounting = incident.accounting.as_ref()?;
    let (explained, unexplained) = accounting.sums();
    let whole = accounting.root.bytes.max(1) as f64;
    let mut line = format!(
        "{} explained, {:.1} % of what is charged; {} has a name and no explanation; looked at in {}",
        bytes(explained),
        explained as f64 / whole * 100.0,
        bytes(unexplained),
        micros(accounting.took_us),
    );
    if accounting.elsewhere_bytes > 0 {
        let elsewhere = bytes(accounting.elsewhere_bytes);
        line.push_str(&format!("; {elsewhere} that these processes use is charged to others"));
    }
    Some(line)
}

/// What is missing of it.
pub fn gaps(incident: &Incident) -> impl Iterator<Item = String> {
    let accounting = incident.accounting.as_ref();
    let late = accounting
        .filter(|a| moved(a) > a.root.bytes / 100)
        .map(|a| format!("accounting: {} were charged or freed while it was made", bytes(moved(a))));
    let gaps = accounting.into_iter().flat_map(|a| a.gaps.iter().map(|gap| format!("accounting: {gap}")));
    gaps.chain(late)
}

fn moved(accounting: &Accounting) -> u64 {
    accounting.root.bytes.abs_diff(accounting.usage_after_bytes)
}

/// Adds the leaves of the tree to a profile that has nothing but a sample type, each
/// with its way from the root.
pub fn fill(profile: &mut Profile, incident: &Incident) {
    let Some(accounting) = &incident.accounting else { return };
    add_leaves(&accounting.root, &mut Vec::new(), profile);
    let unexplained = count(accounting.sums().1, "byte");
    profile
        .comments
        .push(format!("{} charged, of which {unexplained} without explanation", bytes(accounting.root.bytes)));
}

/// The sample type of such a profile.
#[must_use]
pub fn sample_type() -> SampleType {
    SampleType::new("charged", "bytes")
}

fn add_leaves(node: &AccountNode, way: &mut Vec<usize>, profile: &mut Profile) {
    let kind = match node.kind {
        AccountKind::Unexplained if node.children.is_empty() => FrameKind::Unknown,
        _ => Frame::label("").kind,
    };
    way.push(profile.frame(Frame { kind, ..Frame::label(&node.what) }));
    if node.children.is_empty() && node.bytes > 0 {
        profile.samples.push(Sample { stack: way.clone(), values: vec![node.bytes as i64], ..Sample::default() });
    }
    node.children.iter().for_each(|child| add_leaves(child, way, profile));
    way.pop();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incident::read::read_incident;
    use std::path::Path;

    fn incident() -> Incident {
        let recorded = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/incidents/sort.json");
        let mut incident = read_incident(Path::new(recorded)).unwrap();
        assert_eq!((rows(&incident).len(), line(&incident)), (0, None), "one that was made before");
        let process = |index: u64| AccountNode::leaf(format!("p{index}"), 10_000 - index, "pagemap");
        let anonymous = AccountNode::leaf("anonymous memory", 90_000, "memory.stat: anon")
            .split((0..8).map(process).collect(), AccountNode::unexplained("unseen", 0, "memory.stat: anon"));
        let root = AccountNode::leaf("all", 100_000, "memory.current")
            .split(vec![anonymous], AccountNode::unexplained("rest", 0, "usage"));
        incident.accounting = Some(Accounting {
            root,
            beside: vec![AccountNode::leaf("swapped out", 4096, "memory.swap.current")],
            usage_after_bytes: 100_500,
            elsewhere_bytes: 8192,
            took_us: 1500,
            gaps: vec!["something".to_owned()],
        });
        incident
    }

    #[test]
    fn small_parts_are_told_together_and_unexplained_ones_never() {
        let incident = incident();
        let rows = rows(&incident);
        let told: Vec<_> =
            rows.iter().map(|r| (r.depth, r.what.as_str(), r.share.as_str(), r.is_unexplained)).collect();
        assert_eq!(told[0], (0, "all", "100.0 %", false));
        assert_eq!(told[1], (1, "anonymous memory", "90.0 %", false));
        // The unseen 10,028 bytes are among the six biggest.
        assert_eq!(told[2], (2, "unseen", "10.0 %", true));
        assert_eq!(told[8], (2, "3 more", "30.0 %", false));
        assert_eq!(told[9], (1, "rest", "10.0 %", true));
        assert_eq!(told[10], (0, "swapped out", "", false));
        let line = line(&incident).unwrap();
        assert!(line.contains("80.0 % of what is charged") && line.contains("8.0 KiB that these"), "{line}");
        assert_eq!(gaps(&incident).collect::<Vec<_>>(), ["accounting: something"]);
    }

    /// Of 1 GB 12 parts, each smaller than the one before by a factor of 5, have rests
    /// that nobody explains.
    #[test]
    fn no_row_is_nothing_and_the_leaves_add_up() {
        let mut incident = incident();
        let part = |index: u32| {
            let bytes = 800_000_000 / 5_u64.pow(index);
            let owners = vec![
                AccountNode::leaf("one", bytes / 2, ""),
                AccountNode::leaf("two", bytes / 5000, ""),
                AccountNode::leaf("three", bytes / 6000, ""),
            ];
            AccountNode::leaf(format!("part {index}"), bytes, "")
                .split(owners, AccountNode::unexplained("owner not seen", 0, ""))
        };
        let root = AccountNode::leaf("all", 1_000_000_000, "")
            .split((0..12).map(part).collect(), AccountNode::unexplained("rest", 0, ""));
        let accounting = incident.accounting.as_mut().unwrap();
        (accounting.root, accounting.beside) = (root, Vec::new());
        let rows = rows(&incident);
        let table: Vec<_> = rows.iter().map(|r| (r.depth, r.share.as_str(), r.what.as_str())).collect();
        assert!(rows.iter().all(|row| row.share != "0.0 %"), "{table:?}");
        let is_leaf = |at: &usize| rows.get(at + 1).is_none_or(|next| next.depth <= rows[*at].depth);
        let leaves = (0..rows.len()).filter(is_leaf).map(|at| number(&rows[at].share));
        let sum: f64 = leaves.sum();
        // Each is rounded to a tenth.
        assert!((sum - 100.0).abs() < 0.05 * rows.len() as f64 && rows.len() < 20, "{sum}: {table:?}");
        let last = rows.last().unwrap();
        assert_eq!((last.depth, last.is_unexplained), (1, false));
        assert_eq!(last.what, "18 parts of less than 0.05 % each, 156 KiB of it without explanation", "{table:?}");
    }

    fn number(share: &str) -> f64 {
        share.trim_start_matches("< ").trim_end_matches(" %").parse().unwrap()
    }

    #[test]
    fn what_moved_meanwhile_is_told() {
        let mut incident = incident();
        incident.accounting.as_mut().unwrap().usage_after_bytes = 90_000;
        assert!(gaps(&incident).any(|gap| gap.contains("9.8 KiB were charged or freed")));
    }

    #[test]
    fn the_profile_is_the_leaves() {
        let incident = incident();
        let mut profile = Profile::new(vec![sample_type()]);
        fill(&mut profile, &incident);
        assert_eq!(profile.total(0), 100_000);
        assert_eq!(profile.samples.len(), 10);
        let deepest = profile.samples.iter().map(|s| s.stack.len()).max();
        assert_eq!(deepest, Some(3));
        assert!(profile.comments.iter().any(|c| c.contains("without explanation")));
    }
}
