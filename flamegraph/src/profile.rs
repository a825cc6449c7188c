//! The profile: plain data.

use std::collections::HashMap;
use std::io;

/// Stacks with values.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Profile {
    /// What the values of each sample mean; one or more.
    pub sample_types: Vec<SampleType>,
    /// Files mapped where frames point to.
    pub mappings: Vec<Mapping>,
    /// Frames that stacks point to; use [`Profile::frame`] to add.
    pub frames: Vec<Frame>,
    /// The stacks.
    pub samples: Vec<Sample>,
    /// Sentences for the reader.
    pub comments: Vec<String>,
    /// When it was taken, in nanoseconds since 1970.
    pub time_unix_nanos: i64,
    /// What is counted between two samples and how much of it, on average, where
    /// values are estimates with one period.
    pub period: Option<(SampleType, i64)>,
    known: HashMap<Frame, usize>,
}

/// Meaning and unit of a value, in pprof's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SampleType {
    /// Like `space` or `threads`.
    pub kind: String,
    /// Like `bytes` or `count`.
    pub unit: String,
}

/// A file mapped into memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// End, exclusive.
    pub end: u64,
    /// Offset in the file of `start`.
    pub file_offset: u64,
    /// Its path.
    pub path: String,
    /// Its build ID in hexadecimal.
    pub build_id: Option<String>,
}

/// What a frame stands for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum FrameKind {
    /// A function.
    #[default]
    Function,
    /// An address without a name.
    Unknown,
    /// A function found by frame pointers only: a guess.
    Guessed,
    /// A function of an interpreter, as its runtime names it.
    Script,
    /// A function of the kernel.
    Kernel,
    /// A process, a kind of memory or another heading.
    Label,
}

/// A node of a stack.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Frame {
    /// Function or heading.
    pub name: String,
    /// Source file.
    pub file: Option<String>,
    /// Line in it.
    pub line: Option<u32>,
    /// Address in `mapping`.
    pub address: Option<u64>,
    /// Index in [`Profile::mappings`].
    pub mapping: Option<usize>,
    /// Whether it was inlined into the frame that calls it.
    pub inlined: bool,
    /// What it stands for.
    pub kind: FrameKind,
}

/// A stack and its values.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// Indices in [`Profile::frames`], outermost first.
    pub stack: Vec<usize>,
    /// One per sample type.
    pub values: Vec<i64>,
    /// How sure each value is; empty where all are exact.
    pub spread: Vec<Spread>,
    /// Further facts.
    pub labels: Vec<(String, LabelValue)>,
}

/// How sure an estimated value is. Those of independent samples add up.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Spread {
    /// Samples behind it.
    pub samples: u64,
    /// Variance, in the value's unit squared.
    pub variance: f64,
}

impl Spread {
    /// From a standard deviation.
    #[must_use]
    pub fn new(samples: u64, sigma: u64) -> Self {
        Spread { samples, variance: (sigma as f64).powi(2) }
    }

    /// Standard deviation.
    #[must_use]
    pub fn sigma(&self) -> f64 {
        self.variance.sqrt()
    }
}

impl std::ops::AddAssign for Spread {
    fn add_assign(&mut self, other: Self) {
        self.samples += other.samples;
        self.variance += other.variance;
    }
}

/// One sample type of a profile, for files that can hold several.
#[derive(Debug, Clone, Copy)]
pub struct Series<'a> {
    /// What it is called there.
    pub title: &'a str,
    /// The stacks.
    pub profile: &'a Profile,
    /// Which of their values.
    pub sample_type: usize,
}

impl<'a> Series<'a> {
    /// Its sample type, or an error that names the number.
    pub(crate) fn kind(&self) -> Result<&'a SampleType, RenderError> {
        self.profile.check(self.sample_type)
    }

    /// A sample's value in it.
    pub(crate) fn value(&self, sample: &Sample) -> i64 {
        sample.values.get(self.sample_type).copied().unwrap_or(0)
    }
}

/// Value of a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LabelValue {
    /// A text.
    Text(String),
    /// A number and its unit, which may be empty.
    Number(i64, String),
}

