//! Mappings and their memory, streamed from `/proc/PID/smaps`.
//!
//! Source: `Documentation/filesystems/proc.rst`. Sizes are kB in the file and
//! bytes here. One page-table walk gives everything; a process with very many
//! mappings gets its sums from `smaps_rollup` instead, since the text alone
//! would be tens of megabytes.

use crate::incident::model::{Mapping, ProcessMemory};
use crate::size::from_kb;
use std::fs::File;
use std::io::{self, BufRead, BufReader};

/// Mappings of a process above which only sums are read.
pub const DETAIL_LIMIT: usize = 8_000;

/// Mappings kept per process in the incident, biggest first.
pub const KEPT: usize = 64;

/// A line of `/proc/PID/maps`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapLine {
    /// First address.
    pub start: u64,
    /// End, exclusive.
    pub end: u64,
    /// Like `r-xp`.
    pub permissions: String,
    /// Offset in the file.
    pub offset: u64,
    /// Device as `major:minor` in hexadecimal.
    pub device: String,
    /// Inode; 0 for anonymous memory, and for the first SysV segment of an IPC namespace,
    /// whose inode is its ID (ipc/shm.c, newseg).
    pub inode: u64,
    /// Path or `[name]`; newlines are `\012` as the kernel escapes them.
    pub name: String,
}

impl MapLine {
    /// Parses a line; `None` when it is not a mapping.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let mut fields = line.splitn(6, ' ');
        let (start, end) = fields.next()?.split_once('-')?;
        let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
        Some(MapLine {
            start: Some(start).filter(|&start| start < end)?,
            end,
            permissions: fields.next()?.to_owned(),
            offset: u64::from_str_radix(fields.next()?, 16).ok()?,
            device: fields.next()?.to_owned(),
            inode: fields.next()?.parse().ok()?,
            name: fields.next().unwrap_or("").trim_start().to_owned(),
        })
    }

    /// Path without the kernel's mark for deleted files, and whether it had it.
    #[must_use]
    pub fn path(&self) -> (&str, bool) {
        match self.name.strip_suffix(" (deleted)") {
            Some(path) => (path, true),
            None => (&self.name, false),
        }
    }

    /// Whether it is of a file, also of one that only the kernel has, like a segment.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.inode != 0 || self.device != "00:00"
    }

    /// Whether code can run from it.
    #[must_use]
    pub fn is_executable(&self) -> bool {
        self.permissions.as_bytes().get(2) == Some(&b'x')
    }
}

/// All mappings of a process.
pub fn read_maps(pid: i32) -> io::Result<Vec<MapLine>> {
    let text = std::fs::read(format!("/proc/{pid}/maps"))?;
    Ok(String::from_utf8_lossy(&text).lines().filter_map(MapLine::parse).collect())
}

/// Sums of a process, and its biggest mappings if they are wanted.
pub fn read_memory(pid: i32, with_mappings: bool) -> io::Result<(ProcessMemory, Vec<Mapping>)> {
    let mapping_count =
        || std::fs::read(format!("/proc/{pid}/maps")).map(|maps| memchr::memchr_iter(b'\n', &maps).count());
    let file = if with_mappings && mapping_count()? <= DETAIL_LIMIT { "smaps" } else { "smaps_rollup" };
    parse(BufReader::with_capacity(64 * 1024, File::open(format!("/proc/{pid}/{file}"))?))
}

/// The same of a text like `smaps` or `smaps_rollup`.
pub fn parse(mut text: impl BufRead) -> io::Result<(ProcessMemory, Vec<Mapping>)> {
    let mut sums = ProcessMemory::default();
    let mut kinds_from_rollup = false;
    let mut mappings: Vec<Mapping> = Vec::new();
    let mut shmem = false;
    let mut line = Vec::new();
    while {
        line.clear();
        text.read_until(b'\n', &mut line)?
    } > 0
    {
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        if let Some((key, value)) = text.split_once(':')
            && let Some(kb) = value.trim().strip_suffix(" kB")
            && let Ok(kb) = kb.parse::<u64>()
        {
            let (Some(bytes), Some(mapping)) = (from_kb(kb), mappings.last_mut()) else { continue };
            match key {
                "Rss" => add(&mut sums.rss_bytes, bytes),
                "Pss" => {
                    add(&mut sums.pss_bytes, bytes);
                    mapping.pss_bytes = bytes;
                }
                "Pss_Anon" | "Pss_File" | "Pss_Shmem" => {
                    kinds_from_rollup = true;
                    match key {
                        "Pss_Anon" => sums.pss_anon_bytes = bytes,
                        "Pss_File" => sums.pss_file_bytes = bytes,
                        _ => sums.pss_shmem_bytes = bytes,
                    }
                }
                "Anonymous" => mapping.anonymous_bytes = bytes,
                "SwapPss" => {
                    add(&mut sums.swap_pss_bytes, bytes);
                    mapping.swap_pss_bytes = bytes;
                }
                // The last size of each mapping: time to file its PSS by kind.
                "Locked" if !kinds_from_rollup => {
                    let anonymous = mapping.anonymous_bytes.min(mapping.pss_bytes);
                    add(&mut sums.pss_anon_bytes, anonymous);
                    let rest = mapping.pss_bytes - anonymous;
                    add(if shmem { &mut sums.pss_shmem_bytes } else { &mut sums.pss_file_bytes }, rest);
                }
                _ => {}
            }
        } else if let Some(map) = MapLine::parse(text) {
            shmem = is_shared_memory(&map.name);
            mappings.push(Mapping {
                start: map.start,
                end: map.end,
                name: map.name,
                permissions: map.permissions,
                pss_bytes: 0,
                swap_pss_bytes: 0,
                anonymous_bytes: 0,
            });
        }
    }
    if kinds_from_rollup {
        mappings.clear();
    }
    mappings.retain(|m| m.pss_bytes + m.swap_pss_bytes > 0);
    mappings.sort_by_key(|m| std::cmp::Reverse(m.pss_bytes + m.swap_pss_bytes));
    mappings.truncate(KEPT);
    Ok((sums, mappings))
}

