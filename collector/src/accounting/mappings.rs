//! The pages of a process, by mapping: anonymous ones and those of files.

use super::charges::Charges;
use super::found::{FileKey, Found, FoundMapping};
use super::mounts::Mounts;
use super::page_set::PageSet;
use crate::snapshot::{Entry, MapLine, Pagemap, page_size};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::time::Instant;

/// Entries of a page map read at once.
const ENTRIES: usize = 4096;
/// Mappings told one by one, of a process.
const KEPT: usize = 24;
/// Mappings remembered while there may come bigger ones.
const REMEMBERED: usize = 4 * KEPT;

/// A mapping of so many bytes with a thread in it is taken for its stack: twice the usual limit
/// (8 MiB).
const STACK_BYTES: u64 = 16 << 20;
/// Where Go asks for the arenas of its heap, one after the other, on all its Linuxes of 64 bits
/// (mallocinit, runtime/malloc.go).
const GO_ARENAS: Range<u64> = 0xc0_0000_0000..0x100_0000_0000;

/// What looks at pages, and what it has seen.
#[derive(Debug)]
pub struct Pages {
    charges: Charges,
    seen: PageSet,
    entries: Vec<Entry>,
    /// Frames of one piece that were not counted before.
    frames: Vec<(u64, Page)>,
    /// Whether a page was there and its frame was not told.
    pub is_blind: bool,
    page: u64,
    /// When to stop.
    pub until: Instant,
}

/// What is known of a page from its entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Page {
    Own,
    Common,
    Filed,
}

/// Bytes of a mapping, or of a part of it, that the memcg is charged for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Anonymous, and nobody else's.
    pub own: u64,
    /// Anonymous, with others, and not counted before.
    pub common: u64,
    /// Of a file, and not counted before.
    pub filed: u64,
    /// Charged to others.
    pub elsewhere: u64,
}

impl Pages {
    /// Looks until `until`.
    #[must_use]
    pub fn new(charges: Charges, until: Instant) -> Self {
        Pages {
            charges,
            seen: PageSet::default(),
            entries: vec![Entry(0); ENTRIES],
            frames: Vec::with_capacity(ENTRIES),
            is_blind: false,
            page: page_size(),
            until,
        }
    }

    /// Whether there is no time left.
    #[must_use]
    pub fn is_late(&self) -> bool {
        Instant::now() >= self.until
    }

    /// Counts the present pages of a range of a process.
    pub fn look(&mut self, pagemap: &Pagemap, start: u64, end: u64) -> std::io::Result<Seen> {
        let mut seen = Seen::default();
        let mut entries = std::mem::take(&mut self.entries);
        let result = pagemap.each_present(start, end, &mut entries, |_, entries| {
            self.count(entries, &mut seen);
            !self.is_late()
        });
        self.entries = entries;
        result.map(|()| seen)
    }

    pub(super) fn count(&mut self, entries: &[Entry], seen: &mut Seen) {
        self.frames.clear();
        for entry in entries.iter().filter(|entry| entry.is_present()) {
            let page = match (entry.is_file(), entry.is_exclusive()) {
                (true, _) => Page::Filed,
                (false, true) => Page::Own,
                (false, false) => Page::Common,
            };
            match entry.pfn() {
                // A library is in the page tables of all.
                Some(pfn) if page != Page::Own && self.seen.contains(pfn) => {}
                Some(pfn) => self.frames.push((pfn, page)),
                // What is nobody else's needs no frame to be counted once.
                None => {
                    self.is_blind = true;
                    seen.own += if page == Page::Own { self.page } else { 0 };
                }
            }
        }
        let Pages { charges, seen: known, frames, page, .. } = self;
        charges.look(frames, |pfn, what, is_ours| {
            let sum = match (is_ours, what) {
                (false, _) => &mut seen.elsewhere,
                (true, Page::Own) => &mut seen.own,
                (true, Page::Common) => &mut seen.common,
                (true, Page::Filed) => &mut seen.filed,
            };
            // Those of the process alone are in no other's page tables.
            if what == Page::Own || known.insert(pfn) {
                *sum += *page;
            }
        });
    }

