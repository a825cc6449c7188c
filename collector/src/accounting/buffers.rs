//! What waits in sockets and pipes.

use super::found::Family;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

/// A socket's buffers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buffers {
    /// How they are charged.
    pub family: Family,
    /// Bytes that the socket has taken for what it sends and receives.
    pub bytes: u64,
    /// Address and port, or path, of the other end; empty without one.
    pub peer: String,
}

/// Indices of SO_MEMINFO (include/uapi/linux/sock_diag.h).
const RMEM_ALLOC: usize = 0;
const WMEM_ALLOC: usize = 2;
const FWD_ALLOC: usize = 4;
const WMEM_QUEUED: usize = 5;
const BACKLOG: usize = 7;
const MEMINFO_WORDS: usize = 9;

/// Of a socket, by SO_MEMINFO (since Linux 4.12); `None` where it has none.
#[must_use]
pub fn of_socket(socket: BorrowedFd<'_>) -> Option<Buffers> {
    let words: [u32; MEMINFO_WORDS] = option(socket, libc::SO_MEMINFO)?;
    let domain: i32 = option(socket, libc::SO_DOMAIN)?;
    let family = if [libc::AF_INET, libc::AF_INET6].contains(&domain) { Family::Network } else { Family::Kernel };
    Some(Buffers { family, bytes: charged(&words, family), peer: peer(socket) })
}

/// What of the words is taken from memory.
fn charged(words: &[u32; MEMINFO_WORDS], family: Family) -> u64 {
    let word = |index: usize| u64::from(words[index]);
    match family {
        // TCP takes whole pages, of which FWD_ALLOC are not used yet; what it has queued
        // to send is in WMEM_ALLOC, too, once it is on its way.
        Family::Network => word(RMEM_ALLOC) + word(WMEM_QUEUED).max(word(WMEM_ALLOC)) + word(FWD_ALLOC) + word(BACKLOG),
        // What a unix socket sent and nobody has read is the sender's. A socket that waits
        // for none has one byte taken (sk_alloc, net/core/sock.c).
        Family::Kernel => word(RMEM_ALLOC) + word(WMEM_ALLOC).saturating_sub(1) + word(BACKLOG),
    }
}

fn option<T: Copy + Default + Words>(socket: BorrowedFd<'_>, name: i32) -> Option<T> {
    let mut value = T::default();
    let mut length = mem::size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `value`, of whose type every
    // pattern is a value.
    let done = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut length)
    };
    (done == 0 && length > 0).then_some(value)
}

/// Types of which every pattern is a value.
trait Words {}
impl Words for i32 {}
impl Words for [u32; MEMINFO_WORDS] {}

/// The other end's name. A unix socket mostly has none.
fn peer(socket: BorrowedFd<'_>) -> String {
    // SAFETY: sockaddr_storage has only integers, for which zero is a value.
    let mut address: libc::sockaddr_storage = unsafe { mem::zeroed() };
    let mut length = mem::size_of_val(&address) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `address`, a live local.
    if unsafe { libc::getpeername(socket.as_raw_fd(), (&raw mut address).cast(), &raw mut length) } != 0 {
        return String::new();
    }
    // SAFETY: as many bytes as the storage has, all of them initialised.
    let bytes = unsafe {
        std::slice::from_raw_parts((&raw const address).cast::<u8>(), (length as usize).min(mem::size_of_val(&address)))
    };
    name_of(i32::from(address.ss_family), bytes)
}

/// A socket address as text (ip(7), ipv6(7), unix(7)).
fn name_of(family: i32, bytes: &[u8]) -> String {
    let port = bytes.get(2..4).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]));
    match family {
        libc::AF_INET => match bytes.get(4..8).and_then(|b| <[u8; 4]>::try_from(b).ok()) {
            Some(ip) => format!("{}:{port}", Ipv4Addr::from(ip)),
            None => String::new(),
        },
        libc::AF_INET6 => match bytes.get(8..24).and_then(|b| <[u8; 16]>::try_from(b).ok()) {
            Some(ip) => format!("[{}]:{port}", Ipv6Addr::from(ip)),
            None => String::new(),
        },
        libc::AF_UNIX => {
            let path = bytes.get(2..).unwrap_or_default();
            // An abstract name begins with a zero.
            let (at, path) = path.strip_prefix(&[0]).map_or(("", path), |rest| ("@", rest));
            let path = path.split(|b| *b == 0).next().unwrap_or_default();
            if path.is_empty() { String::new() } else { format!("{at}{}", String::from_utf8_lossy(path)) }
        }
        _ => String::new(),
    }
}

/// Bytes that wait in a pipe (FIONREAD, pipe(7)).
#[must_use]
pub fn of_pipe(pipe: BorrowedFd<'_>) -> u64 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes an int to `bytes`, a live local.
    let done = unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    if done == 0 { u64::try_from(bytes).unwrap_or(0) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;

    #[test]
    fn what_is_sent_and_not_read_is_the_senders() {
        let (mut sender, receiver) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(of_socket(sender.as_fd()).unwrap().bytes, 0);
        sender.write_all(&[7; 100_000]).unwrap();
        let (sent, received) = (of_socket(sender.as_fd()).unwrap(), of_socket(receiver.as_fd()).unwrap());
        assert!((100_000..200_000).contains(&sent.bytes), "{sent:?}");
        assert_eq!((received.bytes, sent.family, sent.peer.as_str()), (0, Family::Kernel, ""));
    }

    #[test]
    fn a_connection_has_a_peer() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let buffers = of_socket(client.as_fd()).unwrap();
        assert_eq!((buffers.family, buffers.peer), (Family::Network, listener.local_addr().unwrap().to_string()));
        assert_eq!(of_socket(tempfile::tempfile().unwrap().as_fd()), None);
    }

    #[test]
    fn pipes_are_measured_and_nothing_is_read() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        assert_eq!(of_pipe(reader.as_fd()), 0);
        writer.write_all(&[1; 5000]).unwrap();
        assert_eq!((of_pipe(reader.as_fd()), of_pipe(writer.as_fd())), (5000, 5000));
    }

    #[test]
    fn addresses_of_any_length() {
        let v4 = [2, 0, 0x1f, 0x90, 127, 0, 0, 1, 0, 0];
        assert_eq!(name_of(libc::AF_INET, &v4), "127.0.0.1:8080");
        let mut v6 = [0; 28];
        (v6[3], v6[23]) = (80, 1);
        assert_eq!(name_of(libc::AF_INET6, &v6), "[::1]:80");
        assert_eq!(name_of(libc::AF_UNIX, b"\x01\0/run/x\0y"), "/run/x");
        assert_eq!(name_of(libc::AF_UNIX, b"\x01\0\0hidden"), "@hidden");
        for family in [libc::AF_INET, libc::AF_INET6, libc::AF_UNIX, 77] {
            for length in 0..3 {
                assert_eq!(name_of(family, &v4[..length]), "", "{family} {length}");
            }
        }
        assert_eq!(name_of(libc::AF_INET, &v4[..7]), "");
        assert_eq!(name_of(libc::AF_INET6, &v6[..23]), "");
    }
}
