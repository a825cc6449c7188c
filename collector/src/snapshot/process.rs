//! Identity of a process from `/proc/PID` (proc(5)).

use crate::cgroup;
use crate::incident::model::{Labels, Process};
use std::fs;
use std::os::unix::fs::MetadataExt;

/// Start time in clock ticks since boot; `None` when there is no such
/// process. With the PID it names a process for ever.
#[must_use]
pub fn start_ticks(pid: i32) -> Option<u64> {
    Stat::read(&format!("/proc/{pid}/stat")).map(|stat| stat.start_ticks)
}

/// The fields we use of proc_pid_stat(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// State letter (field 3).
    pub state: char,
    /// Parent (field 4).
    pub ppid: i32,
    /// User plus system time in clock ticks (fields 14 and 15).
    pub cpu_ticks: u64,
    /// Minor plus major faults (fields 10 and 12).
    pub faults: u64,
    /// Start in clock ticks since boot (field 22).
    pub start_ticks: u64,
}

impl Stat {
    /// Reads a stat file of a process or a thread.
    #[must_use]
    pub fn read(path: &str) -> Option<Self> {
        Self::parse(&fs::read_to_string(path).ok()?)
    }

    /// The same of a stat file's text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        // comm (field 2) may hold spaces and parentheses: cut at the last one.
        let fields: Vec<&str> = text.get(text.rfind(')')? + 2..)?.split_ascii_whitespace().collect();
        // `fields[0]` is field 3.
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Stat {
            state: fields.first()?.chars().next()?,
            ppid: fields.get(1)?.parse().ok()?,
            cpu_ticks: number(14)?.checked_add(number(15)?)?,
            faults: number(10)?.checked_add(number(12)?)?,
            start_ticks: number(22)?,
        })
    }
}

/// Anonymous memory of a process that is present, in bytes, to within some pages of
/// each thread.
#[must_use]
pub fn anonymous_bytes(pid: i32) -> Option<u64> {
    let (resident, shared) = resident_and_shared(pid)?;
    Some(resident.saturating_sub(shared) * super::page_size())
}

/// All of it that is present, shared pages in full.
#[must_use]
pub fn resident_bytes(pid: i32) -> Option<u64> {
    resident_and_shared(pid).map(|(resident, _)| resident * super::page_size())
}

/// Pages of a process (proc_pid_statm(5)).
fn resident_and_shared(pid: i32) -> Option<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let mut pages = text.split_ascii_whitespace().skip(1).map(|field| field.parse::<u64>().ok());
    Some((pages.next()??, pages.next()??))
}

/// Reads who a process is; `None` when it is gone. What could not be read is
/// told in `gaps`.
#[must_use]
pub fn identify(pid: i32, with_cmdline: bool) -> Option<Process> {
    let stat = Stat::read(&format!("/proc/{pid}/stat"))?;
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
    let mut gaps = Vec::new();
    let exe = match fs::read_link(format!("/proc/{pid}/exe")) {
        Ok(path) => Some(path.to_string_lossy().into_owned()),
        // A zombie or a kernel thread has none.
        Err(_) if stat.state == 'Z' => None,
        Err(error) => {
            gaps.push(format!("exe: {error}"));
            None
        }
    };
    let cgroup = read("cgroup").map(|text| memory_cgroup(&text)).unwrap_or_default();
    let Labels { container_runtime, container_id, pod_uid } = cgroup::labels(&cgroup);
    Some(Process {
        pid,
        ppid: stat.ppid,
        comm: read("comm").map(|c| c.trim_end_matches('\n').to_owned()).unwrap_or_default(),
        exe,
        cmdline: with_cmdline
            .then(|| read("cmdline").unwrap_or_default().split_terminator('\0').map(str::to_owned).collect()),
        uid: fs::metadata(format!("/proc/{pid}")).map(|m| m.uid()).unwrap_or_default(),
        start_ticks: stat.start_ticks,
        age_s: age_seconds(stat.start_ticks),
        container_id,
        container_runtime,
        pod_uid,
        cgroup,
        foreign_namespaces: foreign_namespaces(pid),
        state: stat.state,
        oom_score_adj: read("oom_score_adj").ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0),
        gaps,
        ..Process::default()
    })
}

fn age_seconds(start_ticks: u64) -> f64 {
    let uptime: f64 =
        fs::read_to_string("/proc/uptime").ok().and_then(|text| text.split(' ').next()?.parse().ok()).unwrap_or(0.0);
    // USER_HZ is 100 on every architecture we run on (include/uapi/asm-generic/param.h).
    (uptime - start_ticks as f64 / 100.0).max(0.0)
}

/// The memory controller's path in `/proc/PID/cgroup`, or the unified one.
#[must_use]
pub fn memory_cgroup(text: &str) -> String {
    let mut unified = "";
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        if controllers.split(',').any(|c| c == "memory") {
            return path.to_owned();
        }
        if controllers.is_empty() {
            unified = path;
        }
    }
    unified.to_owned()
}

/// Namespaces of `pid` that are not ours.
fn foreign_namespaces(pid: i32) -> Vec<String> {
    ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"]
        .iter()
        .filter_map(|kind| {
            let theirs = fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()?;
            let ours = fs::read_link(format!("/proc/self/ns/{kind}")).ok()?;
            (theirs != ours).then(|| theirs.to_string_lossy().into_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_a_hostile_name() {
        let text = "42 (a) b (c) S 7 42 42 0 -1 4194560 10 0 3 0 5 6 0 0 20 0 1 0 12345 1 1";
        let stat = Stat::parse(text).unwrap();
        assert_eq!(stat, Stat { state: 'S', ppid: 7, cpu_ticks: 11, faults: 13, start_ticks: 12345 });
        assert_eq!(Stat::parse(&text.replace(" 5 6 ", " 18446744073709551615 6 ")), None);
        for end in 0..text.len() {
            assert!(Stat::parse(&text[..end]).is_none_or(|cut| cut.ppid == 7), "{end}");
        }
    }

    #[test]
    fn cgroup_of_either_version() {
        assert_eq!(memory_cgroup("5:memory:/a\n0::/b\n"), "/a");
        assert_eq!(memory_cgroup("0::/user.slice\n"), "/user.slice");
    }

    #[test]
    fn self_is_identified() {
        let me = identify(std::process::id() as i32, true).unwrap();
        assert_eq!(me.ppid, std::os::unix::process::parent_id() as i32);
        assert!(me.exe.unwrap().contains("reprieve"));
        assert!(!me.cmdline.unwrap().is_empty());
        assert_eq!(start_ticks(me.pid), Some(me.start_ticks));
        assert!(identify(i32::MAX, false).is_none());
    }
}
