//! When it happened: a curve of usage until the OOM, and what was done in the hold.

use crate::incident::baseline::Baseline;
use crate::incident::model::{Incident, StepOutcome};
use crate::incident::since::{is_compared, span};
use crate::incident::units::{bytes, count, micros};
use std::fmt::Write;

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 170.0;
/// Room for what is written beside the curve.
const LEFT: f64 = 58.0;
const RIGHT: f64 = 446.0;
const TOP: f64 = 24.0;
const BOTTOM: f64 = 146.0;
/// Between words and what they are written beside.
const GAP: f64 = 6.0;
/// About a letter's width, and its height, at 12 pixels.
const LETTER: (f64, f64) = (6.8, 11.0);

/// The curve as SVG; `None` without a history of two points or more.
pub(super) fn curve(incident: &Incident) -> Option<String> {
    let baseline = incident.baseline.as_ref()?;
    let first = baseline.usage.first()?;
    let memcg = incident.memcg.as_ref()?;
    let limit = memcg.limit_bytes;
    // At the OOM it was what the evidence says.
    let end = if is_compared(baseline) { baseline.after_bytes } else { baseline.usage.last()?.usage_bytes };
    let most = baseline.usage.iter().map(|p| p.usage_bytes).chain(limit).chain([end]).max()?.max(1) as f64 * 1.04;
    let whole = first.before_us.max(1) as f64;
    let x = |before_us: u64| RIGHT - before_us as f64 / whole * (RIGHT - LEFT);
    let y = |bytes: u64| BOTTOM - bytes as f64 / most * (BOTTOM - TOP);
    let mut points: Vec<(f64, f64)> =
        baseline.usage.iter().map(|point| (x(point.before_us), y(point.usage_bytes))).collect();
    points.push((RIGHT, y(end)));
    let line = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ");
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-labelledby=\"curve-title\">\
         <title id=\"curve-title\">{}</title>\
         <path class=\"axis\" d=\"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}\"/>\
         <polygon class=\"area\" points=\"{LEFT},{BOTTOM} {line} {RIGHT},{BOTTOM}\"/>\
         <polyline class=\"usage\" points=\"{line}\"/>",
        words(baseline, limit, end)
    );
    let mut label = |class: &str, anchor: &str, at: (f64, f64), text: &str| {
        let _ = write!(
            svg,
            "<text class=\"{class}\" text-anchor=\"{anchor}\" x=\"{:.1}\" y=\"{:.1}\">{text}</text>",
            at.0, at.1
        );
    };
    if let Some(limit) = limit {
        label("limit", "end", (LEFT - 4.0, y(limit) + 4.0), &bytes(limit));
        label("limit", "start", (LEFT + 4.0, y(limit) - 4.0), "limit");
    }
    label("", "end", (LEFT - 4.0, BOTTOM), "0");
    label("", "start", (LEFT, BOTTOM + 15.0), &format!("{} before", span(first.before_us)));
    label("", "end", (RIGHT, BOTTOM + 15.0), "out of memory");
    if is_compared(baseline) && baseline.before_us < first.before_us {
        let text = format!("{}, {} before", bytes(baseline.before_bytes), span(baseline.before_us));
        let width = text.chars().count() as f64 * LETTER.0;
        let at = (x(baseline.before_us), y(baseline.before_bytes));
        let (anchor, place) = beside(&points, at, width, limit.map_or(TOP, y));
        label("", anchor, place, &text);
    }
    if let Some(limit) = limit {
        let _ = write!(svg, "<path class=\"limit\" d=\"M{LEFT} {:.1}H{RIGHT}\"/>", y(limit));
    }
    if is_compared(baseline) {
        let at = x(baseline.before_us);
        let _ = write!(svg, "<path class=\"compared\" d=\"M{at:.1} {TOP}V{BOTTOM}\"/>");
        let _ =
            write!(svg, "<circle class=\"compared\" cx=\"{at:.1}\" cy=\"{:.1}\" r=\"3\"/>", y(baseline.before_bytes));
    }
    let _ = write!(svg, "<circle class=\"full\" cx=\"{RIGHT}\" cy=\"{:.1}\" r=\"4\"/></svg>", y(end));
    Some(svg)
}

