//! The Python frames of the thread that allocates, where the program is CPython.
//!
//! A native stack through CPython says `_PyEval_EvalFrameDefault` again and again.
//! In its place come the Python frames that each of these calls runs, each as its
//! code object and the instruction in it: names are found from outside, when
//! somebody asks. A call is known by what it has in its own native frame: a
//! `_PyCFrame` before 3.12, the outermost of its Python frames since.
//!
//! The thread's state is asked for by a function of the stable ABI that takes no
//! lock. All else is the thread's own frames and the code that they hold; still each
//! page is asked about before it is read, so that a broken pointer is an error and
//! not a fault.

use crate::elf::{Object, Symbols, find_object};
use crate::readable::is_readable;
use core::cell::UnsafeCell;
use core::mem::{MaybeUninit, transmute};
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use libc::c_void;
use reprieve_heap_cpython::{DEBUG_OFFSETS_BYTES, Layout, Step, check, walk};
use reprieve_heap_table::ScriptFrame;

/// The innermost Python frames that are recorded.
const PYTHON_FRAMES: usize = 112;
/// Pages that are known to be readable, while one stack is looked at.
const PAGES_COUNT: usize = 16;
const PAGE: u64 = 4096;
/// No program has memory from here on (mmap(2) without a hint, x86-64).
const END: u64 = 1 << 47;
/// Interpreters that come and go with dlclose.
const PLACES_COUNT: usize = 8;

/// CPython in this process.
struct Python {
    /// Start of the object that it is in.
    object: u64,
    layout: Layout,
    /// `PyGILState_GetThisThreadState`: the state of this thread, GIL or not.
    own_state: ThreadStateOf,
    /// Only of 3.11, where the function above knows one interpreter only:
    /// `_PyThreadState_UncheckedGet`, the state of whoever has the GIL.
    gil_holder: Option<ThreadStateOf>,
}

type ThreadStateOf = unsafe extern "C" fn() -> u64;

static PYTHON: AtomicPtr<Python> = AtomicPtr::new(ptr::null_mut());
static PLACES: Places = Places([const { UnsafeCell::new(MaybeUninit::uninit()) }; PLACES_COUNT]);
static PLACES_USED: AtomicUsize = AtomicUsize::new(0);
/// Start of the object that was looked at last.
static LOOKED_AT: AtomicU64 = AtomicU64::new(0);

struct Places([UnsafeCell<MaybeUninit<Python>>; PLACES_COUNT]);
// SAFETY: each place is written once, by whoever drew its number, before it is
// published.
unsafe impl Sync for Places {}

/// A native stack, innermost first.
pub struct Native<'s> {
    /// Return addresses.
    pub frames: &'s [u64],
    /// The stack pointer in each.
    pub stack_pointers: &'s [u64],
    /// Whether the outer end is missing.
    pub cut: bool,
}

/// Room to work in.
pub struct Work {
    frames: [Found; PYTHON_FRAMES],
    count: usize,
    memory: Own,
}

#[derive(Clone, Copy)]
struct Found {
    code: u64,
    instruction: u64,
    check: u16,
    /// The run of one native call ends with this frame: an address in that call's
    /// native frame, else 0.
    entry: u64,
}

impl Work {
    /// Unused.
    pub const NEW: Work = Work {
        frames: [Found { code: 0, instruction: 0, check: 0, entry: 0 }; PYTHON_FRAMES],
        count: 0,
        memory: Own { pages: [0; PAGES_COUNT] },
    };
}

/// Our own memory, as far as it is readable.
struct Own {
    /// Page numbers of readable pages, each in the place of its number.
    pages: [u64; PAGES_COUNT],
}

impl Own {
    fn read(&mut self, at: u64, out: &mut [u8]) -> bool {
        let Some(end) = at.checked_add(out.len() as u64).filter(|&end| at >= PAGE && end <= END) else { return false };
        for page in at / PAGE..end.div_ceil(PAGE) {
            let place = &mut self.pages[page as usize % PAGES_COUNT];
            if *place != page {
                if !is_readable(page * PAGE) {
                    return false;
                }
                *place = page;
            }
        }
        // SAFETY: all of it was readable just now. It belongs to frames of this
        // thread and what they refer to, so nobody unmaps it meanwhile; were a
        // broken pointer to lead elsewhere, only a concurrent munmap could hurt.
        unsafe { ptr::copy_nonoverlapping(at as *const u8, out.as_mut_ptr(), out.len()) };
        true
    }

