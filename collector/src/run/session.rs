//! The guardian's loop around one command.

use super::answer::{Answered, Answerer};
use super::command::{self, StartFailure, Started};
use super::ration::{Bounds, Ration, Share};
use super::recorder::Recorder;
use super::{Group, Request, RunError};
use crate::baseline::{History, Pace};
use crate::desk::Desk;
use crate::hold::watchdog::{Line, Watchdog};
use crate::hold::{Brake, Look};
use crate::signals::{Interrupt, Signals};
use crate::snapshot::kernel_log::KernelLog;
use crate::verdict::purse::Allowance;
use crate::witness::{GrowthWitness, HeapTable};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::time::{Duration, Instant};

/// Time a command gets to end after a signal, before it is killed.
const ENDING_TIME: Duration = Duration::from_secs(10);

/// Who watches the command's memory while it runs.
#[derive(Debug)]
pub struct Witnesses {
    /// The table of its allocations.
    pub heap: Option<HeapTable>,
    /// Its page faults.
    pub growth: Option<GrowthWitness>,
}

/// A command under guard.
pub struct Session<'a> {
    request: &'a Request,
    group: &'a Group,
    brake: Box<dyn Brake>,
    watchdog: Watchdog,
    line: Line,
    signals: Signals,
    recorder: Recorder,
    heap: Option<HeapTable>,
    growth: Option<GrowthWitness>,
    history: History,
    desk: Option<Desk>,
    kernel_log: std::io::Result<KernelLog>,
    /// Incident after which the kernel was left to decide.
    left_to_kernel: Option<String>,
    /// While it lives.
    command: Option<Pid>,
    signals_answered: u32,
    ending_since: Option<Instant>,
    /// What it may be granted.
    allowance: Allowance,
    ration: Ration,
    /// Of the OOM that is answered.
    share: Share,
    spent: bool,
}

impl<'a> Session<'a> {
    /// A session ready to run.
    #[expect(clippy::too_many_arguments, reason = "each is a thing of its own")]
    pub fn new(
        request: &'a Request,
        group: &'a Group,
        brake: Box<dyn Brake>,
        watchdog: Watchdog,
        signals: Signals,
        recorder: Recorder,
        Witnesses { heap, growth }: Witnesses,
        desk: Option<Desk>,
    ) -> Self {
        Session {
            request,
            group,
            brake,
            line: watchdog.only(),
            watchdog,
            signals,
            recorder,
            heap,
            growth,
            history: History::new(Pace::OF_ONE),
            desk,
            kernel_log: KernelLog::open(),
            left_to_kernel: None,
            command: None,
            signals_answered: 0,
            ending_since: None,
            allowance: Allowance::of_run(request.most_granted, request.manner.policy.biggest_grant()),
            ration: Ration::default(),
            share: Share::Any,
            spent: false,
        }
    }

    /// Until the command and all its children are gone.
    pub fn run(mut self) -> Result<u8, RunError> {
        let result = self.guard();
        // Whatever happened: nobody is left held or alone.
        if result.is_err() {
            self.kill_all();
        }
        self.recorder.drain(|| {});
        if self.group.is_made {
            let _ = self.group.memcg.remove();
        }
        self.watchdog.dismiss();
        result
    }

    fn guard(&mut self) -> Result<u8, RunError> {
        let mask = *self.signals.mask_before();
        let memcg = self.group.is_made.then_some(&self.group.memcg);
        // What watches it must be there before it is.
        let growth = self.growth.as_mut();
        let attach = growth.map(|growth| move |pid: Pid| growth.attach(pid.as_raw(), memcg));
        let mut started = command::start(
            &self.request.command,
            memcg,
            self.group.cpu.as_ref(),
            &self.group.oom_score_adj,
            &mask,
            self.heap.as_ref(),
            attach,
        )
        .map_err(|e| RunError::System("the command could not be started", e))?;
        self.command = Some(started.pid);
        let mut code = None;
        loop {
            self.wait(&started, code.is_some());
            // A signal may have been taken during a verdict.
            self.signals.take();
            self.end(started.pid);
            let ended = code.is_none() && is_readable_fd(&started);
            // A command that could not start ends at once; its word comes first.
            if (ended || started.exec_fd().is_some_and(is_readable))
                && let Err(failure) = started.exec_result()
            {
                let _ = waitpid(started.pid, None);
                return Err(self.start_error(failure));
            }
            match self.brake.look()? {
                Look::Well => {}
                // The user wants it to end: no verdict, no hold.
                Look::OutOfMemory if self.ending_since.is_some() => self.brake.give_up()?,
                Look::OutOfMemory => self.answer()?,
                Look::KilledByKernel => self.record_kernel_kill(),
            }
            if let Some(heap) = &mut self.heap {
                heap.top_up();
                heap.sweep(|| self.group.memcg.pids().unwrap_or_default());
            }
            self.history.look(&self.group.memcg, self.heap.as_ref());
            if ended {
                code = Some(exit_code(waitpid(started.pid, None)));
                self.command = None;
                self.tell_of_children();
            }
            if self.ending_since.is_some_and(|since| since.elapsed() > ENDING_TIME) {
                self.kill_all();
            }
            if let Some(code) = code
                // Who else is in a memcg that we did not make is none of ours.
                && (!self.group.is_made || self.group.memcg.pids()?.is_empty())
            {
                return Ok(code);
            }
        }
    }

