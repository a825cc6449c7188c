//! A thread's variables.
//!
//! In the static TLS block, which every thread has from its start (initial-exec
//! model, ELF Handling For Thread-Local Storage, 4.3.6): no call, and nothing to
//! allocate, which std's thread-locals in a shared library may need.

use core::cell::Cell;
use reprieve_heap_table::Writer;

/// What each thread has. All zero at first.
#[repr(C)]
pub struct Local {
    /// Bytes until the next sample.
    pub left: Cell<i64>,
    /// State of the random numbers; 0 before the first.
    pub random: Cell<u64>,
    /// Where the stack was when the outermost hook was entered, 0 outside: what the
    /// real allocator, the unwinder or a signal handler allocates now is not ours to
    /// look at.
    pub busy: Cell<u64>,
    /// Its stack, from the lowest address to the end; 0 where that is not known.
    pub stack: Cell<(u64, u64)>,
    /// Salt of the numbers that the child draws.
    pub child_salt: Cell<u64>,
    /// Whether `for_child` is set.
    has_child: Cell<bool>,
    /// Home that the fork in progress made for the child.
    for_child: Cell<core::mem::MaybeUninit<Writer<'static>>>,
}

const ROOM: usize = 128;
const _: () = assert!(size_of::<Local>() <= ROOM && align_of::<Local>() <= 16);

#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    ".pushsection .tbss.reprieve_local,\"awT\",@nobits",
    ".p2align 4",
    ".type reprieve_local, @object",
    ".size reprieve_local, {room}",
    "reprieve_local:",
    ".zero {room}",
    ".popsection",
    room = const ROOM,
);

/// This thread's.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn local() -> &'static Local {
    let at: *const Local;
    // SAFETY: reads the thread pointer, which the C library keeps at fs:0, and the
    // offset of our block from it, which the dynamic linker put into the GOT. The
    // block is zeroed, has room for a `Local`, for which zero is a value, and lives
    // as long as its thread; nobody else looks at it.
    unsafe {
        core::arch::asm!(
            "mov {at}, qword ptr fs:[0]",
            "add {at}, qword ptr [rip + reprieve_local@GOTTPOFF]",
            at = out(reg) at,
            options(nostack, pure, readonly),
        );
        &*at
    }
}

// SAFETY: the dynamic linker exports it under that name and type since glibc 2.1
// (elf/dl-support.c, sysdeps/generic/ldsodefs.h).
unsafe extern "C" {
    /// The end of the first thread's stack, from the dynamic linker.
    static __libc_stack_end: *const core::ffi::c_void;
}

/// More than this the first thread's stack is not taken to have; the kernel keeps
/// that much room below it free of mappings (mmap_base, arch/x86/mm/mmap.c).
const FIRST_STACK_BYTES: u64 = 8 << 20;

impl Local {
    /// Finds out where the stack of the first thread is. That of others only
    /// pthread_getattr_np(3) knows, which takes a lock that whoever allocates now
    /// may hold (std's handler of stack overflows does). Whose stack pointer is not
    /// in there is on another stack.
    pub fn find_stack(&self) {
        // SAFETY: the variable is set before any constructor runs.
        let end = unsafe { __libc_stack_end } as u64;
        self.stack.set((end.saturating_sub(FIRST_STACK_BYTES), end));
    }

    /// Enters a hook; returns what [`Local::leave`] needs.
    #[inline(always)]
    pub fn enter(&self) -> u64 {
        let before = self.busy.get();
        if before == 0 {
            let at: u64;
            // SAFETY: reads a register.
            unsafe { core::arch::asm!("mov {at}, rsp", at = out(reg) at, options(nomem, nostack, preserves_flags)) };
            self.busy.set(at);
        }
        before
    }

    /// Leaves it.
    #[inline(always)]
    pub fn leave(&self, before: u64) {
        self.busy.set(before);
    }

    /// Keeps the child's home over a fork.
    pub fn set_child(&self, child: Option<Writer<'static>>) {
        if let Some(child) = child {
            self.for_child.set(core::mem::MaybeUninit::new(child));
        }
        self.has_child.set(child.is_some());
    }

    /// Takes the child's home.
    pub fn take_child(&self) -> Option<Writer<'static>> {
        if !self.has_child.replace(false) {
            return None;
        }
        // SAFETY: `set_child` wrote it before it said that there is one.
        Some(unsafe { self.for_child.get().assume_init() })
    }
}
