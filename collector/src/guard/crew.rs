//! Threads that answer OOMs, so many at a time.
//!
//! A thread that is stopped can be let go only by the thread that stopped it
//! (ptrace(2)), so one OOM is one thread's from the stop to the end of its hold. What
//! it cannot let go the kernel does, when it ends.

use crate::baseline::History;
use crate::cgroup::{Memcg, find_cpu_group};
use crate::desk::Desk;
use crate::guardian::Priority;
use crate::hold::Brake;
use crate::hold::watchdog::Line;
use crate::metrics::Feed;
use crate::run::{Answered, Answerer, Manner, Recorder, Share};
use crate::say;
use crate::signals::{Ending, Interrupt};
use crate::snapshot::kernel_log::KernelLog;
use crate::verdict::Quota;
use crate::verdict::purse::Allowance;
use crate::witness::GrowthWitness;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::Signal;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

/// Symbols are found in a process of its own: what is left is reading.
pub const STACK_BYTES: usize = 2 << 20;
/// How long threads that stop late are waited for before the kernel lets them go.
const LATE_TIME: Duration = Duration::from_secs(2);
const LATE_AGAIN: Duration = Duration::from_millis(10);

/// What is to be done about a memcg.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// It is out of memory.
    Answer,
    /// The kernel has killed in it.
    RecordKill,
}

/// A memcg given to a thread, with all that it needs.
#[derive(Debug)]
pub struct Job {
    /// Its number.
    pub number: u32,
    /// What to do.
    pub task: Task,
    /// The memcg.
    pub memcg: Memcg,
    /// Its brake.
    pub brake: Box<dyn Brake>,
    /// How.
    pub manner: Arc<Manner>,
    /// To the watchdog.
    pub line: Line,
    /// Writes the incident.
    pub recorder: Arc<Recorder>,
    /// Whether one is written.
    pub share: Share,
    /// Whether one was that only a kill has.
    pub spent: bool,
    /// Where it is counted.
    pub feed: Option<Feed>,
    /// Incident after which the kernel was left to decide.
    pub left_to_kernel: Option<String>,
    /// What it was like until now.
    pub history: Option<History>,
    /// Who watches its page faults.
    pub growth: Option<Arc<GrowthWitness>>,
    /// Where operators are served.
    pub desk: Option<Arc<Desk>>,
    /// What it may be granted.
    pub allowance: Allowance,
    /// A throttle that is not lifted yet.
    pub throttle: Option<Quota>,
}

/// A memcg that comes back.
#[derive(Debug)]
pub struct Done {
    /// Its number.
    pub number: u32,
    /// Its brake.
    pub brake: Box<dyn Brake>,
    /// What it was like until then.
    pub history: Option<History>,
    /// A throttle that helped, and that somebody has to lift.
    pub throttle: Option<Quota>,
    /// What came of it; the error is a sentence.
    pub answered: Result<Answered, String>,
    /// Whether an incident was written that only a kill has.
    pub spent: bool,
    /// Whether the thread has ended.
    is_last: bool,
}

/// The threads, seen from the one that guards.
#[derive(Debug)]
pub struct Crew {
    jobs: Option<Sender<Job>>,
    hands: Arc<Mutex<Receiver<Job>>>,
    done: Receiver<Done>,
    shared: Shared,
}

#[derive(Debug, Clone)]
struct Shared {
    done: Sender<Done>,
    bell: Arc<EventFd>,
    halt: Arc<Halt>,
    log: Arc<Mutex<io::Result<KernelLog>>>,
    urgent: Priority,
}

impl Crew {
    /// Starts so many threads of this priority.
    pub fn start(size: usize, urgent: Priority) -> io::Result<Self> {
        let (jobs, hands) = mpsc::channel();
        let (sender, done) = mpsc::channel();
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let halt = Halt {
            flag: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            signal: Mutex::new(None),
        };
        let shared = Shared {
            done: sender,
            bell: Arc::new(bell),
            halt: Arc::new(halt),
            log: Arc::new(Mutex::new(KernelLog::open())),
            urgent,
        };
        let crew = Crew { jobs: Some(jobs), hands: Arc::new(Mutex::new(hands)), done, shared };
        for _ in 0..size {
            crew.hire()?;
        }
        Ok(crew)
    }

