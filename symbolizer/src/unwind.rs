//! Unwinding a stopped thread.

use crate::go::{GoFrame, GoImage};
use crate::image::{Image, SectionBytes};
use crate::{Avma, Svma};
use framehop::{ExplicitModuleSectionInfo, FrameAddress, Module, MustNotAllocateDuringUnwind, Unwinder as _};
use gimli::{BaseAddresses, EhFrame, EhFrameHdr, NativeEndian, UnwindSection};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

#[cfg(target_arch = "aarch64")]
use framehop::aarch64 as arch;
#[cfg(target_arch = "x86_64")]
use framehop::x86_64 as arch;

#[cfg(target_arch = "aarch64")]
type NativeUnwinder = arch::UnwinderAarch64<SectionBytes, MustNotAllocateDuringUnwind>;
#[cfg(target_arch = "aarch64")]
type NativeCache = arch::CacheAarch64<MustNotAllocateDuringUnwind>;
#[cfg(target_arch = "x86_64")]
type NativeUnwinder = arch::UnwinderX86_64<SectionBytes, MustNotAllocateDuringUnwind>;
#[cfg(target_arch = "x86_64")]
type NativeCache = arch::CacheX86_64<MustNotAllocateDuringUnwind>;

/// The registers that unwinding starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registers {
    /// Instruction pointer.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer: rbp or x29; 0 when unknown.
    pub fp: u64,
    /// Link register (aarch64 only).
    pub lr: u64,
}

/// How a frame was found, which says how far to trust it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FoundBy {
    /// The instruction pointer itself.
    Register,
    /// The frame below had call frame information, or Go's, which says the same.
    Cfi,
    /// The frame below had none: a frame pointer was assumed, so this is a guess.
    FramePointer,
}

/// One frame, unsymbolized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawFrame {
    /// Instruction pointer (innermost) or return address.
    pub address: Avma,
    /// How it was found.
    pub found: FoundBy,
    /// Stack pointer in it: the frame reaches from here to that of its caller. It is
    /// not recorded.
    #[serde(skip)]
    pub stack_pointer: u64,
}

impl RawFrame {
    /// Address to look up: a return address may be the first byte of the next
    /// function when the call does not return, so one byte less is meant.
    #[must_use]
    pub fn lookup_address(&self) -> Avma {
        match self.found {
            FoundBy::Register => self.address,
            FoundBy::Cfi | FoundBy::FramePointer => Avma(self.address.0.wrapping_sub(1)),
        }
    }
}

/// Why a stack ends where it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum StackEnd {
    /// The outermost frame was reached.
    Complete,
    /// A page of the stack was not in memory.
    MissingMemory {
        /// The address that could not be read.
        address: Avma,
    },
    /// No rule leads further up.
    NoUnwindInfo {
        /// Where it was missing.
        address: Avma,
    },
    /// More frames than were asked for.
    TooDeep,
    /// The stack pointer did not move towards the caller.
    Loop,
    /// The thread's registers could not be had.
    NoRegisters,
}

impl fmt::Display for StackEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StackEnd::Complete => f.write_str("complete"),
            StackEnd::MissingMemory { address } => write!(f, "stack page at {:#x} was not in memory", address.0),
            StackEnd::NoUnwindInfo { address } => write!(f, "no way to unwind from {:#x}", address.0),
            StackEnd::TooDeep => f.write_str("deeper than is recorded"),
            StackEnd::Loop => f.write_str("stack pointer does not move on"),
            StackEnd::NoRegisters => f.write_str("registers could not be read"),
        }
    }
}

/// A stack, innermost frame first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawStack {
    /// Frames, innermost first.
    pub frames: Vec<RawFrame>,
    /// Why it ends.
    pub end: StackEnd,
}

impl RawStack {
    /// The stack of a thread whose registers could not be had.
    #[must_use]
    pub fn without_registers() -> Self {
        RawStack { frames: Vec::new(), end: StackEnd::NoRegisters }
    }
}

/// Where call frame information lies, to tell CFI from guesses.
struct Coverage {
    range: Range<u64>,
    bias: u64,
    image: Image,
    /// Go has no call frame information but compressed, or none.
    go: Option<GoImage>,
}

/// Unwinds the threads of one process.
pub struct Unwinder {
    inner: NativeUnwinder,
    cache: NativeCache,
    coverage: Vec<Coverage>,
}

impl fmt::Debug for Unwinder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unwinder").field("modules", &self.coverage.len()).finish_non_exhaustive()
    }
}

impl Default for Unwinder {
    fn default() -> Self {
        Self::new()
    }
}

