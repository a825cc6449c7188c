//! `reprieve guard` on a tree of memcgs: found, held, answered, and left as they were.

mod common;
#[path = "common/guard.rs"]
mod guard;

use common::{Lab, Urgent, ended_by_itself, wait_for};
use guard::{Brake, Grove, Guard, end_of, files, has_followed, is_guarded, leak_in, limit, limit_of, start_in};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What a cgroup must be found within.
const FOUND_WITHIN: Duration = Duration::from_millis(100);
/// How long the watchdog tries a limit that is below the usage.
const GIVE_BACK_TIME: Duration = Duration::from_secs(12);

/// Incidents of OOMs that something was done about: others may have found room by themselves.
fn answered(lab: &Lab) -> Vec<Value> {
    lab.incidents().into_iter().filter(|incident| !ended_by_itself(incident)).collect()
}

fn incident_of<'a>(incidents: &'a [Value], path: &str) -> &'a Value {
    let is_it = |incident: &&Value| incident["memcg"]["path"] == path;
    incidents.iter().find(is_it).unwrap_or_else(|| panic!("no incident of {path}: {incidents:#?}"))
}

#[test]
fn several_at_once_are_answered_each_its_own_way_and_left_as_they_were() {
    let (lab, grove) = (Lab::new(), Grove::new());
    let dirs = ["killed", "granted", "idle", "foreign"].map(|name| grove.memcg(name, 64));
    let before = dirs.each_ref().map(|dir| files(dir));
    let path = grove.path();
    let toml = format!(
        "[guard]\ncgroups = ['{path}/*']\nexcept = ['{path}/foreign']\non_oom = ['kill']\ndeadline = '20s'\n\
         most_granted = '256M'\nmost_granted_in_all = '256M'\n\
         [[cgroup]]\nmatch = '{path}/granted'\non_oom = ['grant=128M']\n"
    );
    let guard = Guard::start(&lab, &toml, &[]);
    assert_eq!(dirs.each_ref().map(|dir| is_guarded(dir)), [true, true, true, false], "{}", guard.said());
    let (mut killed, mut granted) = (leak_in(&dirs[0], "96"), leak_in(&dirs[1], "96"));
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&end_of(&mut killed)), Some(9));
    assert!(end_of(&mut granted).success(), "{}", guard.said());
    let said = guard.end();
    assert_eq!(dirs.each_ref().map(|dir| files(dir)), before, "{said}");
    let incidents = answered(&lab);
    assert_eq!(incidents.len(), 2, "{said}");
    for (name, action) in [("killed", "kill"), ("granted", "grant=128M")] {
        let incident = incident_of(&incidents, &format!("{path}/{name}"));
        common::assert_stopped_well(incident);
        assert_eq!(incident["verdict"]["steps"][0]["action"], action, "{incident:#}");
        assert_eq!(incident["memcg"]["limit_bytes"], 64 << 20);
        assert!(incident["id"].as_str().unwrap().contains(name));
        assert_eq!(incident["symbols"]["state"]["kind"], "before_verdict");
    }
}

#[test]
fn new_ones_are_found_in_time() {
    let (lab, grove) = (Lab::new(), Grove::new());
    let path = grove.path();
    let guard = Guard::start(&lab, "", &[&format!("{path}/*"), &format!("{path}/deep/*")]);
    let mut longest = Duration::ZERO;
    for round in 0..20 {
        let name = if round % 2 == 0 { format!("new{round}") } else { format!("deep/new{round}") };
        // It is the guard whose time is taken.
        let before_all_others = Urgent::start();
        let begun = Instant::now();
        let dir = grove.memcg(&name, 32);
        wait_for("the guard", || {
            std::thread::sleep(Duration::from_millis(1));
            is_guarded(&dir)
        });
        longest = longest.max(begun.elapsed());
        drop(before_all_others);
    }
    assert!(longest < FOUND_WITHIN, "the longest took {longest:?}");
    eprintln!("found within {longest:?}");
    guard.end();
}

