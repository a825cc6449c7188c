//! Stopping every thread of a memcg with full registers, and letting go.
//!
//! ptrace(2): PTRACE_SEIZE does not stop, PTRACE_INTERRUPT does; a thread that
//! is parked in the v1 OOM wait takes the interrupt when it is woken, before it
//! touches another page. If we die, the kernel detaches and every thread runs
//! on. All calls must come from the one thread that seized.

#[cfg(target_arch = "aarch64")]
use crate::incident::model::ArmRegisters;
#[cfg(target_arch = "x86_64")]
use crate::incident::model::X86Registers;
use crate::incident::model::{RegisterSet, StopOutcome};
use crate::snapshot::process::Stat;
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Time that dying threads get to be reaped when they are let go.
const DYING_TIME: Duration = Duration::from_secs(2);

/// How soon to look for threads that stop late.
pub const LATE_AGAIN: Duration = Duration::from_millis(10);

/// A thread under our control, or the reason why it is not.
#[derive(Debug, Clone)]
pub struct HeldThread {
    /// Whether it stopped.
    pub outcome: StopOutcome,
    /// State letter before we touched it.
    pub state_before: char,
    /// Its registers when stopped.
    pub registers: Option<RegisterSet>,
    /// Signal it was about to take when it stopped; given back on release.
    signal: Option<Signal>,
    attached: bool,
}

/// Threads being stopped or stopped.
#[derive(Debug, Default)]
pub struct StoppedThreads {
    threads: BTreeMap<i32, HeldThread>,
}

impl StoppedThreads {
    /// The threads by TID.
    #[must_use]
    pub fn threads(&self) -> &BTreeMap<i32, HeldThread> {
        &self.threads
    }

    /// How many stopped, and how many live on unstopped.
    #[must_use]
    pub fn counts(&self) -> (u32, u32) {
        self.threads.values().fold((0, 0), |(yes, no), t| match t.outcome {
            StopOutcome::Stopped => (yes + 1, no),
            StopOutcome::NotStopped(_) => (yes, no + 1),
            StopOutcome::Gone => (yes, no),
        })
    }

    /// Seizes and interrupts every thread of `tids` not yet known. Returns how
    /// many were new.
    pub fn arm(&mut self, tids: &[i32]) -> usize {
        let new: Vec<i32> = tids.iter().copied().filter(|tid| !self.threads.contains_key(tid)).collect();
        for &tid in &new {
            // One after the other: a thread that still runs may be failing in a
            // system call meanwhile.
            let mut thread = seize(tid);
            if thread.attached
                && let Err(errno) = ptrace::interrupt(Pid::from_raw(tid))
            {
                thread.outcome = lost(errno);
            }
            self.threads.insert(tid, thread);
        }
        new.len()
    }

    /// Arms and waits until every thread that `tids` lists has stopped or
    /// `deadline` passes. Threads born before their maker stopped are found by
    /// listing again; stopped threads make no new ones.
    pub fn stop_all<E>(&mut self, deadline: Instant, mut tids: impl FnMut() -> Result<Vec<i32>, E>) -> Result<(), E> {
        self.arm(&tids()?);
        while self.wait(deadline) && self.arm(&tids()?) > 0 {}
        Ok(())
    }

    /// Waits until every armed thread has stopped or `deadline` passes; then
    /// fetches registers. Returns whether all stopped.
    pub fn wait(&mut self, deadline: Instant) -> bool {
        let mut pending: Vec<i32> =
            self.threads.iter().filter(|(_, t)| t.attached && t.registers.is_none()).map(|(&tid, _)| tid).collect();
        let mut pause = Pause::default();
        loop {
            pending.retain(|&tid| !self.poll(tid));
            let now = Instant::now();
            if pending.is_empty() {
                return true;
            }
            if now >= deadline {
                for tid in pending {
                    let wchan = std::fs::read_to_string(format!("/proc/{tid}/wchan")).unwrap_or_default();
                    self.set(tid, StopOutcome::NotStopped(format!("did not stop in time, waits in {wchan}")));
                }
                return false;
            }
            pause.sleep(deadline - now);
        }
    }

