//! One OOM, the whole way: stop, record, decide, let go.

use super::ration::Share;
use super::recorder::{Recorder, state_of};
use crate::accounting;
use crate::baseline::{History, Record};
use crate::cgroup::{self, CgroupError, CpuGroup, Memcg};
use crate::desk::Desk;
use crate::guardian::{heap, own_status_bytes};
use crate::hold::Brake;
use crate::hold::watchdog::Line;
use crate::incident::baseline::Baseline;
use crate::incident::left_out::{LeftOut, Part};
use crate::incident::model::{HoldReport, Incident, MemcgState, Process, SymbolState, Symbols, Trigger, Verdict};
use crate::incident::{others, show, since, units};
use crate::killers;
use crate::metrics::{Event, Feed};
use crate::say;
use crate::signals::Interrupt;
use crate::snapshot::kernel_log::KernelLog;
use crate::snapshot::{self, Evidence, Options};
use crate::verdict::collect::Collection;
use crate::verdict::policy::Policy;
use crate::verdict::purse::{Allowance, By};
use crate::verdict::{self, Asking, Ladders, Quota, Scene};
use crate::witness::{self, GrowthWitness, HeapTable};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Time that stopping threads may take of a hold.
const STOP_TIME: Duration = Duration::from_secs(1);
/// Fifths of a deadline that symbols may take before the verdict.
const SYMBOL_FIFTHS: u32 = 2;
/// Part of a hold kept for the verdict itself.
const VERDICT_TIME: Duration = Duration::from_millis(500);

/// Most of a hold that looking at who made processes grow may take.
const GROWTH_TIME: Duration = Duration::from_millis(500);

/// How the OOMs of a memcg are answered.
#[derive(Debug, Clone)]
pub struct Manner {
    /// Longest that the analysis may hold.
    pub deadline: Duration,
    /// What is done.
    pub policy: Policy,
    /// What to record.
    pub options: Options,
    /// Whether what would be done is only told, and the kernel decides.
    pub is_dry: bool,
}

/// A memcg, and what it takes to answer an OOM in it.
#[derive(Debug)]
pub struct Answerer<'a> {
    /// The hold.
    pub brake: &'a mut dyn Brake,
    /// The memcg.
    pub memcg: &'a Memcg,
    /// Its CPU group on version 1.
    pub cpu: Option<&'a CpuGroup>,
    /// Told how long everything may take.
    pub watchdog: &'a Line,
    /// Writes the incident.
    pub recorder: &'a Recorder,
    /// Ends every wait.
    pub interrupt: &'a mut dyn Interrupt,
    /// How.
    pub manner: &'a Manner,
    /// What the incident is about, for its name.
    pub subject: &'a str,
    /// The table of a command that we started.
    pub heap: Option<&'a HeapTable>,
    /// Who watches the page faults of a command that we started.
    pub growth: Option<&'a GrowthWitness>,
    /// What the memcg was like until now.
    pub history: Option<&'a History>,
    /// Whether heaps are looked at: that of the command, and of all that have a table of
    /// their own.
    pub reads_heaps: bool,
    /// What every line of ours begins with, to tell one memcg from the other.
    pub teller: &'a str,
    /// Whether there is to be an incident of it.
    pub share: &'a Share,
    /// Set where there is one that only a kill has.
    pub spent: &'a mut bool,
    /// Where operators are served.
    pub desk: Option<&'a Desk>,
    /// Whether who started us can be asked on our terminal.
    pub on_terminal: bool,
    /// Where it is counted.
    pub feed: Option<&'a Feed>,
    /// What it may be granted; `None` where nobody says.
    pub allowance: Option<&'a Allowance>,
    /// Where a throttle is left that helped, for who looks after it.
    pub throttle: Option<&'a mut Option<Quota>>,
}

/// What came of an OOM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered {
    /// Nobody was there any more who could be held.
    Nobody,
    /// The memcg is well.
    Relieved,
    /// The kernel decides; the incident of it, if there is one.
    LeftToKernel(Option<String>),
}

