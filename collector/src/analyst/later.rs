//! More names for an incident that is written: later, with debug files that were not
//! there, or on another machine.
//!
//! Names that it has are kept unless better ones are found, and its folder is exchanged
//! for the new one in one step.

use super::render;
use super::symbolize::{Names, Places, symbolize};
use crate::incident::model::{GeneratedAddress, Incident, ResolvedAddress, Search, Subject, SymbolState};
use crate::incident::read::read_incident;
use crate::incident::show::Completed;
use crate::incident::store::{INCIDENT, Store, StoreError};
use reprieve_symbolizer::Frame;
use serde_json::Value;
use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::hash::Hash;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Completes the incident in a folder; returns it and what came of it. An incident for
/// which nothing new was found gets the reasons, and keeps the rest.
pub fn complete(dir: &Path, places: &Places<'_>) -> Result<(Incident, Completed), StoreError> {
    let file = dir.join(INCIDENT);
    let mut incident = read_incident(&file)?;
    refuse_to_lose(&file, &incident)?;
    let named_before = named(&incident);
    let found = symbolize(&incident, places);
    let improved = merge(&mut incident, found);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    incident.symbols.completed_unix_us = Some(now.as_micros() as u64);
    if matches!(incident.symbols.state, SymbolState::Pending | SymbolState::Failed(_)) {
        incident.symbols.state = SymbolState::AfterVerdict("they were looked for by `reprieve symbolize`".to_owned());
    }
    replace(dir, &incident)?;
    let addresses = incident.symbols.addresses.len() + incident.symbols.generated.len();
    let completed = Completed { addresses, named_before, named: named(&incident), improved };
    Ok((incident, completed))
}

/// Addresses with a name.
fn named(incident: &Incident) -> usize {
    let in_modules = incident.symbols.addresses.iter().filter(|a| !a.frames.is_empty());
    in_modules.count() + incident.symbols.generated.iter().filter(|a| a.frame.is_some()).count()
}

/// Fields that this reprieve does not know would be lost.
fn refuse_to_lose(file: &Path, incident: &Incident) -> Result<(), StoreError> {
    let corrupt = |reason: String| StoreError::Corrupt { path: file.to_owned(), reason };
    let text = fs::read(file).map_err(|reason| StoreError::File { path: file.to_owned(), reason })?;
    let original: Value = serde_json::from_slice(&text).map_err(|e| corrupt(e.to_string()))?;
    // By way of text, which is written anyway: another serializer would be more code to
    // be locked in memory.
    let ours = serde_json::to_vec(incident).and_then(|text| serde_json::from_slice::<Value>(&text));
    let ours = ours.map_err(|e| corrupt(e.to_string()))?;
    match unknown_field(&original, &ours) {
        None => Ok(()),
        Some(field) => Err(corrupt(format!(
            "{field} is not known to this reprieve and would be lost; use version {} or later",
            incident.host.reprieve
        ))),
    }
}

/// The first field that `ours` lacks, like `hold.kernel.new`.
fn unknown_field(original: &Value, ours: &Value) -> Option<String> {
    let below = |name: &str, field: String| if field.is_empty() { name.to_owned() } else { format!("{name}.{field}") };
    match (original, ours) {
        (Value::Object(original), Value::Object(ours)) => original.iter().find_map(|(name, value)| {
            let field = ours.get(name).map_or(Some(String::new()), |ours| unknown_field(value, ours))?;
            Some(below(name, field))
        }),
        (Value::Array(original), Value::Array(ours)) => {
            original.iter().zip(ours).find_map(|(original, ours)| unknown_field(original, ours))
        }
        _ => None,
    }
}

