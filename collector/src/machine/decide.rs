//! The thread that decides.
//!
//! While the machine is held everybody else waits in the kernel's allocator, perhaps
//! with locks. Whoever waits for one of those locks waits for us. So this thread opens
//! nothing, looks at nothing in `/proc`, starts no thread, asks for no memory and waits
//! for no other thread: what it needs was opened before ([`super::roster`]), and what
//! may take long is done by others ([`super::handover`]), who may be late.
//!
//! A hold ends by itself when there is room again, and another may begin a moment
//! later: as long as reclaim finds a few pages of programs, one hold follows another.
//! They count as one OOM. Only in a hold may anybody be killed: without one there is
//! memory.

use super::jobs::{Job, List};
use super::roster::Roster;
use super::{Remedy, hand};
use nix::errno::Errno;
use reprieve_oom_uapi::{Event, Kind, Reason, Scope, Verdict};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Share of a deadline for the evidence.
pub const EVIDENCE_SHARE: u32 = 2;
/// Time for a job to die and to give its memory back: a process with many page tables
/// was seen to need seconds for it on a slow machine.
pub const KILL_TIME: Duration = Duration::from_secs(6);
/// When a job has died and so much later there is still no memory, it was in vain.
const DEAD_TIME: Duration = Duration::from_secs(1);
/// The kernel's own patience after a kill is five seconds (`OOM_HOLD_KILL_DELAY`,
/// mm/oom_hold.c), then it may kill somebody else: it is asked for more than ours.
const KERNEL_KILL_MS: u32 = 7000;
/// Time for a throttled job to give memory back.
const THROTTLE_TIME: Duration = Duration::from_secs(1);
/// Time beyond the deadline for what was decided to help.
pub const ACT_TIME: Duration = Duration::from_secs(4);
/// As long without a hold means that there is memory.
const QUIET: Duration = Duration::from_secs(1);
/// After a kill its memory may still be on its way when the next hold begins.
const AFTERGLOW: Duration = Duration::from_millis(250);
/// How often to look for what no bell tells of.
const GLANCE: Duration = Duration::from_millis(5);
/// The same for a job that dies.
const LOOK_AT_DYING: Duration = Duration::from_millis(50);
/// Actions that are tried in one OOM.
pub const MOST_DEEDS: usize = 8;

/// What the deciding thread may do to the world; in tests the world is another.
pub trait World {
    /// The time.
    fn now(&self) -> Instant;
    /// Sleeps until there is a record, the evidence is there, or `until`.
    fn wait(&mut self, until: Instant);
    /// What the kernel has to tell, one after the other.
    fn record(&mut self) -> Option<Event>;
    /// The hold that lasts.
    fn state(&self) -> Option<Event>;
    /// Tells the kernel.
    fn decide(&mut self, verdict: &Verdict) -> nix::Result<()>;
    /// What a job uses; `None` when it is gone.
    fn usage(&self, job: &Job) -> Option<u64>;
    /// Whether there is anybody to be killed.
    fn has_processes(&self, job: &Job) -> bool;
    /// Whether the evidence of this OOM is on disk.
    fn is_recorded(&self, oom: u64) -> bool;
    /// Has the evidence taken.
    fn begin(&mut self, begin: Begin);
    /// Has the incident written.
    fn over(&mut self, outcome: Outcome);
    /// Has a file written.
    fn ask(&mut self, task: hand::Task);
    /// Page faults of this thread so far.
    fn faults(&self) -> u64;
}

/// What it keeps to.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Longest that everybody waits for a decision.
    pub deadline: Duration,
    /// What is tried first.
    pub remedy: Remedy,
}

/// An OOM begins.
#[derive(Debug)]
pub struct Begin {
    /// Its number.
    pub oom: u64,
    /// The first hold.
    pub first: Event,
    /// When we heard of it.
    pub noticed: Instant,
    /// The turn of the list that was asked for.
    pub turn: u64,
}

