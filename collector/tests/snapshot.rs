//! `reprieve snapshot`: evidence without an OOM, and no harm.

mod common;

use common::{Doomed, Lab, assert_marked, fixture, text};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

#[test]
fn a_running_program_is_recorded_and_runs_on() {
    let lab = Lab::new();
    let script = "import sys\nprint('ready', flush=True)\nfor line in sys.stdin: print(int(line) * 2, flush=True)";
    let mut python =
        Command::new("python3").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let pid = python.id().to_string();
    common::wait_for("python's start", || {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.contains("python"))
            && std::fs::read_to_string(format!("/proc/{pid}/wchan")).is_ok_and(|w| w.contains("pipe"))
    });
    for _ in 0..3 {
        let output = lab.reprieve("snapshot").arg(&pid).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    }
    python.stdin.take().unwrap().write_all(b"21\n").unwrap();
    let done = python.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&done.stdout), "ready\n42\n");
    assert!(done.status.success());
    let incidents = lab.incidents();
    assert_eq!(incidents.len(), 3);
    for incident in &incidents {
        assert_eq!(incident["trigger"], "snapshot");
        let folded = String::from_utf8(lab.file("stacks.folded")).unwrap();
        assert!(folded.contains("read"), "{folded}");
        assert_eq!(incident["processes"][0]["pid"].as_u64().unwrap().to_string(), pid);
        assert!(incident["processes"][0]["cmdline"].is_null(), "command lines are private by default");
    }
}

#[test]
fn unknown_targets_are_told() {
    let lab = Lab::new();
    let mut ended = Command::new("true").spawn().unwrap();
    let zombie = ended.id().to_string();
    common::wait_for("the end", || {
        std::fs::read_to_string(format!("/proc/{zombie}/stat")).is_ok_and(|stat| stat.contains(") Z "))
    });
    for target in ["2147483647", "/no/such/cgroup", &zombie] {
        let output = lab.reprieve("snapshot").arg(target).output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    }
    ended.wait().unwrap();
    assert!(lab.incidents().is_empty());
}

#[test]
fn all_registers_are_recorded_and_come_back() {
    let mut program = Command::new(fixture("parked/registers"));
    let mut program = Doomed(program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    let mut truth = String::new();
    BufReader::new(program.0.stdout.take().unwrap()).read_line(&mut truth).unwrap();
    let truth: Value = serde_json::from_str(&truth).unwrap();
    // The thread tells its marks just before it has them.
    let tid = &truth["marked"]["tid"];
    common::wait_for("its wait", || {
        std::fs::read_to_string(format!("/proc/{tid}/wchan")).is_ok_and(|wchan| wchan.contains("pipe"))
    });
    let lab = Lab::new();
    let output = lab.reprieve("snapshot").arg(program.pid().to_string()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert_marked(&lab.incident(), &truth);
    // It fails if any of them has changed.
    program.0.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert!(program.0.wait().unwrap().success());
}
