//! `cargo xtask kernel soak`: mixed stress on kernels that look for bugs, or the whole
//! way from a leak to a verdict again and again.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Cgroup, DIED, Extras, Flavor, GuestSpec, TIMED_OUT, cache, run_with, splat};
use crate::fixtures;
use crate::programs::test_program;

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
    /// Instead of all that, so many rounds of the whole way: a program leaks in a memcg,
    /// the guardian, in the same one, holds, records, symbolizes, draws, and throttles
    /// or grants, and the program finds its memory as it was. Stops at the first that fails
    #[arg(long, value_name = "ROUNDS", conflicts_with_all = ["minutes", "debug", "seed"], value_parser = clap::value_parser!(u64).range(1..))]
    whole_way: Option<u64>,
    /// Instead: so many OOMs of a small machine, answered by `reprieve machine`
    #[arg(long, value_name = "ROUNDS", conflicts_with_all = ["minutes", "debug", "cpus", "whole_way"], value_parser = clap::value_parser!(u32).range(1..))]
    machine: Option<u32>,
    /// Only rounds with jobs of this kind, such as processes or "page tables"
    #[arg(long, value_name = "KIND", requires = "machine")]
    kind: Option<String>,
}

/// A kernel that looks for bugs, in one way or in none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Debug {
    /// As it is, hence fast
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
            Debug::None => (Flavor::Reserve, "", 1),
            Debug::Lockdep => (Flavor::Lockdep, "", 1),
            // With page tables of five levels KASAN can report an interrupt during boot:
            // while identify_cpu() has the processor's features cleared, kernel addresses
            // look wrong (pgtable_l5_enabled(), arch/x86/kernel/cpu/common.c).
            Debug::Kasan => (Flavor::Kasan, "no5lvl", 1),
            Debug::KasanOwner => (Flavor::Kasan, "no5lvl page_owner=on", 1),
            Debug::Kcsan => (Flavor::Kcsan, "", 2),
        }
    }
}

/// Little enough that the machine runs out of it soon, enough for shadow memory.
const MEMORY_MIB: u32 = 640;
/// Time for a guest to boot and to end its last round.
const MARGIN: Duration = Duration::from_secs(300);
/// The collector's test of the whole way, and the program that it is in.
const WHOLE_WAY: &str = "the_whole_way_from_inside";
const WHOLE_WAY_PROGRAM: &str = "inside";
/// What it begins a line with for each round that went well, before its number.
const WHOLE_WAY_LINE: &str = "whole way ";
/// Memory of its guest, that of the tests.
const WHOLE_WAY_MEMORY_MIB: u32 = 1024;
/// One round under emulation, at most.
const ROUND_TIME: Duration = Duration::from_secs(60);

/// Stresses each kernel and looks at its console.
///
/// # Errors
///
/// When a kernel cannot be built or booted. What it finds is a status.
pub(super) fn run(root: &Path, soak: &Soak) -> Result<ExitCode> {
    if let Some(rounds) = soak.whole_way {
        let good = whole_way(root, rounds, soak.cpus.unwrap_or(1))?;
        return Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    if let Some(rounds) = soak.machine {
        let kind = soak.kind.as_deref();
        return crate::test::machine_rounds(root, rounds, soak.seed, kind, &mut io::stdout())
            .map(|()| ExitCode::SUCCESS);
    }
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
    let (status, log) = run_with(root, &spec, &extras, &mut io::stdout())?;
    look(&format!("{debug:?}"), status, &log)
}

/// Tells how a guest ended and what its kernel had to say; whether nothing was found.
fn look(name: &str, status: i32, log: &str) -> Result<bool> {
    let splats = splat::find(log);
    let kept = cache::directory()?.join(format!("soak-{name}.log").to_lowercase().replace(' ', "-"));
    std::fs::write(&kept, log).with_context(|| format!("{}: cannot be written", kept.display()))?;

    for report in &splats.reports {
        println!("{report}\n");
    }
    for (race, count) in &splats.foreign_races {
        println!("not of the series: {count} x {race}");
    }
    let ending = match status {
        0 => "it ended well".to_owned(),
        TIMED_OUT => "the guest HUNG".to_owned(),
        DIED => "the guest DIED".to_owned(),
        status => format!("it FAILED with status {status}"),
    };
    println!("== {name}: {ending}, {} splats; console: {}", splats.reports.len(), kept.display());
    Ok(status == 0 && splats.reports.is_empty())
}

/// Rounds of the whole way in one guest; whether all of them went well.
fn whole_way(root: &Path, rounds: u64, cpus: u32) -> Result<bool> {
    let fixtures = fixtures::build(root)?;
    let program = test_program(root, WHOLE_WAY_PROGRAM)?;
    let arguments = [WHOLE_WAY, "--exact", "--include-ignored", "--nocapture"].map(str::to_owned);
    let spec = GuestSpec {
        command: [program].into_iter().chain(arguments).collect(),
        env: vec![
            ("REPRIEVE_FIXTURES".to_owned(), fixtures.display().to_string()),
            // Its usual number is 100.
            ("REPRIEVE_ROUNDS_PERCENT".to_owned(), rounds.to_string()),
        ],
        cwd: root.join("collector"),
        memory_mib: WHOLE_WAY_MEMORY_MIB,
        cpus,
        timeout: MARGIN + ROUND_TIME * u32::try_from(rounds).context("too many rounds")?,
        cgroup: Cgroup::V2,
        kernel: Flavor::Reserve,
        terminal: false,
    };
    println!("== whole way: {rounds} rounds on {cpus} processors");
    let mut said = Kept { out: io::stdout(), text: Vec::new() };
    let (status, log) = run_with(root, &spec, &Extras { may_die: true, ..Extras::default() }, &mut said)?;
    let good = well(&String::from_utf8_lossy(&said.text));
    println!("== whole way: {good} of {rounds} rounds in a row went well");
    Ok(look("whole way", status, &log)? && good == rounds)
}

/// How many rounds of the whole way went well. libtest writes before the first.
fn well(said: &str) -> u64 {
    let is_round = |line: &&str| {
        line.split_once(WHOLE_WAY_LINE).is_some_and(|(_, rest)| rest.starts_with(|first: char| first.is_ascii_digit()))
    };
    said.lines().filter(is_round).count() as u64
}

/// Passes on what is written, and keeps it.
struct Kept<W> {
    out: W,
    text: Vec<u8>,
}

impl<W: Write> Write for Kept<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.text.extend_from_slice(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_counted_and_nothing_else() {
        let said = "\nrunning 1 test\ntest the_whole_way_from_inside ... whole way 1 of 3: a\nreprieve: out of memory\n\
                    whole way 2 of 3: b\n";
        assert_eq!(well(said), 2);
        assert_eq!(well(&format!("{said}whole way 3 of 3: a\nwhole way: 3 of 3 in a row: 7 holds\nok\n")), 3);
        assert_eq!(well("running 1 test\ntest the_whole_way_from_inside ... FAILED\n"), 0);
    }

    #[test]
    fn what_is_kept_is_passed_on() {
        let mut kept = Kept { out: Vec::new(), text: Vec::new() };
        kept.write_all(b"a\n").unwrap();
        assert_eq!((&*kept.out, &*kept.text), (&b"a\n"[..], &b"a\n"[..]));
    }
}
