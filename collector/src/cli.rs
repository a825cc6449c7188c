//! The command line: what was typed, and the exit code it comes to.

use crate::analyst::{self, Phase};
use crate::heap_env::{HeapEnv, Place};
use crate::hold::BrakeChoice;
use crate::incident::show;
use crate::incident::store::{Store, StoreError};
use crate::run::{self, RunError};
use crate::size::{parse_duration, parse_size};
use crate::verdict::Action;
use crate::{doctor, snapshot};
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Something failed.
const FAILED: u8 = 1;
/// The command line is wrong (clap's own code).
const USAGE: u8 = 2;
/// There is no such incident, process or cgroup.
const NOT_FOUND: u8 = 3;
/// A permission or a kernel feature is missing.
const NOT_ABLE: u8 = 4;
/// `run` itself failed, as env(1) and timeout(1) say it.
const RUN_FAILED: u8 = 125;

/// Exit codes, for the help.
const CODES: &str = "\
Exit codes:
  0  done                       3  no such incident, process or cgroup
  1  failed                     4  a permission or kernel feature is missing
  2  wrong command line
`run` gives the command's own code, 128+N when signal N killed it, 125 when
reprieve itself failed, 126 when the command cannot be run, 127 when it is not
found.";

/// Gives a program that ran out of memory a reprieve: holds it instead of
/// killing it, records who used the memory, and only then decides.
#[derive(Debug, Parser)]
#[command(name = "reprieve", version, after_help = CODES, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a command under a memory limit and answer every OOM in it.
    #[command(after_help = RUN_EXAMPLES)]
    Run(RunArgs),
    /// Record a process or cgroup as it is, without an OOM and without harm.
    Snapshot(SnapshotArgs),
    /// List incidents, oldest first.
    List(ListArgs),
    /// Show an incident: what happened, who used the memory, the verdict.
    Show(ShowArgs),
    /// Who owns the heap of services that reprieve does not start.
    Heap(HeapArgs),
    /// Find out, by trying, what this machine can do.
    Doctor(DoctorArgs),
    /// What reprieve starts to symbolize and render.
    #[command(hide = true)]
    Analyst { phase: String, staging: PathBuf },
}

const RUN_EXAMPLES: &str = "\
Actions, tried in order until the program is well again:
  reclaim          have the kernel reclaim cache
  throttle[=TIME]  let it run slowly and see whether it frees memory (3s)
  grant=SIZE       raise the limit by SIZE, if the machine has it
  freeze[=TIME]    keep it stopped until a person makes room (5min)
  ask[=TIME]       ask on the terminal (30s)
  kill             kill the least important process, then the biggest
When all fail, the kernel's OOM killer decides.

Examples:
  reprieve run --memory 512M -- ./server
  reprieve run --memory 2G --on-oom grant=512M,ask,kill -- make -j8
  reprieve show";

