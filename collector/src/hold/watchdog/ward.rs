//! One memcg that the watchdog watches over.

use super::super::debt::{is_for_now, pay};
use super::super::{Alarm, HandBack};
use super::word::Debt;
use crate::cgroup::note;
use std::path::Path;
use std::time::{Duration, Instant};

/// Time the guardian may take beyond the deadline it announced before it is
/// taken for hung: it acts on the deadline itself.
const GRACE: Duration = Duration::from_millis(200);

/// Until when the guardian has time, and for what.
#[derive(Debug, Clone, Copy)]
enum Patience {
    /// Nothing is going on.
    Endless,
    /// The memcg is out of memory, in the hold with this number where those have one,
    /// and the guardian has not said a word.
    Unanswered(Instant, Option<u64>),
    /// It holds, and said for how long.
    Held(Instant),
}

/// A memcg, how to notice that nobody answers, and what it takes to give it back.
#[derive(Debug)]
pub struct Ward {
    hand_back: HandBack,
    answer: Duration,
    patience: Patience,
}

impl Ward {
    /// An OOM in it must be answered within `answer`.
    pub fn new(hand_back: HandBack, answer: Duration) -> Self {
        // What the kernel keeps for a reader of the bell, it makes now, not in a hold.
        hand_back.alarm.iter().for_each(Alarm::silence);
        Ward { hand_back, answer, patience: Patience::Endless }
    }

    /// What else is to be given back from now on; a hold that lasts goes on.
    pub fn renew(&mut self, hand_back: HandBack, answer: Duration) {
        (self.hand_back, self.answer) = (hand_back, answer);
    }

    /// Rings when it is out of memory.
    pub fn alarm(&self) -> Option<&Alarm> {
        self.hand_back.alarm.as_ref()
    }

    /// When patience ends.
    pub fn end(&self) -> Option<Instant> {
        match self.patience {
            Patience::Endless => None,
            Patience::Unanswered(at, _) | Patience::Held(at) => Some(at),
        }
    }

    /// The guardian holds it for so long.
    pub fn hold(&mut self, time: Duration) {
        self.patience = Patience::Held(Instant::now() + time + GRACE);
    }

    /// The guardian has let it go.
    pub fn release(&mut self) {
        // Its bell may have rung while the last hold lasted.
        self.patience = if self.waits() { self.unanswered() } else { Patience::Endless };
    }

    /// Its bell has rung.
    pub fn rang(&mut self) {
        self.hand_back.alarm.iter().for_each(Alarm::silence);
        match self.patience {
            Patience::Endless => self.patience = self.unanswered(),
            Patience::Unanswered(_, since) if self.turn() != since && self.waits() => {
                self.patience = self.unanswered();
            }
            _ => {}
        }
    }

    /// Patience is at its end; whether the guardian hangs.
    pub fn is_hung(&mut self) -> bool {
        let Patience::Unanswered(_, since) = self.patience else { return true };
        self.patience = match self.waits() {
            // Somebody freed memory, nothing had to be said.
            false => Patience::Endless,
            true if self.turn() != since => self.unanswered(),
            // It may be an OOM of this very moment.
            true => Patience::Held(Instant::now() + GRACE),
        };
        false
    }

    fn waits(&self) -> bool {
        self.alarm().is_some_and(Alarm::waits)
    }

    fn turn(&self) -> Option<u64> {
        self.alarm().and_then(Alarm::turn)
    }

    fn unanswered(&self) -> Patience {
        Patience::Unanswered(Instant::now() + self.answer + GRACE, self.turn())
    }

    /// This is to be written, too.
    pub fn owe(&mut self, debt: Debt) {
        self.paid(&debt.file);
        self.hand_back.writes.push(debt);
    }

    /// This is not to be written any more.
    pub fn paid(&mut self, file: &Path) {
        self.hand_back.writes.retain(|debt| debt.file != file);
    }

    /// Writes what is to be written; whether all of it is. What the kernel refuses for
    /// now, as a limit below the usage, can be tried again.
    pub fn give_back(&mut self) -> bool {
        self.hand_back.writes.retain(|debt| matches!(pay(debt), Err(error) if is_for_now(&error)));
        let is_done = self.hand_back.writes.is_empty();
        if is_done && let Some(memcg) = self.hand_back.adopted.take() {
            note::forget(&memcg);
        }
        is_done
    }

    /// Whether all that it was given for is gone; removes it where it is ours.
    pub fn is_removed(&self) -> bool {
        let Some(memcg) = &self.hand_back.memcg else { return true };
        // EBUSY while there are processes: the orphaned command and its children.
        if std::fs::remove_dir(memcg).is_err() && memcg.exists() {
            return false;
        }
        for dir in &self.hand_back.beside {
            let _ = std::fs::remove_dir(dir);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ward(writes: Vec<Debt>) -> Ward {
        Ward::new(HandBack { writes, ..HandBack::default() }, Duration::from_secs(5))
    }

    #[test]
    fn what_is_owed_last_is_written_and_what_is_gone_is_no_debt() {
        let dir = tempfile::tempdir().unwrap();
        let debt = |name: &str, content: &str| Debt { file: dir.path().join(name), content: content.to_owned() };
        std::fs::write(dir.path().join("a"), "").unwrap();
        std::fs::write(dir.path().join("b"), "untouched").unwrap();
        let mut ward = ward(vec![debt("a", "1"), debt("vanished", "1")]);
        ward.owe(debt("a", "2"));
        ward.owe(debt("b", "9"));
        ward.paid(&dir.path().join("b"));
        assert!(ward.give_back() && ward.is_removed());
        let read = |name| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!((&*read("a"), &*read("b")), ("2", "untouched"));
    }

    #[test]
    fn a_limit_that_was_raised_comes_down_when_the_usage_has() {
        let dir = tempfile::tempdir().unwrap();
        let (max, current) = (dir.path().join("memory.max"), dir.path().join("memory.current"));
        std::fs::write(&max, (192_u64 << 20).to_string()).unwrap();
        std::fs::write(&current, (100_u64 << 20).to_string()).unwrap();
        let mut ward = ward(vec![Debt { file: max.clone(), content: (64_u64 << 20).to_string() }]);
        assert!(!ward.give_back(), "the kernel would kill for it");
        assert_eq!(std::fs::read_to_string(&max).unwrap(), (192_u64 << 20).to_string());
        std::fs::write(&current, (40_u64 << 20).to_string()).unwrap();
        assert!(ward.give_back());
        assert_eq!(std::fs::read_to_string(&max).unwrap(), (64_u64 << 20).to_string());
    }

    #[test]
    fn patience_ends_with_the_hold() {
        let mut ward = ward(Vec::new());
        assert!(ward.end().is_none());
        ward.hold(Duration::from_secs(1));
        let end = ward.end().unwrap();
        assert!(end > Instant::now() + Duration::from_secs(1) && end < Instant::now() + Duration::from_secs(2));
        assert!(ward.is_hung());
        ward.release();
        assert!(ward.end().is_none());
    }
}
