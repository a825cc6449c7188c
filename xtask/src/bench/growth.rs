//! `bench growth`: what sampling page faults costs a program that touches memory as fast as
//! it can, and how far who grew is from who owns, by allocator and garbage.

use super::median;
use crate::demo::{BUILD_PACKAGES, build_release};
use crate::deps::{self, Package};
use crate::fixtures;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// Allocators beside glibc's.
const PACKAGES: &[Package] = &[
    Package { name: "libjemalloc2", why: "one of the allocators" },
    Package { name: "libtcmalloc-minimal4", why: "one of the allocators" },
    Package { name: "libmimalloc2.0", why: "one of the allocators" },
    Package { name: "linux-perf", why: "perf, to compare with" },
];
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";
/// Name, library, and what it puts in front of each block.
const ALLOCATORS: [(&str, Option<&str>, &str); 4] = [
    ("glibc", None, "8"),
    ("jemalloc", Some("libjemalloc.so.2"), "0"),
    ("tcmalloc", Some("libtcmalloc_minimal.so.4"), "0"),
    ("mimalloc", Some("libmimalloc.so.2"), "0"),
];
/// Garbage beside what is kept, as the load names it, and for people.
const GARBAGE: [(&str, &str); 5] = [
    ("none", "none"),
    ("small", "up to 2 KiB"),
    ("some", "0.3 % up to 300 KiB"),
    ("big", "3 % up to 300 KiB"),
    ("burst", "600 MiB before, freed"),
];
/// Sites of the load, and where garbage is made.
const SITES: [&str; 4] = ["leak_small", "leak_medium", "leak_mmap", "fill_cache"];
const WRONG: [&str; 2] = ["churn", "burst"];

/// So many faults never come: what the kernel takes for counting them, which it does whatever
/// the period is.
const NEVER: u64 = 1_000_000;
const PERIODS: [u64; 5] = [1, 16, 64, 512, NEVER];
/// Who else looks at the faults of a program: one that counts them, and one that takes as
/// much of every 64th as we do. Neither unwinds anything.
const PEERS: [(&str, &[&str]); 2] = [
    ("perf stat", &["perf", "stat", "-e", "page-faults", "--"]),
    (
        "perf record, 64",
        &["perf", "record", "-e", "page-faults", "-c", "64", "--call-graph", "dwarf,8192", "-o", "/dev/null", "--"],
    ),
];
/// What is touched, in MiB.
const TOUCHED: &str = "1024";
/// The default period, and what it may cost.
const JUDGED: u64 = 64;
const AIM_RATIO: f64 = 1.02;
const MIB: f64 = 1024.0 * 1024.0;

struct Bench {
    reprieve: PathBuf,
    load: PathBuf,
}

/// What one run printed, and its incident.
struct Outcome {
    told: Vec<(String, f64)>,
    incident: Value,
    folded: String,
}

