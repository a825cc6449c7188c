//! Frames of signals: where a handler returns to, and what it interrupted.
//!
//! A handler returns to a trampoline of the C library (x86-64) or of the vDSO (aarch64),
//! whose only work is rt_sigreturn(2). The stack pointer is then at what the kernel keeps
//! of the interrupted code, also where the handler had a stack of its own
//! (sigaltstack(2)). Trampolines seldom have call frame information that holds: musl's and
//! Go's have none, and aarch64's says where the interrupted function would return to.

use super::{Machine, Registers};

/// `mov $15, %rax; syscall` as glibc and Go have it, and `mov $15, %eax; syscall`.
const X86_64: [&[u8]; 2] = [&[0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 5], &[0xb8, 15, 0, 0, 0, 0x0f, 5]];
/// `mov x8, #139; svc #0`.
const AARCH64: [&[u8]; 1] = [&[0x68, 0x11, 0x80, 0xd2, 1, 0, 0, 0xd4]];

/// Whether a trampoline begins with this code.
pub(super) fn is_trampoline(machine: Machine, code: &[u8]) -> bool {
    let known: &[&[u8]] = match machine {
        Machine::X86_64 => &X86_64,
        Machine::Aarch64 => &AARCH64,
    };
    known.iter().any(|trampoline| code.starts_with(trampoline))
}

/// Where `struct ucontext` of x86-64 has rbp, rsp and rip
/// (arch/x86/include/uapi/asm/sigcontext.h): `uc_mcontext` is at 40.
const X86_64_REGISTERS: [u64; 3] = [40 + 80, 40 + 120, 40 + 128];
/// Where `struct rt_sigframe` of aarch64 has x29, x30, sp and pc
/// (arch/arm64/kernel/signal.c, uapi/asm/sigcontext.h): 128 bytes of `siginfo`, then
/// `uc_mcontext` at 176 of `struct ucontext`, with the fault's address before x0.
const AARCH64_REGISTERS: [u64; 4] = [304 + 8 + 29 * 8, 304 + 8 + 30 * 8, 304 + 8 + 31 * 8, 304 + 8 + 32 * 8];

/// What was interrupted, with the stack pointer `sp` at the trampoline's first
/// instruction.
pub(super) fn interrupted(
    machine: Machine,
    sp: u64,
    read: &mut dyn FnMut(u64) -> Result<u64, ()>,
) -> Result<Registers, ()> {
    let mut at = |offset: u64| read(sp.checked_add(offset).ok_or(())?);
    match machine {
        Machine::X86_64 => {
            let [fp, sp, ip] = X86_64_REGISTERS;
            Ok(Registers { ip: at(ip)?, sp: at(sp)?, fp: at(fp)?, lr: 0 })
        }
        Machine::Aarch64 => {
            let [fp, lr, sp, ip] = AARCH64_REGISTERS;
            Ok(Registers { ip: at(ip)?, sp: at(sp)?, fp: at(fp)?, lr: at(lr)? })
        }
    }
}
