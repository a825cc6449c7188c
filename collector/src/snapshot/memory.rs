//! Memory of a target, read from outside without faulting a page in.
//!
//! A read of an absent page would make the kernel fault it in and charge it to the
//! very memcg that is out of memory. So the page map is asked first and absent pages
//! are only counted.
//!
//! `/proc/PID/mem` is read, not process_vm_readv(2): that one pins pages, and of an
//! anonymous page that processes share since a fork the kernel first makes a copy for
//! the target (gup_must_unshare, mm/internal.h, since Linux 5.19), which is charged.

use super::pagemap::{Pagemap, page_size};
use reprieve_heap_walk::Memory;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Pages fetched together: a thread's interesting stack is mostly below 16 KiB.
const WINDOW_PAGES: usize = 4;
/// The same where a heap is read from end to end: fits a core's cache.
const AHEAD_PAGES: usize = 64;

/// Reads a target's memory through a small window.
#[derive(Debug)]
pub struct TargetMemory {
    file: File,
    pagemap: Pagemap,
    page: u64,
    window_start: u64,
    window: Vec<u8>,
    window_pages: u64,
    /// Pages to fetch where a read goes somewhere else.
    first_pages: usize,
    /// Pages to fetch next: more while reads go on where the last window ended.
    next_pages: usize,
    absent_pages: u64,
}

impl TargetMemory {
    /// Memory of `pid`. Fails when the page map cannot be opened, since
    /// without it a read might fault pages in.
    pub fn open(pid: i32) -> io::Result<Self> {
        Self::with_window(pid, WINDOW_PAGES, WINDOW_PAGES)
    }

    /// The same for whoever reads much of it in order, or a word here and there:
    /// the window is a page, and grows while reads go on where it ended.
    pub fn reading_ahead(pid: i32) -> io::Result<Self> {
        Self::with_window(pid, 1, AHEAD_PAGES)
    }

    fn with_window(pid: i32, first_pages: usize, pages: usize) -> io::Result<Self> {
        let page = page_size();
        Ok(TargetMemory {
            file: File::open(format!("/proc/{pid}/mem"))?,
            pagemap: Pagemap::open(pid)?,
            page,
            window_start: u64::MAX,
            window: vec![0; pages * page as usize],
            window_pages: 0,
            first_pages,
            next_pages: first_pages,
            absent_pages: 0,
        })
    }

    /// Pages that a read wanted and that were not in memory.
    #[must_use]
    pub fn absent_pages(&self) -> u64 {
        self.absent_pages
    }

    /// Forgets the window: the target may have run since.
    pub fn invalidate(&mut self) {
        self.window_start = u64::MAX;
    }

    fn read_pages(&mut self, address: u64, out: &mut [u8]) -> bool {
        // Most reads are of words in the window.
        let (offset, there) = (address.wrapping_sub(self.window_start), self.window_pages * self.page);
        if self.window_start != u64::MAX && offset < there && out.len() as u64 <= there - offset {
            out.copy_from_slice(&self.window[offset as usize..][..out.len()]);
            return true;
        }
        let mut done = 0;
        while done < out.len() {
            let Some(at) = address.checked_add(done as u64) else {
                return false;
            };
            let page_start = at & !(self.page - 1);
            let Some(index) = self.page_index(page_start) else {
                return false;
            };
            let within = (at - page_start) as usize;
            let n = (out.len() - done).min(self.page as usize - within);
            let from = index * self.page as usize + within;
            out[done..done + n].copy_from_slice(&self.window[from..from + n]);
            done += n;
        }
        true
    }

    /// Where in the window the page is, moving the window when needed.
    fn page_index(&mut self, page_start: u64) -> Option<usize> {
        let index = page_start.wrapping_sub(self.window_start) / self.page;
        if self.window_start != u64::MAX && page_start >= self.window_start && index < self.window_pages {
            return Some(index as usize);
        }
        // Stacks are walked upwards: the window begins at the page asked for.
        let goes_on = page_start == self.window_start.wrapping_add(self.window_pages * self.page);
        let most = self.window.len() / self.page as usize;
        self.next_pages = if goes_on { (self.next_pages * 2).min(most) } else { self.first_pages };
        page_start.checked_add(self.page * self.next_pages as u64)?;
        self.fill(page_start);
        if self.window_pages == 0 {
            self.absent_pages += 1;
            return None;
        }
        Some(0)
    }

