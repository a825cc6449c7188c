//! A guardian inside the memcg that is full, on a kernel with the series of
//! kernel/patches: the reserve stage of `cargo xtask test` boots one for these.

mod common;

use common::{
    Group, Lab, assert_held_well, assert_marked, assert_reserve_fits, assert_unharmed, fixture, rounds, text, truth,
    wait_for,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// Rounds of the whole way; REPRIEVE_ROUNDS_PERCENT of it, which is 20 in the guest's
/// stage, and what `cargo xtask kernel soak --whole-way` is told.
const ROUNDS: u64 = 100;
const LIMIT: &str = "64M";
/// Room for the first hold's guardian beside what the kernel lets held tasks charge.
const RESERVE_INSIDE_BYTES: u64 = 32 << 20;

/// Counters of memory.events that stay at 0 where all goes well.
const NEVER: [&str; 4] = ["oom_kill", "oom_reserve_fail", "oom_hold_broken", "oom_hold_timeout"];

/// A memcg with a limit that nobody of reprieve made.
fn limited(name: &str) -> Group {
    let group = Group::new(name);
    fs::write(group.0.join("memory.max"), LIMIT).unwrap();
    group
}

/// `reprieve run --here`, started in `cgroup`.
fn here(lab: &Lab, cgroup: &Path, options: &[&str], command: &[&str]) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(cgroup.join("cgroup.procs"));
    shell.args(["timeout", "-s", "KILL", "120", env!("CARGO_BIN_EXE_reprieve"), "run", "--here", "--no-heap", "--out"]);
    shell.arg(lab.out()).args(options).arg("--").args(command).stdin(Stdio::null());
    shell
}

/// What the whole way comes to when the guardian is in the full memcg and `victim` is
/// what it runs. Returns the incidents.
fn assert_the_whole_way(lab: &Lab, output: &Output, victim: &str) -> Vec<Value> {
    let incidents = lab.incidents();
    if !output.status.success() {
        incidents.iter().for_each(|incident| println!("{}: {}", incident["trigger"], incident["memcg"]["events"]));
    }
    assert_unharmed(output);
    // A later hold may find room that the drawing of the one before gave back, and one
    // that ended by itself has found some.
    let first = incidents.first().unwrap_or_else(|| panic!("{}", text(output)));
    if first["verdict"]["steps"] != Value::Array(Vec::new()) {
        let kernel = &first["hold"]["kernel"];
        assert_ne!(kernel["reserve_used_bytes"], 0, "{kernel}");
    }
    for incident in &incidents {
        assert_held_well(incident);
        assert_reserve_fits(incident);
        let kernel = &incident["hold"]["kernel"];
        assert_eq!(kernel["guardian_inside"], true, "{}", incident["hold"]);
        assert!(kernel["reserve_bytes"].as_u64().unwrap() > RESERVE_INSIDE_BYTES, "{kernel}");
        let events = &incident["memcg"]["events"];
        for never in NEVER {
            assert_eq!(events[never], 0, "{never} of {events}");
        }
        assert_eq!(incident["symbols"]["state"]["kind"], "before_verdict", "{}", incident["symbols"]["state"]);
        assert_eq!(incident["verdict"]["relieved"], true, "{:#}", incident["verdict"]);
        for process in incident["processes"].as_array().unwrap() {
            assert_ne!(process["comm"], "reprieve", "the guardian recorded itself");
            assert_ne!(process["comm"], "reprieve-watch", "the guardian recorded its watchdog");
        }
        let dir = lab.out().join(incident["id"].as_str().unwrap());
        let folded = fs::read_to_string(dir.join("stacks.folded")).unwrap();
        assert!(folded.contains(&format!("({victim}.c:")), "no file and line: {folded}");
        assert!(fs::read_to_string(dir.join("flamegraph.svg")).unwrap().contains("</svg>"));
    }
    incidents
}

/// What holds of the whole way came to, for the soak's summary.
#[derive(Default)]
struct Tally {
    holds: usize,
    actions: BTreeMap<String, usize>,
    longest_us: u64,
    most_reserve: u64,
}

impl Tally {
    fn add(&mut self, incident: &Value) {
        self.holds += 1;
        let steps = incident["verdict"]["steps"].as_array().unwrap();
        // That of the step which helped.
        let action = steps.last().map_or("free again", |step| step["action"].as_str().unwrap());
        *self.actions.entry(action.to_owned()).or_default() += 1;
        self.longest_us = self.longest_us.max(incident["hold"]["held_us"].as_u64().unwrap());
        let used = incident["hold"]["kernel"]["reserve_used_bytes"].as_u64().unwrap();
        self.most_reserve = self.most_reserve.max(used);
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let actions: Vec<_> = self.actions.iter().map(|(action, count)| format!("{action} {count}")).collect();
        write!(
            f,
            "{} holds ({}), held {} ms, {} MiB of the reserve used at most",
            self.holds,
            actions.join(", "),
            self.longest_us / 1000,
            self.most_reserve >> 20
        )
    }
}

