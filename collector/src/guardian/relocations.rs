//! Our program's table of relocations, which need not stay in memory.
//!
//! The dynamic linker has read it before `main`, and nobody reads it again: it is 0.8 MiB
//! of nothing. Should anybody, it comes from the disk.

use crate::snapshot::page_size;
use std::ffi::{c_int, c_void};
use std::ops::Range;

/// Tags of the dynamic section (elf(5)).
const DT_NULL: u64 = 0;
const DT_RELA: u64 = 7;
const DT_RELASZ: u64 = 8;

/// Lets the kernel take the table's whole pages where memory is locked.
pub fn unlock() {
    let pages = whole_pages(&table());
    if !pages.is_empty() {
        // SAFETY: munlock changes no memory. It fails for what is not mapped, and what stays
        // locked is in nobody's way.
        unsafe { libc::munlock(pages.start as *const c_void, pages.end - pages.start) };
    }
}

/// The pages that have nothing else on them.
fn whole_pages(table: &Range<usize>) -> Range<usize> {
    let page = page_size() as usize;
    table.start.next_multiple_of(page)..table.end / page * page
}

/// Where it is; empty where it is not found.
fn table() -> Range<usize> {
    let mut table = 0..0;
    // SAFETY: the callback gets `table`, which lives until it has returned, and keeps nothing.
    unsafe { libc::dl_iterate_phdr(Some(first), (&raw mut table).cast()) };
    table
}

/// Looks at the first object, which is the program (dl_iterate_phdr(3)), and ends the
/// iteration.
unsafe extern "C" fn first(info: *mut libc::dl_phdr_info, _size: usize, table: *mut c_void) -> c_int {
    // SAFETY: both are what `dl_iterate_phdr` and `table` pass: live, and nobody else's meanwhile.
    let (info, table) = unsafe { (&*info, &mut *table.cast::<Range<usize>>()) };
    // SAFETY: the linker's own words on where the program headers are, and how many.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    let base = info.dlpi_addr as usize;
    let at = |header: &libc::Elf64_Phdr| base + header.p_vaddr as usize;
    let Some(dynamic) = headers.iter().find(|header| header.p_type == libc::PT_DYNAMIC) else { return 1 };
    // SAFETY: the dynamic section is pairs of words, mapped and aligned as its header says, and
    // the linker has written what it writes there.
    let entries = unsafe { std::slice::from_raw_parts(at(dynamic) as *const [u64; 2], dynamic.p_memsz as usize / 16) };
    let value = |tag| entries.iter().take_while(|e| e[0] != DT_NULL).find(|e| e[0] == tag).map(|e| e[1] as usize);
    let (Some(start), Some(bytes)) = (value(DT_RELA), value(DT_RELASZ)) else { return 1 };
    // glibc puts the address there where the file has an offset; others leave the offset.
    let start = if start < base { base + start } else { start };
    let has_it = |header: &libc::Elf64_Phdr| {
        let is_constant = header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0;
        is_constant && at(header) <= start && start + bytes <= at(header) + header.p_filesz as usize
    };
    if headers.iter().any(has_it) {
        *table = start..start + bytes;
    }
    1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guardian::own_status_bytes;

    #[test]
    fn it_is_the_table() {
        let table = table();
        // R_X86_64_RELATIVE and R_AARCH64_RELATIVE, which linkers put first.
        let relative = if cfg!(target_arch = "aarch64") { 1027 } else { 8 };
        // SAFETY: the linker has mapped it to be read; entries are three words each.
        let entries = unsafe { std::slice::from_raw_parts(table.start as *const [u64; 3], table.len() / 24) };
        assert!(entries.len() > 1000, "{table:x?}");
        assert!(entries[..1000].iter().all(|entry| entry[1] == relative), "{:x?}", &entries[..9]);
    }

    #[test]
    fn its_pages_are_unlocked_and_no_others() {
        let page = page_size() as usize;
        let pages = whole_pages(&table());
        let around = pages.start - page..pages.end + page;
        // SAFETY: mlock only brings pages into memory that are mapped: the table lies in the middle
        // of a segment.
        assert_eq!(unsafe { libc::mlock(around.start as *const c_void, around.len()) }, 0);
        let before = own_status_bytes("VmLck");
        unlock();
        assert_eq!(before - own_status_bytes("VmLck"), pages.len() as u64);
        // SAFETY: as above.
        unsafe { libc::munlock(around.start as *const c_void, around.len()) };
    }
}
