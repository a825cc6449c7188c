//! The stack of an allocation, unwound by CFI within the process.
//!
//! Frame pointers are broken in most C libraries, so `.eh_frame` is used; what it
//! says of a program counter becomes a plan of one word that is kept in the
//! process's home. Between the stack pointer and the end of the first thread's
//! stack memory is read as it is. Elsewhere, on other threads' and coroutines'
//! stacks, rt_sigprocmask(2) is asked about each page first: it reads a set of
//! signals from an address or says EFAULT, takes no lock, and no sandbox forbids
//! it, as many do process_vm_readv(2). Whatever a broken frame leads to, a read that
//! fails is an error and not a fault.

use crate::elf::find_object;
use crate::python;
use crate::readable::is_readable;
use crate::tls::local;
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering};
use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameHdr, EndianSlice, NativeEndian, Register, RegisterRule, UnwindContext,
    UnwindContextStorage, UnwindSection, UnwindTableRow, X86_64,
};
use reprieve_heap_table::{MAX_FRAMES, SCRIPT, Writer};

/// Pages are as small as this on the machines that we know.
const PAGE: u64 = 4096;
/// Distance over which every page is asked about; a frame that is bigger leads to a
/// page of its own.
const STRIDE_MAX: u64 = 64 * PAGE;
/// A frame that is bigger than this is taken for a mistake.
const FRAME_MAX: u64 = 64 << 20;
/// Samples taken at the same instant by different threads; more are dropped.
const SCRATCHES: usize = 32;

/// Return addresses of more frames than this are not looked for.
const NATIVE_FRAMES: usize = 128;

/// Frames as words, innermost first.
pub struct Stack<'s> {
    pub frames: &'s [u64],
    /// Whether they end before the thread's start.
    pub cut: bool,
}

/// Room to work in: a thread's own stack may be small.
struct Scratch {
    /// The thread that works here, by the address of its variables; 0 for none.
    owner: AtomicUsize,
    work: UnsafeCell<Work>,
}
// SAFETY: `work` is used by the thread that set `owner` to itself.
unsafe impl Sync for Scratch {}

struct Work {
    frames: [u64; NATIVE_FRAMES],
    /// The stack pointer in each of them.
    stack_pointers: [u64; NATIVE_FRAMES],
    words: [u64; MAX_FRAMES],
    python: python::Work,
    /// Addresses of the thread's stack that are there.
    mapped: (u64, u64),
    context: MaybeUninit<UnwindContext<usize, Fixed>>,
}

static SCRATCH: [Scratch; SCRATCHES] = [const {
    Scratch {
        owner: AtomicUsize::new(0),
        work: UnsafeCell::new(Work {
            frames: [0; NATIVE_FRAMES],
            stack_pointers: [0; NATIVE_FRAMES],
            words: [0; MAX_FRAMES],
            python: python::Work::NEW,
            mapped: (0, 0),
            context: MaybeUninit::uninit(),
        }),
    }
}; SCRATCHES];

/// gimli's working memory without allocation.
struct Fixed;
impl UnwindContextStorage<usize> for Fixed {
    type Rules = [(Register, RegisterRule<usize>); 32];
    type Stack = [UnwindTableRow<usize, Self>; 4];
}

/// The registers that plans need.
#[derive(Clone, Copy)]
struct Registers {
    ip: u64,
    sp: u64,
    bp: u64,
}

/// How to get from a frame to its caller, in one word: kind (4 bits), bp's place
/// (16), the CFA's offset (32), and a check (12).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Plan {
    /// CFA is a register plus an offset; bp is saved at the CFA plus eight times
    /// this, or not at all.
    Offset { from_bp: bool, offset: i32, bp: Option<i16> },
    /// CFA is read from bp plus an offset: a frame that aligned its stack.
    Indirect { offset: i32, bp: Option<i16> },
    /// The kernel's signal frame.
    Signal,
    /// The outermost.
    End,
    /// Nobody knows; perhaps the frame pointer.
    Unknown,
}

/// Calls `use_it` with the stack of the caller, our own frames left out. `bounds`
/// are the thread's stack, or 0.
#[inline(never)]
pub fn with_stack(writer: Writer<'_>, bounds: (u64, u64), use_it: impl FnOnce(Stack<'_>)) {
    let own = |scratch: &&Scratch| {
        scratch.owner.compare_exchange(0, this_thread(), Ordering::Acquire, Ordering::Relaxed).is_ok()
    };
    let Some(scratch) = SCRATCH.iter().find(own) else {
        // Too many at once: the stack is not known, the bytes are.
        return use_it(Stack { frames: &[], cut: true });
    };
    // SAFETY: it was nobody's and is this thread's now, which does not come here
    // again before it leaves: `Local::busy` is set.
    let work = unsafe { &mut *scratch.work.get() };
    let (length, cut) = walk(writer, work, bounds);
    let native = python::Native { frames: &work.frames[..length], stack_pointers: &work.stack_pointers[..length], cut };
    match python::merge(&native, &mut work.python, &mut work.words) {
        Some((length, cut)) => use_it(Stack { frames: &work.words[..length], cut }),
        None => use_it(Stack { frames: &work.frames[..length], cut }),
    }
    scratch.owner.store(0, Ordering::Release);
}

