//! Unwinding a stopped thread.

mod go;
mod machine;
mod modules;
mod row;
mod signal;
mod stack;

pub use machine::Machine;
pub use stack::{FoundBy, RawFrame, RawStack, Registers, StackEnd};

use crate::image::Image;
use crate::{Avma, go::GoFrame};
use framehop::{FrameAddress, Module};
use machine::Engine;
use modules::{Modules, Way};
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Unwinds the threads of one process.
pub struct Unwinder {
    engine: Engine,
    modules: Modules,
}

impl fmt::Debug for Unwinder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unwinder").field("modules", &self.modules.len()).finish_non_exhaustive()
    }
}

impl Default for Unwinder {
    fn default() -> Self {
        Self::new()
    }
}

/// What became of leaving a frame.
enum Left {
    /// To its caller.
    Caller(FoundBy, Registers),
    /// There is none, or it is not known.
    End(StackEnd),
}

impl Unwinder {
    /// An unwinder without modules, for this machine.
    #[must_use]
    pub fn new() -> Self {
        Self::of(Machine::NATIVE)
    }

    /// The same for code of another machine.
    #[must_use]
    pub fn of(machine: Machine) -> Self {
        Unwinder { engine: Engine::of(machine), modules: Modules::of(machine) }
    }

    /// Adds an image mapped at `range` (AVMA) with `bias`.
    pub fn add_module(&mut self, range: Range<u64>, bias: u64, image: &Image, name: &str) {
        let base_avma = image.base().wrapping_add(bias);
        self.engine.add_module(Module::new(name.to_owned(), range.clone(), base_avma, modules::sections(image)));
        self.modules.add(range, bias, image);
    }

    /// Unwinds from `registers`. `read_u64` reads the target's memory, mostly its stack, and
    /// says `None` where that would fault a page in.
    pub fn unwind(
        &mut self,
        registers: &Registers,
        read_u64: &mut dyn FnMut(u64) -> Option<u64>,
        max_frames: usize,
    ) -> RawStack {
        let mut walk = Walk { registers: *registers, has_changed: false, has_frame_pointer: registers.fp != 0 };
        let mut frames = Vec::new();
        let mut found = FoundBy::Register;
        let end = loop {
            let frame = RawFrame { address: Avma(walk.registers.ip), found, stack_pointer: walk.registers.sp };
            frames.push(frame);
            match self.leave(&frame, &mut walk, read_u64) {
                Left::End(end) => break end,
                Left::Caller(..) if frames.len() >= max_frames => break StackEnd::TooDeep,
                Left::Caller(by, caller) => {
                    walk.registers = caller;
                    found = by;
                }
            }
        };
        RawStack { frames, end }
    }

    fn leave(&mut self, frame: &RawFrame, walk: &mut Walk, read_u64: &mut dyn FnMut(u64) -> Option<u64>) -> Left {
        let look_up = frame.lookup_address();
        let way = self.modules.way(frame.address, look_up, read_u64);
        let mut missing = None;
        let mut read = |address: u64| {
            read_u64(address).ok_or_else(|| {
                missing = Some(Avma(address));
            })
        };
        let before = walk.registers;
        let left = match way {
            Way::Outermost => return Left::End(StackEnd::Complete),
            Way::Signal => signal::interrupted(self.engine.machine(), before.sp, &mut read)
                .ok()
                .filter(|interrupted| interrupted.ip != 0)
                .map(|interrupted| (FoundBy::Signal, interrupted)),
            Way::SignalByRow => {
                let interrupted = self.modules.leave_by_row(look_up, &before, &mut read);
                interrupted.map(|interrupted| (FoundBy::Signal, interrupted))
            }
            _ => match self.modules.go_frame(look_up) {
                Some(GoFrame::Outermost) => return Left::End(StackEnd::Complete),
                Some(GoFrame::OtherStack) if walk.has_changed => return Left::End(StackEnd::Loop),
                Some(GoFrame::OtherStack) => {
                    walk.has_changed = true;
                    // The frame pointer is still the goroutine's. There is one change
                    // of stacks at most.
                    let caller = go::by_frame_pointer(&before, &mut read);
                    let caller = caller.filter(|c| self.modules.go_frame(Avma(c.ip.wrapping_sub(1))).is_some());
                    match caller {
                        Some(caller) => return Left::Caller(FoundBy::FramePointer, caller),
                        None => return Left::End(StackEnd::NoUnwindInfo { address: look_up }),
                    }
                }
                Some(GoFrame::Size(size)) => {
                    let caller = go::by_size(&before, size, &mut read);
                    caller.map(|caller| (FoundBy::Cfi, caller))
                }
                None => {
                    return self.leave_native(way, frame, walk, &mut read).unwrap_or_else(|| failed(missing, look_up));
                }
            },
        };
        match left {
            // Nothing calls what is at 0.
            Some((_, caller)) if caller.ip == 0 => Left::End(StackEnd::Complete),
            Some((_, caller)) if caller == before => Left::End(StackEnd::Loop),
            Some((found, caller)) => Left::Caller(found, caller),
            None => failed(missing, look_up),
        }
    }

