//! `snapshot`: a process or cgroup as it is.

use super::show::INUSE;
use super::{FAILED, Failure, NOT_ABLE, NOT_FOUND, print, width};
use crate::config::Config;
use crate::incident::show;
use crate::run::{self, RunError};
use crate::size::parse_duration;
use crate::snapshot::{self, Parts};
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Debug, Args)]
pub(super) struct SnapshotArgs {
    /// A PID, or a cgroup: its folder or its path below the mount.
    target: String,
    /// Folder for incidents.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Record command lines, which can hold secrets.
    #[arg(long)]
    with_cmdline: bool,
    /// Longest the target may be stopped [default: 2s].
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    deadline: Option<Duration>,
}

pub(super) fn take(args: SnapshotArgs, config: &Config) -> Result<ExitCode, Failure> {
    let options =
        snapshot::Options { parts: Parts::usual(args.with_cmdline || config.records_cmdlines()), alone: false };
    let deadline = args.deadline.unwrap_or_else(|| config.snapshot_deadline());
    match run::snapshot(&args.target, args.out.or(config.store_dir()), config.limits(), options, deadline) {
        Ok((incident, dir)) => {
            print(&show::page(&incident, &dir, show::Layout { width: width(), sample_type: INUSE }));
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            let code = match &error {
                RunError::NoTarget(_) => NOT_FOUND,
                RunError::NotAllowed(_) => NOT_ABLE,
                _ => FAILED,
            };
            Err(Failure { code, error: error.into() })
        }
    }
}
