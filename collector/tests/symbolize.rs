//! `reprieve symbolize`, and names of generated code.

mod common;

use common::{Lab, text, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// Waits in `inner`, which is called from `outer`.
const C: &str = "\
#include <unistd.h>\n\
__attribute__((noipa)) int inner(char *to) {\n\
  return (int)read(0, to, 1) + 1; }\n\
__attribute__((noipa)) int outer(char *to) {\n\
  return inner(to) + 1; }\n\
int main(void) { char c; return outer(&c); }\n";

/// A process that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run_in(dir: &Path, program: &str, args: &[&str]) {
    let output =
        Command::new(program).args(args).current_dir(dir).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {args:?}: {}", text(&output));
}

/// Starts a program, and records it once it reads.
fn recorded_reading(lab: &Lab, program: &Path) -> Running {
    let waiting = Running(Command::new(program).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap());
    let pid = waiting.0.id().to_string();
    wait_for("the program to read", || {
        fs::read_to_string(format!("/proc/{pid}/wchan")).is_ok_and(|wchan| wchan.contains("pipe"))
    });
    let output = lab.reprieve("snapshot").arg(&pid).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    waiting
}

/// An incident of a program without symbols, which is gone since, as its binary is;
/// `symbols` has the debug file by build ID.
struct Stripped {
    lab: Lab,
    symbols: PathBuf,
    folder: PathBuf,
}

impl Stripped {
    fn new() -> Self {
        let lab = Lab::new();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("p.c"), C).unwrap();
        run_in(dir.path(), "cc", &["-g", "-O1", "-Wl,--build-id", "-o", "p", "p.c"]);
        run_in(dir.path(), "objcopy", &["--only-keep-debug", "p", "p.debug"]);
        run_in(dir.path(), "strip", &["-s", "p"]);
        let program = dir.path().join("p");
        let _waiting = recorded_reading(&lab, &program);
        let incident = lab.incident();
        let module = modules(&incident).into_iter().find(|m| m["path"] == program.to_str().unwrap()).unwrap();
        let id = module["build_id"].as_str().unwrap();
        // Outside the store, which is to have incidents only.
        let symbols = dir.keep();
        let home = symbols.join(".build-id").join(&id[..2]);
        fs::create_dir_all(&home).unwrap();
        fs::rename(symbols.join("p.debug"), home.join(format!("{}.debug", &id[2..]))).unwrap();
        fs::remove_file(program).unwrap();
        let folder = lab.out().join(incident["id"].as_str().unwrap());
        Stripped { lab, symbols, folder }
    }

    fn symbolize(&self, args: &[&str]) -> Output {
        self.lab.reprieve("symbolize").args(args).output().unwrap()
    }

    fn id(&self) -> &str {
        self.folder.file_name().unwrap().to_str().unwrap()
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.folder.join(file)).unwrap()
    }
}

impl Drop for Stripped {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.symbols);
    }
}

fn modules(incident: &Value) -> Vec<Value> {
    incident["modules"].as_array().unwrap().clone()
}

/// Names by address, of addresses that have any.
fn named(incident: &Value) -> BTreeMap<String, Value> {
    let addresses = incident["symbols"]["addresses"].as_array().unwrap();
    let named = addresses.iter().filter(|a| !a["frames"].as_array().unwrap().is_empty());
    named.map(|a| (a["at"].to_string(), a["frames"].clone())).collect()
}

/// Each of its segments begins in the first page of the file.
#[test]
fn a_small_program_of_lld_is_named_and_told_whole() {
    let (lab, dir) = (Lab::new(), tempfile::tempdir().unwrap());
    fs::write(dir.path().join("p.c"), C).unwrap();
    run_in(dir.path(), "clang-19", &["-g", "-O0", "-Wno-unknown-attributes", "-fuse-ld=lld", "-o", "p", "p.c"]);
    let program = dir.path().join("p");
    let waiting = recorded_reading(&lab, &program);
    let folded = String::from_utf8(lab.file("stacks.folded")).unwrap();
    assert!(folded.contains(";main (p.c:6);outer (p.c:5);inner (p.c:3);"), "{folded}");
    let module = modules(&lab.incident()).into_iter().find(|m| m["path"] == program.to_str().unwrap()).unwrap();
    let maps = fs::read_to_string(format!("/proc/{}/maps", waiting.0.id())).unwrap();
    let own: Vec<&str> = maps.lines().filter(|line| line.ends_with(program.to_str().unwrap())).collect();
    let ends = |line: &str| {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        [start, end].map(|text| u64::from_str_radix(text, 16).unwrap())
    };
    assert!(own.len() > 2 && own.iter().all(|line| line.contains(" 00000000 ")), "{maps}");
    assert_eq!(module["start"], ends(own[0])[0], "{module}");
    assert_eq!(module["end"], ends(own[own.len() - 1])[1], "{module}");
}