/// Takes what was found where it is better; returns of how many addresses.
fn merge(incident: &mut Incident, found: Names) -> usize {
    let symbols = &mut incident.symbols;
    let mut improved = 0;
    let (mut better, mut worse) = (HashSet::new(), HashSet::new());
    let mut compare = |subject: Subject, old: &[Frame], new: &[Frame]| {
        let order = detail(new).cmp(&detail(old));
        match order {
            Ordering::Greater => drop(better.insert(subject)),
            Ordering::Less => drop(worse.insert(subject)),
            Ordering::Equal => {}
        }
        improved += usize::from(order.is_gt());
        order
    };
    let key = |a: &ResolvedAddress| a.at;
    merge_by(&mut symbols.addresses, found.addresses, key, |old, new| {
        // Of two reasons the newest.
        compare(Subject::Module(new.at.module), &old.frames, &new.frames).is_gt() || old.frames.is_empty()
    });
    let key = |a: &GeneratedAddress| (a.pid, a.address);
    merge_by(&mut symbols.generated, found.generated, key, |old, new| {
        compare(Subject::Process(new.pid), old.frame.as_slice(), new.frame.as_slice()).is_gt()
    });
    merge_by(
        &mut symbols.searches,
        found.searches,
        |s: &Search| s.subject,
        |old, _| match old.subject {
            // Where names were kept, what was tried for them is, too.
            Subject::Module(_) => !worse.contains(&old.subject),
            // The process may be gone: then the first reasons tell more.
            Subject::Process(_) => better.contains(&old.subject),
        },
    );
    improved
}

/// Replaces old entries by new ones of the same key where `is_taken`, and adds others.
fn merge_by<T, K: Eq + Hash>(
    old: &mut Vec<T>,
    new: Vec<T>,
    key: impl Fn(&T) -> K,
    mut is_taken: impl FnMut(&T, &T) -> bool,
) {
    let places: HashMap<K, usize> = old.iter().enumerate().map(|(place, entry)| (key(entry), place)).collect();
    for entry in new {
        match places.get(&key(&entry)) {
            Some(&place) if is_taken(&old[place], &entry) => old[place] = entry,
            Some(_) => {}
            None => old.push(entry),
        }
    }
}

/// How much frames tell: names at all, lines, inlined functions.
fn detail(frames: &[Frame]) -> (bool, bool, usize) {
    (!frames.is_empty(), frames.iter().any(|frame| frame.line.is_some()), frames.len())
}

/// Draws the incident anew and exchanges its folder.
fn replace(dir: &Path, incident: &Incident) -> Result<(), StoreError> {
    let dir = dir.canonicalize().map_err(|reason| StoreError::File { path: dir.to_owned(), reason })?;
    let fail = |reason| StoreError::Unusable { path: dir.clone(), reason };
    let name =
        dir.file_name().and_then(|name| name.to_str()).ok_or_else(|| fail(io::ErrorKind::InvalidInput.into()))?;
    let staging = Store::at(dir.parent().map(Path::to_owned)).stage(name)?;
    render(incident, staging.path())?;
    keep_others(&dir, staging.path()).map_err(fail)?;
    adopt(&dir, staging.path()).map_err(fail)?;
    staging.exchange()
}

/// What others put into the folder.
fn keep_others(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let copy = to.join(entry.file_name());
        if copy.symlink_metadata().is_ok() {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::create_dir(&copy)?;
            keep_others(&entry.path(), &copy)?;
        } else {
            fs::hard_link(entry.path(), &copy)?;
        }
    }
    Ok(())
}

