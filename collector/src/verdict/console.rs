//! Asking a person on the terminal while the program is stopped.

use super::Action;
use crate::signals::Interrupt;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Shows `summary` and reads an action from the controlling terminal. The
/// error says why nobody answered.
pub fn ask(summary: &str, time: Duration, signals: &mut dyn Interrupt) -> Result<Action, String> {
    let mut terminal = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/tty")
        .map_err(|error| format!("there is no terminal to ask on ({error})"))?;
    let deadline = Instant::now() + time;
    let mut question = format!(
        "\n{summary}\nWhat now? grant=SIZE, throttle, reclaim, kill, freeze=TIME ({} s left, then the next action): ",
        time.as_secs()
    );
    loop {
        let _ = terminal.write_all(question.as_bytes());
        let line = read_line(&mut terminal, deadline, signals)?;
        match line.trim().parse::<Action>() {
            Ok(Action::Ask(_)) => question = "You are being asked already: ".to_owned(),
            Ok(action) => return Ok(action),
            Err(error) => question = format!("{error}\n? "),
        }
    }
}

/// Reads a line before the deadline.
fn read_line(terminal: &mut File, deadline: Instant, signals: &mut dyn Interrupt) -> Result<String, String> {
    let mut line = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err("nobody answered in time".to_owned());
        }
        let ready = {
            let mut fds =
                [PollFd::new(terminal.as_fd(), PollFlags::POLLIN), PollFd::new(signals.fd(), PollFlags::POLLIN)];
            let _ = poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
            fds[0].any().unwrap_or(false)
        };
        if signals.take() {
            return Err("interrupted".to_owned());
        }
        if ready {
            let mut bytes = [0; 256];
            match terminal.read(&mut bytes) {
                Ok(0) => return Err("the terminal was closed".to_owned()),
                Ok(n) => line.extend_from_slice(&bytes[..n]),
                Err(error) => return Err(format!("the terminal cannot be read ({error})")),
            }
            if let Some(end) = line.iter().position(|&b| b == b'\n') {
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
        }
    }
}
