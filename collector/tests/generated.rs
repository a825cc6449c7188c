//! Names of generated code: perf maps and jitdumps of real runtimes.

mod common;

use common::{Doomed, Lab, text, wait_for};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const SCRIPT: &str = "\
function leak(x) { let s = 0;\n\
  for (let i = 0; i < 2000; i++) s += (x * i) % 7;\n\
  return s; }\n\
function run() { let sum = 0; for (;;) sum += leak(sum); }\n\
run();\n";

/// A node that is in generated code nearly always.
struct Node {
    running: Doomed,
    _dir: tempfile::TempDir,
}

impl Node {
    fn start(script: &str, flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("leak.js"), script).unwrap();
        let mut command = Command::new("node");
        let child = command.args(flags).arg("leak.js").current_dir(dir.path()).spawn();
        Node { running: Doomed(child.unwrap_or_else(|e| panic!("node: {e}"))), _dir: dir }
    }

    fn map(&self) -> PathBuf {
        PathBuf::from(format!("/tmp/perf-{}.map", self.running.0.id()))
    }

    fn wait_until_hot(&self) {
        wait_for("optimised code", || fs::read_to_string(self.map()).is_ok_and(|map| map.contains(":*run ")));
    }

    /// The generated addresses of a snapshot, and what was looked at.
    fn record(&self) -> (Vec<Value>, Vec<(String, String)>, String) {
        record(self.running.0.id())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.map());
    }
}

