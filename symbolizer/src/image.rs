//! The bytes of an ELF file and the few facts that unwinding needs of it.

use crate::address::Svma;
use memmap2::{Advice, Mmap, UncheckedAdvice};
use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use object::{CompressionFormat, Object, ObjectSection, ObjectSegment, ObjectSymbol, SegmentFlags};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::{Deref, Range};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

/// A build ID (`NT_GNU_BUILD_ID`) in lower-case hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BuildId(String);

impl BuildId {
    /// From the note's bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        BuildId(bytes.iter().map(|b| format!("{b:02x}")).collect())
    }

    /// From text; `None` where it is not hexadecimal, or too short to lead anywhere.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let is_id = text.len() > 2 && text.len().is_multiple_of(2) && text.bytes().all(|b| b.is_ascii_hexdigit());
        is_id.then(|| BuildId(text.to_ascii_lowercase()))
    }

    /// Hexadecimal text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Longest note that is a build ID: elfutils' debuginfod knows none that is longer.
const MOST_BUILD_ID_BYTES: usize = 64;

/// Opens a file to be parsed: a regular one. Paths come from the files of others, and what
/// lies there could have us wait for ever (a FIFO nobody writes to), or act by being opened
/// (a device).
///
/// # Errors
///
/// Of open(2); `InvalidInput` for anything but a regular file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let regular = |about: fs::Metadata| match about.is_file() {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    };
    regular(fs::metadata(path)?)?;
    // It may have become another since; then opening does not wait.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    regular(file.metadata()?)?;
    Ok(file)
}

/// Why bytes are no usable image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file could not be mapped.
    #[error("failed to map the file: {0}")]
    Map(#[from] std::io::Error),
    /// Not ELF, or damaged.
    #[error("not a valid ELF file: {0}")]
    Elf(#[from] object::read::Error),
}

/// Storage of an image.
#[derive(Debug)]
enum Bytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes,
        }
    }
}

/// What loaders map in: the smallest pages of both architectures.
const PAGE: u64 = 4096;

/// A loadable segment: file range and address.
#[derive(Debug, Clone, Copy)]
struct Segment {
    offset: u64,
    file_size: u64,
    address: u64,
    writable: bool,
    executable: bool,
}

impl Segment {
    /// Whether it begins in the page of the file that is at `offset`.
    fn begins_at(&self, offset: u64) -> bool {
        self.offset / PAGE * PAGE == offset
    }

    /// Bias where the file is mapped at `start` from `offset` on, for this segment.
    fn bias(&self, start: u64, offset: u64) -> u64 {
        start.wrapping_sub(offset.wrapping_sub(self.offset).wrapping_add(self.address))
    }

    fn bytes<'b>(&self, file: &'b [u8]) -> Option<&'b [u8]> {
        let end = self.offset.checked_add(self.file_size)?.min(file.len() as u64);
        file.get(usize::try_from(self.offset).ok()?..usize::try_from(end).ok()?)
    }
}

/// The first segment that begins in the page at `offset`, else the last that covers it.
fn mapped<'a>(segments: impl DoubleEndedIterator<Item = &'a Segment> + Clone, offset: u64) -> Option<&'a Segment> {
    let end = |s: &Segment| s.offset.saturating_add(s.file_size.max(1));
    let fits = |s: &&Segment| s.offset / PAGE * PAGE <= offset && offset < end(s);
    segments.clone().find(|segment| segment.begins_at(offset)).or_else(|| segments.rev().find(fits))
}

/// What framehop asks for of a section: address range and file range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Section {
    pub(crate) svma: Range<u64>,
    pub(crate) file: Range<usize>,
}

/// An ELF file. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Image {
    bytes: Arc<Bytes>,
    facts: Arc<Facts>,
}

#[derive(Debug)]
struct Facts {
    build_id: Option<BuildId>,
    segments: Vec<Segment>,
    base: u64,
    sections: Vec<(&'static str, Section)>,
    has_sections: bool,
    is_x86_64: bool,
}

/// Sections that unwinding uses.
const UNWIND_SECTIONS: [&str; 6] = [".text", ".eh_frame", ".eh_frame_hdr", ".debug_frame", ".got", ".plt"];

impl Image {
    /// Maps a file.
    ///
    /// The caller must be ready for SIGBUS if the file may be truncated while
    /// in use (mmap(2)): a handler that maps zeros there turns it into a
    /// damaged file, which every reader here copes with.
    pub fn open(file: &File) -> Result<Self, ImageError> {
        // SAFETY: the mapping is private and read-only. Another process may
        // still change the file: then parsers, which check all input, read
        // other bytes; they hold no references whose validity depends on them.
        let map = unsafe { Mmap::map(file)? };
        Self::new(Bytes::Mapped(map))
    }

