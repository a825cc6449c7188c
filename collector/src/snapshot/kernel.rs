//! The kernel that runs, as a module among others.

use crate::incident::model::{KERNEL_PATH, Module};
use reprieve_symbolizer::{BuildId, Outcome, kernel_base};
use std::fs::{self, File};
use std::io::BufReader;

/// Its functions, for whoever may see them.
pub const KALLSYMS: &str = "/proc/kallsyms";
/// Its ELF notes.
const NOTES: &str = "/sys/kernel/notes";
/// As much as a 32-bit offset reaches up from its text, modules included (on x86-64 all is
/// there, Documentation/arch/x86/x86_64/mm.rst).
const MOST_BYTES: u64 = 2 << 30;

/// Where its text begins, where we may know.
#[must_use]
pub fn base() -> Option<u64> {
    open().and_then(|mut list| kernel_base(&mut list)).ok()
}

/// Its functions.
pub fn open() -> Result<BufReader<File>, Outcome> {
    let file = File::open(KALLSYMS).map_err(|error| match error.kind() {
        // Without CONFIG_KALLSYMS.
        std::io::ErrorKind::NotFound => Outcome::Absent,
        _ => Outcome::NotReadable,
    })?;
    Ok(BufReader::with_capacity(64 << 10, file))
}

/// As an incident has it: addresses are offsets from where its text begins.
#[must_use]
pub fn module() -> Module {
    Module {
        pid: 0,
        path: KERNEL_PATH.to_owned(),
        build_id: build_id(),
        start: 0,
        end: MOST_BYTES,
        file_offset: 0,
        bias: 0,
        deleted: false,
    }
}

/// Its build ID, as of other ELF files.
#[must_use]
pub fn build_id() -> Option<String> {
    build_id_of(&fs::read(NOTES).ok()?)
}

/// The build ID among ELF notes (elf(5), `Elf64_Nhdr`).
fn build_id_of(mut notes: &[u8]) -> Option<String> {
    const BUILD_ID: u32 = 3;
    let word = |at: usize, notes: &[u8]| Some(u32::from_ne_bytes(*notes.get(at..)?.first_chunk()?));
    loop {
        let (name, bytes, kind) = (word(0, notes)? as usize, word(4, notes)? as usize, word(8, notes)?);
        let begin = 12 + name.next_multiple_of(4);
        let content = notes.get(begin..begin.checked_add(bytes)?)?;
        if kind == BUILD_ID && notes.get(12..12 + name)? == b"GNU\0" {
            let hex: String = content.iter().map(|byte| format!("{byte:02x}")).collect();
            return BuildId::parse(&hex).map(|id| id.as_str().to_owned());
        }
        notes = notes.get(begin + bytes.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_id_is_among_notes() {
        let note = |name: &[u8], kind: u32, content: &[u8]| {
            let mut bytes = [name.len() as u32, content.len() as u32, kind].map(u32::to_ne_bytes).concat();
            bytes.extend(name);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes.extend(content);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let id: Vec<u8> = (0..20).collect();
        let expected = "000102030405060708090a0b0c0d0e0f10111213";
        let mut notes = [note(b"Linux\0", 3, b"6.12"), note(b"Xen\0", 18, &[1; 5]), note(b"GNU\0", 3, &id)].concat();
        assert_eq!(build_id_of(&notes).as_deref(), Some(expected));
        for length in 0..notes.len() {
            assert_eq!(build_id_of(&notes[..length]), None, "{length}");
        }
        notes[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(build_id_of(&notes), None);
    }
}
