//! One process: its modules, how its stacks are unwound, what its mappings are.

use super::layout::{self, Layout, is_on_stack};
use super::record::{Code, Fault};
use super::samples::{BookId, Kind};
use super::stacks::Frame;
use crate::accounting::{FileSystem, Mounts};
use crate::snapshot::{LoadedModule, MapLine, ModuleTable, TargetMemory, locate, page_size};
use reprieve_symbolizer::{StackEnd, Unwinder};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::time::{Duration, Instant};

/// Frames that are kept of a stack.
const MAX_FRAMES: usize = 128;
/// Distinct files of all processes; what is in others has no module.
const MOST_MODULES: usize = 4096;
/// How soon mappings are read again when something is in none of them, and how much
/// longer than the last time took.
const READ_AGAIN: Duration = Duration::from_millis(5);
const READ_SHARE: u32 = 20;
/// Mappings of code that are put down as they are told.
const MOST_CODE: usize = 64;
/// Pages that wait to be looked up in mappings that are not read yet.
const MOST_UNCLEAR: usize = 4096;

/// What all processes have in common.
#[derive(Debug, Default)]
pub struct Library {
    /// Their files.
    pub table: ModuleTable,
    /// By index there: whether it brings an allocator.
    allocators: HashMap<u32, bool>,
}

/// A process for as long as it runs one program.
#[derive(Debug)]
pub struct Book {
    /// By which its pages are known.
    pub id: BookId,
    /// Its PID in our PID namespace.
    pub pid: i32,
    /// Its name.
    pub comm: String,
    /// When its program began, by the kernel's clock; 0 is before we looked.
    pub began: u64,
    /// Time of the first fault that was seen of it.
    pub first_fault: Option<u64>,
    /// Whether its memory is what its parent had, since a fork.
    pub is_forked: bool,
    /// Faults that were put down.
    pub faults: u64,
    /// Those in memory that the program may have mapped itself, and how often one of its
    /// pages had been touched before.
    pub of_mapped: Reuse,
    /// When it was last used, in faults of all.
    pub used: u64,
    /// Pages that were in no mapping that was known, until mappings are read again.
    pub unclear: Vec<u64>,
    /// Code as it was mapped, and when, as far as that was told.
    pub code: Vec<(u64, MapLine)>,
    /// What is needed to unwind it; not of all at a time.
    pub view: Option<View>,
    /// Run-time address minus ELF address of each module that was seen.
    pub biases: HashMap<u32, u64>,
}

/// A process as it was when its mappings were last read.
#[derive(Debug)]
pub struct View {
    modules: Vec<LoadedModule>,
    unwinder: Unwinder,
    /// What the mappings are.
    pub layout: Layout,
    /// To look where arenas begin.
    memory: Option<TargetMemory>,
    /// Start and inode of executable mappings.
    code: Vec<(u64, u64)>,
    mounts: Mounts,
    read: Instant,
    took: Duration,
    /// Whether code was mapped since.
    pub is_stale: bool,
}

/// How often pages were touched a second time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reuse {
    /// Sampled faults.
    pub faults: u64,
    /// Of these, in a page that had been sampled before.
    pub again: u64,
}

/// So many are no accident.
const LEAST_AGAIN: u64 = 4;
/// Earlier faults of a page, on the average, that make its sample one of whoever had it
/// before too often: a fifth of a period's worth.
const MOST_EARLIER: f64 = 0.2;

impl Reuse {
    /// Whether memory came and went so often at the same addresses that many a page is put
    /// down for who had it before, with one sample in `period` faults. Of a page that was
    /// faulted n times before, n of n + 1 samples are of the past, and about n in twice
    /// the period come a second time.
    #[must_use]
    pub fn is_much(self, period: u64) -> bool {
        let earlier = self.again as f64 / self.faults.max(1) as f64 * period.saturating_sub(1) as f64;
        self.again >= LEAST_AGAIN && earlier >= MOST_EARLIER
    }
}

/// A stack as it was unwound.
pub struct Unwound {
    /// Innermost first.
    pub frames: Vec<Frame>,
    /// Whether its outer end is missing.
    pub is_cut: bool,
    /// What was touched.
    pub kind: Kind,
    /// Whether that may be memory that the program mapped itself: it is, or is in no mapping
    /// that was known.
    pub may_be_mapped: bool,
}

