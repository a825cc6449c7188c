//! Guardians that ask, and who answers them.
#![allow(dead_code, reason = "each test program uses its part")]

use crate::common::{Doomed, Group, Lab, fixture, wait_for, wait_for_what};
use crate::guard::Brake;
use crate::tmux::Tmux;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

pub const REPRIEVE: &str = env!("CARGO_BIN_EXE_reprieve");

/// A folder with a configuration, a store and sockets.
pub struct Here {
    pub lab: Lab,
    pub config: tempfile::TempDir,
}

impl Here {
    pub fn new(toml: &str) -> Self {
        let (lab, config) = (Lab::new(), tempfile::tempdir().unwrap());
        let ours = format!("guard.run_dir = {:?}\nstore.dir = {:?}\n", config.path().join("run"), lab.out());
        fs::write(config.path().join("reprieve.toml"), format!("{ours}{toml}")).unwrap();
        Here { lab, config }
    }

    pub fn run_dir(&self) -> PathBuf {
        self.config.path().join("run")
    }

    pub fn config(&self) -> &str {
        self.config.path().to_str().unwrap()
    }

    pub fn console(&self) -> Tmux {
        assert!(Path::new(env!("CARGO_BIN_EXE_reprieve-console")).is_file());
        Tmux::start(&[REPRIEVE, "--config", self.config(), "console"])
    }

    /// The same, started in a memcg.
    pub fn console_in(&self, group: &Group) -> Tmux {
        let procs = group.0.join("cgroup.procs");
        let enter = ["sh", "-c", "echo $$ > \"$0\" && exec \"$@\"", procs.to_str().unwrap()];
        Tmux::start(&[&enter[..], &[REPRIEVE, "--config", self.config(), "console"]].concat())
    }

    pub fn decide(&self, words: &[&str]) -> Output {
        Command::new(REPRIEVE).args(["--config", self.config(), "decide"]).args(words).output().unwrap()
    }

    /// Starts a guardian; what it says goes to a file.
    pub fn start(&self, words: &[&str]) -> (Doomed, PathBuf) {
        let said = self.config.path().join(format!("said-{}", words[0]));
        // Without a terminal, whatever that of the tests is. It forks only where it leads a
        // process group, which a child of ours does not: the PID is the guardian's.
        let child = Command::new("setsid")
            .args(["env", "--default-signal", REPRIEVE, "--config", self.config()])
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&said).unwrap())
            .spawn()
            .unwrap();
        (Doomed(child), said)
    }
}

pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A victim in a memcg of 48 MiB below a guard with this ladder, and how it is asked.
pub struct Guarded {
    pub here: Here,
    guard: Doomed,
    pub said: PathBuf,
    victim: Option<Doomed>,
    pub group: Group,
}

impl Guarded {
    pub fn new(on_oom: &str, more: &str) -> Self {
        let mut guarded = Self::idle(on_oom, more);
        guarded.start_victim();
        guarded
    }

    /// Without the victim.
    pub fn idle(on_oom: &str, more: &str) -> Self {
        let group = Group::new("asked");
        fs::write(group.0.join(Brake::here().limit_file()), (48 << 20).to_string()).unwrap();
        let path = format!("/{}", group.0.file_name().unwrap().to_str().unwrap());
        let here = Here::new(&format!("guard.cgroups = ['{path}']\nguard.on_oom = [{on_oom}]\n{more}\n"));
        let (guard, said) = here.start(&["guard", "--log", "text"]);
        wait_for("the guard", || fs::read_to_string(&said).unwrap().contains("guarding 1 cgroup"));
        Guarded { here, guard, said, victim: None, group }
    }

    /// It wants 86 MiB in all: with the 64 MiB that operators grant it has them, also below
    /// `memory.high`.
    pub fn start_victim(&mut self) {
        let mut shell = Command::new("sh");
        self.group.entered_by(&mut shell).args([&fixture("steady_leak"), "--mib", "80"]);
        self.victim = Some(Doomed(shell.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()));
    }

    pub fn victim(&self) -> &Doomed {
        self.victim.as_ref().unwrap()
    }

    pub fn says(&self, part: &str) {
        wait_for(part, || fs::read_to_string(&self.said).unwrap().contains(part));
    }

    /// ID of what waits.
    pub fn id(&self) -> String {
        let mut id = String::new();
        wait_for("a question", || {
            let listed = String::from_utf8(self.here.decide(&["--json"]).stdout).unwrap();
            let json: Option<serde_json::Value> =
                listed.lines().next().and_then(|line| serde_json::from_str(line).ok());
            id = json.map(|json| json["id"].as_str().unwrap().to_owned()).unwrap_or_default();
            !id.is_empty()
        });
        id
    }

    /// With a signal, and waits for its end; nothing where it is dead already.
    pub fn kill_guard(&mut self, signal: Signal) {
        if let Ok(None) = self.guard.0.try_wait() {
            kill(Pid::from_raw(self.guard.pid()), signal).unwrap();
            self.guard.0.wait().unwrap();
        }
    }

    pub fn end_of_victim(&mut self) -> std::process::ExitStatus {
        let mut status = None;
        let (said, dir) = (self.said.clone(), self.group.0.clone());
        let what = move || {
            let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
            let memory = ["memory.max", "memory.high", "memory.current", "memory.stat"].map(read).join(" ");
            format!("the end of the victim ({}, {memory})", fs::read_to_string(&said).unwrap())
        };
        wait_for_what(&what, || {
            status = self.victim.as_mut().unwrap().0.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// The only incident, once it is published.
    pub fn incident(&self) -> serde_json::Value {
        self.says("report ");
        self.here.lab.incident()
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        drop(self.victim.take());
        self.kill_guard(Signal::SIGTERM);
        assert!(self.group.0.exists());
    }
}
