//! A folder of recorded incidents, commands on it, and what they are to print.
#![allow(dead_code, reason = "each test program uses its part")]

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Where the recorded incidents are.
pub const RECORDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/incidents");

/// A recorded incident.
pub fn recorded(name: &str) -> Value {
    let path = Path::new(RECORDED).join(name).with_extension("json");
    serde_json::from_slice(&fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

/// A store made for a test.
pub struct Stored {
    dir: tempfile::TempDir,
}

impl Stored {
    /// The recorded incidents, each in its folder.
    pub fn new() -> Self {
        let stored = Stored { dir: tempfile::tempdir().unwrap() };
        ["python", "redis", "sort"].iter().for_each(|name| stored.add(&recorded(name)));
        stored
    }

    /// None.
    pub fn empty() -> Self {
        Stored { dir: tempfile::tempdir().unwrap() }
    }

    /// Adds one under its ID.
    pub fn add(&self, incident: &Value) {
        let dir = self.path().join(incident["id"].as_str().unwrap());
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("incident.json"), incident.to_string()).unwrap();
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// `reprieve SUBCOMMAND --out STORE …`.
    pub fn reprieve(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_reprieve"));
        command.args(["--config", "/sys", args[0], "--out"]).arg(self.path()).args(&args[1..]);
        command.stdin(Stdio::null()).output().unwrap()
    }

    /// What a command that succeeds prints, and nothing else.
    pub fn prints(&self, args: &[&str]) -> Vec<u8> {
        let output = self.reprieve(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{args:?}: {}: {said}", output.status);
        output.stdout
    }

    /// Compares what a command prints with a golden file; twice, for it is the same each time.
    pub fn golden(&self, args: &[&str], name: &str) {
        let printed = String::from_utf8(self.prints(args)).unwrap();
        assert_eq!(String::from_utf8(self.prints(args)).unwrap(), printed, "{args:?} the second time");
        golden(&printed.replace(self.path().to_str().unwrap(), "STORE"), name);
    }

    /// Asserts a failure: its code, and that its message has all these parts.
    pub fn fails(&self, args: &[&str], code: i32, parts: &[&str]) {
        let output = self.reprieve(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(output.stdout.is_empty(), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
        parts.iter().for_each(|part| assert!(said.contains(part), "{args:?}: {part:?} is not in {said}"));
    }
}

/// Compares with a golden file. REPRIEVE_BLESS=1 writes it instead: look at the difference.
pub fn golden(text: &str, name: &str) {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")).join(name);
    if std::env::var_os("REPRIEVE_BLESS").is_some() {
        fs::write(&path, text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}; REPRIEVE_BLESS=1", path.display()));
    assert!(text == expected, "not as in {}:\n{text}", path.display());
}

/// The same incident later, with an ID of its own and other bytes at its heap's stacks.
pub fn later(incident: &Value, id: &str, seconds: u64, bytes: impl Fn(usize, u64) -> u64) -> Value {
    let mut later = incident.clone();
    later["id"] = json!(id);
    later["time_unix_us"] = json!(incident["time_unix_us"].as_u64().unwrap() + seconds * 1_000_000);
    for process in later["processes"].as_array_mut().unwrap() {
        for heap in process["heaps"].as_array_mut().into_iter().flatten() {
            for (index, stack) in heap["stacks"].as_array_mut().unwrap().iter_mut().enumerate() {
                let was = stack["inuse"]["bytes"].as_u64().unwrap();
                stack["inuse"]["bytes"] = json!(bytes(index, was));
            }
        }
    }
    later
}

/// Checks JSON documents by a JSON Schema with Debian's python3-jsonschema; returns for each
/// document how many errors it has, and the first few.
pub fn check(schema: &Path, documents: &[Value]) -> Vec<(usize, String)> {
    const PROGRAM: &str = "
import json, sys, jsonschema
schema = json.load(open(sys.argv[1]))
validator = jsonschema.validators.validator_for(schema)
validator.check_schema(schema)
for line in sys.stdin:
    errors = [f'{e.json_path}: {e.message[:200]}' for e in validator(schema).iter_errors(json.loads(line))]
    print(json.dumps([len(errors), '; '.join(errors[:5])]))
";
    let lines: String = documents.iter().map(|document| format!("{document}\n")).collect();
    // Debian's, which is not always the first in PATH.
    let mut python = Command::new("/usr/bin/python3");
    python.args(["-W", "ignore", "-c", PROGRAM]).arg(schema);
    let output = with_input(&mut python, lines.into_bytes());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "python3-jsonschema is missing? run `cargo xtask test`: {said}");
    let answers: Vec<_> =
        String::from_utf8(output.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(answers.len(), documents.len());
    answers
}

/// Runs a command that reads all of this.
pub fn with_input(command: &mut Command, input: Vec<u8>) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // It may answer before it has read all.
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &input));
    let output = child.wait_with_output().unwrap();
    let _ = writer.join().unwrap();
    output
}

/// The folder that `cargo xtask test` installs npm's packages into.
pub fn npm() -> PathBuf {
    let dir = std::env::var("REPRIEVE_NPM").expect("REPRIEVE_NPM is not set; run `cargo xtask test`");
    PathBuf::from(dir).join("node_modules")
}
