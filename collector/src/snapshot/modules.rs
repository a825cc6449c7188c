//! The ELF images of a process, opened so that deleted binaries and those of
//! other mount namespaces work.

use super::smaps::MapLine;
use crate::incident::model::Module;
use reprieve_symbolizer::{Image, open_regular};
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The vDSO is a few pages; a larger mapping by that name is not one.
const VDSO_MAX_BYTES: u64 = 1 << 20;

/// Most modules of one process: each frame is looked up among them, and of 65,530 mappings
/// (vm.max_map_count) each could be one.
const MOST_MODULES: usize = 4096;

/// Identity of a mapped file: device as in maps, inode.
type FileKey = (String, u64);

/// Images by file, shared by all processes of a snapshot, and the modules of
/// the incident.
#[derive(Debug, Default)]
pub struct ModuleTable {
    images: HashMap<FileKey, Option<Image>>,
    /// Distinct modules in the order in which they were met.
    pub modules: Vec<Module>,
}

/// A module as one process has it.
#[derive(Debug)]
pub struct LoadedModule {
    /// Index in [`ModuleTable::modules`].
    pub index: u32,
    /// From the first to the last mapping of the file with this bias.
    pub range: Range<u64>,
    /// Run-time address minus ELF address in this process.
    pub bias: u64,
    /// The file.
    pub image: Image,
}

impl ModuleTable {
    /// One that has modules already.
    pub fn of(modules: Vec<Module>) -> Self {
        ModuleTable { modules, ..Self::default() }
    }

    /// Loads every image that `maps` shows as executable. `read_memory` fills
    /// its buffer from the target, or returns `false` (for the vDSO, which is no file). Files that could
    /// not be had are told in `gaps`.
    pub fn load(
        &mut self,
        pid: i32,
        maps: &[MapLine],
        read_memory: &mut dyn FnMut(u64, &mut [u8]) -> bool,
        gaps: &mut Vec<String>,
    ) -> Vec<LoadedModule> {
        let mut loaded: Vec<LoadedModule> = Vec::new();
        // Mappings of each file by their bias: looking through all of them for each module
        // would take the square of their number.
        let mut parts: HashMap<(u64, &String, &String), HashMap<u64, Vec<&MapLine>>> = HashMap::new();
        for code in maps.iter().filter(|m| m.is_executable()) {
            if loaded.iter().any(|m| m.range.contains(&code.start)) {
                continue;
            }
            if loaded.len() == MOST_MODULES {
                gaps.push(format!("more than {MOST_MODULES} modules: frames in the others have no names"));
                break;
            }
            let image = if code.name == "[vdso]" {
                vdso(code, read_memory)
            } else if code.inode != 0 && !is_jitdump(code) {
                let key = (code.device.clone(), code.inode);
                self.images.entry(key).or_insert_with(|| open(pid, code, gaps)).clone()
            } else {
                // Code without a file, or the mark of one that tells of it: a JIT.
                None
            };
            let Some(image) = image else { continue };
            let Some(bias) = image.bias(code.start, code.offset) else {
                // Executable mapping of a file at an offset that no segment
                // has: mapped as data by hand.
                continue;
            };
            // V8 maps code of the executable once more, far away and with its own generated
            // code between: what has another bias is another module.
            let file = (code.inode, &code.device, &code.name);
            let by_bias = parts.entry(file).or_insert_with(|| {
                let mut by_bias: HashMap<u64, Vec<&MapLine>> = HashMap::new();
                for map in maps.iter().filter(|m| (m.inode, &m.device, &m.name) == file) {
                    for bias in image.biases(map.start, map.offset) {
                        let of_bias = by_bias.entry(bias).or_default();
                        if of_bias.last().is_none_or(|last| last.start != map.start) {
                            of_bias.push(map);
                        }
                    }
                }
                by_bias
            });
            let same_file = by_bias.get(&bias).map_or(&[][..], Vec::as_slice);
            let module = describe(pid, code, same_file, bias, &image);
            let range = module.start..module.end;
            let index = self.index_of(module);
            loaded.push(LoadedModule { index, range, bias, image });
        }
        loaded
    }

