//! `bench accounting`: what it takes to tell where every byte of a memcg went, by the
//! pages, processes and mappings in it.
//!
//! Each load is also measured at a quarter of its size: what is linear takes four times
//! as long. The baseline is the kernel's own: smaps of every process, read and thrown
//! away, which tells less.

use super::median;
use crate::demo::{BUILD_PACKAGES, build_release};
use crate::deps;
use crate::fixtures;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Instant;

/// Many processes, each with a kind of memory.
struct Load {
    name: &'static str,
    kind: &'static str,
    /// Processes and MiB of each: a quarter, and the whole.
    quarter: (usize, u32),
    whole: (usize, u32),
}

/// At most 65,530 mappings are one process's (vm.max_map_count).
const LOADS: &[Load] = &[
    Load { name: "1 GiB", kind: "heap", quarter: (1, 256), whole: (1, 1024) },
    Load { name: "200 processes", kind: "heap", quarter: (50, 2), whole: (200, 2) },
    Load { name: "102,400 mappings", kind: "mappings", quarter: (1, 100), whole: (2, 200) },
];
/// How much more than four times a quarter the whole may take.
const AIM_OF_LINEAR: f64 = 1.3;
/// What a hold gives it: a second (accounting::AT_MOST in the collector).
const AIM_MS: f64 = 1000.0;

/// Medians of one size.
#[derive(Debug, Clone, Copy)]
struct Row {
    took_ms: f64,
    snapshot_ms: f64,
    smaps_ms: f64,
    unexplained: f64,
    guardian_peak_mib: f64,
}

/// Measures and prints.
pub fn run(root: &Path, rounds: usize) -> Result<ExitCode> {
    ensure!(rounds > 0, "--rounds must be at least 1");
    deps::ensure(BUILD_PACKAGES)?;
    let reprieve = build_release(root)?;
    let victim = fixtures::build(root)?.join("parked/charged");
    println!(
        "Medians of {rounds} rounds. Accounting comes after the snapshot; smaps is all of /proc/PID/smaps, read.\n"
    );
    println!(
        "load                accounting ms  snapshot ms  accounting / smaps  whole / 4 quarters  unexplained  peak MiB"
    );
    let mut met = true;
    for load in LOADS {
        eprintln!("{}, {rounds} rounds", load.name);
        let [quarter, whole] =
            [load.quarter, load.whole].map(|size| measure(&reprieve, &victim, load.kind, size, rounds));
        let (quarter, whole) = (quarter?, whole?);
        let linear = whole.took_ms / (4.0 * quarter.took_ms);
        println!(
            "{:<18}  {:13.1}  {:11.1}  {:18.3}  {linear:18.2}  {:9.2} %  {:8.1}",
            load.name,
            whole.took_ms,
            whole.snapshot_ms,
            whole.took_ms / whole.smaps_ms,
            whole.unexplained * 100.0,
            whole.guardian_peak_mib,
        );
        met &= linear <= AIM_OF_LINEAR && whole.took_ms <= AIM_MS;
    }
    let word = if met { "met" } else { "MISSED" };
    println!("\nwhole / 4 quarters at most {AIM_OF_LINEAR}, accounting within {AIM_MS} ms: {word}");
    Ok(ExitCode::SUCCESS)
}

