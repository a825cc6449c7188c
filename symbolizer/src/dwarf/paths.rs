//! Names of source files.

use super::{Dwarf, Unit};
use std::collections::BTreeMap;

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
    let mut path = unit.comp_dir.map(|dir| dir.to_string_lossy().into_owned()).unwrap_or_default();
    // Folder 0 is the unit's.
    if entry.directory_index() != 0
        && let Some(folder) = entry.directory(header)
        && let Ok(folder) = dwarf.attr_string(unit, folder)
    {
        push(&mut path, &folder.to_string_lossy());
    }
    push(&mut path, &dwarf.attr_string(unit, entry.path_name()).ok()?.to_string_lossy());
    Some(path)
}

fn push(path: &mut String, part: &str) {
    if part.starts_with('/') {
        path.clear();
    } else if !path.is_empty() && !path.ends_with('/') {
        path.push('/');
    }
    path.push_str(part);
}

#[cfg(test)]
mod tests {
    use super::push;

    #[test]
    fn absolute_parts_begin_anew() {
        let mut path = "/build".to_owned();
        push(&mut path, "src");
        push(&mut path, "main.c");
        assert_eq!(path, "/build/src/main.c");
        push(&mut path, "/usr/include");
        assert_eq!(path, "/usr/include");
    }
}
