//! Who owns the heap of Go programs, against what they say themselves.

mod common;

use common::{Doomed, Lab, assert_held_well, assert_unharmed, fixture, text};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

/// Sites of `go_leak`: the function that leaks, and what it inlines.
const SITES: [[&str; 2]; 2] = [["main.leakSmall", "main.newSmall"], ["main.leakLarge", "main.newLarge"]];

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn go_heap(incident: &Value) -> &Value {
    let process = &incident["processes"][0];
    let heaps = process["heaps"].as_array().unwrap();
    heaps.iter().find(|heap| heap["witness"] == "go").unwrap_or_else(|| panic!("{:#}", process["gaps"]))
}

/// Names of a stack, innermost first, as (function, inlined).
fn names(incident: &Value, heap: &Value, stack: &Value) -> Vec<(String, bool)> {
    let addresses = incident["symbols"]["addresses"].as_array().unwrap();
    let mut names = Vec::new();
    for index in stack["frames"].as_array().unwrap() {
        let at = &heap["frames"][index.as_u64().unwrap() as usize]["at"];
        let known = addresses.iter().find(|a| &a["at"] == at).unwrap_or_else(|| panic!("{at} is not known"));
        for frame in known["frames"].as_array().unwrap() {
            names.push((frame["function"].as_str().unwrap().to_owned(), frame["inlined"] == true));
        }
    }
    names
}

/// How many standard deviations each site is off the truth.
fn errors(incident: &Value, truth: [u64; 2]) -> [f64; 2] {
    let heap = go_heap(incident);
    let (mut bytes, mut variance) = ([0.0; 2], [0.0; 2]);
    for stack in heap["stacks"].as_array().unwrap() {
        assert_eq!(stack["cut"], false, "{stack:#}");
        let names = names(incident, heap, stack);
        let Some(site) = SITES.iter().position(|[leak, _]| names.iter().any(|(n, _)| n == leak)) else { continue };
        // Each function once, inlined or not, and nothing of the runtime's.
        let expected = [(SITES[site][1], true), (SITES[site][0], false), ("main.main", false), ("runtime.main", false)];
        assert_eq!(names, expected.map(|(name, inlined)| (name.to_owned(), inlined)));
        bytes[site] += number(&stack["inuse"]["bytes"]);
        variance[site] += number(&stack["inuse"]["sigma_bytes"]).powi(2);
    }
    [0, 1].map(|site| (bytes[site] - truth[site] as f64) / variance[site].sqrt())
}

/// What the program wrote into its file.
fn truth(path: &Path) -> [u64; 2] {
    let bytes = fs::read(path).unwrap();
    [0, 8].map(|at| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()))
}

#[test]
fn every_kind_of_binary_is_seen_at_its_oom() {
    let (mut all, mut seen_leaking) = (Vec::new(), 0);
    for program in ["go_leak", "go_leak_stripped", "go_leak_pie", "go_leak_cgo", "go_leak_cgo_pie"] {
        let lab = Lab::new();
        let file = lab.out().join("truth");
        let (program, file_name) = (fixture(program), file.to_str().unwrap());
        let command = [&program, "--mib", "4000", "--rate", "65536", "--truth", file_name];
        let output = lab.run(&["--memory", "96M", "--on-oom", "kill"], &command);
        assert_eq!(output.status.code(), Some(137), "{}", text(&output));
        let incident = lab.incident();
        assert_held_well(&incident);
        let process = &incident["processes"][0];
        assert_eq!(process["gaps"], Value::Array(Vec::new()), "{program}");
        // Where there are no symbols the rate is told by the code that reads it.
        assert_eq!(go_heap(&incident)["period_bytes"], 65536, "{program}");
        all.extend(errors(&incident, truth(&file)));
        // What Go got from the C library is not the C library's heap.
        let heaps = process["heaps"].as_array().unwrap();
        for other in heaps.iter().filter(|heap| heap["witness"] != "go") {
            assert!(number(&other["inuse"]["bytes"]) < f64::from(4 << 20), "{program}: {:#}", other["inuse"]);
        }
        // Threads have names, too, and the leaking one is seen unless it was
        // just not running.
        let folded = String::from_utf8(lab.file("stacks.folded")).unwrap();
        assert!(folded.contains("runtime.sysmon (proc.go:"), "{program}: {folded}");
        seen_leaking += usize::from(folded.contains("main.main (main.go:"));
        assert!(String::from_utf8(lab.file("report.html")).unwrap().contains("main.leakLarge (main.go:"));
    }
    assert!(seen_leaking > 1, "{seen_leaking}");
    // Of ten figures one lies beyond three standard deviations once in forty runs.
    let beyond = |sigmas: f64| all.iter().filter(|z| z.abs() > sigmas).count();
    assert!(beyond(3.0) <= 1 && beyond(4.5) == 0, "{all:?}");
}