    /// Counts all mappings of a process into `found`. By what is known `of` it a mapping has a
    /// name where the kernel has none.
    pub fn look_at_process(
        &mut self,
        pid: i32,
        of: &Runtime,
        mounts: &Mounts,
        found: &mut Found,
    ) -> std::io::Result<Vec<FoundMapping>> {
        let pagemap = Pagemap::open(pid)?;
        let mut own = Biggest::default();
        // Line by line: a hundred thousand mappings are ten megabytes of text.
        for line in BufReader::new(File::open(format!("/proc/{pid}/maps"))?).split(b'\n') {
            let line = line?;
            let Some(map) = MapLine::parse(&String::from_utf8_lossy(&line)) else { continue };
            let seen = self.look(&pagemap, map.start, map.end)?;
            found.elsewhere += seen.elsewhere;
            if seen.own + seen.common > 0 {
                let name = of.name_of(&map, seen.own + seen.common);
                if seen.common > 0 {
                    *found.common.entry(name.clone()).or_default() += seen.common;
                }
                own.add(FoundMapping { name, range: Some((map.start, map.end)), mappings: 1, bytes: seen.own });
            }
            if map.is_file() {
                let kind = mounts.of_mapping(&map.device, &map.name);
                let key = FileKey { device: map.device, inode: map.inode };
                let file = found.files.entry(key).or_default();
                if file.kind.is_none() {
                    (file.path, file.kind) = (map.name, Some(kind));
                    file.mapped = Some((pid, map.start, map.end));
                }
                file.bytes += seen.filed;
                file.pids.insert(pid);
            }
            // What was seen until then counts.
            if self.is_late() {
                break;
            }
        }
        Ok(own.finish())
    }
}

/// What is known of a process beside its mappings.
#[derive(Debug, Default)]
pub struct Runtime {
    /// Stack pointers of its threads.
    pub stacks: Vec<u64>,
    /// Whether it is a program in Go.
    pub is_go: bool,
}

impl Runtime {
    /// What a mapping with so many `bytes` in memory is called where it is private.
    fn name_of(&self, map: &MapLine, bytes: u64) -> String {
        match map.name.as_str() {
            // Stacks of goroutines lie there, too.
            "" if self.is_go && GO_ARENAS.contains(&map.start) => "[Go heap]".to_owned(),
            "" if !map.is_file() && self.is_stack(map, bytes) => "[stack of a thread]".to_owned(),
            "" => "[anonymous]".to_owned(),
            name => name.to_owned(),
        }
    }

    /// Whether a mapping is the stack of a thread: one is in use from its end to where the thread
    /// is. Threads of runtimes may be on stacks in their heap.
    fn is_stack(&self, map: &MapLine, bytes: u64) -> bool {
        let mut inside = self.stacks.iter().filter(|sp| (map.start..map.end).contains(sp));
        let Some(sp) = inside.next() else { return false };
        map.end - map.start <= STACK_BYTES || inside.next().is_none() && bytes <= map.end - sp + STACK_BYTES
    }
}

/// Mappings, the biggest one by one.
#[derive(Debug, Default)]
struct Biggest {
    kept: Vec<FoundMapping>,
    /// Mappings and bytes of all others.
    others: (u64, u64),
}

impl Biggest {
    fn add(&mut self, mapping: FoundMapping) {
        if mapping.bytes == 0 {
            return;
        }
        // A file's pieces, an arena after the other: one line each is of no use.
        if let Some(same) = self.kept.iter_mut().find(|kept| kept.name == mapping.name && kept.is_mergeable()) {
            same.bytes += mapping.bytes;
            same.mappings += 1;
            same.range = None;
            return;
        }
        self.kept.push(mapping);
        if self.kept.len() > REMEMBERED {
            self.cut();
        }
    }

