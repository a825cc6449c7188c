//! The keys: what there is to set.

use crate::cgroup::{Glob, Which};
use crate::desk::announce::{BODY, Template};
use crate::hold::{BrakeChoice, Cushion};
use crate::machine::Remedy;
use crate::say::Form;
use crate::size::{parse_age, parse_duration, parse_faults, parse_size};
use crate::snapshot::Collect;
use crate::verdict::Action;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// What depends on something else unless it is set.
pub(super) const AUTO: &str = "auto";
/// What is not done unless it is set.
const OFF: &str = "off";

/// How a value is written in TOML.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A string, or a whole number.
    Text,
    /// `true` or `false`.
    Flag,
    /// The same, or `"auto"`.
    Switch,
    /// An array of strings.
    List,
    /// An array of actions, one or more.
    Actions,
    /// An array of parts of the evidence.
    Parts,
}

impl Kind {
    /// Texts of this kind as TOML; one that is no list has one.
    pub(super) fn as_toml(self, texts: &[&str]) -> String {
        let quoted: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
        match self {
            Kind::Text => quoted.concat(),
            Kind::Switch if texts == [AUTO] => quoted.concat(),
            Kind::Flag | Kind::Switch => texts.concat(),
            Kind::List | Kind::Actions | Kind::Parts => format!("[{}]", quoted.join(", ")),
        }
    }
}

/// A string as TOML.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// Which cgroups, as TOML.
pub(super) fn which_as_toml(which: &Which) -> String {
    let said: Vec<_> = which.said().into_iter().map(|(key, text)| (key, quoted(&text))).collect();
    match said.as_slice() {
        [("cgroup", glob)] => glob.clone(),
        said => {
            let said: Vec<String> = said.iter().map(|(key, text)| format!("{key} = {text}")).collect();
            format!("{{ {} }}", said.join(", "))
        }
    }
}

/// Something that can be set.
#[derive(Debug)]
pub struct Key {
    /// Table and name.
    pub name: &'static str,
    /// How it is written.
    pub kind: Kind,
    /// Its value where nobody sets it, as text; of a list each entry.
    pub default: &'static [&'static str],
    /// What it is.
    pub meaning: &'static str,
    /// What is wrong with a text, of a list with an entry, and what to write instead.
    pub check: fn(&str) -> Result<(), String>,
}