    /// Takes bytes read from memory, like the vDSO.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, ImageError> {
        Self::new(Bytes::Owned(bytes))
    }

    fn new(bytes: Bytes) -> Result<Self, ImageError> {
        let facts = Facts::read(&bytes)?;
        Ok(Image { bytes: Arc::new(bytes), facts: Arc::new(facts) })
    }

    /// The build ID, if the file has one.
    #[must_use]
    pub fn build_id(&self) -> Option<&BuildId> {
        self.facts.build_id.as_ref()
    }

    /// Bias (AVMA minus SVMA, wrapping) of a mapping of code at `start`, of the file
    /// from `offset` on; `None` when no loadable segment covers that offset.
    ///
    /// The loader maps whole pages, so a segment's first page may begin before
    /// `p_offset` and several segments may share a page of the file, as all of a small program
    /// do that lld linked: one with code that begins in the mapped page is the one meant.
    #[must_use]
    pub fn bias(&self, start: u64, offset: u64) -> Option<u64> {
        let code = self.facts.segments.iter().filter(|segment| segment.executable);
        let segment = mapped(code, offset).or_else(|| mapped(self.facts.segments.iter(), offset))?;
        Some(segment.bias(start, offset))
    }

    /// Each bias that a mapping may have, code or not, where several segments share a page of
    /// the file; not all of more segments than a linker makes. One may come twice.
    pub fn biases(&self, start: u64, offset: u64) -> impl Iterator<Item = u64> {
        const MOST: usize = 4;
        let segments = || self.facts.segments.iter();
        let begin = segments().filter(move |segment| segment.begins_at(offset)).take(MOST);
        mapped(segments(), offset).into_iter().chain(begin).map(move |segment| segment.bias(start, offset))
    }

    /// Where symbols are and how big, in the order of `names`: `.symtab`, else
    /// `.dynsym`; `None` for one that neither has.
    #[must_use]
    pub fn symbols(&self, names: &[&str]) -> Vec<Option<(Svma, u64)>> {
        let mut found = vec![None; names.len()];
        let Ok(file) = object::File::parse(self.bytes()) else { return found };
        for symbol in file.symbols().chain(file.dynamic_symbols()).filter(|s| s.is_definition()) {
            let Ok(name) = symbol.name() else { continue };
            for (place, _) in names.iter().enumerate().filter(|(_, wanted)| **wanted == name) {
                found[place].get_or_insert((Svma(symbol.address()), symbol.size()));
            }
        }
        found
    }

    /// The dynamic linker that it asks for (PT_INTERP); a static program has none.
    #[must_use]
    pub fn interpreter(&self) -> Option<String> {
        let bytes = self.bytes();
        let header = object::elf::FileHeader64::<object::Endianness>::parse(bytes).ok()?;
        let endian = header.endian().ok()?;
        let headers = header.program_headers(endian, bytes).ok()?;
        let path = headers.iter().find_map(|segment| segment.interpreter(endian, bytes).ok().flatten())?;
        Some(String::from_utf8_lossy(path).into_owned())
    }

    /// Whether other objects are given a function of this name from here.
    #[must_use]
    pub fn exports(&self, name: &str) -> bool {
        let Ok(file) = object::File::parse(self.bytes()) else { return false };
        file.dynamic_symbols().any(|symbol| symbol.is_definition() && symbol.name() == Ok(name))
    }

    /// A section by name: its addresses, and its bytes, none for `.bss`.
    #[must_use]
    pub fn section_data(&self, name: &str) -> Option<(Range<u64>, &[u8])> {
        let file = object::File::parse(self.bytes()).ok()?;
        let section = file.section_by_name(name)?;
        let svma = section.address()..section.address().checked_add(section.size())?;
        let (offset, size) = section.file_range().unwrap_or((0, 0));
        let end = offset.checked_add(size)?;
        Some((svma, self.bytes().get(usize::try_from(offset).ok()?..usize::try_from(end).ok()?)?))
    }

    /// What the file has at an address, to the end of that segment.
    #[must_use]
    pub fn at(&self, address: Svma) -> Option<&[u8]> {
        self.facts.segments.iter().find_map(|segment| {
            let within = usize::try_from(address.0.checked_sub(segment.address)?).ok()?;
            segment.bytes(&self.bytes)?.get(within..).filter(|rest| !rest.is_empty())
        })
    }

    /// Whether it is code for x86-64.
    #[must_use]
    pub fn is_x86_64(&self) -> bool {
        self.facts.is_x86_64
    }

    /// A word of the file, before relocation.
    pub(crate) fn word(&self, address: u64) -> Option<u64> {
        Some(u64::from_le_bytes(self.at(Svma(address))?.get(..8)?.try_into().ok()?))
    }

