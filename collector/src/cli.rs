//! The command line: what was typed, and the exit code it comes to.

use crate::analyst::{self, Phase, Places};
use crate::config::{self, Config, KEYS};
use crate::heap_env::{HeapEnv, Place};
use crate::hold::BrakeChoice;
use crate::incident::model::Search;
use crate::incident::show;
use crate::incident::store::{INCIDENT, Limits, Store, StoreError, read_incident};
use crate::incident::units;
use crate::run::{self, RunError};
use crate::size::{parse_age, parse_duration, parse_size};
use crate::verdict::policy::Policy;
use crate::verdict::{Action, policy};
use crate::{doctor, machine, snapshot};
use clap::{Args, Parser, Subcommand};
use reprieve_symbolizer::{DebugDirs, Debuginfod};
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
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
/// A policy decides otherwise than asserted.
const ASSERTION: u8 = 6;
/// `run` itself failed, as env(1) and timeout(1) say it.
const RUN_FAILED: u8 = 125;

/// Exit codes, for the help.
const CODES: &str = "\
Exit codes:
  0  done                       3  no such incident, process or cgroup
  1  failed                     4  a permission or kernel feature is missing
  2  wrong command line         6  replay: another action than asserted
`run` gives the command's own code, 128+N when signal N killed it, 125 when
reprieve itself failed, 126 when the command cannot be run, 127 when it is not
found.";

