//! What `/etc/reprieve` says: `reprieve.toml`, then `conf.d/*.toml` in name order.
//!
//! A value is kept as the text that one would type on the command line, or several of a
//! list, and read by the same parser; the command line wins. Each remembers the file and the line
//! that it came from.

mod guard;
mod keys;
mod machine;
mod read;

pub use guard::Guarded;
use guard::Override;
use keys::Key;
pub use keys::{KEYS, Kind, bytes_or_auto};
pub use read::Problem;

use crate::hold::BrakeChoice;
use crate::incident::store::Limits;
use crate::size::{parse_age, parse_duration, parse_faults, parse_size};
use crate::snapshot::Collect;
use crate::verdict::Action;
use crate::verdict::policy::{Policy, Rule};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// The folder, unless `--config` names another.
pub const DEFAULT_DIR: &str = "/etc/reprieve";

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// A value that some file sets.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    /// Those of a list; of anything else one.
    texts: Vec<String>,
    origin: Origin,
}

/// Everything that is set, and the defaults behind it. Every text has passed the
/// check of its key.
#[derive(Debug, Clone, Default)]
pub struct Config {
    set: BTreeMap<&'static str, Setting>,
    /// In the order of files and lines.
    rules: Vec<(Rule, Origin)>,
    /// The same.
    overrides: Vec<Override>,
}

/// All that is wrong with the files, one line each.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Problems(pub Vec<Problem>);

impl Config {
    /// Reads the files in `dir`; where there are none, all is at its default. A folder that
    /// somebody named must be there.
    pub fn load(dir: &Path) -> Result<Self, Problems> {
        match read::named(dir).and_then(|()| read::files(dir)) {
            Ok(files) => Self::of(&files),
            Err(problem) => Err(Problems(vec![problem])),
        }
    }

    /// Reads only this: a file, or a folder with files, for nothing is configured elsewhere.
    pub fn load_only(path: &Path) -> Result<Self, Problems> {
        let files = if path.is_dir() { read::files(path) } else { Ok(vec![path.to_owned()]) };
        let without = |message: &str| {
            Err(Problems(vec![Problem { file: path.to_owned(), line: None, message: message.to_owned() }]))
        };
        match files {
            _ if !path.exists() => without("there is no such file or folder; name a configuration, like /etc/reprieve"),
            Ok(files) if files.is_empty() => without(
                "neither reprieve.toml nor conf.d/*.toml is in this folder; name a configuration, like /etc/reprieve",
            ),
            Ok(files) => Self::of(&files),
            Err(problem) => Err(Problems(vec![problem])),
        }
    }

    fn of(files: &[PathBuf]) -> Result<Self, Problems> {
        let mut config = Config::default();
        let problems: Vec<Problem> = files.iter().flat_map(|file| read::read(file, &mut config)).collect();
        if problems.is_empty() { Ok(config) } else { Err(Problems(problems)) }
    }

    /// The texts of a key, and where they were set; `None` is its default.
    #[must_use]
    pub fn texts(&self, key: &Key) -> (Vec<&str>, Option<&Origin>) {
        match self.set.get(key.name) {
            Some(setting) => (setting.texts.iter().map(String::as_str).collect(), Some(&setting.origin)),
            None => (key.default.to_vec(), None),
        }
    }

    /// All keys with their values as a file that says the same; with `origins`, each
    /// line ends with where it comes from.
    #[must_use]
    pub fn show(&self, origins: bool) -> String {
        let mut out = String::new();
        let mut table = "";
        for key in KEYS {
            let (of, name) = key.name.split_once('.').unwrap_or(("", key.name));
            if of != table {
                out.push_str(&format!("{}[{of}]\n", if out.is_empty() { "" } else { "\n" }));
                table = of;
            }
            let (texts, origin) = self.texts(key);
            let line = format!("{name} = {}", key.kind.as_toml(&texts));
            match origin {
                _ if !origins => out.push_str(&format!("{line}\n")),
                Some(origin) => out.push_str(&format!("{line:40} # {origin}\n")),
                None => out.push_str(&format!("{line:40} # default\n")),
            }
        }
        out.push_str(&self.show_overrides(origins));
        for (rule, origin) in &self.rules {
            let origin = if origins { format!(" # {origin}") } else { String::new() };
            let ladder: Vec<String> = rule.ladder.iter().map(|action| keys::quoted(&action.to_string())).collect();
            let (name, when) = (keys::quoted(&rule.name), keys::quoted(&rule.when.to_string()));
            let matches = rule.matches.as_ref().map(|which| format!("match = {}\n", keys::which_as_toml(which)));
            let matches = matches.unwrap_or_default();
            out.push_str(&format!("\n[[rule]]{origin}\nname = {name}\n{matches}when = {when}\n"));
            if let Some(collect) = rule.collect {
                out.push_str(&format!("collect = {}\n", keys::Kind::Parts.as_toml(&collect.words())));
            }
            if !ladder.is_empty() {
                out.push_str(&format!("on_oom = [{}]\n", ladder.join(", ")));
            }
        }
        out
    }

