//! A program for aarch64, emulated and run one instruction at a time by its emulator's
//! stub for debuggers. Which calls it is in is counted along, and at each instruction
//! unwinding must say the same.

#[path = "common/emulator.rs"]
mod emulator;

use emulator::{Emulator, TRAP};
use reprieve_symbolizer::{FoundBy, Image, Machine, Registers, StackEnd, Unwinder};
use std::collections::HashMap;
use std::fs::{self, File};
use std::process::Command;

/// Calls by way of the PLT, a stack that grows while it runs, and signals, one of which
/// interrupts the first instruction of a function, with a stack of their own.
const PROGRAM: &str = r#"
#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
static volatile int sink;
__attribute__((noinline)) static void leaf(void) { sink++; }
__attribute__((noinline)) static void growing(int n)
{
	char *more = __builtin_alloca(n * 16);

	memset(more, n, n * 16);
	leaf();
	sink += more[5];
}
static void handler(int signal) { growing(signal); leaf(); }
static _Alignas(65536) char page[65536];
__attribute__((noinline)) long load(char *from);
__asm__(".text; .type load, %function; load: .cfi_startproc; ldr x0, [x0]; ret; .cfi_endproc; .size load, .-load");
static void allow(int signal) { mprotect(page, sizeof(page), PROT_READ); growing(signal); }
__attribute__((noinline)) static void work(int n)
{
	sink += atoi("12");
	growing(n);
	raise(SIGUSR1);
	mprotect(page, sizeof(page), PROT_NONE);
	sink += load(page);
	leaf();
}
int main(int argc, char **argv)
{
	static char other[65536];
	stack_t stack = {.ss_sp = other, .ss_size = sizeof(other)};
	struct sigaction plain = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
	struct sigaction fault = {.sa_handler = allow, .sa_flags = SA_ONSTACK};

	(void)argv;
	sigaltstack(&stack, 0);
	sigaction(SIGUSR1, &plain, 0);
	sigaction(SIGSEGV, &fault, 0);
	work(argc + 2);
	return 0;
}
"#;

/// How often one instruction is looked at.
const LOOKS: u32 = 3;

/// What was seen of a program.
#[derive(Debug, Default)]
struct Seen {
    instructions: u32,
    looked: u32,
    whole: u32,
    guessed: u32,
    signals: u32,
    deepest: usize,
}

/// `svc #0`, and the number of a system call.
const SVC: u32 = 0xd400_0001;
const RT_SIGRETURN: u64 = 139;

/// What an instruction did to the calls that the program is in.
fn follow((pc, instruction): (u64, u32), now: &[u64; 33], calls: &mut Vec<(u64, bool)>) {
    let is_return = instruction & 0xffff_fc1f == 0xd65f_0000 || instruction & 0xffff_fbff == 0xd65f_0bff;
    let is_call = instruction >> 26 == 0b10_0101 || instruction & 0xffff_fc1f == 0xd63f_0000;
    if is_return {
        // ret, retaa, retab.
        assert_eq!(calls.pop(), Some((now[32], false)), "a return at {pc:#x}");
    } else if is_call {
        // bl, blr.
        assert_eq!(now[30], pc + 4);
        calls.push((now[30], false));
    }
}

/// Executes an instruction, or all from an exclusive load to where its store was tried
/// with success: stopping in between breaks the pair.
fn step(emulator: &mut Emulator, pc: u64, instruction: u32) -> Option<u8> {
    // LDXR, LDAXR and the like (Arm Architecture Reference Manual, C4.1.94, "Load/store exclusive register").
    if instruction & 0x3fc0_0000 != 0x0840_0000 {
        return emulator.go("s");
    }
    let is_retry = |code: u32| code & 0x7f00_0000 == 0x3500_0000;
    let retry = (1..16).map(|n| pc + 4 * n).find(|at| is_retry(emulator.word(*at).unwrap() as u32)).unwrap();
    assert_eq!(emulator.ask(&format!("Z0,{:x},4", retry + 4)), "OK");
    let stopped = emulator.go("c");
    assert_eq!(emulator.ask(&format!("z0,{:x},4", retry + 4)), "OK");
    stopped
}

