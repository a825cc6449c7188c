//! A flame graph in a terminal: the outermost frames on top, each as wide as its share.

use reprieve_flamegraph::Profile;
use std::collections::BTreeMap;

/// A frame, with all that it called.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Node {
    /// Its title.
    pub name: String,
    /// Its value, with that of all that it called.
    pub value: i64,
    /// The biggest first.
    pub children: Vec<Node>,
}

/// A frame as it is drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// Columns before it.
    pub at: u16,
    /// Its text, as wide as it is.
    pub text: String,
}

#[derive(Default)]
struct Growing {
    value: i64,
    children: BTreeMap<usize, Growing>,
}

/// The tree of a profile, below a root with the name `all`.
#[must_use]
pub fn tree(profile: &Profile, sample_type: usize) -> Node {
    let mut root = Growing::default();
    for sample in &profile.samples {
        let value = sample.values.get(sample_type).copied().unwrap_or(0);
        if value <= 0 {
            continue;
        }
        root.value += value;
        let mut at = &mut root;
        for frame in &sample.stack {
            at = at.children.entry(*frame).or_default();
            at.value += value;
        }
    }
    grown(profile, "all".to_owned(), root)
}

fn grown(profile: &Profile, name: String, node: Growing) -> Node {
    let title = |frame: usize| profile.frames.get(frame).map(|frame| frame.title()).unwrap_or_default();
    let mut children: Vec<Node> =
        node.children.into_iter().map(|(frame, child)| grown(profile, title(frame), child)).collect();
    children.sort_by(|a, b| b.value.cmp(&a.value).then_with(|| a.name.cmp(&b.name)));
    Node { name, value: node.value, children }
}

/// Its rows, so many columns wide. What is narrower than a column is left out.
#[must_use]
pub fn rows(root: &Node, width: u16) -> Vec<Vec<Cell>> {
    let mut rows = Vec::new();
    if root.value > 0 && width > 0 {
        place(root, (0, width), 0, root.value, &mut rows);
    }
    rows
}

fn place(node: &Node, (from, to): (u16, u16), depth: usize, whole: i64, rows: &mut Vec<Vec<Cell>>) {
    if rows.len() <= depth {
        rows.push(Vec::new());
    }
    rows[depth].push(Cell { at: from, text: label(node, usize::from(to - from), whole) });
    let mut before = 0;
    for child in &node.children {
        let width = |value: i64| f64::from(to - from) * value as f64 / node.value.max(1) as f64;
        let column = |value: i64| from + width(value).round() as u16;
        let (start, end) = (column(before), column(before + child.value));
        before += child.value;
        // Where its edges are rounded apart it is no wider.
        if width(child.value) >= 1.0 {
            place(child, (start, end), depth + 1, whole, rows);
        }
    }
}

/// Its name, and its share where that fits, too.
fn label(node: &Node, width: usize, whole: i64) -> String {
    let inner = width.saturating_sub(1);
    let share = format!(" {:.0} %", node.value as f64 / whole as f64 * 100.0);
    let has_room = node.name.chars().count() + share.chars().count() <= inner;
    let text = if has_room { format!("{}{share}", node.name) } else { node.name.clone() };
    let cut: String = text.chars().take(inner).collect();
    format!("│{cut:inner$}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use reprieve_flamegraph::{Frame, Sample, SampleType};

    fn profile(stacks: &[(&[&str], i64)]) -> Profile {
        let mut profile = Profile::new(vec![SampleType::new("space", "bytes")]);
        for (names, value) in stacks {
            let stack = names.iter().map(|name| profile.frame(Frame::named(name))).collect();
            profile.samples.push(Sample { stack, values: vec![*value], ..Sample::default() });
        }
        profile
    }

    fn drawn(profile: &Profile, width: u16) -> Vec<String> {
        let text = |row: Vec<Cell>| {
            row.into_iter().fold(String::new(), |line, cell| format!("{line:0$}{1}", usize::from(cell.at), cell.text))
        };
        rows(&tree(profile, 0), width).into_iter().map(text).collect()
    }

    #[test]
    fn each_is_as_wide_as_its_share_and_the_biggest_comes_first() {
        let profile =
            profile(&[(&["main", "parse"], 25), (&["main", "insert", "grow"], 50), (&["idle"], 25), (&["none"], 0)]);
        assert_eq!(
            drawn(&profile, 40),
            [
                "│all 100 %                              ",
                "│main 75 %                    │idle 25 %",
                "│insert 50 %        │parse    ",
                "│grow 50 %          ",
            ]
        );
    }

    #[test]
    fn what_is_too_small_is_left_out_and_nothing_is_wider_than_the_screen() {
        let profile = profile(&[(&["big"], 999), (&["small"], 1)]);
        assert_eq!(drawn(&profile, 10), ["│all 100 %", "│big 100 %"]);
        assert_eq!(drawn(&profile, 1), ["│", "│"].map(str::to_owned)[..1]);
        assert!(rows(&Node::default(), 80).is_empty());
    }
}
