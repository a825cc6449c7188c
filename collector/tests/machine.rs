//! OOMs of the whole machine, on a kernel with the series of kernel/patches:
//! `cargo xtask test --only machine` boots a small one for these, since they fill it.

mod common;

use common::{Doomed, Group, Lab, assert_unharmed, fixture, rounds, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::process::{Command, Output, Stdio};

/// Rounds; REPRIEVE_ROUNDS_PERCENT of it, so 50 for REPRIEVE_ROUNDS_PERCENT=200.
const ROUNDS: u64 = 25;

/// `MemAvailable` in MiB.
fn available_mib() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// A job that fills two fifths of the machine: three are too many, two are not.
fn job(group: &Group, mib: u64) -> std::process::Child {
    let mut shell = Command::new("sh");
    let mib = mib.to_string();
    group.entered_by(&mut shell).args([&fixture("steady_leak"), "--mib", &mib]);
    shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn prioritize(group: &Group, priority: &str) {
    let path = std::ffi::CString::new(group.0.to_str().unwrap()).unwrap();
    // SAFETY: the strings live through the call, the length is the value's.
    let result = unsafe {
        libc::setxattr(path.as_ptr(), c"user.reprieve.priority".as_ptr(), priority.as_ptr().cast(), priority.len(), 0)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Three jobs against the machine; how each ended, in the order of `priorities`.
fn three_jobs(lab: &Lab, options: &[&str], priorities: [&str; 3]) -> Vec<(Group, Output)> {
    three_jobs_with(lab, options, priorities, |_| {})
}

/// The same, with more to set for them.
fn three_jobs_with(
    lab: &Lab,
    options: &[&str],
    priorities: [&str; 3],
    set: impl FnOnce(&[Group]),
) -> Vec<(Group, Output)> {
    let mut guardian = Doomed(lab.reprieve("machine").args(options).spawn().unwrap());
    let state = || fs::read_to_string("/sys/fs/cgroup/memory.oom.state").unwrap();
    wait_for("the watch", || {
        state().contains("handler 1") && fs::read_to_string("/sys/fs/cgroup/memory.oom.delay_ms").unwrap().trim() != "0"
    });
    let mib = available_mib() * 2 / 5;
    let groups: Vec<Group> = ["a", "b", "c"].iter().map(|name| Group::new(name)).collect();
    groups.iter().zip(priorities).for_each(|(group, priority)| prioritize(group, priority));
    set(&groups);
    let children: Vec<_> = groups.iter().map(|group| job(group, mib)).collect();
    let outputs: Vec<Output> = children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    kill(Pid::from_raw(guardian.pid()), Signal::SIGTERM).unwrap();
    assert!(guardian.0.wait().unwrap().success());
    assert!(state().contains("handler 0"));
    assert_eq!(fs::read_to_string("/sys/fs/cgroup/memory.oom.reserve").unwrap().trim(), "0");
    groups.into_iter().zip(outputs).collect()
}

#[test]
#[ignore = "fills the machine, on a kernel with the series: `cargo xtask test --only machine` runs it"]
fn the_job_of_the_lowest_priority_dies() {
    let orders = [["-5", "3", "7"], ["3", "-5", "7"], ["7", "3", "-5"]];
    for round in 0..rounds(ROUNDS) as usize {
        let lab = Lab::new();
        let priorities = orders[round % orders.len()];
        let ended = three_jobs(&lab, &[], priorities);
        let incidents = lab.incidents();
        let told: Vec<String> = incidents.iter().map(|i| i["verdict"].to_string()).collect();
        for ((group, output), priority) in ended.iter().zip(priorities) {
            if priority == "-5" {
                assert_eq!(output.status.code(), None, "{}: {}\n{told:#?}", group.0.display(), common::text(output));
            } else {
                assert_unharmed(output);
            }
        }
        assert_eq!(incidents.len(), 1, "{told:#?}");
        let incident = &incidents[0];
        assert_eq!((&incident["trigger"], &incident["memcg"]["path"]), (&Value::from("oom"), &Value::from("/")));
        let verdict = &incident["verdict"];
        assert_eq!(verdict["relieved"], true, "{verdict:#}");
        let step = &verdict["steps"][0];
        assert_eq!(step["candidates"].as_array().unwrap().len(), 3, "{step:#}");
        assert_eq!(step["candidates"][0]["priority"], -5, "{step:#}");
        assert!(step["reason"].as_str().unwrap().contains("lowest priority (-5)"), "{step:#}");
        assert_eq!(incident["processes"].as_array().unwrap().len(), 3, "{:#}", incident["gaps"]);
        let folded = fs::read_to_string(lab.out().join(incident["id"].as_str().unwrap()).join("stacks.folded"));
        assert!(folded.unwrap().contains("(steady_leak.c:"));
    }
}

#[test]
#[ignore = "fills the machine, on a kernel with the series: `cargo xtask test --only machine` runs it"]
fn who_keeps_to_a_reservation_is_spared() {
    let lab = Lab::new();
    // More than it will ever use.
    let reserve = |groups: &[Group]| fs::write(groups[0].0.join("memory.low"), "240M").unwrap();
    let ended = three_jobs_with(&lab, &[], ["-5", "3", "7"], reserve);
    assert_unharmed(&ended[0].1);
    assert_eq!(ended[1].1.status.code(), None, "{}", common::text(&ended[1].1));
    assert_unharmed(&ended[2].1);
    let step = &lab.incident()["verdict"]["steps"][0];
    let order: Vec<i64> =
        step["candidates"].as_array().unwrap().iter().map(|c| c["priority"].as_i64().unwrap()).collect();
    assert_eq!(order, [3, 7, -5], "{step:#}");
    // What came back is what it had.
    let gained = step["usage_before_bytes"].as_u64().unwrap() - step["usage_after_bytes"].as_u64().unwrap();
    assert!(gained > 40 << 20, "{step:#}");
}

#[test]
#[ignore = "fills the machine, on a kernel with the series: `cargo xtask test --only machine` runs it"]
fn a_second_watch_is_told_that_there_is_one() {
    let lab = Lab::new();
    let mut first = Doomed(lab.reprieve("machine").spawn().unwrap());
    wait_for("the watch", || fs::read_to_string("/sys/fs/cgroup/memory.oom.state").unwrap().contains("handler 1"));
    let second = lab.reprieve("machine").output().unwrap();
    assert_eq!(second.status.code(), Some(4), "{}", common::text(&second));
    kill(Pid::from_raw(first.pid()), Signal::SIGTERM).unwrap();
    assert!(first.0.wait().unwrap().success());
}
