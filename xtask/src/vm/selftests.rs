//! The kernel's selftests of cgroups, its own and those of the series, in guests.
//!
//! The series may not cost the kernel anything: its own tests run on the kernel
//! without the series and on the one with it, and are compared one by one. The
//! tests of the series must pass, all of them; a test that is skipped is one that
//! the guest's configuration lacks something for.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::cache::{self, Key, Lock, Scratch};
use super::{Cgroup, Extras, Flavor, GuestSpec, kernel, make, run_with};

/// The kernel's own.
const KERNELS: &[&str] = &["test_core", "test_freezer", "test_kill", "test_memcontrol"];
/// The series' own, of memory cgroups.
const SERIES: &[&str] = &["test_oom_hold", "test_oom_hold_memory"];
/// The series' own, of a machine that is out of memory.
const SYSTEM: &str = "test_oom_hold_system";
/// Where they are in the kernel's tree, and what they include.
const FOLDER: &str = "tools/testing/selftests";
/// Memory of a guest, and of one that is to run out of it.
const MEMORY_MIB: u32 = 1024;
const LITTLE_MEMORY_MIB: u32 = 256;
/// What the kernel of the latter is told: that it has two nodes, one of which can run
/// out of memory while the other does not.
const TWO_NODES: &str = "numa=fake=2";
/// Longest that a guest may take, with as few rounds as there can be.
const TIME: Duration = Duration::from_secs(480);
/// A round under emulation, at most.
const ROUND_TIME: Duration = Duration::from_secs(2);
/// A round in which the machine runs out of memory, at most.
const SYSTEM_ROUND_TIME: Duration = Duration::from_secs(60);

/// How often what is left to chance is tried.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Rounds {
    /// How many handlers die at random moments
    #[arg(long, value_name = "COUNT", default_value_t = Rounds::DEFAULT.rounds, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How often the machine runs out of each kind of memory
    #[arg(long, value_name = "COUNT", default_value_t = Rounds::DEFAULT.system_rounds, value_parser = clap::value_parser!(u32).range(1..))]
    system_rounds: u32,
}

impl Rounds {
    /// Few, for every day.
    pub(crate) const DEFAULT: Self = Self { rounds: 70, system_rounds: 1 };
}

/// What became of one test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Skipped,
    Failed,
}

impl Outcome {
    fn word(outcome: Option<Self>) -> &'static str {
        match outcome {
            Some(Self::Passed) => "passed",
            Some(Self::Skipped) => "skipped",
            Some(Self::Failed) => "FAILED",
            None => "no result",
        }
    }
}

/// Outcomes by program and test.
type Outcomes = BTreeMap<(String, String), Outcome>;

/// Runs all of them; writes a table of outcomes to `out`.
///
/// # Errors
///
/// When a kernel or the tests cannot be built, a guest dies, or a test fails: one of
/// the kernel's that passes without the series, any of the series.
pub(crate) fn test(root: &Path, rounds: Rounds, out: &mut dyn Write) -> Result<()> {
    let programs = build(root)?;
    let count = |name: &str, count: u32| (name.to_owned(), count.to_string());
    let mut guest = |kernel: Flavor, names: &[&str], memory_mib: u32, env: Vec<(String, String)>, timeout: Duration| {
        let begun = Instant::now();
        let result = in_guest(root, &programs, kernel, names, memory_mib, env, timeout)?;
        writeln!(out, "{}: {kernel:?} kernel, {:.0} s", names.join(" "), begun.elapsed().as_secs_f64())?;
        anyhow::Ok(result)
    };
    let (stock, _) = guest(Flavor::Stock, KERNELS, MEMORY_MIB, Vec::new(), TIME)?;
    let all = [KERNELS, SERIES].concat();
    let time = TIME + ROUND_TIME * rounds.rounds;
    let env = vec![count("OOM_HOLD_ROUNDS", rounds.rounds)];
    let (mut reserve, mut said) = guest(Flavor::Reserve, &all, MEMORY_MIB, env, time)?;
    let time = TIME + SYSTEM_ROUND_TIME * rounds.system_rounds;
    let env = vec![count("OOM_HOLD_WRECK", 1), count("OOM_HOLD_ROUNDS", rounds.system_rounds)];
    let (system, said_of_system) = guest(Flavor::Reserve, &[SYSTEM], LITTLE_MEMORY_MIB, env, time)?;
    reserve.extend(system);
    said.push_str(&said_of_system);
    // Without a handler, beside it: what is lost on a kernel as it is.
    let env = vec![count("OOM_HOLD_WRECK", 1), count("OOM_HOLD_STOCK", 1)];
    let (_, said_of_stock) = guest(Flavor::Stock, &[SYSTEM], LITTLE_MEMORY_MIB, env, TIME)?;
    writeln!(out, "the machine out of memory, stock:\n{said_of_stock}with the series:\n{said_of_system}")?;

    let failed = report(&stock, &reserve, out)?;
    if failed.is_empty() { Ok(()) } else { bail!("{}\nwhat the tests said:\n{said}", failed.join("\n")) }
}

