//! `run`: a command under a memory limit.

use super::{Failure, RUN_FAILED};
use crate::config::{Config, bytes_or_auto};
use crate::desk::Place;
use crate::guard;
use crate::hold::BrakeChoice;
use crate::run::{self, RunError};
use crate::size::{parse_duration, parse_faults, parse_size};
use crate::snapshot::{self, Parts};
use crate::verdict::Action;
use clap::Args;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const RUN_EXAMPLES: &str = "\
Actions, tried in order until the program is well again:
  reclaim          have the kernel reclaim cache
  throttle[=TIME]  let it run slowly and see whether it frees memory (3s)
  grant=SIZE       raise the limit by SIZE, if the machine has it; in all as much as
                   the limit itself, or --most-granted
  freeze[=TIME]    keep it stopped until a person makes room (5min)
  ask[=TIME]       have a person decide: on the terminal, by `reprieve console` or
                   by `reprieve decide` (30s)
  signal=NAME      send this signal to its processes, for them to free memory
  hook=[TIME:]PROG run this program, which has TIME to make room (5s)
  kill             kill the least important process, then the biggest
  defer            leave it to the kernel
When all fail, the kernel's OOM killer decides.

Examples:
  reprieve run --memory 512M -- ./server
  reprieve run --memory 2G --on-oom grant=512M,ask,kill -- make -j8
  reprieve run --growth --no-heap -- ./static-server
  reprieve show";

#[derive(Debug, Args)]
#[command(after_help = RUN_EXAMPLES)]
pub(super) struct RunArgs {
    /// Limit of the memory cgroup, like 512M [default: 256M].
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// Guard the memory cgroup that reprieve is in itself, as in a container:
    /// it, or the nearest above it with a limit, with everybody in it. Limits
    /// stay as they are. Needs brake reserve.
    #[arg(long, conflicts_with = "memory")]
    here: bool,
    /// Longest the program is held for the analysis [default: 5s].
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    deadline: Option<Duration>,
    /// What to do when memory runs out, tried in order [default: reclaim,kill].
    #[arg(long, value_name = "ACTION[,ACTION…]", value_delimiter = ',')]
    on_oom: Vec<Action>,
    /// Most that grants add to the limit, over all OOMs: a size, 0, or auto, which
    /// is as much as the limit (or one grant, where that is more) [default: auto].
    #[arg(long, value_name = "SIZE", value_parser = parse_most)]
    most_granted: Option<Most>,
    /// Record, and tell what would be done; then the kernel decides.
    #[arg(long)]
    dry_run: bool,
    /// Folder for incidents [default: /var/lib/reprieve, or XDG's state folder].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// How to hold: v1 (memory.oom_control), high (memory.high), reserve
    /// (/dev/oom_reserve of a kernel with our series), or auto [default: auto].
    #[arg(long)]
    brake: Option<BrakeChoice>,
    /// Record command lines, which can hold secrets.
    #[arg(long)]
    with_cmdline: bool,
    /// Sample one allocation in so many bytes, to tell who owns the heap
    /// [default: 512K, or 64K where --memory is at most 256M].
    #[arg(long, value_name = "SIZE", value_parser = parse_size, conflicts_with = "no_heap")]
    heap_period: Option<u64>,
    /// Do not load libreprieve_heap.so into the command.
    #[arg(long)]
    no_heap: bool,
    /// Sample one page fault in so many, to tell who makes the command grow, and
    /// keep that of a process that dies [default: 64, where it is given].
    #[arg(
        long,
        value_name = "PERIOD",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "auto",
        value_parser = parse_growth,
        conflicts_with = "no_growth"
    )]
    growth: Option<Period>,
    /// Sample no page faults, whatever is configured.
    #[arg(long)]
    no_growth: bool,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Faults of one sample; `None` is what is configured.
#[derive(Debug, Clone, Copy)]
struct Period(Option<u64>);

fn parse_growth(text: &str) -> Result<Period, String> {
    if text == "auto" { Ok(Period(None)) } else { parse_faults(text).map(|faults| Period(Some(faults))) }
}

/// Bytes; `None` is what depends on the limit.
#[derive(Debug, Clone, Copy)]
struct Most(Option<u64>);

fn parse_most(text: &str) -> Result<Most, String> {
    bytes_or_auto(text).map(Most)
}

pub(super) fn run_command(args: RunArgs, config: &Config) -> Result<ExitCode, Failure> {
    let limit_bytes = args.memory.unwrap_or_else(|| config.run_memory());
    let with_heap = !args.no_heap && (args.heap_period.is_some() || config.run_records_heap());
    let period = args.heap_period.or(config.run_heap_period());
    let growth = match args.growth {
        Some(Period(period)) => Some(period.unwrap_or_else(|| config.run_growth_period())),
        None => (config.run_watches_growth() && !args.no_growth).then(|| config.run_growth_period()),
    };
    let request = run::Request {
        command: args.command,
        limit_bytes,
        here: args.here,
        manner: run::Manner {
            deadline: args.deadline.unwrap_or_else(|| config.run_deadline()),
            policy: if args.on_oom.is_empty() { config.policy() } else { config.policy().always(args.on_oom) },
            options: snapshot::Options {
                parts: Parts::usual(args.with_cmdline || config.records_cmdlines()),
                alone: false,
            },
            is_dry: args.dry_run,
        },
        out: args.out.or(config.store_dir()),
        limits: config.limits(),
        most_granted: args.most_granted.map_or_else(|| config.run_most_granted(), |Most(bytes)| bytes),
        reports_per_hour: config.run_reports_per_hour(),
        brake: args.brake.unwrap_or_else(|| config.run_brake()),
        growth_period: growth,
        desk: Place { dir: config.guard_run_dir().unwrap_or_else(guard::default_dir), manner: config.asking() },
        heap_period: with_heap.then(|| period.unwrap_or_else(|| heap_period(limit_bytes))),
    };
    match run::run(&request) {
        Ok(code) => Ok(ExitCode::from(code)),
        Err(error) => {
            let code = match &error {
                RunError::NotFound(..) => 127,
                RunError::NotExecutable(..) => 126,
                _ => RUN_FAILED,
            };
            Err(Failure { code, error: error.into() })
        }
    }
}

/// The smaller the limit the fewer samples there would be, and the cheaper they
/// are.
fn heap_period(limit_bytes: u64) -> u64 {
    if limit_bytes <= 256 << 20 { 64 << 10 } else { 512 << 10 }
}