#[test]
fn what_gets_a_limit_is_guarded_and_what_vanishes_is_no_error() {
    let (lab, grove) = (Lab::new(), Grove::new());
    let path = grove.path();
    let guard = Guard::start(&lab, "", &[&format!("{path}/*"), &format!("{path}/deep/*")]);
    let deep = grove.memcg("deep/new", 32);
    wait_for("the guard", || is_guarded(&deep));
    // One without a limit has nothing to run out of, until it gets one.
    let late = grove.group("late");
    std::thread::sleep(FOUND_WITHIN * 2);
    assert!(!is_guarded(&late));
    limit(&late, 32);
    wait_for("the guard", || is_guarded(&late));
    fs::remove_dir(&late).unwrap();
    guard.wait_for("late is gone");
    // What has its path now is another.
    let again = grove.memcg("late", 48);
    wait_for("the guard", || is_guarded(&again));
    let mut victim = leak_in(&again, "64");
    end_of(&mut victim);
    let said = guard.end();
    assert_eq!(lab.incident()["memcg"]["limit_bytes"], 48 << 20, "{said}");
    assert!(!said.contains("failed") && !said.contains("hangs"), "{said}");
}

#[test]
fn a_limit_that_its_owner_changes_is_the_one_that_counts() {
    let (lab, grove) = (Lab::new(), Grove::new());
    let dir = grove.memcg("one", 48);
    let guard = Guard::start(&lab, "guard.on_oom = ['kill']\n", &[&format!("{}/*", grove.path())]);
    limit(&dir, 80);
    wait_for("the new limit", || has_followed(&dir, 80));
    end_of(&mut leak_in(&dir, "128"));
    guard.wait_for("report");
    assert_eq!(lab.incident()["memcg"]["limit_bytes"], 80 << 20);
    let said = guard.end();
    assert_eq!(limit_of(&dir), 80 << 20, "{said}");
}

#[test]
fn what_was_granted_is_taken_back_when_it_is_not_in_use_any_more() {
    let (lab, grove) = (Lab::new(), Grove::new());
    let dir = grove.memcg("one", 48);
    // 64 MiB and a byte: what the kernel makes of it is not a limit of somebody else's.
    let guard = Guard::start(&lab, "guard.on_oom = ['grant=67108865']\n", &[&format!("{}/*", grove.path())]);
    let guarded = limit_of(&dir);
    assert!(end_of(&mut leak_in(&dir, "80")).success(), "{}", guard.said());
    assert!(guard.said().contains("the limit is now 112 MiB"), "{}", guard.said());
    wait_for("the end of the grant", || limit_of(&dir) == guarded);
    // It has the limit of before, not only its file.
    assert!(end_of(&mut leak_in(&dir, "80")).success(), "{}", guard.said());
    let said = guard.end();
    assert_eq!(said.matches("the limit is now 112 MiB").count(), 2, "{said}");
    let limits = answered(&lab).iter().map(|incident| incident["memcg"]["limit_bytes"].clone()).collect::<Vec<_>>();
    assert_eq!(limits, [48 << 20, 48 << 20], "{said}");
}

#[test]
fn a_wrong_configuration_changes_nothing_and_a_right_one_what_it_says() {
    let (lab, grove) = (Lab::new(), Grove::new());
    let (first, second) = (grove.memcg("first", 48), grove.memcg("second", 48));
    let before = files(&first);
    let path = grove.path();
    let guard = Guard::start(&lab, &format!("guard.cgroups = ['{path}/first']\n"), &[]);
    guard.reload(&format!("guard.cgroups = ['{path}/second']\nguard.on_om = ['kill']\n"));
    guard.wait_for("the old configuration stays in force");
    assert!(guard.said().contains("reprieve.toml:2: guard.on_om is not a key; did you mean guard.on_oom?"));
    assert!(is_guarded(&first) && !is_guarded(&second));
    guard.reload(&format!("guard.cgroups = ['{path}/second']\nguard.on_oom = ['grant=64M']\n"));
    guard.wait_for("the configuration was read again; guarding 1 cgroup");
    assert!(!is_guarded(&first) && is_guarded(&second), "{}", guard.said());
    assert_eq!(files(&first), before);
    // Of one that stays the policy changes, too.
    guard.reload(&format!("guard.cgroups = ['{path}/s*']\nguard.on_oom = ['kill']\n"));
    wait_for("the third reading", || guard.said().matches("read again").count() == 2);
    let mut victim = leak_in(&second, "64");
    assert!(!end_of(&mut victim).success());
    let said = guard.end();
    assert_eq!(lab.incident()["verdict"]["steps"][0]["action"], "kill", "{said}");
}

