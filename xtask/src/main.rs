//! `cargo xtask`: what the project does with itself.

mod bench;
mod deb;
mod demo;
mod deps;
mod failures;
mod fixtures;
mod fuzz;
mod labelled;
mod npm;
mod pictures;
mod programs;
mod test;
mod vm;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Project tasks; each installs the Debian packages that it needs and says so.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Run a leaking program (or CMD) out of memory under reprieve and show
    /// what comes out.
    Demo {
        /// Limit for the program.
        #[arg(long, default_value = "256M")]
        memory: String,
        /// A command instead of the leaking fixture.
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Measure against peers and print ratios.
    Bench {
        #[command(subcommand)]
        bench: bench::Bench,
    },
    /// Build a Debian package with manual pages, completions and units.
    Deb {
        /// Cargo's profile.
        #[arg(long, default_value = "release")]
        profile: String,
    },
    /// Feed hostile memory, files and answers to everything that reads them.
    Fuzz {
        /// Only this target; all without.
        target: Option<String>,
        /// Time for each.
        #[arg(long, default_value_t = 600)]
        seconds: u64,
    },
    /// Make the README's pictures.
    Pictures,
    /// Run all checks and tests.
    Test {
        /// Only the stages whose name contains this.
        #[arg(long)]
        only: Option<String>,
    },
    /// Work in a virtual machine with cgroup version 2.
    Vm {
        #[command(subcommand)]
        command: vm::VmCommand,
    },
    /// Build and boot Linux with the series of kernel/patches.
    Kernel {
        #[command(subcommand)]
        command: vm::KernelCommand,
    },
}

fn main() -> Result<ExitCode> {
    let root = root();
    match Cli::parse().task {
        Task::Demo { memory, command } => demo::run(&root, &memory, &command),
        Task::Bench { bench } => bench::run(&root, &bench),
        Task::Deb { profile } => {
            println!("{}", deb::build(&root, &profile)?.display());
            Ok(ExitCode::SUCCESS)
        }
        Task::Fuzz { target, seconds } => fuzz::run(&root, target.as_deref(), seconds),
        Task::Pictures => pictures::run(&root),
        Task::Test { only } => test::run(&root, only.as_deref()),
        Task::Vm { command } => vm::cli(&root, command),
        Task::Kernel { command } => vm::kernel_cli(&root, command),
    }
}

/// The checkout.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the checkout").to_owned()
}
