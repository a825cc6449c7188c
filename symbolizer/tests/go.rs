//! Names that `strip` leaves in Go's binaries, against those in their DWARF.

use reprieve_symbolizer::{DebugDirs, Frame, GoImage, Image, Miss, Resolution, Svma, SymbolSource, resolve};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The same program with its symbols and without, as each kind of binary.
const PAIRS: [(&str, &str); 3] = [
    ("go_leak", "go_leak_stripped"),
    ("go_leak_cgo.built", "go_leak_cgo"),
    ("go_leak_cgo_pie.built", "go_leak_cgo_pie"),
];

fn fixture(name: &str) -> PathBuf {
    let dir = std::env::var("REPRIEVE_FIXTURES").expect("REPRIEVE_FIXTURES is not set; run `cargo xtask test`");
    Path::new(&dir).join(name)
}

fn open(name: &str) -> Image {
    let path = fixture(name);
    Image::open(&File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

fn names(image: &Image, addresses: &[Svma]) -> Vec<Result<Resolution, Miss>> {
    resolve(image, None, &DebugDirs { dirs: Vec::new() }, addresses)
}

/// What both must agree on; columns are DWARF's only, and so is the folder of a
/// path that is relative.
fn essence(frames: &[Frame]) -> Vec<(&str, Option<&str>, Option<u32>, bool)> {
    frames
        .iter()
        .map(|f| {
            let file = f.file.as_deref().map(|path| path.trim_start_matches("./"));
            (f.function.as_str(), file, f.line, f.inlined)
        })
        .collect()
}

#[test]
fn they_are_what_dwarf_says() {
    for (full, stripped) in PAIRS {
        let (full, bare) = (open(full), open(stripped));
        let text = GoImage::find(&bare).unwrap_or_else(|| panic!("{stripped} is Go")).text();
        let addresses: Vec<Svma> = (text.start.0..text.end.0).step_by(97).map(Svma).collect();
        let (mut same, mut inlined, mut other) = (0, 0, Vec::new());
        for ((dwarf, tables), at) in names(&full, &addresses).iter().zip(names(&bare, &addresses)).zip(&addresses) {
            let Ok(dwarf) = dwarf else { continue };
            let tables = tables.unwrap_or_else(|_| panic!("{stripped} at {at:x?}: only {dwarf:?}"));
            assert_eq!(tables.source, SymbolSource::GoPclntab);
            inlined += usize::from(tables.frames.len() > 1);
            if essence(&dwarf.frames) == essence(&tables.frames) {
                same += 1;
            } else {
                other.push((at, dwarf.frames.clone(), tables.frames));
            }
        }
        // What they do not agree on are wrappers that the compiler made.
        assert!(same > 5000 && inlined > 500, "{stripped}: {same} {inlined}");
        assert!(other.len() * 200 < same, "{stripped}: {} of {same} differ: {other:#?}", other.len());
    }
}

#[test]
fn damaged_tables_are_survived() {
    let path = fixture("go_leak_stripped");
    let honest = fs::read(&path).unwrap();
    let image = Image::open(&File::open(&path).unwrap()).unwrap();
    let go = GoImage::find(&image).unwrap();
    let addresses: Vec<Svma> = (go.text().start.0..go.text().end.0).step_by(9973).map(Svma).collect();
    // Where the tables are, by file offset.
    let (_, tables) = image.section_data(".gopclntab").unwrap();
    let start = honest.windows(64).position(|window| window == &tables[..64]).unwrap();
    let header: Vec<usize> = (start..start + 72).collect();
    let mut random = 1_u64;
    let mut next = |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % below
    };
    let (mut found, mut lost) = (0, 0);
    for round in 0..200 {
        let mut bytes = honest.clone();
        for _ in 0..1 << (round % 10) {
            let at = if round % 3 == 0 { header[next(header.len())] } else { start + next(tables.len()) };
            bytes[at] = [0, 0xff, 0x80, 0x7f, next(256) as u8][next(5)];
        }
        let Ok(image) = Image::from_bytes(bytes) else { continue };
        for answer in names(&image, &addresses) {
            match answer {
                Ok(_) => found += 1,
                Err(_) => lost += 1,
            }
        }
    }
    assert!(found > 0 && lost > 0, "{found} {lost}");
    // Cut anywhere.
    for end in (0..honest.len()).step_by(honest.len() / 60) {
        if let Ok(image) = Image::from_bytes(honest[..end].to_vec()) {
            names(&image, &addresses);
        }
    }
}
