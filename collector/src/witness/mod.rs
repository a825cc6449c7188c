//! Witnesses: who owns the memory, seen from outside while nobody can move.

pub mod library;
pub mod preload;
mod table;

pub use table::{HeapTable, ProcessTables, TABLE_NAME};
