//! What unwinding starts from, and what comes of it.

use crate::Avma;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The registers that unwinding starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registers {
    /// Instruction pointer.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer: rbp or x29; 0 when unknown.
    pub fp: u64,
    /// Link register (aarch64 only); 0 when unknown.
    pub lr: u64,
}

/// How a frame was found, which says how far to trust it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FoundBy {
    /// The instruction pointer itself.
    Register,
    /// The frame below had call frame information, or Go's, which says the same.
    Cfi,
    /// The frame below is of a signal: this is what it interrupted, with the registers
    /// that the kernel kept.
    Signal,
    /// The frame below had none: a frame pointer was assumed, so this is a guess.
    FramePointer,
}

/// One frame, unsymbolized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawFrame {
    /// Instruction pointer (innermost, or interrupted by a signal) or return address.
    pub address: Avma,
    /// How it was found.
    pub found: FoundBy,
    /// Stack pointer in it: the frame reaches from here to that of its caller. It is
    /// not recorded.
    #[serde(skip)]
    pub stack_pointer: u64,
}

impl RawFrame {
    /// Address to look up: a return address may be the first byte of the next
    /// function when the call does not return, so one byte less is meant. What a signal
    /// interrupted may be the first instruction of its function.
    #[must_use]
    pub fn lookup_address(&self) -> Avma {
        if self.is_exact() { self.address } else { Avma(self.address.0.wrapping_sub(1)) }
    }

    /// Whether the address is of the instruction that is next, not of what follows a call.
    pub(super) fn is_exact(&self) -> bool {
        matches!(self.found, FoundBy::Register | FoundBy::Signal)
    }
}

/// Why a stack ends where it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum StackEnd {
    /// The outermost frame was reached.
    Complete,
    /// A page of the stack was not in memory.
    MissingMemory {
        /// The address that could not be read.
        address: Avma,
    },
    /// No rule leads further up.
    NoUnwindInfo {
        /// Where it was missing.
        address: Avma,
    },
    /// More frames than were asked for.
    TooDeep,
    /// The stack pointer did not move towards the caller.
    Loop,
    /// The thread's registers could not be had.
    NoRegisters,
    /// Nobody has looked, on purpose.
    LeftOut,
}

impl fmt::Display for StackEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StackEnd::Complete => f.write_str("complete"),
            StackEnd::MissingMemory { address } => write!(f, "stack page at {:#x} was not in memory", address.0),
            StackEnd::NoUnwindInfo { address } => write!(f, "no way to unwind from {:#x}", address.0),
            StackEnd::TooDeep => f.write_str("deeper than is recorded"),
            StackEnd::Loop => f.write_str("stack pointer does not move on"),
            StackEnd::NoRegisters => f.write_str("registers could not be read"),
            StackEnd::LeftOut => f.write_str("left out on purpose"),
        }
    }
}

/// A stack, innermost frame first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawStack {
    /// Frames, innermost first.
    pub frames: Vec<RawFrame>,
    /// Why it ends.
    pub end: StackEnd,
}

impl RawStack {
    /// The stack of a thread whose registers could not be had.
    #[must_use]
    pub fn without_registers() -> Self {
        RawStack { frames: Vec::new(), end: StackEnd::NoRegisters }
    }

    /// The stack of a thread that nobody looks at.
    #[must_use]
    pub fn left_out() -> Self {
        RawStack { frames: Vec::new(), end: StackEnd::LeftOut }
    }
}
