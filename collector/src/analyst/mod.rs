//! The analyst: symbols and renderings, in a process of its own.
//!
//! The guardian needs neither to hold, to decide or to act. So whatever a
//! damaged debug file or a huge one does here, it costs names, not the hold. Only
//! inside the memcg that is full it is a thread of the guardian, since the reserve is
//! for its process alone.

mod files;
mod jit;
mod kernel;
mod later;
mod memory;
mod process;
mod render;
mod symbolize;

pub use later::complete;
pub use memory::limit_to;
pub use process::{Analyst, AnalystFailure, Kind, MEMORY_BYTES, Phase, child_main, settle};
pub use render::render;
pub use symbolize::{Names, Places, symbolize};

/// The symbols that the analyst leaves there.
pub const SYMBOLS: &str = "symbols.json";
