//! Running the analyst, as a child with limits or as a thread, and being it.

use super::{Places, SYMBOLS, render, symbolize};
use crate::guardian::{end_with, sigbus};
use crate::hold::watchdog::{open_pidfd, wait_pidfd};
use crate::incident::model::{Incident, SymbolState, Symbols};
use crate::incident::read::read_incident;
use crate::incident::store::{DRAFT, INCIDENT, Limits, Store, write_atomically};
use nix::sys::signal::Signal;
use reprieve_symbolizer::DebugDirs;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

/// Most anonymous memory the analyst may have (RLIMIT_DATA).
pub const MEMORY_BYTES: u64 = 512 << 20;
/// The guardian goes first when there is little CPU.
const NICE: i32 = 5;

/// What the analyst is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// During the hold: [`DRAFT`] to [`SYMBOLS`].
    Symbolize,
    /// After the act: everything else.
    Render,
}

impl Phase {
    /// As on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Phase::Symbolize => "symbolize",
            Phase::Render => "render",
        }
    }
}

/// Why the analyst gave no result.
#[derive(Debug)]
pub enum AnalystFailure {
    /// It could not be started.
    NotStarted(io::Error),
    /// It took too long and was ended.
    Late(Duration),
    /// It ended badly.
    Died(String),
}

impl fmt::Display for AnalystFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AnalystFailure::NotStarted(error) => write!(f, "the analyst could not be started: {error}"),
            AnalystFailure::Late(time) => write!(f, "the analyst was not ready after {:.1} s", time.as_secs_f64()),
            AnalystFailure::Died(how) => write!(f, "the analyst died: {how}"),
        }
    }
}

/// What an analyst is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A process with limits of its own.
    Process,
    /// A thread of the guardian: the reserve is for its process alone, and any other
    /// in the full memcg is held like the program.
    Thread,
}

/// A running analyst.
#[derive(Debug)]
pub struct Analyst(Running);

#[derive(Debug)]
enum Running {
    Process(Child),
    /// A thread leaves its result, or its death, in the channel.
    Thread(Receiver<Result<(), String>>, Option<Result<(), String>>),
}

impl Analyst {
    /// Starts an analyst on a staging folder, in a store that is kept within
    /// `limits`.
    pub fn start(kind: Kind, phase: Phase, staging: &Path, limits: &Limits) -> Result<Self, AnalystFailure> {
        let limits = serde_json::to_string(limits).map_err(|e| AnalystFailure::NotStarted(e.into()))?;
        match kind {
            Kind::Process => Self::start_process(phase, staging, limits),
            Kind::Thread => Self::start_thread(phase, staging.to_owned(), limits),
        }
    }

    fn start_thread(phase: Phase, staging: PathBuf, limits: String) -> Result<Self, AnalystFailure> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let work = move || {
            // Parsers must not panic; if one does, names are missing, as when a process dies.
            let result = catch_unwind(|| child_main(phase, &staging, &limits).map_err(|error| format!("{error:#}")));
            // Nobody waits for it where it was late.
            let _ = sender.send(result.unwrap_or_else(|_| Err("it panicked".to_owned())));
        };
        let thread = std::thread::Builder::new().name("reprieve-analyst".to_owned());
        thread.spawn(work).map_err(AnalystFailure::NotStarted)?;
        Ok(Analyst(Running::Thread(receiver, None)))
    }

    fn start_process(phase: Phase, staging: &Path, limits: String) -> Result<Self, AnalystFailure> {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("reprieve-analyst").arg("analyst").arg(phase.name()).arg(staging).arg(limits);
        command.arg(std::process::id().to_string());
        start_beside(command).map(|child| Analyst(Running::Process(child))).map_err(AnalystFailure::NotStarted)
    }

    /// Whether it has ended.
    pub fn is_done(&mut self) -> bool {
        match &mut self.0 {
            Running::Process(child) => !matches!(child.try_wait(), Ok(None)),
            Running::Thread(receiver, result) => {
                if result.is_none() {
                    *result = receiver.try_recv().ok();
                }
                result.is_some()
            }
        }
    }

    /// Waits for the result at most so long, then ends it; a thread cannot be ended,
    /// only left alone.
    pub fn wait(self, at_most: Duration) -> Result<(), AnalystFailure> {
        let mut child = match self.0 {
            Running::Process(child) => child,
            Running::Thread(receiver, result) => {
                let result = result.map_or_else(|| receiver.recv_timeout(at_most), Ok);
                return result.map_err(|_| AnalystFailure::Late(at_most))?.map_err(AnalystFailure::Died);
            }
        };
        let in_time = open_pidfd(child.id() as i32).is_ok_and(|fd| wait_pidfd(&fd, at_most));
        if !in_time {
            let _ = child.kill();
        }
        let status = child.wait().map_err(|error| AnalystFailure::Died(error.to_string()))?;
        match (in_time, status.code(), status.signal()) {
            (_, Some(0), _) => Ok(()),
            (false, ..) => Err(AnalystFailure::Late(at_most)),
            (_, Some(code), _) => Err(AnalystFailure::Died(format!("exit code {code}"))),
            (_, None, signal) => Err(AnalystFailure::Died(format!("signal {}", signal.unwrap_or(0)))),
        }
    }
}

