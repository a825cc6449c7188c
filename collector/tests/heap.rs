//! Who owns the heap, in real memcgs, against what the victims say themselves.

mod common;

use common::{Lab, assert_held_well, assert_unharmed, fixture, text, truth};
use serde_json::Value;
use std::fs;

fn heap(incident: &Value) -> &Value {
    let heap = &incident["processes"][0]["heaps"][0];
    assert_eq!(heap["witness"], "preload", "{:#}", incident["processes"][0]["gaps"]);
    heap
}

/// Estimated live bytes of lines that have a frame.
fn bytes_of(folded: &str, frame: &str) -> f64 {
    let lines = folded.lines().filter(|line| line.contains(frame));
    lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
}

#[test]
fn the_sites_of_a_leak_are_estimated_within_their_error() {
    let lab = Lab::new();
    let output = lab.run(&["--memory", "64M", "--on-oom", "grant=256M"], &[&fixture("steady_leak"), "--mib", "96"]);
    assert_unharmed(&output);
    let incident = lab.incident();
    assert_held_well(&incident);
    let heap = heap(&incident);
    assert_eq!(heap["lost_samples"], 0);
    let number = |value: &Value| value.as_f64().unwrap();
    let (total, sigma) = (number(&heap["inuse"]["bytes"]), number(&heap["inuse"]["sigma_bytes"]));
    let anon = number(&incident["processes"][0]["memory"]["pss_anon_bytes"]);
    // The last block is only partly touched.
    assert!((total - anon).abs() < 4.0 * sigma + f64::from(2 << 20), "{total} ± {sigma} of {anon}");
    // The victim leaks its sites in fixed shares from start to end.
    let folded = String::from_utf8(lab.file("heap.folded")).unwrap();
    let sites = truth(&output);
    let sites = sites["sites"].as_array().unwrap();
    let all: f64 = sites.iter().map(|s| number(&s["bytes"])).sum();
    for site in sites {
        let expected = total * number(&site["bytes"]) / all;
        let found = bytes_of(&folded, site["function"].as_str().unwrap());
        let error = 4.0 * (expected * number(&heap["period_bytes"])).sqrt() + f64::from(2 << 20);
        assert!((found - expected).abs() < error, "{site}: {found}, expected {expected} ± {error}");
    }
    let cut = heap["stacks"].as_array().unwrap().iter().filter(|s| s["cut"] == true).count();
    assert_eq!(cut, 0, "every stack of a C program reaches its start");
    let page = String::from_utf8(lab.file("report.html")).unwrap();
    assert!(page.contains("Who owns the heap") && page.contains("leak_medium (steady_leak.c:"));
    let shown = lab.reprieve("show").output().unwrap();
    assert!(text(&shown).contains("WHO OWNS THE HEAP") && text(&shown).contains("leak_medium"), "{}", text(&shown));
}

#[test]
fn all_processes_of_a_server_are_seen_and_shared_memory_counts_once() {
    let lab = Lab::new();
    let command = [&fixture("prefork"), "--mib", "96", "--children", "4"];
    let output = lab.run(&["--memory", "48M", "--on-oom", "grant=256M"], &command);
    assert_unharmed(&output);
    let incident = lab.incidents().remove(0);
    let processes = incident["processes"].as_array().unwrap();
    assert_eq!(processes.iter().filter(|p| p["heaps"][0].is_object()).count(), 5);
    let total: f64 = processes.iter().map(|p| p["heaps"][0]["inuse"]["bytes"].as_f64().unwrap()).sum();
    let charged = incident["memcg"]["usage_bytes"].as_f64().unwrap();
    assert!(total < charged * 1.2, "{total} estimated of {charged} charged");
}

#[test]
fn refused_it_leaves_no_trace() {
    let lab = Lab::new();
    let options = ["--memory", "64M", "--on-oom", "grant=256M", "--no-heap"];
    let output = lab.run(&options, &["sh", "-c", "env; exec \"$@\"", "sh", &fixture("steady_leak"), "--mib", "96"]);
    assert_unharmed(&output);
    let stdout = String::from_utf8_lossy(&output.stdout);
    let traces = ["LD_PRELOAD=", "REPRIEVE_HEAP="];
    assert!(!stdout.lines().any(|line| traces.iter().any(|trace| line.starts_with(trace))), "{stdout}");
    let incident = lab.incident();
    assert!(incident["processes"][0]["heaps"][0].is_null());
    assert!(!lab.out().join(incident["id"].as_str().unwrap()).join("heap.svg").exists());
}

