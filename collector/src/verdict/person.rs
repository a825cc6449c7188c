//! Actions that wait for a person: who decides, on the terminal or at a console, or makes
//! room by hand.

use super::purse::By;
use super::terminal::Terminal;
use super::{Action, Effect, ROOM_MIN_BYTES, Scene, kill, limit_file, machine_memory};
use crate::cgroup::CgroupError;
use crate::desk::{Desk, Question, Standing, Subject};
use crate::incident::model::{Candidate, OtherVictim, StepOutcome};
use crate::incident::units;
use crate::say;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::path::Path;
use std::time::{Duration, Instant};

/// How often it is looked whether somebody made room by hand.
const GLANCE: Duration = Duration::from_millis(100);

/// How a person is asked.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asking<'a> {
    /// Where operators are served.
    pub desk: Option<&'a Desk>,
    /// Whether the terminal that we were started on is his.
    pub on_terminal: bool,
    /// ID of the incident.
    pub id: &'a str,
    /// Lines about it.
    pub summary: &'a str,
    /// Folder with the evidence.
    pub folder: Option<&'a Path>,
}

/// What ended a wait for a person.
enum Word {
    /// He decided; who he is where there may be several.
    Chose(Action, String),
    /// There is room.
    Room,
    /// Nobody will; a sentence.
    Nobody(String),
}

/// Whoever can be asked.
struct Persons {
    question: Option<Question>,
    terminal: Option<Terminal>,
    /// When nobody is waited for any more, where operators cannot say otherwise.
    until: Instant,
}

impl Scene<'_> {
    /// Asks until somebody's decision helps, or the time is over.
    pub(super) fn ask(&mut self, time: Duration) -> Result<Effect, CgroupError> {
        let terminal = if self.asking.on_terminal {
            Terminal::open()
        } else {
            Err("nobody can be asked on a terminal".to_owned())
        };
        let question = self.open_question(time);
        if let (Err(no_terminal), Err(no_desk)) = (&terminal, &question) {
            let why = format!("{no_terminal}; {no_desk}");
            return Ok(Effect::new(StepOutcome::Failed, "a person decides", why));
        }
        let mut persons = Persons { question: question.ok(), terminal: terminal.ok(), until: Instant::now() + time };
        match &mut persons.terminal {
            Some(terminal) => terminal.ask(self.asking.summary, time),
            None => say!(
                Notice, event = "asked", cgroup = self.memcg.path(), incident = self.asking.id;
                "{} waits at most {time:?} for a person: {}",
                self.memcg.path(),
                self.how_to_decide()
            ),
        }
        self.consult(persons, "a person decides")
    }

    /// Leaves everybody stopped until there is room: a person raised the limit, or ended
    /// something, or decided.
    pub(super) fn freeze(&mut self, time: Duration) -> Result<Effect, CgroupError> {
        let question = self.open_question(time).ok();
        let or = question.as_ref().map_or_else(String::new, |_| format!(", or decide with {}", self.how_to_decide()));
        say!(
            Notice, event = "frozen", cgroup = self.memcg.path(), incident = self.asking.id;
            "{} is frozen for at most {time:?}; make room by writing a higher limit to {}{or}",
            self.memcg.path(),
            self.memcg.dir().join(limit_file(self.memcg.version())).display()
        );
        let persons = Persons { question, terminal: None, until: Instant::now() + time };
        self.consult(persons, "stopped until a person makes room")
    }

    fn how_to_decide(&self) -> String {
        format!("`reprieve console`, or `reprieve decide {} ACTION`", self.asking.id)
    }

    fn open_question(&self, time: Duration) -> Result<Question, String> {
        let desk = self.asking.desk.ok_or("operators are not served here")?;
        let mut fallback = match self.next.as_slice() {
            [] => "the kernel's OOM killer decides".to_owned(),
            next => next.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        };
        if self.is_watched {
            fallback.push_str(", unless another rule holds by then");
        }
        let subject = Subject {
            id: self.asking.id,
            cgroup: self.memcg.path(),
            summary: self.asking.summary,
            usage_bytes: self.memcg.usage().unwrap_or(0),
            limit_bytes: self.brake.limit(),
            fallback: &fallback,
            recommended: &self.recommended(),
            folder: self.asking.folder,
        };
        desk.ask(&subject, time).map_err(|error| format!("operators cannot be asked ({error})"))
    }

    /// What the policy would do next, and the evidence for it.
    fn recommended(&self) -> String {
        let Some(next) = self.next.first() else {
            let unless = if self.is_watched { ", unless another rule holds by then" } else { "" };
            return format!("defer: the policy has nothing else to try{unless}");
        };
        let evidence = match next {
            Action::Kill => kill::reason(&kill::rank(self.processes, &kill::Homes::below(self.memcg, self.worths))),
            Action::Grant(_) => {
                let (total, available) = machine_memory();
                format!("{} of the machine's {} are available", units::bytes(available), units::bytes(total))
            }
            _ => "next in the policy".to_owned(),
        };
        format!("{next}: {evidence}")
    }

    /// Does what persons decide, one thing after the other, until something helps, the
    /// threads run again, or nobody decides any more.
    fn consult(&mut self, mut persons: Persons, reason: &str) -> Result<Effect, CgroupError> {
        let begun = Instant::now();
        let kills_before = self.memcg.kernel_kills()?;
        let mut told = Vec::new();
        let mut candidates: Vec<Candidate> = Vec::new();
        let mut tried = false;
        let outcome = loop {
            let word = self.hear(&mut persons)?;
            // Before anything of ours kills.
            self.note_others();
            let (action, by) = match word {
                Word::Chose(action, by) => (action, by),
                Word::Room => {
                    self.let_go()?;
                    let why = match self.other_victims.first() {
                        _ if self.memcg.kernel_kills()? > kills_before => {
                            ", since the kernel's OOM killer had acted".to_owned()
                        }
                        Some(OtherVictim { pid, comm }) => {
                            format!(", since somebody else had killed {comm} [{pid}]")
                        }
                        None => String::new(),
                    };
                    told.push(format!("after {:.1} s there was room{why}", begun.elapsed().as_secs_f64()));
                    break StepOutcome::Relieved;
                }
                Word::Nobody(why) => {
                    told.push(why);
                    break if tried { StepOutcome::NotEnough } else { StepOutcome::Failed };
                }
            };
            tried = true;
            if let Action::Freeze(time) = action {
                let said = format!("the operator{by} chose {action}");
                persons.ask_again(&said, Some(time));
                told.push(said);
                continue;
            }
            self.by = By::Person;
            let step = self.try_action(&action);
            self.by = By::Ladder;
            let said = format!("the operator{by} chose {}: {}", step.action, step.effect);
            candidates.extend(step.candidates);
            told.push(said.clone());
            if step.outcome == StepOutcome::Relieved || self.is_deferred || self.threads.is_none() {
                break step.outcome;
            }
            persons.ask_again(&said, None);
        };
        let effect = told.join("; then ");
        if let Some(question) = persons.question {
            question.close(&effect);
        }
        Ok(Effect { candidates, ..Effect::new(outcome, reason, effect) })
    }

    /// Waits for the next word.
    fn hear(&mut self, persons: &mut Persons) -> Result<Word, CgroupError> {
        let usage_before = self.memcg.usage()?;
        let mut limit_before = self.memcg.limit()?.unwrap_or(u64::MAX);
        let mut was_raised = false;
        let mut told_until = None;
        loop {
            let until = match persons.question.as_ref().map(Question::look) {
                Some(Standing::Decided(decision)) => {
                    return Ok(Word::Chose(decision.action, format!(" ({})", decision.by)));
                }
                Some(Standing::Late) => return Ok(Word::Nobody("nobody answered in time".to_owned())),
                Some(Standing::Open(until)) => until,
                None if Instant::now() >= persons.until => {
                    return Ok(Word::Nobody("nobody answered in time".to_owned()));
                }
                None => persons.until,
            };
            if told_until != Some(until) {
                told_until = Some(until);
                if let Some(watchdog) = self.watchdog {
                    let _ = watchdog.hold_until(until + Duration::from_secs(1));
                }
            }
            let limit = self.memcg.limit()?.unwrap_or(u64::MAX);
            if limit > limit_before {
                // Adopt what the person wrote, so that later steps build on it.
                self.brake.follow(limit - limit_before)?;
                limit_before = self.memcg.limit()?.unwrap_or(u64::MAX);
                was_raised = true;
            }
            // What failed to be charged may be bigger than the room that there always is.
            let fell = self.memcg.usage()?.saturating_add(ROOM_MIN_BYTES) <= usage_before;
            if (was_raised || fell) && self.room()?.1 {
                return Ok(Word::Room);
            }
            let left = until.saturating_duration_since(Instant::now()).min(GLANCE) + Duration::from_millis(1);
            if persons.has_typed(self.interrupt.fd(), left) {
                match persons.terminal.as_mut().map(Terminal::read) {
                    Some(Ok(Some(action))) if persons.question.is_none() => {
                        return Ok(Word::Chose(action, String::new()));
                    }
                    // Somebody may have been faster.
                    Some(Ok(Some(action))) => {
                        if let Some(word) = persons.claim(&action) {
                            return Ok(word);
                        }
                    }
                    Some(Err(why)) => {
                        persons.terminal = None;
                        if persons.question.is_none() {
                            return Ok(Word::Nobody(why));
                        }
                    }
                    Some(Ok(None)) | None => {}
                }
            }
            self.interrupt.take();
            if self.interrupt.ending().is_some() {
                return Ok(Word::Nobody("interrupted".to_owned()));
            }
        }
    }
}

