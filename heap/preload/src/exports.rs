//! The functions that programs find instead of the C library's.

use crate::process;
use crate::real;
use crate::sampler::{allocated, freeing, inside, mapped, not_freed};
use libc::{c_int, c_void, off_t, size_t};
use std::ptr;

/// malloc(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc(size: size_t) -> *mut c_void {
    let Some(real) = real::malloc() else { return real::boot_alloc(size, 16) };
    // SAFETY: the caller's arguments, passed on.
    let block = inside(|| unsafe { real(size) });
    allocated(block, size);
    block
}

/// calloc(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn calloc(count: size_t, size: size_t) -> *mut c_void {
    let Some(real) = real::calloc() else {
        return count.checked_mul(size).map_or(ptr::null_mut(), |bytes| real::boot_alloc(bytes, 16));
    };
    // SAFETY: the caller's arguments, passed on.
    let block = inside(|| unsafe { real(count, size) });
    // A product that overflows made the real one fail.
    allocated(block, count.wrapping_mul(size));
    block
}

/// free(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free(block: *mut c_void) {
    if block.is_null() || real::is_boot(block) {
        return;
    }
    // Before the block is free: then another thread may get it.
    freeing(block);
    if let Some(real) = real::free() {
        // SAFETY: the caller's argument, passed on.
        inside(|| unsafe { real(block) });
    }
}

/// realloc(3): the old block is freed and the new one allocated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn realloc(block: *mut c_void, size: size_t) -> *mut c_void {
    if real::is_boot(block) {
        // SAFETY: as malloc; the old block has at most what is left of the boot
        // memory behind it, which stays readable.
        unsafe {
            let new = malloc(size);
            if !new.is_null() {
                ptr::copy(block.cast::<u8>(), new.cast::<u8>(), size.min(real::boot_rest(block)));
            }
            return new;
        }
    }
    let Some(real) = real::realloc() else { return real::boot_alloc(size, 16) };
    let entry = if block.is_null() { None } else { freeing(block) };
    // SAFETY: the caller's arguments, passed on.
    let new = inside(|| unsafe { real(block, size) });
    match (new.is_null(), entry) {
        (true, Some(entry)) if size > 0 => not_freed(entry),
        (true, _) => {}
        (false, _) => allocated(new, size),
    }
    new
}

/// reallocarray(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn reallocarray(block: *mut c_void, count: size_t, size: size_t) -> *mut c_void {
    match count.checked_mul(size) {
        // SAFETY: the caller's arguments, passed on.
        Some(bytes) => unsafe { realloc(block, bytes) },
        None => {
            // SAFETY: the thread's errno always exists.
            unsafe { *libc::__errno_location() = libc::ENOMEM };
            ptr::null_mut()
        }
    }
}

/// memalign(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memalign(align: size_t, size: size_t) -> *mut c_void {
    let Some(real) = real::memalign() else { return real::boot_alloc(size, align) };
    // SAFETY: the caller's arguments, passed on.
    let block = inside(|| unsafe { real(align, size) });
    allocated(block, size);
    block
}

/// aligned_alloc(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aligned_alloc(align: size_t, size: size_t) -> *mut c_void {
    let Some(real) = real::aligned_alloc() else { return real::boot_alloc(size, align) };
    // SAFETY: the caller's arguments, passed on.
    let block = inside(|| unsafe { real(align, size) });
    allocated(block, size);
    block
}

/// posix_memalign(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_memalign(out: *mut *mut c_void, align: size_t, size: size_t) -> c_int {
    let Some(real) = real::posix_memalign() else { return libc::ENOMEM };
    // SAFETY: the caller's arguments, passed on.
    let result = inside(|| unsafe { real(out, align, size) });
    if result == 0 {
        // SAFETY: on success the real one has written it.
        allocated(unsafe { *out }, size);
    }
    result
}

/// valloc(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valloc(size: size_t) -> *mut c_void {
    let Some(real) = real::valloc() else { return ptr::null_mut() };
    // SAFETY: the caller's arguments, passed on.
    let block = inside(|| unsafe { real(size) });
    allocated(block, size);
    block
}

/// pvalloc(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvalloc(size: size_t) -> *mut c_void {
    let Some(real) = real::pvalloc() else { return ptr::null_mut() };
    // SAFETY: the caller's arguments, passed on.
    let block = inside(|| unsafe { real(size) });
    allocated(block, size);
    block
}

/// mmap(2). Recorded is what is private and of no file: only that is the
/// program's own memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap(
    at: *mut c_void,
    bytes: size_t,
    protection: c_int,
    flags: c_int,
    file: c_int,
    offset: off_t,
) -> *mut c_void {
    let Some(real) = real::mmap() else {
        // SAFETY: the system call itself, with the caller's arguments.
        return unsafe { libc::syscall(libc::SYS_mmap, at, bytes, protection, flags, file, offset) as *mut c_void };
    };
    // A fixed address takes the place of what was there.
    if flags & libc::MAP_FIXED != 0 {
        freeing(at);
    }
    // SAFETY: the caller's arguments, passed on.
    let new = unsafe { real(at, bytes, protection, flags, file, offset) };
    let own = flags & (libc::MAP_ANONYMOUS | libc::MAP_PRIVATE) == libc::MAP_ANONYMOUS | libc::MAP_PRIVATE;
    if new != libc::MAP_FAILED && own && protection & libc::PROT_WRITE != 0 && process::is_big_mapping(bytes) {
        mapped(new, bytes);
    }
    new
}

/// mmap64, the same on 64-bit machines.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap64(
    at: *mut c_void,
    bytes: size_t,
    protection: c_int,
    flags: c_int,
    file: c_int,
    offset: off_t,
) -> *mut c_void {
    // SAFETY: the caller's arguments, passed on.
    unsafe { mmap(at, bytes, protection, flags, file, offset) }
}

/// munmap(2). A mapping that is unmapped in parts counts as gone with its first
/// page.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn munmap(at: *mut c_void, bytes: size_t) -> c_int {
    let Some(real) = real::munmap() else {
        // SAFETY: the system call itself, with the caller's arguments.
        return unsafe { libc::syscall(libc::SYS_munmap, at, bytes) as c_int };
    };
    let entry = freeing(at);
    // SAFETY: the caller's arguments, passed on.
    let result = unsafe { real(at, bytes) };
    if let (Some(entry), true) = (entry, result != 0) {
        not_freed(entry);
    }
    result
}

/// mremap(2): the old mapping goes, the new one comes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mremap(
    at: *mut c_void,
    old: size_t,
    new: size_t,
    flags: c_int,
    wanted: *mut c_void,
) -> *mut c_void {
    let Some(real) = real::mremap() else { return libc::MAP_FAILED };
    let entry = freeing(at);
    // SAFETY: the caller's arguments, passed on; the last is only looked at
    // with MREMAP_FIXED.
    let moved = unsafe { real(at, old, new, flags, wanted) };
    match entry {
        Some(entry) if moved == libc::MAP_FAILED => not_freed(entry),
        Some(entry) => not_freed(Entry { key: moved as u64, usable: new as u64, ..entry }),
        None => {}
    }
    moved
}

use reprieve_heap_table::Entry;
