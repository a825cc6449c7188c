//! The verdict: a ladder of actions, each measured by what it did.

mod action;
pub mod collect;
mod condition;
pub mod hook;
mod kill;
mod ladders;
mod names;
mod others;
mod patience;
mod person;
pub mod policy;
pub mod purse;
pub mod quota;
mod terminal;
mod throttle;
mod view;
pub mod worth;

pub use action::Action;
pub use condition::Condition;
pub use kill::candidates;
pub use ladders::Ladders;
pub use person::Asking;
pub use quota::Quota;
pub use throttle::{THROTTLE_ROOM_SHARE, Turn};
pub use view::View;

use crate::cgroup::{CgroupError, CpuGroup, Memcg, Version};
use crate::hold::Brake;
use crate::hold::stop::StoppedThreads;
use crate::hold::watchdog::Line;
use crate::incident::model::{Candidate, OtherVictim, Process, Step, StepOutcome, Verdict};
use crate::incident::units;
use crate::signals::Interrupt;
use crate::snapshot::process::Stat;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::Signal;
use purse::{Allowance, By};
use std::path::Path;
use std::time::{Duration, Instant};

/// A memcg has room when this share of its limit, or [`ROOM_MIN_BYTES`], is free.
const ROOM_SHARE: u64 = 64;
/// Least room.
const ROOM_MIN_BYTES: u64 = 1 << 20;
/// A grant must leave the machine this much (or a twentieth of its memory).
const MACHINE_KEEPS_BYTES: u64 = 64 << 20;
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
    /// How a person is asked.
    pub asking: Asking<'a>,
    /// What follows on the ladder.
    pub next: Vec<Action>,
    /// Whether another rule may take over instead.
    pub is_watched: bool,
    /// Whether it was left to the kernel, and nothing more is to be tried.
    pub is_deferred: bool,
    /// When the threads were let go.
    pub released: Option<Instant>,
    /// Kills that the kernel had made in it when the hold began.
    pub kernel_kills: Option<u64>,
    /// Who was killed by somebody else while stopped.
    pub other_victims: Vec<OtherVictim>,
    /// Whether a program of the operator's ran, which may have killed, too.
    pub was_helped: bool,
    /// Which memcgs are worth what.
    pub worths: &'a worth::Worths,
    /// What it may be granted; `None` where nobody says.
    pub allowance: Option<&'a Allowance>,
    /// Whose action is tried.
    pub by: By,
    /// A throttle that is not lifted yet, and where one is left that helped; `None` where
    /// nobody would look after it.
    pub throttle: Option<&'a mut Option<Quota>>,
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

/// Tries one action after the other until the memcg is well; none of them where it is
/// well already, since its memory was freed meanwhile. When none helps the kernel
/// decides. In the end every thread has been let go.
pub fn decide(scene: &mut Scene<'_>, mut ladders: Ladders<'_>) -> Verdict {
    let mut steps = Vec::new();
    let mut relieved = false;
    let mut rule = None;
    // Whether a hold that is over by now is so without us.
    let mut untouched = true;
    let mut free_again = false;
    loop {
        // Rules take their time, so the look at the hold comes after them: before the first
        // action, between two, and before it is left to the kernel.
        let rung = ladders.next(&steps);
        if steps.is_empty() {
            rule = rung.and_then(|rung| rung.rule);
        }
        if scene.interrupt.ending().is_some() {
            break;
        }
        free_again = untouched && scene.threads.is_some() && scene.brake.ended_by_itself();
        relieved = free_again;
        let Some(rung) = rung.filter(|_| !free_again) else { break };
        rule = rung.rule;
        (scene.next, scene.is_watched) = (rung.rest.to_vec(), rung.is_watched);
        let step = Step { rule: rule.map(str::to_owned), ..scene.try_action(rung.action) };
        relieved = step.outcome == StepOutcome::Relieved;
        untouched &= step.outcome == StepOutcome::Failed || matches!(rung.action, Action::Freeze(_));
        steps.push(step);
        if relieved || scene.is_deferred {
            break;
        }
    }
    let (rule, problems) = (rule.map(str::to_owned), ladders.into_problems());
    let mut verdict = Verdict { summary: String::new(), relieved, rule, problems, steps };
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
    } else if scene.is_deferred {
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
    scene.note_others();
    if let Err(error) = scene.let_go() {
        verdict.summary.push_str(&format!("; letting the threads go failed: {error}"));
    }
    verdict
}

