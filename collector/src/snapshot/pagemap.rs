//! Which pages of a target are present, without touching any.
//!
//! Source: `Documentation/admin-guide/mm/pagemap.rst`. Since Linux 6.7 an ioctl
//! tells ranges of present pages and looks at nothing but page tables; before, each
//! entry is read, for which the kernel looks at each page, too.

use linux_raw_sys::general::{PAGE_IS_PRESENT, page_region, pm_scan_arg};
use nix::errno::Errno;
use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

nix::ioctl_readwrite!(
    /// `PAGEMAP_SCAN` of linux/fs.h: returns how many regions it wrote.
    pagemap_scan,
    b'f',
    16,
    pm_scan_arg
);

/// Bit 63 of an entry: the page is in memory.
const PRESENT: u64 = 1 << 63;
/// Bit 61: it is of a file or of shared memory.
const FILE: u64 = 1 << 61;
/// Bit 56: nobody else has it mapped.
const EXCLUSIVE: u64 = 1 << 56;
/// Bits 0 to 54: page frame number.
const PFN: u64 = (1 << 55) - 1;

/// Entries read at once: the kernel prepares a buffer for each read.
const ENTRIES: usize = 512;
/// Ranges asked for at once.
const REGIONS: usize = 32;

/// Page size of the machine in bytes.
#[must_use]
pub fn page_size() -> u64 {
    // SAFETY: sysconf only reads a constant; _SC_PAGESIZE never fails (sysconf(3)).
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as u64 }
}

/// An entry of a page map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Entry(pub u64);

impl Entry {
    /// Whether the page is in memory.
    #[must_use]
    pub fn is_present(self) -> bool {
        self.0 & PRESENT != 0
    }

    /// Its page frame number; `None` where the page is absent or the kernel does not
    /// tell, for which it wants CAP_SYS_ADMIN.
    #[must_use]
    pub fn pfn(self) -> Option<u64> {
        Some(self.0 & PFN).filter(|&pfn| self.is_present() && pfn != 0)
    }

    /// Whether it is of a file or of shared memory, and not a private copy.
    #[must_use]
    pub fn is_file(self) -> bool {
        self.0 & FILE != 0
    }

    /// Whether nobody else has it mapped.
    #[must_use]
    pub fn is_exclusive(self) -> bool {
        self.0 & EXCLUSIVE != 0
    }
}

/// `/proc/PID/pagemap`.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
    page_size: u64,
    /// Whether the kernel has not refused to scan.
    can_scan: Cell<bool>,
}

impl Pagemap {
    /// Opens the page map of a process.
    pub fn open(pid: i32) -> io::Result<Self> {
        let file = File::open(format!("/proc/{pid}/pagemap"))?;
        Ok(Pagemap { file, page_size: page_size(), can_scan: Cell::new(true) })
    }

    /// For each of `present`, whether the page at `first` + its index pages is
    /// in memory. Pages past the end of the address space are absent.
    pub fn present(&self, first: u64, present: &mut [bool]) -> io::Result<()> {
        if self.can_scan.get() {
            match self.scan(first, present) {
                Ok(()) => return Ok(()),
                // It does not know the request.
                Err(Errno::ENOTTY | Errno::EINVAL) => self.can_scan.set(false),
                // Among others: beyond the end of the address space.
                Err(_) => {}
            }
        }
        self.read(first, present)
    }

    fn scan(&self, first: u64, present: &mut [bool]) -> nix::Result<()> {
        present.fill(false);
        let start = first / self.page_size * self.page_size;
        let end = start.checked_add(present.len() as u64 * self.page_size).ok_or(Errno::EFAULT)?;
        let mut regions = [page_region { start: 0, end: 0, categories: 0 }; REGIONS];
        let mut at = start;
        while at < end {
            let (found, walked_to) = self.scan_once(at, end, &mut regions)?;
            for region in &regions[..found] {
                let index = |address: u64| ((address.clamp(at, end) - start) / self.page_size) as usize;
                present[index(region.start)..index(region.end)].fill(true);
            }
            if walked_to <= at {
                break;
            }
            at = walked_to;
        }
        Ok(())
    }

    /// Ranges of present pages from `at` up to `end`; how many, and how far they go.
    fn scan_once(&self, at: u64, end: u64, regions: &mut [page_region]) -> nix::Result<(usize, u64)> {
        let mut arg = pm_scan_arg {
            size: size_of::<pm_scan_arg>() as u64,
            flags: 0,
            start: at,
            end,
            walk_end: 0,
            vec: regions.as_mut_ptr() as u64,
            vec_len: regions.len() as u64,
            max_pages: 0,
            category_inverted: 0,
            category_mask: u64::from(PAGE_IS_PRESENT),
            category_anyof_mask: 0,
            return_mask: u64::from(PAGE_IS_PRESENT),
        };
        // SAFETY: the kernel reads and writes `arg`, a live local, and at most `vec_len`
        // regions at `vec`, which are the slice's.
        let found = unsafe { pagemap_scan(self.file.as_raw_fd(), &raw mut arg) }?;
        Ok(((found as usize).min(regions.len()), arg.walk_end))
    }