/// Gives back what this thread worked in when it jumped out of the hook.
pub fn give_up() {
    for scratch in &SCRATCH {
        if scratch.owner.load(Ordering::Relaxed) == this_thread() {
            scratch.owner.store(0, Ordering::Release);
        }
    }
}

fn this_thread() -> usize {
    ptr::from_ref(local()).addr()
}

/// In a child that was forked: the threads that took a scratch are not there.
pub fn forget_other_threads() {
    for scratch in &SCRATCH {
        scratch.owner.store(0, Ordering::Release);
    }
}

#[inline(always)]
fn here() -> Registers {
    let (ip, sp, bp): (u64, u64, u64);
    // SAFETY: reads three registers.
    unsafe {
        core::arch::asm!(
            "lea {ip}, [rip]", "mov {sp}, rsp", "mov {bp}, rbp",
            ip = out(reg) ip, sp = out(reg) sp, bp = out(reg) bp, options(nomem, nostack, preserves_flags),
        );
    }
    Registers { ip, sp, bp }
}

/// Fills `work.frames`; returns how many, and whether the end was not reached.
fn walk(writer: Writer<'_>, work: &mut Work, bounds: (u64, u64)) -> (usize, bool) {
    let mut at = here();
    // A stack is there from its pointer to its end, if it is this one.
    // Of another the page that we stand on is there.
    work.mapped = (at.sp, if (bounds.0..bounds.1).contains(&at.sp) { bounds.1 } else { (at.sp | (PAGE - 1)) + 1 });
    let own = find_object(at.ip).map_or(0..0, |o| o.start..o.end);
    let mut length = 0;
    // Our own frames are few.
    for _ in 0..NATIVE_FRAMES + 16 {
        if !own.contains(&at.ip) {
            // No code has an address with that bit, which marks other frames.
            if length == NATIVE_FRAMES || at.ip & SCRIPT != 0 {
                return (length, true);
            }
            work.frames[length] = at.ip;
            work.stack_pointers[length] = at.sp;
            length += 1;
        }
        match step(writer, work, at) {
            Some(Some(caller)) => at = caller,
            Some(None) => return (length, false),
            None => return (length, true),
        }
    }
    (length, true)
}

/// The caller's registers; `Some(None)` at the end, `None` when it is not known.
fn step(writer: Writer<'_>, work: &mut Work, at: Registers) -> Option<Option<Registers>> {
    // A return address may be the first byte of the next function.
    let plan = plan_of(writer, work, at.ip - 1);
    let (cfa, bp) = match plan {
        Plan::End => return Some(None),
        Plan::Offset { from_bp, offset, bp } => {
            (if from_bp { at.bp } else { at.sp }.wrapping_add_signed(offset.into()), bp)
        }
        Plan::Indirect { offset, bp } => (work.read(at.bp.wrapping_add_signed(offset.into()))?, bp),
        Plan::Signal => {
            // struct ucontext, x86-64: uc_mcontext.gregs begin at 40, in the order
            // of <sys/ucontext.h>.
            let register = |work: &mut Work, index: u64| work.read(at.sp + 40 + index * 8);
            let (bp, sp, ip) = (register(work, 10)?, register(work, 15)?, register(work, 16)?);
            // It stands at an instruction, not behind a call.
            return Some(Some(Registers { ip: ip.wrapping_add(1), sp, bp }));
        }
        // The deepest frame (System V ABI, x86-64, 3.4.1): some linkers drop what
        // .eh_frame says of _start.
        Plan::Unknown if at.bp == 0 => return Some(None),
        Plan::Unknown => {
            // Generated code keeps frame pointers more often than not.
            (at.bp.checked_add(16)?, Some(-2))
        }
    };
    // Stacks grow down: a caller's frame lies above.
    if cfa <= at.sp || cfa - at.sp > FRAME_MAX {
        return None;
    }
    let ip = work.read(cfa - 8)?;
    let bp = match bp {
        Some(place) => work.read(cfa.wrapping_add_signed(i64::from(place) * 8))?,
        None => at.bp,
    };
    Some((ip != 0).then_some(Registers { ip, sp: cfa, bp }))
}

impl Work {
    /// A word of the stack, if it is there.
    fn read(&mut self, at: u64) -> Option<u64> {
        if !at.is_multiple_of(8) {
            return None;
        }
        if at >= self.mapped.0 && at < self.mapped.1 {
            // SAFETY: aligned, and between the stack pointer and the end of the
            // stack; our own frames are below, and whoever runs above is us.
            return Some(unsafe { ptr::read_volatile(at as *const u64) });
        }
        let page = at & !(PAGE - 1);
        if at >= self.mapped.1 && at - self.mapped.1 < STRIDE_MAX {
            while self.mapped.1 <= at {
                if !is_readable(self.mapped.1) {
                    return None;
                }
                self.mapped.1 += PAGE;
            }
        } else if !is_readable(page) {
            return None;
        }
        // SAFETY: aligned, and the kernel has just read from that page. Another
        // thread could unmap it now, but not a stack that we return to; of what a
        // broken frame leads to, this is all that we can know.
        Some(unsafe { ptr::read_volatile(at as *const u64) })
    }
}

