//! A second process that gives the OOM back to the kernel when we cannot.
//!
//! It is a fork, so it shares our pages and needs no file to start; it has a
//! session of its own, so that ^C and the terminal do not reach it. It acts
//! when the guardian dies (its end of the line closes), when a hold's
//! deadline passes without word, and when an OOM finds no answer: then it kills the
//! guardian first, since only a tracer, or its death, detaches what it seized. One
//! watches over all memcgs that a guardian has.

mod ward;
mod watch;
mod word;

pub use word::{Charge, Debt};

use super::HandBack;
use crate::cgroup::Hierarchy;
use crate::guardian::{self, Locks};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};
use nix::unistd::{ForkResult, Pid};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use ward::Ward;
use watch::Wards;
use word::Word;

/// How long the watchdog may have no time to listen.
const EAR_TIME: Duration = Duration::from_secs(1);

/// The number of the only memcg of a guardian that has one.
const ONLY: u32 = 0;

/// The guardian's side.
#[derive(Debug)]
pub struct Watchdog {
    ear: Arc<Ear>,
    pid: Pid,
}

/// Where it listens.
#[derive(Debug)]
struct Ear {
    fd: OwnedFd,
    /// Whether it has not listened for long: then nobody waits for it again.
    is_deaf: AtomicBool,
}

/// What is said about one memcg.
#[derive(Debug, Clone)]
pub struct Line {
    ear: Arc<Ear>,
    ward: u32,
}

impl Line {
    /// Says it; where so much was said that there is no room, once there is. One that was
    /// stopped must not stop us.
    fn say(&self, word: &Word) -> io::Result<()> {
        let until = Instant::now() + EAR_TIME;
        loop {
            let result = self.send(word, MsgFlags::MSG_DONTWAIT);
            let is_full = result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
            let is_late = Instant::now() >= until;
            if !is_full || is_late || self.ear.is_deaf.load(Relaxed) {
                self.ear.is_deaf.store(is_full, Relaxed);
                return result;
            }
            let left = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            // EINTR and time-outs mean the same: try.
            let _ = poll(&mut [PollFd::new(self.ear.fd.as_fd(), PollFlags::POLLOUT)], timeout);
        }
    }

    fn send(&self, word: &Word, flags: MsgFlags) -> io::Result<()> {
        let bytes = word.encode(self.ward)?;
        send(self.ear.fd.as_raw_fd(), &bytes, flags | MsgFlags::MSG_NOSIGNAL).map(drop).map_err(io::Error::from)
    }

    /// A hold begins, or may last longer: until `deadline`.
    pub fn hold_until(&self, deadline: Instant) -> io::Result<()> {
        self.say(&Word::HoldUntil(deadline.saturating_duration_since(Instant::now())))
    }

    /// The hold is over.
    pub fn released(&self) -> io::Result<()> {
        self.say(&Word::Released)
    }

    /// The memcg is guarded from now on, or what is to be given back has changed.
    pub fn guard(&self, charge: Charge) -> io::Result<()> {
        self.say(&Word::Guard(charge))
    }

    /// The memcg is not guarded any more: it is gone, or as it was found.
    pub fn forget(&self) -> io::Result<()> {
        self.say(&Word::Forget)
    }

    /// What a file is to say again, should we die before we write it.
    pub fn owe(&self, debt: Debt) -> io::Result<()> {
        self.say(&Word::Owe(debt))
    }

    /// We have written it.
    pub fn paid(&self, file: &Path) -> io::Result<()> {
        self.say(&Word::Paid(file.to_owned()))
    }
}

impl Watchdog {
    /// Forks the watchdog of one memcg. Must be called while the process has one
    /// thread. An OOM must be answered within `answer`.
    pub fn start(hand_back: HandBack, answer: Duration) -> io::Result<Self> {
        let wards = Wards { all: [(ONLY, Ward::new(hand_back, answer))].into(), hierarchy: None };
        Self::start_with(wards, Locks::All)
    }

    /// The same for as many memcgs of a hierarchy as there will be.
    pub fn start_for_many(hierarchy: Hierarchy) -> io::Result<Self> {
        Self::start_with(Wards { hierarchy: Some(hierarchy), ..Wards::default() }, Locks::Data)
    }

