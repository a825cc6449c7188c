//! CPython from 3.11 on: the Python frames of every thread, and the names of code
//! objects.
//!
//! [`stacks`] does all for a process of which nothing is known but the place.
//! [`Interpreter::open`] takes where `_PyRuntime` is and what its symbols say;
//! [`Interpreter::threads`] walks what each thread runs now; [`Codes`] names code
//! objects, also those of frames that were recorded in the past.

mod code;
mod lines;
mod text;
mod threads;

pub use code::{Code, Codes};
pub use threads::{ScriptFrame, ScriptThread};

use crate::{Bounded, Memory};
use reprieve_heap_cpython::{DEBUG_OFFSETS_BYTES, Layout};
use std::fmt;

/// Bytes that are read of the threads of one process, so that every walk ends: a
/// frame is 80.
const BYTES_MAX: u64 = 8 << 20;

/// What an ELF image says of the interpreter in it, as run-time addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// `_PyRuntime`, the symbol or the section `.PyRuntime`.
    pub runtime: u64,
    /// Value of `Py_Version`, where the image has it: needed before 3.13 only.
    pub version: Option<u32>,
    /// `PyCode_Type`; without it types are known by their name.
    pub code_type: Option<u64>,
}

/// Why an interpreter is not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// `_PyRuntime` is not in memory.
    NotThere,
    /// Nothing says which version it is.
    NoVersion,
    /// Its structures are not known: major and minor version.
    Version(u8, u8),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NotThere => f.write_str("_PyRuntime is not in memory"),
            Refusal::NoVersion => f.write_str("its version is not told: it is stripped and older than 3.13"),
            Refusal::Version(major, minor) => {
                write!(f, "version {major}.{minor} is not known; 3.11 to 3.14 are")
            }
        }
    }
}

/// An interpreter that can be looked at.
#[derive(Debug, Clone, Copy)]
pub struct Interpreter {
    place: Place,
    layout: Layout,
}

impl Interpreter {
    /// Reads what it says of itself.
    pub fn open<M: Memory + ?Sized>(memory: &mut M, place: Place) -> Result<Self, Refusal> {
        let mut bytes = [0; DEBUG_OFFSETS_BYTES];
        if !memory.read(place.runtime, &mut bytes) {
            return Err(Refusal::NotThere);
        }
        if let Some(layout) = Layout::from_debug_offsets(&bytes) {
            return Ok(Interpreter { place, layout });
        }
        let told = bytes.strip_prefix(reprieve_heap_cpython::COOKIE).and_then(|rest| rest.first_chunk());
        let version = place.version.or_else(|| u32::try_from(u64::from_le_bytes(*told?)).ok());
        let version = version.ok_or(Refusal::NoVersion)?;
        let layout = Layout::of_version(version).filter(|_| told.is_none());
        let layout = layout.ok_or(Refusal::Version((version >> 24) as u8, (version >> 16) as u8))?;
        Ok(Interpreter { place, layout })
    }

    /// Major and minor version.
    #[must_use]
    pub fn version(&self) -> (u8, u8) {
        ((self.layout.version >> 24) as u8, (self.layout.version >> 16) as u8)
    }

    /// What each thread runs now. Bounded in threads, frames and bytes read.
    pub fn threads<M: Memory + ?Sized>(&self, memory: &mut M) -> Vec<ScriptThread> {
        threads::all(self, &mut Bounded::new(memory, BYTES_MAX))
    }
}

/// A function that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedFrame {
    /// Qualified name.
    pub function: String,
    /// Its file, as it was compiled.
    pub file: String,
    /// The line that runs.
    pub line: Option<u32>,
}

/// What each thread runs, by name: TID and frames, innermost first; those whose code
/// is not there are left out.
pub fn stacks<M: Memory + ?Sized>(memory: &mut M, place: Place) -> Result<Vec<(u64, Vec<NamedFrame>)>, Refusal> {
    let interpreter = Interpreter::open(memory, place)?;
    let mut codes = Codes::default();
    let threads = interpreter.threads(memory);
    Ok(threads
        .into_iter()
        .map(|thread| {
            let mut name = |frame: &ScriptFrame| {
                let code = codes.get(&interpreter, memory, frame.code, None)?;
                let line = code.line(frame.instruction);
                Some(NamedFrame { function: code.function.clone(), file: code.file.clone(), line })
            };
            (thread.native_id, thread.frames.iter().filter_map(&mut name).collect())
        })
        .collect())
}
