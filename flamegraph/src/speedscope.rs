//! speedscope's own file format: sampled profiles that share one table of frames, each
//! with its file and line.
//!
//! Fields: file-format-schema.json of the npm package speedscope.

use crate::tree::merged_stacks;
use crate::{Frame, RenderError, Series};
use serde::Serialize;
use std::collections::HashMap;
use std::io::Write;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct File<'a> {
    #[serde(rename = "$schema")]
    schema: &'static str,
    name: &'a str,
    exporter: &'a str,
    active_profile_index: usize,
    shared: Shared<'a>,
    profiles: Vec<Sampled<'a>>,
}

#[derive(Serialize)]
struct Shared<'a> {
    frames: Vec<Place<'a>>,
}

#[derive(Serialize, Clone, PartialEq, Eq, Hash)]
struct Place<'a> {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u32>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Sampled<'a> {
    r#type: &'static str,
    name: &'a str,
    unit: &'static str,
    start_value: i64,
    end_value: i64,
    samples: Vec<Vec<usize>>,
    weights: Vec<i64>,
}

/// Writes the file; its page shows the first series first. `name` is the file's,
/// `exporter` the program that makes it.
pub fn write(series: &[Series<'_>], name: &str, exporter: &str, mut to: impl Write) -> Result<(), RenderError> {
    let mut frames = Vec::new();
    let mut known = HashMap::new();
    let mut index_of = |frame| {
        let place = place(frame);
        *known.entry(place).or_insert_with_key(|place: &Place<'_>| {
            frames.push(place.clone());
            frames.len() - 1
        })
    };
    let mut profiles = Vec::new();
    for series in series {
        let unit = if series.kind()?.unit == "bytes" { "bytes" } else { "none" };
        let (stacks, weights): (Vec<_>, Vec<i64>) = merged_stacks(series, place).into_iter().unzip();
        profiles.push(Sampled {
            r#type: "sampled",
            name: series.title,
            unit,
            start_value: 0,
            end_value: weights.iter().sum(),
            samples: stacks.into_iter().map(|stack| stack.into_iter().map(&mut index_of).collect()).collect(),
            weights,
        });
    }
    let schema = "https://www.speedscope.app/file-format-schema.json";
    let file = File { schema, name, exporter, active_profile_index: 0, shared: Shared { frames }, profiles };
    serde_json::to_writer(&mut to, &file)?;
    writeln!(to)?;
    Ok(())
}

fn place(frame: &Frame) -> Place<'_> {
    Place { name: frame.name(), file: frame.file.as_deref(), line: frame.line }
}
