//! Profiles as the page's script reads them: each stack once, as a tree in preorder.

use crate::incident::profile::{View, meaning};
use reprieve_flamegraph::{FrameKind, LabelValue, Profile, Sample};
use serde::Serialize;
use std::collections::HashMap;

/// A profile for the page.
#[derive(Debug, Serialize)]
pub(super) struct Graph<'a> {
    name: &'a str,
    title: &'a str,
    explanation: &'a str,
    types: Vec<Type<'a>>,
    /// Whose samples they are, in the order of the samples.
    processes: Vec<String>,
    /// Titles of frames, and for each a letter for its kind.
    frames: Vec<String>,
    kinds: String,
    /// The tree in preorder: depth and frame of each node. The first is the root.
    depth: Vec<u32>,
    frame: Vec<u32>,
    /// Values: of which node, of which process, and one for each type.
    node: Vec<u32>,
    process: Vec<u32>,
    values: Vec<Vec<i64>>,
    /// The first type's values in the record that the incident is compared with.
    before: Option<Vec<i64>>,
}

#[derive(Debug, Serialize)]
struct Type<'a> {
    kind: &'a str,
    label: &'a str,
    unit: &'a str,
}

/// A view for the page; `before` has the same stacks in the same order.
pub(super) fn graph<'a>(
    view: &'a View,
    before: Option<&Profile>,
    name_of: impl Fn(i64) -> Option<String>,
) -> Graph<'a> {
    let profile = &view.profile;
    let types = profile.sample_types.iter().map(|t| Type { kind: &t.kind, label: meaning(&t.kind), unit: &t.unit });
    let mut graph = Graph {
        name: view.name,
        title: view.title,
        explanation: view.explanation,
        types: types.collect(),
        processes: Vec::new(),
        frames: vec!["all".to_owned()],
        kinds: "l".to_owned(),
        depth: Vec::new(),
        frame: Vec::new(),
        node: Vec::new(),
        process: Vec::new(),
        values: vec![Vec::new(); profile.sample_types.len()],
        before: before.map(|_| Vec::new()),
    };
    let mut tree = Tree::default();
    let titles = graph.titles(profile);
    let mut processes: HashMap<i64, u32> = HashMap::new();
    let mut leaves = Vec::new();
    for (index, sample) in profile.samples.iter().enumerate() {
        let then = before.and_then(|before| before.samples.get(index)?.values.first().copied());
        if sample.values.iter().all(|value| *value == 0) && then.unwrap_or(0) == 0 {
            continue;
        }
        let stack = sample.stack.iter().filter_map(|frame| titles.get(*frame).copied());
        leaves.push(tree.leaf(stack));
        let process = pid(sample).map_or(0, |pid| {
            *processes.entry(pid).or_insert_with(|| {
                graph.processes.push(name_of(pid).unwrap_or_else(|| format!("[{pid}]")));
                graph.processes.len() as u32 - 1
            })
        });
        graph.process.push(process);
        for (values, value) in graph.values.iter_mut().zip(&sample.values) {
            values.push(*value);
        }
        if let Some(before) = &mut graph.before {
            before.push(then.unwrap_or(0));
        }
    }
    let places = tree.preorder(&mut graph.depth, &mut graph.frame);
    graph.node = leaves.into_iter().map(|leaf| places[leaf]).collect();
    graph
}

impl Graph<'_> {
    /// Puts down the frames' titles, equal ones once; returns for each frame its title.
    fn titles(&mut self, profile: &Profile) -> Vec<u32> {
        let mut known: HashMap<(String, char), u32> = HashMap::new();
        let mut titles = Vec::with_capacity(profile.frames.len());
        for frame in &profile.frames {
            let kind = match frame.kind {
                FrameKind::Function => 'f',
                FrameKind::Unknown => 'u',
                FrameKind::Guessed => 'g',
                FrameKind::Script => 's',
                FrameKind::Kernel => 'k',
                FrameKind::Label => 'l',
            };
            let title = frame.title();
            titles.push(*known.entry((title, kind)).or_insert_with_key(|(title, kind)| {
                self.frames.push(title.clone());
                self.kinds.push(*kind);
                self.frames.len() as u32 - 1
            }));
        }
        titles
    }

    /// As JSON that can stand in a `<script>` element, whatever is in a name.
    pub(super) fn json(&self) -> String {
        // In JSON `<` is in strings only; without it neither `</script` nor `<!--` is there.
        serde_json::to_string(self).unwrap_or_default().replace('<', "\\u003c")
    }
}

