//! What a guardian says to its watchdog: one datagram each.
//!
//! A head of three numbers, and for words that are said outside of holds JSON behind
//! it.

use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Longest datagram: a cgroup's path and some files below it.
pub const MOST_BYTES: usize = 64 << 10;
/// Kind, memcg, microseconds.
const HEAD_BYTES: usize = 16;

/// A word about one of the memcgs that are guarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// It is held, for so long at most.
    HoldUntil(Duration),
    /// The hold is over.
    Released,
    /// It is guarded from now on, or what is to be given back has changed.
    Guard(Charge),
    /// It is not guarded any more, and as it was found.
    Forget,
    /// This, too, is to be written when it is given back.
    Owe(Debt),
    /// This is not any more.
    Paid(PathBuf),
    /// All is to be given back, and then there is nothing to guard any more.
    GiveBack,
    /// There is nothing to guard any more.
    Dismiss,
}

/// A memcg that others made, and what it takes to give it back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charge {
    /// Its path below the mount.
    pub path: String,
    /// Name of the brake.
    pub brake: String,
    /// Longest that an OOM may find no answer, in microseconds.
    pub answer_us: u64,
    /// What is to be written, in order.
    pub writes: Vec<Debt>,
}

/// What a file is to say again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Debt {
    /// The file.
    pub file: PathBuf,
    /// Its content.
    pub content: String,
}

impl Word {
    /// As it goes over the line.
    pub fn encode(&self, ward: u32) -> io::Result<Vec<u8>> {
        let (kind, micros, rest): (u32, u64, Vec<u8>) = match self {
            Word::HoldUntil(time) => (0, time.as_micros() as u64, Vec::new()),
            Word::Released => (1, 0, Vec::new()),
            Word::Guard(charge) => (2, 0, serde_json::to_vec(charge)?),
            Word::Forget => (3, 0, Vec::new()),
            Word::Owe(debt) => (4, 0, serde_json::to_vec(debt)?),
            Word::Paid(file) => (5, 0, serde_json::to_vec(file)?),
            Word::GiveBack => (6, 0, Vec::new()),
            Word::Dismiss => (7, 0, Vec::new()),
        };
        let head = [&kind.to_ne_bytes()[..], &ward.to_ne_bytes(), &micros.to_ne_bytes()].concat();
        let bytes = [head, rest].concat();
        match bytes.len() <= MOST_BYTES {
            true => Ok(bytes),
            false => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// The memcg and the word of a datagram; `None` for what nobody says.
    pub fn decode(bytes: &[u8]) -> Option<(u32, Word)> {
        let (head, rest) = bytes.split_at_checked(HEAD_BYTES)?;
        let number = |at: usize| Some(u32::from_ne_bytes(head.get(at..at + 4)?.try_into().ok()?));
        let micros = u64::from_ne_bytes(head.get(8..)?.try_into().ok()?);
        let word = match number(0)? {
            0 => Word::HoldUntil(Duration::from_micros(micros)),
            1 => Word::Released,
            2 => Word::Guard(serde_json::from_slice(rest).ok()?),
            3 => Word::Forget,
            4 => Word::Owe(serde_json::from_slice(rest).ok()?),
            5 => Word::Paid(serde_json::from_slice(rest).ok()?),
            6 => Word::GiveBack,
            7 => Word::Dismiss,
            _ => return None,
        };
        Some((number(4)?, word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard() {
        let debt = Debt { file: "/a b/memory.limit_in_bytes".into(), content: "1".to_owned() };
        let charge =
            Charge { path: "/a b".to_owned(), brake: "v1".to_owned(), answer_us: 5, writes: vec![debt.clone()] };
        for word in [
            Word::HoldUntil(Duration::from_micros(7)),
            Word::Released,
            Word::Guard(charge),
            Word::Forget,
            Word::Owe(debt),
            Word::Paid("/x".into()),
            Word::GiveBack,
            Word::Dismiss,
        ] {
            assert_eq!(Word::decode(&word.encode(9).unwrap()), Some((9, word)));
        }
        assert_eq!(Word::decode(&[]), None);
        assert_eq!(Word::decode(&[9; 16]), None);
        assert_eq!(Word::decode(&[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, b'{']), None);
        let long = Charge { path: "x".repeat(MOST_BYTES), brake: String::new(), answer_us: 0, writes: Vec::new() };
        assert!(Word::Guard(long).encode(1).is_err());
    }
}