impl Book {
    /// Of a process that is just being noticed.
    #[must_use]
    pub fn new(id: BookId, pid: i32, began: u64) -> Self {
        let mut book = Book {
            id,
            pid,
            comm: String::new(),
            began,
            first_fault: None,
            is_forked: false,
            faults: 0,
            of_mapped: Reuse::default(),
            used: 0,
            unclear: Vec::new(),
            code: Vec::new(),
            view: None,
            biases: HashMap::new(),
        };
        book.read_name();
        book
    }

    /// Its name, where it is there.
    pub fn read_name(&mut self) {
        if let Ok(comm) = std::fs::read_to_string(format!("/proc/{}/comm", self.pid)) {
            self.comm = comm.trim_end_matches('\n').to_owned();
        }
    }

    /// When it was first told of.
    #[must_use]
    pub fn first_seen(&self) -> u64 {
        let mapped = self.code.first().map(|(time, _)| *time);
        self.first_fault.into_iter().chain(mapped).min().unwrap_or(self.began)
    }

    /// Puts down code that was mapped.
    pub fn map(&mut self, time: u64, code: &Code<'_>) {
        self.view.iter_mut().for_each(|view| view.is_stale = true);
        if self.code.len() < MOST_CODE {
            let map = MapLine {
                start: code.start,
                end: code.start.saturating_add(code.bytes),
                permissions: "r-xp".to_owned(),
                offset: code.offset,
                device: format!("{:02x}:{:02x}", code.device.0, code.device.1),
                inode: code.inode,
                name: String::from_utf8_lossy(code.path).into_owned(),
            };
            self.code.push((time, map));
        }
    }

    /// Unwinds a fault and says what was touched; reads the mappings again where it is in
    /// none that is known, but not all the time. One that is gone has none to be read: then it
    /// is by what was told of its code.
    pub fn unwind(&mut self, fault: &Fault<'_>, library: &mut Library) -> Unwound {
        let mut view = self.view.take().unwrap_or_else(|| View::open(self.pid, library));
        let mut unwound = view.unwind(fault);
        let is_known = |unwound: &Unwound| unwound.frames.iter().all(|frame| frame.at.is_some());
        let is_lost = !is_known(&unwound) || view.kind(fault).is_none();
        if (view.is_stale || is_lost) && view.may_read() && view.read(self.pid, library).is_ok() {
            unwound = view.unwind(fault);
        }
        if !is_known(&unwound) && view.add(self.pid, &self.code, library) {
            unwound = view.unwind(fault);
        }
        let kind = view.kind(fault);
        unwound.may_be_mapped = kind.is_none_or(|kind| kind == Kind::Direct);
        match kind {
            Some(kind) => unwound.kind = kind,
            None if self.unclear.len() < MOST_UNCLEAR => self.unclear.push(fault.address / page_size()),
            None => {}
        }
        self.remember(&view);
        self.view = Some(view);
        unwound
    }

    /// Says what pages are of that were in no mapping that was known, once mappings may be
    /// read again, or `now`.
    pub fn clear_up(&mut self, library: &mut Library, now: bool, mut tell: impl FnMut(u64, Kind)) {
        let Some(mut view) = self.view.take_if(|view| now || view.may_read()) else { return };
        // One that ends has none any more, and is remembered as it was.
        if view.read(self.pid, library).is_ok() {
            for page in self.unclear.drain(..) {
                view.layout
                    .kind(page * page_size(), view.memory.as_mut())
                    .into_iter()
                    .for_each(|kind| tell(page, kind));
            }
        }
        self.view = Some(view);
    }

    /// Reads its mappings now.
    pub fn refresh(&mut self, library: &mut Library) -> io::Result<&mut View> {
        let mut view = self.view.take().unwrap_or_else(|| View::new(self.pid));
        view.read(self.pid, library)?;
        self.remember(&view);
        Ok(self.view.insert(view))
    }

    fn remember(&mut self, view: &View) {
        if self.biases.len() != view.modules.len() {
            self.biases.extend(view.modules.iter().map(|module| (module.index, module.bias)));
        }
    }
}

fn is_stack_touch(fault: &Fault<'_>) -> bool {
    fault.registers.is_some_and(|registers| is_on_stack(fault.address, registers.sp))
}

