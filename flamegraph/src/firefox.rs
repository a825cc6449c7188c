//! The Firefox Profiler's processed format, version 55: tables of columns, for each thread
//! its own. Later versions of its page convert it when they read it.
//!
//! Columns: github.com/firefox-devtools/profiler, docs-developer/processed-profile-format.md
//! and CHANGELOG-formats.md.

use crate::{Frame, FrameKind, Mapping, Profile, RenderError, Sample, Series};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::io::Write;

/// Its number in `preprocessedProfileVersion`.
const VERSION: u32 = 55;
/// A resource that is a library.
const LIBRARY: u32 = 1;

/// Categories, which colour frames; the grey one must be there.
const CATEGORIES: [(&str, &str); 5] = [
    ("Heading", "grey"),
    ("Function", "blue"),
    ("Interpreted", "yellow"),
    ("Not known", "orange"),
    ("Kernel", "green"),
];

/// Writes the file: for each series one track per process (label `pid`). There is no time
/// in it: samples stand one after the other, a millisecond each.
pub fn write(series: &[Series<'_>], product: &str, mut to: impl Write) -> Result<(), RenderError> {
    let mut libs = Libs::default();
    let mut threads = Vec::new();
    for series in series {
        let unit = &series.kind()?.unit;
        let mut processes: BTreeMap<i64, Vec<&Sample>> = BTreeMap::new();
        for sample in series.profile.samples.iter().filter(|sample| series.value(sample) != 0) {
            processes.entry(Profile::number(sample, "pid").unwrap_or(0)).or_default().push(sample);
        }
        let mut tracks: Vec<_> = processes.into_iter().collect();
        let sum = |samples: &[&Sample]| samples.iter().map(|sample| series.value(sample)).sum::<i64>();
        tracks.sort_by_key(|(pid, samples)| (std::cmp::Reverse(sum(samples)), *pid));
        for (pid, samples) in tracks {
            let mut track = Track::default();
            for sample in &samples {
                track.add(series.profile, sample, series.value(sample), &mut libs);
            }
            let weight = if unit == "bytes" { "bytes" } else { "samples" };
            threads.push(track.into_json(
                Names { pid, thread: series.title, process: heading(series, &samples) },
                weight,
                threads.len(),
            ));
        }
    }
    let first = series.first().map(|series| series.profile);
    let visible: Vec<usize> = (0..threads.len()).collect();
    let categories = CATEGORIES.map(|(name, color)| json!({"name": name, "color": color, "subcategories": ["Other"]}));
    let comments = first.map_or(&[][..], |profile| &profile.comments);
    let entries: Vec<Value> =
        comments.iter().map(|comment| json!({"label": "Comment", "format": "string", "value": comment})).collect();
    let meta = json!({
        "categories": categories,
        "debug": false,
        "extensions": {"length": 0, "baseURL": [], "id": [], "name": []},
        "extra": [{"label": product, "entries": entries}],
        "importedFrom": product,
        "initialVisibleThreads": visible,
        "initialSelectedThreads": visible.get(..1),
        "interval": 1,
        "markerSchema": [],
        "pausedRanges": [],
        "preprocessedProfileVersion": VERSION,
        "processType": 0,
        "product": product,
        "sampleUnits": {"time": "ms", "eventDelay": "ms", "threadCPUDelta": "ns"},
        "sourceCodeIsNotOnSearchfox": true,
        "startTime": first.map_or(0, |profile| profile.time_unix_nanos / 1_000_000),
        "symbolicated": true,
        "usesOnlyOneStackType": true,
        // Of another format, and not looked at.
        "version": 24,
    });
    let file = json!({
        "meta": meta, "libs": libs.entries, "threads": threads, "pages": [], "counters": [], "profilerOverhead": [],
    });
    serde_json::to_writer(&mut to, &file)?;
    writeln!(to)?;
    Ok(())
}

/// The process's name is the outermost heading.
fn heading<'a>(series: &Series<'a>, samples: &[&Sample]) -> &'a str {
    let first = samples.first().and_then(|sample| series.profile.frames.get(*sample.stack.first()?));
    first.filter(|frame| frame.kind == FrameKind::Label).map_or("", |frame| &frame.name)
}

