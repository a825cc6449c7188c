//! The files of an incident's folder.

use crate::incident::model::Incident;
use crate::incident::profile::{View, views, whole};
use crate::incident::report;
use crate::incident::store::{INCIDENT, StoreError, write_atomically};
use reprieve_flamegraph::{RenderError, folded, pprof, svg};
use std::path::Path;

/// Writes every rendering of `incident` into `dir`, `incident.json` last.
pub fn render(incident: &Incident, dir: &Path) -> Result<(), StoreError> {
    let views = views(incident);
    for view in &views {
        for index in 0..view.profile.sample_types.len() {
            let title = view.title_of(index);
            let text = svg::Text { title: &title, subtitle: &incident.id };
            let mut image = Vec::new();
            match svg::write(&view.profile, index, text, &mut image) {
                Ok(()) => write_atomically(dir, &svg_name(view, index), &image)?,
                // Nothing to draw is no error; the report says so.
                Err(RenderError::Empty) => {}
                Err(error) => return Err(into_store_error(dir, &error)),
            }
            if let Some(name) = folded_name(view, index) {
                let mut text = Vec::new();
                folded::write(&view.profile, index, &mut text).map_err(|e| into_store_error(dir, &e))?;
                write_atomically(dir, &name, &text)?;
            }
        }
    }
    let mut gzip = Vec::new();
    pprof::write(&whole(incident), &mut gzip).map_err(|e| into_store_error(dir, &e))?;
    write_atomically(dir, "profile.pb.gz", &gzip)?;
    write_atomically(dir, "report.html", report::html(incident, &views).as_bytes())?;
    write_incident(incident, dir)
}

/// Writes `incident.json` alone.
pub fn write_incident(incident: &Incident, dir: &Path) -> Result<(), StoreError> {
    let json = serde_json::to_vec_pretty(incident)
        .map_err(|error| StoreError::Corrupt { path: dir.join(INCIDENT), reason: error.to_string() })?;
    write_atomically(dir, INCIDENT, &json)
}

/// `flamegraph.svg` for the threads, the drawing's stem for the others.
fn svg_name(view: &View, sample_type: usize) -> String {
    if view.name == "threads" { "flamegraph.svg".to_owned() } else { format!("{}.svg", view.stem(sample_type)) }
}

/// `stacks.folded` for the threads; memory by mapping is no stack.
fn folded_name(view: &View, sample_type: usize) -> Option<String> {
    match view.name {
        "threads" => Some("stacks.folded".to_owned()),
        "memory" => None,
        _ => Some(format!("{}.folded", view.stem(sample_type))),
    }
}

fn into_store_error(dir: &Path, error: &RenderError) -> StoreError {
    StoreError::File { path: dir.to_owned(), reason: std::io::Error::other(error.to_string()) }
}
