//! Books that runtimes and allocators keep of their memory, read from outside.
//!
//! In goes a [`Memory`], which reads a stopped process without touching it, and
//! the [`Image`](reprieve_symbolizer::Image) that says where its variables are.
//! Out comes plain data: who owns how much.
//!
//! Nothing that is read is trusted: each walk is bounded in steps and in what it
//! keeps, whatever it meets, and what does not look as it must ends that part of
//! the walk with a reason. The crate knows nothing of `/proc` or cgroups.

pub mod cpython;
mod estimate;
pub mod glibc;
pub mod go;
pub mod jemalloc;
mod memory;
mod search;

pub use estimate::{Sum, probability};
pub use memory::{Bounded, Memory};
