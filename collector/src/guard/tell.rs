//! What others are told of the guard: the service manager, metrics, and whoever reads the
//! log of other killers.

use super::{DEPUTY, EXPORTER, Guard};
use crate::guardian::own_status_bytes;
use crate::incident::units;
use crate::metrics::Event;
use crate::{killers, say};
use nix::sys::epoll::{EpollEvent, EpollFlags};

impl Guard {
    /// Hears when the process with the metrics ends.
    pub(super) fn listen_to_exporter(&mut self) {
        let Some(fd) = self.exporter.fd() else { return };
        // Nothing comes that way but its end.
        if let Err(errno) = self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLRDHUP, EXPORTER)) {
            say!(Warning; "the end of metrics would not be heard: {errno}");
        }
    }

    /// Hears of it no more: while a thread that answers an OOM has a copy of the socket, it
    /// would go on to be readable.
    pub(super) fn leave_exporter(&mut self) {
        if let Some(fd) = self.exporter.fd() {
            let _ = self.epoll.delete(fd);
        }
    }

    /// Hears what the deputy tells, and of its end.
    pub(super) fn listen_to_deputy(&mut self) {
        let Some(fd) = self.deputy.fd() else { return };
        if let Err(errno) = self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, DEPUTY)) {
            say!(Warning; "OOMs of the machine would not be counted: {errno}");
        }
    }

    /// What it tells is counted as what we do.
    pub(super) fn hear_deputy(&mut self) {
        self.deputy.hear().iter().for_each(|event| self.exporter.tell(event));
    }

    /// How many are guarded and answered, where that has changed.
    pub(super) fn tell_state(&mut self) {
        let guarded = self.numbers.len() as u64;
        let answering = self.posts.values().filter(|post| post.is_out()).count() as u64;
        let is_answered = self.deputy.is_answering();
        if self.told.replace((guarded, answering, is_answered)) == Some((guarded, answering, is_answered)) {
            return;
        }
        self.exporter.tell(&Event::State { guarded, answering, locked_bytes: own_status_bytes("VmLck") });
        let of_ooms = match answering {
            0 => String::new(),
            count => format!(", answering {}", units::count(count, "OOM")),
        };
        let machine = if is_answered { " and the machine" } else { "" };
        self.manager.status(format!("guarding {}{machine}{of_ooms}", units::count(guarded, "cgroup")));
    }

    /// Everything, to who knows nothing yet or when everything may be otherwise.
    pub(super) fn tell_all(&mut self) {
        self.told = None;
        self.tell_state();
        self.exporter.tell(&Event::Configured { is_right: true });
        self.exporter.tell(&Event::Machine { is_answered: self.deputy.is_answering() });
        let killers = killers::active();
        for killer in &killers {
            let (name, pid) = (&killer.name, killer.pid);
            say!(Warning, killer = name;
                "warning: {name} [{pid}] kills for memory, too, and may be first: {}", killers::remedy(name));
        }
        self.exporter.tell(&Event::Killers { names: killers::names(&killers) });
    }
}
