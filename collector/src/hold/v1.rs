//! The `v1` brake: `memory.oom_control` and an eventfd.
//!
//! With `oom_kill_disable` set, a task whose page fault cannot be charged
//! sleeps in `mem_cgroup_oom_synchronize` (mm/memcontrol-v1.c) until memory is
//! there. System calls are not so lucky: they see ENOMEM or EFAULT. So the
//! sleep is turned into a ptrace stop at once ("arm, then release") and the
//! limit is put back: the window is as long as that takes.

use super::stop::{LATE_AGAIN, StoppedThreads};
use super::{Alarm, Brake, BrakeError, HandBack, Look};
use crate::cgroup::{CgroupError, Memcg};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

/// Raising the limit by this wakes the parked tasks; none of it is used, since
/// they stop before they retry their fault. One page would do; 64 KiB also
/// covers architectures with 64 KiB pages.
const WAKE_BYTES: u64 = 64 << 10;

/// The bell rings only when the memcg goes under OOM; a task that parks between
/// our last look and the end of a hold is found by looking again.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Holds by `memory.oom_control`.
#[derive(Debug)]
pub struct V1Brake {
    memcg: Memcg,
    bell: EventFd,
    /// Whether memory+swap is limited too (needs swap accounting).
    memsw: bool,
    limit: u64,
    /// What the kernel has above `limit` until it lets us put it back.
    raised: u64,
    late: StoppedThreads,
    kernel_kills: u64,
    /// Whether the kernel decides for now.
    given_up: bool,
}

impl V1Brake {
    /// Limits `memcg` and disables the kernel's OOM killer in it.
    pub fn arm(memcg: Memcg, limit: u64) -> Result<Self, BrakeError> {
        memcg.write("memory.limit_in_bytes", &limit.to_string())?;
        // Equal limits leave no room for swap: the limit means what it says.
        let memsw = memcg.write("memory.memsw.limit_in_bytes", &limit.to_string()).is_ok();
        let bell = bell(&memcg)?;
        memcg.write("memory.oom_control", "1")?;
        let kernel_kills = memcg.kernel_kills()?;
        // The kernel rounds the limit down to pages.
        let limit = memcg.limit()?.unwrap_or(limit);
        let late = StoppedThreads::default();
        Ok(V1Brake { memcg, bell, memsw, limit, raised: 0, late, kernel_kills, given_up: false })
    }

    /// memsw must never be below the limit, so the order depends on direction.
    fn set_limit(&self, bytes: u64, raise: bool) -> Result<(), CgroupError> {
        let text = bytes.to_string();
        if raise && self.memsw {
            self.memcg.write("memory.memsw.limit_in_bytes", &text)?;
        }
        self.memcg.write("memory.limit_in_bytes", &text)?;
        if !raise && self.memsw {
            self.memcg.write("memory.memsw.limit_in_bytes", &text)?;
        }
        Ok(())
    }

    /// Puts the limit back. A stopping thread's SIGCHLD to us is charged to it
    /// (`sigqueue` is an accounted cache), so usage may stand a page above the
    /// limit and the kernel answer EBUSY: the next call tries again.
    fn put_back(&mut self) -> Result<(), CgroupError> {
        if self.raised == 0 {
            return Ok(());
        }
        match self.set_limit(self.limit, false) {
            Ok(()) => self.raised = 0,
            Err(CgroupError::Write { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn under_oom(&self) -> Result<bool, CgroupError> {
        Ok(self.memcg.read_keyed("memory.oom_control")?.get("under_oom") == Some(&1))
    }
}

/// An eventfd that rings when `memcg` goes out of memory.
fn bell(memcg: &Memcg) -> Result<EventFd, BrakeError> {
    let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map_err(|errno| BrakeError::Bell(errno.into()))?;
    let control = File::open(memcg.dir().join("memory.oom_control")).map_err(BrakeError::Bell)?;
    memcg.write("cgroup.event_control", &format!("{} {}", bell.as_fd().as_raw_fd(), control.as_raw_fd()))?;
    Ok(bell)
}

impl Brake for V1Brake {
    fn name(&self) -> &'static str {
        "v1"
    }

    fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    fn look_again(&self) -> Duration {
        if self.late.is_empty() { LOOK_AGAIN } else { LATE_AGAIN }
    }

    fn look(&mut self) -> Result<Look, CgroupError> {
        // EAGAIN: nobody rang. The state below is what counts.
        let _ = self.bell.read();
        if !self.memcg.exists() {
            return Ok(Look::Well);
        }
        self.late.release_late();
        // Below the limit this costs no reclaim.
        if self.memcg.usage()? <= self.limit {
            self.put_back()?;
        }
        let kills = self.memcg.kernel_kills()?;
        let killed = kills > self.kernel_kills;
        self.kernel_kills = kills;
        Ok(if killed {
            Look::KilledByKernel
        } else if !self.given_up && self.under_oom()? {
            Look::OutOfMemory
        } else {
            // Somebody freed memory before we came.
            Look::Well
        })
    }

    fn stop(&mut self, deadline: Instant) -> Result<StoppedThreads, CgroupError> {
        let mut threads = std::mem::take(&mut self.late);
        threads.arm(&self.memcg.tids()?);
        // Only a limit that is really higher than the last one wakes anybody
        // (mem_cgroup_resize_max).
        self.raised += WAKE_BYTES;
        self.set_limit(self.limit + self.raised, true)?;
        threads.stop_all(deadline, || self.memcg.tids())?;
        self.put_back()?;
        Ok(threads)
    }

    fn resume(&mut self, threads: StoppedThreads) -> Result<(), CgroupError> {
        let put_back = self.put_back();
        self.late = threads.resume();
        put_back
    }

    fn is_well(&self) -> Result<bool, CgroupError> {
        Ok(!self.under_oom()?)
    }

    fn grant(&mut self, bytes: u64) -> Result<(), CgroupError> {
        let limit = self.limit.saturating_add(bytes);
        self.set_limit(limit.max(self.limit + self.raised), true)?;
        self.limit = self.memcg.limit()?.unwrap_or(limit);
        self.raised = 0;
        Ok(())
    }

    fn give_up(&mut self) -> Result<(), CgroupError> {
        self.given_up = true;
        self.memcg.write("memory.oom_control", "0")
    }

    fn rearm(&mut self) -> Result<(), CgroupError> {
        self.given_up = false;
        self.memcg.write("memory.oom_control", "1")
    }

    fn hand_back(&self) -> HandBack {
        let state = self.memcg.dir().join("memory.oom_control");
        let waits = &["oom_kill_disable 1", "under_oom 1"];
        HandBack {
            alarm: bell(&self.memcg).ok().map(|bell| Alarm { bell, state, waits }),
            writes: vec![(self.memcg.dir().join("memory.oom_control"), "0")],
            memcg: Some(self.memcg.dir().to_owned()),
            beside: Vec::new(),
        }
    }

    fn limit(&self) -> u64 {
        self.limit
    }
}
