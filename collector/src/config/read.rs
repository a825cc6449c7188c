//! From TOML to checked texts.

use super::guard::{OF_ONE, Override, key_of_one};
use super::keys::{self, KEYS, Key, Kind};
use super::{Config, Origin, Setting};
use crate::cgroup::Which;
use crate::verdict::Condition;
use crate::verdict::policy::Rule;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The array of rules.
const RULE: &str = "rule";
/// The array of what is said of some cgroups.
const CGROUP: &str = "cgroup";
/// How alike two names are that one may have been meant by the other (Jaro and
/// Winkler; 1 is the same).
const ALIKE: f64 = 0.8;

/// Something that is wrong in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1; `None` for the whole file.
    pub line: Option<usize>,
    /// What is wrong, and what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        match self.line {
            Some(line) => write!(f, "{file}:{line}: {}", self.message),
            None => write!(f, "{file}: {}", self.message),
        }
    }
}

/// The files of a folder in the order in which they are read.
pub(super) fn files(dir: &Path) -> Result<Vec<PathBuf>, Problem> {
    let main = dir.join("reprieve.toml");
    let more = dir.join("conf.d");
    let mut files: Vec<PathBuf> = match fs::read_dir(&more) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(unreadable(&more, &error)),
    };
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    // A link that leads nowhere is there, and a mistake.
    if main.symlink_metadata().is_ok() {
        files.insert(0, main);
    }
    Ok(files)
}

fn unreadable(path: &Path, error: &io::Error) -> Problem {
    let message = match error.kind() {
        io::ErrorKind::InvalidData => "it is not UTF-8; TOML must be".to_owned(),
        _ => format!("{error}; make it readable, or name another folder with --config"),
    };
    Problem { file: path.to_owned(), line: None, message }
}

/// Puts what a file sets into `config`, and tells what is wrong with the rest.
pub(super) fn read(file: &Path, config: &mut Config) -> Vec<Problem> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => return vec![unreadable(file, &error)],
    };
    let mut reader = Reader { file, text: &text, config, problems: Vec::new() };
    match DeTable::parse(&text) {
        Ok(table) => reader.table("", table.get_ref()),
        Err(error) => {
            let message = error.message().replace('\n', ", ");
            reader.problem(&error.span().unwrap_or_default(), message);
        }
    }
    // The table is in the order of names, a person reads in that of lines.
    reader.problems.sort_by_key(|problem| problem.line);
    reader.problems
}

