//! `machine`: answers OOMs of the whole machine, through the root cgroup's reserve.
//!
//! Allocations of everybody else wait in the kernel meanwhile, perhaps with locks, so
//! whatever reads `/proc` is a thread that can be left alone.

mod jobs;

pub use jobs::PRIORITY;

use crate::cgroup::{Hierarchy, Memcg, Version};
use crate::guardian::{self, heap, own_status_bytes};
use crate::hold::reserve::{self, Device};
use crate::hold::stop::{LATE_AGAIN, StoppedThreads};
use crate::hold::watchdog::Watchdog;
use crate::hold::{BrakeError, HandBack};
use crate::incident::model::{HoldReport, MemcgState, Step, StepOutcome, SymbolState, Symbols, Trigger, Verdict};
use crate::incident::store::{Limits, Store};
use crate::incident::units;
use crate::run::{Recorder, RunError};
use crate::signals::Signals;
use crate::snapshot::{self, Evidence, Options};
use crate::verdict::machine_memory;
use jobs::Job;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use reprieve_oom_uapi::{Event, Kind, Scope, Verdict as Answer};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Share of a deadline for stopping threads: those in the allocator do not stop.
const STOP_SHARE: u32 = 16;
/// Share of a deadline for the evidence of all jobs.
const EVIDENCE_SHARE: u32 = 2;
/// Time for a kill to give memory back.
const KILL_TIME: Duration = Duration::from_secs(2);
/// Time for a throttled job to give memory back.
const THROTTLE_TIME: Duration = Duration::from_secs(1);
/// What the kernel allows beyond our deadline before it decides itself.
const KERNEL_GRACE: Duration = Duration::from_secs(5);
/// The kernel refuses more than this share of the memory (memory_oom_reserve_write).
const RESERVE_SHARE: u64 = 20;
/// What one hold was seen to need, with room.
pub const RESERVE_BYTES: u64 = 16 << 20;

/// What to do with the job that has to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Remedy {
    /// Kill all of it.
    Kill,
    /// Have the kernel reclaim from it down to a half (memory.high, put back when
    /// reprieve ends); kill where that is not enough.
    Throttle,
}

/// What `reprieve machine` was asked for.
#[derive(Debug)]
pub struct Request {
    /// Most to keep free for us.
    pub reserve_bytes: u64,
    /// Longest a hold may last.
    pub deadline: Duration,
    /// What is done.
    pub remedy: Remedy,
    /// Level of cgroups that are jobs; 1 is below the root.
    pub depth: usize,
    /// How many of the biggest jobs are recorded.
    pub jobs: usize,
    /// Folder for incidents.
    pub out: Option<PathBuf>,
    /// What is kept there.
    pub limits: Limits,
    /// What to record.
    pub options: Options,
}

/// Answers OOMs until a signal ends it.
pub fn watch(request: &Request) -> Result<(), RunError> {
    let signals = Signals::block().map_err(|e| RunError::System("signals could not be blocked", e))?;
    let store = Store::open(request.out.clone())?;
    let disk = store.reserve()?;
    let hierarchy = Hierarchy::memory()?;
    let root = Memcg::at(&hierarchy, "/");
    // The root of a container is none of the machine: it has a limit.
    if hierarchy.version != Version::V2 || root.dir().join("memory.max").exists() {
        return Err(RunError::NotAllowed(
            "the root of cgroup version 2 is not to be seen here; run it outside of containers, where version 2 has the memory controller".to_owned(),
        ));
    }
    let device = Device::open()?;
    let dir = File::open(root.dir()).map_err(BrakeError::Bell)?;
    device.attach(&dir).map_err(|errno| match errno {
        Errno::EBUSY => BrakeError::Taken { path: "/".to_owned() },
        Errno::EPERM | Errno::EACCES => BrakeError::NotDelegated { path: "/".to_owned(), source: errno.into() },
        _ => BrakeError::NoReserve(errno.into()),
    })?;
    let reserve_bytes = request.reserve_bytes.min(machine_memory().0 / RESERVE_SHARE) & !0xfff;
    let _settings = Settings::write(&root, reserve_bytes, request.deadline + KERNEL_GRACE)?;
    let hand_back = HandBack {
        alarm: reserve::alarm(&root),
        writes: vec![(root.dir().join("memory.oom.delay_ms"), "0"), (root.dir().join("memory.oom.reserve"), "0")],
        ..HandBack::default()
    };
    let watchdog = Watchdog::start(&hand_back, request.deadline)
        .map_err(|e| RunError::System("the watchdog could not be started", e))?;
    for missing in guardian::settle() {
        eprintln!("reprieve: warning: {missing}");
    }
    guardian::sigbus::install().map_err(|e| RunError::System("the SIGBUS handler could not be installed", e.into()))?;
    let recorder = Recorder::with_subject(store, request.limits, Some(disk), "machine".to_owned())?;
    eprintln!("reprieve: watching the machine; {} are kept free for that", units::bytes(reserve_bytes));
    let late = StoppedThreads::default();
    Watch { request, root, device, watchdog, signals, recorder, late, throttled: Throttled::default() }.run()
}