#[test]
fn a_stopped_program_is_seen_and_not_touched() {
    let lab = Lab::new();
    let mut all = Vec::new();
    for program in ["go_leak", "go_leak_stripped", "go_leak_cgo_pie"] {
        let file = lab.out().join("truth");
        let arguments = ["--mib", "64", "--linger", "60s", "--rate", "32768", "--truth", file.to_str().unwrap()];
        let mut child = Command::new(fixture(program));
        let mut child = Doomed(child.args(arguments).stdout(Stdio::piped()).spawn().unwrap());
        let mut line = String::new();
        BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "leaked\n");
        child.stop();
        let output = lab.reprieve("snapshot").arg(child.pid().to_string()).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        assert!(child.is_stopped(), "{program}");
        drop(child);
        all.extend(errors(&lab.incidents().pop().unwrap(), truth(&file)));
    }
    let beyond = |sigmas: f64| all.iter().filter(|z| z.abs() > sigmas).count();
    assert!(beyond(3.0) <= 1 && beyond(4.5) == 0, "{all:?}");
}

#[test]
fn a_profile_that_is_off_is_told_with_what_to_do() {
    for (program, rate, word) in [
        ("go_leak_unprofiled", None, "net/http/pprof"),
        ("go_leak_unprofiled_stripped", None, "net/http/pprof"),
        ("go_leak", Some("0"), "memprofilerate"),
        ("go_leak_stripped", Some("0"), "memprofilerate"),
    ] {
        let lab = Lab::new();
        let program = fixture(program);
        let mut command = vec![program.as_str(), "--mib", "4000"];
        command.extend(rate.iter().flat_map(|rate| ["--rate", rate]));
        let output = lab.run(&["--memory", "48M", "--on-oom", "kill"], &command);
        assert_eq!(output.status.code(), Some(137), "{}", text(&output));
        let incident = lab.incident();
        let accounting = incident["accounting"].to_string();
        assert!(accounting.contains("[Go heap]") && !accounting.contains("[stack of a thread]"), "{accounting}");
        let process = &incident["processes"][0];
        assert_eq!(process["heaps"], Value::Array(Vec::new()), "{program}");
        let gaps = process["gaps"].as_array().unwrap();
        assert!(gaps.len() == 1 && gaps[0].as_str().unwrap().contains(word), "{program}: {gaps:#?}");
    }
}

/// What `go tool pprof -top` says: value by function, of those that have any
/// themselves.
fn pprof_top(profile: &Path, index: &str) -> Vec<(String, f64)> {
    let output = Command::new("go")
        .args(["tool", "pprof", "-top", "-unit=B", &format!("-sample_index={index}")])
        .arg(profile)
        // Nothing is looked for elsewhere.
        .envs([("PPROF_BINARY_PATH", "/nonexistent"), ("HOME", "/nonexistent")])
        .output()
        .expect("go is missing; run `cargo xtask test`");
    let said = text(&output);
    assert!(output.status.success() && said.contains(&format!("Type: {index}")), "{said}");
    let rows = said.lines().skip_while(|line| !line.trim_start().starts_with("flat ")).skip(1);
    rows.filter_map(|row| {
        let fields: Vec<&str> = row.split_whitespace().collect();
        let value: f64 = fields.first()?.trim_end_matches('B').parse().ok()?;
        (value > 0.0).then(|| ((*fields.get(5).unwrap_or(&"")).to_owned(), value))
    })
    .collect()
}