/// All keys, table by table.
pub const KEYS: &[Key] = &[
    Key {
        name: "store.dir",
        kind: Kind::Text,
        default: &[AUTO],
        meaning: "folder for incidents; auto is /var/lib/reprieve, or XDG's state folder",
        check: dir,
    },
    Key {
        name: "store.max_count",
        kind: Kind::Text,
        default: &["100"],
        meaning: "incidents kept; those in which somebody was killed go last",
        check: |text| count(text).map(drop),
    },
    Key {
        name: "store.max_use",
        kind: Kind::Text,
        default: &["1G"],
        meaning: "disk space for incidents",
        check: |text| parse_size(text).map(drop),
    },
    Key {
        name: "store.keep_free",
        kind: Kind::Text,
        default: &["0"],
        meaning: "disk space that old incidents are removed for, while less is free",
        check: |text| free(text).map(drop),
    },
    Key {
        name: "store.max_age",
        kind: Kind::Text,
        default: &["never"],
        meaning: "age at which incidents are removed, like 90d, or never",
        check: |text| parse_age(text).map(drop),
    },
    Key {
        name: "record.cmdline",
        kind: Kind::Flag,
        default: &["false"],
        meaning: "record command lines, which can hold secrets",
        check: flag,
    },
    Key {
        name: "run.memory",
        kind: Kind::Text,
        default: &["256M"],
        meaning: "limit of the memory cgroup",
        check: |text| parse_size(text).map(drop),
    },
    Key {
        name: "run.deadline",
        kind: Kind::Text,
        default: &["5s"],
        meaning: "longest that the command is held for the analysis",
        check: |text| parse_duration(text).map(drop),
    },
    Key {
        name: "run.on_oom",
        kind: Kind::Actions,
        default: &["reclaim", "kill"],
        meaning: "what to do when memory runs out, tried in order",
        check: |text| Action::from_str(text).map(drop),
    },
    Key {
        name: "run.collect",
        kind: Kind::Parts,
        default: &["all"],
        meaning: "what evidence is taken when memory runs out: stacks, heap, malloc, mappings, growth, accounting, cmdline, or all",
        check: |text| Collect::of([text]).map(drop),
    },
    Key {
        name: "run.most_granted",
        kind: Kind::Text,
        default: &[AUTO],
        meaning: "most that grants add to the limit, over all OOMs: a size, 0, or auto: as much as the limit, or one grant where that is more",
        check: |text| bytes_or_auto(text).map(drop),
    },
    Key {
        name: "run.reports_per_hour",
        kind: Kind::Text,
        default: &["12"],
        meaning: "incidents of a run that are written in an hour; its further OOMs are answered without, unless somebody is killed",
        check: |text| count(text).map(drop),
    },
    Key {
        name: "run.brake",
        kind: Kind::Text,
        default: &[AUTO],
        meaning: "how to hold: v1, high, reserve, or auto",
        check: |text| BrakeChoice::from_str(text).map(drop),
    },
    Key {
        name: "run.heap",
        kind: Kind::Flag,
        default: &["true"],
        meaning: "load libreprieve_heap.so into the command",
        check: flag,
    },
    Key {
        name: "run.heap_period",
        kind: Kind::Text,
        default: &[AUTO],
        meaning: "sample one allocation in so many bytes; auto is 512K, or 64K where the limit is at most 256M",
        check: |text| period(text).map(drop),
    },
    Key {
        name: "run.growth",
        kind: Kind::Flag,
        default: &["false"],
        meaning: "sample page faults of the command, to tell who makes it grow, also of a process that dies",
        check: flag,
    },
    Key {
        name: "run.growth_period",
        kind: Kind::Text,
        default: &["64"],
        meaning: "page faults of one sample",
        check: |text| parse_faults(text).map(drop),
    },
    Key {
        name: "guard.cgroups",
        kind: Kind::List,
        default: &[],
        meaning: "cgroups to guard, as patterns like /system.slice/*.service",
        check: |text| Glob::parse(text).map(drop),
    },
    Key {
        name: "guard.except",
        kind: Kind::List,
        default: &[],
        meaning: "cgroups to leave alone all the same",
        check: |text| Glob::parse(text).map(drop),
    },
    Key {
        name: "guard.deadline",
        kind: Kind::Text,
        default: &["5s"],
        meaning: "longest that a cgroup is held for the analysis",
        check: |text| parse_duration(text).map(drop),
    },
    Key {
        name: "guard.on_oom",
        kind: Kind::Actions,
        default: &["reclaim", "kill"],
        meaning: "what to do when memory runs out in a guarded cgroup, tried in order",
        check: |text| Action::from_str(text).map(drop),
    },
    Key {
        name: "guard.collect",
        kind: Kind::Parts,
        default: &["all"],
        meaning: "what evidence is taken when memory runs out in a guarded cgroup, as of run.collect",
        check: |text| Collect::of([text]).map(drop),
    },
    Key {
        name: "guard.brake",
        kind: Kind::Text,
        default: &[AUTO],
        meaning: "how to hold: v1, high, reserve, or auto",
        check: |text| BrakeChoice::from_str(text).map(drop),
    },
    Key {
        name: "guard.cushion",
        kind: Kind::Text,
        default: &[AUTO],
        meaning: "under brake v1, how far the kernel's limit stands above that of a guarded cgroup: a size, 0, or auto",
        check: |text| cushion(text).map(drop),
    },
    Key {
        name: "guard.growth",
        kind: Kind::Flag,
        default: &["false"],
        meaning: "sample page faults of a cgroup, to tell who makes it grow, also of a process that dies; of 16 at most",
        check: flag,
    },
    Key {
        name: "guard.growth_period",
        kind: Kind::Text,
        default: &["64"],
        meaning: "page faults of one sample",
        check: |text| parse_faults(text).map(drop),
    },
    Key {
        name: "guard.most_granted",
        kind: Kind::Text,
        default: &[AUTO],
        meaning: "most that grants add to the limit of one cgroup: a size, 0, or auto: as much as its own limit, or one grant where that is more, and at most an eighth of the machine's memory",
        check: |text| bytes_or_auto(text).map(drop),
    },
    Key {
        name: "guard.most_granted_in_all",
        kind: Kind::Text,
        default: &[AUTO],
        meaning: "most that all cgroups together have been granted at a time: a size, 0, or auto: a quarter of the machine's memory",
        check: |text| bytes_or_auto(text).map(drop),
    },
    Key {
        name: "guard.analysts",
        kind: Kind::Text,
        default: &["4"],
        meaning: "OOMs that are answered at the same time",
        check: |text| match count(text) {
            Ok(1..=MOST_ANALYSTS) => Ok(()),
            _ => Err(format!("{text:?} is not a number of analysts; write 1 to {MOST_ANALYSTS}")),
        },
    },
    Key {
        name: "guard.reports_per_hour",
        kind: Kind::Text,
        default: &["12"],
        meaning: "incidents of one cgroup that are written in an hour; its further OOMs are answered without, unless somebody is killed",
        check: |text| count(text).map(drop),
    },
    Key {
        name: "guard.cooldown",
        kind: Kind::Text,
        default: &["0"],
        meaning: "least time between two incidents of the machine; OOMs in between are answered without",
        check: |text| pause(text).map(drop),
    },
    Key {
        name: "guard.dry_run",
        kind: Kind::Flag,
        default: &["false"],
        meaning: "record and tell what would be done, then let the kernel decide",
        check: flag,
    },
    Key {
        name: "guard.priority",
        kind: Kind::Text,
        default: &[AUTO],
        meaning: "what cgroups are worth that are jobs, the larger the more; auto is what their attribute user.reprieve.priority says",
        check: |text| priority(text).map(drop),
    },
    Key {
        name: "guard.reservation",
        kind: Kind::Text,
        default: &[AUTO],
        meaning: "what a job may keep when memory is short: a size, or auto: memory.low or memory.min, under version 1 the soft limit",
        check: |text| bytes_or_auto(text).map(drop),
    },
    Key {
        name: "guard.run_dir",
        kind: Kind::Text,
        default: &[AUTO],
        meaning: "folder for the lock of the only guard; auto is /run/reprieve, or XDG's runtime folder",
        check: dir,
    },
    Key {
        name: "guard.log",
        kind: Kind::Text,
        default: &[AUTO],
        meaning: "form of the log: text, json (a line each), journal (with fields), or auto: journal under systemd",
        check: |text| Form::from_str(text).map(drop),
    },
    Key {
        name: "guard.metrics",
        kind: Kind::Text,
        default: &[OFF],
        meaning: "address on loopback for Prometheus to scrape, like 127.0.0.1:9913, or off",
        check: |text| metrics(text).map(drop),
    },
    Key {
        name: "guard.textfile",
        kind: Kind::Text,
        default: &[OFF],
        meaning: "file in node_exporter's folder for text files, like /var/lib/prometheus/node-exporter/reprieve.prom, or off",
        check: |text| textfile(text).map(drop),
    },
    Key {
        name: "machine.answer",
        kind: Kind::Switch,
        default: &["false"],
        meaning: "have `reprieve guard` answer OOMs of the machine itself: true, false, or auto, where the kernel can",
        check: |text| switch(text).map(drop),
    },
    Key {
        name: "machine.on_oom",
        kind: Kind::Text,
        default: &["kill"],
        meaning: "what to do with the job that has to go: kill, or throttle, and kill if that is not enough",
        check: |text| remedy(text).map(drop),
    },
    Key {
        name: "machine.deadline",
        kind: Kind::Text,
        default: &["5s"],
        meaning: "longest that everybody waits in an OOM of the machine",
        check: |text| parse_duration(text).map(drop),
    },
    Key {
        name: "machine.reserve",
        kind: Kind::Text,
        default: &["16M"],
        meaning: "memory that is kept free for it, at most a twentieth of the machine's",
        check: |text| parse_size(text).map(drop),
    },
    Key {
        name: "machine.depth",
        kind: Kind::Text,
        default: &["1"],
        meaning: "level of the cgroups that are jobs of the machine, 1 is below the root",
        check: |text| depth(text).map(drop),
    },
    Key {
        name: "machine.jobs",
        kind: Kind::Text,
        default: &["3"],
        meaning: "how many of the biggest jobs are recorded",
        check: |text| jobs(text).map(drop),
    },
    Key {
        name: "ask.most",
        kind: Kind::Text,
        default: &[crate::desk::MOST_TIME],
        meaning: "longest that a hold waits for a person, with all the time that operators add",
        check: |text| parse_duration(text).map(drop),
    },
    Key {
        name: "ask.webhook",
        kind: Kind::Text,
        default: &[OFF],
        meaning: "URL that is told by POST that somebody has to decide, http:// only, or off",
        check: |text| webhook(text).map(drop),
    },
    Key {
        name: "ask.webhook_body",
        kind: Kind::Text,
        default: &[AUTO],
        meaning: "JSON that is posted, with names like {{id}} in its texts; auto has a text and all facts",
        check: |text| template(text).map(drop),
    },
    Key {
        name: "ask.hook",
        kind: Kind::Text,
        default: &[OFF],
        meaning: "program that is run when somebody has to decide, by its whole path, or off",
        check: |text| hook(text).map(drop),
    },
    Key {
        name: "ask.announce_time",
        kind: Kind::Text,
        default: &["5s"],
        meaning: "longest that the webhook, and that the hook, may take before it is killed",
        check: |text| parse_duration(text).map(drop),
    },
    Key {
        name: "snapshot.deadline",
        kind: Kind::Text,
        default: &["2s"],
        meaning: "longest that the target is stopped",
        check: |text| parse_duration(text).map(drop),
    },
];

