//! Which pages of a target are present, without touching any.
//!
//! Source: `Documentation/admin-guide/mm/pagemap.rst`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bit 63 of an entry: the page is in memory.
const PRESENT: u64 = 1 << 63;

/// Entries read at once: the kernel prepares a buffer for each read.
const ENTRIES: usize = 512;

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
}

impl Pagemap {
    /// Opens the page map of a process.
    pub fn open(pid: i32) -> io::Result<Self> {
        Ok(Pagemap { file: File::open(format!("/proc/{pid}/pagemap"))?, page_size: page_size() })
    }

    /// For each of `present`, whether the page at `first` + its index pages is
    /// in memory. Pages past the end of the address space are absent.
    pub fn present(&self, first: u64, present: &mut [bool]) -> io::Result<()> {
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
