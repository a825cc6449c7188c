//! Jobs of a machine, and which of them has to go.

use crate::cgroup::Memcg;
use crate::incident::model::Candidate;
use std::cmp::Reverse;
use std::os::unix::ffi::OsStrExt;

/// Extended attribute of a job's cgroup: a number, the larger the more important.
pub const PRIORITY: &str = "user.reprieve.priority";

/// A memcg that lives or dies as one.
#[derive(Debug, Clone)]
pub struct Job {
    /// Where it is.
    pub memcg: Memcg,
    /// What its owner says it is worth; 0 without a word.
    pub priority: i32,
    /// What it uses.
    pub size_bytes: u64,
    /// What it may keep when memory is short.
    pub reservation_bytes: u64,
}

impl Job {
    fn over(&self) -> u64 {
        self.size_bytes.saturating_sub(self.reservation_bytes)
    }

    /// For the incident: a job is no process, so it has no PID.
    #[must_use]
    pub fn candidate(&self) -> Candidate {
        Candidate {
            pid: 0,
            comm: self.memcg.path().to_owned(),
            priority: self.priority,
            size_bytes: self.size_bytes,
            reservation_bytes: self.reservation_bytes,
        }
    }
}

/// The jobs of a machine: memcgs `depth` levels below the root, and leaves above
/// that. Empty ones and the guardian's own are left out.
#[must_use]
pub fn list(root: &Memcg, depth: usize) -> Vec<Job> {
    let level = |memcg: &Memcg| memcg.path().split('/').filter(|part| !part.is_empty()).count();
    let all = root.subtree();
    let is_leaf = |memcg: &Memcg| !all.iter().any(|m| m.dir() != memcg.dir() && m.dir().starts_with(memcg.dir()));
    let is_job = |memcg: &&Memcg| level(memcg) == depth || (0 < level(memcg) && level(memcg) < depth && is_leaf(memcg));
    let jobs = all.iter().filter(is_job).filter(|memcg| !memcg.has_us());
    jobs.map(|memcg| Job {
        priority: priority(memcg),
        size_bytes: memcg.usage().unwrap_or(0),
        reservation_bytes: memcg.reservation(),
        memcg: memcg.clone(),
    })
    .filter(|job| job.size_bytes > 0)
    .collect()
}

/// The one to go first in front: those over their reservation before all others, then
/// the lowest priority, then whoever is over by most.
pub fn rank(jobs: &mut [Job]) {
    jobs.sort_by_key(|job| (job.over() == 0, job.priority, Reverse(job.over()), Reverse(job.size_bytes)));
}

/// The biggest first.
#[must_use]
pub fn biggest(jobs: &[Job], count: usize) -> Vec<Job> {
    let mut jobs = jobs.to_vec();
    jobs.sort_by_key(|job| Reverse(job.size_bytes));
    jobs.truncate(count);
    jobs
}

fn priority(memcg: &Memcg) -> i32 {
    let path = std::ffi::CString::new(memcg.dir().as_os_str().as_bytes()).unwrap_or_default();
    let name = std::ffi::CString::new(PRIORITY).unwrap_or_default();
    let mut value = [0u8; 16];
    // SAFETY: both strings end with a NUL and live through the call; the kernel writes
    // at most as many bytes as it is told there are.
    let length = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    let text = usize::try_from(length).ok().and_then(|length| std::str::from_utf8(value.get(..length)?).ok());
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::{Hierarchy, Version};

    fn job(name: &str, priority: i32, size_bytes: u64, reservation_bytes: u64) -> Job {
        let hierarchy = Hierarchy { version: Version::V2, mount: "/nowhere".into(), own: "/".to_owned() };
        Job { memcg: Memcg::at(&hierarchy, name), priority, size_bytes, reservation_bytes }
    }

    fn ranked(mut jobs: Vec<Job>) -> Vec<String> {
        rank(&mut jobs);
        jobs.iter().map(|job| job.memcg.path().to_owned()).collect()
    }

    #[test]
    fn the_lowest_priority_over_its_reservation_goes_first() {
        let jobs =
            vec![job("/kept", -5, 50, 60), job("/big", 1, 90, 0), job("/low", -1, 20, 10), job("/more", -1, 30, 10)];
        assert_eq!(ranked(jobs), ["/more", "/low", "/big", "/kept"]);
    }

    #[test]
    fn within_their_reservation_only_when_nobody_is_over() {
        assert_eq!(ranked(vec![job("/a", 2, 10, 20), job("/b", 1, 10, 20)]), ["/b", "/a"]);
    }
}
