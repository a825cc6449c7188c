//! `machine`: OOMs of the whole machine.

use super::{FAILED, Failure, NOT_ABLE};
use crate::config::Config;
use crate::machine;
use crate::run::RunError;
use crate::size::{parse_duration, parse_size};
use crate::snapshot::{self, Parts};
use clap::Args;
use std::path::PathBuf;
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
spared.

It needs a kernel with the series in kernel/patches, and root. While it runs,
memory.oom.reserve of the root cgroup is kept free for it, and the kernel does
not move locked pages (vm.compact_unevictable_allowed is 0).";

#[derive(Debug, Args)]
#[command(after_help = MACHINE_RULE)]
pub(super) struct MachineArgs {
    /// What to do with the job that has to go; throttled is killed if that is
    /// not enough.
    #[arg(long, value_enum, default_value = "kill")]
    on_oom: machine::Remedy,
    /// Memory to keep free for reprieve, at most a twentieth of the machine's.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value_t = machine::RESERVE_BYTES)]
    reserve: u64,
    /// Longest that everybody waits.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "5s")]
    deadline: Duration,
    /// Level of the cgroups that are jobs.
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u8).range(1..))]
    depth: u8,
    /// How many of the biggest jobs are recorded.
    #[arg(long, value_name = "N", default_value = "3")]
    jobs: u8,
    /// Folder for incidents.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Record command lines, which can hold secrets.
    #[arg(long)]
    with_cmdline: bool,
}

pub(super) fn watch(args: MachineArgs, config: &Config) -> Result<ExitCode, Failure> {
    let request = machine::Request {
        reserve_bytes: args.reserve,
        deadline: args.deadline,
        remedy: args.on_oom,
        depth: args.depth.into(),
        worths: config.worths(),
        jobs: args.jobs.into(),
        out: args.out.or(config.store_dir()),
        limits: config.limits(),
        options: snapshot::Options { parts: Parts::usual(args.with_cmdline || config.records_cmdlines()), alone: true },
    };
    machine::watch(&request).map(|()| ExitCode::SUCCESS).map_err(|error| {
        let code = match &error {
            RunError::NotAllowed(_) | RunError::Brake(_) => NOT_ABLE,
            _ => FAILED,
        };
        Failure { code, error: error.into() }
    })
}
