//! Writes manual pages and completions of `reprieve` into a folder: `man/*.1`,
//! `completions/`. An example, not a subcommand: what the program itself has in it is
//! locked in memory with every guardian.

use clap_complete::{Shell, generate_to};
use std::error::Error;
use std::fs;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let dir = PathBuf::from(std::env::args_os().nth(1).ok_or("name a folder")?);
    let (man, completions) = (dir.join("man"), dir.join("completions"));
    for dir in [&man, &completions] {
        // What a subcommand that is no more had left would be packed, too.
        if dir.exists() {
            fs::remove_dir_all(dir)?;
        }
        fs::create_dir_all(dir)?;
    }
    clap_mangen::generate_to(reprieve::cli::command(), &man)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut reprieve::cli::command(), "reprieve", &completions)?;
    }
    Ok(())
}
