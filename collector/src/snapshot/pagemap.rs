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
            let mut arg = pm_scan_arg {
                size: size_of::<pm_scan_arg>() as u64,
                flags: 0,
                start: at,
                end,
                walk_end: 0,
                vec: regions.as_mut_ptr() as u64,
                vec_len: REGIONS as u64,
                max_pages: 0,
                category_inverted: 0,
                category_mask: u64::from(PAGE_IS_PRESENT),
                category_anyof_mask: 0,
                return_mask: u64::from(PAGE_IS_PRESENT),
            };
            // SAFETY: the kernel reads and writes `arg` and at most `vec_len` regions at
            // `vec`, both live locals.
            let found = unsafe { pagemap_scan(self.file.as_raw_fd(), &raw mut arg) }?;
            for region in &regions[..(found as usize).min(REGIONS)] {
                let index = |address: u64| ((address.clamp(at, end) - start) / self.page_size) as usize;
                present[index(region.start)..index(region.end)].fill(true);
            }
            if arg.walk_end <= at {
                break;
            }
            at = arg.walk_end;
        }
        Ok(())
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

    #[test]
    fn scanned_and_read_are_the_same() {
        let page = page_size() as usize;
        let mut bytes = vec![0u8; 300 * page];
        // SAFETY: the range is the vector's; the advice keeps huge pages out.
        unsafe { libc::madvise(bytes.as_mut_ptr().cast(), bytes.len(), libc::MADV_NOHUGEPAGE) };
        // Ranges of one page to a dozen, more than are asked for at once.
        for index in (0..300).filter(|index| index % 3 == 0 || index % 40 > 28) {
            bytes[index * page + page / 2] = 1;
        }
        let map = Pagemap::open(std::process::id() as i32).unwrap();
        let (mut scanned, mut read) = (vec![true; 300], vec![true; 300]);
        let first = bytes.as_ptr() as u64;
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
}