    fn start_with(wards: Wards, locks: Locks) -> io::Result<Self> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let own = open_pidfd(std::process::id() as i32)?;
        // SAFETY: the process has one thread (the caller's duty, and we make
        // none before this), so the child may run any code.
        match unsafe { nix::unistd::fork() }? {
            ForkResult::Parent { child } => {
                guardian::has_watchdog(child.as_raw());
                Ok(Watchdog { ear: Arc::new(Ear { fd: ours, is_deaf: AtomicBool::new(false) }), pid: child })
            }
            ForkResult::Child => {
                drop(ours);
                watch::watch(&theirs, &own, wards, locks);
                // SAFETY: ends this process at once; nothing of the guardian's
                // (buffers, destructors, reserve files) may run twice.
                unsafe { libc::_exit(0) }
            }
        }
    }

    /// To speak of the memcg with this number.
    #[must_use]
    pub fn line(&self, ward: u32) -> Line {
        Line { ear: Arc::clone(&self.ear), ward }
    }

    /// To speak of the only memcg.
    #[must_use]
    pub fn only(&self) -> Line {
        self.line(ONLY)
    }

    /// Readable when it has died.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.ear.fd.as_fd()
    }

    /// Its PID.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Ends the watchdog: there is nothing left to guard.
    pub fn dismiss(self) {
        self.end(&Word::Dismiss);
    }

    /// Has it give back everything that it knows of, and waits until it has.
    pub fn give_back(self) {
        self.end(&Word::GiveBack);
    }

    fn end(self, word: &Word) {
        // It may have died: then there is nobody to hear it. One that lives has to, since
        // it is waited for.
        while self.only().send(word, MsgFlags::empty()).is_err_and(|error| error.kind() == io::ErrorKind::Interrupted) {
        }
        let _ = nix::sys::wait::waitpid(self.pid, None);
    }
}

/// Opens a process by PID (pidfd_open(2)).
pub fn open_pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sends a signal through a pidfd (pidfd_send_signal(2)).
pub fn signal_pidfd(pidfd: &OwnedFd, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo is allowed; the descriptor is open.
    let result = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Waits until the process behind a pidfd has ended.
pub fn wait_pidfd(pidfd: &OwnedFd, at_most: Duration) -> bool {
    let deadline = Instant::now() + at_most;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(n) if n > 0 => return true,
            Err(Errno::EINTR) => {}
            _ if left.is_zero() => return false,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::word::MOST_BYTES;
    use super::*;

    /// A line and who would listen at its other end.
    fn line() -> (Line, OwnedFd) {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        (Line { ear: Arc::new(Ear { fd: ours, is_deaf: AtomicBool::new(false) }), ward: 7 }, theirs)
    }

    /// Says words until there is no room; how many there was room for.
    fn fill(line: &Line) -> usize {
        (0..).take_while(|_| line.send(&Word::Forget, MsgFlags::MSG_DONTWAIT).is_ok()).count()
    }

    #[test]
    fn every_word_is_heard_by_who_listens_late() {
        let (line, theirs) = line();
        let mut words = fill(&line);
        std::thread::scope(|scope| {
            // A failure closes it, and nobody listens any more.
            let line = line;
            let heard = scope.spawn(|| {
                let mut bytes = vec![0; MOST_BYTES];
                let mut heard = 0;
                loop {
                    let length = nix::unistd::read(&theirs, &mut bytes).unwrap();
                    match Word::decode(&bytes[..length]) {
                        Some((7, Word::Dismiss)) => break heard,
                        word => assert!(matches!(word, Some((7, Word::Forget)))),
                    }
                    heard += 1;
                }
            });
            for _ in 0..3 * words {
                line.say(&Word::Forget).unwrap();
                words += 1;
            }
            line.say(&Word::Dismiss).unwrap();
            assert_eq!(heard.join().unwrap(), words);
        });
    }

    #[test]
    fn nobody_waits_twice_for_who_does_not_listen() {
        let (line, theirs) = line();
        fill(&line);
        let is_full = |result: io::Result<()>| result.unwrap_err().kind() == io::ErrorKind::WouldBlock;
        assert!(!line.ear.is_deaf.load(Relaxed));
        assert!(is_full(line.say(&Word::Released)) && line.ear.is_deaf.load(Relaxed));
        assert!(is_full(line.say(&Word::Released)));
        // As soon as one was heard, it has an ear again.
        let mut bytes = [0; MOST_BYTES];
        while line.say(&Word::Released).is_err() {
            nix::unistd::read(&theirs, &mut bytes).unwrap();
        }
        assert!(!line.ear.is_deaf.load(Relaxed));
    }
}
