//! How addresses are resolved.

use crate::debug_files::{DebugDirs, Debuginfod, Search};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What is told of an address; less where memory is short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Detail {
    /// Names of symbol tables.
    Symbols,
    /// The function and the line, without what was inlined there.
    Functions,
    /// Everything.
    Inlined,
}

/// Anonymous memory that one thread needs for a unit with all its functions, in
/// bytes, and for each of the unit's addresses that are looked up at once.
const INLINED_BYTES: u64 = 4 << 20;
/// The same without inlined functions, whose names are most of it.
const FUNCTIONS_BYTES: u64 = 2 << 20;
/// Most that a file's compressed sections may take, whatever there is.
const MOST_DECOMPRESSED_BYTES: u64 = 4 << 30;

/// Settings of one run.
#[derive(Clone, Copy)]
pub struct Settings<'s> {
    /// Where separate debug files are.
    pub dirs: &'s DebugDirs,
    /// Servers that may be asked for what is not there.
    pub debuginfod: Option<&'s Debuginfod>,
    /// How many threads share the work; 1 makes none.
    pub threads: usize,
    /// Keeps no page of a file mapped that is not needed now, nor reads ahead:
    /// slower with memory in plenty, and the only way with very little.
    pub lean: bool,
    /// Anonymous memory that may still be taken, in bytes.
    pub headroom: &'s (dyn Fn() -> u64 + Sync),
}

impl fmt::Debug for Settings<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("dirs", self.dirs)
            .field("debuginfod", &self.debuginfod)
            .field("threads", &self.threads)
            .field("lean", &self.lean)
            .finish_non_exhaustive()
    }
}

impl<'s> Settings<'s> {
    /// One thread, and memory in plenty.
    #[must_use]
    pub fn new(dirs: &'s DebugDirs) -> Self {
        Settings { dirs, debuginfod: None, threads: 1, lean: false, headroom: &|| u64::MAX }
    }

    pub(crate) fn search(&self) -> Search<'s> {
        Search { dirs: self.dirs, server: self.debuginfod }
    }

    /// What decompressing may take now: the sweep needs memory, too.
    pub(crate) fn room(&self) -> u64 {
        (self.headroom)().saturating_sub(INLINED_BYTES * self.threads.max(1) as u64).min(MOST_DECOMPRESSED_BYTES)
    }

    /// What there is memory for now.
    pub(crate) fn detail(&self) -> Detail {
        let each = (self.headroom)() / self.threads.max(1) as u64;
        match each {
            INLINED_BYTES.. => Detail::Inlined,
            FUNCTIONS_BYTES.. => Detail::Functions,
            _ => Detail::Symbols,
        }
    }
}
