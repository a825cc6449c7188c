//! Addresses of one ELF file to functions and lines.

use crate::Svma;
use crate::debug_files::DebugDirs;
use crate::demangle::demangle;
use crate::go::GoImage;
use crate::image::Image;
use crate::symtab::SymbolTable;
use gimli::{DwarfSections, EndianSlice, RunTimeEndian, SectionId};
use object::{Object, ObjectSection};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// A function at a place in the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Demangled name.
    pub function: String,
    /// Source file as the compiler recorded it.
    pub file: Option<String>,
    /// Line, from 1.
    pub line: Option<u32>,
    /// Column, from 1.
    pub column: Option<u32>,
    /// Whether it was inlined into the next frame.
    pub inlined: bool,
}

/// Where a name came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SymbolSource {
    /// DWARF debug information.
    Dwarf,
    /// `.symtab`.
    SymbolTable,
    /// `.dynsym`: exported functions only.
    DynamicSymbolTable,
    /// What Go's runtime prints stacks from, which `strip` leaves in place.
    GoPclntab,
}

/// What an address stands for, innermost frame first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolution {
    /// At least one frame.
    pub frames: Vec<Frame>,
    /// Where the names came from.
    pub source: SymbolSource,
}

/// Why an address has no name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Miss {
    /// It lies in no mapped file: generated code, or a wrong stack.
    NoModule,
    /// The file could not be opened any more.
    FileUnavailable,
    /// A file is there, but it is another build.
    BuildIdMismatch,
    /// The file is not usable.
    NotElf,
    /// Neither debug information nor a symbol covers it.
    NoSymbol,
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Miss::NoModule => "in no mapped file (generated code?)",
            Miss::FileUnavailable => "file could not be opened",
            Miss::BuildIdMismatch => "the file on disk is another build",
            Miss::NotElf => "file is not a valid ELF file",
            Miss::NoSymbol => "no symbol covers it (install debug symbols?)",
        })
    }
}

type Slice<'a> = EndianSlice<'a, RunTimeEndian>;
type Context<'a> = addr2line::Context<Slice<'a>>;

/// Resolves addresses of one image; the answers are in the order of the
/// questions. `path` is where the image lies, for `.gnu_debuglink`. Everything
/// that was parsed is dropped on return.
#[must_use]
pub fn resolve(
    image: &Image,
    path: Option<&Path>,
    dirs: &DebugDirs,
    addresses: &[Svma],
) -> Vec<Result<Resolution, Miss>> {
    let Ok(file) = object::File::parse(image.bytes()) else {
        return vec![Err(Miss::NotElf); addresses.len()];
    };
    let own_dwarf = file.section_by_name(".debug_info").is_some();
    let separate = if own_dwarf { None } else { dirs.find(image, path) };
    let debug_file = separate.as_ref().and_then(|debug| object::File::parse(debug.bytes()).ok());
    let dwarf_file = debug_file.as_ref().unwrap_or(&file);
    let alternate = dirs.alternate(separate.as_ref().unwrap_or(image), path);
    let alternate_file = alternate.as_ref().and_then(|alt| object::File::parse(alt.bytes()).ok());

    let sections = load_sections(dwarf_file);
    let alternate_sections = alternate_file.as_ref().and_then(load_sections);
    let context = sections.as_ref().and_then(|s| context(s, alternate_sections.as_ref(), dwarf_file));
    let mut tables = vec![(SymbolTable::read(&file, false), SymbolSource::SymbolTable)];
    if let Some(debug) = &debug_file {
        tables.push((SymbolTable::read(debug, false), SymbolSource::SymbolTable));
    }
    tables.push((SymbolTable::read(&file, true), SymbolSource::DynamicSymbolTable));

    // In order of addresses, so that neighbours meet parsed units.
    let mut answers: BTreeMap<Svma, Result<Resolution, Miss>> =
        addresses.iter().map(|&a| (a, Err(Miss::NoSymbol))).collect();
    for (address, answer) in &mut answers {
        *answer = resolve_one(*address, context.as_ref(), &tables);
    }
    // Go's own tables know lines and inlined functions, as no symbol table does.
    let by_dwarf = |answer: &Result<Resolution, Miss>| answer.as_ref().is_ok_and(|r| r.source == SymbolSource::Dwarf);
    let mut go = None;
    for (address, answer) in answers.iter_mut().filter(|(_, answer)| !by_dwarf(answer)) {
        let go = go.get_or_insert_with(|| GoImage::find(image));
        if let Some(found) = go.as_ref().and_then(|go| resolve_go(go, *address)) {
            *answer = Ok(found);
        }
    }
    addresses.iter().map(|a| answers[a].clone()).collect()
}

