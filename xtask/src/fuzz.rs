//! `cargo xtask fuzz`: hostile memory, files and answers against everything that reads
//! what others wrote.

use crate::demo::BUILD_PACKAGES;
use crate::deps;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// What is fuzzed: folders of fuzz crates, each a workspace of its own, and their targets,
/// of which each is a file in `fuzz_targets` and has what it begins with in `seeds`.
const CRATES: &[(&str, &[&str])] = &[
    ("heap/fuzz", &["table", "go", "glibc", "jemalloc", "cpython"]),
    (
        "symbolizer/fuzz",
        &["elf", "dwarf", "companions", "compressed", "perf_map", "jitdump", "kallsyms", "debuginfod", "demangle"],
    ),
    ("collector/fuzz", &["maps", "mountinfo", "accounting", "pagemap", "ring", "incident"]),
];
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
    let targets: Vec<Target> = targets().filter(|t| only.is_none_or(|only| only == t.name)).collect();
    if targets.is_empty() {
        let all: Vec<&str> = self::targets().map(|target| target.name).collect();
        bail!("there is no fuzz target {:?}; there are {}", only.unwrap_or_default(), all.join(", "));
    }
    deps::ensure(BUILD_PACKAGES)?;
    let tools = install(root)?;
    let mut crashed = Vec::new();
    for target in targets {
        println!("fuzzing {} for {seconds} s", target.name);
        if !fuzz(root, &tools, target, seconds)? {
            crashed.push(target.name);
        }
    }
    if crashed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("crashed: {}; the inputs are in target/fuzz-artifacts", crashed.join(", "));
    Ok(ExitCode::FAILURE)
}

/// A fuzz target.
#[derive(Debug, Clone, Copy)]
struct Target {
    /// The folder of its crate.
    dir: &'static str,
    /// Unique among those of all crates.
    name: &'static str,
}

fn targets() -> impl Iterator<Item = Target> {
    CRATES.iter().flat_map(|&(dir, names)| names.iter().map(move |&name| Target { dir, name }))
}

/// Whether a target survived.
fn fuzz(root: &Path, tools: &Path, target: Target, seconds: u64) -> Result<bool> {
    // What is found stays out of the tree; what is kept for good is in seeds/.
    let corpus = root.join("target/fuzz-corpus").join(target.name);
    let artifacts = root.join("target/fuzz-artifacts").join(target.name);
    let seeds = root.join(target.dir).join("seeds").join(target.name);
    for dir in [&corpus, &artifacts] {
        fs::create_dir_all(dir).with_context(|| format!("failed to make {}", dir.display()))?;
    }
    let mut command = Command::new(tools.join("cargo-fuzz"));
    command.args(["fuzz", "run", "--fuzz-dir", target.dir, "--target-dir", "target/fuzz"]);
    // AddressSanitizer needs a nightly compiler, and what is fuzzed has no unsafe
    // code: panics, overflows, time and memory are what is looked for.
    command.args(["--sanitizer", "none", target.name]).arg(&corpus);
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn root() -> PathBuf {
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
    }

    /// Names of the files in a folder, without what is behind their last dot.
    fn stems(dir: &Path) -> BTreeSet<String> {
        let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn every_target_of_every_crate_is_run() {
        for (dir, names) in CRATES {
            let known: BTreeSet<String> = names.iter().map(|&name| name.to_owned()).collect();
            assert_eq!(stems(&root().join(dir).join("fuzz_targets")), known, "{dir}");
            // Seeds of a target that was renamed would be seeds of nothing.
            let seeds: BTreeSet<String> =
                stems(&root().join(dir).join("seeds")).into_iter().filter(|name| name != "make").collect();
            assert!(seeds.is_subset(&known), "{dir}: {seeds:?}");
        }
        let all: Vec<&str> = targets().map(|target| target.name).collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "corpora are named after them: {all:?}");
    }
}