impl Unwinder {
    /// An unwinder without modules.
    #[must_use]
    pub fn new() -> Self {
        Unwinder { inner: NativeUnwinder::new(), cache: NativeCache::new_in(), coverage: Vec::new() }
    }

    /// Adds an image mapped at `range` (AVMA) with `bias`.
    pub fn add_module(&mut self, range: Range<u64>, bias: u64, image: &Image, name: &str) {
        let svma = |section: &str| image.section(section).map(|s| s.svma.clone());
        let info = ExplicitModuleSectionInfo {
            base_svma: image.base(),
            text_svma: svma(".text"),
            text: image.section_bytes(".text"),
            stubs_svma: None,
            stub_helper_svma: None,
            got_svma: svma(".got"),
            unwind_info: None,
            eh_frame_svma: svma(".eh_frame"),
            eh_frame: image.section_bytes(".eh_frame"),
            eh_frame_hdr_svma: svma(".eh_frame_hdr"),
            eh_frame_hdr: image.section_bytes(".eh_frame_hdr"),
            debug_frame: image.section_bytes(".debug_frame"),
            text_segment_svma: None,
            text_segment: None,
        };
        let base_avma = image.base().wrapping_add(bias);
        self.inner.add_module(Module::new(name.to_owned(), range.clone(), base_avma, info));
        // On aarch64 a return address may be in a register.
        let go = if cfg!(target_arch = "x86_64") { GoImage::find(image) } else { None };
        self.coverage.push(Coverage { range, bias, image: image.clone(), go });
    }

    /// Unwinds from `registers`. `read_u64` reads the target's stack and says
    /// `None` where that would fault a page in.
    pub fn unwind(
        &mut self,
        registers: &Registers,
        read_u64: &mut dyn FnMut(u64) -> Option<u64>,
        max_frames: usize,
    ) -> RawStack {
        #[cfg(target_arch = "x86_64")]
        let mut regs = arch::UnwindRegsX86_64::new(registers.ip, registers.sp, registers.fp);
        #[cfg(target_arch = "aarch64")]
        let mut regs = arch::UnwindRegsAarch64::new(registers.lr, registers.sp, registers.fp);
        let mut stack = RawStack {
            frames: vec![RawFrame {
                address: Avma(registers.ip),
                found: FoundBy::Register,
                stack_pointer: registers.sp,
            }],
            end: StackEnd::Complete,
        };
        let mut missing = None;
        let mut read = |address: u64| {
            read_u64(address).ok_or_else(|| {
                missing = Some(Avma(address));
            })
        };
        let mut address = FrameAddress::from_instruction_pointer(registers.ip);
        #[cfg(target_arch = "x86_64")]
        let mut has_changed = false;
        loop {
            if stack.frames.len() >= max_frames {
                stack.end = StackEnd::TooDeep;
                return stack;
            }
            let lookup = stack.frames.last().map_or(Avma(0), RawFrame::lookup_address);
            let sp_before = regs.sp();
            #[cfg(target_arch = "x86_64")]
            match self.go_frame(lookup) {
                Some(GoFrame::Outermost) => return stack,
                // The frame pointer is still the goroutine's. There is one change
                // of stacks at most.
                Some(GoFrame::OtherStack) if !has_changed => {
                    has_changed = true;
                    if let Some(caller) = leave_by_frame_pointer(&mut regs, &mut read)
                        && self.go_frame(Avma(caller.wrapping_sub(1))).is_some()
                        && let Some(next) = FrameAddress::from_return_address(caller)
                    {
                        stack.frames.push(RawFrame {
                            address: Avma(caller),
                            found: FoundBy::FramePointer,
                            stack_pointer: regs.sp(),
                        });
                        address = next;
                        continue;
                    }
                    stack.end = StackEnd::NoUnwindInfo { address: lookup };
                    return stack;
                }
                Some(GoFrame::OtherStack) => {
                    stack.end = StackEnd::Loop;
                    return stack;
                }
                Some(GoFrame::Size(size)) => {
                    let Some(caller) = leave_go_frame(&mut regs, size, &mut read) else {
                        stack.end = match missing {
                            Some(address) => StackEnd::MissingMemory { address },
                            None => StackEnd::NoUnwindInfo { address: lookup },
                        };
                        return stack;
                    };
                    let Some(next) = FrameAddress::from_return_address(caller) else {
                        return stack;
                    };
                    stack.frames.push(RawFrame {
                        address: Avma(caller),
                        found: FoundBy::Cfi,
                        stack_pointer: regs.sp(),
                    });
                    address = next;
                    continue;
                }
                None => {}
            }
            let step = || self.inner.unwind_frame(address, &mut regs, &mut self.cache, &mut read);
            match guarded(step).unwrap_or(Err(framehop::Error::IntegerOverflow)) {
                Ok(Some(caller)) => {
                    let Some(next) = FrameAddress::from_return_address(caller) else {
                        return stack;
                    };
                    // Only the innermost frame may be a leaf that pushed nothing.
                    if regs.sp() <= sp_before && stack.frames.len() > 1 {
                        stack.end = StackEnd::Loop;
                        return stack;
                    }
                    let found = if self.has_cfi(lookup) { FoundBy::Cfi } else { FoundBy::FramePointer };
                    stack.frames.push(RawFrame { address: Avma(caller), found, stack_pointer: regs.sp() });
                    address = next;
                }
                Ok(None) => return stack,
                Err(_) => {
                    stack.end = match missing {
                        Some(address) => StackEnd::MissingMemory { address },
                        None => StackEnd::NoUnwindInfo { address: lookup },
                    };
                    return stack;
                }
            }
        }
    }

