//! CPython: what its threads run, and who of its functions owns the heap.
//!
//! With Debian's interpreter, and with those of pyenv where there are some.

mod common;

use common::{Lab, Resident, assert_held_well, assert_unharmed, text, truth, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

const LEAK: &str = include_str!("../../fixtures/python/leak.py");
const THREADS: &str = include_str!("../../fixtures/python/threads.py");
const NESTED: &str = include_str!("../../fixtures/python/nested.py");
const ARRAYS: &str = include_str!("../../fixtures/python/arrays.py");
const DEBIANS: &str = "/usr/bin/python3";

/// Debian's, and those of pyenv from 3.11 on.
fn interpreters() -> Vec<String> {
    let versions = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".pyenv/versions"));
    let mut found = vec![DEBIANS.to_owned()];
    for entry in versions.and_then(|dir| fs::read_dir(dir).ok()).into_iter().flatten().flatten() {
        let minor =
            entry.file_name().to_str().and_then(|name| name.strip_prefix("3.")?.split('.').next()?.parse().ok());
        let python = entry.path().join("bin/python3");
        if minor.is_some_and(|minor: u32| (11..=14).contains(&minor)) && python.exists() {
            found.push(python.display().to_string());
        }
    }
    found
}

/// The script in the lab's folder.
fn script(lab: &Lab, name: &str, source: &str) -> String {
    let path = lab.out().join(name);
    fs::write(&path, source).unwrap();
    path.display().to_string()
}

/// `function (file:line)` of the line that ends with the mark.
fn place(function: &str, file: &str, source: &str, mark: &str) -> String {
    let line = source.lines().position(|line| line.ends_with(&format!("# {mark}"))).unwrap() + 1;
    format!("{function} ({file}:{line})")
}

/// Estimated live bytes of lines that have a frame.
fn bytes_of(folded: &str, frame: &str) -> f64 {
    let lines = folded.lines().filter(|line| line.contains(frame));
    lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
}

struct Stopped(Child);

impl Stopped {
    fn start(python: &str, script: &str) -> Self {
        let mut child = Command::new(python).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        child.stdout = Some(out.into_inner());
        let pid = child.id() as i32;
        let waiting_in = |name: &str| {
            let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
            let wchans = tasks.filter_map(|task| fs::read_to_string(task.path().join("wchan")).ok());
            wchans.filter(|wchan| wchan.contains(name)).count()
        };
        wait_for("threads that wait", || (waiting_in("pipe"), waiting_in("nanosleep")) == (1, 3));
        signal(pid, Signal::SIGSTOP);
        wait_for("the stop", || {
            fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") T "))
        });
        Stopped(child)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

#[test]
fn threads_of_a_stopped_program_say_what_python_they_run() {
    for python in interpreters() {
        let lab = Lab::new();
        let mut target = Stopped::start(&python, &script(&lab, "threads.py", THREADS));
        let pid = target.0.id() as i32;
        let before = Resident::of(pid);
        let output = lab.reprieve("snapshot").arg(target.0.id().to_string()).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        Resident::of(pid).assert_not_grown(before, &python);
        signal(pid, Signal::SIGCONT);
        target.0.stdin.take().unwrap().write_all(b"21\n").unwrap();
        let mut answer = String::new();
        BufReader::new(target.0.stdout.take().unwrap()).read_line(&mut answer).unwrap();
        assert_eq!(answer, "42\n", "{python}");
        assert!(target.0.wait().unwrap().success());

        let incident = lab.incident();
        let folded = String::from_utf8(lab.file("stacks.folded")).unwrap();
        let at = |function: &str, mark: &str| place(function, "threads.py", THREADS, mark);
        let generated = "consumer.<locals>.<genexpr>";
        let expected = [
            vec![at("waiter", "waiter"), "Event.wait (threading.py:".to_owned()],
            // sorted() of C is in between.
            vec![at("sorter", "sorter"), "builtin_sorted".to_owned(), at("sorter.<locals>.key", "key")],
            vec![at("consumer", "consumer"), at(generated, "consumer"), at("generator", "generator")],
            vec![at("outer", "outer"), at("inner", "inner")],
            vec![at("deep", "deep"), at("main_thread", "main")],
        ];
        for frames in &expected {
            // Debian's has few symbols.
            let frames: Vec<&String> = frames.iter().filter(|f| python != DEBIANS || *f != "builtin_sorted").collect();
            let in_order = |line: &&str| {
                frames
                    .iter()
                    .try_fold(0, |from, frame| Some(from + line[from..].find(frame.as_str())? + frame.len()))
                    .is_some()
            };
            assert_eq!(folded.lines().filter(in_order).count(), 1, "{python}: {frames:?} in\n{folded}");
        }
        assert!(!folded.contains("_PyEval_EvalFrameDefault"), "{python}: {folded}");
        let deep = folded.lines().find(|line| line.contains("main_thread")).unwrap();
        assert_eq!(deep.matches("deep (threads.py").count(), 151, "{python}: {deep}");

        let threads = common::threads(&incident);
        assert_eq!(threads.len(), 5, "{python}");
        for thread in threads {
            let natives: Vec<u64> = thread["script"]
                .as_array()
                .unwrap()
                .iter()
                .map(|f| f["native"].as_u64().expect("a native frame"))
                .collect();
            assert!(!natives.is_empty() && natives.is_sorted(), "{python}: {natives:?}");
        }
        assert_eq!(common::gaps(&incident["processes"][0]), [""; 0]);
    }
}

