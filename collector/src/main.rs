//! The `reprieve` command.

use std::process::ExitCode;

#[global_allocator]
static HEAP: reprieve::guardian::heap::Counting = reprieve::guardian::heap::Counting;

fn main() -> ExitCode {
    reprieve::cli::main()
}
