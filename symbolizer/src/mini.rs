//! MiniDebugInfo: a symbol table that `strip` left in `.gnu_debugdata`, an ELF file
//! compressed by xz (GDB's manual, "Debugging information in a special section").

use crate::debug_files::{Outcome, Source, Trail};
use crate::image::Image;
use lzma_rust2::XzReader;
use object::{Object, ObjectSection};
use std::io::{ErrorKind, Read};
use std::path::Path;

/// Most that the tables may take. Fedora's largest are a few megabytes.
const MOST_BYTES: u64 = 64 << 20;
/// Most for xz's own dictionary; `xz -9` has one of 64 MiB.
const DICTIONARY_BYTES: u64 = 66 << 20;

/// The file in the section, if there is one; it takes `headroom` bytes at most.
pub(crate) fn open(file: &object::File<'_>, path: Option<&Path>, headroom: u64, trail: &mut Trail) -> Option<Image> {
    let section = file.section_by_name(".gnu_debugdata")?;
    let image = expand(section.data().unwrap_or_default(), headroom / 2);
    let place = path.unwrap_or(Path::new("(in memory)"));
    trail.add(Source::MiniDebugInfo, place, image.as_ref().err().copied().unwrap_or(Outcome::Used));
    image.ok()
}

fn expand(xz: &[u8], most: u64) -> Result<Image, Outcome> {
    let (most, dictionary) = (most.min(MOST_BYTES), most.min(DICTIONARY_BYTES));
    let reader = XzReader::new_mem_limit(xz, false, u32::try_from(dictionary >> 10).unwrap_or(u32::MAX));
    let mut bytes = Vec::new();
    let read = reader.take(most + 1).read_to_end(&mut bytes);
    match read {
        Ok(read) if read as u64 > most => Err(Outcome::TooLarge),
        Ok(_) => Image::from_bytes(bytes).map_err(|_| Outcome::NotElf),
        Err(error) if error.kind() == ErrorKind::OutOfMemory => Err(Outcome::TooLarge),
        Err(_) => Err(Outcome::Damaged),
    }
}
