//! The keys: what there is to set.

use crate::hold::BrakeChoice;
use crate::size::{parse_age, parse_duration, parse_size};
use crate::verdict::Action;
use std::path::Path;
use std::str::FromStr;

/// What depends on something else unless it is set.
pub(super) const AUTO: &str = "auto";

/// How a value is written in TOML.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A string, or a whole number.
    Text,
    /// `true` or `false`.
    Flag,
    /// An array of strings.
    List,
}

impl Kind {
    /// A text of this kind as TOML.
    pub(super) fn as_toml(self, text: &str) -> String {
        let quoted = |text: &str| toml::Value::from(text).to_string();
        match self {
            Kind::Text => quoted(text),
            Kind::Flag => text.to_owned(),
            Kind::List => format!("[{}]", text.split(',').map(quoted).collect::<Vec<_>>().join(", ")),
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
    /// Its value where nobody sets it, as text.
    pub default: &'static str,
    /// What it is.
    pub meaning: &'static str,
    /// What is wrong with a text, and what to write instead.
    pub check: fn(&str) -> Result<(), String>,
}

/// All keys, table by table.
pub const KEYS: &[Key] = &[
    Key {
        name: "store.dir",
        kind: Kind::Text,
        default: AUTO,
        meaning: "folder for incidents; auto is /var/lib/reprieve, or XDG's state folder",
        check: dir,
    },
    Key {
        name: "store.max_count",
        kind: Kind::Text,
        default: "100",
        meaning: "incidents kept",
        check: |text| count(text).map(drop),
    },
    Key {
        name: "store.max_use",
        kind: Kind::Text,
        default: "1G",
        meaning: "disk space for incidents",
        check: |text| parse_size(text).map(drop),
    },
    Key {
        name: "store.keep_free",
        kind: Kind::Text,
        default: "0",
        meaning: "disk space that old incidents are removed for, while less is free",
        check: |text| free(text).map(drop),
    },
    Key {
        name: "store.max_age",
        kind: Kind::Text,
        default: "never",
        meaning: "age at which incidents are removed, like 90d, or never",
        check: |text| parse_age(text).map(drop),
    },
    Key {
        name: "record.cmdline",
        kind: Kind::Flag,
        default: "false",
        meaning: "record command lines, which can hold secrets",
        check: flag,
    },
    Key {
        name: "run.memory",
        kind: Kind::Text,
        default: "256M",
        meaning: "limit of the memory cgroup",
        check: |text| parse_size(text).map(drop),
    },
    Key {
        name: "run.deadline",
        kind: Kind::Text,
        default: "5s",
        meaning: "longest that the command is held for the analysis",
        check: |text| parse_duration(text).map(drop),
    },
    Key {
        name: "run.on_oom",
        kind: Kind::List,
        default: "reclaim,kill",
        meaning: "what to do when memory runs out, tried in order",
        check: |text| actions(text).map(drop),
    },
    Key {
        name: "run.brake",
        kind: Kind::Text,
        default: AUTO,
        meaning: "how to hold: v1, high, reserve, or auto",
        check: |text| BrakeChoice::from_str(text).map(drop),
    },
    Key {
        name: "run.heap",
        kind: Kind::Flag,
        default: "true",
        meaning: "load libreprieve_heap.so into the command",
        check: flag,
    },
    Key {
        name: "run.heap_period",
        kind: Kind::Text,
        default: AUTO,
        meaning: "sample one allocation in so many bytes; auto is 512K, or 64K where the limit is at most 256M",
        check: |text| period(text).map(drop),
    },
    Key {
        name: "snapshot.deadline",
        kind: Kind::Text,
        default: "2s",
        meaning: "longest that the target is stopped",
        check: |text| parse_duration(text).map(drop),
    },
];

fn dir(text: &str) -> Result<(), String> {
    match text == AUTO || Path::new(text).is_absolute() {
        true => Ok(()),
        false => Err(format!("{text:?} is not absolute; begin it with /, or write auto")),
    }
}

fn flag(text: &str) -> Result<(), String> {
    if matches!(text, "true" | "false") { Ok(()) } else { Err("write true or false, without quotes".to_owned()) }
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

/// Actions with commas between them.
pub(super) fn actions(text: &str) -> Result<Vec<Action>, String> {
    if text.is_empty() {
        return Err("there is no action; write at least one, like [\"kill\"]".to_owned());
    }
    text.split(',').map(Action::from_str).collect()
}

/// A sampling period in bytes.
pub(super) fn period(text: &str) -> Result<Option<u64>, String> {
    if text == AUTO { Ok(None) } else { parse_size(text).map(Some) }
}