/// How it ended.
#[derive(Debug)]
pub struct Outcome {
    /// Whose end.
    pub end: End,
    /// The jobs, weighed anew.
    pub list: Arc<List>,
    /// What was done, in order.
    pub deeds: Deeds,
    /// The record of the end of the last hold.
    pub ended: Option<Event>,
    /// How many holds there were.
    pub holds: u32,
    /// From the notice to the end of the last hold.
    pub held: Duration,
    /// Page faults that this thread took meanwhile.
    pub faults: u64,
}

/// Whose decision it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Nobody's: there was memory again.
    FreeAgain,
    /// Ours, and it helped.
    Relieved,
    /// The kernel's, since nothing of ours helped.
    LeftToKernel,
    /// The kernel's, which did not wait for us.
    KernelFirst,
}

/// An action on a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deed {
    /// Its place in the list.
    pub job: usize,
    /// Whether it was killed; otherwise throttled.
    pub kill: bool,
    /// What the kernel had against it.
    pub error: Option<Errno>,
    /// Whether the hold ended in time.
    pub relieved: bool,
    /// What the job used before.
    pub size_bytes: u64,
    /// What of that came back.
    pub came_back_bytes: u64,
    /// What the machine used before.
    pub usage_bytes: u64,
    /// Time allowed.
    pub limit: Duration,
    /// Time taken.
    pub took: Duration,
}

/// Deeds without a heap.
#[derive(Debug, Clone, Copy, Default)]
pub struct Deeds {
    all: [Option<Deed>; MOST_DEEDS],
    count: usize,
}

impl Deeds {
    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = &Deed> {
        self.all.iter().flatten()
    }

    /// Adds one; beyond [`MOST_DEEDS`] none is added.
    pub fn push(&mut self, deed: Deed) {
        if let Some(slot) = self.all.get_mut(self.count) {
            *slot = Some(deed);
            self.count += 1;
        }
    }

    fn is_full(&self) -> bool {
        self.count == MOST_DEEDS
    }

    /// Whether it was tried to kill this job.
    fn killed(&self, job: usize) -> bool {
        self.iter().any(|deed| deed.kill && deed.job == job)
    }
}

/// Whose turn it is.
enum Turn {
    Ours(Event),
    Nobodys,
    Kernels,
}

/// What trying came to.
enum Tried {
    Helped,
    InVain,
    /// The hold was over before anything was done.
    TooLate,
    /// Nobody is left to try it on.
    Nobody,
}

/// The deciding thread.
#[derive(Debug)]
pub struct Decider<W> {
    /// Where it acts.
    pub world: W,
    rules: Rules,
    roster: Arc<Roster>,
    /// The hold that lasts.
    hold: Option<Event>,
    /// The end of the last one, and when we heard of it.
    ended: Option<(Event, Instant)>,
    holds: u32,
    /// Number of this OOM.
    oom: u64,
}

impl<W: World> Decider<W> {
    /// A thread that has decided nothing yet.
    pub fn new(world: W, rules: Rules, roster: Arc<Roster>) -> Self {
        Decider { world, rules, roster, hold: None, ended: None, holds: 0, oom: 0 }
    }

    /// Answers what the kernel has to tell.
    pub fn answer_all(&mut self) {
        self.listen();
        while let Some(first) = self.hold {
            self.answer(first);
            self.listen();
        }
    }

    /// Takes what the kernel has to tell.
    fn listen(&mut self) {
        while let Some(event) = self.world.record() {
            match (event.kind(), event.scope()) {
                (Some(Kind::Held), Some(Scope::System)) => {
                    self.holds += 1;
                    self.hold = Some(event);
                }
                // A memcg without a handler of its own is the kernel's, as ever.
                (Some(Kind::Held), _) => drop(self.world.decide(&Verdict::give_up(event.seq))),
                (Some(Kind::Ended), Some(Scope::System)) => {
                    // One that we are not in was over before we heard of it.
                    match self.hold {
                        Some(hold) if hold.seq == event.seq => self.hold = None,
                        _ => self.holds += 1,
                    }
                    self.ended = Some((event, self.world.now()));
                }
                _ => {}
            }
        }
    }

