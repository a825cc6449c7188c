//! What the fuzz target `ring` in collector/fuzz feeds: a ring that anybody filled, and what
//! is remembered of it. Nobody else's interface.

use super::ledger::Ledger;
use super::look;
use super::record::Record;
use super::ring::Ring;
use crate::incident::growth::{Growth, GrowthBasis};

/// Bytes of the ring.
pub const RING_BYTES: usize = 64 << 10;
/// More than any process has (`PID_MAX_LIMIT`, include/linux/threads.h): nothing is read of it.
const NOBODY: i32 = 1 << 30;

/// Where text of a kernel could begin.
const KERNEL_BASE: u64 = 0xffff_ffff_8100_0000;

/// What came of a ring.
#[derive(Debug)]
pub struct Remembered {
    /// Records that were told.
    pub records: u64,
    /// Pieces that were none.
    pub broken: u64,
    /// Page faults of those, and which of them no process is known of.
    pub faults: u64,
    /// See above.
    pub unplaced: u64,
    /// Bytes of stack that the faults had together.
    pub stack_bytes: u64,
    /// Of each process that is known, who made it grow.
    pub growths: Vec<Growth>,
}

/// Reads a ring with this in it at a place of the stream, `most` bytes at a time. What is
/// longer than the ring is cut.
pub fn remember(begin: u64, bytes: &[u8], most: usize) -> std::io::Result<Remembered> {
    let mut ring = Ring::of_ours(RING_BYTES)?;
    // The kernel counts from 0, and nobody writes so much.
    let begin = begin >> 1;
    let bytes = &bytes[..bytes.len().min(RING_BYTES)];
    ring.write(begin, bytes);
    ring.set_ends(begin + bytes.len() as u64, begin);
    let mut ledger = Ledger::new();
    ledger.kernel_base = Some(KERNEL_BASE);
    let (mut scratch, mut records, mut stack_bytes) = (Vec::new(), 0, 0);
    let mut is_empty = false;
    while !is_empty {
        is_empty = ring.drain(&mut scratch, most.max(1), |record| {
            records += 1;
            stack_bytes += if let Record::Fault(fault) = &record { fault.stack.len() as u64 } else { 0 };
            ledger.take(&of_nobody(record));
        });
    }
    ledger.settle();
    let books = ledger.all_living().chain(ledger.ended());
    let growths = books.map(|book| {
        let grown = look::remembered(&ledger.samples.of(book.id), ledger.samples.one_in());
        grown.into_growth(GrowthBasis::EndedUnscaled, None, &ledger.stacks, |_| 0)
    });
    let growths = growths.collect();
    let Ledger { faults, unplaced, .. } = ledger;
    Ok(Remembered { records, broken: ring.broken(), faults, unplaced, stack_bytes, growths })
}

/// The same of a process that is not there.
fn of_nobody(record: Record<'_>) -> Record<'_> {
    let nobody = |pid: i32| if pid > 0 { pid | NOBODY } else { pid };
    match record {
        Record::Fault(mut fault) => {
            fault.pid = nobody(fault.pid);
            Record::Fault(fault)
        }
        Record::Exec { pid, time } => Record::Exec { pid: nobody(pid), time },
        Record::Fork { pid, parent, time } => Record::Fork { pid: nobody(pid), parent: nobody(parent), time },
        Record::Exit { pid, time } => Record::Exit { pid: nobody(pid), time },
        // What is no path of the kernel's is not opened.
        Record::Mapped { pid, time, .. } => Record::Mapped { pid: nobody(pid), time, code: None },
        other @ (Record::Lost(_) | Record::Other) => other,
    }
}

// The seed has the registers of one architecture.
#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use crate::snapshot::page_size;
    use crate::witness::growth::record::made_up::{body, record, sample, sample_in_kernel};
    use perf_event_open_sys::bindings as perf;

    const BEGIN: u64 = RING_BYTES as u64 - 300;

    /// A program that forks: both touch pages, the child ends, and the last, which the kernel
    /// touches, is told over the end of the ring.
    fn records() -> Vec<u8> {
        let exec = perf::PERF_RECORD_MISC_COMM_EXEC as u16;
        let comm = [&body(&[7, 7], &[])[..], b"program\0", &body(&[7, 7], &[1])].concat();
        let task = |pid: i32, parent: i32, time| body(&[pid, parent, pid, parent], &[time, 0, time]);
        let stack_pointer = 0x7fff_0000;
        let touch = |pid, time, address| sample(pid, time, address, [0, stack_pointer, 0x40_1000], &[1; 48]);
        let chain = [perf::PERF_CONTEXT_KERNEL, KERNEL_BASE + 0x1000, KERNEL_BASE + 0x2000];
        [
            record(perf::PERF_RECORD_COMM, exec, &comm),
            record(perf::PERF_RECORD_MMAP2, 0, &task(7, 1, 2)),
            touch(7, 3, 0x7000_0000),
            touch(7, 4, 0x7000_1000),
            touch(7, 5, stack_pointer),
            record(perf::PERF_RECORD_FORK, 0, &task(8, 7, 6)),
            touch(8, 7, 0x7000_0000),
            record(perf::PERF_RECORD_EXIT, 0, &task(8, 7, 8)),
            record(perf::PERF_RECORD_LOST, 0, &body(&[], &[0, 3])),
            sample_in_kernel(7, 9, 0x7000_1000, &chain, [0, stack_pointer, 0x40_1000], &[1; 48]),
        ]
        .concat()
    }

    #[test]
    fn the_seed_is_a_ring_that_is_remembered() {
        let told = remember(BEGIN << 1, &records(), 100).unwrap();
        assert_eq!((told.records, told.broken, told.faults, told.unplaced), (10, 0, 5, 0));
        assert_eq!(told.stack_bytes, 5 * 48);
        let pages = |bytes: u64| bytes / page_size();
        let grown: Vec<_> = told.growths.iter().map(|g| (pages(g.stack_bytes), pages(g.heap_bytes))).collect();
        assert_eq!(grown, [(1, 2), (0, 1)]);
        let of_kernel = |growth: &Growth| growth.frames.iter().filter(|f| f.at.is_some()).count();
        assert_eq!(told.growths.iter().map(of_kernel).collect::<Vec<_>>(), [2, 0]);
        let seed = [&(BEGIN << 1).to_le_bytes()[..], &100_u16.to_le_bytes(), &records()].concat();
        assert_eq!(seed, include_bytes!("../../../fuzz/seeds/ring/fork"));
    }
}
