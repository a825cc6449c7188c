//! Functions of one unit, and what was inlined into them.

use super::names::NameKey;
use super::{Dwarf, Place, Slice, Unit};
use gimli::{Abbreviations, AttributeSpecification, AttributeValue, DwTag, EntriesRaw, Reader, UnitHeader, UnitOffset};

/// A function at an address, or one inlined there.
#[derive(Debug)]
pub(crate) struct Scope {
    /// What it was inlined into: an index, or [`NO_SCOPE`].
    pub(crate) parent: u32,
    pub(crate) name: NameKey,
    /// Where it was inlined.
    pub(crate) call: Place,
}

/// Functions inlined into each other that are told. Compilers stop long before.
const MOST_INLINED: usize = 256;
/// Functions of one unit that are looked at for the addresses of one go; the names of more
/// would be without end.
const MOST_SCOPES: usize = 1 << 18;

/// No function.
pub(crate) const NO_SCOPE: u32 = u32::MAX;

/// Functions that have any of a unit's addresses.
#[derive(Debug)]
pub(crate) struct Scopes {
    pub(crate) scopes: Vec<Scope>,
    /// For each address the innermost.
    pub(crate) innermost: Vec<u32>,
}

/// Finds the functions at `pcs`, which are sorted.
///
/// Entries with a sibling attribute that have none of the addresses are passed over
/// with all that is in them. Functions can be in there nevertheless: those of local
/// classes, lambdas and languages with nested functions. So if addresses are left
/// over, all is looked at, except in C, where only an extension has such functions
/// and the symbol table names them.
pub(crate) fn scopes(dwarf: &Dwarf<'_>, unit: &Unit<'_>, pcs: &[u64], with_inlined: bool) -> Scopes {
    let mut walk = Walk::new(dwarf, unit, pcs, with_inlined, true);
    // What was found before the damage is right.
    let _ = walk.run();
    if walk.unnamed > 0 && walk.has_skipped && !is_c(unit) {
        walk = Walk::new(dwarf, unit, pcs, with_inlined, false);
        let _ = walk.run();
    }
    walk.found
}

fn is_c(unit: &Unit<'_>) -> bool {
    let root = unit.entries().next_dfs().ok().flatten().and_then(|e| e.attr_value(gimli::DW_AT_language));
    matches!(
        root,
        Some(AttributeValue::Language(
            gimli::DW_LANG_C89 | gimli::DW_LANG_C | gimli::DW_LANG_C99 | gimli::DW_LANG_C11 | gimli::DW_LANG_C17
        ))
    )
}

struct Walk<'w, 'a> {
    dwarf: &'w Dwarf<'a>,
    unit: &'w Unit<'a>,
    pcs: &'w [u64],
    with_inlined: bool,
    skips: bool,
    has_skipped: bool,
    found: Scopes,
    /// Addresses without a function so far.
    unnamed: usize,
}

/// A function around the entry that is read.
struct Around {
    depth: isize,
    scope: u32,
}

impl<'w, 'a> Walk<'w, 'a> {
    fn new(dwarf: &'w Dwarf<'a>, unit: &'w Unit<'a>, pcs: &'w [u64], with_inlined: bool, skips: bool) -> Self {
        let found = Scopes { scopes: Vec::new(), innermost: vec![NO_SCOPE; pcs.len()] };
        Walk { dwarf, unit, pcs, with_inlined, skips, has_skipped: false, found, unnamed: pcs.len() }
    }

