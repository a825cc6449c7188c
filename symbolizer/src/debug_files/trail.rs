//! What was looked at, and why it was of no use.

use crate::image::{Image, open_regular};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// A place that was looked at, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    /// What was hoped for.
    pub source: Source,
    /// The file or URL; of a section the file that it is in.
    pub place: String,
    /// What it gave.
    pub outcome: Outcome,
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.place, self.source, self.outcome)
    }
}

/// Where names come from, beside a binary's own tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The binary itself.
    Binary,
    /// The DWARF sections of a file.
    DebugSections,
    /// A separate debug file, by build ID.
    BuildId,
    /// A separate debug file, by the name in `.gnu_debuglink`.
    DebugLink,
    /// What dwz shared between files, by `.gnu_debugaltlink`.
    Alternate,
    /// A package of split DWARF (`.dwp`).
    Package,
    /// One unit of split DWARF (`.dwo`).
    SplitUnit,
    /// `.gnu_debugdata`.
    MiniDebugInfo,
    /// A map of generated code, `/tmp/perf-PID.map`.
    PerfMap,
    /// A file of generated code, `jit-PID.dump`.
    JitDump,
    /// The functions of the running kernel, `/proc/kallsyms`.
    Kallsyms,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Binary => "the binary",
            Source::DebugSections => "DWARF sections",
            Source::BuildId => "debug file by build ID",
            Source::DebugLink => "debug file by .gnu_debuglink",
            Source::Alternate => "dwz alternate",
            Source::Package => "split DWARF, packed",
            Source::SplitUnit => "split DWARF",
            Source::MiniDebugInfo => "MiniDebugInfo",
            Source::PerfMap => "perf map",
            Source::JitDump => "jitdump",
            Source::Kallsyms => "kallsyms",
        })
    }
}

/// What a place gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is the one that was looked for.
    Used,
    /// There is none.
    Absent,
    /// It could not be opened.
    NotReadable,
    /// It is no ELF file, or a damaged one.
    NotElf,
    /// It belongs to another build.
    OtherBuild,
    /// It is the right one, and has no debug information.
    NoDebugInfo,
    /// What is in it cannot be read, or not to its end.
    Damaged,
    /// It is larger than there is memory or allowance for.
    TooLarge,
    /// It belongs to another process.
    OtherProcess,
    /// Nobody answers there.
    NoAnswer,
    /// The time for it was over.
    TimedOut,
    /// The server wants a protocol that is not spoken here.
    NotSupported,
    /// The kernel shows it without addresses.
    Hidden,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::Used => "used",
            Outcome::Absent => "absent",
            Outcome::NotReadable => "not readable",
            Outcome::NotElf => "not a valid ELF file",
            Outcome::OtherBuild => "of another build",
            Outcome::NoDebugInfo => "without debug information",
            Outcome::Damaged => "damaged",
            Outcome::TooLarge => "too large",
            Outcome::OtherProcess => "of another process",
            Outcome::NoAnswer => "no answer",
            Outcome::TimedOut => "time was over",
            Outcome::NotSupported => "protocol not supported (only http)",
            Outcome::Hidden => "addresses hidden (kernel.kptr_restrict)",
        })
    }
}

/// Places that are remembered of one binary; split DWARF can have thousands.
const MOST_TRIED: usize = 64;

/// What was tried so far.
#[derive(Debug, Default)]
pub(crate) struct Trail(Vec<Tried>);

impl Trail {
    /// Remembers a place.
    pub(crate) fn add(&mut self, source: Source, place: &Path, outcome: Outcome) {
        if self.0.len() < MOST_TRIED {
            self.0.push(Tried { source, place: place.display().to_string(), outcome });
        }
    }

    /// What was thought to be of use was not.
    pub(crate) fn correct(&mut self, source: Source, outcome: Outcome) {
        if let Some(tried) = self.0.iter_mut().find(|t| t.source == source && t.outcome == Outcome::Used) {
            tried.outcome = outcome;
        }
    }

    pub(crate) fn into_tried(self) -> Vec<Tried> {
        self.0
    }

    /// Opens a file; `judge` says what it is good for.
    pub(crate) fn open(
        &mut self,
        source: Source,
        path: &Path,
        judge: &dyn Fn(&Image) -> Outcome,
    ) -> Option<(Image, Outcome)> {
        let opened = match open_regular(path).map(|file| Image::open(&file)) {
            Ok(Ok(image)) => {
                let outcome = judge(&image);
                Ok((image, outcome))
            }
            Ok(Err(_)) => Err(Outcome::NotElf),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                Err(Outcome::Absent)
            }
            Err(_) => Err(Outcome::NotReadable),
        };
        self.add(source, path, opened.as_ref().map_or_else(|&outcome| outcome, |(_, outcome)| *outcome));
        opened.ok()
    }

    /// The first candidate that is of use.
    pub(crate) fn first(
        &mut self,
        source: Source,
        candidates: impl IntoIterator<Item = PathBuf>,
        judge: &dyn Fn(&Image) -> Outcome,
    ) -> Option<(Image, PathBuf)> {
        candidates.into_iter().find_map(|path| {
            let (image, outcome) = self.open(source, &path, judge)?;
            (outcome == Outcome::Used).then_some((image, path))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn only_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&fifo, &link).unwrap();
        // Opening a FIFO would wait for somebody who writes to it.
        for place in [&fifo, &link, dir.path(), Path::new("/dev/null")] {
            let mut trail = Trail::default();
            assert!(trail.first(Source::SplitUnit, [place.to_owned()], &|_| Outcome::Used).is_none());
            assert_eq!(trail.into_tried()[0].outcome, Outcome::NotReadable, "{}", place.display());
        }
    }
}
