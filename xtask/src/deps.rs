//! Debian packages the tasks need, installed when they are missing.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};

/// A Debian package, and what it is wanted for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Package {
    /// Its name in the archive.
    pub(crate) name: &'static str,
    /// Why a task needs it, in a few words, for the person who sees it installed.
    pub(crate) why: &'static str,
}

/// Installs those of `packages` that are missing. Says what it installs and why.
///
/// # Errors
///
/// When the machine has no dpkg, when root is needed and cannot be had, or
/// when apt fails. The message holds the command to run by hand.
pub(crate) fn ensure(packages: &[Package]) -> Result<()> {
    // apt does not wait for another one.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let missing = missing(packages)?;
    if missing.is_empty() {
        return Ok(());
    }
    for package in &missing {
        eprintln!("installing {}: {}", package.name, package.why);
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    let sudo = sudo(&names)?;
    apt(sudo, &["update"])?;
    let mut install = vec!["install", "-y", "--no-install-recommends"];
    install.extend(&names);
    apt(sudo, &install)
}

/// Unpacks `packages` into folders of their names below `folder`, and installs nothing:
/// their services would be started. What they depend on has to be there.
///
/// # Errors
///
/// When apt cannot download them, or dpkg-deb cannot unpack them.
pub(crate) fn unpack(packages: &[Package], folder: &Path) -> Result<()> {
    for package in packages {
        let into = folder.join(package.name);
        let stamp = into.join("unpacked");
        if stamp.is_file() {
            continue;
        }
        eprintln!("unpacking {} into {}: {}", package.name, into.display(), package.why);
        fs::create_dir_all(&into).with_context(|| format!("{} cannot be made", into.display()))?;
        // As whoever we are, into the folder that it is called in.
        let download = |arguments: &[&str]| {
            let mut command = Command::new("apt-get");
            command.args(["-q", "-o", "APT::Sandbox::User=root"]).args(arguments).current_dir(&into);
            command.stdout(std::io::stderr()).status().context("apt-get cannot be run")
        };
        if !download(&["download", package.name])?.success() {
            // Its lists may be old, or not there yet.
            apt(sudo(&[package.name])?, &["update"])?;
            let status = download(&["download", package.name])?;
            if !status.success() {
                bail!("{} could not be downloaded ({status})", package.name);
            }
        }
        let archives = fs::read_dir(&into)?.flatten().map(|entry| entry.path());
        for archive in archives.filter(|path| path.extension().is_some_and(|end| end == "deb")) {
            let status = Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&into).status()?;
            if !status.success() {
                bail!("dpkg-deb -x {} ended with {status}", archive.display());
            }
            fs::remove_file(archive)?;
        }
        fs::write(stamp, "")?;
    }
    Ok(())
}

/// Which of `packages` dpkg does not have fully installed.
fn missing(packages: &[Package]) -> Result<Vec<Package>> {
    let output = Command::new("dpkg-query")
        .args(["-W", "-f", "${Package}\\t${Status}\\n"])
        .args(packages.iter().map(|package| package.name))
        // Unknown packages are named there, and make the exit status 1: both
        // say no more than their absence from the list does.
        .stderr(Stdio::null())
        .output()
        .with_context(|| {
            let names: Vec<_> = packages.iter().map(|package| package.name).collect();
            format!(
                "dpkg-query cannot be run; this task wants a Debian system with these packages: {}",
                names.join(" ")
            )
        })?;
    let listing = String::from_utf8_lossy(&output.stdout);
    Ok(packages.iter().filter(|package| !is_installed(&listing, package.name)).copied().collect())
}

/// Whether `listing` (lines of name, tab, status) has `name` installed. A
/// removed package whose configuration stays is listed too, as `deinstall`.
fn is_installed(listing: &str, name: &str) -> bool {
    listing.lines().any(|line| {
        line.split_once('\t').is_some_and(|(package, status)| package == name && status.ends_with(" ok installed"))
    })
}

/// Whether apt has to go through sudo; an error when it would have to and cannot.
fn sudo(names: &[&str]) -> Result<bool> {
    // SAFETY: geteuid(2) takes no argument, touches no memory and cannot fail.
    if unsafe { libc::geteuid() } == 0 {
        return Ok(false);
    }
    let available =
        Command::new("sudo").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
    if !available {
        bail!(
            "packages are missing, and neither root nor sudo is at hand; as root, run:\n  \
             apt-get update && apt-get install -y --no-install-recommends {}",
            names.join(" ")
        );
    }
    Ok(true)
}

/// Runs apt-get without questions, its output going to our standard error.
fn apt(sudo: bool, arguments: &[&str]) -> Result<()> {
    let mut line = Vec::new();
    if sudo {
        line.push("sudo");
    }
    // Through env(1), because sudo drops the variables it is given.
    line.extend(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"]);
    line.extend(arguments);
    let status = Command::new(line[0])
        .args(&line[1..])
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .with_context(|| format!("`{}` cannot be run", line.join(" ")))?;
    if !status.success() {
        bail!("`{}` failed ({status}); run it by hand to see why", line.join(" "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_full_installation_counts() {
        let listing = "bc\tinstall ok installed\nflex\tdeinstall ok config-files\nlibbc\tinstall ok half-installed\n";
        assert!(is_installed(listing, "bc"));
        assert!(!is_installed(listing, "flex"));
        assert!(!is_installed(listing, "libbc"));
        assert!(!is_installed(listing, "bison"));
    }

    #[test]
    fn dpkg_knows_itself_and_not_a_package_that_does_not_exist() {
        let dpkg = Package { name: "dpkg", why: "test" };
        let none = Package { name: "reprieve-no-such-package", why: "test" };
        let missing = missing(&[dpkg, none]).unwrap();
        assert_eq!(missing.iter().map(|p| p.name).collect::<Vec<_>>(), ["reprieve-no-such-package"]);
    }
}
