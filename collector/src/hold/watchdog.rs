//! A second process that gives the OOM back to the kernel when we cannot.
//!
//! It is a fork, so it shares our pages and needs no file to start; it has a
//! session of its own, so that ^C and the terminal do not reach it. It acts
//! when the guardian dies (its end of the socket closes), when a hold's
//! deadline passes without word, and when an OOM finds no answer: then it kills the guardian first, since only a tracer, or its death,
//! detaches what it seized.

use super::{Alarm, HandBack};
use crate::guardian;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{ForkResult, Pid};
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Time the guardian may take beyond the deadline it announced before it is
/// taken for hung: it acts on the deadline itself.
const GRACE: Duration = Duration::from_millis(200);

/// The guardian's side.
#[derive(Debug)]
pub struct Watchdog {
    line: UnixStream,
    pid: Pid,
}

impl Watchdog {
    /// Forks the watchdog. Must be called while the process has one thread. An
    /// OOM must be answered within `answer`.
    pub fn start(hand_back: &HandBack, answer: Duration) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let own = open_pidfd(std::process::id() as i32)?;
        // SAFETY: the process has one thread (the caller's duty, and we make
        // none before this), so the child may run any code.
        match unsafe { nix::unistd::fork() }? {
            ForkResult::Parent { child } => {
                guardian::has_watchdog(child.as_raw());
                Ok(Watchdog { line: ours, pid: child })
            }
            ForkResult::Child => {
                drop(ours);
                watch(theirs, &own, hand_back, answer);
                // SAFETY: ends this process at once; nothing of the guardian's
                // (buffers, destructors, reserve files) may run twice.
                unsafe { libc::_exit(0) }
            }
        }
    }

    /// A hold begins, or may last longer: until `deadline`.
    pub fn hold_until(&mut self, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.line.write_all(&(left.as_micros() as u64).to_ne_bytes())
    }

    /// The hold is over.
    pub fn released(&mut self) -> io::Result<()> {
        self.line.write_all(&u64::MAX.to_ne_bytes())
    }

    /// Its PID.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Ends the watchdog: there is nothing left to guard.
    pub fn dismiss(mut self) {
        // It may have died: then there is nobody to dismiss.
        let _ = self.line.write_all(&0u64.to_ne_bytes());
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
    use std::os::fd::AsRawFd;
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

/// Until when the guardian has time, and for what.
#[derive(Clone, Copy)]
enum Patience {
    /// Nothing is going on.
    Endless,
    /// The memcg is out of memory, in the hold with this number where those have one,
    /// and the guardian has not said a word.
    Unanswered(Instant, Option<u64>),
    /// It holds, and said for how long.
    Held(Instant),
}

impl Patience {
    fn end(self) -> Option<Instant> {
        match self {
            Patience::Endless => None,
            Patience::Unanswered(at, _) | Patience::Held(at) => Some(at),
        }
    }
}

/// Life of the watchdog.
fn watch(mut line: UnixStream, guardian: &OwnedFd, hand_back: &HandBack, answer: Duration) {
    let _ = nix::unistd::setsid();
    leave_terminal();
    // Fewer pages, but all of them in memory when memory is gone. Without the
    // right to lock we are no worse than any other process.
    // SAFETY: mlockall takes flags only.
    unsafe { libc::mlockall(libc::MCL_CURRENT) };
    // Without the right to, the guardian has warned already.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    // What the kernel keeps for a reader of the bell, it makes now, not in a hold.
    hand_back.alarm.iter().for_each(Alarm::silence);
    let waits = || hand_back.alarm.as_ref().is_some_and(Alarm::waits);
    let turn = || hand_back.alarm.as_ref().and_then(Alarm::turn);
    let unanswered = || Patience::Unanswered(Instant::now() + answer + GRACE, turn());
    let mut patience = Patience::Endless;
    loop {
        let timeout = patience.end().map_or(PollTimeout::NONE, |at| {
            // Rounded up: a poll of 0 ms would spin through the last one.
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = vec![PollFd::new(line.as_fd(), PollFlags::POLLIN)];
        fds.extend(hand_back.alarm.iter().map(Alarm::bell));
        match poll(&mut fds, timeout) {
            Err(Errno::EINTR) => continue,
            Ok(0) if patience.end().is_none_or(|at| Instant::now() < at) => continue,
            Ok(0) => {
                if let Patience::Unanswered(_, since) = patience {
                    patience = match waits() {
                        // Somebody freed memory, nothing had to be said.
                        false => Patience::Endless,
                        true if turn() != since => unanswered(),
                        // It may be an OOM of this very moment.
                        true => Patience::Held(Instant::now() + GRACE),
                    };
                    continue;
                }
                // In this order: inside the full memcg the words cost memory, for which we
                // would be held ourselves.
                let _ = signal_pidfd(guardian, libc::SIGKILL);
                say("reprieve: the guardian hangs past its deadline; ended it and let the kernel decide\n");
                break;
            }
            _ => {}
        }
        let spoke = fds[0].any() == Some(true);
        let rang = fds.get(1).and_then(PollFd::any) == Some(true);
        if let Some(alarm) = hand_back.alarm.as_ref().filter(|_| rang) {
            alarm.silence();
            match patience {
                Patience::Endless => patience = unanswered(),
                Patience::Unanswered(_, since) if turn() != since && waits() => patience = unanswered(),
                _ => {}
            }
        }
        if !spoke {
            continue;
        }
        let mut message = [0; 8];
        match line.read_exact(&mut message) {
            Ok(()) => match u64::from_ne_bytes(message) {
                0 => return,
                // Its bell may have rung while the last hold lasted.
                u64::MAX if waits() => patience = unanswered(),
                u64::MAX => patience = Patience::Endless,
                left => patience = Patience::Held(Instant::now() + Duration::from_micros(left) + GRACE),
            },
            Err(_) => {
                say("reprieve: the guardian died; let the kernel decide\n");
                break;
            }
        }
    }
    wait_pidfd(guardian, Duration::from_secs(10));
    for (path, content) in &hand_back.writes {
        // Gone with the memcg is fine; there is nobody to tell anything else.
        let _ = OpenOptions::new().write(true).open(path).and_then(|mut f| f.write_all(content.as_bytes()));
    }
    remove_when_empty(hand_back);
}

/// Stays until the orphaned command and its children are gone.
fn remove_when_empty(hand_back: &HandBack) {
    let Some(memcg) = &hand_back.memcg else { return };
    while memcg.exists() {
        // EBUSY while there are processes.
        if std::fs::remove_dir(memcg).is_err() {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    for dir in &hand_back.beside {
        let _ = std::fs::remove_dir(dir);
    }
}

/// A pipe that we kept open would never end for its reader.
fn leave_terminal() {
    let Ok(null) = OpenOptions::new().read(true).write(true).open("/dev/null") else { return };
    let _ = nix::unistd::dup2_stdin(&null);
    let _ = nix::unistd::dup2_stdout(&null);
    let _ = nix::sys::prctl::set_name(c"reprieve-watch");
}

fn say(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}
