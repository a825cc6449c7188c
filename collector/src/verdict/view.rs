//! An incident as a rule sees it.

use super::patience::{Patience, ROUND};
use super::worth::Worths;
use crate::incident::model::{Incident, PressureScope, Step, StepOutcome};
use crate::incident::{heaps, profile, since};
use cel::Context;
use serde::Serialize;
use std::sync::Arc;

/// Stacks that rules can look at, the biggest first.
const STACKS: usize = 64;
/// Functions of a stack that is made up.
const FRAMES: usize = 32;

/// What rules can ask for. Sizes are bytes, times seconds, and all numbers have a
/// fraction: of two whole ones CEL's `/` makes a whole one.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct View {
    /// Its memcg.
    pub memcg: Memcg,
    /// The machine.
    pub machine: Machine,
    /// Its processes, the biggest first.
    pub processes: Vec<Process>,
    /// Age of the oldest of them.
    pub age: f64,
    /// Bytes that the memcg grew by in a second: since the record that the incident is
    /// compared with, else in the whole age.
    pub growth: f64,
    /// What the memcg is worth; 0 where nobody has said.
    pub priority: f64,
    /// What it may keep when memory is short.
    pub reservation: f64,
    /// Waiting for memory.
    pub pressure: Pressure,
    /// Which of `growth`, `priority`, `reservation`, `pressure` and `heap` somebody has told or
    /// measured: the others are made up as said there.
    pub known: Vec<&'static str>,
    /// Its heap, as far as a witness saw it.
    pub heap: Heap,
    /// Who owns the heap.
    pub stacks: Vec<Stack>,
    /// What was tried in this hold, in order.
    pub steps: Vec<Tried>,
}

/// A memcg at its limit.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Memcg {
    /// Path below the mount.
    pub path: String,
    /// Bytes charged.
    pub usage: f64,
    /// The limit; 0 without one.
    pub limit: f64,
    /// Bytes by kind, from memory.stat: `anon`, `file` on version 2, `rss`, `cache`
    /// on version 1.
    pub stat: std::collections::BTreeMap<String, f64>,
}

/// The machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Machine {
    /// Its host name.
    pub name: String,
    /// All of its memory.
    pub memory: f64,
    /// What a new program could have of it.
    pub available: f64,
}

/// A process.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Process {
    /// Its name (comm).
    pub name: String,
    /// Its program's path; empty where it is not known.
    pub exe: String,
    /// Its user.
    pub uid: f64,
    /// Its share of resident memory (PSS).
    pub size: f64,
    /// Threads.
    pub threads: f64,
    /// Since its start.
    pub age: f64,
}

/// Waiting for memory in the ten seconds before.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Pressure {
    /// Whose tasks: `memcg` or `machine`; empty where it is not known.
    pub scope: &'static str,
    /// Percent of the time in which one or more waited; 0 where it is not known.
    pub some: f64,
    /// Percent of the time in which all waited that had something to do.
    pub full: f64,
}

/// A heap.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Heap {
    /// What was not freed.
    pub live: f64,
    /// What was ever allocated.
    pub allocated: f64,
}

/// A stack that owns memory.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Stack {
    /// Names, outermost first, behind that of the process.
    pub functions: Vec<String>,
    /// Live bytes.
    pub size: f64,
    /// Part of the live heap, 0 to 1.
    pub share: f64,
}

/// An action that was tried, and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tried {
    /// Like `throttle=3s`.
    pub action: String,
    /// `relieved`, `not_enough` or `failed`.
    pub outcome: StepOutcome,
    /// Charged just before.
    pub usage_before: f64,
    /// Charged when it ended.
    pub usage_after: f64,
    /// What less was charged then; 0 where it was more.
    pub freed: f64,
    /// Time it took.
    pub seconds: f64,
    /// Name of the rule whose ladder it was on; empty where none held.
    pub rule: String,
}

