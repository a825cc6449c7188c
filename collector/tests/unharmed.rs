//! Held OOMs over all victims: nobody is harmed, nothing is lost.

mod common;

use common::{Lab, assert_unharmed, fixture, text};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

/// Holds that the test insists on; the guest, which is slow, does fewer.
const HOLDS: u64 = 200;

/// Every victim that grows past its limit until it gets more.
const VICTIMS: &[&[&str]] = &[
    &["steady_leak"],
    &["stripped"],
    &["many_threads", "--threads", "50"],
    &["map_populate"],
    &["thp"],
    &["inlined_chain"],
    &["cxx_names"],
    &["rust_leak"],
    &["rust_names"],
    &["deleted_binary"],
    &["tmpfs_writer"],
    &["prefork", "--children", "4"],
    &["syscall_storm"],
    &["exiting"],
];

/// Ladders that let a victim live.
const LADDERS: &[&str] = &["grant=16M", "throttle=100ms,grant=16M", "reclaim,grant=24M"];

/// Victims whose system calls may not fail: version 1 has no room for a
/// throttled program, and one that forks dies of it (see the README).
const NEVER_THROTTLED: &[&str] = &["prefork", "syscall_storm", "exiting"];

#[test]
fn held_ooms_harm_nobody() {
    let mut holds: BTreeMap<&str, usize> = BTreeMap::new();
    let wanted = common::rounds(HOLDS) as usize;
    let mut rounds = 0;
    while holds.values().sum::<usize>() < wanted {
        assert!(rounds < 20, "the victims meet their limit too seldom: {holds:?}");
        for victim in VICTIMS {
            let mut ladder = LADDERS[rounds % LADDERS.len()];
            if NEVER_THROTTLED.contains(&victim[0]) {
                ladder = LADDERS[0];
            }
            let lab = Lab::new();
            let program = fixture(victim[0]);
            let mut command = vec![program.as_str(), "--mib", "96"];
            command.extend(&victim[1..]);
            let output = lab.run(&["--memory", "40M", "--most-granted", "1G", "--on-oom", ladder], &command);
            assert_unharmed(&output);
            let held = assert_all_recorded(&lab, &text(&output), victim[0]);
            assert!(held > 0, "{} did not run out of memory: {}", victim[0], text(&output));
            *holds.entry(victim[0]).or_default() += held;
        }
        // Gets well by itself; on a machine that has little time for it, before it
        // runs out of memory.
        let lab = Lab::new();
        let output = lab.run(&["--memory", "40M", "--on-oom", "throttle=20s"], &[&fixture("relief"), "--mib", "96"]);
        assert_unharmed(&output);
        *holds.entry("relief").or_default() += assert_all_recorded(&lab, &text(&output), "relief");
        rounds += 1;
    }
    assert!(holds["relief"] > 0, "relief never ran out of memory: {holds:?}");
    println!("{} holds: {holds:?}", holds.values().sum::<usize>());
}

/// Asserts that each hold left an incident and kept to its deadline; returns
/// how many there were.
fn assert_all_recorded(lab: &Lab, told: &str, victim: &str) -> usize {
    let incidents = lab.incidents();
    let held = told.lines().filter(|line| line.starts_with("reprieve: out of memory at")).count();
    assert_eq!(held, incidents.len(), "{victim}: {told}");
    for incident in &incidents {
        let hold = &incident["hold"];
        assert!(hold["held_us"].as_u64().unwrap() <= hold["deadline_us"].as_u64().unwrap(), "{victim}: {hold}");
        assert_eq!(hold["threads_not_stopped"], 0, "{victim}: {hold}");
        assert_eq!(incident["verdict"]["relieved"], true, "{victim}: {:#}", incident["verdict"]);
        assert!(!common::threads(incident).is_empty(), "{victim}");
    }
    held
}

/// The program dies of a refused charge at the wall where it forks, so the guardian
/// has to be there before it, whoever else wants the CPUs.
#[test]
fn a_busy_machine_harms_nobody() {
    let others = Busy::start();
    let (mut holds, mut exposed) = (0, 0);
    for _ in 0..common::rounds(10).max(2) {
        let lab = Lab::new();
        let options = ["--memory", "40M", "--most-granted", "1G", "--on-oom", LADDERS[0]];
        let output = lab.run(&options, &[&fixture("exiting"), "--mib", "96"]);
        assert_unharmed(&output);
        holds += assert_all_recorded(&lab, &text(&output), "exiting");
        exposed += lab.incidents().iter().filter(|incident| incident["hold"]["exposed_us"] != 0).count();
    }
    drop(others);
    println!("{exposed} of {holds} holds found somebody at the wall");
    assert!(exposed * 10 < holds, "{exposed} of {holds} holds found somebody at the wall");
}

/// Threads that always want to run, two for each CPU; until dropped.
struct Busy {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Busy {
    fn start() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let cpus = std::thread::available_parallelism().unwrap().get();
        let spin = |over: Arc<AtomicBool>| move || while !over.load(Relaxed) {};
        let threads = (0..2 * cpus).map(|_| std::thread::spawn(spin(Arc::clone(&over)))).collect();
        Busy { over, threads }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
