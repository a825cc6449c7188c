//! What a ladder can do besides: signals, hooks, and leaving it to the kernel.

mod common;

use common::{Lab, fixture, text};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Keeps 4 KiB blocks until SIGUSR1 has it drop them, once; then it ends.
const DROPS: &str = "import signal, time
kept, dropped = [], False
def drop(*_):
    global dropped
    kept.clear()
    dropped = True
signal.signal(signal.SIGUSR1, drop)
while not dropped:
    kept.append(bytearray(1 << 16))
time.sleep(1)
";

fn script(dir: &Path, body: &str) -> PathBuf {
    let file = dir.join("hook");
    fs::write(&file, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    file
}

fn steps(lab: &Lab) -> Vec<Value> {
    lab.incidents().first().expect("an incident")["verdict"]["steps"].as_array().unwrap().clone()
}

#[test]
fn a_program_that_drops_its_caches_when_told_lives() {
    let lab = Lab::new();
    let output = lab.run(&["--memory", "64M", "--on-oom", "signal=USR1,kill", "--no-heap"], &["python3", "-c", DROPS]);
    assert!(output.status.success(), "{}", text(&output));
    let step = &steps(&lab)[0];
    assert_eq!((&step["action"], &step["outcome"]), (&"signal=USR1".into(), &"relieved".into()), "{step:#}");
    assert_eq!(step["reason"], "SIGUSR1 asks 1 process to free memory");
}

#[test]
fn one_that_dies_of_a_signal_is_told() {
    let lab = Lab::new();
    let script = "l = []\nwhile True: l.append(bytearray(1 << 20))";
    let output = lab.run(&["--memory", "64M", "--on-oom", "signal=USR1,kill", "--no-heap"], &["python3", "-c", script]);
    assert_eq!(output.status.code(), Some(138), "{}", text(&output));
    let step = &steps(&lab)[0];
    let told = step["effect"].as_str().unwrap();
    assert!(told.starts_with("python3 [") && told.contains("] died of it; "), "{step:#}");
    assert!(text(&output).contains("died of it"), "{}", text(&output));
}

#[test]
fn a_hook_makes_room_or_is_killed_at_its_deadline() {
    let (lab, dir) = (Lab::new(), tempfile::tempdir().unwrap());
    // Memory of the memcg that the kernel would find nobody to kill for.
    let file = PathBuf::from(format!("/dev/shm/reprieve-hook-{}", std::process::id()));
    let hook = script(dir.path(), &format!("test \"$REPRIEVE_USAGE_BYTES\" -gt 30000000 && rm -f {}", file.display()));
    let fills = format!("head -c 40M /dev/zero > {}; exec {} --mib 40", file.display(), fixture("steady_leak"));
    let run = |hook: &str| {
        let on_oom = format!("{hook},kill");
        lab.run(&["--memory", "64M", "--on-oom", &on_oom, "--no-heap"], &["sh", "-c", &fills])
    };
    let output = run(&format!("hook={}", hook.display()));
    let is_gone = fs::remove_file(&file).is_err();
    assert!(is_gone && output.status.success(), "{}", text(&output));
    let step = &steps(&lab)[0];
    assert_eq!(step["outcome"], "relieved", "{step:#}");
    assert!(step["effect"].as_str().unwrap().starts_with("exit status: 0, "), "{step:#}");
    let lab = Lab::new();
    let hook = script(dir.path(), "sleep 1000");
    let on_oom = format!("hook=1s:{},kill", hook.display());
    let output = lab.run(&["--memory", "64M", "--on-oom", &on_oom], &[&fixture("steady_leak"), "--mib", "96"]);
    assert_eq!(output.status.code(), Some(137), "{}", text(&output));
    let step = &steps(&lab)[0];
    assert!(step["effect"].as_str().unwrap().ends_with("was not done after 1s and was killed"), "{step:#}");
    assert!(step["took_us"].as_u64().unwrap() < 3_000_000, "{step:#}");
}

#[test]
fn what_is_deferred_the_kernel_decides() {
    let lab = Lab::new();
    let output = lab.run(&["--memory", "64M", "--on-oom", "defer"], &[&fixture("steady_leak"), "--mib", "96"]);
    assert_eq!(output.status.code(), Some(137), "{}", text(&output));
    let incidents = lab.incidents();
    let summary = &incidents.iter().find(|i| i["trigger"] == "oom").unwrap()["verdict"]["summary"];
    assert_eq!(summary, "defer: the kernel's OOM killer decides");
    assert!(incidents.iter().any(|i| i["trigger"] == "killed_by_kernel"), "{incidents:#?}");
}
