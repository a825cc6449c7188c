//! What a memcg was like before it was full, as plain data.
//!
//! Of the records that were kept until then one is compared with what was found: the
//! latest after which nearly all of the growth came.

use serde::{Deserialize, Serialize};

/// The history of a memcg until its OOM.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// Usage from the first record to the OOM, the oldest first; the older, the sparser.
    pub usage: Vec<UsagePoint>,
    /// The record that is compared was made so long before the OOM was noticed.
    pub before_us: u64,
    /// The growth came so long before the OOM at most, where that is known to be less than
    /// `before_us`: usage was still as in the record, or what grew is younger.
    #[serde(default)]
    pub within_us: Option<u64>,
    /// Charged then.
    pub before_bytes: u64,
    /// Charged when the evidence was taken.
    pub after_bytes: u64,
    /// Counters of the memcg that say what it is charged for, then and at the OOM.
    pub kinds: Vec<KindGrowth>,
    /// Anonymous and shared memory of processes, then and at the OOM; those that grew most
    /// come first.
    pub processes: Vec<ProcessGrowth>,
    /// Whether heaps were recorded by stack; then their stacks tell `before_bytes`.
    pub has_heap: bool,
    /// Live bytes that the record has at stacks that were too many, or could not be sized.
    pub heap_rest_bytes: u64,
    /// What the record itself cost.
    pub cost: BaselineCost,
}

impl Baseline {
    /// The time in which the growth came, as well as that is known.
    #[must_use]
    pub fn span_us(&self) -> u64 {
        self.within_us.map_or(self.before_us, |within| within.min(self.before_us))
    }
}

/// Usage at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsagePoint {
    /// So long before the OOM was noticed.
    pub before_us: u64,
    /// Charged then.
    pub usage_bytes: u64,
}

/// A counter of the memcg.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindGrowth {
    /// `anon`, `file`, `shmem`, `kernel` or `sock`, as version 2 names them.
    pub kind: String,
    /// In the record.
    pub before_bytes: u64,
    /// At the OOM.
    pub after_bytes: u64,
}

/// A process's own memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessGrowth {
    /// In our PID namespace.
    pub pid: i32,
    /// Its name.
    pub comm: String,
    /// In the record, RssAnon and RssShmem; `null` where the record does not have it: it
    /// came later, or was among the small ones of many.
    pub before_bytes: Option<u64>,
    /// At the OOM.
    pub after_bytes: u64,
}

/// What recording cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaselineCost {
    /// Records made so far.
    pub records: u64,
    /// What they took, all together.
    pub took_us: u64,
    /// Since the first.
    pub since_us: u64,
    /// What is kept in the guardian's memory.
    pub kept_bytes: u64,
}