    fn run(&mut self) -> gimli::Result<()> {
        let unit = self.unit;
        let kinds = Kinds::of(unit);
        let mut input = unit.header.range_from(unit.header.root_offset()..)?;
        let end = unit.header.length_including_self();
        let mut depth = 0_isize;
        let mut around: Vec<Around> = Vec::new();
        while !input.is_empty() {
            let at = UnitOffset(end - input.len());
            while around.last().is_some_and(|a| depth <= a.depth) {
                around.pop();
            }
            if (around.is_empty() && self.unnamed == 0) || self.found.scopes.len() >= MOST_SCOPES {
                break;
            }
            let code = input.read_uleb128()?;
            if code == 0 {
                depth -= 1;
                continue;
            }
            let kind = kinds.get(code)?;
            let inside = depth;
            depth += isize::from(kind.has_children);
            let is_function = kind.tag == gimli::DW_TAG_subprogram;
            let mut sibling = None;
            if is_function || (kind.tag == gimli::DW_TAG_inlined_subroutine && self.with_inlined && !around.is_empty())
            {
                let (entry, next) = self.read(at)?;
                input = unit.header.range_from(next..)?;
                let parent = if is_function { NO_SCOPE } else { around.last().map_or(NO_SCOPE, |a| a.scope) };
                let is_too_deep = !is_function && around.len() >= MOST_INLINED;
                if !is_too_deep && let Some(scope) = self.enter(&entry, parent)? {
                    around.push(Around { depth: inside, scope });
                } else {
                    sibling = entry.sibling;
                }
            } else if self.skips
                && kind.is_passed_over
                && !has_functions(kind.tag, !around.is_empty() && self.with_inlined)
            {
                let next;
                (sibling, next) = self.read_sibling(at)?;
                input = unit.header.range_from(next..)?;
            } else if let Some(bytes) = kind.bytes {
                input.skip(bytes)?;
            } else {
                input = unit.header.range_from(self.skip(at)?..)?;
            }
            // Passes over what is in the entry, if it says where it ends; only forwards, so
            // that no file makes us run in circles.
            if let Some(sibling) = sibling.filter(|s| self.skips && kind.has_children && s.0 > end - input.len()) {
                input = unit.header.range_from(sibling..)?;
                depth = inside;
                self.has_skipped = true;
            }
        }
        Ok(())
    }

    /// A scope for the addresses that the function has, if it has any.
    fn enter(&mut self, entry: &Function<'a>, parent: u32) -> gimli::Result<Option<u32>> {
        let new = self.found.scopes.len() as u32;
        let (pcs, innermost) = (self.pcs, &mut self.found.innermost);
        let mut has_any = false;
        let mut unnamed = self.unnamed;
        let mut take = |range: gimli::Range| {
            // What the linker threw away is left at address 0.
            if range.begin == 0 || range.begin >= range.end {
                return;
            }
            let first = pcs.partition_point(|&pc| pc < range.begin);
            let count = pcs[first..].partition_point(|&pc| pc < range.end);
            for scope in &mut innermost[first..first + count] {
                unnamed -= usize::from(*scope == NO_SCOPE);
                *scope = new;
                has_any = true;
            }
        };
        match (entry.ranges, entry.low, entry.high) {
            (Some(ranges), ..) => {
                if let Some(mut ranges) = self.dwarf.attr_ranges(self.unit, ranges)? {
                    while let Some(range) = ranges.next()? {
                        take(range);
                    }
                }
            }
            (None, Some(begin), Some(end)) => take(gimli::Range { begin, end }),
            _ => {}
        }
        self.unnamed = unnamed;
        if has_any {
            self.found.scopes.push(Scope { parent, name: entry.name, call: entry.call });
        }
        Ok(has_any.then_some(new))
    }

    /// The attributes of a function, or of an inlined one, and where the next entry begins.
    fn read(&self, at: UnitOffset) -> gimli::Result<(Function<'a>, UnitOffset)> {
        let (dwarf, unit) = (self.dwarf, self.unit);
        let here = at.to_debug_info_offset(&unit.header).map_or(0, |o| o.0 as u64);
        let mut function = Function::at(here);
        let (mut size, mut origin, mut has_name) = (None, None, false);
        let (mut entries, specs) = self.entry(at)?;
        for spec in specs {
            let attribute = entries.read_attribute(*spec)?;
            let value = attribute.value();
            match attribute.name() {
                gimli::DW_AT_low_pc => function.low = dwarf.attr_address(unit, value)?,
                gimli::DW_AT_high_pc => match value {
                    AttributeValue::Udata(bytes) => size = Some(bytes),
                    _ => function.high = dwarf.attr_address(unit, value)?,
                },
                gimli::DW_AT_ranges => function.ranges = Some(value),
                gimli::DW_AT_sibling => function.sibling = sibling(&value),
                gimli::DW_AT_linkage_name | gimli::DW_AT_MIPS_linkage_name | gimli::DW_AT_name => has_name = true,
                gimli::DW_AT_abstract_origin | gimli::DW_AT_specification => {
                    origin = NameKey::referred(unit, false, value);
                }
                gimli::DW_AT_call_file => function.call.file = call_file(unit, &value),
                gimli::DW_AT_call_line => function.call.line = number(&value),
                gimli::DW_AT_call_column => function.call.column = number(&value),
                _ => {}
            }
        }
        if let (Some(low), Some(size)) = (function.low, size) {
            function.high = low.checked_add(size);
        }
        // Many copies of one function share its name, and it is looked for once.
        if let (false, Some(origin)) = (has_name, origin) {
            function.name = origin;
        }
        Ok((function, entries.next_offset()))
    }

