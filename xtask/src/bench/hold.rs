//! `bench hold`: the same victim, out of memory under reprieve, and stopped by
//! SIGSTOP for eu-stack and gdb, which cannot attach to a parked task.

use super::median;
use crate::demo::{BUILD_PACKAGES, build_release};
use crate::deps::{self, Package};
use crate::fixtures;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// The peers.
const PEERS: &[Package] = &[
    Package { name: "elfutils", why: "eu-stack, to compare with" },
    Package { name: "gdb", why: "gdb, to compare with" },
];
/// Thread counts of the victim, its main thread not counted.
const THREADS: &[usize] = &[4, 50, 200];
/// What the snapshot may cost of eu-stack's time.
const AIM_OF_EU_STACK: f64 = 0.5;
/// What the guardian may lock.
const AIM_LOCKED_BYTES: u64 = 16 << 20;
/// Memory the victim asks for and gets in the end.
const VICTIM_MIB: &str = "96";
/// A victim whose threads have all started leaks; so much is more than their stacks are.
const LEAKED_KIB: u64 = 64 << 10;
/// Time for a victim to start its threads.
const START_TIME: Duration = Duration::from_secs(30);

/// One victim size, medians of all rounds; times in milliseconds.
#[derive(Debug, Clone, Copy)]
struct Row {
    stop: f64,
    snapshot: f64,
    accounting: f64,
    names: f64,
    eu_stack: f64,
    gdb: f64,
    locked_bytes: u64,
    peak_bytes: u64,
}

/// What the incident of one hold says.
#[derive(Debug, Clone, Copy)]
struct Hold {
    stop: f64,
    snapshot: f64,
    accounting: f64,
    names: f64,
    locked_bytes: u64,
    peak_bytes: u64,
}

/// Measures and prints.
pub fn run(root: &Path, rounds: usize) -> Result<ExitCode> {
    ensure!(rounds > 0, "--rounds must be at least 1");
    deps::ensure(BUILD_PACKAGES)?;
    deps::ensure(PEERS)?;
    let reprieve = build_release(root)?;
    let victim = fixtures::build(root)?.join("many_threads");
    let mut rows = Vec::new();
    for &threads in THREADS {
        eprintln!("{threads} threads, {rounds} rounds");
        let row = measure(&reprieve, &victim, threads, rounds)?;
        rows.push((threads, row));
    }
    print(&rows);
    Ok(ExitCode::SUCCESS)
}

/// Interleaves the contestants, so that a slow minute hits all of them.
fn measure(reprieve: &Path, victim: &Path, threads: usize, rounds: usize) -> Result<Row> {
    let (mut holds, mut eu_stack, mut gdb) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        holds.push(hold(reprieve, victim, threads)?);
        let stopped = Stopped::start(victim, threads)?;
        let pid = stopped.pid();
        eu_stack.push(time(Command::new("eu-stack").args(["-p", &pid]), threads)?);
        gdb.push(time(Command::new("gdb").args(["-p", &pid, "-batch", "-ex", "thread apply all bt"]), threads)?);
    }
    let of = |value: fn(&Hold) -> f64| median(holds.iter().map(value).collect()).context("no round");
    Ok(Row {
        stop: of(|h| h.stop)?,
        snapshot: of(|h| h.snapshot)?,
        accounting: of(|h| h.accounting)?,
        names: of(|h| h.names)?,
        eu_stack: median(eu_stack).context("no round")?,
        gdb: median(gdb).context("no round")?,
        locked_bytes: holds.iter().map(|h| h.locked_bytes).max().unwrap_or(0),
        peak_bytes: holds.iter().map(|h| h.peak_bytes).max().unwrap_or(0),
    })
}

