//! What the guard tells `reprieve-metrics`, a process of its own that counts and serves.
//!
//! Whoever talks to the network must not be who may trace every process, and its code must
//! not be locked in memory with the guardian's. Between the two is a socket of packets
//! (SOCK_SEQPACKET, unix(7)), one event each; the guard never waits for room in it.

mod exporter;

pub use exporter::Exporter;

use crate::incident::model::Labels;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Name of the program, beside our own.
pub const PROGRAM: &str = "reprieve-metrics";
/// Longest event; a cgroup's path is at most 4 KiB (PATH_MAX).
const MOST_BYTES: usize = 16 << 10;

/// Where metrics are to be had.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// Address to serve them at.
    pub listen: Option<SocketAddr>,
    /// File to keep them in.
    pub textfile: Option<PathBuf>,
}

/// Something that changes a metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// How things are.
    State {
        /// Guarded cgroups.
        guarded: u64,
        /// OOMs that are being answered.
        answering: u64,
        /// Memory that the guardian has locked.
        locked_bytes: u64,
    },
    /// An OOM was answered.
    Oom {
        /// Of which cgroup.
        cgroup: String,
        /// Which container it is.
        labels: Labels,
        /// The last action, without its parameter; empty where none was tried.
        action: String,
        /// Whether the cgroup was well afterwards; otherwise the kernel decides.
        relieved: bool,
        /// From the notice until its threads ran on.
        held_us: u64,
        /// From the notice until all were stopped.
        stop_us: u64,
        /// Whether an incident is written.
        is_recorded: bool,
    },
    /// The kernel's OOM killer acted.
    KernelKill {
        /// In which cgroup.
        cgroup: String,
        /// Which container it is.
        labels: Labels,
        /// Whether an incident is written.
        is_recorded: bool,
    },
    /// Another program killed in a held cgroup.
    OtherKill {
        /// Its name.
        killer: String,
    },
    /// An OOM was left to the kernel because nobody was free to look.
    Unanswered,
    /// Whether somebody answers OOMs of the machine itself.
    Machine {
        /// Somebody does.
        is_answered: bool,
    },
    /// The configuration was read.
    Configured {
        /// Whether it is in force.
        is_right: bool,
    },
    /// Which other programs that kill for memory run.
    Killers {
        /// Their names.
        names: Vec<String>,
    },
    /// So many events found no room.
    Lost {
        /// How many.
        count: u64,
    },
}

/// The guard's end of the socket; a copy is another way to the same.
#[derive(Debug, Clone)]
pub struct Feed {
    socket: Arc<OwnedFd>,
    lost: Arc<AtomicU64>,
}

impl Feed {
    /// Another one's end, which it got from who started it.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Feed { socket: Arc::new(socket), lost: Arc::default() }
    }

    /// Sends an event, or counts that it found no room.
    pub fn tell(&self, event: &Event) {
        let count = self.lost.swap(0, Relaxed);
        if count > 0 && !self.send(&Event::Lost { count }) {
            self.lost.fetch_add(count, Relaxed);
        }
        if !self.send(event) {
            self.lost.fetch_add(1, Relaxed);
        }
    }

    /// Lets the other end see the end, though others may have copies of this one.
    fn close(&self) {
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
    }

    fn send(&self, event: &Event) -> bool {
        let Ok(packet) = serde_json::to_vec(event) else { return false };
        // Nobody who reads is EPIPE, and no SIGPIPE.
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        packet.len() <= MOST_BYTES && send(self.socket.as_raw_fd(), &packet, flags).is_ok()
    }
}

/// The next event; `None` when the guard is gone. What is no event is an error's text.
pub fn take(socket: &OwnedFd) -> Option<Result<Event, String>> {
    let mut packet = vec![0; MOST_BYTES];
    loop {
        match recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty()) {
            Ok(0) => return None,
            Ok(size) => return Some(serde_json::from_slice(&packet[..size]).map_err(|error| error.to_string())),
            Err(Errno::EINTR) => {}
            Err(errno) => return Some(Err(errno.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    fn pair() -> (Feed, OwnedFd) {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        (Feed::new(ours), theirs)
    }

    #[test]
    fn what_is_told_is_taken_in_order_until_the_end() {
        let (feed, theirs) = pair();
        let events = [
            Event::Unanswered,
            Event::Killers { names: vec!["earlyoom".to_owned()] },
            Event::KernelKill { cgroup: "/a".to_owned(), labels: Labels::default(), is_recorded: false },
        ];
        events.iter().for_each(|event| feed.tell(event));
        drop(feed);
        for event in events {
            assert_eq!(take(&theirs), Some(Ok(event)));
        }
        assert_eq!(take(&theirs), None);
    }

    #[test]
    fn nobody_is_waited_for_and_what_is_lost_is_told() {
        let (feed, theirs) = pair();
        let told = 100_000;
        for _ in 0..told {
            feed.tell(&Event::Unanswered);
        }
        let lost = feed.lost.load(Relaxed);
        assert!(lost > 0 && lost < told, "{lost}");
        for _ in 0..told - lost {
            assert_eq!(take(&theirs), Some(Ok(Event::Unanswered)));
        }
        feed.tell(&Event::Unanswered);
        assert_eq!(take(&theirs), Some(Ok(Event::Lost { count: lost })));
        assert_eq!(take(&theirs), Some(Ok(Event::Unanswered)));
        let copy = feed.clone();
        feed.close();
        assert_eq!(take(&theirs), None);
        copy.tell(&Event::Unanswered);
        assert_eq!(feed.lost.swap(0, Relaxed), 1);
        drop(theirs);
        feed.tell(&Event::Unanswered);
        assert_eq!(feed.lost.load(Relaxed), 1);
    }
}