#[test]
fn a_debug_file_that_comes_later_names_more_and_loses_nothing() {
    let stripped = Stripped::new();
    let before = stripped.lab.incident();
    let known = named(&before);
    assert!(!known.is_empty(), "libc's read has a name");
    assert!(!stripped.read("stacks.folded").contains("inner"));
    fs::write(stripped.folder.join("notes.txt"), "mine").unwrap();
    fs::create_dir(stripped.folder.join("more")).unwrap();
    fs::write(stripped.folder.join("more/notes.txt"), "mine, too").unwrap();
    fs::set_permissions(&stripped.folder, fs::Permissions::from_mode(0o750)).unwrap();

    // Somebody reads all the while.
    let is_over = AtomicBool::new(false);
    let output = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0_u32;
            while !is_over.load(SeqCst) {
                let incident: Value = serde_json::from_str(&stripped.read("incident.json")).unwrap();
                assert_eq!(incident["id"], stripped.id());
                assert!(stripped.read("report.html").contains("</html>"));
                reads += 1;
            }
            reads
        });
        let output = stripped.symbolize(&[stripped.id(), "--debug-dir", stripped.symbols.to_str().unwrap()]);
        is_over.store(true, SeqCst);
        assert!(reader.join().unwrap() > 0);
        output
    });
    assert!(output.status.success(), "{}", text(&output));
    let said = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(said.contains(&format!("named, {} before", known.len())), "{said}");

    let mut after = stripped.lab.incident();
    let now = named(&after);
    for (at, frames) in &known {
        assert_eq!(now.get(at), Some(frames), "{at} was lost or told otherwise");
    }
    let functions: Vec<&Value> = now.values().flat_map(|f| f.as_array().unwrap()).collect();
    for (function, line) in [("inner", 3), ("outer", 5), ("main", 6)] {
        let frame =
            functions.iter().find(|f| f["function"] == function).unwrap_or_else(|| panic!("{function}: {said}"));
        assert_eq!(frame["line"], line, "{frame}");
    }
    assert!(after["symbols"]["completed_unix_us"].as_u64() >= before["time_unix_us"].as_u64());
    // All renderings, and nothing but the symbols of the evidence.
    let folded = stripped.read("stacks.folded");
    assert!(folded.contains(";main (p.c:6);outer (p.c:5);inner (p.c:3);"), "{folded}");
    for file in ["report.html", "flamegraph.svg"] {
        assert!(stripped.read(file).contains("outer"), "{file}");
    }
    after["symbols"] = before["symbols"].clone();
    assert_eq!(after, before);
    // What was put beside it, its permissions, and nothing else in the store.
    assert_eq!((stripped.read("notes.txt"), stripped.read("more/notes.txt")), ("mine".into(), "mine, too".into()));
    assert_eq!(fs::metadata(&stripped.folder).unwrap().permissions().mode() & 0o777, 0o750);
    assert_eq!(fs::read_dir(stripped.lab.out()).unwrap().count(), 1);

    // Where there is nothing to be found any more, names stay.
    let empty = tempfile::tempdir().unwrap();
    let dir = empty.path().to_str().unwrap();
    let again = stripped.symbolize(&[stripped.folder.to_str().unwrap(), "--debug-dir", dir, "--json"]);
    assert!(again.status.success(), "{}", text(&again));
    let report: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(report["names"]["named"], report["names"]["named_before"]);
    assert_eq!(report["names"]["improved"], 0);
    assert_eq!(named(&stripped.lab.incident()), now);
}

#[test]
fn where_nothing_is_found_the_reasons_are_told() {
    let stripped = Stripped::new();
    let empty = tempfile::tempdir().unwrap();
    let output = stripped.symbolize(&[stripped.id(), "--debug-dir", empty.path().to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output));
    let said = String::from_utf8(output.stdout).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(said.contains("file could not be opened"), "{said}");
    assert!(said.contains(&format!("{}/p (the binary): absent", stripped.symbols.display())), "{said}");
    let incident = stripped.lab.incident();
    let index = modules(&incident).iter().position(|m| m["path"].as_str().unwrap().ends_with("/p")).unwrap();
    let searches = incident["symbols"]["searches"].as_array().unwrap();
    let search = searches.iter().find(|s| s["module"] == index).unwrap();
    let tried = search["tried"].as_array().unwrap();
    let of = |source: &str| tried.iter().filter(|t| t["source"] == source).count();
    // Where it was; then each place of two folders by build ID, path and name.
    assert_eq!((of("binary"), of("build_id")), (1 + 2 * 3, 2 * 2), "{tried:#?}");
    assert!(tried.iter().all(|t| t["outcome"] == "absent"), "{tried:#?}");
}

