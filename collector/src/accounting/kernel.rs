//! What the kernel has for processes, from `/proc` (proc_pid_status(5)).

use crate::size::from_kb;
use std::fs;

/// No kernel has stacks as big: with KASAN they are 64 KiB (THREAD_SIZE,
/// arch/x86/include/asm/page_64_types.h).
const MOST_STACK_BYTES: u64 = 1 << 20;

/// Of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ForProcess {
    /// Page tables, the first level included, which VmPTE leaves out.
    pub page_tables: u64,
    /// Huge pages of hugetlb.
    pub hugetlb: u64,
}

/// Reads it; `None` where the process is gone.
#[must_use]
pub fn for_process(pid: i32, page: u64) -> Option<ForProcess> {
    Some(parse(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, page))
}

pub(super) fn parse(status: &str, page: u64) -> ForProcess {
    let bytes = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.strip_suffix("kB")?.trim().parse::<u64>().ok().and_then(from_kb)
    };
    // A zombie has none.
    let tables = bytes("VmPTE:").map_or(0, |tables| tables + page);
    ForProcess { page_tables: tables, hugetlb: bytes("HugetlbPages:").unwrap_or(0) }
}

/// Bytes of a kernel stack: all there are, by the number of threads that there are, to
/// the next power of two, which they are of.
#[must_use]
pub fn stack_bytes() -> Option<u64> {
    of_all(&fs::read_to_string("/proc/meminfo").ok()?, &fs::read_to_string("/proc/loadavg").ok()?)
}

pub(super) fn of_all(meminfo: &str, loadavg: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("KernelStack:"))?;
    let all: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let threads: u64 = loadavg.split(' ').nth(3)?.split_once('/')?.1.parse().ok()?;
    let each = from_kb(all)?.checked_div(threads).filter(|&each| each < MOST_STACK_BYTES)?;
    // The nearer one: half as much again is in the middle.
    let below = 1_u64.checked_shl(each.checked_ilog2()?)?;
    Some(if each >= below + below / 2 { below * 2 } else { below })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_and_huge_pages() {
        let status = "Name:\tx\nVmPTE:\t     120 kB\nHugetlbPages:\t    4096 kB\n";
        assert_eq!(parse(status, 4096), ForProcess { page_tables: 124 << 10, hugetlb: 4 << 20 });
        for damaged in
            ["", "VmPTE:\t12", "VmPTE:\t-3 kB\n", "VmPTE: 99999999999999999999 kB", "VmPTE: 18446744073709551615 kB"]
        {
            assert_eq!(parse(damaged, 4096), ForProcess::default(), "{damaged}");
        }
        assert!(for_process(std::process::id() as i32, 4096).unwrap().page_tables > 4096);
        assert_eq!(for_process(i32::MAX, 4096), None);
    }

    #[test]
    fn a_stack_is_a_power_of_two() {
        assert_eq!(of_all("MemTotal: 1 kB\nKernelStack:     2080 kB\n", "0.1 0.2 0.3 1/128 77\n"), Some(16 << 10));
        assert_eq!(of_all("KernelStack: 1300 kB\n", "0 0 0 1/100 7"), Some(16 << 10));
        for (meminfo, loadavg) in [
            ("", "0 0 0 1/1 1"),
            ("KernelStack: 1 kB", ""),
            ("KernelStack: 1 kB", "0 0 0 1/0 1"),
            ("KernelStack: 2000000 kB", "0 0 0 1/2 1"),
            ("KernelStack: 18014398509481983 kB", "0 0 0 1/1 1"),
        ] {
            assert_eq!(of_all(meminfo, loadavg), None);
        }
        let bytes = stack_bytes().unwrap();
        assert!((4096..=65536).contains(&bytes) && bytes.is_power_of_two(), "{bytes}");
    }
}
