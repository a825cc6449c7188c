//! Entries of the systemd journal by its native protocol
//! (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>): a datagram of fields.
//!
//! The crates for it wait until journald takes an entry; see [`super`] why we must not.

use super::{Field, Level, texts};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const SOCKET: &str = "/run/systemd/journal/socket";
/// Longer messages are cut: a datagram has room for about 200 KiB (net.core.wmem_max).
const MOST_BYTES: usize = 32 << 10;

/// A way to journald.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
    lost: AtomicU64,
}

impl Journal {
    /// Connects to it.
    ///
    /// # Errors
    ///
    /// ENOENT without systemd; ECONNREFUSED where journald does not run.
    pub fn open() -> io::Result<Self> {
        Self::open_at(SOCKET)
    }

    fn open_at(path: &str) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.connect(path)?;
        Ok(Journal { socket, lost: AtomicU64::new(0) })
    }

    /// Sends an entry, or counts that it could not.
    pub fn send(&self, level: Level, fields: &[Field<'_>], message: &str) {
        let lost = self.lost.swap(0, Relaxed);
        if lost > 0 {
            let text = format!("{lost} entries are lost: the journal did not take them");
            if self.socket.send(&entry(Level::Warning, &[("lost", &lost)], &text)).is_err() {
                self.lost.fetch_add(lost, Relaxed);
            }
        }
        if self.socket.send(&entry(level, fields, message)).is_err() {
            self.lost.fetch_add(1, Relaxed);
        }
    }
}

/// Whether standard error is connected to the journal: JOURNAL_STREAM has the device and
/// inode of that connection (systemd.exec(5)).
pub fn is_standard_error() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let stderr = io::stderr();
    nix::sys::stat::fstat(stderr.as_fd()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// An entry as it is sent.
fn entry(level: Level, fields: &[Field<'_>], message: &str) -> Vec<u8> {
    let mut cut = message.len().min(MOST_BYTES);
    while !message.is_char_boundary(cut) {
        cut -= 1;
    }
    let mut bytes = Vec::with_capacity(256 + cut);
    put(&mut bytes, "MESSAGE", &message[..cut]);
    put(&mut bytes, "PRIORITY", &(level as i32).to_string());
    put(&mut bytes, "SYSLOG_IDENTIFIER", "reprieve");
    for (name, text) in texts(fields) {
        put(&mut bytes, &format!("REPRIEVE_{}", name.to_ascii_uppercase()), &text);
    }
    bytes
}

/// A field; one with lines has its length before it, 64 bits, the lowest byte first.
fn put(bytes: &mut Vec<u8>, name: &str, value: &str) {
    bytes.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        bytes.push(b'\n');
        bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        bytes.push(b'=');
    }
    bytes.extend_from_slice(value.as_bytes());
    bytes.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_within_a_value_add_no_field() {
        let sent = entry(Level::Error, &[("cgroup", &"/a\nPRIORITY=0")], "no");
        let mut wanted = b"MESSAGE=no\nPRIORITY=3\nSYSLOG_IDENTIFIER=reprieve\nREPRIEVE_CGROUP\n".to_vec();
        wanted.extend_from_slice(&[13, 0, 0, 0, 0, 0, 0, 0]);
        wanted.extend_from_slice(b"/a\nPRIORITY=0\n");
        assert_eq!(String::from_utf8_lossy(&sent), String::from_utf8_lossy(&wanted));
    }

    #[test]
    fn what_nobody_takes_is_counted_and_told_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let reader = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::open_at(path.to_str().unwrap()).unwrap();
        // More than net.unix.max_dgram_qlen, and nobody reads: a socket that waits would
        // not come back.
        let sent = 4096;
        for _ in 0..sent {
            journal.send(Level::Info, &[], "x");
        }
        let lost = journal.lost.load(Relaxed);
        assert!(lost > 0 && lost < sent, "{lost}");
        reader.set_nonblocking(true).unwrap();
        let mut buffer = [0; 4096];
        let mut taken = 0;
        while reader.recv(&mut buffer).is_ok() {
            taken += 1;
        }
        assert_eq!(taken, sent - lost);
        journal.send(Level::Info, &[], "again");
        let size = reader.recv(&mut buffer).unwrap();
        let told = String::from_utf8_lossy(&buffer[..size]).into_owned();
        assert!(told.contains(&format!("REPRIEVE_LOST={lost}\n")), "{told}");
        let size = reader.recv(&mut buffer).unwrap();
        assert!(buffer[..size].starts_with(b"MESSAGE=again\n"));
    }

    #[test]
    fn a_message_that_is_too_long_is_cut_between_characters() {
        let sent = entry(Level::Info, &[], &"ä".repeat(MOST_BYTES));
        let text = String::from_utf8(sent).unwrap();
        assert_eq!(text.lines().next().unwrap().len(), "MESSAGE=".len() + MOST_BYTES);
    }
}
