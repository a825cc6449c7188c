//! Names for the addresses of an incident, one module at a time.

use crate::incident::model::{Incident, Module, ModuleAddress, ResolvedAddress};
use reprieve_symbolizer::{DebugDirs, Image, Miss, Svma, resolve};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Resolves every distinct address in the incident's stacks.
#[must_use]
pub fn symbolize(incident: &Incident, dirs: &DebugDirs) -> Vec<ResolvedAddress> {
    let mut by_module: BTreeMap<u32, BTreeSet<u64>> = BTreeMap::new();
    let threads = incident.processes.iter().flat_map(|p| &p.threads);
    let heaps = incident.processes.iter().flat_map(|p| &p.heaps);
    let of_heaps = heaps.flat_map(|heap| heap.frames.iter().filter_map(|f| f.at.as_ref()));
    for at in threads.flat_map(|t| t.frame_modules.iter().flatten()).chain(of_heaps) {
        by_module.entry(at.module).or_default().insert(at.svma);
    }
    by_module
        .into_iter()
        .flat_map(|(module, addresses)| {
            let addresses: Vec<u64> = addresses.into_iter().collect();
            resolve_module(incident.modules.get(module as usize), module, &addresses, dirs)
        })
        .collect()
}

fn resolve_module(module: Option<&Module>, index: u32, addresses: &[u64], dirs: &DebugDirs) -> Vec<ResolvedAddress> {
    let svmas: Vec<Svma> = addresses.iter().map(|&a| Svma(a)).collect();
    let answers = match module.map(open) {
        // Parsers must not panic; if one does, it costs this module's names.
        Some(Ok((image, path))) => catch_unwind(AssertUnwindSafe(|| resolve(&image, Some(&path), dirs, &svmas)))
            .unwrap_or_else(|_| vec![Err(Miss::NotElf); svmas.len()]),
        Some(Err(miss)) => vec![Err(miss); svmas.len()],
        None => vec![Err(Miss::NoModule); svmas.len()],
    };
    addresses
        .iter()
        .zip(answers)
        .map(|(&svma, answer)| {
            let at = ModuleAddress { module: index, svma };
            match answer {
                Ok(resolution) => ResolvedAddress { at, frames: resolution.frames, miss: None },
                Err(miss) => ResolvedAddress { at, frames: Vec::new(), miss: Some(miss.to_string()) },
            }
        })
        .collect()
}

/// The module's file: as the process has it mapped, as its path leads to
/// through its own root, or as it leads to from here; the build ID must agree.
fn open(module: &Module) -> Result<(Image, PathBuf), Miss> {
    if module.path == "[vdso]" {
        return own_vdso(module);
    }
    let mut best = Miss::FileUnavailable;
    let path = PathBuf::from(&module.path);
    let in_root = PathBuf::from(format!("/proc/{}/root{}", module.pid, module.path));
    let mut candidates: Vec<PathBuf> = mapped_file(module).into_iter().collect();
    // A new file may stand where the deleted one was: the build ID tells.
    if !module.deleted || module.build_id.is_some() {
        candidates.extend([in_root, path.clone()]);
    }
    for candidate in candidates {
        let Ok(file) = File::open(&candidate) else { continue };
        match Image::open(&file) {
            Ok(image) if image.build_id().map(|id| id.as_str()) == module.build_id.as_deref() => {
                return Ok((image, path));
            }
            Ok(_) => best = Miss::BuildIdMismatch,
            Err(_) => best = Miss::NotElf,
        }
    }
    Err(best)
}

/// The entry of `map_files` for the module's first mapping, if the process
/// still is who it was.
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
    if image.build_id().map(|id| id.as_str()) == module.build_id.as_deref() {
        Ok((image, PathBuf::from("[vdso]")))
    } else {
        Err(Miss::BuildIdMismatch)
    }
}