impl View {
    /// Before anything was read.
    fn new(pid: i32) -> Self {
        View {
            modules: Vec::new(),
            unwinder: Unwinder::new(),
            layout: Layout::default(),
            memory: TargetMemory::open(pid).ok(),
            code: Vec::new(),
            mounts: Mounts::of(pid),
            read: Instant::now(),
            took: Duration::ZERO,
            is_stale: false,
        }
    }

    /// As far as it can be read: of one that is gone there is nothing.
    fn open(pid: i32, library: &mut Library) -> Self {
        let mut view = View::new(pid);
        let _ = view.read(pid, library);
        view
    }

    fn may_read(&self) -> bool {
        self.read.elapsed() >= READ_AGAIN.max(self.took * READ_SHARE)
    }

    /// Reads mappings, line by line: a hundred thousand are ten megabytes of text.
    fn read(&mut self, pid: i32, library: &mut Library) -> io::Result<()> {
        let begun = Instant::now();
        let (mut layout, mut files, mut is_alive) = (Layout::default(), Vec::new(), false);
        for line in BufReader::new(File::open(format!("/proc/{pid}/maps"))?).split(b'\n') {
            let line = line?;
            let Some(map) = MapLine::parse(&String::from_utf8_lossy(&line)) else { continue };
            is_alive = true;
            layout.add(&map, || self.mounts.of_mapping(&map.device, &map.name) == FileSystem::Tmpfs);
            if map.inode != 0 || map.name == "[vdso]" {
                files.push(map);
            }
        }
        // Of one that is killed there is the file until it is reaped, with nothing in it: what
        // was known of it before must not go.
        if !is_alive {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        let code: Vec<(u64, u64)> =
            files.iter().filter(|map| map.is_executable()).map(|map| (map.start, map.inode)).collect();
        layout.is_plain = self.layout.is_plain;
        if code != self.code && library.table.modules.len() < MOST_MODULES {
            self.load(pid, &files, library);
            self.code = code;
            layout.is_plain = self.is_plain(library);
        }
        self.layout = layout;
        self.is_stale = false;
        (self.read, self.took) = (Instant::now(), begun.elapsed());
        Ok(())
    }

    fn load(&mut self, pid: i32, files: &[MapLine], library: &mut Library) {
        let mut memory = self.memory.as_mut();
        memory.iter_mut().for_each(|memory| memory.invalidate());
        // Who could not be opened is told by the snapshot.
        let mut gaps = Vec::new();
        let mut read = |at, out: &mut [u8]| {
            memory.as_mut().is_some_and(|memory| reprieve_heap_walk::Memory::read(*memory, at, out))
        };
        self.modules = library.table.load(pid, files, &mut read, &mut gaps);
        self.unwinder = Unwinder::new();
        for module in &self.modules {
            let name = &library.table.modules[module.index as usize].path;
            self.unwinder.add_module(module.range.clone(), module.bias, &module.image, name);
        }
    }

    /// Adds code that was told and is in no module; whether there was any.
    fn add(&mut self, pid: i32, code: &[(u64, MapLine)], library: &mut Library) -> bool {
        let is_new = |map: &&MapLine| !self.modules.iter().any(|module| module.range.contains(&map.start));
        let new: Vec<MapLine> = code.iter().map(|(_, map)| map).filter(is_new).cloned().collect();
        if new.is_empty() || library.table.modules.len() >= MOST_MODULES {
            return false;
        }
        let added = library.table.load(pid, &new, &mut |_, _| false, &mut Vec::new());
        for module in &added {
            let name = &library.table.modules[module.index as usize].path;
            self.unwinder.add_module(module.range.clone(), module.bias, &module.image, name);
        }
        let is_more = !added.is_empty();
        self.modules.extend(added);
        self.layout.is_plain = self.is_plain(library);
        is_more
    }

    fn is_plain(&self, Library { table, allocators }: &mut Library) -> bool {
        let with_paths = self.modules.iter().map(|m| (m, table.modules[m.index as usize].path.as_str()));
        layout::is_plain(with_paths, |module| {
            *allocators.entry(module.index).or_insert_with(|| layout::has_allocator(module))
        })
    }

    fn unwind(&mut self, fault: &Fault<'_>) -> Unwound {
        let kind = Kind::Heap;
        let Some(registers) = fault.registers else {
            return Unwound { frames: Vec::new(), is_cut: true, kind, may_be_mapped: false };
        };
        let mut read = |address: u64| {
            let from = usize::try_from(address.checked_sub(registers.sp)?).ok()?;
            Some(u64::from_ne_bytes(fault.stack.get(from..from.checked_add(8)?)?.try_into().ok()?))
        };
        let stack = self.unwinder.unwind(&registers, &mut read, MAX_FRAMES);
        let frames = stack.frames.iter().map(|raw| {
            let look_up = raw.lookup_address();
            match locate(look_up, &self.modules) {
                Some(at) => Frame { at: Some(at), address: 0 },
                None => Frame { at: None, address: look_up.0 },
            }
        });
        let is_cut = stack.end != StackEnd::Complete;
        Unwound { frames: frames.collect(), is_cut, kind, may_be_mapped: false }
    }

    /// What an address in anonymous memory is of.
    pub fn anonymous(&mut self, address: u64) -> Kind {
        self.layout.anonymous(address, self.memory.as_mut())
    }

    fn kind(&mut self, fault: &Fault<'_>) -> Option<Kind> {
        if is_stack_touch(fault) {
            return Some(Kind::Stack);
        }
        self.layout.kind(fault.address, self.memory.as_mut())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::read_maps;
    use crate::witness::growth::record::Chain;
    use reprieve_symbolizer::Registers;

    /// Something of this program, to be found in it.
    #[inline(never)]
    fn landmark() -> u64 {
        landmark as *const () as u64
    }

    #[test]
    fn memory_that_comes_and_goes_at_the_same_place_is_noticed() {
        // Ten pages of garbage at each address before what is there now, at a period of 64.
        assert!(Reuse { faults: 11_000, again: 900 }.is_much(64));
        assert!(Reuse { faults: 1000, again: 4 }.is_much(64));
        // Two are an accident, and rare ones do little.
        assert!(!Reuse { faults: 100, again: 2 }.is_much(64));
        assert!(!Reuse { faults: 10_000, again: 20 }.is_much(64));
        // Where every fault is sampled the last one is known.
        assert!(!Reuse { faults: 1000, again: 900 }.is_much(1));
        assert!(!Reuse::default().is_much(64));
    }

    #[test]
    fn who_is_gone_is_unwound_by_what_was_told_of_its_code() {
        let mut library = Library::default();
        // A PID that no process has.
        let mut book = Book::new(1, i32::MAX, 0);
        let registers = Some(Registers { ip: landmark(), sp: 0x1000, fp: 0, lr: 0 });
        let kernel = Chain::default();
        let fault = Fault { pid: i32::MAX, time: 9, address: 0x7000_0000, kernel, registers, stack: &[] };
        assert_eq!(book.unwind(&fault, &mut library).frames[0].at, None);
        let maps = read_maps(std::process::id() as i32).unwrap();
        let number = |text: &str| u32::from_str_radix(text, 16).unwrap();
        for map in maps.iter().filter(|map| map.is_executable() && map.inode != 0) {
            let (major, minor) = map.device.split_once(':').unwrap();
            book.map(
                5,
                &Code {
                    start: map.start,
                    bytes: map.end - map.start,
                    offset: map.offset,
                    device: (number(major), number(minor)),
                    inode: map.inode,
                    path: map.name.as_bytes(),
                },
            );
        }
        let unwound = book.unwind(&fault, &mut library);
        let at = unwound.frames[0].at.unwrap_or_else(|| panic!("{:?}", book.code));
        let program = std::env::current_exe().unwrap();
        assert_eq!(library.table.modules[at.module as usize].path, program.to_str().unwrap());
        assert_eq!(book.biases[&at.module].wrapping_add(at.svma), landmark());
        // Of what it had nothing is known: in doubt it is a malloc's.
        assert_eq!(unwound.kind, Kind::Heap);
        // Another file that has taken its place is not it.
        let mut other = Book::new(2, i32::MAX, 0);
        other.code =
            book.code.iter().map(|(time, map)| (*time, MapLine { inode: map.inode + 1, ..map.clone() })).collect();
        assert_eq!(other.unwind(&fault, &mut library).frames[0].at, None);
    }
}
