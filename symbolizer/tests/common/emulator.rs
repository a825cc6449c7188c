//! An emulator of aarch64 that is told what to do as a debugger does (GDB Remote Serial
//! Protocol).

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where Debian's cross compiler has the libraries of that machine.
const SYSROOT: &str = "/usr/aarch64-linux-gnu";
/// Numbers of signals in the protocol (gdb/include/gdb/signals.def).
pub const TRAP: u8 = 5;

/// The emulator, and what it says to a debugger (GDB Remote Serial Protocol).
pub struct Emulator {
    child: Child,
    stream: UnixStream,
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // Gone already if all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Emulator {
    pub fn start(program: &Path, socket: &Path, cpu: &str) -> Self {
        let child = Command::new("qemu-aarch64")
            .args(["-cpu", cpu, "-L", SYSROOT, "-g"])
            .args([socket, program])
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-user is installed");
        let begun = Instant::now();
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(20), "{error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Emulator { child, stream }
    }

    /// `$text#sum`, and the answer's text.
    pub fn ask(&mut self, text: &str) -> String {
        let sum = text.bytes().fold(0u8, u8::wrapping_add);
        self.stream.write_all(format!("${text}#{sum:02x}").as_bytes()).unwrap();
        let mut answer = Vec::new();
        let mut bytes = [0; 4096];
        while answer.iter().rev().nth(2) != Some(&b'#') {
            let n = self.stream.read(&mut bytes).unwrap();
            assert!(n > 0, "the emulator ended");
            answer.extend(&bytes[..n]);
        }
        self.stream.write_all(b"+").unwrap();
        let begin = answer.iter().position(|&byte| byte == b'$').unwrap() + 1;
        String::from_utf8(answer[begin..answer.len() - 3].to_vec()).unwrap()
    }

    /// x0 to x30, the stack pointer and the instruction pointer.
    pub fn registers(&mut self) -> [u64; 33] {
        let bytes = from_hex(&self.ask("g")).unwrap();
        let mut words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
        std::array::from_fn(|_| words.next().unwrap())
    }

    pub fn word(&mut self, address: u64) -> Option<u64> {
        from_hex(&self.ask(&format!("m{address:x},8"))).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
    }

    /// The signal that it stopped for; `None` where it ended well.
    pub fn go(&mut self, how: &str) -> Option<u8> {
        let answer = self.ask(how);
        match answer.as_bytes()[0] {
            b'T' | b'S' => Some(u8::from_str_radix(&answer[1..3], 16).unwrap()),
            _ => {
                assert_eq!(answer, "W00");
                None
            }
        }
    }
}

pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    // An error is E and its number.
    if text.starts_with('E') {
        return None;
    }
    text.as_bytes().chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok()).collect()
}
