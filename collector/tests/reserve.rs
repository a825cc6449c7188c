//! The `reserve` brake, on a kernel with the series of kernel/patches: the
//! reserve stage of `cargo xtask test` boots one for these.

mod common;

use common::{
    Lab, Urgent, assert_held_well, assert_reserve_fits, assert_unharmed, ended_by_itself, fixture, groups, text,
    wait_for,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

/// Runs a command with a grant for each of its OOMs.
fn granted(lab: &Lab, memory: &str, grant: &str, command: &[&str]) -> Output {
    let options = ["--brake", "reserve", "--memory", memory, "--most-granted", "1G", "--on-oom", grant];
    lab.run(&options, command)
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
    assert_reserve_fits(incident);
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
    assert_eq!((&kernel["ended"], &kernel["holds"]), (&Value::from("margin"), &Value::from(1)), "{kernel}");
}

/// Between two looks at who is there, which are a second apart.
#[test]
#[ignore = "needs a kernel with the series: the reserve stage runs it"]
fn the_reserve_fits_threads_that_were_made_just_now() {
    for _ in 0..3 {
        let lab = Lab::new();
        let command = [&fixture("many_threads"), "--threads", "400", "--mib", "96"];
        let output = granted(&lab, "48M", "grant=128M", &command);
        assert_unharmed(&output);
        let mut incidents = lab.incidents();
        incidents.retain(|incident| !ended_by_itself(incident));
        let incident = incidents.first().expect("a hold that the guardian saw");
        told(incident);
        assert_eq!(incident["memcg"]["events"]["oom_hold_broken"], 0, "{}", incident["memcg"]["events"]);
    }
}

/// When a guardian is stopped, so that it does not see what follows as it happens.
#[derive(Clone, Copy, PartialEq)]
enum Moment {
    BeforeTheHold,
    InTheHold,
}

/// What was freed between the hold and the verdict is enough: nobody is killed for it.
fn memory_comes_back_while_the_guardian_is_stopped(moment: Moment) {
    let file = Path::new("/dev/shm/reprieve-comes-back");
    let lab = Lab::new();
    let script = "head -c 24M /dev/zero >\"$0\" && exec \"$@\"";
    let leak = fixture("steady_leak");
    let command = ["sh", "-c", script, file.to_str().unwrap(), &leak, "--mib", "52"];
    let before_the_guardian = Urgent::start();
    let guardian = lab.start(&["--brake", "reserve", "--memory", "64M", "--on-oom", "kill"], &command);
    let pid = Pid::from_raw(guardian.id() as i32);
    // One processor: who is urgent must sleep for others to run at all.
    let wait = |what: &str, is: &dyn Fn() -> bool| {
        wait_for(what, || {
            std::thread::sleep(Duration::from_millis(1));
            is()
        });
    };
    wait("the command", &|| groups().first().is_some_and(|group| has_command(group)));
    let state = groups()[0].join("memory.oom.state");
    let says = |word: &str| fs::read_to_string(&state).is_ok_and(|state| state.contains(word));
    // Its deadline is far: it does not miss the moment.
    if moment == Moment::BeforeTheHold {
        kill(pid, Signal::SIGSTOP).unwrap();
        assert!(!says("held 1"), "the moment is over");
    }
    wait("the hold", &|| says("held 1"));
    if moment == Moment::InTheHold {
        kill(pid, Signal::SIGSTOP).unwrap();
    }
    drop(before_the_guardian);
    fs::remove_file(file).unwrap();
    wait("the end of the hold", &|| says("last_end margin"));
    kill(pid, Signal::SIGCONT).unwrap();
    let output = guardian.wait_with_output().unwrap();
    assert_unharmed(&output);
    let incident = lab.incident();
    let kernel = told(&incident);
    assert_eq!(kernel["ended"], "margin", "{kernel}");
    let verdict = &incident["verdict"];
    assert_eq!(
        (&verdict["relieved"], &verdict["steps"]),
        (&Value::Bool(true), &Value::Array(Vec::new())),
        "{verdict:#}"
    );
    assert!(verdict["summary"].as_str().unwrap().contains("free again before anything was done"), "{verdict:#}");
}

/// Whether there is a process in a memcg.
fn has_command(group: &Path) -> bool {
    fs::read_to_string(group.join("cgroup.procs")).is_ok_and(|pids| !pids.is_empty())
}

#[test]
#[ignore = "needs a kernel with the series: the reserve stage runs it"]
fn memory_that_comes_back_before_the_verdict_is_the_verdict() {
    memory_comes_back_while_the_guardian_is_stopped(Moment::InTheHold);
}

/// Of a hold that began and ended before the guardian looked there is evidence, too.
#[test]
#[ignore = "needs a kernel with the series: the reserve stage runs it"]
fn memory_that_comes_back_before_the_guardian_looks_is_the_verdict() {
    memory_comes_back_while_the_guardian_is_stopped(Moment::BeforeTheHold);
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
    let mut incidents = lab.incidents();
    incidents.retain(|incident| !ended_by_itself(incident));
    assert_eq!(told(&incidents[0])["ended"], "gave_up");
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