    fn word(&mut self, at: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(at, &mut bytes).then(|| u64::from_le_bytes(bytes))
    }
}

/// A stack leads through this object for the first time: perhaps it is CPython.
pub fn notice(object: &Object) {
    if !PYTHON.load(Ordering::Relaxed).is_null() || LOOKED_AT.swap(object.start, Ordering::Relaxed) == object.start {
        return;
    }
    let Some(python) = find(object) else { return };
    let Some(place) = PLACES.0.get(PLACES_USED.fetch_add(1, Ordering::Relaxed)) else { return };
    // SAFETY: nobody else drew this number, and nobody reads it yet.
    let python = unsafe { (*place.get()).write(python) };
    PYTHON.store(python, Ordering::Release);
}

/// An object has gone, perhaps that one.
pub fn forget_if_gone() {
    let known = PYTHON.load(Ordering::Acquire);
    // SAFETY: what is published lives for ever and is not changed.
    if unsafe { known.as_ref() }.is_some_and(|python| python.loaded().is_none()) {
        PYTHON.store(ptr::null_mut(), Ordering::Release);
    }
    // Another may come to its place.
    LOOKED_AT.store(0, Ordering::Relaxed);
}

fn find(object: &Object) -> Option<Python> {
    let symbols = Symbols::of(object)?;
    let runtime = symbols.find(b"_PyRuntime")?;
    let mut memory = Own { pages: [0; PAGES_COUNT] };
    let mut bytes = [0; DEBUG_OFFSETS_BYTES];
    let layout = match memory.read(runtime, &mut bytes).then(|| Layout::from_debug_offsets(&bytes)).flatten() {
        Some(layout) => layout,
        None => {
            // An unsigned long (Python/getversion.c).
            let version = memory.word(symbols.find(b"Py_Version")?)?;
            Layout::of_version(u32::try_from(version).ok()?)?
        }
    };
    let function = |name: &[u8]| {
        let at = symbols.find(name).filter(|at| (object.start..object.end).contains(at))?;
        // SAFETY: both functions have no arguments and return a pointer
        // (Include/pystate.h, Include/cpython/pystate.h).
        Some(unsafe { transmute::<*const c_void, ThreadStateOf>(at as *const c_void) })
    };
    Some(Python {
        object: object.start,
        layout,
        own_state: function(b"PyGILState_GetThisThreadState")?,
        gil_holder: function(b"_PyThreadState_UncheckedGet").filter(|_| layout.frame.is_entry.is_some()),
    })
}

/// Fills `words` with the native stack and the Python frames of this thread;
/// returns how many words, and whether the outer end is missing. `None` without
/// Python frames.
pub fn merge(native: &Native<'_>, work: &mut Work, words: &mut [u64]) -> Option<(usize, bool)> {
    // SAFETY: what is published lives for ever and is not changed.
    let python = unsafe { PYTHON.load(Ordering::Acquire).as_ref() }?;
    work.memory.pages = [0; PAGES_COUNT];
    let thread = python.thread_state(native, &mut work.memory)?;
    let whole = work.find_frames(&python.layout, thread);
    if work.count == 0 {
        return None;
    }
    work.find_checks(&python.layout);
    Some(weave(native, &work.frames[..work.count], whole, &python.layout, words))
}

/// Puts the Python `frames` in the places of the native calls that run them, into
/// `words`; returns how many words, and whether the outer end is missing. `whole`:
/// the last of `frames` is the thread's first.
fn weave(native: &Native<'_>, mut frames: &[Found], whole: bool, layout: &Layout, words: &mut [u64]) -> (usize, bool) {
    let mut out = Out { words, length: 0, full: false };
    for (index, &address) in native.frames.iter().enumerate() {
        // Where the caller's frame begins, this one ends.
        let end = match native.stack_pointers.get(index + 1) {
            Some(&end) => end,
            // Whether it runs Python is not known, and those that are left tell more.
            None if native.cut && !frames.is_empty() => break,
            None => u64::MAX,
        };
        let mut is_eval = false;
        // Several runs in one native frame: calls that the compiler merged.
        while let Some(run) = next_run(frames).filter(|run| run.last().is_some_and(|f| f.entry < end)) {
            is_eval = true;
            run.iter().for_each(|frame| out.python(frame, layout));
            frames = &frames[run.len()..];
        }
        if is_eval && frames.is_empty() && !whole {
            // What lies further out is not what comes next.
            return (out.length, true);
        }
        if !is_eval {
            out.word(address);
        }
    }
    // Those whose native frames were not found: they are further out.
    frames.iter().for_each(|frame| out.python(frame, layout));
    (out.length, out.full || native.cut || !whole)
}

