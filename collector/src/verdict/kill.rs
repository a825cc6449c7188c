//! Choosing whom to kill, and killing so that the memory is back.

use crate::hold::watchdog::{open_pidfd, signal_pidfd, wait_pidfd};
use crate::incident::model::{Candidate, Process};
use crate::snapshot::process::start_ticks;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

/// oom_score_adj that exempts a process (proc_pid_oom_score_adj(5)).
const EXEMPT: i32 = -1000;

/// Ranks the processes, the one to kill first in front: lowest priority, then
/// most memory over its reservation. Exempt and dead processes are left out.
#[must_use]
pub fn rank(processes: &[Process]) -> Vec<Candidate> {
    let mut candidates: Vec<Candidate> = processes
        .iter()
        .filter(|p| p.oom_score_adj != EXEMPT && !matches!(p.state, 'Z' | 'X'))
        .map(|p| Candidate {
            pid: p.pid,
            comm: p.comm.clone(),
            priority: -p.oom_score_adj,
            // File pages stay behind as cache; what a kill frees is the rest.
            size_bytes: p.memory.pss_anon_bytes + p.memory.pss_shmem_bytes + p.memory.swap_pss_bytes,
            reservation_bytes: 0,
        })
        .collect();
    candidates.sort_by_key(|c| {
        let over = c.size_bytes.saturating_sub(c.reservation_bytes);
        (c.priority, std::cmp::Reverse(over), c.pid)
    });
    candidates
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
        let ranked = rank(&[process(1, 0, 10), process(2, 0, 50), process(3, 500, 1), process(4, EXEMPT, 900), zombie]);
        assert_eq!(ranked.iter().map(|c| c.pid).collect::<Vec<_>>(), [3, 2, 1]);
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
