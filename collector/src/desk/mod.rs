//! Where operators are served: holds that wait for a person, and what was decided.
//!
//! In: a [`Subject`] from each thread that holds a memcg and wants to ask. Out: to that
//! thread, through its [`Question`], the first decision; to all operators, over a socket,
//! what there is to decide and what became of it. One thread serves them all; who holds
//! waits for nobody but the deadline. Neither an operator that hangs nor one that floods
//! costs more than his connection.

pub mod announce;
pub mod client;
pub mod message;
mod serve;
pub mod socket;

pub use announce::Announce;

use crate::verdict::Action;
use message::{Because, FromGuardian, MOST_NOTES, MOST_PATH_BYTES, Pending, short};
use nix::sys::eventfd::{EfdFlags, EventFd};
use socket::Listener;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// Messages are decoded on it, of 32 KiB at most.
const STACK_BYTES: usize = 256 << 10;
/// Holds that are over, and whose IDs are still known.
const REMEMBERED: usize = 64;
/// Longest that a hold waits for a person, with all time that was added.
pub const MOST_TIME: &str = "10m";

/// Where it is, and how it announces.
#[derive(Debug, Clone)]
pub struct Place {
    /// Folder of the socket.
    pub dir: PathBuf,
    /// How.
    pub manner: Manner,
}

/// How persons are asked.
#[derive(Debug, Clone)]
pub struct Manner {
    /// Longest that a hold waits, with all time that was added.
    pub most: Duration,
    /// Who is told that somebody has to decide.
    pub announce: Announce,
}

/// What is to be decided.
#[derive(Debug, Clone, Default)]
pub struct Subject<'a> {
    /// ID of the incident.
    pub id: &'a str,
    /// Path of the memcg.
    pub cgroup: &'a str,
    /// What happened.
    pub summary: &'a str,
    /// Bytes charged.
    pub usage_bytes: u64,
    /// The limit.
    pub limit_bytes: u64,
    /// What is done if nobody decides.
    pub fallback: &'a str,
    /// What the policy recommends, and why.
    pub recommended: &'a str,
    /// Folder with the evidence.
    pub folder: Option<&'a Path>,
}

/// What somebody decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What is to be done.
    pub action: Action,
    /// By whom.
    pub by: String,
}

/// How a question stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Nobody has decided; there is time until then.
    Open(Instant),
    /// Somebody has.
    Decided(Decision),
    /// Nobody has, and the time is over.
    Late,
}

/// The desk, seen from those who ask.
#[derive(Debug)]
pub struct Desk {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Has the thread look at the state.
    wake: EventFd,
}

#[derive(Debug)]
struct State {
    manner: Manner,
    asked: Vec<Asked>,
    /// IDs that are over, and why nothing can be decided about them, oldest first.
    over: VecDeque<(String, String)>,
    /// What all operators are to be told.
    news: Vec<FromGuardian>,
    /// Whom else to tell about these.
    to_announce: Vec<Pending>,
    is_closing: bool,
}

/// A hold that waits.
#[derive(Debug)]
struct Asked {
    pending: Pending,
    until: Instant,
    most: Instant,
    decision: Option<Decision>,
    bell: Arc<EventFd>,
}

impl Asked {
    /// As it is now.
    fn told(&self) -> Pending {
        let left = |until: Instant| until.saturating_duration_since(Instant::now()).as_millis() as u64;
        Pending { left_ms: left(self.until), most_left_ms: left(self.most), ..self.pending.clone() }
    }
}

fn new_bell() -> io::Result<EventFd> {
    Ok(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?)
}

impl Desk {
    /// Opens it as `name` in its folder.
    pub fn open(place: Place, name: &str) -> io::Result<Self> {
        let listener = Listener::open(&place.dir, name)?;
        let state = State {
            manner: place.manner,
            asked: Vec::new(),
            over: VecDeque::with_capacity(REMEMBERED),
            news: Vec::new(),
            to_announce: Vec::new(),
            is_closing: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), wake: new_bell()? });
        let thread = Builder::new().name("reprieve-desk".to_owned()).stack_size(STACK_BYTES);
        let served = Arc::clone(&shared);
        let thread = thread.spawn(move || serve::serve(&listener, &served))?;
        Ok(Desk { shared, thread: Some(thread) })
    }

    /// From now on in another manner.
    pub fn change(&self, manner: Manner) {
        self.shared.state().manner = manner;
    }

    /// Has somebody decide within `time`.
    pub fn ask(&self, subject: &Subject<'_>, time: Duration) -> io::Result<Question> {
        let bell = Arc::new(new_bell()?);
        let now = Instant::now();
        let mut state = self.shared.state();
        let most = now + state.manner.most.max(time);
        let pending = Pending {
            id: subject.id.to_owned(),
            cgroup: short(subject.cgroup),
            summary: short(subject.summary),
            usage_bytes: subject.usage_bytes,
            limit_bytes: subject.limit_bytes,
            fallback: short(subject.fallback),
            recommended: short(subject.recommended),
            // Half a path is none.
            folder: subject.folder.filter(|path| path.as_os_str().len() <= MOST_PATH_BYTES).map(Path::to_owned),
            ..Pending::default()
        };
        let asked = Asked { pending, until: now + time, most, decision: None, bell: Arc::clone(&bell) };
        state.news.push(FromGuardian::Pending(asked.told()));
        state.to_announce.push(asked.told());
        state.asked.push(asked);
        drop(state);
        self.shared.wake();
        Ok(Question { shared: Arc::clone(&self.shared), id: subject.id.to_owned(), bell, outcome: String::new() })
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.shared.state().is_closing = true;
        self.shared.wake();
        self.thread.take().map(JoinHandle::join);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        let _ = self.wake.write(1);
    }
}