    /// Sleeps until something may have happened.
    fn wait(&self, started: &Started, ended: bool) {
        let mut timeout = self.brake.look_again();
        if let Some(soon) = self.heap.as_ref().and_then(HeapTable::look_again) {
            timeout = timeout.min(soon);
        }
        timeout = timeout.min(self.history.due().saturating_duration_since(Instant::now()));
        // Rounded up below, or it would spin through the last millisecond.
        timeout = timeout.max(Duration::from_millis(1));
        if ended {
            timeout = timeout.min(Duration::from_millis(20));
        }
        let mut fds = vec![PollFd::new(self.signals.fd(), PollFlags::POLLIN)];
        fds.extend(self.brake.bells());
        fds.extend(started.exec_fd().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        if !ended {
            fds.push(PollFd::new(std::os::fd::AsFd::as_fd(&started.pidfd), PollFlags::POLLIN));
        }
        // EINTR and time-outs mean the same: look.
        let _ = poll(&mut fds, PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX));
    }

    fn answerer(&mut self) -> (Answerer<'_>, &mut std::io::Result<KernelLog>) {
        let answerer = Answerer {
            brake: &mut *self.brake,
            memcg: &self.group.memcg,
            cpu: self.group.cpu.as_ref(),
            watchdog: &self.line,
            recorder: &self.recorder,
            interrupt: &mut self.signals,
            manner: &self.request.manner,
            subject: self.recorder.subject(),
            heap: self.heap.as_ref(),
            growth: self.growth.as_ref(),
            history: Some(&self.history),
            reads_heaps: self.heap.is_some(),
            teller: "",
            share: &self.share,
            spent: &mut self.spent,
            desk: self.desk.as_ref(),
            on_terminal: true,
            feed: None,
            allowance: Some(&self.allowance),
            throttle: None,
        };
        (answerer, &mut self.kernel_log)
    }

    fn answer(&mut self) -> Result<(), RunError> {
        self.take_share();
        let answered = self.answerer().0.answer()?;
        self.spend_share();
        if answered != Answered::Nobody {
            self.left_to_kernel = match answered {
                Answered::LeftToKernel(id) => id,
                _ => None,
            };
        }
        Ok(())
    }

    /// Whether an incident of it is written.
    fn take_share(&mut self) {
        let bounds =
            Bounds { per_hour: self.request.reports_per_hour, key: "run.reports_per_hour", cooldown: Duration::ZERO };
        self.share = self.ration.take(self.group.memcg.path(), bounds, Instant::now());
    }

    fn spend_share(&mut self) {
        if std::mem::take(&mut self.spent) {
            self.ration.spend(self.group.memcg.path(), Instant::now());
        }
    }

    fn record_kernel_kill(&mut self) {
        self.take_share();
        let left = self.left_to_kernel.clone();
        let (mut answerer, log) = self.answerer();
        answerer.record_kernel_kill(log, left.as_deref());
        self.spend_share();
    }

    /// Answers a request to end as a shell would.
    fn end(&mut self, command: Pid) {
        let Some(ending) = self.signals.ending() else { return };
        if ending.count == self.signals_answered {
            return;
        }
        self.signals_answered = ending.count;
        let again = self.ending_since.is_some();
        self.ending_since.get_or_insert_with(Instant::now);
        // A parked task cannot take a signal: without a hold it can.
        if let Err(error) = self.brake.give_up() {
            eprintln!("reprieve: {error}");
        }
        if again {
            self.kill_all();
        } else if ending.forward {
            // It may have ended just now.
            let _ = kill(command, ending.signal);
        }
    }

    fn kill_all(&self) {
        if self.group.is_made {
            // Done again until nobody is left.
            let _ = self.group.memcg.kill();
        } else if let Some(command) = self.command {
            let _ = kill(command, Signal::SIGKILL);
        }
    }

    fn tell_of_children(&self) {
        if !self.group.is_made {
            return;
        }
        let left = self.group.memcg.pids().unwrap_or_default().len();
        if left > 0 && self.ending_since.is_none() {
            eprintln!("reprieve: the command ended, {left} of its processes live on; guarding them (^C to end them)");
        } else if left > 0 {
            self.kill_all();
        }
    }

    fn start_error(&self, failure: StartFailure) -> RunError {
        let program = self.request.command[0].clone();
        let (StartFailure::Join(error) | StartFailure::Exec(error)) = failure;
        match error.raw_os_error() {
            Some(libc::ENOENT) => RunError::NotFound(program),
            Some(libc::ENOMEM | libc::EFAULT | libc::E2BIG) => {
                RunError::TooSmall(program, self.request.limit_bytes, error)
            }
            _ => RunError::NotExecutable(program, error),
        }
    }
}

fn is_readable(fd: std::os::fd::BorrowedFd<'_>) -> bool {
    poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO).is_ok_and(|n| n > 0)
}

fn is_readable_fd(started: &Started) -> bool {
    is_readable(std::os::fd::AsFd::as_fd(&started.pidfd))
}

/// As a shell says it.
fn exit_code(status: nix::Result<WaitStatus>) -> u8 {
    match status {
        Ok(WaitStatus::Exited(_, code)) => code as u8,
        Ok(WaitStatus::Signaled(_, signal, _)) => 128 + signal as u8,
        _ => 125,
    }
}
