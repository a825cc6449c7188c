//! What the mappings of processes hold, read beside everything else.
//!
//! The kernel looks at each page for it (fs/proc/task_mmu.c), which takes as long
//! as stacks and heaps together: a thread of its own does it meanwhile.

use super::{Options, smaps};
use crate::guardian::Priority;
use crate::incident::left_out::Part;
use crate::incident::model::{Mapping, ProcessMemory};
use std::io;
use std::thread::{Builder, Scope, ScopedJoinHandle};

/// Enough for text of one line and a buffer on the heap.
const STACK_BYTES: usize = 128 << 10;

/// What [`smaps::read_memory`] says of a process.
type Answer = io::Result<(ProcessMemory, Vec<Mapping>)>;

/// Sums that are being read.
pub struct Sums<'scope, 'p> {
    pids: &'p [i32],
    with_mappings: bool,
    worker: Option<ScopedJoinHandle<'scope, Vec<Answer>>>,
}

impl<'scope, 'p: 'scope> Sums<'scope, 'p> {
    /// Begins to read those of `pids`, as urgent as the caller; who is to be alone does it in
    /// the end.
    pub fn start(scope: &'scope Scope<'scope, '_>, pids: &'p [i32], options: Options) -> Self {
        let with_mappings = options.parts.has(Part::Mappings);
        if options.alone {
            return Sums { pids, with_mappings, worker: None };
        }
        let priority = Priority::of_this_thread();
        let work = move || {
            priority.take();
            read(pids, with_mappings)
        };
        Sums { pids, with_mappings, worker: Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work).ok() }
    }

    /// One for each of the PIDs. Where no thread could be had they are read now.
    pub fn finish(self) -> impl Iterator<Item = (i32, Answer)> {
        let answers = match self.worker {
            Some(worker) => worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            None => read(self.pids, self.with_mappings),
        };
        self.pids.iter().copied().zip(answers)
    }
}

fn read(pids: &[i32], with_mappings: bool) -> Vec<Answer> {
    pids.iter().map(|&pid| smaps::read_memory(pid, with_mappings)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_in_order_with_a_thread_and_without() {
        let pids = [std::process::id() as i32, i32::MAX];
        for alone in [false, true] {
            let answers = std::thread::scope(|scope| {
                let sums = Sums::start(scope, &pids, Options { alone, ..Options::default() });
                assert_eq!(sums.worker.is_none(), alone);
                sums.finish().collect::<Vec<_>>()
            });
            assert!(matches!(&answers[..], [(a, Ok(_)), (i32::MAX, Err(_))] if *a == pids[0]), "{answers:?}");
        }
    }
}
