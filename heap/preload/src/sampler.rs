//! Which allocations are sampled: Poisson by bytes, per thread.

use crate::errno::Errno;
use crate::process::{self, Attached};
use crate::tls::{Local, local};
use crate::{own, real, unwind};
use core::sync::atomic::{AtomicU64, Ordering};
use libc::c_void;
use reprieve_heap_table::{Allocation, Entry, probability};

/// Threads seeded and children forked so far, so that each has numbers of its own.
static SEEDED: AtomicU64 = AtomicU64::new(0);
/// Of the process, so that a child of a fork has other numbers than its parent and
/// its siblings: estimates that err alike do not cancel out.
static SALT: AtomicU64 = AtomicU64::new(0);

/// Bytes between two attempts to get a home.
const WITHOUT_HOME: i64 = 64 << 10;

/// Alignment of sampled blocks.
pub const MARK: usize = 256;

/// Whether a block may be a sampled one, by its address alone: most are not, and
/// their `free` looks at no memory of ours. Sampled blocks are aligned to
/// [`MARK`]; those that the C library maps, which to move would touch all pages,
/// begin 16 bytes behind a page's start (malloc/malloc.c, sysmalloc_mmap).
#[inline]
pub fn is_marked(block: u64) -> bool {
    block & (MARK as u64 - 1) == 0 || block & 0xfff == 0x10
}

/// Counts an allocation; whether it shall be sampled.
#[inline]
pub fn is_due(asked: usize) -> bool {
    let local = local();
    // malloc(0) is a block too.
    let left = local.left.get().saturating_sub(asked.max(1) as i64);
    local.left.set(left);
    left < 0 && is_taken(local, asked)
}

/// Counts a mapping that the program made itself.
pub fn mapped(at: *mut c_void, bytes: usize) {
    let local = local();
    if local.busy.get() == 0 && is_due(bytes) {
        record(at, bytes, Bytes::OfMapping);
    }
}

/// Runs the real allocator: mappings that it makes for itself are not the
/// program's.
#[inline]
pub fn inside<T>(call: impl FnOnce() -> T) -> T {
    let local = local();
    let before = local.enter();
    let result = call();
    local.leave(before);
    result
}

/// A block is about to be freed. Returns what it was recorded as.
#[inline]
pub fn freeing(block: *mut c_void) -> Option<Entry> {
    if is_marked(block as u64) && process::may_be_sampled(block as u64) { taken_away(block) } else { None }
}

#[cold]
fn taken_away(block: *mut c_void) -> Option<Entry> {
    let _errno = Errno::keep();
    let entry = process::attached()?.writer().remove(block as u64)?;
    probe::probe!(otel_memory, free, block);
    Some(entry)
}

/// The first `bytes` of a mapping are gone: the rest is a mapping of its own.
pub fn unmapped(entry: Entry, bytes: usize) {
    let bytes = (bytes as u64).next_multiple_of(4096);
    if entry.is_mapping() && bytes < entry.usable {
        not_freed(Entry { key: entry.key + bytes, usable: entry.usable - bytes, ..entry });
    }
}

/// The block was not freed after all.
pub fn not_freed(entry: Entry) {
    let _errno = Errno::keep();
    if let Some(attached) = process::attached() {
        attached.writer().put(entry);
    }
}

/// The interval has run out, or the thread is new. Draws the next.
#[cold]
fn is_taken(local: &Local, asked: usize) -> bool {
    let _errno = Errno::keep();
    let Some(attached) = process::attached() else {
        // Not attached yet, or never: look again later.
        local.left.set(if process::is_off() { i64::MAX } else { WITHOUT_HOME });
        let before = local.enter();
        process::try_again();
        local.leave(before);
        return false;
    };
    if local.random.get() == 0 {
        // The first allocation of a thread is sampled like any other.
        local.random.set(seed(attached));
        local.find_stack();
        let left = draw(local, attached).saturating_sub(asked.max(1) as i64);
        local.left.set(left);
        if left >= 0 {
            return false;
        }
    }
    local.left.set(draw(local, attached));
    local.busy.get() == 0
}

/// How many bytes a sample is taken to have.
#[derive(Clone, Copy, PartialEq)]
pub enum Bytes {
    /// What the allocator says of the block.
    OfBlock,
    /// These.
    Are(usize),
    /// Those of a mapping, which were asked for.
    OfMapping,
}

/// Records a sampled block or mapping.
#[cold]
pub fn record(block: *mut c_void, asked: usize, bytes: Bytes) {
    let Some(attached) = process::attached() else { return };
    // One whose free would not look for it must not be in the table.
    if block.is_null() || !is_marked(block as u64) {
        return;
    }
    let _errno = Errno::keep();
    let local = local();
    let before = local.enter();
    process::make_room(attached);
    let usable = match bytes {
        Bytes::Are(usable) => usable,
        Bytes::OfMapping => asked,
        // SAFETY: the block was just allocated by the same allocator.
        Bytes::OfBlock => real::malloc_usable_size().map_or(asked, |usable| unsafe { usable(block) }),
    };
    let probability = probability(asked as u64, attached.settings().period, libm::exp);
    // Sampled memory as OpenTelemetry's profiler wants it told: the block, its
    // size, and the bytes it stands for (its design document on memory profiling).
    probe::probe!(otel_memory, alloc, block, usable, (usable as f64 / probability) as u64);
    unwind::with_stack(attached.writer(), local.stack.get(), |stack| {
        attached.writer().insert(&Allocation {
            key: block as u64,
            usable: usable as u64,
            asked: asked as u64,
            probability,
            mapping: bytes == Bytes::OfMapping,
            frames: stack.frames,
            cut: stack.cut,
        });
    });
    local.leave(before);
}

/// Bytes to the next sample: exponentially distributed, so that each byte is as
/// likely to be sampled as any other.
fn draw(local: &Local, attached: &Attached) -> i64 {
    // xorshift64* (Vigna, An experimental exploration of Marsaglia's xorshift
    // generators, scrambled).
    let mut x = local.random.get().max(1);
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    local.random.set(x);
    let bits = x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11;
    // In (0, 1]: the logarithm of 0 is none.
    let uniform = (bits + 1) as f64 / (1u64 << 53) as f64;
    (-libm::log(uniform) * attached.settings().period as f64) as i64
}

fn seed(attached: &Attached) -> u64 {
    let mut base = attached.settings().seed;
    if base == 0 {
        // Not getrandom(3), which is a point at which threads can be cancelled.
        // SAFETY: the buffer is a live local of that size.
        unsafe { libc::syscall(libc::SYS_getrandom, &raw mut base, size_of::<u64>(), libc::GRND_NONBLOCK) };
        // Where there is no randomness yet, the clock must do.
        base ^= own::now() << 24;
    }
    split(base.wrapping_add(SALT.load(Ordering::Relaxed))) | 1
}

/// A salt for the child that is about to be forked.
pub fn salt_for_child() -> u64 {
    split(SALT.load(Ordering::Relaxed))
}

/// In a child: its thread is new to the sampler.
pub fn begin_anew(salt: u64) {
    SALT.store(salt, Ordering::Relaxed);
    let local = local();
    local.random.set(0);
    local.left.set(0);
}

/// The next of the numbers that follow from `base`. Those that differ in a bit or
/// two must not give similar ones: SplitMix64 (Steele, Lea and Flood, Fast
/// splittable pseudorandom number generators).
fn split(base: u64) -> u64 {
    let index = SEEDED.fetch_add(1, Ordering::Relaxed) + 1;
    let mut z = base.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
