//! Telling others that a person has to decide: a webhook, and a program.
//!
//! Each is a process of its own with a deadline, after which it is killed. What hangs or
//! fails is told, and changes nothing.

use super::message::Pending;
use crate::hold::watchdog::{open_pidfd, wait_pidfd};
use crate::incident::units;
use crate::say;
use crate::verdict::hook;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::{Value, json};
use std::fs;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest template.
const MOST_TEMPLATE_BYTES: usize = 4 << 10;
/// Time for an announcement.
pub const TIME: Duration = Duration::from_secs(5);

/// What is sent where nothing else is configured: chats take `text`.
pub const BODY: &str = r#"{"text": "{{host}}: {{summary}} In {{seconds}} s: {{fallback}}. Decide with: reprieve decide {{id}} ACTION", "id": "{{id}}", "host": "{{host}}", "cgroup": "{{cgroup}}", "usage_bytes": "{{usage_bytes}}", "limit_bytes": "{{limit_bytes}}", "seconds": "{{seconds}}", "fallback": "{{fallback}}", "recommended": "{{recommended}}", "folder": "{{folder}}"}"#;

/// Who is told.
#[derive(Debug, Clone, Default)]
pub struct Announce {
    /// A URL, and what is posted there.
    pub webhook: Option<(String, Template)>,
    /// A program.
    pub hook: Option<PathBuf>,
    /// How long each may take.
    pub at_most: Duration,
}

/// JSON with `{{names}}` in its texts. Filled in after it was parsed, so that nothing that
/// is filled in can be more than a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Template(Value);

impl Template {
    /// From its text; the error is a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MOST_TEMPLATE_BYTES {
            return Err(format!("it is longer than {MOST_TEMPLATE_BYTES} bytes"));
        }
        let value = serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}"))?;
        let facts = facts(&Pending::default());
        fill(&value, &facts)?;
        Ok(Template(value))
    }

    /// The JSON of a hold.
    fn filled(&self, pending: &Pending) -> String {
        fill(&self.0, &facts(pending)).map(|value| value.to_string()).unwrap_or_default()
    }
}

type Facts = Vec<(&'static str, Value)>;

/// What there is to fill in.
fn facts(pending: &Pending) -> Facts {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let folder = pending.folder.as_ref().map(|folder| folder.display().to_string());
    vec![
        ("id", json!(pending.id)),
        ("host", json!(host.trim())),
        ("cgroup", json!(pending.cgroup)),
        ("summary", json!(pending.summary)),
        ("usage", json!(units::bytes(pending.usage_bytes))),
        ("usage_bytes", json!(pending.usage_bytes)),
        ("limit", json!(units::bytes(pending.limit_bytes))),
        ("limit_bytes", json!(pending.limit_bytes)),
        ("seconds", json!(pending.left_ms.div_ceil(1000))),
        ("fallback", json!(pending.fallback)),
        ("recommended", json!(pending.recommended)),
        ("folder", json!(folder.unwrap_or_default())),
    ]
}

/// A text that is one name alone becomes its value, a number too.
fn fill(template: &Value, facts: &Facts) -> Result<Value, String> {
    Ok(match template {
        Value::String(text) => fill_text(text, facts)?,
        Value::Array(all) => Value::Array(all.iter().map(|one| fill(one, facts)).collect::<Result<_, _>>()?),
        Value::Object(all) => {
            let filled = all.iter().map(|(key, value)| Ok((key.clone(), fill(value, facts)?)));
            Value::Object(filled.collect::<Result<_, String>>()?)
        }
        other => other.clone(),
    })
}

fn fill_text(text: &str, facts: &Facts) -> Result<Value, String> {
    let find = |name: &str| {
        let found = facts.iter().find(|(known, _)| *known == name.trim());
        found.map(|(_, value)| value).ok_or_else(|| {
            let known: Vec<&str> = facts.iter().map(|(known, _)| *known).collect();
            format!("{{{{{name}}}}} is not known; known are {}", known.join(", "))
        })
    };
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let Some((name, behind)) = after.split_once("}}") else { break };
        let value = find(name)?;
        if before.is_empty() && behind.is_empty() && filled.is_empty() {
            return Ok(value.clone());
        }
        filled.push_str(before);
        match value {
            Value::String(text) => filled.push_str(text),
            other => filled.push_str(&other.to_string()),
        }
        rest = behind;
    }
    filled.push_str(rest);
    Ok(Value::String(filled))
}

