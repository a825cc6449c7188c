//! Choosing whom to kill, and killing so that the memory is back.

use super::worth::{Worths, order};
use crate::cgroup::Memcg;
use crate::hold::watchdog::{open_pidfd, signal_pidfd, wait_pidfd};
use crate::incident::model::{Candidate, Incident, Process};
use crate::incident::units;
use crate::snapshot::process::{Stat, start_ticks};
use nix::sys::signal::Signal;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

/// oom_score_adj that exempts a process (proc_pid_oom_score_adj(5)).
const EXEMPT: i32 = -1000;

/// The memcgs below the held one, with their members.
#[derive(Debug, Default)]
pub struct Homes {
    homes: Vec<Home>,
    jobs: Vec<Job>,
}

#[derive(Debug)]
struct Home {
    memcg: Memcg,
    pids: Vec<i32>,
    reservation_bytes: u64,
}

/// A memcg that lives or dies as one, since somebody has said what it is worth.
#[derive(Debug)]
struct Job {
    memcg: Memcg,
    pids: Vec<i32>,
    priority: i32,
    size_bytes: u64,
    reservation_bytes: u64,
    has_us: bool,
}

/// Whom to kill.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// A process, or a job.
    pub candidate: Candidate,
    /// The job's memcg, all of which has to die.
    pub job: Option<Memcg>,
}

impl Homes {
    /// Reads them; one that vanishes meanwhile has no members.
    #[must_use]
    pub fn below(memcg: &Memcg, worths: &Worths) -> Self {
        let home = |memcg: &Memcg| Home {
            pids: memcg.own_pids().unwrap_or_default(),
            reservation_bytes: memcg.reservation(),
            memcg: memcg.clone(),
        };
        let all = memcg.subtree();
        let homes: Vec<Home> = all.iter().map(home).collect();
        let job = |memcg: &Memcg| {
            let members = homes.iter().filter(|home| is_in(&home.memcg, memcg));
            Job {
                pids: members.flat_map(|home| home.pids.iter().copied()).collect(),
                priority: worths.priority(memcg).unwrap_or(0),
                size_bytes: memcg.usage().unwrap_or(0),
                reservation_bytes: worths.reservation(memcg),
                has_us: memcg.has_us(),
                memcg: memcg.clone(),
            }
        };
        let jobs = jobs(&all, worths).into_iter().map(job).collect();
        Homes { homes, jobs }
    }

    fn job_of(&self, pid: i32) -> Option<&Job> {
        self.jobs.iter().find(|job| job.pids.contains(&pid))
    }

    /// Part of its job's, or else its memcg's, reservation that is `pid`'s, by size.
    fn reservation_of(&self, pid: i32, size: impl Fn(i32) -> u64) -> u64 {
        let job = self.job_of(pid).map(|job| (&job.pids, job.reservation_bytes));
        let home = || self.homes.iter().find(|h| h.pids.contains(&pid)).map(|h| (&h.pids, h.reservation_bytes));
        let Some((pids, reservation_bytes)) = job.or_else(home) else { return 0 };
        let total: u64 = pids.iter().map(|&p| size(p)).sum();
        let share = u128::from(reservation_bytes) * u128::from(size(pid)) / u128::from(total.max(1));
        u64::try_from(share).unwrap_or(u64::MAX)
    }

    /// The memcg that has to die whole if `pid` dies: the highest with
    /// `memory.oom.group`, as the kernel has it (mem_cgroup_get_oom_group). Not
    /// when one of its processes is exempt, or the guardian.
    #[must_use]
    pub fn group_of(&self, pid: i32, processes: &[Process]) -> Option<&Memcg> {
        let home = self.homes.iter().find(|h| h.pids.contains(&pid))?;
        // Parents come first.
        let group = self.homes.iter().find(|h| is_in(&home.memcg, &h.memcg) && h.memcg.is_one_job())?;
        if group.memcg.has_us() {
            return None;
        }
        let members = group.memcg.pids().ok()?;
        let exempt = |p: &Process| p.oom_score_adj == EXEMPT && members.contains(&p.pid);
        (!processes.iter().any(exempt)).then_some(&group.memcg)
    }
}