impl Answerer<'_> {
    /// Answers an OOM that has just been noticed.
    pub fn answer(&mut self) -> Result<Answered, CgroupError> {
        let noticed = Instant::now();
        let deadline = noticed + self.manner.deadline;
        // A watchdog that died leaves the kernel's own OOM killer switched off
        // without a second pair of eyes; the hold is short and we go on.
        let _ = self.watchdog.hold_until(deadline);
        let kernel_kills = self.memcg.kernel_kills().ok();
        let heap_before = heap::mark();
        let threads = self.brake.stop(deadline.min(noticed + STOP_TIME))?;
        let stop_window = noticed.elapsed();
        let (threads_stopped, threads_not_stopped) = threads.counts();
        if threads_stopped == 0 && threads_not_stopped == 0 {
            // All who were there are dying, of a kill just before.
            let _ = self.watchdog.released();
            return self.brake.resume(threads).map(|()| Answered::Nobody);
        }
        let pids = self.memcg.pids()?;
        let mut state = state_of(self.memcg, &self.manner.policy.worths);
        // Not the few KiB that the stop may have lent.
        state.limit_bytes = Some(self.brake.limit());
        let compared = self.history.and_then(|history| history.choose(state.usage_bytes));
        let before = compared.and_then(|record| record.heap.as_ref());
        let collection = self.choose(&pids, &state, compared, noticed, deadline);
        let (parts, left_out) = (collection.parts, self.left_out(&collection));
        let heaps =
            || (self.reads_heaps && parts.has(Part::Heap)).then(|| witness::read_tables(self.heap, before, &pids));
        let options = Options { parts, ..self.manner.options };
        let mut evidence = snapshot::take(&pids, threads.threads(), heaps, options);
        if let Some(growth) = self.growth.filter(|_| parts.has(Part::Growth)) {
            let left = deadline.saturating_duration_since(Instant::now()) / 4;
            growth.tell(&mut evidence, Instant::now() + left.min(GROWTH_TIME));
        }
        let snapshot_time = noticed.elapsed();
        let left = deadline.saturating_duration_since(Instant::now()) / 4;
        let account = || accounting::take(self.memcg, &evidence.processes, left.min(accounting::AT_MOST));
        let accounting = parts.has(Part::Accounting).then(account);
        self.brake.measure();
        let mut incident = self.recorder.draft_about(self.subject, Trigger::Oom, Some(state), evidence);
        (incident.accounting, incident.left_out) = (accounting, left_out);
        incident.baseline = self.baseline(noticed, compared, &incident.processes);
        incident.candidates = verdict::candidates(&incident.processes, self.memcg, &self.manner.policy.worths);
        // The draft was made when the evidence was complete.
        incident.time_unix_us -= noticed.elapsed().as_micros() as u64;

        let staging = self.stage(&incident);
        let mut symbolized_us = None;
        if let Some(staging) = &staging {
            let left = deadline.saturating_duration_since(Instant::now()).saturating_sub(VERDICT_TIME);
            match self.recorder.symbolize(staging, left.min(self.manner.deadline * SYMBOL_FIFTHS / 5)) {
                Ok(symbols) => {
                    incident.symbols = symbols;
                    symbolized_us = Some(noticed.elapsed().as_micros() as u64);
                }
                Err(failure) => {
                    incident.symbols =
                        Symbols { state: SymbolState::AfterVerdict(failure.to_string()), ..Symbols::default() };
                }
            }
        }
        self.brake.measure();
        let summary = show::headline(&incident);
        let left = deadline.saturating_duration_since(Instant::now());
        let ladders = Ladders::of(&self.manner.policy, &incident).within(left);
        let mut scene = Scene {
            brake: &mut *self.brake,
            memcg: self.memcg,
            cpu: self.cpu,
            processes: &incident.processes,
            threads: Some(threads),
            watchdog: Some(self.watchdog),
            interrupt: &mut *self.interrupt,
            asking: Asking {
                desk: self.desk,
                on_terminal: self.on_terminal,
                id: &incident.id,
                summary: &summary,
                folder: staging.as_ref().map(super::Staged::path),
            },
            next: Vec::new(),
            is_watched: false,
            is_deferred: false,
            released: None,
            kernel_kills,
            other_victims: Vec::new(),
            was_helped: false,
            worths: &self.manner.policy.worths,
            allowance: self.allowance,
            by: By::Ladder,
            throttle: self.throttle.as_deref_mut(),
        };
        let mut verdict = match self.manner.is_dry {
            true => verdict::rehearse(&mut scene, ladders),
            false => verdict::decide(&mut scene, ladders),
        };
        verdict.problems = collection.with_problems(std::mem::take(&mut verdict.problems));
        let path = self.memcg.path();
        verdict.problems.iter().for_each(|problem| say!(Warning, cgroup = path; "{}{problem}", self.teller));
        let held = scene.released.unwrap_or_else(Instant::now) - noticed;
        let other_victims = std::mem::take(&mut scene.other_victims);
        let _ = self.watchdog.released();
        (incident.other_killers, incident.other_victims) = (killers::active_at(self.memcg), other_victims);
        let micros = |d: Duration| d.as_micros() as u64;
        let heap_table_bytes = self.heap.map_or(0, HeapTable::ready_bytes);
        incident.hold = Some(HoldReport {
            brake: self.brake.name().to_owned(),
            kernel: self.brake.told(),
            stop_window_us: micros(stop_window),
            exposed_us: micros(self.brake.exposed()),
            snapshot_us: micros(snapshot_time),
            symbolized_us,
            held_us: micros(held),
            deadline_us: micros(self.manner.deadline),
            threads_stopped,
            threads_not_stopped,
            guardian_locked_bytes: own_status_bytes("VmLck").saturating_sub(heap_table_bytes),
            heap_table_bytes,
            guardian_peak_bytes: own_status_bytes("VmHWM"),
            guardian_hold_heap_bytes: heap::peak_since(heap_before) as u64,
            deciding_faults: None,
        });
        let is_deadly = verdict.is_deadly() || !incident.other_victims.is_empty();
        let unrecorded = self.share.refuses(is_deadly);
        // What is dropped leaves no folder.
        let staging = staging.filter(|_| unrecorded.is_none());
        *self.spent = staging.is_some() && self.share.is_for_kills();
        self.tell(&incident, &verdict, held, unrecorded);
        self.count(&incident, &verdict, staging.is_some());
        let id = staging.is_some().then(|| incident.id.clone());
        let answered = if verdict.relieved { Answered::Relieved } else { Answered::LeftToKernel(id) };
        incident.verdict = Some(verdict);
        if let Some(staging) = staging {
            self.recorder.finish(incident, staging);
        }
        Ok(answered)
    }

    /// What is to be collected, by what is known of it for next to nothing.
    fn choose(
        &self,
        pids: &[i32],
        state: &MemcgState,
        compared: Option<&Record>,
        noticed: Instant,
        deadline: Instant,
    ) -> Collection {
        let (policy, usual) = (&self.manner.policy, self.manner.options.parts);
        if !policy.chooses_evidence(&state.path) {
            return policy.collection(usual);
        }
        let evidence = Evidence { processes: snapshot::acquaint(pids), ..Evidence::default() };
        let mut early = self.recorder.draft_about(self.subject, Trigger::Oom, Some(state.clone()), evidence);
        early.baseline = self.baseline(noticed, compared, &early.processes);
        policy.choose(&early, usual, deadline.saturating_duration_since(Instant::now()))
    }

    /// What of the evidence that could be had is not collected.
    fn left_out(&self, collection: &Collection) -> Option<LeftOut> {
        let mut left_out = collection.left_out(self.manner.options.parts)?;
        left_out.parts.retain(|part| *part != Part::Growth || self.growth.is_some());
        Some(left_out).filter(|left_out| !left_out.parts.is_empty())
    }

    /// What it was like before.
    fn baseline(&self, noticed: Instant, compared: Option<&Record>, processes: &[Process]) -> Option<Baseline> {
        self.history?.tell(noticed, compared?, self.memcg, processes)
    }

    fn stage(&self, incident: &Incident) -> Option<super::Staged> {
        if self.share.refuses(true).is_some() {
            return None;
        }
        self.recorder.stage(incident).map_err(|error| self.leaves_none(&error)).ok()
    }

    fn leaves_none(&self, why: &dyn std::fmt::Display) {
        let path = self.memcg.path();
        say!(Warning, cgroup = path; "{}this OOM leaves no incident: {why}", self.teller);
    }

    fn tell(&self, incident: &Incident, verdict: &Verdict, held: Duration, unrecorded: Option<&str>) {
        let Some(hold) = &incident.hold else { return };
        let not = match hold.threads_not_stopped {
            0 => String::new(),
            count => format!(", {count} not stopped,"),
        };
        let usage = incident.memcg.as_ref().map_or(0, |m| m.usage_bytes);
        let owner = since::owner(incident).map_or(String::new(), |owner| format!("; {owner}"));
        let labels = incident.memcg.as_ref().map(|m| m.labels.clone()).unwrap_or_default();
        let text = |label: &Option<String>| label.clone().unwrap_or_default();
        say!(
            Notice,
            event = "oom",
            cgroup = self.memcg.path(),
            incident = incident.id,
            container_id = text(&labels.container_id),
            pod_uid = text(&labels.pod_uid),
            usage_bytes = usage,
            held_us = hold.held_us,
            action = verdict.steps.last().map_or("", |step| step.action.as_str()),
            rule = verdict.rule.as_deref().unwrap_or_default(),
            relieved = verdict.relieved;
            "{}out of memory at {}; {}{not} held {}. {}{owner}",
            self.teller,
            units::bytes(usage),
            units::count(hold.threads_stopped.into(), "thread"),
            units::micros(held.as_micros() as u64),
            show::verdict_line(incident, verdict)
        );
        if !incident.other_victims.is_empty()
            && let Some(others) = others::line(incident)
        {
            say!(Warning, event = "other_kill", cgroup = self.memcg.path(), incident = incident.id;
                "{}{others}", self.teller);
        }
        unrecorded.iter().for_each(|why| self.leaves_none(why));
    }

    /// Counts it, and who else has killed.
    fn count(&self, incident: &Incident, verdict: &Verdict, is_recorded: bool) {
        let (Some(hold), Some(feed)) = (&incident.hold, self.feed) else { return };
        let action = verdict.steps.last().map_or("", |step| step.action.split('=').next().unwrap_or_default());
        feed.tell(&Event::Oom {
            cgroup: self.memcg.path().to_owned(),
            labels: cgroup::labels(self.memcg.path()),
            action: action.to_owned(),
            relieved: verdict.relieved,
            held_us: hold.held_us,
            stop_us: hold.stop_window_us,
            is_recorded,
        });
        if !incident.other_victims.is_empty() {
            let killer = killers::names(&incident.other_killers).join(",");
            let killer = if killer.is_empty() { "unknown".to_owned() } else { killer };
            feed.tell(&Event::OtherKill { killer });
        }
    }

    /// The kernel was faster, or was left to decide after the incident `left`: records
    /// what is left.
    pub fn record_kernel_kill(&mut self, log: &mut std::io::Result<KernelLog>, left: Option<&str>) {
        let pids = self.memcg.pids().unwrap_or_default();
        let mut state = state_of(self.memcg, &self.manner.policy.worths);
        // Not the wall above it.
        state.limit_bytes = Some(self.brake.limit());
        let now = Instant::now();
        let collection = self.choose(&pids, &state, None, now, now + self.manner.deadline);
        let (parts, left_out) = (collection.parts, self.left_out(&collection));
        let options = Options { parts, ..self.manner.options };
        let mut evidence = snapshot::take(&pids, &BTreeMap::new(), || None, options);
        evidence.gaps.extend(collection.problems);
        let victims = match log {
            Ok(log) => log.victims(self.memcg.dir(), |victim| {
                let is_here = evidence.processes.iter().any(|p| (p.pid, &p.comm) == (victim.pid, &victim.comm));
                is_here || self.growth.is_some_and(|growth| growth.has_seen(victim.pid))
            }),
            Err(error) => {
                evidence.gaps.push(format!("whom it killed is not known: /dev/kmsg: {error}"));
                Vec::new()
            }
        };
        if log.is_ok() && victims.is_empty() {
            evidence.gaps.push("the kernel log does not say whom it killed".to_owned());
        }
        if let Some(growth) = self.growth.filter(|_| parts.has(Part::Growth)) {
            growth.tell(&mut evidence, Instant::now() + GROWTH_TIME);
            growth.tell_of_killed(&mut evidence, &victims, Instant::now() + GROWTH_TIME);
        }
        evidence.gaps.insert(
            0,
            match left {
                Some(id) => format!("it was left to the kernel: what was tried for it, and the stacks, are in {id}"),
                None if !evidence.ended.is_empty() => {
                    "the kernel's OOM killer was first: of whom it killed there are no stacks but those of page faults"
                        .to_owned()
                }
                None => "the kernel's OOM killer was first: there are no stacks of whom it killed".to_owned(),
            },
        );
        let mut incident = self.recorder.draft_about(self.subject, Trigger::KilledByKernel, Some(state), evidence);
        incident.kernel_victims = victims;
        incident.other_killers = killers::active_at(self.memcg);
        let account = || accounting::take(self.memcg, &incident.processes, accounting::AT_MOST);
        incident.accounting = parts.has(Part::Accounting).then(account);
        incident.left_out = left_out;
        // What was charged before the kill is gone: only the curve tells.
        incident.baseline = self.history.and_then(|history| history.curve(Instant::now()));
        say!(Notice, event = "kernel_kill", cgroup = self.memcg.path(), incident = incident.id;
            "{}{}", self.teller, show::headline(&incident));
        let staging = self.stage(&incident);
        *self.spent = staging.is_some() && self.share.is_for_kills();
        self.feed.iter().for_each(|feed| {
            feed.tell(&Event::KernelKill {
                cgroup: self.memcg.path().to_owned(),
                labels: cgroup::labels(self.memcg.path()),
                is_recorded: staging.is_some(),
            });
        });
        if let Some(staging) = staging {
            self.recorder.finish(incident, staging);
        }
        self.share.refuses(true).iter().for_each(|why| self.leaves_none(why));
        if let Err(error) = self.brake.rearm() {
            let path = self.memcg.path();
            say!(Error, cgroup = path; "{}the brake could not be armed again: {error}", self.teller);
        }
    }
}