    fn hire(&self) -> io::Result<()> {
        let (hands, shared) = (Arc::clone(&self.hands), self.shared.clone());
        let thread = Builder::new().name("reprieve-answer".to_owned()).stack_size(STACK_BYTES);
        thread.spawn(move || work(&hands, &shared)).map(drop)
    }

    /// Readable when somebody is done.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.shared.bell.as_fd()
    }

    /// Has a thread do it; gives the brake back where there is none.
    pub fn put(&self, job: Job) -> Result<(), Box<dyn Brake>> {
        match &self.jobs {
            Some(jobs) => jobs.send(job).map_err(|mpsc::SendError(job)| job.brake),
            None => Err(job.brake),
        }
    }

    /// What has been done.
    pub fn take(&self) -> Vec<Done> {
        let _ = self.shared.bell.read();
        let done: Vec<Done> = self.done.try_iter().collect();
        for _ in done.iter().filter(|done| done.is_last) {
            if let Err(error) = self.hire() {
                say!(Error; "one thread less answers OOMs: {error}");
            }
        }
        done
    }

    /// Ends every wait of a verdict, for good.
    pub fn halt(&self, signal: Signal) {
        *self.shared.halt.signal.lock().unwrap_or_else(PoisonError::into_inner) = Some(signal);
        // Nobody reads it, so it stays readable.
        let _ = self.shared.halt.flag.write(1);
    }
}

/// What ends waits.
#[derive(Debug)]
struct Halt {
    flag: EventFd,
    signal: Mutex<Option<Signal>>,
}

/// A thread's view of it.
#[derive(Debug)]
struct Halting(Arc<Halt>);

impl Interrupt for Halting {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.flag.as_fd()
    }

    fn take(&mut self) -> bool {
        self.ending().is_some()
    }

    fn ending(&self) -> Option<Ending> {
        let signal = *self.0.signal.lock().unwrap_or_else(PoisonError::into_inner);
        signal.map(|signal| Ending { signal, forward: false, count: 1 })
    }
}

fn work(hands: &Mutex<Receiver<Job>>, shared: &Shared) {
    shared.urgent.take();
    loop {
        let job = hands.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(mut job) = job else { return };
        let worked = catch_unwind(AssertUnwindSafe(|| job.work(shared)));
        let has_died = worked.is_err();
        let answered = worked.unwrap_or_else(|_| Err("the thread that answered it panicked".to_owned()));
        let until = Instant::now() + LATE_TIME;
        let mut is_free = job.brake.release_late();
        while !is_free && Instant::now() < until {
            std::thread::sleep(LATE_AGAIN);
            is_free = job.brake.release_late();
        }
        let is_last = has_died || !is_free;
        let (history, throttle) = (job.history.take(), job.throttle.take());
        let (number, brake, spent) = (job.number, job.brake, job.spent);
        let done = Done { number, brake, history, throttle, answered, spent, is_last };
        if shared.done.send(done).is_err() {
            return;
        }
        let _ = shared.bell.write(1);
        if is_last {
            return;
        }
    }
}

impl Job {
    fn work(&mut self, shared: &Shared) -> Result<Answered, String> {
        let cpu = find_cpu_group(&self.memcg);
        let subject = self.memcg.path().rsplit('/').next().unwrap_or_default().to_owned();
        let mut answerer = Answerer {
            brake: &mut *self.brake,
            memcg: &self.memcg,
            cpu: cpu.as_ref(),
            watchdog: &self.line,
            recorder: &self.recorder,
            interrupt: &mut Halting(Arc::clone(&shared.halt)),
            manner: &self.manner,
            subject: &subject,
            heap: None,
            growth: self.growth.as_deref(),
            history: self.history.as_ref(),
            reads_heaps: true,
            teller: &format!("{}: ", self.memcg.path()),
            share: &self.share,
            spent: &mut self.spent,
            desk: self.desk.as_deref(),
            // It is one for all, and belongs to who started us.
            on_terminal: false,
            feed: self.feed.as_ref(),
            allowance: Some(&self.allowance),
            throttle: Some(&mut self.throttle),
        };
        match self.task {
            Task::Answer => answerer.answer().map_err(|error| format!("{:#}", anyhow::Error::new(error))),
            Task::RecordKill => {
                let mut log = shared.log.lock().unwrap_or_else(PoisonError::into_inner);
                answerer.record_kernel_kill(&mut log, self.left_to_kernel.as_deref());
                Ok(Answered::Relieved)
            }
        }
    }
}