/// Each is a thread with a stack of its own.
const MOST_ANALYSTS: usize = 64;

/// A cushion below the wall.
pub(super) fn cushion(text: &str) -> Result<Cushion, String> {
    match text {
        AUTO => Ok(Cushion::Auto),
        "0" => Ok(Cushion::Bytes(0)),
        _ => parse_size(text).map(Cushion::Bytes),
    }
}

/// A number of bytes, where that is said.
pub fn bytes_or_auto(text: &str) -> Result<Option<u64>, String> {
    match text {
        AUTO => Ok(None),
        "0" => Ok(Some(0)),
        _ => parse_size(text).map(Some),
    }
}

/// What a job is worth, where that is said.
pub(super) fn priority(text: &str) -> Result<Option<i32>, String> {
    match text {
        AUTO => Ok(None),
        _ => text.parse().map(Some).map_err(|_| format!("{text:?} is no priority; write a whole number, or auto")),
    }
}

/// Where metrics are served: loopback only, for they tell who runs here.
pub(super) fn metrics(text: &str) -> Result<Option<SocketAddr>, String> {
    if text == OFF {
        return Ok(None);
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => Ok(Some(address)),
        Ok(address) => {
            Err(format!("{} is not on loopback; write 127.0.0.1:{} or [::1]:{1}", address.ip(), address.port()))
        }
        Err(_) => Err(format!("{text:?} is no address with a port; write one like 127.0.0.1:9913, or off")),
    }
}

