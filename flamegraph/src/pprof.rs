//! pprof's `profile.proto`, gzipped: read by `go tool pprof`, speedscope,
//! Pyroscope and Parca.
//!
//! Field numbers: github.com/google/pprof, proto/profile.proto.

use crate::{Frame, FrameKind, LabelValue, Profile, RenderError};
use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message;
use std::collections::HashMap;
use std::io::Write;

/// The messages of profile.proto, as far as they are used.
pub mod proto {
    #![allow(missing_docs, reason = "the names are profile.proto's, documented there")]

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Profile {
        #[prost(message, repeated, tag = "1")]
        pub sample_type: Vec<ValueType>,
        #[prost(message, repeated, tag = "2")]
        pub sample: Vec<Sample>,
        #[prost(message, repeated, tag = "3")]
        pub mapping: Vec<Mapping>,
        #[prost(message, repeated, tag = "4")]
        pub location: Vec<Location>,
        #[prost(message, repeated, tag = "5")]
        pub function: Vec<Function>,
        #[prost(string, repeated, tag = "6")]
        pub string_table: Vec<String>,
        #[prost(int64, tag = "9")]
        pub time_nanos: i64,
        #[prost(message, optional, tag = "11")]
        pub period_type: Option<ValueType>,
        #[prost(int64, tag = "12")]
        pub period: i64,
        #[prost(int64, repeated, tag = "13")]
        pub comment: Vec<i64>,
        #[prost(int64, tag = "14")]
        pub default_sample_type: i64,
    }

    #[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
    pub struct ValueType {
        #[prost(int64, tag = "1")]
        pub r#type: i64,
        #[prost(int64, tag = "2")]
        pub unit: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Sample {
        #[prost(uint64, repeated, tag = "1")]
        pub location_id: Vec<u64>,
        #[prost(int64, repeated, tag = "2")]
        pub value: Vec<i64>,
        #[prost(message, repeated, tag = "3")]
        pub label: Vec<Label>,
    }

    #[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
    pub struct Label {
        #[prost(int64, tag = "1")]
        pub key: i64,
        #[prost(int64, tag = "2")]
        pub str: i64,
        #[prost(int64, tag = "3")]
        pub num: i64,
        #[prost(int64, tag = "4")]
        pub num_unit: i64,
    }

    #[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
    pub struct Mapping {
        #[prost(uint64, tag = "1")]
        pub id: u64,
        #[prost(uint64, tag = "2")]
        pub memory_start: u64,
        #[prost(uint64, tag = "3")]
        pub memory_limit: u64,
        #[prost(uint64, tag = "4")]
        pub file_offset: u64,
        #[prost(int64, tag = "5")]
        pub filename: i64,
        #[prost(int64, tag = "6")]
        pub build_id: i64,
        #[prost(bool, tag = "7")]
        pub has_functions: bool,
        #[prost(bool, tag = "8")]
        pub has_filenames: bool,
        #[prost(bool, tag = "9")]
        pub has_line_numbers: bool,
        #[prost(bool, tag = "10")]
        pub has_inline_frames: bool,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Location {
        #[prost(uint64, tag = "1")]
        pub id: u64,
        #[prost(uint64, tag = "2")]
        pub mapping_id: u64,
        #[prost(uint64, tag = "3")]
        pub address: u64,
        #[prost(message, repeated, tag = "4")]
        pub line: Vec<Line>,
    }

    #[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
    pub struct Line {
        #[prost(uint64, tag = "1")]
        pub function_id: u64,
        #[prost(int64, tag = "2")]
        pub line: i64,
    }

