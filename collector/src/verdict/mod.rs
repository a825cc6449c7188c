//! The verdict: a ladder of actions, each measured by what it did.

mod action;
mod console;
mod hook;
mod kill;
mod others;
pub mod policy;
mod quota;
mod view;

pub use action::Action;
pub use view::View;

use crate::cgroup::{CgroupError, CpuGroup, Memcg, Version};
use crate::hold::Brake;
use crate::hold::stop::StoppedThreads;
use crate::hold::watchdog::Line;
use crate::incident::model::{Candidate, OtherVictim, Process, Step, StepOutcome, Verdict};
use crate::incident::units;
use crate::say;
use crate::signals::Interrupt;
use crate::snapshot::process::Stat;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::Signal;
use quota::Quota;
use std::path::Path;
use std::time::{Duration, Instant};

/// A memcg has room when this share of its limit, or [`ROOM_MIN_BYTES`], is free.
const ROOM_SHARE: u64 = 64;
/// A throttle is lifted when this share of the limit is free: less would be
/// used up again at once.
const THROTTLE_ROOM_SHARE: u64 = 8;
/// Least room.
const ROOM_MIN_BYTES: u64 = 1 << 20;
/// A grant must leave the machine this much (or a twentieth of its memory).
const MACHINE_KEEPS_BYTES: u64 = 64 << 20;
/// Share of one CPU that a throttled memcg gets.
const THROTTLE_CPU_PERCENT: u32 = 10;
/// How often the effect of an action is looked at.
const GLANCE: Duration = Duration::from_millis(20);

/// Everything the ladder acts on.
#[derive(Debug)]
pub struct Scene<'a> {
    /// The hold.
    pub brake: &'a mut dyn Brake,
    /// The memcg.
    pub memcg: &'a Memcg,
    /// Its CPU group on version 1.
    pub cpu: Option<&'a CpuGroup>,
    /// What the snapshot saw.
    pub processes: &'a [Process],
    /// Threads that are stopped; empty once let go.
    pub threads: Option<StoppedThreads>,
    /// Told how long each action may take.
    pub watchdog: Option<&'a Line>,
    /// ^C ends every wait.
    pub interrupt: &'a mut dyn Interrupt,
    /// Lines for a person who is asked.
    pub summary: &'a str,
    /// When the threads were let go.
    pub released: Option<Instant>,
    /// Kills that the kernel had made in it when the hold began.
    pub kernel_kills: Option<u64>,
    /// Who was killed by somebody else while stopped.
    pub other_victims: Vec<OtherVictim>,
}

/// What one action came to.
struct Effect {
    outcome: StepOutcome,
    reason: String,
    effect: String,
    candidates: Vec<Candidate>,
}

impl Effect {
    fn new(outcome: StepOutcome, reason: impl Into<String>, effect: impl Into<String>) -> Self {
        Effect { outcome, reason: reason.into(), effect: effect.into(), candidates: Vec::new() }
    }
}

/// Tries the actions in order until the memcg is well; none of them where it is
/// well already, since its memory was freed meanwhile. When none helps the kernel
/// decides. In the end every thread has been let go.
pub fn decide(scene: &mut Scene<'_>, ladder: &[Action]) -> Verdict {
    let mut steps = Vec::new();
    let mut relieved = false;
    // Whether a hold that is over by now is so without us.
    let mut untouched = true;
    let mut free_again = false;
    // Before the first, between two, and before it is left to the kernel.
    for action in ladder.iter().map(Some).chain([None]) {
        if scene.interrupt.ending().is_some() {
            break;
        }
        free_again = untouched && scene.threads.is_some() && scene.brake.ended_by_itself();
        relieved = free_again;
        let Some(action) = action.filter(|_| !free_again) else { break };
        let step = scene.try_action(action);
        relieved = step.outcome == StepOutcome::Relieved;
        let is_last = *action == Action::Defer;
        untouched &= step.outcome == StepOutcome::Failed || matches!(action, Action::Freeze(_));
        steps.push(step);
        if relieved || is_last {
            break;
        }
    }
    let mut verdict = Verdict { summary: String::new(), relieved, rule: None, problems: Vec::new(), steps };
    if let Some(ending) = scene.interrupt.ending() {
        verdict.summary = format!("{} was received: the hold is released", ending.signal);
    } else if free_again {
        let room = scene.room().map_or(0, |(room, _)| room);
        verdict.summary = format!(
            "the memory was free again before anything was done about it ({} below the limit)",
            units::bytes(room)
        );
    } else if let Some(step) = verdict.steps.last().filter(|_| relieved) {
        verdict.summary = format!("{}: {}", step.action, step.effect);
    } else if verdict.steps.last().is_some_and(|step| step.action == Action::Defer.to_string()) {
        verdict.summary = match scene.brake.give_up() {
            Ok(()) => "defer: the kernel's OOM killer decides".to_owned(),
            Err(error) => format!("defer: handing back to the kernel failed: {error}"),
        };
    } else {
        let tried: Vec<&str> = verdict.steps.iter().map(|s| s.action.as_str()).collect();
        let tried = if tried.is_empty() { "no action".to_owned() } else { tried.join(", ") };
        verdict.summary = match scene.brake.give_up() {
            Ok(()) => format!("{tried} did not help: the kernel's OOM killer decides"),
            Err(error) => format!("{tried} did not help, and handing back to the kernel failed: {error}"),
        };
    }
    scene.note_others(&verdict.steps);
    if let Err(error) = scene.let_go() {
        verdict.summary.push_str(&format!("; letting the threads go failed: {error}"));
    }
    verdict
}

