//! The words of a stack: return addresses, and frames of interpreters.

/// A frame of a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// A return address.
    Native(u64),
    /// A frame of an interpreter.
    Script(ScriptFrame),
}

/// A frame of an interpreter. Two words of a stack, each with the highest bit set,
/// which no address of a program has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScriptFrame {
    /// Address of its code object.
    pub code: u64,
    /// What tells this code object from one that came to its place later.
    pub check: u16,
    /// Which instruction of it ran, counted as its interpreter does; `None` where
    /// that is not known.
    pub instruction: Option<u32>,
}

/// Set in both words of a script's frame.
pub const SCRIPT: u64 = 1 << 63;
/// Bits of a code object's address: canonical addresses of programs have 47.
const CODE_BITS: u32 = 48;
/// Bits of the check.
const CHECK_BITS: u32 = 15;

impl ScriptFrame {
    /// Its two words; `None` where the address has too many bits.
    #[must_use]
    pub fn words(self) -> Option<[u64; 2]> {
        if self.code >> CODE_BITS != 0 {
            return None;
        }
        let check = u64::from(self.check) & ((1 << CHECK_BITS) - 1);
        // One more, so that 0 is none.
        let instruction = self.instruction.map_or(0, |i| u64::from(i) + 1);
        Some([SCRIPT | check << CODE_BITS | self.code, SCRIPT | instruction])
    }

    fn of(words: [u64; 2]) -> Self {
        let instruction = (words[1] & !SCRIPT).checked_sub(1).and_then(|i| u32::try_from(i).ok());
        ScriptFrame {
            code: words[0] & ((1 << CODE_BITS) - 1),
            check: (words[0] >> CODE_BITS) as u16 & ((1 << CHECK_BITS) - 1),
            instruction,
        }
    }
}

/// The frames that `words` stand for, innermost first.
pub fn frames(words: &[u64]) -> impl Iterator<Item = Frame> {
    let mut words = words.iter().copied();
    core::iter::from_fn(move || {
        let first = words.next()?;
        if first & SCRIPT == 0 {
            return Some(Frame::Native(first));
        }
        // A second word without its mark was written by nobody of ours.
        let second = words.next().filter(|word| word & SCRIPT != 0).unwrap_or(SCRIPT);
        Some(Frame::Script(ScriptFrame::of([first, second])))
    })
}

#[cfg(test)]
mod tests {
    extern crate alloc;
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn words_and_frames() {
        let known = ScriptFrame { code: 0x7fff_ffff_fff0, check: 0x7fff, instruction: Some(u32::MAX) };
        let unknown = ScriptFrame { code: 16, check: 0, instruction: None };
        let mut words = Vec::from([0x40_1000]);
        for frame in [known, unknown] {
            words.extend(frame.words().unwrap());
        }
        words.push(0x7f00_0000_1234);
        let expected = [Frame::Native(0x40_1000), Frame::Script(known), Frame::Script(unknown)];
        let read: Vec<Frame> = frames(&words).collect();
        assert_eq!(read[..3], expected);
        assert_eq!(read[3], Frame::Native(0x7f00_0000_1234));
        assert_eq!(ScriptFrame { code: 1 << 48, ..known }.words(), None);
    }

    #[test]
    fn words_that_nobody_wrote() {
        let lone: Vec<Frame> = frames(&[u64::MAX]).collect();
        assert!(matches!(lone[..], [Frame::Script(ScriptFrame { instruction: None, .. })]));
        assert_eq!(frames(&[SCRIPT, 5, 6]).count(), 2);
    }
}