/// Where metrics are written: node_exporter reads what ends in `.prom`.
pub(super) fn textfile(text: &str) -> Result<Option<PathBuf>, String> {
    if text == OFF {
        return Ok(None);
    }
    let path = Path::new(text);
    match path.is_absolute() && path.extension().is_some_and(|end| end == "prom") {
        true => Ok(Some(path.to_owned())),
        false => Err(format!("{text:?} is not read by node_exporter; write a whole path that ends in .prom, or off")),
    }
}

/// A time, of which 0 is none.
pub(super) fn pause(text: &str) -> Result<Duration, String> {
    if text == "0" { Ok(Duration::ZERO) } else { parse_duration(text) }
}

fn dir(text: &str) -> Result<(), String> {
    match text == AUTO || Path::new(text).is_absolute() {
        true => Ok(()),
        false => Err(format!("{text:?} is not absolute; begin it with /, or write auto")),
    }
}

fn flag(text: &str) -> Result<(), String> {
    if matches!(text, "true" | "false") { Ok(()) } else { Err("write true or false, without quotes".to_owned()) }
}

/// Whether something is done; `None` where it is wherever it can be.
pub(super) fn switch(text: &str) -> Result<Option<bool>, String> {
    match text {
        AUTO => Ok(None),
        "true" | "false" => Ok(Some(text == "true")),
        _ => Err("write true or false, without quotes, or \"auto\"".to_owned()),
    }
}