#[test]
fn after_a_crash_holds_are_given_back() {
    let (lab, grove) = (Lab::new(), Grove::new());
    let (held, idle) = (grove.memcg("held", 48), grove.memcg("idle", 48));
    let before = (files(&held), files(&idle));
    let mut guard = Guard::start(&lab, "guard.on_oom = ['freeze=100s']\n", &[&format!("{}/*", grove.path())]);
    let mut victim = leak_in(&held, "96");
    guard.wait_for("is frozen");
    guard.signal(Signal::SIGKILL);
    guard.child.wait().unwrap();
    // The kernel kills it, or it ends in the room above; then all is as it was.
    assert!(!end_of(&mut victim).success());
    let begun = Instant::now();
    while (files(&held), files(&idle)) != before {
        assert!(begun.elapsed() < GIVE_BACK_TIME, "{:?} {:?}", files(&held), files(&idle));
        std::thread::sleep(Duration::from_millis(20));
    }
    // What was recorded is published by the next.
    let next = Guard::start(&lab, "", &[&format!("{}/*", grove.path())]);
    assert!(is_guarded(&held), "{}", next.said());
    next.end();
    assert_eq!((files(&held), files(&idle)), before);
    assert_eq!(answered(&lab).len(), 1);
}

#[test]
fn when_the_watchdog_dies_as_well_the_next_guard_gives_back() {
    let (lab, grove) = (Lab::new(), Grove::new());
    let dir = grove.memcg("one", 48);
    let before = files(&dir);
    let mut guard = Guard::start(&lab, "", &[&format!("{}/*", grove.path())]);
    // Stopped, so that it cannot notice.
    guard.signal(Signal::SIGSTOP);
    kill(guard.watchdog(), Signal::SIGKILL).unwrap();
    guard.signal(Signal::SIGKILL);
    guard.child.wait().unwrap();
    assert_ne!(files(&dir), before, "somebody gave it back: then this tests nothing");
    // A handler goes with its process; what the others set stays.
    assert_eq!(is_guarded(&dir), Brake::here() != Brake::Reserve);
    let next = Guard::start(&lab, "", &[&format!("{}/*", grove.path())]);
    let mut victim = leak_in(&dir, "64");
    end_of(&mut victim);
    let said = next.end();
    assert_eq!(lab.incident()["memcg"]["limit_bytes"], 48 << 20, "{said}");
    assert_eq!(files(&dir), before, "{said}");
}

/// What is lent to a throttled program is in the kernel's limit, and in nobody's else.
#[test]
fn what_was_lent_in_a_throttle_is_no_limit_of_the_next_guard() {
    if !guard::is_v1() {
        return;
    }
    let (lab, grove) = (Lab::new(), Grove::new());
    let dir = grove.memcg("one", 96);
    let before = files(&dir);
    let toml = "guard.on_oom = ['throttle=20s', 'kill']\nguard.deadline = '40s'\n";
    let mut guard = Guard::start(&lab, toml, &[&format!("{}/*", grove.path())]);
    let guarded = limit_of(&dir);
    let mut victim = leak_in(&dir, "400");
    wait_for("the loan", || limit_of(&dir) > guarded + (3 << 20));
    // In use up to the limit, so that it cannot be put back.
    wait_for("its use", || common::usage(&dir) > 96 << 20);
    guard.signal(Signal::SIGSTOP);
    kill(guard.watchdog(), Signal::SIGKILL).unwrap();
    guard.signal(Signal::SIGKILL);
    guard.child.wait().unwrap();
    assert!(limit_of(&dir) > guarded, "somebody gave it back: then this tests nothing");
    let next = Guard::start(&lab, "guard.on_oom = ['kill']\n", &[&format!("{}/*", grove.path())]);
    next.wait_for("limit 96.0 MiB");
    assert!(!end_of(&mut victim).success(), "{}", next.said());
    let said = next.end();
    assert_eq!(files(&dir), before, "{said}");
}