/// Does nothing of it, and leaves it to the kernel, which would have decided without us.
pub fn rehearse(scene: &mut Scene<'_>, ladder: &[Action]) -> Verdict {
    let ladder: Vec<String> = ladder.iter().map(ToString::to_string).collect();
    let mut summary = format!("dry run: would have tried {}; the kernel's OOM killer decides", ladder.join(", "));
    if let Err(error) = scene.brake.give_up() {
        summary.push_str(&format!("; handing back to it failed: {error}"));
    }
    if let Err(error) = scene.let_go() {
        summary.push_str(&format!("; letting the threads go failed: {error}"));
    }
    Verdict { summary, relieved: false, rule: None, problems: Vec::new(), steps: Vec::new() }
}

impl Scene<'_> {
    fn try_action(&mut self, action: &Action) -> Step {
        let begun = Instant::now();
        let limit = action.time_limit();
        if let Some(watchdog) = self.watchdog {
            // A dead watchdog protects nobody, but is no reason to stop here.
            let _ = watchdog.hold_until(begun + limit + Duration::from_secs(1));
        }
        let usage_before_bytes = self.memcg.usage().unwrap_or(0);
        let effect = match action {
            Action::Reclaim => self.reclaim(),
            Action::Throttle(time) => self.throttle(*time),
            Action::Grant(bytes) => self.grant(*bytes, limit),
            Action::Freeze(time) => self.freeze(*time),
            Action::Ask(time) => self.ask(*time),
            Action::Kill => self.kill(begun + limit),
            Action::Signal(signal) => self.signal(*signal, limit),
            Action::Hook(program, time) => self.hook(program, *time),
            Action::Defer => Ok(Effect::new(StepOutcome::NotEnough, "as configured", "left to the kernel")),
        };
        let effect = effect.unwrap_or_else(|error| {
            let error = anyhow::Error::new(error);
            Effect::new(StepOutcome::Failed, "next on the ladder", format!("failed: {error:#}"))
        });
        Step {
            action: action.to_string(),
            reason: effect.reason,
            outcome: effect.outcome,
            effect: effect.effect,
            usage_before_bytes,
            usage_after_bytes: self.memcg.usage().unwrap_or(0),
            limit_us: limit.as_micros() as u64,
            took_us: begun.elapsed().as_micros() as u64,
            candidates: effect.candidates,
        }
    }

    /// Lets all stopped threads go.
    fn let_go(&mut self) -> Result<(), CgroupError> {
        if let Some(threads) = self.threads.take() {
            self.brake.resume(threads)?;
            self.released.get_or_insert_with(Instant::now);
        }
        Ok(())
    }

    /// Bytes below where the brake holds, and whether they are enough to run on.
    fn room(&self) -> Result<(u64, bool), CgroupError> {
        let level = self.brake.level();
        let free = level.saturating_sub(self.memcg.usage()?);
        Ok((free, free >= (level / ROOM_SHARE).max(ROOM_MIN_BYTES)))
    }

    fn reclaim(&mut self) -> Result<Effect, CgroupError> {
        let before = self.memcg.usage()?;
        let asked = match self.memcg.version() {
            // Reclaims as much as it can, a few rounds (mem_cgroup_force_empty).
            Version::V1 => self.memcg.write("memory.force_empty", "0"),
            // EAGAIN when less than asked for could be reclaimed.
            Version::V2 => self.memcg.write("memory.reclaim", &(before / 4).to_string()),
        };
        let freed = before.saturating_sub(self.memcg.usage()?);
        let (room, enough) = self.room()?;
        let reason = "reclaim costs the program nothing but cache";
        let mut effect = format!("freed {}, {} free below the limit", units::bytes(freed), units::bytes(room));
        if let Err(error) = asked
            && freed == 0
        {
            effect.push_str(&format!(" ({:#})", anyhow::Error::new(error)));
        }
        let enough = enough && self.brake.is_well()?;
        if enough {
            self.let_go()?;
        }
        Ok(Effect::new(if enough { StepOutcome::Relieved } else { StepOutcome::NotEnough }, reason, effect))
    }

    fn throttle(&mut self, time: Duration) -> Result<Effect, CgroupError> {
        let quota = Quota::set(self.memcg, self.cpu, THROTTLE_CPU_PERCENT, self.watchdog)?;
        let reason = match (&quota, self.memcg.has_us()) {
            (Some(_), _) => format!("given {THROTTLE_CPU_PERCENT} % of a CPU to see whether it frees memory by itself"),
            (None, true) => {
                "let run to see whether it frees memory by itself; its CPU is the guardian's, too".to_owned()
            }
            (None, false) => "let run to see whether it frees memory by itself; its CPU cannot be limited".to_owned(),
        };
        let (outcome, effect) = self.let_recover(time)?;
        drop(quota);
        Ok(Effect::new(outcome, reason, effect))
    }

    /// Lets it run, with a little room, and sees whether usage falls.
    fn let_recover(&mut self, time: Duration) -> Result<(StepOutcome, String), CgroupError> {
        self.brake.lend()?;
        self.let_go()?;
        let before = self.memcg.usage()?;
        let begun = Instant::now();
        let mut well = false;
        while !well && begun.elapsed() < time && !self.interrupted(GLANCE) {
            well = self.room()?.0 >= self.brake.level() / THROTTLE_ROOM_SHARE && self.brake.is_well()?;
        }
        self.brake.take_back()?;
        let after = self.memcg.usage()?;
        let took = begun.elapsed().as_secs_f64();
        Ok(match well {
            true => {
                let fell = units::bytes(before.saturating_sub(after));
                (StepOutcome::Relieved, format!("usage fell by {fell} in {took:.1} s"))
            }
            false => {
                let free = units::bytes(self.room()?.0);
                (StepOutcome::NotEnough, format!("usage did not fall enough in {took:.1} s ({free} free)"))
            }
        })
    }

    fn signal(&mut self, signal: Signal, time: Duration) -> Result<Effect, CgroupError> {
        let send = |process: &&Process| kill::signal(process.pid, process.start_ticks, signal).is_ok();
        let told = self.processes.iter().filter(send).count();
        let reason = format!("{signal} asks {} to free memory", units::count(told as u64, "process"));
        if told == 0 {
            return Ok(Effect::new(StepOutcome::Failed, reason, "nobody could be told"));
        }
        let (outcome, effect) = self.let_recover(time)?;
        Ok(Effect::new(outcome, reason, effect))
    }

    fn hook(&mut self, program: &Path, time: Duration) -> Result<Effect, CgroupError> {
        let reason = "a program of the operator's makes room while it is stopped";
        let status = match hook::run(program, self.memcg, self.brake.limit(), time) {
            Ok(status) => status,
            Err(why) => return Ok(Effect::new(StepOutcome::Failed, reason, why)),
        };
        let (room, enough) = self.room()?;
        let effect = format!("{status}, {} free below the limit", units::bytes(room));
        let enough = enough && self.brake.is_well()?;
        if enough {
            self.let_go()?;
        }
        Ok(Effect::new(if enough { StepOutcome::Relieved } else { StepOutcome::NotEnough }, reason, effect))
    }

    fn grant(&mut self, bytes: u64, watch: Duration) -> Result<Effect, CgroupError> {
        let (total, available) = machine_memory();
        let keep = MACHINE_KEEPS_BYTES.max(total / 20);
        let reason = format!("{} of the machine's {} are available", units::bytes(available), units::bytes(total));
        if available < bytes.saturating_add(keep) {
            let effect = format!("refused: the machine would have less than {} left", units::bytes(keep));
            return Ok(Effect::new(StepOutcome::Failed, reason, effect));
        }
        let before = progress(self.processes);
        let usage_before = self.memcg.usage()?;
        self.brake.grant(bytes)?;
        self.let_go()?;
        let begun = Instant::now();
        let mut ran_on = false;
        while !ran_on && begun.elapsed() < watch && !self.interrupted(Duration::from_millis(2)) {
            ran_on = progress(self.processes) != before || self.memcg.usage()? > usage_before;
        }
        let ran = if ran_on { "the program ran on" } else { "the program did nothing yet" };
        let effect = format!("the limit is now {}; {ran}", units::bytes(self.brake.limit()));
        Ok(Effect::new(StepOutcome::Relieved, reason, effect))
    }

    /// Stays stopped until there is room: a person raised the limit or ended
    /// something.
    fn freeze(&mut self, time: Duration) -> Result<Effect, CgroupError> {
        let mut limit_before = self.memcg.limit()?.unwrap_or(u64::MAX);
        let kills_before = self.memcg.kernel_kills()?;
        let begun = Instant::now();
        say!(
            Notice, event = "frozen", cgroup = self.memcg.path();
            "{} is frozen for at most {time:?}; make room by writing a higher limit to {}",
            self.memcg.path(),
            self.memcg.dir().join(limit_file(self.memcg.version())).display()
        );
        let mut room = false;
        while !room && begun.elapsed() < time && !self.interrupted(GLANCE) {
            let limit = self.memcg.limit()?.unwrap_or(u64::MAX);
            if limit > limit_before {
                // Adopt what the person wrote, so that later steps build on it.
                self.brake.follow(limit - limit_before)?;
                limit_before = self.memcg.limit()?.unwrap_or(u64::MAX);
            }
            room = self.room()?.1;
        }
        let took = begun.elapsed().as_secs_f64();
        let reason = "stopped until a person makes room";
        self.note_others(&[]);
        Ok(if room {
            self.let_go()?;
            let why = match self.other_victims.first() {
                _ if self.memcg.kernel_kills()? > kills_before => {
                    ", since the kernel's OOM killer had acted".to_owned()
                }
                Some(OtherVictim { pid, comm }) => format!(", since somebody else had killed {comm} [{pid}]"),
                None => String::new(),
            };
            Effect::new(StepOutcome::Relieved, reason, format!("after {took:.1} s there was room{why}"))
        } else {
            Effect::new(StepOutcome::NotEnough, reason, format!("nobody made room in {took:.1} s"))
        })
    }

    fn ask(&mut self, time: Duration) -> Result<Effect, CgroupError> {
        let answer = console::ask(self.summary, time, self.interrupt);
        let action = match answer {
            Ok(action) => action,
            Err(why) => return Ok(Effect::new(StepOutcome::Failed, "a person decides", why)),
        };
        let step = self.try_action(&action);
        let effect = format!("the operator chose {}: {}", step.action, step.effect);
        Ok(Effect { outcome: step.outcome, reason: "a person decides".to_owned(), effect, candidates: step.candidates })
    }

    fn kill(&mut self, deadline: Instant) -> Result<Effect, CgroupError> {
        let homes = kill::Homes::below(self.memcg);
        let candidates = kill::rank(self.processes, &homes);
        let mut told = Vec::new();
        let mut outcome = StepOutcome::NotEnough;
        let reason = match candidates.first() {
            Some(first) => format!(
                "{} [{}] is first of {}: priority {}, {} that a kill frees{}",
                first.comm,
                first.pid,
                units::count(candidates.len() as u64, "candidate"),
                first.priority,
                units::bytes(first.size_bytes),
                match first.reservation_bytes {
                    0 => String::new(),
                    bytes => format!(", {} of it reserved", units::bytes(bytes)),
                }
            ),
            None => "no process may be killed".to_owned(),
        };
        for candidate in &candidates {
            let Some(process) = self.processes.iter().find(|p| p.pid == candidate.pid) else { continue };
            let left = deadline.saturating_duration_since(Instant::now());
            let before = self.memcg.usage()?;
            let mut name = format!("{} [{}]", candidate.comm, candidate.pid);
            let killed = match homes.job_of(process.pid, self.processes) {
                Some(job) => {
                    name.push_str(&format!(" and all of {} (memory.oom.group)", job.path()));
                    self.kill_job(job, deadline)
                }
                None => self.kill_process(process, left),
            };
            match killed {
                Ok(()) => told.push(format!("killed {name}, {} came back", units::bytes(self.freed_since(before)?))),
                Err(error) => told.push(format!("{name}: {error}")),
            }
            if self.room()?.1 && self.brake.is_well()? {
                outcome = StepOutcome::Relieved;
                break;
            }
            if left.is_zero() {
                break;
            }
        }
        self.let_go()?;
        Ok(Effect { outcome, reason, effect: told.join("; "), candidates })
    }

    fn kill_process(&mut self, process: &Process, at_most: Duration) -> std::io::Result<()> {
        kill::send(process.pid, process.start_ticks)?;
        self.let_go_of(process);
        kill::wait(process.pid, process.start_ticks, at_most)
    }

    fn kill_job(&mut self, job: &Memcg, deadline: Instant) -> std::io::Result<()> {
        let members = job.pids().map_err(std::io::Error::other)?;
        job.kill().map_err(std::io::Error::other)?;
        for process in self.processes.iter().filter(|p| members.contains(&p.pid)) {
            // Those of the job that are gone already are what we want.
            let _ = kill::send(process.pid, process.start_ticks);
            self.let_go_of(process);
        }
        for process in self.processes.iter().filter(|p| members.contains(&p.pid)) {
            kill::wait(process.pid, process.start_ticks, deadline.saturating_duration_since(Instant::now()))?;
        }
        Ok(())
    }

    /// A thread that we trace is not reaped before we let it go; dying, it does
    /// not run on.
    fn let_go_of(&mut self, process: &Process) {
        let tids: Vec<i32> = process.threads.iter().map(|t| t.tid).collect();
        if let Some(threads) = &mut self.threads {
            threads.resume_those(|tid| tids.contains(&tid));
        }
    }

    /// Uncharging trails the exit by a moment (per-CPU batches, delayed work).
    fn freed_since(&mut self, before: u64) -> Result<u64, CgroupError> {
        let begun = Instant::now();
        loop {
            let freed = before.saturating_sub(self.memcg.usage()?);
            if freed > ROOM_MIN_BYTES
                || begun.elapsed() > Duration::from_millis(200)
                || self.interrupted(Duration::from_millis(2))
            {
                return Ok(freed);
            }
        }
    }

    /// Waits a moment; true when the user wants to end.
    fn interrupted(&mut self, moment: Duration) -> bool {
        let _ = poll(&mut [PollFd::new(self.interrupt.fd(), PollFlags::POLLIN)], moment.as_millis() as u16);
        self.interrupt.take();
        self.interrupt.ending().is_some()
    }
}

