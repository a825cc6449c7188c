//! What others are told of the guard: the service manager, metrics, and whoever reads the
//! log of other killers.

use super::{EXPORTER, Guard};
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

    /// How many are guarded and answered, where that has changed.
    pub(super) fn tell_state(&mut self) {
        let guarded = self.numbers.len() as u64;
        let answering = self.posts.values().filter(|post| post.is_out()).count() as u64;
        if self.told.replace((guarded, answering)) == Some((guarded, answering)) {
            return;
        }
        self.exporter.tell(&Event::State { guarded, answering, locked_bytes: own_status_bytes("VmLck") });
        let of_ooms = match answering {
            0 => String::new(),
            count => format!(", answering {}", units::count(count, "OOM")),
        };
        self.manager.status(format!("guarding {}{of_ooms}", units::count(guarded, "cgroup")));
    }

    /// Everything, to who knows nothing yet or when everything may be otherwise.
    pub(super) fn tell_all(&mut self) {
        self.told = None;
        self.tell_state();
        self.exporter.tell(&Event::Configured { is_right: true });
        let killers = killers::active();
        for killer in &killers {
            let (name, pid) = (&killer.name, killer.pid);
            say!(Warning, killer = name;
                "warning: {name} [{pid}] kills for memory, too, and may be first: {}", killers::remedy(name));
        }
        self.exporter.tell(&Event::Killers { names: killers::names(&killers) });
    }
}
