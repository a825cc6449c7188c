//! `runtime.firstmoduledata`: where the linker put what.
//!
//! Its head is the same in Go 1.18 to 1.27 (`runtime/symtab.go`), in words:
//! 0 pcHeader; slices of three words each: 1 funcnametab, 4 cutab, 7 filetab,
//! 10 pctab, 13 pclntable, 16 ftab; 19 findfunctab; 20 minpc, maxpc; 22 text,
//! etext; 24 noptrdata; 26 data; 28 bss; 30 noptrbss, each with its end.

use crate::image::Image;
use std::collections::BTreeMap;
use std::ops::Range;

/// Words that are looked at.
const WORDS: u64 = 48;
/// Places that may look like it before the search is given up.
const MAX_CANDIDATES: usize = 16;

/// Addresses (SVMA) from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ModuleData {
    pub(super) header: u64,
    pub(super) text: Range<u64>,
    pub(super) noptrdata: Range<u64>,
    pub(super) data: Range<u64>,
    pub(super) bss: Range<u64>,
    pub(super) noptrbss: Range<u64>,
    /// What `_func`'s funcdata counts from.
    pub(super) gofunc: u64,
}

/// Word of `gofunc`, which is `rodata`'s successor. 1.20 put `covctrs` and its
/// end before it, 1.27 `typedesclen`, `itaboffset` and `itabsize`.
fn gofunc_word(minor: Option<u32>) -> u64 {
    match minor {
        Some(..=19) => 38,
        Some(20..=26) => 40,
        _ => 43,
    }
}

/// Finds the words that point to the table at `header` and to the function names
/// in it.
pub(super) fn find(image: &Image, header: u64, names: u64, minor: Option<u32>) -> Option<ModuleData> {
    let in_place = image.words_equal(header, MAX_CANDIDATES);
    // In a position-independent binary the loader writes them.
    let relocated = image.relative_relocations().filter(|&(_, to)| to == header).map(|(at, _)| at);
    let candidates: Vec<u64> = in_place.into_iter().chain(relocated).take(2 * MAX_CANDIDATES).collect();
    let mut written: BTreeMap<u64, u64> = BTreeMap::new();
    for (at, to) in image.relative_relocations() {
        if candidates.iter().any(|&start| at.wrapping_sub(start) < WORDS * 8) {
            written.insert(at, to);
        }
    }
    candidates.into_iter().find_map(|start| {
        let word = |index: u64| {
            let at = start.checked_add(index * 8)?;
            written.get(&at).copied().or_else(|| image.word(at))
        };
        let range = |index: u64| Some(word(index)?..word(index + 1)?).filter(|r| r.start <= r.end);
        if word(1)? != names {
            return None;
        }
        Some(ModuleData {
            header,
            text: range(22)?,
            noptrdata: range(24)?,
            data: range(26)?,
            bss: range(28)?,
            noptrbss: range(30)?,
            gofunc: word(gofunc_word(minor))?,
        })
    })
}