/// Where to write beside a point so that the curve does not run through the words: before it
/// where there is room, else behind it, above the curve and below `ceiling`; where it is too steep
/// for that, at the bottom. Which end of the words, and its place.
fn beside(curve: &[(f64, f64)], at: (f64, f64), width: f64, ceiling: f64) -> (&'static str, (f64, f64)) {
    let (before, behind) = (at.0 - GAP, at.0 + GAP);
    for (anchor, x, from) in [("end", before, before - width), ("start", behind, behind)] {
        let y = highest(curve, from, from + width).min(at.1) - GAP;
        if from >= LEFT && from + width <= RIGHT && y - LETTER.1 > ceiling {
            return (anchor, (x, y));
        }
    }
    let (anchor, x) = if behind + width <= RIGHT { ("start", behind) } else { ("end", before) };
    (anchor, (x, BOTTOM - GAP))
}

/// The curve's highest place between two others; heights grow downwards.
fn highest(curve: &[(f64, f64)], from: f64, to: f64) -> f64 {
    let mut highest = BOTTOM;
    for pair in curve.windows(2) {
        let ((left, begin), (right, end)) = (pair[0], pair[1]);
        let height = |x: f64| begin + (end - begin) * ((x - left) / (right - left).max(f64::EPSILON)).clamp(0.0, 1.0);
        if left <= to && right >= from {
            highest = highest.min(height(left.max(from))).min(height(right.min(to)));
        }
    }
    highest
}

/// The same for who hears it.
fn words(baseline: &Baseline, limit: Option<u64>, end: u64) -> String {
    let first = baseline.usage.first().copied().unwrap_or_default();
    let limit = limit.map_or(String::new(), |limit| format!(", limit {}", bytes(limit)));
    let mut words = format!("Charged memory: {} {} before the end", bytes(first.usage_bytes), span(first.before_us));
    if is_compared(baseline) {
        let _ = write!(words, ", {} {} before", bytes(baseline.before_bytes), span(baseline.before_us));
    }
    format!("{words}, {} when memory ran out{limit}", bytes(end))
}

/// A row of what was done in the hold.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Moment {
    /// When it began, for people, from the notice on.
    pub from: String,
    /// How long it took.
    pub took: String,
    /// What.
    pub what: String,
    /// More about it.
    pub more: String,
    /// Usage before and after, where it was measured.
    pub charged: String,
    /// A class for its bar: `done`, `relieved`, `not`, `failed`.
    pub class: &'static str,
    /// Begin and width of its bar, in percent of the time shown.
    pub bar: (f64, f64),
}

