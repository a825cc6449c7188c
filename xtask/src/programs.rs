//! Test programs, to be run elsewhere than by cargo.

use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Command;

/// The compiled test program of the collector with this name.
pub fn test_program(root: &Path, name: &str) -> Result<String> {
    let arguments = ["test", "--release", "-p", "reprieve", "--test", name, "--no-run", "--message-format=json"];
    let output = Command::new("cargo").args(arguments).current_dir(root).output()?;
    if !output.status.success() {
        bail!("test {name} did not compile: {}", String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == name && message["profile"]["test"] == true)
        .find_map(|message| message["executable"].as_str().map(str::to_owned))
        .with_context(|| format!("cargo named no program for test {name}"))
}
