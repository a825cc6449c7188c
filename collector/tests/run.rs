//! `reprieve run` from the outside: outcomes, exit codes, evidence, leftovers.

mod common;

use common::{
    Lab, Terminal, assert_held_well, assert_unharmed, ended_by_itself, fixture, groups, text, threads, wait_for,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::process::Command;

#[test]
fn granted_program_finishes_unharmed_and_is_explained() {
    let lab = Lab::new();
    // Names are there before the verdict also where it is slow.
    let options = ["--memory", "64M", "--on-oom", "grant=128M", "--deadline", "20s"];
    let output = lab.run(&options, &[&fixture("steady_leak"), "--mib", "96"]);
    assert_unharmed(&output);
    let incident = lab.incident();
    assert_held_well(&incident);
    assert_eq!(incident["symbols"]["state"]["kind"], "before_verdict");
    assert_eq!(incident["verdict"]["steps"][0]["outcome"], "relieved", "{incident:#}");
    let folded = String::from_utf8(lab.file("stacks.folded")).unwrap();
    assert!(folded.contains("main (steady_leak.c:") && folded.contains(";leak_"), "{folded}");
    let report = String::from_utf8(lab.file("report.html")).unwrap();
    let svg = String::from_utf8(lab.file("flamegraph.svg")).unwrap();
    for page in [&report, &svg] {
        assert!(page.contains("leak_") && page.contains("steady_leak.c:"), "the leak is not named");
        assert!(!page.contains("href=\"http") && !page.contains("src=\"http"), "needs the network");
    }
    assert!(!lab.file("profile.pb.gz").is_empty());
    // What was charged and what the processes have must agree.
    let charged = incident["memcg"]["usage_bytes"].as_u64().unwrap();
    let anon = incident["processes"][0]["memory"]["pss_anon_bytes"].as_u64().unwrap();
    assert!(anon <= charged && anon * 10 >= charged * 8, "{anon} of {charged}");
}

#[test]
fn killed_program_is_gone_and_its_memory_is_back() {
    let lab = Lab::new();
    let output = lab.run(&["--memory", "64M", "--on-oom", "reclaim,kill"], &[&fixture("steady_leak"), "--mib", "96"]);
    assert_eq!(output.status.code(), Some(137), "{}", text(&output));
    let incident = lab.incident();
    let steps = incident["verdict"]["steps"].as_array().unwrap();
    assert_eq!(steps.iter().map(|s| s["action"].as_str().unwrap()).collect::<Vec<_>>(), ["reclaim", "kill"]);
    assert_eq!(steps[1]["candidates"][0]["comm"], "steady_leak");
    let (before, after) = (&steps[1]["usage_before_bytes"], &steps[1]["usage_after_bytes"]);
    assert!(after.as_u64().unwrap() < before.as_u64().unwrap() / 4, "{before} to {after}");
}

/// Its code is charged to its own memcg, and the first that reclaim takes.
#[test]
fn throttled_program_needs_its_code_to_get_well() {
    assert_gets_well(&["--mib", "160"]);
}

/// Runs the fixture relief, which nobody has read since it was written.
fn assert_gets_well(arguments: &[&str]) {
    let lab = Lab::new();
    let home = tempfile::tempdir().unwrap();
    let program = home.path().join("relief");
    fs::copy(fixture("relief"), &program).unwrap();
    let file = fs::File::open(&program).unwrap();
    file.sync_all().unwrap();
    nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    let options = ["--memory", "48M", "--on-oom", "throttle=30s,kill"];
    let output = lab.run(&options, &[&[program.to_str().unwrap()], arguments].concat());
    assert_unharmed(&output);
    for incident in lab.incidents() {
        assert_eq!(incident["verdict"]["steps"][0]["outcome"], "relieved", "{:#}", incident["verdict"]);
    }
    assert!(!lab.incidents().is_empty());
}

/// It takes more than one loan at once, and then its reaper parks, too.
#[test]
fn throttled_program_all_of_which_waits_is_lent_more() {
    // Beyond the first loan, above the limit or, on version 1, the wall; not the last.
    let stretch = if fs::exists("/sys/fs/cgroup/memory").unwrap() { "24" } else { "14" };
    assert_gets_well(&["--mib", "44", "--stretch", stretch]);
}

#[test]
fn throttled_program_that_frees_memory_by_itself_lives() {
    let lab = Lab::new();
    let output = lab.run(&["--memory", "48M", "--on-oom", "throttle=30s,kill"], &[&fixture("relief"), "--mib", "160"]);
    for incident in lab.incidents() {
        assert_eq!(incident["verdict"]["steps"][0]["outcome"], "relieved", "{:#}", incident["verdict"]);
        assert_held_well(&incident);
        // The stop lends 64 KiB, which the limit must not keep.
        assert_eq!(incident["memcg"]["limit_bytes"], 48 << 20);
    }
    assert_unharmed(&output);
    assert!(!lab.incidents().is_empty());
}

#[test]
fn when_nothing_helps_the_kernel_decides_and_its_victim_is_named() {
    let lab = Lab::new();
    let output = lab.run(&["--memory", "64M", "--on-oom", "reclaim"], &[&fixture("steady_leak"), "--mib", "96"]);
    assert_eq!(output.status.code(), Some(137), "{}", text(&output));
    let incidents = lab.incidents();
    let triggers: Vec<_> = incidents.iter().map(|i| i["trigger"].as_str().unwrap()).collect();
    assert_eq!(triggers, ["oom", "killed_by_kernel"], "{}", text(&output));
    assert_eq!(incidents[0]["verdict"]["relieved"], false);
    let victim = &incidents[1]["kernel_victims"][0];
    assert_eq!(victim["comm"], "steady_leak", "{}", incidents[1]);
    assert!(victim["rss_bytes"].as_u64().unwrap() > 48 << 20, "{victim}");
}

#[test]
fn grants_of_a_run_are_bounded_and_then_the_next_action_goes() {
    let lab = Lab::new();
    let options = ["--memory", "64M", "--no-heap", "--on-oom", "grant=24M,kill"];
    let output = lab.run(&options, &[&fixture("steady_leak"), "--mib", "400"]);
    assert_eq!(output.status.code(), Some(137), "{}", text(&output));
    let incidents: Vec<_> = lab.incidents().into_iter().filter(|incident| !ended_by_itself(incident)).collect();
    let last = &incidents.last().unwrap()["verdict"]["steps"];
    assert_eq!(incidents.len(), 3, "{}", text(&output));
    let refused = "refused: it would have been granted 72.0 MiB, and may be 64.0 MiB (run.most_granted)";
    assert_eq!((&last[0]["effect"], &last[1]["action"]), (&refused.into(), &"kill".into()), "{last:#}");
    // Whoever wants more says so.
    let lab = Lab::new();
    let options = ["--memory", "64M", "--most-granted", "1G", "--no-heap", "--on-oom", "grant=24M,kill"];
    let output = lab.run(&options, &[&fixture("steady_leak"), "--mib", "160"]);
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn one_run_leaves_so_many_incidents_and_its_kills() {
    let lab = Lab::new();
    let options = ["--memory", "48M", "--most-granted", "40M", "--no-heap", "--on-oom", "grant=2M,kill"];
    let output = lab.run(&options, &[&fixture("steady_leak"), "--mib", "400"]);
    let incidents = lab.incidents();
    let kills = incidents.iter().filter(|incident| incident["verdict"]["steps"][1]["action"] == "kill").count();
    assert_eq!((incidents.len(), kills), (13, 1), "{}", text(&output));
    assert!(text(&output).contains("had 12 within the hour (run.reports_per_hour)"), "{}", text(&output));
}

#[test]
fn a_person_on_the_terminal_decides() {
    let lab = Lab::new();
    let options = ["--memory", "64M", "--on-oom", "ask=60s,kill"];
    let mut terminal = Terminal::start(&lab, &options, &[&fixture("steady_leak"), "--mib", "96"]);
    terminal.wait_for("What now?");
    terminal.enter("explode");
    terminal.wait_for("known are");
    terminal.enter("grant=64M");
    assert!(terminal.wait().success());
    let incident = lab.incident();
    let step = &incident["verdict"]["steps"][0];
    assert_eq!(step["outcome"], "relieved", "{step}");
    assert!(step["effect"].as_str().unwrap().starts_with("the operator chose grant=64M: "), "{step}");
}

#[test]
fn two_hundred_threads_stop_and_show_thirty_frames() {
    let lab = Lab::new();
    let output = lab.run(
        &["--memory", "64M", "--on-oom", "grant=128M"],
        &[&fixture("many_threads"), "--threads", "200", "--mib", "96"],
    );
    assert_unharmed(&output);
    let incident = lab.incident();
    assert_held_well(&incident);
    assert!(incident["hold"]["threads_stopped"].as_u64().unwrap() >= 200, "{}", incident["hold"]);
    let complete = threads(&incident)
        .iter()
        .filter(|t| t["stack"]["end"]["kind"] == "complete" && t["stack"]["frames"].as_array().unwrap().len() >= 30)
        .count();
    assert!(complete >= 200, "{complete} stacks are complete");
}

#[test]
fn unlimited_enough_programs_keep_their_exit_code_and_leave_no_incident() {
    let lab = Lab::new();
    assert_eq!(lab.run(&[], &["sh", "-c", "exit 7"]).status.code(), Some(7));
    assert_eq!(lab.run(&[], &["sh", "-c", "kill -USR1 $$"]).status.code(), Some(128 + 10));
    assert!(lab.incidents().is_empty());
    let left: Vec<_> = fs::read_dir(lab.out()).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_guardian_with_nothing_to_do_sleeps() {
    let lab = Lab::new();
    let mut child = lab.start(&["--memory", "64M"], &["sleep", "1000"]);
    wait_for("the start", || groups().iter().any(|g| has_processes(g)));
    let cpu_ticks = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        // utime and stime (proc_pid_stat(5)), counted behind the name.
        let fields: Vec<u64> = stat.rsplit(')').next().unwrap().split(' ').map(|f| f.parse().unwrap_or(0)).collect();
        fields[12] + fields[13]
    };
    let (before, begun) = (cpu_ticks(), std::time::Instant::now());
    std::thread::sleep(std::time::Duration::from_secs(2));
    // 100 ticks a second.
    let share = (cpu_ticks() - before) as f64 / 100.0 / begun.elapsed().as_secs_f64();
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    child.wait().unwrap();
    assert!(share < 0.2, "it used {:.0} % of a CPU", share * 100.0);
}

#[test]
fn the_command_can_be_killed_like_any_other() {
    let lab = Lab::new();
    let ours = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    let output = lab.run(&[], &["cat", "/proc/self/oom_score_adj"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), ours, "reprieve's own exemption must not be inherited");
}

#[test]
fn mistakes_have_one_message_and_a_documented_code() {
    let lab = Lab::new();
    let cases: &[(&[&str], &[&str], i32, &str)] = &[
        (&["--memory", "lots"], &["true"], 125, "not a size"),
        (&["--on-oom", "explode"], &["true"], 125, "known are"),
        (&["--on-oom", "grant"], &["true"], 125, "grant=64M"),
        (&["--brake", "magic"], &["true"], 125, "known are"),
        (&[], &["/no/such/program"], 127, "not found"),
        (&[], &["/etc/passwd"], 126, "cannot be run"),
        (&["--memory", "1"], &["true"], 125, "raise --memory"),
    ];
    for (options, command, code, words) in cases {
        let output = lab.run(options, command);
        assert_eq!(output.status.code(), Some(*code), "{options:?} {command:?}: {}", text(&output));
        assert!(text(&output).contains(words), "{options:?} {command:?}: {}", text(&output));
    }
    assert!(lab.incidents().is_empty());
}

#[test]
fn without_rights_or_controllers_it_says_what_to_do() {
    let lab = Lab::new();
    // Another user cannot enter the checkout, so the program goes with them.
    let program = lab.out().join("reprieve");
    fs::copy(env!("CARGO_BIN_EXE_reprieve"), &program).unwrap();
    for path in [lab.out(), &program] {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    }
    let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let hide = "grep ' - cgroup' /proc/self/mountinfo | cut -d' ' -f5 | while read at; do mount -t tmpfs none $at; done
        exec \"$@\"";
    let hidden = ["unshare", "--mount", "sh", "-c", hide, "sh"];
    let out = lab.out().join("incidents");
    let run = |wrapper: &[&str], arguments: &[&str]| {
        let mut command = Command::new(wrapper[0]);
        command.args(&wrapper[1..]).arg(&program).args(arguments).env("XDG_STATE_HOME", &out).output().unwrap()
    };
    for (wrapper, arguments, code, words) in [
        (&nobody[..], &["run", "--", "true"][..], 125, "run as root or in a delegated cgroup"),
        (&nobody, &["snapshot", "1"], 4, "run as root or with CAP_SYS_PTRACE"),
        (&nobody, &["list", "--out", "/root"], 1, "/root: Permission denied"),
        (&nobody, &["doctor"], 4, "remedy: run as root"),
        (&hidden, &["run", "--", "true"], 125, "cgroup_disable=memory"),
        (&hidden, &["doctor"], 4, "cgroup_disable=memory"),
    ] {
        let output = run(wrapper, arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output));
        assert!(text(&output).contains(words), "{arguments:?}: {}", text(&output));
    }
    assert!(groups().is_empty(), "{:?}", groups());
}

#[test]
fn a_limit_too_small_to_start_ends_with_a_word() {
    let lab = Lab::new();
    // Whether the exec itself fails or the program is held and killed right
    // after depends on the kernel; nothing may hang or stay behind.
    let output = lab.run(&["--memory", "64K"], &[&fixture("steady_leak"), "--mib", "1"]);
    assert!(matches!(output.status.code(), Some(125 | 126 | 137 | 139)), "{}", text(&output));
    assert!(!output.stderr.is_empty());
}

#[test]
fn interrupts_end_the_command_as_a_shell_would() {
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let lab = Lab::new();
        let child = lab.start(&["--memory", "64M"], &["sh", "-c", "echo ready; exec sleep 1000"]);
        wait_for("the start", || !groups().is_empty() && groups().iter().any(|g| has_processes(g)));
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", text(&output));
        assert!(groups().is_empty(), "{:?}", groups());
    }
}