    /// One OOM, the whole way.
    fn answer(&mut self, first: Event) {
        let noticed = self.world.now();
        let faults = self.world.faults();
        self.oom += 1;
        (self.holds, self.ended) = (1, None);
        let turn = self.roster.ask();
        self.world.begin(Begin { oom: self.oom, first, noticed, turn });
        let mut deeds = Deeds::default();
        let mut list = None;
        let end = self.live_through(&mut list, noticed, &mut deeds);
        let list = list.unwrap_or_else(|| self.roster.now());
        let until = self.ended.map_or_else(|| self.world.now(), |(_, at)| at);
        let outcome = Outcome {
            end,
            list,
            deeds,
            ended: self.ended.map(|(event, _)| event),
            holds: self.holds,
            held: until - noticed,
            faults: self.world.faults() - faults,
        };
        self.world.over(outcome);
    }

    /// Acts on one job after the other until there is memory.
    /// `chosen_from` is the list as it was at the first action.
    fn live_through(&mut self, chosen_from: &mut Option<Arc<List>>, noticed: Instant, deeds: &mut Deeds) -> End {
        let recorded_by = noticed + self.rules.deadline / EVIDENCE_SHARE;
        let act_by = noticed + self.rules.deadline + ACT_TIME;
        loop {
            let hold = match self.await_turn(recorded_by) {
                Turn::Ours(hold) => hold,
                Turn::Nobodys => return End::FreeAgain,
                Turn::Kernels => return End::KernelFirst,
            };
            // Who has come since the notice may be in it.
            let list = &**chosen_from.get_or_insert_with(|| self.roster.now());
            let is_late = self.world.now() >= act_by || deeds.is_full();
            match if is_late { Tried::Nobody } else { self.act(hold, list, deeds) } {
                Tried::Helped => return End::Relieved,
                Tried::InVain | Tried::TooLate => {}
                Tried::Nobody => {
                    let error = self.world.decide(&Verdict::give_up(hold.seq)).err();
                    self.listen();
                    self.hold_is_over(hold);
                    if error != Some(Errno::ESTALE) {
                        return End::LeftToKernel;
                    }
                }
            }
        }
    }

    /// Sleeps until it is clear whose turn it is: ours when there is a hold and the
    /// evidence is there, or late.
    fn await_turn(&mut self, recorded_by: Instant) -> Turn {
        loop {
            self.listen();
            let now = self.world.now();
            let until = match (self.hold, self.ended) {
                (Some(hold), _) if now >= recorded_by || self.world.is_recorded(self.oom) => return Turn::Ours(hold),
                (Some(_), _) => recorded_by,
                (None, Some((event, _))) if is_kernels(event.reason()) => return Turn::Kernels,
                (None, Some((_, at))) if now < at + QUIET => at + QUIET,
                (None, _) => return Turn::Nobodys,
            };
            self.world.wait(until);
        }
    }

    /// Tries the next action, and looks what it does.
    fn act(&mut self, hold: Event, list: &List, deeds: &mut Deeds) -> Tried {
        for job in &list.0 {
            let usage = self.world.usage(job).filter(|_| self.world.has_processes(job));
            job.weigh(usage.unwrap_or(0));
        }
        let kill = self.rules.remedy == Remedy::Kill || deeds.iter().next().is_some();
        let Some(index) = list.choose(|index| deeds.killed(index)) else { return Tried::Nobody };
        let job = &list.0[index];
        let begun = self.world.now();
        let usage_bytes = self.world.state().map_or(hold.usage, |state| state.usage);
        let error = if kill { self.kill(hold, job) } else { self.throttle(job) };
        if error == Some(Errno::ESTALE) {
            self.listen();
            self.hold_is_over(hold);
            return Tried::TooLate;
        }
        let limit = if kill { KILL_TIME } else { THROTTLE_TIME };
        let relieved = error.is_none() && self.await_end(hold, kill.then_some(job), begun + limit);
        if relieved && kill {
            self.await_memory(job, begun + limit);
        }
        let left = self.world.usage(job).unwrap_or(0);
        deeds.push(Deed {
            job: index,
            kill,
            error,
            relieved,
            size_bytes: job.size_bytes(),
            came_back_bytes: job.size_bytes().saturating_sub(left),
            usage_bytes,
            limit,
            took: self.world.now() - begun,
        });
        if relieved { Tried::Helped } else { Tried::InVain }
    }

