//! The evidence: every process and thread of a stopped memcg.
//!
//! Nothing here faults in a page of a target or waits for one. Whatever
//! cannot be read becomes a sentence in `gaps`; a snapshot never fails whole.

pub mod kernel;
pub mod kernel_log;
mod memory;
mod modules;
mod pagemap;
mod parts;
pub mod process;
pub mod smaps;
mod sums;
mod threads;

pub use memory::TargetMemory;
pub use modules::{LoadedModule, ModuleTable};
pub use pagemap::{Entry, Pagemap, page_size};
pub use parts::{Collect, Parts};
pub use smaps::{MapLine, read_maps};
pub use threads::locate;

use crate::hold::stop::HeldThread;
use crate::incident::growth::{Ended, GrowthSampling};
use crate::incident::left_out::Part;
use crate::incident::model::{Module, Process};
use crate::incident::units;
use crate::witness::{self, ProcessTables, Target};
use reprieve_heap_walk::Memory;
use reprieve_symbolizer::Unwinder;
use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};
use sums::Sums;

/// Time for walking the books of runtimes and allocators, of all processes.
const WALKS: Duration = Duration::from_secs(1);

/// Time for looking where the threads of a process wait that do not stop.
const LOOKS: Duration = Duration::from_millis(600);

/// What to record, and how.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// What is taken.
    pub parts: Parts,
    /// The machine is out of memory: start no thread, which takes memory, and look
    /// patiently at those who wait for it.
    pub alone: bool,
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Evidence {
    /// Processes in PID order.
    pub processes: Vec<Process>,
    /// Images that their stacks may point into.
    pub modules: Vec<Module>,
    /// Those that ended before.
    pub ended: Vec<Ended>,
    /// How page faults were sampled, where they were.
    pub growth: Option<GrowthSampling>,
    /// What could not be had.
    pub gaps: Vec<String>,
}

impl Evidence {
    /// Adds what another look saw, of other processes.
    pub fn append(&mut self, mut other: Evidence) {
        let mut table = ModuleTable::of(std::mem::take(&mut self.modules));
        let now: Vec<u32> = other.modules.drain(..).map(|module| table.index_of(module)).collect();
        self.modules = table.modules;
        for process in &mut other.processes {
            let of_threads = process.threads.iter_mut().flat_map(|thread| thread.frame_modules.iter_mut().flatten());
            let of_heaps =
                process.heaps.iter_mut().flat_map(|heap| heap.frames.iter_mut().filter_map(|f| f.at.as_mut()));
            let growth = process.growth.iter_mut();
            let of_growth = growth.flat_map(|growth| growth.frames.iter_mut().filter_map(|f| f.at.as_mut()));
            of_threads.chain(of_heaps).chain(of_growth).for_each(|at| at.module = now[at.module as usize]);
        }
        self.processes.append(&mut other.processes);
        self.gaps.append(&mut other.gaps);
    }
}

/// Records `pids`, whose threads were stopped as `held` says, and their heaps
/// where the tables that `heaps` reads know of them.
#[must_use]
pub fn take(
    pids: &[i32],
    held: &BTreeMap<i32, HeldThread>,
    heaps: impl FnOnce() -> Option<ProcessTables>,
    options: Options,
) -> Evidence {
    let mut table = ModuleTable::default();
    let mut evidence = Evidence::default();
    let until = Instant::now() + WALKS;
    thread::scope(|scope| {
        let sums = Sums::start(scope, pids, options);
        let heaps = heaps();
        for &pid in pids {
            match take_process(pid, held, heaps.as_ref(), &mut table, options, until) {
                Some(process) => evidence.processes.push(process),
                None => evidence.gaps.push(format!("process {pid} ended while it was being recorded")),
            }
        }
        let mut processes = evidence.processes.iter_mut().peekable();
        for (pid, answer) in sums.finish() {
            // In the same order, but for those that ended.
            let Some(process) = processes.next_if(|process| process.pid == pid) else { continue };
            match answer {
                Ok((memory, mappings)) => (process.memory, process.mappings) = (memory, mappings),
                Err(error) => process.gaps.push(format!("smaps: {error}")),
            }
        }
    });
    evidence.modules = table.modules;
    evidence
}

