//! Strings and bytes of Python.

use crate::Memory;
use reprieve_heap_cpython::StringFields;

/// No name of a function or file has more characters; a longer one is cut.
const TEXT_MAX: u64 = 1024;
/// No function's lines take more bytes; what lies beyond has no line.
const BYTES_MAX: u64 = 256 << 10;

/// A `str`, if there is one at `at`.
pub(super) fn string<M: Memory + ?Sized>(memory: &mut M, fields: &StringFields, at: u64) -> Option<String> {
    let length = memory.u64(at.checked_add(fields.length)?)?;
    let state = memory.u32(at.checked_add(fields.state)?)? >> fields.kind_bit;
    // Include/cpython/unicodeobject.h: kind (3 bits), compact, ascii. Since 3.12
    // there are compact ones only, and names and paths always were.
    let (kind, is_compact, is_ascii) = (state & 7, state & 8 != 0, state & 16 != 0);
    if length > i64::MAX as u64 || !is_compact || is_ascii && kind != 1 {
        return None;
    }
    let data = at.checked_add(if is_ascii { fields.ascii } else { fields.compact })?;
    let length = length.min(TEXT_MAX) as usize;
    let width = match kind {
        1 | 2 | 4 => kind as usize,
        _ => return None,
    };
    let mut bytes = vec![0; length * width];
    if !memory.read(data, &mut bytes) {
        return None;
    }
    if is_ascii && !bytes.is_ascii() {
        return None;
    }
    let characters = bytes.chunks_exact(width).map(|bytes| {
        let mut word = [0; 4];
        word[..width].copy_from_slice(bytes);
        // Lone surrogates stand for bytes of a path that are no UTF-8 (PEP 383).
        char::from_u32(u32::from_le_bytes(word)).unwrap_or(char::REPLACEMENT_CHARACTER)
    });
    Some(characters.collect())
}

/// Content of a `bytes`, at most [`BYTES_MAX`] of it.
pub(super) fn bytes<M: Memory + ?Sized>(memory: &mut M, fields: &StringFields, at: u64) -> Option<Vec<u8>> {
    let size = memory.u64(at.checked_add(fields.bytes_size)?)?;
    if size > i64::MAX as u64 {
        return None;
    }
    let mut bytes = vec![0; size.min(BYTES_MAX) as usize];
    memory.read(at.checked_add(fields.bytes)?, &mut bytes).then_some(bytes)
}