/// Writes outcomes side by side; what is wrong about them, if anything.
fn report(stock: &Outcomes, reserve: &Outcomes, out: &mut dyn Write) -> Result<Vec<String>> {
    writeln!(out, "{:22} {:45} {:>10} {:>10}", "program", "test", "stock", "series")?;
    let mut names: Vec<_> = stock.keys().chain(reserve.keys()).collect();
    names.sort();
    names.dedup();
    let mut failed = Vec::new();
    for name in names {
        let (before, after) = (stock.get(name).copied(), reserve.get(name).copied());
        let ours = !KERNELS.contains(&name.0.as_str());
        writeln!(
            out,
            "{:22} {:45} {:>10} {:>10}",
            name.0,
            name.1,
            if ours { "" } else { Outcome::word(before) },
            Outcome::word(after),
        )?;
        if after != Some(Outcome::Passed) && (ours || before == Some(Outcome::Passed)) {
            failed.push(format!("{} {}: {} with the series", name.0, name.1, Outcome::word(after)));
        }
    }
    for program in KERNELS.iter().chain(SERIES).chain([&SYSTEM]) {
        if !reserve.keys().any(|(name, _)| name == program) {
            failed.push(format!("{program}: not one result with the series"));
        }
    }
    Ok(failed)
}

/// Runs programs in a guest; their outcomes, and what they said besides.
fn in_guest(
    root: &Path,
    programs: &Path,
    kernel: Flavor,
    names: &[&str],
    memory_mib: u32,
    env: Vec<(String, String)>,
    timeout: Duration,
) -> Result<(Outcomes, String)> {
    // Some of the kernel's ask for swap; a machine that is to run out must have none.
    let swap = "echo 256M >/sys/block/zram0/disksize && mkswap /dev/zram0 && swapon /dev/zram0 || exit";
    let mut script = vec![if memory_mib == MEMORY_MIB { swap } else { "true" }.to_owned()];
    script.extend(names.iter().map(|name| format!("echo 'program {name}'; ./{name}; true")));
    let spec = GuestSpec {
        command: vec!["sh".to_owned(), "-c".to_owned(), script.join("; ")],
        env,
        cwd: programs.to_owned(),
        memory_mib,
        cpus: 1,
        timeout,
        cgroup: Cgroup::V2,
        kernel,
        terminal: false,
    };
    let mut extras = Extras::default();
    if memory_mib == LITTLE_MEMORY_MIB {
        TWO_NODES.clone_into(&mut extras.parameters);
    }
    let mut output = Vec::new();
    let (status, _) = run_with(root, &spec, &extras, &mut output)?;
    let output = String::from_utf8_lossy(&output).replace('\r', "");
    if status != 0 {
        bail!("{}: the guest's command ended with status {status}; it said:\n{output}", names.join(" "));
    }
    Ok(parse(&output))
}

/// The outcomes in what programs print: the Test Anything Protocol, as the kernel's
/// library of selftests has it, each program under a line that names it.
fn parse(output: &str) -> (Outcomes, String) {
    let mut outcomes = Outcomes::new();
    let mut said = String::new();
    let (mut program, mut planned) = (String::new(), 0_usize);
    let complete = |program: &str, planned: usize, outcomes: &mut Outcomes| {
        let seen = outcomes.keys().filter(|(name, _)| name == program).count();
        if seen < planned {
            outcomes.insert((program.to_owned(), format!("({} more)", planned - seen)), Outcome::Failed);
        }
    };
    for line in output.lines() {
        if let Some(name) = line.strip_prefix("program ") {
            complete(&program, planned, &mut outcomes);
            (program, planned) = (name.to_owned(), 0);
        } else if let Some(count) = line.strip_prefix("1..") {
            planned = count.parse().unwrap_or(0);
        } else if let Some((name, outcome)) = outcome(line) {
            outcomes.insert((program.clone(), name), outcome);
        } else if let Some(message) = line.strip_prefix("# ") {
            // One of the kernel's says the same a thousand times.
            let message = format!("  {program}: {message}\n");
            if !said.ends_with(&message) {
                said.push_str(&message);
            }
        }
    }
    complete(&program, planned, &mut outcomes);
    (outcomes, said)
}

