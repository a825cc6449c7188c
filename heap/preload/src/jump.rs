//! longjmp(3) out of a signal handler that interrupted one of our hooks: the hook
//! never returns, and what it had set in the thread must be put back.

use crate::tls::local;
use crate::{real, unwind};
use core::mem;
use core::ptr;
use libc::{c_int, c_void};

/// More than this nobody jumps up a stack: then the buffer is not as we think.
const FARTHEST: u64 = 64 << 20;

/// Stack pointer that a jump leads to.
///
/// # Safety
///
/// `environment` must be a jmp_buf that setjmp(3) has filled.
unsafe fn target(environment: *const c_void) -> u64 {
    // glibc, sysdeps/x86_64/jmpbuf-offsets.h: JB_RSP is word 6. It is mangled: the
    // pointer guard at fs:0x30 added, rotated by 17 bits
    // (sysdeps/unix/sysv/linux/x86_64/pointer_guard.h).
    // SAFETY: a jmp_buf has eight words (the caller's promise), and the thread's
    // control block lies at fs.
    unsafe {
        let mangled = environment.cast::<u64>().add(6).read();
        let guard: u64;
        core::arch::asm!("mov {guard}, qword ptr fs:[0x30]", guard = out(reg) guard, options(nostack, pure, readonly));
        mangled.rotate_right(17) ^ guard
    }
}

/// Forgets the hook that the jump leaves, if it leaves one: a handler may as well
/// jump within itself and return.
unsafe fn leave(environment: *const c_void) {
    let local = local();
    let hook = local.busy.get();
    if hook == 0 {
        return;
    }
    // SAFETY: as the caller promised.
    let target = unsafe { target(environment) };
    if target > hook && target - hook <= FARTHEST && !is_within_other_stack(hook, target) {
        local.busy.set(0);
        unwind::give_up();
    }
}

/// Whether the handler has a stack of its own (sigaltstack(2)) and jumps within it:
/// where that stack lies does not tell who called whom.
fn is_within_other_stack(hook: u64, target: u64) -> bool {
    let here = ptr::from_ref(&target).addr() as u64;
    // Called by the hook on its own stack, or on one below, where it cannot stay by
    // jumping above the hook.
    if here < hook {
        return false;
    }
    // SAFETY: all-zero is a valid stack_t, which sigaltstack fills.
    let stack = unsafe {
        let mut stack: libc::stack_t = mem::zeroed();
        libc::sigaltstack(ptr::null(), &raw mut stack);
        stack
    };
    let start = stack.ss_sp.addr() as u64;
    let other = start..start.saturating_add(stack.ss_size as u64);
    other.contains(&here) && other.contains(&target) && !other.contains(&hook)
}

macro_rules! jumps {
    ($($name:ident => $real:ident;)*) => { $(
        /// One of the longjmp(3) family.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(environment: *mut c_void, value: c_int) -> ! {
            // SAFETY: the caller's arguments, looked at and passed on.
            unsafe {
                leave(environment);
                if let Some(real) = real::$real() {
                    real(environment, value);
                }
                // It does not return.
                libc::abort()
            }
        }
    )* };
}

jumps! {
    longjmp => longjmp;
    _longjmp => underscore_longjmp;
    siglongjmp => siglongjmp;
    __longjmp_chk => longjmp_chk;
}
