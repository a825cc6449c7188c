//! Other programs that kill for memory, run beside ours: unpacked, not installed, since to
//! install them would start them.

use crate::demo::target;
use crate::deps::{self, Package};
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PACKAGES: &[Package] = &[
    Package { name: "earlyoom", why: "to compare with" },
    Package { name: "systemd-oomd", why: "to compare with, where it can run" },
];
/// Its library is systemd's own.
const NEEDED: &[Package] = &[Package { name: "systemd", why: "the library of systemd-oomd" }];
/// A program that cannot run has ended after this.
const START_TIME: Duration = Duration::from_secs(2);

/// Where they are unpacked.
#[derive(Debug)]
pub struct Peers {
    dir: PathBuf,
}

/// One that runs; ended when dropped.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    log: tempfile::NamedTempFile,
}

impl Peers {
    /// Unpacks them.
    pub fn unpack(root: &Path) -> Result<Self> {
        deps::ensure(NEEDED)?;
        let dir = target(root).join("debian");
        deps::unpack(PACKAGES, &dir)?;
        Ok(Peers { dir })
    }

    /// earlyoom with these options, beside those of Debian's configuration.
    pub fn earlyoom(&self, options: &[&str]) -> Result<Peer> {
        let mut command = Command::new(self.dir.join("earlyoom/usr/bin/earlyoom"));
        command.args(["-r", "3600"]).args(options);
        Peer::start(command)?.map_err(|words| anyhow::anyhow!("earlyoom does not run: {words}"))
    }

    /// earlyoom as Debian has it, in a PID namespace: it sees, and may kill, nobody but whom
    /// is started there.
    pub fn earlyoom_apart(&self) -> Result<Peer> {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]);
        command.arg(self.dir.join("earlyoom/usr/bin/earlyoom")).args(["-r", "3600"]);
        Peer::start(command)?.map_err(|words| anyhow::anyhow!("earlyoom does not run: {words}"))
    }

    /// systemd-oomd, or its own words on why it does not run here.
    pub fn oomd(&self) -> Result<Result<Peer, String>> {
        Peer::start(Command::new(self.dir.join("systemd-oomd/lib/systemd/systemd-oomd")))
    }
}

impl Peer {
    fn start(mut command: Command) -> Result<Result<Self, String>> {
        let log = tempfile::NamedTempFile::new()?;
        let (out, err) = (File::create(log.path())?, File::create(log.path())?);
        let child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn();
        let child = child.with_context(|| format!("failed to run {command:?}"))?;
        let mut peer = Peer { child, log };
        let begun = Instant::now();
        while begun.elapsed() < START_TIME {
            if let Some(status) = peer.child.try_wait()? {
                let words = peer.log();
                let last = words.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
                return Ok(Err(format!("{last} ({status})")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Ok(peer))
    }

    /// What it has said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log.path()).unwrap_or_default()
    }

    /// Its PID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The PID of the first process that it has started.
    pub fn first_child(&self) -> Result<u32> {
        let pid = self.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        children.split_whitespace().next().and_then(|pid| pid.parse().ok()).context("it has no child")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // unshare(1) ends of nothing else, and takes along what it started.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
