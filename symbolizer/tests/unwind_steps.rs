//! A program is run one instruction at a time. Which calls it is in is counted along, and
//! at each instruction unwinding must say the same.

#![cfg(target_arch = "x86_64")]

use reprieve_symbolizer::{FoundBy, Image, Registers, StackEnd, Unwinder};
use std::collections::HashMap;
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

/// Calls by way of the PLT and of the vDSO, a stack that is aligned anew and grows while it
/// runs, and a signal that interrupts the first instruction of a function, whose handler
/// has a stack of its own.
const PROGRAM: &str = r#"
#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
static volatile int sink;
__attribute__((noinline)) static void leaf(void) { sink++; }
__attribute__((noinline)) static void aligned(int n)
{
	_Alignas(64) char wide[64];
	char *more = __builtin_alloca(n * 16);

	memset(wide, n, sizeof(wide));
	memset(more, n, n * 16);
	leaf();
	sink += wide[3] + more[5];
}
static void handler(int signal) { aligned(signal); leaf(); }
static _Alignas(4096) char page[4096];
__attribute__((noinline, naked)) long load(char *from) { __asm__("movq (%rdi), %rax; ret"); }
static void allow(int signal) { mprotect(page, sizeof(page), PROT_READ); aligned(signal); }
__attribute__((noinline)) static void work(int n)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	sink += atoi("12") + now.tv_nsec;
	aligned(n);
	raise(SIGUSR1);
	mprotect(page, sizeof(page), PROT_NONE);
	sink += load(page);
	leaf();
}
int main(int argc, char **argv)
{
	static char other[16384];
	stack_t stack = {.ss_sp = other, .ss_size = sizeof(other)};
	struct sigaction plain = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
	struct sigaction fault = {.sa_handler = allow};

	(void)argv;
	sigaltstack(&stack, 0);
	sigaction(SIGUSR1, &plain, 0);
	sigaction(SIGSEGV, &fault, 0);
	work(argc + 2);
	return 0;
}
"#;

/// How often one instruction is looked at: loops of the dynamic linker have many rounds.
const LOOKS: u32 = 2;
struct Traced(Child);