    /// What Go's tables say of a frame.
    #[cfg(target_arch = "x86_64")]
    fn go_frame(&self, address: Avma) -> Option<GoFrame> {
        let module = self.coverage.iter().find(|c| c.range.contains(&address.0))?;
        module.go.as_ref()?.frame(Svma(address.0.wrapping_sub(module.bias)))
    }

    /// Whether call frame information covers the address.
    fn has_cfi(&self, address: Avma) -> bool {
        self.coverage.iter().find(|c| c.range.contains(&address.0)).is_some_and(|c| {
            guarded(|| image_has_cfi(&c.image, Svma(address.0.wrapping_sub(c.bias)))) == Some(Some(true))
        })
    }
}

/// `None` where `work` panics, which shall cost no more than one stack.
///
/// On damaged tables gimli overflows in a sum (an entry that lies before `.eh_frame`:
/// `EhHdrTable::pointer_to_offset`, 0.33 and 0.34). What comes out is beyond the end of
/// every section, and so is no entry; but where it is built to look for overflows it panics.
fn guarded<T>(work: impl FnOnce() -> T) -> Option<T> {
    // Registers are not used any more then, and the cache has rules, each of them whole.
    catch_unwind(AssertUnwindSafe(work)).ok()
}

/// Leaves a frame of which the return address is `size` bytes above the stack
/// pointer; returns that address.
#[cfg(target_arch = "x86_64")]
fn leave_go_frame(
    regs: &mut arch::UnwindRegsX86_64,
    size: u64,
    read: &mut dyn FnMut(u64) -> Result<u64, ()>,
) -> Option<u64> {
    let at = regs.sp().checked_add(size)?;
    let above = at.checked_add(8)?;
    let caller = read(at).ok()?;
    // A frame pointer below is this function's own, and points to the caller's:
    // the frames above may not be Go's.
    if (regs.sp()..above).contains(&regs.bp())
        && let Ok(bp) = read(regs.bp())
    {
        regs.set_bp(bp);
    }
    regs.set_sp(above);
    regs.set_ip(caller);
    Some(caller)
}

/// Leaves a frame by the frame pointer, wherever that leads.
#[cfg(target_arch = "x86_64")]
fn leave_by_frame_pointer(
    regs: &mut arch::UnwindRegsX86_64,
    read: &mut dyn FnMut(u64) -> Result<u64, ()>,
) -> Option<u64> {
    let frame = regs.bp();
    let caller = read(frame.checked_add(8)?).ok()?;
    let bp = read(frame).ok()?;
    regs.set_sp(frame.checked_add(16)?);
    regs.set_bp(bp);
    regs.set_ip(caller);
    Some(caller)
}

/// Looks an address up in `.eh_frame_hdr`'s table, or assumes that a file
/// without it but with `.debug_frame` or `.eh_frame` is covered.
fn image_has_cfi(image: &Image, address: Svma) -> Option<bool> {
    let Some(header) = image.section(".eh_frame_hdr") else {
        return Some(image.section(".eh_frame").or(image.section(".debug_frame")).is_some());
    };
    let eh_frame_svma = image.section(".eh_frame")?.svma.start;
    let bases = BaseAddresses::default().set_eh_frame_hdr(header.svma.start).set_eh_frame(eh_frame_svma);
    let parsed = EhFrameHdr::new(&image.bytes()[header.file.clone()], NativeEndian).parse(&bases, 8).ok()?;
    let table = parsed.table()?;
    let frames = EhFrame::new(&image.bytes()[image.section(".eh_frame")?.file.clone()], NativeEndian);
    let fde = table.fde_for_address(&frames, &bases, address.0, EhFrame::cie_from_offset).ok();
    Some(fde.is_some_and(|f| f.contains(address.0)))
}
