//! A table without a guardian: a service that was started with the library alone
//! makes its own, and its children share it.
//!
//! Its pages are the service's, charged to its memcg: the header and the first
//! home from the start, the rest as it is used.

use crate::errno::Errno;
use crate::real;
use core::ffi::CStr;
use core::ptr;
use libc::{c_int, c_void};
use reprieve_heap_table::layout::{OWN_SLABS, OWN_START_BYTES, SLAB_BYTES, region};
use reprieve_heap_table::{Home, Region, Settings, Words};

/// A mapping of this size or more is recorded.
const MAPPING_BYTES: u64 = 64 << 10;
/// A program hardly has so many files open by itself.
const HIGH_FD: c_int = 900;
/// Fewer slabs than this are not worth a look for the dead.
const FEW_SLABS: usize = 8;
/// How often the dead are looked for, in milliseconds.
const SWEEP_MS: u64 = 10;

/// The period in `own:PERIOD`, in bytes.
pub fn period(value: &CStr) -> Option<u64> {
    value.to_str().ok()?.strip_prefix("own:")?.parse().ok().filter(|&period| period > 0)
}

/// Makes and maps a region; address and size. Smaller where limits of the process
/// leave less.
pub fn make(period: u64) -> Option<(*mut c_void, usize)> {
    // ftruncate(2) beyond RLIMIT_FSIZE would end the program by SIGXFSZ.
    // SAFETY: all-zero is a valid rlimit, which getrlimit fills or fails.
    let most = unsafe {
        let mut limit: libc::rlimit = core::mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_FSIZE, &raw mut limit) != 0 {
            return None;
        }
        usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
    };
    // A limit of the address space may leave no room for the biggest.
    let sizes = [OWN_SLABS, OWN_SLABS / 8, OWN_SLABS / 64].map(|slabs| slabs * SLAB_BYTES);
    sizes.into_iter().filter(|&bytes| bytes <= most).find_map(|bytes| Some((make_of(bytes, period)?, bytes)))
}

fn make_of(bytes: usize, period: u64) -> Option<*mut c_void> {
    // SAFETY: a C string; the result is checked.
    let fd = unsafe { libc::memfd_create(c"reprieve-heap".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if fd < 0 {
        return None;
    }
    let base = map(fd, bytes);
    // For whoever may open it there and not in /proc/PID/map_files, which needs
    // CAP_CHECKPOINT_RESTORE; a program that closes it loses nothing else.
    // SAFETY: our own descriptor, closed once.
    unsafe {
        if base.is_some() {
            libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, HIGH_FD);
        }
        libc::close(fd);
    }
    let base = base?;
    // SAFETY: just mapped, and never unmapped; used through atomics only.
    let words = unsafe { Words::at(base.cast(), bytes) };
    let region = Region::format(words, Settings { period, mapping: MAPPING_BYTES, seed: 0 }).ok()?;
    words.store(region::UNGUARDED, 1);
    for at in (0..OWN_START_BYTES - SLAB_BYTES).step_by(4096) {
        words.add(at, 0);
    }
    for at in (SLAB_BYTES..2 * SLAB_BYTES).step_by(4096) {
        words.add(at, 0);
    }
    region.set_ready(bytes / SLAB_BYTES);
    Some(base)
}

/// A file of that size for ever, mapped.
fn map(fd: c_int, bytes: usize) -> Option<*mut c_void> {
    let real = real::mmap()?;
    // Nobody can take pages from under us.
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: calls on our own new descriptor, and a new mapping at an address of
    // the kernel's choice, which nobody else has.
    unsafe {
        if libc::ftruncate(fd, bytes as libc::off_t) != 0 || libc::fcntl(fd, libc::F_ADD_SEALS, seals) != 0 {
            return None;
        }
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let base = real(ptr::null_mut(), bytes, access, libc::MAP_SHARED, fd, 0);
        if base == libc::MAP_FAILED {
            return None;
        }
        // It is no part of the program, and need not be in its cores.
        libc::madvise(base, bytes, libc::MADV_DONTDUMP);
        Some(base)
    }
}

/// Milliseconds of CLOCK_MONOTONIC.
pub fn now() -> u64 {
    // SAFETY: all-zero is a valid timespec, which clock_gettime fills.
    let now = unsafe {
        let mut now: libc::timespec = core::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut now);
        now
    };
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// Takes back the slabs of processes that have ended, where no guardian does and
/// they are needed. `pid_namespace` tells ours.
pub fn sweep(region: Region<'_>, pid_namespace: impl FnOnce() -> u64) {
    if !region.is_unguarded() || region.has_given_back() || region.state().next < FEW_SLABS {
        return;
    }
    let (words, now) = (region.words(), now());
    let swept = words.load(region::SWEPT);
    if now.saturating_sub(swept) < SWEEP_MS || !words.swap_if(region::SWEPT, swept, now) {
        return;
    }
    let _errno = Errno::keep();
    let ours = pid_namespace();
    reprieve_heap_table::sweep(region, now, |home| has_ended(home, ours));
}

/// Whether a process is certainly gone: of other PID namespaces nobody can tell,
/// and a number that is in use again counts as living.
fn has_ended(home: Home, pid_namespace: u64) -> bool {
    let Ok(pid) = i32::try_from(home.pid) else { return false };
    if pid <= 0 || pid_namespace == 0 || home.pid_namespace != pid_namespace {
        return false;
    }
    // SAFETY: signal 0 is sent to nobody (kill(2)).
    unsafe { libc::kill(pid, 0) != 0 && Errno::now() == libc::ESRCH }
}
