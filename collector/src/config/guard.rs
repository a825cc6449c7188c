//! What is configured for `reprieve guard`, as a whole and for each memcg.

use super::keys::{self, Key};
use super::{Config, Origin};
use crate::cgroup::{Glob, Which};
use crate::desk::{self, Announce};
use crate::hold::{BrakeChoice, Cushion};
use crate::metrics::Places;
use crate::say::Form;
use crate::size::{parse_duration, parse_faults};
use crate::snapshot::Collect;
use crate::verdict::Action;
use crate::verdict::policy::Policy;
use crate::verdict::worth::{Said, Worths};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// What `[[cgroup]]` can say otherwise than `[guard]`.
pub const OF_ONE: [&str; 12] = [
    "deadline",
    "on_oom",
    "collect",
    "brake",
    "cushion",
    "most_granted",
    "reports_per_hour",
    "dry_run",
    "growth",
    "growth_period",
    "priority",
    "reservation",
];

/// What is said of some memcgs only.
#[derive(Debug, Clone)]
pub struct Override {
    /// Which.
    pub matches: Which,
    /// Texts by their key's name below `guard`; of a list each entry, else one.
    pub set: BTreeMap<&'static str, Vec<String>>,
    /// Where it begins.
    pub origin: Origin,
}

/// How a memcg is guarded.
#[derive(Debug, Clone)]
pub struct Guarded {
    /// Longest that the analysis holds.
    pub deadline: Duration,
    /// What is done.
    pub policy: Policy,
    /// How it is held.
    pub brake: BrakeChoice,
    /// On version 1, how far the kernel's limit is raised.
    pub cushion: Cushion,
    /// Most that it is granted beyond its own limit; `None` depends on that limit and the
    /// machine.
    pub most_granted: Option<u64>,
    /// Most incidents of it in an hour whose OOMs did no harm.
    pub reports_per_hour: usize,
    /// Whether what would be done is only told.
    pub is_dry: bool,
    /// Page faults of one sample; `None` where they are not sampled.
    pub growth_period: Option<u64>,
}

impl Config {
    /// The cgroups to guard.
    #[must_use]
    pub fn guard_cgroups(&self) -> Vec<Glob> {
        self.list("guard.cgroups", Glob::parse)
    }

    /// Those to leave alone all the same.
    #[must_use]
    pub fn guard_except(&self) -> Vec<Glob> {
        self.list("guard.except", Glob::parse)
    }

    /// Most OOMs that are answered at the same time.
    #[must_use]
    pub fn guard_analysts(&self) -> usize {
        self.parsed("guard.analysts", keys::count)
    }

    /// Most that is granted to all cgroups; `None` depends on the machine.
    #[must_use]
    pub fn most_granted_in_all(&self) -> Option<u64> {
        self.parsed("guard.most_granted_in_all", keys::bytes_or_auto)
    }

    /// Least time between two incidents of the machine.
    #[must_use]
    pub fn guard_cooldown(&self) -> Duration {
        self.parsed("guard.cooldown", keys::pause)
    }

    /// Folder for the lock; `None` is that of the user.
    #[must_use]
    pub fn guard_run_dir(&self) -> Option<PathBuf> {
        Some(self.get("guard.run_dir")).filter(|dir| *dir != keys::AUTO).map(PathBuf::from)
    }

    /// How persons are asked.
    #[must_use]
    pub fn asking(&self) -> desk::Manner {
        let webhook = self.parsed("ask.webhook", keys::webhook);
        let announce = Announce {
            webhook: webhook.map(|url| (url, self.parsed("ask.webhook_body", keys::template))),
            hook: self.parsed("ask.hook", keys::hook),
            at_most: self.parsed("ask.announce_time", parse_duration),
        };
        desk::Manner { most: self.parsed("ask.most", parse_duration), announce }
    }

    /// Form of the guard's log.
    #[must_use]
    pub fn guard_log(&self) -> Form {
        self.parsed("guard.log", Form::from_str)
    }

    /// Where metrics are to be had.
    #[must_use]
    pub fn guard_metrics(&self) -> Places {
        let (listen, textfile) =
            (self.parsed("guard.metrics", keys::metrics), self.parsed("guard.textfile", keys::textfile));
        Places { listen, textfile }
    }

