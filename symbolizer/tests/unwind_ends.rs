//! Why stacks end: each end, with the code and the words that lead to it.

#![cfg(target_arch = "x86_64")]

use reprieve_symbolizer::{Avma, FoundBy, Image, RawStack, Registers, StackEnd, Unwinder};
use std::collections::HashMap;
use std::fs::{self, File};
use std::process::Command;

/// `plain` has only its return address on the stack; `deep` a word below that; `aligned`
/// keeps where its frame is below the frame pointer (DW_CFA_def_cfa_expression of
/// DW_OP_breg6 -8, DW_OP_deref), as functions that align their stack do; `trampoline` is
/// what a signal's handler returns to; `stub` has its frame by an expression of the stack
/// pointer (DW_OP_breg7 8), as stubs of the PLT do; `large` has a megabyte.
const CODE: &str = "\
.text\n\
.globl plain, deep, aligned, trampoline, stub, large\n\
plain: .cfi_startproc\n nop\n nop\n nop\n ret\n .cfi_endproc\n\
deep: .cfi_startproc\n .cfi_def_cfa_offset 16\n nop\n nop\n nop\n ret\n .cfi_endproc\n\
aligned: .cfi_startproc\n .cfi_escape 0x0f, 3, 0x76, 0x78, 6\n nop\n nop\n nop\n ret\n .cfi_endproc\n\
stub: .cfi_startproc\n .cfi_escape 0x0f, 2, 0x77, 8\n nop\n nop\n nop\n ret\n .cfi_endproc\n\
large: .cfi_startproc\n .cfi_def_cfa_offset 0x100008\n nop\n nop\n nop\n ret\n .cfi_endproc\n\
trampoline: mov $15, %rax\n syscall\n\
.section .note.GNU-stack, \"\", @progbits\n";
/// In no module.
const ELSEWHERE: u64 = 0x1234;
/// Where `struct ucontext` at 0x7000 has the instruction pointer, the stack pointer and the
/// frame pointer of what was interrupted (arch/x86/include/uapi/asm/sigcontext.h).
const INTERRUPTED: [u64; 3] = [0x70a8, 0x70a0, 0x7078];

struct Code {
    image: Image,
    plain: u64,
    deep: u64,
    aligned: u64,
    trampoline: u64,
    stub: u64,
    large: u64,
}

impl Code {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (source, program) = (dir.path().join("ends.s"), dir.path().join("ends"));
        fs::write(&source, CODE).unwrap();
        let flags = ["-nostdlib", "-no-pie", "-Wl,-e,plain", "-Wl,--eh-frame-hdr", "-o"];
        assert!(Command::new("cc").args(flags).args([&program, &source]).status().unwrap().success());
        let image = Image::open(&File::open(program).unwrap()).unwrap();
        let text = image.symbols(&["plain", "deep", "aligned", "trampoline", "stub", "large"]);
        let [plain, deep, aligned, trampoline, stub, large] = [0, 1, 2, 3, 4, 5].map(|index| text[index].unwrap().0.0);
        Code { image, plain, deep, aligned, trampoline, stub, large }
    }

    /// The stack at 0x7000, of which only these words are in memory.
    fn unwind(&self, ip: u64, fp: u64, words: &[(u64, u64)], most: usize) -> RawStack {
        let words: HashMap<u64, u64> = words.iter().copied().collect();
        self.unwind_by(ip, fp, &mut |address| words.get(&address).copied(), most)
    }

    fn unwind_by(&self, ip: u64, fp: u64, read: &mut dyn FnMut(u64) -> Option<u64>, most: usize) -> RawStack {
        let mut unwinder = Unwinder::new();
        unwinder.add_module(0x40_0000..0x50_0000, 0, &self.image, "ends");
        unwinder.unwind(&Registers { ip, sp: 0x7000, fp, lr: 0 }, read, most)
    }
}

fn addresses(stack: &RawStack) -> Vec<u64> {
    stack.frames.iter().map(|frame| frame.address.0).collect()
}

