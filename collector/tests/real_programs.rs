//! Programs that nobody here wrote: held, explained, and with a grant they
//! finish with the right result.

mod common;

use common::{Lab, assert_held_well, text};
use std::fs;
use std::io::Write;
use std::process::Command;

const GRANT: &[&str] = &["--memory", "48M", "--on-oom", "grant=512M"];

/// Asserts that there was an OOM, held and explained by a frame named like this.
fn assert_explained(lab: &Lab, frame: &str) {
    let incident = lab.incidents().remove(0);
    assert_held_well(&incident);
    assert_eq!(incident["symbols"]["state"]["kind"], "before_verdict", "{}", incident["symbols"]["state"]);
    let id = incident["id"].as_str().unwrap();
    let folded = fs::read_to_string(lab.out().join(id).join("stacks.folded")).unwrap();
    assert!(folded.contains(frame), "{frame} is not in {folded}");
}

#[test]
fn python_grows_a_list() {
    let script = "l = [[i] * 8 for i in range(700000)]; print(sum(map(len, l)))";
    let lab = Lab::new();
    let output = lab.run(GRANT, &["python3", "-c", script]);
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout) == "5600000\n", "{}", text(&output));
    assert_explained(&lab, "Py");
    let lab = Lab::new();
    let output = lab.run(&["--memory", "48M", "--on-oom", "kill"], &["python3", "-c", script]);
    assert_eq!(output.status.code(), Some(137), "{}", text(&output));
}

#[test]
fn sort_sorts_a_large_input() {
    let input = tempfile::NamedTempFile::new().unwrap();
    let mut writer = std::io::BufWriter::new(input.as_file());
    for i in 0..2_000_000u64 {
        writeln!(writer, "{:016x}", i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).unwrap();
    }
    writer.flush().unwrap();
    let lab = Lab::new();
    let result = lab.out().join("sorted");
    // A buffer beyond the limit: sort's own choice would fit itself to the machine.
    let command = ["sort", "--buffer-size=256M", "-o", result.to_str().unwrap(), input.path().to_str().unwrap()];
    let output = lab.run(GRANT, &command);
    assert!(output.status.success(), "{}", text(&output));
    let sorted = fs::read_to_string(&result).unwrap();
    assert!(sorted.lines().count() == 2_000_000 && sorted.lines().is_sorted());
    assert_explained(&lab, "sort");
}

#[test]
fn rustc_compiles() {
    let lab = Lab::new();
    let source = lab.out().join("hello.rs");
    // Enough to compile that rustc's own memory passes the limit.
    let functions: String =
        (0..15000).map(|i| format!("pub fn f{i}(x: u64) -> u64 {{ x.wrapping_mul({i}) + 1 }}\n")).collect();
    let main = "fn main() { println!(\"{}\", (1..=20).map(|x: u64| x * x).sum::<u64>()); }";
    fs::write(&source, format!("#![allow(dead_code)]\n{functions}{main}")).unwrap();
    let program = lab.out().join("hello");
    let command = ["rustc", "-O", "-o", program.to_str().unwrap(), source.to_str().unwrap()];
    // Once without a limit: then the compiler's own files are cached, charged
    // elsewhere, and the limit is met by its heap, not by reading it again and again.
    assert!(Command::new(command[0]).args(&command[1..]).status().unwrap().success());
    fs::remove_file(&program).unwrap();
    let output = lab.run(&["--memory", "128M", "--on-oom", "grant=2G"], &command);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(Command::new(&program).output().unwrap().stdout, b"2870\n");
    assert!(!lab.incidents().is_empty(), "rustc fitted into 128 MiB");
}

#[test]
fn redis_is_filled_through_its_own_client() {
    let lab = Lab::new();
    let socket = lab.out().join("redis.sock");
    let socket = socket.to_str().unwrap();
    let server = lab.start(
        GRANT,
        &[
            "redis-server",
            "--port",
            "0",
            "--unixsocket",
            socket,
            "--save",
            "",
            "--appendonly",
            "no",
            "--enable-debug-command",
            "local",
        ],
    );
    let client = |arguments: &[&str]| Command::new("redis-cli").args(["-s", socket]).args(arguments).output().unwrap();
    common::wait_for("redis", || client(&["ping"]).stdout == b"PONG\n");
    let filled = client(&["debug", "populate", "120000", "key", "512"]);
    assert_eq!(filled.stdout, b"OK\n", "{}", text(&filled));
    assert_eq!(client(&["dbsize"]).stdout, b"120000\n");
    assert_eq!(client(&["strlen", "key:77777"]).stdout, b"512\n");
    client(&["shutdown", "nosave"]);
    let output = server.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert_explained(&lab, "redis-server");
}