#[test]
fn gos_own_pprof_reads_the_profiles() {
    let lab = Lab::new();
    let output = lab.run(&["--memory", "96M", "--on-oom", "kill"], &[&fixture("go_leak_stripped"), "--mib", "4000"]);
    assert_eq!(output.status.code(), Some(137), "{}", text(&output));
    let incident = lab.incident();
    let heap = go_heap(&incident);
    let dir = lab.out().join(incident["id"].as_str().unwrap());
    let totals = [
        ("inuse_space", "inuse", "bytes"),
        ("inuse_objects", "inuse", "objects"),
        ("alloc_space", "alloc", "bytes"),
        ("alloc_objects", "alloc", "objects"),
    ];
    for (index, kind, unit) in totals {
        let top = pprof_top(&dir.join("profile.pb.gz"), index);
        let total: f64 = top.iter().map(|(_, value)| value).sum();
        let expected = number(&heap[kind][unit]);
        // Small functions are not listed.
        assert!(total > 0.97 * expected && total < 1.001 * expected, "{index}: {total} of {expected}: {top:?}");
        for [_, site] in SITES {
            let ours: f64 = heap["stacks"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|stack| names(&incident, heap, stack)[0].0 == site)
                .map(|stack| number(&stack[kind][unit]))
                .sum();
            let theirs = top.iter().find(|(function, _)| function == site).map_or(0.0, |(_, value)| *value);
            // A function with little is not in the list.
            assert!((theirs - ours).abs() < 0.01 * expected, "{index} of {site}: {theirs}, ours {ours}: {top:?}");
        }
    }
    let threads = pprof_top(&dir.join("profile.pb.gz"), "threads");
    let count: f64 = threads.iter().map(|(_, value)| value).sum();
    assert_eq!(count, common::threads(&incident).len() as f64, "{threads:?}");
    assert!(threads.iter().all(|(function, _)| function.starts_with("runtime.") || function.starts_with("main.")));
}

#[test]
fn it_runs_on_unharmed() {
    let lab = Lab::new();
    let command = [&fixture("go_leak"), "--mib", "96"];
    assert_unharmed(&lab.run(&["--memory", "64M", "--on-oom", "grant=512M"], &command));
    assert!(number(&go_heap(&lab.incidents()[0])["inuse"]["bytes"]) > 0.0);
}

/// Go's compiler, which samples its heap when it is asked to, and has the last
/// word: its output is the same.
#[test]
fn the_compiler_is_seen_and_compiles_on() {
    let lab = Lab::new();
    let source = lab.out().join("big.go");
    let body = "for k, v := range m { if v > a { a += v } else { m[k] = b } }; return a ^ b";
    let functions = (0..1500).map(|i| format!("func F{i}(a, b int, m map[string]int) int {{ {body} }}\n"));
    fs::write(&source, format!("package big\n{}", functions.collect::<String>())).unwrap();
    let root = Command::new("go").args(["tool", "-n", "compile"]).output().unwrap();
    let compiler = String::from_utf8(root.stdout).unwrap().trim().to_owned();
    let path = |name: &str| lab.out().join(name).to_str().unwrap().to_owned();
    let (alone, held, profile) = (path("alone.o"), path("held.o"), path("profile"));
    let sampled = ["-memprofilerate", "65536", "-memprofile", &profile, source.to_str().unwrap()];
    let command = |output: &str| {
        let mut command = vec![compiler.clone(), "-p".to_owned(), "big".to_owned(), "-o".to_owned(), output.to_owned()];
        command.extend(sampled.map(str::to_owned));
        command
    };
    let plain = command(&alone);
    assert!(Command::new(&plain[0]).args(&plain[1..]).status().unwrap().success());
    let guarded = command(&held);
    let output =
        lab.run(&["--memory", "64M", "--on-oom", "grant=2G"], &guarded.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(output.status.success(), "{}", text(&output));
    assert!(fs::read(alone).unwrap() == fs::read(held).unwrap(), "the object files differ");
    let incident = lab.incidents().remove(0);
    assert_held_well(&incident);
    let heap = go_heap(&incident);
    assert_eq!(heap["period_bytes"], 65536);
    let (total, sigma) = (number(&heap["inuse"]["bytes"]), number(&heap["inuse"]["sigma_bytes"]));
    let anon = number(&incident["processes"][0]["memory"]["pss_anon_bytes"]);
    // What a collection has freed stays in memory for a while.
    assert!(total > anon * 0.25 && total < anon + 4.0 * sigma, "{total} ± {sigma} of {anon}");
    let id = incident["id"].as_str().unwrap();
    let folded = fs::read_to_string(lab.out().join(id).join("heap.folded")).unwrap();
    let value = |line: &str| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap();
    let named: f64 = folded.lines().filter(|l| l.contains("cmd/compile/internal/gc.Main (")).map(value).sum();
    let all: f64 = folded.lines().map(value).sum();
    assert!(named > 0.7 * all && !folded.contains("[no module]"), "{named} of {all}: {folded}");
}
