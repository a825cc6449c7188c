//! Reading an `incident.json`, which may be damaged, cut off, of another version, or made up:
//! it is refused with what is wrong, or read without what cannot be, which is told.

use super::model::{Incident, SCHEMA};
use super::plausible;
use super::store::StoreError;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Largest file that is read. One of 10,000 threads and 100,000 addresses has some tens of
/// megabytes.
pub const MOST_BYTES: u64 = 1 << 30;

/// Reads and checks an `incident.json`.
pub fn read_incident(path: &Path) -> Result<Incident, StoreError> {
    read(path, parse_incident)
}

/// The same of the file's content; the error says what is wrong with it.
pub fn parse_incident(text: &[u8]) -> Result<Incident, String> {
    let mut incident = parse(text, |incident: &Incident| incident.schema.as_str())?;
    plausible::sift(&mut incident);
    Ok(incident)
}

/// Reads a file no larger than [`MOST_BYTES`], and has `parse` make something of it.
pub(super) fn read<T>(path: &Path, parse: impl Fn(&[u8]) -> Result<T, String>) -> Result<T, StoreError> {
    let fail = |reason| StoreError::File { path: path.to_owned(), reason };
    let corrupt = |reason| StoreError::Corrupt { path: path.to_owned(), reason };
    // What somebody put there in place of a file must not have us wait.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(fail)?;
    let bytes = file.metadata().map_err(fail)?.len();
    let mut text = Vec::new();
    if bytes <= MOST_BYTES {
        text.reserve_exact(bytes as usize + 1);
        // It may be growing.
        file.take(MOST_BYTES + 1).read_to_end(&mut text).map_err(fail)?;
    }
    if bytes.max(text.len() as u64) > MOST_BYTES {
        return Err(corrupt(format!("it has {bytes} bytes, of which {MOST_BYTES} are read at most")));
    }
    parse(&text).map_err(corrupt)
}

/// The schema alone, which is looked at where the rest is not understood.
#[derive(Deserialize)]
struct Head {
    schema: String,
}

/// An incident, or a part of one, if its schema is ours.
pub(super) fn parse<T: DeserializeOwned>(text: &[u8], schema: impl Fn(&T) -> &str) -> Result<T, String> {
    let is_ours = |schema: &str| match schema {
        SCHEMA => Ok(()),
        other => Err(format!(
            "its schema is {other:?}, this reprieve reads {SCHEMA:?}; read it with the reprieve that wrote it"
        )),
    };
    let error = match serde_json::from_slice(text) {
        Ok(whole) => return is_ours(schema(&whole)).map(|()| whole),
        Err(error) => error,
    };
    // Of another version more than its name may be another.
    let head: Option<Head> = serde_json::from_slice(text).ok();
    head.iter().try_for_each(|head| is_ours(&head.schema))?;
    Err(match error.classify() {
        _ if text.iter().all(u8::is_ascii_whitespace) => "it is empty".to_owned(),
        Category::Eof => format!("it is cut off after {} bytes: {error}", text.len()),
        // JSON it is, and of somebody who wrote something else.
        Category::Data if head.is_none() => format!("it is no incident of reprieve: {error}"),
        _ => format!("it is damaged: {error}"),
    })
}
