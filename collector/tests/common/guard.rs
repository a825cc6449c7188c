//! A tree of memcgs, and a guard on it.
#![allow(dead_code, reason = "each test program uses its part")]

use crate::common::{Doomed, Group, Lab, fixture, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reprieve::cgroup::{Hierarchy, Memcg, Version, note};
use reprieve::hold::ReserveBrake;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The brake that a guard takes on this machine: what files a memcg has there, and what of
/// them a guard changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Brake {
    V1,
    High,
    Reserve,
}

impl Brake {
    pub fn here() -> Self {
        match Hierarchy::memory().unwrap().version {
            Version::V1 => Brake::V1,
            Version::V2 if ReserveBrake::is_there() => Brake::Reserve,
            Version::V2 => Brake::High,
        }
    }

    pub fn limit_file(self) -> &'static str {
        if self == Brake::V1 { "memory.limit_in_bytes" } else { "memory.max" }
    }

    /// What a memcg is not to be reclaimed below.
    pub fn reservation_file(self) -> &'static str {
        if self == Brake::V1 { "memory.soft_limit_in_bytes" } else { "memory.low" }
    }

    /// What a guard may write to.
    fn files(self) -> &'static [&'static str] {
        match self {
            Brake::V1 => &["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"],
            Brake::High => &["memory.max", "memory.high", "cgroup.freeze"],
            Brake::Reserve => &["memory.max", "memory.oom.reserve", "memory.oom.delay_ms"],
        }
    }
}

/// A tree of memcgs of a test's own.
pub struct Grove {
    pub root: Group,
}

impl Grove {
    pub fn new() -> Self {
        Grove { root: Group::new("grove") }
    }

    /// Its path below the mount.
    pub fn path(&self) -> String {
        format!("/{}", self.root.0.file_name().unwrap().to_str().unwrap())
    }

    /// A memcg of so many MiB.
    pub fn memcg(&self, name: &str, mib: u64) -> PathBuf {
        let dir = self.group(name);
        limit(&dir, mib);
        dir
    }

    /// One without a limit, and all between it and the tree.
    pub fn group(&self, name: &str) -> PathBuf {
        let mut dir = self.root.0.clone();
        for part in Path::new(name) {
            if Brake::here() != Brake::V1 {
                fs::write(dir.join("cgroup.subtree_control"), "+memory").unwrap();
            }
            dir.push(part);
            if !dir.is_dir() {
                fs::create_dir(&dir).unwrap();
            }
        }
        dir
    }
}

impl Drop for Grove {
    fn drop(&mut self) {
        // Two levels of them, whose last process may still be going.
        let children = |dir: &Path| -> Vec<PathBuf> {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
        };
        let begun = Instant::now();
        for child in children(&self.root.0) {
            for dir in children(&child).into_iter().chain([child]) {
                while fs::remove_dir(&dir).is_err() && dir.exists() && begun.elapsed() < Duration::from_secs(5) {
                    std::thread::yield_now();
                }
            }
        }
    }
}

pub fn limit(dir: &Path, mib: u64) {
    fs::write(dir.join(Brake::here().limit_file()), (mib << 20).to_string()).unwrap();
}

/// The file that has the kernel's limit.
pub fn limit_file() -> &'static str {
    Brake::here().limit_file()
}

/// Whether memcgs are of version 1.
pub fn is_v1() -> bool {
    Brake::here() == Brake::V1
}

/// All that a guard may change in a memcg.
pub fn files(dir: &Path) -> BTreeMap<String, String> {
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default().trim().to_owned();
    let mut files: BTreeMap<String, String> =
        Brake::here().files().iter().map(|name| ((*name).to_owned(), read(name))).collect();
    files.insert("guarded".to_owned(), is_guarded(dir).to_string());
    let hierarchy = Hierarchy::memory().unwrap();
    let path = format!("/{}", dir.strip_prefix(&hierarchy.mount).unwrap().display());
    files.insert("note".to_owned(), note::read(&Memcg::at(&hierarchy, &path)).unwrap_or_default());
    files
}

