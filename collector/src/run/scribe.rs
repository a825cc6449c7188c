//! A thread that waits for the disk, so that the guardian need not.
//!
//! An fsync takes as long as the disk likes, 15 ms and more on a busy one. By then a
//! program that was just let go has used up what it was granted, and a guardian that
//! waits does not hear its bell.

use crate::analyst::{Analyst, AnalystFailure, Kind, Phase};
use crate::guardian;
use crate::incident::model::Incident;
use crate::incident::store::{DiskReserve, INCIDENT, Limits, Staging, Store, StoreError, write_atomically};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// Time for symbols and renderings when nobody waits for them.
const RENDER_TIME: Duration = Duration::from_secs(60);

/// What is to be written, rendered and published.
#[derive(Debug)]
pub struct Page {
    /// None where it is in the staging folder already.
    pub incident: Option<Incident>,
    /// Its folder.
    pub staging: Staging,
}

/// Disk space in hand, if there is any at the moment.
pub type Reserve = Arc<Mutex<Option<DiskReserve>>>;

/// The thread, seen from the guardian. It does one page after the other.
#[derive(Debug)]
pub struct Scribe {
    pages: Sender<Page>,
    /// Pages not published yet.
    waiting: Arc<AtomicUsize>,
    thread: JoinHandle<Vec<PathBuf>>,
}

impl Scribe {
    /// Starts it. Its priority is that of every thread, whatever its maker's is.
    pub fn start(store: Store, limits: Limits, kind: Kind, reserve: Reserve) -> io::Result<Self> {
        let (pages, receiver) = mpsc::channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let desk = Desk { store, limits, kind, reserve, waiting: Arc::clone(&waiting) };
        let thread = Builder::new().name("reprieve-scribe".to_owned()).spawn(move || desk.work(&receiver))?;
        Ok(Scribe { pages, waiting, thread })
    }

    /// Hands over a page; does not wait.
    pub fn write(&self, page: Page) {
        self.waiting.fetch_add(1, SeqCst);
        if self.pages.send(page).is_err() {
            self.waiting.fetch_sub(1, SeqCst);
            eprintln!("reprieve: this OOM leaves no incident: the thread that writes it has died");
        }
    }

    /// Whether pages are not published yet.
    pub fn is_busy(&self) -> bool {
        self.waiting.load(SeqCst) > 0 && !self.thread.is_finished()
    }

    /// Ends it after the last page; returns all folders it published.
    pub fn finish(self) -> Vec<PathBuf> {
        drop(self.pages);
        // What a panic published is told on the terminal.
        self.thread.join().unwrap_or_default()
    }
}

/// Where it works.
struct Desk {
    store: Store,
    limits: Limits,
    kind: Kind,
    reserve: Reserve,
    waiting: Arc<AtomicUsize>,
}

impl Desk {
    fn work(self, pages: &Receiver<Page>) -> Vec<PathBuf> {
        let mut published = Vec::new();
        for page in pages {
            match self.publish(page) {
                Ok(dir) => published.push(dir),
                Err(error) => eprintln!("reprieve: the incident is lost: {error}"),
            }
            if self.kind == Kind::Thread {
                guardian::give_back();
            }
            if self.waiting.fetch_sub(1, SeqCst) == 1 {
                // Best effort now: the start insisted on it.
                let space = self.store.reserve().ok();
                *self.reserve.lock().unwrap_or_else(PoisonError::into_inner) = space;
            }
        }
        // Where no analyst could do it.
        self.store.trim(&self.limits, 0);
        published
    }

    fn publish(&self, Page { incident, staging }: Page) -> Result<PathBuf, StoreError> {
        if let Some(incident) = incident {
            write_incident(&incident, &staging)?;
        }
        let rendered = self.render(&staging);
        if let Err(failure) = &rendered {
            eprintln!("reprieve: {failure}: the incident has no report, only incident.json");
        }
        let dir = staging.publish()?;
        let file = if rendered.is_ok() { "report.html" } else { INCIDENT };
        eprintln!("reprieve: report  {}", dir.join(file).display());
        Ok(dir)
    }

    fn render(&self, staging: &Staging) -> Result<(), AnalystFailure> {
        Analyst::start(self.kind, Phase::Render, staging.path(), &self.limits)?.wait(RENDER_TIME)
    }
}

/// Puts the incident into its staging folder.
pub fn write_incident(incident: &Incident, staging: &Staging) -> Result<(), StoreError> {
    let json = serde_json::to_vec(incident)
        .map_err(|e| StoreError::Corrupt { path: staging.path().to_owned(), reason: e.to_string() })?;
    write_atomically(staging.path(), INCIDENT, &json)
}
