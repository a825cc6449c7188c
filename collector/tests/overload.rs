//! A person decides about one memcg while the whole machine is out of memory, again and again,
//! and `reprieve machine` decides about that: `cargo xtask test --only machine` boots a small
//! machine, on a kernel with the series, since this fills it.

#[path = "common/asked.rs"]
mod asked;
mod common;
#[path = "common/guard.rs"]
mod guard;
#[path = "common/tmux.rs"]
mod tmux;

use asked::Guarded;
use common::{Doomed, Group, Lab, fixture, prioritize, usage, wait_for};
use guard::start_in;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a job of the machine's may take to be killed: code is reclaimed and read again for
/// long before a machine is out of memory.
const OOM_PATIENCE: Duration = Duration::from_secs(120);
/// Of what is available: what one job keeps, and what another takes, again and again.
const KEPT_PERCENT: u64 = 60;
const WANTED_PERCENT: u64 = 80;

/// `MemAvailable` in MiB.
fn available_mib() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// Two jobs that are too many for the machine. The one of the lower priority begins anew
/// whenever it was killed.
struct Flood {
    ooms: Arc<AtomicU32>,
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Flood {
    fn start() -> Self {
        let (ooms, is_over) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, told) = (Arc::clone(&ooms), Arc::clone(&is_over));
        let thread = std::thread::spawn(move || {
            let (keeps, wants) = (Group::new("keeps"), Group::new("wants"));
            prioritize(&keeps.0, "5");
            prioritize(&wants.0, "-5");
            let mib = available_mib();
            let (kept, wanted) = (mib * KEPT_PERCENT / 100, (mib * WANTED_PERCENT / 100).to_string());
            let leak = fixture("steady_leak");
            let mut shell = std::process::Command::new("sh");
            keeps.entered_by(&mut shell).args([&leak, "--mib", &kept.to_string(), "--linger", "1"]);
            let mut keeper = Doomed(shell.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap());
            wait_for("the first job", || {
                std::thread::sleep(Duration::from_millis(10));
                usage(&keeps.0) >= kept << 20
            });
            while !told.load(Relaxed) {
                let mut job = start_in(&wants.0, &[&leak, "--mib", &wanted]);
                let begun = Instant::now();
                let status = loop {
                    if let Some(status) = job.0.try_wait().unwrap() {
                        break status;
                    }
                    assert!(begun.elapsed() < OOM_PATIENCE, "nobody died of {wanted} MiB beside {kept} MiB");
                    std::thread::sleep(Duration::from_millis(10));
                };
                assert_eq!(status.signal(), Some(9), "{wanted} MiB beside {kept} MiB were not too many");
                counted.fetch_add(1, Relaxed);
            }
            assert!(keeper.0.try_wait().unwrap().is_none(), "the one of the higher priority died");
        });
        Flood { ooms, is_over, thread }
    }

    /// How often the machine was out of memory.
    fn ooms(&self) -> u32 {
        self.ooms.load(Relaxed)
    }

    /// Waits until it was once more.
    fn wait_for_another(&self) {
        let (before, begun) = (self.ooms(), Instant::now());
        while self.ooms() == before {
            assert!(!self.thread.is_finished() && begun.elapsed() < OOM_PATIENCE, "the machine is not out of memory");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn end(self) -> u32 {
        self.is_over.store(true, Relaxed);
        self.thread.join().unwrap();
        self.ooms.load(Relaxed)
    }
}

#[test]
#[ignore = "fills the machine, on a kernel with the series: `cargo xtask test --only machine` runs it"]
fn the_console_is_of_use_while_the_machine_is_out_of_memory() {
    let lab = Lab::new();
    let mut machine = Doomed(lab.reprieve("machine").spawn().unwrap());
    let delay = "/sys/fs/cgroup/memory.oom.delay_ms";
    wait_for("the watch", || fs::read_to_string(delay).unwrap().trim() != "0");
    // The kernel's own hold would be over after a minute, whoever waits.
    let mut guarded = Guarded::new("'ask=300s', 'kill'", "guard.brake = 'high'");
    prioritize(&guarded.group.0, "3");
    let console = guarded.here.console();
    console.wait_for(&["1 hold waits", "then kill", "recommended  kill: steady_leak ["]);
    let flood = Flood::start();
    flood.wait_for_another();

    console.wait_for_seconds(2);
    console.press(&["Tab"]);
    console.wait_for(&["THREADS", "steady_leak"]);
    flood.wait_for_another();
    console.wait_for_seconds(2);

    console.press(&["s"]);
    console.wait_for(&["a shell in /reprieve-", "16.0 MiB that were set aside"]);
    flood.wait_for_another();
    console.press(&["grep MemAvail /proc/meminfo; ps -o comm= -p $$; grep /reprieve- /proc/self/cgroup", "Enter"]);
    console.wait_for(&["\nMemAvailable: ", "\nsh\n", "\n0::/reprieve-"]);
    flood.wait_for_another();
    console.press(&["exit", "Enter"]);
    console.wait_for(&["the shell has ended", "1 hold waits"]);

    flood.wait_for_another();
    console.press(&["k"]);
    console.wait_for(&["kill in /asked-"]);
    console.press(&["y"]);
    console.wait_for(&["over", "killed steady_leak"]);
    assert_eq!(guarded.end_of_victim().signal(), Some(9));
    let ooms = flood.end();
    let step = &guarded.incident()["verdict"]["steps"][0];
    assert!(step["effect"].as_str().unwrap().contains(") chose kill: "), "{step:#}");

    kill(Pid::from_raw(machine.pid()), Signal::SIGTERM).unwrap();
    assert!(machine.0.wait().unwrap().success());
    let incidents = lab.incidents();
    let decided = incidents.iter().flat_map(|incident| incident["verdict"]["steps"].as_array().unwrap());
    let first: Vec<&Value> = decided.map(|step| &step["candidates"][0]["priority"]).collect();
    assert!(!first.is_empty() && first.iter().all(|priority| **priority == -5), "{first:?}");
    println!("decided at the console during {ooms} OOMs of the machine, {} of them with an incident", first.len());
}