fn record(pid: u32) -> (Vec<Value>, Vec<(String, String)>, String) {
    let lab = Lab::new();
    let output = lab.reprieve("snapshot").arg(pid.to_string()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let incident = lab.incident();
    let generated = incident["symbols"]["generated"].as_array().unwrap().clone();
    let searches = incident["symbols"]["searches"].as_array().unwrap();
    let search = searches.iter().find(|s| s["process"] == pid).unwrap_or_else(|| panic!("{searches:?}"));
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    let tried = search["tried"].as_array().unwrap().iter().map(|t| (word(&t["source"]), word(&t["outcome"]))).collect();
    assert!(!incident["gaps"].to_string().contains("jit-"), "a jitdump is no broken ELF file: {}", incident["gaps"]);
    (generated, tried, String::from_utf8(lab.file("stacks.folded")).unwrap())
}

fn pairs(tried: &[(&str, &str)]) -> Vec<(String, String)> {
    tried.iter().map(|(source, outcome)| ((*source).to_owned(), (*outcome).to_owned())).collect()
}

#[test]
fn generated_code_of_node_is_named_by_its_perf_map() {
    let node = Node::start(SCRIPT, &["--perf-basic-prof"]);
    node.wait_until_hot();
    let (generated, tried, folded) = node.record();
    assert_eq!(tried, pairs(&[("perf_map", "used")]));
    let leak = generated.iter().find(|a| a["frame"]["function"] == "leak" || a["frame"]["function"] == "run");
    let leak = leak.unwrap_or_else(|| panic!("{generated:#?}"));
    assert_eq!(leak["source"], "perf_map");
    assert!(leak["frame"]["file"].as_str().unwrap().ends_with("/leak.js"), "{leak}");
    let line = folded.lines().find(|l| l.contains(";leak") || l.contains(";run")).unwrap_or_else(|| panic!("{folded}"));
    assert!(line.starts_with("node"), "{line}");
}

/// Makes code until the first block of the jitdump is written, which has `early`, and then
/// some that is in the map only.
const TWO_BLOCKS: &str = "\
const fs = require('fs');\n\
function leak(x) { let s = 0;\n\
  for (let i = 0; i < 2000; i++) s += (x * i) % 7;\n\
  return s; }\n\
function run() { let sum = 0; for (;;) sum += leak(sum); }\n\
function fill() { const dump = `jit-${process.pid}.dump`;\n\
  for (let i = 0; fs.statSync(dump).size === 0; i++) new Function(`return [${i}, ${i + 1}].map(x => x * ${i})`)(); }\n\
function early() {\n\
  fill();\n\
  run(); }\n\
early();\n";

/// Node writes its jitdump in large blocks, so that what was compiled last is in the map only.
#[test]
fn a_jitdump_is_found_by_its_mapping_and_the_map_helps_out() {
    // Each function is compiled when it is called first.
    let node = Node::start(TWO_BLOCKS, &["--perf-basic-prof", "--perf-prof", "--always-sparkplug"]);
    node.wait_until_hot();
    // It would write on between the snapshot and the look at its files.
    node.running.stop();
    let (generated, tried, _) = node.record();
    assert_eq!(tried, pairs(&[("jit_dump", "used"), ("perf_map", "used")]));
    let of = |name: &str| {
        let is = |a: &&Value| a["frame"]["function"] == name;
        generated.iter().find(is).unwrap_or_else(|| panic!("{name}: {generated:#?}"))
    };
    // The dump knows lines of the body; the map that of the function, of which it is as well.
    let (early, run) = (of("early"), of("run"));
    assert_eq!((&early["source"], &early["frame"]["line"]), (&"jit_dump".into(), &10.into()), "{early:#}");
    // Compiled again and again, in a block that is written or not.
    assert!(["jit_dump", "perf_map"].contains(&run["source"].as_str().unwrap()), "{run:#}");
    for frame in [&early["frame"], &run["frame"]] {
        assert!(frame["file"].as_str().unwrap().ends_with("/leak.js"), "{frame:#}");
    }
    assert_eq!(run["frame"]["line"], 5, "{run:#}");
}

#[test]
fn in_namespaces_of_its_own_the_map_is_its_own_too() {
    let script = "mount -t tmpfs none /tmp && exec node --perf-basic-prof leak.js";
    // Outside /tmp, which is another one inside.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    fs::write(dir.path().join("leak.js"), SCRIPT).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script]).current_dir(dir.path());
    let unshare = Doomed(command.spawn().unwrap());
    let unshare_pid = unshare.0.id();
    let children =
        || fs::read_to_string(format!("/proc/{unshare_pid}/task/{unshare_pid}/children")).unwrap_or_default();
    wait_for("a child", || !children().trim().is_empty());
    let pid: u32 = children().trim().parse().unwrap();
    let map = format!("/proc/{pid}/root/tmp/perf-1.map");
    wait_for("optimised code", || fs::read_to_string(&map).is_ok_and(|map| map.contains(":*run ")));
    let (generated, tried, _) = record(pid);
    assert_eq!(tried, pairs(&[("perf_map", "used")]));
    assert!(generated.iter().any(|a| a["source"] == "perf_map"), "{generated:#?}");
}

#[test]
fn without_a_map_or_with_somebody_elses_the_reason_is_kept() {
    let node = Node::start(SCRIPT, &[]);
    wait_for("the script", || {
        fs::read_to_string(format!("/proc/{}/stat", node.running.0.id())).is_ok_and(|stat| {
            // Some time on the processor (utime, in ticks): start-up is over.
            stat.rsplit_once(") ").unwrap().1.split(' ').nth(11).unwrap().parse::<u64>().unwrap() > 50
        })
    });
    let (generated, tried, _) = node.record();
    assert_eq!(tried, pairs(&[("perf_map", "absent")]));
    let missed = generated.iter().find(|a| a["frame"].is_null()).unwrap();
    assert_eq!(missed["miss"], "in no mapped file (generated code?)");
    // Another user's.
    let everything = "0 ffffffffffffffff forged\n";
    fs::write(node.map(), everything).unwrap();
    chown(node.map(), Some(12345), None).unwrap();
    let (generated, tried, _) = node.record();
    assert_eq!(tried, pairs(&[("perf_map", "other_process")]));
    assert!(generated.iter().all(|a| a["frame"].is_null()), "{generated:#?}");
    // Of a process that had the PID before.
    fs::remove_file(node.map()).unwrap();
    fs::write(node.map(), everything).unwrap();
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(86_400);
    fs::File::options().write(true).open(node.map()).unwrap().set_modified(long_ago).unwrap();
    assert_eq!(node.record().1, pairs(&[("perf_map", "other_process")]));
    // A link leads anywhere.
    fs::remove_file(node.map()).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", node.map()).unwrap();
    assert_eq!(node.record().1, pairs(&[("perf_map", "not_readable")]));
    // Its own, which has none of its code.
    fs::remove_file(node.map()).unwrap();
    fs::write(node.map(), "1 1 elsewhere\n").unwrap();
    let (generated, tried, _) = node.record();
    assert_eq!(tried, pairs(&[("perf_map", "used")]));
    assert_eq!(generated[0]["miss"], "generated code that no perf map or jitdump names");
}

/// `grow` is called by `fill`, which `main` calls for ever; it says when both are compiled.
const JAVA: &str = "\
class Leak {\n\
  static volatile long sum;\n\
  static long grow(long x) { long s = 0;\n\
    for (int i = 0; i < 2000; i++) s += (x * i) % 7;\n\
    return s; }\n\
  static void fill() { for (int i = 0; i < 1000; i++) sum += grow(i); }\n\
  public static void main(String[] arguments) {\n\
    for (int i = 0; ; i++) { fill(); if (i == 300) System.out.println(\"hot\"); } } }\n";

/// A JVM that is in generated code nearly always.
struct Jvm {
    running: Doomed,
    _dir: tempfile::TempDir,
}

impl Jvm {
    /// The runtime compiles the source itself. What is printed after it was compiled to machine
    /// code comes after that: compilers do not run beside it.
    fn start(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("Leak.java"), JAVA).unwrap();
        let own = ["-Xmx64m", "-Xbatch", "-XX:-UsePerfData", "-XX:CompileCommand=quiet"];
        let mut java = Command::new("java");
        java.args(own).arg("-XX:CompileCommand=dontinline,Leak.*").args(flags).arg("Leak.java");
        let java = java.current_dir(dir.path()).stdout(Stdio::piped()).spawn();
        let mut jvm = Jvm { running: Doomed(java.unwrap_or_else(|e| panic!("java: {e}"))), _dir: dir };
        let mut said = String::new();
        BufReader::new(jvm.running.0.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "hot\n");
        jvm
    }

    /// What `jcmd PID Compiler.perfmap` does; the runtime has all of jcmd but its name.
    fn write_map(&self) {
        let pid = self.running.0.id().to_string();
        let java = ["-XX:-UsePerfData", "-m", "jdk.jcmd/sun.tools.jcmd.JCmd", &pid, "Compiler.perfmap"];
        let output = Command::new("java").args(java).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    }

    fn record(&self) -> (Vec<Value>, Vec<(String, String)>, String) {
        record(self.running.0.id())
    }
}