    /// Lets every thread go, with the signals it was about to take. What comes
    /// back are threads whose interrupt is still pending: they can be detached
    /// only once they stop, see [`StoppedThreads::release_late`].
    #[must_use = "a late thread that nobody detaches stays stopped"]
    pub fn resume(mut self) -> StoppedThreads {
        self.resume_those(|_| true);
        self
    }

    /// Lets the threads go for which `chosen` says so, given their TID.
    pub fn resume_those(&mut self, chosen: impl Fn(i32) -> bool) {
        let deadline = Instant::now() + DYING_TIME;
        let mut pause = Pause::default();
        // All of them again and again: the first thread of a dying process ends only
        // when the others have been reaped.
        loop {
            self.threads.retain(|&tid, thread| !chosen(tid) || (thread.attached && !release(tid, thread.signal)));
            // One that never stopped is not waited for: it may take forever.
            let is_awaited = |(&tid, thread): (&i32, &HeldThread)| chosen(tid) && thread.registers.is_some();
            let now = Instant::now();
            if !self.threads.iter().any(is_awaited) || now >= deadline {
                return;
            }
            pause.sleep(deadline - now);
        }
    }

    /// Detaches threads that stopped after all.
    pub fn release_late(&mut self) {
        self.resume_those(|_| true);
    }

    /// Whether there is nothing to let go.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.threads.is_empty()
    }

    /// Takes a stop of one thread if there is one; true when it needs no more
    /// waiting.
    fn poll(&mut self, tid: i32) -> bool {
        match look(tid) {
            Waited::Nothing => false,
            Waited::Stopped(signal) => self.stopped(tid, signal),
            Waited::Ended => {
                self.set(tid, StopOutcome::Gone);
                if let Some(thread) = self.threads.get_mut(&tid) {
                    thread.attached = false;
                }
                true
            }
        }
    }

    fn stopped(&mut self, tid: i32, signal: Option<Signal>) -> bool {
        match registers(tid) {
            Ok(registers) => {
                if let Some(thread) = self.threads.get_mut(&tid) {
                    thread.registers = Some(registers);
                    thread.signal = signal;
                    thread.outcome = StopOutcome::Stopped;
                }
            }
            Err(errno) => self.set(tid, lost(errno)),
        }
        true
    }

    fn set(&mut self, tid: i32, outcome: StopOutcome) {
        if let Some(thread) = self.threads.get_mut(&tid) {
            thread.outcome = outcome;
        }
    }
}

/// Detaches a thread; false when it has not stopped yet. One that is dying can
/// only be reaped (we are its tracer: its process does not count as ended
/// before).
fn release(tid: i32, mut signal: Option<Signal>) -> bool {
    let pid = Pid::from_raw(tid);
    while ptrace::detach(pid, signal).is_err() {
        match look(tid) {
            Waited::Ended => return true,
            Waited::Nothing => return false,
            // It stopped just now: detach again, with what it was about to take.
            Waited::Stopped(late) => signal = signal.or(late),
        }
    }
    true
}

/// What a traced thread has to tell.
enum Waited {
    Nothing,
    /// With the signal it was about to take: one may come before the
    /// interrupt, which stays pending and goes away with the detach.
    Stopped(Option<Signal>),
    Ended,
}

/// Looks without blocking. The end of a thread is taken, so that its process
/// counts as ended; but not that of our own child (its first thread), whose exit
/// code is for whoever started it.
fn look(tid: i32) -> Waited {
    let id = || Id::Pid(Pid::from_raw(tid));
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG | WaitPidFlag::__WALL;
    match waitid(id(), flags | WaitPidFlag::WNOWAIT) {
        Ok(WaitStatus::StillAlive) => Waited::Nothing,
        Ok(WaitStatus::PtraceEvent(..)) => {
            let _ = waitid(id(), flags);
            Waited::Stopped(None)
        }
        Ok(WaitStatus::Stopped(_, signal)) => {
            let _ = waitid(id(), flags);
            Waited::Stopped(Some(signal))
        }
        Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => {
            if !is_our_child(tid) {
                let _ = waitid(id(), flags);
            }
            Waited::Ended
        }
        Ok(_) => Waited::Nothing,
        Err(_) => Waited::Ended,
    }
}