struct Reader<'r> {
    file: &'r Path,
    text: &'r str,
    config: &'r mut Config,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn line(&self, span: &Range<usize>) -> usize {
        let before = self.text.as_bytes().get(..span.start).unwrap_or_default();
        1 + memchr::memchr_iter(b'\n', before).count()
    }

    fn problem(&mut self, span: &Range<usize>, message: String) {
        let line = Some(self.line(span));
        self.problems.push(Problem { file: self.file.to_owned(), line, message });
    }

    fn table(&mut self, path: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let path = if path.is_empty() { name.get_ref().to_string() } else { format!("{path}.{}", name.get_ref()) };
            let key = KEYS.iter().find(|key| key.name == path);
            let is_table =
                KEYS.iter().any(|key| key.name.strip_prefix(&path).is_some_and(|rest| rest.starts_with('.')));
            match (key, value.get_ref()) {
                (None, DeValue::Array(rules)) if path == RULE => rules.iter().for_each(|rule| self.rule(rule)),
                (None, DeValue::Array(cgroups)) if path == CGROUP => {
                    cgroups.iter().for_each(|cgroup| self.cgroup(cgroup));
                }
                (None, _) if path == CGROUP => {
                    self.problem(&name.span(), "write [[cgroup]], and match below it".to_owned());
                }
                (None, _) if path == RULE => {
                    self.problem(&name.span(), "write [[rule]], and name, when and on_oom below it".to_owned());
                }
                (Some(key), value_in) => self.value(key, value_in, &value.span()),
                (None, DeValue::Table(inner)) => self.table(&path, inner),
                (None, _) if is_table => {
                    self.problem(&name.span(), format!("{path} is a table; write [{path}] and keys below it"));
                }
                (None, _) => self.problem(&name.span(), unknown(&path)),
            }
        }
    }

    fn rule(&mut self, rule: &Spanned<DeValue<'_>>) {
        let Some(table) = rule.get_ref().as_table() else {
            return self.problem(&rule.span(), "write [[rule]], and name, when and on_oom below it".to_owned());
        };
        let before = self.problems.len();
        let (mut name, mut matches, mut when, mut ladder) = (None, None, None, None);
        for (key, value) in table {
            let text = |kind| text_of(kind, value.get_ref());
            let read = match key.get_ref().as_ref() {
                "match" => {
                    matches = self.which(RULE, value);
                    continue;
                }
                "name" => text(Kind::Text).map(|text| name = Some(text)),
                "when" => string_of(value.get_ref()).and_then(|text| Condition::parse(&text)).map(|c| when = Some(c)),
                "on_oom" => {
                    text(Kind::List).and_then(|text| keys::actions(&text)).map(|actions| ladder = Some(actions))
                }
                other => {
                    let message = format!("{RULE}.{other} is not a key; a rule has name, match, when and on_oom");
                    self.problem(&key.span(), message);
                    continue;
                }
            };
            if let Err(message) = read {
                self.problem(&value.span(), format!("{RULE}.{}: {message}", key.get_ref()));
            }
        }
        for key in ["name", "when", "on_oom"].iter().filter(|key| !table.iter().any(|(k, _)| k.get_ref() == *key)) {
            self.problem(&rule.span(), format!("{RULE}: {key} is missing"));
        }
        if let (Some(name), Some(when), Some(ladder)) = (name, when, ladder)
            && self.problems.len() == before
        {
            let origin = Origin { file: self.file.to_owned(), line: self.line(&rule.span()) };
            self.config.rules.push((Rule { name, matches, when, ladder }, origin));
        }
    }

    fn cgroup(&mut self, cgroup: &Spanned<DeValue<'_>>) {
        let Some(table) = cgroup.get_ref().as_table() else {
            return self.problem(&cgroup.span(), "write [[cgroup]], and match below it".to_owned());
        };
        let (mut matches, mut set) = (None, BTreeMap::new());
        for (name, value) in table {
            let name_in = name.get_ref().as_ref();
            if name_in == "match" {
                matches = self.which(CGROUP, value);
                continue;
            }
            let read = match key_of_one(name_in) {
                Some(key) => text_of(key.kind, value.get_ref()).and_then(|text| {
                    (key.check)(&text)?;
                    set.insert(key.name.trim_start_matches("guard."), text);
                    Ok(())
                }),
                None => {
                    let known = OF_ONE.join(", ");
                    let message = format!("{CGROUP}.{name_in} is not a key; a cgroup has match, {known}");
                    self.problem(&name.span(), message);
                    continue;
                }
            };
            if let Err(message) = read {
                self.problem(&value.span(), format!("{CGROUP}.{name_in}: {message}"));
            }
        }
        if !table.iter().any(|(name, _)| name.get_ref() == "match") {
            self.problem(&cgroup.span(), format!("{CGROUP}: match is missing"));
        }
        if let Some(matches) = matches {
            let origin = Origin { file: self.file.to_owned(), line: self.line(&cgroup.span()) };
            self.config.overrides.push(Override { matches, set, origin });
        }
    }

    /// What `match` says: a pattern of paths, or a table of what cgroups are.
    fn which(&mut self, of: &str, value: &Spanned<DeValue<'_>>) -> Option<Which> {
        let before = self.problems.len();
        let mut which = Which::default();
        match value.get_ref() {
            DeValue::String(glob) => {
                if let Err(message) = which.say("cgroup", glob) {
                    self.problem(&value.span(), format!("{of}.match: {message}"));
                }
            }
            DeValue::Table(table) if !table.is_empty() => {
                for (key, value) in table {
                    let known = Which::KEYS.contains(&key.get_ref().as_ref());
                    let name = format!("{of}.match.{}", key.get_ref());
                    if !known {
                        let keys = Which::KEYS.join(", ");
                        self.problem(&key.span(), format!("{name} is not a key; a match has {keys}"));
                    } else if let Err(message) =
                        string_of(value.get_ref()).and_then(|text| which.say(key.get_ref(), &text))
                    {
                        self.problem(&value.span(), format!("{name}: {message}"));
                    }
                }
            }
            _ => {
                let forms = "\"/batch/*\", or { unit = \"nginx.service\" }";
                self.problem(&value.span(), format!("{of}.match: write a pattern of paths, like {forms}"));
            }
        }
        (self.problems.len() == before).then_some(which)
    }

    fn value(&mut self, key: &'static Key, value: &DeValue<'_>, span: &Range<usize>) {
        match text_of(key.kind, value).and_then(|text| (key.check)(&text).map(|()| text)) {
            Ok(text) => {
                let origin = Origin { file: self.file.to_owned(), line: self.line(span) };
                self.config.set.insert(key.name, Setting { text, origin });
            }
            Err(message) => self.problem(span, format!("{}: {message}", key.name)),
        }
    }
}

fn string_of(value: &DeValue<'_>) -> Result<String, String> {
    value.as_str().map(str::to_owned).ok_or_else(|| "write a string in quotes".to_owned())
}

/// What one would type on the command line.
fn text_of(kind: Kind, value: &DeValue<'_>) -> Result<String, String> {
    let string = |value: &Spanned<DeValue<'_>>| value.get_ref().as_str().map(str::to_owned);
    match (kind, value) {
        (Kind::Text, DeValue::String(text)) => Ok(text.to_string()),
        (Kind::Text, DeValue::Integer(number)) if number.radix() == 10 => Ok(number.as_str().to_owned()),
        (Kind::Text, _) => Err("write a string in quotes, or a whole number".to_owned()),
        (Kind::Flag, DeValue::Boolean(flag)) => Ok(flag.to_string()),
        (Kind::Flag, _) => Err("write true or false, without quotes".to_owned()),
        (Kind::List, DeValue::Array(values)) => match values.iter().map(string).collect::<Option<Vec<_>>>() {
            Some(texts) => Ok(texts.join(",")),
            None => Err("write an array of strings, like [\"reclaim\", \"kill\"]".to_owned()),
        },
        (Kind::List, _) => Err("write an array of strings, like [\"reclaim\", \"kill\"]".to_owned()),
    }
}

fn unknown(path: &str) -> String {
    let likeness = |key: &Key| strsim::jaro_winkler(key.name, path);
    match KEYS.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b))).filter(|key| likeness(key) >= ALIKE) {
        Some(key) => format!("{path} is not a key; did you mean {}?", key.name),
        None => format!("{path} is not a key; `reprieve config show` lists all"),
    }
}