#[test]
fn what_cannot_be_done_is_refused_and_changes_nothing() {
    let stripped = Stripped::new();
    let refused = |args: &[&str], code: i32, says: &str| {
        let before = stripped.read("incident.json");
        let output = stripped.symbolize(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", text(&output));
        assert!(String::from_utf8_lossy(&output.stderr).contains(says), "{}", text(&output));
        assert_eq!(stripped.read("incident.json"), before);
    };
    refused(&["2001"], 3, "no incident");
    refused(
        &[stripped.id(), "--debuginfod", "https://debuginfod.example"],
        2,
        "DEBUGINFOD_URLS=https://debuginfod.example",
    );
    refused(&[stripped.id(), "--debug-dir", "/proc/self/never-made"], 2, "name the folder that has the debug files");
    // Of a later reprieve.
    let file = stripped.folder.join("incident.json");
    let mut incident: Value = serde_json::from_str(&stripped.read("incident.json")).unwrap();
    incident["processes"][0]["colour"] = "blue".into();
    fs::write(&file, incident.to_string()).unwrap();
    refused(&[stripped.id()], 1, "processes.colour is not known");
    fs::write(&file, "{").unwrap();
    refused(&[stripped.id()], 1, "is not a readable incident");
}

const SCRIPT: &str = "\
function leak(x) { let s = 0;\n\
  for (let i = 0; i < 2000; i++) s += (x * i) % 7;\n\
  return s; }\n\
function run() { let sum = 0; for (;;) sum += leak(sum); }\n\
run();\n";

/// A node that is in generated code nearly always.
struct Node {
    running: Running,
    dir: tempfile::TempDir,
}

impl Node {
    fn start(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("leak.js"), SCRIPT).unwrap();
        let mut command = Command::new("node");
        let child = command.args(flags).arg("leak.js").current_dir(dir.path()).spawn();
        Node { running: Running(child.unwrap_or_else(|e| panic!("node: {e}"))), dir }
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
    let node = Node::start(&["--perf-basic-prof"]);
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

/// Node writes its jitdump in large blocks, so that what was compiled last is in the map
/// only; that lines are found in a whole one, the symbolizer's tests show.
#[test]
fn a_jitdump_is_found_by_its_mapping_and_the_map_helps_out() {
    let node = Node::start(&["--perf-basic-prof", "--perf-prof"]);
    node.wait_until_hot();
    let dump = node.dir.path().join(format!("jit-{}.dump", node.running.0.id()));
    wait_for("the dump", || dump.exists());
    // It would write on between the snapshot and the look at its size.
    kill(Pid::from_raw(node.running.0.id() as i32), Signal::SIGSTOP).unwrap();
    let (generated, tried, _) = node.record();
    let is_begun = fs::metadata(&dump).unwrap().len() > 0;
    assert_eq!(tried, pairs(&[("jit_dump", if is_begun { "used" } else { "damaged" }), ("perf_map", "used")]));
    let leak = |a: &&Value| a["frame"]["function"] == "leak" || a["frame"]["function"] == "run";
    assert!(generated.iter().any(|a| leak(&a)), "{generated:#?}");
}

#[test]
fn in_namespaces_of_its_own_the_map_is_its_own_too() {
    let script = "mount -t tmpfs none /tmp && exec node --perf-basic-prof leak.js";
    // Outside /tmp, which is another one inside.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    fs::write(dir.path().join("leak.js"), SCRIPT).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script]).current_dir(dir.path());
    let unshare = Running(command.spawn().unwrap());
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
    let node = Node::start(&[]);
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
    running: Running,
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
        let mut jvm = Jvm { running: Running(java.unwrap_or_else(|e| panic!("java: {e}"))), _dir: dir };
        let mut said = String::new();
        BufReader::new(jvm.running.0.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "hot\n");
        jvm
    }

    /// What `jcmd PID Compiler.perfmap` does; the runtime has all of jcmd but its name.
    fn write_map(&self) {
        let pid = self.running.0.id().to_string();
        let java = ["-XX:-UsePerfData", "-m", "jdk.jcmd/sun.tools.jcmd.JCmd", &pid, "Compiler.perfmap"];
        run_in(Path::new("/"), "java", &java);
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
