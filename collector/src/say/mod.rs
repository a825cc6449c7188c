//! What the guardian says while it works: lines on standard error, JSON there, or entries
//! of the systemd journal with fields of their own.
//!
//! Nothing here waits. A journal that does not take an entry at once loses it and is told
//! so later: journald may itself be in a memcg that is held, and would then be waited for
//! until the deadline.

mod journal;
mod json;

use journal::Journal;
use std::fmt;
use std::io::{IsTerminal, Write};
use std::str::FromStr;
use std::sync::OnceLock;

/// How much somebody should care; the numbers are those of syslog(3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Something did not work.
    Error = 3,
    /// It works, but less well than it could.
    Warning = 4,
    /// What one looks for in a log: an OOM and what came of it.
    Notice = 5,
    /// Everything else.
    Info = 6,
}

impl Level {
    /// As in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Notice => "notice",
            Level::Info => "info",
        }
    }
}

/// A name in small letters, as in an incident, and its value.
pub type Field<'a> = (&'static str, &'a dyn fmt::Display);

/// The fields that have a value, as texts.
fn texts<'a>(fields: &'a [Field<'a>]) -> impl Iterator<Item = (&'static str, String)> + 'a {
    fields.iter().map(|(name, value)| (*name, value.to_string())).filter(|(_, text)| !text.is_empty())
}

/// Where to and in which form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// To the journal where standard error is connected to it; as text on a terminal; else
    /// somebody collects it, and it is JSON.
    #[default]
    Auto,
    /// Text for people.
    Text,
    /// One JSON object a line.
    Json,
    /// The journal.
    Journal,
}

impl Form {
    /// As on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Form::Auto => "auto",
            Form::Text => "text",
            Form::Json => "json",
            Form::Journal => "journal",
        }
    }
}

impl FromStr for Form {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Form::Auto),
            "text" => Ok(Form::Text),
            "json" => Ok(Form::Json),
            "journal" => Ok(Form::Journal),
            _ => Err(format!("{text:?} is no form of a log; write auto, text, json or journal")),
        }
    }
}

#[derive(Debug)]
enum Sink {
    Text,
    Json,
    Journal(Journal),
}

static SINK: OnceLock<Sink> = OnceLock::new();

/// Chooses for the rest of the process; before that it is text, as it is where a journal
/// was asked for that is not there.
pub fn choose(form: Form) {
    let journal = match form {
        Form::Auto if journal::is_standard_error() => Journal::open().ok(),
        Form::Journal => Journal::open().inspect_err(|e| eprintln!("reprieve: warning: no journal: {e}")).ok(),
        _ => None,
    };
    let is_read = std::io::stderr().is_terminal();
    let sink = match (form, journal) {
        (Form::Json, _) => Sink::Json,
        (_, Some(journal)) => Sink::Journal(journal),
        (Form::Auto, None) if !is_read => Sink::Json,
        (_, None) => Sink::Text,
    };
    let _ = SINK.set(sink);
}

/// Says it; [`say!`](crate::say!) is shorter.
pub fn line(level: Level, fields: &[Field<'_>], text: fmt::Arguments<'_>) {
    match SINK.get() {
        None | Some(Sink::Text) => write(&format!("reprieve: {text}\n")),
        Some(Sink::Json) => write(&(json::line(level, fields, &text.to_string()) + "\n")),
        Some(Sink::Journal(journal)) => journal.send(level, fields, &text.to_string()),
    }
}

/// All at once: a guard's children write to the same place.
fn write(line: &str) {
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Says something: a [`Level`], fields, and as with `format!` a text that tells all of
/// them to who sees nothing else.
///
/// ```
/// let path = "/a";
/// reprieve::say!(Info, cgroup = path; "{path} is gone");
/// ```
#[macro_export]
macro_rules! say {
    ($level:ident $(, $name:ident = $value:expr)* ; $($text:tt)+) => {
        $crate::say::line(
            $crate::say::Level::$level,
            &[$((stringify!($name), &$value as &dyn ::std::fmt::Display)),*],
            format_args!($($text)+),
        )
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_have_names() {
        for (name, form) in
            [("auto", Form::Auto), ("text", Form::Text), ("json", Form::Json), ("journal", Form::Journal)]
        {
            assert_eq!((Form::from_str(name), form.name()), (Ok(form), name));
        }
        assert!(Form::from_str("xml").unwrap_err().contains("write auto, text, json or journal"));
    }

    #[test]
    fn levels_are_those_of_syslog() {
        let all = [Level::Error, Level::Warning, Level::Notice, Level::Info];
        let syslog = [libc::LOG_ERR, libc::LOG_WARNING, libc::LOG_NOTICE, libc::LOG_INFO];
        assert_eq!(all.map(|level| level as i32), syslog);
    }
}
