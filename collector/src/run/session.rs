//! The guardian's loop around one command.

use super::command::{self, StartFailure, Started};
use super::recorder::{Recorder, state_of};
use super::{Group, Request, RunError};
use crate::accounting;
use crate::guardian::{heap, own_status_bytes};
use crate::hold::watchdog::Watchdog;
use crate::hold::{Brake, Look};
use crate::incident::model::{HoldReport, SymbolState, Symbols, Trigger};
use crate::incident::{show, units};
use crate::signals::Signals;
use crate::snapshot;
use crate::snapshot::kernel_log::KernelLog;
use crate::verdict::{self, Scene};
use crate::witness::{self, HeapTable};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Time that stopping threads may take of a hold.
const STOP_TIME: Duration = Duration::from_secs(1);
/// Most of a hold that symbols may take before the verdict.
const SYMBOL_TIME: Duration = Duration::from_secs(2);
/// Part of a hold kept for the verdict itself.
const VERDICT_TIME: Duration = Duration::from_millis(500);
/// Time a command gets to end after a signal, before it is killed.
const ENDING_TIME: Duration = Duration::from_secs(10);

/// A command under guard.
pub struct Session<'a> {
    request: &'a Request,
    group: &'a Group,
    brake: Box<dyn Brake>,
    watchdog: Watchdog,
    signals: Signals,
    recorder: Recorder,
    heap: Option<HeapTable>,
    kernel_log: std::io::Result<KernelLog>,
    /// Incident after which the kernel was left to decide.
    left_to_kernel: Option<String>,
    /// While it lives.
    command: Option<Pid>,
    signals_answered: u32,
    ending_since: Option<Instant>,
}

