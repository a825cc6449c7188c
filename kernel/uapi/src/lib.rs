//! What user space and the kernel say to each other through `/dev/oom_reserve`.
//!
//! A translation of `include/uapi/linux/oom_reserve.h`, which the kernel series
//! in `kernel/patches` adds; the test of this crate compiles that header and
//! compares. The protocol is told in `Documentation/admin-guide/mm/oom_reserve.rst`
//! of the same series.
//!
//! All sizes are in bytes and all times in nanoseconds of `CLOCK_MONOTONIC`,
//! unless said otherwise. Structures carry their size and grow at the end only.
#![no_std]

use core::mem::size_of;

/// The path of the device.
pub const DEVICE: &str = "/dev/oom_reserve";
/// The version of the protocol that this crate speaks.
pub const ABI: u32 = 1;

/// The letter of the device's ioctls (ioctl-number.rst of the kernel).
pub const MAGIC: u8 = 0xB9;
/// Become the handler of a cgroup. The argument is an [`Attach`].
pub const ATTACH: u32 = command::<Attach>(WRITE, 1);
/// Decide on a hold. The argument is a [`Verdict`].
pub const VERDICT: u32 = command::<Verdict>(WRITE, 2);
/// Fill in an [`Event`] that describes the oldest hold that lasts, or fail with
/// `ENODATA`.
pub const STATE: u32 = command::<Event>(READ, 3);

/// `_IOC_WRITE` of include/uapi/asm-generic/ioctl.h: user space writes, the kernel reads.
const WRITE: u32 = 1;
/// `_IOC_READ` of the same file.
const READ: u32 = 2;

/// `_IOC` of include/uapi/asm-generic/ioctl.h, which x86, arm64 and most others
/// use: eight bits of number, eight of letter, fourteen of size, two of direction.
const fn command<T>(direction: u32, number: u32) -> u32 {
    direction << 30 | (size_of::<T>() as u32) << 16 | (MAGIC as u32) << 8 | number
}

/// `struct oom_reserve_attach`: become the handler of a cgroup.
///
/// The caller needs write permission on the cgroup's `cgroup.procs`, and for the
/// root cgroup `CAP_SYS_RESOURCE`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attach {
    /// The size of this structure.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// An open directory of a cgroup v2 hierarchy.
    pub cgroup_fd: i32,
    /// [`ABI`].
    pub abi: u32,
    /// Must be 0.
    pub reserved: [u64; 2],
}

impl Attach {
    /// The request to handle the cgroup whose directory is open as `cgroup_fd`.
    #[must_use]
    pub const fn new(cgroup_fd: i32) -> Self {
        Self { size: size_of::<Self>() as u32, flags: 0, cgroup_fd, abi: ABI, reserved: [0; 2] }
    }
}

/// `struct oom_reserve_event`: a record. `read(2)` returns whole ones only.
///
/// `usage`, `used`, `overrun` and `parked` are those of the moment when the record
/// is read; in a record of type [`Kind::Ended`] of the moment when the hold ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// The size of this structure.
    pub size: u32,
    /// See [`Kind`]; `type` in C.
    pub kind: u16,
    /// About the charge that began the hold: [`Event::USER_FAULT`] and others.
    pub flags: u16,
    /// The number of the hold: starts at 1, unique for one handler.
    pub seq: u64,
    /// The cgroup whose limit was hit: the inode number of its directory.
    pub cgroup_id: u64,
    /// The cgroup of the task that hit it.
    pub task_cgroup_id: u64,
    /// The cgroup that the handler is attached to.
    pub attach_cgroup_id: u64,
    /// `memory.current` of `cgroup_id`.
    pub usage: u64,
    /// `memory.max` of `cgroup_id`.
    pub limit: u64,
    /// `memory.oom.reserve` of `attach_cgroup_id`.
    pub reserve: u64,
    /// How much of `usage` is above `limit`.
    pub used: u64,
    /// When the hold began.
    pub start_ns: u64,
    /// When it will end by itself, or would have.
    pub deadline_ns: u64,
    /// How much the held tasks may still charge.
    pub overrun: u64,
    /// Allocation flags of the charge: not stable between versions of the kernel.
    pub gfp: u32,
    /// The size of the charge: two to the power of this many pages.
    pub order: u32,
    /// The process that hit the limit, in the reader's pid namespace, or 0.
    pub pid: i32,
    /// Its thread.
    pub tid: i32,
    /// Tasks that wait for the end of the hold.
    pub parked: u32,
    /// See [`Scope`].
    pub scope: u32,
    /// See [`Reason`]; 0 unless the hold has ended.
    pub reason: u32,
    /// Number of dropped records in a record of type [`Kind::Lost`], else 0.
    pub lost: u32,
}

impl Event {
    /// The charge that began the hold was a page fault of user mode.
    pub const USER_FAULT: u16 = 1 << 0;
    /// It was made from within a system call.
    pub const KERNEL_CHARGE: u16 = 1 << 1;
    /// There was no swap, or none left.
    pub const SWAP_FULL: u16 = 1 << 2;
    /// The limit is of a cgroup below the one the handler is attached to.
    pub const NESTED: u16 = 1 << 3;
    /// The handler is itself in the cgroup whose limit was hit, or below.
    pub const HANDLER_INSIDE: u16 = 1 << 4;

