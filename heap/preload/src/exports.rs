//! The functions that programs find instead of the C library's.

use crate::process;
use crate::python;
use crate::real;
use crate::sampler::{Bytes, MARK, freeing, inside, is_due, is_marked, mapped, not_freed, record, unmapped};
use core::ptr;
use libc::{c_int, c_void, off_t, size_t};
use reprieve_heap_table::Entry;

/// From this size on, what an allocator adds for an alignment of [`MARK`] is
/// little: the block is aligned at once.
const BIG: size_t = 64 << 10;

/// A block that is aligned so that its `free` knows it; null when it cannot be had.
fn aligned_to_mark(align: size_t, size: size_t) -> *mut c_void {
    let (Some(memalign), Some(free)) = (real::memalign(), real::free()) else { return ptr::null_mut() };
    // mimalloc 2.0 gives blocks a wrong alignment if their size is a multiple of it.
    for size in [size, size.saturating_add(1)] {
        // SAFETY: an alignment that is a power of two, as memalign(3) wants it; a
        // block that is no use is ours to free.
        unsafe {
            let block = inside(|| memalign(align.max(MARK), size));
            if block.is_null() || is_marked(block as u64) {
                return block;
            }
            inside(|| free(block));
        }
    }
    ptr::null_mut()
}

/// A sampled block; null when it cannot be had like that.
#[cold]
fn marked(align: size_t, size: size_t) -> *mut c_void {
    let block = aligned_to_mark(align, size);
    record(block, size, Bytes::OfBlock);
    block
}

/// malloc(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc(size: size_t) -> *mut c_void {
    let due = is_due(size);
    if due && size >= BIG {
        let block = marked(MARK, size);
        if !block.is_null() {
            return block;
        }
    }
    let Some(real) = real::malloc() else { return real::boot_alloc(size, 16) };
    // SAFETY: the caller's arguments, passed on.
    let block = inside(|| unsafe { real(size) });
    if !due || block.is_null() {
        return block;
    }
    // SAFETY: the block was just allocated, and nothing is in it.
    unsafe { sampled_after(block, size, |_| ()) }
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
    let bytes = count.wrapping_mul(size);
    if block.is_null() || !is_due(bytes) {
        return block;
    }
    // SAFETY: the block was just allocated, and zeroes need not be copied.
    unsafe { sampled_after(block, bytes, |new| ptr::write_bytes(new, 0, bytes)) }
}

/// A block that turned out to be sampled: where its address does not tell, it
/// moves to one that does. `fill` gives the new block its content.
///
/// # Safety
///
/// `block` must be of the real allocator and nobody else's.
#[cold]
unsafe fn sampled_after(block: *mut c_void, bytes: size_t, fill: impl FnOnce(*mut u8)) -> *mut c_void {
    let mut block = block;
    // Of the block that stands for the others: aligned, it may be much bigger
    // (jemalloc and mimalloc give at least the alignment).
    // SAFETY: the block is of the real allocator.
    let usable = real::malloc_usable_size().map_or(bytes, |usable| unsafe { usable(block) });
    if !is_marked(block as u64) {
        let new = aligned_to_mark(MARK, bytes);
        let Some(free) = real::free().filter(|_| !new.is_null()) else { return block };
        fill(new.cast());
        // SAFETY: the old block is ours to free.
        unsafe { inside(|| free(block)) };
        block = new;
    }
    record(block, bytes, Bytes::Are(usable));
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
        // SAFETY: as malloc; the old block stays, and is not the new one.
        unsafe {
            let new = malloc(size);
            if !new.is_null() {
                ptr::copy_nonoverlapping(block.cast::<u8>(), new.cast::<u8>(), size.min(real::boot_size(block)));
            }
            return new;
        }
    }
    let Some(real) = real::realloc() else { return real::boot_alloc(size, 16) };
    let entry = if block.is_null() { None } else { freeing(block) };
    // SAFETY: the caller's arguments, passed on.
    let new = inside(|| unsafe { real(block, size) });
    if new.is_null() {
        // It failed, and the old block is still there; a size of 0 frees it.
        if let Some(entry) = entry.filter(|_| size > 0) {
            not_freed(entry);
        }
        return new;
    }
    if !is_due(size) {
        return new;
    }
    // SAFETY: the block was just allocated, and both have room for `size`.
    unsafe { sampled_after(new, size, |to| ptr::copy_nonoverlapping(new.cast::<u8>(), to, size)) }
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

/// malloc_usable_size(3), which knows nothing of the first blocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc_usable_size(block: *mut c_void) -> size_t {
    if real::is_boot(block) {
        return real::boot_size(block);
    }
    // SAFETY: the caller's argument, passed on.
    real::malloc_usable_size().map_or(0, |real| unsafe { real(block) })
}

/// memalign(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memalign(align: size_t, size: size_t) -> *mut c_void {
    // SAFETY: as the caller promised.
    unsafe { aligned(real::memalign(), align, size) }
}

