//! The thread that has the evidence taken and the incident written.
//!
//! It may wait for locks, memory and the disk: the thread that decides does not wait
//! for it longer than its share of the deadline. An incident comes out in any case,
//! with what is known.

use super::Request;
use super::decide::{Begin, Deed, EVIDENCE_SHARE, End, Outcome};
use super::evidence::{Readers, Reading};
use super::handover::{Handover, timeout};
use super::jobs::{Job, List};
use super::roster::Roster;
use super::tracer::Tracer;
use crate::cgroup::{self, Memcg};
use crate::guardian::{Priority, heap, own_status_bytes};
use crate::hold::reserve::{self, ending};
use crate::incident::model::{
    HoldReport, Incident, KernelVictim, Labels, MemcgState, Step, StepOutcome, SymbolState, Symbols, Trigger, Verdict,
};
use crate::incident::{show, units};
use crate::metrics::{self, Feed};
use crate::run::{Recorder, Staged};
use crate::say;
use crate::snapshot::Evidence;
use crate::snapshot::kernel_log::KernelLog;
use crate::verdict::machine_memory;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use reprieve_oom_uapi::Event;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// Share of a deadline for stopping threads: those in the allocator do not stop.
const STOP_SHARE: u32 = 16;
/// The last part of the evidence's time, as a share of it, is for the disk.
const DISK_SHARE: u32 = 4;
/// Time for evidence that was not there before the verdict.
const LATE_TIME: Duration = Duration::from_secs(2);
/// Time for the kernel to kill and to log it.
const KERNEL_TIME: Duration = Duration::from_secs(1);
/// Processes that are read: their evidence has to fit into the reserve.
const MOST_PROCESSES: usize = 48;
/// Words that may wait: two for each OOM, one OOM after the other.
const ROOM: usize = 8;

/// What it is told.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a box is memory that the deciding thread would ask for")]
pub enum Word {
    /// An OOM begins.
    Begin(Begin),
    /// It is over.
    Over(Outcome),
    /// There will be no more.
    End,
}

/// Which evidence is on disk; for the thread that waits for it.
#[derive(Debug)]
pub struct Recorded {
    oom: AtomicU64,
    bell: EventFd,
}

impl Recorded {
    /// None is.
    pub fn new() -> nix::Result<Self> {
        let bell = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Recorded { oom: AtomicU64::new(0), bell })
    }

    /// Whether that of this OOM is.
    pub fn is(&self, oom: u64) -> bool {
        self.oom.load(SeqCst) >= oom
    }

    /// Ready when it may be.
    pub fn bell(&self) -> PollFd<'_> {
        PollFd::new(self.bell.as_fd(), PollFlags::POLLIN)
    }

    /// Makes the bell ready for the next.
    pub fn silence(&self) {
        let _ = self.bell.read();
    }

    /// That of this OOM is.
    pub fn set(&self, oom: u64) {
        self.oom.store(oom, SeqCst);
        let _ = self.bell.write(1);
    }
}

/// The thread, seen from outside.
#[derive(Debug)]
pub struct Chronicler {
    words: Arc<Handover<Word>>,
    recorded: Arc<Recorded>,
    thread: JoinHandle<()>,
}

impl Chronicler {
    /// Starts it and those that it has work for it, as urgent as that.
    pub fn start(
        root: Memcg,
        request: &Request,
        recorder: Recorder,
        roster: Arc<Roster>,
        urgent: Priority,
    ) -> io::Result<Self> {
        let (words, recorded) = (Arc::new(Handover::new(ROOM)?), Arc::new(Recorded::new()?));
        let desk = Desk {
            root,
            deadline: request.deadline,
            jobs: request.jobs,
            options: request.options,
            recorder,
            feed: request.feed.clone(),
            roster,
            readers: Readers::start(urgent)?,
            tracer: Tracer::start(urgent)?,
            log: KernelLog::open(),
            words: Arc::clone(&words),
            recorded: Arc::clone(&recorded),
        };
        let thread = Builder::new().name("reprieve-desk".to_owned()).spawn(move || {
            urgent.take();
            desk.work();
        })?;
        Ok(Chronicler { words, recorded, thread })
    }

