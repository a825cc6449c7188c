//! Threads that read `/proc` and can be left alone.
//!
//! A file of a process can wait for a lock that one of its threads holds while it
//! waits for memory. Each process is read by one of a few threads that were there
//! before; what comes late is taken as long as somebody waits for it.

use crate::guardian::Priority;
use crate::hold::stop::HeldThread;
use crate::snapshot::{self, Evidence, Options};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;
use std::time::Instant;

/// So many processes may hang before nothing is read any more.
const READERS: usize = 8;
/// Processes that are missed by name; more are counted.
const NAMED: usize = 8;

/// Who reads.
#[derive(Debug)]
pub struct Readers(Sender<Task>);

struct Task {
    pid: i32,
    held: Arc<BTreeMap<i32, HeldThread>>,
    options: Options,
    /// Nobody wants it any more.
    is_off: Arc<AtomicBool>,
    answer: Sender<(i32, Evidence)>,
}

impl Readers {
    /// Starts them, as urgent as that. They end with their last task when this is dropped.
    pub fn start(urgent: Priority) -> io::Result<Self> {
        let (tasks, receiver) = mpsc::channel();
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..READERS {
            let receiver = Arc::clone(&receiver);
            Builder::new().name("reprieve-reader".to_owned()).spawn(move || {
                urgent.take();
                work(&receiver);
            })?;
        }
        Ok(Readers(tasks))
    }

    /// Begins to read processes, whose threads were stopped as `held` says.
    pub fn read(&self, pids: Vec<i32>, held: BTreeMap<i32, HeldThread>, options: Options) -> Reading {
        let (answer, answers) = mpsc::channel();
        let (held, is_off) = (Arc::new(held), Arc::new(AtomicBool::new(false)));
        for &pid in &pids {
            let (held, is_off, answer) = (Arc::clone(&held), Arc::clone(&is_off), answer.clone());
            let _ = self.0.send(Task { pid, held, options, is_off, answer });
        }
        Reading { missing: pids, taken: Vec::new(), is_off, answers }
    }
}

fn work(tasks: &Mutex<Receiver<Task>>) {
    loop {
        // A statement of its own: the lock is not for the reading.
        let task = tasks.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(task) = task else { return };
        if task.is_off.load(Relaxed) {
            continue;
        }
        let evidence = snapshot::take(&[task.pid], &task.held, || None, task.options);
        let _ = task.answer.send((task.pid, evidence));
    }
}

/// What is being read.
#[derive(Debug)]
pub struct Reading {
    missing: Vec<i32>,
    taken: Vec<(i32, Evidence)>,
    is_off: Arc<AtomicBool>,
    answers: Receiver<(i32, Evidence)>,
}

impl Reading {
    /// Takes what comes until all is there, or `until`.
    pub fn await_until(&mut self, until: Instant) {
        while !self.missing.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            let Ok((pid, evidence)) = self.answers.recv_timeout(left) else { return };
            self.missing.retain(|&missing| missing != pid);
            self.taken.push((pid, evidence));
        }
    }

    /// Nothing that is being read.
    pub fn nothing() -> Self {
        let (_, answers) = mpsc::channel();
        Reading { missing: Vec::new(), taken: Vec::new(), is_off: Arc::default(), answers }
    }

    /// What is there, and was not asked for before.
    pub fn so_far(&mut self) -> Evidence {
        self.taken.sort_by_key(|(pid, _)| *pid);
        let mut evidence = Evidence::default();
        for (_, one) in self.taken.drain(..) {
            evidence.append(one);
        }
        evidence
    }

    /// The same, and what is missing; nothing else is read.
    pub fn finish(mut self) -> Evidence {
        let mut evidence = self.so_far();
        let why = "could not be read in time: somebody who waits for memory has its locks, or died with it";
        if self.missing.len() > NAMED {
            evidence.gaps.push(format!("{} processes {why}", self.missing.len()));
        } else {
            evidence.gaps.extend(self.missing.iter().map(|pid| format!("process {pid} {why}")));
        }
        evidence
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.is_off.store(true, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn who_is_there_is_read() {
        let readers = Readers::start(Priority::of_this_thread()).unwrap();
        let own = std::process::id() as i32;
        let mut reading = readers.read(vec![own], BTreeMap::new(), Options::default());
        reading.await_until(soon());
        let evidence = reading.so_far();
        assert_eq!(evidence.processes.iter().map(|p| p.pid).collect::<Vec<_>>(), [own]);
        assert_eq!(evidence.gaps, [""; 0]);
        // Nothing is missing, and nothing is told twice.
        assert!(
            matches!(reading.finish(), Evidence { processes, gaps, .. } if processes.is_empty() && gaps.is_empty())
        );
    }

    #[test]
    fn who_does_not_answer_is_missed_and_told() {
        let (answer, answers) = mpsc::channel();
        let is_off = Arc::new(AtomicBool::new(false));
        let mut reading = Reading { missing: vec![5, 6], taken: Vec::new(), is_off: Arc::clone(&is_off), answers };
        reading.await_until(Instant::now());
        assert!(reading.so_far().gaps.is_empty());
        // It comes after all.
        answer.send((6, Evidence::default())).unwrap();
        reading.await_until(Instant::now() + Duration::from_millis(20));
        let evidence = reading.finish();
        assert!(matches!(&evidence.gaps[..], [gap] if gap.starts_with("process 5 ")), "{:?}", evidence.gaps);
        assert!(is_off.load(Relaxed));
    }

    #[test]
    fn many_who_are_missing_are_counted() {
        let (_answer, answers) = mpsc::channel();
        let missing = (1..=20).collect();
        let reading = Reading { missing, taken: Vec::new(), is_off: Arc::default(), answers };
        let gaps = reading.finish().gaps;
        assert!(matches!(&gaps[..], [gap] if gap.starts_with("20 processes ")), "{gaps:?}");
    }
}