    /// Where what is in an entry ends, if it says so, and where the next entry begins.
    fn read_sibling(&self, at: UnitOffset) -> gimli::Result<(Option<UnitOffset>, UnitOffset)> {
        let (mut entries, specs) = self.entry(at)?;
        let mut found = None;
        for spec in specs {
            if spec.name() == gimli::DW_AT_sibling {
                found = sibling(&entries.read_attribute(*spec)?.value());
            } else {
                entries.skip_attributes(std::slice::from_ref(spec))?;
            }
        }
        Ok((found, entries.next_offset()))
    }

    /// Where the entry behind this one begins.
    fn skip(&self, at: UnitOffset) -> gimli::Result<UnitOffset> {
        let (mut entries, specs) = self.entry(at)?;
        entries.skip_attributes(specs)?;
        Ok(entries.next_offset())
    }

    /// A reader behind the code of an entry, and what its attributes are.
    fn entry(&self, at: UnitOffset) -> gimli::Result<(EntriesRaw<'w, Slice<'a>>, &'w [AttributeSpecification])> {
        let mut entries = self.unit.entries_raw(Some(at))?;
        let abbreviation = entries.read_abbreviation()?;
        Ok((entries, abbreviation.map_or(&[], |abbreviation| abbreviation.attributes())))
    }
}

/// What is known of all entries with one code, so that most need not be looked at.
#[derive(Debug, Clone, Copy)]
struct Kind {
    tag: DwTag,
    has_children: bool,
    /// Whether it tells where it ends with all that is in it.
    is_passed_over: bool,
    /// Of all its attributes; `None` where that differs from entry to entry.
    bytes: Option<usize>,
}

/// Kinds of entries of one unit, by their codes.
struct Kinds<'u> {
    abbreviations: &'u Abbreviations,
    /// Of the codes from 1 on. Compilers leave none out.
    known: Vec<Kind>,
    header: UnitHeader<Slice<'u>>,
}

/// Codes that are kept at hand.
const MOST_KINDS: u64 = 1 << 14;

impl<'u> Kinds<'u> {
    fn of(unit: &'u Unit<'_>) -> Self {
        let mut kinds = Kinds { abbreviations: &unit.abbreviations, known: Vec::new(), header: unit.header };
        kinds.known = (1..MOST_KINDS).map_while(|code| kinds.make(code)).collect();
        kinds
    }

    fn make(&self, code: u64) -> Option<Kind> {
        let abbreviation = self.abbreviations.get(code)?;
        let specs = abbreviation.attributes();
        Some(Kind {
            tag: abbreviation.tag(),
            has_children: abbreviation.has_children(),
            is_passed_over: abbreviation.has_children() && specs.iter().any(|s| s.name() == gimli::DW_AT_sibling),
            bytes: specs.iter().map(|spec| spec.size(&self.header)).sum(),
        })
    }

    fn get(&self, code: u64) -> gimli::Result<Kind> {
        let known = usize::try_from(code - 1).ok().and_then(|place| self.known.get(place).copied());
        known.or_else(|| self.make(code)).ok_or(gimli::Error::InvalidAbbreviationCode(code))
    }
}

/// Attributes of a function.
struct Function<'a> {
    low: Option<u64>,
    high: Option<u64>,
    ranges: Option<AttributeValue<Slice<'a>>>,
    sibling: Option<UnitOffset>,
    name: NameKey,
    call: Place,
}