fn limit_file(version: Version) -> &'static str {
    match version {
        Version::V1 => "memory.limit_in_bytes",
        Version::V2 => "memory.max",
    }
}

/// CPU time and faults of all processes: it changes when any of them runs.
fn progress(processes: &[Process]) -> Vec<Option<(u64, u64)>> {
    processes.iter().map(|p| Stat::read(&format!("/proc/{}/stat", p.pid)).map(|s| (s.cpu_ticks, s.faults))).collect()
}

/// `MemTotal` and `MemAvailable` in bytes.
#[must_use]
pub fn machine_memory() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let of = |key: &str| {
        text.lines()
            .find_map(|l| l.strip_prefix(key)?.trim_start_matches(':').trim().strip_suffix(" kB")?.parse::<u64>().ok())
            .unwrap_or(0)
            * 1024
    };
    (of("MemTotal"), of("MemAvailable"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Hierarchy;
    use crate::hold::watchdog::Debt;
    use crate::hold::{HandBack, Look};
    use crate::signals::Signals;
    use std::fs::File;
    use std::os::fd::AsFd;

    /// A brake whose hold may have ended, and which tells what it was asked for.
    #[derive(Debug)]
    struct Told {
        bell: File,
        is_over: bool,
        grants: u32,
        given_up: bool,
        resumed: bool,
    }

    impl Brake for Told {
        fn name(&self) -> &'static str {
            "told"
        }
        fn bells(&self) -> Vec<PollFd<'_>> {
            vec![PollFd::new(self.bell.as_fd(), PollFlags::POLLIN)]
        }
        fn look_again(&self) -> Duration {
            Duration::ZERO
        }
        fn look(&mut self) -> Result<Look, CgroupError> {
            Ok(Look::Well)
        }
        fn exposed(&self) -> Duration {
            Duration::ZERO
        }
        fn stop(&mut self, _: Instant) -> Result<StoppedThreads, CgroupError> {
            Ok(StoppedThreads::default())
        }
        fn resume(&mut self, _: StoppedThreads) -> Result<(), CgroupError> {
            self.resumed = true;
            Ok(())
        }
        fn is_well(&self) -> Result<bool, CgroupError> {
            Ok(self.is_over)
        }
        fn ended_by_itself(&mut self) -> bool {
            self.is_over
        }
        fn grant(&mut self, _: u64) -> Result<(), CgroupError> {
            self.grants += 1;
            Ok(())
        }
        fn give_up(&mut self) -> Result<(), CgroupError> {
            self.given_up = true;
            Ok(())
        }
        fn rearm(&mut self) -> Result<(), CgroupError> {
            Ok(())
        }
        fn debts(&self) -> Vec<Debt> {
            Vec::new()
        }
        fn hand_back(&self) -> HandBack {
            HandBack::default()
        }
        fn release_late(&mut self) -> bool {
            true
        }
        fn limit(&self) -> u64 {
            64 << 20
        }
        fn level(&self) -> u64 {
            64 << 20
        }
    }

    /// The verdict on a hold of nobody, in a memcg that is full.
    fn decided(is_over: bool, ladder: &[Action]) -> (Verdict, Told) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("memory.current"), (60 << 20).to_string()).unwrap();
        std::fs::write(dir.path().join("memory.max"), (64 << 20).to_string()).unwrap();
        std::fs::write(dir.path().join("memory.events"), "oom_kill 0\n").unwrap();
        let hierarchy = Hierarchy { version: Version::V2, mount: dir.path().into(), own: "/".to_owned() };
        let memcg = Memcg::at(&hierarchy, "/");
        let mut brake =
            Told { bell: File::open("/dev/null").unwrap(), is_over, grants: 0, given_up: false, resumed: false };
        let mut scene = Scene {
            brake: &mut brake,
            memcg: &memcg,
            cpu: None,
            processes: &[],
            threads: Some(StoppedThreads::default()),
            watchdog: None,
            interrupt: &mut Signals::block().unwrap(),
            summary: "",
            released: None,
            kernel_kills: Some(0),
            other_victims: Vec::new(),
        };
        let verdict = decide(&mut scene, ladder);
        assert!(scene.released.is_some(), "nobody was let go");
        (verdict, brake)
    }

    #[test]
    fn nothing_is_done_where_memory_is_free_already() {
        let (verdict, brake) = decided(true, &[Action::Kill, Action::Grant(1 << 20)]);
        assert!(verdict.relieved && verdict.steps.is_empty(), "{verdict:?}");
        assert!(verdict.summary.contains("free again") && verdict.summary.contains("4.0 MiB"), "{}", verdict.summary);
        assert_eq!((brake.grants, brake.given_up, brake.resumed), (0, false, true));
    }

    #[test]
    fn a_hold_that_lasts_is_acted_on() {
        let (verdict, brake) = decided(false, &[Action::Grant(1 << 20)]);
        assert!(verdict.relieved, "{verdict:?}");
        assert_eq!(verdict.steps.iter().map(|step| &*step.action).collect::<Vec<_>>(), ["grant=1M"]);
        assert_eq!((brake.grants, brake.given_up, brake.resumed), (1, false, true));
    }

    #[test]
    fn what_is_deferred_is_the_kernels_at_once() {
        let (verdict, brake) = decided(false, &[Action::Defer]);
        assert_eq!((verdict.relieved, &*verdict.summary), (false, "defer: the kernel's OOM killer decides"));
        assert_eq!((brake.grants, brake.given_up, brake.resumed), (0, true, true));
    }

    #[test]
    fn without_any_action_the_kernel_decides() {
        let (verdict, brake) = decided(true, &[]);
        assert!(verdict.relieved && !brake.given_up, "{verdict:?}");
        let (verdict, brake) = decided(false, &[]);
        assert!(!verdict.relieved, "{verdict:?}");
        assert!(brake.given_up && brake.resumed);
    }
}
