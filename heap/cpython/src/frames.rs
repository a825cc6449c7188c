//! The frames of one thread.

use crate::layout::Layout;

/// Frames that are looked at, of Python and of C together.
pub const MAX_STEPS: usize = 4096;

/// Frames that no Python function owns but `_PyEval_EvalFrameDefault` itself
/// (`FRAME_OWNED_BY_CSTACK` of 3.12 and 3.13, `FRAME_OWNED_BY_INTERPRETER` of
/// 3.14), and whatever comes after it in later versions.
const OWNED_BY_INTERPRETER: u8 = 3;
/// Bytes of a frame that are read at once: all its fields lie within.
const FRAME_BYTES: usize = 80;
/// Low bits of references that are tags (`_PyStackRef`, 3.14).
const TAGS: u64 = 7;

/// What [`walk`] meets, innermost first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A Python function.
    Frame {
        /// Its code object.
        code: u64,
        /// The instruction that runs, or the last that ran: an address.
        instruction: u64,
    },
    /// The frames since the last of these are run by one call of
    /// `_PyEval_EvalFrameDefault`, which has this address in its own native frame.
    Entry {
        /// An address on the C stack.
        at: u64,
    },
}

/// Follows the frames of the thread whose `PyThreadState` is at `thread`, and
/// calls `visit` with each until it says no. Returns whether the end was reached:
/// not where memory could not be read, or after [`MAX_STEPS`].
///
/// `read` fills its buffer from an address, or returns `false`.
pub fn walk(
    layout: &Layout,
    read: &mut dyn FnMut(u64, &mut [u8]) -> bool,
    thread: u64,
    visit: &mut dyn FnMut(Step) -> bool,
) -> bool {
    let Some(mut cframe) = word(read, thread, layout.thread.frame) else { return false };
    let mut frame = match layout.thread.cframe {
        Some((current, _)) => match word(read, cframe, current) {
            Some(frame) => frame,
            None => return false,
        },
        None => cframe,
    };
    for _ in 0..MAX_STEPS {
        if frame == 0 {
            return true;
        }
        let mut bytes = [0; FRAME_BYTES];
        if !read(frame, &mut bytes) {
            return false;
        }
        let fields = layout.frame;
        let at = |offset: u64| bytes.get(usize::try_from(offset).ok()?..)?.first_chunk().copied();
        let (Some(code), Some(previous), Some(instruction), Some(&owner)) = (
            at(fields.code).map(u64::from_le_bytes),
            at(fields.previous).map(u64::from_le_bytes),
            at(fields.instruction).map(u64::from_le_bytes),
            bytes.get(fields.owner as usize),
        ) else {
            return false;
        };
        let entry = match fields.is_entry {
            None if owner >= OWNED_BY_INTERPRETER => Some(frame),
            None => None,
            Some(_) if owner >= OWNED_BY_INTERPRETER => return false,
            Some(flag) if bytes.get(flag as usize) == Some(&0) => None,
            Some(_) => Some(cframe),
        };
        if entry != Some(frame) && !visit(Step::Frame { code: code & !TAGS, instruction }) {
            return true;
        }
        if let Some(at) = entry {
            if !visit(Step::Entry { at }) {
                return true;
            }
            if let (Some(_), Some((_, previous))) = (fields.is_entry, layout.thread.cframe) {
                match word(read, cframe, previous) {
                    Some(outer) => cframe = outer,
                    None => return false,
                }
            }
        }
        frame = previous;
    }
    false
}

