//! Incidents as they are named on the command line.

use super::{Failure, NOT_FOUND};
use crate::config::Config;
use crate::incident::model::Incident;
use crate::incident::profile::View;
use crate::incident::read::read_incident;
use crate::incident::store::{INCIDENT, Store};
use std::path::{Path, PathBuf};

/// The incident in a folder or a file, or the one in the store with this ID, or a part of
/// it; the newest of the store without a name. The configuration is read only if the store
/// is asked.
pub(super) fn find(
    name: Option<&str>,
    out: Option<&Path>,
    config: impl Fn() -> Result<Config, Failure>,
) -> Result<(PathBuf, Incident), Failure> {
    let path = Path::new(name.unwrap_or_default());
    if path.join(INCIDENT).is_file() {
        return Ok((path.to_owned(), read_incident(&path.join(INCIDENT))?));
    }
    if path.is_file() {
        return Ok((path.to_owned(), read_incident(path)?));
    }
    Ok(store(out, config)?.load(name)?)
}

/// The store to read from: a folder that was named, which must be there, or the configured
/// one, where nothing may have been recorded yet.
pub(super) fn store(out: Option<&Path>, config: impl Fn() -> Result<Config, Failure>) -> Result<Store, Failure> {
    let Some(dir) = out else { return Ok(Store::at(config()?.store_dir())) };
    match std::fs::metadata(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let error =
                anyhow::anyhow!("--out {}: there is no such folder; name one that has incidents", dir.display());
            Err(Failure { code: NOT_FOUND, error })
        }
        // Who looks into it tells what else is wrong.
        _ => Ok(Store::at(Some(dir.to_owned()))),
    }
}

/// The view that has a sample type, and which of its it is; the first of all without a name.
pub(super) fn choose<'v>(
    views: &'v [View],
    sample_type: Option<&str>,
    incident: &Incident,
) -> Result<(&'v View, usize), Failure> {
    let all =
        || views.iter().flat_map(|view| view.selectable().enumerate().map(move |(index, name)| (name, view, index)));
    let chosen = all().find(|(name, ..)| sample_type.is_none_or(|wanted| wanted == *name));
    chosen.map(|(_, view, index)| (view, index)).ok_or_else(|| {
        let has: Vec<&str> = all().map(|(name, ..)| name).collect();
        let wanted = sample_type.unwrap_or("any");
        let error =
            anyhow::anyhow!("--sample-type {wanted}: incident {} has none; it has {}", incident.id, has.join(", "));
        Failure { code: NOT_FOUND, error }
    })
}

/// Name of the sample type that was chosen.
pub(super) fn name_of(view: &View, index: usize) -> &str {
    view.selectable().nth(index).unwrap_or(view.name)
}