/// What becomes of a job of the machine.
pub(super) fn remedy(text: &str) -> Result<Remedy, String> {
    clap::ValueEnum::from_str(text, false)
        .map_err(|_| format!("{text:?} is nothing to do with a job; write kill or throttle"))
}

/// A level below the root.
pub(super) fn depth(text: &str) -> Result<u8, String> {
    match text.parse() {
        Ok(depth) if depth > 0 => Ok(depth),
        _ => Err(format!("{text:?} is no level of cgroups; write 1, which is below the root, or more")),
    }
}

/// A number of jobs.
pub(super) fn jobs(text: &str) -> Result<u8, String> {
    text.parse().map_err(|_| format!("{text:?} is no number of jobs; write one of at most {}", u8::MAX))
}

/// A number of incidents.
pub(super) fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if count > 0 => Ok(count),
        _ => Err(format!("{text:?} is not a number of incidents; write 1 or more")),
    }
}

/// Bytes, of which 0 is no wish.
pub(super) fn free(text: &str) -> Result<u64, String> {
    if text == "0" { Ok(0) } else { parse_size(text) }
}

/// Where a decision is announced.
pub(super) fn webhook(text: &str) -> Result<Option<String>, String> {
    match text {
        OFF => Ok(None),
        _ if text.contains(char::is_whitespace) => Err(format!("{text:?} has blanks, which no URL has")),
        _ if text.strip_prefix("http://").is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/')) => {
            Ok(Some(text.to_owned()))
        }
        _ => Err(format!("{text:?} is not a URL that begins with http://; for https have a local relay, or ask.hook")),
    }
}

/// What is posted there.
pub(super) fn template(text: &str) -> Result<Template, String> {
    Template::parse(if text == AUTO { BODY } else { text })
}

/// A program that is told.
pub(super) fn hook(text: &str) -> Result<Option<PathBuf>, String> {
    match text {
        OFF => Ok(None),
        _ if Path::new(text).is_absolute() => Ok(Some(text.into())),
        _ => Err(format!("{text:?} is not absolute; a hook is a program's whole path, without arguments")),
    }
}

/// A sampling period in bytes.
pub(super) fn period(text: &str) -> Result<Option<u64>, String> {
    if text == AUTO { Ok(None) } else { parse_size(text).map(Some) }
}