#[test]
fn a_watchdog_that_has_no_time_to_listen_is_told_when_it_has() {
    let (lab, grove) = (Lab::new(), Grove::new());
    // More than the line between the two has room for.
    let dirs: Vec<PathBuf> = (0..600).map(|number| grove.memcg(&format!("many{number}"), 48)).collect();
    let mut guard = Guard::start(&lab, "", &[&format!("{}/*", grove.path())]);
    assert!(dirs.iter().all(|dir| is_guarded(dir)), "{}", guard.said());
    let watchdog = guard.watchdog();
    kill(watchdog, Signal::SIGSTOP).unwrap();
    guard.signal(Signal::SIGTERM);
    // It does not wait for who does not listen.
    wait_for("all to be given back", || !dirs.iter().any(|dir| is_guarded(dir)));
    kill(watchdog, Signal::SIGCONT).unwrap();
    wait_for("the end", || guard.child.try_wait().unwrap().is_some());
    assert!(guard.child.wait().unwrap().success(), "{}", guard.said());
}

#[test]
fn without_a_watchdog_it_does_not_go_on() {
    let (lab, grove) = (Lab::new(), Grove::new());
    let dir = grove.memcg("one", 48);
    let before = files(&dir);
    let mut guard = Guard::start(&lab, "", &[&format!("{}/*", grove.path())]);
    kill(guard.watchdog(), Signal::SIGKILL).unwrap();
    assert_eq!(guard.child.wait().unwrap().code(), Some(1));
    assert!(guard.said().contains("the watchdog died"), "{}", guard.said());
    assert_eq!(files(&dir), before);
}

#[test]
fn a_guard_that_hangs_is_ended_at_the_deadline() {
    let (lab, grove) = (Lab::new(), Grove::new());
    let dir = grove.memcg("one", 48);
    let before = files(&dir);
    let mut guard = Guard::start(&lab, "guard.deadline = '1s'\n", &[&format!("{}/*", grove.path())]);
    guard.signal(Signal::SIGSTOP);
    let begun = Instant::now();
    let mut victim = leak_in(&dir, "96");
    assert!(!end_of(&mut victim).success());
    assert!(begun.elapsed() < Duration::from_secs(6), "held {:?}", begun.elapsed());
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&guard.child.wait().unwrap()), Some(9));
    guard.wait_for("the guardian hangs past its deadline");
    wait_for("what it was before", || files(&dir) == before);
}

#[test]
fn sigterm_in_a_hold_gives_it_back_to_the_kernel() {
    let (lab, grove) = (Lab::new(), Grove::new());
    let dir = grove.memcg("one", 48);
    let before = files(&dir);
    let guard = Guard::start(&lab, "guard.on_oom = ['freeze=100s']\n", &[&format!("{}/*", grove.path())]);
    let mut victim = leak_in(&dir, "96");
    guard.wait_for("is frozen");
    let said = guard.end();
    assert!(!end_of(&mut victim).success());
    assert!(said.contains("SIGTERM was received"), "{said}");
    assert_eq!(lab.incident()["trigger"], "oom", "{said}");
    assert_eq!(files(&dir), before, "{said}");
}

#[test]
fn a_memcg_that_vanishes_in_a_hold_is_no_error() {
    let (lab, grove) = (Lab::new(), Grove::new());
    let dir = grove.memcg("one", 48);
    let guard = Guard::start(&lab, "guard.on_oom = ['freeze=100s']\n", &[&format!("{}/*", grove.path())]);
    let mut victim = leak_in(&dir, "96");
    guard.wait_for("is frozen");
    kill(Pid::from_raw(victim.pid()), Signal::SIGKILL).unwrap();
    end_of(&mut victim);
    wait_for("the end of the memcg", || fs::remove_dir(&dir).is_ok());
    guard.wait_for("one is gone");
    guard.wait_for("report ");
    // The next of that name is another.
    let dir = grove.memcg("one", 48);
    wait_for("the guard", || is_guarded(&dir));
    let said = guard.end();
    assert!(!said.contains("failed") && !said.contains("decides"), "{said}");
    assert_eq!(answered(&lab).len(), 1);
}

