//! Call frame information that framehop does not follow: a frame's address that is kept
//! in memory (functions that align their stack, trampolines of signals), and return
//! addresses that are signed (aarch64).

use super::{Machine, Registers};
use crate::Svma;
use crate::image::Image;
use gimli::{
    AArch64, BaseAddresses, CfaRule, CieOrFde, EhFrame, EhFrameHdr, EndianSlice, Evaluation, EvaluationResult,
    EvaluationStorage, Expression, FrameDescriptionEntry, Location, NativeEndian, Operation, Piece, Reader, Register,
    RegisterRule, UnwindContext, UnwindExpression, UnwindSection, UnwindTableRow, Value, Vendor, X86_64,
};

type Slice<'b> = EndianSlice<'b, NativeEndian>;

/// Reads a word of the target.
type Read<'r> = dyn FnMut(u64) -> Result<u64, ()> + 'r;

/// Steps of one expression; those of compilers have some ten.
const MOST_STEPS: u32 = 256;

/// Values of an expression, without allocation: it is evaluated in a hold.
struct OnStack;

impl<R: Reader> EvaluationStorage<R> for OnStack {
    type Stack = [Value; 64];
    type ExpressionStack = [(R, R); 4];
    type Result = [Piece<R>; 1];
}

/// The entry of an address.
pub(super) struct Entry<'b> {
    frames: EhFrame<Slice<'b>>,
    bases: BaseAddresses,
    entry: FrameDescriptionEntry<Slice<'b>>,
    address: u64,
}

/// Entries of a file without `.eh_frame_hdr`: where the code begins, and where they are.
/// Static programs have none as a rule.
#[derive(Debug, Default)]
pub(super) struct Index(Vec<(u64, usize)>);

impl Index {
    /// Empty where there is a header, or where entries are damaged from the first on.
    pub(super) fn of(image: &Image) -> Self {
        let mut found = Vec::new();
        if image.section(".eh_frame_hdr").is_none()
            && let Some((frames, bases)) = section(image)
        {
            let mut entries = frames.entries(&bases);
            while let Ok(Some(entry)) = entries.next() {
                if let CieOrFde::Fde(partial) = entry
                    && let Ok(entry) = partial.parse(EhFrame::cie_from_offset)
                {
                    found.push((entry.initial_address(), entry.offset()));
                }
            }
        }
        found.sort_unstable();
        Index(found)
    }
}

/// `.eh_frame`, and where sections are that its pointers may be relative to.
fn section(image: &Image) -> Option<(EhFrame<Slice<'_>>, BaseAddresses)> {
    let section = image.section(".eh_frame")?;
    let mut frames = EhFrame::new(&image.bytes()[section.file.clone()], NativeEndian);
    frames.set_address_size(8);
    Some((frames, BaseAddresses::default().set_eh_frame(section.svma.start)))
}

impl<'b> Entry<'b> {
    pub(super) fn find(image: &'b Image, index: &Index, machine: Machine, address: Svma) -> Option<Self> {
        let (mut frames, mut bases) = section(image)?;
        if machine == Machine::Aarch64 {
            frames.set_vendor(Vendor::AArch64);
        }
        let entry = match image.section(".eh_frame_hdr") {
            Some(header) => {
                bases = bases.set_eh_frame_hdr(header.svma.start);
                let parsed =
                    EhFrameHdr::new(&image.bytes()[header.file.clone()], NativeEndian).parse(&bases, 8).ok()?;
                parsed.table()?.fde_for_address(&frames, &bases, address.0, EhFrame::cie_from_offset).ok()?
            }
            None => {
                let after = index.0.partition_point(|(begin, _)| *begin <= address.0);
                let (_, offset) = *index.0[..after].last()?;
                frames.fde_from_offset(&bases, offset.into(), EhFrame::cie_from_offset).ok()?
            }
        };
        entry.contains(address.0).then_some(Entry { frames, bases, entry, address: address.0 })
    }

    /// Whether the caller is what a signal interrupted.
    pub(super) fn is_signal(&self) -> bool {
        self.entry.is_signal_trampoline()
    }

