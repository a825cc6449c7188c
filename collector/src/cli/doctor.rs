//! `doctor`: what this machine can do.

use super::{NOT_ABLE, print};
use crate::doctor;
use clap::Args;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// As JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn diagnose(args: &DoctorArgs) -> ExitCode {
    let checks = doctor::examine();
    let json = || serde_json::to_string_pretty(&checks).unwrap_or_default() + "\n";
    print(&if args.json { json() } else { doctor::table(&checks) });
    if doctor::able(&checks) { ExitCode::SUCCESS } else { ExitCode::from(NOT_ABLE) }
}
