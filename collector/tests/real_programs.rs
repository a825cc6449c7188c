//! Programs that nobody here wrote: held, explained, and with a grant they
//! finish with the right result; with a kill they are gone and their memory is
//! back.

mod common;

use common::{Lab, assert_held_well, text};
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Limits that each program outgrows, and a grant that is enough.
const GRANT: &[&str] = &["--memory", "48M", "--on-oom", "grant=512M"];
const KILL: &[&str] = &["--memory", "48M", "--on-oom", "kill"];
/// For those that need more to start.
const BIG_GRANT: &[&str] = &["--memory", "128M", "--on-oom", "grant=2G"];
const BIG_KILL: &[&str] = &["--memory", "128M", "--on-oom", "kill"];

/// Asserts that there was an OOM, held and explained by a frame named like this.
fn assert_explained(lab: &Lab, frame: &str) {
    let incident = lab.incidents().remove(0);
    assert_held_well(&incident);
    assert_eq!(incident["symbols"]["state"]["kind"], "before_verdict", "{}", incident["symbols"]["state"]);
    let id = incident["id"].as_str().unwrap();
    let folded = fs::read_to_string(lab.out().join(id).join("stacks.folded")).unwrap();
    assert!(folded.contains(frame), "{frame} is not in {folded}");
    assert_no_more_heap_than_memory(&incident);
}

/// Asserts that nobody owns what is not in memory: a block that was asked for counts with what
/// of it was touched.
fn assert_no_more_heap_than_memory(incident: &Value) {
    let usage = incident["memcg"]["usage_bytes"].as_u64().unwrap();
    for process in incident["processes"].as_array().unwrap() {
        for heap in process["heaps"].as_array().unwrap() {
            let number = |key: &str| heap["inuse"][key].as_u64().unwrap();
            let most = usage + usage / 10 + 3 * number("sigma_bytes");
            assert!(number("bytes") <= most, "{} of {usage}: {:#}", number("bytes"), heap["inuse"]);
        }
    }
}

/// Asserts that the program was killed and its memory is back.
fn assert_killed(lab: &Lab, output: &Output, comm: &str) {
    assert_eq!(output.status.code(), Some(137), "{}", text(output));
    let incident = lab.incident();
    assert_held_well(&incident);
    assert_eq!(incident["verdict"]["relieved"], true, "{:#}", incident["verdict"]);
    let kill = incident["verdict"]["steps"].as_array().unwrap().last().unwrap();
    let victim = &kill["candidates"][0];
    assert_eq!(victim["comm"], comm);
    let bytes = |key: &str| kill[key].as_u64().unwrap();
    // Cache of files that it read may stay; nothing of its own.
    let back = bytes("usage_before_bytes").saturating_sub(bytes("usage_after_bytes"));
    assert!(back * 10 >= victim["size_bytes"].as_u64().unwrap() * 9, "{back} bytes came back: {kill:#}");
    let pid = victim["pid"].as_i64().unwrap();
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{comm} [{pid}] is still there");
}

/// Runs a program with a grant and with a kill; returns what it did with the grant.
fn grant_and_kill(limits: [&[&str]; 2], command: &[&str], frame: &str) -> Output {
    let lab = Lab::new();
    let finished = lab.run(limits[0], command);
    assert!(finished.status.success(), "{}", text(&finished));
    assert_explained(&lab, frame);
    let lab = Lab::new();
    assert_killed(&lab, &lab.run(limits[1], command), command[0]);
    finished
}

#[test]
fn python_grows_a_list() {
    let script = "l = [[i] * 8 for i in range(700000)]; print(sum(map(len, l)))";
    let output = grant_and_kill([GRANT, KILL], &["python3", "-c", script], "Py");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "5600000\n");
}

#[test]
fn node_grows_an_array() {
    let script = "const a = []; for (let i = 0; i < 3000000; i++) a.push({ i, next: a[i - 1] });
        console.log(a.reduce((sum, o) => sum + o.i, 0))";
    let output = grant_and_kill([BIG_GRANT, BIG_KILL], &["node", "-e", script], "node");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "4499998500000\n");
}

