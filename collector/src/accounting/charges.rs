//! To which memcg page frames are charged.
//!
//! Source: `Documentation/admin-guide/mm/pagemap.rst`: `/proc/kpagecgroup` has, for
//! each page frame, 64 bits with the inode of the memcg that it is charged to; of one
//! that was removed the nearest that is still there (page_cgroup_ino, mm/memcontrol.c).
//! Read by whoever has CAP_SYS_ADMIN (open of kpage files: mode 0400).

use crate::cgroup::Memcg;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

/// Frames between two that are asked for which are read with them, since a system
/// call takes as long.
const GAP: u64 = 4;
/// Frames read at once at most.
const MOST: u64 = 512;

/// Who is charged for what.
#[derive(Debug)]
pub struct Charges {
    file: Option<File>,
    /// Inodes of the memcg and its descendants, sorted.
    ours: Vec<u64>,
    bytes: Vec<u8>,
}

impl Charges {
    /// Of a memcg and its descendants. Where the kernel does not tell, all that is
    /// asked for counts as theirs, and the error says why.
    pub fn open(memcg: &Memcg) -> (Self, Option<io::Error>) {
        let mut ours: Vec<u64> =
            memcg.subtree().iter().filter_map(|m| Some(std::fs::metadata(m.dir()).ok()?.ino())).collect();
        ours.sort_unstable();
        let (file, error) = match File::open("/proc/kpagecgroup") {
            Ok(file) => (Some(file), None),
            Err(error) => (None, Some(error)),
        };
        (Charges { file, ours, bytes: vec![0; (MOST * 8) as usize] }, error)
    }

    /// Of memcgs with these inodes, by a file like `/proc/kpagecgroup`.
    pub fn by(file: File, mut ours: Vec<u64>) -> Self {
        ours.sort_unstable();
        Charges { file: Some(file), ours, bytes: vec![0; (MOST * 8) as usize] }
    }

    /// Where nobody can tell: all is ours.
    #[cfg(test)]
    pub fn of_everybody() -> Self {
        Charges { file: None, ours: Vec::new(), bytes: Vec::new() }
    }

    /// Calls `tell` for each of `pages`, which it sorts: page frame, what came with
    /// it, and whether the memcg is charged for it.
    pub fn look<T: Copy + Ord>(&mut self, pages: &mut [(u64, T)], mut tell: impl FnMut(u64, T, bool)) {
        let Some(file) = &self.file else {
            pages.iter().for_each(|&(pfn, what)| tell(pfn, what, true));
            return;
        };
        pages.sort_unstable();
        let mut rest = &*pages;
        while let Some(&(first, _)) = rest.first() {
            let run = run_length(rest);
            let count = rest[run - 1].0 - first + 1;
            let bytes = &mut self.bytes[..(count * 8) as usize];
            let known = file.read_at(bytes, first.saturating_mul(8)).unwrap_or(0) / 8;
            for &(pfn, what) in &rest[..run] {
                let at = (pfn - first) as usize;
                let ino = bytes.as_chunks::<8>().0.get(at).filter(|_| at < known).map(|b| u64::from_ne_bytes(*b));
                tell(pfn, what, ino.is_some_and(|ino| self.ours.binary_search(&ino).is_ok()));
            }
            rest = &rest[run..];
        }
    }
}

/// How many of the first of `pages`, which are sorted, to read at once.
fn run_length<T>(pages: &[(u64, T)]) -> usize {
    let first = pages[0].0;
    let goes_on = |pair: &[(u64, T)]| pair[1].0 - pair[0].0 <= GAP && pair[1].0 - first < MOST;
    1 + pages.windows(2).take_while(|pair| goes_on(pair)).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn of(inodes: &[u64], ours: &[u64]) -> Charges {
        let mut file = tempfile::tempfile().unwrap();
        inodes.iter().for_each(|ino| file.write_all(&ino.to_ne_bytes()).unwrap());
        Charges::by(file, ours.to_vec())
    }

    fn charged(charges: &mut Charges, pfns: &[u64]) -> Vec<(u64, usize)> {
        let mut pages: Vec<_> = pfns.iter().copied().zip(0..).collect();
        let mut told = Vec::new();
        charges.look(&mut pages, |pfn, index: usize, is_ours| told.extend(is_ours.then_some((pfn, index))));
        assert_eq!(pages.len(), pfns.len());
        told.sort_by_key(|(_, index)| *index);
        told
    }

    #[test]
    fn pages_are_told_with_their_places_in_any_order() {
        let inodes: Vec<u64> = (0..2000).map(|pfn| [7, 8, 9][pfn % 3]).collect();
        let pfns = [1999, 0, 3, 4, 1, 1500, 700, 2, 701];
        let expected: Vec<_> =
            pfns.iter().enumerate().filter(|(_, pfn)| **pfn % 3 != 1).map(|(at, pfn)| (*pfn, at)).collect();
        assert_eq!(charged(&mut of(&inodes, &[7, 9]), &pfns), expected);
        let all: Vec<u64> = (0..2000).collect();
        assert_eq!(charged(&mut of(&inodes, &[7]), &all).len(), 667);
    }

    #[test]
    fn pages_that_the_file_lacks_are_nobodys() {
        let mut short = of(&[7, 7, 7], &[7]);
        assert_eq!(charged(&mut short, &[2, 3, u64::MAX >> 9, 1]), [(2, 0), (1, 3)]);
        // Half an entry at the end.
        short.file.as_ref().unwrap().set_len(20).unwrap();
        assert_eq!(charged(&mut short, &[0, 1, 2]), [(0, 0), (1, 1)]);
    }

    #[test]
    fn without_the_file_all_is_ours() {
        let mut unknown = Charges::of_everybody();
        assert_eq!(charged(&mut unknown, &[5, 4]), [(5, 0), (4, 1)]);
    }
}
