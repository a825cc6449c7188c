//! `bench unwind`: all stacks of a program of many threads, by us, by libunwind's accessors
//! for ptrace, by eu-stack and by gdb.

use super::hold::{Stopped, time};
use super::median;
use super::symbolize::build_driver;
use crate::demo::{BUILD_PACKAGES, target};
use crate::deps::{self, Package};
use crate::fixtures;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// The peers.
const PEERS: &[Package] = &[
    Package { name: "libunwind-dev", why: "libunwind, to compare with" },
    Package { name: "elfutils", why: "eu-stack, to compare with" },
    Package { name: "gdb", why: "gdb, to compare with" },
];
/// Threads of the program, its main thread not counted; each has over 30 frames.
const THREADS: usize = 200;
/// Passes over all threads in one process: the first is cold, the last counts as warm.
const PASSES: usize = 5;

/// Nanoseconds a frame in one process.
#[derive(Debug, Clone, Copy)]
struct Run {
    cold: f64,
    warm: f64,
    /// All threads, cold, in milliseconds.
    all_ms: f64,
    frames: f64,
}

/// Measures and prints.
pub fn run(root: &Path, rounds: usize) -> Result<ExitCode> {
    ensure!(rounds > 0, "--rounds must be at least 1");
    deps::ensure(BUILD_PACKAGES)?;
    deps::ensure(PEERS)?;
    let dir = target(root).join("bench-symbolize");
    fs::create_dir_all(&dir)?;
    let driver = build_driver(root, &dir)?;
    let peer = build_peer(root, &dir)?;
    let victim = fixtures::build(root)?.join("many_threads");
    let (mut ours, mut copied, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    let (mut eu_stack, mut gdb) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        // Interleaved, so that a slow minute hits all of them; a stop for each.
        let with = |work: &mut dyn FnMut(&str) -> Result<()>| {
            let stopped = Stopped::start(&victim, THREADS)?;
            work(&stopped.pid())
        };
        with(&mut |pid| {
            let told = ask(Command::new(&driver).args(["unwind", pid, &PASSES.to_string()]))?;
            ours.push(of_passes(&told["passes"])?);
            copied.push(of_passes(&told["copied"])?);
            Ok(())
        })?;
        with(&mut |pid| {
            theirs.push(of_passes(&ask(Command::new(&peer).args([pid, &PASSES.to_string()]))?["passes"])?);
            Ok(())
        })?;
        with(&mut |pid| {
            eu_stack.push(time(Command::new("eu-stack").args(["-p", pid]), THREADS)?);
            gdb.push(time(Command::new("gdb").args(["-p", pid, "-batch", "-ex", "thread apply all bt"]), THREADS)?);
            Ok(())
        })?;
    }
    println!("{THREADS} threads of over 30 frames, medians of {rounds} rounds\n");
    println!("{:34} {:>10} {:>10} {:>10} {:>8}", "", "cold ns", "warm ns", "all ms", "frames");
    let rows =
        [("reprieve, stacks copied before", &copied), ("reprieve", &ours), ("libunwind, ptrace accessors", &theirs)];
    for (name, runs) in rows {
        let middle = |what: fn(&Run) -> f64| median(runs.iter().map(what).collect()).unwrap_or(f64::NAN);
        println!(
            "{name:34} {:10.0} {:10.0} {:10.2} {:8.0}",
            middle(|r| r.cold),
            middle(|r| r.warm),
            middle(|r| r.all_ms),
            middle(|r| r.frames)
        );
    }
    for (name, times) in [("eu-stack, the whole command", eu_stack), ("gdb, the whole command", gdb)] {
        println!("{name:34} {:>10} {:>10} {:10.2}", "-", "-", median(times).context("no round")?);
    }
    Ok(ExitCode::SUCCESS)
}

fn of_passes(passes: &Value) -> Result<Run> {
    let passes = passes.as_array().filter(|passes| passes.len() == PASSES).context("not all passes are there")?;
    let number = |pass: &Value, key: &str| pass[key].as_f64().with_context(|| format!("a pass tells no {key}"));
    let each = |pass: &Value| Ok::<_, anyhow::Error>(number(pass, "ns")? / number(pass, "frames")?.max(1.0));
    let frames = number(&passes[0], "frames")?;
    ensure!(frames >= THREADS as f64 * 30.0, "{frames} frames of {THREADS} threads");
    let all_ms = number(&passes[0], "ns")? / 1e6;
    Ok(Run { cold: each(&passes[0])?, warm: each(&passes[PASSES - 1])?, all_ms, frames })
}

fn ask(command: &mut Command) -> Result<Value> {
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("{command:?} did not start"))?;
    ensure!(output.status.success(), "{command:?} failed");
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn build_peer(root: &Path, dir: &Path) -> Result<PathBuf> {
    let peer = dir.join("libunwind-peer");
    let status = Command::new("cc")
        .args(["-O2", "-Wall", "-Wextra", "-o"])
        .arg(&peer)
        .arg(root.join("symbolizer/bench/peers/libunwind.c"))
        .args(["-lunwind-ptrace", "-lunwind-generic", "-lunwind"])
        .status()?;
    ensure!(status.success(), "the peer did not compile; the compiler's words are above");
    Ok(peer)
}
