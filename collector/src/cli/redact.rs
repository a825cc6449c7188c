//! `redact`: an incident to show to others.

use super::find::find;
use super::{FAILED, Failure, USAGE, print};
use crate::analyst;
use crate::config::Config;
use crate::incident::redact::{Key, redact};
use crate::incident::store::Store;
use clap::Args;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const REDACT_HELP: &str = "\
Names of processes, threads, functions, files, cgroups, machines and rules are replaced
by 12 digits that stand for the same name wherever it is in the incident, and paths part
by part; build IDs and kernel names, too, but not functions of Linux itself. Registers and
command lines are left out.
Sizes, counts, times, PIDs and addresses stay, and so does what reprieve says in its own
words. The digits are of a hash with a secret key, made up each time and thrown away;
with --key-file the same names get the same digits in several incidents, so that they
can be compared, by whoever has not the key, too.

Examples:
  reprieve redact 20261125T084613 --to ./for-upstream
  reprieve redact ./incident --to ./b --key-file ~/.reprieve-key";

#[derive(Debug, Args)]
#[command(after_help = REDACT_HELP)]
pub(super) struct RedactArgs {
    /// ID, or its beginning or end, or an incident's folder or file.
    incident: String,
    /// Folder to make, which must not be there yet.
    #[arg(long, value_name = "FOLDER")]
    to: PathBuf,
    /// File whose content is the key.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Folder of incidents.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(super) fn run(args: &RedactArgs, config: impl Fn() -> Result<Config, Failure>) -> Result<ExitCode, Failure> {
    let usage = |error| Failure { code: USAGE, error };
    if args.to.symlink_metadata().is_ok() {
        return Err(usage(anyhow::anyhow!("--to {}: it is there already; name a new folder", args.to.display())));
    }
    let Some(name) = args.to.file_name().and_then(|name| name.to_str()) else {
        return Err(usage(anyhow::anyhow!("--to {}: it has no name; name a new folder", args.to.display())));
    };
    let key = match &args.key_file {
        Some(file) => {
            let bytes = std::fs::read(file)
                .map_err(|error| usage(anyhow::anyhow!("--key-file {}: it cannot be read: {error}", file.display())))?;
            if bytes.len() < Key::LEAST_BYTES {
                let (file, least) = (file.display(), Key::LEAST_BYTES);
                return Err(usage(anyhow::anyhow!(
                    "--key-file {file}: with {} bytes names could be guessed; write at least {least}, as `head -c {least} /dev/urandom` does",
                    bytes.len()
                )));
            }
            Key::from_bytes(&bytes)
        }
        None => Key::random().map_err(|error| Failure {
            code: FAILED,
            error: anyhow::anyhow!("/dev/urandom cannot be read: {error}; give a key with --key-file"),
        })?,
    };
    let (_, incident) = find(Some(&args.incident), args.out.as_deref(), config)?;
    let redacted = redact(incident, &key);
    let parent = args.to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let staging = Store::at(Some(parent.to_owned())).stage(name)?;
    analyst::render(&redacted, staging.path())?;
    let dir = staging.publish()?;
    print(&format!("{}\n", dir.display()));
    Ok(ExitCode::SUCCESS)
}
