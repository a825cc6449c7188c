//! Tables of our own program, which need not stay in memory: two MiB of 16.
//!
//! Relocations the dynamic linker has read before `main`, and nobody reads them again. How
//! to unwind our stack, only a panic asks, which is a bug of ours and may wait for the
//! disk; should it wait for long, the watchdog ends the hold.

use crate::snapshot::page_size;
use std::ffi::{c_int, c_void};
use std::ops::Range;

/// Tags of the dynamic section (elf(5)).
const DT_NULL: u64 = 0;
const DT_RELA: u64 = 7;
const DT_RELASZ: u64 = 8;

/// Where they are; empty where one is not found.
#[derive(Debug, Default)]
struct Tables {
    /// `.rela.dyn`.
    relocations: Range<usize>,
    /// `.eh_frame_hdr` and what follows it in its segment, which is `.eh_frame`.
    unwinding: Range<usize>,
}

/// Lets the kernel take the tables' whole pages where memory is locked.
pub fn unlock() {
    let tables = find();
    for pages in [tables.relocations, tables.unwinding].map(|table| whole_pages(&table)) {
        if !pages.is_empty() {
            // SAFETY: munlock changes no memory. It fails for what is not mapped, and what
            // stays locked is in nobody's way.
            unsafe { libc::munlock(pages.start as *const c_void, pages.end - pages.start) };
        }
    }
}

/// Lets the kernel take all code and constants, of libraries as well, where memory is locked.
pub fn unlock_all_constants() {
    // SAFETY: the callback gets no data, and keeps nothing.
    unsafe { libc::dl_iterate_phdr(Some(unlock_constants), std::ptr::null_mut()) };
}

/// Unlocks the segments of an object that nobody writes.
unsafe extern "C" fn unlock_constants(info: *mut libc::dl_phdr_info, _size: usize, _: *mut c_void) -> c_int {
    // SAFETY: live, as `dl_iterate_phdr` passes it.
    let info = unsafe { &*info };
    // SAFETY: the linker's own words on where the program headers are, and how many.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    let page = page_size() as usize;
    for header in headers.iter().filter(|h| h.p_type == libc::PT_LOAD && h.p_flags & libc::PF_W == 0) {
        let start = info.dlpi_addr as usize + header.p_vaddr as usize;
        let (from, to) = (start / page * page, (start + header.p_memsz as usize).next_multiple_of(page));
        // SAFETY: munlock changes no memory; see `unlock`.
        unsafe { libc::munlock(from as *const c_void, to - from) };
    }
    0
}

/// The pages that have nothing else on them.
fn whole_pages(table: &Range<usize>) -> Range<usize> {
    let page = page_size() as usize;
    table.start.next_multiple_of(page)..table.end / page * page
}

fn find() -> Tables {
    let mut tables = Tables::default();
    // SAFETY: the callback gets `tables`, which lives until it has returned, and keeps nothing.
    unsafe { libc::dl_iterate_phdr(Some(first), (&raw mut tables).cast()) };
    tables
}

/// Looks at the first object, which is the program (dl_iterate_phdr(3)), and ends the
/// iteration.
unsafe extern "C" fn first(info: *mut libc::dl_phdr_info, _size: usize, tables: *mut c_void) -> c_int {
    // SAFETY: both are what `dl_iterate_phdr` and `find` pass: live, and nobody else's meanwhile.
    let (info, tables) = unsafe { (&*info, &mut *tables.cast::<Tables>()) };
    // SAFETY: the linker's own words on where the program headers are, and how many.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    let base = info.dlpi_addr as usize;
    let range = |header: &libc::Elf64_Phdr| {
        let start = base + header.p_vaddr as usize;
        start..start + header.p_filesz as usize
    };
    // Of segments that nobody writes, the one with an address.
    let constants = |at: usize| {
        let is_constant = |h: &&libc::Elf64_Phdr| h.p_type == libc::PT_LOAD && h.p_flags & libc::PF_W == 0;
        headers.iter().filter(is_constant).map(range).find(|segment| segment.contains(&at))
    };
    let of_kind = |kind| headers.iter().find(|header| header.p_type == kind).map(range);

    if let Some(unwinding) = of_kind(libc::PT_GNU_EH_FRAME)
        && let Some(segment) = constants(unwinding.start)
    {
        tables.unwinding = unwinding.start..segment.end;
    }
    let Some(dynamic) = of_kind(libc::PT_DYNAMIC) else { return 1 };
    // SAFETY: the dynamic section is pairs of words, mapped and aligned as its header says, and
    // the linker has written what it writes there.
    let entries = unsafe { std::slice::from_raw_parts(dynamic.start as *const [u64; 2], dynamic.len() / 16) };
    let value = |tag| entries.iter().take_while(|e| e[0] != DT_NULL).find(|e| e[0] == tag).map(|e| e[1] as usize);
    let (Some(start), Some(bytes)) = (value(DT_RELA), value(DT_RELASZ)) else { return 1 };
    // glibc puts the address there where the file has an offset; others leave the offset.
    let start = if start < base { base + start } else { start };
    if constants(start).is_some_and(|segment| start + bytes <= segment.end) {
        tables.relocations = start..start + bytes;
    }
    1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guardian::own_status_bytes;

    #[test]
    fn they_are_the_tables() {
        let tables = find();
        // R_X86_64_RELATIVE and R_AARCH64_RELATIVE, which linkers put first.
        let relative = if cfg!(target_arch = "aarch64") { 1027 } else { 8 };
        let table = tables.relocations;
        // SAFETY: the linker has mapped it to be read; entries are three words each.
        let entries = unsafe { std::slice::from_raw_parts(table.start as *const [u64; 3], table.len() / 24) };
        assert!(entries.len() > 1000, "{table:x?}");
        assert!(entries[..1000].iter().all(|entry| entry[1] == relative), "{:x?}", &entries[..9]);

        let table = tables.unwinding;
        // SAFETY: as above; the header begins with a version and where `.eh_frame` is, as an
        // offset from itself, mostly (DW_EH_PE_pcrel | DW_EH_PE_sdata4, Linux Standard Base).
        let (version, encoding, frames) = unsafe {
            let at = table.start as *const u8;
            (*at, *at.add(1), at.add(4).cast::<i32>().read_unaligned())
        };
        assert_eq!((version, encoding), (1, 0x1b));
        let frames = (table.start + 4).wrapping_add_signed(frames as isize);
        assert!(table.contains(&frames), "{frames:x} {table:x?}");
        // No code, which has to stay.
        assert!(!table.contains(&(first as *const () as usize)), "{table:x?}");
    }

    #[test]
    fn their_pages_are_unlocked_and_no_others() {
        let page = page_size() as usize;
        let tables = find();
        let pages = [tables.relocations, tables.unwinding].map(|table| whole_pages(&table));
        // The second may be the last of its segment, with a page of code behind it.
        let around = [pages[0].start - page..pages[0].end + page, pages[1].start - page..pages[1].end];
        for around in &around {
            // SAFETY: mlock only brings pages into memory that are mapped.
            assert_eq!(unsafe { libc::mlock(around.start as *const c_void, around.len()) }, 0);
        }
        let before = own_status_bytes("VmLck");
        unlock();
        let unlocked: usize = pages.iter().map(Range::len).sum();
        assert_eq!(before - own_status_bytes("VmLck"), unlocked as u64);
        for around in &around {
            // SAFETY: as above.
            unsafe { libc::munlock(around.start as *const c_void, around.len()) };
        }
    }
}
