//! Holds: what keeps a memcg's tasks from dying while we look.
//!
//! A [`Brake`] notices the OOM, stops the tasks, and lets them go. The kernel's
//! own OOM killer is never further away than a [`watchdog`].

mod adopt;
mod debt;
mod high;
#[cfg(test)]
mod plain;
pub mod reserve;
pub mod stop;
mod v1;
pub mod watchdog;

pub use adopt::{Cushion, adopt, undo};
use adopt::{noted, noted_grant, remember, remember_with};
use debt::debt;
pub use debt::pay;
pub use high::HighBrake;
pub use reserve::ReserveBrake;
pub use v1::V1Brake;

use crate::cgroup::{CgroupError, Memcg, Version};
use crate::incident::model::KernelHold;
use crate::snapshot::page_size;
use nix::poll::{PollFd, PollFlags};
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};
use stop::StoppedThreads;
use watchdog::Debt;

/// Mechanism behind a hold, as the user names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrakeChoice {
    /// The best that this machine has.
    Auto,
    /// `memory.oom_control` of cgroup version 1.
    V1,
    /// `memory.high` and `cgroup.freeze` of version 2.
    High,
    /// `/dev/oom_reserve` of the series in kernel/patches, on version 2.
    Reserve,
}

impl FromStr for BrakeChoice {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(BrakeChoice::Auto),
            "v1" => Ok(BrakeChoice::V1),
            "high" => Ok(BrakeChoice::High),
            "reserve" => Ok(BrakeChoice::Reserve),
            _ => Err(format!("unknown brake {name:?}; known are auto, v1, high and reserve")),
        }
    }
}

/// What a look at the memcg showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Nothing is wrong.
    Well,
    /// Out of memory: stop it now.
    OutOfMemory,
    /// The kernel killed before we could hold.
    KilledByKernel,
}

/// How to notice, without the guardian, tasks that wait or crawl at the limit.
#[derive(Debug)]
pub struct Alarm {
    /// Rings when the memcg may have come to its limit.
    pub bell: OwnedFd,
    /// How it rings.
    pub events: PollFlags,
    /// The memcg.
    pub memcg: Memcg,
    /// Whether it is at its limit now.
    pub waits: fn(&Alarm) -> bool,
}

impl Alarm {
    /// Whether tasks wait for an answer now.
    #[must_use]
    pub fn waits(&self) -> bool {
        (self.waits)(self)
    }

    /// The number of the hold that lasts or was last, where holds have one: another
    /// one has its own time.
    #[must_use]
    pub fn turn(&self) -> Option<u64> {
        self.says("seq")
    }

    /// What to poll for.
    #[must_use]
    pub fn bell(&self) -> PollFd<'_> {
        PollFd::new(self.bell.as_fd(), self.events)
    }

    /// What a keyed file that is the bell says of `key`, without a charge for it: the
    /// file was read before.
    #[must_use]
    pub fn says(&self, key: &str) -> Option<u64> {
        let mut bytes = [0; 512];
        let length = nix::sys::uio::pread(&self.bell, &mut bytes, 0).ok()?;
        let text = std::str::from_utf8(&bytes[..length]).ok()?;
        text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
    }

    /// Makes it ready for the next ring; whether it had rung cannot be told for
    /// all.
    pub fn silence(&self) {
        let mut bytes = [0; 512];
        // A file of a cgroup is silenced by reading it anew, an eventfd has no
        // offset.
        if nix::sys::uio::pread(&self.bell, &mut bytes, 0).is_err() {
            let _ = nix::unistd::read(&self.bell, &mut bytes);
        }
    }
}

/// What to write where to give the memcg back to the kernel.
#[derive(Debug, Default)]
pub struct HandBack {
    /// How to notice that the guardian should have answered.
    pub alarm: Option<Alarm>,
    /// What to write, in order.
    pub writes: Vec<Debt>,
    /// The memcg, to be removed when it is empty, if it is ours.
    pub memcg: Option<PathBuf>,
    /// Other cgroup folders to be removed then.
    pub beside: Vec<PathBuf>,
    /// The memcg, if others made it, which bears a note of what is to be written.
    pub adopted: Option<Memcg>,
}

/// A way to hold a memcg at its limit.
pub trait Brake: fmt::Debug + Send {
    /// `v1`, `high` or `reserve`.
    fn name(&self) -> &'static str;