/// Whether it is the other, or below it.
fn is_in(memcg: &Memcg, other: &Memcg) -> bool {
    memcg.dir().starts_with(other.dir())
}

/// The memcgs below the first of `all`, its subtree, that are jobs: those that somebody has
/// said so of, but not below each other; and those beside them, since whoever ranks some
/// children of a memcg ranks the others, too.
fn jobs<'a>(all: &'a [Memcg], worths: &Worths) -> Vec<&'a Memcg> {
    let said: Vec<&Memcg> = all.iter().skip(1).filter(|memcg| worths.is_job(memcg)).collect();
    let mut jobs: Vec<&Memcg> = Vec::new();
    // Parents come first.
    for memcg in all.iter().skip(1) {
        let leads_to_one = said.iter().any(|one| is_in(one, memcg) && one.dir() != memcg.dir());
        let is_said = said.iter().any(|one| one.dir() == memcg.dir());
        let is_inside = jobs.iter().any(|job| is_in(memcg, job));
        let is_beside = said.iter().any(|one| memcg.dir().parent().is_some_and(|parent| one.dir().starts_with(parent)));
        if !is_inside && (is_said || (is_beside && !leads_to_one)) {
            jobs.push(memcg);
        }
    }
    jobs
}

/// Ranks whom to kill, first to go in front: by what [`order`] says. Of a job that has
/// somebody exempt, or us, its other processes are ranked, with the job's priority.
/// Exempt and dead processes are left out.
#[must_use]
pub fn rank(processes: &[Process], homes: &Homes) -> Vec<Target> {
    // File pages stay behind as cache; what a kill frees is the rest.
    let size_of = |p: &Process| p.memory.pss_anon_bytes + p.memory.pss_shmem_bytes + p.memory.swap_pss_bytes;
    let size = |pid: i32| processes.iter().find(|p| p.pid == pid).map_or(0, size_of);
    let is_exempt = |p: &Process| p.oom_score_adj == EXEMPT;
    let may_die = |p: &&Process| !is_exempt(p) && !matches!(p.state, 'Z' | 'X');
    let dies_whole = |job: &&Job| {
        let has_exempt = processes.iter().any(|p| is_exempt(p) && job.pids.contains(&p.pid));
        !has_exempt && !job.has_us && processes.iter().any(|p| may_die(&p) && job.pids.contains(&p.pid))
    };
    let job = |job: &Job| Target {
        candidate: Candidate {
            pid: 0,
            comm: job.memcg.path().to_owned(),
            priority: job.priority,
            size_bytes: job.size_bytes,
            reservation_bytes: job.reservation_bytes,
        },
        job: Some(job.memcg.clone()),
    };
    let process = |p: &Process| Target {
        candidate: Candidate {
            pid: p.pid,
            comm: p.comm.clone(),
            priority: homes.job_of(p.pid).map_or(-p.oom_score_adj, |job| job.priority),
            size_bytes: size_of(p),
            reservation_bytes: homes.reservation_of(p.pid, size),
        },
        job: None,
    };
    let whole: Vec<&Job> = homes.jobs.iter().filter(dies_whole).collect();
    let alone = processes.iter().filter(may_die).filter(|p| !whole.iter().any(|job| job.pids.contains(&p.pid)));
    let mut targets: Vec<Target> = whole.iter().map(|one| job(one)).chain(alone.map(process)).collect();
    targets.sort_by_key(|Target { candidate: c, .. }| (order(c.priority, c.size_bytes, c.reservation_bytes), c.pid));
    targets
}

/// The same of who can be killed in a memcg, to be recorded.
#[must_use]
pub fn candidates(processes: &[Process], memcg: &Memcg, worths: &Worths) -> Vec<Candidate> {
    rank(processes, &Homes::below(memcg, worths)).into_iter().map(|target| target.candidate).collect()
}

