//! Function names from ELF symbol tables.

use object::elf::STT_GNU_IFUNC;
use object::read::{Symbol, SymbolTable};
use object::{
    Object, ObjectSection, ObjectSymbol, ObjectSymbolTable, SymbolFlags, SymbolIndex, SymbolKind, SymbolSection,
};
use std::cmp::Reverse;

/// Which of a file's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    /// `.symtab`
    Full,
    /// `.dynsym`
    Dynamic,
}

/// The functions that cover addresses, found in one pass over the table: it is
/// not sorted and not copied, so memory depends on the addresses alone.
#[derive(Debug)]
pub(crate) struct Covering {
    table: Table,
    /// For each address the symbol's index; 0, which is no symbol, for none.
    symbols: Vec<u32>,
}

impl Covering {
    /// For `addresses`, which are sorted.
    pub(crate) fn find(file: &object::File<'_>, table: Table, addresses: &[u64]) -> Self {
        let Some(symbols) = open(file, table) else { return Covering { table, symbols: Vec::new() } };
        // The best symbol that begins after the address before, up to each address;
        // in the last place those behind all addresses, which cover none.
        let mut best = vec![0u32; addresses.len() + 1];
        for symbol in symbols.symbols().filter(is_function) {
            let place = addresses.partition_point(|&a| a < symbol.address());
            let Ok(index) = u32::try_from(symbol.index().0) else { continue };
            if at(&symbols, best[place]).is_none_or(|other| preference(&symbol) > preference(&other)) {
                best[place] = index;
            }
        }
        best.pop();
        let mut last = 0;
        for (found, &address) in best.iter_mut().zip(addresses) {
            if *found != 0 {
                last = *found;
            }
            // A symbol without size reaches to the next one, at most to the end of its
            // section: `_init` is not what is in `.plt`.
            let covers = |s: &Symbol<'_, '_>| match s.size() {
                0 => address < section_end(file, s),
                size => address - s.address() < size,
            };
            *found = if at(&symbols, last).is_some_and(|s| covers(&s)) { last } else { 0 };
        }
        Covering { table, symbols: best }
    }

    /// The name for the address at this position, as it is in the table.
    pub(crate) fn name<'a>(&self, file: &object::File<'a>, position: usize) -> Option<&'a str> {
        let index = *self.symbols.get(position)?;
        at(&open(file, self.table)?, index)?.name().ok()
    }
}

fn open<'a, 'f>(file: &'f object::File<'a>, table: Table) -> Option<SymbolTable<'a, 'f>> {
    match table {
        Table::Full => file.symbol_table(),
        Table::Dynamic => file.dynamic_symbol_table(),
    }
}

fn at<'a, 'f>(symbols: &SymbolTable<'a, 'f>, index: u32) -> Option<Symbol<'a, 'f>> {
    (index != 0).then(|| symbols.symbol_by_index(SymbolIndex(index as usize)).ok())?
}

/// 0 where it has none, which covers nothing.
fn section_end(file: &object::File<'_>, symbol: &Symbol<'_, '_>) -> u64 {
    let section = symbol.section_index().and_then(|index| file.section_by_index(index).ok());
    section.map_or(0, |section| section.address().saturating_add(section.size()))
}

fn is_function(symbol: &Symbol<'_, '_>) -> bool {
    matches!(symbol.section(), SymbolSection::Section(_))
        // Assembly often leaves the type out (STT_NOTYPE).
        && (rank(symbol) > 0 || symbol.is_definition() && symbol.kind() == SymbolKind::Unknown)
        // $x and $d mark code and data for disassemblers on aarch64.
        && symbol.name().is_ok_and(|name| !name.is_empty() && !name.starts_with('$'))
}

/// The nearest; of several there real functions, then global ones, then names
/// without a dot, then the first in the table.
fn preference(symbol: &Symbol<'_, '_>) -> (u64, u8, bool, bool, Reverse<usize>) {
    (
        symbol.address(),
        rank(symbol),
        symbol.is_global(),
        !symbol.name().is_ok_and(|name| name.contains('.')),
        Reverse(symbol.index().0),
    )
}

/// 2 for functions; 1 for those that are chosen when they are bound, whose symbol is where the
/// function is that chooses; else 0.
fn rank(symbol: &Symbol<'_, '_>) -> u8 {
    match symbol.flags() {
        SymbolFlags::Elf { st_info, .. } if st_info & 0xf == STT_GNU_IFUNC => 1,
        _ => 2 * u8::from(symbol.kind() == SymbolKind::Text),
    }
}
