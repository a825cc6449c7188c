//! An allocator that counts, so that the heap a hold needed can be told.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

static CURRENT: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The system allocator with two counters.
#[derive(Debug)]
pub struct Counting;

/// Starts a measurement; returns the bytes allocated now.
pub fn mark() -> usize {
    let now = CURRENT.load(Relaxed);
    PEAK.store(now, Relaxed);
    now
}

/// Most bytes allocated beyond `start` since [`mark`] returned it.
pub fn peak_since(start: usize) -> usize {
    PEAK.load(Relaxed).saturating_sub(start)
}

fn add(bytes: usize) {
    let now = CURRENT.fetch_add(bytes, Relaxed) + bytes;
    PEAK.fetch_max(now, Relaxed);
}

// SAFETY: every method passes its arguments unchanged to `System`, which
// upholds the contract; the counters never touch the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller's duties are System's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller's duties are System's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        CURRENT.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's duties are System's.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        CURRENT.fetch_sub(layout.size(), Relaxed);
        add(new_size);
        // SAFETY: the caller's duties are System's.
        unsafe { System.realloc(at, layout, new_size) }
    }
}

/// Allocations of one thread, in the tests of threads that must not make any.
#[cfg(test)]
pub mod by_thread {
    use super::{GlobalAlloc, Layout, System};
    use std::cell::Cell;

    thread_local! {
        static MADE: Cell<u64> = const { Cell::new(0) };
    }

    /// How often this thread has asked for memory.
    pub fn made() -> u64 {
        MADE.get()
    }

    struct Counted;

    #[global_allocator]
    static HEAP: Counted = Counted;

    // SAFETY: every method passes its arguments unchanged to `System`, which upholds
    // the contract; `realloc` is made of these.
    unsafe impl GlobalAlloc for Counted {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            MADE.set(MADE.get() + 1);
            // SAFETY: the caller's duties are System's.
            unsafe { System.alloc(layout) }
        }

        unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
            MADE.set(MADE.get() + 1);
            // SAFETY: the caller's duties are System's.
            unsafe { System.alloc_zeroed(layout) }
        }

        unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
            // SAFETY: the caller's duties are System's.
            unsafe { System.dealloc(at, layout) }
        }
    }

    #[test]
    fn an_allocation_is_counted_where_it_is_made() {
        let before = made();
        drop(std::hint::black_box(Box::new(7)));
        assert_eq!(made(), before + 1);
        std::thread::spawn(|| drop(std::hint::black_box(vec![0_u8; 64]))).join().unwrap();
        let after = made();
        assert_eq!(made(), after);
    }
}
