//! Which incidents a list is about.

use super::model::Trigger;
use super::store::time_of;
use super::summary::{Summary, pod};
use std::time::Duration;

/// How much later than its incident a folder may have got its name.
const NAMED_WITHIN: Duration = Duration::from_secs(86_400);

/// Every kind of condition that is given must hold; of several of one kind, one.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Microseconds since 1970, the first that counts.
    pub since_us: Option<u64>,
    /// The last that counts.
    pub until_us: Option<u64>,
    /// Consecutive parts of a cgroup's path, like `system.slice/nginx.service`.
    pub cgroups: Vec<String>,
    /// Beginnings of pods' UIDs.
    pub pods: Vec<String>,
    /// Beginnings of containers' IDs.
    pub containers: Vec<String>,
    /// What made us write it.
    pub triggers: Vec<Trigger>,
    /// What came of it.
    pub verdicts: Vec<Outcome>,
    /// PIDs, names, programs (with a `/`) of processes, or parts of IDs.
    pub matches: Vec<String>,
}

/// What came of an incident.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The memcg was well afterwards.
    Relieved,
    /// It was not.
    NotRelieved,
    /// Nothing was decided: a snapshot, or the kernel was first.
    None,
    /// The last action that was done.
    Action(String),
}

impl Filter {
    /// Whether there is any condition.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Filter { since_us, until_us, cgroups, pods, containers, triggers, verdicts, matches } = self;
        since_us.is_none()
            && until_us.is_none()
            && [cgroups, pods, containers, matches].iter().all(|list| list.is_empty())
            && triggers.is_empty()
            && verdicts.is_empty()
    }

    /// Whether a folder's name leaves it open that its incident fits: those named for
    /// another day need not be read.
    #[must_use]
    pub fn may_fit(&self, id: &str) -> bool {
        let within_us = NAMED_WITHIN.as_micros() as u64;
        let Some(named_us) = time_of(id) else { return true };
        self.since_us.is_none_or(|since| named_us >= since.saturating_sub(within_us))
            && self.until_us.is_none_or(|until| named_us <= until.saturating_add(within_us))
    }

    /// Whether an incident fits.
    #[must_use]
    pub fn fits(&self, incident: &Summary) -> bool {
        let any = |wanted: &[String], fits: &dyn Fn(&str) -> bool| wanted.is_empty() || wanted.iter().any(|w| fits(w));
        let has_cgroup = |wanted: &str| {
            let wanted = format!("/{}/", wanted.trim_matches('/'));
            incident.cgroups().any(|cgroup| format!("/{}/", cgroup.trim_matches('/')).contains(&wanted))
        };
        let has_pod = |wanted: &str| {
            let wanted = wanted.replace('_', "-");
            incident.cgroups().filter_map(pod).any(|uid| uid.starts_with(&wanted))
        };
        let has_container = |wanted: &str| {
            incident
                .processes
                .iter()
                .filter_map(|process| process.container_id.as_ref())
                .any(|id| id.starts_with(wanted))
        };
        self.since_us.is_none_or(|since| incident.time_unix_us >= since)
            && self.until_us.is_none_or(|until| incident.time_unix_us <= until)
            && any(&self.cgroups, &has_cgroup)
            && any(&self.pods, &has_pod)
            && any(&self.containers, &has_container)
            && any(&self.matches, &|wanted| has(incident, wanted))
            && (self.triggers.is_empty() || self.triggers.contains(&incident.trigger))
            && (self.verdicts.is_empty() || self.verdicts.iter().any(|outcome| came_of(incident, outcome)))
    }
}

/// As coredumpctl(1) takes a match: by PID, by name, by program if there is a `/`; and by
/// the ID, as `show` does.
fn has(incident: &Summary, wanted: &str) -> bool {
    let victims = incident.kernel_victims.iter().map(|victim| (victim.pid, victim.comm.as_str()));
    let seen = incident.processes.iter().map(|process| (process.pid, process.comm.as_str()));
    let is_program = |exe: &String| exe.strip_suffix(" (deleted)").unwrap_or(exe) == wanted;
    seen.chain(victims).any(|(pid, comm)| comm == wanted || wanted.parse() == Ok(pid))
        || incident.processes.iter().filter_map(|process| process.exe.as_ref()).any(is_program)
        || incident.id.starts_with(wanted)
        || incident.id.ends_with(wanted)
}

fn came_of(incident: &Summary, outcome: &Outcome) -> bool {
    let relieved = incident.verdict.as_ref().map(|verdict| verdict.relieved);
    match outcome {
        Outcome::Relieved => relieved == Some(true),
        Outcome::NotRelieved => relieved == Some(false),
        Outcome::None => relieved.is_none(),
        Outcome::Action(action) => incident.action() == Some(action),
    }
}
