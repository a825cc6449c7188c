//! What malloc holds free, from glibc's own books.

use super::Target;
use super::timed::Timed;
use crate::incident::model::{
    MallocArena, MallocChunks, MallocFree, MallocMmapped, MallocSizeClass, MallocState, Process,
};
use crate::snapshot::{LoadedModule, MapLine, Pagemap, TargetMemory, page_size};
use memchr::memmem;
use reprieve_heap_walk::glibc::{self, Chunks, Malloc, Pages, Place};
use std::ops::Range;
use std::time::{Duration, Instant};

/// Longest walk of a process: 400 MB of small chunks take a third of it.
const TIME: Duration = Duration::from_millis(400);
/// Reads of all, eight bytes each at least: what time cannot reach.
const BUDGET_BYTES: u64 = 1 << 32;
/// Newest glibc whose layout is known.
const NEWEST: (u32, u32) = (2, 41);
/// What glibc prints when it is run, behind it the distribution's version.
const BANNER: &[u8] = b"GNU C Library (";

/// Walks glibc's malloc, where the process has one and uses it.
pub fn look(process: &mut Process, target: &Target<'_>) {
    let Some((module, name)) = glibc_of(process, target) else { return };
    let version = version(module);
    if let Some((major, minor)) = version.filter(|version| *version > NEWEST) {
        process.gaps.push(format!(
            "malloc's books were not read: the layout of glibc {major}.{minor} is not known, only up to {}.{}",
            NEWEST.0, NEWEST.1
        ));
        return;
    }
    let walked = match walk(target, module) {
        Ok(walked) => walked,
        Err(why) => {
            process.gaps.push(format!("malloc's books were not read: {why}"));
            return;
        }
    };
    let malloc = match walked {
        (Some(malloc), _) => malloc,
        (None, true) => {
            process.gaps.push("malloc's books were not read: other processes took all the time for that".to_owned());
            return;
        }
        // Never used, or another malloc took its place.
        (None, false) => return,
    };
    process.gaps.extend(malloc.gaps.iter().cloned());
    let library = version.map_or(name, |(major, minor)| format!("glibc {major}.{minor}"));
    process.malloc = Some(state(&malloc, library));
}

/// glibc as a library, else the program itself, which may be static.
fn glibc_of<'t>(process: &Process, target: &'t Target<'_>) -> Option<(&'t LoadedModule, String)> {
    let name_of = |module: &LoadedModule| {
        let map = target.maps.iter().find(|map| module.range.contains(&map.start))?;
        Some(map.path().0.rsplit('/').next()?.to_owned())
    };
    let is_glibc = |name: &str| name == "libc.so.6" || (name.starts_with("libc-2.") && name.ends_with(".so"));
    let library = target.modules.iter().find(|m| name_of(m).is_some_and(|name| is_glibc(&name)));
    let library = library.or_else(|| {
        let exe = process.exe.as_deref()?;
        target.modules.iter().find(|m| target.maps.iter().any(|map| m.range.contains(&map.start) && map.name == exe))
    })?;
    Some((library, "glibc".to_owned()))
}

