//! Which unit each address lies in.

use super::Dwarf;
use gimli::DebugInfoOffset;
use std::ops::Range;

/// A unit and its addresses.
#[derive(Debug)]
pub(crate) struct Group {
    /// Where it begins in `.debug_info`.
    pub(crate) unit: u64,
    /// Which of the positions are in it.
    pub(crate) positions: Range<usize>,
}

/// Units of addresses. Needs memory for addresses and for units, not for ranges.
#[derive(Debug)]
pub(crate) struct Index {
    /// Where units begin that have any of the addresses.
    units: Vec<u64>,
    /// For each address the index of its unit.
    unit_of: Vec<u32>,
}

const NO_UNIT: u32 = u32::MAX;

impl Index {
    /// Finds the units of `addresses`, which are sorted.
    ///
    /// `.debug_aranges` answers without a look at the units. Some compilers leave
    /// units out of it or do not write it at all; then their own ranges count, and
    /// each unit's first entry has to be read.
    pub(crate) fn new(dwarf: &Dwarf<'_>, addresses: &[u64]) -> Self {
        let mut index = Index::empty(addresses);
        let mut listed = Vec::new();
        let mut sets = dwarf.debug_aranges.headers();
        // A damaged table ends early; the units themselves are asked for the rest.
        while let Ok(Some(set)) = sets.next() {
            let unit = set.debug_info_offset().0 as u64;
            listed.push(unit);
            let mut entries = set.entries();
            while let Ok(Some(entry)) = entries.next() {
                index.claim(addresses, entry.range(), unit);
            }
        }
        if index.unit_of.contains(&NO_UNIT) {
            listed.sort_unstable();
            index.ask_units(dwarf, addresses, &listed);
        }
        index
    }

    /// One in which no unit has anything.
    pub(crate) fn empty(addresses: &[u64]) -> Self {
        Index { units: Vec::new(), unit_of: vec![NO_UNIT; addresses.len()] }
    }

    /// Ranges of the units that `.debug_aranges` does not list.
    fn ask_units(&mut self, dwarf: &Dwarf<'_>, addresses: &[u64], listed: &[u64]) {
        let mut headers = dwarf.units();
        while let Ok(Some(header)) = headers.next() {
            let Some(DebugInfoOffset(offset)) = header.debug_info_offset() else { continue };
            if listed.binary_search(&(offset as u64)).is_ok() {
                continue;
            }
            let Ok(unit) = dwarf.unit(header) else { continue };
            let Ok(mut ranges) = dwarf.unit_ranges(&unit) else { continue };
            while let Ok(Some(range)) = ranges.next() {
                self.claim(addresses, range, offset as u64);
            }
        }
    }

    /// The first unit that claims an address has it.
    fn claim(&mut self, addresses: &[u64], range: gimli::Range, unit: u64) {
        // What the linker threw away is left at address 0.
        if range.begin == 0 || range.begin >= range.end {
            return;
        }
        let first = addresses.partition_point(|&a| a < range.begin);
        let count = addresses[first..].partition_point(|&a| a < range.end);
        for place in &mut self.unit_of[first..first + count] {
            if *place == NO_UNIT {
                if self.units.last() != Some(&unit) {
                    self.units.push(unit);
                }
                *place = self.units.len() as u32 - 1;
            }
        }
    }

    /// Positions of addresses, unit by unit, each unit's in order; and the units
    /// with their share of it.
    pub(crate) fn groups(&self) -> (Vec<u32>, Vec<Group>) {
        let mut positions: Vec<u32> = (0..self.unit_of.len() as u32).collect();
        positions.retain(|&p| self.unit_of[p as usize] != NO_UNIT);
        positions.sort_by_key(|&p| self.unit_of[p as usize]);
        let mut begin = 0;
        let groups = self.units.iter().enumerate().map(|(index, &unit)| {
            let mine = positions[begin..].partition_point(|&p| self.unit_of[p as usize] == index as u32);
            begin += mine;
            Group { unit, positions: begin - mine..begin }
        });
        let groups = groups.collect();
        (positions, groups)
    }

    /// Whether no unit has the address at this position.
    pub(crate) fn is_outside(&self, position: usize) -> bool {
        self.unit_of[position] == NO_UNIT
    }
}