    /// The entries of a list.
    fn list<T>(&self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let key = KEYS.iter().find(|key| key.name == name);
        let texts = key.map_or_else(Vec::new, |key| self.texts(key).0);
        // Each was checked by the same parser when it was read.
        texts.iter().map(|text| parse(text).unwrap_or_else(|error| unreachable!("{name}: {error}"))).collect()
    }

    /// The text of what is no list.
    fn get(&self, name: &str) -> &str {
        let key = KEYS.iter().find(|key| key.name == name);
        key.and_then(|key| self.texts(key).0.first().copied()).unwrap_or_default()
    }

    /// Every text was checked by the same parser when it was read.
    fn parsed<T>(&self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> T {
        parse(self.get(name)).unwrap_or_else(|error| unreachable!("{name}: {error}"))
    }

    /// Folder for incidents; `None` is that of the user.
    #[must_use]
    pub fn store_dir(&self) -> Option<PathBuf> {
        Some(self.get("store.dir")).filter(|dir| *dir != keys::AUTO).map(PathBuf::from)
    }

    /// What is kept there.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            max_count: self.parsed("store.max_count", keys::count),
            max_use_bytes: self.parsed("store.max_use", parse_size),
            keep_free_bytes: self.parsed("store.keep_free", keys::free),
            max_age: self.parsed("store.max_age", parse_age),
        }
    }

    /// Whether command lines are recorded.
    #[must_use]
    pub fn records_cmdlines(&self) -> bool {
        self.get("record.cmdline") == "true"
    }

    /// Limit of a run, in bytes.
    #[must_use]
    pub fn run_memory(&self) -> u64 {
        self.parsed("run.memory", parse_size)
    }

    /// Longest that a run is held for the analysis.
    #[must_use]
    pub fn run_deadline(&self) -> Duration {
        self.parsed("run.deadline", parse_duration)
    }

    /// What is done when a run is out of memory: the first rule that holds, else
    /// run.on_oom.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.policy_with(self.list("run.on_oom", Action::from_str), self.collect("run.collect"))
    }

    /// What a key says is collected.
    fn collect(&self, name: &str) -> Collect {
        let key = KEYS.iter().find(|key| key.name == name);
        // Each text was checked by the same parser when it was read.
        key.and_then(|key| Collect::of(self.texts(key).0).ok()).unwrap_or_default()
    }

    /// The rules, and this where none holds.
    fn policy_with(&self, otherwise: Vec<Action>, collect: Collect) -> Policy {
        let rules = self.rules.iter().map(|(rule, _)| rule.clone()).collect();
        Policy { rules, otherwise, collect, worths: self.worths() }
    }

    /// Most that grants add to the limit of a run; `None` depends on the limit.
    #[must_use]
    pub fn run_most_granted(&self) -> Option<u64> {
        self.parsed("run.most_granted", keys::bytes_or_auto)
    }

    /// Most incidents of a run in an hour whose OOMs did no harm.
    #[must_use]
    pub fn run_reports_per_hour(&self) -> usize {
        self.parsed("run.reports_per_hour", keys::count)
    }

    /// How a run is held.
    #[must_use]
    pub fn run_brake(&self) -> BrakeChoice {
        self.parsed("run.brake", BrakeChoice::from_str)
    }

    /// Whether the library is loaded into commands.
    #[must_use]
    pub fn run_records_heap(&self) -> bool {
        self.get("run.heap") == "true"
    }

    /// Mean bytes between sampled allocations; `None` depends on the limit.
    #[must_use]
    pub fn run_heap_period(&self) -> Option<u64> {
        self.parsed("run.heap_period", keys::period)
    }

    /// Whether page faults of commands are sampled.
    #[must_use]
    pub fn run_watches_growth(&self) -> bool {
        self.get("run.growth") == "true"
    }

    /// Page faults of one sample.
    #[must_use]
    pub fn run_growth_period(&self) -> u64 {
        self.parsed("run.growth_period", parse_faults)
    }

    /// Longest that a snapshot stops its target.
    #[must_use]
    pub fn snapshot_deadline(&self) -> Duration {
        self.parsed("snapshot.deadline", parse_duration)
    }
}

#[cfg(test)]
mod tests;
