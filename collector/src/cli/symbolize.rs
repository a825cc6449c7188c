//! `symbolize`: more names, later or elsewhere.

use super::find::store;
use super::{Failure, USAGE, print, width};
use crate::analyst::{self, Places};
use crate::config::Config;
use crate::incident::model::Search;
use crate::incident::show;
use crate::incident::store::INCIDENT;
use crate::size::{parse_duration, parse_size};
use clap::Args;
use reprieve_symbolizer::{DebugDirs, Debuginfod};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const SYMBOLIZE_EXAMPLES: &str = "\
Files are found by build ID: DIR/.build-id/xx/yyyy.debug, a copy of the other
machine's file system, or binaries and debug files lying in DIR. What the
incident has already is kept unless more is found; its folder is replaced in
one step.

Examples:
  reprieve symbolize 20261125T074340 --debug-dir ~/symbols
  reprieve symbolize ./incident --debuginfod http://localhost:8002";

#[derive(Debug, Args)]
#[command(after_help = SYMBOLIZE_EXAMPLES)]
pub(super) struct SymbolizeArgs {
    /// ID, or its beginning or end, or an incident's folder.
    incident: String,
    /// Look here before /usr/lib/debug; may be given again.
    #[arg(long, value_name = "DIR", value_parser = parse_folder)]
    debug_dir: Vec<PathBuf>,
    /// Ask this debuginfod server; may be given again. It learns which programs
    /// ran. Without it none is asked.
    #[arg(long, value_name = "URL")]
    debuginfod: Vec<String>,
    /// Longest that servers may take, all together.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "90s")]
    debuginfod_time: Duration,
    /// Most that is downloaded.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "512M")]
    debuginfod_size: u64,
    /// Where downloads are kept [default: elfutils' cache, ~/.cache/debuginfod_client].
    #[arg(long, value_name = "DIR")]
    debuginfod_cache: Option<PathBuf>,
    /// Most memory to take; what needs more is told with less detail.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "512M")]
    memory: u64,
    /// Folder of incidents.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// A folder that is there: a mistyped one would only show as files that are absent.
fn parse_folder(text: &str) -> Result<PathBuf, String> {
    match std::fs::read_dir(text) {
        Ok(_) => Ok(PathBuf::from(text)),
        Err(error) => Err(format!("it cannot be read: {error}; name the folder that has the debug files")),
    }
}

pub(super) fn symbolize(
    args: SymbolizeArgs,
    config: impl Fn() -> Result<Config, Failure>,
) -> Result<ExitCode, Failure> {
    let path = Path::new(&args.incident);
    let dir = if path.join(INCIDENT).is_file() {
        path.to_owned()
    } else {
        store(args.out.as_deref(), config)?.load(Some(&args.incident))?.0
    };
    let mut dirs = DebugDirs::default();
    dirs.dirs.splice(0..0, args.debug_dir);
    let cache = args.debuginfod_cache.unwrap_or_else(debuginfod_cache);
    let server = Debuginfod::new(&args.debuginfod, cache, args.debuginfod_time, args.debuginfod_size)
        .map_err(|error| Failure { code: USAGE, error: error.into() })?;
    let server = (!args.debuginfod.is_empty()).then_some(&server);
    // A truncated file must not end us.
    let _ = crate::guardian::sigbus::install();
    analyst::limit_to(args.memory);
    let places = Places { dirs: &dirs, debuginfod: server, later: true };
    let (incident, completed) = analyst::complete(&dir, &places)?;
    if args.json {
        let report = NamesFound { id: &incident.id, names: completed, searches: &incident.symbols.searches };
        print(&(serde_json::to_string(&report).unwrap_or_default() + "\n"));
    } else {
        print(&show::completed(&incident, &completed, width()));
    }
    Ok(ExitCode::SUCCESS)
}

/// What `symbolize --json` says.
#[derive(serde::Serialize)]
struct NamesFound<'a> {
    id: &'a str,
    names: show::Completed,
    searches: &'a [Search],
}

/// Where elfutils' client keeps what it fetched (debuginfod_find_debuginfo(3)).
fn debuginfod_cache() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || variable("HOME").unwrap_or_default().join(".cache");
    variable("DEBUGINFOD_CACHE_PATH")
        .unwrap_or_else(|| variable("XDG_CACHE_HOME").unwrap_or_else(home).join("debuginfod_client"))
}
