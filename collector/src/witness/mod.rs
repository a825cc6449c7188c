//! Witnesses: who owns the memory, seen from outside while nobody can move.

mod absent;
pub mod library;
mod own;
pub mod preload;
mod table;

pub use table::{HeapTable, ProcessTables, TABLE_NAME};

use crate::incident::model::Process;
use crate::snapshot::{LoadedModule, MapLine, TargetMemory};

/// What is missing where the executable's malloc is in front of ours.
const OWN_MALLOC: &str = "its executable has a malloc of its own: of its heap only what it maps is seen";

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

/// The tables that the library filled in these processes: `guardians` and those
/// that processes made for themselves.
#[must_use]
pub fn read_tables(guardians: Option<&HeapTable>, pids: &[i32]) -> ProcessTables {
    let mut tables = guardians.map(|table| table.read(pids)).unwrap_or_default();
    own::add(&mut tables, pids);
    tables
}

/// Asks every witness about a process and puts down what they say; `tables` are
/// those of the library, `None` where it was refused.
pub fn ask(process: &mut Process, target: &mut Target<'_>, tables: Option<&ProcessTables>) {
    if let Some(tables) = tables {
        match preload::look(target, tables) {
            Some(Ok(heap)) => {
                let sees_blocks =
                    tables.by_pid.get(&target.pid).is_some_and(|(_, t)| t.live.iter().any(|s| !s.mapping));
                if !sees_blocks && absent::has_own_malloc(process, target) {
                    process.gaps.push(OWN_MALLOC.to_owned());
                }
                process.heaps.push(heap);
            }
            Some(Err(why)) => process.gaps.push(why),
            None => process.gaps.push(absent::why(process, target)),
        }
    }
    process.heaps.sort_by_key(|heap| heap.witness);
}
