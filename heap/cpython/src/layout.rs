//! Offsets of fields, by version.

/// First bytes of `_PyRuntime` since 3.13 (`_Py_Debug_Cookie`,
/// Include/internal/pycore_runtime_init.h of 3.13, pycore_debug_offsets.h of 3.14).
pub const COOKIE: &[u8; 8] = b"xdebugpy";

/// What is read of `_Py_DebugOffsets`: to the end of its unicode object, which
/// comes later in 3.14 than in 3.13.
pub const DEBUG_OFFSETS_BYTES: usize = 648;

/// Where fields are, in bytes from the start of their structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// `PY_VERSION_HEX`: major, minor and micro in the upper three bytes.
    pub version: u32,
    /// `_PyRuntimeState.interpreters.head`.
    pub interpreters: u64,
    /// `PyInterpreterState.next`.
    pub interpreter_next: u64,
    /// `PyInterpreterState.threads.head`.
    pub interpreter_threads: u64,
    /// Thread states.
    pub thread: ThreadFields,
    /// Frames.
    pub frame: FrameFields,
    /// Code objects.
    pub code: CodeFields,
    /// Strings, bytes and types.
    pub string: StringFields,
}

/// `PyThreadState`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThreadFields {
    /// The next of the interpreter's list.
    pub next: u64,
    /// pthread_self(3) of its thread.
    pub id: u64,
    /// gettid(2) of its thread.
    pub native_id: u64,
    /// `cframe` where there is one, else `current_frame`.
    pub frame: u64,
    /// Before 3.13 a `_PyCFrame` on the C stack is in between: its `current_frame`
    /// and `previous`.
    pub cframe: Option<(u64, u64)>,
}

/// `_PyInterpreterFrame`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameFields {
    /// The code object.
    pub code: u64,
    /// The caller.
    pub previous: u64,
    /// The instruction that runs, or the last that ran.
    pub instruction: u64,
    /// Who owns it.
    pub owner: u64,
    /// 3.11 only: whether `_PyEval_EvalFrameDefault` was entered with it. Later
    /// ones have a frame in between that the C stack owns.
    pub is_entry: Option<u64>,
}

/// `PyCodeObject`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CodeFields {
    /// `co_filename`.
    pub filename: u64,
    /// `co_qualname`.
    pub qualname: u64,
    /// `co_linetable`.
    pub linetable: u64,
    /// `co_firstlineno`, 32 bits.
    pub first_line: u64,
    /// Its instructions, two bytes each.
    pub instructions: u64,
}

/// `PyUnicodeObject`, `PyBytesObject` and `PyTypeObject`; sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StringFields {
    /// Characters of a string.
    pub length: u64,
    /// Its bit field of 32 bits.
    pub state: u64,
    /// First bit of `kind` in it; `compact` and `ascii` follow.
    pub kind_bit: u32,
    /// Where the characters of an ASCII string are.
    pub ascii: u64,
    /// Where those of another compact string are.
    pub compact: u64,
    /// Size of a bytes object's content.
    pub bytes_size: u64,
    /// The content.
    pub bytes: u64,
    /// Type of an object.
    pub object_type: u64,
    /// Name of a type, a C string.
    pub type_name: u64,
}

/// 3.11.x, 64 bits. The internal headers of 3.11.2 and 3.11.7 give the same: none
/// of these may change within a minor version.
const V3_11: Layout = Layout {
    version: 0x030b_0000,
    interpreters: 40,
    interpreter_next: 0,
    interpreter_threads: 16,
    thread: ThreadFields { next: 8, id: 152, native_id: 160, frame: 56, cframe: Some((8, 16)) },
    frame: FrameFields { code: 32, previous: 48, instruction: 56, owner: 69, is_entry: Some(68) },
    code: CodeFields { filename: 112, qualname: 128, linetable: 136, first_line: 72, instructions: 184 },
    string: StringFields {
        length: 16,
        state: 32,
        kind_bit: 2,
        ascii: 48,
        compact: 72,
        bytes_size: 16,
        bytes: 32,
        object_type: 8,
        type_name: 24,
    },
};