    fn kill(&mut self, hold: Event, job: &Job) -> Option<Errno> {
        let error = self.world.decide(&Verdict::kill_cgroup(hold.seq, job.place.dir.as_raw_fd())).err();
        if error.is_none() {
            // ESTALE: it has helped already.
            let _ = self.world.decide(&Verdict::extend(hold.seq, KERNEL_KILL_MS));
            self.world.ask(hand::Task::Sweep(Arc::clone(&job.place)));
        }
        error
    }

    fn throttle(&mut self, job: &Job) -> Option<Errno> {
        self.world.ask(hand::Task::Throttle(Arc::clone(&job.place), job.size_bytes() / 2));
        None
    }

    /// Whether a hold ends in time. When who was `killed` is dead, there is less of it.
    fn await_end(&mut self, hold: Event, killed: Option<&Job>, mut until: Instant) -> bool {
        let lasts = |decider: &Self| decider.hold.is_some_and(|now| now.seq == hold.seq);
        let mut dying = killed;
        loop {
            self.listen();
            let now = self.world.now();
            if !lasts(self) || now >= until {
                return !lasts(self);
            }
            if dying.is_some_and(|job| !self.world.has_processes(job)) {
                dying = None;
                until = until.min(now + DEAD_TIME);
            }
            self.world.wait(if dying.is_some() { until.min(now + LOOK_AT_DYING) } else { until });
        }
    }

    /// A hold ends with the first MiBs that come; waits for the rest of a killed job,
    /// so that nobody else dies for what is on its way.
    fn await_memory(&mut self, job: &Job, until: Instant) {
        let mut came = None;
        loop {
            self.listen();
            let now = self.world.now();
            if came.is_none() && (self.world.usage(job).unwrap_or(0) <= job.size_bytes() / 8 || now >= until) {
                came = Some(now);
            }
            // Holds that begin meanwhile are of the same OOM.
            if came.is_some_and(|came| self.hold.is_none() || now >= came + AFTERGLOW) {
                return;
            }
            self.world.wait(now + GLANCE);
        }
    }

    /// Takes note of an end whose record was lost.
    fn hold_is_over(&mut self, hold: Event) {
        if self.hold.is_some_and(|now| now.seq == hold.seq) {
            self.hold = None;
            self.ended = Some((hold, self.world.now()));
        }
    }
}

/// Whether the kernel's OOM killer acts after a hold that ended so. Not after a kill
/// of ours that came late to its effect, as far as anybody can tell.
fn is_kernels(reason: Option<Reason>) -> bool {
    use Reason::{Exhausted, GaveUp, HandlerGone, Offline, Timeout};
    matches!(reason, Some(GaveUp | Timeout | HandlerGone | Exhausted | Offline))
}

#[cfg(test)]
mod tests {
    use super::super::jobs::tests::job;
    use super::*;
    use reprieve_oom_uapi::Decision;
    use std::cell::Cell;
    use std::collections::BTreeMap;

    const DEADLINE: Duration = Duration::from_secs(4);
    const MIB: u64 = 1 << 20;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn event(kind: Kind, seq: u64, reason: Option<Reason>) -> Event {
        let reason = reason.map_or(0, |reason| reason as u32);
        Event { kind: kind as u16, scope: Scope::System as u32, seq, reason, ..Event::default() }
    }

    /// What happens so long after a kill.
    #[derive(Clone)]
    enum After {
        Record(Event),
        Usage(u64),
    }

