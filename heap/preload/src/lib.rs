//! `libreprieve_heap.so`: samples a program's allocations into the table that it
//! shares with its guardian.
//!
//! Loaded by LD_PRELOAD, its `malloc` family and its mappings stand in front of
//! the real ones, whichever they are (RTLD_NEXT). Most calls cost a subtraction
//! or a look at one byte. One in so many bytes is sampled: its stack is unwound
//! here, and the block is in the [table](reprieve_heap_table) until it is freed.
//!
//! Nothing here allocates, waits or fails the program: what cannot be recorded is
//! counted and forgotten.

mod exports;
mod process;
mod real;
mod sampler;
mod unwind;