    /// Addresses of the first words of variables that the file has with this value.
    pub(crate) fn words_equal(&self, value: u64, most: usize) -> Vec<u64> {
        let writable = self.facts.segments.iter().filter(|s| s.writable);
        let words = writable.flat_map(|segment| {
            let bytes = segment.bytes(&self.bytes).unwrap_or_default();
            // Words are aligned in memory, and segments may begin anywhere.
            let skipped = (segment.address.wrapping_neg() % 8) as usize;
            let words = bytes.get(skipped..).unwrap_or_default().chunks_exact(8).enumerate();
            words
                .filter(move |(_, word)| *word == value.to_le_bytes())
                .map(move |(index, _)| segment.address.wrapping_add((skipped + index * 8) as u64))
        });
        words.take(most).collect()
    }

    /// Words that the loader fills with an address of this image: where, and with
    /// what.
    pub(crate) fn relative_relocations(&self) -> impl Iterator<Item = (u64, u64)> {
        let table = relocations(&self.bytes, self).unwrap_or_default();
        table.chunks_exact(24).filter_map(|entry| {
            // Elf64_Rela: offset, info, addend.
            let word = |index: usize| u64::from_le_bytes(entry[index * 8..][..8].try_into().expect("eight bytes"));
            let kind = word(1) as u32;
            let is_relative = kind == object::elf::R_X86_64_RELATIVE || kind == object::elf::R_AARCH64_RELATIVE;
            is_relative.then(|| (word(0), word(2)))
        })
    }

    /// Bytes of the segments with variables.
    pub(crate) fn variables_bytes(&self) -> impl Iterator<Item = &[u8]> {
        self.facts.segments.iter().filter(|s| s.writable).filter_map(|s| s.bytes(&self.bytes))
    }

    /// Where segments begin.
    pub(crate) fn segment_addresses(&self) -> Vec<u64> {
        self.facts.segments.iter().map(|s| s.address).collect()
    }

    /// Whether there are section headers.
    #[must_use]
    pub fn has_sections(&self) -> bool {
        self.facts.has_sections
    }

    /// All bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Pages will be asked for here and there: nothing around them is read.
    pub(crate) fn expect_random(&self) {
        if let Bytes::Mapped(map) = &*self.bytes {
            // Advice: without it more is read than is needed.
            let _ = map.advise(Advice::Random);
        }
    }

    /// These bytes, if they are of this image, will be read from begin to end.
    pub(crate) fn expect(&self, bytes: &[u8]) {
        let within = (bytes.as_ptr() as usize).wrapping_sub(self.bytes().as_ptr() as usize);
        if let Bytes::Mapped(map) = &*self.bytes
            && within.saturating_add(bytes.len()) <= map.len()
        {
            let _ = map.advise_range(Advice::WillNeed, within, bytes.len());
        }
    }

    /// Takes all pages out of this process's memory; they are mapped again when
    /// they are read.
    pub(crate) fn release(&self) {
        if let Bytes::Mapped(map) = &*self.bytes {
            // SAFETY: the mapping is of a file and nothing is ever written to it,
            // so the kernel has what it drops and gives the same bytes again.
            let _ = unsafe { map.unchecked_advise(UncheckedAdvice::DontNeed) };
        }
    }

    /// Lowest segment address: the SVMA that the image's start has.
    pub(crate) fn base(&self) -> u64 {
        self.facts.base
    }

    /// A section by name, of those that unwinding uses.
    pub(crate) fn section(&self, name: &str) -> Option<&Section> {
        self.facts.sections.iter().find(|(n, _)| *n == name).map(|(_, s)| s)
    }

    /// A section's bytes, keeping the image alive.
    pub(crate) fn section_bytes(&self, name: &str) -> Option<SectionBytes> {
        Some(SectionBytes { range: self.section(name)?.file.clone(), image: self.bytes.clone() })
    }
}

