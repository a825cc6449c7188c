//! The `reprieve` command.
fn main() {}
