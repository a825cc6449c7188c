//! Stacks of threads, unwound in place.

use super::memory::TargetMemory;
use super::modules::LoadedModule;
use crate::hold::stop::HeldThread;
use crate::incident::model::{ModuleAddress, StopOutcome, Thread};
use reprieve_heap_walk::Memory;
use reprieve_symbolizer::{Avma, RawStack, Registers, StackEnd, Unwinder};
use std::fs;
use std::time::{Duration, Instant};

/// Frames kept per stack; deeper ones end with "too deep".
pub const MAX_FRAMES: usize = 512;

/// How long after one look at a thread that runs the next is.
const LOOK_AGAIN: Duration = Duration::from_millis(7);

/// A thread of which only is known that it is there, and what stopping it gave (`held`).
#[must_use]
pub fn unread(tid: i32, held: Option<&HeldThread>) -> Thread {
    Thread {
        tid,
        comm: String::new(),
        state: held.map_or('?', |h| h.state_before),
        stop: held.map_or(StopOutcome::NotStopped("appeared after the stop".to_owned()), |h| h.outcome.clone()),
        registers: None,
        wchan: None,
        stack: RawStack::left_out(),
        frame_modules: Vec::new(),
        script: Vec::new(),
    }
}

/// Who thread `tid` of `pid` is, without what it runs.
#[must_use]
pub fn identify(pid: i32, tid: i32, held: Option<&HeldThread>) -> Thread {
    let proc = |file: &str| fs::read_to_string(format!("/proc/{pid}/task/{tid}/{file}")).unwrap_or_default();
    let wchan = Some(proc("wchan")).filter(|w| !w.is_empty() && w != "0");
    Thread { comm: proc("comm").trim_end_matches('\n').to_owned(), wchan, ..unread(tid, held) }
}

/// Reads thread `tid` of `pid`; `held` is what stopping it gave. One that waits for the
/// machine's memory does not stop, and runs most of the time to try again: it is looked
/// at until it waits, or `look_until`.
pub fn read_thread(
    pid: i32,
    tid: i32,
    held: Option<&HeldThread>,
    look_until: Option<Instant>,
    unwinder: &mut Unwinder,
    modules: &[LoadedModule],
    memory: &mut TargetMemory,
) -> Thread {
    let syscall = || fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).unwrap_or_default();
    let registers = held.and_then(|h| h.registers);
    let of_waiting = || look_often(look_until, syscall);
    let mut stack = match registers.map(|all| all.to_unwind()).or_else(of_waiting) {
        Some(registers) => unwinder.unwind(&registers, &mut |address| memory.u64(address), MAX_FRAMES),
        None => RawStack::without_registers(),
    };
    // Where glibc makes a thread its CFI ends, since it would be wrong in the child
    // (sysdeps/unix/sysv/linux/x86_64/clone3.S), which has no caller.
    if stack.frames.len() == 1
        && matches!(stack.end, StackEnd::NoUnwindInfo { .. })
        && registers.is_some_and(|all| all.is_newborn())
    {
        stack.end = StackEnd::Complete;
    }
    let frame_modules = stack.frames.iter().map(|frame| locate(frame.lookup_address(), modules)).collect();
    Thread { registers, stack, frame_modules, ..identify(pid, tid, held) }
}

fn look_often(until: Option<Instant>, look: impl Fn() -> String) -> Option<Registers> {
    loop {
        let registers = registers_of_waiting(&look());
        if registers.is_some() || until.is_none_or(|until| Instant::now() >= until) {
            return registers;
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// SP and PC of a thread that waits in the kernel: the last two fields of
/// `/proc/TID/syscall` (proc_pid_syscall(5)). There is no frame pointer, so
/// the unwinder has only CFI to go by.
fn registers_of_waiting(syscall: &str) -> Option<Registers> {
    let mut fields = syscall.split_whitespace().rev();
    let mut hex = || u64::from_str_radix(fields.next()?.strip_prefix("0x")?, 16).ok();
    let (ip, sp) = (hex()?, hex()?);
    Some(Registers { ip, sp, fp: 0, lr: 0 })
}

/// The module that an address lies in, and where in its file.
#[must_use]
pub fn locate(Avma(address): Avma, modules: &[LoadedModule]) -> Option<ModuleAddress> {
    let module = modules.iter().find(|m| m.range.contains(&address))?;
    Some(ModuleAddress { module: module.index, svma: address.wrapping_sub(module.bias) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incident::model::RegisterSet;

    #[test]
    fn waiting_and_running_threads() {
        let r = registers_of_waiting("-1 0x7ffd10 0x401000\n").unwrap();
        assert_eq!((r.sp, r.ip), (0x7ffd10, 0x401000));
        let r = registers_of_waiting("35 0x1 0x2 0x3 0x4 0x5 0x6 0x7ffd10 0x401000\n").unwrap();
        assert_eq!((r.sp, r.ip), (0x7ffd10, 0x401000));
        assert_eq!(registers_of_waiting("running\n").map(|r| r.ip), None);
    }

    #[test]
    fn who_was_born_just_now_is_known_by_the_call() {
        let is_newborn = |orig_rax: i64, rax: i64| {
            let names = "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rcx rdx rsi rdi rip cs eflags rsp ss fs_base gs_base ds es fs gs";
            let mut all: serde_json::Map<String, serde_json::Value> =
                names.split(' ').map(|name| (name.to_owned(), 7.into())).collect();
            all.insert("architecture".to_owned(), "x86_64".into());
            all.extend([("orig_rax", orig_rax), ("rax", rax)].map(|(name, n)| (name.to_owned(), (n as u64).into())));
            serde_json::from_value::<RegisterSet>(all.into()).unwrap().is_newborn()
        };
        assert!(is_newborn(435, 0) && is_newborn(56, 0));
        // Its maker, one that is still in the call, and one that read nothing.
        assert!(!is_newborn(435, 4711) && !is_newborn(435, -512) && !is_newborn(0, 0));
    }

    #[test]
    fn one_that_runs_for_moments_is_looked_at_again() {
        let looks = std::cell::Cell::new(0);
        let look = || {
            looks.set(looks.get() + 1);
            if looks.get() < 3 { "running\n".to_owned() } else { "-1 0x7ffd10 0x401000\n".to_owned() }
        };
        assert_eq!(look_often(None, look).map(|r| r.ip), None);
        let until = Instant::now() + Duration::from_secs(20);
        assert_eq!(look_often(Some(until), look).map(|r| r.ip), Some(0x401000));
        assert_eq!(looks.get(), 3);
    }
}
