//! Which allocations are sampled: Poisson by bytes, per thread.

use crate::process::{self, Attached};
use crate::{real, unwind};
use libc::c_void;
use reprieve_heap_table::{Allocation, Entry, probability};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

/// A thread's part. It has no destructor, so that it works to the very end of
/// a thread.
struct Local {
    /// Bytes until the next sample.
    left: Cell<i64>,
    /// State of the random numbers; 0 before the first.
    random: Cell<u64>,
    /// Whether we are in the hooks already: what the unwinder or a signal handler
    /// allocates now is not ours to look at.
    busy: Cell<bool>,
}

thread_local! {
    static LOCAL: Local = const { Local { left: Cell::new(0), random: Cell::new(0), busy: Cell::new(false) } };
}

/// Threads seeded so far, so that each has numbers of its own.
static THREADS: AtomicU64 = AtomicU64::new(0);

/// Counts an allocation and samples it if it is its turn.
#[inline]
pub fn allocated(block: *mut c_void, asked: usize) {
    if block.is_null() {
        return;
    }
    LOCAL.with(|local| {
        // malloc(0) is a block too.
        let left = local.left.get().saturating_sub(asked.max(1) as i64);
        local.left.set(left);
        if left < 0 {
            due(local, block, asked, None);
        }
    });
}

/// Counts a mapping that the program made itself.
pub fn mapped(at: *mut c_void, bytes: usize) {
    LOCAL.with(|local| {
        if local.busy.get() {
            return;
        }
        let left = local.left.get().saturating_sub(bytes as i64);
        local.left.set(left);
        if left < 0 {
            due(local, at, bytes, Some(bytes));
        }
    });
}

/// Runs the real allocator: mappings that it makes for itself are not the
/// program's.
#[inline]
pub fn inside<T>(call: impl FnOnce() -> T) -> T {
    LOCAL.with(|local| {
        let before = local.busy.replace(true);
        let result = call();
        local.busy.set(before);
        result
    })
}

/// A block is about to be freed. Returns what it was recorded as.
#[inline]
pub fn freeing(block: *mut c_void) -> Option<Entry> {
    if process::may_be_sampled(block as u64) { process::attached()?.writer().remove(block as u64) } else { None }
}

/// The block was not freed after all.
pub fn not_freed(entry: Entry) {
    if let Some(attached) = process::attached() {
        attached.writer().put(entry);
    }
}

/// The interval has run out: seeds a new thread, or takes a sample.
#[cold]
fn due(local: &Local, block: *mut c_void, asked: usize, mapping: Option<usize>) {
    let Some(attached) = process::attached() else {
        // Not attached yet, or never: look again later.
        local.left.set(if process::is_off() { i64::MAX } else { 0 });
        return;
    };
    if local.busy.get() {
        local.left.set(draw(local, attached));
        return;
    }
    if local.random.get() == 0 {
        // The first allocation of a thread is sampled like any other.
        local.random.set(seed(attached));
        let left = draw(local, attached).saturating_sub(asked.max(1) as i64);
        local.left.set(left);
        if left >= 0 {
            return;
        }
    }
    local.left.set(draw(local, attached));
    local.busy.set(true);
    let usable = mapping.unwrap_or_else(|| {
        // SAFETY: the block was just allocated by the same allocator.
        real::malloc_usable_size().map_or(asked, |usable| unsafe { usable(block) })
    });
    unwind::with_stack(attached.writer(), |stack| {
        attached.writer().insert(&Allocation {
            key: block as u64,
            usable: usable as u64,
            asked: asked as u64,
            probability: probability(asked as u64, attached.settings().period, f64::exp),
            mapping: mapping.is_some(),
            frames: stack.frames,
            cut: stack.cut,
        });
    });
    local.busy.set(false);
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
    (-uniform.ln() * attached.settings().period as f64) as i64
}

fn seed(attached: &Attached) -> u64 {
    let thread = THREADS.fetch_add(1, Ordering::Relaxed) + 1;
    let mut base = attached.settings().seed;
    if base == 0 {
        // SAFETY: the buffer is a live local of that size. A failure leaves 0,
        // and then the clock and the thread's number must do.
        unsafe { libc::getrandom((&raw mut base).cast(), size_of::<u64>(), libc::GRND_NONBLOCK) };
    }
    (base ^ thread.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1
}
