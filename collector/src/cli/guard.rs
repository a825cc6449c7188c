//! `guard`: cgroups that others made.

use super::{FAILED, Failure};
use crate::cgroup::Glob;
use crate::guard;
use crate::say::Form;
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

const GUARD_EXAMPLES: &str = "\
A star stands for one name in a cgroup's path below the mount, or a part of it;
** for any number of names. What is done about an OOM, and how often incidents
are written, is configured: [guard], [[cgroup]] and [[rule]] in reprieve.toml.
SIGHUP has it read again, SIGTERM gives everything back to the kernel.

Examples:
  reprieve guard --dry-run '/system.slice/*.service'
  reprieve guard";

#[derive(Debug, Args)]
#[command(after_help = GUARD_EXAMPLES)]
pub(super) struct GuardArgs {
    /// Cgroups to guard [default: guard.cgroups].
    #[arg(value_name = "GLOB", value_parser = Glob::parse)]
    cgroups: Vec<Glob>,
    /// Record, and tell what would be done; then the kernel decides.
    #[arg(long)]
    dry_run: bool,
    /// Folder for incidents.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Record command lines, which can hold secrets.
    #[arg(long)]
    with_cmdline: bool,
    /// Form of the log: auto, text, json or journal [default: guard.log].
    #[arg(long, value_name = "FORM")]
    log: Option<Form>,
}

pub(super) fn watch(args: GuardArgs, config: PathBuf) -> Result<ExitCode, Failure> {
    let GuardArgs { cgroups, dry_run, out, with_cmdline, log } = args;
    let given = guard::Given { config, cgroups, is_dry: dry_run, out, with_cmdline, log };
    guard::watch(given).map(|()| ExitCode::SUCCESS).map_err(|error| Failure { code: FAILED, error: error.into() })
}
