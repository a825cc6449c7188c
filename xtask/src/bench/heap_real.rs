//! `bench heap-real`: real programs at work with the library and without it. What
//! they print must be the same, and their profiles be believable.

use crate::demo::{BUILD_PACKAGES, build_release};
use crate::deps::{self, Package};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// What the programs come from.
pub const REAL_PACKAGES: &[Package] = &[
    Package { name: "redis-server", why: "a real program at work" },
    Package { name: "redis-tools", why: "its benchmark" },
    Package { name: "python3-numpy", why: "a real program at work, with a C extension" },
    Package { name: "nodejs", why: "a real program at work" },
    Package { name: "git", why: "a real program at work" },
    Package { name: "sqlite3", why: "a real program at work" },
    Package { name: "binutils", why: "strip, to compare what rustc makes" },
];

/// Name, and the command before `seconds N FOLDER`.
const PROGRAMS: &[(&str, &[&str])] = &[
    ("redis", &["bash", "redis.sh"]),
    ("numpy", &["/usr/bin/python3", "numpy_load.py"]),
    ("node", &["node", "node_load.js"]),
    ("git gc", &["bash", "git.sh"]),
    ("rustc", &["bash", "rustc.sh"]),
    ("sqlite3", &["bash", "sqlite.sh"]),
    ("bash", &["bash", "bash_load.sh"]),
];

/// Share of samples whose stacks must reach main or their thread's start.
const REACH_PERCENT: f64 = 99.0;

/// What one program came to.
struct Outcome {
    plain: Duration,
    sampled: Duration,
    same: bool,
    profile: Profile,
}

/// Of the snapshot half-way.
#[derive(Default)]
struct Profile {
    processes: usize,
    live_samples: u64,
    samples: u64,
    reaching: u64,
    top: String,
}