    /// Where to tell it something.
    pub fn words(&self) -> Arc<Handover<Word>> {
        Arc::clone(&self.words)
    }

    /// What is on disk.
    pub fn recorded(&self) -> Arc<Recorded> {
        Arc::clone(&self.recorded)
    }

    /// Ends it when everything is published.
    pub fn end(self) {
        if self.words.put(Word::End) {
            let _ = self.thread.join();
        }
    }
}

/// Where it works.
struct Desk {
    root: Memcg,
    deadline: Duration,
    jobs: usize,
    options: crate::snapshot::Options,
    recorder: Recorder,
    feed: Option<Feed>,
    roster: Arc<Roster>,
    readers: Readers,
    tracer: Tracer,
    log: io::Result<KernelLog>,
    words: Arc<Handover<Word>>,
    recorded: Arc<Recorded>,
}

/// What there is of an OOM when it has been decided.
struct Draft {
    incident: Incident,
    staged: Option<Staged>,
    hold: HoldReport,
    reading: Reading,
}

impl Desk {
    fn work(mut self) {
        loop {
            match self.next() {
                Some(Word::Begin(begin)) => self.tell(&begin),
                // Its beginning found no room; the jobs are told nevertheless.
                Some(Word::Over(outcome)) => self.finish(self.without_evidence(), &outcome),
                Some(Word::End) => break,
                None => self.tell_of_kernel(),
            }
        }
        self.recorder.drain(|| {});
        self.tracer.end();
    }

    /// The next word; `None` when the kernel may have killed somebody unasked.
    fn next(&mut self) -> Option<Word> {
        loop {
            if let Some(word) = self.words.take() {
                return Some(word);
            }
            let mut fds = vec![self.words.bell()];
            fds.extend(self.log.as_ref().ok().map(KernelLog::bell));
            let _ = poll(&mut fds, timeout(None));
            if fds.get(1).and_then(PollFd::any) == Some(true) && fds[0].any() != Some(true) {
                return None;
            }
        }
    }

    /// One OOM, the whole way.
    fn tell(&mut self, begin: &Begin) {
        // Whom the kernel has just killed was killed for the same want of memory.
        let before = self.kernel_victims(Duration::ZERO);
        let heap_before = heap::mark();
        let mut draft = self.record(begin);
        self.recorded.set(begin.oom);
        let outcome = loop {
            match self.words.wait(None) {
                Some(Word::Over(outcome)) => break outcome,
                // No other OOM begins before this one is over.
                Some(Word::Begin(_)) | None => {}
                Some(Word::End) => return,
            }
        };
        draft.hold.guardian_hold_heap_bytes = heap::peak_since(heap_before) as u64;
        draft.incident.kernel_victims = before;
        self.finish(draft, &outcome);
    }

