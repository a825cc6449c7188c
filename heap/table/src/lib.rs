//! The table of sampled allocations that a process shares with its guardian.
//!
//! The guardian makes one memory file (memfd), touches it in advance and locks
//! it, so its pages are charged to the guardian and reading them needs nothing of
//! the process, which may be parked or dead. A service without a guardian makes its
//! own. It is dealt out in slabs: a process takes one as its [home](layout) and more
//! as it needs them.
//!
//! [`Writer`] runs inside `malloc` and `free` of any program: no allocation, no
//! lock, and at every instant a table that [`read`] finds valid. [`read`] trusts
//! nothing that it reads.
#![no_std]

#[cfg(feature = "reader")]
extern crate alloc;

mod frame;
pub mod layout;
#[cfg(feature = "reader")]
mod reader;
mod region;
mod sweep;
mod words;
mod writer;

pub use frame::{Frame, SCRIPT, ScriptFrame, frames};
#[cfg(feature = "reader")]
pub use reader::{LiveSample, ProcessTable, Stack, read, visit_live};
pub use region::{NotARegion, Owner, Region, RegionState, Settings};
pub use sweep::{Home, sweep};
pub use words::Words;
pub use writer::{Allocation, Entry, Writer, filter_place};

/// Most words kept of a stack; the outermost frames beyond are cut. A return
/// address is one, a frame of an interpreter two.
pub const MAX_FRAMES: usize = 352;

/// Probability that an allocation of `bytes` is sampled when one byte in
/// `period` is, on average (Poisson): 1 - e^(-bytes/period).
#[must_use]
pub fn probability(bytes: u64, period: u64, exp: impl Fn(f64) -> f64) -> f64 {
    if bytes == 0 {
        // malloc(0) returns a block: it counts as one byte.
        return probability(1, period, exp);
    }
    1.0 - exp(-(bytes as f64) / period.max(1) as f64)
}