#[test]
#[ignore = "needs a kernel with the series: the reserve stage runs it"]
fn the_whole_way_from_inside() {
    let ladders = ["grant=64M", "throttle=200ms,grant=64M"];
    let victims = ["service", "steady_leak"];
    let rounds = rounds(ROUNDS);
    let mut all = Tally::default();
    for round in 0..rounds {
        let lab = Lab::new();
        let group = limited("inside");
        let victim = victims[round as usize % victims.len()];
        let ladder = ladders[round as usize / victims.len() % ladders.len()];
        let options = ["--deadline", "20s", "--most-granted", "1G", "--on-oom", ladder];
        let output = here(&lab, &group.0, &options, &[&fixture(victim), "--mib", "80"]).output().unwrap();
        let incidents = assert_the_whole_way(&lab, &output, victim);
        // Also those of the time since the last hold began.
        let events = fs::read_to_string(group.0.join("memory.events")).unwrap();
        assert!(NEVER.iter().all(|never| events.contains(&format!("{never} 0\n"))), "{events}");
        let max = fs::read_to_string(group.0.join("memory.max")).unwrap();
        assert_eq!(max.trim(), "67108864", "the memcg is left as it was");
        assert_eq!(fs::read_to_string(group.0.join("memory.oom.reserve")).unwrap().trim(), "0");
        let mut tally = Tally::default();
        for incident in &incidents {
            if victim == "service" {
                assert_marked(incident, &truth(&output));
            }
            tally.add(incident);
            all.add(incident);
        }
        // The soak counts these lines.
        println!("whole way {} of {rounds}: {victim}, {ladder}: {tally}", round + 1);
    }
    println!("whole way: {rounds} of {rounds} in a row: {all}");
}

/// A pod: the limit is on the parent, guardian and program are in one of its children.
#[test]
#[ignore = "needs a kernel with the series: the reserve stage runs it"]
fn the_limit_may_be_an_ancestors() {
    for _ in 0..rounds(ROUNDS).div_ceil(4) {
        let lab = Lab::new();
        let pod = limited("pod");
        fs::write(pod.0.join("cgroup.subtree_control"), "+memory").unwrap();
        let child = Child::of(&pod.0);
        let command = [&*fixture("steady_leak"), "--mib", "80"];
        let output =
            here(&lab, &child.0, &["--most-granted", "1G", "--on-oom", "grant=64M"], &command).output().unwrap();
        let state = assert_the_whole_way(&lab, &output, "steady_leak").remove(0);
        assert!(state["memcg"]["path"].as_str().unwrap().starts_with("/pod-"), "{}", state["memcg"]["path"]);
    }
}

/// A cgroup in a [`Group`], gone before it.
struct Child(PathBuf);

impl Child {
    fn of(parent: &Path) -> Self {
        let dir = parent.join("app");
        fs::create_dir(&dir).unwrap();
        Child(dir)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        wait_for("the end of the child", || fs::remove_dir(&self.0).is_ok());
    }
}

#[test]
#[ignore = "needs a kernel with the series: the reserve stage runs it"]
fn it_kills_the_program_and_not_itself() {
    let lab = Lab::new();
    let group = limited("inside-kill");
    // The whole memcg is one job, the guardian included.
    fs::write(group.0.join("memory.oom.group"), "1").unwrap();
    let output =
        here(&lab, &group.0, &["--on-oom", "kill"], &[&fixture("steady_leak"), "--mib", "256"]).output().unwrap();
    assert_eq!(output.status.code(), Some(137), "{}", text(&output));
    let incident = lab.incident();
    assert_eq!(incident["verdict"]["relieved"], true, "{:#}", incident["verdict"]);
    assert_eq!(incident["memcg"]["events"]["oom_kill"], 0, "{}", incident["memcg"]["events"]);
}

