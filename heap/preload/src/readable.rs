//! Whether there is memory at an address of ours, without a fault.

use crate::errno::Errno;
use core::sync::atomic::{AtomicU8, Ordering};

/// Below this nothing is mapped (vm.mmap_min_addr).
const FIRST_ADDRESS: u64 = 0x1000;

/// Whether the kernel can read at an address. rt_sigprocmask copies the set before
/// it refuses an unknown `how` (kernel/signal.c, rt_sigprocmask and sigprocmask).
pub fn is_readable(at: u64) -> bool {
    if at < FIRST_ADDRESS {
        return false;
    }
    let errno = |at: u64| {
        let _errno = Errno::keep();
        // SAFETY: changes nothing, for there is no such `how`.
        let result = unsafe { libc::syscall(libc::SYS_rt_sigprocmask, -1, at, 0usize, 8usize) };
        if result == 0 { 0 } else { Errno::now() }
    };
    // Whoever stands in for the kernel (an emulator) may look at `how` first: then
    // nothing is known of any address.
    static ASKS: AtomicU8 = AtomicU8::new(0);
    if ASKS.load(Ordering::Relaxed) == 0 {
        let well = errno(0x10) == libc::EFAULT;
        ASKS.store(if well { 1 } else { 2 }, Ordering::Relaxed);
    }
    ASKS.load(Ordering::Relaxed) == 1 && errno(at) == libc::EINVAL
}