/// Owner and permissions of the folder, and the owner of what is new in it.
fn adopt(from: &Path, to: &Path) -> io::Result<()> {
    let old = fs::metadata(from)?;
    fs::set_permissions(to, fs::Permissions::from_mode(old.mode() & 0o7777))?;
    if fs::metadata(to)?.uid() == old.uid() {
        return Ok(());
    }
    for entry in fs::read_dir(to)? {
        chown(entry?.path(), Some(old.uid()), Some(old.gid()))?;
    }
    chown(to, Some(old.uid()), Some(old.gid()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incident::model::{Module, ModuleAddress};
    use crate::incident::store::write_atomically;
    use reprieve_symbolizer::{DebugDirs, Image};
    use serde_json::json;
    use std::fs::File;
    use std::path::PathBuf;
    use std::process::Command;

    /// An incident of a real sort, one of whose modules is a program of ours that lay
    /// elsewhere, in a store; with the program and the address that stands for it.
    fn recorded(dir: &Path) -> (PathBuf, PathBuf, ModuleAddress) {
        let program = dir.join("p");
        fs::write(dir.join("p.c"), "int f(int x) {\n  return x + 1; }\nint main(int n, char **v) { return f(n); }\n")
            .unwrap();
        let mut cc = Command::new("cc");
        cc.args(["-g", "-O0", "-Wl,--build-id", "-o"]).arg(&program).arg(dir.join("p.c"));
        assert!(cc.status().unwrap().success());
        let image = Image::open(&File::open(&program).unwrap()).unwrap();
        let (start, _) = image.symbols(&["f"])[0].unwrap();
        let recorded = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/incidents/sort.json");
        let mut incident = read_incident(Path::new(recorded)).unwrap();
        let index = incident.modules.len() as u32;
        let build_id = image.build_id().map(|id| id.as_str().to_owned());
        incident.modules.push(Module { path: "/opt/gone/p".to_owned(), build_id, ..incident.modules[0].clone() });
        let at = ModuleAddress { module: index, svma: start.0 };
        let thread = &mut incident.processes[0].threads[0];
        *thread.frame_modules.last_mut().unwrap() = Some(at);
        let folder = dir.join("store/20261125T084613.639Z-sort-7ee0a8");
        fs::create_dir_all(&folder).unwrap();
        write_atomically(&folder, INCIDENT, &serde_json::to_vec(&incident).unwrap()).unwrap();
        (folder, program, at)
    }

    fn complete_with(folder: &Path, dirs: Vec<PathBuf>) -> Completed {
        let dirs = DebugDirs { dirs };
        complete(folder, &Places { dirs: &dirs, debuginfod: None, later: true }).unwrap().1
    }

    #[test]
    fn more_is_named_and_nothing_lost() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, program, at) = recorded(dir.path());
        let before = read_incident(&folder.join(INCIDENT)).unwrap();
        let known = |incident: &Incident| -> HashMap<ModuleAddress, Vec<Frame>> {
            let named = incident.symbols.addresses.iter().filter(|a| !a.frames.is_empty());
            named.map(|a| (a.at, a.frames.clone())).collect()
        };
        let nothing = complete_with(&folder, Vec::new());
        assert_eq!(nothing.named, nothing.named_before);
        let missed = read_incident(&folder.join(INCIDENT)).unwrap();
        assert_eq!(known(&missed), known(&before));
        let search = missed.symbols.searches.iter().find(|s| s.subject == Subject::Module(at.module)).unwrap();
        assert_eq!((search.tried.len(), search.tried[0].place.as_str()), (1, "/opt/gone/p"));

        let found = complete_with(&folder, vec![program.parent().unwrap().to_owned()]);
        assert_eq!((found.named, found.improved), (found.named_before + 1, 1));
        let after = read_incident(&folder.join(INCIDENT)).unwrap();
        let frames = &known(&after)[&at];
        assert_eq!((frames[0].function.as_str(), frames[0].line), ("f", Some(1)));
        assert!(known(&before).iter().all(|(at, frames)| known(&after).get(at) == Some(frames)));
        assert!(fs::read_to_string(folder.join("stacks.folded")).unwrap().contains(";f (p.c:1);"));
        assert!(folder.join("report.html").exists() && folder.join("profile.pb.gz").exists());
        assert_eq!(fs::read_dir(folder.parent().unwrap()).unwrap().count(), 1);
        // And without the file it keeps what it has, with where that was found.
        let kept = complete_with(&folder, Vec::new());
        assert_eq!((kept.named, kept.improved), (found.named, 0));
        let last = read_incident(&folder.join(INCIDENT)).unwrap();
        assert_eq!(known(&last), known(&after));
        let search = |incident: &Incident| {
            incident.symbols.searches.iter().find(|s| s.subject == Subject::Module(at.module)).cloned()
        };
        assert_eq!(search(&last), search(&after));
    }

    #[test]
    fn fields_of_a_later_version_are_found_wherever_they_are() {
        let ours = json!({"a": 1, "list": [{"x": 1}, {"x": null}], "map": {}});
        assert_eq!(unknown_field(&json!({"a": 2, "list": [{"x": 5}]}), &ours), None);
        assert_eq!(unknown_field(&json!({"b": 1}), &ours), Some("b".to_owned()));
        assert_eq!(unknown_field(&json!({"list": [{"x": 1}, {"y": 1}]}), &ours), Some("list.y".to_owned()));
        assert_eq!(unknown_field(&json!({"map": {"n": 1}}), &ours), Some("map.n".to_owned()));
    }
}