#[test]
fn an_interrupt_during_a_hold_releases_it() {
    let lab = Lab::new();
    let options = ["--memory", "64M", "--on-oom", "freeze=100s", "--deadline", "20s"];
    let child = lab.start(&options, &[&fixture("steady_leak"), "--mib", "96"]);
    let held = || fs::read_dir(lab.out()).unwrap().flatten().any(|e| e.path().join("symbols.json").exists());
    wait_for("the hold", held);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(matches!(output.status.code(), Some(143 | 137)), "{}", text(&output));
    assert!(groups().is_empty(), "{:?}", groups());
    assert_eq!(lab.incidents().len(), 1, "{}", text(&output));
}

#[test]
fn full_and_forbidden_folders_are_told_before_the_start() {
    let mount = tempfile::tempdir().unwrap();
    let status = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(mount.path()).status();
    assert!(status.unwrap().success(), "mounting a tmpfs needs root");
    let run = |dir: &std::path::Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_reprieve"));
        command.args(["run", "--out"]).arg(dir).args(["--", "touch", "/proc/self/never-made"]).output().unwrap()
    };
    let full = run(mount.path());
    let fill = mount.path().join("fill");
    assert!(fs::write(&fill, vec![1; 128 << 10]).is_err(), "it is not full");
    let mut sleeper = Command::new("sleep").arg("100").spawn().unwrap();
    let mut snapshot = Command::new(env!("CARGO_BIN_EXE_reprieve"));
    let looked = snapshot.arg("snapshot").arg(sleeper.id().to_string()).arg("--out").arg(mount.path()).output();
    sleeper.kill().and_then(|()| sleeper.wait()).unwrap();
    fs::remove_file(&fill).unwrap();
    let left = fs::read_dir(mount.path()).unwrap().count();
    Command::new("umount").arg(mount.path()).status().unwrap();
    for (output, code) in [(full, 125), (looked.unwrap(), 1)] {
        let said = text(&output);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains("--out"), "no remedy: {said}");
        assert_eq!(said.matches("No space left").count(), 1, "{said}");
    }
    assert_eq!(left, 0, "something stayed in the full folder");
    let forbidden = run(std::path::Path::new("/proc/reprieve"));
    assert_eq!(forbidden.status.code(), Some(125), "{}", text(&forbidden));
    assert!(groups().is_empty());
}