/// Measures and prints.
pub fn run(root: &Path, rounds: usize) -> Result<ExitCode> {
    ensure!(rounds > 0, "--rounds must be at least 1");
    deps::ensure(BUILD_PACKAGES)?;
    deps::ensure(PACKAGES)?;
    let bench = Bench { reprieve: build_release(root)?, load: fixtures::build_bench(root)?.join("growth_truth") };
    let met = bench.cost(rounds)?;
    for period in [JUDGED, 1] {
        bench.attribution(period)?;
    }
    println!(
        "\ncost at most {AIM_RATIO} at period {JUDGED}, and no sample lost there: {}",
        if met { "met" } else { "MISSED" }
    );
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Bench {
    /// Whether the aim is met.
    fn cost(&self, rounds: usize) -> Result<bool> {
        println!("One thread touches {TOUCHED} MiB of small pages; ratio to the run without in the same round.");
        println!("Medians of {rounds} rounds.\n");
        println!("{:>15} {:>9} {:>8} {:>9} {:>6} {:>10}", "period", "seconds", "ratio", "samples", "lost", "rings MiB");
        let mut by_period: Vec<Vec<(f64, f64, Value)>> = vec![Vec::new(); PERIODS.len()];
        let mut by_peer: Vec<Vec<(f64, f64)>> = vec![Vec::new(); PEERS.len()];
        let mut plain = Vec::new();
        for _ in 0..rounds {
            let without = self.touch(None, &[])?.0;
            plain.push(without);
            for (period, runs) in PERIODS.iter().zip(&mut by_period) {
                let (seconds, incident) = self.touch(Some(*period), &[])?;
                runs.push((seconds, seconds / without, incident["growth"].clone()));
            }
            for ((_, peer), runs) in PEERS.iter().zip(&mut by_peer) {
                let seconds = self.touch(None, peer)?.0;
                runs.push((seconds, seconds / without));
            }
        }
        println!("{:>15} {:9.3} {:8.3}", "none", median(plain).unwrap_or_default(), 1.0);
        let mut met = true;
        for (period, runs) in PERIODS.iter().zip(by_period) {
            let seconds = median(runs.iter().map(|run| run.0).collect()).unwrap_or_default();
            let ratio = median(runs.iter().map(|run| run.1).collect()).unwrap_or_default();
            let most = |key: &str| runs.iter().filter_map(|run| run.2[key].as_u64()).max();
            let samples = most("samples").context("an incident has no growth; see its gaps")?;
            let (lost, rings) = (most("lost_samples").unwrap_or(0), most("ring_bytes").unwrap_or(0));
            let period_text = if *period == NEVER { "never".to_owned() } else { period.to_string() };
            println!("{period_text:>15} {seconds:9.3} {ratio:8.3} {samples:>9} {lost:>6} {:10.1}", rings as f64 / MIB);
            if *period == JUDGED {
                met = ratio <= AIM_RATIO && lost == 0;
            }
        }
        for ((name, _), runs) in PEERS.iter().zip(by_peer) {
            let of = |what: fn(&(f64, f64)) -> f64| median(runs.iter().map(what).collect()).unwrap_or_default();
            println!("{name:>15} {:9.3} {:8.3}", of(|run| run.0), of(|run| run.1));
        }
        Ok(met)
    }

    /// Seconds that touching took, perhaps started by another program, and the incident
    /// behind it.
    fn touch(&self, period: Option<u64>, starter: &[&str]) -> Result<(f64, Value)> {
        let outcome = self.one(period, "1300M", starter, &["touch", TOUCHED])?;
        let (_, nanoseconds) = outcome.told.first().context("the load told no time")?;
        Ok((nanoseconds / 1e9, outcome.incident))
    }

    fn attribution(&self, period: u64) -> Result<()> {
        println!(
            "\nError by site at period {period}: what it grew by against what it owns, and what counts for garbage.\n"
        );
        print!("{:9} {:22}", "allocator", "garbage");
        SITES.iter().for_each(|site| print!(" {site:>11}"));
        println!(" {:>13} {:>9} {:>6}", "garbage's MiB", "reliable", "lost");
        for (name, library, header) in ALLOCATORS {
            for (mode, garbage) in GARBAGE {
                let preload = library.map(|library| format!("LD_PRELOAD={LIBRARIES}/{library}"));
                let starter: Vec<&str> = preload.iter().flat_map(|preload| ["env", preload]).collect();
                let outcome = self.one(Some(period), "1500M", &starter, &[mode, header])?;
                print!("{name:9} {garbage:22}");
                for site in SITES {
                    let owned = outcome.told.iter().find(|(told, _)| told == site).map(|(_, bytes)| *bytes);
                    let owned = owned.with_context(|| format!("{name}, {mode}: the load told nothing of {site}"))?;
                    let grown = bytes_of(&outcome.folded, site);
                    print!(" {:>+9.1} %", (grown / owned - 1.0) * 100.0);
                }
                let wrong: f64 = WRONG.iter().map(|site| bytes_of(&outcome.folded, site)).sum();
                let growth = &outcome.incident["processes"][0]["growth"];
                let bytes = |key: &str| growth[key].as_f64().unwrap_or_default();
                let reliable = bytes("direct_bytes") + bytes("shared_bytes") + bytes("stack_bytes");
                println!(
                    " {:13.1} {:7.1} % {:>6}",
                    wrong / MIB,
                    reliable / bytes("bytes").max(1.0) * 100.0,
                    outcome.incident["growth"]["lost_samples"].as_u64().unwrap_or_default()
                );
            }
        }
        Ok(())
    }

    fn one(&self, period: Option<u64>, limit: &str, starter: &[&str], arguments: &[&str]) -> Result<Outcome> {
        let out = tempfile::tempdir()?;
        let mut command = Command::new(&self.reprieve);
        command.args(["run", "--no-heap", "--memory", limit, "--on-oom", "kill", "--out"]).arg(out.path());
        command.args(period.map(|period| format!("--growth={period}")));
        command.arg("--").args(starter);
        let output = command.arg(&self.load).args(arguments).stdin(Stdio::null()).output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        let told = String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter_map(|(what, number)| Some((what.to_owned(), number.parse().ok()?)))
            .collect();
        let entry = fs::read_dir(out.path())?.flatten().find(|e| e.path().join("incident.json").exists());
        let dir = entry.with_context(|| format!("{arguments:?}: no incident: {errors}"))?.path();
        let incident = serde_json::from_slice(&fs::read(dir.join("incident.json"))?)?;
        // Without sampling there is none.
        let folded = fs::read_to_string(dir.join("growth.folded")).unwrap_or_default();
        Ok(Outcome { told, incident, folded })
    }
}

/// Bytes of the lines that have this function in them.
fn bytes_of(folded: &str, function: &str) -> f64 {
    let is_it = |frame: &str| frame.split([' ', '(']).next() == Some(function);
    let lines = folded.lines().filter_map(|line| line.rsplit_once(' '));
    lines.filter(|(stack, _)| stack.split(';').any(is_it)).filter_map(|(_, bytes)| bytes.parse::<f64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_the_function_alone() {
        let folded = "x;main (a.c:1);burst (a.c:2) 100\nx;main (a.c:1);burst_more (a.c:3) 7\nx;burst 20\n";
        assert_eq!(bytes_of(folded, "burst"), 120.0);
        assert_eq!(bytes_of(folded, "main"), 107.0);
        assert_eq!(bytes_of(folded, "a.c"), 0.0);
    }
}
