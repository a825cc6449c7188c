//! OpenTelemetry profiles: a `ProfilesData` message, as it is stored, and as the body of an
//! OTLP request, whose fields are the same.
//!
//! Field numbers: opentelemetry-proto, opentelemetry/proto/profiles/v1development/profiles.proto
//! (1.11). Keys of attributes, where there are any for it: OpenTelemetry's semantic conventions.

use crate::{Frame, FrameKind, LabelValue, Profile, RenderError, Sample, SampleType, Series};
use prost::Message;
use proto::any_value::Value;
use std::collections::HashMap;
use std::hash::Hash;
use std::io::Write;

/// The messages, as far as they are used.
pub mod proto {
    #![allow(missing_docs, reason = "the names are the protocol's, documented there")]

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct ProfilesData {
        #[prost(message, repeated, tag = "1")]
        pub resource_profiles: Vec<ResourceProfiles>,
        #[prost(message, optional, tag = "2")]
        pub dictionary: Option<Dictionary>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Dictionary {
        #[prost(message, repeated, tag = "1")]
        pub mapping_table: Vec<Mapping>,
        #[prost(message, repeated, tag = "2")]
        pub location_table: Vec<Location>,
        #[prost(message, repeated, tag = "3")]
        pub function_table: Vec<Function>,
        #[prost(message, repeated, tag = "4")]
        pub link_table: Vec<Link>,
        #[prost(string, repeated, tag = "5")]
        pub string_table: Vec<String>,
        #[prost(message, repeated, tag = "6")]
        pub attribute_table: Vec<KeyValueAndUnit>,
        #[prost(message, repeated, tag = "7")]
        pub stack_table: Vec<Stack>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct ResourceProfiles {
        #[prost(message, optional, tag = "1")]
        pub resource: Option<Resource>,
        #[prost(message, repeated, tag = "2")]
        pub scope_profiles: Vec<ScopeProfiles>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Resource {
        #[prost(message, repeated, tag = "1")]
        pub attributes: Vec<KeyValue>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct KeyValue {
        #[prost(string, tag = "1")]
        pub key: String,
        #[prost(message, optional, tag = "2")]
        pub value: Option<AnyValue>,
    }

    #[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
    pub struct AnyValue {
        #[prost(oneof = "any_value::Value", tags = "1, 3")]
        pub value: Option<any_value::Value>,
    }

    pub mod any_value {
        #[derive(Clone, PartialEq, Eq, Hash, prost::Oneof)]
        pub enum Value {
            #[prost(string, tag = "1")]
            String(String),
            #[prost(int64, tag = "3")]
            Int(i64),
        }
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct ScopeProfiles {
        #[prost(message, optional, tag = "1")]
        pub scope: Option<Scope>,
        #[prost(message, repeated, tag = "2")]
        pub profiles: Vec<Profile>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Scope {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(string, tag = "2")]
        pub version: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Profile {
        #[prost(message, optional, tag = "1")]
        pub sample_type: Option<ValueType>,
        #[prost(message, repeated, tag = "2")]
        pub samples: Vec<Sample>,
        #[prost(fixed64, tag = "3")]
        pub time_unix_nano: u64,
        #[prost(message, optional, tag = "5")]
        pub period_type: Option<ValueType>,
        #[prost(int64, tag = "6")]
        pub period: i64,
        #[prost(int32, repeated, tag = "11")]
        pub attribute_indices: Vec<i32>,
    }

    #[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
    pub struct Link {}

    #[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
    pub struct ValueType {
        #[prost(int32, tag = "1")]
        pub type_strindex: i32,
        #[prost(int32, tag = "2")]
        pub unit_strindex: i32,
    }

    #[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
    pub struct Sample {
        #[prost(int32, tag = "1")]
        pub stack_index: i32,
        #[prost(int32, repeated, tag = "2")]
        pub attribute_indices: Vec<i32>,
        #[prost(int64, repeated, tag = "4")]
        pub values: Vec<i64>,
    }

    #[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
    pub struct Mapping {
        #[prost(uint64, tag = "1")]
        pub memory_start: u64,
        #[prost(uint64, tag = "2")]
        pub memory_limit: u64,
        #[prost(uint64, tag = "3")]
        pub file_offset: u64,
        #[prost(int32, tag = "4")]
        pub filename_strindex: i32,
        #[prost(int32, repeated, tag = "5")]
        pub attribute_indices: Vec<i32>,
    }

    #[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
    pub struct Stack {
        #[prost(int32, repeated, tag = "1")]
        pub location_indices: Vec<i32>,
    }

    #[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
    pub struct Location {
        #[prost(int32, tag = "1")]
        pub mapping_index: i32,
        #[prost(uint64, tag = "2")]
        pub address: u64,
        #[prost(message, repeated, tag = "3")]
        pub lines: Vec<Line>,
        #[prost(int32, repeated, tag = "4")]
        pub attribute_indices: Vec<i32>,
    }

    #[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
    pub struct Line {
        #[prost(int32, tag = "1")]
        pub function_index: i32,
        #[prost(int64, tag = "2")]
        pub line: i64,
    }

    #[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
    pub struct Function {
        #[prost(int32, tag = "1")]
        pub name_strindex: i32,
        #[prost(int32, tag = "2")]
        pub system_name_strindex: i32,
        #[prost(int32, tag = "3")]
        pub filename_strindex: i32,
    }

    #[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
    pub struct KeyValueAndUnit {
        #[prost(int32, tag = "1")]
        pub key_strindex: i32,
        #[prost(message, optional, tag = "2")]
        pub value: Option<AnyValue>,
        #[prost(int32, tag = "3")]
        pub unit_strindex: i32,
    }
}

/// What the profiles are of.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// Name and version of the program that makes the file.
    pub scope: (&'a str, &'a str),
    /// Attributes of the resource, like `host.name`.
    pub resource: &'a [(&'a str, &'a str)],
}

/// Writes the message, one profile for each series.
pub fn write(series: &[Series<'_>], origin: Origin<'_>, mut to: impl Write) -> Result<(), RenderError> {
    let mut encoder = Encoder::new();
    let profiles = series.iter().map(|series| encoder.profile(series)).collect::<Result<_, _>>()?;
    let attributes = origin.resource.iter().map(|(key, value)| proto::KeyValue {
        key: (*key).to_owned(),
        value: Some(proto::AnyValue { value: Some(Value::String((*value).to_owned())) }),
    });
    let (name, version) = origin.scope;
    let data = proto::ProfilesData {
        resource_profiles: vec![proto::ResourceProfiles {
            resource: Some(proto::Resource { attributes: attributes.collect() }),
            scope_profiles: vec![proto::ScopeProfiles {
                scope: Some(proto::Scope { name: name.to_owned(), version: version.to_owned() }),
                profiles,
            }],
        }],
        dictionary: Some(encoder.into_dictionary()),
    };
    to.write_all(&data.encode_to_vec())?;
    Ok(())
}

/// A table of distinct entries; the first is the one that stands for none.
struct Table<T>(HashMap<T, i32>, Vec<T>);

impl<T: Clone + Default + Eq + Hash> Table<T> {
    fn new() -> Self {
        Table(HashMap::from([(T::default(), 0)]), vec![T::default()])
    }

    fn index(&mut self, entry: T) -> i32 {
        let next = self.1.len() as i32;
        *self.0.entry(entry).or_insert_with_key(|entry| {
            self.1.push(entry.clone());
            next
        })
    }
}

/// Tables under construction, shared by all profiles.
struct Encoder {
    strings: Table<String>,
    mappings: Table<proto::Mapping>,
    functions: Table<proto::Function>,
    locations: Table<proto::Location>,
    stacks: Table<proto::Stack>,
    attributes: Table<proto::KeyValueAndUnit>,
}

impl Encoder {
    fn new() -> Self {
        Encoder {
            strings: Table::new(),
            mappings: Table::new(),
            functions: Table::new(),
            locations: Table::new(),
            stacks: Table::new(),
            attributes: Table::new(),
        }
    }

    fn into_dictionary(self) -> proto::Dictionary {
        proto::Dictionary {
            mapping_table: self.mappings.1,
            location_table: self.locations.1,
            function_table: self.functions.1,
            link_table: vec![proto::Link {}],
            string_table: self.strings.1,
            attribute_table: self.attributes.1,
            stack_table: self.stacks.1,
        }
    }

    fn profile(&mut self, series: &Series<'_>) -> Result<proto::Profile, RenderError> {
        let Profile { samples, comments, time_unix_nanos, period, .. } = series.profile;
        let sample_type = self.value_type(series.kind()?);
        let title = self.attribute("reprieve.title", Value::String(series.title.to_owned()), "");
        let mut attribute_indices = vec![title];
        if !comments.is_empty() {
            attribute_indices.push(self.attribute("reprieve.comment", Value::String(comments.join("\n")), ""));
        }
        // Of what is the same but for its value, one sample.
        let mut places = HashMap::new();
        let mut merged: Vec<proto::Sample> = Vec::new();
        for sample in samples.iter().filter(|sample| series.value(sample) != 0) {
            let stack_index = self.stack(series.profile, &sample.stack);
            let attributes = self.labels(series, sample);
            let place = *places.entry((stack_index, attributes)).or_insert_with_key(|(_, attributes)| {
                merged.push(proto::Sample { stack_index, attribute_indices: attributes.clone(), values: vec![0] });
                merged.len() - 1
            });
            merged[place].values[0] += series.value(sample);
        }
        // It tells what is between two samples of bytes, not of anything else.
        let period = period.as_ref().filter(|(kind, _)| series.kind().is_ok_and(|ours| ours.unit == kind.unit));
        Ok(proto::Profile {
            sample_type: Some(sample_type),
            samples: merged,
            time_unix_nano: (*time_unix_nanos).unsigned_abs(),
            period_type: period.map(|(kind, _)| self.value_type(kind)),
            period: period.map_or(0, |(_, period)| *period),
            attribute_indices,
        })
    }

    fn value_type(&mut self, kind: &SampleType) -> proto::ValueType {
        proto::ValueType { type_strindex: self.string(&kind.kind), unit_strindex: self.string(&kind.unit) }
    }

    /// `stack`: outermost first. An inline chain and the function that it ended up in are
    /// one location with several lines.
    fn stack(&mut self, profile: &Profile, stack: &[usize]) -> i32 {
        let (mut location_indices, mut chain) = (Vec::new(), Vec::new());
        for frame in stack.iter().rev().filter_map(|&index| profile.frames.get(index)) {
            chain.push(frame);
            if !frame.inlined {
                location_indices.push(self.location(profile, &chain));
                chain.clear();
            }
        }
        if !chain.is_empty() {
            location_indices.push(self.location(profile, &chain));
        }
        self.stacks.index(proto::Stack { location_indices })
    }

    /// `chain`: innermost first.
    fn location(&mut self, profile: &Profile, chain: &[&Frame]) -> i32 {
        let lines = chain.iter().map(|frame| self.line(frame)).collect();
        let last = chain.last();
        let mapping = last.and_then(|frame| profile.mappings.get(frame.mapping?));
        let mapping_index = mapping.map_or(0, |mapping| {
            let id = |id: &String| self.attribute("process.executable.build_id.gnu", Value::String(id.clone()), "");
            let attribute_indices = mapping.build_id.as_ref().map(id).into_iter().collect();
            let filename_strindex = self.string(&mapping.path);
            self.mappings.index(proto::Mapping {
                memory_start: mapping.start,
                memory_limit: mapping.end,
                file_offset: mapping.file_offset,
                filename_strindex,
                attribute_indices,
            })
        });
        let kind = match last.map(|frame| frame.kind) {
            Some(FrameKind::Function | FrameKind::Guessed) => Some("native"),
            Some(FrameKind::Kernel) => Some("kernel"),
            _ => None,
        };
        let kind = kind.map(|kind| self.attribute("profile.frame.type", Value::String(kind.to_owned()), ""));
        let attribute_indices = kind.into_iter().collect();
        let address = last.and_then(|frame| frame.address).unwrap_or(0);
        self.locations.index(proto::Location { mapping_index, address, lines, attribute_indices })
    }

    fn line(&mut self, frame: &Frame) -> proto::Line {
        let name = self.string(&frame.name());
        let filename_strindex = frame.file.as_ref().map_or(0, |file| self.string(file));
        let function = proto::Function { name_strindex: name, system_name_strindex: name, filename_strindex };
        proto::Line { function_index: self.functions.index(function), line: i64::from(frame.line.unwrap_or(0)) }
    }

    fn labels(&mut self, series: &Series<'_>, sample: &Sample) -> Vec<i32> {
        let mut indices = Vec::new();
        for (label, value) in &sample.labels {
            let key = match label.as_str() {
                "pid" => "process.pid".to_owned(),
                "tid" => "thread.id".to_owned(),
                "thread" => "thread.name".to_owned(),
                other => format!("reprieve.{other}"),
            };
            indices.push(match value {
                LabelValue::Text(text) => self.attribute(&key, Value::String(text.clone()), ""),
                LabelValue::Number(number, unit) => self.attribute(&key, Value::Int(*number), unit),
            });
        }
        if let (Some(spread), Ok(kind)) = (sample.spread.get(series.sample_type), series.kind())
            && spread.samples > 0
        {
            indices.push(self.attribute("reprieve.sigma", Value::Int(spread.sigma().round() as i64), &kind.unit));
            indices.push(self.attribute("reprieve.samples", Value::Int(spread.samples as i64), "count"));
        }
        indices
    }

    fn attribute(&mut self, key: &str, value: Value, unit: &str) -> i32 {
        let (key_strindex, unit_strindex) = (self.string(key), self.string(unit));
        let value = Some(proto::AnyValue { value: Some(value) });
        self.attributes.index(proto::KeyValueAndUnit { key_strindex, value, unit_strindex })
    }

    fn string(&mut self, text: &str) -> i32 {
        self.strings.index(text.to_owned())
    }
}