    /// Makes a record of what `read(2)` wrote.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; size_of::<Self>()]) -> Self {
        // SAFETY: the sizes are the same, and all fields are integers, of which
        // every pattern of bits is one.
        unsafe { core::mem::transmute(bytes) }
    }

    /// What the record tells; `None` if this crate does not know it.
    #[must_use]
    pub const fn kind(&self) -> Option<Kind> {
        Kind::from_raw(self.kind as u32)
    }

    /// What ran out; `None` if this crate does not know it.
    #[must_use]
    pub const fn scope(&self) -> Option<Scope> {
        Scope::from_raw(self.scope)
    }

    /// Why the hold has ended; `None` if it has not, or if this crate does not know it.
    #[must_use]
    pub const fn reason(&self) -> Option<Reason> {
        Reason::from_raw(self.reason)
    }
}

/// `struct oom_reserve_verdict`: ends or changes a hold.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The size of this structure.
    pub size: u32,
    /// See [`Decision`].
    pub verdict: u32,
    /// The number of the hold. One that has ended gives `ESTALE`.
    pub seq: u64,
    /// The victim's pidfd or cgroup directory; ignored if there is none.
    pub fd: i32,
    /// The milliseconds of [`Decision::Extend`], else 0.
    pub arg: u32,
    /// Must be 0.
    pub reserved: u64,
}

impl Verdict {
    /// Lets the held tasks try again.
    #[must_use]
    pub const fn retry(seq: u64) -> Self {
        Self::new(seq, Decision::Retry, -1, 0)
    }

    /// Kills the process of `pidfd`.
    #[must_use]
    pub const fn kill_task(seq: u64, pidfd: i32) -> Self {
        Self::new(seq, Decision::KillTask, pidfd, 0)
    }

    /// Kills what is in the cgroup whose directory is open as `cgroup_fd`.
    #[must_use]
    pub const fn kill_cgroup(seq: u64, cgroup_fd: i32) -> Self {
        Self::new(seq, Decision::KillCgroup, cgroup_fd, 0)
    }

    /// Lets the kernel's OOM killer decide.
    #[must_use]
    pub const fn give_up(seq: u64) -> Self {
        Self::new(seq, Decision::GiveUp, -1, 0)
    }

    /// Lets the hold last `milliseconds` from now, within the cgroup's `memory.oom.delay_ms`.
    #[must_use]
    pub const fn extend(seq: u64, milliseconds: u32) -> Self {
        Self::new(seq, Decision::Extend, -1, milliseconds)
    }

    const fn new(seq: u64, decision: Decision, fd: i32, arg: u32) -> Self {
        Self { size: size_of::<Self>() as u32, verdict: decision as u32, seq, fd, arg, reserved: 0 }
    }
}

/// Defines an enumeration whose values come from the kernel.
macro_rules! kernel_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $value:literal,)* }) => {
        $(#[$doc])*
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant = $value,)*
        }

        impl $name {
            /// The one of this value; `None` if this crate does not know it.
            #[must_use]
            pub const fn from_raw(value: u32) -> Option<Self> {
                match value {
                    $($value => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

kernel_enum! {
    /// `enum oom_reserve_type`: what a record tells.
    Kind {
        /// A hold has begun. Never lost as long as the hold lasts.
        Held = 1,
        /// A hold has ended. If its record of type [`Kind::Held`] had not been read
        /// by then, this is the only one of it.
        Ended = 2,
        /// Some records of type [`Kind::Ended`] were dropped, because they were not
        /// read in time.
        Lost = 3,
    }
}

kernel_enum! {
    /// `enum oom_reserve_scope`: what ran out.
    Scope {
        /// A cgroup hit its `memory.max`.
        Memcg = 1,
        /// The machine has no free memory.
        System = 2,
    }
}

kernel_enum! {
    /// `enum oom_reserve_reason`: why a hold has ended.
    ///
    /// After `GaveUp`, `Timeout`, `HandlerGone`, `Exhausted` and `Offline`, and after
    /// `Killed` without effect, the kernel's own OOM killer decides.
    Reason {
        /// There is room below the limit again.
        Margin = 1,
        /// The handler's verdict, or the limit was lowered.
        Retry = 2,
        /// A kill that the handler asked for made room, or did not within five seconds.
        Killed = 3,
        /// The handler's verdict, or its third [`Decision::Retry`] in a row without effect.
        GaveUp = 4,
        /// The cgroup's `memory.oom.delay_ms` are over.
        Timeout = 5,
        /// The handler has exited or closed its file.
        HandlerGone = 6,
        /// Held tasks used up the overrun, or the handler used up the reserve.
        Exhausted = 7,
        /// The cgroup was removed.
        Offline = 8,
    }
}

kernel_enum! {
    /// `enum oom_reserve_decision`: what a handler decides.
    Decision {
        /// End the hold: the held tasks try again.
        Retry = 1,
        /// Kill a process.
        KillTask = 2,
        /// Kill what is in a cgroup.
        KillCgroup = 3,
        /// Let the kernel's OOM killer decide.
        GiveUp = 4,
        /// Let the hold last longer.
        Extend = 5,
    }
}