impl State {
    fn find(&mut self, id: &str) -> Result<&mut Asked, (Because, String)> {
        // By its place, since a borrow that is returned lasts too long.
        let Some(at) = self.asked.iter().position(|asked| asked.pending.id == id) else {
            // The newest of those that may be meant.
            let over = self.over.iter().rev().find(|(over, _)| over.starts_with(id) || over.ends_with(id));
            return Err(match over {
                Some((_, why)) => (Because::TooLate, why.clone()),
                None => (Because::Unknown, format!("no hold called {id} waits here")),
            });
        };
        let asked = &self.asked[at];
        if let Some(decision) = &asked.decision {
            let why = format!("{} was decided before, by {}", decision.action, decision.by);
            return Err((Because::TooLate, why));
        }
        if Instant::now() >= asked.until {
            return Err((Because::TooLate, late(&asked.pending)));
        }
        Ok(&mut self.asked[at])
    }

    /// The first who decides wins.
    fn decide(&mut self, id: &str, action: &str, by: &str) -> Result<(), (Because, String)> {
        let asked = self.find(id)?;
        let action: Action = action.parse().map_err(|why| (Because::Wrong, why))?;
        if matches!(action, Action::Ask(_)) {
            return Err((Because::Wrong, "you are being asked already".to_owned()));
        }
        asked.decision = Some(Decision { action: action.clone(), by: by.to_owned() });
        let _ = asked.bell.write(1);
        self.news.push(FromGuardian::Decided { id: id.to_owned(), action: action.to_string(), by: by.to_owned() });
        Ok(())
    }

    /// Adds time, as much of it as there is; returns what is left then.
    fn more(&mut self, id: &str, ms: u64, by: &str) -> Result<Duration, (Because, String)> {
        let asked = self.find(id)?;
        let until = (asked.until + Duration::from_millis(ms.min(7 * 86_400_000))).min(asked.most);
        if until == asked.until {
            let why = "there is no more time: ask.most is reached".to_owned();
            return Err((Because::Wrong, why));
        }
        asked.until = until;
        note(&mut asked.pending, &format!("more time, by {by}"));
        let _ = asked.bell.write(1);
        let told = asked.told();
        let left = Duration::from_millis(told.left_ms);
        self.news.push(FromGuardian::Pending(told));
        Ok(left)
    }
}

fn late(pending: &Pending) -> String {
    format!("nobody decided in time; next is {}", pending.fallback)
}

/// Remembers what came of something; of many, the last few.
fn note(pending: &mut Pending, text: &str) {
    if pending.notes.len() == MOST_NOTES {
        pending.notes.remove(0);
    }
    pending.notes.push(short(text));
}

/// What one thread waits for. Operators are told when it is dropped.
#[derive(Debug)]
pub struct Question {
    shared: Arc<Shared>,
    id: String,
    bell: Arc<EventFd>,
    outcome: String,
}

impl Question {
    /// Readable when there may be news.
    #[must_use]
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// How it stands. Whatever an operator was told is true: what he decides is refused
    /// from the moment on from which this is [`Standing::Late`].
    #[must_use]
    pub fn look(&self) -> Standing {
        let _ = self.bell.read();
        let mut state = self.shared.state();
        let Some(asked) = state.asked.iter_mut().find(|asked| asked.pending.id == self.id) else {
            return Standing::Late;
        };
        match &asked.decision {
            Some(decision) => Standing::Decided(decision.clone()),
            None if Instant::now() >= asked.until => Standing::Late,
            None => Standing::Open(asked.until),
        }
    }

    /// Decides for who sits at the guardian's own terminal; the error says who was first.
    pub fn claim(&self, action: &Action) -> Result<(), String> {
        let done = self.shared.state().decide(&self.id, &action.to_string(), "the user of its terminal");
        self.shared.wake();
        done.map_err(|(_, why)| why)
    }

    /// Asks again, after something was done about which this is to be said. With `time`
    /// the deadline is so far off, as far as it may be.
    pub fn ask_again(&self, said: &str, time: Option<Duration>) {
        let mut state = self.shared.state();
        let Some(asked) = state.asked.iter_mut().find(|asked| asked.pending.id == self.id) else { return };
        asked.decision = None;
        if let Some(time) = time {
            asked.until = asked.until.max(Instant::now() + time).min(asked.most);
        }
        note(&mut asked.pending, said);
        let told = FromGuardian::Pending(asked.told());
        state.news.push(told);
        drop(state);
        self.shared.wake();
    }

    /// Ends it; operators are told what came of it.
    pub fn close(mut self, outcome: &str) {
        outcome.clone_into(&mut self.outcome);
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        let Some(at) = state.asked.iter().position(|asked| asked.pending.id == self.id) else { return };
        let asked = state.asked.remove(at);
        let why = match &asked.decision {
            Some(decision) => format!("{} was decided before, by {}", decision.action, decision.by),
            None if Instant::now() >= asked.until => late(&asked.pending),
            None => format!("it is over: {}", short(&self.outcome)),
        };
        if state.over.len() == REMEMBERED {
            state.over.pop_front();
        }
        state.over.push_back((self.id.clone(), why));
        state.news.push(FromGuardian::Ended { id: self.id.clone(), outcome: short(&self.outcome) });
        drop(state);
        self.shared.wake();
    }
}
