//! The service manager that started us: it is told when we are ready, what we do, and
//! that we live (sd_notify(3)). Without one nothing is told.

use sd_notify::{NotifyState, notify};
use std::time::{Duration, Instant};

/// The manager, seen from the guard.
#[derive(Debug)]
pub struct Manager {
    /// How often it wants to hear of us: half of its patience, as it asks for.
    every: Option<Duration>,
    due: Instant,
    status: String,
}

impl Manager {
    /// As the environment says (`WATCHDOG_USEC`).
    pub fn of_environment() -> Self {
        let every = sd_notify::watchdog_enabled().map(|patience| patience / 2);
        Manager { every, due: Instant::now(), status: String::new() }
    }

    /// When it wants to hear of us.
    pub fn due(&self) -> Option<Instant> {
        self.every.map(|_| self.due)
    }

    /// Tells that we live, if it is time.
    pub fn live(&mut self) {
        if let Some(every) = self.every
            && self.due <= Instant::now()
        {
            tell(&[NotifyState::Watchdog]);
            self.due = Instant::now() + every;
        }
    }

    /// What there is to do is done, after the start or a reload.
    pub fn ready(&self) {
        tell(&[NotifyState::Ready]);
    }

    /// The configuration is read again.
    pub fn reloading(&self) {
        // systemd 253 and later want the time with it; no other kind of clock fails.
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            tell(&[NotifyState::Reloading, now]);
        }
    }

    /// We end.
    pub fn ending(&self) {
        tell(&[NotifyState::Stopping]);
    }

    /// What `systemctl status` shows.
    pub fn status(&mut self, status: String) {
        if status != self.status {
            tell(&[NotifyState::Status(&status)]);
            self.status = status;
        }
    }
}

/// A manager that does not listen is no reason to stop.
fn tell(state: &[NotifyState<'_>]) {
    let _ = notify(state);
}
