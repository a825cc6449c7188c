//! Where everything is in the table, in bytes.
//!
//! ```text
//! region   header | slab 1 | slab 2 | …          slab 0 is the header's
//! home     header | filter | plans | samples | stack index | stacks
//! more     kind of slab, owner | samples, or stacks
//! ```
//!
//! All fields are little-endian 64-bit words, since the target is x86-64 or
//! aarch64; counters that a filter keeps are single bytes.

/// First word of the region: the name and version of this layout.
pub const MAGIC: u64 = u64::from_le_bytes(*b"RPRVHP02");

/// Unit in which the region is dealt out.
pub const SLAB_BYTES: usize = 128 << 10;
/// Slabs of the largest region; sample slabs and stack slabs of one process are
/// counted in arrays of this many at most.
pub const MAX_SLABS: usize = 4096;
/// Additional slabs of each kind that one process may take.
pub const MAX_MORE: usize = 128;

/// Slabs of a region that a process makes for itself: 64 MiB, of which only what
/// is used exists.
pub const OWN_SLABS: usize = 512;
/// What a process touches of such a region when it makes it: the header up to the
/// last owner, and its home.
pub const OWN_START_BYTES: usize = region::OWNERS + OWN_SLABS * 8 + SLAB_BYTES;

/// The region's header.
pub mod region {
    /// [`super::MAGIC`].
    pub const MAGIC: usize = 0;
    /// Slabs in the region, this one included.
    pub const SLABS: usize = 8;
    /// Slabs that may be used: the guardian has touched those below.
    pub const READY: usize = 16;
    /// Slabs dealt out so far, never to be dealt out from here again.
    pub const NEXT: usize = 24;
    /// Head of the list of given back slabs: count of changes << 32 | slab.
    pub const FREE: usize = 32;
    /// How often a process asked for a slab and there was none.
    pub const REFUSED: usize = 40;
    /// Mean bytes between samples.
    pub const PERIOD: usize = 48;
    /// Least size of a mapping that is recorded.
    pub const MAPPING: usize = 56;
    /// Seed for tests, 0 for a random one.
    pub const SEED: usize = 64;
    /// Homes made so far; their order.
    pub const HOMES: usize = 72;
    /// Slabs taken so far, by which an owner is told from one before it.
    pub const TAKES: usize = 80;
    /// 1 where no guardian takes back what the dead leave.
    pub const UNGUARDED: usize = 88;
    /// When the dead were last looked for there, in milliseconds of CLOCK_MONOTONIC.
    pub const SWEPT: usize = 96;
    /// For each slab: what it is (4 bits) | count of takes (28) << 4 | the home it
    /// belongs to << 32.
    pub const OWNERS: usize = 4096;
}

/// What a slab is.
pub mod kind {
    /// Nobody's.
    pub const FREE: u64 = 0;
    /// A process's first.
    pub const HOME: u64 = 1;
    /// Samples.
    pub const SAMPLES: u64 = 2;
    /// Stacks.
    pub const STACKS: u64 = 3;
}

/// A process's home.
pub mod home {
    /// [`STATE_LIVE`] once it may be read.
    pub const STATE: usize = 0;
    /// PID in the namespace of the process; [`UNBORN`] | its sequence while the
    /// fork it was made for is under way, [`NEVER`] when that was given up.
    pub const PID: usize = 8;
    /// Inode of that namespace (/proc/self/ns/pid).
    pub const PID_NAMESPACE: usize = 16;
    /// Order among all homes: of two of one process the later is its own, the
    /// earlier is that of the program it ran before exec.
    pub const SEQUENCE: usize = 24;
    /// Home of the parent that this process was forked from with its memory, or 0.
    pub const PARENT: usize = 32;
    /// Samples that found no room.
    pub const LOST_SAMPLES: usize = 40;
    /// Their estimated bytes.
    pub const LOST_BYTES: usize = 48;
    /// Samples taken.
    pub const TAKEN: usize = 56;
    /// Where the next stack goes: offset in the region in bytes.
    pub const STACK_NEXT: usize = 64;
    /// Number of [`MORE_SAMPLES`] in use.
    pub const SAMPLE_SLABS: usize = 72;
    /// Address at which the process has mapped the region: a program that it
    /// executes has another.
    pub const BASE: usize = 80;
    /// When it was made, in milliseconds of CLOCK_MONOTONIC.
    pub const MADE: usize = 88;
    /// Additional sample slabs.
    pub const MORE_SAMPLES: usize = 512;
    /// End of the header.
    pub const HEADER_BYTES: usize = 4096;

