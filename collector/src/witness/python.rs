//! CPython: what its threads run, and names for its functions.

use super::Target;
use crate::incident::model::{self, Heap, Thread};
use crate::snapshot::{LoadedModule, TargetMemory};
use reprieve_heap_table::ScriptFrame;
use reprieve_heap_walk::cpython::{Codes, Interpreter, Place, ScriptThread};
use reprieve_symbolizer::{Frame, RawStack, StackEnd, Svma};
use std::collections::BTreeMap;
use std::fs;

/// Of so many samples of a Python program some are taken while it runs Python.
const ENOUGH_SAMPLES: u64 = 32;
/// A function whose code object is gone, or was never there.
const UNKNOWN: &str = "[unknown Python function]";

/// CPython in a process.
#[derive(Debug)]
pub struct Python {
    interpreter: Interpreter,
    codes: Codes,
}

/// Finds the interpreter of a process, if it has one. One that cannot be looked at
/// is told in `gaps`.
pub fn find(target: &mut Target<'_>, gaps: &mut Vec<String>) -> Option<Python> {
    for module in target.modules {
        if let Some(why) = other_python(target.module_path(module)) {
            // The program and its library say the same.
            if !gaps.contains(&why) {
                gaps.push(why);
            }
            continue;
        }
        let Some((range, _)) = module.image.section_data(".PyRuntime") else { continue };
        match Interpreter::open(target.memory, place(module, range.start)) {
            Ok(interpreter) => return Some(Python { interpreter, codes: Codes::default() }),
            Err(why) => gaps.push(format!("Python's frames are not told: {why}")),
        }
    }
    None
}

/// What the image says of the interpreter in it, whose `_PyRuntime` is all of its
/// section.
fn place(module: &LoadedModule, runtime: u64) -> Place {
    let found = module.image.symbols(&["Py_Version", "PyCode_Type"]);
    let at = |index: usize| found.get(index).copied().flatten().map(|(Svma(at), _)| at);
    // An unsigned long (Python/getversion.c).
    let version = at(0).and_then(|version| {
        let (range, bytes) = module.image.section_data(".rodata")?;
        let from = usize::try_from(version.checked_sub(range.start)?).ok()?;
        u32::try_from(u64::from_le_bytes(*bytes.get(from..)?.first_chunk()?)).ok()
    });
    Place {
        runtime: runtime.wrapping_add(module.bias),
        version,
        code_type: at(1).map(|at| at.wrapping_add(module.bias)),
    }
}

/// The frame of a function that nobody knows.
#[must_use]
pub fn unknown() -> Frame {
    Frame { function: UNKNOWN.to_owned(), file: None, line: None, column: None, inlined: false }
}

/// What is missing where the library in the process has not found the interpreter:
/// it looks for exported symbols only.
#[must_use]
pub fn missing_in(heap: &Heap) -> Option<String> {
    let is_seen = heap.alloc.samples < ENOUGH_SAMPLES || heap.frames.iter().any(|frame| frame.named.is_some());
    (!is_seen).then(|| "its heap's stacks have no Python frames: its interpreter exports no symbols".to_owned())
}

/// What is missing where a module is a Python that keeps its frames otherwise.
fn other_python(path: &str) -> Option<String> {
    let name = path.rsplit('/').next()?;
    if name.starts_with("libpypy") || name.starts_with("pypy") {
        return Some(format!("{name} is PyPy: its frames are not told, native ones are"));
    }
    let version = name.strip_prefix("lib").unwrap_or(name).strip_prefix("python")?;
    let version = version.split(".so").next().unwrap_or(version).trim_end_matches(['m', 'd', 'u']);
    let mut numbers = version.splitn(2, '.').map(str::parse::<u32>);
    match (numbers.next()?, numbers.next()?) {
        (Ok(major), Ok(minor)) if (major, minor) < (3, 11) => Some(format!(
            "Python {version}: its frames are not told, native ones are; those of 3.11 and later would be"
        )),
        _ => None,
    }
}

