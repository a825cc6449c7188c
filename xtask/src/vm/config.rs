//! The guest kernel's configuration: fragments of it, and whether they took.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The fragments in a directory, in the order of their names.
pub(super) fn fragments(directory: &Path) -> Result<Vec<PathBuf>> {
    let unreadable = || format!("{}: the kernel's configuration fragments cannot be listed", directory.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).with_context(unreadable)? {
        let path = entry.with_context(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "config") {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        bail!("{}: holds no *.config fragment; is this the project's root?", directory.display());
    }
    paths.sort();
    Ok(paths)
}

/// Fails if `config` lacks an option that one of `fragments` sets and no later one
/// sets again. Kconfig drops an option whose dependencies are not met without a word.
pub(super) fn verify(config: &Path, fragments: &[PathBuf]) -> Result<()> {
    let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()));
    let actual = read(config)?;
    let mut lost = Vec::new();
    let texts = fragments.iter().map(|path| read(path)).collect::<Result<Vec<_>>>()?;
    for (at, fragment) in fragments.iter().enumerate() {
        for option in absent(&texts[at], &actual).into_iter().filter(|option| !set_again(option, &texts[at + 1..])) {
            lost.push(format!("  {option} ({})", fragment.display()));
        }
    }
    if !lost.is_empty() {
        bail!(
            "the kernel's configuration lost what its fragments ask for; \
             add what these depend on, or drop them:\n{}",
            lost.join("\n")
        );
    }
    Ok(())
}

/// Whether one of `later` assigns the option that `assignment` does.
fn set_again(assignment: &str, later: &[String]) -> bool {
    let name = assignment.split('=').next().unwrap_or_default();
    later.iter().flat_map(|text| text.lines()).any(|line| line.split('=').next() == Some(name))
}

/// The assignments of `fragment` that are no line of `actual`.
fn absent<'a>(fragment: &'a str, actual: &str) -> Vec<&'a str> {
    fragment
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("CONFIG_"))
        .filter(|wanted| !actual.lines().any(|line| line == *wanted))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_is_missing_and_nothing_else() {
        let fragment = "# why\nCONFIG_A=y\nCONFIG_AB=y\nCONFIG_N=8\n# CONFIG_C is not set\n";
        let actual = "CONFIG_A=y\n# CONFIG_AB is not set\nCONFIG_N=64\nCONFIG_C=y\n";
        assert_eq!(absent(fragment, actual), ["CONFIG_AB=y", "CONFIG_N=8"]);
        assert!(set_again("CONFIG_N=8", &["CONFIG_N=64\n".to_owned()]));
        assert!(!set_again("CONFIG_N=8", &["CONFIG_NN=64\n".to_owned()]));
    }
}
