//! A desk that two share, of whom the busy one lets the other have it first.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// How often who waits looks.
const LOOK: Duration = Duration::from_micros(200);

/// The desk, which the thread has nearly all the time that it is busy: a mutex alone would go
/// back to it whenever it lets go.
#[derive(Debug)]
pub struct Office<T> {
    desk: Mutex<T>,
    /// Whether a snapshot waits.
    is_asked_for: AtomicBool,
}

impl<T> Office<T> {
    /// One with this desk.
    pub fn of(desk: T) -> Self {
        Office { desk: Mutex::new(desk), is_asked_for: AtomicBool::new(false) }
    }

    /// The desk, as soon as the thread lets go of it.
    pub fn ask(&self, until: Instant) -> Option<MutexGuard<'_, T>> {
        self.is_asked_for.store(true, Ordering::Relaxed);
        let desk = loop {
            match self.desk.try_lock() {
                Ok(desk) => break Some(desk),
                Err(TryLockError::Poisoned(poisoned)) => break Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() >= until => break None,
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOOK),
            }
        };
        self.is_asked_for.store(false, Ordering::Relaxed);
        desk
    }

    /// The desk for the thread, which lets a snapshot have it first.
    pub fn take(&self) -> MutexGuard<'_, T> {
        while self.is_asked_for.load(Ordering::Relaxed) {
            std::thread::sleep(LOOK);
        }
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thread that lets go of the desk for a moment only.
    #[test]
    fn a_snapshot_need_not_wait_until_the_thread_is_idle() {
        let office = Office::of(());
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let desk = office.take();
                    std::thread::sleep(Duration::from_millis(2));
                    drop(desk);
                }
            });
            let had = (0..50).filter(|_| {
                std::thread::sleep(Duration::from_millis(1));
                office.ask(Instant::now() + Duration::from_secs(5)).is_some()
            });
            let had = had.count();
            is_over.store(true, Ordering::Relaxed);
            assert_eq!(had, 50);
        });
    }
}
