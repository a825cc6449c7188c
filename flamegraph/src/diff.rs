//! What grew from one profile to another.
//!
//! Stacks and functions are the same if their names are: lines and addresses move with each
//! build. Where an interpreter's frames are known, its native ones are left out, as in
//! [`top`](crate::top), but not from the graph.

use crate::svg::Text;
use crate::top::telling;
use crate::tree::clean;
use crate::{Frame, FrameKind, Profile, RenderError, Sample, Series, Spread, svg};
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::io::Write;

/// A value before and after.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Change {
    /// In the first profile.
    pub before: i64,
    /// In the second.
    pub after: i64,
    /// How sure the growth is: variances of both sides added up; no samples where it is exact.
    pub spread: Spread,
}

impl Change {
    /// How much more there is.
    #[must_use]
    pub fn growth(&self) -> i64 {
        self.after - self.before
    }

    fn add(&mut self, side: Side, value: i64, spread: Spread) {
        match side {
            Side::Before => self.before += value,
            Side::After => self.after += value,
        }
        self.spread += spread;
    }
}

/// A stack that grew or shrank.
#[derive(Debug, Clone, PartialEq)]
pub struct StackChange {
    /// Frame titles, innermost first, headings left out; of the second profile where it has it.
    pub frames: Vec<String>,
    /// Headings, outermost first.
    pub labels: Vec<String>,
    /// By how much.
    pub change: Change,
}

/// A function that grew or shrank.
#[derive(Debug, Clone, PartialEq)]
pub struct FunctionChange {
    /// Its name.
    pub name: String,
    /// Of stacks that it is the innermost of.
    pub own: Change,
    /// Of stacks that it is anywhere in.
    pub total: Change,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Before,
    After,
}

/// Both profiles, one after the other.
fn samples<'a>(before: Series<'a>, after: Series<'a>) -> impl Iterator<Item = (Side, Series<'a>, &'a Sample)> {
    let of = |side, series: Series<'a>| series.profile.samples.iter().map(move |sample| (side, series, sample));
    of(Side::Before, before).chain(of(Side::After, after))
}

/// Sum of all.
#[must_use]
pub fn total(before: Series<'_>, after: Series<'_>) -> Change {
    let mut change = Change::default();
    for (side, series, sample) in samples(before, after) {
        change.add(side, series.value(sample), spread(series, sample));
    }
    change
}

/// Every stack that is not as it was, those that grew most first, then those that shrank
/// least.
#[must_use]
pub fn stacks(before: Series<'_>, after: Series<'_>) -> Vec<StackChange> {
    let mut changes: BTreeMap<Vec<&str>, (Vec<&Frame>, Change)> = BTreeMap::new();
    for (side, series, sample) in samples(before, after) {
        let frames = frames(series.profile, &telling(series.profile, &sample.stack));
        let names = frames.iter().map(|frame| frame.name.as_str()).collect();
        let (shown, change) = changes.entry(names).or_default();
        if shown.is_empty() || (side == Side::After && change.after == 0) {
            *shown = frames;
        }
        change.add(side, series.value(sample), spread(series, sample));
    }
    let mut changed: Vec<_> = changes.into_values().filter(|(_, change)| change.growth() != 0).collect();
    // In order of their names where they grew by the same.
    changed.sort_by_key(|(_, change)| Reverse(change.growth()));
    let told = |(frames, change): (Vec<&Frame>, Change)| {
        let (labels, functions): (Vec<_>, Vec<_>) = frames.into_iter().partition(|f| f.kind == FrameKind::Label);
        StackChange {
            frames: functions.iter().rev().map(|frame| frame.title()).collect(),
            labels: labels.iter().map(|frame| frame.title()).collect(),
            change,
        }
    };
    changed.into_iter().map(told).collect()
}

/// Every function whose own or total value is not as it was, those whose total grew most
/// first; of several with the same, the innermost of more. Headings are none.
#[must_use]
pub fn functions(before: Series<'_>, after: Series<'_>) -> Vec<FunctionChange> {
    let mut changes: BTreeMap<&str, (Change, Change)> = BTreeMap::new();
    for (side, series, sample) in samples(before, after) {
        let (value, spread) = (series.value(sample), spread(series, sample));
        let mut frames = frames(series.profile, &telling(series.profile, &sample.stack));
        frames.retain(|frame| frame.kind != FrameKind::Label);
        if let Some(innermost) = frames.last() {
            changes.entry(&innermost.name).or_default().0.add(side, value, spread);
        }
        // One that calls itself is counted once.
        let names: HashSet<&str> = frames.iter().map(|frame| frame.name.as_str()).collect();
        for name in names {
            changes.entry(name).or_default().1.add(side, value, spread);
        }
    }
    let changed = |change: &Change| change.growth() != 0;
    let mut all: Vec<_> = changes
        .into_iter()
        .map(|(name, (own, total))| FunctionChange { name: name.to_owned(), own, total })
        .filter(|function| changed(&function.own) || changed(&function.total))
        .collect();
    all.sort_by_key(|function| Reverse((function.total.growth(), function.own.growth())));
    all
}

/// Draws the second profile, coloured by what grew (red) and what shrank (blue); what is
/// gone has no width.
pub fn write_svg(before: Series<'_>, after: Series<'_>, text: Text<'_>, to: impl Write) -> Result<(), RenderError> {
    let kind = after.kind()?;
    before.kind()?;
    let mut paths: BTreeMap<String, Change> = BTreeMap::new();
    for (side, series, sample) in samples(before, after) {
        let names = frames(series.profile, &sample.stack);
        let names: Vec<String> = names.into_iter().map(|frame| clean(&frame.name)).collect();
        paths.entry(names.join(";")).or_default().add(side, series.value(sample), Spread::default());
    }
    if paths.values().all(|change| change.after <= 0) {
        return Err(RenderError::Empty);
    }
    let lines: Vec<String> = paths
        .into_iter()
        .filter(|(_, change)| change.before > 0 || change.after > 0)
        .map(|(path, change)| format!("{path} {} {}", change.before, change.after))
        .collect();
    svg::draw(&lines, kind, text, to)
}

fn frames<'a>(profile: &'a Profile, stack: &[usize]) -> Vec<&'a Frame> {
    stack.iter().filter_map(|&index| profile.frames.get(index)).collect()
}

fn spread(series: Series<'_>, sample: &Sample) -> Spread {
    sample.spread.get(series.sample_type).copied().unwrap_or_default()
}