/// Mapped files of all tracks.
#[derive(Default)]
struct Libs {
    known: HashMap<String, usize>,
    entries: Vec<Value>,
}

impl Libs {
    fn index(&mut self, mapping: &Mapping) -> usize {
        let id = mapping.build_id.as_deref().unwrap_or("");
        let key = format!("{id} {}", mapping.path);
        if let Some(&index) = self.known.get(&key) {
            return index;
        }
        let name = base(&mapping.path);
        self.entries.push(json!({
            "arch": "", "name": name, "path": mapping.path, "debugName": name, "debugPath": mapping.path,
            "breakpadId": breakpad(id), "codeId": mapping.build_id,
        }));
        self.known.insert(key, self.entries.len() - 1);
        self.entries.len() - 1
    }
}

fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The ID by which symbol servers know a file: the first 16 bytes of its build ID as a
/// GUID, whose first three fields are little-endian, and an age of 0.
fn breakpad(build_id: &str) -> String {
    let upper = build_id.to_ascii_uppercase();
    let padded = format!("{:0<32}", upper.get(..32).unwrap_or(&upper));
    let swapped = |range: std::ops::Range<usize>| padded.get(range).unwrap_or_default().as_bytes().rchunks(2);
    let fields = [0..8, 8..12, 12..16].into_iter().flat_map(swapped).flatten().map(|&byte| char::from(byte));
    fields.chain(padded.chars().skip(16)).chain(['0']).collect()
}

/// Whose track.
#[derive(Clone, Copy)]
struct Names<'a> {
    pid: i64,
    thread: &'a str,
    process: &'a str,
}

/// A column of strings by number.
#[derive(Default)]
struct Strings {
    known: HashMap<String, usize>,
    all: Vec<String>,
}

impl Strings {
    fn index(&mut self, text: &str) -> usize {
        if let Some(&index) = self.known.get(text) {
            return index;
        }
        self.known.insert(text.to_owned(), self.all.len());
        self.all.push(text.to_owned());
        self.all.len() - 1
    }
}

#[derive(Default, Serialize)]
struct Functions {
    length: usize,
    name: Vec<usize>,
    #[serde(rename = "isJS")]
    is_js: Vec<bool>,
    #[serde(rename = "relevantForJS")]
    relevant_for_js: Vec<bool>,
    /// -1: none.
    resource: Vec<i64>,
    #[serde(rename = "fileName")]
    file_name: Vec<Option<usize>>,
    #[serde(rename = "lineNumber")]
    line_number: Vec<Option<u32>>,
    #[serde(rename = "columnNumber")]
    column_number: Vec<Option<u32>>,
}

#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Frames {
    length: usize,
    /// In its library; -1: none.
    address: Vec<i64>,
    inline_depth: Vec<u32>,
    category: Vec<u32>,
    subcategory: Vec<u32>,
    func: Vec<usize>,
    native_symbol: Vec<Option<u32>>,
    #[serde(rename = "innerWindowID")]
    inner_window_id: Vec<Option<u32>>,
    line: Vec<Option<u32>>,
    column: Vec<Option<u32>>,
}

#[derive(Default, Serialize)]
struct Stacks {
    length: usize,
    prefix: Vec<Option<usize>>,
    frame: Vec<usize>,
}

/// A thread in the format's words.
#[derive(Default)]
struct Track {
    strings: Strings,
    resources: HashMap<usize, usize>,
    resource_libs: Vec<usize>,
    resource_names: Vec<usize>,
    functions: Functions,
    known_functions: HashMap<(usize, Option<usize>, i64), usize>,
    frames: Frames,
    known_frames: HashMap<Frame, usize>,
    stacks: Stacks,
    known_stacks: HashMap<(Option<usize>, usize), usize>,
    samples: Vec<(Option<usize>, i64)>,
}

impl Track {
    fn add(&mut self, profile: &Profile, sample: &Sample, value: i64, libs: &mut Libs) {
        let (mut prefix, mut depth) = (None, 0);
        for frame in sample.stack.iter().filter_map(|&index| profile.frames.get(index)) {
            depth = if frame.inlined { depth + 1 } else { 0 };
            let frame = self.frame(profile, frame, depth, libs);
            prefix = Some(*self.known_stacks.entry((prefix, frame)).or_insert_with(|| {
                self.stacks.prefix.push(prefix);
                self.stacks.frame.push(frame);
                self.stacks.length += 1;
                self.stacks.length - 1
            }));
        }
        self.samples.push((prefix, value));
    }