/// 3.12.x, 64 bits (internal headers of 3.12.1).
const V3_12: Layout = Layout {
    version: 0x030c_0000,
    interpreter_threads: 72,
    thread: ThreadFields { next: 8, id: 136, native_id: 144, frame: 56, cframe: Some((0, 8)) },
    frame: FrameFields { code: 0, previous: 8, instruction: 56, owner: 70, is_entry: None },
    code: CodeFields { filename: 112, qualname: 128, linetable: 136, first_line: 68, instructions: 192 },
    string: StringFields { ascii: 40, compact: 56, ..V3_11.string },
    ..V3_11
};

/// No structure is bigger than this, but for the interpreter's own.
const SIZE_MAX: u64 = 16 << 10;
/// `PyInterpreterState` and `_PyRuntimeState` are some hundred KiB.
const BIG_SIZE_MAX: u64 = 16 << 20;

impl Layout {
    /// By `Py_Version`, for those that have no debug offsets; `None` for versions
    /// that are not known.
    #[must_use]
    pub fn of_version(version: u32) -> Option<Self> {
        let layout = match version >> 16 {
            0x030b => V3_11,
            0x030c => V3_12,
            _ => return None,
        };
        Some(Layout { version, ..layout })
    }

    /// From the first [`DEBUG_OFFSETS_BYTES`] of `_PyRuntime`; `None` without the
    /// cookie, for versions whose groups are not known, and for offsets that
    /// cannot be.
    #[must_use]
    pub fn from_debug_offsets(bytes: &[u8; DEBUG_OFFSETS_BYTES]) -> Option<Self> {
        if bytes[..8] != *COOKIE {
            return None;
        }
        let word = |index: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[8 + index * 8..][..8]);
            u64::from_le_bytes(word)
        };
        let version = u32::try_from(word(0)).ok()?;
        let free_threaded = word(1);
        // Words before each group, and fields within it.
        let groups = match version >> 16 {
            0x030d => Groups::V3_13,
            0x030e => Groups::V3_14,
            _ => return None,
        };
        // Each group begins with the size of its structure: fields lie within, or
        // the groups are not where we think.
        let field = |group: usize, field: usize, most: u64| {
            Some(word(group + field)).filter(|&offset| offset < word(group) && word(group) <= most)
        };
        let small = |group, index| field(group, index, SIZE_MAX);
        let big = |group, index| field(group, index, BIG_SIZE_MAX);
        let ascii = small(groups.unicode, 3)?;
        Some(Layout {
            version,
            interpreters: big(groups.runtime, 2)?,
            interpreter_next: big(groups.interpreter, 2)?,
            interpreter_threads: big(groups.interpreter, 3)?,
            thread: ThreadFields {
                next: small(groups.thread, 2)?,
                id: small(groups.thread, 5)?,
                native_id: small(groups.thread, 6)?,
                frame: small(groups.thread, 4)?,
                cframe: None,
            },
            frame: FrameFields {
                code: small(groups.frame, 2)?,
                previous: small(groups.frame, 1)?,
                instruction: small(groups.frame, 3)?,
                owner: small(groups.frame, 5)?,
                is_entry: None,
            },
            code: CodeFields {
                filename: small(groups.code, 1)?,
                qualname: small(groups.code, 3)?,
                linetable: small(groups.code, 4)?,
                first_line: small(groups.code, 5)?,
                instructions: small(groups.code, 9)?,
            },
            string: StringFields {
                length: small(groups.unicode, 2)?,
                state: small(groups.unicode, 1)?,
                // Include/cpython/unicodeobject.h: 3.14 without the GIL gives
                // `interned` a byte of its own.
                kind_bit: if version >= 0x030e_0000 && free_threaded != 0 { 8 } else { 2 },
                ascii,
                // PyCompactUnicodeObject adds a length and a pointer.
                compact: ascii + 16,
                bytes_size: small(groups.bytes, 1)?,
                bytes: small(groups.bytes, 2)?,
                object_type: small(groups.object, 1)?,
                type_name: small(groups.types, 1)?,
            },
        })
    }
}

/// Index of each group's first word, counted from behind the cookie.
struct Groups {
    runtime: usize,
    interpreter: usize,
    thread: usize,
    frame: usize,
    code: usize,
    object: usize,
    types: usize,
    bytes: usize,
    unicode: usize,
}

