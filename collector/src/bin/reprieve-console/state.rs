//! What the console knows: guardians, holds, and where the operator is.

use crate::evidence::Evidence;
use reprieve::desk::client::{Guardian, NoGuardian};
use reprieve::desk::message::{FromGuardian, FromOperator, Pending};
use reprieve::desk::socket::sockets;
use reprieve::verdict::Action;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long what is over is shown.
const SHOWN_AFTERWARDS: Duration = Duration::from_secs(120);

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tab {
    /// Who owns the memory.
    Flame,
    /// Its processes.
    Processes,
    /// Its memory by cause.
    Memory,
}

/// What the operator is asked by the console itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// How much to grant; what has been typed.
    Grant(String),
    /// Whether to do this.
    Sure(String),
}

/// How a hold stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stand {
    /// It waits.
    Waits,
    /// Somebody's decision is acted on.
    Decided(String),
    /// What came of it.
    Over(String, Instant),
}

/// A hold.
#[derive(Debug)]
pub struct Hold {
    /// As its guardian told it.
    pub pending: Pending,
    /// Until when it waits.
    pub until: Instant,
    /// How it stands.
    pub stand: Stand,
    /// What is known of it; the error is a sentence.
    pub evidence: Result<Evidence, String>,
    socket: PathBuf,
}

/// The console.
#[derive(Debug)]
pub struct Console {
    dir: PathBuf,
    /// Name of this machine.
    pub host: String,
    guardians: Vec<Guardian>,
    /// Sockets that cannot be talked to, and why.
    pub problems: Vec<(PathBuf, NoGuardian)>,
    /// Holds in the order in which they came.
    pub holds: Vec<Hold>,
    /// ID of the one that is looked at.
    chosen: String,
    /// What of it is.
    pub tab: Tab,
    /// Which of its profiles.
    pub profile: usize,
    /// Lines above the screen.
    pub scroll: usize,
    /// What is asked.
    pub prompt: Option<Prompt>,
    /// The last word.
    pub said: String,
    /// Whether the shell is to be opened.
    pub wants_shell: bool,
    /// Whether it is left.
    pub is_over: bool,
}

impl Console {
    /// Of the guardians of a folder.
    pub fn new(dir: PathBuf) -> Self {
        Console {
            dir,
            host: std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned(),
            guardians: Vec::new(),
            problems: Vec::new(),
            holds: Vec::new(),
            chosen: String::new(),
            tab: Tab::Flame,
            profile: 0,
            scroll: 0,
            prompt: None,
            said: String::new(),
            wants_shell: false,
            is_over: false,
        }
    }

    /// How many guardians are there.
    pub fn guardians(&self) -> usize {
        self.guardians.len()
    }

    /// The folder that is looked at.
    pub fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    /// Hears what guardians say, new ones, too.
    pub fn look(&mut self) {
        let there = sockets(&self.dir);
        self.problems.retain(|(socket, _)| there.contains(socket));
        for socket in there {
            let is_known = self.guardians.iter().any(|guardian| guardian.socket == socket)
                || self.problems.iter().any(|(known, problem)| {
                    // One that died may have been started again, or one that hung goes on.
                    *known == socket && !matches!(problem, NoGuardian::Dead(_) | NoGuardian::Busy(_))
                });
            if is_known {
                continue;
            }
            self.problems.retain(|(known, _)| *known != socket);
            match Guardian::call(&socket) {
                Ok(guardian) => self.guardians.push(guardian),
                Err(problem) => self.problems.push((socket, problem)),
            }
        }
        let mut guardians = std::mem::take(&mut self.guardians);
        guardians.retain_mut(|guardian| self.listen(guardian));
        self.guardians = guardians;
        let is_shown = |hold: &Hold| !matches!(&hold.stand, Stand::Over(_, at) if at.elapsed() > SHOWN_AFTERWARDS);
        self.holds.retain(is_shown);
        if self.at().is_none() {
            self.choose(0);
        }
    }