    /// Takes the evidence and puts the draft on disk.
    fn record(&mut self, begin: &Begin) -> Draft {
        let noticed = begin.noticed;
        let late = noticed + self.deadline / EVIDENCE_SHARE;
        self.roster.await_turn(begin.turn, noticed + self.deadline / STOP_SHARE);
        let list = self.roster.now();
        let memcgs: Vec<Memcg> = list.biggest(self.jobs).into_iter().map(|job| job.place.memcg.clone()).collect();
        let (pids, left_out) = whom_to_read(&memcgs);
        let stopped = self.tracer.stop(memcgs, Instant::now() + self.deadline / STOP_SHARE, late).unwrap_or_default();
        let stop_window = noticed.elapsed();
        let mut reading = self.readers.read(pids, stopped.threads, self.options);
        reading.await_until(late - self.deadline / EVIDENCE_SHARE / DISK_SHARE);
        // Those in the allocator stop only when they have memory again.
        self.tracer.let_go();
        let snapshot = noticed.elapsed();
        let mut incident =
            self.recorder.draft(Trigger::Oom, Some(state_of(&self.root, Some(&begin.first))), reading.so_far());
        incident.time_unix_us -= noticed.elapsed().as_micros() as u64;
        incident.gaps.extend(left_out);
        let why = "symbols take memory that the machine does not have".to_owned();
        incident.symbols = Symbols { state: SymbolState::AfterVerdict(why), ..Symbols::default() };
        // It is tried again when there is memory.
        let staged = self.recorder.stage(&incident).ok();
        let (threads_stopped, threads_not_stopped) = stopped.counts;
        let hold = HoldReport {
            kernel: Some(reserve::told_by(begin.first)),
            stop_window_us: micros(stop_window),
            snapshot_us: micros(snapshot),
            threads_stopped,
            threads_not_stopped,
            ..self.nothing_held()
        };
        Draft { incident, staged, hold, reading }
    }

    fn without_evidence(&self) -> Draft {
        let mut evidence = Evidence::default();
        evidence.gaps.push("nobody was looked at: the OOM before was still being recorded".to_owned());
        let incident = self.recorder.draft(Trigger::Oom, Some(state_of(&self.root, None)), evidence);
        Draft { incident, staged: None, hold: self.nothing_held(), reading: Reading::nothing() }
    }

    fn nothing_held(&self) -> HoldReport {
        HoldReport {
            brake: "reserve".to_owned(),
            kernel: None,
            stop_window_us: 0,
            exposed_us: 0,
            snapshot_us: 0,
            symbolized_us: None,
            held_us: 0,
            deadline_us: micros(self.deadline),
            threads_stopped: 0,
            threads_not_stopped: 0,
            guardian_locked_bytes: 0,
            heap_table_bytes: 0,
            guardian_peak_bytes: 0,
            guardian_hold_heap_bytes: 0,
            deciding_faults: None,
        }
    }

    /// Has the incident written, whatever it lacks.
    fn finish(&mut self, draft: Draft, outcome: &Outcome) {
        let Draft { mut incident, staged, mut hold, mut reading } = draft;
        reading.await_until(Instant::now() + LATE_TIME);
        append(&mut incident, reading.finish());
        let is_kernels = matches!(outcome.end, End::LeftToKernel | End::KernelFirst);
        let patience = if is_kernels { KERNEL_TIME } else { Duration::ZERO };
        let victims = self.kernel_victims(patience);
        incident.kernel_victims.extend(victims);
        if is_kernels {
            incident.trigger = Trigger::KilledByKernel;
            incident.gaps.extend(self.untold(&incident.kernel_victims));
        }
        if let Some(kernel) = &mut hold.kernel {
            kernel.ended = outcome.ended.as_ref().and_then(|event| Some(ending(event.reason()?).to_owned()));
            kernel.holds = outcome.holds;
            let first = incident.memcg.as_ref().map_or(0, |memcg| memcg.usage_bytes);
            let most = outcome.deeds.iter().map(|deed| deed.usage_bytes).max().unwrap_or(0);
            kernel.reserve_used_bytes = most.saturating_sub(first);
        }
        hold.held_us = micros(outcome.held);
        hold.deciding_faults = Some(outcome.faults);
        hold.guardian_locked_bytes = own_status_bytes("VmLck");
        hold.guardian_peak_bytes = own_status_bytes("VmHWM");
        incident.hold = Some(hold);
        let verdict = verdict(outcome);
        self.say(&incident, &verdict, outcome);
        let staged = self.stage(&incident, staged);
        self.count(&incident, &verdict, outcome, staged.is_some());
        incident.verdict = Some(verdict);
        if let Some(staged) = staged {
            self.recorder.finish(incident, staged);
        }
    }