    /// How the memcg at `path` is guarded: as `[guard]` says, and each `[[cgroup]]` that
    /// matches, a later one before an earlier one.
    #[must_use]
    pub fn guarded(&self, path: &str) -> Guarded {
        let said = |name: &'static str| {
            let said = self.overrides.iter().rev().filter(|one| one.matches.matches(path));
            said.filter_map(|one| one.set.get(name)).next()
        };
        let text = |name: &'static str| {
            let own = said(name).and_then(|texts| texts.first());
            own.map_or_else(|| self.get(&format!("guard.{name}")), String::as_str)
        };
        fn parsed<T>(text: &str, parse: impl Fn(&str) -> Result<T, String>) -> T {
            // Every text was checked by the same parser when it was read.
            parse(text).unwrap_or_else(|error| unreachable!("{error}"))
        }
        let otherwise = match said("on_oom") {
            Some(texts) => texts.iter().map(|text| parsed(text, Action::from_str)).collect(),
            None => self.list("guard.on_oom", Action::from_str),
        };
        let collect = match said("collect") {
            Some(texts) => Collect::of(texts.iter().map(String::as_str)).unwrap_or_default(),
            None => self.collect("guard.collect"),
        };
        Guarded {
            deadline: parsed(text("deadline"), parse_duration),
            policy: self.policy_with(otherwise, collect),
            brake: parsed(text("brake"), BrakeChoice::from_str),
            cushion: parsed(text("cushion"), keys::cushion),
            most_granted: parsed(text("most_granted"), keys::bytes_or_auto),
            reports_per_hour: parsed(text("reports_per_hour"), keys::count),
            is_dry: text("dry_run") == "true",
            growth_period: (text("growth") == "true").then(|| parsed(text("growth_period"), parse_faults)),
        }
    }

    /// What is said of cgroups that are jobs, guarded or below one that is.
    #[must_use]
    pub fn worths(&self) -> Worths {
        let parse = |priority: Option<&str>, reservation: Option<&str>| {
            // Every text was checked by the same parsers when it was read.
            let priority = priority.map_or(Ok(None), keys::priority);
            let reservation = reservation.map_or(Ok(None), keys::bytes_or_auto);
            (priority.unwrap_or_default(), reservation.unwrap_or_default())
        };
        let said = |matches: Option<&Which>, (priority, reservation_bytes)| Said {
            matches: matches.cloned(),
            priority,
            reservation_bytes,
        };
        let of_all = said(None, parse(Some(self.get("guard.priority")), Some(self.get("guard.reservation"))));
        let text = |one: &'_ Override, name: &str| one.set.get(name).map(|texts| texts.concat());
        let of_some = self.overrides.iter().map(|one| {
            let (priority, reservation) = (text(one, "priority"), text(one, "reservation"));
            said(Some(&one.matches), parse(priority.as_deref(), reservation.as_deref()))
        });
        let all = std::iter::once(of_all).chain(of_some);
        Worths(all.filter(|said| said.priority.is_some() || said.reservation_bytes.is_some()).collect())
    }

    /// `[[cgroup]]` as files have it.
    pub(super) fn show_overrides(&self, origins: bool) -> String {
        let mut out = String::new();
        for one in &self.overrides {
            let origin = if origins { format!(" # {}", one.origin) } else { String::new() };
            let matches = keys::which_as_toml(&one.matches);
            out.push_str(&format!("\n[[cgroup]]{origin}\nmatch = {matches}\n"));
            for (name, texts) in &one.set {
                let kind = key_of_one(name).map_or(keys::Kind::Text, |key| key.kind);
                let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                out.push_str(&format!("{name} = {}\n", kind.as_toml(&texts)));
            }
        }
        out
    }
}

/// The key of `[guard]` that `[[cgroup]]` may set as well.
pub(super) fn key_of_one(name: &str) -> Option<&'static Key> {
    let name = OF_ONE.iter().find(|one| **one == name)?;
    keys::KEYS.iter().find(|key| key.name.strip_prefix("guard.") == Some(name))
}
