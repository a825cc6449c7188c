//! Actions as the user lists them.

use crate::size::{parse_duration, parse_size};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// One rung of the ladder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ask the kernel to reclaim.
    Reclaim,
    /// Let it run slowly and see whether it frees memory by itself.
    Throttle(Duration),
    /// Raise the limit by so many bytes.
    Grant(u64),
    /// Leave it stopped at most so long, until a person makes room.
    Freeze(Duration),
    /// Ask on the terminal, at most so long.
    Ask(Duration),
    /// Kill the least important process.
    Kill,
}

/// Time a throttled memcg gets to free memory.
pub const THROTTLE_TIME: Duration = Duration::from_secs(3);
/// Time a person gets to answer.
pub const ASK_TIME: Duration = Duration::from_secs(30);
/// Time a frozen memcg waits for a person.
pub const FREEZE_TIME: Duration = Duration::from_secs(300);
/// Time reclaim may take.
pub const RECLAIM_TIME: Duration = Duration::from_secs(1);
/// Time a grant's effect is watched.
pub const GRANT_TIME: Duration = Duration::from_millis(500);
/// Time a killed process gets to give its memory back.
pub const KILL_TIME: Duration = Duration::from_secs(5);

impl Action {
    /// How long it may take.
    #[must_use]
    pub fn time_limit(&self) -> Duration {
        match self {
            Action::Reclaim => RECLAIM_TIME,
            Action::Throttle(time) | Action::Ask(time) | Action::Freeze(time) => *time,
            Action::Grant(_) => GRANT_TIME,
            Action::Kill => KILL_TIME,
        }
    }
}

impl FromStr for Action {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        let time = |default| value.map_or(Ok(default), parse_duration);
        match (name, value) {
            ("reclaim", None) => Ok(Action::Reclaim),
            ("kill", None) => Ok(Action::Kill),
            ("throttle", _) => time(THROTTLE_TIME).map(Action::Throttle),
            ("ask", _) => time(ASK_TIME).map(Action::Ask),
            ("freeze", _) => time(FREEZE_TIME).map(Action::Freeze),
            ("grant", Some(value)) => parse_size(value).map(Action::Grant),
            ("grant", None) => Err("grant needs a size, like grant=64M".to_owned()),
            ("reclaim" | "kill", Some(value)) => Err(format!("{name} takes no value, but got {value:?}")),
            _ => Err(format!(
                "unknown action {name:?}; known are reclaim, throttle[=TIME], grant=SIZE, freeze[=TIME], ask[=TIME] and kill"
            )),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Reclaim => f.write_str("reclaim"),
            Action::Throttle(time) => write!(f, "throttle={time:?}"),
            Action::Grant(bytes) => match bytes.trailing_zeros() {
                30.. => write!(f, "grant={}G", bytes >> 30),
                20.. => write!(f, "grant={}M", bytes >> 20),
                10.. => write!(f, "grant={}K", bytes >> 10),
                _ => write!(f, "grant={bytes}"),
            },
            Action::Freeze(time) => write!(f, "freeze={time:?}"),
            Action::Ask(time) => write!(f, "ask={time:?}"),
            Action::Kill => f.write_str("kill"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_parses_back() {
        for text in ["reclaim", "throttle=3s", "grant=64M", "grant=1G", "grant=1234", "freeze=2s", "ask=30s", "kill"] {
            let action: Action = text.parse().unwrap();
            assert_eq!(action.to_string(), text);
        }
        assert_eq!("throttle".parse(), Ok(Action::Throttle(THROTTLE_TIME)));
    }

    #[test]
    fn mistakes_name_the_remedy() {
        assert!("grant".parse::<Action>().unwrap_err().contains("grant=64M"));
        assert!("explode".parse::<Action>().unwrap_err().contains("known are"));
        assert!("kill=9".parse::<Action>().unwrap_err().contains("no value"));
        assert!("grant=lots".parse::<Action>().is_err());
    }
}
