//! The few lines that a hurried reader needs.

use crate::{FrameKind, Profile, Spread};
use std::collections::HashMap;

/// A stack and its part of the whole.
#[derive(Debug, Clone, PartialEq)]
pub struct TopStack {
    /// Frame titles, innermost first, headings left out.
    pub frames: Vec<String>,
    /// Headings, outermost first.
    pub labels: Vec<String>,
    /// Its value.
    pub value: i64,
    /// Its part of the total, 0 to 1.
    pub share: f64,
    /// How sure the value is; no samples where it is exact.
    pub spread: Spread,
}

/// The `n` biggest distinct stacks. Where an interpreter's frames are known, they
/// tell who it was, and how the interpreter came to allocate does not: stacks that
/// differ only in that count as one. So do those in the kernel, of which the system call's
/// function alone tells anything: how it copies is the same for all.
#[must_use]
pub fn stacks(profile: &Profile, sample_type: usize, n: usize) -> Vec<TopStack> {
    let mut sums: HashMap<Vec<usize>, (i64, Spread)> = HashMap::new();
    for sample in &profile.samples {
        let (value, spread) = sums.entry(telling(profile, &sample.stack)).or_default();
        *value += sample.values.get(sample_type).copied().unwrap_or(0);
        *spread += sample.spread.get(sample_type).copied().unwrap_or_default();
    }
    let total = sums.values().map(|(value, _)| value).sum::<i64>();
    let mut sums: Vec<_> = sums.into_iter().filter(|(_, (value, _))| *value > 0).collect();
    sums.sort_by(|a, b| b.1.0.cmp(&a.1.0).then_with(|| a.0.cmp(&b.0)));
    sums.truncate(n);
    sums.into_iter()
        .map(|(stack, (value, spread))| {
            let frames = stack.iter().filter_map(|&f| profile.frames.get(f));
            let (labels, functions): (Vec<_>, Vec<_>) = frames.partition(|f| f.kind == FrameKind::Label);
            TopStack {
                frames: functions.iter().rev().map(|f| f.title()).collect(),
                labels: labels.iter().map(|f| f.title()).collect(),
                value,
                share: value as f64 / total as f64,
                spread,
            }
        })
        .collect()
}

/// Frames that tell one stack from another.
pub(crate) fn telling(profile: &Profile, stack: &[usize]) -> Vec<usize> {
    let kind = |frame: &usize| profile.frames.get(*frame).map(|f| f.kind);
    let has_script = stack.iter().any(|frame| kind(frame) == Some(FrameKind::Script));
    let mut is_in_kernel = false;
    let tells = |frame: &usize| {
        let is_first = !std::mem::replace(&mut is_in_kernel, kind(frame) == Some(FrameKind::Kernel));
        let is_told = is_first || !is_in_kernel;
        is_told && (!has_script || matches!(kind(frame), Some(FrameKind::Script | FrameKind::Label)))
    };
    stack.iter().copied().filter(tells).collect()
}
