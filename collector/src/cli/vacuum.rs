//! `vacuum`: removes what is beyond the limits.

use super::find::store;
use super::{FAILED, Failure, print};
use crate::config::Config;
use crate::incident::store::{Limits, Store};
use crate::incident::units;
use crate::size::{parse_age, parse_size};
use clap::Args;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Debug, Args)]
pub(super) struct VacuumArgs {
    /// Folder of incidents.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Incidents to keep.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_count: Option<u32>,
    /// Disk space for incidents.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_use: Option<u64>,
    /// Disk space that shall be free.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    keep_free: Option<u64>,
    /// Age at which incidents are removed, like 90d.
    #[arg(long, value_name = "AGE", value_parser = Age::parse)]
    max_age: Option<Age>,
    /// Only tell what would be removed.
    #[arg(long)]
    dry_run: bool,
    /// One JSON object per line.
    #[arg(long)]
    json: bool,
}

/// An age, or none. (Of two options clap makes an option without value.)
#[derive(Debug, Clone, Copy)]
struct Age(Option<Duration>);

impl Age {
    fn parse(text: &str) -> Result<Self, String> {
        parse_age(text).map(Age)
    }
}

pub(super) fn vacuum(args: &VacuumArgs, config: &Config) -> Result<ExitCode, Failure> {
    let configured = config.limits();
    let limits = Limits {
        max_count: args.max_count.map_or(configured.max_count, |count| count as usize),
        max_use_bytes: args.max_use.unwrap_or(configured.max_use_bytes),
        keep_free_bytes: args.keep_free.unwrap_or(configured.keep_free_bytes),
        max_age: args.max_age.map_or(configured.max_age, |Age(age)| age),
    };
    let mut store = store(args.out.as_deref(), || Ok(config.clone()))?;
    // What a dead reprieve left is put in order, but nothing is made.
    if !args.dry_run && store.dir().is_dir() {
        store = Store::open(Some(store.dir().to_owned()))?;
    }
    let (mut count, mut bytes, mut code) = (0, 0, ExitCode::SUCCESS);
    let removals = store.beyond(&limits, 0)?;
    let width = removals.iter().map(|removal| removal.id.len()).max().unwrap_or_default();
    for removal in removals {
        if !args.dry_run
            && let Err(error) = store.remove(&removal.id)
        {
            let _ = writeln!(std::io::stderr(), "reprieve: {error}");
            code = ExitCode::from(FAILED);
            continue;
        }
        (count, bytes) = (count + 1, bytes + removal.bytes);
        if args.json {
            print(&(serde_json::to_string(&removal).unwrap_or_default() + "\n"));
        } else {
            print(&format!("{:width$}  {:>9}  {}\n", removal.id, units::bytes(removal.bytes), removal.why));
        }
    }
    if !args.json {
        let did = if args.dry_run { "would be removed" } else { "removed" };
        print(&format!("{} {did}, {}\n", units::count(count, "incident"), units::bytes(bytes)));
    }
    Ok(code)
}
