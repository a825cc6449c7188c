//! Compiling the victims.

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

/// Optimised, with line tables, without frame pointers: like what people run.
const FLAGS: &[&str] = &["-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-fomit-frame-pointer"];

/// Builds every victim that is older than its source; returns their folder.
pub fn build(root: &Path) -> Result<PathBuf> {
    let out = root.join("target/fixtures");
    fs::create_dir_all(&out).with_context(|| format!("failed to make {}", out.display()))?;
    compile_all(root, "c", "cc", "c", &out)?;
    compile_all(root, "cxx", "c++", "cc", &out)?;
    // They wait to be looked at, and do not end by themselves.
    let parked = out.join("parked");
    fs::create_dir_all(&parked).with_context(|| format!("failed to make {}", parked.display()))?;
    compile_all(root, "parked", "cc", "c", &parked)?;
    strip(&out)?;
    rust(root, &out)?;
    Ok(out)
}

/// Builds the loads of the benchmarks; returns their folder.
pub fn build_bench(root: &Path) -> Result<PathBuf> {
    let out = build_bench_in_c(root)?;
    compile_all(root, "bench", "c++", "cc", &out)?;
    let source = |name: &str| root.join("fixtures/bench").join(name);
    let rustc = ["rustc", "--edition=2024", "-O", "-g", "-o"];
    compile_one(&rustc, &source("heap_truth.rs"), &out.join("heap_truth_rs"))?;
    compile_one(&["go", "build", "-o"], &source("heap_truth.go"), &out.join("heap_truth_go"))?;
    let script = out.join("heap_truth.py");
    fs::copy(source("heap_truth.py"), &script).with_context(|| format!("failed to copy {}", script.display()))?;
    Ok(out)
}

/// Builds only those in C; returns their folder.
pub fn build_bench_in_c(root: &Path) -> Result<PathBuf> {
    let out = root.join("target/fixtures-bench");
    fs::create_dir_all(&out).with_context(|| format!("failed to make {}", out.display()))?;
    compile_all(root, "bench", "cc", "c", &out)?;
    Ok(out)
}

/// Compiles one source that is newer than its program.
fn compile_one(command: &[&str], source: &Path, program: &Path) -> Result<()> {
    if modified(program) > modified(source) {
        return Ok(());
    }
    let status = Command::new(command[0]).args(&command[1..]).args([program, source]).status();
    match status.with_context(|| format!("failed to run {}", command[0]))?.success() {
        true => Ok(()),
        false => bail!("{} did not compile; the compiler's words are above", source.display()),
    }
}

/// Compiles what is older than its source, in one folder of fixtures.
fn compile_all(root: &Path, folder: &str, compiler: &str, extension: &str, out: &Path) -> Result<()> {
    let headers = newest(&root.join("fixtures/c"), "h")?;
    for source in sources(&root.join("fixtures").join(folder), extension)? {
        let program = out.join(source.file_stem().context("a source has a name")?);
        if modified(&program) <= modified(&source).max(headers) {
            compile(compiler, &source, &program, root)?;
        }
    }
    Ok(())
}

fn compile(compiler: &str, source: &Path, victim: &Path, root: &Path) -> Result<()> {
    // A running victim must not see its file change: compile beside and rename.
    let fresh = victim.with_extension("new");
    let status = Command::new(compiler)
        .args(FLAGS)
        .arg("-I")
        .arg(root.join("fixtures/c"))
        .arg("-o")
        .args([&fresh, source])
        .status()
        .with_context(|| format!("failed to run {compiler}; apt-get install build-essential"))?;
    if !status.success() {
        bail!("{} did not compile; the compiler's words are above", source.display());
    }
    fs::rename(&fresh, victim)?;
    Ok(())
}

