//! `report.html`: the incident for a browser, in one file.

use super::accounts::{self, AccountRow};
use super::heaps::{self, HeapRow};
use super::mallocs::{self, MallocRow};
use super::model::{Estimate, Incident, Process, StepOutcome};
use super::others;
use super::profile::{self, View};
use super::show;
use super::units;
use askama::Template;
use reprieve_flamegraph::top::{self, TopStack};
use std::borrow::Borrow;

#[derive(Template)]
#[template(path = "report.html")]
struct Report<'a> {
    incident: &'a Incident,
    headline: String,
    time: String,
    hold_line: Option<String>,
    others: Option<String>,
    processes: Vec<&'a Process>,
    stacks: Vec<Listed>,
    owners: Vec<Listed>,
    heap_line: Option<String>,
    heaps: Vec<HeapRow<'a>>,
    malloc: Vec<MallocRow>,
    account_line: Option<String>,
    accounts: Vec<AccountRow>,
    graphs: Vec<Graph<'a>>,
    unknown: Vec<String>,
}

/// A view and its drawings, one for each sample type.
struct Graph<'a> {
    view: &'a View,
    drawings: Vec<Drawing<'a>>,
}

struct Drawing<'a> {
    stem: String,
    label: &'a str,
    /// Empty where there was nothing to draw.
    svg: &'a str,
}

impl<'a> Graph<'a> {
    fn new(view: &'a View, images: &'a [String]) -> Self {
        let drawings = view.profile.sample_types.iter().zip(images).enumerate().map(|(index, (kind, svg))| Drawing {
            stem: view.stem(index),
            label: profile::meaning(&kind.kind),
            svg,
        });
        Graph { view, drawings: drawings.collect() }
    }
}

/// A stack in a list.
struct Listed {
    value: String,
    stack: TopStack,
}

/// The page. `graphs` are views with an SVG for each sample type, empty where
/// there was nothing to draw.
#[must_use]
pub fn html(incident: &Incident, graphs: &[(View, Vec<String>)]) -> String {
    let mut processes: Vec<&Process> = incident.processes.iter().collect();
    processes.sort_by_key(|p| std::cmp::Reverse(p.memory.pss_bytes));
    let mut unknown = show::misses(incident);
    unknown.extend(incident.gaps.iter().cloned());
    for process in &incident.processes {
        unknown.extend(process.gaps.iter().map(|gap| format!("{} [{}]: {gap}", process.comm, process.pid)));
    }
    unknown.extend(accounts::gaps(incident));
    let top_of = |name: &str| {
        let profiles = graphs.iter().filter(|(view, _)| view.name == name).map(|(view, _)| &view.profile);
        profiles
            .flat_map(|profile| {
                let listed = |stack| Listed { value: show::value(&stack, &profile.sample_types[0]), stack };
                top::stacks(profile, 0, 3).into_iter().map(listed)
            })
            .collect()
    };
    let report = Report {
        incident,
        headline: show::headline(incident),
        time: units::time(incident.time_unix_us),
        hold_line: incident.hold.as_ref().map(show::hold_line),
        others: others::line(incident),
        processes,
        stacks: top_of("threads"),
        owners: top_of("heap"),
        heap_line: show::heap_line(incident),
        malloc: mallocs::rows(incident),
        account_line: accounts::line(incident),
        accounts: accounts::rows(incident),
        heaps: heaps::rows(incident),
        graphs: graphs.iter().map(|(view, images)| Graph::new(view, images)).collect(),
        unknown,
    };
    // Rendering into a String fails only where a Display does; none of ours does.
    report.render().unwrap_or_else(|error| format!("<!doctype html><p>The report could not be rendered: {error}</p>"))
}

// The template passes fields as values or as references, as it likes.

fn bytes(bytes: impl Borrow<u64>) -> String {
    units::bytes(*bytes.borrow())
}

fn estimate(estimate: impl Borrow<Estimate>) -> String {
    show::estimate_bytes(estimate.borrow())
}

fn number(number: impl Borrow<u64>) -> String {
    units::grouped(*number.borrow())
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
