//! What is different in a memcg that others made and limited.

use super::{DELAY_MS, Device, MAX, ROOM_BYTES, ReserveBrake};
use crate::cgroup::{CgroupError, Memcg};
use crate::hold::debt::{debt, pay};
use crate::hold::watchdog::Debt;
use crate::hold::{Brake, BrakeError, noted, remember};
use crate::say;
use nix::errno::Errno;
use std::fs::File;

/// A grant goes back when this share of the limit is free without it.
const BACK_SHARE: u64 = 8;

/// Files of a memcg as somebody else wrote them.
#[derive(Debug, Clone, Copy)]
pub struct Before {
    pub limit: u64,
    pub reserve: u64,
    pub delay_ms: u64,
}

impl ReserveBrake {
    /// Becomes the handler of a memcg that somebody else made and limited. What of its
    /// files we may write is raised for as long as we are there; by more where we may be
    /// in it ourselves.
    pub fn adopt(memcg: Memcg, is_inside: bool) -> Result<Self, BrakeError> {
        let device = Device::open()?;
        let path = || memcg.path().to_owned();
        let limit = memcg.limit()?.ok_or_else(|| BrakeError::NoLimit { path: path() })?;
        let number = |file| memcg.read_number(file).ok().flatten().unwrap_or(0);
        // Less where a guard before us raised it, and more than that is in use.
        let noted = noted(&memcg, MAX).filter(|_| !is_inside);
        let before = Before {
            limit: noted.map_or(limit, |noted| noted.min(limit)),
            reserve: number("memory.oom.reserve"),
            delay_ms: number("memory.oom.delay_ms"),
        };
        let dir = File::open(memcg.dir()).map_err(BrakeError::Bell)?;
        device.attach(&dir).map_err(|errno| match errno {
            Errno::EBUSY => BrakeError::Taken { path: path() },
            Errno::EACCES | Errno::EPERM => BrakeError::NotDelegated { path: path(), source: errno.into() },
            _ => BrakeError::NoReserve(errno.into()),
        })?;
        if memcg.write("memory.oom.delay_ms", &DELAY_MS.to_string()).is_err() && before.delay_ms == 0 {
            return Err(BrakeError::NoDelay { path: path() });
        }
        let mut brake = Self::of(memcg, device, limit)?;
        (brake.reserve, brake.before, brake.is_inside) = (before.reserve, Some(before), is_inside);
        brake.remember();
        let threads = brake.adapt_reserve()?.len();
        let needed = brake.needed_reserve(threads);
        if brake.reserve < needed {
            say!(
                Warning, cgroup = brake.memcg.path();
                "warning: {}/memory.oom.reserve is {} bytes and may not be written; with less than {needed} a hold can break off",
                brake.memcg.path(),
                before.reserve
            );
        }
        Ok(brake)
    }

    /// Takes over a limit that somebody else wrote into a memcg of his.
    pub(super) fn follow_owner(&mut self) -> Result<(), CgroupError> {
        let Some(before) = self.before.as_mut().filter(|_| !self.is_inside) else { return Ok(()) };
        let written = self.memcg.limit()?.unwrap_or(u64::MAX);
        if written != self.limit.saturating_add(self.lent) {
            (before.limit, self.limit, self.lent) = (written, written, 0);
            self.remember();
        }
        Ok(())
    }

    /// Has the memcg itself know what is to be put back. Where we are inside, that dies
    /// with us.
    pub(super) fn remember(&self) {
        if !self.is_inside {
            remember(&self.memcg, &self.debts());
        }
    }

    /// Takes back what was granted, once it is not in use any more.
    pub(super) fn take_back_grant(&mut self) -> Result<(), CgroupError> {
        let Some(before) = self.before.filter(|before| before.limit < self.limit && !self.is_inside) else {
            return Ok(());
        };
        if self.memcg.usage()? < before.limit - before.limit / BACK_SHARE {
            self.set_max(before.limit, 0)?;
        }
        Ok(())
    }

    /// The limit as it was found. One that does not fit what is in use is for the watchdog
    /// to try: the kernel would kill for it.
    pub(super) fn put_limit_back(&mut self) -> Result<(), CgroupError> {
        // What somebody wrote since the last look is not ours to undo.
        self.follow_owner()?;
        let Some(before) = self.before.filter(|_| !self.is_inside) else { return Ok(()) };
        let debt = debt(&self.memcg, MAX, before.limit.to_string());
        pay(&debt).map_err(|source| CgroupError::Write { path: debt.file, value: debt.content, source })?;
        (self.limit, self.lent) = (before.limit, 0);
        Ok(())
    }
}

