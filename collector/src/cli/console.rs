//! `console`: starts the operators' console, which is a program of its own.

use super::{FAILED, Failure};
use crate::config::Config;
use crate::guard;
use clap::Args;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// Its name, beside ours or in PATH.
const PROGRAM: &str = "reprieve-console";

const CONSOLE_HELP: &str = "\
Shows every hold that waits for a person, of `reprieve guard` and of `reprieve
run` with ask or freeze in its policy, with the time that is left, who owns the
memory, and what the policy recommends.

Keys:
  up, down      choose a hold               t  throttle it
  tab           flame graph, processes,     g  grant it memory; asks how much
                memory                      z  freeze it, and decide later
  left, right   another profile             k  kill; asks first
  page up/down  scroll                      +  30 s more
  s             a shell that works while    d  leave it to the kernel
                memory is out               q  leave the console

Be root, or the guardian's user. The shell has a memory cgroup of its own, in
which memory is set aside while the console runs: start it before it is needed.";

#[derive(Debug, Args)]
#[command(after_help = CONSOLE_HELP)]
pub(super) struct ConsoleArgs {
    /// Folder of the guardians' sockets [default: guard.run_dir].
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
}

/// Does not return where it can be started.
pub(super) fn start(args: ConsoleArgs, config: impl Fn() -> Result<Config, Failure>) -> Result<ExitCode, Failure> {
    let dir = match args.run_dir {
        Some(dir) => dir,
        None => config()?.guard_run_dir().unwrap_or_else(guard::default_dir),
    };
    let beside = std::env::current_exe().map(|path| path.with_file_name(PROGRAM)).unwrap_or_default();
    let program = if beside.is_file() { beside } else { PathBuf::from(PROGRAM) };
    let error = Command::new(&program).arg(dir).exec();
    let error = anyhow::anyhow!("{} cannot be started: {error}; install it beside reprieve", program.display());
    Err(Failure { code: FAILED, error })
}
