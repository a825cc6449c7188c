//! `report.html`: the incident for a browser, in one file.

use super::model::{Incident, Process, StepOutcome};
use super::profile::View;
use super::show;
use super::units;
use askama::Template;
use reprieve_flamegraph::top;
use std::borrow::Borrow;

#[derive(Template)]
#[template(path = "report.html")]
struct Report<'a> {
    incident: &'a Incident,
    headline: String,
    time: String,
    hold_line: Option<String>,
    processes: Vec<&'a Process>,
    stacks: Vec<top::TopStack>,
    owners: Vec<top::TopStack>,
    heap_line: Option<String>,
    malloc: Vec<show::MallocRow>,
    graphs: Vec<Graph<'a>>,
    unknown: Vec<String>,
}

struct Graph<'a> {
    view: &'a View,
    svg: &'a str,
}

/// The page. `graphs` are views with their SVG, empty where there was nothing
/// to draw.
#[must_use]
pub fn html(incident: &Incident, graphs: &[(View, String)]) -> String {
    let mut processes: Vec<&Process> = incident.processes.iter().collect();
    processes.sort_by_key(|p| std::cmp::Reverse(p.memory.pss_bytes));
    let mut unknown = show::misses(incident);
    unknown.extend(incident.gaps.iter().cloned());
    for process in &incident.processes {
        unknown.extend(process.gaps.iter().map(|gap| format!("{} [{}]: {gap}", process.comm, process.pid)));
    }
    let top_of = |name: &str| {
        let view = graphs.iter().find(|(view, _)| view.name == name);
        view.map(|(view, _)| top::stacks(&view.profile, 0, 5)).unwrap_or_default()
    };
    let report = Report {
        incident,
        headline: show::headline(incident),
        time: units::time(incident.time_unix_us),
        hold_line: incident.hold.as_ref().map(show::hold_line),
        processes,
        stacks: top_of("threads"),
        owners: top_of("heap"),
        heap_line: show::heap_line(incident),
        malloc: show::malloc_rows(incident),
        graphs: graphs.iter().map(|(view, svg)| Graph { view, svg }).collect(),
        unknown,
    };
    // Rendering into a String fails only where a Display does; none of ours does.
    report.render().unwrap_or_else(|error| format!("<!doctype html><p>The report could not be rendered: {error}</p>"))
}

// The template passes fields as values or as references, as it likes.

fn bytes(bytes: impl Borrow<u64>) -> String {
    units::bytes(*bytes.borrow())
}

fn micros(us: impl Borrow<u64>) -> String {
    units::micros(*us.borrow())
}

fn outcome(outcome: impl Borrow<StepOutcome>) -> &'static str {
    match outcome.borrow() {
        StepOutcome::Relieved => "relieved",
        StepOutcome::NotEnough => "not enough",
        StepOutcome::Failed => "failed",
    }
}