/// aligned_alloc(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aligned_alloc(align: size_t, size: size_t) -> *mut c_void {
    // SAFETY: as the caller promised.
    unsafe { aligned(real::aligned_alloc(), align, size) }
}

type Aligned = unsafe extern "C" fn(size_t, size_t) -> *mut c_void;

/// A block of an alignment.
///
/// # Safety
///
/// As for `real`.
unsafe fn aligned(real: Option<Aligned>, align: size_t, size: size_t) -> *mut c_void {
    // A wrong one is for the real function to refuse.
    let due = align.is_power_of_two() && is_due(size);
    if due && size >= BIG {
        let block = marked(align, size);
        if !block.is_null() {
            return block;
        }
    }
    let Some(real) = real else { return real::boot_alloc(size, align) };
    // SAFETY: the caller's arguments, passed on.
    let block = inside(|| unsafe { real(align, size) });
    if !due || block.is_null() {
        return block;
    }
    // SAFETY: the block was just allocated, and nothing is in it. It only moves if
    // its alignment is less than the other.
    unsafe { sampled_after(block, size, |_| ()) }
}

/// posix_memalign(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_memalign(out: *mut *mut c_void, align: size_t, size: size_t) -> c_int {
    let Some(real) = real::posix_memalign() else { return libc::ENOMEM };
    // SAFETY: the caller's arguments, passed on.
    let result = inside(|| unsafe { real(out, align, size) });
    if result == 0 && is_due(size) {
        // SAFETY: on success the real one has written it; the block was just
        // allocated, and only moves if its alignment is less than the other.
        unsafe { *out = sampled_after(*out, size, |_| ()) };
    }
    result
}

/// valloc(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn valloc(size: size_t) -> *mut c_void {
    // SAFETY: as the caller promised.
    unsafe { paged(real::valloc(), size) }
}

/// pvalloc(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvalloc(size: size_t) -> *mut c_void {
    // SAFETY: as the caller promised.
    unsafe { paged(real::pvalloc(), size) }
}

/// A block at a page's start, which is alignment enough for a sampled one.
///
/// # Safety
///
/// As for `real`.
unsafe fn paged(real: Option<unsafe extern "C" fn(size_t) -> *mut c_void>, size: size_t) -> *mut c_void {
    let Some(real) = real else { return ptr::null_mut() };
    // SAFETY: the caller's arguments, passed on.
    let block = inside(|| unsafe { real(size) });
    if is_due(size) {
        record(block, size, Bytes::OfBlock);
    }
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
    let before = if flags & libc::MAP_FIXED != 0 { freeing(at) } else { None };
    // SAFETY: the caller's arguments, passed on.
    let new = unsafe { real(at, bytes, protection, flags, file, offset) };
    match before {
        Some(entry) if new == libc::MAP_FAILED => not_freed(entry),
        Some(entry) => unmapped(entry, bytes),
        None => {}
    }
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

/// munmap(2). Of a mapping that loses another part than its beginning the record
/// stays as it is: who reads it counts the pages that are there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn munmap(at: *mut c_void, bytes: size_t) -> c_int {
    let Some(real) = real::munmap() else {
        // SAFETY: the system call itself, with the caller's arguments.
        return unsafe { libc::syscall(libc::SYS_munmap, at, bytes) as c_int };
    };
    let entry = freeing(at);
    // SAFETY: the caller's arguments, passed on.
    let result = unsafe { real(at, bytes) };
    match entry {
        Some(entry) if result != 0 => not_freed(entry),
        Some(entry) => unmapped(entry, bytes),
        None => {}
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
    let Some(real) = real::mremap() else {
        // SAFETY: the system call itself, with the caller's arguments.
        return unsafe { libc::syscall(libc::SYS_mremap, at, old, new, flags, wanted) as *mut c_void };
    };
    let entry = freeing(at);
    // SAFETY: the caller's arguments, passed on; the last is only looked at
    // with MREMAP_FIXED.
    let moved = unsafe { real(at, old, new, flags, wanted) };
    match entry {
        Some(entry) if moved == libc::MAP_FAILED => not_freed(entry),
        // Of a bigger one another part stays where it is.
        Some(entry) => {
            let rest = entry.usable.saturating_sub((old as u64).next_multiple_of(4096));
            let usable = new as u64 + if moved == at { rest } else { 0 };
            not_freed(Entry { key: moved as u64, usable, ..entry });
            if moved != at && rest > 0 {
                unmapped(entry, old);
            }
        }
        None => {}
    }
    moved
}

/// dlclose(3): another library may come to where this one was.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dlclose(library: *mut c_void) -> c_int {
    let Some(real) = real::dlclose() else { return -1 };
    // SAFETY: the caller's argument, passed on.
    let result = unsafe { real(library) };
    python::forget_if_gone();
    if let Some(attached) = process::attached() {
        attached.writer().forget_plans();
    }
    result
}
