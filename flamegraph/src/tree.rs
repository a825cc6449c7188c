//! Stacks merged by their outer frames, so that renderers see each path once.

use crate::Profile;
use std::collections::BTreeMap;

/// Paths of titles to values, in order of their text.
///
/// inferno keeps every line that it is given, so equal stacks are merged before.
pub(crate) fn merged_lines(profile: &Profile, sample_type: usize) -> Vec<(String, i64)> {
    let titles: Vec<String> = profile.frames.iter().map(|f| clean(&f.title())).collect();
    let mut lines: BTreeMap<String, i64> = BTreeMap::new();
    for sample in &profile.samples {
        let value = sample.values.get(sample_type).copied().unwrap_or(0);
        if value <= 0 {
            continue;
        }
        let path: Vec<&str> = sample.stack.iter().filter_map(|&f| Some(titles.get(f)?.as_str())).collect();
        *lines.entry(path.join(";")).or_default() += value;
    }
    lines.into_iter().collect()
}

/// The folded format separates frames by `;` and stacks by newline, and has no
/// escapes.
fn clean(title: &str) -> String {
    let clean: String = title.chars().map(|c| if c == ';' || c.is_control() { ':' } else { c }).collect();
    if clean.is_empty() { "(unnamed)".to_owned() } else { clean }
}
