//! `heap`: the library for services.

use super::{FAILED, Failure, print};
use crate::heap_env::{HeapEnv, Place};
use crate::size::parse_size;
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub(super) struct HeapArgs {
    #[command(subcommand)]
    command: HeapCommand,
}

#[derive(Debug, Subcommand)]
enum HeapCommand {
    /// Install libreprieve_heap.so and print what to set in a service's
    /// environment; `reprieve snapshot` then shows its heap by stack.
    #[command(after_help = HEAP_ENV_COST)]
    Env(HeapEnvArgs),
}

const HEAP_ENV_COST: &str = "\
The library makes a table in the service's own memory, which its memory cgroup
is charged for: 136 KiB when a program starts, as much for each child it forks,
then up to 3 MiB per 5000 sampled blocks that are live, 64 MiB at most. What finds
no room is counted and shown. Programs that need another C library than glibc
2.35 or later (Alpine's musl) do not start with it, or show no stacks.";

#[derive(Debug, Args)]
struct HeapEnvArgs {
    /// For what.
    #[arg(long = "for", value_enum, default_value = "shell", value_name = "PLACE")]
    place: Place,
    /// Sample one allocation in so many bytes.
    #[arg(long, value_name = "SIZE", value_parser = parse_period, default_value = "512K")]
    period: u64,
    /// Folder for the library [default: /usr/local/lib/reprieve, or XDG's data folder].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// As JSON.
    #[arg(long, conflicts_with = "place")]
    json: bool,
}

/// A size that is not 0.
fn parse_period(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        0 => Err("one in 0 bytes is no period".to_owned()),
        bytes => Ok(bytes),
    }
}

pub(super) fn install(args: &HeapArgs) -> Result<ExitCode, Failure> {
    let HeapCommand::Env(args) = &args.command;
    let env = HeapEnv::install(args.dir.as_deref(), args.period).map_err(|e| Failure {
        code: FAILED,
        error: anyhow::anyhow!("libreprieve_heap.so cannot be installed: {e}"),
    })?;
    let json = || serde_json::to_string_pretty(&env).unwrap_or_default() + "\n";
    print(&if args.json { json() } else { env.text(args.place) });
    Ok(ExitCode::SUCCESS)
}
