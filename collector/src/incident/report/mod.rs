//! `report.html`: the incident for a browser, in one file.
//!
//! All of it is in the page as it is written, but for the graphs, which its script draws, and
//! the order of tables: without a script it is still whole.

mod graph;
mod measured;
mod policy;
mod tables;
mod timeline;

use super::accounts::{self, AccountRow};
use super::growers::{self, GrowthRow};
use super::heaps::{self, HeapRow};
use super::mallocs::{self, MallocRow};
use super::model::{Estimate, Incident, Verdict};
use super::profile::{self, View};
use super::since::{self, Grown};
use super::{left_out, others, show, units};
use askama::Template;
use reprieve_flamegraph::top::{self, TopStack};
use std::borrow::Borrow;
use tables::{ProcessRow, ThreadRow};
use timeline::Moment;

const SCRIPT: &str = include_str!("../../../templates/report.js");
const STYLE: &str = include_str!("../../../templates/report.css");
/// Stacks listed of each view.
const STACKS: usize = 3;
/// Rows of what grew.
const GROWN: usize = 8;
/// Threads that are shown without being asked for.
const FEW: usize = 40;

#[derive(Template)]
#[template(path = "report.html")]
struct Report<'a> {
    incident: &'a Incident,
    policy: String,
    script: &'static str,
    style: &'static str,
    verdict: String,
    headline: String,
    /// What grew, in one phrase.
    since: Option<String>,
    time: String,
    left_out: Option<String>,
    others: Option<String>,
    curve: Option<String>,
    moments: Vec<Moment>,
    account_line: Option<String>,
    accounts: Vec<AccountRow>,
    /// Name, title and data of each view.
    graphs: Vec<(&'static str, &'static str, String)>,
    span: Option<String>,
    grown: Vec<(&'static str, Grown)>,
    stacks: Vec<Listed>,
    owners: Vec<Listed>,
    touchers: Vec<Listed>,
    heap_line: Option<String>,
    heaps: Vec<HeapRow<'a>>,
    growers_line: Option<String>,
    growers: Vec<GrowthRow>,
    disagreements: Vec<String>,
    malloc: Vec<MallocRow>,
    processes: Vec<ProcessRow<'a>>,
    threads: Vec<ThreadRow<'a>>,
    are_few: bool,
    has_waits: bool,
    has_containers: bool,
    unknown: Vec<String>,
    measured: Vec<String>,
    command: Option<String>,
}

/// A stack in a list.
struct Listed {
    value: String,
    /// Its part of all, in percent.
    share: String,
    stack: TopStack,
}

/// The page.
#[must_use]
pub fn html(incident: &Incident, views: &[View]) -> String {
    let top_of = |name: &str| {
        let profiles = views.iter().filter(|view| view.name == name).map(|view| &view.profile);
        profiles
            .flat_map(|profile| {
                let listed = |stack: TopStack| Listed {
                    value: show::value(&stack, &profile.sample_types[0]),
                    share: share(stack.share),
                    stack,
                };
                top::stacks(profile, 0, STACKS).into_iter().map(listed)
            })
            .collect()
    };
    let heap = views.iter().find(|view| view.name == "heap").map(|view| &view.profile);
    let compared = incident.baseline.as_ref().filter(|baseline| since::is_compared(baseline));
    let before = compared.and(heap).and_then(|heap| profile::heap_before(incident, heap));
    let functions = heap.zip(before.as_ref()).map_or(Vec::new(), |(heap, before)| since::functions_of(heap, before));
    let since = since::line_of(incident, functions.clone());
    let name_of = |pid: i64| {
        let living = incident.processes.iter().map(|process| (process.pid, &process.comm));
        let mut all = living.chain(incident.ended.iter().map(|ended| (ended.pid, &ended.comm)));
        all.find(|(own, _)| i64::from(*own) == pid).map(|(_, comm)| format!("{comm} [{pid}]"))
    };
    let graph = |view: &View| {
        let before = before.as_ref().filter(|_| view.name == "heap");
        // Of the machine's view of itself there is one tree, whoever's the bytes are.
        let data = graph::graph(view, before, name_of).json();
        (view.name, view.title, data)
    };
    let mut grown = compared.map_or(Vec::new(), |baseline| {
        let rows =
            [("memory", since::kinds(baseline)), ("process", since::processes(baseline)), ("function", functions)];
        let named = |(by, rows): (_, Vec<Grown>)| rows.into_iter().take(GROWN).map(move |row| (by, row));
        rows.into_iter().flat_map(named).collect()
    });
    grown.retain(|(_, row): &(&str, Grown)| row.growth() != 0);
    let headline = show::headline(incident);
    let threads = tables::threads(incident, views);
    let report = Report {
        incident,
        policy: policy::policy(SCRIPT, STYLE),
        script: SCRIPT,
        style: STYLE,
        verdict: incident.verdict.as_ref().map_or_else(|| headline.clone(), title),
        headline,
        since,
        time: units::time(incident.time_unix_us),
        left_out: left_out::line(incident),
        others: others::line(incident),
        curve: timeline::curve(incident),
        moments: timeline::moments(incident),
        account_line: accounts::line(incident),
        accounts: accounts::rows(incident),
        graphs: views.iter().map(graph).collect(),
        span: compared.map(|baseline| since::span(baseline.span_us())),
        grown,
        stacks: top_of("threads"),
        owners: top_of("heap"),
        touchers: top_of("growth"),
        heap_line: show::heap_line(incident),
        heaps: heaps::rows(incident),
        growers_line: growers::line(incident),
        growers: growers::rows(incident),
        disagreements: growers::disagreements(incident),
        malloc: mallocs::rows(incident),
        processes: tables::processes(incident),
        are_few: threads.len() <= FEW,
        has_containers: incident.processes.iter().any(|process| process.container_id.is_some()),
        has_waits: threads.iter().any(|row| row.waited.is_some()),
        threads,
        unknown: show::unknown(incident),
        measured: measured::sentences(incident),
        command: measured::command(incident),
    };
    // Rendering into a String fails only where a Display does; none of ours does.
    report.render().unwrap_or_else(|error| format!("<!doctype html><p>The report could not be rendered: {error}</p>"))
}

/// The summary as the page's heading: of "kill: killed sort" the first is no news.
fn title(verdict: &Verdict) -> String {
    let effect = verdict.summary.split_once(": ").filter(|(action, effect)| effect.starts_with(action));
    let Some((_, effect)) = effect else { return verdict.summary.clone() };
    let mut letters = effect.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// A part of 1 in percent.
fn share(part: f64) -> String {
    if part < 0.005 { "< 1 %".to_owned() } else { format!("{:.0} %", part * 100.0) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heading_says_nothing_twice() {
        let titled = |summary: &str| {
            let steps = Vec::new();
            title(&Verdict { summary: summary.to_owned(), relieved: true, rule: None, problems: Vec::new(), steps })
        };
        assert_eq!(titled("kill: killed sort [7], 25.1 MiB came back"), "Killed sort [7], 25.1 MiB came back");
        for other in ["grant=64M: the limit is now 1.0 GiB", "SIGINT was received: the hold is released"] {
            assert_eq!(titled(other), other);
        }
    }
}
