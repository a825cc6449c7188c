//! Walks end in time.

use crate::snapshot::TargetMemory;
use reprieve_heap_walk::Memory;
use std::time::Instant;

/// Reads between looks at the clock.
const UNTIMED: u32 = 1024;

/// A memory that says no when time is up.
#[derive(Debug)]
pub struct Timed {
    memory: TargetMemory,
    until: Instant,
    untimed: u32,
}

impl Timed {
    /// `memory` until then.
    pub fn new(memory: TargetMemory, until: Instant) -> Self {
        Timed { memory, until, untimed: 0 }
    }

    /// Whether it says no by now.
    pub fn is_late(&self) -> bool {
        Instant::now() >= self.until
    }
}

impl Memory for Timed {
    fn read(&mut self, address: u64, out: &mut [u8]) -> bool {
        if self.untimed == 0 {
            if self.is_late() {
                return false;
            }
            self.untimed = UNTIMED;
        }
        self.untimed -= 1;
        self.memory.read(address, out)
    }
}
