//! Opening the files of an incident's modules.

use super::symbolize::Places;
use crate::incident::model::{Incident, Module};
use crate::snapshot::process::start_ticks;
use reprieve_symbolizer::{BuildId, Image, Miss, Outcome, Source, Tried, find_binary, open_regular};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Whether the process of the incident is still there, and no other with its PID.
pub fn is_alive(incident: &Incident, pid: i32) -> bool {
    let process = incident.processes.iter().find(|process| process.pid == pid);
    process.is_some_and(|process| start_ticks(pid) == Some(process.start_ticks))
}

/// The module's file: as the process has it mapped, as its path leads to through its
/// own root, as it leads to from here, or what has its build ID elsewhere. What was
/// looked at is added to `tried`.
pub fn open(
    incident: &Incident,
    module: &Module,
    places: &Places<'_>,
    tried: &mut Vec<Tried>,
) -> Result<(Image, PathBuf), Miss> {
    if module.path == "[vdso]" {
        return own_vdso(module);
    }
    let path = PathBuf::from(&module.path);
    let is_alive = is_alive(incident, module.pid);
    let mut candidates = Vec::new();
    if is_alive {
        candidates.extend(mapped_file(module));
    }
    // A new file may stand where the deleted one was: the build ID tells.
    let is_known = module.build_id.is_some() || (!module.deleted && !places.later);
    if is_known {
        if is_alive {
            candidates.push(PathBuf::from(format!("/proc/{}/root{}", module.pid, module.path)));
        }
        candidates.push(path.clone());
    }
    for candidate in candidates {
        let opened = open_regular(&candidate).map(|file| Image::open(&file));
        let outcome = match &opened {
            Ok(Ok(image)) if image.build_id().map(BuildId::as_str) == module.build_id.as_deref() => Outcome::Used,
            Ok(Ok(_)) => Outcome::OtherBuild,
            Ok(Err(_)) => Outcome::NotElf,
            Err(error) if error.kind() == ErrorKind::NotFound => Outcome::Absent,
            Err(_) => Outcome::NotReadable,
        };
        tried.push(Tried { source: Source::Binary, place: candidate.display().to_string(), outcome });
        if let (Outcome::Used, Ok(Ok(image))) = (outcome, opened) {
            return Ok((image, path));
        }
    }
    let Some(id) = module.build_id.as_deref().and_then(BuildId::parse) else {
        return Err(if is_known { miss(tried) } else { Miss::NoBuildId });
    };
    let (found, more) = find_binary(&id, &path, &places.settings());
    tried.extend(more);
    found.ok_or_else(|| miss(tried))
}

/// Why none of these files was of use: that of another build comes nearest.
fn miss(tried: &[Tried]) -> Miss {
    let any = |outcome| tried.iter().any(|tried| tried.outcome == outcome);
    if any(Outcome::OtherBuild) {
        Miss::BuildIdMismatch
    } else if any(Outcome::NotElf) {
        Miss::NotElf
    } else {
        Miss::FileUnavailable
    }
}

/// The entry of `map_files` for the module's first mapping.
fn mapped_file(module: &Module) -> Option<PathBuf> {
    let maps = fs::read_to_string(format!("/proc/{}/maps", module.pid)).ok()?;
    let range = maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let starts = u64::from_str_radix(range.split_once('-')?.0, 16).ok()? == module.start;
        (starts && rest.contains(module.path.as_str())).then_some(range)
    })?;
    let (start, end) = range.split_once('-')?;
    let trim = |hex: &str| hex.trim_start_matches('0').to_owned();
    Some(Path::new("/proc").join(format!("{}/map_files/{}-{}", module.pid, trim(start), trim(end))))
}

/// All processes of a kernel share the vDSO: ours is the same, if the build ID
/// says so.
fn own_vdso(module: &Module) -> Result<(Image, PathBuf), Miss> {
    let maps = fs::read_to_string("/proc/self/maps").map_err(|_| Miss::FileUnavailable)?;
    let range = maps
        .lines()
        .find(|l| l.ends_with("[vdso]"))
        .and_then(|l| l.split_once(' ')?.0.split_once('-'))
        .and_then(|(a, b)| Some((u64::from_str_radix(a, 16).ok()?, u64::from_str_radix(b, 16).ok()?)))
        .ok_or(Miss::FileUnavailable)?;
    let mut bytes = vec![0; (range.1 - range.0) as usize];
    let memory = File::open("/proc/self/mem").map_err(|_| Miss::FileUnavailable)?;
    std::os::unix::fs::FileExt::read_exact_at(&memory, &mut bytes, range.0).map_err(|_| Miss::FileUnavailable)?;
    let image = Image::from_bytes(bytes).map_err(|_| Miss::NotElf)?;
    if image.build_id().map(BuildId::as_str) == module.build_id.as_deref() {
        Ok((image, PathBuf::from("[vdso]")))
    } else {
        Err(Miss::BuildIdMismatch)
    }
}
