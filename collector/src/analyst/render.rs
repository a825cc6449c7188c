//! The files of an incident's folder.

use crate::incident::model::Incident;
use crate::incident::profile::{View, views};
use crate::incident::report;
use crate::incident::store::{INCIDENT, StoreError, write_atomically};
use reprieve_flamegraph::{RenderError, folded, pprof, svg};
use std::path::Path;

/// Writes every rendering of `incident` into `dir`, `incident.json` last.
pub fn render(incident: &Incident, dir: &Path) -> Result<(), StoreError> {
    let views = views(incident);
    let mut graphs = Vec::new();
    for view in views {
        let mut image = Vec::new();
        let subtitle = incident.id.as_str();
        match svg::write(&view.profile, 0, svg::Text { title: view.title, subtitle }, &mut image) {
            Ok(()) => write_atomically(dir, &svg_name(&view), &image)?,
            // Nothing to draw is no error; the report says so.
            Err(RenderError::Empty) => image.clear(),
            Err(error) => return Err(into_store_error(dir, &error)),
        }
        graphs.push((view, String::from_utf8_lossy(&image).into_owned()));
    }
    for (view, _) in &graphs {
        let (folded_name, pprof_name) = match view.name {
            "threads" => ("stacks.folded", "profile.pb.gz"),
            "heap" => ("heap.folded", "heap.pb.gz"),
            _ => continue,
        };
        let mut text = Vec::new();
        folded::write(&view.profile, 0, &mut text).map_err(|e| into_store_error(dir, &e))?;
        write_atomically(dir, folded_name, &text)?;
        let mut gzip = Vec::new();
        pprof::write(&view.profile, &mut gzip).map_err(|e| into_store_error(dir, &e))?;
        write_atomically(dir, pprof_name, &gzip)?;
    }
    write_atomically(dir, "report.html", report::html(incident, &graphs).as_bytes())?;
    write_incident(incident, dir)
}

/// Writes `incident.json` alone.
pub fn write_incident(incident: &Incident, dir: &Path) -> Result<(), StoreError> {
    let json = serde_json::to_vec_pretty(incident)
        .map_err(|error| StoreError::Corrupt { path: dir.join(INCIDENT), reason: error.to_string() })?;
    write_atomically(dir, INCIDENT, &json)
}

/// `flamegraph.svg` for the threads, `NAME.svg` for the others.
fn svg_name(view: &View) -> String {
    if view.name == "threads" { "flamegraph.svg".to_owned() } else { format!("{}.svg", view.name) }
}

fn into_store_error(dir: &Path, error: &RenderError) -> StoreError {
    StoreError::File { path: dir.to_owned(), source: std::io::Error::other(error.to_string()) }
}
