//! `bench outcomes`: the same programs out of memory under the kernel's killer, earlyoom,
//! systemd-oomd where it can run, and reprieve: which jobs finish, and what is lost.

use super::field::{Field, Guard};
use super::peers::{Peer, Peers};
use crate::deps::{self, Package};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

const PACKAGES: &[Package] = &[
    Package { name: "redis-server", why: "a scenario" },
    Package { name: "redis-tools", why: "the client of redis" },
    Package { name: "python3", why: "scenarios are written in it" },
    Package { name: "g++", why: "the compiler of a scenario" },
    Package { name: "make", why: "the build of a scenario" },
    Package { name: "util-linux", why: "nsenter and unshare: a killer sees only the scenario" },
];
/// How often usage is looked at.
const GLANCE: Duration = Duration::from_millis(2);
/// Of the limit, what is free when a memcg is well.
const WELL_SHARE: u64 = 16;

/// Programs in a memcg, and the policy that reprieve has for them.
struct Scenario {
    name: &'static str,
    script: &'static str,
    limit_bytes: u64,
    /// `HERE` is the folder of the scenarios.
    policy: &'static str,
}

const SCENARIOS: [Scenario; 4] = [
    Scenario {
        name: "redis with a runaway client",
        script: "redis.py",
        limit_bytes: 128 << 20,
        policy: "on_oom = ['hook=HERE/drop_client.sh', 'throttle=20s', 'kill']\n",
    },
    Scenario {
        name: "batch job beside a service",
        script: "batch.py",
        limit_bytes: 192 << 20,
        policy: "on_oom = ['grant=128M', 'kill']\n[[cgroup]]\nmatch = '/**/batch'\npriority = -1\n",
    },
    Scenario {
        name: "build in 512 MiB",
        script: "build.py",
        limit_bytes: 512 << 20,
        policy: "most_granted = '1G'\non_oom = ['reclaim', 'grant=512M', 'grant=512M', 'kill']\n",
    },
    Scenario {
        name: "prefork workers",
        script: "prefork.py",
        limit_bytes: 96 << 20,
        policy: "on_oom = ['signal=USR1', 'kill']\n",
    },
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Killer {
    Kernel,
    Earlyoom,
    Oomd,
    Reprieve,
}

/// What a scenario says of itself.
#[derive(Debug, Deserialize)]
struct Told {
    jobs: usize,
    finished: usize,
    lost_s: f64,
    wrong: Vec<String>,
    failed: Vec<String>,
}

/// What came of a scenario under a killer.
struct Row {
    scenario: &'static str,
    killer: Killer,
    told: Told,
    /// From the first full memcg to one that is well; `None` where it was never full.
    relief: Option<Duration>,
}

struct Bench {
    program: PathBuf,
    scripts: PathBuf,
    peers: Peers,
}

/// Runs and prints.
pub fn run(root: &Path, program: &Path, only: Option<&str>) -> Result<ExitCode> {
    deps::ensure(PACKAGES)?;
    let (program, scripts) = (program.canonicalize()?, root.join("fixtures/outcomes"));
    let bench = Bench { program, scripts, peers: Peers::unpack(root)? };
    let oomd = bench.peers.oomd()?.map(drop);
    let mut killers = vec![Killer::Kernel, Killer::Earlyoom];
    killers.extend(oomd.is_ok().then_some(Killer::Oomd));
    killers.push(Killer::Reprieve);
    let mut rows = Vec::new();
    for scenario in SCENARIOS.iter().filter(|scenario| only.is_none_or(|only| scenario.name.contains(only))) {
        for &killer in &killers {
            eprintln!("{} under {}", scenario.name, killer.name());
            rows.push(
                bench.one(scenario, killer).with_context(|| format!("{} under {}", scenario.name, killer.name()))?,
            );
        }
    }
    ensure!(!rows.is_empty(), "no scenario has that in its name");
    print(&rows);
    if let Err(words) = &oomd {
        println!("systemd-oomd does not run here: {words}");
    }
    println!("earlyoom looks at the machine's memory only, with Debian's options; what it leaves is the kernel's.");
    Ok(if judge(&rows, &killers) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Killer {
    fn name(self) -> &'static str {
        match self {
            Killer::Kernel => "kernel",
            Killer::Earlyoom => "earlyoom",
            Killer::Oomd => "systemd-oomd",
            Killer::Reprieve => "reprieve",
        }
    }
}

impl Bench {
    fn one(&self, scenario: &Scenario, killer: Killer) -> Result<Row> {
        let field = Field::new()?;
        let dir = field.memcg("scene", scenario.limit_bytes)?;
        let mut peer: Option<Peer> = None;
        let mut guard = None;
        match killer {
            Killer::Kernel => {}
            Killer::Earlyoom => peer = Some(self.peers.earlyoom_apart()?),
            Killer::Oomd => peer = self.peers.oomd()?.ok(),
            Killer::Reprieve => {
                let policy = scenario.policy.replace("HERE", &self.scripts.display().to_string());
                guard = Some(Guard::start(&self.program, &format!("[guard]\n{policy}"), &field.glob(), 1)?);
            }
        }
        let mut command = Command::new("python3");
        command.arg(self.scripts.join(scenario.script)).arg(&dir).stdin(Stdio::null());
        if let Some(pid) = peer.as_ref().filter(|_| killer == Killer::Earlyoom).map(Peer::first_child).transpose()? {
            command.env("OUTCOMES_PREFIX", format!("nsenter --pid=/proc/{pid}/ns/pid --"));
        }
        let is_over = AtomicBool::new(false);
        let (output, relief) = std::thread::scope(|scope| {
            let watching = scope.spawn(|| watch(&field, &dir, scenario.limit_bytes, &is_over));
            let output = command.output();
            is_over.store(true, Relaxed);
            (output, watching.join())
        });
        let output = output?;
        let errors = String::from_utf8_lossy(&output.stderr);
        let log = guard.as_ref().map(Guard::log).or(peer.as_ref().map(Peer::log)).unwrap_or_default();
        ensure!(output.status.success(), "the scenario ended with {}: {errors}\n{log}", output.status);
        let last = String::from_utf8_lossy(&output.stdout).lines().last().unwrap_or_default().to_owned();
        let told: Told = serde_json::from_str(&last).with_context(|| format!("it said {last:?}: {errors}"))?;
        if told.finished < told.jobs && killer == Killer::Reprieve {
            eprintln!("{log}");
        }
        drop(guard);
        let relief = relief.map_err(|_| anyhow::anyhow!("who watched it panicked"))?;
        Ok(Row { scenario: scenario.name, killer, told, relief })
    }
}

/// From the first moment at which as much is used as the limit allows, to the first at which
/// enough is free below what is allowed by then.
fn watch(field: &Field, dir: &Path, limit_bytes: u64, is_over: &AtomicBool) -> Option<Duration> {
    let number = |file: &Path| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
    let (usage, limit) = (field.usage_file(dir), field.limit_file(dir));
    // What stands above the limit while it is guarded is not for the programs.
    let above = number(&limit)?.saturating_sub(limit_bytes);
    let mut full: Option<Instant> = None;
    while !is_over.load(Relaxed) {
        let (used, allowed) = (number(&usage)?, number(&limit)?.saturating_sub(above));
        match full {
            // The last few pages may be in the CPUs' hands.
            None if used + (256 << 10) >= limit_bytes => full = Some(Instant::now()),
            Some(since) if used + limit_bytes / WELL_SHARE <= allowed => return Some(since.elapsed()),
            _ => {}
        }
        std::thread::sleep(GLANCE);
    }
    full.map(|since| since.elapsed())
}

fn print(rows: &[Row]) {
    println!(
        "{:28} {:13} {:>9} {:>12} {:>14}  wrong victims",
        "scenario", "killer", "finished", "work lost s", "relief after s"
    );
    for row in rows {
        let Told { jobs, finished, lost_s, wrong, failed } = &row.told;
        let relief = row.relief.map_or("never full".to_owned(), |relief| format!("{:.2}", relief.as_secs_f64()));
        let wrong = if wrong.is_empty() { "none".to_owned() } else { wrong.join(", ") };
        let failed = if failed.is_empty() { String::new() } else { format!("; not finished: {}", failed.join(", ")) };
        let done = format!("{finished} of {jobs}");
        println!("{:28} {:13} {done:>9} {lost_s:12.1} {relief:>14}  {wrong}{failed}", row.scenario, row.killer.name());
    }
    println!();
}

/// Whether reprieve finishes as many jobs as each peer in each scenario, and more in total.
fn judge(rows: &[Row], killers: &[Killer]) -> bool {
    let finished = |killer: Killer, scenario: Option<&str>| -> usize {
        let of = rows.iter().filter(|row| row.killer == killer && scenario.is_none_or(|name| row.scenario == name));
        of.map(|row| row.told.finished).sum()
    };
    let mut met = true;
    for &peer in killers.iter().filter(|killer| **killer != Killer::Reprieve) {
        let worse: Vec<&str> = rows
            .iter()
            .filter(|row| row.killer == peer && row.told.finished > finished(Killer::Reprieve, Some(row.scenario)))
            .map(|row| row.scenario)
            .collect();
        let (ours, theirs) = (finished(Killer::Reprieve, None), finished(peer, None));
        let is_met = worse.is_empty() && ours > theirs;
        let word = if is_met { "met" } else { "MISSED" };
        println!(
            "jobs finished: reprieve {ours}, {} {theirs}; as many in each scenario, and more in total: {word}",
            peer.name()
        );
        met &= is_met;
    }
    met
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(scenario: &'static str, killer: Killer, finished: usize) -> Row {
        let told = Told { jobs: 2, finished, lost_s: 0.0, wrong: Vec::new(), failed: Vec::new() };
        Row { scenario, killer, told, relief: None }
    }

    #[test]
    fn as_many_in_each_and_more_in_total() {
        let both = [Killer::Kernel, Killer::Reprieve];
        let rows = |ours: [usize; 2], theirs: [usize; 2]| {
            let of = |killer, [a, b]: [usize; 2]| [row("a", killer, a), row("b", killer, b)];
            of(Killer::Kernel, theirs).into_iter().chain(of(Killer::Reprieve, ours)).collect::<Vec<_>>()
        };
        assert!(judge(&rows([2, 1], [1, 1]), &both));
        assert!(!judge(&rows([1, 1], [1, 1]), &both));
        assert!(!judge(&rows([2, 0], [0, 1]), &both));
    }
}