impl Python {
    /// The frame of a function in the past or present.
    pub fn name(
        &mut self,
        memory: &mut TargetMemory,
        code: u64,
        check: Option<u16>,
        instruction: Option<u32>,
    ) -> Frame {
        match self.codes.get(&self.interpreter, memory, code, check) {
            Some(code) => Frame {
                function: code.function.clone(),
                file: Some(code.file.clone()),
                line: code.line(instruction),
                ..unknown()
            },
            None => unknown(),
        }
    }

    /// The same, of a frame that the library recorded.
    pub fn recorded(&mut self, memory: &mut TargetMemory, frame: ScriptFrame) -> Frame {
        self.name(memory, frame.code, Some(frame.check), frame.instruction)
    }

    /// Puts down what each thread runs, beside its native stack.
    pub fn threads(&mut self, target: &mut Target<'_>, threads: &mut [Thread]) {
        let mut running: BTreeMap<u64, ScriptThread> = BTreeMap::new();
        for thread in self.interpreter.threads(target.memory) {
            // A thread may have a state in several interpreters: it runs in one.
            let known = running.entry(thread.native_id).or_insert_with(|| thread.clone());
            if known.frames.len() < thread.frames.len() {
                *known = thread;
            }
        }
        for thread in threads {
            let Some(found) = own_tid(target.pid, thread.tid).and_then(|tid| running.get(&tid)) else { continue };
            let natives = native_frames(&found.frames, &thread.stack);
            thread.script = found
                .frames
                .iter()
                .zip(natives)
                .map(|(frame, native)| model::ScriptFrame {
                    native,
                    frame: self.name(target.memory, frame.code, None, frame.instruction),
                })
                .collect();
        }
    }
}

/// For each Python frame the index of the native frame that runs it: that in which
/// the address lies that the last of its run tells.
fn native_frames(frames: &[reprieve_heap_walk::cpython::ScriptFrame], stack: &RawStack) -> Vec<Option<u32>> {
    let starts: Vec<u64> = stack.frames.iter().map(|frame| frame.stack_pointer).collect();
    let mut natives = vec![None; frames.len()];
    let mut native = None;
    for (place, frame) in natives.iter_mut().zip(frames).rev() {
        if let Some(entry) = frame.entry {
            // Frames lie above one another: the last that begins below it.
            let after = starts.partition_point(|&start| start <= entry);
            // Where the outermost of a stack that was cut ends is not known.
            let is_known = after < starts.len() || stack.end == StackEnd::Complete;
            native = after.checked_sub(1).filter(|_| is_known).map(|index| index as u32);
        }
        *place = native;
    }
    natives
}

/// TID in the innermost PID namespace of the thread, which is how it sees itself.
fn own_tid(pid: i32, tid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).ok()?;
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    ids.split_whitespace().next_back()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use reprieve_heap_walk::cpython::ScriptFrame;
    use reprieve_symbolizer::{Avma, FoundBy, RawFrame};

    #[test]
    fn runs_belong_to_the_native_frame_that_holds_them() {
        let frame = |stack_pointer| RawFrame { address: Avma(1), found: FoundBy::Cfi, stack_pointer };
        let mut stack = RawStack { frames: [100, 200, 300, 400].map(frame).to_vec(), end: StackEnd::Complete };
        let python = |entry| ScriptFrame { code: 1, instruction: None, entry };
        let frames = [python(None), python(Some(250)), python(Some(350)), python(Some(450)), python(None)];
        assert_eq!(native_frames(&frames, &stack), [Some(1), Some(1), Some(2), Some(3), None]);
        stack.end = StackEnd::TooDeep;
        assert_eq!(native_frames(&frames, &stack), [Some(1), Some(1), Some(2), None, None]);
        stack.frames.clear();
        assert_eq!(native_frames(&frames, &stack), [None; 5]);
    }

    #[test]
    fn pythons_that_are_not_looked_at() {
        for path in
            ["/usr/lib/libpython3.10.so.1.0", "/usr/bin/python2.7", "/opt/libpython3.6m.so.1.0", "/x/libpypy3-c.so"]
        {
            assert!(other_python(path).is_some(), "{path}");
        }
        for path in ["/usr/bin/python3", "/usr/bin/python3.11", "/usr/lib/libc.so.6", "/x/libpythonic.so", "python3.x"]
        {
            assert_eq!(other_python(path), None, "{path}");
        }
    }
}
