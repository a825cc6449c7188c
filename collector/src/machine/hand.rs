//! A thread that writes files of cgroups for the one that decides.
//!
//! A write can wait for `cgroup_mutex`, which somebody who waits for memory may hold,
//! or reclaim for seconds.

use super::handover::Handover;
use super::jobs::Place;
use crate::cgroup::Memcg;
use crate::guardian::Priority;
use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

/// Tasks that may wait to be done.
const ROOM: usize = 16;

/// What is to be done.
#[derive(Debug)]
pub enum Task {
    /// Have the kernel reclaim from a job down to so many bytes.
    Throttle(Arc<Place>, u64),
    /// Kill whoever was born while its job was killed.
    Sweep(Arc<Place>),
    /// Put `memory.high` back, and end.
    End,
}

/// The thread.
#[derive(Debug)]
pub struct Hand {
    tasks: Arc<Handover<Task>>,
    thread: JoinHandle<()>,
}

impl Hand {
    /// Starts it, as urgent as that.
    pub fn start(urgent: Priority) -> io::Result<Self> {
        let tasks = Arc::new(Handover::new(ROOM)?);
        let queue = Arc::clone(&tasks);
        let thread = Builder::new().name("reprieve-hand".to_owned()).spawn(move || {
            urgent.take();
            work(&queue);
        })?;
        Ok(Hand { tasks, thread })
    }

    /// Where to put tasks.
    pub fn tasks(&self) -> Arc<Handover<Task>> {
        Arc::clone(&self.tasks)
    }

    /// Ends it, with all files as they were.
    pub fn end(self) {
        if self.tasks.put(Task::End) {
            let _ = self.thread.join();
        }
    }
}

fn work(tasks: &Handover<Task>) {
    let mut throttled = Throttled::default();
    while let Some(task) = tasks.wait(None) {
        match task {
            Task::Throttle(place, bytes) => {
                throttled.remember(&place.memcg);
                // That it did not help shows in what the job uses.
                let _ = place.memcg.write("memory.high", &bytes.to_string());
            }
            // Gone is what it is to be.
            Task::Sweep(place) => drop(place.memcg.kill()),
            Task::End => return,
        }
    }
}

/// Throttled jobs, and `memory.high` before; put back when dropped.
#[derive(Default)]
struct Throttled(Vec<(Memcg, String)>);

impl Throttled {
    fn remember(&mut self, memcg: &Memcg) {
        if !self.0.iter().any(|(known, _)| known.path() == memcg.path())
            && let Ok(high) = memcg.read("memory.high")
        {
            self.0.push((memcg.clone(), high.trim().to_owned()));
        }
    }
}

impl Drop for Throttled {
    fn drop(&mut self) {
        for (memcg, high) in &self.0 {
            let _ = memcg.write("memory.high", high);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::{Hierarchy, Version};
    use std::fs::{self, File};

    #[test]
    fn a_throttle_is_taken_back_in_the_end() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        let high = dir.path().join("a/memory.high");
        fs::write(&high, "max\n").unwrap();
        let hierarchy = Hierarchy { version: Version::V2, mount: dir.path().to_owned(), own: "/".to_owned() };
        let nothing = [(); 3].map(|()| File::open("/dev/null").unwrap());
        let place = Arc::new(Place::of_files(Memcg::at(&hierarchy, "/a"), nothing));
        let hand = Hand::start(Priority::of_this_thread()).unwrap();
        for bytes in [4096, 8192] {
            assert!(hand.tasks().put(Task::Throttle(Arc::clone(&place), bytes)));
        }
        let begun = std::time::Instant::now();
        while fs::read_to_string(&high).unwrap() != "8192" {
            assert!(begun.elapsed().as_secs() < 10);
            std::thread::yield_now();
        }
        hand.end();
        assert_eq!(fs::read_to_string(&high).unwrap(), "max");
    }
}
