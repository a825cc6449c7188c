//! `cargo xtask deb`: a Debian package, by cargo-deb.

use crate::demo::{BUILD_PACKAGES, target};
use crate::deps;
use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The packer.
const CARGO_DEB: &str = "3.8.0";

/// Builds the package with programs of a profile of Cargo's; returns its path.
///
/// # Errors
///
/// When something cannot be compiled or installed; its words are above.
pub fn build(root: &Path, profile: &str) -> Result<PathBuf> {
    deps::ensure(BUILD_PACKAGES)?;
    let packer = packer(root)?;
    cargo(root, &["build", "--profile", profile, "-p", "reprieve", "--bins"])?;
    // Below the checkout, wherever programs are built: collector/Cargo.toml names it.
    let manual = root.join("target/manual");
    cargo(
        root,
        &["run", "--quiet", "--profile", profile, "-p", "reprieve", "--example", "manual", "--", path(&manual)?],
    )?;
    let out = target(root).join("deb");
    let mut command = Command::new(packer);
    command.args(["--no-build", "--profile", profile, "-p", "reprieve"]);
    command.args(match profile {
        // Not stripped: with its line tables reprieve explains itself.
        "release" => &["--no-strip"][..],
        // Hundreds of MiB of debug information are to be packed for nobody.
        _ => &["--strip", "--fast"],
    });
    command.arg("--output").arg(&out);
    let output = command.current_dir(root).stderr(Stdio::inherit()).output().context("cargo-deb cannot be run")?;
    if !output.status.success() {
        bail!("cargo-deb ended with {}; its words are above", output.status);
    }
    // The last line that it prints is the package's path.
    let said = String::from_utf8_lossy(&output.stdout);
    let deb = PathBuf::from(said.lines().last().unwrap_or_default().trim());
    if deb.is_file() { Ok(deb) } else { bail!("cargo-deb told of no package, but {said:?}") }
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

fn cargo(root: &Path, args: &[&str]) -> Result<()> {
    let status = Command::new("cargo").args(args).current_dir(root).status()?;
    if status.success() { Ok(()) } else { bail!("cargo {} ended with {status}", args.join(" ")) }
}

/// Installs cargo-deb below the target directory, once.
fn packer(root: &Path) -> Result<PathBuf> {
    let tools = target(root).join("tools");
    let program = tools.join("bin/cargo-deb");
    let stamp = tools.join("cargo-deb-version");
    if program.is_file() && fs::read_to_string(&stamp).is_ok_and(|version| version == CARGO_DEB) {
        return Ok(program);
    }
    eprintln!("installing cargo-deb {CARGO_DEB} into {}: to pack", tools.display());
    // Unoptimised it is built in half the time, and it packs three files of some size.
    let args = ["install", "cargo-deb", "--locked", "--debug", "--force", "--version", CARGO_DEB, "--root"];
    // What is built is no part of the workspace, and remains nowhere.
    let status = Command::new("cargo")
        .args(args.map(OsStr::new))
        .arg(&tools)
        .env("CARGO_TARGET_DIR", tools.join("build"))
        .current_dir(root)
        .status()?;
    if !status.success() {
        bail!("cargo-deb could not be installed; the words of cargo are above");
    }
    fs::remove_dir_all(tools.join("build"))?;
    fs::write(stamp, CARGO_DEB)?;
    Ok(program)
}
