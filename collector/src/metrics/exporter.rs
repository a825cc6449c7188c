//! Starting `reprieve-metrics`, and starting it again.

use super::{Event, Feed, PROGRAM, Places};
use crate::say;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Most anonymous memory that it may have (RLIMIT_DATA).
const MEMORY_BYTES: u64 = 64 << 20;
/// It goes after everybody else when there is little CPU.
const NICE: i32 = 10;
/// One that ended is started again after this.
const AGAIN: Duration = Duration::from_secs(10);

/// The process, seen from the guard.
#[derive(Debug)]
pub struct Exporter {
    places: Places,
    running: Option<(Child, Feed)>,
    /// When to start it again.
    again: Option<Instant>,
}

impl Exporter {
    /// Starts it if there is a place for metrics.
    #[must_use]
    pub fn start(places: Places) -> Self {
        let mut exporter = Exporter { places, running: None, again: None };
        exporter.run();
        exporter
    }

    /// Where metrics are to be had.
    #[must_use]
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// The way to it; `None` while it does not run.
    #[must_use]
    pub fn feed(&self) -> Option<Feed> {
        self.running.as_ref().map(|(_, feed)| feed.clone())
    }

    /// Tells it, if it runs.
    pub fn tell(&self, event: &Event) {
        if let Some((_, feed)) = &self.running {
            feed.tell(event);
        }
    }

    /// Readable when it has ended.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.running.as_ref().map(|(_, feed)| feed.socket.as_fd())
    }

    /// When [`Exporter::revive`] is due.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.again
    }

    /// It has ended.
    pub fn ended(&mut self) {
        if let Some((mut child, _)) = self.running.take() {
            // Its end of the socket is closed: it is about to end if it has not.
            let _ = child.kill();
            let status = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
            say!(Warning; "{PROGRAM} ended ({status}); it is started again in {AGAIN:?}");
            self.again = Some(Instant::now() + AGAIN);
        }
    }

    /// Starts it again if it is time; true when it runs anew, and knows nothing.
    pub fn revive(&mut self) -> bool {
        if self.again.is_some_and(|at| at <= Instant::now()) {
            self.run();
            return self.running.is_some();
        }
        false
    }

    fn run(&mut self) {
        self.again = None;
        if self.places == Places::default() {
            return;
        }
        match spawn(&self.places) {
            Ok(running) => self.running = Some(running),
            Err(error) => {
                say!(Warning; "there are no metrics: {} cannot be started: {error}", program().display());
                self.again = Some(Instant::now() + AGAIN);
            }
        }
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        if let Some((mut child, feed)) = self.running.take() {
            // It counts what it was told, and ends; threads that answer OOMs may have copies.
            feed.close();
            let until = Instant::now() + Duration::from_secs(1);
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Beside our own program.
fn program() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.with_file_name(PROGRAM)
}

fn spawn(places: &Places) -> io::Result<(Child, Feed)> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    let mut command = Command::new(program());
    if let Some(listen) = places.listen {
        command.arg("--listen").arg(listen.to_string());
    }
    if let Some(textfile) = &places.textfile {
        command.arg("--textfile").arg(textfile);
    }
    // Whom the service manager watches is us alone (sd_notify(3)).
    command.env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_USEC").env_remove("WATCHDOG_PID");
    command.stdin(Stdio::from(theirs)).stdout(Stdio::null());
    // SAFETY: the closure makes system calls only, all of them async-signal-safe; it
    // allocates nothing.
    unsafe {
        command.pre_exec(|| {
            let limit = libc::rlimit { rlim_cur: MEMORY_BYTES, rlim_max: MEMORY_BYTES };
            libc::setrlimit(libc::RLIMIT_DATA, &raw const limit);
            libc::setpriority(libc::PRIO_PROCESS, 0, NICE);
            // ^C is for the guardian to answer; it ends when the socket does.
            libc::setsid();
            Ok(())
        });
    }
    Ok((command.spawn()?, Feed::new(ours)))
}