    /// Whether the guardian is still there.
    fn listen(&mut self, guardian: &mut Guardian) -> bool {
        loop {
            match guardian.hear(Duration::ZERO) {
                Ok(Some(message)) => self.take(&guardian.socket, message),
                Ok(None) => return true,
                Err(problem) => {
                    for hold in self.holds.iter_mut().filter(|hold| hold.socket == guardian.socket) {
                        if !matches!(hold.stand, Stand::Over(..)) {
                            hold.stand = Stand::Over("its guardian is gone".to_owned(), Instant::now());
                        }
                    }
                    if !matches!(problem, NoGuardian::Dead(_)) {
                        self.problems.push((guardian.socket.clone(), problem));
                    }
                    return false;
                }
            }
        }
    }

    fn take(&mut self, socket: &std::path::Path, message: FromGuardian) {
        match message {
            FromGuardian::Pending(pending) => {
                let until = Instant::now() + Duration::from_millis(pending.left_ms);
                match self.holds.iter_mut().find(|hold| hold.pending.id == pending.id) {
                    Some(hold) => (hold.pending, hold.until, hold.stand) = (pending, until, Stand::Waits),
                    None => {
                        let evidence = match &pending.folder {
                            Some(folder) => Evidence::read(folder),
                            None => Err("there is no record of it".to_owned()),
                        };
                        let (stand, socket) = (Stand::Waits, socket.to_owned());
                        self.holds.push(Hold { pending, until, stand, evidence, socket });
                    }
                }
            }
            FromGuardian::Decided { id, action, by } => {
                if let Some(hold) = self.hold_mut(&id) {
                    hold.stand = Stand::Decided(format!("{action}, by {by}"));
                }
            }
            FromGuardian::Ended { id, outcome } => {
                if let Some(hold) = self.hold_mut(&id) {
                    hold.stand = Stand::Over(outcome, Instant::now());
                }
            }
            // Not yet done, and it may be that it cannot be.
            FromGuardian::Accepted { action, .. } => {
                self.said = match action.parse::<Action>() {
                    Ok(_) => format!("accepted: {action}"),
                    Err(_) => format!("accepted: {action} are left"),
                }
            }
            FromGuardian::Refused { why, .. } => self.said = format!("refused: {why}"),
            FromGuardian::Hello { .. } | FromGuardian::Listed | FromGuardian::GoAway { .. } => {}
        }
    }

    fn hold_mut(&mut self, id: &str) -> Option<&mut Hold> {
        self.holds.iter_mut().find(|hold| hold.pending.id == id)
    }

    /// Place of the one that is looked at.
    pub fn at(&self) -> Option<usize> {
        self.holds.iter().position(|hold| hold.pending.id == self.chosen)
    }

    /// The one that is looked at.
    pub fn hold(&self) -> Option<&Hold> {
        self.at().map(|at| &self.holds[at])
    }

    /// Looks at another.
    pub fn choose(&mut self, at: usize) {
        let id = self.holds.get(at).map(|hold| hold.pending.id.clone()).unwrap_or_default();
        if id != self.chosen {
            (self.chosen, self.profile, self.scroll, self.prompt) = (id, 0, 0, None);
        }
    }

    /// Says something about the hold that is looked at.
    pub fn say(&mut self, message: impl FnOnce(String) -> FromOperator) {
        let Some(hold) = self.hold() else {
            self.say_none();
            return;
        };
        let message = message(hold.pending.id.clone());
        let guardian = self.guardians.iter().find(|guardian| guardian.socket == hold.socket);
        if guardian.is_none_or(|guardian| guardian.say(&message).is_err()) {
            self.said = "its guardian is gone".to_owned();
        }
    }

    /// Says that there is nothing to decide.
    pub fn say_none(&mut self) {
        self.said = "there is no hold to decide about".to_owned();
    }

    /// Decides about it.
    pub fn decide(&mut self, action: &str) {
        self.say(|id| FromOperator::Decide { id, action: action.to_owned() });
    }
}