/// Files of the root cgroup, put back when dropped.
struct Settings(Memcg);

impl Settings {
    fn write(root: &Memcg, reserve_bytes: u64, delay: Duration) -> Result<Self, RunError> {
        let settings = Settings(root.clone());
        root.write("memory.oom.reserve", &reserve_bytes.to_string())?;
        root.write("memory.oom.delay_ms", &delay.as_millis().min(60_000).to_string())?;
        Ok(settings)
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        let _ = self.0.write("memory.oom.delay_ms", "0");
        let _ = self.0.write("memory.oom.reserve", "0");
    }
}

struct Watch<'a> {
    request: &'a Request,
    root: Memcg,
    device: Device,
    watchdog: Watchdog,
    signals: Signals,
    recorder: Recorder,
    /// Threads whose interrupt is pending still.
    late: StoppedThreads,
    throttled: Throttled,
}

/// Throttled jobs, and `memory.high` before; put back when dropped.
#[derive(Default)]
struct Throttled(Vec<(Memcg, String)>);

impl Throttled {
    fn remember(&mut self, memcg: &Memcg) {
        if !self.0.iter().any(|(known, _)| known.path() == memcg.path())
            && let Ok(high) = memcg.read("memory.high")
        {
            self.0.push((memcg.clone(), high.trim().to_owned()));
        }
    }
}

impl Drop for Throttled {
    fn drop(&mut self) {
        for (memcg, high) in &self.0 {
            let _ = memcg.write("memory.high", high);
        }
    }
}

