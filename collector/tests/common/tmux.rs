//! A program on a terminal, as a person sees and uses it.
#![allow(dead_code, reason = "each test program uses its part")]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A terminal of 100 by 30, gone with what runs on it.
pub struct Tmux {
    server: String,
}

impl Tmux {
    /// Starts a command there.
    pub fn start(words: &[&str]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let server = format!("reprieve-{}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed));
        let tmux = Tmux { server };
        let shell = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
        // tmux sets SHELL itself.
        let command = format!("env SHELL=/bin/sh 'PS1=$ ' {shell}");
        // What is left when it has ended is still to be seen.
        let remain = [";", "set-option", "-g", "remain-on-exit", "on"];
        let output = tmux.tmux(&[&["new-session", "-d", "-x", "100", "-y", "30", &command][..], &remain[..]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        tmux
    }

    fn tmux(&self, words: &[&str]) -> Output {
        let mut tmux = Command::new("tmux");
        tmux.args(["-u", "-L", &self.server, "-f", "/dev/null"]).args(words).env_remove("TMUX");
        tmux.output().expect("tmux is missing; run `cargo xtask test`")
    }

    /// What is on the screen, without blanks at the ends of lines.
    pub fn screen(&self) -> String {
        let text = String::from_utf8(self.tmux(&["capture-pane", "-p"]).stdout).unwrap();
        text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
    }

    /// Presses keys, by their names.
    pub fn press(&self, keys: &[&str]) {
        assert!(self.tmux(&[&["send-keys"], keys].concat()).status.success(), "{keys:?}");
    }

    /// Waits until all of these are on the screen, and it is drawn to its end; returns it.
    pub fn wait_for(&self, parts: &[&str]) -> String {
        let begun = Instant::now();
        let mut before = String::new();
        loop {
            let screen = self.screen();
            let is_done = timeless(&screen) == timeless(&before);
            if is_done && parts.iter().all(|part| screen.contains(part)) {
                return screen;
            }
            before = screen.clone();
            assert!(begun.elapsed() < Duration::from_secs(60), "never saw {parts:?}:\n{screen}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the countdown of the hold that is chosen has gone on by so many seconds.
    pub fn wait_for_seconds(&self, seconds: u32) {
        let begun = Instant::now();
        let mut first = None;
        loop {
            let left = seconds_left(&self.screen());
            first = first.or(left);
            if left.zip(first).is_some_and(|(left, first)| left + seconds <= first) {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "the countdown stands still:\n{}", self.screen());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits for the end of the command; returns its exit status. (tmux says so on the
    /// screen, too, but not always where the program had another screen until then.)
    pub fn end(&self) -> String {
        let begun = Instant::now();
        loop {
            match self.ask("#{pane_dead}:#{pane_dead_status}").as_str() {
                // It knows that the terminal was closed, and has missed the signal that its
                // child has ended (1 of 20 times): another has it look.
                "1:" => kill(Pid::from_raw(self.ask("#{pid}").parse().unwrap()), Signal::SIGCHLD).unwrap(),
                told => {
                    if let Some(status) = told.strip_prefix("1:") {
                        return status.to_owned();
                    }
                }
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "it runs on:\n{}", self.screen());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What it knows of its only window.
    fn ask(&self, format: &str) -> String {
        let output = self.tmux(&["list-panes", "-F", format]);
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// PID of the command.
    pub fn pid(&self) -> i32 {
        self.ask("#{pane_pid}").parse().unwrap()
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

/// The seconds that are left of the hold that is chosen.
fn seconds_left(screen: &str) -> Option<u32> {
    screen.lines().find_map(|line| line.strip_prefix('>')?.split_once(" s  ")?.0.trim().parse().ok())
}

/// A screen without the seconds that are left of holds.
pub fn timeless(screen: &str) -> String {
    let line = |line: &str| match line.split_once(" s  ") {
        Some((left, rest)) if left.trim_start_matches(['>', ' ']).parse::<u32>().is_ok() => {
            format!("{}      …  {rest}\n", &left[..1])
        }
        _ => format!("{line}\n"),
    };
    screen.lines().map(line).collect()
}
