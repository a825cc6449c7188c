//! `machine`: answers OOMs of the whole machine, through the root cgroup's reserve.
//!
//! Allocations of everybody else wait in the kernel meanwhile, perhaps with locks. So
//! one thread decides and waits for nobody ([`decide`]), and others, which may be late,
//! read `/proc`, stop threads, write files ([`chronicle`], [`evidence`], [`tracer`],
//! [`hand`]). What the decision needs is kept ready ([`roster`]).

mod chronicle;
mod decide;
mod evidence;
mod hand;
mod handover;
mod jobs;
mod roster;
mod settings;
mod tracer;

use crate::cgroup::{Hierarchy, Memcg, Version};
use crate::guardian::{self, Priority};
use crate::hold::reserve::{self, Device};
use crate::hold::watchdog::Watchdog;
use crate::hold::{BrakeError, HandBack, ReserveBrake};
use crate::incident::store::Limits;
use crate::incident::units;
use crate::metrics::{self, Feed};
use crate::run::{Recorder, RunError, open_store};
use crate::say;
use crate::signals::{Interrupt, Signals};
use crate::snapshot::Options;
use crate::verdict::machine_memory;
use crate::verdict::worth::Worths;
use chronicle::{Chronicler, Recorded, Word};
use decide::{ACT_TIME, Begin, Decider, KILL_TIME, Outcome, Rules, World};
use hand::{Hand, Task};
use handover::{Handover, timeout};
use jobs::Job;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{UsageWho, getrusage};
use reprieve_oom_uapi::{Event, Verdict};
use roster::Roster;
use settings::Settings;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the watchdog allows beyond our deadline: what was decided takes time to help.
const WATCHDOG_GRACE: Duration = Duration::from_secs(ACT_TIME.as_secs() + KILL_TIME.as_secs() + 1);
/// What the kernel allows beyond our deadline before it decides itself.
const KERNEL_GRACE: Duration = Duration::from_secs(WATCHDOG_GRACE.as_secs() + 1);
/// The kernel refuses more than this share of the memory (memory_oom_reserve_write).
const RESERVE_SHARE: u64 = 20;

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
    /// What is configured of the jobs.
    pub worths: Worths,
    /// How many of the biggest jobs are recorded.
    pub jobs: usize,
    /// Folder for incidents.
    pub out: Option<PathBuf>,
    /// What is kept there.
    pub limits: Limits,
    /// What to record.
    pub options: Options,
    /// Where OOMs are counted.
    pub feed: Option<Feed>,
}

/// The root cgroup, where OOMs of the machine can be answered; else what is missing for that.
pub fn root() -> Result<Memcg, String> {
    if !ReserveBrake::is_there() {
        return Err("there is no /dev/oom_reserve; boot a kernel with the series in kernel/patches".to_owned());
    }
    let hierarchy = Hierarchy::memory().map_err(|error| error.to_string())?;
    let root = Memcg::at(&hierarchy, "/");
    // The root of a container is none of the machine: it has a limit.
    if hierarchy.version != Version::V2 || root.dir().join("memory.max").exists() {
        return Err(
            "the root of cgroup version 2 is not to be seen here; run it outside of containers, where version 2 has the memory controller".to_owned(),
        );
    }
    if nix::unistd::geteuid().is_root() { Ok(root) } else { Err("only root may; run it as root".to_owned()) }
}

