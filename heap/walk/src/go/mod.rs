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

/// Estimate of a whole from samples, as it adds up.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sum {
    /// Bytes.
    pub bytes: f64,
    /// Blocks.
    pub objects: f64,
    /// Samples behind it.
    pub samples: u64,
    /// Variance of `bytes`.
    pub variance: f64,
    /// Variance of `objects`.
    pub objects_variance: f64,
}

impl Sum {
    /// `samples` blocks of `size` bytes, sampled every `rate` bytes on average.
    ///
    /// One of them stands for 1/p others, with p the chance that a block of
    /// that size is sampled (`scaleHeapSample` in `runtime/pprof/protomem.go`);
    /// the variance of that is (1-p)/p² (Horvitz and Thompson, 1952).
    #[must_use]
    pub fn of(samples: u64, size: u64, rate: u64) -> Self {
        if samples == 0 {
            return Sum::default();
        }
        let p = match rate {
            0 | 1 => 1.0,
            // Exact for small blocks of a huge rate, too.
            rate => (-(-(size as f64) / rate as f64).exp_m1()).max(f64::MIN_POSITIVE),
        };
        let (count, weighted) = (samples as f64, size as f64 / p);
        Sum {
            bytes: count * weighted,
            objects: count / p,
            samples,
            variance: count * weighted * weighted * (1.0 - p),
            objects_variance: count * (1.0 - p) / (p * p),
        }
    }

    /// Adds another.
    pub fn join(&mut self, other: &Sum) {
        self.bytes += other.bytes;
        self.objects += other.objects;
        self.samples = self.samples.saturating_add(other.samples);
        self.variance += other.variance;
        self.objects_variance += other.objects_variance;
    }
}