    /// Value of [`STATE`] when all else is set.
    pub const STATE_LIVE: u64 = 0x4c49_5645;
    /// In [`PID`]: its process is not there yet. Larger than any PID.
    pub const UNBORN: u64 = 1 << 63;
    /// Value of [`PID`] when the child it was made for never came.
    pub const NEVER: u64 = u64::MAX;

    /// Counting filter over addresses with live samples, one byte each.
    pub const FILTER: usize = HEADER_BYTES;
    /// Its bytes; a power of two.
    pub const FILTER_BYTES: usize = 32 << 10;
    /// Unwind plans, for the writer's own use; pairs of words.
    pub const PLANS: usize = FILTER + FILTER_BYTES;
    /// Their number; a power of two.
    pub const PLAN_COUNT: usize = 2048;
    /// Samples of the home itself.
    pub const SAMPLES: usize = PLANS + PLAN_COUNT * 16;
    /// Their number.
    pub const SAMPLE_COUNT: usize = 1024;
    /// Heads of the chains of stacks, by hash: offsets in the region.
    pub const STACK_INDEX: usize = SAMPLES + SAMPLE_COUNT * super::sample::BYTES;
    /// Their number; a power of two.
    pub const STACK_INDEX_COUNT: usize = 1024;
    /// Stacks of the home itself, to the end of the slab.
    pub const STACKS: usize = STACK_INDEX + STACK_INDEX_COUNT * 8;
}

/// Samples in a slab of samples: all of it.
pub const SAMPLES_PER_SLAB: usize = SLAB_BYTES / sample::BYTES;

/// A live sample.
pub mod sample {
    /// Size.
    pub const BYTES: usize = 32;
    /// Address of the block, or one of the below.
    pub const KEY: usize = 0;
    /// Usable bytes.
    pub const USABLE: usize = 8;
    /// Bytes asked for, which decided whether it was sampled.
    pub const ASKED: usize = 16;
    /// Offset of its stack in the region; [`FLAG_MAPPING`] and [`FLAG_INHERITED`].
    pub const STACK: usize = 24;

    /// Key of an entry that is free.
    pub const EMPTY: u64 = 0;
    /// Key of an entry that is being written.
    pub const BUSY: u64 = 1;
    /// In [`STACK`]: a mapping, not a block.
    pub const FLAG_MAPPING: u64 = 1 << 62;
    /// In [`STACK`]: there before the fork.
    pub const FLAG_INHERITED: u64 = 1 << 63;
}

/// A stack.
pub mod stack {
    /// Hash of its frames.
    pub const HASH: usize = 0;
    /// Offset of the next with the same place in the index, or 0.
    pub const NEXT: usize = 8;
    /// Number of words of its frames | [`FLAG_CUT`].
    pub const LENGTH: usize = 16;
    /// Estimated bytes allocated with it, ever.
    pub const ALLOC_BYTES: usize = 24;
    /// Estimated blocks, in units of 1/1024.
    pub const ALLOC_OBJECTS: usize = 32;
    /// Samples.
    pub const ALLOC_SAMPLES: usize = 40;
    /// Variance of the estimate of bytes, in KiB squared.
    pub const ALLOC_VARIANCE: usize = 48;
    /// Variance of the estimate of blocks.
    pub const ALLOC_OBJECTS_VARIANCE: usize = 56;
    /// The words of its frames, innermost first ([`crate::frames`]).
    pub const FRAMES: usize = 64;

    /// In [`LENGTH`]: it does not reach the thread's start.
    pub const FLAG_CUT: u64 = 1 << 32;
}

const _: () = assert!(home::STACKS + 16 * 1024 <= SLAB_BYTES);
const _: () = assert!(home::MORE_SAMPLES + MAX_MORE * 8 <= home::HEADER_BYTES);
const _: () = assert!(region::OWNERS + MAX_SLABS * 8 <= SLAB_BYTES);