#[test]
fn sort_sorts_a_large_input() {
    let scratch = tempfile::tempdir().unwrap();
    let input = scratch.path().join("input");
    let mut writer = std::io::BufWriter::new(fs::File::create(&input).unwrap());
    for i in 0..2_000_000u64 {
        writeln!(writer, "{:016x}", i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).unwrap();
    }
    writer.flush().unwrap();
    let result = scratch.path().join("sorted");
    let [input, result_arg, folder] = [&input, &result, scratch.path()].map(|path| path.to_str().unwrap());
    // A buffer beyond the limit: sort's own choice would fit itself to the machine.
    let command = ["sort", "--buffer-size=256M", "-T", folder, "-o", result_arg, input];
    let output = grant_and_kill([GRANT, KILL], &command, "sort");
    // It has no symbols. Who owns the buffer is it all the same, and not the C library's start.
    assert!(text(&output).contains(" in sort+0x"), "{}", text(&output));
    let sorted = fs::read_to_string(&result).unwrap();
    assert!(sorted.lines().count() == 2_000_000 && sorted.lines().is_sorted());
}

#[test]
fn rustc_compiles() {
    let scratch = tempfile::tempdir().unwrap();
    let source = scratch.path().join("hello.rs");
    // Enough to compile that rustc's own memory passes the limit.
    let functions: String =
        (0..15000).map(|i| format!("pub fn f{i}(x: u64) -> u64 {{ x.wrapping_mul({i}) + 1 }}\n")).collect();
    let main = "fn main() { println!(\"{}\", (1..=20).map(|x: u64| x * x).sum::<u64>()); }";
    fs::write(&source, format!("#![allow(dead_code)]\n{functions}{main}")).unwrap();
    let program = scratch.path().join("hello");
    // Killed, it leaves its temporary files beside its result.
    let command = ["rustc", "-O", "-o", program.to_str().unwrap(), source.to_str().unwrap()];
    // Once without a limit: then the compiler's own files are cached, charged
    // elsewhere, and the limit is met by its heap, not by reading it again and again.
    assert!(Command::new(command[0]).args(&command[1..]).status().unwrap().success());
    fs::remove_file(&program).unwrap();
    grant_and_kill([BIG_GRANT, BIG_KILL], &command, "rustc");
    assert_eq!(Command::new(&program).output().unwrap().stdout, b"2870\n");
}

/// A redis server on a socket in a lab, and its client.
struct Redis {
    server: std::process::Child,
    socket: PathBuf,
}

impl Redis {
    fn start(lab: &Lab, options: &[&str]) -> Self {
        let socket = lab.out().join("redis.sock");
        let mut command = vec!["redis-server", "--port", "0", "--unixsocket", socket.to_str().unwrap()];
        command.extend(["--save", "", "--appendonly", "no", "--enable-debug-command", "local"]);
        let redis = Redis { server: lab.start(options, &command), socket: socket.clone() };
        common::wait_for("redis", || redis.client(&["ping"]).stdout == b"PONG\n");
        redis
    }

    fn client(&self, arguments: &[&str]) -> Output {
        Command::new("redis-cli").arg("-s").arg(&self.socket).args(arguments).output().unwrap()
    }

    fn fill(&self) -> Output {
        self.client(&["debug", "populate", "120000", "key", "512"])
    }
}

#[test]
fn redis_is_filled_through_its_own_client() {
    let lab = Lab::new();
    let redis = Redis::start(&lab, GRANT);
    let filled = redis.fill();
    assert_eq!(filled.stdout, b"OK\n", "{}", text(&filled));
    assert_eq!(redis.client(&["dbsize"]).stdout, b"120000\n");
    assert_eq!(redis.client(&["strlen", "key:77777"]).stdout, b"512\n");
    redis.client(&["shutdown", "nosave"]);
    let output = redis.server.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert_explained(&lab, "redis-server");

    let lab = Lab::new();
    let redis = Redis::start(&lab, KILL);
    redis.fill();
    assert_killed(&lab, &redis.server.wait_with_output().unwrap(), "redis-server");
}
