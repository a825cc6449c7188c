//! `bench idle`: what it costs to guard 1,000 memcgs in which nothing happens, beside other
//! killers, all at the same time.

use super::field::{Field, Guard};
use super::peers::{Peer, Peers};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// Memcgs that are guarded.
const MEMCGS: usize = 1000;
const LIMIT_BYTES: u64 = 64 << 20;
/// What the start leaves to do is not what idling costs.
const SETTLE_TIME: Duration = Duration::from_secs(10);
/// What reprieve may lock.
const AIM_LOCKED_BYTES: u64 = 8 << 20;
const MIB: f64 = 1024.0 * 1024.0;

/// A program with its children.
struct Subject {
    name: &'static str,
    pids: Vec<u32>,
}

/// What one has used by now.
#[derive(Debug, Clone, Copy)]
struct Use {
    cpu_ns: u64,
    rss_bytes: u64,
    locked_bytes: u64,
}

/// Measures and prints.
pub fn run(root: &Path, program: &Path, seconds: u64) -> Result<ExitCode> {
    ensure!(seconds > 0, "--seconds must be at least 1");
    let peers = Peers::unpack(root)?;
    let field = Field::new()?;
    for number in 0..MEMCGS {
        field.memcg(&format!("idle{number}"), LIMIT_BYTES)?;
    }
    eprintln!("{MEMCGS} memcgs; the guard starts");
    let guard = Guard::start(program, "", &field.glob(), MEMCGS)?;
    // It is not to kill anybody of this machine meanwhile; it polls all the same.
    let earlyoom = peers.earlyoom(&["--dryrun"])?;
    let oomd = peers.oomd()?;
    let mut subjects = vec![subject("reprieve guard", guard.pid()), subject("earlyoom", earlyoom.pid())];
    subjects.extend(oomd.as_ref().ok().map(|peer: &Peer| subject("systemd-oomd", peer.pid())));
    std::thread::sleep(SETTLE_TIME);
    eprintln!("measuring for {seconds} s");
    let before: Vec<Use> = subjects.iter().map(Subject::used).collect::<Result<_>>()?;
    std::thread::sleep(Duration::from_secs(seconds));
    let after: Vec<Use> = subjects.iter().map(Subject::used).collect::<Result<_>>()?;
    let cpu: Vec<f64> = after.iter().zip(&before).map(|(a, b)| (a.cpu_ns - b.cpu_ns) as f64 / 1e6).collect();
    println!("{MEMCGS} memcgs in which nothing happens, {seconds} s, all at the same time; ratios to reprieve.\n");
    println!(
        "{:16} {:>9} {:>10} {:>7} {:>9} {:>7} {:>11}",
        "", "processes", "CPU ms", "ratio", "RSS MiB", "ratio", "locked MiB"
    );
    for ((subject, used), cpu_ms) in subjects.iter().zip(&after).zip(&cpu) {
        println!(
            "{:16} {:9} {cpu_ms:10.2} {:7.2} {:9.2} {:7.2} {:11.2}",
            subject.name,
            subject.pids.len(),
            cpu_ms / cpu[0],
            used.rss_bytes as f64 / MIB,
            used.rss_bytes as f64 / after[0].rss_bytes as f64,
            used.locked_bytes as f64 / MIB
        );
    }
    if let Err(words) = &oomd {
        println!("systemd-oomd does not run here: {words}");
    }
    let is_least = cpu[1..].iter().all(|peer| cpu[0] < *peer);
    let locks_little = after[0].locked_bytes <= AIM_LOCKED_BYTES;
    let word = |met: bool| if met { "met" } else { "MISSED" };
    println!("\nless CPU than any of them: {}", word(is_least));
    println!("at most {} MiB locked: {}", AIM_LOCKED_BYTES >> 20, word(locks_little));
    Ok(if is_least && locks_little { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn subject(name: &'static str, pid: u32) -> Subject {
    let mut pids = vec![pid];
    let mut next = 0;
    while let Some(pid) = pids.get(next) {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        pids.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        next += 1;
    }
    Subject { name, pids }
}

impl Subject {
    fn used(&self) -> Result<Use> {
        let mut all = Use { cpu_ns: 0, rss_bytes: 0, locked_bytes: 0 };
        for pid in &self.pids {
            let tasks =
                fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("{} has ended", self.name))?;
            for task in tasks.flatten() {
                // Time on a CPU in ns is its first number (Documentation/scheduler/sched-stats.rst).
                let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
                all.cpu_ns += text.split_whitespace().next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
            }
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let bytes = |key: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
                line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
            };
            all.rss_bytes += bytes("VmRSS:");
            all.locked_bytes += bytes("VmLck:");
        }
        Ok(all)
    }
}