/// What is known of processes for next to nothing, to decide by it what else is taken: who they
/// are, and what they have in memory with shared pages in full.
#[must_use]
pub fn acquaint(pids: &[i32]) -> Vec<Process> {
    let acquaint = |&pid: &i32| {
        let mut process = process::identify(pid, false)?;
        let resident = process::resident_bytes(pid).unwrap_or(0);
        (process.memory.rss_bytes, process.memory.pss_bytes) = (resident, resident);
        process.threads = tids_of(pid).into_iter().map(|tid| threads::unread(tid, None)).collect();
        Some(process)
    };
    pids.iter().filter_map(acquaint).collect()
}

fn take_process(
    pid: i32,
    held: &BTreeMap<i32, HeldThread>,
    heaps: Option<&ProcessTables>,
    table: &mut ModuleTable,
    options: Options,
    until: Instant,
) -> Option<Process> {
    let parts = options.parts;
    let mut process = process::identify(pid, parts.has(Part::Cmdline))?;
    // The state letter now is our own stop; what it was before tells more.
    if let Some(before) = held.get(&pid) {
        process.state = before.state_before;
    }
    let maps = match smaps::read_maps(pid) {
        Ok(maps) => maps,
        Err(error) => {
            process.gaps.push(format!("maps: {error}"));
            Vec::new()
        }
    };
    process.mapping_count = maps.len() as u32;
    if maps.len() > smaps::DETAIL_LIMIT && parts.has(Part::Mappings) {
        process.gaps.push(format!("{} mappings: sums only", maps.len()));
    }
    // A zombie has no memory left to read.
    if maps.is_empty() {
        return Some(process);
    }
    if ![Part::Stacks, Part::Heap, Part::Malloc].into_iter().any(|part| parts.has(part)) {
        process.threads = tids_of(pid).into_iter().map(|tid| threads::identify(pid, tid, held.get(&tid))).collect();
        return Some(process);
    }
    let mut memory = match TargetMemory::open(pid) {
        Ok(memory) => memory,
        Err(error) => {
            process.gaps.push(format!("pagemap: {error}: stacks not read, since that could fault pages in"));
            return Some(process);
        }
    };
    let modules = table.load(pid, &maps, &mut |at, out| memory.read(at, out), &mut process.gaps);
    // A vDSO that nobody has called yet is not there, and not missed.
    let absent_before = memory.absent_pages();
    let mut unwinder = Unwinder::new();
    for module in &modules {
        let name = &table.modules[module.index as usize].path;
        unwinder.add_module(module.range.clone(), module.bias, &module.image, name);
    }
    let look_until = options.alone.then(|| Instant::now() + LOOKS);
    for tid in tids_of(pid) {
        let held = held.get(&tid);
        process.threads.push(match parts.has(Part::Stacks) {
            true => threads::read_thread(pid, tid, held, look_until, &mut unwinder, &modules, &mut memory),
            false => threads::identify(pid, tid, held),
        });
    }
    // What witnesses miss they tell themselves.
    let absent = memory.absent_pages() - absent_before;
    if absent > 0 {
        process.gaps.push(format!("{} that stacks needed were not in memory", units::count(absent, "page")));
    }
    let files = &table.modules;
    let mut target = Target { pid, maps: &maps, modules: &modules, files, memory: &mut memory, until };
    witness::ask(&mut process, &mut target, heaps, parts);
    Some(process)
}

/// Threads of a process; empty when it is gone.
#[must_use]
pub fn tids_of(pid: i32) -> Vec<i32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let mut tids: Vec<i32> = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    tids.sort_unstable();
    tids
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules_of_own_stacks(evidence: &Evidence) -> Vec<String> {
        let threads = evidence.processes.iter().flat_map(|process| &process.threads);
        let frames = threads.flat_map(|thread| thread.frame_modules.iter().flatten());
        frames.map(|at| evidence.modules[at.module as usize].path.clone()).collect()
    }

    #[test]
    fn looks_put_together_share_modules() {
        let own = [std::process::id() as i32];
        let look = || take(&own, &BTreeMap::new(), || None, Options::default());
        // Something is in front of what is shared.
        let mut first = Evidence::default();
        first.modules.push(Module { path: "/else".to_owned(), ..look().modules.remove(0) });
        let alone = look();
        first.append(look());
        let (modules, paths) = (first.modules.len(), modules_of_own_stacks(&first));
        assert_eq!(modules, alone.modules.len() + 1);
        first.append(look());
        assert_eq!(first.modules.len(), modules);
        assert_eq!(first.processes.len(), 2);
        assert!(!paths.is_empty() && !paths.contains(&"/else".to_owned()));
        assert!(modules_of_own_stacks(&first).starts_with(&paths));
    }
}