impl Watch<'_> {
    fn run(mut self) -> Result<(), RunError> {
        while self.signals.ending().is_none() {
            let timeout = match self.late.is_empty() {
                false => PollTimeout::from(LATE_AGAIN.as_millis() as u8),
                true => PollTimeout::NONE,
            };
            let mut fds = [PollFd::new(self.signals.fd(), PollFlags::POLLIN), self.device.bell()];
            let _ = poll(&mut fds, timeout);
            while let Some(event) = self.device.record() {
                match (event.kind(), event.scope()) {
                    (Some(Kind::Held), Some(Scope::System)) => self.answer(event),
                    // A memcg without a handler of its own is the kernel's, as ever.
                    (Some(Kind::Held), _) => drop(self.device.decide(&Answer::give_up(event.seq))),
                    _ => {}
                }
            }
            self.late.release_late();
            self.signals.take();
        }
        self.recorder.drain(|| {});
        self.watchdog.dismiss();
        Ok(())
    }

    /// One OOM, the whole way.
    fn answer(&mut self, event: Event) {
        let noticed = Instant::now();
        let deadline = noticed + self.request.deadline;
        let _ = self.watchdog.hold_until(deadline);
        let heap_before = heap::mark();
        let mut jobs = jobs::list(&self.root, self.request.depth);
        jobs::rank(&mut jobs);
        let recorded = jobs::biggest(&jobs, self.request.jobs);
        let mut threads = std::mem::take(&mut self.late);
        let tids = || Ok::<_, std::convert::Infallible>(tids_of(&recorded));
        let _ = threads.stop_all(noticed + self.request.deadline / STOP_SHARE, tids);
        let stop_window = noticed.elapsed();
        let (threads_stopped, threads_not_stopped) = threads.counts();
        let evidence =
            take(&recorded, &threads, self.request.options, noticed + self.request.deadline / EVIDENCE_SHARE);
        let snapshot_time = noticed.elapsed();
        let peak = self.device.state().ok().flatten().unwrap_or(event);
        let mut incident = self.recorder.draft(Trigger::Oom, Some(state_of(&self.root, &peak)), evidence);
        incident.time_unix_us -= noticed.elapsed().as_micros() as u64;
        let staging = self.recorder.stage(&incident);
        let peak = self.device.state().ok().flatten().unwrap_or(peak);
        // Traced threads that are killed would wait for us to reap them. Those in the
        // allocator stop only when they have memory again.
        self.late = threads.resume();
        let verdict = self.decide(event.seq, &jobs);
        let held = noticed.elapsed();
        let _ = self.watchdog.released();
        eprintln!(
            "reprieve: the machine was out of memory; held {}. {}",
            units::micros(held.as_micros() as u64),
            verdict.summary
        );
        let micros = |d: Duration| d.as_micros() as u64;
        let mut told = reserve::told_by(event);
        told.reserve_used_bytes = peak.used.max(event.used);
        incident.hold = Some(HoldReport {
            brake: "reserve".to_owned(),
            kernel: Some(told),
            stop_window_us: micros(stop_window),
            exposed_us: 0,
            snapshot_us: micros(snapshot_time),
            symbolized_us: None,
            held_us: micros(held),
            deadline_us: micros(self.request.deadline),
            threads_stopped,
            threads_not_stopped,
            guardian_locked_bytes: own_status_bytes("VmLck"),
            heap_table_bytes: 0,
            guardian_peak_bytes: own_status_bytes("VmHWM"),
            guardian_hold_heap_bytes: heap::peak_since(heap_before) as u64,
        });
        let why = "symbols take memory that the machine does not have".to_owned();
        incident.symbols = Symbols { state: SymbolState::AfterVerdict(why), ..Symbols::default() };
        incident.verdict = Some(verdict);
        match staging {
            Ok(staging) => self.recorder.finish(incident, staging),
            Err(error) => eprintln!("reprieve: this OOM leaves no incident: {error}"),
        }
    }

    /// Acts on one job after the other until there is memory.
    fn decide(&mut self, seq: u64, jobs: &[Job]) -> Verdict {
        let mut steps = Vec::new();
        if self.request.remedy == Remedy::Throttle
            && let Some(job) = jobs.first()
        {
            self.throttled.remember(&job.memcg);
            steps.push(self.act(seq, job, jobs, THROTTLE_TIME, "throttle", |_, job| throttle(job)));
        }
        let mut relieved = steps.iter().any(|step| step.outcome == StepOutcome::Relieved);
        for job in jobs {
            if relieved {
                break;
            }
            let _ = self.watchdog.hold_until(Instant::now() + KILL_TIME);
            let step = self.act(seq, job, jobs, KILL_TIME, "kill", |device, job| kill(device, seq, job));
            relieved = step.outcome == StepOutcome::Relieved;
            steps.push(step);
        }
        let summary = match steps.last() {
            Some(step) if relieved => format!("{}: {}", step.action, step.effect),
            _ => {
                // ESTALE: the kernel decides already.
                let _ = self.device.decide(&Answer::give_up(seq));
                "nothing helped: the kernel's OOM killer decides".to_owned()
            }
        };
        Verdict { summary, relieved, rule: None, problems: Vec::new(), steps }
    }

    fn act(
        &self,
        seq: u64,
        job: &Job,
        jobs: &[Job],
        limit: Duration,
        action: &str,
        act: impl FnOnce(&Device, &Job) -> Result<(), String>,
    ) -> Step {
        let begun = Instant::now();
        let usage = || self.device.state().ok().flatten().map_or(0, |event| event.usage);
        let usage_before_bytes = usage();
        let done = act(&self.device, job);
        let mut relieved = false;
        while done.is_ok() && !relieved && begun.elapsed() < limit {
            relieved = !matches!(self.device.state(), Ok(Some(event)) if event.seq == seq);
            std::thread::sleep(Duration::from_millis(2));
        }
        // A hold ends with the first MiBs that come; the rest of a killed job follows.
        let settled = || job.memcg.usage().unwrap_or(0) <= job.size_bytes / 8;
        while relieved && action == "kill" && !settled() && begun.elapsed() < limit {
            std::thread::sleep(Duration::from_millis(2));
        }
        let came_back = job.size_bytes.saturating_sub(job.memcg.usage().unwrap_or(0));
        let effect = match &done {
            Ok(()) => format!("{} gave {} back", job.memcg.path(), units::bytes(came_back)),
            Err(error) => format!("{}: {error}", job.memcg.path()),
        };
        let outcome = match (&done, relieved) {
            (Err(_), _) => StepOutcome::Failed,
            (_, true) => StepOutcome::Relieved,
            (_, false) => StepOutcome::NotEnough,
        };
        Step {
            action: action.to_owned(),
            reason: reason(job, jobs),
            outcome,
            effect,
            usage_before_bytes,
            usage_after_bytes: usage_before_bytes.saturating_sub(came_back),
            limit_us: limit.as_micros() as u64,
            took_us: begun.elapsed().as_micros() as u64,
            candidates: jobs.iter().map(Job::candidate).collect(),
        }
    }
}