/// What was done, in order; empty without a hold.
pub(super) fn moments(incident: &Incident) -> Vec<Moment> {
    let Some(hold) = &incident.hold else { return Vec::new() };
    let mut spans: Vec<(u64, u64, Moment)> = Vec::new();
    let mut add = |from: u64, to: u64, what: &str, more: String, charged: String, class| {
        let took = to.saturating_sub(from);
        let moment = Moment {
            from: micros(from),
            took: micros(took),
            what: what.to_owned(),
            more,
            charged,
            class,
            bar: (0.0, 0.0),
        };
        spans.push((from, to, moment));
    };
    let threads = count(hold.threads_stopped.into(), "thread");
    add(0, hold.stop_window_us, "stop", format!("{threads} stopped"), String::new(), "done");
    add(hold.stop_window_us, hold.snapshot_us, "evidence", "stacks, memory, heap".to_owned(), String::new(), "done");
    let mut at = hold.snapshot_us;
    if let Some(symbolized) = hold.symbolized_us {
        add(at, symbolized, "names", "of functions".to_owned(), String::new(), "done");
        at = symbolized;
    }
    for step in incident.verdict.iter().flat_map(|verdict| &verdict.steps) {
        let (outcome, class) = match step.outcome {
            StepOutcome::Relieved => ("relieved", "relieved"),
            StepOutcome::NotEnough => ("not enough", "not"),
            StepOutcome::Failed => ("failed", "failed"),
        };
        let charged = format!("{} → {}", bytes(step.usage_before_bytes), bytes(step.usage_after_bytes));
        add(at, at + step.took_us, &step.action, outcome.to_owned(), charged, class);
        at += step.took_us;
    }
    let whole = spans.iter().map(|(_, to, _)| *to).chain([hold.held_us]).max().unwrap_or(1).max(1) as f64;
    let percent = |us: u64| us as f64 / whole * 100.0;
    let placed = spans.into_iter().map(|(from, to, moment)| {
        // Wide enough to be seen.
        let width = (percent(to) - percent(from)).max(0.8);
        Moment { bar: (percent(from).min(100.0 - width), width), ..moment }
    });
    placed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incident::baseline::UsagePoint;
    use crate::incident::read::read_incident;
    use std::path::Path;

    fn incident() -> Incident {
        let recorded = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/incidents/python.json");
        let mut incident = read_incident(Path::new(recorded)).unwrap();
        let usage = [(40_000_000, 1 << 20), (20_000_000, 2 << 20), (1_000_000, 60 << 20)];
        incident.baseline = Some(Baseline {
            usage: usage.map(|(before_us, usage_bytes)| UsagePoint { before_us, usage_bytes }).to_vec(),
            before_us: 20_000_000,
            before_bytes: 2 << 20,
            after_bytes: 64 << 20,
            ..Baseline::default()
        });
        incident
    }

    #[test]
    fn the_curve_is_told_in_words_too() {
        let svg = curve(&incident()).unwrap();
        assert!(
            svg.contains("1.0 MiB 40 s before the end, 2.0 MiB 20 s before, 64.0 MiB when memory ran out"),
            "{svg}"
        );
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>") && !svg.contains("NaN"));
        assert_eq!(curve(&Incident { baseline: None, ..incident() }), None);
        let empty = Incident { baseline: Some(Baseline::default()), ..incident() };
        assert_eq!(curve(&empty), None);
    }

    #[test]
    fn words_keep_clear_of_the_curve() {
        // Flat, then rising: before the bend.
        let bend = [(58.0, 130.0), (240.0, 130.0), (446.0, 30.0)];
        assert_eq!(beside(&bend, (240.0, 130.0), 140.0, 30.0), ("end", (234.0, 124.0)));
        // No room before it: behind it, and above where the curve is at the last letter.
        let slow = [(58.0, 130.0), (258.0, 90.0), (446.0, 30.0)];
        assert_eq!(beside(&slow, (102.0, 121.2), 150.0, 30.0), ("start", (108.0, 84.0)));
        // A wall: below.
        let wall = [(58.0, 130.0), (102.0, 121.0), (110.0, 32.0), (446.0, 30.0)];
        assert_eq!(beside(&wall, (102.0, 121.0), 150.0, 30.0), ("start", (108.0, 140.0)));
    }

    #[test]
    fn moments_follow_each_other_within_the_time() {
        let incident = incident();
        let moments = moments(&incident);
        assert!(moments.len() > 3, "{moments:?}");
        assert_eq!((moments[0].what.as_str(), moments[0].from.as_str()), ("stop", "0 µs"));
        for moment in &moments {
            assert!(moment.bar.0 >= 0.0 && moment.bar.0 + moment.bar.1 <= 100.01, "{moment:?}");
        }
        assert!(moments.windows(2).all(|pair| pair[0].bar.0 <= pair[1].bar.0), "{moments:?}");
        assert_eq!(super::moments(&Incident { hold: None, ..incident.clone() }), []);
    }
}