    fn say(&self, incident: &Incident, verdict: &Verdict, outcome: &Outcome) {
        let killed = outcome.deeds.iter().filter(|deed| deed.kill && deed.error.is_none()).last();
        say!(
            Notice,
            event = "oom",
            cgroup = self.root.path(),
            incident = incident.id,
            usage_bytes = incident.memcg.as_ref().map_or(0, |memcg| memcg.usage_bytes),
            held_us = micros(outcome.held),
            action = verdict.steps.last().map_or("", |step| step.action.as_str()),
            victim = killed.map_or("", |deed| outcome.list.0[deed.job].place.memcg.path()),
            relieved = verdict.relieved;
            "the machine was out of memory; held {}. {}",
            units::micros(micros(outcome.held)),
            verdict.summary
        );
        for victim in &incident.kernel_victims {
            say!(Notice, event = "kernel_kill", cgroup = self.root.path(), incident = incident.id, victim = victim.comm;
                "the kernel's OOM killer killed {} [{}]", victim.comm, victim.pid);
        }
    }

    /// Counts it as the kernel's if nobody of us decided.
    fn count(&self, incident: &Incident, verdict: &Verdict, outcome: &Outcome, is_recorded: bool) {
        let (Some(hold), Some(feed)) = (&incident.hold, &self.feed) else { return };
        if outcome.end == End::KernelFirst {
            return self.count_kernel_kill(is_recorded);
        }
        feed.tell(&metrics::Event::Oom {
            cgroup: self.root.path().to_owned(),
            labels: Labels::default(),
            action: verdict.steps.last().map_or_else(String::new, |step| step.action.clone()),
            relieved: verdict.relieved,
            held_us: hold.held_us,
            stop_us: hold.stop_window_us,
            is_recorded,
        });
    }

    fn count_kernel_kill(&self, is_recorded: bool) {
        let (cgroup, labels) = (self.root.path().to_owned(), Labels::default());
        let event = metrics::Event::KernelKill { cgroup, labels, is_recorded };
        self.feed.iter().for_each(|feed| feed.tell(&event));
    }

    /// The kernel killed without a hold, or after one that was over already.
    fn tell_of_kernel(&mut self) {
        let victims = self.kernel_victims(Duration::ZERO);
        if victims.is_empty() {
            return;
        }
        let mut evidence = Evidence::default();
        evidence.gaps.push("the kernel's OOM killer was first: there are no stacks of whom it killed".to_owned());
        let mut incident = self.recorder.draft(Trigger::KilledByKernel, Some(state_of(&self.root, None)), evidence);
        incident.kernel_victims = victims;
        let victim = incident.kernel_victims.last().map_or("", |victim| victim.comm.as_str());
        say!(Notice, event = "kernel_kill", cgroup = self.root.path(), incident = incident.id, victim = victim;
            "{}", show::headline(&incident));
        let staged = self.stage(&incident, None);
        self.count_kernel_kill(staged.is_some());
        if let Some(staged) = staged {
            self.recorder.finish(incident, staged);
        }
    }

    /// Its folder, which is made now if it could not be before.
    fn stage(&self, incident: &Incident, staged: Option<Staged>) -> Option<Staged> {
        let staged = staged.map_or_else(|| self.recorder.stage(incident), Ok);
        let leaves_none = |error: &_| {
            say!(Warning, cgroup = self.root.path(), incident = incident.id; "this OOM leaves no incident: {error}");
        };
        staged.inspect_err(leaves_none).ok()
    }

    fn kernel_victims(&mut self, patience: Duration) -> Vec<KernelVictim> {
        self.log.as_mut().map_or_else(|_| Vec::new(), |log| log.victims_of_machine(patience))
    }

