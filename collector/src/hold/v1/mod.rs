//! The `v1` brake: `memory.oom_control`, a usage threshold and an eventfd.
//!
//! With `oom_kill_disable` set, a task whose page fault cannot be charged
//! sleeps in `mem_cgroup_oom_synchronize` (mm/memcontrol-v1.c) until memory is
//! there. System calls are not so lucky: they see ENOMEM or EFAULT, and a thread
//! whose rseq area the kernel cannot write on the way back dies of SIGSEGV
//! (`rseq_handle_notify_resume`, kernel/rseq.c; after a fork every page is a copy
//! to be made). So the kernel's limit, the wall, stands a cushion above ours; a
//! threshold at ours rings, and usually all threads have stopped before anybody
//! meets the wall. Who does is woken by a loan and enters its ptrace stop before
//! it touches memory again ("arm, then release").

use super::stop::{LATE_AGAIN, StoppedThreads};
mod adopted;

use super::{Alarm, Brake, BrakeError, Cushion, HandBack, Look, debt, whole_pages};
use crate::cgroup::{CgroupError, Memcg, UNLIMITED};
use crate::hold::watchdog::Debt;
use adopted::Before;
use nix::poll::{PollFd, PollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

/// Raising the wall by this wakes tasks parked at it; none of it is used, since
/// they stop before they retry their fault. One page would do; 64 KiB also
/// covers architectures with 64 KiB pages.
const WAKE_BYTES: u64 = 64 << 10;

/// The cushion below the wall: what CPUs fault in during the milliseconds that
/// noticing and stopping take on a busy machine, and for each CPU what the kernel
/// charges and counts in batches before the threshold is looked at (64 pages of
/// stock, 128 of events: mm/memcontrol-v1.c).
const CUSHION_BYTES: u64 = 16 << 20;
const CUSHION_PER_CPU_BYTES: u64 = 768 << 10;
/// It is at most this share of the limit.
const CUSHION_SHARE: u64 = 4;
/// A loan to a throttled program, for its code; at most this share of the limit.
const RELIEF_BYTES: u64 = 4 << 20;
const RELIEF_SHARE: u64 = 8;

/// Loan for the moments until all have stopped, when somebody met the wall.
const LOAN_BYTES: u64 = 1 << 20;

/// Threads that were woken stop at once; those that are still asleep after this
/// parked too late to be woken.
const WAKE_ROUND: Duration = Duration::from_millis(10);

/// The bell rings only on the way up; what happens between our last look and the
/// end of a hold is found by looking again.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// All but this share of the limit is memory of processes and tmpfs in a memcg
/// that is full.
const OWN_SHARE: u64 = 8;
/// A full memcg whose charges fail for so long is out of memory.
const STARVED_TIME: Duration = LOOK_AGAIN;

/// Holds by `memory.oom_control`.
#[derive(Debug)]
pub struct V1Brake {
    memcg: Memcg,
    /// Rings at the limit and at the wall.
    bell: EventFd,
    /// Whether memory+swap is limited too (needs swap accounting).
    memsw: bool,
    /// What the user means.
    limit: u64,
    /// What the kernel has been told: the limit, the cushion, loans.
    wall: u64,
    /// What is lent above the cushion to a program that is to get well by itself.
    lent: u64,
    late: StoppedThreads,
    /// From the notice of the last OOM to the loan.
    exposed: Duration,
    kernel_kills: u64,
    /// Rings when reclaim finds next to nothing.
    pressure: EventFd,
    /// Since when it has rung in a full memcg at every look.
    starved_since: Option<Instant>,
    /// Whether the kernel decides for now.
    given_up: bool,
    cushion: Cushion,
    /// Of a memcg that is not ours, its limits as others wrote them.
    before: Option<Before>,
    /// When to look again.
    again: Duration,
}

impl V1Brake {
    /// Limits `memcg` and disables the kernel's OOM killer in it.
    pub fn arm(memcg: Memcg, limit: u64) -> Result<Self, BrakeError> {
        // The kernel rounds down to pages.
        let limit = whole_pages(limit);
        let wall = limit + cushion(limit, Cushion::Auto);
        memcg.write("memory.limit_in_bytes", &wall.to_string())?;
        // Equal limits leave no room for swap: the limit means what it says.
        let memsw = memcg.write("memory.memsw.limit_in_bytes", &wall.to_string()).is_ok();
        let mut brake = Self::new(memcg, limit, wall, Cushion::Auto)?;
        brake.memsw = memsw;
        brake.memcg.write("memory.oom_control", "1")?;
        Ok(brake)
    }

    fn new(memcg: Memcg, limit: u64, wall: u64, cushion: Cushion) -> Result<Self, BrakeError> {
        let bell = bells(&memcg, limit)?;
        let pressure = new_bell()?;
        listen(&memcg, &pressure, "memory.pressure_level", "critical")?;
        Ok(V1Brake {
            bell,
            memsw: false,
            limit,
            wall,
            lent: 0,
            late: StoppedThreads::default(),
            exposed: Duration::ZERO,
            kernel_kills: memcg.kernel_kills()?,
            pressure,
            starved_since: None,
            given_up: false,
            cushion,
            before: None,
            again: LOOK_AGAIN,
            memcg,
        })
    }

    /// Where the wall is when nothing is used above it.
    fn home(&self) -> u64 {
        if self.limit >= UNLIMITED {
            return self.limit;
        }
        self.limit + cushion(self.limit, self.cushion) + self.lent
    }

    /// Tells the kernel. memsw must never be below the limit, so the order
    /// depends on direction.
    fn set_wall(&mut self, bytes: u64) -> Result<(), CgroupError> {
        let text = bytes.to_string();
        let raise = bytes > self.wall;
        // What others give to swap stays the same.
        let swap = self.before.and_then(|before| Some(before.memsw?.saturating_sub(before.limit))).unwrap_or(0);
        let with_swap = bytes.saturating_add(swap).to_string();
        if raise && self.memsw {
            self.memcg.write("memory.memsw.limit_in_bytes", &with_swap)?;
        }
        self.memcg.write("memory.limit_in_bytes", &text)?;
        self.wall = bytes;
        if !raise && self.memsw {
            self.memcg.write("memory.memsw.limit_in_bytes", &with_swap)?;
        }
        Ok(())
    }

    /// Raises the wall for the moment, which wakes all parked tasks: the kernel
    /// does so only when it is really higher than before (mem_cgroup_resize_max).
    fn raise_wall(&mut self, bytes: u64) -> Result<(), CgroupError> {
        self.set_wall(self.wall + bytes)
    }

    /// Takes back what was lent and not used. EBUSY is the answer while usage is
    /// above: then the wall goes as low as it can, and the next call tries again.
    fn lower_wall(&mut self) -> Result<(), CgroupError> {
        let home = self.home();
        for wall in [home, self.memcg.usage()?.next_multiple_of(WAKE_BYTES)] {
            if !(home..self.wall).contains(&wall) {
                continue;
            }
            match self.set_wall(wall) {
                Err(CgroupError::Write { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {}
                result => result?,
            }
        }
        Ok(())
    }

    /// Whether what the kernel cannot reclaim fills the memcg up to `level`.
    fn is_full(&self, level: u64) -> Result<bool, CgroupError> {
        let usage = self.memcg.usage()?;
        if usage < level {
            return Ok(false);
        }
        let stat = self.memcg.stat()?;
        let of = |key: &str| stat.get(key).copied().unwrap_or(0);
        let file = of("total_active_file") + of("total_inactive_file");
        // The second keeps a memcg full of reclaimable slab, which has no
        // counter here, from being taken for full.
        Ok(usage.saturating_sub(file) >= level
            && of("total_rss") + of("total_shmem") >= self.limit - self.limit / OWN_SHARE)
    }

    /// Only page faults wait; a system call that cannot charge fails with ENOMEM
    /// and rings no bell (mem_cgroup_oom, mm/memcontrol.c). A program that only
    /// writes to a tmpfs would fail on and on. Each such failure is a reclaim
    /// that got nowhere, which is critical pressure (vmpressure_prio): when that
    /// goes on in a full memcg, it is an OOM too. (failcnt does not tell: where
    /// swap is accounted, the counter that fails has none.)
    fn is_starved(&mut self, pressed: bool) -> Result<bool, CgroupError> {
        let full = pressed && self.is_full(self.limit - self.limit / OWN_SHARE)?;
        self.starved_since = if full { self.starved_since.or(Some(Instant::now())) } else { None };
        Ok(self.starved_since.is_some_and(|since| since.elapsed() >= STARVED_TIME))
    }

    fn is_out_of_memory(&mut self, rang: bool, pressed: bool, begun: Instant) -> Result<bool, CgroupError> {
        self.exposed = Duration::ZERO;
        let parked = self.under_oom()?;
        if parked || rang && self.memcg.usage()? + LOAN_BYTES > self.wall {
            // Before anything else: from here on nobody fails.
            self.raise_wall(LOAN_BYTES)?;
            if parked {
                self.exposed = begun.elapsed();
                return Ok(true);
            }
        }
        let may_swap = self.before.is_some_and(|before| before.may_swap);
        if !may_swap && self.is_full(self.limit)? {
            return Ok(true);
        }
        let starved = self.is_starved(pressed)?;
        self.exposed = self.starved_since.filter(|_| starved).map_or(Duration::ZERO, |since| since.elapsed());
        Ok(starved)
    }

    fn under_oom(&self) -> Result<bool, CgroupError> {
        Ok(self.memcg.read_keyed("memory.oom_control")?.get("under_oom") == Some(&1))
    }
}

/// Distance of the wall above the limit.
fn cushion(limit: u64, wanted: Cushion) -> u64 {
    if let Cushion::Bytes(bytes) = wanted {
        return whole_pages(bytes);
    }
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let share = whole_pages(limit / CUSHION_SHARE);
    (CUSHION_BYTES + cpus * CUSHION_PER_CPU_BYTES).min(share)
}

/// The limit that has its wall there.
fn below(wall: u64, wanted: Cushion) -> u64 {
    let limit = match wanted {
        Cushion::Bytes(bytes) => wall.saturating_sub(bytes),
        // The cushion is the whole of it, or a share of a small limit.
        Cushion::Auto => wall.saturating_sub(cushion(u64::MAX, wanted)).max(wall / (CUSHION_SHARE + 1) * CUSHION_SHARE),
    };
    whole_pages(limit)
}

/// A bell that rings when usage passes `limit` and when a task parks.
fn bells(memcg: &Memcg, limit: u64) -> Result<EventFd, BrakeError> {
    let bell = new_bell()?;
    listen(memcg, &bell, "memory.oom_control", "")?;
    listen(memcg, &bell, "memory.usage_in_bytes", &limit.to_string())?;
    Ok(bell)
}

/// For the watchdog: tasks that wait at the wall.
pub fn alarm(memcg: &Memcg) -> Result<Alarm, BrakeError> {
    let bell = new_bell()?;
    listen(memcg, &bell, "memory.oom_control", "")?;
    let waits = |alarm: &Alarm| {
        let state = alarm.memcg.read_keyed("memory.oom_control").unwrap_or_default();
        ["oom_kill_disable", "under_oom"].iter().all(|key| state.get(*key) == Some(&1))
    };
    Ok(Alarm { bell: bell.into(), events: PollFlags::POLLIN, memcg: memcg.clone(), waits })
}

fn new_bell() -> Result<EventFd, BrakeError> {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(|errno| BrakeError::Bell(errno.into()))
}

/// Makes `bell` ring for what a file tells (Documentation/admin-guide/cgroup-v1/
/// memory.rst); it ends when the bell is closed.
fn listen(memcg: &Memcg, bell: &EventFd, file: &str, argument: &str) -> Result<(), BrakeError> {
    let watched = File::open(memcg.dir().join(file)).map_err(BrakeError::Bell)?;
    let registration = format!("{} {} {argument}", bell.as_fd().as_raw_fd(), watched.as_raw_fd());
    Ok(memcg.write("cgroup.event_control", registration.trim_end())?)
}

impl Brake for V1Brake {
    fn name(&self) -> &'static str {
        "v1"
    }

    fn bells(&self) -> Vec<PollFd<'_>> {
        let mut bells = vec![PollFd::new(self.bell.as_fd(), PollFlags::POLLIN)];
        // Elsewhere it is looked at often enough.
        bells.extend(self.before.map(|_| PollFd::new(self.pressure.as_fd(), PollFlags::POLLIN)));
        bells
    }

    fn look_again(&self) -> Duration {
        if self.late.is_empty() { self.again } else { LATE_AGAIN }
    }

    fn look(&mut self) -> Result<Look, CgroupError> {
        let begun = Instant::now();
        // EAGAIN: nobody rang. The state below is what counts.
        let rang = self.bell.read().is_ok();
        let pressed = self.pressure.read().is_ok();
        if !self.memcg.exists() {
            return Ok(Look::Well);
        }
        self.late.release_late();
        self.follow_owner()?;
        let out_of_memory = !self.given_up && self.is_out_of_memory(rang, pressed, begun)?;
        let kills = self.memcg.kernel_kills()?;
        let killed = kills > self.kernel_kills;
        self.kernel_kills = kills;
        Ok(if killed {
            Look::KilledByKernel
        } else if out_of_memory {
            Look::OutOfMemory
        } else {
            // Somebody freed memory, or the kernel found some.
            self.take_back_grant()?;
            self.lower_wall()?;
            self.again = self.patience()?;
            Look::Well
        })
    }

    fn exposed(&self) -> Duration {
        self.exposed
    }

    fn stop(&mut self, deadline: Instant) -> Result<StoppedThreads, CgroupError> {
        let mut threads = std::mem::take(&mut self.late);
        // Threads born before their maker stopped appear in a later listing,
        // and one that parks late has to be woken: until all have stopped and
        // nobody is new. Stopped threads make no new ones.
        threads.arm(&self.memcg.tids()?);
        loop {
            if self.under_oom()? {
                self.raise_wall(WAKE_BYTES)?;
            }
            let all = threads.wait(deadline.min(Instant::now() + WAKE_ROUND));
            let new = threads.arm(&self.memcg.tids()?);
            if all && new == 0 || Instant::now() >= deadline {
                break;
            }
        }
        self.lower_wall()?;
        Ok(threads)
    }

    fn resume(&mut self, threads: StoppedThreads) -> Result<(), CgroupError> {
        let taken_back = self.lower_wall();
        self.late = threads.resume();
        taken_back
    }

    fn is_well(&self) -> Result<bool, CgroupError> {
        Ok(!self.under_oom()?)
    }

    /// At the wall reclaim takes the clean pages of the program's own code, and then the
    /// thread that would free memory parks as well as the one that needs it.
    fn lend(&mut self, loans: u32) -> Result<(), CgroupError> {
        self.lent = u64::from(loans) * RELIEF_BYTES.min(whole_pages(self.limit / RELIEF_SHARE));
        self.set_wall(self.home().max(self.wall + WAKE_BYTES))
    }

    fn take_back(&mut self) -> Result<(), CgroupError> {
        self.lent = 0;
        self.lower_wall()
    }

    fn grant(&mut self, bytes: u64) -> Result<(), CgroupError> {
        let limit = whole_pages(self.limit.saturating_add(bytes));
        self.set_wall((limit + cushion(limit, self.cushion)).max(self.wall))?;
        self.limit = limit;
        self.remember();
        // Without a threshold at the new limit the wall and the looks remain.
        if let Ok(bell) = bells(&self.memcg, limit) {
            self.bell = bell;
        }
        Ok(())
    }

    fn granted(&self) -> u64 {
        self.before.map_or(0, |before| self.limit.saturating_sub(before.limit))
    }

    fn give_up(&mut self) -> Result<(), CgroupError> {
        self.given_up = true;
        self.memcg.write("memory.oom_control", "0")
    }

    fn rearm(&mut self) -> Result<(), CgroupError> {
        self.given_up = false;
        self.memcg.write("memory.oom_control", "1")
    }

    fn put_back(&mut self) -> Result<(), CgroupError> {
        self.give_up()?;
        self.put_limits_back()
    }

    fn follow(&mut self, bytes: u64) -> Result<(), CgroupError> {
        // What others wrote is what they will find again.
        if let Some(before) = &mut self.before {
            before.limit = before.limit.saturating_add(bytes);
            before.memsw = before.memsw.map(|memsw| memsw.saturating_add(bytes));
        }
        self.grant(bytes)
    }

    /// In the order in which the kernel takes it: memory+swap's limit is never below the
    /// other.
    fn debts(&self) -> Vec<Debt> {
        let mut debts = vec![debt(&self.memcg, "memory.oom_control", "0")];
        if let Some(before) = self.before {
            debts.push(debt(&self.memcg, "memory.limit_in_bytes", before.limit.to_string()));
            debts.extend(before.memsw.map(|bytes| debt(&self.memcg, "memory.memsw.limit_in_bytes", bytes.to_string())));
        }
        debts
    }

    fn hand_back(&self) -> HandBack {
        HandBack {
            alarm: alarm(&self.memcg).ok(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::page_size;

    #[test]
    fn a_limit_is_found_again_by_its_wall() {
        for mib in [16, 48, 64, 200, 4096] {
            for wanted in [Cushion::Auto, Cushion::Bytes(0), Cushion::Bytes(5 << 20)] {
                let limit = mib << 20;
                let found = below(limit + cushion(limit, wanted), wanted);
                assert!(limit.abs_diff(found) <= page_size(), "{mib} MiB, {wanted:?}: {found}");
            }
        }
    }
}
