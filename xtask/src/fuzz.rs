//! `cargo xtask fuzz`: hostile memory against everything that reads it.

use crate::demo::BUILD_PACKAGES;
use crate::deps;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// What is fuzzed; each is a file in heap/fuzz/fuzz_targets.
pub const TARGETS: &[&str] = &["table", "go", "glibc", "jemalloc", "cpython"];
/// The version that is installed where there is none.
const CARGO_FUZZ: &str = "0.13.1";
/// Longest input in bytes.
const MAX_INPUT: usize = 256 << 10;
/// Longest that one input may take, in seconds.
const MAX_SECONDS: u32 = 10;
/// Most memory that one process may have, in MiB.
const MAX_MIB: u32 = 1024;

/// Fuzzes each target, or one, for so many seconds each.
pub fn run(root: &Path, only: Option<&str>, seconds: u64) -> Result<ExitCode> {
    let targets: Vec<&str> = TARGETS.iter().copied().filter(|t| only.is_none_or(|only| only == *t)).collect();
    if targets.is_empty() {
        bail!("there is no fuzz target {:?}; there are {}", only.unwrap_or_default(), TARGETS.join(", "));
    }
    deps::ensure(BUILD_PACKAGES)?;
    let tools = install(root)?;
    let mut crashed = Vec::new();
    for target in targets {
        println!("fuzzing {target} for {seconds} s");
        if !fuzz(root, &tools, target, seconds)? {
            crashed.push(target);
        }
    }
    if crashed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("crashed: {}; the inputs are in target/fuzz-artifacts", crashed.join(", "));
    Ok(ExitCode::FAILURE)
}

/// Whether a target survived.
fn fuzz(root: &Path, tools: &Path, target: &str, seconds: u64) -> Result<bool> {
    // What is found stays out of the tree; what is kept for good is in seeds/.
    let corpus = root.join("target/fuzz-corpus").join(target);
    let artifacts = root.join("target/fuzz-artifacts").join(target);
    let seeds = root.join("heap/fuzz/seeds").join(target);
    for dir in [&corpus, &artifacts] {
        fs::create_dir_all(dir).with_context(|| format!("failed to make {}", dir.display()))?;
    }
    let mut command = Command::new(tools.join("cargo-fuzz"));
    command.args(["fuzz", "run", "--fuzz-dir", "heap/fuzz", "--target-dir", "target/fuzz"]);
    // AddressSanitizer needs a nightly compiler, and what is fuzzed has no unsafe
    // code: panics, overflows, time and memory are what is looked for.
    command.args(["--sanitizer", "none", target]).arg(&corpus);
    if seeds.is_dir() {
        command.arg(&seeds);
    }
    command.arg("--").args([
        format!("-max_total_time={seconds}"),
        format!("-max_len={MAX_INPUT}"),
        format!("-timeout={MAX_SECONDS}"),
        format!("-rss_limit_mb={MAX_MIB}"),
        format!("-malloc_limit_mb={}", MAX_MIB / 2),
        format!("-artifact_prefix={}/", artifacts.display()),
        "-verbosity=0".to_owned(),
        "-print_final_stats=1".to_owned(),
    ]);
    // Coverage is told by flags that a stable compiler takes only so.
    let status = command.env("RUSTC_BOOTSTRAP", "1").current_dir(root).status().context("cargo-fuzz did not start")?;
    Ok(status.success())
}

/// The folder with cargo-fuzz, installed if it is missing.
fn install(root: &Path) -> Result<PathBuf> {
    let tools = root.join("target/tools");
    let bin = tools.join("bin");
    if !bin.join("cargo-fuzz").exists() {
        println!("installing cargo-fuzz {CARGO_FUZZ} into {}", tools.display());
        let status = Command::new("cargo")
            .args(["install", "--quiet", "--locked", "cargo-fuzz", "--version", CARGO_FUZZ, "--root"])
            .arg(&tools)
            .status()?;
        if !status.success() {
            bail!("cargo-fuzz could not be installed; cargo's words are above");
        }
    }
    Ok(bin)
}
