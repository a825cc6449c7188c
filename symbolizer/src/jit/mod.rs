//! Code that a runtime generated: what it wrote about it, for perf, while it ran.
//!
//! Any program of the process's user can write such files, and they grow as long as the
//! process lives: readers take a limited part of them, and memory for the addresses
//! that are asked for alone.

mod jitdump;
mod perf_map;
mod v8;

pub use jitdump::jitdump;
pub(crate) use perf_map::skip_line;
pub use perf_map::{MOST_MAP_BYTES, perf_map};

/// Longest name; what is longer is cut.
const MOST_NAME_BYTES: usize = 1024;

/// A name as text, cut.
fn name(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(MOST_NAME_BYTES)]).into_owned()
}
