//! What fuzzing begins with: files of which everything is found that they are for.

use reprieve_symbolizer::{DebugDirs, Image, Settings, Svma, SymbolSource, resolve_each};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn seed(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(name);
    fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}; sh symbolizer/fuzz/seeds/make", path.display()))
}

/// Who named the addresses of `.text` and `.plt`, and whether any function was inlined.
fn sources(image: &Image, path: &Path) -> (BTreeSet<String>, bool) {
    let dirs = DebugDirs { dirs: path.parent().map(Path::to_owned).into_iter().collect() };
    let ranges = [".text", ".plt", ".plt.sec"].iter().filter_map(|name| Some(image.section_data(name)?.0));
    let addresses: Vec<Svma> = ranges.flatten().map(Svma).collect();
    let (mut sources, mut is_inlined) = (BTreeSet::new(), false);
    resolve_each(image, Some(path), &Settings::new(&dirs), &addresses, &mut |_, answer| {
        if let Ok(answer) = answer {
            is_inlined |= answer.source == SymbolSource::Dwarf && answer.frames.len() > 1;
            sources.insert(format!("{:?}", answer.source));
        }
    });
    (sources, is_inlined)
}

#[test]
fn single_files() {
    for (name, source, has_inlined) in [
        ("elf/symbols", "SymbolTable", false),
        ("elf/stripped", "DynamicSymbolTable", false),
        ("elf/ibtplt", "Plt", false),
        ("dwarf/version4", "Dwarf", true),
        ("dwarf/version5", "Dwarf", true),
        ("compressed/zlib", "Dwarf", true),
        ("compressed/zlib-gnu", "Dwarf", true),
        ("compressed/zstd", "Dwarf", true),
        ("compressed/mini", "MiniDebugInfo", false),
    ] {
        let image = Image::from_bytes(seed(name)).unwrap();
        let (sources, is_inlined) = sources(&image, Path::new("/nowhere/p"));
        assert!(sources.contains(source) && is_inlined == has_inlined, "{name}: {sources:?} {is_inlined}");
    }
}

#[test]
fn files_that_belong_together() {
    for name in ["dwz", "split4", "split5", "package4", "debuglink"] {
        let dir = tempfile::tempdir().unwrap();
        let all = seed(&format!("companions/{name}"));
        let mut rest = &all[..];
        let mut paths: Vec<PathBuf> = Vec::new();
        // As fuzz_targets/companions.rs has them.
        for file in ["p", "shared.debug", "p.dwp", "p.dwo", "p.debug"] {
            let Some((length, more)) = rest.split_first_chunk() else { break };
            let (content, more) = more.split_at(u32::from_le_bytes(*length) as usize);
            rest = more;
            let path = dir.path().join(file);
            if !content.is_empty() {
                fs::write(&path, content).unwrap();
                paths.push(path);
            }
        }
        let image = Image::from_bytes(fs::read(&paths[0]).unwrap()).unwrap();
        let inlined = |image: &Image| sources(image, &paths[0]).1;
        assert!(inlined(&image), "{name}: {:?}", sources(&image, &paths[0]));
        fs::remove_file(&paths[1]).unwrap();
        // dwz leaves what is inlined where it was, without its name.
        assert!(!inlined(&image) || name == "dwz", "{name}: it is in the other file");
    }
}
