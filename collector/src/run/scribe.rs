//! A thread that waits for the disk, so that the guardian need not.
//!
//! An fsync takes as long as the disk likes, 15 ms and more on a busy one. By then a
//! program that was just let go has used up what it was granted, and a guardian that
//! waits does not hear its bell.

use crate::analyst::{Analyst, AnalystFailure, Kind, Phase};
use crate::guardian;
use crate::incident::model::Incident;
use crate::incident::store::{
    DiskReserve, INCIDENT, Limits, RESERVE_BYTES, Staging, Store, StoreError, write_atomically,
};
use crate::incident::units;
use crate::say;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    pub staged: Staged,
}

/// An incident's folder, from its draft until it is published.
#[derive(Debug)]
pub struct Staged {
    // In this order: the folder of one that is lost is gone before the space is taken.
    staging: Staging,
    claim: Claim,
}

impl Staged {
    /// The folder to write to.
    pub fn path(&self) -> &Path {
        self.staging.path()
    }
}

/// What is kept on the disk while no incident needs it.
#[derive(Debug)]
pub enum InHand {
    /// Nothing: there is one incident, now.
    Nothing,
    /// Space for one.
    Space(DiskReserve),
    /// There is no room for that, as has been told.
    Missing,
}

/// Disk space kept in hand while no incident needs it.
#[derive(Debug)]
pub struct Space {
    store: Store,
    is_wanted: bool,
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    reserve: Option<DiskReserve>,
    /// Whether it could not be had when it was wanted last.
    is_missing: bool,
    /// Incidents staged and not published yet.
    claims: usize,
}

/// As long as one lives, the space is there to be written to.
#[derive(Debug)]
struct Claim(Arc<Space>);

impl Space {
    /// Space of `store`, and what of it is in hand.
    pub fn new(store: Store, in_hand: InHand) -> Arc<Self> {
        let (is_wanted, is_missing) = (!matches!(in_hand, InHand::Nothing), matches!(in_hand, InHand::Missing));
        let reserve = match in_hand {
            InHand::Space(reserve) => Some(reserve),
            InHand::Nothing | InHand::Missing => None,
        };
        Arc::new(Space { store, is_wanted, held: Mutex::new(Held { reserve, is_missing, claims: 0 }) })
    }

    /// Begins to write an incident, into the space that was in hand.
    pub fn stage(self: &Arc<Self>, id: &str) -> Result<Staged, StoreError> {
        let claim = self.claim();
        Ok(Staged { staging: self.store.stage(id)?, claim })
    }

