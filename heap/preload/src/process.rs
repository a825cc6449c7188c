//! The process's part of the table: found at the start, one of its own after a
//! fork.

use crate::errno::Errno;
use crate::tls::local;
use crate::{own, real, sampler, unwind};
use core::ffi::CStr;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicUsize, Ordering};
use libc::{c_char, c_void};
use reprieve_heap_table::layout::home;
use reprieve_heap_table::{Region, Settings, Words, Writer, filter_place};

/// Where the table is: `FD:DEVICE:INODE:PATH`. The descriptor is inherited; a
/// program that closed it finds the file by the path, where it may. Or
/// `own:PERIOD`: there is no guardian, and the program makes its own.
const VARIABLE: &[u8] = b"REPRIEVE_HEAP=";

/// The region and our part of it; never changed once it is set.
pub struct Attached {
    region: Region<'static>,
    settings: Settings,
    writer: Writer<'static>,
}

impl Attached {
    /// Our part.
    pub fn writer(&self) -> Writer<'static> {
        self.writer
    }

    /// What to sample.
    pub fn settings(&self) -> Settings {
        self.settings
    }
}

/// Ours. A new one after a fork; the old one stays, since somebody may be using
/// it (a few words for each generation of forks).
static ATTACHED: AtomicPtr<Attached> = AtomicPtr::new(ptr::null_mut());
/// The filter of ours, for a look without a call.
static FILTER: AtomicPtr<AtomicU8> = AtomicPtr::new(ptr::null_mut());
/// Least size of a recorded mapping.
static MAPPING: AtomicUsize = AtomicUsize::new(usize::MAX);
/// Whether there is nothing to attach to.
static OFF: AtomicBool = AtomicBool::new(false);
/// A page that a fork wipes (MADV_WIPEONFORK, madvise(2)): zero in a child that
/// was forked behind the back of the C library.
static FORK_MARK: AtomicPtr<AtomicBool> = AtomicPtr::new(ptr::null_mut());
/// Places for [`Attached`], one for each generation of forks.
static PLACES: Places = Places([const { core::cell::UnsafeCell::new(core::mem::MaybeUninit::uninit()) }; GENERATIONS]);
static PLACES_USED: AtomicUsize = AtomicUsize::new(0);
/// Forks of forks that are followed.
const GENERATIONS: usize = 64;

struct Places([core::cell::UnsafeCell<core::mem::MaybeUninit<Attached>>; GENERATIONS]);
// SAFETY: each place is written once, by whoever drew its number, before it is
// published.
unsafe impl Sync for Places {}

/// Runs before main. The C library gives the environment to constructors.
#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn(i32, *const *const c_char, *const *const c_char) = start;

extern "C" fn start(_: i32, _: *const *const c_char, environment: *const *const c_char) {
    let _errno = Errno::keep();
    // Now, while there is one thread: dlsym(3) takes locks.
    real::resolve();
    if attach(environment).is_none() {
        OFF.store(true, Ordering::Release);
        return;
    }
    // Here and not when a home is found: it takes a lock, and a home may be found
    // in any malloc.
    // SAFETY: the handlers live as long as the process.
    unsafe { libc::pthread_atfork(Some(before_fork), Some(after_fork_in_parent), Some(after_fork_in_child)) };
}

/// The region while there was no slab for us.
static WAITING: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
static WAITING_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Takes a home where there was none at the start: the guardian has made room
/// since, or will. One thread at a time tries.
#[cold]
pub fn try_again() {
    let base = WAITING.swap(ptr::null_mut(), Ordering::AcqRel);
    if base.is_null() {
        return;
    }
    // SAFETY: mapped by `attach`, never unmapped, used through atomics only.
    let words = unsafe { Words::at(base, WAITING_BYTES.load(Ordering::Acquire)) };
    let Ok(region) = Region::open(words) else { return };
    match Writer::claim(region, (Some(own_pid()), pid_namespace()), own::now(), None) {
        Some(writer) => {
            make_fork_mark();
            publish(region, writer);
        }
        None => WAITING.store(base, Ordering::Release),
    }
}