#[test]
fn the_second_guard_is_told_who_is_there() {
    let lab = Lab::new();
    let first = Guard::start(&lab, "", &["/nowhere/*"]);
    let mut second = Guard::start_only(&lab, "", &["/nowhere/*"]);
    assert_eq!(second.child.wait().unwrap().code(), Some(1));
    let said = second.said();
    assert!(said.contains(&format!("another reprieve guard is running (PID {}", first.pid())), "{said}");
    first.end();
    let mut nothing = Guard::start_only(&lab, "", &[]);
    assert_eq!(nothing.child.wait().unwrap().code(), Some(1));
    assert!(nothing.said().contains("there is nothing to guard; name cgroups"), "{}", nothing.said());
    let mut wrong = Guard::start_only(&lab, "", &["nowhere"]);
    assert_eq!(wrong.child.wait().unwrap().code(), Some(2));
    assert!(wrong.said().contains("does not begin with /"), "{}", wrong.said());
}

#[test]
fn a_dry_run_tells_and_the_kernel_decides() {
    let (lab, grove) = (Lab::new(), Grove::new());
    let dir = grove.memcg("one", 48);
    let guard = Guard::start(&lab, "", &["--dry-run", &format!("{}/*", grove.path())]);
    let mut victim = leak_in(&dir, "96");
    assert!(!end_of(&mut victim).success());
    wait_for("both incidents", || guard.said().matches("report ").count() == 2);
    let incidents = lab.incidents();
    let oom = incidents.iter().find(|incident| incident["trigger"] == "oom").unwrap();
    let summary = oom["verdict"]["summary"].as_str().unwrap();
    assert!(summary.starts_with("dry run: would have tried reclaim, kill (steady_leak ["), "{summary}");
    assert!(summary.contains("] is first of 1 candidate: ") && summary.ends_with("killer decides"), "{summary}");
    assert_eq!(oom["verdict"]["steps"].as_array().unwrap().len(), 0);
    let kill = incidents.iter().find(|incident| incident["trigger"] == "killed_by_kernel").unwrap();
    assert_eq!(kill["kernel_victims"][0]["comm"], "steady_leak", "{kill:#}");
    // Nothing was tried that could have helped.
    let left = format!(
        "it was left to the kernel: what was tried for it, and the stacks, are in {}",
        oom["id"].as_str().unwrap()
    );
    assert_eq!(kill["gaps"][0], left, "{kill:#}");
    // It is guarded again, as before.
    wait_for("the brake", || is_guarded(&dir));
    guard.end();
    assert!(!is_guarded(&dir));
}

#[test]
fn jobs_of_a_dry_run_are_recorded_and_a_replay_ranks_them_anew() {
    let (lab, grove) = (Lab::new(), Grove::new());
    grove.memcg("shop", 48);
    let [nightly, web] = ["shop/nightly", "shop/web"].map(|name| grove.group(name));
    let shop = format!("{}/shop", grove.path());
    let worth = |priority| format!("[[cgroup]]\nmatch = '{shop}/nightly'\npriority = {priority}\n");
    let toml = format!("[guard]\non_oom = ['kill']\n{}", worth(-5));
    let guard = Guard::start(&lab, &toml, &["--dry-run", &shop]);
    let _server = start_in(&web, &["sleep", "1000"]);
    assert!(!end_of(&mut leak_in(&nightly, "96")).success());
    wait_for("both incidents", || guard.said().matches("report ").count() == 2);
    let said = guard.end();
    let incidents = lab.incidents();
    let oom = incidents.iter().find(|incident| incident["trigger"] == "oom").unwrap();
    let names: Vec<&str> =
        oom["candidates"].as_array().unwrap().iter().map(|job| job["comm"].as_str().unwrap()).collect();
    assert_eq!(names, [format!("{shop}/nightly"), format!("{shop}/web")], "{said}");
    assert!(said.contains(&format!("kill (job {shop}/nightly is first of 2 candidates")), "{said}");
    let policy = lab.out().join("policy.toml");
    let begins_with = |priority| {
        fs::write(&policy, format!("guard.cgroups = ['{shop}']\nguard.on_oom = ['kill']\n{}", worth(priority)))
            .unwrap();
        let output = lab.reprieve("replay").arg(&policy).arg(oom["id"].as_str().unwrap()).output().unwrap();
        common::text(&output)
    };
    assert!(begins_with(-1).contains(&format!("job {shop}/nightly, ")), "{}", begins_with(-1));
    assert!(begins_with(7).contains(&format!("job {shop}/web, ")), "{}", begins_with(7));
}