    /// Why it is not known whom the kernel killed.
    fn untold(&self, victims: &[KernelVictim]) -> Option<String> {
        match &self.log {
            Err(error) => Some(format!("whom the kernel killed is not known: /dev/kmsg: {error}")),
            Ok(_) => victims.is_empty().then(|| "the kernel log does not say that it killed anybody".to_owned()),
        }
    }
}

/// Processes of these memcgs, and what is to be said of those that are too many.
fn whom_to_read(memcgs: &[Memcg]) -> (Vec<i32>, Vec<String>) {
    let each = MOST_PROCESSES / memcgs.len().max(1);
    let (mut read, mut left_out) = (Vec::new(), Vec::new());
    for memcg in memcgs {
        let mut pids = memcg.pids().unwrap_or_default();
        if pids.len() > each {
            left_out.push(format!("{} has {} processes, of which {each} were looked at", memcg.path(), pids.len()));
            pids.truncate(each);
        }
        read.append(&mut pids);
    }
    (read, left_out)
}

/// Adds what came late.
fn append(incident: &mut Incident, late: Evidence) {
    let mut evidence = Evidence {
        processes: std::mem::take(&mut incident.processes),
        modules: std::mem::take(&mut incident.modules),
        gaps: std::mem::take(&mut incident.gaps),
        ..Evidence::default()
    };
    evidence.append(late);
    evidence.processes.sort_by_key(|process| process.pid);
    (incident.processes, incident.modules, incident.gaps) = (evidence.processes, evidence.modules, evidence.gaps);
}

/// The machine, as if it were a memcg.
fn state_of(root: &Memcg, event: Option<&Event>) -> MemcgState {
    let (memory, available) = machine_memory();
    MemcgState {
        path: root.path().to_owned(),
        version: root.version().number(),
        usage_bytes: event.map_or(memory - available, |event| event.usage),
        limit_bytes: Some(event.map_or(memory, |event| event.limit)),
        peak_bytes: None,
        stat: root.stat().unwrap_or_default(),
        events: root.read_keyed("memory.oom.state").unwrap_or_default(),
        labels: Labels::default(),
        priority: None,
        reservation_bytes: None,
        pressure: cgroup::pressure(root),
    }
}

/// What was decided, in words.
fn verdict(outcome: &Outcome) -> Verdict {
    let jobs = outcome.list.ranked();
    let steps: Vec<Step> = outcome.deeds.iter().map(|deed| step(deed, &outcome.list, &jobs)).collect();
    let last = steps.last().map(|step| format!("{}: {}", step.action, step.effect));
    let ended = outcome.ended.as_ref().and_then(Event::reason).map_or("in a way unknown", ending);
    let summary = match (outcome.end, last) {
        (End::Relieved, Some(last)) => last,
        (End::FreeAgain, Some(last)) => format!("{last}, late; then memory was free again"),
        (End::FreeAgain | End::Relieved, None) => {
            "memory was free again before a decision: nobody was killed".to_owned()
        }
        (End::LeftToKernel, _) => "nothing helped: the kernel's OOM killer decides".to_owned(),
        (End::KernelFirst, _) => format!("the hold ended ({ended}) before a decision: the kernel's OOM killer decided"),
    };
    let relieved = matches!(outcome.end, End::Relieved | End::FreeAgain);
    Verdict { summary, relieved, rule: None, problems: Vec::new(), steps }
}