/// Answers OOMs until a signal ends it.
pub fn watch(request: &Request) -> Result<(), RunError> {
    let root =
        root().map_err(|missing| RunError::NotAllowed(format!("OOMs of the machine cannot be answered: {missing}")))?;
    let mut signals = Signals::block().map_err(|e| RunError::System("signals could not be blocked", e))?;
    let (store, in_hand) = open_store(request.out.clone(), &request.limits)?;
    let device = Device::open()?;
    let dir = File::open(root.dir()).map_err(BrakeError::Bell)?;
    device.attach(&dir).map_err(|errno| match errno {
        Errno::EBUSY => BrakeError::Taken { path: "/".to_owned() },
        Errno::EPERM | Errno::EACCES => BrakeError::NotDelegated { path: "/".to_owned(), source: errno.into() },
        _ => BrakeError::NoReserve(errno.into()),
    })?;
    let reserve_bytes = request.reserve_bytes.min(machine_memory().0 / RESERVE_SHARE) & !0xfff;
    let settings = Settings::of(&root);
    let hand_back = HandBack { alarm: reserve::alarm(&root), writes: settings.put_back(), ..HandBack::default() };
    // It tells one hold from the next by itself: no word of ours need reach it in one.
    let watchdog = Watchdog::start(hand_back, request.deadline + WATCHDOG_GRACE)
        .map_err(|e| RunError::System("the watchdog could not be started", e))?;
    let missing = guardian::settle(guardian::Locks::All).into_iter().chain(guardian::lock_what_comes());
    missing.for_each(|missing| say!(Warning; "warning: {missing}"));
    guardian::sigbus::install().map_err(|e| RunError::System("the SIGBUS handler could not be installed", e.into()))?;
    guardian::allow_many_files();
    let unstarted = |e| RunError::System("a thread could not be started", e);
    let recorder = Recorder::with_subject(store, request.limits, in_hand, "machine".to_owned())?;
    // Who waits in the allocator tries again and again, which takes time from everybody
    // else. Of ours, who decides goes first.
    let urgent = Priority::of_this_thread();
    let roster = Roster::keep(root.clone(), request.depth, request.worths.clone(), urgent).map_err(unstarted)?;
    let hand = Hand::start(urgent).map_err(unstarted)?;
    let chronicler =
        Chronicler::start(root.clone(), request, recorder, Arc::clone(&roster), urgent).map_err(unstarted)?;
    urgent.above().take();
    // From now on there are holds.
    let (settings, missing) = settings.write(&root, reserve_bytes, request.deadline + KERNEL_GRACE)?;
    if let Some(missing) = missing {
        say!(Warning; "warning: {missing}");
    }
    say!(Info, cgroup = root.path(), brake = "reserve";
        "watching the machine; {} are kept free for that", units::bytes(reserve_bytes));
    request.feed.iter().for_each(|feed| feed.tell(&metrics::Event::Machine { is_answered: true }));
    let machine = Machine { device, words: chronicler.words(), recorded: chronicler.recorded(), tasks: hand.tasks() };
    let rules = Rules { deadline: request.deadline, remedy: request.remedy };
    let mut decider = Decider::new(machine, rules, roster);
    while signals.ending().is_none() {
        let mut fds = [PollFd::new(signals.fd(), PollFlags::POLLIN), decider.world.device.bell()];
        let _ = poll(&mut fds, PollTimeout::NONE);
        decider.answer_all();
        signals.take();
    }
    // No hold begins any more that nobody would answer.
    drop(settings);
    hand.end();
    chronicler.end();
    watchdog.dismiss();
    Ok(())
}

/// The world of the thread that decides: descriptors that are open, and queues.
#[derive(Debug)]
struct Machine {
    device: Device,
    words: Arc<Handover<Word>>,
    recorded: Arc<Recorded>,
    tasks: Arc<Handover<Task>>,
}

impl World for Machine {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wait(&mut self, until: Instant) {
        let mut fds = [self.device.bell(), self.recorded.bell()];
        let _ = poll(&mut fds, timeout(Some(until)));
        if fds[1].any() == Some(true) {
            self.recorded.silence();
        }
    }

    fn record(&mut self) -> Option<Event> {
        self.device.record()
    }

    fn state(&self) -> Option<Event> {
        self.device.state().ok().flatten()
    }

    fn decide(&mut self, verdict: &Verdict) -> nix::Result<()> {
        self.device.decide(verdict)
    }

    fn usage(&self, job: &Job) -> Option<u64> {
        job.place.usage()
    }

    fn has_processes(&self, job: &Job) -> bool {
        job.place.has_processes()
    }

    fn is_recorded(&self, oom: u64) -> bool {
        self.recorded.is(oom)
    }

    fn begin(&mut self, begin: Begin) {
        self.words.put(Word::Begin(begin));
    }

    fn over(&mut self, outcome: Outcome) {
        self.words.put(Word::Over(outcome));
    }

    fn ask(&mut self, task: Task) {
        self.tasks.put(task);
    }

