//! Names of source files.

use super::{Dwarf, Slice, Unit};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Longest path that is told, in bytes: no longer one can be opened (PATH_MAX,
/// include/uapi/linux/limits.h).
const MOST_PATH_BYTES: usize = 4096;

/// Paths of one unit's files, each put together once.
pub(crate) struct Paths<'u, 'a> {
    dwarf: &'u Dwarf<'a>,
    unit: &'u Unit<'a>,
    known: BTreeMap<u32, Option<String>>,
}

impl<'u, 'a> Paths<'u, 'a> {
    /// For the unit that has the line table.
    pub(crate) fn new(dwarf: &'u Dwarf<'a>, unit: &'u Unit<'a>) -> Self {
        Paths { dwarf, unit, known: BTreeMap::new() }
    }

    /// Has the path ready for [`Paths::get`].
    pub(crate) fn learn(&mut self, file: Option<u32>) {
        let Some(file) = file else { return };
        let (dwarf, unit) = (self.dwarf, self.unit);
        self.known.entry(file).or_insert_with(|| path(dwarf, unit, u64::from(file)));
    }

    /// A path that was learnt.
    pub(crate) fn get(&self, file: Option<u32>) -> Option<&str> {
        self.known.get(&file?)?.as_deref()
    }
}

/// The unit's folder, the file's folder and its name, as far as they are relative.
fn path(dwarf: &Dwarf<'_>, unit: &Unit<'_>, file: u64) -> Option<String> {
    let header = unit.line_program.as_ref()?.header();
    let entry = header.file(file)?;
    let mut path = String::new();
    unit.comp_dir.iter().for_each(|dir| push(&mut path, &text(dir)));
    // Folder 0 is the unit's.
    if entry.directory_index() != 0
        && let Some(folder) = entry.directory(header)
        && let Ok(folder) = dwarf.attr_string(unit, folder)
    {
        push(&mut path, &text(&folder));
    }
    push(&mut path, &text(&dwarf.attr_string(unit, entry.path_name()).ok()?));
    Some(path)
}

/// A part of a path; of one without end as much as is told.
fn text<'a>(part: &Slice<'a>) -> Cow<'a, str> {
    let bytes = part.slice();
    String::from_utf8_lossy(&bytes[..bytes.len().min(MOST_PATH_BYTES)])
}

fn push(path: &mut String, part: &str) {
    if part.starts_with('/') {
        path.clear();
    } else if !path.is_empty() && !path.ends_with('/') {
        path.push('/');
    }
    path.push_str(part);
    if path.len() > MOST_PATH_BYTES {
        let end = (0..=MOST_PATH_BYTES).rev().find(|&end| path.is_char_boundary(end)).unwrap_or(0);
        path.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    use super::{MOST_PATH_BYTES, push};

    #[test]
    fn absolute_parts_begin_anew() {
        let mut path = "/build".to_owned();
        push(&mut path, "src");
        push(&mut path, "main.c");
        assert_eq!(path, "/build/src/main.c");
        push(&mut path, "/usr/include");
        assert_eq!(path, "/usr/include");
    }

    #[test]
    fn no_path_is_without_end() {
        let mut path = "/build".to_owned();
        push(&mut path, &"é".repeat(MOST_PATH_BYTES));
        assert_eq!(path.len(), MOST_PATH_BYTES - 1);
        push(&mut path, "main.c");
        assert_eq!(path.len(), MOST_PATH_BYTES);
    }
}
