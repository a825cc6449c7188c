//! Split DWARF: a unit whose entries lie in a file of their own (`.dwo`), or
//! with others in a package (`.dwp`).

use super::{DebugSections, Dwarf, Slice, Unit};
use crate::image::Image;
use gimli::DwarfPackage;
use std::path::PathBuf;

/// Where the other half of a unit is looked for.
pub(crate) struct Split<'d, 'a> {
    /// The package beside the binary.
    pub(crate) package: Option<&'d DwarfPackage<Slice<'a>>>,
    /// Opens the file of that name, which the compiler wrote in that folder.
    pub(crate) open: &'d (dyn Fn(PathBuf, PathBuf) -> Option<Image> + Sync),
}

impl<'a> Split<'_, 'a> {
    /// Calls `then` with the DWARF and the unit that have the entries of `unit`,
    /// which are its own unless it is a skeleton. A skeleton without its other
    /// half still has lines.
    pub(crate) fn with_entries(&self, dwarf: &Dwarf<'a>, unit: &Unit<'a>, then: &mut Then<'_>) {
        let Some(id) = unit.dwo_id else { return then(dwarf, unit) };
        if let Some(package) = self.package
            && let Ok(Some(dwo)) = package.find_cu(id, dwarf)
            && let Some(full) = first_unit(&dwo, unit)
        {
            return then(&dwo, &full);
        }
        let text = |value| dwarf.attr_string(unit, value).ok().map(|s| s.to_string_lossy().into_owned());
        let name = unit.dwo_name().ok().flatten().and_then(text);
        let folder = unit.comp_dir.map(|dir| PathBuf::from(dir.to_string_lossy().into_owned())).unwrap_or_default();
        let Some(image) = name.and_then(|name| (self.open)(folder, PathBuf::from(name))) else {
            return then(dwarf, unit);
        };
        let Ok(file) = object::File::parse(image.bytes()) else { return then(dwarf, unit) };
        let Some(sections) = DebugSections::read_split(&file) else { return then(dwarf, unit) };
        let mut dwo = sections.dwarf(None);
        dwo.make_dwo(dwarf);
        match first_unit(&dwo, unit).filter(|full| full.dwo_id == Some(id)) {
            Some(full) => then(&dwo, &full),
            None => then(dwarf, unit),
        }
    }
}

/// Who takes the half that has the entries.
pub(crate) type Then<'t> = dyn FnMut(&Dwarf<'_>, &Unit<'_>) + 't;

fn first_unit<'s>(dwo: &Dwarf<'s>, skeleton: &Unit<'s>) -> Option<Unit<'s>> {
    let header = dwo.units().next().ok()??;
    let mut unit = dwo.unit(header).ok()?;
    unit.copy_relocated_attributes(skeleton);
    Some(unit)
}