impl Drop for Jvm {
    fn drop(&mut self) {
        for left in [format!("perf-{}.map", self.running.0.id()), format!(".java_pid{}", self.running.0.id())] {
            let _ = fs::remove_file(Path::new("/tmp").join(left));
        }
    }
}

/// The stack of the thread that runs the method.
fn of_grow(folded: &str) -> &str {
    folded.lines().find(|line| line.contains("long Leak.grow(long)")).unwrap_or_else(|| panic!("{folded}"))
}

#[test]
fn java_is_named_by_its_perf_map_and_walked_by_its_frame_pointers() {
    let jvm = Jvm::start(&["-XX:+PreserveFramePointer"]);
    jvm.write_map();
    let (generated, tried, folded) = jvm.record();
    assert_eq!(tried, pairs(&[("perf_map", "used")]));
    let grow = generated.iter().find(|a| a["frame"]["function"] == "long Leak.grow(long)");
    assert_eq!(grow.unwrap_or_else(|| panic!("{generated:#?}"))["source"], "perf_map");
    // From the beginning of the thread, through the library, what is interpreted and what is not.
    let line = of_grow(&folded);
    let (library, java) = line.split_once(";StubRoutines (1) [guessed];").unwrap_or_else(|| panic!("{line}"));
    assert!(library.starts_with("java;") && library.contains(";JavaMain;jni_CallStaticVoidMethod;"), "{line}");
    assert!(java.ends_with(";Interpreter [guessed];void Leak.fill() [guessed];long Leak.grow(long) 1"), "{line}");
}

#[test]
fn java_without_a_map_or_frame_pointers_says_what_is_missing() {
    let jvm = Jvm::start(&[]);
    let (generated, tried, folded) = jvm.record();
    assert_eq!(tried, pairs(&[("perf_map", "absent")]));
    assert!(!generated.is_empty() && !folded.contains("Leak"), "{folded}");
    for address in generated {
        assert!(address["frame"].is_null() && address["miss"] == "in no mapped file (generated code?)", "{address}");
    }
    // Where it is has a name; who called it is not to be found.
    jvm.write_map();
    let (_, tried, folded) = jvm.record();
    assert_eq!(tried, pairs(&[("perf_map", "used")]));
    assert_eq!(of_grow(&folded), "java;[stack cut: no unwind information];long Leak.grow(long) 1");
}