    fn claim(self: &Arc<Self>) -> Claim {
        let mut held = self.held();
        held.claims += 1;
        held.reserve = None;
        Claim(Arc::clone(self))
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes space in hand again; where there is none, the next incident has to do with
    /// what is free by then.
    fn refill(&self, held: &mut Held) {
        match self.store.reserve() {
            Ok(reserve) => {
                held.reserve = Some(reserve);
                if std::mem::take(&mut held.is_missing) {
                    say!(Info; "incidents can be written to {} again", self.store.dir().display());
                }
            }
            Err(error) if !std::mem::replace(&mut held.is_missing, true) => warn_of(&error, &self.store),
            Err(_) => {}
        }
    }
}

/// Says that there is no room for incidents, and what becomes of OOMs.
pub fn warn_of(error: &StoreError, store: &Store) {
    let free = store
        .free_bytes()
        .map_or("It is not known how much is".to_owned(), |free| format!("{} are", units::bytes(free)));
    let needed = units::bytes(RESERVE_BYTES as u64);
    say!(
        Warning, event = "no_room", folder = store.dir().display();
        "warning: {error}. {free} free there, and {needed} needed; OOMs are answered all the same, each tries to write its incident"
    );
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut held = self.0.held();
        held.claims -= 1;
        if held.claims == 0 && self.0.is_wanted {
            self.0.refill(&mut held);
        }
    }
}

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
    pub fn start(store: Store, limits: Limits, kind: Kind) -> io::Result<Self> {
        let (pages, receiver) = mpsc::channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let desk = Desk { store, limits, kind, waiting: Arc::clone(&waiting) };
        let thread = Builder::new().name("reprieve-scribe".to_owned()).spawn(move || desk.work(&receiver))?;
        Ok(Scribe { pages, waiting, thread })
    }

    /// Hands over a page; does not wait.
    pub fn write(&self, page: Page) {
        self.waiting.fetch_add(1, SeqCst);
        if self.pages.send(page).is_err() {
            self.waiting.fetch_sub(1, SeqCst);
            say!(Error; "this OOM leaves no incident: the thread that writes it has died");
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
    waiting: Arc<AtomicUsize>,
}

impl Desk {
    fn work(self, pages: &Receiver<Page>) -> Vec<PathBuf> {
        let mut published = Vec::new();
        for page in pages {
            match self.publish(page) {
                Ok(dir) => published.push(dir),
                Err(error) => say!(Error; "the incident is lost: {error}"),
            }
            if self.kind == Kind::Thread {
                guardian::give_back();
            }
            self.waiting.fetch_sub(1, SeqCst);
        }
        // Where no analyst could do it.
        self.store.trim(&self.limits, 0);
        published
    }

    fn publish(&self, Page { incident, staged: Staged { staging, claim } }: Page) -> Result<PathBuf, StoreError> {
        if let Some(incident) = incident {
            write_incident(&incident, staging.path())?;
        }
        let rendered = self.render(staging.path());
        if let Err(failure) = &rendered {
            say!(Warning; "{failure}: the incident has no report, only incident.json");
        }
        let dir = staging.publish()?;
        drop(claim);
        let file = if rendered.is_ok() { "report.html" } else { INCIDENT };
        say!(Info, event = "report", file = dir.join(file).display(); "report  {}", dir.join(file).display());
        Ok(dir)
    }

    fn render(&self, staging: &Path) -> Result<(), AnalystFailure> {
        Analyst::start(self.kind, Phase::Render, staging, &self.limits)?.wait(RENDER_TIME)
    }
}

/// Puts the incident into its staging folder.
pub fn write_incident(incident: &Incident, staging: &Path) -> Result<(), StoreError> {
    let json = serde_json::to_vec(incident)
        .map_err(|e| StoreError::Corrupt { path: staging.to_owned(), reason: e.to_string() })?;
    write_atomically(staging, INCIDENT, &json)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_in_hand(store: &Store) -> u64 {
        std::fs::read_dir(store.dir())
            .unwrap()
            .map(|e| e.unwrap().metadata().unwrap())
            .filter(|m| m.is_file())
            .map(|m| m.len())
            .sum()
    }

    #[test]
    fn space_is_in_hand_only_while_nobody_writes() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(Some(dir.path().to_owned())).unwrap();
        let reserve = store.reserve().unwrap();
        let space = Space::new(store.clone(), InHand::Space(reserve));
        assert_eq!(bytes_in_hand(&store), RESERVE_BYTES as u64);
        let first = space.stage("first").unwrap();
        let second = space.stage("second").unwrap();
        assert_eq!(bytes_in_hand(&store), 0);
        drop(first);
        assert_eq!(bytes_in_hand(&store), 0, "taken from under the second");
        // That of a stage that fails is given back.
        assert!(space.stage("second").is_err());
        drop(second);
        assert_eq!(bytes_in_hand(&store), RESERVE_BYTES as u64);
    }

    #[test]
    fn what_was_missing_is_taken_when_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(Some(dir.path().to_owned())).unwrap();
        let space = Space::new(store.clone(), InHand::Missing);
        drop(space.stage("first").unwrap());
        assert_eq!(bytes_in_hand(&store), RESERVE_BYTES as u64);
        // Who writes one incident, and ends, keeps none.
        drop(space);
        let space = Space::new(store.clone(), InHand::Nothing);
        drop(space.stage("second").unwrap());
        assert_eq!(bytes_in_hand(&store), 0);
    }
}