/// How `go_leak` is built: name, arguments of `go build`, cgo, and whether strip
/// follows.
const GO_VARIANTS: &[(&str, &[&str], bool, bool)] = &[
    ("go_leak", &[], false, false),
    ("go_leak_stripped", &["-ldflags=-s -w"], false, true),
    ("go_leak_pie", &["-buildmode=pie", "-ldflags=-s -w"], false, false),
    ("go_leak_cgo", &[], true, true),
    ("go_leak_cgo_pie", &["-buildmode=pie"], true, true),
    ("go_leak_unprofiled", &["-tags=noprofile"], false, false),
    ("go_leak_unprofiled_stripped", &["-tags=noprofile", "-ldflags=-s -w"], false, false),
];

/// Builds the victims in Go, with the `go` that REPRIEVE_GO names; `go` itself
/// knows what is up to date.
pub fn build_go(root: &Path) -> Result<()> {
    let out = root.join("target/fixtures");
    fs::create_dir_all(&out).with_context(|| format!("failed to make {}", out.display()))?;
    let go = std::env::var_os("REPRIEVE_GO").unwrap_or_else(|| "go".into());
    for (name, arguments, cgo, strip) in GO_VARIANTS {
        let (built, victim) = (out.join(format!("{name}.built")), out.join(name));
        let status = Command::new(&go)
            .arg("build")
            .args(*arguments)
            .arg("-o")
            .args([&built, Path::new(".")])
            .env("CGO_ENABLED", if *cgo { "1" } else { "0" })
            .env("GOCACHE", root.join("target/fixtures-go"))
            // The go on this machine, and no other that it would download.
            .env("GOTOOLCHAIN", "local")
            .env_remove("GOFLAGS")
            .current_dir(root.join("fixtures/go"))
            .status()
            .context("failed to run go; apt-get install golang-go")?;
        if !status.success() {
            bail!("{name} did not compile; go's words are above");
        }
        if modified(&victim) > modified(&built) {
            continue;
        }
        let copied = match strip {
            true => Command::new("strip").arg("-s").arg("-o").args([&victim, &built]).status()?.success(),
            false => fs::copy(&built, &victim).is_ok(),
        };
        if !copied {
            bail!("failed to make {} of {}", victim.display(), built.display());
        }
    }
    Ok(())
}

/// `stripped` is `steady_leak` without any symbol.
fn strip(out: &Path) -> Result<()> {
    let (from, to) = (out.join("steady_leak"), out.join("stripped"));
    if modified(&to) <= modified(&from) {
        let status = Command::new("strip").arg("-s").arg("-o").args([&to, &from]).status()?;
        if !status.success() {
            bail!("strip failed on {}", from.display());
        }
    }
    Ok(())
}

/// The victims in Rust, in a target folder of their own since their profile
/// differs from the product's.
fn rust(root: &Path, out: &Path) -> Result<()> {
    let target = root.join("target/fixtures-rust");
    let status = Command::new("cargo")
        .args(["build", "--quiet", "--release", "-p", "reprieve-fixtures", "--bins", "--target-dir"])
        .arg(&target)
        .args(["--config", "profile.release.debug=2", "--config", "profile.release.lto=\"off\""])
        .current_dir(root)
        .status()?;
    if !status.success() {
        bail!("the victims in Rust did not compile; cargo's words are above");
    }
    for source in sources(&root.join("fixtures/src/bin"), "rs")? {
        let name = source.file_stem().context("a source has a name")?;
        let (built, victim) = (target.join("release").join(name), out.join(name));
        if modified(&victim) <= modified(&built) {
            fs::copy(&built, &victim).with_context(|| format!("failed to copy {}", built.display()))?;
        }
    }
    Ok(())
}

fn sources(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("failed to list {}", folder.display()))?;
    let mut sources: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == extension)).collect();
    sources.sort();
    Ok(sources)
}

fn newest(folder: &Path, extension: &str) -> Result<Option<SystemTime>> {
    Ok(sources(folder, extension)?.iter().filter_map(|p| modified(p)).max())
}

/// `None`, which is before any time, when there is no such file.
fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|m| m.modified()).ok()
}