/// Takes back what the dead have left, where no guardian does.
#[cold]
pub fn make_room(attached: &Attached) {
    own::sweep(attached.region, pid_namespace);
}

/// Ours, if there is one.
#[inline]
pub fn attached() -> Option<&'static Attached> {
    let attached = ATTACHED.load(Ordering::Acquire);
    // SAFETY: what is published lives for ever and is not changed.
    let attached = unsafe { attached.as_ref() }?;
    let mark = FORK_MARK.load(Ordering::Acquire);
    // SAFETY: the page is mapped for ever.
    if !mark.is_null() && !unsafe { (*mark).load(Ordering::Relaxed) } {
        return forked_behind_our_back(attached);
    }
    Some(attached)
}

/// Whether there never will be one.
pub fn is_off() -> bool {
    OFF.load(Ordering::Acquire)
}

/// Whether an address may have a sample; mostly it has none.
#[inline]
pub fn may_be_sampled(key: u64) -> bool {
    let filter = FILTER.load(Ordering::Relaxed);
    if filter.is_null() {
        return false;
    }
    // SAFETY: the filter has FILTER_BYTES counters, and a place is less.
    unsafe { (*filter.add(filter_place(key) & (home::FILTER_BYTES - 1))).load(Ordering::Relaxed) != 0 }
}

/// Whether a mapping of this size is recorded.
pub fn is_big_mapping(bytes: usize) -> bool {
    bytes >= MAPPING.load(Ordering::Relaxed)
}

fn attach(environment: *const *const c_char) -> Option<()> {
    let value = variable(environment)?;
    let memory = match own::period(value) {
        Some(period) => own::make(period)?,
        None => open(value)?,
    };
    // SAFETY: the mapping just made, never unmapped, used through atomics only.
    let words = unsafe { Words::at(memory.0.cast(), memory.1) };
    Region::open(words).ok()?;
    // Now or, without a slab, later.
    WAITING_BYTES.store(memory.1, Ordering::Release);
    WAITING.store(memory.0.cast(), Ordering::Release);
    try_again();
    Some(())
}

/// The value of our variable.
fn variable(mut environment: *const *const c_char) -> Option<&'static CStr> {
    if environment.is_null() {
        return None;
    }
    loop {
        // SAFETY: an array of C strings that ends with null (environ(7)); they
        // stay where they are at least until main.
        let entry = unsafe { *environment };
        if entry.is_null() {
            return None;
        }
        // SAFETY: as above.
        let text = unsafe { CStr::from_ptr(entry) };
        if text.to_bytes().starts_with(VARIABLE) {
            // SAFETY: the beginning of the string is not its end.
            return Some(unsafe { CStr::from_ptr(entry.add(VARIABLE.len())) });
        }
        // SAFETY: not yet the end of the array.
        environment = unsafe { environment.add(1) };
    }
}

/// Maps the file; address and size.
fn open(value: &CStr) -> Option<(*mut c_void, usize)> {
    let text = value.to_str().ok()?;
    let mut fields = text.splitn(4, ':');
    let inherited: i32 = fields.next()?.parse().ok()?;
    let identity: (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let path = &text[text.len() - fields.next()?.len()..];
    // The path is the end of the string, so it ends with its zero.
    let path = path.as_ptr().cast::<c_char>();
    let size_of = |fd: i32| {
        // SAFETY: all-zero is a valid stat; fstat fills it or fails.
        let stat = unsafe {
            let mut stat: libc::stat = core::mem::zeroed();
            if libc::fstat(fd, &raw mut stat) != 0 {
                return None;
            }
            stat
        };
        // The number may be another file's by now.
        ((stat.st_dev, stat.st_ino) == identity).then_some(stat.st_size as usize)
    };
    let mut opened = -1;
    let (fd, bytes) = match size_of(inherited) {
        Some(bytes) => (inherited, bytes),
        None => {
            // SAFETY: a C string.
            opened = unsafe { libc::open(path, libc::O_RDWR | libc::O_CLOEXEC) };
            (opened, size_of(opened)?)
        }
    };
    let map = real::mmap()?;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let base = unsafe { map(ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, fd, 0) };
    if opened >= 0 {
        // SAFETY: ours; the mapping stays.
        unsafe { libc::close(opened) };
    }
    (base != libc::MAP_FAILED).then_some((base, bytes))
}

fn publish(region: Region<'static>, writer: Writer<'static>) -> Option<&'static Attached> {
    let place = PLACES.0.get(PLACES_USED.fetch_add(1, Ordering::Relaxed))?;
    let settings = region.settings();
    // SAFETY: nobody else drew this number, and nobody reads it yet.
    let attached = unsafe { (*place.get()).write(Attached { region, settings, writer }) };
    MAPPING.store(usize::try_from(settings.mapping).unwrap_or(usize::MAX), Ordering::Relaxed);
    ATTACHED.store(attached, Ordering::Release);
    let filter = writer.filter_base()?;
    FILTER.store(ptr::from_ref(filter).cast_mut(), Ordering::Release);
    Some(attached)
}

