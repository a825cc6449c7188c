//! Witnesses: who owns the memory, seen from outside while nobody can move.

pub mod library;
pub mod preload;
pub mod python;
mod table;

pub use table::{HeapTable, ProcessTables, TABLE_NAME};

use crate::incident::model::{Module, Process};
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
    /// What is known of all files of the snapshot; `modules` has indices in it.
    pub files: &'t [Module],
    /// Its memory, as far as it is present.
    pub memory: &'t mut TargetMemory,
}

impl Target<'_> {
    /// Path of a module as the process sees it.
    #[must_use]
    pub fn module_path(&self, module: &LoadedModule) -> &str {
        self.files.get(module.index as usize).map_or("", |file| file.path.as_str())
    }
}

/// Asks every witness about a process and puts down what they say; `tables` are
/// those of the library where the process was started with it.
pub fn ask(process: &mut Process, target: &mut Target<'_>, tables: Option<&ProcessTables>) {
    let mut python = python::find(target, &mut process.gaps);
    if let Some(python) = &mut python {
        python.threads(target, &mut process.threads);
    }
    if let Some(tables) = tables {
        match preload::look(target, tables, python.as_mut()) {
            Ok(heap) => {
                process.gaps.extend(python.as_ref().and_then(|_| python::missing_in(&heap)));
                process.heaps.push(heap);
            }
            Err(why) => process.gaps.push(why),
        }
    }
    process.heaps.sort_by_key(|heap| heap.witness);
}
