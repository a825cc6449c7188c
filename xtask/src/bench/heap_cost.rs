//! `bench heap-cost`: what sampling the heap costs a program that does nothing
//! but allocate, beside other profilers.

use super::median;
use crate::demo::{BUILD_PACKAGES, build_release};
use crate::deps::{self, Package};
use crate::fixtures;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// The peers.
const PEERS: &[Package] = &[
    Package { name: "libjemalloc2", why: "jemalloc's own profiler, to compare with" },
    Package { name: "heaptrack", why: "to compare with" },
    Package { name: "google-perftools", why: "gperftools' heap profiler, to compare with" },
];
const JEMALLOC: &str = "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2";
const GPERFTOOLS: &str = "/usr/lib/x86_64-linux-gnu/libtcmalloc.so.4";

/// Steps, slots and depth of the load; a fifth of it for those that take forty
/// times as long.
const BIG: [&str; 3] = ["10000000", "2000000", "30"];
const SMALL: [&str; 3] = ["2000000", "400000", "30"];
/// What sampling one byte in so many may cost.
const AIMS: [(&str, f64); 2] = [("512K", 1.05), ("64K", 1.10)];

/// Who runs the load.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Contestant {
    Plain,
    Ours(&'static str),
    JemallocPlain,
    JemallocProf,
    Heaptrack,
    Gperftools,
}

impl Contestant {
    fn name(self) -> String {
        match self {
            Contestant::Plain => "glibc, no profiler".to_owned(),
            Contestant::Ours(period) => format!("reprieve, 1 in {period}"),
            Contestant::JemallocPlain => "jemalloc, no profiler".to_owned(),
            Contestant::JemallocProf => "jemalloc prof, 1 in 512K".to_owned(),
            Contestant::Heaptrack => "heaptrack, every call".to_owned(),
            Contestant::Gperftools => "gperftools HEAPPROFILE".to_owned(),
        }
    }

    /// Whom it is compared with.
    fn baseline(self) -> Contestant {
        if self == Contestant::JemallocProf { Contestant::JemallocPlain } else { Contestant::Plain }
    }
}

struct Bench {
    reprieve: PathBuf,
    load: PathBuf,
}

