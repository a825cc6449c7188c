//! Open files of processes: a descriptor of ours for each, without opening it again,
//! which could wait for a lease or for whoever watches the file.

use super::mounts::{Kind, Mounts};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// What a descriptor is, by its link in `/proc/PID/fd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A socket, by inode.
    Socket(u64),
    /// A pipe, by inode.
    Pipe(u64),
    /// A file whose pages may be looked for: its name, and of which kind.
    File(String, Kind),
}

/// A process whose descriptors can be had.
#[derive(Debug)]
pub struct Descriptors {
    pid: i32,
    pidfd: OwnedFd,
}

impl Descriptors {
    /// Of a process that lives.
    pub fn of(pid: i32) -> io::Result<Self> {
        // SAFETY: pidfd_open(2) takes two integers; what it returns is ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        Ok(Descriptors { pid, pidfd: owned(fd)? })
    }

    /// Numbers of what it has open.
    pub fn numbers(&self) -> io::Result<Vec<i32>> {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.pid))?;
        Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    }

    /// What a descriptor is; `None` for what has no pages that anybody could count.
    #[must_use]
    pub fn target(&self, number: i32, mounts: &Mounts) -> Option<Target> {
        let link = fs::read_link(format!("/proc/{}/fd/{number}", self.pid)).ok()?;
        let name = link.to_str()?;
        if let Some(target) = special(name) {
            return Some(target);
        }
        if !name.starts_with('/') {
            return None;
        }
        let kind = match Kind::of_unmounted(name) {
            Kind::Other => mounts.by_id(self.mount_id(number)?)?,
            kind => kind,
        };
        (kind != Kind::Other).then(|| Target::File(name.to_owned(), kind))
    }

    /// `mnt_id` of fdinfo (proc_pid_fdinfo(5)).
    fn mount_id(&self, number: i32) -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{}/fdinfo/{number}", self.pid)).ok()?;
        text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
    }

    /// The same open file, as a descriptor of ours (pidfd_getfd(2), since Linux 5.6).
    pub fn duplicate(&self, number: i32) -> io::Result<OwnedFd> {
        // SAFETY: pidfd_getfd(2) takes three integers; what it returns is ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.pidfd.as_raw_fd(), number, 0) };
        owned(fd)
    }
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// `socket:[12]` and `pipe:[12]`.
fn special(link: &str) -> Option<Target> {
    let inode = |prefix| link.strip_prefix(prefix)?.strip_suffix(']')?.parse().ok();
    inode("socket:[").map(Target::Socket).or_else(|| inode("pipe:[").map(Target::Pipe))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn own_descriptors_are_what_they_are() {
        let own = Descriptors::of(std::process::id() as i32).unwrap();
        let (reader, _writer) = std::io::pipe().unwrap();
        let (left, _right) = std::os::unix::net::UnixStream::pair().unwrap();
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        let mounts = Mounts::of(std::process::id() as i32);
        let numbers = own.numbers().unwrap();
        for fd in [reader.as_raw_fd(), left.as_raw_fd(), file.as_raw_fd()] {
            assert!(numbers.contains(&fd));
        }
        assert!(matches!(own.target(reader.as_raw_fd(), &mounts), Some(Target::Pipe(_))));
        assert!(matches!(own.target(left.as_raw_fd(), &mounts), Some(Target::Socket(_))));
        let Some(Target::File(name, Kind::Tmpfs)) = own.target(file.as_raw_fd(), &mounts) else { panic!() };
        assert!(name.starts_with("/dev/shm/"), "{name}");
        assert_eq!(own.target(i32::MAX, &mounts), None);
        file.set_len(77).unwrap();
        let same = std::fs::File::from(own.duplicate(file.as_raw_fd()).unwrap());
        assert_eq!(same.metadata().unwrap().len(), 77);
        assert!(own.duplicate(i32::MAX).is_err());
    }

    #[test]
    fn links_of_other_shapes_are_nothing() {
        for link in ["socket:[x]", "socket:[", "pipe:", "pipe:[1", "anon_inode:[eventfd]", ""] {
            assert_eq!(special(link), None, "{link}");
        }
        assert_eq!(special("pipe:[12]"), Some(Target::Pipe(12)));
    }
}
