//! The `reserve` brake, on a kernel with the series of kernel/patches: the
//! reserve stage of `cargo xtask test` boots one for these.

mod common;

use common::{Lab, assert_held_well, assert_unharmed, fixture, text};
use serde_json::Value;
use std::process::Output;

/// Runs a command with a grant for each of its OOMs.
fn granted(lab: &Lab, memory: &str, grant: &str, command: &[&str]) -> Output {
    lab.run(&["--brake", "reserve", "--memory", memory, "--on-oom", grant], command)
}

/// The kernel's word on a hold, of which nobody died and no system call failed.
fn told(incident: &Value) -> &Value {
    assert_held_well(incident);
    let hold = &incident["hold"];
    assert_eq!((&hold["brake"], &hold["exposed_us"]), (&Value::from("reserve"), &Value::from(0)), "{hold}");
    let events = &incident["memcg"]["events"];
    assert_eq!(events["oom_kill"], 0, "{events}");
    assert_ne!(events["oom_hold"], 0, "{events}");
    assert!(hold["kernel"].is_object(), "{hold}");
    &hold["kernel"]
}

#[test]
#[ignore = "needs a kernel with the series: the reserve stage runs it"]
fn two_hundred_threads_park_and_run_on() {
    let lab = Lab::new();
    let command = [&fixture("many_threads"), "--threads", "200", "--mib", "96"];
    let output = granted(&lab, "64M", "grant=128M", &command);
    assert_unharmed(&output);
    let incident = lab.incident();
    let kernel = told(&incident);
    let pid = &incident["processes"][0]["pid"];
    assert_eq!((&kernel["pid"], &kernel["user_fault"]), (pid, &Value::from(true)), "{kernel}");
    assert!(incident["hold"]["threads_stopped"].as_u64().unwrap() >= 200, "{}", incident["hold"]);
}

#[test]
#[ignore = "needs a kernel with the series: the reserve stage runs it"]
fn system_calls_under_a_hold_do_not_fail() {
    let lab = Lab::new();
    // The fixture counts every read, pipe and open that fails or is short.
    let output = granted(&lab, "32M", "grant=8M", &[&fixture("syscall_storm"), "--mib", "64"]);
    assert_unharmed(&output);
    let incidents = lab.incidents();
    assert!(incidents.len() >= 3, "{} holds", incidents.len());
    for incident in &incidents {
        told(incident);
    }
}

#[test]
#[ignore = "needs a kernel with the series: the reserve stage runs it"]
fn one_huge_system_call_is_held_too() {
    let lab = Lab::new();
    let script = "import mmap; m = mmap.mmap(-1, 96 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE); \
                  print(sum(m[i] for i in range(0, len(m), 4096)), 'of', len(m))";
    let output = granted(&lab, "64M", "grant=64M", &["python3", "-c", script]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0 of 100663296\n");
    assert_eq!(lab.incident()["hold"]["brake"], "reserve");
}

#[test]
#[ignore = "needs a kernel with the series: the reserve stage runs it"]
fn without_a_useful_action_the_kernel_decides() {
    let lab = Lab::new();
    let command = [&fixture("steady_leak"), "--mib", "96"];
    let output = lab.run(&["--brake", "reserve", "--memory", "64M", "--on-oom", "reclaim"], &command);
    assert_eq!(output.status.code(), Some(137), "{}", text(&output));
    let incidents = lab.incidents();
    told(&incidents[0]);
    assert_eq!(incidents[0]["verdict"]["relieved"], false);
    assert_eq!(incidents[1]["trigger"], "killed_by_kernel");
    assert_eq!(incidents[1]["kernel_victims"][0]["comm"], "steady_leak");
}

#[test]
#[ignore = "needs a kernel with the series: the reserve stage runs it"]
fn code_that_was_reclaimed_is_read_again_under_a_hold() {
    for _ in 0..30 {
        // Then the victim is charged for its own code, which reclaim takes at the
        // limit; the file system needs memory to read it again.
        std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
        let lab = Lab::new();
        assert_unharmed(&granted(&lab, "40M", "grant=16M", &[&fixture("thp"), "--mib", "64"]));
        for incident in &lab.incidents() {
            told(incident);
        }
    }
}