/// A test and its outcome, if `line` is about one: `ok 1 name`, `ok 2 # SKIP name`.
fn outcome(line: &str) -> Option<(String, Outcome)> {
    let (rest, passed) = match line.strip_prefix("not ok ") {
        Some(rest) => (rest, Outcome::Failed),
        None => (line.strip_prefix("ok ")?, Outcome::Passed),
    };
    let (number, rest) = rest.split_once(' ')?;
    number.parse::<u32>().ok()?;
    Some(match rest.strip_prefix("# SKIP ") {
        Some(name) => (name.trim().to_owned(), Outcome::Skipped),
        None => (rest.trim().to_owned(), passed),
    })
}

/// Compiles the programs, or finds them in the cache; returns their folder.
fn build(root: &Path) -> Result<PathBuf> {
    let cache = cache::directory()?;
    let patches = kernel::series(root)?;
    let mut key = Key::new().field(kernel::stdout(Command::new("gcc").arg("--version"))?.as_bytes());
    for patch in &patches {
        key = key.field(&fs::read(patch).with_context(|| format!("{}: cannot be read", patch.display()))?);
    }
    let entry = cache.join(format!("selftests-{}-{}", kernel::source_version()?, key.hex()));
    let _lock = Lock::take(&cache.join("selftests.lock"))?;
    if entry.exists() {
        return Ok(entry);
    }
    let scratch = Scratch::make(cache.join("selftests-build"))?;
    let log = cache.join("selftests-build.log");
    fs::File::create(&log).with_context(|| format!("{}: cannot be made", log.display()))?;
    let ready = compile(scratch.path(), &patches, &log)
        .with_context(|| format!("the selftests were not built; the log is {}", log.display()))?;
    fs::rename(&ready, &entry).with_context(|| format!("{}: cannot be put in place", entry.display()))?;
    Ok(entry)
}

/// Builds inside `scratch`; returns the folder with the programs.
fn compile(scratch: &Path, patches: &[PathBuf], log: &Path) -> Result<PathBuf> {
    let tree = kernel::unpack_parts(scratch, &["scripts", FOLDER], patches, log)?;
    for patch in patches {
        let step = format!("applying {}", patch.file_name().unwrap_or_default().to_string_lossy());
        make::run(&mut kernel::apply(&tree, patch), &step, log)?;
    }
    // All else that the tests include is older than the series: the host has it. The
    // whole tree would be needed to install the kernel's headers, for one that is as
    // it will be installed.
    let header = "linux/oom_reserve.h";
    let installed = tree.join("usr/include").join(header);
    fs::create_dir_all(installed.parent().unwrap_or(&tree))
        .and_then(|()| fs::copy(tree.join("include/uapi").join(header), &installed).map(drop))
        .with_context(|| format!("{}: cannot be installed", installed.display()))?;
    let ready = scratch.join("ready");
    fs::create_dir(&ready).with_context(|| format!("{}: cannot be made", ready.display()))?;
    let mut make = make::command(&tree.join(FOLDER).join("cgroup"));
    make.arg(format!("OUTPUT={}", ready.display()));
    make.args(KERNELS.iter().chain(SERIES).chain([&SYSTEM]).map(|name| ready.join(name)));
    make::run(&mut make, "compiling the selftests", log)?;
    Ok(ready)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_read() {
        let output = "program a\nTAP version 13\n1..4\n# why\n# why\nok 1 one\nnot ok 2 two\nok 3 # SKIP three\n\
                      program b\nok 1 one\n";
        let (outcomes, said) = parse(output);
        let of = |program: &str, test: &str| outcomes.get(&(program.to_owned(), test.to_owned())).copied();
        assert_eq!(of("a", "one"), Some(Outcome::Passed));
        assert_eq!(of("a", "two"), Some(Outcome::Failed));
        assert_eq!(of("a", "three"), Some(Outcome::Skipped));
        // It planned four, and said nothing of the last.
        assert_eq!(of("a", "(1 more)"), Some(Outcome::Failed));
        assert_eq!(of("b", "one"), Some(Outcome::Passed));
        assert_eq!(outcomes.len(), 5);
        assert_eq!(said, "  a: why\n");
    }

    #[test]
    fn a_test_that_the_series_breaks_fails() {
        let one = |outcome| Outcomes::from([(("test_kill".to_owned(), "t".to_owned()), outcome)]);
        let broken = |stock, reserve| {
            report(&one(stock), &one(reserve), &mut Vec::new()).unwrap().iter().any(|f| f.starts_with("test_kill t"))
        };
        assert!(broken(Outcome::Passed, Outcome::Failed));
        assert!(broken(Outcome::Passed, Outcome::Skipped));
        assert!(!broken(Outcome::Failed, Outcome::Failed));
        assert!(!broken(Outcome::Passed, Outcome::Passed));
    }
}
