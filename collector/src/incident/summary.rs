//! What a list tells of an incident, read without the rest: stacks and symbols, which are
//! most of the file, are passed over.

use super::model::{KernelVictim, ProcessMemory, StepOutcome, Trigger};
use super::read::{parse, read};
use super::show::{Happened, printable, sentence};
use super::store::{INCIDENT, StoreError};
use crate::cgroup;
use serde::Deserialize;
use std::path::Path;

/// Fields of an incident as far as a list needs them.
#[derive(Debug, Clone, Deserialize)]
pub struct Summary {
    schema: String,
    /// As in the incident, and so all that follow.
    pub id: String,
    /// What made us write it.
    pub trigger: Trigger,
    /// When the OOM was noticed.
    pub time_unix_us: u64,
    /// The memcg, when there is one.
    pub memcg: Option<Memcg>,
    /// Every process seen.
    pub processes: Vec<Process>,
    /// Whom the kernel killed.
    #[serde(default)]
    pub kernel_victims: Vec<KernelVictim>,
    /// What was decided.
    pub verdict: Option<Verdict>,
}

/// A memcg.
#[derive(Debug, Clone, Deserialize)]
pub struct Memcg {
    /// Path below the memory controller's mount.
    pub path: String,
    usage_bytes: u64,
    /// `None` is unlimited.
    pub limit_bytes: Option<u64>,
}

/// A process.
#[derive(Debug, Clone, Deserialize)]
pub struct Process {
    /// Its PID.
    pub pid: i32,
    /// Its name.
    pub comm: String,
    /// Its program.
    pub exe: Option<String>,
    /// Its cgroup.
    pub cgroup: String,
    /// Container ID, when the cgroup path shows one.
    pub container_id: Option<String>,
    memory: ProcessMemory,
}

/// A verdict.
#[derive(Debug, Clone, Deserialize)]
pub struct Verdict {
    /// One sentence.
    pub summary: String,
    /// Whether the memcg was well afterwards.
    pub relieved: bool,
    steps: Vec<Step>,
}

#[derive(Debug, Clone, Deserialize)]
struct Step {
    action: String,
    outcome: StepOutcome,
}

impl Summary {
    /// Reads the incident in a folder.
    pub fn read(dir: &Path) -> Result<Self, StoreError> {
        read(&dir.join(INCIDENT), Self::parse)
    }

    /// The same of the file's content; the error says what is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        parse(text, |summary: &Self| summary.schema.as_str())
    }

    /// The action that ended it, like `kill`, without its value: the last one that was done.
    #[must_use]
    pub fn action(&self) -> Option<&str> {
        let done = |step: &&Step| step.outcome != StepOutcome::Failed;
        let last = self.verdict.as_ref()?.steps.iter().rfind(done)?;
        Some(last.action.split('=').next().unwrap_or_default())
    }

    /// Every cgroup in it.
    pub fn cgroups(&self) -> impl Iterator<Item = &str> {
        let of_processes = self.processes.iter().map(|process| process.cgroup.as_str());
        self.memcg.iter().map(|memcg| memcg.path.as_str()).chain(of_processes)
    }

    /// One line: the ID names time and program.
    #[must_use]
    pub fn line(&self, width: usize) -> String {
        let what = self.verdict.as_ref().map_or_else(|| self.headline(), |verdict| verdict.summary.clone());
        let line: Vec<char> = format!("{}  {what}", self.id).chars().map(printable).collect();
        if line.len() <= width {
            line.into_iter().collect()
        } else {
            line[..width - 1].iter().chain(['…'].iter()).collect()
        }
    }

    /// The same for a script.
    #[must_use]
    pub fn json(&self, dir: &Path) -> serde_json::Value {
        let mut pods: Vec<String> = self.cgroups().filter_map(pod).collect();
        pods.sort_unstable();
        pods.dedup();
        serde_json::json!({
            "id": self.id,
            "time_unix_us": self.time_unix_us,
            "trigger": self.trigger,
            "memcg": self.memcg.as_ref().map(|memcg| &memcg.path),
            "pods": pods,
            "limit_bytes": self.memcg.as_ref().and_then(|memcg| memcg.limit_bytes),
            "relieved": self.verdict.as_ref().map(|verdict| verdict.relieved),
            "action": self.action(),
            "verdict": self.verdict.as_ref().map(|verdict| &verdict.summary),
            "dir": dir,
        })
    }

    fn headline(&self) -> String {
        let biggest = self.processes.iter().max_by_key(|process| process.memory.pss_bytes);
        sentence(&Happened {
            trigger: self.trigger,
            victim: self.kernel_victims.first().map(|victim| (victim.comm.as_str(), victim.pid)),
            biggest: biggest.map(|process| (process.comm.as_str(), process.pid)),
            memcg: self.memcg.as_ref().map(|memcg| (memcg.path.as_str(), memcg.usage_bytes, memcg.limit_bytes)),
        })
    }
}

/// The pod that a cgroup belongs to.
pub fn pod(cgroup: &str) -> Option<String> {
    cgroup::labels(cgroup).pod_uid
}
