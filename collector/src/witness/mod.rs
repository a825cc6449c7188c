//! Witnesses: who owns the memory, seen from outside while nobody can move.

mod absent;
mod frames;
pub mod go;
pub mod growth;
mod jemalloc;
pub mod library;
mod malloc;
mod own;
pub mod preload;
pub mod python;
mod table;
mod timed;
pub mod totals;

use frames::Frames;
pub use growth::GrowthWitness;
pub use table::{HeapTable, ProcessTables, TABLE_NAME};

use crate::incident::left_out::Part;
use crate::incident::model::{Estimate, Module, Process};
use crate::snapshot::{LoadedModule, MapLine, Parts, TargetMemory};
use reprieve_heap_walk::Sum;
use std::time::Instant;
use totals::StackTotals;

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
    /// What is known of all files of the snapshot; `modules` has indices in it.
    pub files: &'t [Module],
    /// Its memory, as far as it is present.
    pub memory: &'t mut TargetMemory,
    /// When walks of long books must end, for all processes together.
    pub until: Instant,
}

impl Target<'_> {
    /// Path of a module as the process sees it.
    #[must_use]
    pub fn module_path(&self, module: &LoadedModule) -> &str {
        self.files.get(module.index as usize).map_or("", |file| file.path.as_str())
    }
}

/// The tables that the library filled in these processes: `guardians`, of which it is known
/// what was in it `before`, and those that processes made for themselves.
#[must_use]
pub fn read_tables(guardians: Option<&HeapTable>, before: Option<&StackTotals>, pids: &[i32]) -> ProcessTables {
    let mut tables = guardians.map(|table| table.read(pids)).unwrap_or_default();
    tables.before = before.cloned();
    own::add(&mut tables, pids);
    tables
}

/// Asks the witnesses of these `parts` about a process and puts down what they say; `tables`
/// are those of the library, `None` where it was refused.
pub fn ask(process: &mut Process, target: &mut Target<'_>, tables: Option<&ProcessTables>, parts: Parts) {
    let (of_heap, of_stacks) = (parts.has(Part::Heap), parts.has(Part::Stacks));
    let go = if of_heap { go::look(target) } else { None };
    let mut python = if of_heap || of_stacks { python::find(target, &mut process.gaps) } else { None };
    if let Some(python) = python.as_mut().filter(|_| of_stacks) {
        python.threads(target, &mut process.threads);
    }
    let mut unseen = None;
    if let Some(tables) = tables.filter(|_| of_heap) {
        match preload::look(target, tables, python.as_mut()) {
            Some(Ok(heap)) => {
                let sees_blocks =
                    tables.by_pid.get(&target.pid).is_some_and(|(_, t)| t.live.iter().any(|s| !s.mapping));
                if !sees_blocks && absent::has_own_malloc(process, target) {
                    process.gaps.push(OWN_MALLOC.to_owned());
                }
                process.gaps.extend(python.as_ref().and_then(|_| python::missing_in(&heap)));
                process.heaps.extend(match &go {
                    Some(go) => go.leave(heap),
                    None => Some(heap),
                });
            }
            Some(Err(why)) => process.gaps.push(why),
            // A Go program is static as a rule, and Go has said more.
            None if go.is_some() => {}
            None => unseen = Some(absent::why(process, target)),
        }
    }
    if let Some(go) = go {
        process.heaps.extend(go.heap);
        process.gaps.extend(go.gaps);
    }
    if parts.has(Part::Malloc) {
        malloc::look(process, target);
    }
    if of_heap {
        jemalloc::look(process, target);
    }
    if process.heaps.is_empty() {
        process.gaps.extend(unseen);
    }
    process.heaps.sort_by_key(|heap| heap.witness);
}

/// An estimate in whole bytes and blocks.
fn estimate(sum: &Sum) -> Estimate {
    Estimate {
        bytes: sum.bytes as u64,
        objects: sum.objects as u64,
        samples: sum.samples,
        sigma_bytes: sum.variance.sqrt() as u64,
        sigma_objects: sum.objects_variance.sqrt() as u64,
    }
}