/// Measures and prints.
pub fn run(root: &Path, rounds: usize) -> Result<ExitCode> {
    ensure!(rounds > 0, "--rounds must be at least 1");
    deps::ensure(BUILD_PACKAGES)?;
    deps::ensure(PEERS)?;
    let bench = Bench { reprieve: build_release(root)?, load: fixtures::build_bench(root)?.join("alloctest") };
    println!("CPU time of the load itself, user and system, as a ratio in one round; medians of {rounds} rounds.\n");
    println!("{:28} {:>8} {:>9} {:>12}", "", "CPU s", "x CPU", "peak RSS MiB");
    let [first, second] = AIMS.map(|(period, _)| Contestant::Ours(period));
    let big =
        [Contestant::Plain, first, Contestant::JemallocProf, Contestant::Plain, second, Contestant::JemallocPlain];
    let big = bench.measure(&big, BIG, rounds)?;
    println!("a fifth of the load:");
    bench.measure(&[Contestant::Plain, Contestant::Heaptrack, Contestant::Gperftools], SMALL, 1)?;
    let mut met = true;
    println!();
    for (period, aim) in AIMS {
        let ratio = big.iter().find(|(c, _)| *c == Contestant::Ours(period)).context("it ran")?.1;
        let word = if ratio <= aim { "met" } else { "MISSED" };
        met &= ratio <= aim;
        println!("1 in {period}: {ratio:.3} x CPU; aim {aim:.2}: {word}");
    }
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// CPU seconds and peak resident MiB.
type Cost = (f64, f64);
/// Who ran, in order, and what it cost.
type Round = Vec<(Contestant, Cost)>;

/// What a contestant cost in a round; the mean if it ran twice.
fn mean(round: &Round, who: Contestant, of: fn(&Cost) -> f64) -> f64 {
    let found: Vec<f64> = round.iter().filter(|(c, _)| *c == who).map(|(_, cost)| of(cost)).collect();
    found.iter().sum::<f64>() / found.len() as f64
}

/// The median round.
fn middle(rounds: &[Round], of: impl Fn(&Round) -> f64) -> Result<f64> {
    median(rounds.iter().map(of).collect()).context("no round")
}

impl Bench {
    /// Runs all in turn, round after round, so that a slow minute hits all;
    /// returns the median ratios.
    fn measure(&self, all: &[Contestant], load: [&str; 3], rounds: usize) -> Result<Vec<(Contestant, f64)>> {
        let mut costs: Vec<Round> = Vec::new();
        for round in 0..rounds {
            // Whoever was first is last in the next.
            let order = |i: usize| all[if round % 2 == 0 { i } else { all.len() - 1 - i }];
            let run = |i| Ok((order(i), self.run(order(i), load)?));
            costs.push((0..all.len()).map(run).collect::<Result<_>>()?);
        }
        let mut shown = Vec::new();
        for &contestant in all {
            if shown.iter().any(|(c, _)| *c == contestant) {
                continue;
            }
            let cpu = middle(&costs, |round| mean(round, contestant, |c| c.0))?;
            let peak = middle(&costs, |round| mean(round, contestant, |c| c.1))?;
            let ratio =
                middle(&costs, |round| mean(round, contestant, |c| c.0) / mean(round, contestant.baseline(), |c| c.0))?;
            println!("{:28} {cpu:8.2} {ratio:9.3} {peak:12.0}", contestant.name());
            shown.push((contestant, ratio));
        }
        Ok(shown)
    }

    fn run(&self, contestant: Contestant, load: [&str; 3]) -> Result<Cost> {
        let scratch = tempfile::tempdir()?;
        let mut command = match contestant {
            Contestant::Ours(period) => {
                let mut command = self.guarded(scratch.path());
                command.args(["--heap-period", period, "--"]);
                command
            }
            Contestant::Heaptrack => {
                let mut command = Command::new("heaptrack");
                command.arg("-o").arg(scratch.path().join("trace"));
                command
            }
            // All others under the same guard, without our library.
            _ => {
                let mut command = self.guarded(scratch.path());
                command.args(["--no-heap", "--", "env"]);
                let preload = |command: &mut Command, library: &str| {
                    command.arg(format!("LD_PRELOAD={library}"));
                };
                match contestant {
                    Contestant::JemallocPlain => preload(&mut command, JEMALLOC),
                    Contestant::JemallocProf => {
                        preload(&mut command, JEMALLOC);
                        let prefix = scratch.path().join("jeprof");
                        command.arg(format!(
                            "MALLOC_CONF=prof:true,prof_active:true,lg_prof_sample:19,prof_final:true,prof_prefix:{}",
                            prefix.display()
                        ));
                    }
                    Contestant::Gperftools => {
                        preload(&mut command, GPERFTOOLS);
                        command.arg(format!("HEAPPROFILE={}", scratch.path().join("profile").display()));
                    }
                    _ => {}
                }
                command
            }
        };
        let output = command.arg(&self.load).args(load).stdin(Stdio::null()).output()?;
        let told = String::from_utf8_lossy(&output.stdout);
        let line = told.lines().find(|line| line.starts_with("{\"cpu_us\""));
        let line =
            line.with_context(|| format!("{command:?} said {told}{}", String::from_utf8_lossy(&output.stderr)))?;
        let used: serde_json::Value = serde_json::from_str(line)?;
        let number = |key: &str| used[key].as_f64().context("a number");
        Ok((number("cpu_us")? / 1e6, number("peak_kib")? / 1024.0))
    }

    fn guarded(&self, out: &Path) -> Command {
        let mut command = Command::new(&self.reprieve);
        command.args(["run", "--memory", "8G", "--out"]).arg(out);
        command
    }
}