/// Processes in a memcg, stopped by nobody but the snapshots.
fn measure(reprieve: &Path, victim: &Path, kind: &str, (processes, mib): (usize, u32), rounds: usize) -> Result<Row> {
    let group = Group::new()?;
    let mut crowd = Crowd(Vec::new());
    for _ in 0..processes {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(group.0.join("cgroup.procs")).arg(victim);
        command.args([kind, &mib.to_string(), "/tmp"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        crowd.0.push(command.spawn().context("failed to start the fixture charged")?);
    }
    for process in &mut crowd.0 {
        let mut line = String::new();
        BufReader::new(process.stdout.take().context("no output")?).read_line(&mut line)?;
        ensure!(line.starts_with('{'), "the fixture charged said {line:?}");
    }
    let mut rows = Vec::new();
    for _ in 0..rounds {
        let smaps_ms = smaps(&crowd)?;
        rows.push(Row { smaps_ms, ..look(reprieve, &group.0)? });
    }
    let of = |value: fn(&Row) -> f64| median(rows.iter().map(value).collect()).context("no round");
    Ok(Row {
        took_ms: of(|row| row.took_ms)?,
        snapshot_ms: of(|row| row.snapshot_ms)?,
        smaps_ms: of(|row| row.smaps_ms)?,
        unexplained: of(|row| row.unexplained)?,
        guardian_peak_mib: of(|row| row.guardian_peak_mib)?,
    })
}

/// One snapshot of the memcg; it must be complete.
fn look(reprieve: &Path, group: &Path) -> Result<Row> {
    let out = tempfile::tempdir()?;
    let mut command = Command::new(reprieve);
    command.args(["snapshot", "--deadline", "60s", "--out"]).arg(out.path()).arg(group);
    let output = command.output()?;
    ensure!(output.status.success(), "reprieve ended badly: {}", String::from_utf8_lossy(&output.stderr));
    let list = Command::new(reprieve).args(["list", "--json", "--out"]).arg(out.path()).output()?;
    let first: Value = serde_json::from_slice(list.stdout.split(|&b| b == b'\n').next().unwrap_or(&[]))?;
    let dir = first["dir"].as_str().context("the snapshot left no incident")?;
    let incident: Value = serde_json::from_slice(&fs::read(Path::new(dir).join("incident.json"))?)?;
    let accounting = &incident["accounting"];
    let number = |value: &Value| value.as_f64().context("the incident has no accounting");
    ensure!(accounting["gaps"].as_array().is_some_and(Vec::is_empty), "it is not complete: {}", accounting["gaps"]);
    let whole = number(&accounting["root"]["bytes"])?;
    Ok(Row {
        took_ms: number(&accounting["took_us"])? / 1000.0,
        snapshot_ms: number(&incident["hold"]["snapshot_us"])? / 1000.0,
        smaps_ms: 0.0,
        unexplained: unexplained(&accounting["root"]) / whole,
        guardian_peak_mib: number(&incident["hold"]["guardian_peak_bytes"])? / f64::from(1 << 20),
    })
}

/// Bytes in leaves that nobody can explain.
fn unexplained(node: &Value) -> f64 {
    let children = node["children"].as_array().map_or(&[][..], Vec::as_slice);
    if children.is_empty() && node["kind"] == "unexplained" {
        return node["bytes"].as_f64().unwrap_or(0.0);
    }
    children.iter().map(unexplained).sum()
}

/// Reads what the kernel tells of each mapping; milliseconds.
fn smaps(crowd: &Crowd) -> Result<f64> {
    let begun = Instant::now();
    let mut text = Vec::new();
    for process in &crowd.0 {
        text.clear();
        fs::File::open(format!("/proc/{}/smaps", process.id()))?.read_to_end(&mut text)?;
    }
    Ok(begun.elapsed().as_secs_f64() * 1000.0)
}

/// Killed when dropped.
struct Crowd(Vec<Child>);

impl Drop for Crowd {
    fn drop(&mut self) {
        for process in &mut self.0 {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// A memcg of ours, removed when dropped.
pub(super) struct Group(pub(super) PathBuf);

impl Group {
    pub(super) fn new() -> Result<Self> {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let root = if v1.is_dir() { v1 } else { Path::new("/sys/fs/cgroup") };
        let dir = root.join(format!("reprieve-bench-{}", std::process::id()));
        fs::create_dir(&dir).with_context(|| format!("failed to make {}; run it as root", dir.display()))?;
        Ok(Group(dir))
    }

    /// Limits its memory.
    pub(super) fn limit(&self, bytes: u64) -> Result<()> {
        let v1 = self.0.join("memory.limit_in_bytes");
        let file = if v1.exists() { v1 } else { self.0.join("memory.max") };
        fs::write(&file, bytes.to_string()).with_context(|| format!("failed to write {}", file.display()))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let begun = Instant::now();
        // The last of it may still be going.
        while fs::remove_dir(&self.0).is_err() && begun.elapsed().as_secs() < 5 {
            std::thread::yield_now();
        }
    }
}
