//! What an address stands for, or why that is not known.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A function at a place in the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Demangled name.
    pub function: String,
    /// Source file as the compiler recorded it.
    pub file: Option<String>,
    /// Line, from 1.
    pub line: Option<u32>,
    /// Column, from 1.
    pub column: Option<u32>,
    /// Whether it was inlined into the next frame.
    pub inlined: bool,
}

/// A frame as it is found, lent to who takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameRef<'a> {
    /// Demangled name; `None` where only the place is known.
    pub function: Option<&'a str>,
    /// As in [`Frame`].
    pub file: Option<&'a str>,
    /// As in [`Frame`].
    pub line: Option<u32>,
    /// As in [`Frame`].
    pub column: Option<u32>,
}

/// Where a name came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SymbolSource {
    /// DWARF debug information.
    Dwarf,
    /// `.symtab`.
    SymbolTable,
    /// `.dynsym`: exported functions only.
    DynamicSymbolTable,
    /// The symbol table in `.gnu_debugdata`, which `strip` leaves in place.
    MiniDebugInfo,
    /// A stub that jumps to a function of another file, named after that.
    Plt,
    /// What Go's runtime prints stacks from, which `strip` leaves in place.
    GoPclntab,
    /// A runtime's map of the code that it generated.
    PerfMap,
    /// A runtime's record of the code that it generated, with lines perhaps.
    JitDump,
    /// What the running kernel says of its own functions.
    Kallsyms,
}

/// What an address stands for, innermost frame first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolution {
    /// At least one frame.
    pub frames: Vec<Frame>,
    /// Where the names came from.
    pub source: SymbolSource,
}

/// A [`Resolution`] as it is found; all frames but the last were inlined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer<'a> {
    /// At least one.
    pub frames: &'a [FrameRef<'a>],
    /// Where the names came from.
    pub source: SymbolSource,
}

impl Answer<'_> {
    /// A copy to keep.
    #[must_use]
    pub fn to_resolution(&self) -> Resolution {
        let last = self.frames.len().saturating_sub(1);
        let frames = self.frames.iter().enumerate().map(|(index, frame)| Frame {
            function: frame.function.unwrap_or("??").to_owned(),
            file: frame.file.map(str::to_owned),
            line: frame.line,
            column: frame.column,
            inlined: index < last,
        });
        Resolution { frames: frames.collect(), source: self.source }
    }
}

/// Why an address has no name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Miss {
    /// It lies in no mapped file: generated code, or a wrong stack.
    NoModule,
    /// The file could not be opened any more.
    FileUnavailable,
    /// A file is there, but it is another build.
    BuildIdMismatch,
    /// It has no build ID, by which it could be known again.
    NoBuildId,
    /// It is generated code, and its runtime left no map of it.
    NoMap,
    /// The file is not usable.
    NotElf,
    /// Neither debug information nor a symbol covers it.
    NoSymbol,
    /// It is the kernel's, which hides its addresses from us.
    KernelHidden,
    /// It is of another kernel than the one that runs.
    OtherKernel,
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Miss::NoModule => "in no mapped file (generated code?)",
            Miss::FileUnavailable => "file could not be opened",
            Miss::BuildIdMismatch => "the file on disk is another build",
            Miss::NoBuildId => "it has no build ID to find it by",
            Miss::NoMap => "generated code that no perf map or jitdump names",
            Miss::NotElf => "file is not a valid ELF file",
            Miss::NoSymbol => "no symbol covers it (install debug symbols?)",
            Miss::KernelHidden => "the kernel hides its addresses (kernel.kptr_restrict)",
            Miss::OtherKernel => "it is of another kernel than the one that runs",
        })
    }
}