/// By the kernel's killer being off, by a limit below the limit, or by a handler.
pub fn is_guarded(dir: &Path) -> bool {
    let is = |file: &str, told: fn(&str) -> bool| fs::read_to_string(dir.join(file)).is_ok_and(|text| told(&text));
    match Brake::here() {
        Brake::V1 => is("memory.oom_control", |text| text.contains("oom_kill_disable 1")),
        Brake::High => is("memory.high", |text| text.trim() != "max"),
        Brake::Reserve => is("memory.oom.state", |text| text.contains("handler 1")),
    }
}

/// The limit that the kernel has.
pub fn limit_of(dir: &Path) -> u64 {
    number(dir, Brake::here().limit_file())
}

/// Whether a guard has seen that the owner wrote another limit, by what it sets about it.
pub fn has_followed(dir: &Path, mib: u64) -> bool {
    let bytes = mib << 20;
    match Brake::here() {
        Brake::V1 => limit_of(dir) > bytes,
        Brake::High => (bytes / 2 + 1..bytes).contains(&number(dir, "memory.high")),
        // Nothing: the kernel itself holds at what was written.
        Brake::Reserve => true,
    }
}

fn number(dir: &Path, file: &str) -> u64 {
    fs::read_to_string(dir.join(file)).unwrap().trim().parse().unwrap()
}

/// Starts a program in a memcg.
pub fn start_in(dir: &Path, command: &[&str]) -> Doomed {
    let mut shell = Command::new("sh");
    shell.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(dir.join("cgroup.procs")).args(command);
    Doomed(shell.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
}

pub fn leak_in(dir: &Path, mib: &str) -> Doomed {
    start_in(dir, &[&fixture("steady_leak"), "--mib", mib])
}

pub fn end_of(doomed: &mut Doomed) -> ExitStatus {
    let mut status = None;
    wait_for("the end of a victim", || {
        status = doomed.0.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

/// A guard that runs.
pub struct Guard {
    pub child: Child,
    config: tempfile::TempDir,
    said: PathBuf,
}

impl Guard {
    /// With a configuration, and what is typed.
    pub fn start(lab: &Lab, toml: &str, arguments: &[&str]) -> Self {
        let guard = Self::start_only(lab, toml, arguments);
        guard.wait_for("guarding ");
        wait_for("the start", || {
            guard.said().lines().any(|line| line.ends_with(" cgroup") || line.ends_with(" cgroups"))
        });
        guard
    }

    pub fn start_only(lab: &Lab, toml: &str, arguments: &[&str]) -> Self {
        Self::start_in_environment(lab, toml, arguments, &[])
    }

    /// The same with more in its environment.
    pub fn start_in_environment(lab: &Lab, toml: &str, arguments: &[&str], env: &[(&str, &str)]) -> Self {
        let config = tempfile::tempdir().unwrap();
        let said = config.path().join("said");
        let dirs = format!("guard.run_dir = {:?}\nstore.dir = {:?}\n", lab.out().join("run"), lab.out());
        let ours = format!("{dirs}guard.log = 'text'\n");
        fs::create_dir(config.path().join("conf.d")).unwrap();
        fs::write(config.path().join("conf.d/lab.toml"), ours).unwrap();
        fs::write(config.path().join("reprieve.toml"), toml).unwrap();
        // Whoever started the tests may ignore signals, as nohup(1) and shells do.
        let mut command = Command::new("env");
        command.arg("--default-signal").arg(env!("CARGO_BIN_EXE_reprieve")).arg("--config").arg(config.path());
        command.arg("guard").args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.envs(env.iter().copied()).stderr(File::create(&said).unwrap()).spawn().unwrap();
        Guard { child, config, said }
    }

    pub fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap()
    }

    pub fn wait_for(&self, part: &str) {
        let begun = Instant::now();
        while !self.said().contains(part) {
            assert!(begun.elapsed() < Duration::from_secs(30), "never said {part:?}:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    pub fn watchdog(&self) -> Pid {
        let pid = self.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        Pid::from_raw(children.split_whitespace().next().unwrap().parse().unwrap())
    }

    pub fn reload(&self, toml: &str) {
        fs::write(self.config.path().join("reprieve.toml"), toml).unwrap();
        self.signal(Signal::SIGHUP);
    }

    /// Ends it as systemd does; returns what it said.
    pub fn end(mut self) -> String {
        self.signal(Signal::SIGTERM);
        let status = self.child.wait().unwrap();
        let said = self.said();
        assert!(status.success(), "{status}\n{said}");
        said
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // A test that failed leaves nobody held: the watchdog sees to that.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