#[test]
fn at_a_word_that_is_not_in_memory() {
    let code = Code::new();
    let Code { plain, deep, aligned, trampoline, .. } = code;
    let [ip, sp, _] = INTERRUPTED;
    for (from, fp, words, missing, frames) in [
        // By call frame information, in the first frame and in the second.
        (plain, 0, &[][..], 0x7000, 1),
        (plain, 0, &[(0x7000, deep + 1)], 0x7010, 2),
        // By a frame pointer: what it was for the caller, and where that is.
        (ELSEWHERE, 0x7010, &[], 0x7010, 1),
        (ELSEWHERE, 0x7010, &[(0x7010, 0x7100)], 0x7018, 1),
        (ELSEWHERE, 0x7010, &[(0x7010, 0x7100), (0x7018, ELSEWHERE)], 0x7100, 2),
        // By what the kernel kept of the interrupted code.
        (trampoline, 0, &[], ip, 1),
        (trampoline, 0, &[(ip, plain)], sp, 1),
        // By a word of the frame, and then by the frame pointer.
        (aligned, 0x7040, &[], 0x7040, 1),
    ] {
        let stack = code.unwind(from, fp, words, 64);
        assert_eq!(stack.end, StackEnd::MissingMemory { address: Avma(missing) }, "{stack:x?}");
        assert_eq!(stack.frames.len(), frames, "{stack:x?}");
    }
}

#[test]
fn when_there_are_as_many_frames_as_were_asked_for() {
    let code = Code::new();
    let deep = code.deep + 1;
    let endless = code.unwind_by(deep, 0, &mut |_| Some(deep), 5);
    assert_eq!((addresses(&endless), endless.end), (vec![deep; 5], StackEnd::TooDeep));
    // One that has just so many is whole.
    let words: Vec<(u64, u64)> = (0..5).map(|n| (0x7008 + n * 16, if n == 4 { 0 } else { deep })).collect();
    for (most, end) in [(4, StackEnd::TooDeep), (5, StackEnd::Complete), (6, StackEnd::Complete)] {
        let stack = code.unwind(deep, 0, &words, most);
        assert_eq!((stack.frames.len(), stack.end), (most.min(5), end), "{most}");
    }
}

#[test]
fn where_the_stack_pointer_does_not_move_on() {
    let code = Code::new();
    let Code { plain, aligned, trampoline, .. } = code;
    // A signal that interrupted the trampoline it returns to, at the same place.
    let [ip, sp, fp] = INTERRUPTED;
    let stack = code.unwind(trampoline, 3, &[(ip, trampoline), (sp, 0x7000), (fp, 3)], 64);
    assert_eq!((addresses(&stack), stack.end), (vec![trampoline], StackEnd::Loop));
    // A frame that says it is where the stack pointer is, or below.
    for (at, caller) in [(0x7008, 0x7000), (0x6000, 0x5ff8)] {
        let words = [(0x7000, aligned + 1), (0x7038, at), (0x7040, 0x7040), (caller, aligned + 1)];
        let stack = code.unwind(plain, 0x7040, &words, 64);
        assert_eq!((addresses(&stack), stack.end), (vec![plain, aligned + 1], StackEnd::Loop), "{at:x}");
    }
    // Above, it is followed: the same words, but for that.
    let words = [(0x7000, aligned + 1), (0x7038, 0x7060), (0x7040, 0x7040), (0x7058, 0)];
    let stack = code.unwind(plain, 0x7040, &words, 64);
    assert_eq!((addresses(&stack), stack.end), (vec![plain, aligned + 1], StackEnd::Complete));
    // A frame pointer that leads back is none.
    let words = [(0x7010, 0x7010), (0x7018, ELSEWHERE)];
    let stack = code.unwind(ELSEWHERE, 0x7010, &words, 64);
    assert_eq!(addresses(&stack), [ELSEWHERE; 2]);
    assert_eq!(stack.frames[1].found, FoundBy::FramePointer);
    assert_eq!(stack.end, StackEnd::NoUnwindInfo { address: Avma(ELSEWHERE - 1) });
}

/// A guess is told as one, and what was a guess once is none where all words are there.
#[test]
fn a_guess_for_want_of_a_word_is_no_call_frame_information() {
    let code = Code::new();
    for (from, at) in [(code.stub, 0x7000), (code.large, 0x7000 + (1 << 20))] {
        let mut unwinder = Unwinder::new();
        unwinder.add_module(0x40_0000..0x50_0000, 0, &code.image, "ends");
        let mut caller = |words: &[(u64, u64)]| {
            let words: HashMap<u64, u64> = words.iter().copied().collect();
            let mut read = |address| words.get(&address).copied();
            let stack = unwinder.unwind(&Registers { ip: from, sp: 0x7000, fp: 0x7040, lr: 0 }, &mut read, 64);
            stack.frames.get(1).map(|frame| (frame.address.0, frame.found))
        };
        let guess = [(0x7040, 0), (0x7048, ELSEWHERE)];
        assert_eq!(caller(&guess), Some((ELSEWHERE, FoundBy::FramePointer)));
        let known = [guess[0], guess[1], (at, code.plain + 1)];
        assert_eq!(caller(&known), Some((code.plain + 1, FoundBy::Cfi)));
    }
}