/// Those that were recorded, as a configuration would have ranked them: what it says of a
/// job goes before what was so then. Which cgroups were jobs is as it was; of an incident
/// without such a record all processes are ranked, and no jobs.
#[must_use]
pub fn ranked_again(incident: &Incident, worths: &Worths) -> Vec<Candidate> {
    if incident.candidates.is_empty() {
        return rank(&incident.processes, &Homes::default()).into_iter().map(|target| target.candidate).collect();
    }
    let mut candidates = incident.candidates.clone();
    for job in candidates.iter_mut().filter(|candidate| candidate.pid == 0) {
        job.priority = worths.configured_priority(&job.comm).unwrap_or(job.priority);
        job.reservation_bytes = worths.configured_reservation(&job.comm).unwrap_or(job.reservation_bytes);
    }
    candidates.sort_by_key(|c| (order(c.priority, c.size_bytes, c.reservation_bytes), c.pid));
    candidates
}

/// Why the first of them is the one.
#[must_use]
pub fn reason(targets: &[Target]) -> String {
    let Some(Target { candidate: first, job }) = targets.first() else {
        return "no process may be killed".to_owned();
    };
    let reserved = match first.reservation_bytes {
        0 => String::new(),
        bytes => format!(", {} of it reserved", units::bytes(bytes.min(first.size_bytes))),
    };
    let (name, what) = match job {
        Some(job) => (format!("job {}", job.path()), "in use"),
        None => (format!("{} [{}]", first.comm, first.pid), "that a kill frees"),
    };
    format!(
        "{name} is first of {}: priority {}, {} {what}{reserved}",
        units::count(targets.len() as u64, "candidate"),
        first.priority,
        units::bytes(first.size_bytes),
    )
}

/// Sends SIGKILL to a process that was seen with this start time, and has the
/// kernel free its memory even while it hangs.
pub fn send(pid: i32, ticks: u64) -> io::Result<()> {
    let pidfd = open_same(pid, ticks)?;
    signal_pidfd(&pidfd, libc::SIGKILL)?;
    // process_mrelease(2): since 5.15; EINVAL or ESRCH when the exit is faster.
    // SAFETY: no pointers; the descriptor is open.
    unsafe { libc::syscall(libc::SYS_process_mrelease, pidfd.as_raw_fd(), 0) };
    Ok(())
}

/// Sends a signal to a process that was seen with this start time.
pub fn signal(pid: i32, ticks: u64, signal: Signal) -> io::Result<()> {
    signal_pidfd(&open_same(pid, ticks)?, signal as i32)
}

/// Whether the process that was seen with this start time has ended.
pub fn has_ended(pid: i32, ticks: u64) -> bool {
    let stat = Stat::read(&format!("/proc/{pid}/stat"));
    stat.is_none_or(|stat| matches!(stat.state, 'Z' | 'X') || stat.start_ticks != ticks)
}

/// Waits until a killed process has ended.
pub fn wait(pid: i32, ticks: u64, at_most: Duration) -> io::Result<()> {
    match open_same(pid, ticks) {
        Ok(pidfd) if !wait_pidfd(&pidfd, at_most) => {
            Err(io::Error::new(io::ErrorKind::TimedOut, "killed, but it has not ended yet"))
        }
        // Not there any more: that is what we wait for.
        _ => Ok(()),
    }
}

