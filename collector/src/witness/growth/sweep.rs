//! Which sampled pages are no more.

use super::ledger::Page;
use crate::snapshot::{Pagemap, page_size};
use std::fs;

/// Pages that are asked about at once, where sampled ones are near each other.
const WINDOW: u64 = 512;
/// As many as these do not all go away while a process lives.
const NOT_ALL: usize = 4;
/// `PF_EXITING`, include/linux/sched.h.
const EXITING: u64 = 4;

/// Those of `pages`, in order, that are not in memory any more; none of a process that
/// is ending: it is to be remembered with what it had.
#[must_use]
pub fn absent(pid: i32, pages: &[Page]) -> Vec<Page> {
    let Ok(pagemap) = Pagemap::open(pid) else { return Vec::new() };
    let page = page_size();
    let mut absent = Vec::new();
    let mut present = [false; WINDOW as usize];
    let mut rest = pages;
    while let Some(first) = rest.first() {
        let near = rest.partition_point(|other| other.number - first.number < WINDOW);
        let (window, others) = rest.split_at(near);
        rest = others;
        let length = window.last().map_or(0, |last| last.number - first.number + 1) as usize;
        if pagemap.present(first.number * page, &mut present[..length]).is_err() {
            return Vec::new();
        }
        absent.extend(window.iter().filter(|other| !present[(other.number - first.number) as usize]));
    }
    // Its memory goes away while it ends, and only then all at once.
    let is_all = absent.len() == pages.len() && pages.len() >= NOT_ALL;
    if is_all || is_ending(pid) { Vec::new() } else { absent }
}

/// Whether a process ends or has ended (flags in proc_pid_stat(5), field 9).
#[must_use]
pub fn is_ending(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |text| says_ending(&text))
}

fn says_ending(stat: &str) -> bool {
    let behind_name = stat.rfind(')').and_then(|at| stat.get(at + 1..)).unwrap_or_default();
    let fields: Vec<&str> = behind_name.split_ascii_whitespace().collect();
    let state = fields.first().copied().unwrap_or("X");
    let flags: u64 = fields.get(9 - 3).and_then(|flags| flags.parse().ok()).unwrap_or(EXITING);
    matches!(state, "Z" | "X") || flags & EXITING != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
    use std::num::NonZero;

    #[test]
    fn pages_that_were_given_back_are_absent() {
        let page = page_size();
        let pages = 2000;
        let length = NonZero::new(pages * page as usize).unwrap();
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let base = unsafe { mmap_anonymous(None, length, access, MapFlags::MAP_PRIVATE) }.unwrap();
        let touched: Vec<u64> = (0..pages as u64).filter(|index| index % 7 == 0).collect();
        // SAFETY: all within the mapping, to which nothing else refers; small pages, so
        // that each comes and goes alone.
        unsafe {
            libc::madvise(base.as_ptr(), length.get(), libc::MADV_NOHUGEPAGE);
            for index in &touched {
                base.cast::<u8>().add(*index as usize * page as usize).write(1);
            }
            libc::madvise(base.as_ptr(), 700 * page as usize, libc::MADV_DONTNEED);
        }
        let first = base.as_ptr() as u64 / page;
        let sampled: Vec<Page> = touched.iter().map(|index| Page { number: first + index, time: 1 }).collect();
        let gone: Vec<u64> =
            absent(std::process::id() as i32, &sampled).iter().map(|page| page.number - first).collect();
        let expected: Vec<u64> = touched.iter().copied().filter(|index| *index < 700).collect();
        assert_eq!(gone, expected);
        // SAFETY: exactly what was mapped.
        unsafe { nix::sys::mman::munmap(base, length.get()) }.unwrap();
        assert_eq!(absent(std::process::id() as i32, &sampled), [], "all at once is an end");
        assert_eq!(absent(i32::MAX, &sampled), []);
    }

    #[test]
    fn who_ends_is_known() {
        assert!(!is_ending(std::process::id() as i32) && is_ending(i32::MAX));
        let stat = |state: &str, flags: u64| format!("7 (a) Z b) {state} 1 7 7 0 -1 {flags} 0 0 0 0 5 6");
        assert!(!says_ending(&stat("S", 0x40_0000)));
        assert!(says_ending(&stat("Z", 0)) && says_ending(&stat("D", 0x40_0404)) && says_ending(""));
    }
}