    #[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
    pub struct Function {
        #[prost(uint64, tag = "1")]
        pub id: u64,
        #[prost(int64, tag = "2")]
        pub name: i64,
        #[prost(int64, tag = "3")]
        pub system_name: i64,
        #[prost(int64, tag = "4")]
        pub filename: i64,
    }
}

/// Writes the gzipped file. The first sample type is the default one.
pub fn write(profile: &Profile, to: impl Write) -> Result<(), RenderError> {
    profile.check(0)?;
    let message = Encoder::default().encode(profile);
    let mut gzip = GzEncoder::new(to, Compression::default());
    gzip.write_all(&message.encode_to_vec())?;
    gzip.finish()?;
    Ok(())
}

/// Tables under construction.
#[derive(Default)]
struct Encoder {
    out: proto::Profile,
    strings: HashMap<String, i64>,
    functions: HashMap<(i64, i64), u64>,
    locations: HashMap<Vec<usize>, u64>,
}

impl Encoder {
    fn encode(mut self, profile: &Profile) -> proto::Profile {
        // Index 0 is the empty string by definition.
        self.string("");
        self.out.sample_type = profile
            .sample_types
            .iter()
            .map(|t| proto::ValueType { r#type: self.string(&t.kind), unit: self.string(&t.unit) })
            .collect();
        self.out.default_sample_type = self.out.sample_type.first().map_or(0, |t| t.r#type);
        self.out.time_nanos = profile.time_unix_nanos;
        if let Some((kind, period)) = &profile.period {
            self.out.period_type =
                Some(proto::ValueType { r#type: self.string(&kind.kind), unit: self.string(&kind.unit) });
            self.out.period = *period;
        }
        self.out.comment = profile.comments.iter().map(|c| self.string(c)).collect();
        self.out.mapping = profile
            .mappings
            .iter()
            .enumerate()
            .map(|(index, m)| proto::Mapping {
                id: index as u64 + 1,
                memory_start: m.start,
                memory_limit: m.end,
                file_offset: m.file_offset,
                filename: self.string(&m.path),
                build_id: m.build_id.as_ref().map_or(0, |id| self.string(id)),
                // Symbols are in the file: the reader need not look for more.
                has_functions: true,
                has_filenames: true,
                has_line_numbers: true,
                has_inline_frames: true,
            })
            .collect();
        for sample in &profile.samples {
            let sample = self.sample(profile, sample);
            self.out.sample.push(sample);
        }
        self.out
    }

    fn sample(&mut self, profile: &Profile, sample: &crate::Sample) -> proto::Sample {
        // Leaf first; an inline chain and the function it ended up in are one
        // location with several lines.
        let mut location_id = Vec::new();
        let mut group = Vec::new();
        for &index in sample.stack.iter().rev() {
            group.push(index);
            if !profile.frames.get(index).is_some_and(|f| f.inlined) {
                location_id.push(self.location(profile, std::mem::take(&mut group)));
            }
        }
        if !group.is_empty() {
            location_id.push(self.location(profile, group));
        }
        // pprof has no place for errors: they are labels, which it leaves alone.
        let mut labels = sample.labels.clone();
        for (kind, spread) in profile.sample_types.iter().zip(&sample.spread).filter(|(_, s)| s.samples > 0) {
            let sigma = spread.sigma().round() as i64;
            labels.push((format!("{}_sigma", kind.kind), LabelValue::Number(sigma, kind.unit.clone())));
            let samples = LabelValue::Number(spread.samples as i64, "count".to_owned());
            labels.push((format!("{}_samples", kind.kind), samples));
        }
        let label = labels
            .iter()
            .map(|(key, value)| {
                let key = self.string(key);
                match value {
                    LabelValue::Text(text) => proto::Label { key, str: self.string(text), ..Default::default() },
                    LabelValue::Number(num, unit) => {
                        proto::Label { key, num: *num, num_unit: self.string(unit), ..Default::default() }
                    }
                }
            })
            .collect();
        proto::Sample { location_id, value: sample.values.clone(), label }
    }

    /// `group`: indices of frames, innermost first.
    fn location(&mut self, profile: &Profile, group: Vec<usize>) -> u64 {
        if let Some(&id) = self.locations.get(&group) {
            return id;
        }
        let frames: Vec<&Frame> = group.iter().filter_map(|&f| profile.frames.get(f)).collect();
        let line = frames
            .iter()
            .map(|f| proto::Line { function_id: self.function(f), line: i64::from(f.line.unwrap_or(0)) })
            .collect();
        let place = frames.last().filter(|f| f.kind != FrameKind::Label);
        let id = self.out.location.len() as u64 + 1;
        self.out.location.push(proto::Location {
            id,
            mapping_id: place.and_then(|f| f.mapping).map_or(0, |m| m as u64 + 1),
            address: place.and_then(|f| f.address).unwrap_or(0),
            line,
        });
        self.locations.insert(group, id);
        id
    }

    fn function(&mut self, frame: &Frame) -> u64 {
        let name = self.string(&frame.name);
        let filename = frame.file.as_ref().map_or(0, |f| self.string(f));
        if let Some(&id) = self.functions.get(&(name, filename)) {
            return id;
        }
        let id = self.out.function.len() as u64 + 1;
        self.out.function.push(proto::Function { id, name, system_name: name, filename });
        self.functions.insert((name, filename), id);
        id
    }

    fn string(&mut self, text: &str) -> i64 {
        if let Some(&index) = self.strings.get(text) {
            return index;
        }
        let index = self.out.string_table.len() as i64;
        self.out.string_table.push(text.to_owned());
        self.strings.insert(text.to_owned(), index);
        index
    }
}