impl Drop for Traced {
    fn drop(&mut self) {
        // Gone already if all went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Which signal it stopped for, or `None` when it has ended well.
fn wait(pid: i32) -> Option<i32> {
    let mut status = 0;
    // SAFETY: waits for our own child; the pointer is to a live local.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(waited, pid, "{}", std::io::Error::last_os_error());
    if libc::WIFSTOPPED(status) {
        return Some(libc::WSTOPSIG(status));
    }
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "{status:#x}");
    None
}

fn registers(pid: i32) -> libc::user_regs_struct {
    // SAFETY: all zeros is a value of this structure of integers.
    let mut all: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    // SAFETY: the child is stopped and traced by this thread; the pointer is to a live local.
    let done = unsafe { libc::ptrace(libc::PTRACE_GETREGS, pid, 0, &raw mut all) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    all
}

fn step(pid: i32, signal: i32) {
    // SAFETY: the child is stopped and traced by this thread.
    let done = unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, pid, 0, signal) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

#[derive(Default)]
struct Modules {
    known: HashMap<String, Option<Image>>,
    loaded: Vec<(Range<u64>, u64, String)>,
    unwinder: Unwinder,
}

impl Modules {
    fn load(&mut self, pid: i32, memory: &File) {
        self.loaded.clear();
        self.unwinder = Unwinder::new();
        for line in fs::read_to_string(format!("/proc/{pid}/maps")).unwrap().lines().filter(|l| l.contains(" r-xp ")) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let Some(name) = fields.get(5).filter(|name| name.starts_with('/') || **name == "[vdso]") else { continue };
            let hex = |text| u64::from_str_radix(text, 16).unwrap();
            let (start, end) = fields[0].split_once('-').unwrap();
            let (start, end) = (hex(start), hex(end));
            let image = self.known.entry((*name).to_owned()).or_insert_with(|| {
                if *name != "[vdso]" {
                    return Image::open(&File::open(name).unwrap()).ok();
                }
                let mut bytes = vec![0; (end - start) as usize];
                memory.read_exact_at(&mut bytes, start).unwrap();
                Image::from_bytes(bytes).ok()
            });
            let image = image.as_ref().unwrap();
            let bias = image.bias(start, hex(fields[2])).unwrap();
            self.unwinder.add_module(start..end, bias, image, name);
            self.loaded.push((start..end, bias, (*name).to_owned()));
        }
    }

    fn place(&self, address: u64) -> String {
        let found = self.loaded.iter().find(|(range, ..)| range.contains(&address));
        found.map_or(format!("{address:#x}"), |(_, bias, name)| format!("{name}+{:#x}", address - bias))
    }
}

#[test]
fn each_instruction_of_a_program() {
    let dir = tempfile::tempdir().unwrap();
    let (source, program) = (dir.path().join("steps.c"), dir.path().join("steps"));
    fs::write(&source, PROGRAM).unwrap();
    let built = Command::new("cc")
        .args(["-O1", "-g", "-fomit-frame-pointer", "-Wl,-z,lazy", "-o"])
        .args([&program, &source])
        .status()
        .unwrap();
    assert!(built.success());
    let mut command = Command::new(&program);
    // SAFETY: between fork and exec it makes two system calls, which touch no memory.
    unsafe {
        command.pre_exec(|| {
            libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong);
            match libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let child = Traced(command.spawn().unwrap());
    let pid = child.0.id() as i32;
    assert_eq!(wait(pid), Some(libc::SIGTRAP), "the exec");
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let word = |address: u64| {
        let mut bytes = [0; 8];
        memory.read_exact_at(&mut bytes, address).ok().map(|()| u64::from_ne_bytes(bytes))
    };
    let mut modules = Modules::default();
    modules.load(pid, &memory);

    // Outermost first: where each call returns to, and whether that is what a signal interrupted.
    let mut calls: Vec<(u64, bool)> = Vec::new();
    let mut looks: HashMap<u64, u32> = HashMap::new();
    let (mut wrong, mut told_so) = (Vec::new(), Vec::new());
    let (mut steps, mut looked, mut whole, mut signals, mut in_vdso, mut deepest) = (0u32, 0u32, 0u32, 0, 0, 0);
    let mut now = registers(pid);
    loop {
        if !modules.loaded.iter().any(|(range, ..)| range.contains(&now.rip)) {
            modules.load(pid, &memory);
        }
        let look = looks.entry(now.rip).or_default();
        *look += 1;
        if *look <= LOOKS {
            looked += 1;
            let from = Registers { ip: now.rip, sp: now.rsp, fp: now.rbp, lr: 0 };
            let stack = modules.unwinder.unwind(&from, &mut |address| word(address), 64);
            let trusted = stack.frames[1..].iter().take_while(|frame| frame.found != FoundBy::FramePointer);
            let told: Vec<(u64, bool)> = trusted.map(|f| (f.address.0, f.found == FoundBy::Signal)).collect();
            let is_right = told.len() <= calls.len() && told.iter().eq(calls.iter().rev().take(told.len()));
            let is_whole = is_right && told.len() == calls.len();
            // The dynamic linker's first instructions, in assembly, say nothing of themselves.
            let first = modules.place(stack.frames.last().unwrap().lookup_address().0);
            let place = modules.place(now.rip);
            match &stack.end {
                StackEnd::Complete if is_whole => whole += 1,
                StackEnd::NoUnwindInfo { .. } if is_whole && first.contains("/ld-") => whole += 1,
                StackEnd::Complete if stack.frames.len() == told.len() + 1 => {
                    wrong.push((place, "no end", stack.clone()));
                }
                _ if !is_right => wrong.push((place, "another frame", stack.clone())),
                _ => told_so.push((place, calls.len(), stack.clone())),
            }
            in_vdso += u32::from(modules.place(now.rip).starts_with("[vdso]"));
            deepest = deepest.max(calls.len());
        }
        let before = now;
        let opcode = word(before.rip).unwrap().to_le_bytes();
        step(pid, 0);
        steps += 1;
        let Some(mut stopped) = wait(pid) else { break };
        while stopped != libc::SIGTRAP {
            // Once more, and it is delivered: then the handler's first instruction is next.
            signals += 1;
            let interrupted = registers(pid);
            step(pid, stopped);
            stopped = wait(pid).expect("it handles its signals");
            now = registers(pid);
            calls.push((interrupted.rip, true));
            calls.push((word(now.rsp).unwrap(), false));
        }
        let after = registers(pid);
        if after.rip == now.rip && after.rsp == now.rsp && now.rip != before.rip {
            continue;
        }
        now = after;
        let returns = opcode[0] == 0xc3 || opcode[..2] == [0xf3, 0xc3] || opcode[0] == 0xc2;
        if returns {
            assert_eq!(calls.pop(), Some((now.rip, false)), "a return at {}", modules.place(before.rip));
        } else if opcode[..2] == [0x0f, 5] && calls.last() == Some(&(now.rip, true)) && before.rax == 15 {
            calls.pop();
        } else if now.rsp == before.rsp.wrapping_sub(8) && is_call(&opcode) {
            calls.push((word(now.rsp).unwrap(), false));
        }
    }
    println!(
        "{steps} instructions, {looked} looked at, {whole} whole, {} said to be guessed or cut; {in_vdso} in the vDSO, \
         {signals} signals, {deepest} calls at most",
        told_so.len()
    );
    for (place, calls, stack) in &told_so {
        println!(
            "{place} in {calls} calls: {:?}, {}",
            stack.frames.iter().map(|f| f.found).collect::<Vec<_>>(),
            stack.end
        );
    }
    assert!(
        wrong.is_empty(),
        "{} stacks are not what they are said to be: {:#?}",
        wrong.len(),
        &wrong[..wrong.len().min(8)]
    );
    assert!(looked > 10_000 && in_vdso > 20 && signals == 2 && deepest > 8, "not what was to be seen");
    // Registers but three are not followed: the resolver of the dynamic linker keeps its frame by
    // another, as do a few instructions at the begin of a function that aligns its stack; the C library's
    // `_init` and the like, written by hand, have no call frame information.
    assert!(told_so.len() as u32 * 100 <= looked * 4, "{} of {looked} are guessed or cut", told_so.len());
}

/// `call rel32`, and `call` of a register or of a word in memory, with prefixes.
fn is_call(code: &[u8; 8]) -> bool {
    let begin = code
        .iter()
        .take_while(|byte| [0x2e, 0x3e, 0xf2, 0x66, 0x67].contains(byte) || (0x40..0x50).contains(*byte))
        .count();
    match code[begin..] {
        [0xe8, ..] => true,
        [0xff, modrm, ..] => modrm >> 3 & 7 == 2,
        _ => false,
    }
}
