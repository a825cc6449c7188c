//! Rows of the page's tables.

use crate::incident::model::{Incident, Process, StopOutcome, Thread};
use crate::incident::profile::View;
use reprieve_flamegraph::{FrameKind, LabelValue, Sample};
use std::collections::HashMap;

/// A process.
pub(super) struct ProcessRow<'i> {
    pub p: &'i Process,
    /// How much more of its own it has than in the record that is compared.
    pub grew: Option<i64>,
}

/// A thread.
pub(super) struct ThreadRow<'i> {
    pub process: &'i Process,
    pub thread: &'i Thread,
    /// Its innermost function.
    pub at: String,
    pub stop: &'static str,
    /// What it waited for in the kernel, where that is not our own stop.
    pub waited: Option<&'i str>,
}

/// Processes, the biggest first.
pub(super) fn processes(incident: &Incident) -> Vec<ProcessRow<'_>> {
    let grown = incident.baseline.iter().flat_map(|baseline| &baseline.processes);
    let grown: HashMap<i32, i64> =
        grown.map(|g| (g.pid, g.after_bytes as i64 - g.before_bytes.unwrap_or(0) as i64)).collect();
    let mut rows: Vec<ProcessRow<'_>> =
        incident.processes.iter().map(|p| ProcessRow { p, grew: grown.get(&p.pid).copied() }).collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.p.memory.pss_bytes));
    rows
}

/// Threads, those of the biggest processes first.
pub(super) fn threads<'i>(incident: &'i Incident, views: &[View]) -> Vec<ThreadRow<'i>> {
    let functions = innermost(views);
    let of = |process: &'i Process| {
        let row = |thread: &'i Thread| ThreadRow {
            process,
            thread,
            at: functions.get(&thread.tid).cloned().unwrap_or_default(),
            stop: match thread.stop {
                StopOutcome::Stopped => "stopped",
                StopOutcome::NotStopped(_) => "not stopped",
                StopOutcome::Gone => "had ended",
            },
            // Where ptrace(2) stops a thread (kernel/signal.c): true of each that we look at.
            waited: thread.wchan.as_deref().filter(|wchan| !wchan.is_empty() && *wchan != "ptrace_stop"),
        };
        process.threads.iter().map(row).collect::<Vec<_>>()
    };
    processes(incident).into_iter().flat_map(|row| of(row.p)).collect()
}

/// The innermost function of each thread, by its TID; an interpreter's where it runs one, since its
/// own functions are the same for all programs.
fn innermost(views: &[View]) -> HashMap<i32, String> {
    let mut functions = HashMap::new();
    for view in views.iter().filter(|view| view.name == "threads") {
        for sample in &view.profile.samples {
            let frames = || sample.stack.iter().rev().filter_map(|&frame| view.profile.frames.get(frame));
            let script = frames().find(|frame| frame.kind == FrameKind::Script);
            let function = script.or_else(|| frames().find(|frame| frame.kind != FrameKind::Label));
            if let (Some(tid), Some(function)) = (tid(sample), function) {
                functions.insert(tid, function.title());
            }
        }
    }
    functions
}

fn tid(sample: &Sample) -> Option<i32> {
    sample.labels.iter().find_map(|(name, value)| match value {
        LabelValue::Number(tid, _) if name == "tid" => i32::try_from(*tid).ok(),
        _ => None,
    })
}
