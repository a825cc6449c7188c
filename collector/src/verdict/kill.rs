//! Choosing whom to kill, and killing so that the memory is back.

use crate::cgroup::Memcg;
use crate::hold::watchdog::{open_pidfd, signal_pidfd, wait_pidfd};
use crate::incident::model::{Candidate, Process};
use crate::incident::units;
use crate::snapshot::process::start_ticks;
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
}

#[derive(Debug)]
struct Home {
    memcg: Memcg,
    pids: Vec<i32>,
    reservation_bytes: u64,
}

impl Homes {
    /// Reads them; one that vanishes meanwhile has no members.
    #[must_use]
    pub fn below(memcg: &Memcg) -> Self {
        let home = |memcg: Memcg| Home {
            pids: memcg.own_pids().unwrap_or_default(),
            reservation_bytes: memcg.reservation(),
            memcg,
        };
        Homes { homes: memcg.subtree().into_iter().map(home).collect() }
    }

    /// Part of its memcg's reservation that is `pid`'s, by size.
    fn reservation_of(&self, pid: i32, size: impl Fn(i32) -> u64) -> u64 {
        let Some(home) = self.homes.iter().find(|h| h.pids.contains(&pid)) else { return 0 };
        let total: u64 = home.pids.iter().map(|&p| size(p)).sum();
        let share = u128::from(home.reservation_bytes) * u128::from(size(pid)) / u128::from(total.max(1));
        u64::try_from(share).unwrap_or(u64::MAX)
    }

    /// The memcg that has to die whole if `pid` dies: the highest with
    /// `memory.oom.group`, as the kernel has it (mem_cgroup_get_oom_group). Not
    /// when one of its processes is exempt, or the guardian.
    #[must_use]
    pub fn job_of(&self, pid: i32, processes: &[Process]) -> Option<&Memcg> {
        let home = self.homes.iter().find(|h| h.pids.contains(&pid))?;
        // Parents come first.
        let job = self.homes.iter().find(|h| home.memcg.dir().starts_with(h.memcg.dir()) && h.memcg.is_one_job())?;
        if job.memcg.has_us() {
            return None;
        }
        let members = job.memcg.pids().ok()?;
        let exempt = |p: &Process| p.oom_score_adj == EXEMPT && members.contains(&p.pid);
        (!processes.iter().any(exempt)).then_some(&job.memcg)
    }
}

/// Ranks the processes, the one to kill first in front: lowest priority, then
/// most memory over its reservation. Exempt and dead processes are left out.
#[must_use]
pub fn rank(processes: &[Process], homes: &Homes) -> Vec<Candidate> {
    // File pages stay behind as cache; what a kill frees is the rest.
    let size_of = |p: &Process| p.memory.pss_anon_bytes + p.memory.pss_shmem_bytes + p.memory.swap_pss_bytes;
    let size = |pid: i32| processes.iter().find(|p| p.pid == pid).map_or(0, size_of);
    let mut candidates: Vec<Candidate> = processes
        .iter()
        .filter(|p| p.oom_score_adj != EXEMPT && !matches!(p.state, 'Z' | 'X'))
        .map(|p| Candidate {
            pid: p.pid,
            comm: p.comm.clone(),
            priority: -p.oom_score_adj,
            size_bytes: size_of(p),
            reservation_bytes: homes.reservation_of(p.pid, size),
        })
        .collect();
    candidates.sort_by_key(|c| {
        let over = c.size_bytes.saturating_sub(c.reservation_bytes);
        (c.priority, std::cmp::Reverse(over), std::cmp::Reverse(c.size_bytes), c.pid)
    });
    candidates
}

/// Why the first of them is the one.
#[must_use]
pub fn reason(candidates: &[Candidate]) -> String {
    let Some(first) = candidates.first() else { return "no process may be killed".to_owned() };
    let reserved = match first.reservation_bytes {
        0 => String::new(),
        bytes => format!(", {} of it reserved", units::bytes(bytes)),
    };
    format!(
        "{} [{}] is first of {}: priority {}, {} that a kill frees{reserved}",
        first.comm,
        first.pid,
        units::count(candidates.len() as u64, "candidate"),
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
    use super::*;
    use crate::cgroup::{Hierarchy, Version};
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
        assert_eq!(ranked.iter().map(|c| c.pid).collect::<Vec<_>>(), [3, 2, 1]);
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
        let ranked = rank(&all, &Homes::below(&held));
        // 60 of 80 MiB hold 30 of the 40 reserved.
        let found: Vec<_> = ranked.iter().map(|c| (c.pid, c.reservation_bytes >> 20)).collect();
        assert_eq!(found, [(1, 30), (3, 0), (2, 10)]);
    }

    #[test]
    fn a_job_dies_whole_unless_one_of_it_is_exempt() {
        let root = tempfile::tempdir().unwrap();
        let job = [("cgroup.procs", "1\n"), ("memory.oom.group", "1\n")];
        memcg(&root.path().join("job"), &job);
        memcg(&root.path().join("job/part"), &[("cgroup.procs", "2\n")]);
        let held = memcg(root.path(), &[("cgroup.procs", "3\n"), ("memory.oom.group", "0\n")]);
        let homes = Homes::below(&held);
        let job = |processes: &[Process], pid| homes.job_of(pid, processes).map(|m| m.path().to_owned());
        let all = [process(1, 0, 1), process(2, 0, 1), process(3, 0, 1)];
        assert_eq!(job(&all, 2).as_deref(), Some("/job"));
        assert_eq!(job(&all, 3), None);
        assert_eq!(job(&[process(1, EXEMPT, 1), process(2, 0, 1)], 2), None);
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
