//! Names of functions, in whichever unit they stand.

use super::{Dwarf, Slice, Unit};
use gimli::{AttributeValue, DebugInfoOffset, UnitSectionOffset};

/// Where a function's name is to be looked for: an entry's offset in
/// `.debug_info`, of the file itself or of its dwz alternate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NameKey {
    offset: u64,
    in_alternate: bool,
}

impl NameKey {
    /// An entry of the file itself.
    pub(crate) fn here(offset: u64) -> Self {
        NameKey { offset, in_alternate: false }
    }

    /// The entry that an attribute of `unit` refers to.
    pub(crate) fn referred(unit: &Unit<'_>, in_alternate: bool, value: AttributeValue<Slice<'_>>) -> Option<Self> {
        match value {
            AttributeValue::UnitRef(offset) => {
                let offset = offset.to_debug_info_offset(&unit.header)?.0 as u64;
                Some(NameKey { offset, in_alternate })
            }
            AttributeValue::DebugInfoRef(offset) => Some(NameKey { offset: offset.0 as u64, in_alternate }),
            AttributeValue::DebugInfoRefSup(offset) => Some(NameKey { offset: offset.0 as u64, in_alternate: true }),
            _ => None,
        }
    }
}

/// References that are followed from an entry to its name.
const MOST_HOPS: usize = 16;
/// Other units that are kept at hand.
const MOST_UNITS: usize = 4;

/// Looks names up.
pub(crate) struct Names<'d, 'a> {
    dwarf: &'d Dwarf<'a>,
    /// Where all units begin, of the file and of its alternate; looked for when an
    /// entry of another unit is asked for, as link-time optimisation leaves behind.
    begins: [Option<Vec<u64>>; 2],
    /// Units that were needed last.
    units: Vec<(bool, Unit<'a>)>,
}

impl<'d, 'a> Names<'d, 'a> {
    pub(crate) fn new(dwarf: &'d Dwarf<'a>) -> Self {
        Names { dwarf, begins: [None, None], units: Vec::new() }
    }

    /// The linkage name if there is one, else the plain one. `home` is at hand
    /// already.
    pub(crate) fn find(&mut self, home: &Unit<'a>, key: NameKey) -> Option<Slice<'a>> {
        let mut key = key;
        let mut plain = None;
        for _ in 0..MOST_HOPS {
            let dwarf = if key.in_alternate { self.dwarf.sup()? } else { self.dwarf };
            let unit = if !key.in_alternate && contains(home, key.offset) { home } else { self.unit(key)? };
            let found = read(dwarf, unit, key)?;
            if found.linkage.is_some() {
                return found.linkage;
            }
            plain = plain.or(found.plain);
            let Some(origin) = found.origin else { break };
            key = origin;
        }
        plain
    }

    /// The unit that has the entry.
    fn unit(&mut self, key: NameKey) -> Option<&Unit<'a>> {
        let at_hand =
            |(in_alternate, unit): &(bool, Unit<'a>)| *in_alternate == key.in_alternate && contains(unit, key.offset);
        if let Some(place) = self.units.iter().position(at_hand) {
            // The last used at the end.
            self.units[place..].rotate_left(1);
        } else {
            let dwarf = if key.in_alternate { self.dwarf.sup()? } else { self.dwarf };
            let begins = self.begins[usize::from(key.in_alternate)].get_or_insert_with(|| all_units(dwarf));
            let begin = *begins[..begins.partition_point(|&b| b <= key.offset)].last()?;
            let header = dwarf.debug_info.header_from_offset(DebugInfoOffset(begin as usize)).ok()?;
            let unit = dwarf.unit(header).ok()?;
            if self.units.len() >= MOST_UNITS {
                self.units.remove(0);
            }
            self.units.push((key.in_alternate, unit));
        }
        self.units.last().map(|(_, unit)| unit)
    }
}

fn all_units(dwarf: &Dwarf<'_>) -> Vec<u64> {
    let mut begins = Vec::new();
    let mut headers = dwarf.units();
    while let Ok(Some(header)) = headers.next() {
        begins.extend(header.debug_info_offset().map(|o| o.0 as u64));
    }
    begins
}

fn contains(unit: &Unit<'_>, offset: u64) -> bool {
    let begin = unit.header.debug_info_offset().map_or(u64::MAX, |o| o.0 as u64);
    offset.checked_sub(begin).is_some_and(|within| within < unit.header.length_including_self() as u64)
}

/// What an entry says of a name.
struct Found<'a> {
    linkage: Option<Slice<'a>>,
    plain: Option<Slice<'a>>,
    origin: Option<NameKey>,
}

fn read<'a>(dwarf: &Dwarf<'a>, unit: &Unit<'a>, key: NameKey) -> Option<Found<'a>> {
    let at = UnitSectionOffset(key.offset as usize).to_unit_offset(&unit.header)?;
    let mut entries = unit.entries_raw(Some(at)).ok()?;
    let abbreviation = entries.read_abbreviation().ok()??;
    let mut found = Found { linkage: None, plain: None, origin: None };
    for spec in abbreviation.attributes() {
        let attribute = entries.read_attribute(*spec).ok()?;
        let string = || dwarf.attr_string(unit, attribute.value()).ok();
        match attribute.name() {
            gimli::DW_AT_linkage_name | gimli::DW_AT_MIPS_linkage_name => found.linkage = string(),
            gimli::DW_AT_name => found.plain = string(),
            gimli::DW_AT_abstract_origin | gimli::DW_AT_specification => {
                found.origin = NameKey::referred(unit, key.in_alternate, attribute.value());
            }
            _ => {}
        }
    }
    Some(found)
}