/// A number that tells a code object from another that came to its place: of the
/// addresses of its file, its name and its lines, which it has for life, and of the
/// line on which it begins. What is compiled next often gets the places of what was
/// freed last, all of them; but the path lives as long as its module.
#[must_use]
pub fn check(filename: u64, qualname: u64, linetable: u64, first_line: u32) -> u16 {
    let mixed = [filename, qualname, linetable, u64::from(first_line)]
        .into_iter()
        .fold(0u64, |mixed, word| (mixed.rotate_left(29) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    (mixed >> 49) as u16
}

fn word(read: &mut dyn FnMut(u64, &mut [u8]) -> bool, base: u64, offset: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    read(base.checked_add(offset)?, &mut bytes).then(|| u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::collections::BTreeMap;
    use std::vec::Vec;

    /// Words by address; what is not there is zero, below the first page nothing.
    #[derive(Default)]
    struct Sparse(BTreeMap<u64, u64>);

    impl Sparse {
        fn read(&self, at: u64, out: &mut [u8]) -> bool {
            for (i, byte) in out.iter_mut().enumerate() {
                let address = at + i as u64;
                let word = self.0.get(&(address & !7)).copied().unwrap_or(0);
                *byte = word.to_le_bytes()[(address & 7) as usize];
            }
            at >= 4096
        }

        fn steps(&self, layout: &Layout, thread: u64) -> (Vec<Step>, bool) {
            let mut steps = Vec::new();
            let whole = walk(layout, &mut |at, out| self.read(at, out), thread, &mut |step| {
                steps.push(step);
                true
            });
            (steps, whole)
        }
    }

    const THREAD: u64 = 0x10000;

    #[test]
    fn runs_of_3_11_end_with_their_c_frame() {
        let layout = Layout::of_version(0x030b_02f0).unwrap();
        let mut memory = Sparse::default();
        let (outer_c, inner_c) = (0x7f00_0000u64, 0x7e00_0000u64);
        memory.0.extend([(THREAD + 56, inner_c), (inner_c + 8, 0x3000), (inner_c + 16, outer_c)]);
        // Three frames, of which the second and the third are entries.
        for (frame, previous, code, is_entry) in [
            (0x3000u64, 0x2000u64, 0xc0d3u64 << 4, 0u64),
            (0x2000, 0x1000, 0xc0d2 << 4, 1),
            (0x1000, 0, 0xc0d1 << 4, 1),
        ] {
            memory.0.extend([(frame + 32, code), (frame + 48, previous), (frame + 56, code + 190)]);
            memory.0.insert(frame + 64, is_entry << 32);
        }
        let frame = |code: u64| Step::Frame { code: code << 4, instruction: (code << 4) + 190 };
        let expected =
            [frame(0xc0d3), frame(0xc0d2), Step::Entry { at: inner_c }, frame(0xc0d1), Step::Entry { at: outer_c }];
        assert_eq!(memory.steps(&layout, THREAD), (expected.to_vec(), true));
    }

    #[test]
    fn runs_of_3_12_end_with_the_interpreters_own_frame() {
        let layout = Layout::of_version(0x030c_01f0).unwrap();
        let mut memory = Sparse::default();
        memory.0.extend([(THREAD + 56, 0x7e00_0000), (0x7e00_0000, 0x3000)]);
        for (frame, previous, code, owner) in [(0x3000u64, 0x2000u64, 0xc0d20u64, 0u64), (0x2000, 0, 0xc0d10, 3)] {
            memory.0.extend([(frame, code), (frame + 8, previous), (frame + 56, code + 194)]);
            memory.0.insert(frame + 64, owner << 48);
        }
        let expected = [Step::Frame { code: 0xc0d20, instruction: 0xc0d20 + 194 }, Step::Entry { at: 0x2000 }];
        assert_eq!(memory.steps(&layout, THREAD), (expected.to_vec(), true));
    }

    #[test]
    fn a_loop_and_a_hole_end() {
        let layout = Layout::of_version(0x030c_01f0).unwrap();
        let mut memory = Sparse::default();
        memory.0.extend([(THREAD + 56, 0x7e00_0000), (0x7e00_0000, 0x3000), (0x3008, 0x3000)]);
        let (steps, whole) = memory.steps(&layout, THREAD);
        assert_eq!((steps.len(), whole), (MAX_STEPS, false));
        memory.0.insert(0x3008, 8);
        assert!(!memory.steps(&layout, THREAD).1, "a frame that cannot be read");
        memory.0.insert(THREAD + 56, 0);
        assert_eq!(memory.steps(&layout, THREAD), (Vec::new(), false));
        assert_eq!(memory.steps(&layout, u64::MAX - 3), (Vec::new(), false));
    }
}
