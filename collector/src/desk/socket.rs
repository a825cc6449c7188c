//! The socket: where it is, who may use it, and what dead guardians left.

use super::message::MOST_BYTES;
use nix::errno::Errno;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, connect, getsockopt, listen, recv,
    socket,
};
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

const EXTENSION: &str = "sock";

/// A socket that listens; gone from its folder when dropped.
#[derive(Debug)]
pub struct Listener {
    /// To accept from.
    pub fd: OwnedFd,
    path: PathBuf,
}

/// Who is on the other side of a connection, as the kernel says (unix(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// His user.
    pub uid: u32,
    /// The process that connected.
    pub pid: i32,
}

impl Peer {
    /// Who connected.
    pub fn of(connection: &OwnedFd) -> io::Result<Self> {
        let credentials = getsockopt(connection, PeerCredentials)?;
        Ok(Peer { uid: credentials.uid(), pid: credentials.pid() })
    }

    /// Whether he may decide: root may, and who could end the guardian anyway.
    #[must_use]
    pub fn is_operator(self) -> bool {
        self.uid == 0 || self.uid == nix::unistd::geteuid().as_raw()
    }
}

/// Who it is, with the user that he logged in as where that is another
/// (proc_pid_loginuid(5); 2^32-1 is nobody).
impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = fs::read_to_string(format!("/proc/{}/loginuid", self.pid)).unwrap_or_default();
        match text.trim().parse::<u32>() {
            Ok(login) if login != u32::MAX && login != self.uid => {
                write!(f, "uid {} (logged in as {login}), PID {}", self.uid, self.pid)
            }
            _ => write!(f, "uid {}, PID {}", self.uid, self.pid),
        }
    }
}

fn new_socket(flags: SockFlag) -> nix::Result<OwnedFd> {
    // Packets are whole: nobody has to keep the half of one.
    socket(AddressFamily::Unix, SockType::SeqPacket, flags | SockFlag::SOCK_CLOEXEC, None)
}

impl Listener {
    /// Listens as `name` in a folder, which is made, for nobody but its user.
    pub fn open(dir: &Path, name: &str) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        clean(dir);
        let fd = new_socket(SockFlag::SOCK_NONBLOCK)?;
        let path = dir.join(name).with_extension(EXTENSION);
        // Known by its name only once it listens: one that refuses is taken for dead.
        let early = dir.join(format!(".{name}"));
        let _ = fs::remove_file(&early);
        let too_long = |_| io::Error::new(io::ErrorKind::InvalidFilename, "the path of its socket is too long");
        bind(fd.as_raw_fd(), &UnixAddr::new(&early).map_err(too_long)?)?;
        let ready = fs::set_permissions(&early, Permissions::from_mode(0o600))
            .and_then(|()| Ok(listen(&fd, Backlog::new(8)?)?))
            .and_then(|()| fs::rename(&early, &path));
        if ready.is_err() {
            let _ = fs::remove_file(&early);
        }
        ready.map(|()| Listener { fd, path })
    }

    /// The next who connects; `None` if nobody does.
    pub fn accept(&self) -> Option<OwnedFd> {
        let fd = accept4(self.fd.as_raw_fd(), SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC).ok()?;
        // SAFETY: accept4 gave it to us alone.
        Some(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes sockets that nobody listens at.
fn clean(dir: &Path) {
    for path in sockets(dir) {
        if call(&path).is_err_and(|error| error.raw_os_error() == Some(Errno::ECONNREFUSED as i32)) {
            let _ = fs::remove_file(&path);
        }
    }
}

/// All sockets of a folder, in the order of their names; none where there is no folder.
#[must_use]
pub fn sockets(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == EXTENSION));
    found.sort();
    found
}

/// Connects to one.
pub fn call(path: &Path) -> io::Result<OwnedFd> {
    // One that is stopped and has too many callers would have us wait: EAGAIN (unix(7)).
    let fd = new_socket(SockFlag::SOCK_NONBLOCK)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd)
}

