//! Who answers OOMs of the machine itself: `reprieve machine`, a process of its own
//! (docs/decisions/0027).
//!
//! It says what it does through the log, as we do, and tells us what is to be counted. That it
//! has ended we hear when its watchdog has put everything back, too.

use super::settings::{Given, Settings};
use crate::metrics::{self, Event};
use crate::{machine, say};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// One that ended is started again after this, after twice as long when that ended as well,
const PAUSE: Duration = Duration::from_secs(1);
/// and so on, up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(256);
/// Who lived so long is not who ends again and again.
const WELL_TIME: Duration = Duration::from_secs(60);

/// In milliseconds: how often others are heard of while it ends.
const MEANWHILE: u16 = 100;

/// What it is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// A configuration.
    config: String,
    /// What wins over it.
    arguments: Vec<OsString>,
}

impl Order {
    /// As is configured; `None` where nobody is to answer, or can, which is told.
    pub fn of(given: &Given, settings: &Settings) -> Option<Self> {
        let answer = settings.config.machine_answer();
        if answer == Some(false) {
            return None;
        }
        let left = "OOMs of the machine are left to the kernel";
        if given.apply(settings.config.guarded("/")).is_dry {
            say!(Info, cgroup = "/"; "dry run: {left}");
            return None;
        }
        if let Err(missing) = machine::root() {
            match answer {
                Some(_) => say!(Error, cgroup = "/"; "{left}, though machine.answer is true: {missing}"),
                None => say!(Info, cgroup = "/"; "{left}: {missing}"),
            }
            return None;
        }
        let mut arguments: Vec<OsString> = Vec::new();
        given.log.iter().for_each(|form| arguments.extend(["--log".into(), form.name().into()]));
        given.out.iter().for_each(|dir| arguments.extend(["--out".into(), dir.into()]));
        arguments.extend(given.with_cmdline.then(|| "--with-cmdline".into()));
        Some(Order { config: settings.config.of_machine().show(false), arguments })
    }

    /// Starts who does it; with it, the socket through which it tells. By posix_spawn(3), since
    /// nothing is to be done between fork and exec: a fork would make all our pages read-only.
    fn start(&self) -> io::Result<(Child, OwnedFd)> {
        let mut config = File::from(memfd_create(c"reprieve-machine", MFdFlags::MFD_CLOEXEC)?);
        config.write_all(self.config.as_bytes())?;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("reprieve-machine").arg("machine").args(&self.arguments);
        command.arg("--of-guard").arg(std::process::id().to_string());
        // Whom the service manager watches is us alone (sd_notify(3)).
        command.env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_USEC").env_remove("WATCHDOG_PID");
        // ^C is for us to answer.
        command.stdin(Stdio::from(config)).stdout(Stdio::from(theirs)).process_group(0);
        Ok((command.spawn()?, ours))
    }
}

/// The process, seen from the guard.
#[derive(Debug)]
pub struct Deputy {
    order: Option<Order>,
    running: Option<Running>,
    /// When to start it.
    due: Option<Instant>,
    pause: Duration,
}

#[derive(Debug)]
struct Running {
    child: Child,
    told: OwnedFd,
    since: Instant,
    /// Whether it was asked to end.
    is_ending: bool,
    is_answering: bool,
}

impl Deputy {
    /// One that has nothing to do.
    pub fn new() -> Self {
        Deputy { order: None, running: None, due: None, pause: PAUSE }
    }

    /// Has it done as ordered, by another one if it is not done so already.
    pub fn order(&mut self, order: Option<Order>) {
        if order == self.order {
            return;
        }
        self.order = order;
        self.pause = PAUSE;
        match &mut self.running {
            Some(running) => running.end(),
            None => self.due = Some(Instant::now()),
        }
    }

