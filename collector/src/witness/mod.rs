//! Witnesses: who owns the memory, seen from outside while nobody can move.

mod jemalloc;
pub mod library;
mod malloc;
pub mod preload;
mod table;
mod timed;

pub use table::{HeapTable, ProcessTables, TABLE_NAME};

use crate::incident::model::Process;
use crate::snapshot::{LoadedModule, MapLine, TargetMemory};
use std::time::Instant;

/// A stopped process, as witnesses look at it.
#[derive(Debug)]
pub struct Target<'t> {
    /// Its PID.
    pub pid: i32,
    /// All its mappings.
    pub maps: &'t [MapLine],
    /// ELF files among them.
    pub modules: &'t [LoadedModule],
    /// Its memory, as far as it is present.
    pub memory: &'t mut TargetMemory,
    /// When walks of long books must end, for all processes together.
    pub until: Instant,
}

/// Asks every witness about a process and puts down what they say; `tables` are
/// those of the library where the process was started with it.
pub fn ask(process: &mut Process, target: &mut Target<'_>, tables: Option<&ProcessTables>) {
    if let Some(tables) = tables {
        match preload::look(target, tables) {
            Ok(heap) => process.heaps.push(heap),
            Err(why) => process.gaps.push(why),
        }
    }
    malloc::look(process, target);
    jemalloc::look(process, target);
    process.heaps.sort_by_key(|heap| heap.witness);
}
