//! The command line: what was typed, and the exit code it comes to.
//!
//! Each subcommand has a module of its own with its options, its help and what it does.

mod config;
mod console;
mod decide;
mod diff;
mod doctor;
mod export;
mod find;
mod guard;
mod heap;
mod list;
mod machine;
mod redact;
mod replay;
mod run;
mod show;
mod snapshot;
mod symbolize;
mod vacuum;

use crate::analyst::{self, Phase};
use crate::config::Config;
use crate::incident::store::StoreError;
use clap::{CommandFactory, Parser, Subcommand};
use config::ConfigArgs;
use console::ConsoleArgs;
use decide::DecideArgs;
use diff::DiffArgs;
use doctor::DoctorArgs;
use export::ExportArgs;
use guard::GuardArgs;
use heap::HeapArgs;
use list::ListArgs;
use machine::MachineArgs;
use redact::RedactArgs;
use replay::ReplayArgs;
use run::RunArgs;
use show::ShowArgs;
use snapshot::SnapshotArgs;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use symbolize::SymbolizeArgs;
use vacuum::VacuumArgs;

/// Something failed.
const FAILED: u8 = 1;
/// The command line is wrong (clap's own code).
const USAGE: u8 = 2;
/// There is no such incident, folder of incidents, process or cgroup, or an incident has no such
/// sample type.
const NOT_FOUND: u8 = 3;
/// A permission or a kernel feature is missing.
const NOT_ABLE: u8 = 4;
/// Somebody else decided before, or the time was over.
const TOO_LATE: u8 = 5;
/// A policy decides otherwise than asserted.
const ASSERTION: u8 = 6;
/// `run` itself failed, as env(1) and timeout(1) say it.
const RUN_FAILED: u8 = 125;

/// Exit codes, for the help.
const CODES: &str = "\
Exit codes:
  0  done                       3  no such incident, store, process, cgroup or sample type
  1  failed                     4  a permission or kernel feature is missing
  2  wrong command line         5  decide: somebody was first, or it is too late
                                6  replay: another action than asserted
`run` gives the command's own code, 128+N when signal N killed it, 125 when
reprieve itself failed, 126 when the command cannot be run, 127 when it is not
found.";

/// Gives a program that ran out of memory a reprieve: holds it instead of
/// killing it, records who used the memory, and only then decides.
#[derive(Debug, Parser)]
#[command(name = "reprieve", version, after_help = CODES, max_term_width = 100)]
struct Cli {
    /// Folder of reprieve.toml and conf.d/*.toml; options win over it.
    #[arg(long, global = true, value_name = "DIR", default_value = crate::config::DEFAULT_DIR)]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a command under a memory limit and answer every OOM in it.
    Run(RunArgs),
    /// Answer OOMs of the whole machine: record the biggest jobs, then kill or
    /// throttle the least important one.
    Machine(MachineArgs),
    /// Guard cgroups that others made, for as long as it runs.
    Guard(GuardArgs),
    /// Show holds that wait for a person, and decide.
    Console(ConsoleArgs),
    /// Decide about a hold that waits for a person, or list them.
    Decide(DecideArgs),
    /// Record a process or cgroup as it is, without an OOM and without harm.
    Snapshot(SnapshotArgs),
    /// List incidents, oldest first: all, or those of a time, cgroup, pod, process or verdict.
    List(ListArgs),
    /// Show an incident: what happened, who used the memory, the verdict.
    Show(ShowArgs),
    /// Find more names for an incident: later, or on another machine.
    Symbolize(SymbolizeArgs),
    /// Write an incident for another tool: pprof, speedscope, Firefox, OpenTelemetry, …
    Export(ExportArgs),
    /// What grew from one incident to another, by stack and by function.
    Diff(DiffArgs),
    /// Copy an incident without names, to show it to others.
    Redact(RedactArgs),
    /// Who owns the heap of services that reprieve does not start.
    Heap(HeapArgs),
    /// What a policy would have done about recorded incidents.
    Replay(ReplayArgs),
    /// Remove incidents beyond the limits, oldest first.
    Vacuum(VacuumArgs),
    /// What is configured, and what is wrong with it.
    Config(ConfigArgs),
    /// Find out, by trying, what this machine can do.
    Doctor(DoctorArgs),
    /// What reprieve starts to post to a webhook.
    #[command(hide = true)]
    Announce { seconds: u64 },
    /// What reprieve starts to symbolize and render.
    #[command(hide = true)]
    Analyst { phase: String, staging: PathBuf, limits: String, guardian: i32 },
    /// What `doctor` lets run out of memory.
    #[command(hide = true)]
    Eater { threads: u32 },
}

