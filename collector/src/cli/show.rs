//! `show`: an incident in the terminal.

use super::find::store;
use super::{FAILED, Failure, print, width};
use crate::config::Config;
use crate::incident::show;
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

/// What was not freed, in bytes.
pub(super) const INUSE: &str = "inuse_space";

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// ID, or its beginning or end; the newest without.
    id: Option<String>,
    /// Folder of incidents.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The whole incident as JSON.
    #[arg(long)]
    json: bool,
    /// What heap stacks are ranked by.
    #[arg(long, value_name = "TYPE", default_value = INUSE, value_parser = [INUSE, "inuse_objects", "alloc_space", "alloc_objects"])]
    sample_type: String,
}

pub(super) fn show(args: &ShowArgs, config: &Config) -> Result<ExitCode, Failure> {
    let (dir, incident) = store(args.out.as_deref(), || Ok(config.clone()))?.load(args.id.as_deref())?;
    if args.json {
        let json = serde_json::to_string_pretty(&incident).map_err(|e| Failure { code: FAILED, error: e.into() })?;
        print(&format!("{json}\n"));
    } else {
        let layout = show::Layout { width: width(), sample_type: &args.sample_type };
        print(&show::page(&incident, &dir, layout));
    }
    Ok(ExitCode::SUCCESS)
}