impl View {
    /// What there is to see of an incident. Names of functions only if its symbols
    /// are known; stacks only if `with_stacks`, since they are many. What `worths` have of
    /// its memcg is newer than what was recorded.
    #[must_use]
    pub fn of(incident: &Incident, worths: &Worths, with_stacks: bool) -> Self {
        let mut processes: Vec<Process> = incident
            .processes
            .iter()
            .map(|process| Process {
                name: process.comm.clone(),
                exe: process.exe.clone().unwrap_or_default(),
                uid: process.uid.into(),
                size: process.memory.pss_bytes as f64,
                threads: process.threads.len() as f64,
                age: process.age_s,
            })
            .collect();
        processes.sort_by(|a, b| b.size.total_cmp(&a.size));
        let age = processes.iter().map(|process| process.age).fold(0.0, f64::max);
        let memcg = incident.memcg.as_ref().map(|memcg| Memcg {
            path: memcg.path.clone(),
            usage: memcg.usage_bytes as f64,
            limit: memcg.limit_bytes.unwrap_or(0) as f64,
            stat: memcg.stat.iter().map(|(key, value)| (key.clone(), *value as f64)).collect(),
        });
        let memcg = memcg.unwrap_or_default();
        let recorded = incident.memcg.as_ref();
        let priority = worths.configured_priority(&memcg.path).or_else(|| recorded?.priority);
        let reservation = worths.configured_reservation(&memcg.path).or_else(|| recorded?.reservation_bytes);
        let pressure = recorded.and_then(|memcg| memcg.pressure);
        let measured = growth(incident);
        let all = heaps::sum(&heaps::rows(incident));
        let known = [
            ("growth", measured.is_some()),
            ("priority", priority.is_some()),
            ("reservation", reservation.is_some()),
            ("pressure", pressure.is_some()),
            ("heap", all.is_some()),
        ];
        let heap = all.map(|all| Heap { live: all.inuse.bytes as f64, allocated: all.alloc.bytes as f64 });
        let machine = Machine {
            name: incident.host.name.clone(),
            memory: incident.host.memory_bytes as f64,
            available: incident.host.available_bytes as f64,
        };
        View {
            growth: measured.unwrap_or(if age > 0.0 { memcg.usage / age } else { 0.0 }),
            priority: priority.unwrap_or(0).into(),
            reservation: reservation.unwrap_or(0) as f64,
            pressure: pressure.map(Pressure::of).unwrap_or_default(),
            known: known.into_iter().filter(|(_, is_known)| *is_known).map(|(name, _)| name).collect(),
            memcg,
            machine,
            processes,
            age,
            heap: heap.unwrap_or_default(),
            stacks: if with_stacks { stacks(incident) } else { Vec::new() },
            steps: Vec::new(),
        }
    }

    /// One in which every list has an entry, to try rules with.
    #[must_use]
    pub fn sample() -> Self {
        let stat = ["anon", "file", "rss", "cache", "shmem", "slab"].map(|key| (key.to_owned(), 1.0));
        View {
            memcg: Memcg { path: "/a".to_owned(), usage: 1.0, limit: 1.0, stat: stat.into() },
            processes: vec![Process { name: "a".to_owned(), ..Process::default() }],
            stacks: vec![Stack { functions: vec!["a".to_owned(), "main".to_owned()], size: 1.0, share: 1.0 }],
            steps: vec![Tried {
                action: "kill".to_owned(),
                outcome: StepOutcome::Failed,
                usage_before: 1.0,
                usage_after: 1.0,
                freed: 0.0,
                seconds: 1.0,
                rule: "a".to_owned(),
            }],
            known: vec!["growth", "priority", "reservation", "pressure", "heap"],
            ..View::default()
        }
    }

    /// The names that rules can ask for, by example; what is null has those that the kernel
    /// tells.
    pub(super) fn names(&self) -> serde_json::Value {
        let mut names = serde_json::to_value(self).unwrap_or_default();
        names["memcg"]["stat"] = serde_json::Value::Null;
        names
    }

    /// The same with as many processes and stacks as a busy memcg has, to see how long rules
    /// take.
    #[must_use]
    pub fn crowded() -> Self {
        let mut view = View::sample();
        view.processes = vec![view.processes[0].clone(); STACKS];
        view.stacks = vec![view.stacks[0].clone(); STACKS];
        view.stacks.iter_mut().for_each(|stack| stack.functions = vec!["main".to_owned(); FRAMES]);
        view
    }

    /// The variables and functions of rules that are asked with this patience.
    pub(super) fn context(&self, patience: &Patience) -> Result<Context<'static, 'static>, String> {
        let mut context = Context::default();
        let patience = patience.clone();
        context.add_function(ROUND, move || patience.round()).map_err(|error| error.to_string())?;
        let value = |part: Result<cel::Value, cel::SerializationError>| part.map_err(|error| error.to_string());
        context.add_variable_from_value("memcg", value(cel::to_value(&self.memcg))?);
        context.add_variable_from_value("machine", value(cel::to_value(&self.machine))?);
        context.add_variable_from_value("processes", value(cel::to_value(&self.processes))?);
        context.add_variable_from_value("age", self.age);
        context.add_variable_from_value("growth", self.growth);
        context.add_variable_from_value("priority", self.priority);
        context.add_variable_from_value("reservation", self.reservation);
        context.add_variable_from_value("pressure", value(cel::to_value(&self.pressure))?);
        context.add_variable_from_value("known", value(cel::to_value(&self.known))?);
        context.add_variable_from_value("heap", value(cel::to_value(&self.heap))?);
        context.add_variable_from_value("stacks", value(cel::to_value(&self.stacks))?);
        context.add_variable_from_value("steps", value(cel::to_value(&self.steps))?);
        let stacks = Arc::new(self.stacks.clone());
        let share = move |part: Arc<String>| -> f64 {
            let has = |stack: &&Stack| stack.functions.iter().any(|function| function.contains(part.as_str()));
            stacks.iter().filter(has).map(|stack| stack.share).sum()
        };
        context.add_function("share", share).map_err(|error| error.to_string())?;
        let size = |text: Arc<String>| -> Result<f64, cel::ExecutionError> {
            let bytes = crate::size::parse_size(&text);
            bytes.map(|bytes| bytes as f64).map_err(|error| cel::ExecutionError::function_error("size_of", error))
        };
        context.add_function("size_of", size).map_err(|error| error.to_string())?;
        Ok(context)
    }
}

