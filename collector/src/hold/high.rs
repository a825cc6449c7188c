//! The `high` brake: `memory.high` and `cgroup.freeze` of cgroup version 2.
//!
//! A stock kernel kills at `memory.max` without asking, so the hold is set
//! below it. Above `memory.high` every task sleeps on its way back to user mode
//! (`mem_cgroup_handle_over_high`, mm/memcontrol.c), which leaves time to freeze
//! it; one huge system call can still reach `memory.max`: then the kernel wins.

use super::debt::pay;
use super::stop::{LATE_AGAIN, StoppedThreads};
use super::{Alarm, Brake, BrakeError, HandBack, Look, debt, noted, remember, whole_pages};
use crate::cgroup::{CgroupError, Memcg, note};
use crate::hold::watchdog::Debt;
use nix::poll::{PollFd, PollFlags, poll};
use std::fs::File;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Least distance of high below max.
const GAP_MIN_BYTES: u64 = 8 << 20;
/// Growth of one thread between the bell and the freeze (measured: 64 pages
/// per charge batch).
const GAP_PER_THREAD_BYTES: u64 = 256 << 10;
/// A freeze does not complete while a thread is inside one huge system call.
const FREEZE_WAIT: Duration = Duration::from_millis(250);
/// How far below high the unreclaimable part may be and still count as full:
/// the kernel charges in batches of 64 pages per CPU.
const FULL_SLACK_BYTES: u64 = 1 << 20;
/// The bell also rings when page cache is reclaimed at high; whether that
/// succeeds shows only later.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// In a memcg that others made, for the threads by which the gap grows.
const LOOK_AGAIN_CALM: Duration = Duration::from_secs(5);
/// The same while something is granted, which goes back when it is not in use.
const LOOK_AGAIN_GRANTED: Duration = Duration::from_secs(1);
/// A grant goes back when this share of the limit is free without it.
const BACK_SHARE: u64 = 8;
const MAX: &str = "memory.max";

/// Holds by `memory.high`.
#[derive(Debug)]
pub struct HighBrake {
    memcg: Memcg,
    bell: File,
    limit: u64,
    high: u64,
    late: StoppedThreads,
    kernel_kills: u64,
    given_up: bool,
    /// Of a memcg that is not ours, what its memory.high and memory.max said before.
    before: Option<Before>,
}

/// Files of a memcg as somebody else wrote them.
#[derive(Debug, Clone, Copy)]
struct Before {
    high: Option<u64>,
    max: u64,
}

impl HighBrake {
    /// Sets `memory.max` and, below it, `memory.high`.
    pub fn arm(memcg: Memcg, limit: u64) -> Result<Self, BrakeError> {
        fits(limit)?;
        memcg.write(MAX, &limit.to_string())?;
        // Swap would only delay the OOM and make the limit mean less.
        let _ = memcg.write("memory.swap.max", "0");
        Self::below(memcg, limit, None)
    }

    /// Sets `memory.high` below the limit that somebody else set.
    pub fn adopt(memcg: Memcg) -> Result<Self, BrakeError> {
        let limit = memcg.limit()?.ok_or_else(|| BrakeError::Unlimited { path: memcg.path().to_owned() })?;
        fits(limit)?;
        // Less where a guard before us raised it, and more than that is in use.
        let max = noted(&memcg, MAX).map_or(limit, |noted| noted.min(limit));
        let before = Before { high: memcg.read_number("memory.high")?, max };
        remember(&memcg, &writes(&memcg, Some(before)));
        Self::below(memcg, limit, Some(before))
    }

    fn below(memcg: Memcg, limit: u64, before: Option<Before>) -> Result<Self, BrakeError> {
        let bell = File::open(memcg.dir().join("memory.events")).map_err(BrakeError::Bell)?;
        let kernel_kills = memcg.kernel_kills()?;
        let late = StoppedThreads::default();
        let mut brake = HighBrake { memcg, bell, limit, high: 0, late, kernel_kills, given_up: false, before };
        brake.set_high(limit - gap(1))?;
        Ok(brake)
    }