/// Starts a process without a copy of our memory. fork(2) would make all pages of the
/// guardian read-only, those that are locked, too, and each thread would take a fault for
/// each page that it writes, also the one that decides on the next OOM. So there is nothing
/// to be done between fork and exec: without that std asks for posix_spawn(3), which
/// shares the memory until the exec (CLONE_VM, clone(2)).
fn start_beside(mut command: Command) -> io::Result<Child> {
    // ^C, which goes to the terminal's foreground, is for the guardian to answer.
    command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0).spawn()
}

/// Limits this process, which is an analyst of `guardian` (its PID).
pub fn settle(guardian: i32) {
    let limit = libc::rlimit { rlim_cur: MEMORY_BYTES, rlim_max: MEMORY_BYTES };
    // SAFETY: each call gets integers and a pointer to a live local.
    unsafe {
        libc::setrlimit(libc::RLIMIT_DATA, &raw const limit);
        libc::setpriority(libc::PRIO_PROCESS, 0, NICE);
    }
    // Its life without the guardian would help nobody.
    end_with(guardian, Signal::SIGKILL);
}

/// What the analyst does; the error is for the terminal.
pub fn child_main(phase: Phase, staging: &Path, limits: &str) -> anyhow::Result<()> {
    // Without the handler a truncated binary would end us; then names are missing.
    let _ = sigbus::install();
    match phase {
        Phase::Symbolize => {
            let incident = read_incident(&staging.join(DRAFT))?;
            let names = symbolize(&incident, &Places::now(&DebugDirs::default()));
            let symbols = names.into_symbols(SymbolState::BeforeVerdict);
            write_atomically(staging, SYMBOLS, &serde_json::to_vec(&symbols)?)?;
        }
        Phase::Render => {
            let mut incident = read_incident(&staging.join(INCIDENT))?;
            complete_symbols(&mut incident, staging);
            render(&incident, staging)?;
            for leftover in [DRAFT, SYMBOLS] {
                let _ = fs::remove_file(staging.join(leftover));
            }
            // Room for this one, made here because listing and removing would
            // keep the guardian from its bell.
            Store::at(staging.parent().map(Path::to_owned)).trim(&serde_json::from_str(limits)?, 1);
        }
    }
    Ok(())
}

/// Takes the symbols found before the verdict, or finds them now.
fn complete_symbols(incident: &mut Incident, staging: &Path) {
    let ready = fs::read(staging.join(SYMBOLS)).ok().and_then(|text| serde_json::from_slice::<Symbols>(&text).ok());
    match (&incident.symbols.state, ready) {
        (SymbolState::BeforeVerdict, Some(symbols)) => incident.symbols = symbols,
        (state, _) => {
            let reason = match state {
                SymbolState::AfterVerdict(reason) | SymbolState::Failed(reason) => reason.clone(),
                _ => "symbols were not asked for before".to_owned(),
            };
            let names = symbolize(incident, &Places::now(&DebugDirs::default()));
            incident.symbols = names.into_symbols(SymbolState::AfterVerdict(reason));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::page_size;
    use nix::sys::resource::{UsageWho, getrusage};

    #[test]
    fn who_starts_one_keeps_its_pages() {
        let page = page_size() as usize;
        let mut pages = vec![1u8; 256 * page];
        let faults = || getrusage(UsageWho::RUSAGE_THREAD).unwrap().minor_page_faults();
        let mut faults_of_one = || {
            let mut child = start_beside(Command::new("true")).unwrap();
            let before = faults();
            pages.iter_mut().step_by(page).for_each(|byte| *byte = std::hint::black_box(2));
            let taken = faults() - before;
            assert!(child.wait().unwrap().success());
            taken
        };
        // Another thread may have forked meanwhile.
        let least = (0..5).map(|_| faults_of_one()).min().unwrap();
        assert!(least < 16, "{least}");
    }
}