impl Persons {
    /// Waits until something may have happened; whether something was typed.
    fn has_typed(&self, interrupt: std::os::fd::BorrowedFd<'_>, at_most: Duration) -> bool {
        let mut fds = vec![PollFd::new(interrupt, PollFlags::POLLIN)];
        fds.extend(self.question.as_ref().map(|question| PollFd::new(question.bell(), PollFlags::POLLIN)));
        fds.extend(self.terminal.as_ref().map(|terminal| PollFd::new(terminal.fd(), PollFlags::POLLIN)));
        let _ = poll(&mut fds, PollTimeout::try_from(at_most).unwrap_or(PollTimeout::MAX));
        self.terminal.is_some() && fds.last().is_some_and(|fd| fd.any().unwrap_or(false))
    }

    /// Decides for who sits at the terminal, unless an operator was first.
    fn claim(&mut self, action: &Action) -> Option<Word> {
        let question = self.question.as_ref()?;
        match question.claim(action) {
            Ok(()) => Some(Word::Chose(action.clone(), String::new())),
            Err(why) => {
                self.terminal.as_mut()?.say(&format!("{why}\n"));
                None
            }
        }
    }

    /// Waits again, at least for `time`.
    fn ask_again(&mut self, said: &str, time: Option<Duration>) {
        if let Some(time) = time {
            self.until = self.until.max(Instant::now() + time);
        }
        if let Some(question) = &self.question {
            question.ask_again(said, time);
        }
        if let Some(terminal) = &mut self.terminal {
            terminal.say(&format!("{said}\n? "));
        }
    }
}