    /// Takes over a limit that somebody else wrote into a memcg of his.
    fn follow_owner(&mut self) -> Result<(), CgroupError> {
        let Some(before) = self.before.as_mut() else { return Ok(()) };
        let written = self.memcg.limit()?.unwrap_or(u64::MAX);
        // One that is too small for us is the kernel's to keep.
        if written != self.limit && fits(written).is_ok() {
            (before.max, self.limit) = (written, written);
            remember(&self.memcg, &self.debts());
        }
        Ok(())
    }

    /// Takes back what was granted, once it is not in use any more.
    fn take_back_grant(&mut self) -> Result<(), CgroupError> {
        let Some(before) = self.before.filter(|before| before.max < self.limit) else { return Ok(()) };
        let usage = self.memcg.usage()? + FULL_SLACK_BYTES;
        if usage >= before.max - before.max / BACK_SHARE {
            return Ok(());
        }
        let high = high_below(before.max, self.memcg.tids()?.len());
        if usage < high {
            // In this order: who grows meanwhile waits above high.
            self.set_high(high)?;
            self.memcg.write(MAX, &before.max.to_string())?;
            self.limit = before.max;
        }
        Ok(())
    }

    fn set_high(&mut self, bytes: u64) -> Result<(), CgroupError> {
        if bytes != self.high {
            self.memcg.write("memory.high", &bytes.to_string())?;
            self.high = bytes;
        }
        Ok(())
    }

    /// Widens the gap as threads appear.
    fn adapt_gap(&mut self) -> Result<(), CgroupError> {
        let threads = self.memcg.tids()?.len();
        self.set_high(high_below(self.limit, threads))
    }

    fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        self.memcg.write("cgroup.freeze", if frozen { "1" } else { "0" })
    }

    /// Waits for `frozen 1`; POLLPRI on cgroup.events tells of changes.
    fn wait_frozen(&self, deadline: Instant) {
        let Ok(events) = File::open(self.memcg.dir().join("cgroup.events")) else { return };
        loop {
            if self.memcg.read_keyed("cgroup.events").is_ok_and(|e| e.get("frozen") == Some(&1)) {
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
            // Reading through this file re-arms its poll; the text was read above.
            let _ = std::io::Read::read(&mut &events, &mut [0; 64]);
            let wait = left.min(Duration::from_millis(20)).as_millis() as u16;
            let _ = poll(&mut fds, wait.max(1));
        }
    }
}

/// Whether what cannot be reclaimed fills the memcg up to high.
fn is_full(memcg: &Memcg, high: u64) -> Result<bool, CgroupError> {
    let usage = memcg.usage()?;
    if usage + FULL_SLACK_BYTES < high {
        return Ok(false);
    }
    let stat = memcg.stat()?;
    let of = |key: &str| stat.get(key).copied().unwrap_or(0);
    let reclaimable = of("active_file") + of("inactive_file") + of("slab_reclaimable");
    Ok(usage.saturating_sub(reclaimable) + FULL_SLACK_BYTES >= high)
}

/// Whether there is room for a gap below a limit.
fn fits(limit: u64) -> Result<(), BrakeError> {
    let gap = gap(1);
    if limit < 2 * gap { Err(BrakeError::TooSmall { limit, gap, least: 2 * gap }) } else { Ok(()) }
}

/// What the kernel is given back. Who grows goes on to the limit, so that is last.
fn writes(memcg: &Memcg, before: Option<Before>) -> Vec<Debt> {
    let high = before.and_then(|before| before.high).map_or("max".to_owned(), |bytes| bytes.to_string());
    let mut writes = vec![debt(memcg, "memory.high", high), debt(memcg, "cgroup.freeze", "0")];
    writes.extend(before.map(|before| debt(memcg, MAX, before.max.to_string())));
    writes
}

/// For the watchdog: tasks that crawl above high.
pub fn alarm(memcg: &Memcg) -> Option<Alarm> {
    let waits = |alarm: &Alarm| {
        let high = alarm.memcg.read_number("memory.high").ok().flatten();
        high.is_some_and(|high| is_full(&alarm.memcg, high).unwrap_or(false))
    };
    let bell = File::open(memcg.dir().join("memory.events")).ok()?;
    Some(Alarm { bell: bell.into(), events: PollFlags::POLLPRI, memcg: memcg.clone(), waits })
}