/// Runs a script that leaks 96 MiB in fixed shares under 64 MiB; the folded heap,
/// and where each site must be found.
fn leak(lab: &Lab, python: &str, name: &str, source: &str) -> (Value, String, Vec<(String, f64)>) {
    let options = ["--memory", "64M", "--on-oom", "grant=256M"];
    let output = lab.run(&options, &[python, &script(lab, name, source), "96"]);
    assert_unharmed(&output);
    let incident = lab.incident();
    assert_held_well(&incident);
    let heap = &incident["processes"][0]["heaps"][0];
    assert_eq!((&heap["witness"], &heap["lost_samples"]), (&"preload".into(), &0.into()), "{python}");
    let folded = String::from_utf8(lab.file("heap.folded")).unwrap();
    let truth = truth(&output);
    let sites = truth["sites"].as_array().unwrap();
    let all: f64 = sites.iter().map(|s| s["bytes"].as_f64().unwrap()).sum();
    let shares = sites.iter().map(|s| (s["function"].as_str().unwrap().to_owned(), s["bytes"].as_f64().unwrap() / all));
    (incident.clone(), folded, shares.collect())
}

/// Checks each site's bytes against its share of them all.
fn assert_shares(incident: &Value, python: &str, found: &[(String, f64, f64)]) {
    let heap = &incident["processes"][0]["heaps"][0];
    let number = |value: &Value| value.as_f64().unwrap();
    let anon = number(&incident["processes"][0]["memory"]["pss_anon_bytes"]);
    let (total, sigma) = (number(&heap["inuse"]["bytes"]), number(&heap["inuse"]["sigma_bytes"]));
    assert!((total - anon).abs() < 4.0 * sigma + f64::from(6 << 20), "{python}: {total} ± {sigma} of {anon}");
    let all: f64 = found.iter().map(|(_, bytes, _)| bytes).sum();
    for (place, bytes, share) in found {
        let expected = all * share;
        // A round of the leak may be half done, and the list of it all is somebody's.
        let sigma = (expected * number(&heap["period_bytes"])).sqrt();
        println!("{python}: {place}: {bytes:.0} of {expected:.0}, {:+.1} sigma", (bytes - expected) / sigma);
        assert!((bytes - expected).abs() < 3.0 * sigma + f64::from(512 << 10), "{place}: {bytes} of {expected}");
    }
}

#[test]
fn a_leak_is_told_by_function_file_and_line() {
    for python in interpreters() {
        let lab = Lab::new();
        let (incident, folded, shares) = leak(&lab, &python, "leak.py", LEAK);
        let at = |function: &str, mark: &str| place(function, "leak.py", LEAK, mark);
        let found: Vec<(String, f64, f64)> = shares
            .into_iter()
            .map(|(function, share)| {
                let place = match function.as_str() {
                    "leak_small" => at("leak_small", "small"),
                    "Store.leak_large" => at("Store.leak_large", "large"),
                    "numbers" => at("numbers", "generated"),
                    "leak_in_thread" => at("leak_in_thread", "threaded"),
                    "leak_deep" => at("leak_deep", "deep"),
                    // The code is not there any more: its caller is.
                    "leak_gone" => "leak_gone (leak.py:".to_owned(),
                    other => panic!("{other}"),
                };
                let bytes = bytes_of(&folded, &place);
                (place, bytes, share)
            })
            .collect();
        assert_shares(&incident, &python, &found);
        // Code that came to the place of other code has allocated nothing.
        assert!(!folded.contains("innocent.py"), "{python}: {folded}");
        let unknown = bytes_of(&folded, "[unknown Python function]");
        assert!(unknown > f64::from(5 << 20), "{python}: {unknown} of code that is gone\n{folded}");
        assert!(!folded.contains("_PyEval_EvalFrameDefault"), "{python}: {folded}");
        let page = String::from_utf8(lab.file("report.html")).unwrap();
        assert!(page.contains(&at("Store.leak_large", "large")) && page.contains("pymalloc"), "{python}");
        let threads = String::from_utf8(lab.file("stacks.folded")).unwrap();
        assert!(threads.contains("main (leak.py:"), "{python}: parked threads, too: {threads}");
    }
}

/// Wherever the outer end of a stack is cut, no call of the interpreter is left
/// without its Python function.
#[test]
fn stacks_that_are_too_long_lose_their_outer_end_only() {
    for python in interpreters() {
        let lab = Lab::new();
        let (incident, folded, _) = leak(&lab, &python, "nested.py", NESTED);
        let place = place("keep", "nested.py", NESTED, "kept");
        let all = incident["processes"][0]["heaps"][0]["inuse"]["bytes"].as_f64().unwrap();
        assert!(bytes_of(&folded, &place) > 0.8 * all, "{python}: {all}\n{folded}");
        for line in folded.lines().filter(|line| line.contains(&place)) {
            assert!(line.contains("[stack cut];") && line.matches("nest (nested.py").count() > 20, "{python}: {line}");
        }
        assert!(!folded.contains("_PyEval_EvalFrameDefault"), "{python}: {folded}");
    }
}

#[test]
fn arrays_of_numpy_belong_to_the_line_that_made_them() {
    let lab = Lab::new();
    let (incident, folded, shares) = leak(&lab, DEBIANS, "arrays.py", ARRAYS);
    let found: Vec<(String, f64, f64)> = shares
        .into_iter()
        .map(|(function, share)| {
            let place = place(&function, "arrays.py", ARRAYS, &function);
            let bytes = bytes_of(&folded, &place);
            (place, bytes, share)
        })
        .collect();
    // numpy itself has some MiB.
    let heap = &incident["processes"][0]["heaps"][0];
    assert!(heap["inuse"]["bytes"].as_f64().unwrap() > f64::from(48 << 20), "{:#}", heap["inuse"]);
    assert_shares(&incident, DEBIANS, &found);
}