#[test]
#[ignore = "needs a kernel with the series: the reserve stage runs it"]
fn a_killed_guardian_leaves_it_to_the_kernel() {
    let lab = Lab::new();
    let group = limited("inside-dies");
    let mut shell = here(&lab, &group.0, &["--on-oom", "freeze=60s"], &[&fixture("steady_leak"), "--mib", "256"]);
    let mut child = shell.stdout(Stdio::null()).spawn().unwrap();
    let event = |key: &str| {
        let events = fs::read_to_string(group.0.join("memory.events")).unwrap();
        events.lines().any(|line| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(' ') && rest != " 0"))
    };
    wait_for("the hold", || event("oom_hold"));
    // timeout(1) started it.
    let members = fs::read_to_string(group.0.join("cgroup.procs")).unwrap();
    let is_guardian =
        |pid: &&str| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "reprieve\n");
    let guardian = members.lines().find(is_guardian).expect("the guardian").parse().unwrap();
    kill(Pid::from_raw(guardian), Signal::SIGKILL).unwrap();
    wait_for("the kernel's killer", || event("oom_kill"));
    child.wait().unwrap();
    wait_for("the end of all", || fs::read_to_string(group.0.join("cgroup.procs")).unwrap().is_empty());
}

#[test]
#[ignore = "needs a kernel with the series: the reserve stage runs it"]
fn two_guardians_do_not_share_a_memcg_and_no_limit_is_no_place() {
    let lab = Lab::new();
    let group = limited("inside-twice");
    let mut first = here(&lab, &group.0, &[], &["sleep", "60"]).spawn().unwrap();
    let state = || fs::read_to_string(group.0.join("memory.oom.state")).unwrap();
    wait_for("the first", || state().contains("handler 1"));
    let second = here(&lab, &group.0, &[], &["true"]).output().unwrap();
    assert_eq!(second.status.code(), Some(125), "{}", text(&second));
    assert!(text(&second).contains("has a handler already"), "{}", text(&second));
    kill(Pid::from_raw(first.id() as i32), Signal::SIGTERM).unwrap();
    first.wait().unwrap();
    wait_for("its end", || state().contains("handler 0"));
    fs::write(group.0.join("memory.max"), "max").unwrap();
    let third = here(&lab, &group.0, &[], &["true"]).output().unwrap();
    assert!(text(&third).contains("has a limit"), "{}", text(&third));
}

/// What a container has: its cgroup is its user's, the files of limits are not.
#[test]
#[ignore = "needs a kernel with the series: the reserve stage runs it"]
fn an_unprivileged_user_in_a_delegated_memcg() {
    let group = limited("inside-user");
    fs::write(group.0.join("memory.oom.reserve"), "48M").unwrap();
    fs::write(group.0.join("memory.oom.delay_ms"), "20000").unwrap();
    let user = nix::unistd::Uid::from_raw(12345);
    nix::unistd::chown(&group.0.join("cgroup.procs"), Some(user), None).unwrap();
    let lab = Lab::new();
    nix::unistd::chown(lab.out(), Some(user), None).unwrap();
    // The checkout may be below a folder that only root may enter.
    let home = tempfile::tempdir().unwrap();
    nix::unistd::chown(home.path(), Some(user), None).unwrap();
    let victim = home.path().join("steady_leak");
    fs::copy(fixture("steady_leak"), &victim).unwrap();
    let options = ["--out", lab.out().to_str().unwrap(), "--on-oom", "kill"];
    let mut shell = Command::new("sh");
    shell.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(group.0.join("cgroup.procs"));
    shell.args(["setpriv", "--reuid", "12345", "--clear-groups", env!("CARGO_BIN_EXE_reprieve"), "run", "--here"]);
    shell.args(["--no-heap"]).args(options).arg("--").arg(&victim).args(["--mib", "256"]);
    let output = shell.stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(137), "{}", text(&output));
    let incident = lab.incident();
    assert_eq!(incident["verdict"]["relieved"], true, "{:#}\n{}", incident["verdict"], text(&output));
    assert_eq!(incident["hold"]["kernel"]["guardian_inside"], true, "{}", incident["hold"]);
    assert!(Duration::from_micros(incident["hold"]["held_us"].as_u64().unwrap()) < Duration::from_secs(20));
}

#[test]
#[ignore = "needs a kernel with the series: the reserve stage runs it"]
fn doctor_measures_the_reserve() {
    // The second time the binary's pages are in memory, and charged to the first one's memcg.
    for when in ["first", "second"] {
        let output = Command::new(env!("CARGO_BIN_EXE_reprieve")).args(["doctor", "--json"]).output().unwrap();
        let checks: Value = serde_json::from_slice(&output.stdout).unwrap();
        let check = checks.as_array().unwrap().iter().find(|check| check["name"] == "live on a reserve").unwrap();
        assert_eq!(check["status"], "ok", "{check:#}");
        let recommended = check["recommended_reserve_bytes"].as_u64().unwrap();
        assert!((16 << 20..=128 << 20).contains(&recommended), "{when}: {check:#}");
        println!("{when}: {}", check["detail"].as_str().unwrap());
    }
}