fn resolve_one(
    address: Svma,
    context: Option<&Context<'_>>,
    tables: &[(SymbolTable<'_>, SymbolSource)],
) -> Result<Resolution, Miss> {
    let symbol = tables.iter().find_map(|(table, source)| Some((table.find(address.0)?, *source)));
    let mut frames = context.map(|c| frames_from_dwarf(c, address)).unwrap_or_default();
    // Line without a function: assembly, or units without DIEs for it.
    let named = frames.iter().any(|f| !f.function.is_empty());
    if !named && let Some((name, source)) = symbol {
        let place = frames.pop();
        let frame = Frame {
            function: demangle(name),
            file: place.as_ref().and_then(|p| p.file.clone()),
            line: place.as_ref().and_then(|p| p.line),
            column: place.as_ref().and_then(|p| p.column),
            inlined: false,
        };
        return Ok(Resolution { frames: vec![frame], source });
    }
    if !named {
        return Err(Miss::NoSymbol);
    }
    for frame in frames.iter_mut().filter(|f| f.function.is_empty()) {
        "??".clone_into(&mut frame.function);
    }
    Ok(Resolution { frames, source: SymbolSource::Dwarf })
}

/// Entries of Go's tables that one address may cost.
const GO_STEPS: u64 = 1 << 20;

fn resolve_go(go: &GoImage, address: Svma) -> Option<Resolution> {
    let places = go.places(address, &mut GO_STEPS.clone());
    let last = places.len().checked_sub(1)?;
    let frames = places.into_iter().enumerate().map(|(index, place)| Frame {
        function: place.function,
        file: place.file,
        line: place.line,
        column: None,
        inlined: index < last,
    });
    Some(Resolution { frames: frames.collect(), source: SymbolSource::GoPclntab })
}

/// Inline chain, innermost first; the function is empty where DWARF names none.
fn frames_from_dwarf(context: &Context<'_>, address: Svma) -> Vec<Frame> {
    // addr2line 0.26 adds one to the address (unit.rs, `ResUnits::find`).
    if address.0 == u64::MAX {
        return Vec::new();
    }
    // Units whose split DWARF file is not at hand are skipped.
    let Ok(mut found) = context.find_frames(address.0).skip_all_loads() else {
        return Vec::new();
    };
    let mut frames: Vec<Frame> = Vec::new();
    // An error ends the chain; what came before it is right.
    while let Ok(Some(frame)) = found.next() {
        let name = frame.function.as_ref().and_then(|f| f.raw_name().ok());
        let location = frame.location;
        frames.push(Frame {
            function: name.map(|n| demangle(&n)).unwrap_or_default(),
            file: location.as_ref().and_then(|l| l.file).map(str::to_owned),
            line: location.as_ref().and_then(|l| l.line).filter(|&l| l > 0),
            column: location.as_ref().and_then(|l| l.column).filter(|&c| c > 0),
            inlined: true,
        });
    }
    if let Some(outermost) = frames.last_mut() {
        outermost.inlined = false;
    }
    frames
}

/// The DWARF sections, decompressed where needed, else borrowed from the map.
fn load_sections<'a>(file: &object::File<'a>) -> Option<DwarfSections<Cow<'a, [u8]>>> {
    file.section_by_name(".debug_info")?;
    DwarfSections::load(|id: SectionId| {
        let data = file.section_by_name(id.name()).and_then(|s| s.uncompressed_data().ok());
        Ok::<_, gimli::Error>(data.unwrap_or(Cow::Borrowed(&[])))
    })
    .ok()
}

fn context<'a>(
    sections: &'a DwarfSections<Cow<'a, [u8]>>,
    alternate: Option<&'a DwarfSections<Cow<'a, [u8]>>>,
    file: &object::File<'_>,
) -> Option<Context<'a>> {
    let endian = if file.is_little_endian() { RunTimeEndian::Little } else { RunTimeEndian::Big };
    let slice = |section: &'a Cow<'a, [u8]>| EndianSlice::new(section, endian);
    let dwarf = sections.borrow_with_sup(alternate, slice);
    Context::from_dwarf(dwarf).ok()
}
