//! The functions that ours stand in front of.

use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use libc::{c_char, c_int, c_void, off_t, size_t};

/// Memory for whoever allocates while the real functions are being looked up.
const BOOT_BYTES: usize = 16 << 10;

#[repr(C, align(16))]
struct Boot(core::cell::UnsafeCell<[u8; BOOT_BYTES]>);
// SAFETY: handed out in pieces that do not overlap, by the atomic below.
unsafe impl Sync for Boot {}
static BOOT: Boot = Boot(core::cell::UnsafeCell::new([0; BOOT_BYTES]));
static BOOT_USED: AtomicUsize = AtomicUsize::new(0);

/// Whether somebody looks the functions up, or has.
static RESOLVING: AtomicBool = AtomicBool::new(false);

/// Zeroed memory that is never given back. Its size is in the word before it.
pub fn boot_alloc(size: usize, align: usize) -> *mut c_void {
    let align = align.max(16);
    if size > BOOT_BYTES || align > BOOT_BYTES || !align.is_power_of_two() {
        return ptr::null_mut();
    }
    let size = size.max(1).next_multiple_of(16);
    let whole = 16 + align + size;
    let take = |used: usize| used.checked_add(whole).filter(|&end| end <= BOOT_BYTES);
    let Ok(at) = BOOT_USED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) else { return ptr::null_mut() };
    let base = BOOT.0.get().cast::<u8>();
    // SAFETY: at + whole lies within the array; the aligned address is at most
    // `align` behind its sixteen bytes, and what is before it is of this piece.
    unsafe {
        let start = base.add(at + 16);
        let block = start.add(start.align_offset(align));
        block.cast::<usize>().sub(1).write(size);
        block.cast()
    }
}

/// Bytes of a block of [`boot_alloc`].
pub fn boot_size(block: *mut c_void) -> usize {
    // SAFETY: `boot_alloc` wrote it.
    unsafe { block.cast::<usize>().sub(1).read() }
}

/// Whether `block` came from [`boot_alloc`].
pub fn is_boot(block: *mut c_void) -> bool {
    (block as usize).wrapping_sub(BOOT.0.get() as usize) < BOOT_BYTES
}

macro_rules! real {
    ($($field:ident: fn($($arg:ty),*) -> $ret:ty = $name:literal;)*) => {
        /// Addresses of the real functions, null before they are looked up.
        struct Table { $($field: AtomicPtr<c_void>,)* }
        static TABLE: Table = Table { $($field: AtomicPtr::new(ptr::null_mut()),)* };

        fn resolve_all() {
            $(
                // SAFETY: the name is a C string; RTLD_NEXT finds the next
                // definition after ours.
                let found = unsafe { libc::dlsym(libc::RTLD_NEXT, $name.as_ptr().cast::<c_char>()) };
                TABLE.$field.store(found, Ordering::Release);
            )*
        }

        $(
            /// The real function; `None` while it is being looked up, or where
            /// the C library has none.
            #[inline]
            pub fn $field() -> Option<unsafe extern "C" fn($($arg),*) -> $ret> {
                let mut found = TABLE.$field.load(Ordering::Acquire);
                if found.is_null() {
                    resolve();
                    found = TABLE.$field.load(Ordering::Acquire);
                }
                if found.is_null() {
                    return None;
                }
                // SAFETY: the symbol of that name has that type (its man page).
                Some(unsafe { core::mem::transmute::<*mut c_void, unsafe extern "C" fn($($arg),*) -> $ret>(found) })
            }
        )*
    };
}

real! {
    malloc: fn(size_t) -> *mut c_void = c"malloc";
    calloc: fn(size_t, size_t) -> *mut c_void = c"calloc";
    realloc: fn(*mut c_void, size_t) -> *mut c_void = c"realloc";
    free: fn(*mut c_void) -> () = c"free";
    memalign: fn(size_t, size_t) -> *mut c_void = c"memalign";
    aligned_alloc: fn(size_t, size_t) -> *mut c_void = c"aligned_alloc";
    posix_memalign: fn(*mut *mut c_void, size_t, size_t) -> c_int = c"posix_memalign";
    valloc: fn(size_t) -> *mut c_void = c"valloc";
    pvalloc: fn(size_t) -> *mut c_void = c"pvalloc";
    malloc_usable_size: fn(*mut c_void) -> size_t = c"malloc_usable_size";
    mmap: fn(*mut c_void, size_t, c_int, c_int, c_int, off_t) -> *mut c_void = c"mmap";
    munmap: fn(*mut c_void, size_t) -> c_int = c"munmap";
    mremap: fn(*mut c_void, size_t, size_t, c_int, *mut c_void) -> *mut c_void = c"mremap";
    dlclose: fn(*mut c_void) -> c_int = c"dlclose";
    longjmp: fn(*mut c_void, c_int) -> () = c"longjmp";
    underscore_longjmp: fn(*mut c_void, c_int) -> () = c"_longjmp";
    siglongjmp: fn(*mut c_void, c_int) -> () = c"siglongjmp";
    longjmp_chk: fn(*mut c_void, c_int) -> () = c"__longjmp_chk";
    find_object: fn(*mut c_void, *mut c_void) -> c_int = c"_dl_find_object";
}

/// Looks all functions up, once: what is not there is not asked for again, since
/// dlsym takes a lock. The dynamic linker's own first malloc comes here, before
/// there are threads. dlsym itself may allocate: that finds us resolving and gets
/// memory from [`boot_alloc`].
#[cold]
pub fn resolve() {
    if !RESOLVING.swap(true, Ordering::AcqRel) {
        resolve_all();
    }
}