    fn faults(&self) -> u64 {
        // It fails for no arguments that are valid.
        getrusage(UsageWho::RUSAGE_THREAD)
            .map_or(0, |usage| (usage.minor_page_faults() + usage.major_page_faults()) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guardian::heap::by_thread;
    use decide::End;
    use jobs::List;
    use reprieve_oom_uapi::{Kind, Reason, Scope};
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
    use std::io::Write;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    /// What the deciding thread may ask the kernel for. Nothing of it opens, maps or
    /// starts anything, and none waits but poll(2), with its time, and futex(2), for a
    /// queue that is locked while an item is moved.
    const ALLOWED: &[i64] = &[
        libc::SYS_read,
        libc::SYS_pread64,
        libc::SYS_write,
        libc::SYS_ioctl,
        libc::SYS_futex,
        libc::SYS_getrusage,
        libc::SYS_clock_gettime,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll,
        libc::SYS_ppoll,
    ];
    /// With which every thread ends.
    const ENDING: &[i64] =
        &[libc::SYS_exit, libc::SYS_munmap, libc::SYS_madvise, libc::SYS_sigaltstack, libc::SYS_rt_sigprocmask];

    /// From now on this thread dies of any other system call.
    fn restrict() {
        let rules = ALLOWED.iter().chain(ENDING).map(|&call| (call, Vec::new())).collect();
        let arch = std::env::consts::ARCH.try_into().unwrap();
        let filter = SeccompFilter::new(rules, SeccompAction::KillThread, SeccompAction::Allow, arch).unwrap();
        apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
    }

    /// The real world, but for the device: no kernel of the host has it.
    struct NoDevice(Machine);

    impl World for NoDevice {
        fn now(&self) -> Instant {
            self.0.now()
        }
        fn wait(&mut self, until: Instant) {
            self.0.wait(until);
        }
        fn record(&mut self) -> Option<Event> {
            self.0.record()
        }
        fn state(&self) -> Option<Event> {
            self.0.state()
        }
        fn decide(&mut self, verdict: &Verdict) -> nix::Result<()> {
            // ENOTTY, by way of the same call.
            assert!(self.0.decide(verdict).is_err());
            Ok(())
        }
        fn usage(&self, job: &Job) -> Option<u64> {
            self.0.usage(job)
        }
        fn has_processes(&self, job: &Job) -> bool {
            self.0.has_processes(job)
        }
        fn is_recorded(&self, oom: u64) -> bool {
            self.0.is_recorded(oom)
        }
        fn begin(&mut self, begin: Begin) {
            self.0.begin(begin);
        }
        fn over(&mut self, outcome: Outcome) {
            self.0.over(outcome);
        }
        fn ask(&mut self, task: Task) {
            self.0.ask(task);
        }
        fn faults(&self) -> u64 {
            self.0.faults()
        }
    }

    fn event(kind: Kind, seq: u64, reason: Option<Reason>) -> Event {
        Event {
            size: size_of::<Event>() as u32,
            kind: kind as u16,
            scope: Scope::System as u32,
            seq,
            reason: reason.map_or(0, |reason| reason as u32),
            ..Event::default()
        }
    }

    fn tell(pipe: &mut std::io::PipeWriter, event: Event) {
        // SAFETY: an event is integers without padding, of this size (the uapi crate's
        // test compares it with C).
        let bytes: [u8; size_of::<Event>()] = unsafe { std::mem::transmute(event) };
        pipe.write_all(&bytes).unwrap();
    }

    #[test]
    fn the_thread_that_decides_opens_nothing_and_asks_for_no_memory() {
        let (reader, mut pipe) = std::io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(reader));
        let flags = nix::fcntl::OFlag::O_NONBLOCK;
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFL(flags)).unwrap();
        let words = Arc::new(Handover::new(8).unwrap());
        let tasks = Arc::new(Handover::new(8).unwrap());
        let recorded = Arc::new(Recorded::new().unwrap());
        let machine = Machine {
            device: Device::of_file(file),
            words: Arc::clone(&words),
            recorded: Arc::clone(&recorded),
            tasks: Arc::clone(&tasks),
        };
        let jobs = (0..100).map(|n| jobs::tests::job(&format!("/job{n}"), n, 64 << 20, 0)).collect();
        let rules = Rules { deadline: Duration::from_secs(40), remedy: Remedy::Kill };
        let mut decider = Decider::new(NoDevice(machine), rules, Arc::new(Roster::of(List(jobs)).unwrap()));
        tell(&mut pipe, event(Kind::Held, 1, None));
        // Not a scoped one: nobody would see it die.
        let thread = std::thread::spawn(move || {
            restrict();
            let before = by_thread::made();
            decider.answer_all();
            // Its files are closed by whoever may.
            (by_thread::made() - before, decider)
        });
        let soon = || Some(Instant::now() + Duration::from_secs(10));
        assert!(matches!(words.wait(soon()), Some(Word::Begin(_))));
        // A hold that ends, and another: so it waits in every way it knows.
        tell(&mut pipe, event(Kind::Ended, 1, Some(Reason::Margin)));
        tell(&mut pipe, event(Kind::Held, 2, None));
        recorded.set(1);
        let Some(Task::Sweep(place)) = tasks.wait(soon()) else { panic!("nobody was killed") };
        assert_eq!(place.memcg.path(), "/job0");
        tell(&mut pipe, event(Kind::Ended, 2, Some(Reason::Killed)));
        let Some(Word::Over(outcome)) = words.wait(soon()) else { panic!("it was not over") };
        assert_eq!((outcome.end, outcome.holds), (End::Relieved, 2));
        let (allocations, _decider) = thread.join().unwrap();
        assert_eq!(allocations, 0);
    }

    #[test]
    fn a_thread_that_opens_a_file_is_seen() {
        let opened = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&opened);
        let thread = std::thread::spawn(move || {
            restrict();
            let _ = File::open("/proc/self/status");
            told.store(true, SeqCst);
        });
        // That it died without an end of its own makes the join panic.
        let joined = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| thread.join()));
        assert!(joined.is_err() && !opened.load(SeqCst));
    }
}