/// Whether this is the first thread of a process that we started.
fn is_our_child(tid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
    let of = |key: &str| status.lines().find_map(|l| l.strip_prefix(key)?.trim().parse::<i32>().ok());
    of("Tgid:") == Some(tid) && of("PPid:") == Some(std::process::id() as i32)
}

/// What it means that ptrace refused a thread that we had.
fn lost(errno: Errno) -> StopOutcome {
    if errno == Errno::ESRCH { StopOutcome::Gone } else { StopOutcome::NotStopped(errno.to_string()) }
}

/// State letter of a thread; `None` when it is gone.
///
/// Not from `/proc/TID/stat`, which adds up the counters of all threads of the process
/// (`do_task_stat`, fs/proc/array.c): of 10,000 threads that is 10,000 times 10,000.
fn state(tid: i32) -> Option<char> {
    Stat::read(&format!("/proc/{tid}/task/{tid}/stat")).map(|stat| stat.state)
}

fn seize(tid: i32) -> HeldThread {
    let state_before = state(tid).unwrap_or('?');
    let (outcome, attached) = match ptrace::seize(Pid::from_raw(tid), ptrace::Options::empty()) {
        Ok(()) => (StopOutcome::NotStopped("interrupt is pending".to_owned()), true),
        Err(Errno::ESRCH) => (StopOutcome::Gone, false),
        // A zombie cannot be traced: EPERM though nothing is forbidden. It may
        // have become one just now.
        Err(Errno::EPERM) if state(tid).is_none_or(|s| matches!(s, 'Z' | 'X')) => (StopOutcome::Gone, false),
        Err(errno) => (StopOutcome::NotStopped(format!("PTRACE_SEIZE: {errno}")), false),
    };
    HeldThread { outcome, state_before, registers: None, signal: None, attached }
}

fn registers(tid: i32) -> Result<RegisterSet, Errno> {
    let regs = ptrace::getregset::<ptrace::regset::NT_PRSTATUS>(Pid::from_raw(tid))?;
    Ok(register_set(&regs))
}

#[cfg(target_arch = "x86_64")]
fn register_set(regs: &libc::user_regs_struct) -> RegisterSet {
    RegisterSet::X86_64(X86Registers {
        r15: regs.r15,
        r14: regs.r14,
        r13: regs.r13,
        r12: regs.r12,
        rbp: regs.rbp,
        rbx: regs.rbx,
        r11: regs.r11,
        r10: regs.r10,
        r9: regs.r9,
        r8: regs.r8,
        rax: regs.rax,
        rcx: regs.rcx,
        rdx: regs.rdx,
        rsi: regs.rsi,
        rdi: regs.rdi,
        orig_rax: regs.orig_rax,
        rip: regs.rip,
        cs: regs.cs,
        eflags: regs.eflags,
        rsp: regs.rsp,
        ss: regs.ss,
        fs_base: regs.fs_base,
        gs_base: regs.gs_base,
        ds: regs.ds,
        es: regs.es,
        fs: regs.fs,
        gs: regs.gs,
    })
}

#[cfg(target_arch = "aarch64")]
fn register_set(regs: &libc::user_regs_struct) -> RegisterSet {
    RegisterSet::Aarch64(ArmRegisters { x: regs.regs, sp: regs.sp, pc: regs.pc, pstate: regs.pstate })
}

/// Sleeps between looks, longer and longer. Nothing tells of a stop: the signal
/// that could would be charged to the memcg (see [`crate::signals`]).
struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Pause(Duration::from_micros(20))
    }
}

impl Pause {
    fn sleep(&mut self, at_most: Duration) {
        std::thread::sleep(self.0.min(at_most));
        self.0 = (self.0 * 2).min(Duration::from_millis(2));
    }
}
