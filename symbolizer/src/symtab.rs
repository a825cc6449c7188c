//! Function names from ELF symbol tables.

use object::{Object, ObjectSymbol, SymbolKind, SymbolSection};

/// One function.
#[derive(Debug, Clone, Copy)]
struct Entry<'a> {
    start: u64,
    end: u64,
    name: &'a str,
    rank: u8,
}

/// Functions sorted by address.
#[derive(Debug)]
pub(crate) struct SymbolTable<'a> {
    entries: Vec<Entry<'a>>,
}

impl<'a> SymbolTable<'a> {
    /// `.symtab` (or, with `dynamic`, `.dynsym`) of a parsed file.
    pub(crate) fn read(file: &object::File<'a>, dynamic: bool) -> Self {
        let symbols = if dynamic { file.dynamic_symbols() } else { file.symbols() };
        let mut entries: Vec<Entry<'a>> = symbols
            .filter(|s| s.is_definition() && matches!(s.section(), SymbolSection::Section(_)))
            // Assembly often leaves the type out (STT_NOTYPE).
            .filter(|s| matches!(s.kind(), SymbolKind::Text | SymbolKind::Unknown))
            .filter_map(|s| {
                let name = s.name().ok().filter(|n| !n.is_empty())?;
                // Prefer real functions, then global ones, then names without a dot.
                let rank = u8::from(s.kind() != SymbolKind::Text) * 4
                    + u8::from(!s.is_global()) * 2
                    + u8::from(name.contains('.'));
                Some(Entry { start: s.address(), end: s.address().saturating_add(s.size()), name, rank })
            })
            .collect();
        entries.sort_by_key(|e| (e.start, e.rank));
        entries.dedup_by_key(|e| e.start);
        // A symbol without size reaches to the next one.
        for i in 0..entries.len() {
            if entries[i].end == entries[i].start {
                entries[i].end = entries.get(i + 1).map_or(u64::MAX, |next| next.start);
            }
        }
        SymbolTable { entries }
    }

    /// The function that covers an address.
    pub(crate) fn find(&self, address: u64) -> Option<&'a str> {
        let after = self.entries.partition_point(|e| e.start <= address);
        let entry = self.entries[..after].last()?;
        (address < entry.end).then_some(entry.name)
    }
}