fn plan_of(writer: Writer<'_>, work: &mut Work, ip: u64) -> Plan {
    let hash = ip.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let check = (hash >> 20 & 0xfff) as u16;
    let kept = writer.plan((hash >> 40) as usize);
    if let Some((key, plan)) = kept {
        let value = plan.load(Ordering::Acquire);
        // Two threads may write one place at once: the check tells whose it is.
        if key.load(Ordering::Acquire) == ip
            && let Some(plan) = Plan::unpack(value, check)
        {
            return plan;
        }
    }
    let plan = find_plan(work, ip).unwrap_or(Plan::Unknown);
    if let Some((key, place)) = kept {
        key.store(0, Ordering::Release);
        place.store(plan.pack(check), Ordering::Release);
        key.store(ip, Ordering::Release);
    }
    plan
}

impl Plan {
    fn pack(self, check: u16) -> u64 {
        let (kind, offset, bp) = match self {
            Plan::Offset { from_bp: false, offset, bp } => (1, offset, bp),
            Plan::Offset { from_bp: true, offset, bp } => (2, offset, bp),
            Plan::Indirect { offset, bp } => (3, offset, bp),
            Plan::Signal => (4, 0, None),
            Plan::End => (5, 0, None),
            Plan::Unknown => (6, 0, None),
        };
        let bp = bp.unwrap_or(0) as u16;
        kind | u64::from(bp) << 4 | u64::from(offset as u32) << 20 | u64::from(check) << 52
    }

    fn unpack(word: u64, check: u16) -> Option<Self> {
        if word >> 52 != u64::from(check) {
            return None;
        }
        let offset = (word >> 20) as u32 as i32;
        // Nothing is saved at the CFA itself.
        let bp = Some((word >> 4) as u16 as i16).filter(|&place| place != 0);
        Some(match word & 0xf {
            1 => Plan::Offset { from_bp: false, offset, bp },
            2 => Plan::Offset { from_bp: true, offset, bp },
            3 => Plan::Indirect { offset, bp },
            4 => Plan::Signal,
            5 => Plan::End,
            6 => Plan::Unknown,
            _ => return None,
        })
    }
}

/// What CFI says of an address; `None` without any.
fn find_plan(work: &mut Work, ip: u64) -> Option<Plan> {
    let object = find_object(ip)?;
    python::notice(&object);
    if object.eh_frame_hdr == 0 {
        return None;
    }
    // SAFETY: the object is mapped from here to its end, and stays so while a
    // frame of ours returns into it.
    let slice = |from: u64| unsafe {
        EndianSlice::new(core::slice::from_raw_parts(from as *const u8, (object.end - from) as usize), NativeEndian)
    };
    let bases = BaseAddresses::default().set_eh_frame_hdr(object.eh_frame_hdr);
    let header = EhFrameHdr::from(slice(object.eh_frame_hdr)).parse(&bases, 8).ok()?;
    let gimli::Pointer::Direct(eh_frame) = header.eh_frame_ptr() else { return None };
    if !(object.start..object.end).contains(&eh_frame) {
        return None;
    }
    let bases = bases.set_eh_frame(eh_frame);
    let section = EhFrame::from(slice(eh_frame));
    let fde = header.table()?.fde_for_address(&section, &bases, ip, EhFrame::cie_from_offset).ok()?;
    if fde.is_signal_trampoline() {
        return Some(Plan::Signal);
    }
    let context = work.context.write(UnwindContext::new_in());
    let row = fde.unwind_info_for_address(&section, &bases, context, ip).ok()?;
    if let Some(RegisterRule::Undefined) = row.register(X86_64::RA) {
        return Some(Plan::End);
    }
    let Some(RegisterRule::Offset(-8)) = row.register(X86_64::RA) else { return None };
    let bp = match row.register(X86_64::RBP) {
        Some(RegisterRule::Offset(offset)) if offset % 8 == 0 && offset != 0 => Some(i16::try_from(offset / 8).ok()?),
        None | Some(RegisterRule::SameValue | RegisterRule::Undefined) => None,
        _ => return None,
    };
    match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => {
            let offset = i32::try_from(*offset).ok()?;
            match *register {
                X86_64::RSP => Some(Plan::Offset { from_bp: false, offset, bp }),
                X86_64::RBP => Some(Plan::Offset { from_bp: true, offset, bp }),
                _ => None,
            }
        }
        // `DW_OP_breg6 offset; DW_OP_deref`: a frame that aligned its stack
        // keeps the old pointer there.
        CfaRule::Expression(expression) => match expression.get(&section).ok()?.0.slice() {
            [0x76, offset @ 0..=0x7f, 0x06] => {
                let offset = i32::from((*offset << 1) as i8 >> 1);
                Some(Plan::Indirect { offset, bp })
            }
            _ => None,
        },
    }
}