impl Facts {
    fn read(bytes: &[u8]) -> Result<Self, ImageError> {
        let file = object::File::parse(bytes)?;
        let build_id = file.build_id().ok().flatten().filter(|id| id.len() <= MOST_BUILD_ID_BYTES);
        let build_id = build_id.map(BuildId::from_bytes);
        let has = |flags, flag| matches!(flags, SegmentFlags::Elf { p_flags } if p_flags & flag != 0);
        let mut segments: Vec<Segment> = file
            .segments()
            .map(|s| Segment {
                offset: s.file_range().0,
                file_size: s.file_range().1,
                address: s.address(),
                writable: has(s.flags(), object::elf::PF_W),
                executable: has(s.flags(), object::elf::PF_X),
            })
            .collect();
        segments.sort_by_key(|s| s.offset);
        let base = segments.iter().map(|s| s.address).min().unwrap_or(0);
        let mut sections: Vec<(&'static str, Section)> = UNWIND_SECTIONS
            .iter()
            .filter_map(|&name| {
                let section = file.section_by_name(name)?;
                let (offset, size) = section.file_range()?;
                // A compressed or cut section is of no use to the unwinder: Go's
                // linker compresses .debug_frame.
                let format = section.compressed_file_range().ok()?.format;
                if format != CompressionFormat::None {
                    return None;
                }
                let end = offset.checked_add(size).filter(|&end| end <= bytes.len() as u64)?;
                let svma = section.address()..section.address().checked_add(section.size())?;
                (svma.end - svma.start == size).then_some((name, Section { svma, file: offset as usize..end as usize }))
            })
            .collect();
        if !sections.iter().any(|(n, _)| *n == ".eh_frame_hdr")
            && let Some(section) = eh_frame_hdr_segment(bytes)
        {
            // No section headers (sstrip, some packers): the program header has it.
            sections.push((".eh_frame_hdr", section));
        }
        let has_sections = file.sections().next().is_some();
        let is_x86_64 = file.architecture() == object::Architecture::X86_64;
        Ok(Facts { build_id, segments, base, sections, has_sections, is_x86_64 })
    }
}

/// The dynamic loader's table of relocations with addends (`DT_RELA`,
/// `DT_RELASZ`).
fn relocations<'b>(bytes: &'b [u8], image: &'b Image) -> Option<&'b [u8]> {
    let header = object::elf::FileHeader64::<object::Endianness>::parse(bytes).ok()?;
    let endian = header.endian().ok()?;
    let mut dynamic = header.program_headers(endian, bytes).ok()?.iter();
    let entries = dynamic.find_map(|segment| segment.dynamic(endian, bytes).ok()?)?;
    let value = |tag: i64| entries.iter().find(|e| e.tag(endian) == tag).map(|e| e.val(endian));
    let table = image.at(Svma(value(object::elf::DT_RELA)?))?;
    let size = usize::try_from(value(object::elf::DT_RELASZ)?).ok()?;
    Some(&table[..size.min(table.len())])
}

/// `PT_GNU_EH_FRAME`.
fn eh_frame_hdr_segment(bytes: &[u8]) -> Option<Section> {
    let header = object::elf::FileHeader64::<object::Endianness>::parse(bytes).ok()?;
    let endian = header.endian().ok()?;
    let segment = header
        .program_headers(endian, bytes)
        .ok()?
        .iter()
        .find(|p| p.p_type(endian) == object::elf::PT_GNU_EH_FRAME)?;
    let (offset, size) = (segment.p_offset(endian), segment.p_filesz(endian));
    let end = offset.checked_add(size).filter(|&end| end <= bytes.len() as u64)?;
    let address = segment.p_vaddr(endian);
    Some(Section { svma: address..address.checked_add(size)?, file: offset as usize..end as usize })
}

/// Part of an image that keeps it alive.
#[derive(Debug, Clone)]
pub(crate) struct SectionBytes {
    image: Arc<Bytes>,
    range: Range<usize>,
}

impl Deref for SectionBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.image[self.range.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file with one segment that is to be loaded: where it lies in the file, its
    /// address, and its size.
    fn with_segment(offset: u64, address: u64, size: u64) -> Image {
        let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
        bytes.resize(16, 0);
        // Elf64_Ehdr: ET_DYN, x86-64, version; entry, program headers, section headers.
        bytes.extend([3, 0, 62, 0, 1, 0, 0, 0]);
        bytes.extend([0, 64, 0].map(u64::to_le_bytes).as_flattened());
        bytes.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
        // Elf64_Phdr: PT_LOAD, readable and executable.
        bytes.extend([1, 0, 0, 0, 5, 0, 0, 0]);
        bytes.extend([offset, address, address, size, size, 4096].map(u64::to_le_bytes).as_flattened());
        Image::from_bytes(bytes).unwrap()
    }

    #[test]
    fn segments_at_the_end_of_all() {
        assert_eq!(with_segment(0x1000, 0x40_1000, 0x2000).bias(0x7000_1000, 0x1000), Some(0x6fc0_0000));
        let last = with_segment(u64::MAX - 5, u64::MAX - 5, 100);
        assert_eq!(last.bias(0x1000, u64::MAX - 4095), Some(0x2000));
        assert_eq!((last.bias(0x1000, 0), last.at(Svma(u64::MAX - 3))), (None, None));
        assert_eq!(with_segment(0, 0, u64::MAX).bias(0x5000, 0x2000), Some(0x3000));
    }
}
