//! From addresses in a stopped process to names and lines.
//!
//! Two halves that share only plain data:
//!
//! * [`Unwinder`] turns registers and a way to read the stack into a
//!   [`RawStack`] of addresses, by call frame information first and frame
//!   pointers second. It allocates little and needs no debug information, so it
//!   runs while the target is held.
//! * [`resolve_each`] turns the addresses of one ELF file into functions, inline
//!   frames and source lines, one unit of its debug information at a time, so that
//!   memory depends on the number of addresses and not on the file. It runs in the
//!   analyst.
//!
//! Where names come from and in which order, `docs/symbols.md` tells. [`perf_map`] and
//! [`jitdump`] read what runtimes write about code that they generated, [`kallsyms`] what the
//! kernel says of its own.
//!
//! The caller opens files and reads memory; this crate knows ELF and DWARF and
//! nothing of `/proc` or cgroups. A miss is data with a reason ([`Miss`],
//! [`StackEnd`]), never an error of the whole run. No file makes an answer without end:
//! names have up to 16 KiB, paths 4 KiB, and 256 functions are inlined into one.
//!
//! Addresses have types, since in simple binaries all spaces coincide and a
//! mix-up passes every test: [`Avma`] is where the target has it, [`Svma`] what
//! the ELF file says, and the *bias* is the first minus the second.
//!
//! ```
//! use reprieve_symbolizer::{DebugDirs, Image, Svma, resolve};
//!
//! fn here() {}
//! let exe = std::env::current_exe()?;
//! let image = Image::open(&std::fs::File::open(&exe)?)?;
//! let answers = resolve(&image, Some(&exe), &DebugDirs::default(), &[Svma(1)]);
//! assert!(answers[0].is_err(), "no function lies at address 1");
//! # here();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod address;
mod compressed;
mod debug_files;
mod demangle;
mod dwarf;
mod frame;
mod go;
mod image;
mod jit;
mod kallsyms;
mod mini;
mod plt;
mod resolve;
mod settings;
mod symbols;
mod symtab;
mod unwind;

pub use address::{Avma, Svma};
pub use debug_files::{DebugDirs, Debuginfod, Outcome, Source, Tried, UnusableUrl};
pub use demangle::demangle;
pub use frame::{Answer, Frame, FrameRef, Miss, Resolution, SymbolSource};
pub use go::{GoFunction, GoImage, GoPlace, GoVersion};
pub use image::{BuildId, Image, ImageError, open_regular};
pub use jit::{MOST_MAP_BYTES, jitdump, perf_map};
pub use kallsyms::{MOST_LIST_BYTES, kallsyms, kernel_base};
pub use resolve::{Account, Sink, find_binary, resolve, resolve_each};
pub use settings::{Detail, Settings};
pub use unwind::{FoundBy, Machine, RawFrame, RawStack, Registers, StackEnd, Unwinder};