/// Version in the banner, `GNU C Library (Debian GLIBC …) stable release version 2.36.`
fn version(module: &LoadedModule) -> Option<(u32, u32)> {
    let (_, bytes) = module.image.section_data(".rodata")?;
    let at = memmem::find(bytes, BANNER)?;
    let line = bytes[at..].split(|&byte| byte == b'\n').next()?;
    let line = String::from_utf8_lossy(line.get(..200).unwrap_or(line));
    let (_, version) = line.split_once("version ")?;
    let (major, minor) = version.trim_end_matches('.').split_once('.')?;
    let minor: String = minor.chars().take_while(char::is_ascii_digit).collect();
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Walks, and says whether time was up.
fn walk(target: &Target<'_>, module: &LoadedModule) -> std::io::Result<(Option<Malloc>, bool)> {
    // One range of what follows one another: madvise(2) splits mappings.
    let ranges = |chosen: &dyn Fn(&MapLine) -> bool| -> Vec<Range<u64>> {
        let mut joined: Vec<Range<u64>> = Vec::new();
        for map in target.maps.iter().filter(|map| map.permissions.as_bytes().get(1) == Some(&b'w') && chosen(map)) {
            match joined.last_mut() {
                Some(last) if last.end == map.start => last.end = map.end,
                _ => joined.push(map.start..map.end),
            }
        }
        joined
    };
    let writable = ranges(&|_| true);
    let anonymous = ranges(&|map| map.inode == 0 && (map.name.is_empty() || map.name.starts_with("[anon")));
    let heap = ranges(&|map| map.name == "[heap]").into_iter().next();
    // Behind the file's last page `.bss` goes on without a file.
    let end = module.range.end;
    let data = ranges(&|map| {
        (module.range.contains(&map.start) || (map.start == end && map.inode == 0)) && map.name != "[heap]"
    });
    let place = Place { data: &data, heap, writable: &writable, anonymous: &anonymous };
    let memory = TargetMemory::reading_ahead(target.pid)?;
    let mut memory = Timed::new(memory, target.until.min(Instant::now() + TIME));
    let mut pages = PresentPages::new(Pagemap::open(target.pid)?);
    let walked = glibc::walk(&mut memory, &mut pages, &place, BUDGET_BYTES);
    Ok((walked, memory.is_late()))
}

/// Pages looked up together.
const KNOWN_PAGES: usize = 512;

/// Present pages, looked up in order.
struct PresentPages {
    pagemap: Pagemap,
    page: u64,
    first: u64,
    known: Vec<bool>,
}

impl PresentPages {
    fn new(pagemap: Pagemap) -> Self {
        PresentPages { pagemap, page: page_size(), first: u64::MAX, known: vec![false; KNOWN_PAGES] }
    }
}

impl Pages for PresentPages {
    fn present_bytes(&mut self, pages: Range<u64>) -> Option<u64> {
        let mut sum = 0;
        let mut at = pages.start;
        while at < pages.end {
            let known = self.known.len() as u64 * self.page;
            if self.first == u64::MAX || at.wrapping_sub(self.first) >= known {
                self.first = u64::MAX;
                self.pagemap.present(at, &mut self.known).ok()?;
                self.first = at;
            }
            let from = ((at - self.first) / self.page) as usize;
            let upto = ((pages.end - self.first).div_ceil(self.page) as usize).min(self.known.len());
            sum += self.known[from..upto].iter().filter(|there| **there).count() as u64 * self.page;
            at = self.first + upto as u64 * self.page;
        }
        Some(sum)
    }
}

fn state(malloc: &Malloc, library: String) -> MallocState {
    let chunks = |c: Chunks| MallocChunks { chunks: c.chunks, bytes: c.bytes };
    let arenas = malloc.arenas.iter().map(|arena| MallocArena {
        address: arena.address,
        system_bytes: arena.system_bytes,
        resident_bytes: arena.resident_bytes,
        heaps: arena.heaps,
        live: chunks(arena.live),
        free: MallocFree {
            tcache: chunks(arena.tcache),
            fastbins: chunks(arena.fastbins),
            unsorted: chunks(arena.unsorted),
            small: chunks(arena.small),
            large: chunks(arena.large),
        },
        free_resident_bytes: arena.free_resident_bytes,
        top_bytes: arena.top_bytes,
        top_resident_bytes: arena.top_resident_bytes,
        overhead_bytes: arena.overhead_bytes,
        unknown_bytes: arena.unknown_bytes,
    });
    let size_classes = malloc.classes.iter().map(|class| MallocSizeClass {
        from_bytes: class.from_bytes,
        to_bytes: class.to_bytes,
        chunks: class.chunks.chunks,
        bytes: class.chunks.bytes,
    });
    MallocState {
        library,
        arenas: arenas.collect(),
        mmapped: malloc.mmapped.map(|m| MallocMmapped {
            chunks: m.chunks.chunks,
            bytes: m.chunks.bytes,
            resident_bytes: m.resident_bytes,
        }),
        size_classes: size_classes.collect(),
    }
}