    /// Leaves a frame of compiled code; `None` where that fails.
    fn leave_native(
        &mut self,
        way: Way,
        frame: &RawFrame,
        walk: &mut Walk,
        read: &mut dyn FnMut(u64) -> Result<u64, ()>,
    ) -> Option<Left> {
        let (before, look_up) = (walk.registers, frame.lookup_address());
        let by_row = (way == Way::Row).then(|| self.modules.leave_by_row(look_up, &before, read)).flatten();
        let found = if way == Way::Cfi || by_row.is_some() { FoundBy::Cfi } else { FoundBy::FramePointer };
        let caller = match by_row {
            Some(caller) => (caller.ip != 0).then_some(caller),
            None => {
                let address = match frame.is_exact() {
                    true => FrameAddress::from_instruction_pointer(before.ip),
                    false => FrameAddress::from_return_address(before.ip)?,
                };
                let mut registers = before;
                let left = guarded(|| self.engine.leave(address, &mut registers, read))?.ok()?;
                left.filter(|&ip| ip != 0).map(|_| registers)
            }
        };
        match caller {
            // Neither a frame pointer nor a link register that was never known says where a
            // stack ends, nor does what lies on top of the stack by chance.
            None if found == FoundBy::FramePointer && (frame.is_exact() || !walk.has_frame_pointer) => None,
            None if self.engine.machine() == Machine::Aarch64 && frame.is_exact() => None,
            // framehop takes an unknown frame pointer that is needed here for the last one.
            None if way == Way::Cfi && !walk.has_frame_pointer && !self.returns_to_zero(look_up, &before, read) => {
                Some(Left::End(StackEnd::NoUnwindInfo { address: look_up }))
            }
            None => Some(Left::End(StackEnd::Complete)),
            // A leaf may have pushed nothing.
            Some(caller) if caller.sp <= before.sp && !frame.is_exact() => Some(Left::End(StackEnd::Loop)),
            Some(caller) => {
                walk.has_frame_pointer |= caller.fp != 0;
                Some(Left::Caller(found, caller))
            }
        }
    }

    /// Whether call frame information has it that the caller is at 0: there is none.
    fn returns_to_zero(
        &mut self,
        look_up: Avma,
        registers: &Registers,
        read: &mut dyn FnMut(u64) -> Result<u64, ()>,
    ) -> bool {
        self.modules.leave_by_row(look_up, registers, read).is_some_and(|caller| caller.ip == 0)
    }
}

/// Where unwinding is.
struct Walk {
    /// Of the frame that is left next.
    registers: Registers,
    /// Whether it changed stacks as Go does.
    has_changed: bool,
    /// Whether there was a frame pointer that was not 0: then a 0 is the end of the chain.
    has_frame_pointer: bool,
}

fn failed(missing: Option<Avma>, look_up: Avma) -> Left {
    Left::End(match missing {
        Some(address) => StackEnd::MissingMemory { address },
        None => StackEnd::NoUnwindInfo { address: look_up },
    })
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