    /// Processes share modules: the same file counts once.
    pub fn index_of(&mut self, module: Module) -> u32 {
        let known = self
            .modules
            .iter()
            .position(|m| m.path == module.path && m.build_id == module.build_id && m.deleted == module.deleted);
        known.unwrap_or_else(|| {
            self.modules.push(module);
            self.modules.len() - 1
        }) as u32
    }
}

fn describe(pid: i32, code: &MapLine, same_file: &[&MapLine], bias: u64, image: &Image) -> Module {
    let (path, deleted) = code.path();
    let first = same_file.first().copied().unwrap_or(code);
    Module {
        pid,
        path: path.to_owned(),
        build_id: image.build_id().map(|id| id.as_str().to_owned()),
        start: first.start,
        end: same_file.last().copied().unwrap_or(code).end,
        file_offset: first.offset,
        bias,
        deleted,
    }
}

/// Opens the very file that is mapped. `map_files` works for deleted files and
/// any namespace but needs CAP_CHECKPOINT_RESTORE (proc_pid_map_files(5)); the
/// path seen through the process's root is the next best. One that is being killed has
/// neither any more: then the path as we see it, if that is the same file.
fn open(pid: i32, map: &MapLine, gaps: &mut Vec<String>) -> Option<Image> {
    let (path, deleted) = map.path();
    let mapped = format!("/proc/{pid}/map_files/{:x}-{:x}", map.start, map.end);
    let by_path =
        || open_regular(Path::new(&format!("/proc/{pid}/root{path}"))).or_else(|error| same(map).ok_or(error));
    let file = open_regular(Path::new(&mapped)).or_else(|error| if deleted { Err(error) } else { by_path() });
    let result = file.map_err(|e| e.to_string()).and_then(|file| Image::open(&file).map_err(|e| e.to_string()));
    match result {
        Ok(image) => Some(image),
        Err(error) => {
            gaps.push(format!("{path}: not usable as an ELF image: {error}"));
            None
        }
    }
}

/// The file that our own root has at the path of a mapping, if it is the one that is mapped.
fn same(map: &MapLine) -> Option<File> {
    let file = open_regular(Path::new(map.path().0)).ok()?;
    let meta = file.metadata().ok()?;
    let device = format!("{:02x}:{:02x}", libc::major(meta.dev()), libc::minor(meta.dev()));
    (device == map.device && meta.ino() == map.inode).then_some(file)
}

/// Whether it is the page that a runtime maps so that its `jit-PID.dump` can be found.
fn is_jitdump(map: &MapLine) -> bool {
    let name = map.path().0.rsplit('/').next().unwrap_or_default();
    let pid = name.strip_prefix("jit-").and_then(|rest| rest.strip_suffix(".dump"));
    pid.is_some_and(|pid| !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit()))
}

fn vdso(map: &MapLine, read_memory: &mut dyn FnMut(u64, &mut [u8]) -> bool) -> Option<Image> {
    let size = map.end - map.start;
    if size > VDSO_MAX_BYTES {
        return None;
    }
    let mut bytes = vec![0; size as usize];
    read_memory(map.start, &mut bytes).then(|| Image::from_bytes(bytes).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that is mapped again and again, each time elsewhere, so that each is a module.
    #[test]
    fn a_hundred_thousand_mappings() {
        let pid = std::process::id() as i32;
        let maps = super::super::smaps::read_maps(pid).unwrap();
        let code = maps.iter().find(|map| map.is_executable() && map.inode != 0).unwrap();
        let size = (code.end - code.start).next_multiple_of(4096);
        let again = |n: u64| MapLine { start: n * 2 * size, end: n * 2 * size + size, ..code.clone() };
        let many: Vec<MapLine> = (1..=100_000).map(again).collect();
        let (mut table, mut gaps) = (ModuleTable::default(), Vec::new());
        let loaded = table.load(pid, &many, &mut |_, _| false, &mut gaps);
        assert_eq!(loaded.len(), MOST_MODULES);
        assert!(gaps.len() == 1 && gaps[0].contains("4096 modules"), "{gaps:?}");
        // One file is one entry, wherever it is mapped.
        assert_eq!(table.modules.len(), 1);
    }
}
