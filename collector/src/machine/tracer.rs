//! The thread that stops threads of jobs.
//!
//! Whoever stops a thread must let it go (ptrace(2)), and those that wait in the
//! allocator stop only when they have memory again: this thread waits for them, and
//! for nothing else.

use crate::cgroup::Memcg;
use crate::guardian::Priority;
use crate::hold::stop::{HeldThread, LATE_AGAIN, StoppedThreads};
use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

/// What was stopped.
#[derive(Debug, Default)]
pub struct Stopped {
    /// By TID.
    pub threads: BTreeMap<i32, HeldThread>,
    /// How many stopped, and how many live on unstopped.
    pub counts: (u32, u32),
}

enum Order {
    Stop(Vec<Memcg>, Instant, Sender<Stopped>),
    LetGo,
}

/// The thread, seen from who gives it orders.
#[derive(Debug)]
pub struct Tracer {
    orders: Sender<Order>,
    thread: JoinHandle<()>,
}

impl Tracer {
    /// Starts it, as urgent as that.
    pub fn start(urgent: Priority) -> io::Result<Self> {
        let (orders, receiver) = mpsc::channel();
        let thread = Builder::new().name("reprieve-tracer".to_owned()).spawn(move || {
            urgent.take();
            work(&receiver);
        })?;
        Ok(Tracer { orders, thread })
    }

    /// Stops every thread of `memcgs` that stops until `until`. Nothing when `late`
    /// comes before it answers.
    pub fn stop(&self, memcgs: Vec<Memcg>, until: Instant, late: Instant) -> Option<Stopped> {
        let (sender, receiver) = mpsc::channel();
        self.orders.send(Order::Stop(memcgs, until, sender)).ok()?;
        receiver.recv_timeout(late.saturating_duration_since(Instant::now())).ok()
    }

    /// Lets all of them go, now or as soon as they stop.
    pub fn let_go(&self) {
        let _ = self.orders.send(Order::LetGo);
    }

    /// Ends it once nobody is stopped.
    pub fn end(self) {
        drop(self.orders);
        let _ = self.thread.join();
    }
}

fn work(orders: &Receiver<Order>) {
    let mut threads = StoppedThreads::default();
    let mut late = false;
    loop {
        let order = match late {
            true => orders.recv_timeout(LATE_AGAIN),
            false => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match order {
            Ok(Order::Stop(memcgs, until, answer)) => {
                let tids = || Ok::<_, std::convert::Infallible>(tids_of(&memcgs));
                let _ = threads.stop_all(until, tids);
                let stopped = Stopped { threads: threads.threads().clone(), counts: threads.counts() };
                // Nobody may wait for the answer any more.
                late = answer.send(stopped).is_err();
            }
            Ok(Order::LetGo) => late = true,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) if threads.is_empty() => return,
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(LATE_AGAIN),
        }
        if late {
            threads.release_late();
            late = !threads.is_empty();
        }
    }
}

fn tids_of(memcgs: &[Memcg]) -> Vec<i32> {
    memcgs.iter().flat_map(|memcg| memcg.tids().unwrap_or_default()).collect()
}