/// Has rules see what was tried so far.
pub(super) fn see_steps(context: &mut Context<'static, 'static>, steps: &[Step]) -> Result<(), String> {
    let tried: Vec<Tried> = steps.iter().map(Tried::of).collect();
    context.add_variable_from_value("steps", cel::to_value(&tried).map_err(|error| error.to_string())?);
    Ok(())
}

impl Tried {
    fn of(step: &Step) -> Self {
        let (before, after) = (step.usage_before_bytes, step.usage_after_bytes);
        Tried {
            action: step.action.clone(),
            outcome: step.outcome,
            usage_before: before as f64,
            usage_after: after as f64,
            freed: before.saturating_sub(after) as f64,
            seconds: step.took_us as f64 / 1e6,
            rule: step.rule.clone().unwrap_or_default(),
        }
    }
}

impl Pressure {
    fn of(pressure: crate::incident::model::Pressure) -> Self {
        let scope = match pressure.scope {
            PressureScope::Memcg => "memcg",
            PressureScope::Machine => "machine",
        };
        Pressure { scope, some: pressure.some_percent, full: pressure.full_percent }
    }
}

/// Bytes that the memcg grew by in a second since the record that the incident is compared
/// with, where there is one, and in the time in which the growth came.
fn growth(incident: &Incident) -> Option<f64> {
    let baseline =
        incident.baseline.as_ref().filter(|baseline| since::is_compared(baseline) && baseline.span_us() > 0)?;
    Some(since::charged(baseline).growth() as f64 / (baseline.span_us() as f64 / 1e6))
}

/// The biggest stacks of the heap with their names.
fn stacks(incident: &Incident) -> Vec<Stack> {
    let heap = profile::heap(incident);
    let total = heap.total(0).max(1) as f64;
    let mut samples: Vec<_> = heap.samples.iter().filter(|sample| sample.values[0] > 0).collect();
    samples.sort_by_key(|sample| std::cmp::Reverse(sample.values[0]));
    samples.truncate(STACKS);
    let stack = |sample: &&reprieve_flamegraph::Sample| {
        let size = sample.values[0] as f64;
        let functions = sample.stack.iter().map(|&index| heap.frames[index].name.clone()).collect();
        Stack { functions, size, share: size / total }
    };
    samples.iter().map(stack).collect()
}

#[cfg(test)]
mod tests {
    use super::super::worth::Said;
    use super::*;
    use crate::cgroup::Which;
    use crate::incident::baseline::Baseline;
    use crate::incident::model;

    fn incident() -> Incident {
        serde_json::from_str(include_str!("../../../fixtures/incidents/sort.json")).unwrap()
    }

    #[test]
    fn what_nobody_recorded_is_none_and_not_known() {
        let view = View::of(&incident(), &Worths::default(), false);
        let usage_per_age = view.memcg.usage / view.age;
        assert_eq!((view.priority, view.reservation, view.growth), (0.0, 0.0, usage_per_age));
        assert_eq!((view.pressure, view.known), (Pressure::default(), vec![]));
    }

    #[test]
    fn what_was_recorded_is_seen_and_the_configuration_wins() {
        let mut incident = incident();
        let memcg = incident.memcg.as_mut().unwrap();
        (memcg.priority, memcg.reservation_bytes) = (Some(-3), Some(7));
        memcg.pressure = Some(model::Pressure { scope: PressureScope::Memcg, some_percent: 12.5, full_percent: 7.25 });
        let (before_us, before_bytes, after_bytes) = (4_000_000, 10 << 20, 50 << 20);
        incident.baseline = Some(Baseline { before_us, before_bytes, after_bytes, ..Baseline::default() });
        let view = View::of(&incident, &Worths::default(), false);
        assert_eq!((view.priority, view.reservation), (-3.0, 7.0));
        assert_eq!(view.growth, f64::from(10 << 20));
        // It came in the last second.
        incident.baseline.as_mut().unwrap().within_us = Some(1_000_000);
        assert_eq!(View::of(&incident, &Worths::default(), false).growth, f64::from(40 << 20));
        assert_eq!(view.pressure, Pressure { scope: "memcg", some: 12.5, full: 7.25 });
        assert_eq!(view.known, ["growth", "priority", "reservation", "pressure"]);
        let said = |glob: &str, priority| Said {
            matches: Some(Which::at(glob).unwrap()),
            priority,
            reservation_bytes: Some(9),
        };
        let view = View::of(&incident, &Worths(vec![said("/**", None), said("/elsewhere", Some(2))]), false);
        assert_eq!((view.priority, view.reservation), (-3.0, 9.0));
        // A curve alone is no record to compare with.
        incident.baseline = Some(Baseline { before_us, ..Baseline::default() });
        assert!(!View::of(&incident, &Worths::default(), false).known.contains(&"growth"));
    }
}
