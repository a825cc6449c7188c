//! The Go runtime's memory profile, `runtime/mprof.go`.
//!
//! A running program publishes what it sampled at the end of a garbage
//! collection; all since then waits in three cycles that only the runtime sees.
//! From outside both are to be had, so nothing lags behind: what was allocated
//! and what the collector has freed. Garbage that it has not met yet counts as
//! in use, since its memory is.
//!
//! [`walk`] reads the buckets; [`Folder`] makes stacks of return addresses out
//! of their stacks of functions; [`rate_address`] finds where the sampling rate
//! stands in a binary without symbols.

mod buckets;
mod code;
mod search;
mod stacks;

pub use buckets::{Profile, Record, Refusal, walk};
pub use code::rate_address;
pub use stacks::{Folder, Stack};

use std::ops::Range;

/// `runtime.MemProfileRate` unless a program sets it: mean bytes between samples.
pub const DEFAULT_RATE: u64 = 512 << 10;

/// What a walk is told of a program; addresses are the target's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Program {
    /// `runtime.mbuckets`, where a symbol says so.
    pub buckets: Option<u64>,
    /// Where it is searched for otherwise: variables without an initial value.
    pub zeroed: Vec<Range<u64>>,
    /// `runtime.MemProfileRate`; without it the default is assumed.
    pub rate: Option<u64>,
}