/// Why nothing could be rendered.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The profile has no such sample type.
    #[error("the profile has no sample type {0}")]
    NoSampleType(usize),
    /// Every value is zero: there is nothing to draw.
    #[error("the profile is empty")]
    Empty,
    /// Writing failed.
    #[error("failed to write")]
    Write(#[from] io::Error),
    /// Writing JSON failed.
    #[error("failed to write")]
    Json(#[from] serde_json::Error),
}

impl SampleType {
    /// A sample type.
    #[must_use]
    pub fn new(kind: &str, unit: &str) -> Self {
        SampleType { kind: kind.to_owned(), unit: unit.to_owned() }
    }
}

impl Frame {
    /// A function by name alone.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Frame { name: name.to_owned(), ..Frame::default() }
    }

    /// A heading.
    #[must_use]
    pub fn label(name: &str) -> Self {
        Frame { name: name.to_owned(), kind: FrameKind::Label, ..Frame::default() }
    }

    /// Name with the place in the source, as people read it:
    /// `leak (cache.c:12)`.
    #[must_use]
    pub fn title(&self) -> String {
        let mut title = self.name.clone();
        if let Some(file) = &self.file {
            let base = file.rsplit('/').next().unwrap_or(file);
            match self.line {
                Some(line) => title.push_str(&format!(" ({base}:{line})")),
                None => title.push_str(&format!(" ({base})")),
            }
        }
        title + self.mark()
    }

    /// Name alone, for formats that have a field for the place.
    #[must_use]
    pub fn name(&self) -> String {
        self.name.clone() + self.mark()
    }

    /// What a reader must know of it. The kernel's functions have the mark that those who
    /// fold stacks for flame graphs give them (FlameGraph, stackcollapse-perf.pl; inferno).
    fn mark(&self) -> &'static str {
        match self.kind {
            FrameKind::Guessed => " [guessed]",
            FrameKind::Kernel => "_[k]",
            _ => "",
        }
    }
}

impl Profile {
    /// An empty profile.
    #[must_use]
    pub fn new(sample_types: Vec<SampleType>) -> Self {
        Profile { sample_types, ..Profile::default() }
    }

    /// Index of a frame, which is added when it is new.
    pub fn frame(&mut self, frame: Frame) -> usize {
        *self.known.entry(frame).or_insert_with_key(|frame| {
            self.frames.push(frame.clone());
            self.frames.len() - 1
        })
    }

    /// Sum of all samples.
    #[must_use]
    pub fn total(&self, sample_type: usize) -> i64 {
        self.samples.iter().filter_map(|s| s.values.get(sample_type)).sum()
    }

    /// Adds another profile of the same moment: its sample types follow ours, and
    /// each sample has a value of 0 for those that it does not know.
    pub fn append(&mut self, other: &Profile) {
        let (ours, theirs) = (self.sample_types.len(), other.sample_types.len());
        self.sample_types.extend(other.sample_types.iter().cloned());
        for sample in &mut self.samples {
            sample.values.resize(ours + theirs, 0);
        }
        let mappings: Vec<usize> = other
            .mappings
            .iter()
            .map(|mapping| {
                self.mappings.iter().position(|m| m == mapping).unwrap_or_else(|| {
                    self.mappings.push(mapping.clone());
                    self.mappings.len() - 1
                })
            })
            .collect();
        let frames: Vec<usize> = other
            .frames
            .iter()
            .map(|frame| {
                let mapping = frame.mapping.and_then(|m| mappings.get(m).copied());
                self.frame(Frame { mapping, ..frame.clone() })
            })
            .collect();
        for sample in &other.samples {
            let mut values = vec![0; ours];
            values.extend(&sample.values);
            let mut spread = Vec::new();
            if !sample.spread.is_empty() {
                spread.resize(ours, Spread::default());
                spread.extend(&sample.spread);
            }
            let stack = sample.stack.iter().filter_map(|&f| frames.get(f).copied()).collect();
            self.samples.push(Sample { stack, values, spread, labels: sample.labels.clone() });
        }
        let new = other.comments.iter().filter(|c| !self.comments.contains(c)).cloned().collect::<Vec<_>>();
        self.comments.extend(new);
    }

    /// A number among a sample's labels.
    pub(crate) fn number(sample: &Sample, label: &str) -> Option<i64> {
        sample.labels.iter().find_map(|(name, value)| match value {
            LabelValue::Number(number, _) if name == label => Some(*number),
            _ => None,
        })
    }

    /// The same with one of its sample types alone, and without samples that have none of it.
    #[must_use]
    pub fn only(&self, sample_type: usize) -> Profile {
        let mut profile = self.clone();
        let keep = |values: &[i64]| values.get(sample_type).copied();
        profile.sample_types = self.sample_types.get(sample_type).cloned().into_iter().collect();
        profile.samples.retain(|sample| keep(&sample.values).is_some_and(|value| value != 0));
        for sample in &mut profile.samples {
            sample.values = keep(&sample.values).into_iter().collect();
            sample.spread = sample.spread.get(sample_type).copied().into_iter().collect();
        }
        // It tells what is between two samples of bytes, not of anything else.
        let unit = profile.sample_types.first().map(|kind| kind.unit.clone());
        profile.period = self.period.clone().filter(|(kind, _)| Some(&kind.unit) == unit.as_ref());
        profile
    }

    /// The place of a sample type by its kind, like `inuse_space`.
    #[must_use]
    pub fn find(&self, kind: &str) -> Option<usize> {
        self.sample_types.iter().position(|t| t.kind == kind)
    }

    /// The sample type, or an error that names the number.
    pub(crate) fn check(&self, sample_type: usize) -> Result<&SampleType, RenderError> {
        self.sample_types.get(sample_type).ok_or(RenderError::NoSampleType(sample_type))
    }
}