    fn frame(&mut self, profile: &Profile, frame: &Frame, depth: u32, libs: &mut Libs) -> usize {
        if let Some(&index) = self.known_frames.get(frame) {
            return index;
        }
        let mapping = frame.mapping.and_then(|index| profile.mappings.get(index));
        let resource = mapping.map_or(-1, |mapping| {
            let lib = libs.index(mapping);
            let name = self.strings.index(base(&mapping.path));
            let index = *self.resources.entry(lib).or_insert_with(|| {
                self.resource_libs.push(lib);
                self.resource_names.push(name);
                self.resource_libs.len() - 1
            });
            index as i64
        });
        let name = self.strings.index(&frame.name());
        let file = frame.file.as_ref().map(|file| self.strings.index(file));
        let functions = &mut self.functions;
        let function = *self.known_functions.entry((name, file, resource)).or_insert_with(|| {
            functions.name.push(name);
            functions.is_js.push(false);
            functions.relevant_for_js.push(false);
            functions.resource.push(resource);
            functions.file_name.push(file);
            functions.line_number.push(None);
            functions.column_number.push(None);
            functions.length += 1;
            functions.length - 1
        });
        // The page has 32 bits for it.
        let address = mapping.and_then(|mapping| u32::try_from(frame.address?.checked_sub(mapping.start)?).ok());
        let frames = &mut self.frames;
        frames.address.push(address.map_or(-1, i64::from));
        frames.inline_depth.push(depth);
        frames.category.push(match frame.kind {
            FrameKind::Label => 0,
            FrameKind::Function => 1,
            FrameKind::Script => 2,
            FrameKind::Unknown | FrameKind::Guessed => 3,
            FrameKind::Kernel => 4,
        });
        frames.subcategory.push(0);
        frames.func.push(function);
        frames.native_symbol.push(None);
        frames.inner_window_id.push(None);
        frames.line.push(frame.line);
        frames.column.push(None);
        frames.length += 1;
        self.known_frames.insert(frame.clone(), frames.length - 1);
        frames.length - 1
    }

    fn into_json(self, names: Names<'_>, weight_type: &str, number: usize) -> Value {
        let length = self.samples.len();
        let (stack, weight): (Vec<_>, Vec<i64>) = self.samples.into_iter().unzip();
        let time_deltas: Vec<u32> = (0..length).map(|index| u32::from(index > 0)).collect();
        let resources = self.resource_libs.len();
        json!({
            "name": names.thread,
            "isMainThread": false,
            "processType": "default",
            "processName": names.process,
            "processStartupTime": 0,
            "processShutdownTime": null,
            "registerTime": 0,
            "unregisterTime": null,
            "pausedRanges": [],
            "pid": names.pid.to_string(),
            // Tracks are told apart by it.
            "tid": format!("{}.{number}", names.pid),
            "showMarkersInTimeline": false,
            "samples": {
                "length": length, "weightType": weight_type, "stack": stack, "timeDeltas": time_deltas,
                "weight": weight, "threadCPUDelta": vec![0; length],
            },
            "markers": {
                "length": 0, "category": [], "data": [], "endTime": [], "name": [], "phase": [], "startTime": [],
            },
            "stackTable": self.stacks,
            "frameTable": self.frames,
            "funcTable": self.functions,
            "resourceTable": {
                "length": resources, "lib": self.resource_libs, "name": self.resource_names,
                "host": vec![(); resources], "type": vec![LIBRARY; resources],
            },
            "nativeSymbols": {"length": 0, "address": [], "functionSize": [], "libIndex": [], "name": []},
            "stringArray": self.strings.all,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_id_as_symbol_servers_write_it() {
        assert_eq!(breakpad("0123456789abcdef0123456789abcdef01234567"), "67452301AB89EFCD0123456789ABCDEF0");
        assert_eq!(breakpad("abcd"), "0000CDAB0000000000000000000000000");
        assert_eq!(breakpad(""), "0".repeat(33));
    }
}
