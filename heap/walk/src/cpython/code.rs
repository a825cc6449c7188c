//! Names of code objects.

use super::{Interpreter, lines, text};
use crate::Memory;
use reprieve_heap_cpython::check;
use std::collections::BTreeMap;

/// Code objects that are read; the stacks of a large program have some thousand.
const CODES_MAX: usize = 8 << 10;
/// Bytes of names and lines that are kept.
const KEPT_BYTES: usize = 16 << 20;
/// Name of the type of code objects.
const CODE_TYPE_NAME: &[u8; 5] = b"code\0";

/// A function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Code {
    /// Qualified name, like `Server.handle.<locals>.reply`.
    pub function: String,
    /// Its file, as it was compiled.
    pub file: String,
    /// Line on which it begins; 0 where Python says so.
    pub first_line: u32,
    check: u16,
    lines: Vec<u8>,
}

impl Code {
    /// Line of an instruction, that of its beginning where it is not known.
    #[must_use]
    pub fn line(&self, instruction: Option<u32>) -> Option<u32> {
        let line = instruction.and_then(|i| lines::line_of(&self.lines, self.first_line, i));
        line.or(Some(self.first_line)).filter(|&line| line > 0)
    }
}

/// Code objects by address, read once.
#[derive(Debug, Default)]
pub struct Codes {
    known: BTreeMap<u64, Option<Code>>,
    kept_bytes: usize,
}

impl Codes {
    /// The code object at an address. `None` when there is none, when it is not the
    /// one that `check` was taken of, and when too many are kept already.
    pub fn get<M: Memory + ?Sized>(
        &mut self,
        interpreter: &Interpreter,
        memory: &mut M,
        address: u64,
        check: Option<u16>,
    ) -> Option<&Code> {
        if !self.known.contains_key(&address) {
            if self.known.len() >= CODES_MAX || self.kept_bytes >= KEPT_BYTES {
                return None;
            }
            let code = read(interpreter, memory, address);
            self.kept_bytes += code.as_ref().map_or(0, |c| c.function.len() + c.file.len() + c.lines.len());
            self.known.insert(address, code);
        }
        let code = self.known.get(&address)?.as_ref()?;
        check.is_none_or(|check| check == code.check).then_some(code)
    }
}

fn read<M: Memory + ?Sized>(interpreter: &Interpreter, memory: &mut M, address: u64) -> Option<Code> {
    let (fields, strings) = (&interpreter.layout.code, &interpreter.layout.string);
    let kind = memory.u64(address.checked_add(strings.object_type)?)?;
    match interpreter.place.code_type {
        Some(expected) => (kind == expected).then_some(())?,
        None => {
            let mut name = [0; CODE_TYPE_NAME.len()];
            let at = memory.u64(kind.checked_add(strings.type_name)?)?;
            (memory.read(at, &mut name) && name == *CODE_TYPE_NAME).then_some(())?;
        }
    }
    let mut pointer = |offset: u64| memory.u64(address.checked_add(offset)?);
    let (file, function, table) = (pointer(fields.filename)?, pointer(fields.qualname)?, pointer(fields.linetable)?);
    let first_line = memory.u32(address.checked_add(fields.first_line)?)?;
    Some(Code {
        function: text::string(memory, strings, function)?,
        file: text::string(memory, strings, file)?,
        first_line,
        check: check(file, function, table, first_line),
        // Without them the name still tells much.
        lines: text::bytes(memory, strings, table).unwrap_or_default(),
    })
}
