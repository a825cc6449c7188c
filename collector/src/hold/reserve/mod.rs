//! The `reserve` brake: `/dev/oom_reserve` of the series in kernel/patches.
//!
//! Where stock kernels kill, this one holds: tasks that hit the limit sleep on
//! their way back to user mode, without a lock, and take a ptrace interrupt from
//! there. The session is an open file; when we die the kernel ends the hold, and
//! it ends it anyway at `memory.oom.delay_ms`.

mod adopted;
mod device;

pub use device::Device;

use super::stop::{LATE_AGAIN, StoppedThreads};
use super::{Alarm, Brake, BrakeError, HandBack, Look, whole_pages};
use crate::cgroup::{CgroupError, Memcg, note};
use crate::hold::watchdog::Debt;
use crate::incident::model::KernelHold;
use adopted::{Before, writes};
use nix::poll::{PollFd, PollFlags};
use reprieve_oom_uapi::{DEVICE, Event, Kind, Reason, Verdict};
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest that the kernel can be asked to wait. Our own deadline is the
/// watchdog's; this is for when both of us hang.
const DELAY_MS: u64 = 60_000;
/// Reserve of a memcg: half of it is what its tasks may charge above the limit
/// until they have parked, which is large for one big system call (4 MiB) and
/// small for each thread.
const RESERVE_BYTES: u64 = 2 * (4 << 20);
const RESERVE_PER_THREAD_BYTES: u64 = 2 * (64 << 10);
/// What more a guardian may need that is itself in the memcg: snapshot, symbols and
/// draft of a hold.
const RESERVE_INSIDE_BYTES: u64 = 32 << 20;
/// What a memcg that is let go may use above its limit: in a full one reclaim has
/// taken even the code of programs, so that whoever would free memory cannot run.
const LOAN_BYTES: u64 = 4 << 20;
/// It is at most this share of the limit.
const LOAN_SHARE: u64 = 8;
/// The kernel ends a hold when this much is free (`MEMCG_CHARGE_BATCH` pages).
const ROOM_BYTES: u64 = 256 << 10;
/// The same for a memcg in which we take memory, too.
const ROOM_INSIDE_BYTES: u64 = 2 << 20;
/// The bell tells all that happens; this is for what the reserve must grow by.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// The same in memcgs that others made, of which there may be many, as long as nothing is
/// granted.
const LOOK_AGAIN_CALM: Duration = Duration::from_secs(5);
const MAX: &str = "memory.max";

/// Holds by `/dev/oom_reserve`.
#[derive(Debug)]
pub struct ReserveBrake {
    memcg: Memcg,
    /// The session.
    device: Device,
    limit: u64,
    /// What `memory.max` is above it.
    lent: u64,
    reserve: u64,
    /// The hold that lasts, as its record told.
    held: Option<Event>,
    /// Why the last one ended, until the next begins.
    ended: Option<Reason>,
    /// The hold to answer: one that was over before we looked has an incident, too.
    answered: Option<Event>,
    /// The hold that was stopped last, and its number.
    told: Option<KernelHold>,
    stopped: Option<u64>,
    late: StoppedThreads,
    kernel_kills: u64,
    given_up: bool,
    /// Of a memcg that is not ours, what its files said before.
    before: Option<Before>,
    /// Whether we take memory in it, too.
    is_inside: bool,
}

impl ReserveBrake {
    /// Whether this kernel has it.
    pub fn is_there() -> bool {
        Path::new(DEVICE).exists()
    }

    /// Limits `memcg` and becomes its handler.
    pub fn arm(memcg: Memcg, limit: u64) -> Result<Self, BrakeError> {
        let device = Device::open()?;
        memcg.write(MAX, &limit.to_string())?;
        // Swap would only delay the OOM and make the limit mean less.
        let _ = memcg.write("memory.swap.max", "0");
        let dir = File::open(memcg.dir()).map_err(BrakeError::Bell)?;
        device.attach(&dir).map_err(|errno| BrakeError::NoReserve(errno.into()))?;
        let mut brake = Self::of(memcg, device, limit)?;
        brake.adapt_reserve()?;
        brake.memcg.write("memory.oom.delay_ms", &DELAY_MS.to_string())?;
        Ok(brake)
    }

    fn of(memcg: Memcg, device: Device, limit: u64) -> Result<Self, CgroupError> {
        Ok(ReserveBrake {
            device,
            limit,
            lent: 0,
            reserve: 0,
            held: None,
            ended: None,
            answered: None,
            told: None,
            stopped: None,
            late: StoppedThreads::default(),
            kernel_kills: memcg.kernel_kills()?,
            given_up: false,
            before: None,
            is_inside: false,
            memcg,
        })
    }

    /// What must be free below a limit that is written: it can be used up meanwhile.
    fn room(&self) -> u64 {
        if self.is_inside { ROOM_INSIDE_BYTES } else { ROOM_BYTES }
    }

