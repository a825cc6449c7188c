//! The guardian is killed at random moments: nobody stays held, nothing stays
//! behind.

mod common;

use common::{Lab, fixture, groups, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::{Duration, Instant};

/// Moments tried; the guest, which is slow, does fewer.
const ROUNDS: u64 = 50;

#[test]
fn sudden_deaths_leave_nobody_held() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..common::rounds(ROUNDS) {
        let lab = Lab::new();
        let mut guardian = lab.start(
            &["--memory", "32M", "--deadline", "1s", "--on-oom", "freeze=2s"],
            &[&fixture("steady_leak"), "--mib", "48"],
        );
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        // From before the start to deep in the freeze; waiting is the point here.
        let moment = Instant::now() + Duration::from_millis(seed >> 33 & 0xff);
        while Instant::now() < moment {
            std::thread::yield_now();
        }
        let pid = Pid::from_raw(guardian.id() as i32);
        if round % 3 == 0 {
            // Stopped, not killed, in a hold or before one: nobody may stay
            // parked past the deadline.
            kill(pid, Signal::SIGSTOP).unwrap();
            let stopped = Instant::now();
            wait_for(&format!("round {round}: the end of the victim"), || !anybody_left());
            assert!(stopped.elapsed() < Duration::from_secs(6), "round {round}: held {:?}", stopped.elapsed());
        }
        kill(pid, Signal::SIGKILL).unwrap();
        guardian.wait().unwrap();
        // The kernel kills the victim, or it ends; then the watchdog cleans
        // up. A death before the watchdog lived is for the next run to clean.
        let begun = Instant::now();
        while !groups().is_empty() && begun.elapsed() < Duration::from_secs(3) {
            std::thread::yield_now();
        }
        if !groups().is_empty() {
            Lab::new().run(&[], &["true"]);
        }
        wait_for(&format!("round {round}: the end of {:?}", groups()), || groups().is_empty());
    }
}

#[test]
fn a_guardian_that_hangs_is_ended_at_its_deadline() {
    let lab = Lab::new();
    let mut guardian =
        lab.start(&["--memory", "32M", "--on-oom", "freeze=2s"], &[&fixture("steady_leak"), "--mib", "48"]);
    let held = || std::fs::read_dir(lab.out()).unwrap().flatten().any(|e| e.path().join("draft.json").exists());
    wait_for("the hold", held);
    kill(Pid::from_raw(guardian.id() as i32), Signal::SIGSTOP).unwrap();
    wait_for("the watchdog's answer", || guardian.try_wait().unwrap().is_some());
    wait_for("the clean-up", || groups().is_empty());
}

/// Whether a group has tasks. A victim without an answer ends only when the
/// kernel kills it.
fn anybody_left() -> bool {
    groups().iter().any(|group| std::fs::read_to_string(group.join("cgroup.procs")).is_ok_and(|pids| !pids.is_empty()))
}
