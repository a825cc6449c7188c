//! Signals to the guardian, taken at places of our choosing.

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// Signals that ask us to end.
const ENDING: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// What can end every wait of a verdict.
pub trait Interrupt: fmt::Debug {
    /// Readable when there may be news.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Takes what is pending; returns whether something new came.
    fn take(&mut self) -> bool;

    /// The request to end, if there is one.
    fn ending(&self) -> Option<Ending>;
}

/// Blocks the ending signals and reads them.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
    ending: Option<Ending>,
    mask_before: SigSet,
    /// The one that does not ask to end.
    reloading: Option<Signal>,
    reload: bool,
}

/// A request to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// The last such signal.
    pub signal: Signal,
    /// Whether only we got it (kill(1)); the terminal's ^C reaches the whole
    /// foreground process group, our command included.
    pub forward: bool,
    /// How many came.
    pub count: u32,
}

impl Signals {
    /// Blocks the signals in this thread.
    pub fn block() -> io::Result<Self> {
        let mut ending = SigSet::empty();
        ENDING.iter().for_each(|&s| ending.add(s));
        // For a SIGCHLD that is kept, the thread that stops allocates in its own
        // memcg, which is full (do_notify_parent_cldstop, kernel/signal.c). Whoever
        // started us may even ignore it, and then no exit status could be had.
        let unheard = SigAction::new(SigHandler::SigDfl, SaFlags::SA_NOCLDSTOP, SigSet::empty());
        // SAFETY: the default action runs no code of ours, and nothing else here
        // handles SIGCHLD.
        unsafe { sigaction(Signal::SIGCHLD, &unheard)? };
        let mask_before = SigSet::thread_get_mask()?;
        ending.thread_block()?;
        let fd = SignalFd::with_flags(&ending, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Signals { fd, ending: None, mask_before, reloading: None, reload: false })
    }

    /// The same for a daemon, which SIGHUP asks to read its configuration again.
    pub fn block_for_daemon() -> io::Result<Self> {
        Ok(Signals { reloading: Some(Signal::SIGHUP), ..Self::block()? })
    }

    /// Whether the configuration is to be read again; told once.
    pub fn take_reload(&mut self) -> bool {
        std::mem::take(&mut self.reload)
    }

    /// The mask before, for the command.
    #[must_use]
    pub fn mask_before(&self) -> &SigSet {
        &self.mask_before
    }
}

impl Interrupt for Signals {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn take(&mut self) -> bool {
        let mut new = false;
        while let Ok(Some(info)) = self.fd.read_signal() {
            let Ok(signal) = Signal::try_from(info.ssi_signo as i32) else { continue };
            if self.reloading == Some(signal) {
                self.reload = true;
                continue;
            }
            self.ending = Some(Ending {
                signal,
                forward: info.ssi_code != libc::SI_KERNEL,
                count: self.ending.map_or(0, |e| e.count) + 1,
            });
            new = true;
        }
        new
    }

    fn ending(&self) -> Option<Ending> {
        self.ending
    }
}