    /// A world with a clock of its own, in which nothing takes time but waiting.
    struct Fake {
        begun: Instant,
        clock: Cell<Duration>,
        /// Records to come, by time.
        records: Vec<(Duration, Event)>,
        recorded_at: Duration,
        /// What a kill of the job with this folder brings about.
        kills: BTreeMap<i32, Vec<(Duration, After)>>,
        usages: Vec<(Duration, i32, u64)>,
        /// The folder of a job with nobody in it.
        empty: Option<i32>,
        /// When jobs have died.
        deaths: Vec<(Duration, i32)>,
        /// The hold in which verdicts are accepted.
        held: Option<u64>,
        verdicts: Vec<(Duration, Option<Decision>, u64)>,
        tasks: Vec<String>,
        outcomes: Vec<Outcome>,
    }

    impl Fake {
        fn new(records: &[(u64, Event)]) -> Self {
            Fake {
                begun: Instant::now(),
                clock: Cell::default(),
                records: records.iter().map(|&(at, event)| (ms(at), event)).collect(),
                recorded_at: ms(300),
                kills: BTreeMap::new(),
                usages: Vec::new(),
                empty: None,
                deaths: Vec::new(),
                held: None,
                verdicts: Vec::new(),
                tasks: Vec::new(),
                outcomes: Vec::new(),
            }
        }
    }

    impl World for Fake {
        fn now(&self) -> Instant {
            self.begun + self.clock.get()
        }

        fn wait(&mut self, until: Instant) {
            let now = self.clock.get();
            let next = self.records.iter().map(|(at, _)| *at).chain([self.recorded_at]).filter(|at| *at > now);
            let until = next.fold(until - self.begun, Duration::min);
            assert!(now < Duration::from_secs(3600), "it waits for ever");
            self.clock.set(until.max(now + ms(1)));
        }

        fn record(&mut self) -> Option<Event> {
            let now = self.clock.get();
            let at = self.records.iter().position(|(at, _)| *at <= now)?;
            let (_, event) = self.records.remove(at);
            self.held = match event.kind() {
                Some(Kind::Held) => Some(event.seq),
                _ => self.held.filter(|seq| *seq != event.seq),
            };
            Some(event)
        }

        fn state(&self) -> Option<Event> {
            None
        }

        fn decide(&mut self, verdict: &Verdict) -> nix::Result<()> {
            let now = self.clock.get();
            let ends = |(at, event): &(Duration, Event)| *at <= now && event.seq == verdict.seq;
            if self.held != Some(verdict.seq) || self.records.iter().any(ends) {
                return Err(Errno::ESTALE);
            }
            let decision = Decision::from_raw(verdict.verdict);
            self.verdicts.push((now, decision, verdict.seq));
            for (after, what) in self.kills.get(&verdict.fd).cloned().unwrap_or_default() {
                match what {
                    After::Record(event) => self.records.push((now + after, event)),
                    After::Usage(bytes) => self.usages.push((now + after, verdict.fd, bytes)),
                }
            }
            self.records.sort_by_key(|(at, _)| *at);
            Ok(())
        }

        fn usage(&self, job: &Job) -> Option<u64> {
            let (now, fd) = (self.clock.get(), job.place.dir.as_raw_fd());
            let changed = self.usages.iter().rev().find(|(at, whose, _)| *at <= now && *whose == fd);
            changed.map(|(_, _, bytes)| *bytes).or_else(|| job.place.usage())
        }

        fn has_processes(&self, job: &Job) -> bool {
            let fd = job.place.dir.as_raw_fd();
            let is_dead = |(at, whose): &(Duration, i32)| *whose == fd && *at <= self.clock.get();
            self.empty != Some(fd) && !self.deaths.iter().any(is_dead)
        }

        fn is_recorded(&self, _: u64) -> bool {
            self.clock.get() >= self.recorded_at
        }

        fn begin(&mut self, _: Begin) {}