/// Why this one, in words.
fn reason(job: &Job, jobs: &[Job]) -> String {
    format!(
        "{} has the lowest priority ({}) of {} over their reservation: it uses {}, {} of it reserved; ties go to whoever is over by most",
        job.memcg.path(),
        job.priority,
        units::count(jobs.iter().filter(|job| job.size_bytes > job.reservation_bytes).count() as u64, "job"),
        units::bytes(job.size_bytes),
        units::bytes(job.reservation_bytes.min(job.size_bytes)),
    )
}

fn kill(device: &Device, seq: u64, job: &Job) -> Result<(), String> {
    let dir = File::open(job.memcg.dir()).map_err(|error| error.to_string())?;
    match device.decide(&Answer::kill_cgroup(seq, dir.as_raw_fd())) {
        Ok(()) | Err(Errno::ESTALE) => {}
        Err(errno) => return Err(errno.to_string()),
    }
    // Whoever was born meanwhile.
    let _ = job.memcg.kill();
    Ok(())
}

fn throttle(job: &Job) -> Result<(), String> {
    job.memcg.write("memory.high", &(job.size_bytes / 2).to_string()).map_err(|error| error.to_string())
}

fn tids_of(jobs: &[Job]) -> Vec<i32> {
    jobs.iter().flat_map(|job| job.memcg.tids().unwrap_or_default()).collect()
}

/// The evidence of all jobs that is there by `until`: a thread that waits for a lock of
/// somebody who waits for memory is left alone.
fn take(jobs: &[Job], threads: &StoppedThreads, options: Options, until: Instant) -> Evidence {
    let (sender, receiver) = mpsc::channel();
    let pids: Vec<i32> = jobs.iter().flat_map(|job| job.memcg.pids().unwrap_or_default()).collect();
    for &pid in &pids {
        let (sender, held) = (sender.clone(), threads.threads().clone());
        let work = move || drop(sender.send((pid, snapshot::take(&[pid], &held, || None, options))));
        // Whom no thread could be made for is missing, and said to be.
        let _ = std::thread::Builder::new().spawn(work);
    }
    drop(sender);
    let mut taken = Vec::new();
    while let Ok(one) = receiver.recv_timeout(until.saturating_duration_since(Instant::now())) {
        taken.push(one);
    }
    taken.sort_by_key(|(pid, _)| *pid);
    let mut evidence = Evidence::default();
    for pid in pids.iter().filter(|pid| !taken.iter().any(|(taken, _)| taken == *pid)) {
        evidence
            .gaps
            .push(format!("process {pid} could not be read in time: somebody who waits for memory has its locks"));
    }
    for (_, one) in taken {
        evidence.append(one);
    }
    evidence
}

/// The machine, as if it were a memcg.
fn state_of(root: &Memcg, event: &Event) -> MemcgState {
    MemcgState {
        path: root.path().to_owned(),
        version: root.version().number(),
        usage_bytes: event.usage,
        limit_bytes: Some(event.limit),
        peak_bytes: None,
        stat: root.stat().unwrap_or_default(),
        events: root.read_keyed("memory.oom.state").unwrap_or_default(),
    }
}
