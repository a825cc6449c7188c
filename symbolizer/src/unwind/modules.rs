//! What the files of a process say of its code: how a frame can be left.

use super::row::{Entry, Index};
use super::{Machine, Registers, guarded, signal};
use crate::go::{GoFrame, GoImage};
use crate::image::{Image, SectionBytes};
use crate::{Avma, Svma};
use gimli::{AArch64, CfaRule, Operation, RegisterRule, UnwindContext, UnwindTableRow, X86_64};
use std::ops::Range;

/// Addresses of which the way is remembered: four threads of 128 frames that have
/// none in common.
const REMEMBERED: usize = 512;

/// How a frame at an address is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Not at all: call frame information says that nobody called it.
    Outermost,
    /// By call frame information, which framehop follows.
    Cfi,
    /// By call frame information that it does not follow.
    Row,
    /// The same, and the caller is what a signal interrupted.
    SignalByRow,
    /// It is a trampoline to the kernel, which kept all registers.
    Signal,
    /// By the frame pointer, if that is one.
    Guess,
}

struct Module {
    range: Range<u64>,
    bias: u64,
    image: Image,
    /// Go has no call frame information but compressed, or none.
    go: Option<GoImage>,
    index: Index,
}

/// The modules of a process.
pub(super) struct Modules {
    machine: Machine,
    /// By where they begin, as framehop has them.
    sorted: Vec<Module>,
    context: Box<UnwindContext<usize>>,
    remembered: Box<[Option<(u64, Way)>]>,
}

impl Modules {
    pub(super) fn of(machine: Machine) -> Self {
        let remembered = vec![None; REMEMBERED].into_boxed_slice();
        Modules { machine, sorted: Vec::new(), context: Box::new(UnwindContext::new()), remembered }
    }

    pub(super) fn len(&self) -> usize {
        self.sorted.len()
    }

    pub(super) fn add(&mut self, range: Range<u64>, bias: u64, image: &Image) {
        // On aarch64 a return address may be in a register.
        let go = if self.machine == Machine::X86_64 { GoImage::find(image) } else { None };
        let index = guarded(|| Index::of(image)).unwrap_or_default();
        let at = self.sorted.partition_point(|module| module.range.start < range.start);
        self.sorted.insert(at, Module { range, bias, image: image.clone(), go, index });
        self.remembered.fill(None);
    }

    fn at(&self, address: u64) -> Option<&Module> {
        let after = self.sorted.partition_point(|module| module.range.start <= address);
        self.sorted[..after].last().filter(|module| module.range.contains(&address))
    }

    /// What Go's tables say of a frame.
    pub(super) fn go_frame(&self, address: Avma) -> Option<GoFrame> {
        let module = self.at(address.0)?;
        module.go.as_ref()?.frame(Svma(address.0.wrapping_sub(module.bias)))
    }

    /// How the frame is left of which the next instruction is at `next` and which is
    /// looked up at `look_up`. `read` reads code that no file has.
    pub(super) fn way(&mut self, next: Avma, look_up: Avma, read: &mut dyn FnMut(u64) -> Option<u64>) -> Way {
        // Both in one key: of one and the same address a frame may be asked for in both manners.
        let key = next.0.wrapping_mul(2).wrapping_add(u64::from(next == look_up));
        let slot = (key % self.remembered.len() as u64) as usize;
        if let Some((known, way)) = self.remembered[slot]
            && known == key
        {
            return way;
        }
        let way = self.find_way(next, look_up, read);
        self.remembered[slot] = Some((key, way));
        way
    }

    fn find_way(&mut self, next: Avma, look_up: Avma, read: &mut dyn FnMut(u64) -> Option<u64>) -> Way {
        let machine = self.machine;
        let is_trampoline = match self.at(next.0) {
            Some(module) => {
                let code = module.image.at(Svma(next.0.wrapping_sub(module.bias))).unwrap_or_default();
                signal::is_trampoline(machine, code)
            }
            // Where a machine is emulated the trampoline is in no file.
            None => {
                let mut word = |at: u64| read(at).unwrap_or(0).to_le_bytes();
                signal::is_trampoline(machine, [word(next.0), word(next.0.wrapping_add(8))].as_flattened())
            }
        };
        if is_trampoline {
            return Way::Signal;
        }
        self.with_cfi(look_up, |module, context, svma| by_cfi(module, machine, context, svma)).unwrap_or(Way::Guess)
    }

