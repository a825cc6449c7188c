//! `machine`: OOMs of the whole machine.

use super::{FAILED, Failure, NOT_ABLE};
use crate::config::Config;
use crate::guardian;
use crate::machine;
use crate::metrics::Feed;
use crate::run::RunError;
use crate::say;
use crate::say::Form;
use crate::size::{parse_duration, parse_size};
use crate::snapshot::{self, Parts};
use clap::Args;
use nix::sys::signal::Signal;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const MACHINE_RULE: &str = "\
A job is a cgroup below the root (--depth 2: one level further down). Of the
jobs that use more than memory.low or memory.min reserves for them, the one
with the lowest priority goes; of several, the one that is over by most. Only
when no job is over, one within its reservation. Priorities are yours:
  setfattr -n user.reprieve.priority -v 10 /sys/fs/cgroup/system.slice
or `priority` in a [[cgroup]] of the configuration, which wins, as `reservation`
does there. A job without one has 0; larger is more important. reprieve's own is
spared. `reprieve guard` does the same where machine.answer says so.

It needs a kernel with the series in kernel/patches, and root. While it runs,
memory.oom.reserve of the root cgroup is kept free for it, and the kernel does
not move locked pages (vm.compact_unevictable_allowed is 0).";

/// Where a guard's child finds its configuration: standard input is a file of its own.
const GIVEN: &str = "/proc/self/fd/0";

#[derive(Debug, Args)]
#[command(after_help = MACHINE_RULE)]
pub(super) struct MachineArgs {
    /// What to do with the job that has to go; throttled is killed if that is
    /// not enough [default: machine.on_oom].
    #[arg(long, value_enum)]
    on_oom: Option<machine::Remedy>,
    /// Memory to keep free for reprieve, at most a twentieth of the machine's
    /// [default: machine.reserve].
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    reserve: Option<u64>,
    /// Longest that everybody waits [default: machine.deadline].
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    deadline: Option<Duration>,
    /// Level of the cgroups that are jobs [default: machine.depth].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    depth: Option<u8>,
    /// How many of the biggest jobs are recorded [default: machine.jobs].
    #[arg(long, value_name = "N")]
    jobs: Option<u8>,
    /// Folder for incidents.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Record command lines, which can hold secrets.
    #[arg(long)]
    with_cmdline: bool,
    /// Form of the log: auto, text, json or journal [default: guard.log].
    #[arg(long, value_name = "FORM")]
    log: Option<Form>,
    /// Be the child of this guard.
    #[arg(long, value_name = "PID", hide = true)]
    of_guard: Option<i32>,
}

pub(super) fn watch(args: MachineArgs, config: impl Fn() -> Result<Config, Failure>) -> Result<ExitCode, Failure> {
    let Some(guard) = args.of_guard else { return answer(args, &config()?, None) };
    guardian::end_with(guard, Signal::SIGTERM);
    let failed = |error: anyhow::Error| Failure { code: FAILED, error };
    let config = Config::load_only(Path::new(GIVEN)).map_err(|problems| failed(problems.into()))?;
    // A copy, for the watchdog to have as well: the guard hears of the end when both are gone.
    let socket = std::io::stdout().as_fd().try_clone_to_owned().map_err(|error| failed(error.into()))?;
    answer(args, &config, Some(Feed::new(socket))).or_else(|Failure { code, error }| {
        // In the form of the guard's log.
        say!(Error; "{error:#}");
        Ok(ExitCode::from(code))
    })
}

fn answer(args: MachineArgs, config: &Config, feed: Option<Feed>) -> Result<ExitCode, Failure> {
    say::choose(args.log.unwrap_or(config.guard_log()));
    let request = machine::Request {
        reserve_bytes: args.reserve.unwrap_or(config.machine_reserve()),
        deadline: args.deadline.unwrap_or(config.machine_deadline()),
        remedy: args.on_oom.unwrap_or(config.machine_on_oom()),
        depth: args.depth.unwrap_or(config.machine_depth()).into(),
        worths: config.worths(),
        jobs: args.jobs.unwrap_or(config.machine_jobs()).into(),
        out: args.out.or(config.store_dir()),
        limits: config.limits(),
        options: snapshot::Options { parts: Parts::usual(args.with_cmdline || config.records_cmdlines()), alone: true },
        feed,
    };
    machine::watch(&request).map(|()| ExitCode::SUCCESS).map_err(|error| {
        let code = match &error {
            RunError::NotAllowed(_) | RunError::Brake(_) => NOT_ABLE,
            _ => FAILED,
        };
        Failure { code, error: error.into() }
    })
}