fn step(deed: &Deed, list: &List, jobs: &[&Job]) -> Step {
    let job = &list.0[deed.job];
    let path = job.place.memcg.path();
    let effect = match deed.error {
        None => format!("{path} gave {} back", units::bytes(deed.came_back_bytes)),
        Some(Errno::ESTALE) => format!("{path}: the hold was over"),
        Some(errno) => format!("{path}: {errno}"),
    };
    let outcome = match (deed.error, deed.relieved) {
        (Some(_), _) => StepOutcome::Failed,
        (None, true) => StepOutcome::Relieved,
        (None, false) => StepOutcome::NotEnough,
    };
    Step {
        action: if deed.kill { "kill" } else { "throttle" }.to_owned(),
        reason: format!(
            "{path} has the lowest priority ({}) of {} over their reservation: it uses {}, {} of it reserved; ties go to whoever is over by most",
            job.priority,
            units::count(jobs.iter().filter(|job| job.is_over()).count() as u64, "job"),
            units::bytes(deed.size_bytes),
            units::bytes(job.reservation_bytes.min(deed.size_bytes)),
        ),
        outcome,
        effect,
        usage_before_bytes: deed.usage_bytes,
        usage_after_bytes: deed.usage_bytes.saturating_sub(deed.came_back_bytes),
        limit_us: micros(deed.limit),
        took_us: micros(deed.took),
        candidates: jobs.iter().map(|job| job.candidate()).collect(),
        rule: None,
    }
}

fn micros(time: Duration) -> u64 {
    time.as_micros() as u64
}

#[cfg(test)]
mod tests {
    use super::super::decide::Deeds;
    use super::super::jobs::tests::job;
    use super::*;
    use reprieve_oom_uapi::Reason;

    fn outcome(end: End, reason: Reason, deeds: &[Deed]) -> Outcome {
        let mut all = Deeds::default();
        deeds.iter().for_each(|&deed| all.push(deed));
        Outcome {
            end,
            list: Arc::new(List(vec![job("/a", 5, 80 << 20, 0), job("/low", -1, 80 << 20, 90 << 20)])),
            deeds: all,
            ended: Some(Event { reason: reason as u32, ..Event::default() }),
            holds: 1,
            held: Duration::from_millis(7),
            faults: 0,
        }
    }

    fn deed(error: Option<Errno>, relieved: bool) -> Deed {
        Deed {
            job: 0,
            kill: true,
            error,
            relieved,
            size_bytes: 80 << 20,
            came_back_bytes: 79 << 20,
            usage_bytes: 200 << 20,
            limit: Duration::from_secs(2),
            took: Duration::from_secs(1),
        }
    }

    #[test]
    fn a_verdict_says_whose_it_was() {
        let told = |end, reason, deeds: &[Deed]| {
            let verdict = verdict(&outcome(end, reason, deeds));
            (verdict.relieved, verdict.summary)
        };
        let (relieved, summary) = told(End::FreeAgain, Reason::Margin, &[]);
        assert!(relieved && summary.contains("nobody was killed"), "{summary}");
        let (relieved, summary) = told(End::Relieved, Reason::Killed, &[deed(None, true)]);
        assert!(relieved && summary == "kill: /a gave 79.0 MiB back", "{summary}");
        let (relieved, summary) = told(End::KernelFirst, Reason::Exhausted, &[]);
        assert!(!relieved && summary.contains("(exhausted)"), "{summary}");
        let (relieved, summary) = told(End::LeftToKernel, Reason::GaveUp, &[deed(Some(Errno::EPERM), false)]);
        assert!(!relieved && summary.contains("nothing helped"), "{summary}");
    }

    #[test]
    fn a_step_has_its_figures_and_all_candidates() {
        let verdict =
            verdict(&outcome(End::LeftToKernel, Reason::GaveUp, &[deed(Some(Errno::EPERM), false), deed(None, true)]));
        assert_eq!(
            verdict.steps.iter().map(|step| step.outcome).collect::<Vec<_>>(),
            [StepOutcome::Failed, StepOutcome::Relieved]
        );
        let step = &verdict.steps[1];
        assert_eq!((step.usage_before_bytes, step.usage_after_bytes), (200 << 20, 121 << 20));
        assert!(step.reason.contains("lowest priority (5) of 1 job over"), "{}", step.reason);
        assert_eq!(step.candidates.iter().map(|c| c.comm.as_str()).collect::<Vec<_>>(), ["/a", "/low"]);
    }
}
