//! `reprieve symbolize`, and files that only a process's own namespace has.

mod common;

use common::{Doomed, Lab, text, wait_for};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

/// Waits in `inner`, which is called from `outer`.
const C: &str = "\
#include <unistd.h>\n\
__attribute__((noipa)) int inner(char *to) {\n\
  return (int)read(0, to, 1) + 1; }\n\
__attribute__((noipa)) int outer(char *to) {\n\
  return inner(to) + 1; }\n\
int main(void) { char c; return outer(&c); }\n";

fn run_in(dir: &Path, program: &str, args: &[&str]) {
    let output =
        Command::new(program).args(args).current_dir(dir).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {args:?}: {}", text(&output));
}

/// Starts a program, and records it once it reads.
fn recorded_reading(lab: &Lab, program: &Path) -> Doomed {
    let waiting = Doomed(Command::new(program).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap());
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

/// Whether all functions of the program have names and lines now, and what had a name has
/// the same; returns all names.
#[track_caller]
fn assert_names_more(before: &Value, after: &Value) -> BTreeMap<String, Value> {
    let (known, now) = (named(before), named(after));
    assert!(!known.is_empty() && known.len() < now.len(), "{known:?} {now:?}");
    for (at, frames) in &known {
        assert_eq!(now.get(at), Some(frames), "{at} was lost or told otherwise");
    }
    let functions: Vec<&Value> = now.values().flat_map(|f| f.as_array().unwrap()).collect();
    for (function, line) in [("inner", 3), ("outer", 5), ("main", 6)] {
        let frame =
            functions.iter().find(|f| f["function"] == function).unwrap_or_else(|| panic!("{function}: {now:?}"));
        assert_eq!(frame["line"], line, "{frame}");
    }
    now
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
    let now = assert_names_more(&before, &after);
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

/// Debian's server on a port of loopback, with the files of one folder.
struct Server {
    child: Doomed,
    url: String,
}

impl Server {
    /// Returns when it has seen the debug file with this build ID.
    fn start(folder: &Path, id: &str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new("debuginfod");
        command.args(["--port", &port.to_string(), "--database", ":memory:", "-F"]).arg(folder);
        command.env_remove("DEBUGINFOD_URLS").stdout(Stdio::null()).stderr(Stdio::null());
        let child = Doomed(command.spawn().unwrap_or_else(|e| panic!("debuginfod: {e}")));
        let has_it = || -> io::Result<bool> {
            let mut stream = TcpStream::connect(("127.0.0.1", port))?;
            write!(stream, "GET /buildid/{id}/debuginfo HTTP/1.0\r\n\r\n")?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(answer.starts_with(b"HTTP/1.") && answer[8..].starts_with(b" 200 "))
        };
        wait_for("debuginfod's look at the file", || {
            std::thread::sleep(Duration::from_millis(100));
            has_it().unwrap_or(false)
        });
        Server { child, url: format!("http://127.0.0.1:{port}") }
    }
}

#[test]
fn a_debuginfod_server_that_is_named_names_more_and_loses_nothing() {
    let stripped = Stripped::new();
    let mut before = stripped.lab.incident();
    let is_program = |m: &&Value| m["path"].as_str().unwrap().ends_with("/p");
    let all = modules(&before);
    let index = all.iter().position(|m| is_program(&m)).unwrap();
    let server = Server::start(&stripped.symbols, all[index]["build_id"].as_str().unwrap());
    let cache = tempfile::tempdir().unwrap();
    let ask = |cache: &str, more: &[&str]| -> Value {
        let mut command = stripped.lab.reprieve("symbolize");
        command.env("DEBUGINFOD_URLS", &server.url).args([stripped.id(), "--json"]);
        let output = command.arg("--debuginfod-cache").arg(cache).args(more).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let [first, second] = ["first", "second"].map(|name| format!("{}/{name}", cache.path().display()));
    // The environment alone sends nobody's build IDs anywhere.
    assert_eq!(ask(&first, &[])["names"]["improved"], 0);
    assert!(!fs::exists(&first).unwrap());
    assert_eq!(named(&stripped.lab.incident()), named(&before));

    let url = &server.url;
    let report = ask(&first, &["--debuginfod", url]);
    let mut after = stripped.lab.incident();
    let now = assert_names_more(&before, &after);
    assert_eq!(report["names"]["named"], now.len());
    assert_eq!(report["names"]["improved"], now.len() - named(&before).len());
    let search = report["searches"].as_array().unwrap().iter().find(|s| s["module"] == index).unwrap();
    let of_server = |t: &&Value| t["place"].as_str().unwrap().starts_with(url);
    let used = search["tried"].as_array().unwrap().iter().filter(of_server).find(|t| t["outcome"] == "used");
    assert!(used.is_some(), "{search:#}");
    assert!(stripped.read("stacks.folded").contains(";main (p.c:6);outer (p.c:5);inner (p.c:3);"));
    after["symbols"] = before["symbols"].take();
    before["symbols"] = after["symbols"].clone();
    assert_eq!(after, before);

    // Where it is not there any more, names stay.
    drop(server.child);
    assert_eq!(ask(&second, &["--debuginfod", url])["names"]["improved"], 0);
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

/// Another program lies at the same path where we are.
#[test]
fn a_binary_that_only_its_own_mount_namespace_has_is_named() {
    let (dir, hidden) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(dir.path().join("p.c"), C).unwrap();
    fs::write(dir.path().join("q.c"), C.replace("outer", "lure").replace("inner", "bait")).unwrap();
    let path = hidden.path().join("p").to_str().unwrap().to_owned();
    run_in(dir.path(), "cc", &["-g", "-O1", "-Wl,--build-id", "-o", "p", "p.c"]);
    run_in(dir.path(), "cc", &["-g", "-O1", "-Wl,--build-id", "-o", &path, "q.c"]);
    let script = "mount -t tmpfs none \"$1\" && cp p \"$1/p\" && exec \"$1/p\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(hidden.path()).current_dir(dir.path());
    let waiting = Doomed(command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap());
    let pid = waiting.0.id().to_string();
    wait_for("the program to read", || {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        read("comm") == "p\n" && read("wchan").contains("pipe")
    });
    // With what the kernel says is mapped; and without the right to see that, through the
    // process's root alone (proc_pid_map_files(5)).
    let unprivileged = ["setpriv", "--bounding-set=-checkpoint_restore,-sys_admin"];
    for (before, missed) in [(&["env"][..], &[][..]), (&unprivileged, &["not_readable", "used"])] {
        let lab = Lab::new();
        let reprieve = lab.reprieve("snapshot");
        let mut snapshot = Command::new(before[0]);
        snapshot.args(&before[1..]).arg(reprieve.get_program()).args(reprieve.get_args()).arg(&pid);
        let output = snapshot.output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        let incident = lab.incident();
        let all = modules(&incident);
        let index = all.iter().position(|m| m["path"] == path).unwrap_or_else(|| panic!("{all:#?}"));
        assert_eq!(all[index]["deleted"], false);
        let searches = incident["symbols"]["searches"].as_array().unwrap();
        let tried = searches.iter().find(|s| s["module"] == index).map(|s| s["tried"].as_array().unwrap());
        let outcomes: Vec<&Value> = tried.into_iter().flatten().map(|t| &t["outcome"]).collect();
        assert_eq!(outcomes, missed, "{tried:#?}");
        let folded = String::from_utf8(lab.file("stacks.folded")).unwrap();
        assert!(folded.contains(";main (p.c:6);outer (p.c:5);inner (p.c:3);"), "{missed:?}: {folded}");
        assert!(!incident["gaps"].to_string().contains(&path), "{}", incident["gaps"]);
    }
}