fn steps(flags: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let (source, program) = (dir.path().join("steps.c"), dir.path().join("steps"));
    fs::write(&source, PROGRAM).unwrap();
    let built = Command::new("aarch64-linux-gnu-gcc")
        .args(["-O1", "-g", "-static", "-no-pie", "-o"])
        .args([&program, &source])
        .args(flags)
        .status()
        .expect("gcc-aarch64-linux-gnu is installed");
    assert!(built.success());
    let mut emulator = Emulator::start(&program, &dir.path().join("socket"), "max");
    let image = Image::open(&File::open(&program).unwrap()).unwrap();
    let mut unwinder = Unwinder::of(Machine::Aarch64);
    unwinder.add_module(0x40_0000..0x100_0000, 0, &image, "steps");
    let mut seen = Seen::default();
    // Outermost first: where each call returns to, and whether that is what a signal interrupted.
    let mut calls: Vec<(u64, bool)> = Vec::new();
    let mut looks: HashMap<u64, u32> = HashMap::new();
    let mut wrong = Vec::new();
    let mut now = emulator.registers();
    let entry = now[32];
    loop {
        let [sp, pc] = [now[31], now[32]];
        let look = looks.entry(pc).or_default();
        *look += 1;
        if *look <= LOOKS {
            seen.looked += 1;
            let from = Registers { ip: pc, sp, fp: now[29], lr: now[30] };
            let stack = unwinder.unwind(&from, &mut |address| emulator.word(address), 64);
            let told: Vec<(u64, bool)> =
                stack.frames[1..].iter().map(|f| (f.address.0, f.found == FoundBy::Signal)).collect();
            let is_right = told.iter().eq(calls.iter().rev());
            let is_guess = stack.frames.iter().any(|frame| frame.found == FoundBy::FramePointer);
            match stack.end {
                StackEnd::Complete if is_right && !is_guess => seen.whole += 1,
                StackEnd::NoUnwindInfo { .. } => seen.guessed += 1,
                _ if is_guess => seen.guessed += 1,
                // glibc's two instructions that go on to `main` are covered by what it says of `_start`.
                StackEnd::Complete if calls.len() == 3 && (0x30..0x3c).contains(&(pc - entry)) => seen.guessed += 1,
                _ => wrong.push((pc, stack.clone(), calls.clone())),
            }
            seen.deepest = seen.deepest.max(calls.len());
        }
        let before = now;
        let instruction =
            emulator.word(pc).unwrap_or_else(|| panic!("no code at {pc:#x} after {seen:?}, {now:x?}")) as u32;
        let Some(mut stopped) = step(&mut emulator, pc, instruction) else { break };
        seen.instructions += 1;
        assert!(seen.instructions < 200_000, "it goes round at {pc:#x}");
        now = emulator.registers();
        let is_delivered = stopped != TRAP;
        while stopped != TRAP {
            seen.signals += 1;
            let interrupted = now[32];
            stopped = emulator.go(&format!("vCont;S{stopped:02x}")).expect("it handles its signals");
            now = emulator.registers();
            calls.push((interrupted, true));
            // The handler's first instruction, done already, may have signed it.
            calls.push((now[30] & ((1 << 48) - 1), false));
        }
        if is_delivered {
            continue;
        }
        let mut done = (pc, instruction);
        if instruction == SVC {
            let mut at = pc + 4;
            if before[8] == RT_SIGRETURN {
                let (interrupted, is_signal) = calls.pop().unwrap();
                assert!(is_signal);
                at = interrupted;
            }
            // The emulator stops after the next instruction, unless that is where it is.
            done = (at, if now[32] == at { SVC } else { emulator.word(at).unwrap() as u32 });
        }
        follow(done, &now, &mut calls);
    }
    println!("{flags:?}: {seen:?}; {} wrong", wrong.len());
    assert!(wrong.is_empty(), "{:x?}", &wrong[..wrong.len().min(4)]);
    // Stubs of the PLT and what the C library has in assembly have no call frame information there.
    assert!(seen.guessed * 50 <= seen.looked, "{seen:?}");
    assert!(seen.looked > 5000 && seen.signals == 2 && seen.deepest > 6, "{seen:?}");
}

#[test]
fn each_instruction_of_a_program() {
    steps(&["-Wl,--eh-frame-hdr"]);
}

/// As the linker makes static programs unless it is told otherwise.
#[test]
fn without_a_header_of_call_frame_information() {
    steps(&["-Wl,--no-eh-frame-hdr"]);
}

/// Return addresses are signed, and say so in call frame information.
#[test]
fn signed_return_addresses() {
    steps(&["-mbranch-protection=standard"]);
}