    /// Calls `tell` with the addresses and entries of what is present from `start` up
    /// to `end`, in pieces in order; `entries` is for them. Where `tell` says so, it stops.
    pub fn each_present(
        &self,
        start: u64,
        end: u64,
        entries: &mut [Entry],
        mut tell: impl FnMut(u64, &[Entry]) -> bool,
    ) -> io::Result<()> {
        let mut regions = [page_region { start: 0, end: 0, categories: 0 }; REGIONS];
        let mut at = start / self.page_size * self.page_size;
        while at < end {
            let (mut found, mut walked_to) = (1, end);
            regions[0] = page_region { start: at, end, categories: 0 };
            // Of less, the entries are asked for at once.
            if self.can_scan.get() && end - at > ENTRIES as u64 * self.page_size {
                match self.scan_once(at, end, &mut regions) {
                    Ok((_, to)) if to <= at => return Ok(()),
                    Ok(scanned) => (found, walked_to) = scanned,
                    Err(Errno::ENOTTY | Errno::EINVAL) => self.can_scan.set(false),
                    Err(error) => return Err(error.into()),
                }
            }
            for region in &regions[..found] {
                let mut from = region.start.clamp(at, end);
                let to = region.end.clamp(at, end);
                while from < to {
                    let wanted = ((to - from).div_ceil(self.page_size) as usize).min(entries.len());
                    let got = self.entries(from, &mut entries[..wanted])?;
                    if got == 0 {
                        break;
                    }
                    if !tell(from, &entries[..got]) {
                        return Ok(());
                    }
                    from += got as u64 * self.page_size;
                }
            }
            at = walked_to;
        }
        Ok(())
    }

    /// Entries of the pages at `address` and behind; how many there are.
    fn entries(&self, address: u64, out: &mut [Entry]) -> io::Result<usize> {
        // SAFETY: an Entry is a u64, of which every pattern is a value, and eight bytes.
        let bytes = unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast::<u8>(), out.len() * 8) };
        Ok(self.file.read_at(bytes, address / self.page_size * 8)? / 8)
    }

    fn read(&self, first: u64, present: &mut [bool]) -> io::Result<()> {
        let mut entries = [0u8; 8 * ENTRIES];
        let base = first / self.page_size * 8;
        for (chunk_index, chunk) in present.chunks_mut(ENTRIES).enumerate() {
            let bytes = &mut entries[..chunk.len() * 8];
            bytes.fill(0);
            let mut filled = 0;
            while filled < bytes.len() {
                let offset = base + (chunk_index * ENTRIES * 8 + filled) as u64;
                match self.file.read_at(&mut bytes[filled..], offset)? {
                    0 => break,
                    n => filled += n,
                }
            }
            for (page, entry) in chunk.iter_mut().zip(bytes.chunks_exact(8)) {
                let entry = u64::from_ne_bytes(entry.try_into().expect("chunks of 8"));
                *page = entry & PRESENT != 0;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};

    /// Pages of a mapping of its own: malloc might give some that are there already.
    struct Pages {
        first: std::ptr::NonNull<std::ffi::c_void>,
        length: std::num::NonZero<usize>,
    }

    impl Pages {
        /// So many, with these touched.
        fn new(pages: usize, touched: impl Iterator<Item = usize>) -> Self {
            let page = page_size() as usize;
            let length = std::num::NonZero::new(pages * page).unwrap();
            let (access, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE);
            // SAFETY: a fresh mapping at an address of the kernel's choice.
            let first = unsafe { mmap_anonymous(None, length, access, flags) }.unwrap();
            // SAFETY: the range is the mapping's; the advice keeps huge pages out.
            unsafe { libc::madvise(first.as_ptr(), length.get(), libc::MADV_NOHUGEPAGE) };
            for index in touched {
                assert!(index < pages);
                // SAFETY: the place lies in the mapping, to which nothing else refers.
                unsafe { first.cast::<u8>().add(index * page + page / 2).write(1) };
            }
            Pages { first, length }
        }

        fn first(&self) -> u64 {
            self.first.as_ptr() as u64
        }
    }

    impl Drop for Pages {
        fn drop(&mut self) {
            // SAFETY: unmaps exactly what was mapped; no reference outlives it.
            unsafe { nix::sys::mman::munmap(self.first, self.length.get()) }.unwrap();
        }
    }

    #[test]
    fn scanned_and_read_are_the_same() {
        let page = page_size() as usize;
        // Ranges of one page to a dozen, more than are asked for at once.
        let pages = Pages::new(300, (0..300).filter(|index| index % 3 == 0 || index % 40 > 28));
        let map = Pagemap::open(std::process::id() as i32).unwrap();
        let (mut scanned, mut read) = (vec![true; 300], vec![true; 300]);
        let first = pages.first();
        map.read(first, &mut read).unwrap();
        assert!(read.iter().filter(|there| **there).count() > 100 && read.contains(&false));
        map.present(first, &mut scanned).unwrap();
        assert_eq!(scanned, read);
        // An unaligned address means its page.
        map.present(first + 100, &mut scanned).unwrap();
        assert_eq!(scanned, read);
        map.present(u64::MAX - 3 * page as u64, &mut scanned).unwrap();
        assert!(!scanned.contains(&true));
    }

    #[test]
    fn entries_are_those_of_present_pages_in_order() {
        let page = page_size() as usize;
        let touched: Vec<usize> = (0..1999).filter(|index| index % 3 == 0 && index % 400 < 200).collect();
        let pages = Pages::new(1999, touched.iter().copied());
        let first = pages.first();
        let map = Pagemap::open(std::process::id() as i32).unwrap();
        let mut entries = [Entry(0); 100];
        for can_scan in [true, false] {
            map.can_scan.set(can_scan);
            let mut seen = Vec::new();
            map.each_present(first, first + 1999 * page as u64, &mut entries, |from, entries| {
                let index = ((from - first) / page as u64) as usize;
                let there = entries.iter().enumerate().filter(|(_, entry)| entry.is_present());
                seen.extend(there.map(|(more, entry)| {
                    assert!(!entry.is_file() && entry.is_exclusive(), "{entry:?}");
                    index + more
                }));
                true
            })
            .unwrap();
            assert_eq!(seen, touched, "scan: {can_scan}");
        }
    }
}
