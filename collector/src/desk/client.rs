//! The operators' side: all guardians of a folder.

use super::message::{FromGuardian, FromOperator, MOST_BYTES, VERSION, decode, encode};
use super::socket::{call, hear, send, sockets};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A connection to a guardian.
#[derive(Debug)]
pub struct Guardian {
    fd: OwnedFd,
    /// Its socket.
    pub socket: PathBuf,
    /// Its PID; 0 until it said hello.
    pub pid: u32,
}

/// A guardian that cannot be talked to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoGuardian {
    /// Its socket is of another user.
    NotAllowed(PathBuf),
    /// It is dead.
    Dead(PathBuf),
    /// It does not take callers now.
    Busy(PathBuf),
    /// Anything else; a sentence.
    Other(String),
}

impl std::fmt::Display for NoGuardian {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NoGuardian::NotAllowed(path) => {
                write!(f, "{} is of another user; be that user, or root", path.display())
            }
            NoGuardian::Dead(path) => write!(f, "{} was left by a guardian that is dead", path.display()),
            NoGuardian::Busy(path) => {
                write!(f, "{} takes no callers: its guardian is stopped, hangs or has too many", path.display())
            }
            NoGuardian::Other(why) => f.write_str(why),
        }
    }
}

impl Guardian {
    /// Connects to the guardian of a socket.
    pub fn call(socket: &Path) -> Result<Self, NoGuardian> {
        match call(socket) {
            Ok(fd) => Ok(Guardian { fd, socket: socket.to_owned(), pid: 0 }),
            Err(error) => Err(match error.raw_os_error() {
                Some(libc::EACCES | libc::EPERM) => NoGuardian::NotAllowed(socket.to_owned()),
                // It may go at any time.
                Some(libc::ECONNREFUSED | libc::ENOENT) => NoGuardian::Dead(socket.to_owned()),
                Some(libc::EAGAIN) => NoGuardian::Busy(socket.to_owned()),
                _ => NoGuardian::Other(format!("{} cannot be connected to: {error}", socket.display())),
            }),
        }
    }

    /// Says something; a guardian that does not listen any more is an error.
    pub fn say(&self, message: &FromOperator) -> io::Result<()> {
        Ok(send(self.fd.as_fd(), &encode(message)?)?)
    }

    /// What it says next, waiting at most so long: `Ok(None)` when it says nothing.
    pub fn hear(&mut self, at_most: Duration) -> Result<Option<FromGuardian>, NoGuardian> {
        let until = Instant::now() + at_most;
        let mut buffer = [0; MOST_BYTES];
        loop {
            match hear(self.fd.as_fd(), &mut buffer) {
                Ok(Some(packet)) => return self.understand(packet).map(Some),
                Ok(None) | Err(Errno::ECONNRESET) => return Err(NoGuardian::Dead(self.socket.clone())),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => return Err(NoGuardian::Other(format!("{}: {errno}", self.socket.display()))),
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            let _ = poll(&mut [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)], timeout);
        }
    }

    fn understand(&mut self, packet: &[u8]) -> Result<FromGuardian, NoGuardian> {
        let other = |why: String| Err(NoGuardian::Other(format!("{} {why}", self.socket.display())));
        match decode(packet) {
            Some(FromGuardian::Hello { version, .. }) if version != VERSION => {
                other(format!("is a guardian of another version ({version}, this is {VERSION})"))
            }
            Some(FromGuardian::GoAway { why }) => other(format!("refuses: {why}")),
            Some(FromGuardian::Hello { version, pid }) => {
                self.pid = pid;
                Ok(FromGuardian::Hello { version, pid })
            }
            Some(message) => Ok(message),
            None => other("says what is not understood".to_owned()),
        }
    }
}

/// All guardians of a folder, and those that cannot be talked to.
#[must_use]
pub fn call_all(dir: &Path) -> (Vec<Guardian>, Vec<NoGuardian>) {
    let mut guardians = Vec::new();
    let mut problems = Vec::new();
    match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            problems.push(NoGuardian::NotAllowed(dir.to_owned()));
        }
        _ => {}
    }
    for socket in sockets(dir) {
        match Guardian::call(&socket) {
            Ok(guardian) => guardians.push(guardian),
            Err(problem) => problems.push(problem),
        }
    }
    (guardians, problems)
}