/// A handle on the process with this PID and start time.
fn open_same(pid: i32, ticks: u64) -> io::Result<OwnedFd> {
    let pidfd = open_pidfd(pid)?;
    if start_ticks(pid) == Some(ticks) {
        Ok(pidfd)
    } else {
        Err(io::Error::new(io::ErrorKind::NotFound, "the process ended by itself; its PID is another's now"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::worth::Said;
    use super::*;
    use crate::cgroup::{Hierarchy, Version, Which};
    use crate::incident::model::ProcessMemory;

    fn process(pid: i32, adj: i32, mib: u64) -> Process {
        Process {
            pid,
            oom_score_adj: adj,
            state: 'S',
            memory: ProcessMemory { pss_anon_bytes: mib << 20, pss_file_bytes: 1 << 30, ..Default::default() },
            ..Process::default()
        }
    }

    #[test]
    fn least_important_then_biggest() {
        let mut zombie = process(5, 900, 999);
        zombie.state = 'Z';
        let all = [process(1, 0, 10), process(2, 0, 50), process(3, 500, 1), process(4, EXEMPT, 900), zombie];
        let ranked = rank(&all, &Homes::default());
        assert_eq!(ranked.iter().map(|t| t.candidate.pid).collect::<Vec<_>>(), [3, 2, 1]);
    }

    #[test]
    fn recorded_jobs_are_ranked_by_what_is_said_of_them_now() {
        let mut incident: Incident =
            serde_json::from_str(include_str!("../../../fixtures/incidents/sort.json")).unwrap();
        let none = Worths::default();
        let first = |incident: &Incident, worths: &Worths| ranked_again(incident, worths).swap_remove(0);
        assert_eq!(first(&incident, &none).comm, "sort", "older incidents have processes only");
        let one = |pid, comm: &str, priority, mib: u64, reservation_bytes| Candidate {
            pid,
            comm: comm.to_owned(),
            priority,
            size_bytes: mib << 20,
            reservation_bytes,
        };
        incident.candidates = vec![one(0, "/a", -5, 10, 0), one(7, "sort", 0, 90, 0), one(0, "/b", 3, 20, 0)];
        assert_eq!(first(&incident, &none).comm, "/a");
        let said = |path: &str, priority, reservation_bytes| Said {
            matches: Some(Which::at(path).unwrap()),
            priority,
            reservation_bytes,
        };
        assert_eq!(first(&incident, &Worths(vec![said("/b", Some(-6), None)])).comm, "/b");
        assert_eq!(first(&incident, &Worths(vec![said("/a", None, Some(10 << 20))])).comm, "sort");
        // What is said of a cgroup is not said of a process of that name.
        assert_eq!(first(&incident, &Worths(vec![said("/sort", Some(-9), None)])).comm, "/a");
    }

    /// A memcg of version 2 made of ordinary files.
    fn memcg(dir: &std::path::Path, files: &[(&str, &str)]) -> Memcg {
        std::fs::create_dir_all(dir).unwrap();
        for (name, content) in files {
            std::fs::write(dir.join(name), content).unwrap();
        }
        let hierarchy = Hierarchy { version: Version::V2, mount: dir.to_owned(), own: "/".to_owned() };
        Memcg::at(&hierarchy, "/")
    }

    #[test]
    fn a_reservation_protects_its_share() {
        let root = tempfile::tempdir().unwrap();
        let files = [("cgroup.procs", "1\n2\n"), ("memory.low", "41943040"), ("memory.min", "0")];
        memcg(&root.path().join("kept"), &files);
        let held = memcg(root.path(), &[("cgroup.procs", "3\n")]);
        let all = [process(1, 0, 60), process(2, 0, 20), process(3, 0, 25)];
        let ranked = rank(&all, &Homes::below(&held, &Worths::default()));
        // 60 of 80 MiB hold 30 of the 40 reserved.
        let found: Vec<_> = ranked.iter().map(|t| (t.candidate.pid, t.candidate.reservation_bytes >> 20)).collect();
        assert_eq!(found, [(1, 30), (3, 0), (2, 10)]);
    }

    #[test]
    fn a_group_dies_whole_unless_one_of_it_is_exempt() {
        let root = tempfile::tempdir().unwrap();
        let job = [("cgroup.procs", "1\n"), ("memory.oom.group", "1\n")];
        memcg(&root.path().join("job"), &job);
        memcg(&root.path().join("job/part"), &[("cgroup.procs", "2\n")]);
        let held = memcg(root.path(), &[("cgroup.procs", "3\n"), ("memory.oom.group", "0\n")]);
        let homes = Homes::below(&held, &Worths::default());
        let job = |processes: &[Process], pid| homes.group_of(pid, processes).map(|m| m.path().to_owned());
        let all = [process(1, 0, 1), process(2, 0, 1), process(3, 0, 1)];
        assert_eq!(job(&all, 2).as_deref(), Some("/job"));
        assert_eq!(job(&all, 3), None);
        assert_eq!(job(&[process(1, EXEMPT, 1), process(2, 0, 1)], 2), None);
    }

    /// What is configured of one path.
    fn said(path: &str, priority: i32, reservation_bytes: Option<u64>) -> Said {
        Said { matches: Some(Which::at(path).unwrap()), priority: Some(priority), reservation_bytes }
    }

    fn job_dir(dir: &std::path::Path, pids: &str, mib: u64) {
        memcg(dir, &[("cgroup.procs", pids), ("memory.current", &(mib << 20).to_string())]);
    }

    #[test]
    fn jobs_are_those_with_a_word_and_those_beside_them() {
        let root = tempfile::tempdir().unwrap();
        for dir in ["a", "a/inner", "group", "group/b", "group/c", "other", "other/deep"] {
            std::fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        let held = memcg(root.path(), &[]);
        let told = |worths: &[&str]| {
            let worths = Worths(worths.iter().map(|path| said(path, 1, None)).collect());
            let all = held.subtree();
            let mut paths: Vec<String> = jobs(&all, &worths).into_iter().map(|m| m.path().to_owned()).collect();
            paths.sort();
            paths
        };
        assert_eq!(told(&[]), [""; 0]);
        assert_eq!(told(&["/a", "/a/inner"]), ["/a", "/group", "/other"]);
        assert_eq!(told(&["/group/b"]), ["/a", "/group/b", "/group/c", "/other"]);
        assert_eq!(told(&["/elsewhere"]), [""; 0]);
    }

    #[test]
    fn jobs_are_ranked_whole_and_exempt_ones_by_their_processes() {
        let root = tempfile::tempdir().unwrap();
        job_dir(&root.path().join("low"), "1\n2\n", 30);
        job_dir(&root.path().join("kept"), "3\n", 40);
        job_dir(&root.path().join("exempt"), "4\n5\n", 90);
        job_dir(&root.path().join("empty"), "", 90);
        let held = memcg(root.path(), &[("cgroup.procs", "6\n")]);
        let worths =
            Worths(vec![said("/low", -1, None), said("/kept", -9, Some(50 << 20)), said("/exempt", -2, Some(1 << 20))]);
        let all = [
            process(1, 0, 10),
            process(2, 0, 20),
            process(3, 0, 40),
            process(4, EXEMPT, 60),
            process(5, 0, 30),
            process(6, 2, 5),
        ];
        let targets = rank(&all, &Homes::below(&held, &worths));
        let told: Vec<_> =
            targets.iter().map(|t| (t.candidate.pid, t.candidate.priority, &*t.candidate.comm)).collect();
        assert_eq!(told, [(5, -2, ""), (6, -2, ""), (0, -1, "/low"), (0, -9, "/kept")]);
        assert_eq!(targets[2].job.as_ref().map(Memcg::path), Some("/low"));
        assert!(targets[0].job.is_none());
        assert_eq!(reason(&targets[2..]), "job /low is first of 2 candidates: priority -1, 30.0 MiB in use");
    }

    #[test]
    fn a_reused_pid_is_not_killed() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        let ticks = start_ticks(pid).unwrap();
        assert!(send(pid, ticks + 1).is_err());
        assert!(child.try_wait().unwrap().is_none(), "must still live");
        send(pid, ticks).unwrap();
        wait(pid, ticks, Duration::from_secs(5)).unwrap();
        assert!(!child.wait().unwrap().success());
    }
}