/// There may be more mappings than sizes that fit into a sum.
fn add(sum: &mut u64, bytes: u64) {
    *sum = sum.saturating_add(bytes);
}

/// tmpfs under the names by which the kernel shows it: memfd_create(2), SysV
/// segments, shared anonymous mappings, and /dev/shm.
fn is_shared_memory(name: &str) -> bool {
    ["/memfd:", "/SYSV", "/dev/zero (deleted)", "/dev/shm/"].iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "55d0-55d8 rw-p 00001000 fe:00 24 /usr/bin/a b (deleted)\nSize: 32 kB\nRss: 20 kB\nPss: 16 kB\n\
        Anonymous: 8 kB\nSwap: 4 kB\nSwapPss: 4 kB\nLocked: 0 kB\nTHPeligible: 0\nVmFlags: rd wr\n\
        7f00-7f10 rw-s 00000000 00:01 9 /memfd:x (deleted)\nRss: 12 kB\nPss: 12 kB\nAnonymous: 0 kB\nSwapPss: 0 kB\nLocked: 0 kB\n";
    const ROLLUP: &str = "55d0-7ffe ---p 00000000 00:00 0 [rollup]\nRss: 32 kB\nPss: 28 kB\nPss_Anon: 8 kB\nPss_File: 8 kB\nPss_Shmem: 12 kB\nAnonymous: 8 kB\nSwapPss: 4 kB\nLocked: 0 kB\n";

    #[test]
    fn detail_and_rollup_agree() {
        let (sums, mappings) = parse(SMAPS.as_bytes()).unwrap();
        let (rollup, none) = parse(ROLLUP.as_bytes()).unwrap();
        assert_eq!(sums, rollup);
        assert_eq!(sums.pss_bytes, sums.pss_anon_bytes + sums.pss_file_bytes + sums.pss_shmem_bytes);
        assert!(none.is_empty());
        assert_eq!(mappings.len(), 2);
        assert_eq!(mappings[0].name, "/usr/bin/a b (deleted)");
        assert_eq!(mappings[0].swap_pss_bytes, 4096);
    }

    #[test]
    fn what_is_no_mapping_is_left_out_and_no_sum_is_wrong() {
        for line in ["1000-1000 r-xp 0 0:0 0", "2000-1000 r-xp 0 0:0 0", "1000 r-xp 0 0:0 0", "-", "1000-2000 r-xp 0"] {
            assert_eq!(MapLine::parse(line), None, "{line}");
        }
        let (sums, mappings) =
            parse(&b"Pss: 4 kB\n1-2 r--p 0 0:0 0\nPss: 18446744073709551615 kB\nRss: 4 kB\n"[..]).unwrap();
        assert_eq!((sums.pss_bytes, sums.rss_bytes, mappings.len()), (0, 4096, 0));
        // The biggest that can be, of more mappings than there is room for.
        let text = "1-2 r--p 0 0:0 0\nPss: 4398046511103 kB\nSwapPss: 4398046511103 kB\nLocked: 0 kB\n".repeat(5000);
        let (sums, mappings) = parse(text.as_bytes()).unwrap();
        assert_eq!((sums.pss_bytes, sums.pss_file_bytes, mappings.len()), (u64::MAX, u64::MAX, KEPT));
    }

    #[test]
    fn the_first_segment_of_a_system_is_a_file() {
        let is_file = |line| MapLine::parse(line).unwrap().is_file();
        assert!(is_file("7f00-7f80 rw-s 00000000 00:01 0                          /SYSV00000000 (deleted)"));
        assert!(is_file("7f00-7f80 r-xp 00000000 fe:00 12                         /bin/true"));
        assert!(!is_file("7f00-7f80 rw-p 00000000 00:00 0                          [heap]"));
    }

    #[test]
    fn own_maps_show_own_binary() {
        let maps = read_maps(std::process::id() as i32).unwrap();
        let exe = std::env::current_exe().unwrap();
        let code = maps.iter().find(|m| m.is_executable() && m.path().0 == exe.to_str().unwrap()).unwrap();
        assert!(code.end > code.start && code.inode != 0);
        let (sums, _) = read_memory(std::process::id() as i32, true).unwrap();
        assert!(sums.rss_bytes >= sums.pss_bytes && sums.pss_anon_bytes > 0);
    }
}
