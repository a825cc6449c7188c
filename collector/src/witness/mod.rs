//! Witnesses: who owns the memory, seen from outside while nobody can move.

pub mod go;
pub mod library;
pub mod preload;
mod table;

pub use table::{HeapTable, ProcessTables, TABLE_NAME};

use crate::incident::model::Process;
use crate::snapshot::{LoadedModule, MapLine, TargetMemory};

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
}

/// Asks every witness about a process and puts down what they say; `tables` are
/// those of the library where the process was started with it.
pub fn ask(process: &mut Process, target: &mut Target<'_>, tables: Option<&ProcessTables>) {
    let go = go::look(target);
    if let Some(tables) = tables {
        match preload::look(target, tables) {
            Ok(heap) => process.heaps.extend(match &go {
                Some(go) => go.leave(heap),
                None => Some(heap),
            }),
            // A Go program is static as a rule, and Go has said more.
            Err(_) if go.is_some() => {}
            Err(why) => process.gaps.push(why),
        }
    }
    if let Some(go) = go {
        process.heaps.extend(go.heap);
        process.gaps.extend(go.gaps);
    }
    process.heaps.sort_by_key(|heap| heap.witness);
}