    /// Leaves a frame by what its row says.
    pub(super) fn leave_by_row(
        &mut self,
        look_up: Avma,
        registers: &Registers,
        read: &mut dyn FnMut(u64) -> Result<u64, ()>,
    ) -> Option<Registers> {
        let machine = self.machine;
        self.with_cfi(look_up, |module, context, svma| {
            Entry::find(&module.image, &module.index, machine, svma)?.leave(machine, context, registers, read)
        })
    }

    fn with_cfi<T>(
        &mut self,
        address: Avma,
        work: impl FnOnce(&Module, &mut UnwindContext<usize>, Svma) -> Option<T>,
    ) -> Option<T> {
        let after = self.sorted.partition_point(|module| module.range.start <= address.0);
        let module = self.sorted[..after].last().filter(|module| module.range.contains(&address.0))?;
        guarded(|| work(module, &mut self.context, Svma(address.0.wrapping_sub(module.bias)))).flatten()
    }
}

/// What `.eh_frame` says of an address; `None` where a frame pointer is all there is to go
/// by. A file with `.debug_frame` only is taken to be covered by that.
fn by_cfi(module: &Module, machine: Machine, context: &mut UnwindContext<usize>, address: Svma) -> Option<Way> {
    if module.image.section(".eh_frame").is_none() {
        return module.image.section(".debug_frame").map(|_| Way::Cfi);
    }
    let entry = Entry::find(&module.image, &module.index, machine, address)?;
    let row = entry.row(context)?;
    if matches!(row.register(machine.columns()[0]), Some(RegisterRule::Undefined)) {
        return Some(Way::Outermost);
    }
    let is_signed = machine == Machine::Aarch64 && row.register(AArch64::RA_SIGN_STATE).is_some();
    let is_known = match row.cfa() {
        CfaRule::RegisterAndOffset { register, .. } => machine.follows(*register),
        CfaRule::Expression(expression) => !entry.has(expression, |operation| match operation {
            Operation::RegisterOffset { register, .. } => !machine.follows(*register),
            _ => false,
        })?,
    };
    match (entry.is_signal(), is_rule(machine, row) && !is_signed) {
        _ if !is_known => None,
        (true, _) => Some(Way::SignalByRow),
        (false, true) => Some(Way::Cfi),
        (false, false) => Some(Way::Row),
    }
}

/// Whether framehop makes a rule of its own of a row (`translate_into_unwind_rule`, 0.16). Of
/// others, where a word is missing, it takes the frame pointer instead and does not say so;
/// nor does it ask again, of whichever thread.
fn is_rule(machine: Machine, row: &UnwindTableRow<usize>) -> bool {
    let CfaRule::RegisterAndOffset { register, offset } = *row.cfa() else { return false };
    if machine == Machine::Aarch64 {
        return register != AArch64::SP || u16::try_from(offset / 16).is_ok();
    }
    if !matches!(row.register(X86_64::RA), None | Some(RegisterRule::Offset(-8))) {
        return false;
    }
    let by_stack_pointer = register == X86_64::RSP && u16::try_from(offset / 8).is_ok();
    match row.register(X86_64::RBP) {
        Some(RegisterRule::Offset(stored)) if by_stack_pointer => {
            i16::try_from(offset.wrapping_add(stored) / 8).is_ok()
        }
        Some(RegisterRule::Offset(stored)) => register == X86_64::RBP && (offset, stored) == (16, -16),
        // At the end of a function that aligned its stack an expression is left over, which
        // framehop passes over.
        _ => by_stack_pointer,
    }
}

/// What framehop needs of a file.
pub(super) fn sections(image: &Image) -> framehop::ExplicitModuleSectionInfo<SectionBytes> {
    let svma = |section: &str| image.section(section).map(|s| s.svma.clone());
    framehop::ExplicitModuleSectionInfo {
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
    }
}