/// Gives a program that ran out of memory a reprieve: holds it instead of
/// killing it, records who used the memory, and only then decides.
#[derive(Debug, Parser)]
#[command(name = "reprieve", version, after_help = CODES, max_term_width = 100)]
struct Cli {
    /// Folder of reprieve.toml and conf.d/*.toml; options win over it.
    #[arg(long, global = true, value_name = "DIR", default_value = config::DEFAULT_DIR)]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a command under a memory limit and answer every OOM in it.
    #[command(after_help = RUN_EXAMPLES)]
    Run(RunArgs),
    /// Answer OOMs of the whole machine: record the biggest jobs, then kill or
    /// throttle the least important one.
    #[command(after_help = MACHINE_RULE)]
    Machine(MachineArgs),
    /// Record a process or cgroup as it is, without an OOM and without harm.
    Snapshot(SnapshotArgs),
    /// List incidents, oldest first.
    List(ListArgs),
    /// Show an incident: what happened, who used the memory, the verdict.
    Show(ShowArgs),
    /// Find more names for an incident: later, or on another machine.
    #[command(after_help = SYMBOLIZE_EXAMPLES)]
    Symbolize(SymbolizeArgs),
    /// Who owns the heap of services that reprieve does not start.
    Heap(HeapArgs),
    /// What a policy would have done about recorded incidents.
    #[command(after_help = REPLAY_EXAMPLES)]
    Replay(ReplayArgs),
    /// Remove incidents beyond the limits, oldest first.
    Vacuum(VacuumArgs),
    /// What is configured, and what is wrong with it.
    Config(ConfigArgs),
    /// Find out, by trying, what this machine can do.
    Doctor(DoctorArgs),
    /// What reprieve starts to symbolize and render.
    #[command(hide = true)]
    Analyst { phase: String, staging: PathBuf, limits: String },
    /// What `doctor` lets run out of memory.
    #[command(hide = true)]
    Eater { threads: u32 },
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
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

const MACHINE_RULE: &str = "\
A job is a cgroup below the root (--depth 2: one level further down). Of the
jobs that use more than memory.low or memory.min reserves for them, the one
with the lowest priority goes; of several, the one that is over by most. Only
when no job is over, one within its reservation. Priorities are yours:
  setfattr -n user.reprieve.priority -v 10 /sys/fs/cgroup/system.slice
A job without one has 0; larger is more important. reprieve's own is spared.

It needs a kernel with the series in kernel/patches, and root. While it runs,
memory.oom.reserve of the root cgroup is kept free for it, and the kernel does
not move locked pages (vm.compact_unevictable_allowed is 0).";

#[derive(Debug, Args)]
struct MachineArgs {
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
    /// Longest the target may be stopped [default: 2s].
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    deadline: Option<Duration>,
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

const SYMBOLIZE_EXAMPLES: &str = "\
Files are found by build ID: DIR/.build-id/xx/yyyy.debug, a copy of the other
machine's file system, or binaries and debug files lying in DIR. What the
incident has already is kept unless more is found; its folder is replaced in
one step.

Examples:
  reprieve symbolize 20261125T074340 --debug-dir ~/symbols
  reprieve symbolize ./incident --debuginfod http://localhost:8002";

#[derive(Debug, Args)]
struct SymbolizeArgs {
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

/// What was not freed, in bytes.
const INUSE: &str = "inuse_space";

const REPLAY_EXAMPLES: &str = "\
Examples:
  reprieve replay /etc/reprieve                     # all incidents of the store
  reprieve replay new.toml 20261125T074340 --json
  reprieve replay new.toml fixtures/incidents/*.json --assert grant";

#[derive(Debug, Args)]
struct ReplayArgs {
    /// A configuration: a file, or a folder like /etc/reprieve.
    policy: PathBuf,
    /// IDs, or files and folders of incidents; all of the store without.
    incidents: Vec<String>,
    /// Exit with 6 unless the first action about each is this one, like kill.
    #[arg(long, value_name = "ACTION")]
    assert: Option<String>,
    /// Folder of incidents.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// One JSON object per line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct VacuumArgs {
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

#[derive(Debug, Args)]
struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Tell what is wrong: file, line, key and remedy.
    Check,
    /// Print what is in force, as a configuration file that says the same.
    Show {
        /// Where each value comes from.
        #[arg(long)]
        origin: bool,
        /// What each key means.
        #[arg(long, conflicts_with = "origin")]
        explain: bool,
    },
}

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
    let config = || {
        let code = if is_run { RUN_FAILED } else { FAILED };
        Config::load(&cli.config).map_err(|problems| Failure { code, error: problems.into() })
    };
    let result = match cli.command {
        Command::Run(args) => config().and_then(|config| run_command(args, &config)),
        Command::Machine(args) => config().and_then(|config| watch_machine(args, &config)),
        Command::Snapshot(args) => config().and_then(|config| take_snapshot(args, &config)),
        Command::List(args) => config().and_then(|config| list(args, &config)),
        Command::Show(args) => config().and_then(|config| show_incident(&args, &config)),
        Command::Symbolize(args) => symbolize(args, config),
        Command::Replay(args) => replay(&args, config),
        Command::Vacuum(args) => config().and_then(|config| vacuum(args, &config)),
        Command::Config(ConfigArgs { command }) => config().map(|config| tell_config(&command, &config)),
        Command::Heap(HeapArgs { command: HeapCommand::Env(args) }) => heap_env(&args),
        Command::Doctor(args) => Ok(diagnose(&args)),
        Command::Eater { threads } => {
            doctor::eat(threads);
            Ok(ExitCode::SUCCESS)
        }
        Command::Analyst { phase, staging, limits } => run_analyst(&phase, &staging, &limits),
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

/// A folder that is there: a mistyped one would only show as files that are absent.
fn parse_folder(text: &str) -> Result<PathBuf, String> {
    match std::fs::read_dir(text) {
        Ok(_) => Ok(PathBuf::from(text)),
        Err(error) => Err(format!("it cannot be read: {error}; name the folder that has the debug files")),
    }
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

fn run_command(args: RunArgs, config: &Config) -> Result<ExitCode, Failure> {
    let limit_bytes = args.memory.unwrap_or_else(|| config.run_memory());
    let with_heap = !args.no_heap && (args.heap_period.is_some() || config.run_records_heap());
    let period = args.heap_period.or(config.run_heap_period());
    let request = run::Request {
        command: args.command,
        limit_bytes,
        here: args.here,
        deadline: args.deadline.unwrap_or_else(|| config.run_deadline()),
        policy: if args.on_oom.is_empty() { config.policy() } else { Policy::fixed(args.on_oom) },
        out: args.out.or(config.store_dir()),
        limits: config.limits(),
        brake: args.brake.unwrap_or_else(|| config.run_brake()),
        options: snapshot::Options { with_cmdline: args.with_cmdline || config.records_cmdlines(), alone: false },
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

fn watch_machine(args: MachineArgs, config: &Config) -> Result<ExitCode, Failure> {
    let request = machine::Request {
        reserve_bytes: args.reserve,
        deadline: args.deadline,
        remedy: args.on_oom,
        depth: args.depth.into(),
        jobs: args.jobs.into(),
        out: args.out.or(config.store_dir()),
        limits: config.limits(),
        options: snapshot::Options { with_cmdline: args.with_cmdline || config.records_cmdlines(), alone: true },
    };
    machine::watch(&request).map(|()| ExitCode::SUCCESS).map_err(|error| {
        let code = match &error {
            RunError::NotAllowed(_) | RunError::Brake(_) => NOT_ABLE,
            _ => FAILED,
        };
        Failure { code, error: error.into() }
    })
}

/// The smaller the limit the fewer samples there would be, and the cheaper they
/// are.
fn heap_period(limit_bytes: u64) -> u64 {
    if limit_bytes <= 256 << 20 { 64 << 10 } else { 512 << 10 }
}

fn take_snapshot(args: SnapshotArgs, config: &Config) -> Result<ExitCode, Failure> {
    let options = snapshot::Options { with_cmdline: args.with_cmdline || config.records_cmdlines(), alone: false };
    let deadline = args.deadline.unwrap_or_else(|| config.snapshot_deadline());
    match run::snapshot(&args.target, args.out.or(config.store_dir()), config.limits(), options, deadline) {
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

fn list(args: ListArgs, config: &Config) -> Result<ExitCode, Failure> {
    let store = Store::at(args.out.or(config.store_dir()));
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

fn show_incident(args: &ShowArgs, config: &Config) -> Result<ExitCode, Failure> {
    let (dir, incident) = Store::at(args.out.clone().or(config.store_dir())).load(args.id.as_deref())?;
    if args.json {
        let json = serde_json::to_string_pretty(&incident).map_err(|e| Failure { code: FAILED, error: e.into() })?;
        print(&format!("{json}\n"));
    } else {
        let layout = show::Layout { width: width(), sample_type: &args.sample_type };
        print(&show::page(&incident, &dir, layout));
    }
    Ok(ExitCode::SUCCESS)
}

fn symbolize(args: SymbolizeArgs, config: impl Fn() -> Result<Config, Failure>) -> Result<ExitCode, Failure> {
    let path = Path::new(&args.incident);
    let dir = if path.join(INCIDENT).is_file() {
        path.to_owned()
    } else {
        let store = args.out.map_or_else(|| config().map(|c| c.store_dir()), |dir| Ok(Some(dir)))?;
        Store::at(store).load(Some(&args.incident))?.0
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

fn replay(args: &ReplayArgs, config: impl Fn() -> Result<Config, Failure>) -> Result<ExitCode, Failure> {
    let policy = if args.policy.is_dir() { Config::load(&args.policy) } else { Config::load_file(&args.policy) };
    let policy = policy.map_err(|problems| Failure { code: FAILED, error: problems.into() })?.policy();
    if let Some(wrong) = args.assert.as_deref().filter(|wanted| !policy::is_action(wanted)) {
        let error = anyhow::anyhow!("--assert {wrong}: there is no such action; `reprieve run --help` lists all");
        return Err(Failure { code: USAGE, error });
    }
    let mut wanted = args.incidents.clone();
    let store = if wanted.iter().all(|incident| Path::new(incident).exists()) && !wanted.is_empty() {
        Store::at(args.out.clone())
    } else {
        Store::at(args.out.clone().or(config()?.store_dir()))
    };
    if wanted.is_empty() {
        wanted = store.ids()?;
    }
    let mut code = ExitCode::SUCCESS;
    for name in &wanted {
        let path = Path::new(name);
        let found = match () {
            () if path.is_dir() => read_incident(&path.join(INCIDENT)),
            () if path.is_file() => read_incident(path),
            () => store.load(Some(name)).map(|(_, incident)| incident),
        };
        // One that cannot be read must not hide the others.
        let incident = match found {
            Ok(incident) => incident,
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "reprieve: {error}");
                code = ExitCode::from(FAILED);
                continue;
            }
        };
        let choice = policy.choose(&incident);
        let differs = args.assert.as_deref().is_some_and(|wanted| !choice.begins_with(wanted));
        if differs && code == ExitCode::SUCCESS {
            code = ExitCode::from(ASSERTION);
        }
        print(&if args.json { choice.json(&incident) } else { choice.line(&incident, differs) });
    }
    Ok(code)
}

fn vacuum(args: VacuumArgs, config: &Config) -> Result<ExitCode, Failure> {
    let configured = config.limits();
    let limits = Limits {
        max_count: args.max_count.map_or(configured.max_count, |count| count as usize),
        max_use_bytes: args.max_use.unwrap_or(configured.max_use_bytes),
        keep_free_bytes: args.keep_free.unwrap_or(configured.keep_free_bytes),
        max_age: args.max_age.map_or(configured.max_age, |Age(age)| age),
    };
    let dir = args.out.or(config.store_dir());
    let store = if args.dry_run { Store::at(dir) } else { Store::open(dir)? };
    let (mut count, mut bytes, mut code) = (0, 0, ExitCode::SUCCESS);
    for removal in store.beyond(&limits, 0)? {
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
            print(&format!("{}  {:>9}  {}\n", removal.id, units::bytes(removal.bytes), removal.why));
        }
    }
    if !args.json {
        let did = if args.dry_run { "would be removed" } else { "removed" };
        print(&format!("{} {did}, {}\n", units::count(count, "incident"), units::bytes(bytes)));
    }
    Ok(code)
}

fn tell_config(command: &ConfigCommand, config: &Config) -> ExitCode {
    match command {
        ConfigCommand::Check => print("the configuration is right\n"),
        ConfigCommand::Show { explain: true, .. } => {
            KEYS.iter().for_each(|key| print(&format!("{:20} {} [{}]\n", key.name, key.meaning, key.default)));
        }
        ConfigCommand::Show { origin, .. } => print(&config.show(*origin)),
    }
    ExitCode::SUCCESS
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

fn run_analyst(phase: &str, staging: &std::path::Path, limits: &str) -> Result<ExitCode, Failure> {
    let phase = [Phase::Symbolize, Phase::Render]
        .into_iter()
        .find(|p| p.name() == phase)
        .ok_or_else(|| Failure { code: USAGE, error: anyhow::anyhow!("unknown phase {phase:?}") })?;
    analyst::child_main(phase, staging, limits).map_err(|error| Failure { code: FAILED, error })?;
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
