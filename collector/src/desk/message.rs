//! What a guardian and operators say to each other: one JSON object a packet.

use crate::incident::show::printable;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;

/// Version of what is said.
pub const VERSION: u32 = 1;
/// Longest packet: all texts of a [`Pending`], with what JSON makes of each byte (six of
/// one in a path).
pub const MOST_BYTES: usize = 32 << 10;
/// Longest text in one. A cgroup's path can be of 4096 bytes.
const MOST_TEXT_BYTES: usize = 400;
/// Longest path of a folder.
pub const MOST_PATH_BYTES: usize = 1024;
/// Most notes of a hold.
pub const MOST_NOTES: usize = 3;

/// What a guardian says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromGuardian {
    /// The first word to an operator.
    Hello {
        /// [`VERSION`].
        version: u32,
        /// Its PID.
        pid: u32,
    },
    /// Why it does not talk to him; the last word.
    GoAway {
        /// A sentence.
        why: String,
    },
    /// A hold that waits for a person: one that is new, or has changed.
    Pending(Pending),
    /// All that wait have been told.
    Listed,
    /// What he decided will be done.
    Accepted {
        /// ID of the incident.
        id: String,
        /// What was decided.
        action: String,
    },
    /// What he decided will not be done.
    Refused {
        /// ID of the incident.
        id: String,
        /// For programs.
        because: Because,
        /// A sentence.
        why: String,
    },
    /// Somebody's decision is being acted on.
    Decided {
        /// ID of the incident.
        id: String,
        /// What was decided.
        action: String,
        /// By whom.
        by: String,
    },
    /// Nobody is waited for any more.
    Ended {
        /// ID of the incident.
        id: String,
        /// What came of it.
        outcome: String,
    },
}

/// Why a decision is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Because {
    /// No such hold is known here.
    Unknown,
    /// Somebody was first, or the time was over.
    TooLate,
    /// That cannot be decided.
    Wrong,
}

/// A hold that waits for a person.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// ID of the incident.
    pub id: String,
    /// Path of its memcg.
    pub cgroup: String,
    /// What happened, in a line.
    pub summary: String,
    /// Bytes charged when it was asked.
    pub usage_bytes: u64,
    /// The limit.
    pub limit_bytes: u64,
    /// Time until the fall-back, in milliseconds.
    pub left_ms: u64,
    /// The same if all time is added that can be.
    pub most_left_ms: u64,
    /// What is done then.
    pub fallback: String,
    /// What the policy recommends, and why.
    pub recommended: String,
    /// Folder with the evidence; `None` where there is none.
    pub folder: Option<PathBuf>,
    /// What has been tried, and what came of it.
    pub notes: Vec<String>,
}

/// What an operator says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FromOperator {
    /// His decision.
    Decide {
        /// ID of the incident.
        id: String,
        /// An action as it is written in a policy.
        action: String,
    },
    /// He needs time.
    More {
        /// ID of the incident.
        id: String,
        /// So much of it, in milliseconds.
        ms: u64,
    },
}

/// As a packet; one that is too long is an error.
pub fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() <= MOST_BYTES { Ok(bytes) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// From a packet; `None` for what nobody says.
#[must_use]
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    serde_json::from_slice(bytes).ok()
}

/// A text that fits beside others, for a terminal, too: names of processes and cgroups can
/// hold anything. What is cut off is shown as cut off.
#[must_use]
pub fn short(text: &str) -> String {
    let text: String = text.chars().map(printable).collect();
    if text.len() <= MOST_TEXT_BYTES {
        return text;
    }
    let end = (0..=MOST_TEXT_BYTES).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        for message in [
            FromGuardian::Hello { version: VERSION, pid: 7 },
            FromGuardian::Pending(Pending { folder: Some("/a".into()), notes: vec!["b".into()], ..Pending::default() }),
            FromGuardian::Listed,
            FromGuardian::Refused { id: "a".into(), because: Because::TooLate, why: "late".into() },
        ] {
            assert_eq!(decode(&encode(&message).unwrap()), Some(message));
        }
        assert_eq!(decode(br#"{"more":{"id":"a","ms":5}}"#), Some(FromOperator::More { id: "a".into(), ms: 5 }));
        for nonsense in ["", "[]", "{}", r#"{"more":{"id":"a"}}"#, r#"{"decide":{"id":"a","action":"kill","x":1}}"#] {
            assert_eq!(decode::<FromOperator>(nonsense.as_bytes()), None, "{nonsense}");
        }
    }

    #[test]
    fn the_longest_fits() {
        let long = short(&"\"".repeat(5000));
        assert_eq!(short("a\u{1b}]0;b\u{7}\n"), "a?]0;b??");
        assert!(long.ends_with('…') && long.len() <= MOST_TEXT_BYTES + 3);
        assert_eq!(short(&"é".repeat(1000)).chars().count(), MOST_TEXT_BYTES / 2 + 1);
        let pending = Pending {
            id: "20261125T074340-sort-abcdef".into(),
            cgroup: long.clone(),
            summary: long.clone(),
            usage_bytes: u64::MAX,
            limit_bytes: u64::MAX,
            left_ms: u64::MAX,
            most_left_ms: u64::MAX,
            fallback: long.clone(),
            recommended: long.clone(),
            folder: Some("\u{1}".repeat(MOST_PATH_BYTES).into()),
            notes: vec![long; MOST_NOTES],
        };
        encode(&FromGuardian::Pending(pending)).unwrap();
        assert!(encode(&FromGuardian::GoAway { why: "x".repeat(MOST_BYTES) }).is_err());
    }
}
