//! `cargo xtask vm` and `cargo xtask kernel`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Cgroup, Extras, Flavor, GuestSpec, Rounds, kernel, matrix, run, run_with, selftests, soak};

/// What `cargo xtask vm` does.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum VmCommand {
    /// Build the guest's kernel, or find it in the cache; print where it is
    Build,
    /// Run a command in a guest that sees this machine's files, read-only
    Run(Guest),
}

/// What `cargo xtask kernel` does.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum KernelCommand {
    /// Apply the series to Debian's Linux 6.12 and build it, or find it in the
    /// cache; print where it is
    Build {
        /// Another one of its kind
        #[arg(long, value_enum, default_value = "reserve")]
        flavor: Flavor,
    },
    /// Compile the series in every way that its options allow, with all warnings, by
    /// sparse, for arm64, and its device as a module
    Matrix(matrix::Arguments),
    /// Stress holds on kernels that look for bugs
    Soak(soak::Soak),
    /// Whether each patch applies and the kernel's own style checker minds nothing
    Check,
    /// Run a command in a guest that boots it
    Boot(Guest),
    /// The series' selftests on it, and the kernel's own on it and on the stock
    /// kernel, compared one by one
    Test(Rounds),
    /// A shell in a guest that boots it, until you leave it
    Shell {
        #[command(flatten)]
        machine: Machine,
    },
}

/// A machine.
#[derive(Debug, clap::Args)]
pub(crate) struct Machine {
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
}

/// A machine and a command in it.
#[derive(Debug, clap::Args)]
pub(crate) struct Guest {
    #[command(flatten)]
    machine: Machine,
    /// End the guest, with status 124, after so many seconds
    #[arg(long, value_name = "SECS", default_value_t = 300)]
    timeout: u64,
    /// Tell the guest's kernel so, besides what it has to be told: "numa=fake=2"
    #[arg(long, value_name = "TEXT", default_value = "")]
    parameters: String,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Longest that a shell may be open.
const SHELL_TIME: Duration = Duration::from_secs(24 * 3600);

/// Does it. Returns the status to exit with: that of the guest's command.
///
/// # Errors
///
/// As [`run`] and [`kernel::build`].
pub(crate) fn cli(root: &Path, command: VmCommand) -> Result<ExitCode> {
    match command {
        VmCommand::Build => print_build(root, Flavor::Stock),
        VmCommand::Run(guest) => guest.run(root, Flavor::Stock),
    }
}

/// The same for the kernel with the series.
///
/// # Errors
///
/// As [`run`] and [`kernel::build`].
pub(crate) fn kernel_cli(root: &Path, command: KernelCommand) -> Result<ExitCode> {
    match command {
        KernelCommand::Build { flavor } => print_build(root, flavor),
        KernelCommand::Matrix(arguments) => matrix::check(root, &arguments),
        KernelCommand::Soak(soak) => soak::run(root, &soak),
        KernelCommand::Check => kernel::check_series(root).map(|()| ExitCode::SUCCESS),
        KernelCommand::Test(rounds) => {
            selftests::test(root, rounds, &mut std::io::stdout()).map(|()| ExitCode::SUCCESS)
        }
        KernelCommand::Boot(guest) => guest.run(root, Flavor::Reserve),
        KernelCommand::Shell { machine } => {
            eprintln!("the guest sees this machine's files, read-only; `exit` ends it");
            // A shell with job control needs a terminal that is its own.
            let shell = "exec setsid -c sh -i <>/dev/ttyS1 >&0 2>&1";
            let command = ["sh", "-c", shell].map(str::to_owned).to_vec();
            let spec = GuestSpec { terminal: true, ..machine.spec(Flavor::Reserve, command, SHELL_TIME)? };
            // Its status is that of the last thing typed, and nobody's business.
            run(root, &spec, &mut std::io::stdout()).map(|_| ExitCode::SUCCESS)
        }
    }
}

fn print_build(root: &Path, flavor: Flavor) -> Result<ExitCode> {
    println!("{}", kernel::build(root, flavor)?.bzimage.display());
    Ok(ExitCode::SUCCESS)
}

impl Guest {
    fn run(self, root: &Path, kernel: Flavor) -> Result<ExitCode> {
        let spec = self.machine.spec(kernel, self.command, Duration::from_secs(self.timeout))?;
        let extras = Extras { parameters: self.parameters, ..Extras::default() };
        let (status, _) = run_with(root, &spec, &extras, &mut std::io::stdout())?;
        // A status has eight bits; one that did not would be no success.
        Ok(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)))
    }
}

impl Machine {
    fn spec(&self, kernel: Flavor, command: Vec<String>, timeout: Duration) -> Result<GuestSpec> {
        // What a program needs to find its tools and to explain itself; the rest
        // of our environment is none of the guest's business.
        let passed = ["PATH", "HOME", "LANG", "TERM", "RUST_BACKTRACE", "RUST_LOG"];
        Ok(GuestSpec {
            command,
            env: passed.into_iter().filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?))).collect(),
            cwd: std::env::current_dir().context("the working directory is gone")?,
            memory_mib: self.memory,
            cpus: self.cpus,
            timeout,
            cgroup: self.cgroup,
            kernel,
            terminal: false,
        })
    }
}
