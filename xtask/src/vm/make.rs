//! Runs the steps of a long build: all output to a log, one line of progress
//! to the person who waits, and the compiler's errors if it fails.

use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How many of the lines that name an error a failure shows.
pub(super) const ERRORS_SHOWN: usize = 20;

/// A polite `make` in `tree`.
pub(super) fn command(tree: &Path) -> Command {
    let mut command = Command::new("nice");
    command.args(["-n", "10", "make"]).current_dir(tree);
    environment(&mut command);
    command
}

/// Sets the variables every step of the build gets: messages this module can
/// read, and nothing in the image that depends on who built it or when.
pub(super) fn environment(command: &mut Command) -> &mut Command {
    command
        .env("LC_ALL", "C")
        .env("KBUILD_BUILD_USER", "reprieve")
        .env("KBUILD_BUILD_HOST", "reprieve")
        .env("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970")
        // A make above us would otherwise hand its job server down.
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL")
}

/// Runs one step, appending what it prints to the file `log`.
pub(super) fn run(command: &mut Command, step: &str, log: &Path) -> Result<()> {
    let unwritable = || format!("{}: cannot be written", log.display());
    let mut file = OpenOptions::new().create(true).append(true).open(log).with_context(unwritable)?;

    let (reader, writer) = io::pipe().context("a pipe cannot be made")?;
    let errors = writer.try_clone().context("a pipe cannot be shared")?;
    command.stdin(Stdio::null()).stdout(writer).stderr(errors);
    let mut child = command.spawn().with_context(|| format!("{step}: {command:?} cannot be run"))?;
    // The command holds our copies of the pipe's writing end: without this
    // the reading below would never come to its end.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let mut progress = Progress::start(step);
    let mut failures = Vec::new();
    for line in BufReader::new(reader).split(b'\n') {
        let line = line.with_context(|| format!("{step}: its output cannot be read"))?;
        file.write_all(&line).and_then(|()| file.write_all(b"\n")).with_context(unwritable)?;
        let line = String::from_utf8_lossy(&line);
        progress.saw(&line);
        if is_error(&line) {
            failures.push(line.into_owned());
        }
    }
    let status = child.wait().with_context(|| format!("{step}: {command:?} cannot be waited for"))?;
    progress.finish();
    if !status.success() {
        let first = &failures[..failures.len().min(ERRORS_SHOWN)];
        bail!("{step} failed ({status})\n{}", first.join("\n"));
    }
    Ok(())
}

/// Whether a line of the build's output says why it fails.
pub(super) fn is_error(line: &str) -> bool {
    line.contains("error: ") || line.contains("undefined reference") || line.contains("*** ")
}

/// Whether a line of the build's output is the kernel's mark of one compiled file.
fn is_compilation(line: &str) -> bool {
    let mut words = line.split_ascii_whitespace();
    line.starts_with("  ") && matches!(words.next(), Some("CC" | "AS" | "HOSTCC")) && words.next().is_some()
}

/// The line of progress: the step, seconds, and compiled files.
struct Progress<'a> {
    step: &'a str,
    began: Instant,
    shown: Instant,
    files: usize,
    terminal: bool,
}

impl<'a> Progress<'a> {
    fn start(step: &'a str) -> Self {
        let now = Instant::now();
        Self { step, began: now, shown: now, files: 0, terminal: io::stderr().is_terminal() }
    }

    /// Counts a line; shows the count now and then: often where it overwrites
    /// itself, seldom where it fills somebody's log.
    fn saw(&mut self, line: &str) {
        self.files += usize::from(is_compilation(line));
        let interval = if self.terminal { Duration::from_secs(1) } else { Duration::from_secs(30) };
        if self.shown.elapsed() >= interval {
            self.shown = Instant::now();
            self.show(if self.terminal { "\r" } else { "\n" });
        }
    }

    fn finish(&self) {
        // Quick steps say nothing.
        if self.began.elapsed() >= Duration::from_secs(1) {
            self.show("\n");
        }
    }

    fn show(&self, end: &str) {
        let seconds = self.began.elapsed().as_secs();
        let files = if self.files > 0 { format!(", {} files compiled", self.files) } else { String::new() };
        eprint!("  {}: {seconds} s{files}{end}", self.step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_compilations_only() {
        assert!(is_compilation("  CC      mm/memcontrol.o"));
        assert!(is_compilation("  AS      arch/x86/entry/entry_64.o"));
        assert!(!is_compilation("  AR      mm/built-in.a"));
        assert!(!is_compilation("CC is gcc"));
    }

    #[test]
    fn a_failing_step_shows_its_errors_and_logs_everything() {
        let log = std::env::temp_dir().join(format!("reprieve-make-{}.log", std::process::id()));
        let mut step = Command::new("sh");
        step.args(["-c", "echo fine; echo 'a.c:1: error: no such thing' >&2; exit 2"]);
        let message = run(&mut step, "testing", &log).unwrap_err().to_string();
        let logged = std::fs::read_to_string(&log).unwrap();
        std::fs::remove_file(&log).unwrap();
        assert!(message.contains("a.c:1: error: no such thing"), "{message}");
        assert!(!message.contains("fine"), "{message}");
        assert!(logged.contains("fine") && logged.contains("error: no such thing"), "{logged}");
    }
}
