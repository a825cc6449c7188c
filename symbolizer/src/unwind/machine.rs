//! framehop's unwinders of both machines behind one door.

use super::Registers;
use crate::image::SectionBytes;
use framehop::aarch64::{CacheAarch64, PtrAuthMask, UnwindRegsAarch64, UnwinderAarch64};
use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{Error, FrameAddress, Module, MustNotAllocateDuringUnwind, Unwinder as _};

/// Whose code is unwound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// x86-64.
    X86_64,
    /// 64-bit ARM.
    Aarch64,
}

impl Machine {
    /// This one.
    pub const NATIVE: Machine = if cfg!(target_arch = "aarch64") { Machine::Aarch64 } else { Machine::X86_64 };

    /// A return address without its signature.
    pub(super) fn strip(self, address: u64) -> u64 {
        match self {
            Machine::X86_64 => address,
            Machine::Aarch64 => CODE_BITS.strip_ptr_auth(address),
        }
    }
}

/// Addresses of user space have 48 bits (Linux, Documentation/arch/arm64/memory.rst); above
/// them a return address may have its signature (pointer authentication).
const CODE_BITS: PtrAuthMask = PtrAuthMask((1 << 48) - 1);

/// framehop for one process.
pub(super) enum Engine {
    X86_64(UnwinderX86_64<SectionBytes, MustNotAllocateDuringUnwind>, CacheX86_64<MustNotAllocateDuringUnwind>),
    Aarch64(UnwinderAarch64<SectionBytes, MustNotAllocateDuringUnwind>, CacheAarch64<MustNotAllocateDuringUnwind>),
}

impl Engine {
    pub(super) fn of(machine: Machine) -> Self {
        match machine {
            Machine::X86_64 => Engine::X86_64(UnwinderX86_64::new(), CacheX86_64::new_in()),
            Machine::Aarch64 => Engine::Aarch64(UnwinderAarch64::new(), CacheAarch64::new_in()),
        }
    }

    pub(super) fn machine(&self) -> Machine {
        match self {
            Engine::X86_64(..) => Machine::X86_64,
            Engine::Aarch64(..) => Machine::Aarch64,
        }
    }

    pub(super) fn add_module(&mut self, module: Module<SectionBytes>) {
        match self {
            Engine::X86_64(unwinder, _) => unwinder.add_module(module),
            Engine::Aarch64(unwinder, _) => unwinder.add_module(module),
        }
    }

    /// Leaves a frame; the return address, and `registers` as the caller has them.
    /// `Ok(None)` where there is no caller.
    pub(super) fn leave(
        &mut self,
        address: FrameAddress,
        registers: &mut Registers,
        read: &mut dyn FnMut(u64) -> Result<u64, ()>,
    ) -> Result<Option<u64>, Error> {
        let mut read = |address| read(address);
        match self {
            Engine::X86_64(unwinder, cache) => {
                let mut regs = UnwindRegsX86_64::new(registers.ip, registers.sp, registers.fp);
                let caller = unwinder.unwind_frame(address, &mut regs, cache, &mut read)?;
                registers.sp = regs.sp();
                registers.fp = regs.bp();
                Ok(caller.inspect(|ip| registers.ip = *ip))
            }
            Engine::Aarch64(unwinder, cache) => {
                let (lr, sp, fp) = (registers.lr, registers.sp, registers.fp);
                let mut regs = UnwindRegsAarch64::new_with_ptr_auth_mask(CODE_BITS, lr, sp, fp);
                let caller = unwinder.unwind_frame(address, &mut regs, cache, &mut read)?;
                registers.sp = regs.sp();
                registers.fp = regs.fp();
                registers.lr = CODE_BITS.strip_ptr_auth(regs.lr());
                // What expressions say is not stripped.
                Ok(caller.map(|ip| CODE_BITS.strip_ptr_auth(ip)).inspect(|ip| registers.ip = *ip))
            }
        }
    }
}