impl Groups {
    /// `struct _Py_DebugOffsets`, Include/internal/pycore_runtime.h of 3.13.0.
    const V3_13: Groups = Groups {
        runtime: 2,
        interpreter: 5,
        thread: 18,
        frame: 27,
        code: 33,
        object: 43,
        types: 45,
        bytes: 63,
        unicode: 66,
    };
    /// Include/internal/pycore_debug_offsets.h of 3.14: the interpreter has three
    /// fields more, frames two, code one, and sets have a group.
    const V3_14: Groups = Groups {
        runtime: 2,
        interpreter: 5,
        thread: 21,
        frame: 30,
        code: 38,
        object: 49,
        types: 51,
        bytes: 73,
        unicode: 76,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `_Py_DebugOffsets` of 3.13.0 on x86-64, as the interpreter has it.
    const WORDS_3_13: [u64; 72] = [
        0x030d_00f0,
        0,
        283320,
        608,
        632,
        194968,
        7272,
        7264,
        7344,
        7400,
        7656,
        7640,
        7648,
        16,
        7752,
        0,
        7768,
        7760,
        304,
        0,
        8,
        16,
        72,
        152,
        160,
        232,
        32,
        80,
        8,
        0,
        56,
        72,
        70,
        208,
        112,
        120,
        128,
        136,
        68,
        52,
        96,
        104,
        200,
        16,
        8,
        416,
        24,
        88,
        168,
        32,
        24,
        16,
        40,
        24,
        16,
        48,
        32,
        40,
        24,
        16,
        32,
        16,
        24,
        40,
        16,
        32,
        64,
        32,
        16,
        40,
        240,
        200,
    ];

    fn bytes(words: &[u64]) -> [u8; DEBUG_OFFSETS_BYTES] {
        let mut bytes = [0; DEBUG_OFFSETS_BYTES];
        bytes[..8].copy_from_slice(COOKIE);
        for (place, word) in bytes[8..].chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn what_3_13_says_of_itself() {
        let layout = Layout::from_debug_offsets(&bytes(&WORDS_3_13)).unwrap();
        assert_eq!(layout.version >> 16, 0x030d);
        // Offsets by the compiler, from its internal headers.
        assert_eq!(layout.thread, ThreadFields { next: 8, id: 152, native_id: 160, frame: 72, cframe: None });
        assert_eq!(layout.frame, FrameFields { code: 0, previous: 8, instruction: 56, owner: 70, is_entry: None });
        let code = CodeFields { filename: 112, qualname: 128, linetable: 136, first_line: 68, instructions: 200 };
        assert_eq!(layout.code, code);
        assert_eq!((layout.interpreter_next, layout.interpreter_threads), (7264, 7344));
        assert_eq!((layout.string.length, layout.string.state, layout.string.ascii), (16, 32, 40));
        assert_eq!((layout.string.compact, layout.string.bytes_size, layout.string.bytes), (56, 16, 32));
        assert_eq!((layout.string.object_type, layout.string.type_name), (8, 24));
    }

    #[test]
    fn offsets_that_cannot_be_are_refused() {
        assert_eq!(Layout::from_debug_offsets(&[0; DEBUG_OFFSETS_BYTES]), None);
        assert_eq!(Layout::from_debug_offsets(&[0xff; DEBUG_OFFSETS_BYTES]), None);
        // 3.13's groups under a version that has other ones.
        let mut words = WORDS_3_13;
        words[0] = 0x030e_00f0;
        assert_eq!(Layout::from_debug_offsets(&bytes(&words)), None);
        words[0] = 0x0310_00f0;
        assert_eq!(Layout::from_debug_offsets(&bytes(&words)), None);
        for place in 5..70 {
            let mut words = WORDS_3_13;
            words[place] = u64::MAX;
            // It is refused, or that word is not used.
            let layout = Layout::from_debug_offsets(&bytes(&words));
            assert!(layout.is_none_or(|l| l.code.instructions < SIZE_MAX && l.interpreters < BIG_SIZE_MAX), "{place}");
        }
    }

    #[test]
    fn versions() {
        assert_eq!(Layout::of_version(0x030b_02f0).map(|l| l.version), Some(0x030b_02f0));
        assert_eq!(Layout::of_version(0x030c_01f0).map(|l| l.frame.code), Some(0));
        assert_eq!(Layout::of_version(0x030a_0df0), None);
        assert_eq!(Layout::of_version(0x030d_00f0), None);
    }
}
