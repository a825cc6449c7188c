//! longjmp(3) out of a signal handler that interrupted one of our hooks: the hook
//! never returns, and what it had set in the thread must be put back.

use crate::tls::local;
use crate::{real, unwind};
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
    if target > hook && target - hook <= FARTHEST {
        local.busy.set(0);
        unwind::give_up(local.scratch.replace(0));
    }
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
