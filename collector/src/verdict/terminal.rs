//! The terminal that a command was started on, where its user can be asked.

use super::Action;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// A terminal, and what has been typed so far.
#[derive(Debug)]
pub struct Terminal {
    file: File,
    line: Vec<u8>,
}

impl Terminal {
    /// The controlling terminal; the error says why nobody can be asked there.
    pub fn open() -> Result<Self, String> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/tty");
        file.map(|file| Terminal { file, line: Vec::new() })
            .map_err(|error| format!("there is no terminal to ask on ({error})"))
    }

    /// Asks.
    pub fn ask(&mut self, summary: &str, left: Duration) {
        self.say(&format!(
            "\n{summary}\nWhat now? grant=SIZE, throttle, reclaim, kill, freeze=TIME ({} s left, then the next action): ",
            left.as_secs()
        ));
    }

    /// Writes something; a terminal that is gone is noticed by reading.
    pub fn say(&mut self, text: &str) {
        let _ = self.file.write_all(text.as_bytes());
    }

    /// Readable when something was typed.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Takes what was typed, once it is readable: an action when there is one. What is none
    /// is told there. The error says why nobody can be asked any more.
    pub fn read(&mut self) -> Result<Option<Action>, String> {
        let mut bytes = [0; 256];
        match self.file.read(&mut bytes) {
            Ok(0) => return Err("the terminal was closed".to_owned()),
            Ok(n) => self.line.extend_from_slice(&bytes[..n]),
            Err(error) => return Err(format!("the terminal cannot be read ({error})")),
        }
        let Some(end) = self.line.iter().position(|&b| b == b'\n') else { return Ok(None) };
        let line: Vec<u8> = self.line.drain(..=end).collect();
        match String::from_utf8_lossy(&line).trim().parse::<Action>() {
            Ok(Action::Ask(_)) => self.say("You are being asked already: "),
            Ok(action) => return Ok(Some(action)),
            Err(error) => self.say(&format!("{error}\n? ")),
        }
        Ok(None)
    }
}
