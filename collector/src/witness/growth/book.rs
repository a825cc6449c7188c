//! One process: its modules, how its stacks are unwound, what its mappings are.

use super::layout::{self, Layout, is_on_stack};
use super::record::Fault;
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
    /// When it was last used, in faults of all.
    pub used: u64,
    /// Pages that were in no mapping that was known, until mappings are read again.
    pub unclear: Vec<u64>,
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
    memory: TargetMemory,
    /// Start and inode of executable mappings.
    code: Vec<(u64, u64)>,
    mounts: Mounts,
    read: Instant,
    took: Duration,
    /// Whether code was mapped since.
    pub is_stale: bool,
}

/// A stack as it was unwound.
pub struct Unwound {
    /// Innermost first.
    pub frames: Vec<Frame>,
    /// Whether its outer end is missing.
    pub is_cut: bool,
    /// What was touched.
    pub kind: Kind,
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
            used: 0,
            unclear: Vec::new(),
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

    /// Unwinds a fault and says what was touched; reads the mappings again where it is in
    /// none that is known, but not all the time.
    pub fn unwind(&mut self, fault: &Fault<'_>, library: &mut Library) -> Unwound {
        let view = self.view.take().or_else(|| View::open(self.pid, library).ok());
        let Some(mut view) = view else {
            let kind = if is_stack_touch(fault) { Kind::Stack } else { Kind::Heap };
            return Unwound { frames: Vec::new(), is_cut: true, kind };
        };
        let mut unwound = view.unwind(fault);
        let is_lost = unwound.frames.iter().any(|frame| frame.at.is_none()) || view.kind(fault).is_none();
        if (view.is_stale || is_lost) && view.may_read() && view.read(self.pid, library).is_ok() {
            unwound = view.unwind(fault);
        }
        match view.kind(fault) {
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
                view.layout.kind(page * page_size(), &mut view.memory).into_iter().for_each(|kind| tell(page, kind));
            }
        }
        self.view = Some(view);
    }

    /// Reads its mappings now.
    pub fn refresh(&mut self, library: &mut Library) -> io::Result<&mut View> {
        let view = match self.view.take() {
            Some(mut view) => view.read(self.pid, library).map(|()| view),
            None => View::open(self.pid, library),
        }?;
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
    fn open(pid: i32, library: &mut Library) -> io::Result<Self> {
        let now = Instant::now();
        let mut view = View {
            modules: Vec::new(),
            unwinder: Unwinder::new(),
            layout: Layout::default(),
            memory: TargetMemory::open(pid)?,
            code: Vec::new(),
            mounts: Mounts::of(pid),
            read: now,
            took: Duration::ZERO,
            is_stale: false,
        };
        view.read(pid, library)?;
        Ok(view)
    }

    fn may_read(&self) -> bool {
        self.read.elapsed() >= READ_AGAIN.max(self.took * READ_SHARE)
    }

    /// Reads mappings, line by line: a hundred thousand are ten megabytes of text.
    fn read(&mut self, pid: i32, library: &mut Library) -> io::Result<()> {
        let begun = Instant::now();
        let (mut layout, mut files) = (Layout::default(), Vec::new());
        for line in BufReader::new(File::open(format!("/proc/{pid}/maps"))?).split(b'\n') {
            let line = line?;
            let Some(map) = MapLine::parse(&String::from_utf8_lossy(&line)) else { continue };
            layout.add(&map, || self.mounts.of_mapping(&map.device, &map.name) == FileSystem::Tmpfs);
            if map.inode != 0 || map.name == "[vdso]" {
                files.push(map);
            }
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
        let memory = &mut self.memory;
        memory.invalidate();
        // Who could not be opened is told by the snapshot.
        let mut gaps = Vec::new();
        let mut read = |at, out: &mut [u8]| reprieve_heap_walk::Memory::read(memory, at, out);
        self.modules = library.table.load(pid, files, &mut read, &mut gaps);
        self.unwinder = Unwinder::new();
        for module in &self.modules {
            let name = &library.table.modules[module.index as usize].path;
            self.unwinder.add_module(module.range.clone(), module.bias, &module.image, name);
        }
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
            return Unwound { frames: Vec::new(), is_cut: true, kind };
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
        Unwound { frames: frames.collect(), is_cut: stack.end != StackEnd::Complete, kind }
    }

    /// What an address in anonymous memory is of.
    pub fn anonymous(&mut self, address: u64) -> Kind {
        self.layout.anonymous(address, &mut self.memory)
    }

    fn kind(&mut self, fault: &Fault<'_>) -> Option<Kind> {
        if is_stack_touch(fault) {
            return Some(Kind::Stack);
        }
        self.layout.kind(fault.address, &mut self.memory)
    }
}
