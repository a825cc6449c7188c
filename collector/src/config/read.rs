//! From TOML to checked texts.

use super::guard::{OF_ONE, Override, key_of_one};
use super::keys::{AUTO, KEYS, Key, Kind};
use super::{Config, DEFAULT_DIR, Origin, Setting};
use crate::cgroup::Which;
use crate::snapshot::Collect;
use crate::verdict::policy::Rule;
use crate::verdict::{Action, Condition};
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
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

/// Whether it is a folder; the one that nobody has to name may be absent.
pub(super) fn named(dir: &Path) -> Result<(), Problem> {
    let problem = |message: &str| Problem { file: dir.to_owned(), line: None, message: message.to_owned() };
    match fs::metadata(dir) {
        Ok(found) if !found.is_dir() => Err(problem("it is no folder; name the one that reprieve.toml is in")),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound && dir != Path::new(DEFAULT_DIR) => {
            Err(problem("there is no such folder; make it, or name another one with --config"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(unreadable(dir, &error)),
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
                (Some(key), _) => self.value(key, value),
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
        let (mut name, mut matches, mut when, mut collect, mut ladder) = (None, None, None, None, Vec::new());
        for (key, value) in table {
            let path = format!("{RULE}.{}", key.get_ref());
            match key.get_ref().as_ref() {
                "name" => name = self.texts(&path, Kind::Text, |_| Ok(()), value).pop(),
                "match" => matches = self.which(&path, value),
                "when" => when = self.string(&path, value, Condition::parse),
                "collect" => {
                    let texts = self.texts(&path, Kind::Parts, |text| Collect::of([text]).map(drop), value);
                    collect = Collect::of(texts.iter().map(String::as_str)).ok().map(|collect| (collect, key.span()));
                }
                "on_oom" => {
                    let texts = self.texts(&path, Kind::Actions, |text| Action::from_str(text).map(drop), value);
                    ladder = texts.iter().filter_map(|text| text.parse().ok()).collect();
                }
                _ => {
                    let message = format!("{path} is not a key; a rule has name, match, when, collect and on_oom");
                    self.problem(&key.span(), message);
                }
            }
        }
        let has = |key: &str| table.iter().any(|(k, _)| k.get_ref() == key);
        for key in ["name", "when", "on_oom"].into_iter().filter(|key| !has(key)) {
            // One that says what is collected need not say what is done.
            if key != "on_oom" || !has("collect") {
                self.problem(&rule.span(), format!("{RULE}: {key} is missing"));
            }
        }
        if let (Some((_, span)), Some(when)) = (&collect, &when)
            && when.sees_heap()
        {
            let message = "what is collected is decided before anybody looks at the heap, which `when` asks for; \
                           make a rule of its own with collect, or say it in [[cgroup]]";
            self.problem(span, format!("{RULE}.collect: {message}"));
        }
        if let (Some(name), Some(when)) = (name, when)
            && self.problems.len() == before
        {
            let origin = Origin { file: self.file.to_owned(), line: self.line(&rule.span()) };
            self.config
                .rules
                .push((Rule { name, matches, when, collect: collect.map(|(collect, _)| collect), ladder }, origin));
        }
    }

    fn cgroup(&mut self, cgroup: &Spanned<DeValue<'_>>) {
        let Some(table) = cgroup.get_ref().as_table() else {
            return self.problem(&cgroup.span(), "write [[cgroup]], and match below it".to_owned());
        };
        let (mut matches, mut set) = (None, BTreeMap::new());
        for (name, value) in table {
            let path = format!("{CGROUP}.{}", name.get_ref());
            match key_of_one(name.get_ref()) {
                _ if name.get_ref() == "match" => matches = self.which(&path, value),
                Some(key) => {
                    let texts = self.texts(&path, key.kind, key.check, value);
                    set.insert(key.name.trim_start_matches("guard."), texts);
                }
                None => {
                    let known = OF_ONE.join(", ");
                    self.problem(&name.span(), format!("{path} is not a key; a cgroup has match, {known}"));
                }
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

    /// What the key `path` says of cgroups: a pattern of their paths, or a table of what they
    /// are.
    fn which(&mut self, path: &str, value: &Spanned<DeValue<'_>>) -> Option<Which> {
        match value.get_ref() {
            DeValue::String(_) => self.string(path, value, Which::at),
            DeValue::Table(table) if !table.is_empty() => {
                let (mut which, before) = (Which::default(), self.problems.len());
                for (key, value) in table {
                    let path = format!("{path}.{}", key.get_ref());
                    if Which::KEYS.contains(&key.get_ref().as_ref()) {
                        self.string(&path, value, |text| which.say(key.get_ref(), text));
                    } else {
                        let known = Which::KEYS.join(", ");
                        self.problem(&key.span(), format!("{path} is not a key; a match has {known}"));
                    }
                }
                (self.problems.len() == before).then_some(which)
            }
            _ => {
                let forms = "\"/batch/*\", or { unit = \"nginx.service\" }";
                self.problem(&value.span(), format!("{path}: write a pattern of paths, like {forms}"));
                None
            }
        }
    }

    fn value(&mut self, key: &'static Key, value: &Spanned<DeValue<'_>>) {
        let texts = self.texts(key.name, key.kind, key.check, value);
        let origin = Origin { file: self.file.to_owned(), line: self.line(&value.span()) };
        self.config.set.insert(key.name, Setting { texts, origin });
    }

    /// What one would type on the command line for the key `path`, of a list each entry.
    /// Those that are wrong are told, each with its line, and left out.
    fn texts(
        &mut self,
        path: &str,
        kind: Kind,
        check: impl Fn(&str) -> Result<(), String>,
        value: &Spanned<DeValue<'_>>,
    ) -> Vec<String> {
        let written: Vec<_> = match (kind, value.get_ref()) {
            (Kind::List | Kind::Parts, DeValue::Array(entries)) => {
                entries.iter().map(|e| (e.span(), string_of(e))).collect()
            }
            (Kind::Actions, DeValue::Array(entries)) if !entries.is_empty() => {
                entries.iter().map(|e| (e.span(), string_of(e))).collect()
            }
            (_, one) => vec![(value.span(), text_of(kind, one))],
        };
        let mut texts = Vec::new();
        for (span, text) in written {
            match text.and_then(|text| check(&text).map(|()| text)) {
                Ok(text) => texts.push(text),
                Err(message) => self.problem(&span, format!("{path}: {message}")),
            }
        }
        texts
    }

    /// What is read from a string, of the key `path`.
    fn string<T>(
        &mut self,
        path: &str,
        value: &Spanned<DeValue<'_>>,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let read = string_of(value).and_then(|text| read(&text));
        read.map_err(|message| self.problem(&value.span(), format!("{path}: {message}"))).ok()
    }
}

fn string_of(value: &Spanned<DeValue<'_>>) -> Result<String, String> {
    value.get_ref().as_str().map(str::to_owned).ok_or_else(|| "write a string in quotes".to_owned())
}

/// What one would type on the command line, but for entries of a list.
fn text_of(kind: Kind, value: &DeValue<'_>) -> Result<String, String> {
    match (kind, value) {
        (Kind::Text, DeValue::String(text)) => Ok(text.to_string()),
        (Kind::Text, DeValue::Integer(number)) if number.radix() == 10 => Ok(number.as_str().to_owned()),
        (Kind::Text, _) => Err("write a string in quotes, or a whole number".to_owned()),
        (Kind::Flag, DeValue::Boolean(flag)) => Ok(flag.to_string()),
        (Kind::Flag, _) => Err("write true or false, without quotes".to_owned()),
        (Kind::Switch, DeValue::Boolean(flag)) => Ok(flag.to_string()),
        (Kind::Switch, DeValue::String(text)) if text == AUTO => Ok(text.to_string()),
        (Kind::Switch, _) => Err("write true or false, without quotes, or \"auto\"".to_owned()),
        (Kind::List, _) => Err("write an array of strings, like [\"/batch/*\"]".to_owned()),
        (Kind::Parts, _) => Err("write an array of strings, like [\"stacks\", \"heap\"]".to_owned()),
        (Kind::Actions, DeValue::Array(_)) => Err("there is no action; write at least one, like [\"kill\"]".to_owned()),
        (Kind::Actions, _) => Err("write an array of strings, like [\"reclaim\", \"kill\"]".to_owned()),
    }
}

fn unknown(path: &str) -> String {
    let likeness = |key: &Key| strsim::jaro_winkler(key.name, path);
    match KEYS.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b))).filter(|key| likeness(key) >= ALIKE) {
        Some(key) => format!("{path} is not a key; did you mean {}?", key.name),
        None => format!("{path} is not a key; `reprieve config show` lists all"),
    }
}
