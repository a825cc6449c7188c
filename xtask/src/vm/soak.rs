//! `cargo xtask kernel soak`: mixed stress on kernels that look for bugs.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Cgroup, DIED, Extras, Flavor, GuestSpec, TIMED_OUT, cache, run_with, splat};
use crate::fixtures;

/// What a soak takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Soak {
    /// How long each kernel is under stress
    #[arg(long, value_name = "MINUTES", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
    /// Only this kernel; all without
    #[arg(long, value_enum)]
    debug: Option<Debug>,
    /// The guest's processors, instead of those that each kernel is best with
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=8))]
    cpus: Option<u32>,
    /// Another order of what happens
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// A kernel that looks for bugs, in one way or in none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Debug {
    /// As it is, hence fast, with two processors
    None,
    /// Order of locks, sleeping under them, timers and their memory
    Lockdep,
    /// Memory used after it was freed
    Kasan,
    /// The same, and who owns each page
    KasanOwner,
    /// Data races
    Kcsan,
}

impl Debug {
    const ALL: [Debug; 5] = [Debug::None, Debug::Lockdep, Debug::Kasan, Debug::KasanOwner, Debug::Kcsan];

    /// The kernel, its parameters, and how many processors it wants.
    fn machine(self) -> (Flavor, &'static str, u32) {
        match self {
            Debug::None => (Flavor::Reserve, "", 2),
            Debug::Lockdep => (Flavor::Lockdep, "", 1),
            Debug::Kasan => (Flavor::Kasan, "", 1),
            Debug::KasanOwner => (Flavor::Kasan, "page_owner=on", 1),
            Debug::Kcsan => (Flavor::Kcsan, "", 2),
        }
    }
}

/// Little enough that the machine runs out of it soon, enough for shadow memory.
const MEMORY_MIB: u32 = 640;
/// Time for a guest to boot and to end its last round.
const MARGIN: Duration = Duration::from_secs(300);

/// Stresses each kernel and looks at its console.
///
/// # Errors
///
/// When a kernel cannot be built or booted. What it finds is a status.
pub(super) fn run(root: &Path, soak: &Soak) -> Result<ExitCode> {
    let program = fixtures::build(root)?.join("kernel_stress");
    let mut good = true;
    for debug in Debug::ALL.into_iter().filter(|debug| soak.debug.is_none_or(|only| only == *debug)) {
        good &= one(root, &program, debug, soak)?;
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One kernel; whether nothing was found.
fn one(root: &Path, program: &Path, debug: Debug, soak: &Soak) -> Result<bool> {
    let (kernel, parameters, cpus) = debug.machine();
    let time = Duration::from_secs(60 * soak.minutes);
    let spec = GuestSpec {
        command: vec![program.display().to_string(), time.as_secs().to_string(), soak.seed.to_string()],
        env: Vec::new(),
        cwd: PathBuf::from("/"),
        memory_mib: MEMORY_MIB,
        cpus: soak.cpus.unwrap_or(cpus),
        timeout: time + MARGIN,
        cgroup: Cgroup::V2,
        kernel,
        terminal: false,
    };
    let extras = Extras { parameters: parameters.to_owned(), may_die: true, ..Extras::default() };
    println!("== {debug:?}: {} minutes on {} processors, seed {}", soak.minutes, spec.cpus, soak.seed);
    let (status, log) = run_with(root, &spec, &extras, &mut std::io::stdout())?;
    let splats = splat::find(&log);
    let kept = cache::directory()?.join(format!("soak-{debug:?}.log").to_lowercase());
    std::fs::write(&kept, &log).with_context(|| format!("{}: cannot be written", kept.display()))?;

    for report in &splats.reports {
        println!("{report}\n");
    }
    for (race, count) in &splats.foreign_races {
        println!("not of the series: {count} x {race}");
    }
    let ending = match status {
        0 => "the stress ended well".to_owned(),
        TIMED_OUT => "the guest HUNG".to_owned(),
        DIED => "the guest DIED".to_owned(),
        status => format!("the stress FAILED with status {status}"),
    };
    println!("== {debug:?}: {ending}, {} splats; console: {}", splats.reports.len(), kept.display());
    Ok(status == 0 && splats.reports.is_empty())
}