    /// The rules at the address.
    pub(super) fn row<'c>(&self, context: &'c mut UnwindContext<usize>) -> Option<&'c UnwindTableRow<usize>> {
        self.entry.unwind_info_for_address(&self.frames, &self.bases, context, self.address).ok()
    }

    /// Whether an expression has such an operation; `None` where it is damaged.
    pub(super) fn has(
        &self,
        expression: &UnwindExpression<usize>,
        is_such: impl Fn(&Operation<Slice<'b>>) -> bool,
    ) -> Option<bool> {
        let mut operations = expression.get(&self.frames).ok()?.operations(self.entry.cie().encoding());
        while let Some(operation) = operations.next().ok()? {
            if is_such(&operation) {
                return Some(true);
            }
        }
        Some(false)
    }

    /// The caller's registers; `None` where a word is missing, or a register that is not
    /// followed is needed.
    pub(super) fn leave(
        &self,
        machine: Machine,
        context: &mut UnwindContext<usize>,
        registers: &Registers,
        read: &mut Read<'_>,
    ) -> Option<Registers> {
        let row = self.row(context)?;
        let known = Known { machine, registers };
        let cfa = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => known.get(*register)?.wrapping_add_signed(*offset),
            CfaRule::Expression(expression) => self.evaluate(expression, None, &known, read)?,
        };
        let [return_address, frame_pointer] = machine.columns();
        let mut restored = |register| match row.register(register) {
            None | Some(RegisterRule::SameValue) => known.get(register),
            Some(RegisterRule::Offset(offset)) => read(cfa.wrapping_add_signed(offset)).ok(),
            Some(RegisterRule::ValOffset(offset)) => Some(cfa.wrapping_add_signed(offset)),
            Some(RegisterRule::Register(other)) => known.get(other),
            Some(RegisterRule::Expression(expression)) => {
                let at = self.evaluate(&expression, Some(cfa), &known, read)?;
                read(at).ok()
            }
            Some(RegisterRule::ValExpression(expression)) => self.evaluate(&expression, Some(cfa), &known, read),
            Some(_) => None,
        };
        let (caller, fp) = (machine.strip(restored(return_address)?), restored(frame_pointer)?);
        Some(Registers { ip: caller, sp: cfa, fp, lr: caller })
    }

    fn evaluate(
        &self,
        expression: &UnwindExpression<usize>,
        first: Option<u64>,
        known: &Known<'_>,
        read: &mut Read<'_>,
    ) -> Option<u64> {
        let Expression(code) = expression.get(&self.frames).ok()?;
        let mut evaluation = Evaluation::<_, OnStack>::new_in(code, self.entry.cie().encoding());
        evaluation.set_max_iterations(MOST_STEPS);
        if let Some(first) = first {
            evaluation.set_initial_value(first);
        }
        let mut result = evaluation.evaluate().ok()?;
        loop {
            result = match result {
                EvaluationResult::Complete => break,
                EvaluationResult::RequiresRegister { register, .. } => {
                    evaluation.resume_with_register(Value::Generic(known.get(register)?)).ok()?
                }
                EvaluationResult::RequiresMemory { address, size: 8, space: None, .. } => {
                    evaluation.resume_with_memory(Value::Generic(read(address).ok()?)).ok()?
                }
                _ => return None,
            };
        }
        match evaluation.as_result().last()?.location {
            Location::Address { address } => Some(address),
            _ => None,
        }
    }
}

/// Registers that are followed from frame to frame.
struct Known<'k> {
    machine: Machine,
    registers: &'k Registers,
}

impl Known<'_> {
    fn get(&self, register: Register) -> Option<u64> {
        let Registers { ip, sp, fp, lr } = *self.registers;
        match self.machine {
            Machine::X86_64 => {
                [(X86_64::RA, ip), (X86_64::RSP, sp), (X86_64::RBP, fp)].into_iter().find(|known| known.0 == register)
            }
            Machine::Aarch64 => [(AArch64::X30, lr), (AArch64::SP, sp), (AArch64::X29, fp)]
                .into_iter()
                .find(|known| known.0 == register),
        }
        .map(|(_, value)| value)
    }
}

impl Machine {
    /// DWARF's numbers of the return address and of the frame pointer.
    pub(super) fn columns(self) -> [Register; 2] {
        match self {
            Machine::X86_64 => [X86_64::RA, X86_64::RBP],
            Machine::Aarch64 => [AArch64::X30, AArch64::X29],
        }
    }

    /// Whether it is followed from frame to frame.
    pub(super) fn follows(self, register: Register) -> bool {
        let nothing = Registers { ip: 0, sp: 0, fp: 0, lr: 0 };
        Known { machine: self, registers: &nothing }.get(register).is_some()
    }
}