/// Sends a packet, without waiting.
pub fn send(to: BorrowedFd<'_>, packet: &[u8]) -> nix::Result<()> {
    nix::sys::socket::send(to.as_raw_fd(), packet, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL).map(drop)
}

/// Takes a packet if there is one: `Ok(None)` at the end of a connection, `EAGAIN` when there
/// is nothing yet.
pub fn hear<'b>(from: BorrowedFd<'_>, buffer: &'b mut [u8; MOST_BYTES]) -> nix::Result<Option<&'b [u8]>> {
    // Of one that is longer the kernel tells its real length (MSG_TRUNC in recv(2)).
    match recv(from.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC)? {
        0 => Ok(None),
        length if length > MOST_BYTES => Err(Errno::EMSGSIZE),
        length => Ok(Some(&buffer[..length])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn for_its_user_alone_and_gone_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let listener = Listener::open(&run, "guard").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&run), mode(&run.join("guard.sock"))), (0o700, 0o600));
        let caller = call(&run.join("guard.sock")).unwrap();
        let called = listener.accept().expect("a caller");
        assert!(listener.accept().is_none());
        let peer = Peer::of(&called).unwrap();
        assert!(peer.is_operator() && peer.pid == std::process::id() as i32, "{peer:?}");
        assert!(peer.to_string().contains(&format!("PID {}", peer.pid)), "{peer}");
        send(caller.as_fd(), b"hello").unwrap();
        let mut buffer = [0; MOST_BYTES];
        assert_eq!(hear(called.as_fd(), &mut buffer), Ok(Some(&b"hello"[..])));
        assert_eq!(hear(called.as_fd(), &mut buffer), Err(Errno::EAGAIN));
        send(caller.as_fd(), &[7; MOST_BYTES + 1]).unwrap();
        assert_eq!(hear(called.as_fd(), &mut buffer), Err(Errno::EMSGSIZE));
        drop(caller);
        assert_eq!(hear(called.as_fd(), &mut buffer), Ok(None));
        drop(listener);
        assert_eq!(fs::read_dir(&run).unwrap().count(), 0);
    }

    #[test]
    fn what_the_dead_left_is_removed_and_what_lives_stays() {
        let dir = tempfile::tempdir().unwrap();
        let mut dead = Listener::open(dir.path(), "dead").unwrap();
        // As if its guardian had been killed.
        let path = std::mem::take(&mut dead.path);
        drop(dead);
        assert!(path.exists());
        let _alive = Listener::open(dir.path(), "alive").unwrap();
        assert_eq!(sockets(dir.path()), [dir.path().join("alive.sock")]);
        let _again = Listener::open(dir.path(), "again").unwrap();
        assert_eq!(sockets(dir.path()).len(), 2);
    }

    #[test]
    fn one_that_takes_no_callers_is_not_waited_for_and_is_not_dead() {
        let dir = tempfile::tempdir().unwrap();
        let listener = Listener::open(dir.path(), "stopped").unwrap();
        let path = dir.path().join("stopped.sock");
        // More than wait to be accepted (listen(2)).
        let callers: Vec<_> = (0..20).map(|_| call(&path)).collect();
        let refused: Vec<_> = callers.iter().filter_map(|caller| caller.as_ref().err()).collect();
        assert!(!refused.is_empty() && refused.len() < 20, "{callers:?}");
        assert!(refused.iter().all(|error| error.raw_os_error() == Some(Errno::EAGAIN as i32)), "{refused:?}");
        clean(dir.path());
        assert!(path.exists());
        assert!(listener.accept().is_some() && call(&path).is_ok());
    }

    #[test]
    fn a_path_that_is_too_long_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let error = Listener::open(&dir.path().join("x".repeat(120)), "guard").unwrap_err();
        assert!(error.to_string().contains("too long"), "{error}");
        assert!(sockets(&dir.path().join("none")).is_empty());
    }
}
