//! The list of jobs, kept ready for when nothing can be read any more.
//!
//! When an OOM begins a new one is asked for, in case it can be had: jobs fill a small
//! machine faster than they are listed.

use super::handover::timeout;
use super::jobs::{self, Job, List, Place};
use crate::cgroup::Memcg;
use crate::guardian::Priority;
use crate::say;
use crate::verdict::machine_memory;
use crate::verdict::worth::Worths;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::Builder;
use std::time::{Duration, Instant};

/// How old the list may be while there is memory.
const PERIOD: Duration = Duration::from_secs(1);
/// The same while there is little.
const SHORT_PERIOD: Duration = Duration::from_millis(100);
/// Less than this share of the memory is little.
const LITTLE_SHARE: u64 = 4;
/// How often to look for a list that was asked for.
const GLANCE: Duration = Duration::from_millis(2);

/// The newest list. It is locked for no longer than it takes to copy a pointer.
#[derive(Debug)]
pub struct Roster {
    list: Mutex<Arc<List>>,
    /// How many lists there were.
    turn: AtomicU64,
    bell: EventFd,
}

impl Roster {
    /// Lists the jobs, and has a thread, as urgent as that, list them again until the
    /// roster is dropped.
    pub fn keep(root: Memcg, depth: usize, worths: Worths, urgent: Priority) -> io::Result<Arc<Self>> {
        let mut keeper = Keeper { root, depth, worths, places: HashMap::new(), warned: false };
        let roster = Arc::new(Self::of(keeper.list())?);
        let weak = Arc::downgrade(&roster);
        Builder::new().name("reprieve-roster".to_owned()).spawn(move || {
            urgent.take();
            keeper.work(&weak);
        })?;
        Ok(roster)
    }

    /// A list that nobody makes anew.
    pub fn of(list: List) -> io::Result<Self> {
        let bell = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Roster { list: Mutex::new(Arc::new(list)), turn: AtomicU64::new(0), bell })
    }

    /// The jobs as they were a moment ago.
    pub fn now(&self) -> Arc<List> {
        Arc::clone(&self.list.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Asks for a new list; does not wait for it. The turn that the newest will have.
    pub fn ask(&self) -> u64 {
        let turn = self.turn.load(SeqCst) + 1;
        let _ = self.bell.write(1);
        turn
    }

    /// Waits until there was a list of that turn, or `until`.
    pub fn await_turn(&self, turn: u64, until: Instant) {
        while self.turn.load(SeqCst) < turn && Instant::now() < until {
            std::thread::sleep(GLANCE);
        }
    }

    fn replace(&self, list: Arc<List>) -> Arc<List> {
        let old = std::mem::replace(&mut *self.list.lock().unwrap_or_else(PoisonError::into_inner), list);
        self.turn.fetch_add(1, SeqCst);
        old
    }

    /// Sleeps until somebody asks, or so long.
    fn sleep(&self, period: Duration) {
        let bell = PollFd::new(self.bell.as_fd(), PollFlags::POLLIN);
        let _ = poll(&mut [bell], timeout(Some(Instant::now() + period)));
        let _ = self.bell.read();
    }
}

/// The thread that keeps it.
struct Keeper {
    root: Memcg,
    depth: usize,
    worths: Worths,
    /// Jobs that are open, by folder and its inode: a name may come again.
    places: HashMap<(PathBuf, u64), Arc<Place>>,
    warned: bool,
}

impl Keeper {
    fn work(mut self, roster: &Weak<Roster>) {
        // Lists that somebody still has: whoever drops the last copy closes files, and
        // that is to be us.
        let mut retired: Vec<Arc<List>> = Vec::new();
        while let Some(roster) = roster.upgrade() {
            let (memory, available) = machine_memory();
            roster.sleep(if available < memory / LITTLE_SHARE { SHORT_PERIOD } else { PERIOD });
            retired.push(roster.replace(Arc::new(self.list())));
            retired.retain(|list| Arc::strong_count(list) > 1);
        }
    }

    fn list(&mut self) -> List {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
        let mut places = HashMap::new();
        let mut jobs = Vec::new();
        for memcg in jobs::find(&self.root, self.depth, own) {
            let Ok(inode) = fs::metadata(memcg.dir()).map(|metadata| metadata.ino()) else { continue };
            let key = (memcg.dir().to_owned(), inode);
            let place = match self.places.get(&key) {
                Some(place) => Arc::clone(place),
                None => match Place::open(memcg.clone()) {
                    Ok(place) => Arc::new(place),
                    // It has just gone.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => {
                        if !std::mem::replace(&mut self.warned, true) {
                            let path = memcg.path();
                            say!(Warning, cgroup = path; "warning: {path} cannot be a job: {error}");
                        }
                        continue;
                    }
                },
            };
            if let Some(size) = place.usage() {
                let (priority, reservation) = (self.worths.priority(&memcg), self.worths.reservation(&memcg));
                jobs.push(Job::new(Arc::clone(&place), priority.unwrap_or(0), reservation, size));
            }
            places.insert(key, place);
        }
        self.places = places;
        List(jobs)
    }
}

#[cfg(test)]
mod tests {
    use super::super::jobs::tests::job;
    use super::*;

    #[test]
    fn who_asks_gets_a_list_that_is_newer() {
        let roster = Roster::of(List::default()).unwrap();
        let turn = roster.ask();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                roster.sleep(Duration::from_secs(10));
                roster.replace(Arc::new(List(vec![job("/a", 0, 4096, 0)])));
            });
            roster.await_turn(turn, Instant::now() + Duration::from_secs(10));
            assert_eq!(roster.now().0.len(), 1);
        });
        // It does not come: nobody waits for ever.
        roster.await_turn(turn + 1, Instant::now() + Duration::from_millis(5));
    }
}
