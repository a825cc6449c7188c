//! Who made processes grow, by their page faults: the types in `incident.json`.
//!
//! It answers who grew RSS, not who owns the heap: of a malloc's memory a page counts for
//! who touched it first, whoever had it later (`docs/growth.md`).

use super::model::HeapFrame;
use serde::{Deserialize, Serialize};

/// How page faults were sampled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrowthSampling {
    /// Whose.
    pub scope: GrowthScope,
    /// Faults of one sample.
    pub period: u64,
    /// Whether those count, too, that the kernel takes for a program in a system call.
    pub of_kernel: bool,
    /// Samples that were taken, of all processes.
    pub samples: u64,
    /// Samples that found no room in a ring.
    pub lost_samples: u64,
    /// Samples of which the process or the stack found no room afterwards.
    pub unplaced_samples: u64,
    /// Of sampled pages one in so many is kept.
    pub kept_one_in: u64,
    /// Rings of all CPUs, which the kernel locks.
    pub ring_bytes: u64,
    /// Tables of pages and stacks.
    pub table_bytes: u64,
}

/// Whose page faults are sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GrowthScope {
    /// All in the cgroup.
    Cgroup,
    /// The command and all that it started.
    Process,
}

/// Who made a process grow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Growth {
    /// What the bytes are.
    pub basis: GrowthBasis,
    /// Sampled pages that they stand on.
    pub samples: u64,
    /// What the stacks grew by, all together.
    pub bytes: u64,
    /// What of that is memory that the program itself mapped, without a file.
    pub direct_bytes: u64,
    /// What is shared memory: tmpfs, memory files, SysV.
    pub shared_bytes: u64,
    /// What is stacks of threads.
    pub stack_bytes: u64,
    /// What is a malloc's, or may be: who touched it first need not own it.
    pub heap_bytes: u64,
    /// In memory, in mappings of which no page was sampled, or where samples were lost too few.
    pub unseen_bytes: u64,
    /// Distinct frames of the stacks.
    pub frames: Vec<HeapFrame>,
    /// Those that grew most first.
    pub stacks: Vec<GrowthStack>,
}

impl Growth {
    /// Where who touched first is who wanted it.
    #[must_use]
    pub fn reliable_bytes(&self) -> u64 {
        self.direct_bytes + self.shared_bytes + self.stack_bytes
    }
}

/// What the bytes of a growth are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GrowthBasis {
    /// What is in memory, of each mapping divided among its samples that still are.
    Present,
    /// It ended: what was in memory when its pages were last looked at, and what was
    /// touched since, scaled to what the kernel says it had.
    Ended,
    /// The same, where the kernel does not say: each sample stands for its period.
    EndedUnscaled,
}

/// What one stack touched first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GrowthStack {
    /// Indices in [`Growth::frames`], innermost first: that is where it was touched.
    pub frames: Vec<u32>,
    /// Whether frames are missing at the outer end.
    pub cut: bool,
    /// What it grew by.
    pub bytes: u64,
    /// Standard deviation of `bytes` by sampling alone.
    pub sigma_bytes: u64,
    /// Sampled pages that it stands on.
    pub samples: u64,
    /// What of `bytes` is not a malloc's.
    pub reliable_bytes: u64,
}

/// A process that ended before the evidence was taken, as it is remembered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    /// PID in our PID namespace.
    pub pid: i32,
    /// Its name.
    pub comm: String,
    /// Whether the kernel's log says that it was killed.
    pub killed_by_kernel: bool,
    /// Who made it grow.
    pub growth: Growth,
}
