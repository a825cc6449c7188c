//! Memcgs of a benchmark's own, and a guard on them.

use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Time for a guard to have all of them, and for a memcg to be removed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A memcg with memcgs below it.
#[derive(Debug)]
pub struct Field {
    root: PathBuf,
    is_v1: bool,
}

impl Field {
    /// An empty one, of either version.
    pub fn new() -> Result<Self> {
        let (v1, v2) = (Path::new("/sys/fs/cgroup/memory"), Path::new("/sys/fs/cgroup"));
        let is_v1 = v1.join("memory.usage_in_bytes").exists();
        let mount = if is_v1 { v1 } else { v2 };
        let root = mount.join(format!("bench-{}", std::process::id()));
        fs::create_dir(&root).with_context(|| format!("{} cannot be made; run as root", root.display()))?;
        let field = Field { root, is_v1 };
        if !is_v1 {
            fs::write(field.root.join("cgroup.subtree_control"), "+memory")
                .context("the memory controller cannot be had below the root of version 2")?;
        }
        Ok(field)
    }

    /// One below it, of so many bytes.
    pub fn memcg(&self, name: &str, limit_bytes: u64) -> Result<PathBuf> {
        let dir = self.root.join(name);
        fs::create_dir(&dir).with_context(|| format!("{} cannot be made", dir.display()))?;
        fs::write(self.limit_file(&dir), limit_bytes.to_string()).with_context(|| format!("no limit for {name}"))?;
        Ok(dir)
    }

    /// The file that has what one below it uses.
    pub fn usage_file(&self, dir: &Path) -> PathBuf {
        dir.join(if self.is_v1 { "memory.usage_in_bytes" } else { "memory.current" })
    }

    /// The file that has its limit.
    pub fn limit_file(&self, dir: &Path) -> PathBuf {
        dir.join(if self.is_v1 { "memory.limit_in_bytes" } else { "memory.max" })
    }

    /// The pattern that matches all of them.
    pub fn glob(&self) -> String {
        format!("/{}/*", self.root.file_name().unwrap_or_default().display())
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        let mut dirs = vec![self.root.clone()];
        let mut next = 0;
        while let Some(dir) = dirs.get(next) {
            let below = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
            let below: Vec<PathBuf> = below.filter(|path| path.is_dir()).collect();
            dirs.extend(below);
            next += 1;
        }
        for dir in dirs.iter().rev() {
            // Whoever is left of a benchmark that failed.
            for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
                // 0 is one whom we cannot name.
                let Some(pid) = pid.parse::<i32>().ok().filter(|pid| *pid > 0) else { continue };
                // SAFETY: kill(2) has no pointers; whoever is in this memcg is ours.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
            if let Err(error) = wait_for("the end of a memcg", || fs::remove_dir(dir).is_ok() || !dir.exists()) {
                eprintln!("{}: {error:#}", dir.display());
            }
        }
    }
}

/// A guard that runs; ended when dropped.
#[derive(Debug)]
pub struct Guard {
    child: Child,
    config: tempfile::TempDir,
}

impl Guard {
    /// Starts one with this in its configuration, and waits until it has `count` memcgs.
    pub fn start(program: &Path, toml: &str, glob: &str, count: usize) -> Result<Self> {
        let config = tempfile::tempdir()?;
        let folder = |name: &str| config.path().join(name);
        let ours = format!("guard.run_dir = {:?}\nstore.dir = {:?}\n", folder("run"), folder("store"));
        fs::create_dir(folder("conf.d"))?;
        fs::write(folder("conf.d/bench.toml"), ours)?;
        fs::write(folder("reprieve.toml"), toml)?;
        let log = File::create(folder("log"))?;
        let mut command = Command::new(program);
        command.arg("--config").arg(config.path()).args(["guard", "--log", "text", glob]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        let child = child.with_context(|| format!("failed to run {}", program.display()))?;
        let mut guard = Guard { child, config };
        let (one, many) = ("guarding 1 cgroup\n", format!("guarding {count} cgroups\n"));
        let words = if count == 1 { one } else { &many };
        let begun = Instant::now();
        while !guard.log().contains(words) {
            let status = guard.child.try_wait()?;
            ensure!(status.is_none() && begun.elapsed() < PATIENCE, "the guard did not start: {}", guard.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(guard)
    }

    /// What it has said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.config.path().join("log")).unwrap_or_default()
    }

    /// Its PID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // As its supervisor would.
        // SAFETY: kill(2) has no pointers; the child is ours and not yet reaped.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
        if wait_for("the end of the guard", || !matches!(self.child.try_wait(), Ok(None))).is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Waits for a condition.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let begun = Instant::now();
    while !condition() {
        if begun.elapsed() > PATIENCE {
            bail!("{what} did not come in {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
