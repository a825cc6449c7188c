//! The DWARF sections of a file.

use super::{Dwarf, Slice};
use crate::compressed;
use crate::debug_files::Outcome;
use gimli::{DwarfPackage, DwarfPackageSections, DwarfSections, LittleEndian, SectionId};
use object::Object;
use std::borrow::Cow;

/// What functions and lines are read from; locations of variables, macros and types
/// are not, so they need not be decompressed.
const USED: [SectionId; 10] = [
    SectionId::DebugAbbrev,
    SectionId::DebugAddr,
    SectionId::DebugAranges,
    SectionId::DebugInfo,
    SectionId::DebugLine,
    SectionId::DebugLineStr,
    SectionId::DebugRanges,
    SectionId::DebugRngLists,
    SectionId::DebugStr,
    SectionId::DebugStrOffsets,
];

/// Sizes that a file claims, and so can be anything, together.
fn all(sizes: impl Iterator<Item = u64>) -> u64 {
    sizes.fold(0, u64::saturating_add)
}

/// Sections of one file: borrowed from its mapping, or decompressed.
#[derive(Debug)]
pub(crate) struct DebugSections<'a> {
    sections: DwarfSections<Cow<'a, [u8]>>,
    /// Whether any could not be decompressed.
    pub(crate) is_damaged: bool,
}

impl<'a> DebugSections<'a> {
    /// Takes off `most` bytes what decompressing takes.
    pub(crate) fn read(file: &object::File<'a>, most: &mut u64) -> Result<Self, Outcome> {
        Self::load(file, most, |id| Some(id.name()))
    }

    /// Of a `.dwo` file.
    pub(crate) fn read_split(file: &object::File<'a>, most: &mut u64) -> Result<Self, Outcome> {
        Self::load(file, most, SectionId::dwo_name)
    }

    fn load(
        file: &object::File<'a>,
        most: &mut u64,
        name_of: impl Fn(SectionId) -> Option<&'static str>,
    ) -> Result<Self, Outcome> {
        if name_of(SectionId::DebugInfo).is_none_or(|name| file.section_by_name(name).is_none()) {
            return Err(Outcome::NoDebugInfo);
        }
        let used = |id: SectionId| name_of(id).filter(|_| USED.contains(&id));
        let size = all(USED.into_iter().filter_map(used).map(|name| compressed::expanded_bytes(file, name)));
        *most = most.checked_sub(size).ok_or(Outcome::TooLarge)?;
        let mut is_damaged = false;
        let sections = DwarfSections::load(|id| {
            let section = used(id).map_or(Ok(Cow::default()), |name| compressed::section(file, name));
            // The others may tell something without it.
            Ok::<_, gimli::Error>(section.unwrap_or_else(|_| {
                is_damaged = true;
                Cow::default()
            }))
        });
        Ok(DebugSections { sections: sections.map_err(|_| Outcome::Damaged)?, is_damaged })
    }

    /// As gimli takes them; `alternate` is what dwz shared between files.
    pub(crate) fn dwarf<'s>(&'s self, alternate: Option<&'s DebugSections<'a>>) -> Dwarf<'s> {
        self.sections.borrow_with_sup(alternate.map(|a| &a.sections), |bytes| Slice::new(bytes, LittleEndian))
    }
}

/// Sections of a `.dwp` file.
pub(crate) struct PackageSections<'a>(DwarfPackageSections<Cow<'a, [u8]>>);

impl<'a> PackageSections<'a> {
    /// Takes off `most` bytes what decompressing takes.
    pub(crate) fn read(file: &object::File<'a>, most: &mut u64) -> Result<Self, Outcome> {
        let size = all(file.sections().map(|section| compressed::expanded(&section)));
        *most = most.checked_sub(size).ok_or(Outcome::TooLarge)?;
        let mut outcome = Ok(());
        let sections = DwarfPackageSections::load(|id| {
            let section = id.dwo_name().map_or(Ok(Cow::default()), |name| compressed::section(file, name));
            Ok::<_, gimli::Error>(section.unwrap_or_else(|why| {
                outcome = Err(why);
                Cow::default()
            }))
        });
        outcome.and_then(|()| Ok(PackageSections(sections.map_err(|_| Outcome::Damaged)?)))
    }

    pub(crate) fn package(&self) -> Option<DwarfPackage<Slice<'_>>> {
        self.0.borrow(|bytes| Slice::new(bytes, LittleEndian), Slice::new(&[], LittleEndian)).ok()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn claims_without_end_are_not_small_together() {
        assert_eq!(super::all([1 << 63, 1 << 63, 20].into_iter()), u64::MAX);
        assert_eq!(super::all([3, 4].into_iter()), 7);
    }
}
