//! `libreprieve_heap.so`: samples a program's allocations into the table that it
//! shares with its guardian.
//!
//! Loaded by LD_PRELOAD, its `malloc` family and its mappings stand in front of
//! the real ones, whichever they are (RTLD_NEXT). Most calls cost a subtraction
//! or a look at one byte. One in so many bytes is sampled: its stack is unwound
//! here, and the block is in the [table](reprieve_heap_table) until it is freed.
//!
//! Nothing here allocates, waits or fails the program: what cannot be recorded is
//! counted and forgotten. It needs nothing but the C library: no Rust runtime,
//! which would bring libgcc_s and libm into every program.

// Only what aborts on panics can be without std; checked with std otherwise.
#![cfg_attr(panic = "abort", no_std)]

mod elf;
mod errno;
mod exports;
mod jump;
mod own;
mod process;
mod python;
mod readable;
mod real;
mod sampler;
mod tls;
mod unwind;

/// A panic is a mistake of ours, and there is nobody to tell.
#[cfg(panic = "abort")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: abort(3) has no arguments.
    unsafe { libc::abort() }
}
