//! `reprieve snapshot`: evidence without an OOM, and no harm.

mod common;

use common::{Doomed, Lab, Resident, assert_marked, fixture, text};
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
    let shown = text(&lab.reprieve("show").output().unwrap());
    assert!(shown.contains("when they were stopped") && !shown.contains("memory ran out"), "{shown}");
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

/// Waits below more frames than are recorded, or above a page of its stack that it gave back.
const CUT: &str = r#"
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
__attribute__((noipa)) static int waits(void) { char byte; return (int)read(0, &byte, 1) + 1; }
__attribute__((noipa)) static int deep(int depth) { return (depth ? deep(depth - 1) : waits()) + 1; }
__attribute__((noipa)) static int gives(char *page)
{
	return madvise(page, 8192, MADV_DONTNEED) + waits();
}
__attribute__((noipa)) static int far(void)
{
	char room[65536];

	memset(room, 1, sizeof(room));
	return gives((char *)((uintptr_t)__builtin_frame_address(0) & ~4095ul)) + room[5];
}
int main(int argc, char **argv) { (void)argv; return argc > 1 ? far() : deep(1000); }
"#;

#[test]
fn a_stack_that_is_cut_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let (source, program) = (dir.path().join("cut.c"), dir.path().join("cut"));
    std::fs::write(&source, CUT).unwrap();
    let built = Command::new("cc").args(["-O1", "-g", "-o"]).args([&program, &source]).status().unwrap();
    assert!(built.success());
    for (argument, end, cut, frames) in [
        (None, "too_deep", "too deep", 512),
        // read, waits, gives, far: who called that is on the page.
        (Some("far"), "missing_memory", "page not in memory", 4),
    ] {
        let mut command = Command::new(&program);
        let waiting = Doomed(command.args(argument).stdin(Stdio::piped()).spawn().unwrap());
        common::wait_for("its wait", || {
            let read =
                |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", waiting.pid())).unwrap_or_default();
            read("comm") == "cut\n" && read("wchan").contains("pipe")
        });
        let before = Resident::of(waiting.pid());
        let lab = Lab::new();
        let output = lab.reprieve("snapshot").arg(waiting.pid().to_string()).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        // It is not brought back to be read.
        Resident::of(waiting.pid()).assert_not_grown(before, "cut");
        let incident = lab.incident();
        let stack = &incident["processes"][0]["threads"][0]["stack"];
        assert_eq!(
            (&stack["end"]["kind"], stack["frames"].as_array().unwrap().len()),
            (&end.into(), frames),
            "{stack}"
        );
        let folded = String::from_utf8(lab.file("stacks.folded")).unwrap();
        let outermost = if argument.is_some() { "far (cut.c:17);gives (" } else { "deep (cut.c:7);deep (" };
        assert!(folded.contains(&format!("cut;[stack cut: {cut}];{outermost}")), "{folded}");
        assert!(!folded.contains("main ("), "{folded}");
    }
}

/// Threads that wait in functions that call each other, and say so when all do.
const MANY: &str = r#"
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
static atomic_int waiting;
static int ends[2];
__attribute__((noipa)) static int deep(int depth)
{
	char byte;

	if (depth)
		return deep(depth - 1) + 1;
	waiting++;
	return read(ends[0], &byte, 1) != 0;
}
static void *thread(void *unused) { (void)unused; return (void *)(long)deep(20); }
int main(int argc, char **argv)
{
	int count = argc > 1 ? atoi(argv[1]) : 1;
	pthread_attr_t attributes;
	pthread_t id;

	if (pipe(ends) || pthread_attr_init(&attributes) || pthread_attr_setstacksize(&attributes, 65536))
		return 1;
	for (int n = 0; n < count; n++)
		if (pthread_create(&id, &attributes, thread, NULL))
			return 1;
	while (waiting < count)
		usleep(1000);
	puts("ready");
	fflush(stdout);
	return deep(0);
}
"#;

#[test]
fn ten_thousand_threads() {
    const THREADS: usize = 10_000;
    /// For stacks, modules and the incident's text.
    const MOST_GUARDIAN_BYTES: u64 = 256 << 20;
    /// What a hold has, the stop within it.
    const SNAPSHOT_AT_MOST_US: u64 = 5_000_000;
    let dir = tempfile::tempdir().unwrap();
    let (source, program) = (dir.path().join("many.c"), dir.path().join("many"));
    std::fs::write(&source, MANY).unwrap();
    let built = Command::new("cc").args(["-O1", "-g", "-pthread", "-o"]).args([&program, &source]).status().unwrap();
    assert!(built.success());
    let mut many = Command::new(&program);
    let mut many = Doomed(many.arg(THREADS.to_string()).stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(many.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let lab = Lab::new();
    let output = lab.reprieve("snapshot").args(["--deadline", "60s"]).arg(many.pid().to_string()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let incident = lab.incident();
    let hold = &incident["hold"];
    println!(
        "stop {} us, snapshot {} us, peak {} bytes",
        hold["stop_window_us"], hold["snapshot_us"], hold["guardian_peak_bytes"]
    );
    let is_whole = |thread: &&&Value| {
        let stack = &thread["stack"];
        stack["end"]["kind"] == "complete" && stack["frames"].as_array().unwrap().len() > 20
    };
    assert_eq!(common::threads(&incident).iter().filter(is_whole).count(), THREADS);
    assert!(hold["guardian_peak_bytes"].as_u64().unwrap() <= MOST_GUARDIAN_BYTES, "{hold}");
    assert!(hold["snapshot_us"].as_u64().unwrap() <= SNAPSHOT_AT_MOST_US, "{hold}");
}
