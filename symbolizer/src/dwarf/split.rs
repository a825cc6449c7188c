//! Split DWARF: a unit whose entries lie in a file of their own (`.dwo`), or
//! with others in a package (`.dwp`).

use super::{DebugSections, Dwarf, Slice, Unit};
use crate::debug_files::Outcome;
use crate::image::Image;
use gimli::{DwarfPackage, DwoId};
use std::path::PathBuf;

/// Where the other half of a unit is looked for.
pub(crate) struct Split<'d, 'a> {
    /// The package beside the binary.
    pub(crate) package: Option<&'d DwarfPackage<Slice<'a>>>,
    /// Told whether the package had a unit that it was asked for.
    pub(crate) in_package: &'d (dyn Fn(bool) + Sync),
    /// Opens the file of that name that is meant, which the compiler wrote in that
    /// folder.
    pub(crate) open: &'d Open<'d>,
    /// Bytes that decompressing one may take.
    pub(crate) room: &'d (dyn Fn() -> u64 + Sync),
    /// Told of one that is of no use, and of how many addresses.
    pub(crate) unusable: &'d (dyn Fn(Outcome, usize) + Sync),
}

impl<'a> Split<'_, 'a> {
    /// Calls `then` with the DWARF and the unit that have the entries of `unit`,
    /// which are its own unless it is a skeleton. A skeleton without its other
    /// half still has lines. It is for `count` addresses.
    pub(crate) fn with_entries(&self, dwarf: &Dwarf<'a>, unit: &Unit<'a>, count: usize, then: &mut Then<'_>) {
        let Some(id) = unit.dwo_id else { return then(dwarf, unit) };
        if let Some(package) = self.package {
            let packed = package.find_cu(id, dwarf).ok().flatten();
            (self.in_package)(packed.is_some());
            if let Some(dwo) = packed
                && let Some(full) = first_unit(&dwo, unit)
            {
                return then(&dwo, &full);
            }
        }
        let text = |value| dwarf.attr_string(unit, value).ok().map(|s| s.to_string_lossy().into_owned());
        let name = unit.dwo_name().ok().flatten().and_then(text);
        let folder = unit.comp_dir.map(|dir| PathBuf::from(dir.to_string_lossy().into_owned())).unwrap_or_default();
        let is_meant = |image: &Image| has_unit(image, dwarf, id, (self.room)());
        let Some(image) = name.and_then(|name| (self.open)(folder, PathBuf::from(name), &is_meant)) else {
            return then(dwarf, unit);
        };
        let Ok(file) = object::File::parse(image.bytes()) else { return then(dwarf, unit) };
        let sections = match DebugSections::read_split(&file, &mut (self.room)()) {
            Ok(sections) => sections,
            Err(outcome) => {
                (self.unusable)(outcome, count);
                return then(dwarf, unit);
            }
        };
        let mut dwo = sections.dwarf(None);
        dwo.make_dwo(dwarf);
        match first_unit(&dwo, unit) {
            Some(full) => then(&dwo, &full),
            None => then(dwarf, unit),
        }
    }
}

/// Whether the file's unit is the other half of the one with this ID. One that is too
/// large to be looked at is taken for it.
fn has_unit(image: &Image, skeletons: &Dwarf<'_>, id: DwoId, room: u64) -> bool {
    let Ok(file) = object::File::parse(image.bytes()) else { return false };
    let sections = match DebugSections::read_split(&file, &mut room.clone()) {
        Ok(sections) => sections,
        Err(outcome) => return outcome == Outcome::TooLarge,
    };
    let mut dwo = sections.dwarf(None);
    dwo.make_dwo(skeletons);
    let unit = dwo.units().next().ok().flatten().and_then(|header| dwo.unit(header).ok());
    unit.is_some_and(|unit| unit.dwo_id == Some(id))
}

/// Opens a file, by folder and name, if it is meant.
pub(crate) type Open<'d> = dyn Fn(PathBuf, PathBuf, &dyn Fn(&Image) -> bool) -> Option<Image> + Sync + 'd;

/// Who takes the half that has the entries.
pub(crate) type Then<'t> = dyn FnMut(&Dwarf<'_>, &Unit<'_>) + 't;

fn first_unit<'s>(dwo: &Dwarf<'s>, skeleton: &Unit<'s>) -> Option<Unit<'s>> {
    let header = dwo.units().next().ok()??;
    let mut unit = dwo.unit(header).ok()?;
    unit.copy_relocated_attributes(skeleton);
    Some(unit)
}