    /// One of them becomes ready when [`Brake::look`] may have news; the look silences
    /// them.
    fn bells(&self) -> Vec<PollFd<'_>>;

    /// Longest to wait for the bell before looking anyway.
    fn look_again(&self) -> Duration;

    /// Answers the bell.
    fn look(&mut self) -> Result<Look, CgroupError>;

    /// How long after the last OOM was noticed a system call of the memcg could
    /// still fail for want of memory.
    fn exposed(&self) -> Duration;

    /// What the kernel told of the hold that was stopped last, where it does.
    fn told(&mut self) -> Option<KernelHold> {
        None
    }

    /// Takes note of what the hold costs until now; called at its peaks.
    fn measure(&mut self) {}

    /// Stops every thread, by `deadline` at the latest.
    fn stop(&mut self, deadline: Instant) -> Result<StoppedThreads, CgroupError>;

    /// Lets the stopped threads go.
    fn resume(&mut self, threads: StoppedThreads) -> Result<(), CgroupError>;

    /// Whether the memcg needs no hold any more.
    fn is_well(&self) -> Result<bool, CgroupError>;

    /// Whether the hold is over though nothing was done about it: memory was freed, or
    /// somebody raised the limit. Brakes that hold until we let go never say so.
    fn ended_by_itself(&mut self) -> bool {
        false
    }

    /// Room to move in for a memcg that is let go to get well by itself, until
    /// [`Brake::take_back`]: so many loans in all. Brakes that hold below the kernel's
    /// limit leave some anyway.
    fn lend(&mut self, _loans: u32) -> Result<(), CgroupError> {
        Ok(())
    }

    /// Takes back what was lent, as far as it is not in use; the rest follows later.
    fn take_back(&mut self) -> Result<(), CgroupError> {
        Ok(())
    }

    /// Raises the limit by `bytes`.
    fn grant(&mut self, bytes: u64) -> Result<(), CgroupError>;

    /// Bytes by which the limit is above that of whoever owns the memcg.
    fn granted(&self) -> u64 {
        0
    }

    /// Raises the limit by `bytes`, as somebody else has done already.
    fn follow(&mut self, bytes: u64) -> Result<(), CgroupError> {
        self.grant(bytes)
    }

    /// Lets the kernel decide this OOM and those to come.
    fn give_up(&mut self) -> Result<(), CgroupError>;

    /// Takes up guarding again after [`Brake::give_up`].
    fn rearm(&mut self) -> Result<(), CgroupError>;

    /// Leaves a memcg that others made as it was found. What is refused for now, as a
    /// limit below the usage, is left to the watchdog.
    fn put_back(&mut self) -> Result<(), CgroupError> {
        self.give_up()
    }

    /// What to write to give it back, in order.
    fn debts(&self) -> Vec<Debt>;

    /// How a watchdog does the same when we cannot.
    fn hand_back(&self) -> HandBack;

    /// Lets threads go that stopped too late for it; whether none is left. Only the
    /// thread that stopped them can.
    fn release_late(&mut self) -> bool;

    /// The limit in bytes now.
    fn limit(&self) -> u64;

    /// The usage in bytes at which it holds: the limit, or a little less.
    fn level(&self) -> u64;
}

