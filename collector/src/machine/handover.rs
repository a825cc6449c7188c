//! Words from a thread that must not wait for memory to threads that may.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A queue with a bell. Its room is there from the start and nothing is done while
/// it is locked but moving an item, so that [`Handover::put`] allocates nothing and
/// waits for nobody.
#[derive(Debug)]
pub struct Handover<T> {
    items: Mutex<VecDeque<T>>,
    room: usize,
    bell: EventFd,
}

impl<T> Handover<T> {
    /// A queue for so many items.
    pub fn new(room: usize) -> nix::Result<Self> {
        let bell = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Handover { items: Mutex::new(VecDeque::with_capacity(room)), room, bell })
    }

    /// Adds an item and rings; false if there is no room, which loses it.
    pub fn put(&self, item: T) -> bool {
        let mut items = self.items();
        if items.len() >= self.room {
            return false;
        }
        items.push_back(item);
        drop(items);
        // EAGAIN: it has rung 2⁶⁴ - 2 times and rings still.
        let _ = self.bell.write(1);
        true
    }

    /// Takes the oldest; silences the bell when there is none.
    pub fn take(&self) -> Option<T> {
        let item = self.items().pop_front();
        item.or_else(|| {
            let _ = self.bell.read();
            // It may have come just before the silence.
            self.items().pop_front()
        })
    }

    /// Takes the oldest; waits for it until `until`, for ever without.
    pub fn wait(&self, until: Option<Instant>) -> Option<T> {
        loop {
            if let Some(item) = self.take() {
                return Some(item);
            }
            match poll(&mut [self.bell()], timeout(until)) {
                Ok(_) | Err(Errno::EINTR) if until.is_none_or(|until| Instant::now() < until) => {}
                _ => return self.take(),
            }
        }
    }

    /// Ready while it rings.
    pub fn bell(&self) -> PollFd<'_> {
        PollFd::new(self.bell.as_fd(), PollFlags::POLLIN)
    }

    fn items(&self) -> MutexGuard<'_, VecDeque<T>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For poll(2), rounded up.
pub fn timeout(until: Option<Instant>) -> PollTimeout {
    until.map_or(PollTimeout::NONE, |until| {
        let left = until.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn items_come_in_order_and_beyond_the_room_are_refused() {
        let queue = Handover::new(2).unwrap();
        assert!(queue.put(1) && queue.put(2));
        assert!(!queue.put(3));
        let soon = Some(Instant::now() + Duration::from_millis(20));
        assert_eq!([queue.wait(soon), queue.wait(soon), queue.wait(soon)], [Some(1), Some(2), None]);
        assert!(queue.put(4));
    }

    #[test]
    fn who_waits_is_woken() {
        let queue = Handover::new(1).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| queue.wait(None));
            assert!(queue.put(7));
            assert_eq!(waiter.join().unwrap(), Some(7));
        });
    }
}
