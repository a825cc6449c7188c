//! `cargo xtask bench`: ratios against peers, measured in one run.

mod accounting;
mod bell;
mod field;
mod growth;
mod heap_cost;
mod heap_real;
mod heap_truth;
mod hold;
mod idle;
mod kernel;
mod outcomes;
mod peers;
mod symbolize;
mod unwind;

use crate::demo::build_release;
use anyhow::Result;
use clap::Subcommand;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What is measured.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Accounting for a memcg of 1 GiB, of 200 processes and of 100,000 mappings,
    /// against a quarter of each and against reading smaps.
    Accounting {
        /// Rounds, of which the median counts.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
    },
    /// From a full memcg to all of its threads standing still, with 1, 100 and 1,000
    /// guarded memcgs.
    Bell {
        /// OOMs under one guard, of which there are three for each count.
        #[arg(long, default_value_t = 15)]
        rounds: usize,
        /// A reprieve to measure instead of a release build of this checkout.
        #[arg(long)]
        program: Option<PathBuf>,
    },
    /// Stopping a program out of memory and recording its stacks, against
    /// eu-stack and gdb; and the guardian's memory meanwhile.
    Hold {
        /// Rounds, of which the median counts.
        #[arg(long, default_value_t = 7)]
        rounds: usize,
    },
    /// What sampling costs a program that only allocates, beside jemalloc's
    /// profiler, heaptrack and gperftools.
    HeapCost {
        /// Rounds, of which the median counts.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
    },
    /// Real programs at work with the library and without: same output, and
    /// profiles that reach their beginning.
    HeapReal {
        /// How long each works alone.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// What sampling page faults costs at several periods, and how far who grew is from
    /// who owns, for several allocators.
    Growth {
        /// Rounds, of which the median counts.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
    },
    /// CPU time and memory of a guard of 1,000 memcgs in which nothing happens, beside
    /// earlyoom, and systemd-oomd where it can run.
    Idle {
        /// How long.
        #[arg(long, default_value_t = 300)]
        seconds: u64,
        /// A reprieve to measure instead of a release build of this checkout.
        #[arg(long)]
        program: Option<PathBuf>,
    },
    /// Real programs out of memory under the kernel's killer, earlyoom, systemd-oomd where it
    /// can run, and reprieve: jobs finished, work lost, wrong victims, time to relief.
    Outcomes {
        /// Only scenarios that have this in their name.
        #[arg(long)]
        only: Option<String>,
        /// A reprieve to run instead of a release build of this checkout.
        #[arg(long)]
        program: Option<PathBuf>,
    },
    /// What the series of kernel patches costs who does not use it, in counted
    /// instructions, against the same kernel without it.
    Kernel,
    /// Names for 100,000 addresses of a kernel and of a Rust program, against the
    /// crates addr2line and blazesym, llvm-symbolizer, addr2line and eu-addr2line.
    Symbolize {
        /// Rounds, of which the median counts.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// A kernel with debug information instead of Debian's.
        #[arg(long)]
        vmlinux: Option<PathBuf>,
        /// Ask GNU addr2line and eu-addr2line for all addresses, too: minutes.
        #[arg(long)]
        slow: bool,
    },
    /// The stacks of 200 threads, against libunwind's accessors for ptrace, eu-stack and
    /// gdb: nanoseconds a frame, cold and warm.
    Unwind {
        /// Rounds, of which the median counts.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
    },
    /// Estimated live bytes of known sites against what the program counted.
    HeapTruth {
        /// Runs of each program, each with a seed of its own.
        #[arg(long, default_value_t = 100)]
        seeds: u64,
        /// Only one load: leak, churn, burst, cache, tiny, large, threads, C, Rust,
        /// Python or Go.
        #[arg(long)]
        only: Option<String>,
    },
}

/// Runs a benchmark.
pub fn run(root: &Path, bench: &Bench) -> Result<ExitCode> {
    match bench {
        Bench::Accounting { rounds } => accounting::run(root, *rounds),
        Bench::Bell { rounds, program } => bell::run(root, &built(root, program.as_deref())?, *rounds),
        Bench::Idle { seconds, program } => idle::run(root, &built(root, program.as_deref())?, *seconds),
        Bench::Outcomes { only, program } => outcomes::run(root, &built(root, program.as_deref())?, only.as_deref()),
        Bench::Hold { rounds } => hold::run(root, *rounds),
        Bench::Growth { rounds } => growth::run(root, *rounds),
        Bench::Kernel => kernel::run(root),
        Bench::Symbolize { rounds, vmlinux, slow } => {
            let (rounds, vmlinux, slow) = (*rounds, vmlinux.as_deref(), *slow);
            symbolize::run(root, &symbolize::Options { rounds, vmlinux, slow })
        }
        Bench::Unwind { rounds } => unwind::run(root, *rounds),
        Bench::HeapTruth { seeds, only } => heap_truth::run(root, *seeds, only.as_deref()),
        Bench::HeapReal { seconds } => heap_real::run(root, *seconds),
        Bench::HeapCost { rounds } => heap_cost::run(root, *rounds),
    }
}

/// The program that is measured.
fn built(root: &Path, given: Option<&Path>) -> Result<PathBuf> {
    given.map_or_else(|| build_release(root), |program| Ok(program.to_owned()))
}

/// The middle one of an odd number of values.
fn median<T: Copy + PartialOrd>(mut values: Vec<T>) -> Option<T> {
    values.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(super::median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(super::median::<u64>(vec![]), None);
    }
}