/// The frames of the next native call; `None` where its end was not found.
fn next_run(frames: &[Found]) -> Option<&[Found]> {
    let end = frames.iter().position(|frame| frame.entry != 0)?;
    Some(&frames[..=end])
}

struct Out<'w> {
    words: &'w mut [u64],
    length: usize,
    full: bool,
}

impl Out<'_> {
    fn word(&mut self, word: u64) {
        match self.words.get_mut(self.length) {
            Some(place) if !self.full => {
                *place = word;
                self.length += 1;
            }
            _ => self.full = true,
        }
    }

    fn python(&mut self, frame: &Found, layout: &Layout) {
        // Two bytes each (_Py_CODEUNIT). A frame that has not begun stands before
        // the first.
        let first = frame.code.wrapping_add(layout.code.instructions);
        let instruction = u32::try_from(frame.instruction.wrapping_sub(first) / 2).ok();
        let Some(pair) = (ScriptFrame { code: frame.code, check: frame.check, instruction }).words() else { return };
        if self.full || self.words.len() - self.length < pair.len() {
            self.full = true;
            return;
        }
        pair.into_iter().for_each(|word| self.word(word));
    }
}

impl Python {
    /// The object that it is in, while that is loaded.
    fn loaded(&self) -> Option<Object> {
        find_object(self.own_state as usize as u64).filter(|object| object.start == self.object)
    }

    /// This thread's `PyThreadState`.
    fn thread_state(&self, native: &Native<'_>, memory: &mut Own) -> Option<u64> {
        // From 3.14 on it is a thread-local variable, which a thread that has
        // nothing to do with Python would have to make first.
        let object = self.loaded()?;
        let is_inside = || native.frames.iter().any(|frame| (object.start..object.end).contains(frame));
        if self.layout.version >= 0x030e_0000 && !is_inside() {
            return None;
        }
        if let Some(holder) = self.gil_holder {
            // SAFETY: it reads a global variable; its object is loaded.
            let state = unsafe { holder() };
            // SAFETY: pthread_self(3) has no arguments.
            let own = unsafe { libc::pthread_self() } as u64;
            if state != 0 && memory.word(state.wrapping_add(self.layout.thread.id)) == Some(own) {
                return Some(state);
            }
        }
        // SAFETY: it reads a thread-local variable or one of pthread_getspecific(3);
        // its object is loaded.
        Some(unsafe { (self.own_state)() }).filter(|&state| state != 0)
    }
}

impl Work {
    /// Fills `frames`; returns whether the outermost was reached.
    fn find_frames(&mut self, layout: &Layout, thread: u64) -> bool {
        self.count = 0;
        let Work { frames, count, memory, .. } = self;
        let mut is_cut = false;
        let whole = walk(layout, &mut |at, out| memory.read(at, out), thread, &mut |step| match step {
            // Only the end of the run is still looked for.
            Step::Frame { .. } if *count == PYTHON_FRAMES => {
                is_cut = true;
                frames[*count - 1].entry == 0
            }
            Step::Frame { code, instruction } => {
                frames[*count] = Found { code, instruction, check: 0, entry: 0 };
                *count += 1;
                true
            }
            Step::Entry { at } => {
                if let Some(last) = count.checked_sub(1).map(|last| &mut frames[last])
                    && last.entry == 0
                {
                    last.entry = at;
                }
                true
            }
        });
        whole && !is_cut
    }

    /// Finds what tells the code objects from others that come to their place.
    fn find_checks(&mut self, layout: &Layout) {
        let fields = layout.code;
        let Work { frames, count, memory, .. } = self;
        for frame in &mut frames[..*count] {
            let mut word = |offset: u64| memory.word(frame.code.wrapping_add(offset));
            if let (Some(filename), Some(qualname), Some(linetable), Some(first_line)) =
                (word(fields.filename), word(fields.qualname), word(fields.linetable), word(fields.first_line))
            {
                frame.check = check(filename, qualname, linetable, first_line as u32);
            }
        }
    }
}
