//! The DWARF sections of a file.

use super::{Dwarf, Slice};
use gimli::{DwarfPackage, DwarfPackageSections, DwarfSections, LittleEndian};
use object::{Object, ObjectSection};
use std::borrow::Cow;

/// Sections of one file: borrowed from its mapping, or decompressed.
#[derive(Debug)]
pub(crate) struct DebugSections<'a>(DwarfSections<Cow<'a, [u8]>>);

impl<'a> DebugSections<'a> {
    /// `None` where the file has no DWARF.
    pub(crate) fn read(file: &object::File<'a>) -> Option<Self> {
        file.section_by_name(".debug_info")?;
        Some(DebugSections(DwarfSections::load(|id| Ok::<_, gimli::Error>(section(file, id.name()))).ok()?))
    }

    /// Of a `.dwo` file.
    pub(crate) fn read_split(file: &object::File<'a>) -> Option<Self> {
        file.section_by_name(".debug_info.dwo")?;
        let load = |id: gimli::SectionId| {
            Ok::<_, gimli::Error>(id.dwo_name().map(|name| section(file, name)).unwrap_or_default())
        };
        Some(DebugSections(DwarfSections::load(load).ok()?))
    }

    /// As gimli takes them; `alternate` is what dwz shared between files.
    pub(crate) fn dwarf<'s>(&'s self, alternate: Option<&'s DebugSections<'a>>) -> Dwarf<'s> {
        self.0.borrow_with_sup(alternate.map(|a| &a.0), |bytes| Slice::new(bytes, LittleEndian))
    }
}

/// Sections of a `.dwp` file.
pub(crate) struct PackageSections<'a>(DwarfPackageSections<Cow<'a, [u8]>>);

impl<'a> PackageSections<'a> {
    pub(crate) fn read(file: &object::File<'a>) -> Option<Self> {
        let load = |id: gimli::SectionId| {
            Ok::<_, gimli::Error>(id.dwo_name().map(|name| section(file, name)).unwrap_or_default())
        };
        Some(PackageSections(DwarfPackageSections::load(load).ok()?))
    }

    pub(crate) fn package(&self) -> Option<DwarfPackage<Slice<'_>>> {
        self.0.borrow(|bytes| Slice::new(bytes, LittleEndian), Slice::new(&[], LittleEndian)).ok()
    }
}

/// Empty where there is none, or where it is damaged.
fn section<'a>(file: &object::File<'a>, name: &str) -> Cow<'a, [u8]> {
    let section = file.section_by_name(name);
    section.and_then(|s| s.uncompressed_data().ok()).unwrap_or(Cow::Borrowed(&[]))
}