impl Function<'_> {
    fn at(offset: u64) -> Self {
        let name = NameKey::here(offset);
        Function { low: None, high: None, ranges: None, sibling: None, name, call: Place::default() }
    }
}

/// Whether functions with code are commonly found in such an entry.
fn has_functions(tag: DwTag, inside_a_function: bool) -> bool {
    match tag {
        gimli::DW_TAG_compile_unit
        | gimli::DW_TAG_partial_unit
        | gimli::DW_TAG_skeleton_unit
        | gimli::DW_TAG_namespace
        | gimli::DW_TAG_module => true,
        gimli::DW_TAG_lexical_block | gimli::DW_TAG_try_block | gimli::DW_TAG_catch_block | gimli::DW_TAG_with_stmt => {
            inside_a_function
        }
        _ => false,
    }
}

fn sibling(value: &AttributeValue<Slice<'_>>) -> Option<UnitOffset> {
    match value {
        AttributeValue::UnitRef(offset) => Some(*offset),
        _ => None,
    }
}

fn number(value: &AttributeValue<Slice<'_>>) -> u32 {
    value.udata_value().and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
}

/// Before version 5 file 0 was none.
fn call_file(unit: &Unit<'_>, value: &AttributeValue<Slice<'_>>) -> Option<u32> {
    let file = match value {
        AttributeValue::FileIndex(file) => *file,
        value => value.udata_value()?,
    };
    u32::try_from(file).ok().filter(|&f| f > 0 || unit.header.version() >= 5)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gimli::{DebugInfoOffset, LittleEndian, SectionId};

    /// A unit of DWARF 4 with a function at 0x1000 up to 0x2000, and `inlined` functions,
    /// each inlined into the one before.
    /// `gap` codes of abbreviations are left out.
    fn nested(inlined: usize, gap: u8) -> (Vec<u8>, Vec<u8>) {
        const RANGE: [u8; 4] = [0x11, 0x01, 0x12, 0x06];
        let entry = |code: u8, tag: u8, attributes: &[u8]| [&[code, tag, 1][..], attributes, &[0, 0]].concat();
        let code = 3 + gap;
        let abbreviations = [entry(1, 0x11, &[]), entry(2, 0x2e, &RANGE), entry(code, 0x1d, &RANGE), vec![0]].concat();
        let range = [&0x1000_u64.to_le_bytes()[..], &0x1000_u32.to_le_bytes()].concat();
        // Version, offset of the abbreviations, size of addresses; then the unit itself.
        let mut unit = vec![4, 0, 0, 0, 0, 0, 8, 1, 2];
        unit.extend(&range);
        (0..inlined).for_each(|_| unit.extend([&[code][..], &range].concat()));
        unit.extend(vec![0; inlined + 2]);
        (abbreviations, [&(unit.len() as u32).to_le_bytes()[..], &unit].concat())
    }

    fn chain(inlined: usize, gap: u8) -> usize {
        let (abbreviations, info) = nested(inlined, gap);
        let dwarf = Dwarf::load(|id| {
            let bytes: &[u8] = match id {
                SectionId::DebugAbbrev => &abbreviations,
                SectionId::DebugInfo => &info,
                _ => &[],
            };
            Ok::<_, gimli::Error>(Slice::new(bytes, LittleEndian))
        })
        .unwrap();
        let header = dwarf.debug_info.header_from_offset(DebugInfoOffset(0)).unwrap();
        let unit = dwarf.unit(header).unwrap();
        let found = scopes(&dwarf, &unit, &[0x1800], true);
        let mut scope = found.scopes.get(found.innermost[0] as usize);
        let mut length = 0;
        while let Some(s) = scope {
            length += 1;
            scope = found.scopes.get(s.parent as usize);
        }
        length
    }

    #[test]
    fn no_chain_of_inlined_functions_is_without_end() {
        assert_eq!((chain(0, 0), chain(40, 0)), (1, 41));
        assert_eq!(chain(20_000, 0), MOST_INLINED);
    }

    #[test]
    fn codes_may_be_left_out() {
        assert_eq!(chain(7, 90), 8);
    }
}