    fn cut(&mut self) {
        self.kept.sort_by_key(|mapping| std::cmp::Reverse(mapping.bytes));
        for other in self.kept.drain(KEPT.min(self.kept.len())..) {
            self.others.0 += other.mappings;
            self.others.1 += other.bytes;
        }
    }

    fn finish(mut self) -> Vec<FoundMapping> {
        self.cut();
        let (mappings, bytes) = self.others;
        if bytes > 0 {
            self.kept.push(FoundMapping { name: "smaller mappings".to_owned(), range: None, mappings, bytes });
        }
        self.kept
    }
}

impl FoundMapping {
    /// Whether another of the same name belongs to it.
    fn is_mergeable(&self) -> bool {
        self.name != "[anonymous]"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(name: &str, start: u64, bytes: u64) -> FoundMapping {
        FoundMapping { name: name.to_owned(), range: Some((start, start + bytes)), mappings: 1, bytes }
    }

    #[test]
    fn a_stack_is_known_and_a_heap_with_threads_in_it_is_none() {
        let map = |line: &str| MapLine::parse(line).unwrap();
        let named = |of: &Runtime, line: &str, mib: u64| of.name_of(&map(line), mib << 20);
        let of = |stacks: &[u64], is_go| Runtime { stacks: stacks.to_vec(), is_go };
        let usual = "7f0000000000-7f0000800000 rw-p 00000000 00:00 0 ";
        assert_eq!(named(&of(&[0x7f00_007f_f000], false), usual, 1), "[stack of a thread]");
        assert_eq!(named(&of(&[0x7f00_0080_0000], false), usual, 1), "[anonymous]");
        // A deep recursion on a stack of 256 MiB, and a heap in which a coroutine runs.
        let big = "7f0000000000-7f0010000000 rw-p 00000000 00:00 0 ";
        assert_eq!(named(&of(&[0x7f00_0400_0000], false), big, 192), "[stack of a thread]");
        assert_eq!(named(&of(&[0x7f00_0fff_f000], false), big, 192), "[anonymous]");
        let arena = "c000000000-c004000000 rw-p 00000000 00:00 0 ";
        assert_eq!(named(&of(&[0xc0_0005_0000], true), arena, 61), "[Go heap]");
        assert_eq!(named(&of(&[], true), arena, 61), "[Go heap]");
        let (sps, first) = ([0xc0_0005_0000, 0xc0_0015_0000], [0xc0_03ff_0000]);
        assert_eq!(named(&of(&sps, false), arena, 61), "[anonymous]", "who says that it is Go?");
        assert_eq!(named(&of(&first, false), arena, 61), "[anonymous]");
        // The kernel's own names stay.
        assert_eq!(named(&of(&[], true), &format!("{arena}[anon: Go: heap]"), 61), "[anon: Go: heap]");
    }

    #[test]
    fn the_biggest_are_told_and_none_is_lost() {
        let mut all = Biggest::default();
        for index in 0..10_000 {
            all.add(mapping("[anonymous]", index << 20, 4096 * (index % 97 + 1)));
            all.add(mapping("/lib/x.so", index << 40, 4096));
            all.add(mapping("/empty", 0, 0));
        }
        let told = all.finish();
        assert_eq!(told.len(), KEPT + 1);
        let sum: u64 = (0..10_000).map(|index| 4096 * (index % 97 + 1) + 4096).sum();
        assert_eq!(told.iter().map(|m| m.bytes).sum::<u64>(), sum);
        assert_eq!((told[0].name.as_str(), told[0].mappings, told[0].range), ("/lib/x.so", 10_000, None));
        assert!(told[1..KEPT].iter().all(|m| m.bytes == 4096 * 97 && m.range.is_some()), "{told:?}");
        assert_eq!(told.iter().map(|m| m.mappings).sum::<u64>(), 20_000);
    }
}