    /// Whether OOMs of the machine are answered.
    pub fn is_answering(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.is_answering)
    }

    /// Whether there is one.
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Readable when it has told something, or has ended.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.running.as_ref().map(|running| running.told.as_fd())
    }

    /// When [`Deputy::start_if_due`] is.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Starts it if it is time; whether it runs since now.
    pub fn start_if_due(&mut self) -> bool {
        if self.due.is_none_or(|at| at > Instant::now()) {
            return false;
        }
        self.due = None;
        let Some(order) = &self.order else { return false };
        match order.start() {
            Ok((child, told)) => {
                let since = Instant::now();
                self.running = Some(Running { child, told, since, is_ending: false, is_answering: false });
            }
            Err(error) => self.again(&format!("cannot be started: {error}")),
        }
        self.is_running()
    }

    /// What it has told, without waiting for it.
    pub fn hear(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(running) = self.running.as_mut().filter(|running| running.has_told()) {
            match metrics::take(&running.told) {
                Some(Ok(event)) => {
                    running.is_answering |= event == Event::Machine { is_answered: true };
                    events.push(event);
                }
                // It is of our version, and says nothing else.
                Some(Err(_)) => {}
                None => {
                    self.ended();
                    events.push(Event::Machine { is_answered: false });
                }
            }
        }
        events
    }

    /// Waits for one that was asked to end until then; from then on its watchdog sees to it.
    pub fn wait(&mut self, until: Instant, mut meanwhile: impl FnMut(Vec<Event>)) {
        while self.is_running() {
            if Instant::now() >= until {
                self.running.iter_mut().for_each(|running| drop(running.child.kill()));
            }
            meanwhile(self.hear());
            if let Some(running) = &self.running {
                running.wait(MEANWHILE);
            }
        }
    }

    fn ended(&mut self) {
        let Some(mut running) = self.running.take() else { return };
        let status = running.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
        if running.is_ending {
            self.due = Some(Instant::now());
            return;
        }
        if running.since.elapsed() >= WELL_TIME {
            self.pause = PAUSE;
        }
        self.again(&format!("ended ({status})"));
    }

    fn again(&mut self, why: &str) {
        let pause = self.pause;
        say!(Warning, cgroup = "/";
            "who answers OOMs of the machine {why}; until it is started again, in {pause:?}, they are left to the kernel");
        self.due = Some(Instant::now() + pause);
        self.pause = LONGEST_PAUSE.min(2 * pause);
    }
}

impl Running {
    fn has_told(&self) -> bool {
        self.wait(PollTimeout::ZERO)
    }

    /// Waits until it has told something, or has ended; whether it has.
    fn wait(&self, at_most: impl Into<PollTimeout>) -> bool {
        let mut told = [PollFd::new(self.told.as_fd(), PollFlags::POLLIN)];
        poll(&mut told, at_most.into()).is_ok_and(|count| count > 0)
    }

    fn end(&mut self) {
        self.is_ending = true;
        // It has not been waited for, so the PID is its own.
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(config: &str) -> Order {
        Order { config: config.to_owned(), arguments: Vec::new() }
    }

    #[test]
    fn one_that_ends_is_started_again_after_pauses_that_grow() {
        let mut deputy = Deputy::new();
        assert!(!deputy.start_if_due());
        deputy.order(Some(order("a")));
        for seconds in [1, 2, 4] {
            assert!(deputy.start_if_due());
            // The program of the tests knows no such options, and ends.
            let (begun, mut told) = (Instant::now(), Vec::new());
            while deputy.is_running() {
                told.extend(deputy.hear());
                assert!(begun.elapsed() < Duration::from_secs(20));
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(told, [Event::Machine { is_answered: false }]);
            assert!(!deputy.start_if_due());
            let pause = Duration::from_secs(seconds);
            let left = deputy.due().unwrap().saturating_duration_since(Instant::now());
            assert!(pause / 2 < left && left <= pause, "{left:?} of {pause:?}");
            deputy.due = Some(Instant::now());
        }
        // What is ordered anew is tried at once.
        deputy.order(Some(order("b")));
        assert_eq!(deputy.pause, PAUSE);
        assert!(deputy.start_if_due());
        // One that is asked to end is followed by nobody without an order, and by no pause with one.
        deputy.order(Some(order("c")));
        deputy.wait(Instant::now() + Duration::from_secs(20), |_| {});
        assert!(deputy.start_if_due());
        deputy.order(None);
        deputy.wait(Instant::now() + Duration::from_secs(20), |_| {});
        assert!(!deputy.start_if_due());
    }
}
