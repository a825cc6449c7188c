//! Commands in a virtual machine: this project's tests need cgroup interfaces,
//! kernels and out-of-memory machines that a developer's own computer had
//! better not have.
//!
//! The guest sees the host's files, read-only, and writes to memory. Nothing
//! is installed into an image, so a test binary built a second ago can be run
//! where it lies:
//!
//! | module | job |
//! |---|---|
//! | [`kernel`] | the guest's kernel, built once (`config`, `make`: its steps) |
//! | `init` | the script the guest starts with |
//! | `qemu` | the machine: its devices, its accelerator, its end |
//! | `selftests` | the kernel's tests of cgroups, and the series' |
//! | `output` | the command's output and exit status, from one stream |
//! | `matrix` | the series compiled in all ways |
//! | `soak` | stress on kernels that look for bugs (`splat`: what they say) |
//! | `cache` | files outside the checkout |

mod cache;
mod cli;
mod config;
mod init;
pub(crate) mod kernel;
mod make;
mod matrix;
mod output;
mod qemu;
mod selftests;
mod soak;
mod splat;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

pub(crate) use cli::{KernelCommand, VmCommand, cli, kernel_cli};
pub(crate) use kernel::{Flavor, check_series};
pub(crate) use selftests::{Rounds, test};

/// The exit status of a command that ran out of time, as timeout(1) has it.
pub(crate) const TIMED_OUT: i32 = 124;

/// A command, and the machine to run it in.
#[derive(Clone, Debug)]
pub(crate) struct GuestSpec {
    /// The program and its arguments. The program is looked up in the `PATH` of `env`.
    pub(crate) command: Vec<String>,
    /// The command's whole environment; a `PATH` and a `HOME` are added if it has none.
    pub(crate) env: Vec<(String, String)>,
    /// The host's directory the command starts in.
    pub(crate) cwd: PathBuf,
    /// The guest's memory.
    pub(crate) memory_mib: u32,
    /// The guest's processors.
    pub(crate) cpus: u32,
    /// How long the machine may take, its boot included.
    pub(crate) timeout: Duration,
    /// What is mounted on `/sys/fs/cgroup`.
    pub(crate) cgroup: Cgroup,
    /// What it boots.
    pub(crate) kernel: Flavor,
    /// Whether our own terminal becomes the guest's second serial line, `/dev/ttyS1`.
    pub(crate) terminal: bool,
}

/// The exit status of a guest that died, where that is no error.
pub(crate) const DIED: i32 = 125;

/// What few guests need.
#[derive(Clone, Debug, Default)]
pub(crate) struct Extras {
    /// Whether the guest's clocks count its instructions. One emulated processor,
    /// whose time stamp counter then counts instructions exactly.
    pub(crate) counted: bool,
    /// More parameters of the kernel.
    pub(crate) parameters: String,
    /// Whether a guest that dies is a result, [`DIED`], and not an error.
    pub(crate) may_die: bool,
}

/// A version of the cgroup interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Cgroup {
    /// One mount for each of memory, cpu, freezer and pids.
    V1,
    /// The unified hierarchy, its controllers enabled for the root's children.
    V2,
}

/// Boots a guest and runs the command of `spec` in it as root. The command's
/// two outputs appear, merged, in `out` as they are written.
///
/// Returns the exit status of the command, 128 plus the number of the signal
/// that killed it, or [`TIMED_OUT`]. `root` is the project's directory.
///
/// # Errors
///
/// When there is no kernel to boot, or the guest ended without a status; the
/// end of the kernel's log is in the message.
pub(crate) fn run(root: &Path, spec: &GuestSpec, out: &mut dyn Write) -> Result<i32> {
    run_with(root, spec, &Extras::default(), out).map(|(status, _)| status)
}

/// The same with `extras`; returns all that the kernel wrote to its console, too.
///
/// # Errors
///
/// As [`run`].
pub(crate) fn run_with(root: &Path, spec: &GuestSpec, extras: &Extras, out: &mut dyn Write) -> Result<(i32, String)> {
    let kernel = kernel::build(root, spec.kernel)?;
    let accelerator = if extras.counted { qemu::Accelerator::Tcg } else { qemu::accelerator(&kernel)? };
    qemu::boot(&kernel, accelerator, spec, extras, out)
}