fn pid(sample: &Sample) -> Option<i64> {
    sample.labels.iter().find_map(|(name, value)| match value {
        LabelValue::Number(pid, _) if name == "pid" => Some(*pid),
        _ => None,
    })
}

/// Stacks by what they have in common from the outside.
#[derive(Default)]
struct Tree {
    /// By parent (0 is what is above all) and title.
    known: HashMap<(usize, u32), usize>,
    /// Title and children of each.
    nodes: Vec<(u32, Vec<usize>)>,
}

impl Tree {
    fn leaf(&mut self, stack: impl Iterator<Item = u32>) -> usize {
        if self.nodes.is_empty() {
            self.nodes.push((0, Vec::new()));
        }
        let mut at = 0;
        for title in stack {
            at = match self.known.get(&(at, title)) {
                Some(&child) => child,
                None => {
                    let child = self.nodes.len();
                    self.nodes.push((title, Vec::new()));
                    self.nodes[at].1.push(child);
                    self.known.insert((at, title), child);
                    child
                }
            };
        }
        at
    }

    /// Writes it down; returns the place of each node. What is above all is left out where
    /// it has but one child, and no samples of its own.
    fn preorder(&self, depth: &mut Vec<u32>, frame: &mut Vec<u32>) -> Vec<u32> {
        let mut places = vec![0; self.nodes.len()];
        let Some((_, roots)) = self.nodes.first() else { return places };
        let mut rest: Vec<(usize, u32)> = match roots[..] {
            [only] => vec![(only, 0)],
            _ => vec![(0, 0)],
        };
        while let Some((node, level)) = rest.pop() {
            let (title, children) = &self.nodes[node];
            places[node] = depth.len() as u32;
            depth.push(level);
            frame.push(*title);
            rest.extend(children.iter().rev().map(|child| (*child, level + 1)));
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reprieve_flamegraph::{Frame, SampleType};

    fn view(stacks: &[(&[&str], i64, i64)]) -> View {
        let mut profile = Profile::new(vec![SampleType::new("space", "bytes")]);
        for (names, value, pid) in stacks {
            let stack = names.iter().map(|name| profile.frame(Frame::named(name))).collect();
            let labels = vec![("pid".to_owned(), LabelValue::Number(*pid, String::new()))];
            profile.samples.push(Sample { stack, values: vec![*value], labels, ..Sample::default() });
        }
        View { name: "heap", title: "Heap", explanation: "", profile }
    }

    #[test]
    fn stacks_are_a_tree_in_preorder() {
        let view =
            view(&[(&["main", "a", "x"], 1, 7), (&["main", "b"], 2, 7), (&["main", "a"], 4, 8), (&["other"], 8, 8)]);
        let graph = graph(&view, None, |pid| Some(format!("p [{pid}]")));
        let names: Vec<_> = graph.frame.iter().map(|f| graph.frames[*f as usize].as_str()).collect();
        assert_eq!(names, ["all", "main", "a", "x", "b", "other"]);
        assert_eq!(graph.depth, [0, 1, 2, 3, 2, 1]);
        assert_eq!((graph.node, graph.process), (vec![3, 4, 2, 5], vec![0, 0, 1, 1]));
        assert_eq!((graph.values, graph.processes), (vec![vec![1, 2, 4, 8]], vec!["p [7]".into(), "p [8]".into()]));
    }

    #[test]
    fn one_root_is_the_root() {
        let view = view(&[(&["main", "a"], 1, 7), (&["main"], 2, 7)]);
        let graph = graph(&view, Some(&view.profile), |_| None);
        assert_eq!((graph.depth, graph.node), (vec![0, 1], vec![1, 0]));
        assert_eq!((graph.before, graph.processes), (Some(vec![1, 2]), vec!["[7]".to_owned()]));
    }

    #[test]
    fn a_name_ends_no_script() {
        let view = view(&[(&["</script><script>alert(1)//", "<!--"], 1, 7)]);
        let json = graph(&view, None, |_| None).json();
        assert!(!json.contains('<'), "{json}");
        let read: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(read["frames"][1], "</script><script>alert(1)//");
    }

    #[test]
    fn nothing_is_a_graph_of_nothing() {
        let view = view(&[]);
        let graph = graph(&view, None, |_| None);
        assert!(graph.depth.is_empty() && graph.node.is_empty());
    }
}
