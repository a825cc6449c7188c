//! Whom the kernel killed, as its log says.

use crate::incident::model::KernelVictim;
use crate::size::from_kb;
use nix::poll::{PollFd, PollFlags};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// The longest record that /dev/kmsg gives (`CONSOLE_EXT_LOG_MAX`, kernel/printk).
const RECORD_BYTES: usize = 8192;
/// The kernel counts a kill a moment before it logs it (`__oom_kill_process`,
/// mm/oom_kill.c).
const LOG_TRAILS: Duration = Duration::from_millis(200);

/// Victims of other memcgs that are kept until somebody asks for them.
const KEPT_VICTIMS: usize = 64;

/// The kernel log from now on.
#[derive(Debug)]
pub struct KernelLog {
    file: File,
    /// What was read and not told yet.
    seen: Parser,
}

impl KernelLog {
    /// Opens /dev/kmsg at its end.
    ///
    /// # Errors
    ///
    /// Without CAP_SYSLOG where `kernel.dmesg_restrict` is set, and in
    /// containers without the device.
    pub fn open() -> io::Result<Self> {
        let mut file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")?;
        file.seek(SeekFrom::End(0))?;
        Ok(KernelLog { file, seen: Parser::default() })
    }

    /// Processes killed for the memcg in folder `dir` since the last call; waits
    /// a moment for the first. PIDs are those of the initial PID namespace. Where the
    /// kernel does not say for which memcg, which it leaves out after ten kills in five
    /// seconds (`oom_rs`, mm/oom_kill.c), `is_ours` decides.
    pub fn victims(&mut self, dir: &Path, is_ours: impl Fn(&KernelVictim) -> bool) -> Vec<KernelVictim> {
        let begun = Instant::now();
        loop {
            for record in self.records() {
                self.seen.take(&record);
            }
            let victims = self.seen.take_victims_in(&dir.file_name().unwrap_or_default().to_string_lossy(), &is_ours);
            if !victims.is_empty() || begun.elapsed() > LOG_TRAILS {
                return victims;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Processes killed because the machine was out of memory, and not by a handler's
    /// verdict, since the last call; waits up to `patience` for the first.
    pub fn victims_of_machine(&mut self, patience: Duration) -> Vec<KernelVictim> {
        let begun = Instant::now();
        let mut log = Parser::default();
        loop {
            for record in self.records() {
                log.take(&record);
            }
            if !log.of_machine.is_empty() || begun.elapsed() >= patience {
                return log.of_machine;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ready when something was logged.
    #[must_use]
    pub fn bell(&self) -> PollFd<'_> {
        PollFd::new(self.file.as_fd(), PollFlags::POLLIN)
    }

    /// What was logged since the last read.
    fn records(&mut self) -> Vec<String> {
        let mut records = Vec::new();
        let mut buffer = [0; RECORD_BYTES];
        loop {
            match self.file.read(&mut buffer) {
                Ok(length) => records.push(String::from_utf8_lossy(&buffer[..length]).into_owned()),
                // Records were overwritten before we read them: the next is there.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(_) => return records,
            }
        }
    }
}

/// The two lines of a kill (`dump_oom_victim` and `__oom_kill_process`,
/// mm/oom_kill.c). The first names the memcg, but is left out when there are
/// many; the second has the sizes.
#[derive(Debug, Default)]
struct Parser {
    /// PID to memcg.
    memcgs: BTreeMap<i32, String>,
    killed: Vec<KernelVictim>,
    /// Those for whom the machine was to blame.
    of_machine: Vec<KernelVictim>,
}

impl Parser {
    fn take(&mut self, record: &str) {
        // Prefix, semicolon, message, then lines of a dictionary.
        let message = record.split_once(';').map_or(record, |(_, message)| message);
        let message = message.lines().next().unwrap_or_default();
        if let Some(place) = message.strip_prefix("oom-kill:") {
            let of = |key: &str, end: &str| Some(place.split_once(key)?.1.split_once(end)?.0.to_owned());
            let pid = place.rsplit_once(",pid=").and_then(|(_, rest)| rest.split(',').next()?.parse().ok());
            if let (Some(pid), Some(memcg)) = (pid, of(",oom_memcg=", ",task_memcg=")) {
                self.memcgs.insert(pid, memcg);
            }
        } else if let Some((why, victim)) = message.split_once(": Killed process ") {
            let victim = victim_of(victim);
            // Not "Memory cgroup out of memory", nor "Killed by OOM handler" of the series
            // in kernel/patches.
            if why.starts_with("Out of memory") {
                self.of_machine.extend(victim.clone());
            }
            self.killed.extend(victim);
        }
    }

    /// Those in a memcg of this name; others are left for who asks for theirs.
    fn take_victims_in(&mut self, name: &str, is_ours: &impl Fn(&KernelVictim) -> bool) -> Vec<KernelVictim> {
        let Parser { memcgs, killed, .. } = self;
        let here = |victim: &mut KernelVictim| match memcgs.get(&victim.pid) {
            Some(path) => path.split('/').any(|part| part == name),
            None => is_ours(victim),
        };
        let victims = killed.extract_if(.., here).collect();
        // Nobody may ever ask for them.
        let old = killed.len().saturating_sub(KEPT_VICTIMS);
        killed.drain(..old);
        // A place is told just before its victim.
        if memcgs.len() > 2 * KEPT_VICTIMS {
            memcgs.retain(|pid, _| killed.iter().any(|victim| victim.pid == *pid));
        }
        victims
    }
}

/// From `123 (comm) total-vm:1kB, anon-rss:2kB, file-rss:3kB, shmem-rss:4kB, …`.
fn victim_of(text: &str) -> Option<KernelVictim> {
    let (pid, rest) = text.split_once(" (")?;
    let (comm, sizes) = rest.rsplit_once(") total-vm:")?;
    let size = |key: &str| from_kb(sizes.split_once(key)?.1.split_once("kB")?.0.parse().ok()?);
    let (anon, shmem) = (size("anon-rss:")?, size("shmem-rss:")?);
    Some(KernelVictim {
        pid: pid.parse().ok()?,
        comm: comm.to_owned(),
        rss_bytes: anon + size("file-rss:")? + shmem,
        anon_bytes: Some(anon),
        shmem_bytes: Some(shmem),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn victims_of_our_memcg_are_found() {
        let mut log = Parser::default();
        for record in [
            "4,1,2,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,\
             oom_memcg=/a/reprieve-1-2,task_memcg=/a/reprieve-1-2/b,task=x,pid=9,y,pid=77,uid=0\n SUBSYSTEM=x",
            "3,2,2,-;Memory cgroup out of memory: Killed process 77 (x) (,pid=9,y) total-vm:9000kB, anon-rss:2000kB, \
             file-rss:40kB, shmem-rss:8kB, UID:0 pgtables:60kB oom_score_adj:0\n",
            "3,3,2,-;Out of memory: Killed process 78 (other) total-vm:9kB, anon-rss:2kB, file-rss:4kB, shmem-rss:0kB, UID:0",
            "4,4,2,-;something else; oom",
        ] {
            log.take(record);
        }
        let expected = KernelVictim {
            pid: 77,
            comm: "x) (,pid=9,y".to_owned(),
            rss_bytes: 2048 * 1024,
            anon_bytes: Some(2000 * 1024),
            shmem_bytes: Some(8 * 1024),
        };
        let nobody = |_: &KernelVictim| false;
        assert_eq!(log.take_victims_in("reprieve-1-3", &nobody), []);
        assert_eq!(log.take_victims_in("reprieve-1-2", &nobody), [expected]);
        assert_eq!(log.take_victims_in("reprieve-1-2", &nobody), []);
        // Of the last the memcg was not told.
        assert_eq!(log.take_victims_in("reprieve-1-3", &|victim| victim.pid == 78)[0].comm, "other");
    }

    #[test]
    fn victims_of_the_machine_are_those_that_the_kernel_chose() {
        let mut log = Parser::default();
        for record in [
            "3,1,1,-;Memory cgroup out of memory: Killed process 7 (a) total-vm:9kB, anon-rss:1kB, file-rss:0kB, shmem-rss:0kB, UID:0",
            "3,2,1,-;Killed by OOM handler: Killed process 8 (b) total-vm:9kB, anon-rss:1kB, file-rss:0kB, shmem-rss:0kB, UID:0",
            "3,3,1,-;Out of memory: Killed process 9 (c) total-vm:9kB, anon-rss:1kB, file-rss:0kB, shmem-rss:0kB, UID:0",
            "3,4,1,-;Out of memory (oom_kill_allocating_task): Killed process 10 (d) total-vm:9kB, anon-rss:1kB, file-rss:0kB, shmem-rss:0kB, UID:0",
        ] {
            log.take(record);
        }
        assert_eq!(log.of_machine.iter().map(|victim| victim.pid).collect::<Vec<_>>(), [9, 10]);
        assert_eq!(log.killed.len(), 4);
    }
}
