//! What is different in a memcg that others made and limited.

use super::{Cushion, LOOK_AGAIN, OWN_SHARE, V1Brake, bells, below};
use crate::cgroup::{CgroupError, Memcg, UNLIMITED, note};
use crate::hold::watchdog::Debt;
use crate::hold::{Brake, BrakeError, noted, noted_grant, remember_with};
use std::fs;
use std::io;
use std::time::Duration;

/// In a memcg that others made everything that matters rings: the wall, the limit,
/// pressure. Only what is not as it should be is looked at again, and where cache alone
/// fills it up to the limit, less often.
const LOOK_AGAIN_CALM: Duration = Duration::from_secs(3600);
const LOOK_AGAIN_AT_LIMIT: Duration = Duration::from_secs(1);

const LIMIT: &str = "memory.limit_in_bytes";
const MEMSW: &str = "memory.memsw.limit_in_bytes";

/// Limits of a memcg as somebody else wrote them.
#[derive(Debug, Clone, Copy)]
pub struct Before {
    pub limit: u64,
    /// Of memory+swap; `None` where that is not limited or not accounted.
    pub memsw: Option<u64>,
    /// Whether pages may go to swap before the memcg is out of memory.
    pub may_swap: bool,
}

impl Before {
    fn of(memcg: &Memcg) -> Result<Self, BrakeError> {
        let limit = memcg.limit()?.ok_or_else(|| BrakeError::Unlimited { path: memcg.path().to_owned() })?;
        // One that a guard before us raised, and could not put back yet.
        let limit = noted(memcg, LIMIT).map_or(limit, |noted| noted.min(limit));
        let memsw = noted(memcg, MEMSW).or(memcg.read_number(MEMSW).ok().flatten());
        // What memory+swap allows beyond the limit is swap's, if there is any.
        let has_swap = std::fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1);
        let memsw = memsw.filter(|&bytes| bytes < UNLIMITED);
        Ok(Before { limit, memsw, may_swap: has_swap && memsw.is_none_or(|bytes| bytes > limit) })
    }
}

impl V1Brake {
    /// Raises the limit that somebody else set to the wall, and disables the kernel's
    /// OOM killer.
    pub fn adopt(memcg: Memcg, cushion: Cushion) -> Result<Self, BrakeError> {
        if memcg.read_keyed("memory.oom_control")?.get("oom_kill_disable") == Some(&1) {
            return Err(BrakeError::Disabled { path: memcg.path().to_owned() });
        }
        let before = Before::of(&memcg)?;
        let wall = memcg.limit()?.unwrap_or(before.limit);
        // What a guard before us granted is still out if its wall could not be put back. Above
        // that it may have lent something to a program that it throttled.
        let limit = match noted_grant(&memcg) {
            Some(granted) if wall > before.limit => before.limit.saturating_add(granted).min(wall),
            None if wall > before.limit => below(wall, cushion).max(before.limit),
            _ => before.limit,
        };
        let mut brake = Self::new(memcg, limit, wall, cushion)?;
        (brake.memsw, brake.before) = (before.memsw.is_some(), Some(before));
        brake.again = LOOK_AGAIN_CALM;
        brake.remember();
        let home = brake.home();
        // What is in use between the two is no reason not to guard it.
        let set = if home < wall { brake.lower_wall() } else { brake.set_wall(home) };
        let armed = set.and_then(|()| brake.memcg.write("memory.oom_control", "1"));
        if let Err(error) = armed {
            // As it was found, as far as it was changed.
            let _ = brake.put_back();
            return Err(error.into());
        }
        Ok(brake)
    }

    /// Takes over a limit that somebody else wrote into a memcg of his; also one that means
    /// none, above which there is no wall.
    pub(super) fn follow_owner(&mut self) -> Result<(), CgroupError> {
        let Some(before) = self.before else { return Ok(()) };
        let written = self.memcg.read_number("memory.limit_in_bytes")?.unwrap_or(UNLIMITED);
        if written == self.wall {
            return Ok(());
        }
        note::forget(&self.memcg);
        // What we wrote there is not what he wrote.
        let ours = before.memsw.map(|memsw| self.wall.saturating_add(memsw.saturating_sub(before.limit)));
        let memsw = self.memcg.read_number(MEMSW).ok().flatten().filter(|&bytes| bytes < UNLIMITED);
        let memsw = if memsw == ours { before.memsw } else { memsw };
        let now = Before { limit: written, memsw: memsw.map(|memsw| memsw.max(written)), ..before };
        self.memsw = now.memsw.is_some();
        (self.limit, self.wall, self.before) = (written, written, Some(now));
        if let Ok(bell) = bells(&self.memcg, written) {
            self.bell = bell;
        }
        self.remember();
        self.set_wall(self.home())
    }

    /// Takes back what was granted, once it is not in use any more.
    pub(super) fn take_back_grant(&mut self) -> Result<(), CgroupError> {
        let Some(before) = self.before.filter(|before| before.limit < self.limit) else { return Ok(()) };
        if self.memcg.usage()? < before.limit - before.limit / OWN_SHARE {
            self.limit = before.limit;
            self.remember();
            if let Ok(bell) = bells(&self.memcg, before.limit) {
                self.bell = bell;
            }
            self.lower_wall()?;
        }
        Ok(())
    }

    /// Notes with a memcg that others made what they wrote there, and what is granted above.
    pub(super) fn remember(&self) {
        if self.before.is_some() {
            remember_with(&self.memcg, &self.debts(), self.granted());
        }
    }

    /// When to look again if nothing rings until then.
    pub(super) fn patience(&self) -> Result<Duration, CgroupError> {
        let Some(before) = self.before else { return Ok(LOOK_AGAIN) };
        let is_calm = !self.given_up && self.starved_since.is_none() && self.lent == 0 && self.wall == self.home();
        Ok(match self.memcg.usage()? {
            _ if !is_calm => LOOK_AGAIN,
            usage if usage >= self.limit || self.limit > before.limit => LOOK_AGAIN_AT_LIMIT,
            _ => LOOK_AGAIN_CALM,
        })
    }

    /// The limits as they were found. One that does not fit what is in use is the
    /// watchdog's to try: the kernel would reclaim for it, again and again.
    pub(super) fn put_limits_back(&self) -> Result<(), CgroupError> {
        let Some(before) = self.before else { return Ok(()) };
        for Debt { file, content } in self.debts() {
            let busy = || io::Error::from_raw_os_error(libc::EBUSY);
            let written = match self.is_full(before.limit)? {
                true if self.wall > before.limit => Err(busy()),
                _ => fs::write(&file, &content),
            };
            written.map_err(|source| CgroupError::Write { path: file, value: content, source })?;
        }
        note::forget(&self.memcg);
        Ok(())
    }
}