        fn over(&mut self, outcome: Outcome) {
            self.outcomes.push(outcome);
        }

        fn ask(&mut self, task: hand::Task) {
            self.tasks.push(match task {
                hand::Task::Throttle(place, bytes) => format!("throttle {} to {}", place.memcg.path(), bytes / MIB),
                hand::Task::Sweep(place) => format!("sweep {}", place.memcg.path()),
                hand::Task::End => "end".to_owned(),
            });
        }

        fn faults(&self) -> u64 {
            0
        }
    }

    const LOW: usize = 1;

    /// Three jobs, of which the second is worth least.
    fn jobs() -> List {
        List(vec![job("/a", 5, 80 * MIB, 0), job("/low", -1, 80 * MIB, 0), job("/b", 7, 80 * MIB, 0)])
    }

    fn decider(world: Fake, list: List, remedy: Remedy) -> Decider<Fake> {
        Decider::new(world, Rules { deadline: DEADLINE, remedy }, Arc::new(Roster::of(list).unwrap()))
    }

    /// What a kill that helps brings about.
    fn helps(seq: u64) -> Vec<(Duration, After)> {
        let ended = event(Kind::Ended, seq, Some(Reason::Killed));
        vec![(ms(40), After::Record(ended)), (ms(90), After::Usage(0))]
    }

    /// Runs it to the end of all records.
    fn run(decider: &mut Decider<Fake>) {
        decider.answer_all();
        while !decider.world.records.is_empty() {
            let far = decider.world.now() + DEADLINE;
            decider.world.wait(far);
            decider.answer_all();
        }
    }

    fn one(mut decider: Decider<Fake>) -> (Outcome, Fake) {
        run(&mut decider);
        assert_eq!(decider.world.outcomes.len(), 1, "{:#?}", decider.world.outcomes);
        (decider.world.outcomes.remove(0), decider.world)
    }

    fn decisions(world: &Fake) -> Vec<Decision> {
        world.verdicts.iter().filter_map(|(_, decision, _)| *decision).collect()
    }

    #[test]
    fn the_job_worth_least_is_killed_when_the_evidence_is_there() {
        let list = jobs();
        let mut world = Fake::new(&[(0, event(Kind::Held, 1, None))]);
        world.kills.insert(list.0[LOW].place.dir.as_raw_fd(), helps(1));
        let (outcome, world) = one(decider(world, list, Remedy::Kill));
        assert_eq!(outcome.end, End::Relieved);
        let deeds: Vec<&Deed> = outcome.deeds.iter().collect();
        assert!(matches!(deeds[..], [Deed { job: LOW, kill: true, relieved: true, error: None, .. }]), "{deeds:?}");
        assert_eq!(deeds[0].came_back_bytes, 80 * MIB);
        assert_eq!(outcome.held, ms(340));
        assert_eq!(decisions(&world), [Decision::KillCgroup, Decision::Extend]);
        assert_eq!(world.verdicts[0].0, ms(300));
        assert_eq!(world.tasks, ["sweep /low"]);
    }

    #[test]
    fn evidence_that_is_late_is_not_waited_for() {
        let list = jobs();
        let mut world = Fake::new(&[(0, event(Kind::Held, 1, None))]);
        world.recorded_at = Duration::from_secs(1000);
        world.kills.insert(list.0[LOW].place.dir.as_raw_fd(), helps(1));
        let (outcome, world) = one(decider(world, list, Remedy::Kill));
        assert_eq!(outcome.end, End::Relieved);
        assert_eq!(world.verdicts[0].0, DEADLINE / EVIDENCE_SHARE);
    }

    #[test]
    fn nobody_is_killed_when_the_hold_was_over_before() {
        let records = [(0, event(Kind::Held, 1, None)), (200, event(Kind::Ended, 1, Some(Reason::Margin)))];
        let (outcome, world) = one(decider(Fake::new(&records), jobs(), Remedy::Kill));
        assert_eq!((outcome.end, outcome.holds), (End::FreeAgain, 1));
        assert_eq!(outcome.deeds.iter().count(), 0);
        assert_eq!(outcome.held, ms(200));
        assert!(world.verdicts.is_empty() && world.tasks.is_empty());
    }

