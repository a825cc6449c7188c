//! `cargo xtask pictures`: the README's pictures, made of a recorded incident by the tool itself.

use crate::demo::target;
use crate::deps::{self, Package};
use crate::npm;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::{Command, ExitCode};

/// What they are made of.
const INCIDENT: &str = "fixtures/incidents/shop.json";
/// Where they go.
const PICTURES: &str = "docs/pictures";

/// Makes them.
///
/// # Errors
///
/// When reprieve does not build, or the browser or node fails; their words are above.
pub(crate) fn run(root: &Path) -> Result<ExitCode> {
    deps::ensure(&[
        Package { name: "chromium", why: "to open the report" },
        Package { name: "nodejs", why: "to drive it" },
        Package { name: "fonts-dejavu-core", why: "letters" },
    ])?;
    let page = target(root).join("pictures.html");
    let mut reprieve = Command::new("cargo");
    reprieve.args(["run", "--quiet", "-p", "reprieve", "--", "export", INCIDENT, "--format", "html", "--to"]);
    run_all(reprieve.arg(&page).current_dir(root))?;
    let pictures = root.join(PICTURES);
    std::fs::create_dir_all(&pictures).with_context(|| format!("{} cannot be made", pictures.display()))?;
    let mut node = Command::new("node");
    node.arg(root.join("collector/tests/browser/pictures.mjs")).args([&page, &pictures]);
    run_all(node.env("REPRIEVE_NPM", npm::install(&target(root))?))?;
    println!("pictures are in {}", pictures.display());
    Ok(ExitCode::SUCCESS)
}

fn run_all(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{} cannot be run", command.get_program().display()))?;
    if status.success() { Ok(()) } else { bail!("{} ended with {status}", command.get_program().display()) }
}
