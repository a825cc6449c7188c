//! Stacks merged by their outer frames, so that renderers see each path once.

use crate::{Frame, Profile, Series};
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

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

/// Stacks, outermost frame first, of which no two are alike in what `look` sees of their
/// frames, in order of their titles.
pub(crate) fn merged_stacks<'a, K: Eq + Hash>(
    series: &Series<'a>,
    look: impl Fn(&'a Frame) -> K,
) -> Vec<(Vec<&'a Frame>, i64)> {
    let mut numbers = HashMap::new();
    let alike: Vec<usize> = series
        .profile
        .frames
        .iter()
        .map(|frame| {
            let next = numbers.len();
            *numbers.entry(look(frame)).or_insert(next)
        })
        .collect();
    let mut sums: HashMap<Vec<usize>, (Vec<&Frame>, i64)> = HashMap::new();
    for sample in series.profile.samples.iter().filter(|sample| series.value(sample) > 0) {
        let known = || sample.stack.iter().filter_map(|&f| Some((series.profile.frames.get(f)?, *alike.get(f)?)));
        let (_, sum) = sums
            .entry(known().map(|(_, alike)| alike).collect())
            .or_insert_with(|| (known().map(|(frame, _)| frame).collect(), 0));
        *sum += series.value(sample);
    }
    let mut sums: Vec<_> = sums.into_iter().collect();
    let titles = |frames: &[&Frame]| frames.iter().map(|frame| frame.title()).collect::<Vec<_>>();
    sums.sort_by_cached_key(|(alike, (frames, _))| (titles(frames), alike.clone()));
    sums.into_iter().map(|(_, merged)| merged).collect()
}

/// The folded format separates frames by `;` and stacks by newline, and has no
/// escapes.
pub(crate) fn clean(title: &str) -> String {
    let clean: String = title.chars().map(|c| if c == ';' || c.is_control() { ':' } else { c }).collect();
    if clean.is_empty() { "(unnamed)".to_owned() } else { clean }
}