/// The whole command line, for its manual pages and completions.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Parses, does, and tells the exit code.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            // In front of a command every code below 125 is the command's.
            let run = is_run(std::env::args_os().skip(1));
            return match error.exit_code() {
                0 => ExitCode::SUCCESS,
                _ if run => ExitCode::from(RUN_FAILED),
                _ => ExitCode::from(USAGE),
            };
        }
    };
    let is_run = matches!(cli.command, Command::Run(_));
    // What can be done without is not hindered by a mistake in a file.
    let config_dir = cli.config.clone();
    let config = || {
        let code = if is_run { RUN_FAILED } else { FAILED };
        Config::load(&config_dir).map_err(|problems| Failure { code, error: problems.into() })
    };
    let result = match cli.command {
        Command::Run(args) => config().and_then(|config| run::run_command(args, &config)),
        Command::Machine(args) => machine::watch(args, config),
        Command::Guard(args) => guard::watch(args, cli.config),
        Command::Console(args) => console::start(args, config),
        Command::Decide(args) => decide::decide(&args, config),
        Command::Snapshot(args) => config().and_then(|config| snapshot::take(args, &config)),
        Command::List(args) => list::list(args, config),
        Command::Show(args) => config().and_then(|config| show::show(&args, &config)),
        Command::Symbolize(args) => symbolize::symbolize(args, config),
        Command::Export(args) => export::export(&args, config),
        Command::Diff(args) => diff::diff(&args, config),
        Command::Redact(args) => redact::run(&args, config),
        Command::Replay(args) => replay::replay(&args, config),
        Command::Vacuum(args) => config().and_then(|config| vacuum::vacuum(&args, &config)),
        Command::Config(args) => config().map(|config| config::tell(&args, &config)),
        Command::Heap(args) => heap::install(&args),
        Command::Doctor(args) => Ok(doctor::diagnose(&args)),
        Command::Eater { threads } => {
            crate::doctor::eat(threads);
            Ok(ExitCode::SUCCESS)
        }
        Command::Announce { seconds } => crate::desk::announce::post(seconds)
            .map(|()| ExitCode::SUCCESS)
            .map_err(|why| Failure { code: FAILED, error: anyhow::anyhow!("the webhook was not told: {why}") }),
        Command::Analyst { phase, staging, limits, guardian } => run_analyst(&phase, &staging, &limits, guardian),
    };
    result.unwrap_or_else(|Failure { code, error }| {
        let _ = writeln!(std::io::stderr(), "reprieve: {error:#}");
        ExitCode::from(code)
    })
}

/// Whether the subcommand is `run`, in a command line that clap did not understand.
fn is_run(mut words: impl Iterator<Item = OsString>) -> bool {
    while let Some(word) = words.next() {
        match word.to_str() {
            Some("--config") => drop(words.next()),
            Some(option) if option.starts_with('-') => {}
            other => return other == Some("run"),
        }
    }
    false
}

/// An error and its exit code.
struct Failure {
    code: u8,
    error: anyhow::Error,
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let code = match error {
            StoreError::NotFound { .. } => NOT_FOUND,
            StoreError::Ambiguous { .. } => USAGE,
            _ => FAILED,
        };
        Failure { code, error: error.into() }
    }
}

fn run_analyst(phase: &str, staging: &Path, limits: &str, guardian: i32) -> Result<ExitCode, Failure> {
    let phase = [Phase::Symbolize, Phase::Render]
        .into_iter()
        .find(|p| p.name() == phase)
        .ok_or_else(|| Failure { code: USAGE, error: anyhow::anyhow!("unknown phase {phase:?}") })?;
    analyst::settle(guardian);
    analyst::child_main(phase, staging, limits).map_err(|error| Failure { code: FAILED, error })?;
    Ok(ExitCode::SUCCESS)
}

/// Prints; a reader that went away (`| head`) is no error.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Writes a file, or to standard output; a reader that went away is no error there, a full
/// disk is.
fn deliver(content: &[u8], to: Option<&Path>) -> Result<(), Failure> {
    let written = match to {
        Some(file) => std::fs::write(file, content),
        None => std::io::stdout().write_all(content).and_then(|()| std::io::stdout().flush()),
    };
    match (written, to) {
        (Err(error), Some(file)) => {
            let error = anyhow::anyhow!("{} cannot be written: {error}; name another file", file.display());
            Err(Failure { code: FAILED, error })
        }
        (Err(error), None) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure { code: FAILED, error: anyhow::anyhow!("standard output cannot be written to: {error}") })
        }
        _ => Ok(()),
    }
}

/// Columns of the terminal; 100 where there is none.
fn width() -> usize {
    // SAFETY: all-zero is a valid winsize; TIOCGWINSZ fills it or fails.
    let (result, size) = unsafe {
        let mut size: libc::winsize = std::mem::zeroed();
        (libc::ioctl(1, libc::TIOCGWINSZ, &raw mut size), size)
    };
    if result == 0 && size.ws_col >= 40 { usize::from(size.ws_col) } else { 100 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_is_found_behind_what_belongs_to_all() {
        let is = |words: &[&str]| is_run(words.iter().map(OsString::from));
        assert!(is(&["run", "--memory", "x"]) && is(&["--config", "/a", "run"]) && is(&["--config=/a", "run"]));
        assert!(!is(&["show", "run"]) && !is(&["--config", "run"]) && !is(&[]));
    }
}