impl<'a> Session<'a> {
    /// A session ready to run.
    pub fn new(
        request: &'a Request,
        group: &'a Group,
        brake: Box<dyn Brake>,
        watchdog: Watchdog,
        signals: Signals,
        recorder: Recorder,
        heap: Option<HeapTable>,
    ) -> Self {
        Session {
            request,
            group,
            brake,
            watchdog,
            signals,
            recorder,
            heap,
            kernel_log: KernelLog::open(),
            left_to_kernel: None,
            command: None,
            signals_answered: 0,
            ending_since: None,
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
        let mut started = command::start(
            &self.request.command,
            self.group.is_made.then_some(&self.group.memcg),
            self.group.cpu.as_ref(),
            &self.group.oom_score_adj,
            &mask,
            self.heap.as_ref(),
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
        if ended {
            timeout = timeout.min(Duration::from_millis(20));
        }
        let mut fds = vec![PollFd::new(self.signals.fd(), PollFlags::POLLIN), self.brake.bell()];
        fds.extend(started.exec_fd().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        if !ended {
            fds.push(PollFd::new(std::os::fd::AsFd::as_fd(&started.pidfd), PollFlags::POLLIN));
        }
        // EINTR and time-outs mean the same: look.
        let _ = poll(&mut fds, PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX));
    }

    /// One OOM, the whole way.
    fn answer(&mut self) -> Result<(), RunError> {
        let noticed = Instant::now();
        let deadline = noticed + self.request.deadline;
        // A watchdog that died leaves the kernel's own OOM killer switched off
        // without a second pair of eyes; the hold is short and we go on.
        let _ = self.watchdog.hold_until(deadline);
        let heap_before = heap::mark();
        let threads = self.brake.stop(deadline.min(noticed + STOP_TIME))?;
        let stop_window = noticed.elapsed();
        let (threads_stopped, threads_not_stopped) = threads.counts();
        if threads_stopped == 0 && threads_not_stopped == 0 {
            // All who were there are dying, of a kill just before.
            let _ = self.watchdog.released();
            return Ok(self.brake.resume(threads)?);
        }
        let pids = self.group.memcg.pids()?;
        let mut state = state_of(&self.group.memcg);
        // Not the few KiB that the stop may have lent.
        state.limit_bytes = Some(self.brake.limit());
        let heaps = || self.heap.as_ref().map(|heap| witness::read_tables(Some(heap), &pids));
        let evidence = snapshot::take(&pids, threads.threads(), heaps, self.request.options);
        let left = deadline.saturating_duration_since(Instant::now()) / 4;
        let accounting = accounting::take(&self.group.memcg, &evidence.processes, left.min(accounting::AT_MOST));
        let snapshot_time = noticed.elapsed();
        self.brake.measure();
        let mut incident = self.recorder.draft(Trigger::Oom, Some(state), evidence);
        incident.accounting = Some(accounting);
        // The draft was made when the evidence was complete.
        incident.time_unix_us -= noticed.elapsed().as_micros() as u64;

        let staging = match self.recorder.stage(&incident) {
            Ok(staging) => Some(staging),
            Err(error) => {
                eprintln!("reprieve: this OOM leaves no incident: {error}");
                None
            }
        };
        let mut symbolized_us = None;
        if let Some(staging) = &staging {
            let left = deadline.saturating_duration_since(Instant::now()).saturating_sub(VERDICT_TIME);
            match self.recorder.symbolize(staging, left.min(SYMBOL_TIME)) {
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
        let choice = self.request.policy.choose(&incident);
        let mut scene = Scene {
            brake: &mut *self.brake,
            memcg: &self.group.memcg,
            cpu: self.group.cpu.as_ref(),
            processes: &incident.processes,
            threads: Some(threads),
            watchdog: Some(&mut self.watchdog),
            signals: &mut self.signals,
            summary: &summary,
            released: None,
        };
        let mut verdict = verdict::decide(&mut scene, choice.ladder);
        (verdict.rule, verdict.problems) = (choice.rule.map(str::to_owned), choice.problems);
        verdict.problems.iter().for_each(|problem| eprintln!("reprieve: {problem}"));
        let held = scene.released.unwrap_or_else(Instant::now) - noticed;
        let _ = self.watchdog.released();
        let micros = |d: Duration| d.as_micros() as u64;
        let heap_table_bytes = self.heap.as_ref().map_or(0, HeapTable::ready_bytes);
        incident.hold = Some(HoldReport {
            brake: self.brake.name().to_owned(),
            kernel: self.brake.told(),
            stop_window_us: micros(stop_window),
            exposed_us: micros(self.brake.exposed()),
            snapshot_us: micros(snapshot_time),
            symbolized_us,
            held_us: micros(held),
            deadline_us: micros(self.request.deadline),
            threads_stopped,
            threads_not_stopped,
            guardian_locked_bytes: own_status_bytes("VmLck").saturating_sub(heap_table_bytes),
            heap_table_bytes,
            guardian_peak_bytes: own_status_bytes("VmHWM"),
            guardian_hold_heap_bytes: heap::peak_since(heap_before) as u64,
            deciding_faults: None,
        });
        let not = if threads_not_stopped > 0 { format!(", {threads_not_stopped} not stopped,") } else { String::new() };
        eprintln!(
            "reprieve: out of memory at {}; {}{not} held {}. {}",
            units::bytes(incident.memcg.as_ref().map_or(0, |m| m.usage_bytes)),
            units::count(threads_stopped.into(), "thread"),
            units::micros(micros(held)),
            verdict.summary
        );
        self.left_to_kernel = (!verdict.relieved).then(|| incident.id.clone());
        incident.verdict = Some(verdict);
        if let Some(staging) = staging {
            self.recorder.finish(incident, staging);
        }
        Ok(())
    }

    /// The kernel was faster, or was left to decide: record what is left.
    fn record_kernel_kill(&mut self) {
        let pids = self.group.memcg.pids().unwrap_or_default();
        let mut evidence = snapshot::take(&pids, &BTreeMap::new(), || None, self.request.options);
        evidence.gaps.push(match &self.left_to_kernel {
            Some(id) => format!("no action helped, so the kernel decided: the stacks are in {id}"),
            None => "the kernel's OOM killer was first: there are no stacks of whom it killed".to_owned(),
        });
        let victims = match &mut self.kernel_log {
            Ok(log) => log.victims(self.group.memcg.dir()),
            Err(error) => {
                evidence.gaps.push(format!("whom it killed is not known: /dev/kmsg: {error}"));
                Vec::new()
            }
        };
        if self.kernel_log.is_ok() && victims.is_empty() {
            evidence.gaps.push("the kernel log does not say whom it killed".to_owned());
        }
        let mut state = state_of(&self.group.memcg);
        // Not the wall above it.
        state.limit_bytes = Some(self.brake.limit());
        let mut incident = self.recorder.draft(Trigger::KilledByKernel, Some(state), evidence);
        incident.kernel_victims = victims;
        let of_the_rest = accounting::take(&self.group.memcg, &incident.processes, accounting::AT_MOST);
        incident.accounting = Some(of_the_rest);
        eprintln!("reprieve: {}", show::headline(&incident));
        match self.recorder.stage(&incident) {
            Ok(staging) => self.recorder.finish(incident, staging),
            Err(error) => eprintln!("reprieve: this OOM leaves no incident: {error}"),
        }
        if let Err(error) = self.brake.rearm() {
            eprintln!("reprieve: the brake could not be armed again: {error}");
        }
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
