//! Actions as the user lists them.

use crate::size::{parse_duration, parse_size};
use nix::sys::signal::Signal;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// One rung of the ladder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ask the kernel to reclaim.
    Reclaim,
    /// Send this signal to its processes, for them to free memory.
    Signal(Signal),
    /// Run this program, which has so long to make room.
    Hook(PathBuf, Duration),
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
    /// Leave it to the kernel.
    Defer,
}

/// Time a throttled memcg gets to free memory.
pub const THROTTLE_TIME: Duration = Duration::from_secs(3);
/// Time a program gets to free memory after a signal.
pub const SIGNAL_TIME: Duration = Duration::from_secs(3);
/// Time a hook gets.
pub const HOOK_TIME: Duration = Duration::from_secs(5);
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
            Action::Throttle(time) | Action::Ask(time) | Action::Freeze(time) | Action::Hook(_, time) => *time,
            Action::Signal(_) => SIGNAL_TIME,
            Action::Defer => Duration::ZERO,
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
            ("defer", None) => Ok(Action::Defer),
            ("signal", Some(value)) => signal(value).map(Action::Signal),
            ("signal", None) => Err("signal needs a name, like signal=USR1".to_owned()),
            ("hook", Some(value)) => hook(value),
            ("hook", None) => Err("hook needs a program, like hook=/usr/local/bin/drop-caches".to_owned()),
            ("throttle", _) => time(THROTTLE_TIME).map(Action::Throttle),
            ("ask", _) => time(ASK_TIME).map(Action::Ask),
            ("freeze", _) => time(FREEZE_TIME).map(Action::Freeze),
            ("grant", Some(value)) => parse_size(value).map(Action::Grant),
            ("grant", None) => Err("grant needs a size, like grant=64M".to_owned()),
            ("reclaim" | "kill" | "defer", Some(value)) => Err(format!("{name} takes no value, but got {value:?}")),
            _ => Err(format!(
                "unknown action {name:?}; known are reclaim, signal=NAME, hook=[TIME:]PROGRAM, throttle[=TIME], grant=SIZE, freeze[=TIME], ask[=TIME], kill and defer"
            )),
        }
    }
}

/// `USR1` or `SIGUSR1`. Not one that nobody can answer: that is what kill is for.
fn signal(name: &str) -> Result<Signal, String> {
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    match full.parse() {
        Ok(Signal::SIGKILL | Signal::SIGSTOP) | Err(_) => {
            Err(format!("{name:?} is no signal that a program can answer; write one like USR1"))
        }
        Ok(signal) => Ok(signal),
    }
}

/// `/program` or `10s:/program`.
fn hook(text: &str) -> Result<Action, String> {
    let (time, program) = match text.split_once(':') {
        Some((time, program)) if !text.starts_with('/') => (parse_duration(time)?, program),
        _ => (HOOK_TIME, text),
    };
    match Path::new(program).is_absolute() {
        true => Ok(Action::Hook(program.into(), time)),
        false => Err(format!("{program:?} is not absolute; a hook is a program's whole path, without arguments")),
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
            Action::Defer => f.write_str("defer"),
            Action::Signal(signal) => write!(f, "signal={}", signal.as_str().trim_start_matches("SIG")),
            Action::Hook(program, HOOK_TIME) => write!(f, "hook={}", program.display()),
            Action::Hook(program, time) => write!(f, "hook={time:?}:{}", program.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_parses_back() {
        for text in [
            "reclaim",
            "throttle=3s",
            "grant=64M",
            "grant=1G",
            "grant=1234",
            "freeze=2s",
            "ask=30s",
            "kill",
            "defer",
            "signal=USR1",
            "hook=/bin/a:b",
            "hook=10s:/bin/a",
        ] {
            let action: Action = text.parse().unwrap();
            assert_eq!(action.to_string(), text);
        }
        assert_eq!("signal=sigusr2".parse(), Ok(Action::Signal(Signal::SIGUSR2)));
        assert_eq!("throttle".parse(), Ok(Action::Throttle(THROTTLE_TIME)));
    }

    #[test]
    fn mistakes_name_the_remedy() {
        assert!("grant".parse::<Action>().unwrap_err().contains("grant=64M"));
        assert!("explode".parse::<Action>().unwrap_err().contains("known are"));
        assert!("kill=9".parse::<Action>().unwrap_err().contains("no value"));
        assert!("grant=lots".parse::<Action>().is_err());
        assert!("signal=KILL".parse::<Action>().unwrap_err().contains("USR1"));
        assert!("signal=9".parse::<Action>().is_err() && "signal".parse::<Action>().is_err());
        assert!("hook=drop".parse::<Action>().unwrap_err().contains("whole path"));
        assert!("hook=soon:/bin/a".parse::<Action>().is_err() && "defer=1".parse::<Action>().is_err());
    }
}
