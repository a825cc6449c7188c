//! Evidence costs its target nothing: whichever witness reads a process, whether
//! the v1 brake has parked it at its limit or somebody has stopped it, not a page
//! more or less is charged to it.

mod common;

use common::{Doomed, Group, Lab, Resident, Terminal, fixture, groups, text, usage, wait_for};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// A program that grows beyond any limit, and who knows its heap.
struct Victim {
    witness: &'static str,
    command: Vec<String>,
    /// Whether a running one needs the library of its own.
    preloaded: bool,
}

fn victims() -> Vec<Victim> {
    let victim = |witness, preloaded, command: &[&str]| Victim {
        witness,
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        preloaded,
    };
    let leak = fixture("steady_leak");
    let jemalloc = ["env", "LD_PRELOAD=libjemalloc.so.2", "MALLOC_CONF=prof:true,lg_prof_sample:16"];
    vec![
        victim("preload", true, &[&leak, "--mib", "4000"]),
        victim("go", false, &[&fixture("go_leak"), "--mib", "4000", "--rate", "65536"]),
        victim("jemalloc", false, &[&jemalloc[..], &[&leak, "--mib", "4000"]].concat()),
        victim("cpython", true, &["python3", "-c", "def grow():\n l = []\n while True: l.append(bytes(3000))\ngrow()"]),
        victim("glibc", false, &[&fixture("parked/fragmented"), "3", "100"]),
    ]
}

/// Asserts that the witness told what it knows.
fn assert_seen(process: &Value, witness: &str) {
    let seen = match witness {
        "glibc" => process["malloc"]["arenas"].as_array().is_some_and(|arenas| arenas.len() == 4),
        "cpython" => {
            let script = process["threads"][0]["script"].as_array();
            script.is_some_and(|frames| frames.iter().any(|f| f["frame"]["function"] == "grow"))
        }
        heap => process["heaps"].as_array().unwrap().iter().any(|h| h["witness"] == heap && h["inuse"]["bytes"] != 0),
    };
    assert!(seen, "{witness}: {:#}", process["gaps"]);
}

/// Page tables and other memory of the kernel, of a group of version 1.
fn kernel_memory(group: &Path) -> u64 {
    fs::read_to_string(group.join("memory.kmem.usage_in_bytes")).unwrap().trim().parse().unwrap()
}

#[test]
fn parked_at_its_limit() {
    for Victim { witness, command, .. } in victims() {
        let lab = Lab::new();
        let options = ["--memory", "64M", "--on-oom", "ask=60s,kill"];
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let mut terminal = Terminal::start(&lab, &options, &command);
        // Then the evidence is there, and nobody runs.
        terminal.wait_for("What now?");
        let group = groups().pop().expect("a group");
        let pids = fs::read_to_string(group.join("cgroup.procs")).unwrap();
        let pid: i32 = pids.trim().parse().expect("one process");
        let (after, charged_after) = (Resident::of(pid), usage(&group));
        terminal.enter("kill");
        assert_eq!(terminal.wait().code(), Some(137), "{witness}");
        let incident = lab.incident();
        common::assert_held_well(&incident);
        let process = &incident["processes"][0];
        assert_seen(process, witness);
        // All of this was read as soon as the threads had stopped.
        let bytes = |value: &Value| value.as_u64().unwrap();
        let memory = &process["memory"];
        let before = Resident { anonymous: bytes(&memory["pss_anon_bytes"]), all: bytes(&memory["rss_bytes"]) };
        after.assert_not_grown(before, witness);
        // The kernel gives back what it had charged ahead, and frees some of its own late.
        let charged = bytes(&incident["memcg"]["usage_bytes"]);
        assert!(charged_after <= charged, "{witness}: {charged} bytes were charged, then {charged_after}");
    }
}

#[test]
fn stopped_by_a_signal() {
    for Victim { witness, command, preloaded } in victims() {
        let lab = Lab::new();
        let group = Group::new("stopped");
        let mut shell = Command::new("sh");
        if preloaded {
            let library = std::env::var("REPRIEVE_HEAP_LIBRARY").expect("run `cargo xtask test`");
            shell.env("LD_PRELOAD", library).env("REPRIEVE_HEAP", "own:65536");
        }
        let child = group.entered_by(&mut shell).args(command).stdout(Stdio::null()).spawn().unwrap();
        let child = Doomed(child);
        wait_for("growth", || group.usage() > 64 << 20);
        child.stop();
        let charged = || [kernel_memory(&group.0), group.usage()];
        let before = (Resident::of(child.pid()), charged());
        let output = lab.reprieve("snapshot").arg(child.pid().to_string()).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        let after = (Resident::of(child.pid()), charged());
        after.0.assert_not_grown(before.0, witness);
        let more = (0..2).any(|i| after.1[i] > before.1[i]);
        assert!(!more, "{witness}: {:?} bytes were charged, then {:?}", before.1, after.1);
        assert!(child.is_stopped(), "{witness}");
        assert_seen(&lab.incident()["processes"][0], witness);
    }
}
