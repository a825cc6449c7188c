//! Where CPython keeps the frames of a thread, from 3.11 on.
//!
//! [`Layout`] says where its structures have their fields: from a table for 3.11
//! and 3.12, from what the interpreter says of itself (`_Py_DebugOffsets`) since
//! 3.13. [`walk`] follows the frames of one thread through any way to read
//! memory. No allocation, no standard library: the same code runs in the guardian,
//! from outside, and inside `malloc` of the program itself.
//!
//! Nothing that is read is trusted; the walk is bounded in steps.
#![no_std]

mod frames;
mod layout;

pub use frames::{MAX_STEPS, Step, check, walk};
pub use layout::{COOKIE, CodeFields, DEBUG_OFFSETS_BYTES, FrameFields, Layout, StringFields, ThreadFields};