#[derive(Debug, Args)]
struct RunArgs {
    /// Limit of the memory cgroup, like 512M.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "256M")]
    memory: u64,
    /// Longest the program is held for the analysis.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "5s")]
    deadline: Duration,
    /// What to do when memory runs out, tried in order.
    #[arg(long, value_name = "ACTION[,ACTION…]", value_delimiter = ',', default_value = "reclaim,kill")]
    on_oom: Vec<Action>,
    /// Folder for incidents [default: /var/lib/reprieve, or XDG's state folder].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// How to hold: v1 (memory.oom_control), high (memory.high), reserve
    /// (/dev/oom_reserve of a kernel with our series), or auto.
    #[arg(long, default_value = "auto")]
    brake: BrakeChoice,
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
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

#[derive(Debug, Args)]
struct SnapshotArgs {
    /// A PID, or a cgroup: its folder or its path below the mount.
    target: String,
    /// Folder for incidents.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Record command lines, which can hold secrets.
    #[arg(long)]
    with_cmdline: bool,
    /// Longest the target may be stopped.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "2s")]
    deadline: Duration,
}

#[derive(Debug, Args)]
struct HeapArgs {
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

#[derive(Debug, Args)]
struct ListArgs {
    /// Folder of incidents.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// One JSON object per line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ShowArgs {
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

/// What was not freed, in bytes.
const INUSE: &str = "inuse_space";

#[derive(Debug, Args)]
struct DoctorArgs {
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// Parses, does, and tells the exit code.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            // In front of a command every code below 125 is the command's.
            let run = std::env::args_os().nth(1).is_some_and(|a| a == "run");
            return match error.exit_code() {
                0 => ExitCode::SUCCESS,
                _ if run => ExitCode::from(RUN_FAILED),
                _ => ExitCode::from(USAGE),
            };
        }
    };
    let result = match cli.command {
        Command::Run(args) => run_command(args),
        Command::Snapshot(args) => take_snapshot(args),
        Command::List(args) => list(args),
        Command::Show(args) => show_incident(&args),
        Command::Heap(HeapArgs { command: HeapCommand::Env(args) }) => heap_env(&args),
        Command::Doctor(args) => Ok(diagnose(&args)),
        Command::Analyst { phase, staging } => run_analyst(&phase, &staging),
    };
    result.unwrap_or_else(|Failure { code, error }| {
        let _ = writeln!(std::io::stderr(), "reprieve: {error:#}");
        ExitCode::from(code)
    })
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

fn run_command(args: RunArgs) -> Result<ExitCode, Failure> {
    let request = run::Request {
        command: args.command,
        limit_bytes: args.memory,
        deadline: args.deadline,
        ladder: args.on_oom,
        out: args.out,
        brake: args.brake,
        options: snapshot::Options { with_cmdline: args.with_cmdline },
        heap_period: (!args.no_heap).then(|| args.heap_period.unwrap_or_else(|| heap_period(args.memory))),
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

fn take_snapshot(args: SnapshotArgs) -> Result<ExitCode, Failure> {
    let options = snapshot::Options { with_cmdline: args.with_cmdline };
    match run::snapshot(&args.target, args.out, options, args.deadline) {
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

fn list(args: ListArgs) -> Result<ExitCode, Failure> {
    let store = Store::at(args.out);
    let mut code = ExitCode::SUCCESS;
    for id in store.ids()? {
        match store.load(Some(&id)) {
            Ok((dir, incident)) if args.json => print(&format!("{}\n", show::list_json(&incident, &dir))),
            Ok((_, incident)) => print(&format!("{}\n", show::list_line(&incident, width()))),
            // One damaged incident must not hide the others.
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "reprieve: {error}");
                code = ExitCode::from(FAILED);
            }
        }
    }
    Ok(code)
}

fn show_incident(args: &ShowArgs) -> Result<ExitCode, Failure> {
    let (dir, incident) = Store::at(args.out.clone()).load(args.id.as_deref())?;
    if args.json {
        let json = serde_json::to_string_pretty(&incident).map_err(|e| Failure { code: FAILED, error: e.into() })?;
        print(&format!("{json}\n"));
    } else {
        let layout = show::Layout { width: width(), sample_type: &args.sample_type };
        print(&show::page(&incident, &dir, layout));
    }
    Ok(ExitCode::SUCCESS)
}

fn heap_env(args: &HeapEnvArgs) -> Result<ExitCode, Failure> {
    let env = HeapEnv::install(args.dir.as_deref(), args.period).map_err(|e| Failure {
        code: FAILED,
        error: anyhow::anyhow!("libreprieve_heap.so cannot be installed: {e}"),
    })?;
    let json = || serde_json::to_string_pretty(&env).unwrap_or_default() + "\n";
    print(&if args.json { json() } else { env.text(args.place) });
    Ok(ExitCode::SUCCESS)
}

fn diagnose(args: &DoctorArgs) -> ExitCode {
    let checks = doctor::examine();
    let json = || serde_json::to_string_pretty(&checks).unwrap_or_default() + "\n";
    print(&if args.json { json() } else { doctor::table(&checks) });
    if doctor::able(&checks) { ExitCode::SUCCESS } else { ExitCode::from(NOT_ABLE) }
}

fn run_analyst(phase: &str, staging: &std::path::Path) -> Result<ExitCode, Failure> {
    let phase = [Phase::Symbolize, Phase::Render]
        .into_iter()
        .find(|p| p.name() == phase)
        .ok_or_else(|| Failure { code: USAGE, error: anyhow::anyhow!("unknown phase {phase:?}") })?;
    analyst::child_main(phase, staging).map_err(|error| Failure { code: FAILED, error })?;
    Ok(ExitCode::SUCCESS)
}

/// Prints; a reader that went away (`| head`) is no error.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
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