#[test]
fn a_disk_that_fills_up_meanwhile_still_takes_the_incident() {
    let mount = tempfile::tempdir().unwrap();
    let status = Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"]).arg(mount.path()).status();
    assert!(status.unwrap().success(), "mounting a tmpfs needs root");
    let script = format!("cat /dev/zero > {}/fill; exec {} --mib 96", mount.path().display(), fixture("steady_leak"));
    let output = Command::new(env!("CARGO_BIN_EXE_reprieve"))
        .args(["run", "--memory", "64M", "--on-oom", "kill", "--out"])
        .arg(mount.path())
        .args(["--", "sh", "-c", &script])
        .output()
        .unwrap();
    let json: Vec<_> = fs::read_dir(mount.path())
        .unwrap()
        .flatten()
        .filter_map(|entry| fs::read(entry.path().join("incident.json")).ok())
        .collect();
    Command::new("umount").arg(mount.path()).status().unwrap();
    assert_eq!(output.status.code(), Some(137), "{}", text(&output));
    assert_eq!(json.len(), 1, "{}", text(&output));
    let incident: serde_json::Value = serde_json::from_slice(&json[0]).unwrap();
    assert_eq!(incident["verdict"]["relieved"], true);
}

#[test]
fn list_and_show_cope_with_damage() {
    let lab = Lab::new();
    let show = lab.reprieve("show").output().unwrap();
    assert_eq!(show.status.code(), Some(3), "{}", text(&show));
    lab.run(&["--memory", "64M"], &[&fixture("steady_leak"), "--mib", "96"]);
    let broken = lab.out().join("20200101T000000Z-broken-000000");
    fs::create_dir(&broken).unwrap();
    fs::write(broken.join("incident.json"), "{\"schema\":").unwrap();
    let list = lab.reprieve("list").output().unwrap();
    assert_eq!(list.status.code(), Some(1));
    assert!(
        text(&list).contains("steady_leak") && text(&list).contains("broken-000000/incident.json"),
        "{}",
        text(&list)
    );
    let show = lab.reprieve("show").output().unwrap();
    let page = String::from_utf8(show.stdout).unwrap();
    assert!(page.contains("VERDICT") && page.contains("leak_") && page.contains("report.html"), "{page}");
    assert!(page.lines().all(|l| l.chars().count() <= 100 || l.starts_with("report")), "{page}");
}

fn has_processes(group: &std::path::Path) -> bool {
    fs::read_to_string(group.join("cgroup.procs")).is_ok_and(|t| !t.is_empty())
}
