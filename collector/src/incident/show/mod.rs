//! An incident as text: sentences for every reader, and the page for a terminal.

mod page;

pub use page::{Completed, Layout, completed, page};

use super::model::{Estimate, HoldReport, Incident, Process, Step, SymbolState, Trigger, Verdict};
use super::units::{bytes, count, grouped, micros};
use super::{accounts, heaps, since};
use reprieve_flamegraph::SampleType;
use reprieve_flamegraph::top::TopStack;
use std::collections::BTreeMap;

/// What happened, in one sentence.
#[must_use]
pub fn headline(incident: &Incident) -> String {
    let biggest = incident.processes.iter().max_by_key(|p| p.memory.pss_bytes);
    let memcg = incident.memcg.as_ref();
    sentence(&Happened {
        trigger: incident.trigger,
        victim: incident.kernel_victims.first().map(|victim| (victim.comm.as_str(), victim.pid)),
        biggest: biggest.map(|process| (process.comm.as_str(), process.pid)),
        memcg: memcg.map(|memcg| (memcg.path.as_str(), memcg.usage_bytes, memcg.limit_bytes)),
    })
}

/// What the headline tells of.
pub(super) struct Happened<'a> {
    pub trigger: Trigger,
    /// Whom the kernel killed.
    pub victim: Option<(&'a str, i32)>,
    /// The process that used most.
    pub biggest: Option<(&'a str, i32)>,
    /// Path, usage and limit.
    pub memcg: Option<(&'a str, u64, Option<u64>)>,
}

pub(super) fn sentence(happened: &Happened<'_>) -> String {
    let what = match happened.trigger {
        Trigger::Oom => "ran out of memory and was held",
        Trigger::KilledByKernel => "ran out of memory and was killed by the kernel",
        Trigger::Snapshot => "was recorded on request",
    };
    let named = |(comm, pid): (&str, i32)| format!("{comm} [{pid}]");
    let who = match (happened.victim, happened.biggest, happened.trigger) {
        (Some(victim), ..) => named(victim),
        (None, Some(process), Trigger::Oom | Trigger::Snapshot) => named(process),
        (None, _, Trigger::KilledByKernel) => "a process".to_owned(),
        (None, None, _) => "a cgroup".to_owned(),
    };
    let usage = happened.memcg.map_or(String::new(), |(_, usage, limit)| match limit {
        // What is charged after a kill tells nothing.
        Some(limit) if happened.trigger == Trigger::KilledByKernel => format!(" at a limit of {}", bytes(limit)),
        Some(limit) => format!(": {} of {} charged", bytes(usage), bytes(limit)),
        None => format!(": {} charged, no limit", bytes(usage)),
    });
    let leaf = happened.memcg.and_then(|(path, ..)| path.rsplit('/').next());
    let place = leaf.map_or(String::new(), |leaf| format!(" in {leaf}"));
    format!("{who} {what}{usage}{place}")
}

/// The verdict, and what grew until then, in one sentence.
#[must_use]
pub fn verdict_line(incident: &Incident, verdict: &Verdict) -> String {
    let growth = since::line(incident).map_or(String::new(), |growth| format!("; {growth}"));
    format!("{}{growth}", verdict.summary)
}

/// Whether the summary has all that its steps came to: of the only one nothing is left to tell
/// but its reason.
#[must_use]
pub fn is_told(verdict: &Verdict) -> bool {
    matches!(&verdict.steps[..], [step] if verdict.summary.starts_with(&format!("{}: ", step.action)))
}

/// Whether one rule took over from the other, so that each step has to say whose it is.
#[must_use]
pub fn has_several_rules(verdict: &Verdict) -> bool {
    verdict.steps.windows(2).any(|pair| pair[0].rule != pair[1].rule)
}

/// `by rule "batch first"`.
#[must_use]
pub fn rule_of(step: &Step) -> String {
    step.rule.as_ref().map_or_else(|| "by no rule".to_owned(), |rule| format!("by rule {rule:?}"))
}

/// How the hold went, in one sentence.
#[must_use]
pub fn hold_line(hold: &HoldReport) -> String {
    let not = match hold.threads_not_stopped {
        0 => String::new(),
        n => format!(", {n} could not be stopped"),
    };
    format!(
        "brake {}: {} stopped within {}{not}; evidence after {}, let go after {}",
        hold.brake,
        count(hold.threads_stopped.into(), "thread"),
        micros(hold.stop_window_us),
        micros(hold.snapshot_us),
        micros(hold.held_us),
    )
}

/// What the heap witnesses saw, in one sentence; `None` without any.
#[must_use]
pub fn heap_line(incident: &Incident) -> Option<String> {
    let rows = heaps::rows(incident);
    let processes = incident.processes.iter().filter(|p| !p.heaps.is_empty()).count();
    let all = if rows.len() > 1 { rows.last()?.clone() } else { heaps::sum(&rows)? };
    let period = all.period_bytes.map_or(String::new(), |period| format!(" (one in {})", bytes(period)));
    let mut line = format!(
        "{} live in {processes} of {}, estimated from {}{period}; {} ever allocated",
        estimate_bytes(&all.inuse),
        count(incident.processes.len() as u64, "process"),
        count(all.inuse.samples, "sample"),
        bytes(all.alloc.bytes),
    );
    if all.lost_bytes > 0 {
        line.push_str(&format!("; {} more found no room in the table", bytes(all.lost_bytes)));
    }
    Some(line)
}

/// `245 MiB ± 1.9 MiB`.
#[must_use]
pub fn estimate_bytes(estimate: &Estimate) -> String {
    format!("{} ± {}", bytes(estimate.bytes), bytes(estimate.sigma_bytes))
}

/// A value of a sample type, with its error where it is an estimate.
#[must_use]
pub fn value(stack: &TopStack, sample_type: &SampleType) -> String {
    let say = |value: u64| match sample_type.unit.as_str() {
        "bytes" => bytes(value),
        _ => grouped(value),
    };
    let noun = match sample_type.kind.as_str() {
        "threads" if stack.value == 1 => " thread",
        "threads" => " threads",
        "growth" | "growth_reliable" => " grown",
        "inuse_objects" | "alloc_objects" => " objects",
        _ => "",
    };
    let mut text = say(stack.value.unsigned_abs());
    if stack.spread.samples > 0 {
        let sigma = say(stack.spread.sigma() as u64);
        text.push_str(&format!(" ± {sigma}{noun} from {}", count(stack.spread.samples, "sample")));
    } else {
        text.push_str(noun);
    }
    text
}

/// How many frames have no name, and why; empty when all have.
#[must_use]
pub fn misses(incident: &Incident) -> Vec<String> {
    let mut reasons: BTreeMap<&str, u64> = BTreeMap::new();
    for address in &incident.symbols.addresses {
        if let Some(miss) = &address.miss {
            *reasons.entry(miss).or_default() += 1;
        }
    }
    // An address may be in many frames; those count whose function is not known.
    let unnamed: BTreeMap<(i32, u64), Option<&str>> = incident
        .symbols
        .generated
        .iter()
        .map(|a| ((a.pid, a.address), a.miss.as_deref().filter(|_| a.frame.is_none())))
        .collect();
    let mut unmapped: BTreeMap<&str, u64> = BTreeMap::new();
    for process in &incident.processes {
        let frames = process.threads.iter().flat_map(|t| t.stack.frames.iter().zip(&t.frame_modules));
        for (frame, _) in frames.filter(|(_, module)| module.is_none()) {
            let no_module = "in no mapped file (generated code, or a wrong stack)";
            let known = unnamed.get(&(process.pid, frame.lookup_address().0));
            if let Some(why) = known.map_or(Some(no_module), |why| *why) {
                *unmapped.entry(why).or_default() += 1;
            }
        }
    }
    let mut lines: Vec<String> =
        reasons.into_iter().map(|(why, n)| format!("no name for {}: {why}", count(n, "address"))).collect();
    lines.extend(unmapped.into_iter().map(|(why, n)| format!("{}: {why}", count(n, "frame"))));
    match &incident.symbols.state {
        // Without a verdict there was nothing to be late for.
        SymbolState::AfterVerdict(_) if incident.verdict.is_none() => {}
        SymbolState::AfterVerdict(why) => lines.push(format!("symbols were found only after the verdict: {why}")),
        SymbolState::Failed(why) => lines.push(format!("there are no symbols: {why}")),
        SymbolState::Pending | SymbolState::BeforeVerdict => {}
    }
    lines
}

/// Everything that is not known, each a sentence.
#[must_use]
pub fn unknown(incident: &Incident) -> Vec<String> {
    let mut unknown = misses(incident);
    unknown.extend(incident.gaps.iter().cloned());
    unknown.extend(gaps_of_processes(incident));
    unknown.extend(accounts::gaps(incident));
    unknown
}

/// What is missing of processes; what many lack is said once.
fn gaps_of_processes(incident: &Incident) -> Vec<String> {
    let mut lacking: Vec<(&str, &Process, u64)> = Vec::new();
    for process in &incident.processes {
        for gap in &process.gaps {
            match lacking.iter_mut().find(|(known, ..)| known == gap) {
                Some((.., more)) => *more += 1,
                None => lacking.push((gap, process, 0)),
            }
        }
    }
    let line = |(gap, first, more): (&str, &Process, u64)| {
        let others = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{} [{}]{others}: {gap}", first.comm, first.pid)
    };
    lacking.into_iter().map(line).collect()
}

/// Control characters, which a hostile name could hold, must not reach a
/// terminal.
pub(crate) fn printable(c: char) -> char {
    if c.is_control() { '?' } else { c }
}

/// Cuts in the middle, where names are least telling.
pub(super) fn fit(text: &str, width: usize) -> String {
    let chars: Vec<char> = text.chars().map(printable).collect();
    if chars.len() <= width || width < 8 {
        return chars.into_iter().collect();
    }
    let tail = (width - 1) / 3;
    let head = width - 1 - tail;
    chars[..head].iter().chain(['…'].iter()).chain(&chars[chars.len() - tail..]).collect()
}