    /// Fetches the run of present pages at `start`, if any.
    fn fill(&mut self, start: u64) {
        self.window_start = start;
        self.window_pages = 0;
        let mut present = [false; AHEAD_PAGES];
        let present = &mut present[..self.next_pages];
        if self.pagemap.present(start, present).is_err() {
            return;
        }
        let run = present.iter().take_while(|present| **present).count();
        if run > 0 {
            let wanted = run * self.page as usize;
            // Less than asked for where a page went meanwhile.
            let got = self.file.read_at(&mut self.window[..wanted], start).unwrap_or(0);
            self.window_pages = got as u64 / self.page;
        }
    }
}

impl Memory for TargetMemory {
    fn read(&mut self, address: u64, out: &mut [u8]) -> bool {
        self.read_pages(address, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::pagemap::Entry;

    /// A private mapping of four pages of which 0 and 2 were touched.
    struct Holes(*mut u8, usize);

    impl Holes {
        fn new() -> Self {
            let len = 4 * page_size() as usize;
            // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
            let at = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    len,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                )
            };
            assert_ne!(at, libc::MAP_FAILED);
            // Without this a huge page could fill the holes.
            // SAFETY: the range is the mapping just made.
            unsafe { libc::madvise(at, len, libc::MADV_NOHUGEPAGE) };
            let at = at.cast::<u8>();
            // SAFETY: both addresses lie in the mapping just made.
            unsafe {
                at.write(7);
                at.add(2 * page_size() as usize).write(9);
            }
            Holes(at, len)
        }
    }

    impl Drop for Holes {
        fn drop(&mut self) {
            // SAFETY: unmaps exactly what `new` mapped; no reference outlives it.
            unsafe { libc::munmap(self.0.cast(), self.1) };
        }
    }

    #[test]
    fn absent_pages_are_counted_and_stay_absent() {
        let holes = Holes::new();
        let page = page_size();
        let base = holes.0 as u64;
        let mut memory = TargetMemory::open(std::process::id() as i32).unwrap();
        let mut byte = [0];
        assert!(memory.read(base, &mut byte));
        assert_eq!(byte, [7]);
        assert!(!memory.read(base + page, &mut byte));
        assert!(memory.read(base + 2 * page, &mut byte), "a present page after a hole");
        assert_eq!(byte, [9]);
        assert!(!memory.read(base + 2 * page - 4, &mut [0; 8]), "a word that begins in the hole");
        assert_eq!(memory.absent_pages(), 2);
        let mut present = [false; 4];
        Pagemap::open(std::process::id() as i32).unwrap().present(base, &mut present).unwrap();
        assert_eq!(present, [true, false, true, false], "reading must not fault pages in");
    }

    #[test]
    fn end_of_the_address_space_is_no_panic() {
        let mut memory = TargetMemory::open(std::process::id() as i32).unwrap();
        assert_eq!(memory.u64(u64::MAX - 3), None);
        assert_eq!(memory.u64(0), None);
    }

    /// A page that a child shares with its parent stays the page that it is.
    #[test]
    fn reading_makes_no_copies() {
        let holes = Holes::new();
        // SAFETY: the child only waits for its end, which needs nothing of this process
        // that another thread could hold.
        let child = unsafe { nix::unistd::fork() }.unwrap();
        let nix::unistd::ForkResult::Parent { child } = child else {
            loop {
                nix::unistd::pause();
            }
        };
        let base = holes.0 as u64;
        let entry = || {
            let mut entries = [Entry(0)];
            let mut seen = Entry(0);
            let map = Pagemap::open(child.as_raw()).unwrap();
            let one = |_: u64, entries: &[Entry]| {
                seen = entries[0];
                false
            };
            map.each_present(base, base + page_size(), &mut entries, one).unwrap();
            seen
        };
        let before = entry();
        let mut byte = [0];
        let read = TargetMemory::open(child.as_raw()).unwrap().read(base, &mut byte);
        let after = entry();
        nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).unwrap();
        nix::sys::wait::waitpid(child, None).unwrap();
        assert!(read && byte == [7], "{byte:?}");
        assert!(before.is_present() && !before.is_exclusive(), "{before:?}");
        assert_eq!(before, after);
    }
}