#[test]
fn reports_are_limited_but_ooms_are_answered() {
    let (lab, grove) = (Lab::new(), Grove::new());
    let dir = grove.memcg("one", 48);
    let toml = "[guard]\non_oom = ['grant=48M', 'kill']\nreports_per_hour = 1\n";
    let guard = Guard::start(&lab, toml, &[&format!("{}/*", grove.path())]);
    let guarded = limit_of(&dir);
    assert!(end_of(&mut leak_in(&dir, "64")).success(), "{}", guard.said());
    guard.wait_for("report ");
    wait_for("the end of the grant", || limit_of(&dir) == guarded);
    assert!(end_of(&mut leak_in(&dir, "64")).success(), "{}", guard.said());
    guard.wait_for("one had 1 within the hour (guard.reports_per_hour)");
    wait_for("the end of the grant", || limit_of(&dir) == guarded);
    // A kill is what is looked for later.
    assert!(!end_of(&mut leak_in(&dir, "256")).success(), "{}", guard.said());
    let said = guard.end();
    let incidents = lab.incidents();
    let is_kill = |incident: &&serde_json::Value| incident["verdict"]["steps"][1]["action"] == "kill";
    assert_eq!((incidents.len(), incidents.iter().filter(is_kill).count()), (2, 1), "{said}");
}

#[test]
fn one_analyst_takes_them_one_after_the_other() {
    let (lab, grove) = (Lab::new(), Grove::new());
    let dirs = ["a", "b", "c"].map(|name| grove.memcg(name, 48));
    let toml = "[guard]\non_oom = ['kill']\nanalysts = 1\ndeadline = '20s'\n";
    let guard = Guard::start(&lab, toml, &[&format!("{}/*", grove.path())]);
    let mut victims = dirs.each_ref().map(|dir| leak_in(dir, "64"));
    victims.iter_mut().for_each(|victim| assert!(!end_of(victim).success()));
    let said = guard.end();
    let incidents = answered(&lab);
    assert_eq!(incidents.len(), 3, "{said}");
    assert!(incidents.iter().all(|incident| incident["verdict"]["relieved"] == true), "{said}");
}

#[test]
fn nobody_free_in_time_is_for_the_kernel() {
    let (lab, grove) = (Lab::new(), Grove::new());
    let dirs = ["a", "b"].map(|name| grove.memcg(name, 48));
    let path = grove.path();
    let toml = format!(
        "[guard]\nanalysts = 1\non_oom = ['freeze=100s']\n[[cgroup]]\nmatch = '{path}/b'\ndeadline = '1s'\non_oom = ['kill']\n"
    );
    let guard = Guard::start(&lab, &toml, &[&format!("{path}/*")]);
    let _frozen = leak_in(&dirs[0], "96");
    guard.wait_for("is frozen");
    let mut second = leak_in(&dirs[1], "96");
    assert!(!end_of(&mut second).success());
    let said = guard.end();
    assert!(said.contains("b: no analyst was free in time; the kernel's OOM killer decides"), "{said}");
}

#[test]
fn an_idle_guard_asks_for_nothing() {
    let (lab, grove) = (Lab::new(), Grove::new());
    for number in 0..100 {
        grove.memcg(&format!("idle{number}"), 32);
    }
    let guard = Guard::start(&lab, "", &[&format!("{}/*", grove.path())]);
    assert!(guard.said().contains("guarding 100 cgroups"), "{}", guard.said());
    // Two functions of it would be 0.9 MiB of a guardian's 16.
    let maps = fs::read_to_string(format!("/proc/{}/maps", guard.pid())).unwrap();
    assert!(maps.contains("/libc.so") && !maps.contains("/libm.so"), "{maps}");
    // How often it slept of itself, which is how often it woke.
    let slept = || {
        let status = fs::read_to_string(format!("/proc/{}/status", guard.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
        line.trim().parse::<u64>().unwrap()
    };
    // What the start has left to do.
    std::thread::sleep(Duration::from_secs(1));
    let before = slept();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(slept() - before, 0, "{}", guard.said());
    guard.end();
}