#[test]
fn the_table_is_charged_to_the_guardian() {
    let lab = Lab::new();
    let output = lab.run(&["--memory", "64M", "--on-oom", "grant=256M"], &[&fixture("steady_leak"), "--mib", "96"]);
    assert_unharmed(&output);
    let stat = &lab.incident()["memcg"]["stat"];
    let shmem = ["shmem", "total_shmem"].iter().find_map(|key| stat[key].as_u64()).unwrap();
    assert_eq!(shmem, 0, "{stat:#}");
}

#[test]
fn programs_that_come_and_go_do_not_use_up_the_table() {
    let lab = Lab::new();
    // More than the table has slabs.
    let script = "for i in $(seq 1500); do /bin/true; done; exec \"$@\"";
    let options = ["--memory", "64M", "--on-oom", "grant=256M"];
    let output = lab.run(&options, &["bash", "-c", script, "bash", &fixture("steady_leak"), "--mib", "96"]);
    assert_unharmed(&output);
    assert_eq!(heap(&lab.incident())["lost_samples"], 0);
}

/// Scripts in `fixtures/real`, as `cargo xtask bench heap-real` runs them for long.
#[test]
fn real_programs_print_the_same_with_the_library() {
    let scripts = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/real");
    let programs = [
        ["bash", "redis.sh"],
        ["/usr/bin/python3", "numpy_load.py"],
        ["node", "node_load.js"],
        ["bash", "git.sh"],
        ["bash", "rustc.sh"],
        ["bash", "sqlite.sh"],
        ["bash", "bash_load.sh"],
    ];
    for [program, script] in programs {
        let script = format!("{scripts}/{script}");
        let command = ["env", "SMALL=1", program, &script, "rounds", "1", scripts];
        let plain = std::process::Command::new(command[0]).args(&command[1..]).output().unwrap();
        assert!(plain.status.success(), "{}", text(&plain));
        let lab = Lab::new();
        let sampled = lab.run(&["--memory", "4G", "--heap-period", "16K"], &command);
        assert!(sampled.status.success(), "{script}: {}", text(&sampled));
        assert_eq!(sampled.stdout, plain.stdout, "{script}");
        let words = |output: &std::process::Output| {
            let stderr = String::from_utf8_lossy(&output.stderr);
            stderr.lines().filter(|line| !line.starts_with("reprieve: ")).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(words(&sampled), words(&plain), "{script}");
    }
}

#[test]
fn a_static_program_is_said_to_be_unseen() {
    let lab = Lab::new();
    let source = lab.out().join("static.c");
    fs::write(
        &source,
        "#include <stdlib.h>\n#include <string.h>\nint main(void) { for (;;) memset(malloc(1 << 20), 1, 1 << 20); }",
    )
    .unwrap();
    let program = lab.out().join("static");
    let mut compiler = std::process::Command::new("cc");
    assert!(compiler.args(["-static", "-O0", "-o"]).arg(&program).arg(&source).status().unwrap().success());
    let output = lab.run(&["--memory", "32M", "--on-oom", "kill"], &[program.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(137), "{}", text(&output));
    let process = &lab.incident()["processes"][0];
    assert!(process["heaps"][0].is_null());
    assert!(process["gaps"].to_string().contains("static"), "{process:#}");
}

#[test]
fn the_last_of_many_programs_is_seen_as_itself() {
    let lab = Lab::new();
    // A burst of processes, each of which takes a slab, and then an exec.
    let script = "for i in $(seq 60); do (exec true) & done; wait; exec python3 -c \"$1\"";
    let grow = "l = [bytes(100000) for i in range(600)]\nwhile True: l.append(bytes(100000))";
    let output = lab.run(&["--memory", "64M", "--on-oom", "kill"], &["bash", "-c", script, "bash", grow]);
    assert_eq!(output.status.code(), Some(137), "{}", text(&output));
    let incident = lab.incident();
    let total = heap(&incident)["inuse"]["bytes"].as_f64().unwrap();
    let anon = incident["processes"][0]["memory"]["pss_anon_bytes"].as_f64().unwrap();
    assert!(total > anon * 0.7 && total < anon * 1.3, "{total} of {anon}");
}
