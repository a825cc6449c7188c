//! `cargo xtask vm`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Cgroup, GuestSpec, kernel, run};

/// What `cargo xtask vm` does.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum VmCommand {
    /// Build the guest's kernel, or find it in the cache; print where it is
    Build,
    /// Run a command in a guest that sees this machine's files, read-only
    Run {
        /// The cgroup interface of the guest
        #[arg(long, value_enum, default_value = "v2")]
        cgroup: Cgroup,
        /// The guest's memory
        #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(128..))]
        memory: u32,
        /// The guest's processors; emulated ones crash now and then while more than
        /// one runs code that the kernel patches at boot
        #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8))]
        cpus: u32,
        /// End the guest, with status 124, after so many seconds
        #[arg(long, value_name = "SECS", default_value_t = 300)]
        timeout: u64,
        /// The command and its arguments
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<String>,
    },
}

/// Does it. Returns the status to exit with: that of the guest's command.
///
/// # Errors
///
/// As [`run`] and [`kernel::build`].
pub(crate) fn cli(root: &Path, command: VmCommand) -> Result<ExitCode> {
    match command {
        VmCommand::Build => {
            println!("{}", kernel::build(root)?.bzimage.display());
            Ok(ExitCode::SUCCESS)
        }
        VmCommand::Run { cgroup, memory, cpus, timeout, command } => {
            // What a program needs to find its tools and to explain itself;
            // the rest of our environment is none of the guest's business.
            let passed = ["PATH", "HOME", "LANG", "TERM", "RUST_BACKTRACE", "RUST_LOG"];
            let env =
                passed.into_iter().filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?))).collect();
            let cwd = std::env::current_dir().context("the working directory is gone")?;
            let timeout = Duration::from_secs(timeout);
            let spec = GuestSpec { command, env, cwd, memory_mib: memory, cpus, timeout, cgroup };
            // A status has eight bits; one that did not would be no success.
            Ok(ExitCode::from(u8::try_from(run(root, &spec)?).unwrap_or(u8::MAX)))
        }
    }
}