/// Why no brake could be armed.
#[derive(Debug, thiserror::Error)]
pub enum BrakeError {
    /// The chosen brake is of the other cgroup version.
    #[error(
        "brake {brake} needs cgroup version {needs}, but the memory controller here is on version {has}; use --brake auto"
    )]
    WrongVersion {
        /// As asked for.
        brake: &'static str,
        /// Version it needs.
        needs: u8,
        /// Version there is.
        has: u8,
    },
    /// The limit leaves no room for a gap below it.
    #[error(
        "a limit of {limit} bytes is too small for brake high, which holds {gap} bytes below it; use at least {least} bytes"
    )]
    TooSmall {
        /// As asked for.
        limit: u64,
        /// What the brake needs.
        gap: u64,
        /// What would do.
        least: u64,
    },
    /// A file of the memcg refused.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The kernel has no such device, or refused.
    #[error("brake reserve needs /dev/oom_reserve of a kernel with the series in kernel/patches; use --brake auto")]
    NoReserve(#[source] std::io::Error),
    /// The kernel interface could not be opened.
    #[error("failed to open the bell of the memcg")]
    Bell(#[source] std::io::Error),
    /// Only the kernel's own hold can be lived through in the memcg that is full.
    #[error(
        "--here needs brake reserve (/dev/oom_reserve of a kernel with the series in kernel/patches, cgroup version 2): \
         without a reserve whoever looks at a full memcg from inside is killed with it; leave --here away to guard from outside"
    )]
    HereNeedsReserve,
    /// Nothing limits the memcg that we are in.
    #[error(
        "--here: neither {path} nor a cgroup above it has a limit; write one to its memory.max, \
         or leave --here away and use --memory"
    )]
    NoLimit {
        /// Our cgroup.
        path: String,
    },
    /// Nothing limits a memcg that is to be guarded.
    #[error("{path} has no limit")]
    Unlimited {
        /// The cgroup.
        path: String,
    },
    /// The handler's place is taken.
    #[error("{path} has a handler already (another reprieve, by its memory.oom.state); end that one first")]
    Taken {
        /// The cgroup.
        path: String,
    },
    /// We may not attach there.
    #[error("may not become the handler of {path}; have its cgroup.procs delegated to this user, or run as root")]
    NotDelegated {
        /// The cgroup.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A memcg's own handler is there already.
    #[error("{path}/memory.oom_control says oom_kill_disable 1: somebody else answers its OOMs; end that one first")]
    Disabled {
        /// The cgroup.
        path: String,
    },
    /// Another guardian adopted it.
    #[error("another reprieve guards {path} already; end that one first")]
    Guarded {
        /// The cgroup.
        path: String,
    },
    /// No holds there, and we may not allow any.
    #[error(
        "{path}/memory.oom.delay_ms is 0, which means no holds, and may not be written; \
         have its owner write 60000 there, and a reserve to memory.oom.reserve"
    )]
    NoDelay {
        /// The cgroup.
        path: String,
    },
}

/// Arms a brake on a memcg that others made and limited, and that we may be in; it is
/// left as it was.
pub fn arm_here(memcg: &Memcg, choice: BrakeChoice) -> Result<Box<dyn Brake>, BrakeError> {
    let is_ours = matches!(choice, BrakeChoice::Auto | BrakeChoice::Reserve);
    if memcg.version() != Version::V2 || !is_ours || !ReserveBrake::is_there() {
        return Err(BrakeError::HereNeedsReserve);
    }
    Ok(Box::new(ReserveBrake::adopt(memcg.clone(), true)?))
}

/// Limits `memcg` to `limit_bytes` and arms a brake on it.
pub fn arm(memcg: &Memcg, limit_bytes: u64, choice: BrakeChoice) -> Result<Box<dyn Brake>, BrakeError> {
    let has = memcg.version();
    match (choice, has) {
        (BrakeChoice::Auto | BrakeChoice::V1, Version::V1) => Ok(Box::new(V1Brake::arm(memcg.clone(), limit_bytes)?)),
        (BrakeChoice::Auto, Version::V2) if ReserveBrake::is_there() => {
            Ok(Box::new(ReserveBrake::arm(memcg.clone(), limit_bytes)?))
        }
        (BrakeChoice::Reserve, Version::V2) => Ok(Box::new(ReserveBrake::arm(memcg.clone(), limit_bytes)?)),
        (BrakeChoice::Auto | BrakeChoice::High, Version::V2) => {
            Ok(Box::new(HighBrake::arm(memcg.clone(), limit_bytes)?))
        }
        (BrakeChoice::V1, _) => Err(BrakeError::WrongVersion { brake: "v1", needs: 1, has: has.number() }),
        (BrakeChoice::High, _) => Err(BrakeError::WrongVersion { brake: "high", needs: 2, has: has.number() }),
        (BrakeChoice::Reserve, _) => Err(BrakeError::WrongVersion { brake: "reserve", needs: 2, has: has.number() }),
    }
}

/// How a watchdog notices an OOM under the brake of this name.
#[must_use]
pub fn alarm_of(brake: &str, memcg: &Memcg) -> Option<Alarm> {
    match brake {
        "v1" => v1::alarm(memcg).ok(),
        "high" => high::alarm(memcg),
        "reserve" => reserve::alarm(memcg),
        _ => None,
    }
}

/// A limit as the kernel takes it. One that it had to round down would look like another's.
fn whole_pages(bytes: u64) -> u64 {
    bytes / page_size() * page_size()
}