impl Drop for ReserveBrake {
    /// A memcg that is not ours is left as it was. A limit that was raised stays where
    /// the usage does not fit below the old one: the kernel would kill for it.
    fn drop(&mut self) {
        let Some(before) = self.before else { return };
        let _ = self.memcg.write("memory.oom.delay_ms", &before.delay_ms.to_string());
        let _ = self.memcg.write("memory.oom.reserve", &before.reserve.to_string());
        let now = self.limit.saturating_add(self.lent);
        // Of what others guard from outside the note and the watchdog know.
        if now <= before.limit || !self.is_inside {
            return;
        }
        if self.memcg.usage().is_ok_and(|usage| usage + ROOM_BYTES <= before.limit) {
            let _ = self.memcg.write(MAX, &before.limit.to_string());
        } else {
            let path = self.memcg.path();
            say!(Warning, cgroup = path; "{path}/memory.max stays at {now}: more than before is in use");
        }
    }
}

/// What the kernel is given back: no holds, or as many as others had allowed.
pub fn writes(memcg: &Memcg, before: Option<Before>) -> Vec<Debt> {
    let Some(before) = before else { return vec![debt(memcg, "memory.oom.delay_ms", "0")] };
    vec![
        debt(memcg, "memory.oom.delay_ms", before.delay_ms.to_string()),
        debt(memcg, "memory.oom.reserve", before.reserve.to_string()),
        debt(memcg, MAX, before.limit.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hold::plain::Plain;

    fn brake(plain: &Plain) -> ReserveBrake {
        let device = Device::of_file(File::open("/dev/null").unwrap());
        let limit = plain.memcg.limit().unwrap().unwrap();
        let mut brake = ReserveBrake::of(plain.memcg.clone(), device, limit).unwrap();
        brake.before = Some(Before { limit: noted(&plain.memcg, MAX).unwrap_or(limit), reserve: 0, delay_ms: 0 });
        brake.remember();
        brake
    }

    #[test]
    fn what_was_granted_goes_back_when_the_usage_has() {
        let plain = Plain::new(64, 60);
        let mut brake = brake(&plain);
        brake.grant(64 << 20).unwrap();
        assert_eq!((plain.mib(MAX), brake.granted()), (128, 64 << 20));
        for (usage, limit) in [(100, 128), (57, 128), (55, 64)] {
            plain.set("memory.current", usage << 20);
            brake.look().unwrap();
            assert_eq!(plain.mib(MAX), limit, "{usage} MiB in use");
        }
        assert_eq!(brake.granted(), 0);
        // What is written now is the owner's, and stays.
        plain.set(MAX, 48 << 20);
        plain.set("memory.current", 1 << 20);
        brake.look().unwrap();
        assert_eq!((plain.mib(MAX), brake.limit()), (48, 48 << 20));
    }

    #[test]
    fn what_the_owner_writes_last_is_left() {
        let plain = Plain::new(64, 1);
        let mut brake = brake(&plain);
        brake.grant(64 << 20).unwrap();
        plain.set(MAX, 256 << 20);
        brake.put_back().unwrap();
        assert_eq!((plain.mib(MAX), plain.note()), (256, None));
    }

    #[test]
    fn a_limit_that_was_raised_is_known_to_watchdog_and_memcg() {
        let plain = Plain::new(64, 60);
        let mut dead = brake(&plain);
        dead.grant(64 << 20).unwrap();
        plain.set("memory.current", 100 << 20);
        assert!(dead.debts().contains(&debt(&plain.memcg, MAX, (64 << 20).to_string())));
        assert!(dead.put_back().is_err(), "the kernel would kill for it");
        drop(dead);
        plain.maker_dies();
        crate::hold::undo(&plain.memcg).unwrap();
        // It is in use: the next one goes on with it.
        let mut next = brake(&plain);
        assert_eq!((plain.mib(MAX), next.granted()), (128, 64 << 20));
        plain.set("memory.current", 40 << 20);
        next.put_back().unwrap();
        assert_eq!((plain.mib(MAX), plain.note()), (64, None));
    }
}
