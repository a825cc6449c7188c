//! `cargo xtask demo`: the main job on a program that leaks on purpose.

use crate::deps::{self, Package};
use crate::fixtures;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// What compiling the workspace and the fixtures takes.
pub const BUILD_PACKAGES: &[Package] = &[Package { name: "build-essential", why: "compile the fixtures" }];

/// Builds, runs out of memory, and shows the incident.
pub fn run(root: &Path, memory: &str, command: &[String]) -> Result<ExitCode> {
    deps::ensure(BUILD_PACKAGES)?;
    let reprieve = build_release(root)?;
    let command = if command.is_empty() {
        let victim = fixtures::build(root)?.join("steady_leak");
        println!("The victim leaks in leak_small, leak_medium and leak_mmap until it has 512 MiB.");
        vec![victim.display().to_string(), "--mib".to_owned(), "512".to_owned()]
    } else {
        command.to_vec()
    };
    println!("$ reprieve run --memory {memory} -- {}\n", command.join(" "));
    let status = Command::new(&reprieve)
        .args(["run", "--memory", memory, "--"])
        .args(&command)
        .status()
        .with_context(|| format!("failed to run {}", reprieve.display()))?;
    println!("\nreprieve ended with {status}.\n\n$ reprieve show\n");
    let shown = Command::new(&reprieve).arg("show").status()?;
    if !shown.success() {
        bail!("there is no incident: the command never ran out of memory; try a smaller --memory");
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds the release binary; returns its path.
pub fn build_release(root: &Path) -> Result<PathBuf> {
    let status = Command::new("cargo").args(["build", "--release", "-p", "reprieve"]).current_dir(root).status()?;
    if !status.success() {
        bail!("cargo build failed; its words are above");
    }
    Ok(target(root).join("release/reprieve"))
}

/// Cargo's target directory.
pub fn target(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}
