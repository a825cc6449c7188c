//! The pages of a file that are in memory, whoever has them mapped.
//!
//! They are looked up as `tools/mm/page-types.c` of the kernel does: the file is
//! mapped by us, mincore(2) tells what is there, that much is put into our page
//! tables, and our page map tells the frames. Nothing is read from a disk and nothing
//! is charged to the target but by a race with reclaim.

use super::mappings::{Pages, Seen};
use crate::snapshot::{Pagemap, page_size};
use linux_raw_sys::general::{__NR_cachestat, cachestat, cachestat_range};
use std::fs::Metadata;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

/// Of a file mapped at once. Page tables for it are 64 KiB.
const WINDOW_BYTES: u64 = 32 << 20;

/// What the kernel counts of a file's pages, in bytes, whoever is charged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cached {
    /// In memory.
    pub there: u64,
    /// To be written or being written.
    pub dirty: u64,
}

/// cachestat(2), since Linux 6.5: pages of `range` of a file, to its end for a length
/// of 0.
pub fn cached(file: BorrowedFd<'_>, start: u64, length: u64) -> io::Result<Cached> {
    let range = cachestat_range { off: start, len: length };
    let mut stat = cachestat { nr_cache: 0, nr_dirty: 0, nr_writeback: 0, nr_evicted: 0, nr_recently_evicted: 0 };
    // SAFETY: the kernel reads `range` and writes `stat`, both live locals of its types.
    let done =
        unsafe { libc::syscall(__NR_cachestat.into(), file.as_raw_fd(), &raw const range, &raw mut stat, 0_u32) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    let page = page_size();
    Ok(Cached { there: stat.nr_cache * page, dirty: (stat.nr_dirty + stat.nr_writeback) * page })
}

/// Whether mincore(2) tells the truth of a file, and not that all of it is there, which
/// would be read from the disk then: of our own, or where we may do all
/// (can_do_mincore, mm/mincore.c).
#[must_use]
pub fn may_look(meta: &Metadata) -> bool {
    let own = nix::unistd::geteuid();
    own.is_root() || own.as_raw() == meta.uid()
}

/// Our mapping of a part of a file, which nobody reads.
struct Window {
    at: *mut libc::c_void,
    bytes: usize,
}

impl Window {
    fn map(file: BorrowedFd<'_>, start: u64, bytes: u64) -> io::Result<Self> {
        let bytes = bytes as usize;
        // SAFETY: a new mapping where the kernel likes; no reference into it is ever made,
        // so that others may change or cut the file.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                start as libc::off_t,
            )
        };
        if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Window { at, bytes }) }
    }

    /// For each page, whether it is in memory.
    fn residence(&self, pages: &mut [u8]) -> io::Result<()> {
        assert!(pages.len() as u64 * page_size() >= self.bytes as u64);
        // SAFETY: the kernel writes a byte for each page of the window, for which the slice
        // has room.
        match unsafe { libc::mincore(self.at, self.bytes, pages.as_mut_ptr()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Puts pages that are in memory into our page tables. What went meanwhile is read
    /// again; what is beyond the end of a file that was cut fails, and is left out.
    fn fault_in(&self, first: u64, bytes: u64) {
        // SAFETY: the range lies in the window; the pages are only put into page tables.
        unsafe { libc::madvise(self.at.byte_add(first as usize), bytes as usize, libc::MADV_POPULATE_READ) };
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `map` mapped; no reference outlives it.
        unsafe { libc::munmap(self.at, self.bytes) };
    }
}

/// Counts the pages of a file of `size` bytes that are in memory and were not counted
/// before. `is_counted` where cachestat(2) tells the truth of it; `own` is our own page map.
pub fn look(file: BorrowedFd<'_>, size: u64, is_counted: bool, own: &Pagemap, pages: &mut Pages) -> io::Result<Seen> {
    let page = page_size();
    let mut sum = Seen::default();
    let mut residence = vec![0; (WINDOW_BYTES / page) as usize];
    let mut start = 0;
    while start < size && !pages.is_late() {
        let bytes = (size - start).min(WINDOW_BYTES).next_multiple_of(page);
        // Where the kernel can tell, holes cost nothing.
        if is_counted && cached(file, start, bytes).is_ok_and(|cached| cached.there == 0) {
            start += bytes;
            continue;
        }
        let window = Window::map(file, start, bytes)?;
        let residence = &mut residence[..(bytes / page) as usize];
        window.residence(residence)?;
        let mut at = 0;
        for run in residence.chunk_by(|a, b| a & 1 == b & 1) {
            let length = run.len() as u64 * page;
            if run[0] & 1 == 1 {
                window.fault_in(at, length);
                let seen = pages.look(own, window.at as u64 + at, window.at as u64 + at + length)?;
                sum.filed += seen.filed;
                sum.elsewhere += seen.elsewhere;
            }
            at += length;
        }
        start += bytes;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounting::charges::Charges;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::time::{Duration, Instant};

    #[test]
    fn pages_of_a_file_are_found_once_and_holes_are_not() {
        let page = page_size();
        let mut file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.write_all(&vec![7; 100 * page as usize]).unwrap();
        // A hole of many windows, and a page that is not whole.
        let size = (3 << 30) + 5;
        file.set_len(size).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"end", size - 3).unwrap();
        let mut pages = Pages::new(Charges::of_everybody(), Instant::now() + Duration::from_secs(20));
        let own = Pagemap::open(std::process::id() as i32).unwrap();
        let seen = look(file.as_fd(), size, true, &own, &mut pages).unwrap();
        assert_eq!(seen, Seen { filed: 101 * page, ..Seen::default() });
        // The same without the kernel's word on where there is something, and each once.
        assert_eq!(look(file.as_fd(), size, false, &own, &mut pages).unwrap(), Seen::default());
        let mut others = Pages::new(Charges::of_everybody(), Instant::now() + Duration::from_secs(20));
        assert_eq!(look(file.as_fd(), size, false, &own, &mut others).unwrap(), seen);
        // Looking has made no page.
        assert_eq!(file.metadata().unwrap().blocks() * 512, 101 * page);
        // The file is cut under the window: less is found, and nobody dies.
        file.set_len(page).unwrap();
        let mut pages = Pages::new(Charges::of_everybody(), Instant::now() + Duration::from_secs(20));
        assert_eq!(look(file.as_fd(), 50 * page, true, &own, &mut pages).unwrap().filed, page);
    }
}