/// Does nothing of it, and leaves it to the kernel, which would have decided without us.
pub fn rehearse(scene: &mut Scene<'_>, mut ladders: Ladders<'_>) -> Verdict {
    let rung = ladders.next(&[]);
    let ladder: Vec<&Action> = rung.iter().flat_map(|rung| std::iter::once(rung.action).chain(rung.rest)).collect();
    let actions: Vec<String> = ladder.iter().map(ToString::to_string).collect();
    let victim = ladder.contains(&&Action::Kill).then(|| {
        let targets = kill::rank(scene.processes, &kill::Homes::below(scene.memcg, scene.worths));
        format!(" ({})", kill::reason(&targets))
    });
    let victim = victim.unwrap_or_default();
    let mut summary =
        format!("dry run: would have tried {}{victim}; the kernel's OOM killer decides", actions.join(", "));
    if let Err(error) = scene.brake.give_up() {
        summary.push_str(&format!("; handing back to it failed: {error}"));
    }
    if let Err(error) = scene.let_go() {
        summary.push_str(&format!("; letting the threads go failed: {error}"));
    }
    let rule = rung.and_then(|rung| rung.rule).map(str::to_owned);
    Verdict { summary, relieved: false, rule, problems: ladders.into_problems(), steps: Vec::new() }
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
            Action::Defer => {
                self.is_deferred = true;
                Ok(Effect::new(StepOutcome::NotEnough, "as configured", "left to the kernel"))
            }
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
            rule: None,
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

    fn signal(&mut self, signal: Signal, time: Duration) -> Result<Effect, CgroupError> {
        let send = |process: &&Process| kill::signal(process.pid, process.start_ticks, signal).is_ok();
        let told: Vec<&Process> = self.processes.iter().filter(send).collect();
        let reason = format!("{signal} asks {} to free memory", units::count(told.len() as u64, "process"));
        if told.is_empty() {
            return Ok(Effect::new(StepOutcome::Failed, reason, "nobody could be told"));
        }
        let (outcome, mut effect) = self.let_recover(time, None)?;
        // One without a handler for it.
        let died = told.iter().filter(|process| kill::has_ended(process.pid, process.start_ticks));
        let died: Vec<String> = died.map(|process| format!("{} [{}]", process.comm, process.pid)).collect();
        if let Some((first, others)) = died.split_first() {
            let others = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
            effect = format!("{first}{others} died of it; {effect}");
        }
        Ok(Effect::new(outcome, reason, effect))
    }

    fn hook(&mut self, program: &Path, time: Duration) -> Result<Effect, CgroupError> {
        let reason = "a program of the operator's makes room while it is stopped";
        self.note_others();
        self.was_helped = true;
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
        if let Some(Err(why)) = self.allowance.map(|allowance| allowance.take(bytes, self.brake.limit(), self.by)) {
            return Ok(Effect::new(StepOutcome::Failed, reason, format!("refused: {why}")));
        }
        let granted = self.brake.grant(bytes);
        self.allowance.iter().for_each(|allowance| allowance.settle(self.brake.granted()));
        granted?;
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

    fn kill(&mut self, deadline: Instant) -> Result<Effect, CgroupError> {
        let homes = kill::Homes::below(self.memcg, self.worths);
        let targets = kill::rank(self.processes, &homes);
        let mut told = Vec::new();
        let mut outcome = StepOutcome::NotEnough;
        let reason = kill::reason(&targets);
        for kill::Target { candidate, job } in &targets {
            let left = deadline.saturating_duration_since(Instant::now());
            let before = self.memcg.usage()?;
            let mut name = format!("{} [{}]", candidate.comm, candidate.pid);
            let process = self.processes.iter().find(|p| p.pid == candidate.pid);
            let killed = match (job, process) {
                (Some(job), _) => {
                    name = format!("all of {}", job.path());
                    self.kill_job(job, deadline)
                }
                (None, Some(process)) => match homes.group_of(process.pid, self.processes) {
                    Some(group) => {
                        name.push_str(&format!(" and all of {} (memory.oom.group)", group.path()));
                        self.kill_job(group, deadline)
                    }
                    None => self.kill_process(process, left),
                },
                (None, None) => continue,
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
        let candidates = targets.into_iter().map(|target| target.candidate).collect();
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
mod tests;