impl Announce {
    /// Begins to tell of a hold; what cannot be begun is told.
    pub(super) fn calls(&self, pending: &Pending) -> Vec<Call> {
        let mut calls = Vec::new();
        if let Some((url, template)) = &self.webhook {
            let what = format!("the webhook {url}");
            // Not as an argument: a URL can hold a secret, and all can read those.
            match input(&format!("{url}\n{}", template.filled(pending))) {
                Ok(input) => {
                    let mut command = Command::new("/proc/self/exe");
                    command.arg("announce").arg(self.at_most.as_secs().max(1).to_string()).stdin(input);
                    calls.push(Call::start(&what, command, self.at_most));
                }
                Err(error) => say!(Warning; "{what} could not be started: {error}"),
            }
        }
        if let Some(program) = &self.hook {
            let mut command = Command::new(program);
            for (name, value) in facts(pending) {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                command.env(format!("REPRIEVE_{}", name.to_uppercase()), value);
            }
            command.stdin(Stdio::null());
            calls.push(Call::start(&format!("the hook {}", program.display()), command, self.at_most));
        }
        calls.into_iter().flatten().collect()
    }
}

/// A text to be read. Not a pipe: a child that does not read would be waited for.
fn input(text: &str) -> io::Result<File> {
    let mut file = File::from(memfd_create(c"announcement", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

/// An announcement under way.
pub(super) struct Call {
    what: String,
    child: Child,
    pidfd: OwnedFd,
    until: Instant,
    at_most: Duration,
}

impl Call {
    fn start(what: &str, mut command: Command, at_most: Duration) -> Option<Self> {
        let told = |error: io::Error| say!(Warning; "{what} could not be started: {error}");
        let mut child = hook::start(command.stdout(Stdio::null())).map_err(told).ok()?;
        match open_pidfd(child.id() as i32) {
            Ok(pidfd) => Some(Call { what: what.to_owned(), child, pidfd, until: Instant::now() + at_most, at_most }),
            Err(error) => {
                told(error);
                let _ = hook::end(&mut child);
                None
            }
        }
    }

    /// Readable when it has ended.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Until when it may take.
    pub(super) fn until(&self) -> Instant {
        self.until
    }

    /// Whether it has ended, or is ended since its time, or everybody's, is over.
    pub(super) fn is_over(&mut self, everybody: bool) -> bool {
        // Not reaped by looking: its PID names the group that is to be killed.
        let has_ended = wait_pidfd(&self.pidfd, Duration::ZERO);
        let is_late = !has_ended && Instant::now() >= self.until;
        if !has_ended && !is_late && !everybody {
            return false;
        }
        match hook::end(&mut self.child) {
            _ if is_late => say!(Warning; "{} was not done after {:?} and was killed", self.what, self.at_most),
            Ok(status) if has_ended && !status.success() => say!(Warning; "{} failed ({status})", self.what),
            Err(error) => say!(Warning; "{} could not be waited for: {error}", self.what),
            Ok(_) => {}
        }
        true
    }
}

/// What the webhook's process does: reads a URL and, from the second line on, what to post
/// there. The error is a sentence.
pub fn post(seconds: u64) -> Result<(), String> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text).map_err(|error| error.to_string())?;
    let (url, body) = text.split_once('\n').ok_or("there is nothing to post")?;
    let request = minreq::post(url).with_header("Content-Type", "application/json").with_body(body);
    match request.with_timeout(seconds).send() {
        Ok(answer) if (200..300).contains(&answer.status_code) => Ok(()),
        Ok(answer) => Err(format!("{url} answered {} {}", answer.status_code, answer.reason_phrase)),
        Err(error) => Err(format!("{url}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending() -> Pending {
        let summary = "he said \"no\", \\ and }".to_owned();
        Pending { id: "one".into(), usage_bytes: 5, left_ms: 1500, summary, ..Pending::default() }
    }

    #[test]
    fn what_is_filled_in_is_a_text_whatever_it_says() {
        let template = Template::parse(
            r#"[{"{{id}}": "{{id}}: {{summary}}, {{usage_bytes}} B", "n": "{{seconds}}", "x": [1, "{{"]}]"#,
        );
        let filled: Value = serde_json::from_str(&template.unwrap().filled(&pending())).unwrap();
        let wanted = json!([{"{{id}}": "one: he said \"no\", \\ and }, 5 B", "n": 2, "x": [1, "{{"]}]);
        assert_eq!(filled, wanted);
        let body: Value = serde_json::from_str(&Template::parse(BODY).unwrap().filled(&pending())).unwrap();
        assert_eq!((&body["usage_bytes"], &body["id"]), (&json!(5), &json!("one")));
        assert!(body["text"].as_str().unwrap().contains("reprieve decide one ACTION"), "{body}");
    }

    #[test]
    fn mistakes_in_templates() {
        for (text, part) in [
            ("{", "it is not JSON"),
            (r#"{"a": "{{usge}}"}"#, "{{usge}} is not known; known are id, host, cgroup"),
            (&format!("\"{}\"", "x".repeat(5000)), "longer than 4096"),
        ] {
            let error = Template::parse(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