    /// Bytes for so many threads, and for us where we are inside.
    fn needed_reserve(&self, threads: usize) -> u64 {
        let ours = if self.is_inside { RESERVE_INSIDE_BYTES } else { 0 };
        RESERVE_BYTES + ours + threads as u64 * RESERVE_PER_THREAD_BYTES
    }

    /// Tells the kernel; a higher limit ends the hold. One that is still below the
    /// usage makes the kernel kill, so what is above it, as our own memory inside the
    /// memcg, is lent.
    fn set_max(&mut self, limit: u64, lent: u64) -> Result<(), CgroupError> {
        let lent = lent.max((self.memcg.usage()? + self.room()).saturating_sub(limit));
        self.memcg.write(MAX, &limit.saturating_add(lent).to_string())?;
        (self.limit, self.lent) = (limit, lent);
        Ok(())
    }

    /// Raises the reserve as threads appear; also that of a hold that lasts. Returns
    /// the threads.
    fn adapt_reserve(&mut self) -> Result<Vec<i32>, CgroupError> {
        let tids = self.memcg.tids()?;
        let reserve = self.needed_reserve(tids.len());
        if reserve > self.reserve {
            match self.memcg.write("memory.oom.reserve", &reserve.to_string()) {
                Ok(()) => self.reserve = reserve,
                // Another's to write: it was told at the start.
                Err(_) if self.before.is_some() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(tids)
    }

    /// Takes what the kernel has to tell. Returns the hold that began last in it. Of one
    /// that is over before its record was read only the end is told.
    fn take_records(&mut self) -> Option<Event> {
        let mut begun = None;
        while let Some(event) = self.device.record() {
            match event.kind() {
                Some(Kind::Held) => {
                    (self.held, self.ended) = (Some(event), None);
                    begun = self.held;
                }
                Some(Kind::Ended) => {
                    if self.held.is_none() {
                        (self.ended, begun) = (event.reason(), Some(event));
                    } else if self.held.is_some_and(|held| held.seq == event.seq) {
                        (self.held, self.ended) = (None, event.reason());
                    }
                    if let (Some(seq), Some(told)) = (self.stopped, self.told.as_mut())
                        && seq == event.seq
                    {
                        told.ended = event.reason().map(|reason| ending(reason).to_owned());
                    }
                }
                _ => {}
            }
        }
        begun
    }

    /// Ends the hold in favour of the kernel's OOM killer, if it lasts.
    fn leave_to_kernel(&mut self) {
        if let Some(held) = self.held.take() {
            // ESTALE: it ended meanwhile.
            let _ = self.device.decide(&Verdict::give_up(held.seq));
        }
    }
}

/// For the watchdog: tasks that wait for a handler.
pub fn alarm(memcg: &Memcg) -> Option<Alarm> {
    let bell = File::open(memcg.dir().join("memory.oom.state")).ok()?;
    let waits = |alarm: &Alarm| alarm.says("held") == Some(1);
    Some(Alarm { bell: bell.into(), events: PollFlags::POLLPRI, memcg: memcg.clone(), waits })
}

/// The same for an incident.
pub fn told_by(event: Event) -> KernelHold {
    KernelHold {
        pid: event.pid,
        tid: event.tid,
        user_fault: event.flags & Event::USER_FAULT != 0,
        order: event.order,
        parked: event.parked,
        reserve_bytes: event.reserve,
        above_limit_bytes: event.used,
        overrun_left_bytes: event.overrun,
        guardian_inside: event.flags & Event::HANDLER_INSIDE != 0,
        reserve_used_bytes: event.used,
        ended: None,
        holds: 1,
    }
}

/// How a hold ended, as the kernel has it in memory.oom.state (oom_hold_end_names,
/// mm/oom_hold.c).
#[must_use]
pub fn ending(reason: Reason) -> &'static str {
    match reason {
        Reason::Margin => "margin",
        Reason::Retry => "retry",
        Reason::Killed => "killed",
        Reason::GaveUp => "gave_up",
        Reason::Timeout => "timeout",
        Reason::HandlerGone => "handler_gone",
        Reason::Exhausted => "exhausted",
        Reason::Offline => "offline",
    }
}

impl Brake for ReserveBrake {
    fn name(&self) -> &'static str {
        "reserve"
    }

