//! Reading somebody else's memory.

/// Memory of a process that does not move.
pub trait Memory {
    /// Fills `out` with what is at `address`; `false`, with `out` in any state,
    /// where a page is not in memory or time is up.
    fn read(&mut self, address: u64, out: &mut [u8]) -> bool;

    /// A byte.
    fn u8(&mut self, address: u64) -> Option<u8> {
        let mut bytes = [0; 1];
        self.read(address, &mut bytes).then_some(bytes[0])
    }

    /// A 32-bit word.
    fn u32(&mut self, address: u64) -> Option<u32> {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes).then(|| u32::from_le_bytes(bytes))
    }

    /// A 64-bit word, which is also a pointer.
    fn u64(&mut self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes).then(|| u64::from_le_bytes(bytes))
    }
}

/// A memory that says no after so many bytes, so that every walk ends.
#[derive(Debug)]
pub struct Bounded<'m, M: ?Sized> {
    memory: &'m mut M,
    bytes_left: u64,
}

impl<'m, M: Memory + ?Sized> Bounded<'m, M> {
    /// At most `bytes` of `memory`; each read counts for eight at least.
    pub fn new(memory: &'m mut M, bytes: u64) -> Self {
        Bounded { memory, bytes_left: bytes }
    }

    /// Whether it said no for that reason.
    #[must_use]
    pub fn is_used_up(&self) -> bool {
        self.bytes_left == 0
    }
}

impl<M: Memory + ?Sized> Memory for Bounded<'_, M> {
    fn read(&mut self, address: u64, out: &mut [u8]) -> bool {
        let bytes = (out.len() as u64).max(8);
        match self.bytes_left.checked_sub(bytes) {
            Some(left) => self.bytes_left = left,
            None => {
                self.bytes_left = 0;
                return false;
            }
        }
        self.memory.read(address, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Zeroes;
    impl Memory for Zeroes {
        fn read(&mut self, _: u64, out: &mut [u8]) -> bool {
            out.fill(0);
            true
        }
    }

    #[test]
    fn a_bound_ends_every_walk() {
        let mut zeroes = Zeroes;
        let mut bounded = Bounded::new(&mut zeroes, 20);
        assert_eq!((bounded.u8(0), bounded.u64(8)), (Some(0), Some(0)));
        assert!(!bounded.is_used_up());
        assert_eq!(bounded.u32(16), None);
        assert!(bounded.is_used_up());
        assert_eq!(bounded.u8(0), None);
    }
}