fn make_fork_mark() {
    let Some(map) = real::mmap() else { return };
    // SAFETY: a new private page; wiping it in a child is what it is for.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let page = map(ptr::null_mut(), 4096, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        if page == libc::MAP_FAILED || libc::madvise(page, 4096, libc::MADV_WIPEONFORK) != 0 {
            return;
        }
        (*page.cast::<AtomicBool>()).store(true, Ordering::Relaxed);
        FORK_MARK.store(page.cast(), Ordering::Release);
    }
}

fn set_fork_mark() {
    let mark = FORK_MARK.load(Ordering::Acquire);
    if !mark.is_null() {
        // SAFETY: the page is mapped for ever.
        unsafe { (*mark).store(true, Ordering::Relaxed) };
    }
}

/// While the memory is still one: what is live here will be live in the child.
extern "C" fn before_fork() {
    let _errno = Errno::keep();
    let Some(attached) = attached() else { return };
    make_room(attached);
    let child = Writer::claim(attached.region, (None, pid_namespace()), own::now(), Some(attached.writer));
    local().set_child(child);
    local().child_salt.set(sampler::salt_for_child());
}

extern "C" fn after_fork_in_parent() {
    local().set_child(None);
}

extern "C" fn after_fork_in_child() {
    let _errno = Errno::keep();
    set_fork_mark();
    unwind::forget_other_threads();
    sampler::begin_anew(local().child_salt.get());
    let Some(attached) = attached() else { return };
    // It may have been taken back from a child that was late, or there was no room:
    // nothing of ours may be written to the parent's.
    let writer = local().take_child().filter(|writer| writer.set_pid(own_pid(), pid_namespace()));
    if writer.and_then(|writer| publish(attached.region, writer)).is_none() {
        stop();
    }
}

/// A child that no handler was run for: it begins anew, without what it has
/// inherited.
#[cold]
fn forked_behind_our_back(parent: &Attached) -> Option<&'static Attached> {
    let _errno = Errno::keep();
    set_fork_mark();
    unwind::forget_other_threads();
    sampler::begin_anew(own_pid());
    let new = Writer::claim(parent.region, (Some(own_pid()), pid_namespace()), own::now(), None)
        .and_then(|w| publish(parent.region, w));
    if new.is_none() {
        stop();
    }
    new
}

fn stop() {
    FILTER.store(ptr::null_mut(), Ordering::Release);
    ATTACHED.store(ptr::null_mut(), Ordering::Release);
    OFF.store(true, Ordering::Release);
}

fn own_pid() -> u64 {
    // SAFETY: getpid(2) has no arguments and cannot fail.
    unsafe { libc::getpid() as u64 }
}

/// Inode of our PID namespace; 0 where /proc is not there.
fn pid_namespace() -> u64 {
    // SAFETY: all-zero is a valid stat; the path is a C string.
    unsafe {
        let mut stat: libc::stat = core::mem::zeroed();
        libc::stat(c"/proc/self/ns/pid".as_ptr(), &raw mut stat);
        stat.st_ino
    }
}