/// One OOM under reprieve; every stack must be complete.
fn hold(reprieve: &Path, victim: &Path, threads: usize) -> Result<Hold> {
    let out = tempfile::tempdir()?;
    let output = Command::new(reprieve)
        .args(["run", "--memory", "64M", "--on-oom", "grant=256M", "--out"])
        .arg(out.path())
        .arg("--")
        .arg(victim)
        .args(["--mib", VICTIM_MIB, "--threads", &threads.to_string()])
        .output()?;
    ensure!(output.status.success(), "reprieve ended badly: {}", String::from_utf8_lossy(&output.stderr));
    let list = Command::new(reprieve).args(["list", "--json", "--out"]).arg(out.path()).output()?;
    let first: serde_json::Value = serde_json::from_slice(list.stdout.split(|&b| b == b'\n').next().unwrap_or(&[]))?;
    let dir = first["dir"].as_str().context("the victim did not run out of memory")?;
    let incident: serde_json::Value = serde_json::from_slice(&fs::read(Path::new(dir).join("incident.json"))?)?;
    let stacks = incident["processes"][0]["threads"].as_array().map_or(&[][..], Vec::as_slice);
    let complete = stacks.iter().filter(|t| t["stack"]["end"]["kind"] == "complete").count();
    ensure!(complete > threads, "{complete} of {} stacks are complete", threads + 1);
    let number = |key: &str| incident["hold"][key].as_u64().with_context(|| format!("the incident has no hold.{key}"));
    let ms = |key: &str| number(key).map(|us| us as f64 / 1000.0);
    Ok(Hold {
        stop: ms("stop_window_us")?,
        snapshot: ms("snapshot_us")?,
        accounting: incident["accounting"]["took_us"].as_f64().context("the incident has no accounting")? / 1000.0,
        names: ms("symbolized_us")?,
        locked_bytes: number("guardian_locked_bytes")?,
        peak_bytes: number("guardian_peak_bytes")?,
    })
}

/// A victim with all its threads, stopped; killed when dropped.
pub(super) struct Stopped {
    child: Child,
}

impl Stopped {
    pub(super) fn start(victim: &Path, threads: usize) -> Result<Self> {
        let mut command = Command::new(victim);
        command.args(["--mib", "512", "--threads", &threads.to_string()]).stdout(Stdio::null());
        let stopped = Stopped { child: command.spawn().context("failed to start the victim")? };
        let pid = stopped.child.id();
        let status = || fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        // It leaks when each of its threads has come as deep as it will.
        let leaked = || {
            let line = status();
            let kib = line.lines().find_map(|line| line.strip_prefix("RssAnon:"));
            kib.and_then(|kib| kib.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0)
        };
        wait_for("the victim's threads", || leaked() >= LEAKED_KIB)?;
        // SAFETY: kill(2) has no pointers; the child is ours and not yet reaped.
        ensure!(unsafe { libc::kill(pid as i32, libc::SIGSTOP) } == 0, "the victim could not be stopped");
        wait_for("the victim's stop", || status().contains("State:\tT"))?;
        Ok(stopped)
    }

    pub(super) fn pid(&self) -> String {
        self.child.id().to_string()
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let begun = Instant::now();
    while !condition() {
        if begun.elapsed() > START_TIME {
            bail!("{what} did not come in {START_TIME:?}");
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

/// Wall time of a peer in milliseconds; it must have found every thread.
pub(super) fn time(command: &mut Command, threads: usize) -> Result<f64> {
    let begun = Instant::now();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("failed to run {command:?}"))?;
    let took = begun.elapsed();
    let text = String::from_utf8_lossy(&output.stdout);
    let found = text.lines().filter(|l| l.starts_with("TID ") || l.starts_with("Thread ")).count();
    ensure!(found > threads, "{command:?} showed {found} threads of {}: {text}", threads + 1);
    Ok(took.as_secs_f64() * 1000.0)
}

fn print(rows: &[(usize, Row)]) {
    println!("Median times in ms. A hold's times run from the notice of the OOM; the accounting's is its own,");
    println!("after the snapshot, and eu-stack and gdb have none.\n");
    println!("threads      stop  snapshot  accounting  + names  eu-stack       gdb   snapshot / eu-stack  / gdb");
    for (threads, row) in rows {
        println!(
            "{threads:7}  {:8.2}  {:8.2}  {:10.2} {:8.2}  {:8.1}  {:8.1}   {:19.3}  {:5.3}",
            row.stop,
            row.snapshot,
            row.accounting,
            row.names,
            row.eu_stack,
            row.gdb,
            row.snapshot / row.eu_stack,
            row.snapshot / row.gdb
        );
    }
    let worst = rows.iter().map(|(_, r)| r.snapshot / r.eu_stack).fold(0.0, f64::max);
    let locked = rows.iter().map(|(_, r)| r.locked_bytes).max().unwrap_or(0);
    let peak = rows.iter().map(|(_, r)| r.peak_bytes).max().unwrap_or(0);
    let word = |met: bool| if met { "met" } else { "MISSED" };
    println!("\nsnapshot / eu-stack at worst {worst:.3}; aim {AIM_OF_EU_STACK}: {}", word(worst <= AIM_OF_EU_STACK));
    println!(
        "guardian locked {:.1} MiB at most, peak RSS {:.1} MiB; aim {} MiB locked: {}",
        locked as f64 / f64::from(1 << 20),
        peak as f64 / f64::from(1 << 20),
        AIM_LOCKED_BYTES >> 20,
        word(locked <= AIM_LOCKED_BYTES)
    );
}