    fn bells(&self) -> Vec<PollFd<'_>> {
        vec![self.device.bell()]
    }

    fn look_again(&self) -> Duration {
        match self.late.is_empty() {
            true if self.before.is_some() && !self.is_inside && self.granted() == 0 => LOOK_AGAIN_CALM,
            true => LOOK_AGAIN,
            false => LATE_AGAIN,
        }
    }

    fn look(&mut self) -> Result<Look, CgroupError> {
        // Not those of which a verdict heard: its own actions end them.
        let begun = self.take_records();
        if !self.memcg.exists() {
            return Ok(Look::Well);
        }
        self.late.release_late();
        let kills = self.memcg.kernel_kills()?;
        if kills > self.kernel_kills {
            self.kernel_kills = kills;
            return Ok(Look::KilledByKernel);
        }
        let missed = begun.filter(|_| self.held.is_none() && self.ended == Some(Reason::Margin));
        self.answered = self.held.or(missed);
        // Before an answer, which may grant more than what the owner wrote last.
        self.follow_owner()?;
        if self.answered.is_some() && !self.given_up {
            return Ok(Look::OutOfMemory);
        }
        self.take_back_grant()?;
        self.take_back()?;
        self.adapt_reserve()?;
        Ok(Look::Well)
    }

    fn exposed(&self) -> Duration {
        // System calls are charged above the limit, and wait afterwards.
        Duration::ZERO
    }

    fn told(&mut self) -> Option<KernelHold> {
        // That it has ended, too.
        self.take_records();
        self.told.clone()
    }

    fn measure(&mut self) {
        let now = self.device.state();
        if let (Some(told), Ok(Some(event))) = (self.told.as_mut(), now) {
            told.reserve_used_bytes = told.reserve_used_bytes.max(event.used);
        }
    }

    fn stop(&mut self, deadline: Instant) -> Result<StoppedThreads, CgroupError> {
        let mut threads = std::mem::take(&mut self.late);
        // Who is stopped does not count as parked any more; what system calls
        // under way have charged is known only then. It may have ended just now.
        let before = self.device.state().ok().flatten().or(self.answered);
        // The last look may be a second old, and as many threads as like were made
        // since: what they charge to get out of their system calls is due now.
        threads.stop_all(deadline, || self.adapt_reserve())?;
        let after = self.device.state().ok().flatten().or(before);
        self.stopped = after.map(|event| event.seq);
        self.told = after.map(|event| told_by(Event { parked: before.map_or(0, |b| b.parked), ..event }));
        // Of one that was over before, the record of its end has been taken.
        if let Some(told) = self.told.as_mut().filter(|_| self.held.is_none())
            && self.stopped == self.answered.map(|event| event.seq)
        {
            told.ended = self.ended.map(|reason| ending(reason).to_owned());
        }
        Ok(threads)
    }

    fn resume(&mut self, threads: StoppedThreads) -> Result<(), CgroupError> {
        // If the hold lasts, those who need memory park again.
        self.late = threads.resume();
        Ok(())
    }

    fn is_well(&self) -> Result<bool, CgroupError> {
        let state = self.device.state().map_err(|source| CgroupError::Read { path: DEVICE.into(), source })?;
        Ok(state.is_none())
    }

    fn ended_by_itself(&mut self) -> bool {
        self.take_records();
        // Another one, of a limit below, may last.
        self.held.is_none() && self.ended == Some(Reason::Margin) && self.is_well().unwrap_or(false)
    }

    fn lend(&mut self, loans: u32) -> Result<(), CgroupError> {
        self.set_max(self.limit, u64::from(loans) * LOAN_BYTES.min(self.limit / LOAN_SHARE))
    }

    fn take_back(&mut self) -> Result<(), CgroupError> {
        // A limit below the usage would make the kernel reclaim, and then kill.
        if self.lent > 0 && self.memcg.usage()? + self.room() <= self.limit {
            self.set_max(self.limit, 0)?;
        }
        Ok(())
    }

    fn grant(&mut self, bytes: u64) -> Result<(), CgroupError> {
        self.set_max(whole_pages(self.limit.saturating_add(bytes)), 0)
    }

    fn granted(&self) -> u64 {
        self.before.map_or(0, |before| self.limit.saturating_sub(before.limit))
    }

    fn give_up(&mut self) -> Result<(), CgroupError> {
        self.given_up = true;
        self.leave_to_kernel();
        match self.memcg.write("memory.oom.delay_ms", "0") {
            // Then only this hold is over, by the verdict.
            Err(_) if self.before.is_some() => Ok(()),
            result => result,
        }
    }

    fn rearm(&mut self) -> Result<(), CgroupError> {
        self.given_up = false;
        match self.memcg.write("memory.oom.delay_ms", &DELAY_MS.to_string()) {
            Err(_) if self.before.is_some() => Ok(()),
            result => result,
        }
    }

    fn follow(&mut self, bytes: u64) -> Result<(), CgroupError> {
        if let Some(before) = &mut self.before {
            before.limit = before.limit.saturating_add(bytes);
            self.remember();
        }
        self.grant(bytes)
    }

    /// The rest is put back when it is dropped.
    fn put_back(&mut self) -> Result<(), CgroupError> {
        self.give_up()?;
        self.put_limit_back()?;
        note::forget(&self.memcg);
        Ok(())
    }

    fn debts(&self) -> Vec<Debt> {
        writes(&self.memcg, self.before.filter(|_| !self.is_inside))
    }

    fn hand_back(&self) -> HandBack {
        HandBack {
            alarm: alarm(&self.memcg),
            writes: self.debts(),
            memcg: self.before.is_none().then(|| self.memcg.dir().to_owned()),
            beside: Vec::new(),
            adopted: None,
        }
    }

    fn release_late(&mut self) -> bool {
        self.late.release_late();
        self.late.is_empty()
    }

    fn limit(&self) -> u64 {
        self.limit
    }

    fn level(&self) -> u64 {
        self.limit
    }
}
