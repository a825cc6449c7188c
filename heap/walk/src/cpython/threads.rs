//! What each thread runs now.

use super::Interpreter;
use crate::Memory;
use reprieve_heap_cpython::{Step, walk};

/// Interpreters of one process that are looked at.
const INTERPRETERS_MAX: usize = 256;
/// Threads of one process.
const THREADS_MAX: usize = 16 << 10;
/// Python frames kept of one thread, the innermost.
const FRAMES_MAX: usize = 512;
/// Python frames kept of one process.
const ALL_FRAMES_MAX: usize = 256 << 10;

/// A thread that runs Python.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptThread {
    /// Its TID in the process's own PID namespace; 0 where it is not told.
    pub native_id: u64,
    /// Its frames, innermost first.
    pub frames: Vec<ScriptFrame>,
    /// Whether the outermost frame is among them.
    pub whole: bool,
}

/// A frame of Python.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScriptFrame {
    /// Its code object, to be named by [`super::Codes`].
    pub code: u64,
    /// Which instruction of it runs; `None` where that cannot be.
    pub instruction: Option<u32>,
    /// The frame is the outermost of those that one call of
    /// `_PyEval_EvalFrameDefault` runs, and this address lies in the native frame
    /// of that call.
    pub entry: Option<u64>,
}

pub(super) fn all<M: Memory + ?Sized>(interpreter: &Interpreter, memory: &mut M) -> Vec<ScriptThread> {
    let layout = &interpreter.layout;
    let mut threads = Vec::new();
    let mut left = ALL_FRAMES_MAX;
    let word = |memory: &mut M, base: u64, offset: u64| memory.u64(base.checked_add(offset)?).filter(|&at| at != 0);
    let mut next_interpreter = word(memory, interpreter.place.runtime, layout.interpreters);
    for _ in 0..INTERPRETERS_MAX {
        let Some(current) = next_interpreter else { break };
        let mut next_thread = word(memory, current, layout.interpreter_threads);
        while let Some(thread) = next_thread.filter(|_| threads.len() < THREADS_MAX && left > 0) {
            let native_id = word(memory, thread, layout.thread.native_id).unwrap_or(0);
            let found = one(interpreter, memory, thread, native_id);
            left = left.saturating_sub(found.frames.len());
            threads.push(found);
            next_thread = word(memory, thread, layout.thread.next);
        }
        next_interpreter = word(memory, current, layout.interpreter_next);
    }
    threads
}

fn one<M: Memory + ?Sized>(interpreter: &Interpreter, memory: &mut M, thread: u64, native_id: u64) -> ScriptThread {
    let layout = &interpreter.layout;
    let mut frames: Vec<ScriptFrame> = Vec::new();
    let mut is_cut = false;
    let whole = walk(layout, &mut |at, out| memory.read(at, out), thread, &mut |step| match step {
        // Only the end of the run is still looked for.
        Step::Frame { .. } if frames.len() == FRAMES_MAX => {
            is_cut = true;
            frames.last().is_some_and(|frame| frame.entry.is_none())
        }
        Step::Frame { code, instruction } => {
            let first = code.wrapping_add(layout.code.instructions);
            // Two bytes each (_Py_CODEUNIT).
            let instruction = u32::try_from(instruction.wrapping_sub(first) / 2).ok();
            frames.push(ScriptFrame { code, instruction, entry: None });
            true
        }
        Step::Entry { at } => {
            if let Some(last) = frames.last_mut() {
                last.entry.get_or_insert(at);
            }
            true
        }
    });
    ScriptThread { native_id, frames, whole: whole && !is_cut }
}