/// Runs all, prints the table; fails when an output differs or a profile is empty.
pub fn run(root: &Path, seconds: u64) -> Result<ExitCode> {
    ensure!(seconds > 0, "--seconds must be at least 1");
    deps::ensure(BUILD_PACKAGES)?;
    deps::ensure(REAL_PACKAGES)?;
    let bench = Bench { reprieve: build_release(root)?, scripts: root.join("fixtures/real") };
    println!("Each works for {seconds} s alone, then as many rounds under `reprieve run --heap-period 64K`.\n");
    println!(
        "{:8} {:>8} {:>8} {:>7} {:>10} {:>8} {:>8} {:>8}  largest site",
        "", "alone s", "with s", "output", "processes", "live", "samples", "reach"
    );
    let mut well = true;
    for (name, command) in PROGRAMS {
        let outcome = bench.measure(command, seconds).with_context(|| format!("{name} failed"))?;
        let profile = &outcome.profile;
        let reach = profile.reaching as f64 * 100.0 / profile.samples.max(1) as f64;
        println!(
            "{name:8} {:8.1} {:8.1} {:>7} {:10} {:8} {:8} {reach:7.1}%  {}",
            outcome.plain.as_secs_f64(),
            outcome.sampled.as_secs_f64(),
            if outcome.same { "same" } else { "DIFFERS" },
            profile.processes,
            profile.live_samples,
            profile.samples,
            profile.top,
        );
        well &= outcome.same && profile.live_samples > 0 && reach >= REACH_PERCENT;
    }
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Bench {
    reprieve: PathBuf,
    scripts: PathBuf,
}

impl Bench {
    fn measure(&self, command: &[&str], seconds: u64) -> Result<Outcome> {
        let begun = Instant::now();
        let plain = self.command(Command::new(command[0]), command, ("seconds", seconds)).output()?;
        let plain_time = begun.elapsed();
        let alone = String::from_utf8_lossy(&plain.stdout).into_owned();
        ensure!(plain.status.success(), "{}\n{alone}{}", plain.status, String::from_utf8_lossy(&plain.stderr));
        let rounds = alone.lines().last().and_then(|line| line.strip_prefix("rounds ")).context("no rounds")?;
        let rounds = rounds.parse().context("no number of rounds")?;

        let scratch = tempfile::tempdir()?;
        let mut run = Command::new(&self.reprieve);
        run.args(["run", "--memory", "8G", "--heap-period", "64K", "--out"]).arg(scratch.path());
        run.arg("--").arg(command[0]);
        let begun = Instant::now();
        let child = self.command(run, command, ("rounds", rounds)).spawn()?;
        let pid = child.id();
        let waiting = thread::spawn(move || child.wait_with_output().map(|output| (output, begun.elapsed())));
        // Half-way, when what it keeps is there; and before, since on a machine with other
        // work it may be done in less time than it took alone.
        thread::sleep(plain_time / 4);
        let early = self.profile(pid, scratch.path());
        thread::sleep((plain_time / 2).saturating_sub(begun.elapsed()));
        let profile = self.profile(pid, scratch.path()).or(early);
        let (output, sampled) = waiting.join().map_err(|_| anyhow::anyhow!("the wait panicked"))??;
        let with = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        // The guardian's own words are no difference.
        let own = |line: &&str| !line.starts_with("reprieve: ");
        let theirs: Vec<&str> = errors.lines().filter(own).collect();
        let before = String::from_utf8_lossy(&plain.stderr);
        let same = with == alone && before.lines().eq(theirs) && output.status == plain.status;
        if !same {
            let differs = alone.lines().zip(with.lines()).find(|(a, b)| a != b);
            eprintln!("alone and with the library: {differs:?}, {}; {errors}", output.status);
        }
        Ok(Outcome { plain: plain_time, sampled, same, profile: profile? })
    }

    /// `command` with the script and its arguments.
    fn command(&self, mut start: Command, command: &[&str], (mode, number): (&str, u64)) -> Command {
        start.arg(self.scripts.join(command[1])).arg(mode).arg(number.to_string()).arg(&self.scripts);
        start.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        start
    }

    /// What a snapshot of the whole group says while it works. A short program may
    /// be caught at its start: the best of a few.
    fn profile(&self, guardian: u32, scratch: &Path) -> Result<Profile> {
        let mut best = Profile::default();
        for _ in 0..3 {
            let group = group_of(guardian)?;
            let out = tempfile::tempdir_in(scratch)?;
            let mut snapshot = Command::new(&self.reprieve);
            snapshot.args(["snapshot", "--out"]).arg(out.path()).arg(&group).stdin(Stdio::null());
            let output = snapshot.output()?;
            ensure!(output.status.success(), "snapshot: {}", String::from_utf8_lossy(&output.stderr));
            let profile = read_profile(out.path())?;
            if profile.live_samples > best.live_samples {
                best = profile;
            }
        }
        ensure!(best.live_samples > 0, "the snapshots show no heap");
        Ok(best)
    }
}

/// The cgroup of a guardian's command, below the mount.
fn group_of(guardian: u32) -> Result<String> {
    let children = fs::read_to_string(format!("/proc/{guardian}/task/{guardian}/children"))?;
    for child in children.split_whitespace() {
        let groups = fs::read_to_string(format!("/proc/{child}/cgroup")).unwrap_or_default();
        let ours =
            groups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).find(|path| path.contains("/reprieve-"));
        if let Some(path) = ours {
            return Ok(path.to_owned());
        }
    }
    bail!("no child of {guardian} is in a group of its")
}

fn read_profile(out: &Path) -> Result<Profile> {
    let folder =
        fs::read_dir(out)?.flatten().map(|entry| entry.path()).find(|path| path.join("incident.json").is_file());
    let folder = folder.context("the snapshot left no incident")?;
    let incident: Value = serde_json::from_slice(&fs::read(folder.join("incident.json"))?)?;
    let mut profile = Profile::default();
    for process in incident["processes"].as_array().into_iter().flatten() {
        for heap in process["heaps"].as_array().into_iter().flatten().filter(|heap| heap["witness"] == "preload") {
            profile.processes += 1;
            profile.live_samples += heap["inuse"]["samples"].as_u64().unwrap_or(0);
            for stack in heap["stacks"].as_array().into_iter().flatten() {
                let samples = stack["alloc"]["samples"].as_u64().unwrap_or(0);
                profile.samples += samples;
                profile.reaching += if stack["cut"] == false { samples } else { 0 };
            }
        }
    }
    let folded = fs::read_to_string(folder.join("heap.folded")).unwrap_or_default();
    let largest =
        folded.lines().filter_map(|line| line.rsplit_once(' ')).max_by_key(|(_, n)| n.parse::<u64>().unwrap_or(0));
    let frames: Vec<&str> = largest.map_or("", |(stack, _)| stack).rsplit(';').take(3).collect();
    profile.top = frames.join(" < ");
    Ok(profile)
}