    #[test]
    fn holds_in_a_row_are_one_oom() {
        let list = jobs();
        let mut world = Fake::new(&[
            (0, event(Kind::Held, 1, None)),
            (100, event(Kind::Ended, 1, Some(Reason::Margin))),
            (900, event(Kind::Held, 2, None)),
            // One that was over before it was heard of.
            (920, event(Kind::Ended, 2, Some(Reason::Margin))),
            (930, event(Kind::Ended, 3, Some(Reason::Margin))),
            (950, event(Kind::Held, 4, None)),
        ]);
        world.recorded_at = ms(940);
        world.kills.insert(list.0[LOW].place.dir.as_raw_fd(), helps(4));
        let (outcome, world) = one(decider(world, list, Remedy::Kill));
        assert_eq!((outcome.end, outcome.holds), (End::Relieved, 4));
        assert_eq!(world.verdicts[0], (ms(950), Some(Decision::KillCgroup), 4));
    }

    #[test]
    fn the_kernel_is_told_from_free_memory() {
        for reason in [Reason::Exhausted, Reason::Timeout, Reason::HandlerGone, Reason::GaveUp] {
            let records = [(0, event(Kind::Held, 1, None)), (200, event(Kind::Ended, 1, Some(reason)))];
            let (outcome, world) = one(decider(Fake::new(&records), jobs(), Remedy::Kill));
            assert_eq!(outcome.end, End::KernelFirst, "{reason:?}");
            assert_eq!(outcome.ended.and_then(|event| event.reason()), Some(reason));
            assert!(world.verdicts.is_empty());
        }
    }

    #[test]
    fn when_one_kill_does_not_help_the_next_is_tried_and_then_the_kernel() {
        let world = Fake::new(&[(0, event(Kind::Held, 1, None))]);
        let (outcome, world) = one(decider(world, jobs(), Remedy::Kill));
        assert_eq!(outcome.end, End::LeftToKernel);
        let tried: Vec<(usize, bool)> = outcome.deeds.iter().map(|deed| (deed.job, deed.relieved)).collect();
        // Then it is too late for a third.
        assert_eq!(tried, [(LOW, false), (0, false)]);
        assert_eq!(decisions(&world).last(), Some(&Decision::GiveUp));
    }