/// Where high is below a limit. The gap never eats more than half of it: rather a kill
/// that the kernel wins than a program that cannot run.
fn high_below(limit: u64, threads: usize) -> u64 {
    limit - gap(threads as u64).min(limit / 2)
}

/// Distance of high below max for a number of threads.
fn gap(threads: u64) -> u64 {
    GAP_MIN_BYTES.max(threads * GAP_PER_THREAD_BYTES)
}

impl Brake for HighBrake {
    fn name(&self) -> &'static str {
        "high"
    }

    fn bells(&self) -> Vec<PollFd<'_>> {
        // To kernfs every file is readable at all times; POLLPRI is the change.
        vec![PollFd::new(self.bell.as_fd(), PollFlags::POLLPRI)]
    }

    fn look_again(&self) -> Duration {
        // Of many memcgs most are well below.
        let is_calm = || self.memcg.usage().is_ok_and(|usage| usage + GAP_MIN_BYTES < self.high);
        match self.late.is_empty() {
            true if self.granted() > 0 && !self.given_up && is_calm() => LOOK_AGAIN_GRANTED,
            true if self.before.is_some() && !self.given_up && is_calm() => LOOK_AGAIN_CALM,
            true => LOOK_AGAIN,
            false => LATE_AGAIN,
        }
    }

    fn look(&mut self) -> Result<Look, CgroupError> {
        if !self.memcg.exists() {
            return Ok(Look::Well);
        }
        self.late.release_late();
        // Reading the polled file itself re-arms POLLPRI (kernfs).
        let mut text = [0; 512];
        let _ = std::os::unix::fs::FileExt::read_at(&self.bell, &mut text, 0);
        let kills = self.memcg.kernel_kills()?;
        if kills > self.kernel_kills {
            self.kernel_kills = kills;
            return Ok(Look::KilledByKernel);
        }
        if self.given_up {
            return Ok(Look::Well);
        }
        self.follow_owner()?;
        if is_full(&self.memcg, self.high)? {
            return Ok(Look::OutOfMemory);
        }
        self.take_back_grant()?;
        self.adapt_gap()?;
        Ok(Look::Well)
    }

    fn exposed(&self) -> Duration {
        // Above high the kernel charges and makes tasks wait afterwards.
        Duration::ZERO
    }

    fn stop(&mut self, deadline: Instant) -> Result<StoppedThreads, CgroupError> {
        self.freeze(true)?;
        self.wait_frozen(deadline.min(Instant::now() + FREEZE_WAIT));
        let mut threads = std::mem::take(&mut self.late);
        // A frozen thread takes a ptrace interrupt, unlike on version 1.
        threads.stop_all(deadline, || self.memcg.tids())?;
        Ok(threads)
    }

    fn resume(&mut self, threads: StoppedThreads) -> Result<(), CgroupError> {
        self.late = threads.resume();
        self.freeze(false)
    }

    fn is_well(&self) -> Result<bool, CgroupError> {
        Ok(self.memcg.pids()?.is_empty() || !is_full(&self.memcg, self.high)?)
    }

    fn grant(&mut self, bytes: u64) -> Result<(), CgroupError> {
        let limit = whole_pages(self.limit.saturating_add(bytes));
        self.memcg.write(MAX, &limit.to_string())?;
        self.limit = limit;
        self.adapt_gap()
    }

    fn granted(&self) -> u64 {
        self.before.map_or(0, |before| self.limit.saturating_sub(before.max))
    }

    fn give_up(&mut self) -> Result<(), CgroupError> {
        // Without high the tasks run on into max, where the kernel decides.
        self.memcg.write("memory.high", "max")?;
        self.high = u64::MAX;
        self.given_up = true;
        self.freeze(false)
    }

    fn rearm(&mut self) -> Result<(), CgroupError> {
        self.given_up = false;
        self.adapt_gap()
    }

    fn put_back(&mut self) -> Result<(), CgroupError> {
        self.given_up = true;
        // What somebody wrote since the last look is not ours to undo, nor what was too small.
        self.follow_owner()?;
        let is_ours = self.memcg.limit()?.unwrap_or(u64::MAX) == self.limit;
        for debt in writes(&self.memcg, self.before).into_iter().filter(|debt| is_ours || !debt.file.ends_with(MAX)) {
            pay(&debt).map_err(|source| CgroupError::Write { path: debt.file, value: debt.content, source })?;
        }
        note::forget(&self.memcg);
        Ok(())
    }

    fn follow(&mut self, bytes: u64) -> Result<(), CgroupError> {
        if let Some(before) = &mut self.before {
            before.max = before.max.saturating_add(bytes);
            remember(&self.memcg, &self.debts());
        }
        self.grant(bytes)
    }

    fn debts(&self) -> Vec<Debt> {
        writes(&self.memcg, self.before)
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
        self.high.min(self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hold::plain::Plain;
    use crate::hold::{BrakeChoice, Cushion};

    #[test]
    fn what_was_granted_goes_back_when_the_usage_has() {
        let plain = Plain::new(64, 40);
        let mut brake = HighBrake::adopt(plain.memcg.clone()).unwrap();
        let says = || (plain.mib("memory.high"), plain.mib(MAX));
        assert_eq!(says(), (56, 64));
        brake.grant(64 << 20).unwrap();
        assert_eq!((says(), brake.granted()), ((120, 128), 64 << 20));
        for (usage, is) in [(100, (120, 128)), (55, (120, 128)), (54, (56, 64))] {
            plain.set("memory.current", usage << 20);
            assert_eq!(brake.look().unwrap(), Look::Well);
            assert_eq!(says(), is, "{usage} MiB in use");
        }
        assert_eq!(brake.granted(), 0);
        // What is written now is the owner's, and stays; also for the next guard.
        plain.set(MAX, 80 << 20);
        brake.look().unwrap();
        assert_eq!((brake.limit(), says()), (80 << 20, (72, 80)));
        brake.put_back().unwrap();
        assert_eq!((&*plain.text("memory.high"), plain.mib(MAX), plain.note()), ("max", 80, None));
    }

    #[test]
    fn what_the_owner_writes_last_is_left() {
        for mib in [256, 48, 4] {
            let plain = Plain::new(64, 1);
            let mut brake = HighBrake::adopt(plain.memcg.clone()).unwrap();
            brake.grant(64 << 20).unwrap();
            // While the kernel decides nobody looks at limits.
            brake.give_up().unwrap();
            plain.set(MAX, mib << 20);
            brake.put_back().unwrap();
            assert_eq!((&*plain.text("memory.high"), plain.mib(MAX), plain.note()), ("max", mib, None));
        }
    }

    #[test]
    fn a_limit_that_was_raised_is_known_to_watchdog_and_memcg() {
        let plain = Plain::new(64, 40);
        let mut dead = HighBrake::adopt(plain.memcg.clone()).unwrap();
        dead.grant(64 << 20).unwrap();
        plain.set("memory.current", 100 << 20);
        assert!(dead.debts().contains(&debt(&plain.memcg, MAX, (64 << 20).to_string())));
        assert!(dead.put_back().is_err(), "the kernel would kill for it");
        assert_eq!((&*plain.text("memory.high"), plain.mib(MAX)), ("max", 128));
        drop(dead);
        plain.maker_dies();
        // It is in use: the next one goes on with it.
        let mut next = crate::hold::adopt(&plain.memcg, BrakeChoice::High, Cushion::Auto).unwrap();
        assert_eq!((plain.mib("memory.high"), plain.mib(MAX), next.granted()), (120, 128, 64 << 20));
        plain.set("memory.current", 40 << 20);
        next.look().unwrap();
        assert_eq!((plain.mib("memory.high"), plain.mib(MAX), next.granted()), (56, 64, 0));
        // Where both died and the usage has fallen before, it is undone at once.
        next.grant(64 << 20).unwrap();
        drop(next);
        plain.maker_dies();
        crate::hold::undo(&plain.memcg).unwrap();
        assert_eq!((&*plain.text("memory.high"), plain.mib(MAX), plain.note()), ("max", 64, None));
    }

    #[test]
    fn gap_grows_with_threads() {
        assert_eq!(gap(1), 8 << 20);
        assert_eq!(gap(32), 8 << 20);
        assert_eq!(gap(200), 50 << 20);
    }
}