    #[test]
    fn a_job_that_has_nobody_left_is_none() {
        let list = jobs();
        let mut world = Fake::new(&[(0, event(Kind::Held, 1, None))]);
        world.empty = Some(list.0[LOW].place.dir.as_raw_fd());
        world.kills.insert(list.0[0].place.dir.as_raw_fd(), helps(1));
        let (outcome, _) = one(decider(world, list, Remedy::Kill));
        assert_eq!(outcome.end, End::Relieved);
        assert_eq!(outcome.deeds.iter().map(|deed| deed.job).collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn who_dies_slowly_is_given_time_and_who_is_dead_is_not() {
        let list = jobs();
        let mut world = Fake::new(&[(0, event(Kind::Held, 1, None))]);
        let low = list.0[LOW].place.dir.as_raw_fd();
        let ended = event(Kind::Ended, 1, Some(Reason::Killed));
        world.kills.insert(low, vec![(ms(4000), After::Record(ended)), (ms(4000), After::Usage(0))]);
        let (outcome, _) = one(decider(world, list, Remedy::Kill));
        assert_eq!(outcome.deeds.iter().map(|deed| (deed.job, deed.relieved)).collect::<Vec<_>>(), [(LOW, true)]);

        let list = jobs();
        let mut world = Fake::new(&[(0, event(Kind::Held, 1, None))]);
        let (low, next) = (list.0[LOW].place.dir.as_raw_fd(), list.0[0].place.dir.as_raw_fd());
        world.deaths.push((ms(500), low));
        world.kills.insert(next, helps(1));
        let (outcome, world) = one(decider(world, list, Remedy::Kill));
        assert_eq!(
            outcome.deeds.iter().map(|deed| (deed.job, deed.relieved)).collect::<Vec<_>>(),
            [(LOW, false), (0, true)]
        );
        assert!(world.verdicts[2].0 <= ms(1600), "{:?}", world.verdicts);
    }

    #[test]
    fn nobody_else_dies_while_the_memory_of_the_dead_is_on_its_way() {
        let list = jobs();
        let mut world = Fake::new(&[(0, event(Kind::Held, 1, None))]);
        let after = vec![
            (ms(20), After::Record(event(Kind::Ended, 1, Some(Reason::Killed)))),
            (ms(40), After::Record(event(Kind::Held, 2, None))),
            (ms(400), After::Usage(MIB)),
            (ms(500), After::Record(event(Kind::Ended, 2, Some(Reason::Margin)))),
        ];
        world.kills.insert(list.0[LOW].place.dir.as_raw_fd(), after);
        let (outcome, world) = one(decider(world, list, Remedy::Kill));
        assert_eq!((outcome.end, outcome.holds), (End::Relieved, 2));
        assert_eq!(outcome.deeds.iter().next().unwrap().came_back_bytes, 79 * MIB);
        assert_eq!(decisions(&world), [Decision::KillCgroup, Decision::Extend]);
    }

    #[test]
    fn an_oom_that_goes_on_is_the_next() {
        let list = jobs();
        let mut world = Fake::new(&[(0, event(Kind::Held, 1, None))]);
        let mut after = helps(1);
        after.push((ms(60), After::Record(event(Kind::Held, 2, None))));
        world.kills.insert(list.0[LOW].place.dir.as_raw_fd(), after);
        world.kills.insert(list.0[0].place.dir.as_raw_fd(), helps(2));
        let mut decider = decider(world, list, Remedy::Kill);
        run(&mut decider);
        let killed: Vec<usize> = decider.world.outcomes.iter().flat_map(|o| o.deeds.iter().map(|d| d.job)).collect();
        assert_eq!(killed, [LOW, 0]);
    }

    #[test]
    fn throttled_first_and_killed_if_that_is_not_enough() {
        let list = jobs();
        let mut world = Fake::new(&[(0, event(Kind::Held, 1, None))]);
        world.kills.insert(list.0[LOW].place.dir.as_raw_fd(), helps(1));
        let (outcome, world) = one(decider(world, list, Remedy::Throttle));
        assert_eq!(outcome.end, End::Relieved);
        assert_eq!(outcome.deeds.iter().map(|deed| deed.kill).collect::<Vec<_>>(), [false, true]);
        assert_eq!(world.tasks, ["throttle /low to 40", "sweep /low"]);
    }

    #[test]
    fn a_verdict_that_comes_too_late_kills_nobody() {
        let mut world = Fake::new(&[(0, event(Kind::Held, 1, None))]);
        // No verdict is accepted: the hold is over, and its record was lost.
        world.held = Some(9);
        let mut decider = decider(world, jobs(), Remedy::Kill);
        decider.hold = Some(event(Kind::Held, 1, None));
        decider.world.records.clear();
        let (outcome, world) = one(decider);
        assert_eq!(outcome.end, End::FreeAgain);
        assert_eq!(outcome.deeds.iter().count(), 0);
        assert!(world.verdicts.is_empty() && world.tasks.is_empty());
    }

    #[test]
    fn ooms_of_memcgs_are_the_kernels() {
        let memcg = Event { scope: Scope::Memcg as u32, ..event(Kind::Held, 5, None) };
        let mut decider = decider(Fake::new(&[(0, memcg)]), jobs(), Remedy::Kill);
        run(&mut decider);
        assert!(decider.world.outcomes.is_empty());
        assert_eq!(decider.world.verdicts, [(ms(0), Some(Decision::GiveUp), 5)]);
    }
}
