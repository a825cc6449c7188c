//! A file with a gigabyte of DWARF: one object's, again and again, each time for code at
//! other addresses.

use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionIndex};
use reprieve_symbolizer::{DebugDirs, Image, Settings, Svma, resolve_each};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Command;

/// What the file has of DWARF at least.
const DWARF_BYTES: u64 = 1_000_000_000;
/// Addresses that are asked for.
const ASKED: u64 = 2000;
/// Most anonymous memory for the answers, whatever the file's size.
const MOST_BYTES: u64 = 16 << 20;
/// Where the code of the first object lies.
const TEXT: u64 = 0x40_0000;

/// The file, and what is in it, for the process that looks at it.
const FILE: &str = "REPRIEVE_HUGE_FILE";
const UNITS: &str = "REPRIEVE_HUGE_UNITS";

/// Of these each object has its own, at a multiple of the size.
const REPEATED: [&str; 5] = [".debug_info", ".debug_aranges", ".debug_line", ".debug_rnglists", ".debug_loclists"];
/// These are shared.
const SHARED: [&str; 3] = [".debug_abbrev", ".debug_str", ".debug_line_str"];

/// Functions into which others are inlined, enough of them for a unit of some size.
fn source() -> String {
    let mut text = String::from("static volatile int sink;\n");
    for n in 0..1500 {
        writeln!(
            text,
            "struct s{n} {{ int a, b[{n} + 1]; struct s{n} *next; }};\n\
             static inline __attribute__((always_inline)) int in{n}(struct s{n} *s, int k) {{ sink += s->b[k]; return s->a; }}\n\
             int out{n}(struct s{n} *s, int k) {{ int sum = in{n}(s, k); sum += in{n}(s->next, sum); return sum + 1; }}"
        )
        .unwrap();
    }
    text
}

/// Bytes, and words in them: where, how wide, and an address of code or an offset into a section.
struct Piece {
    bytes: Vec<u8>,
    words: Vec<(usize, usize, Option<&'static str>, u64)>,
}

fn pieces(object: &object::File<'_>) -> BTreeMap<&'static str, Piece> {
    let name_of = |index: SectionIndex| {
        let name = object.section_by_index(index).unwrap().name().unwrap().to_owned();
        let known = REPEATED.into_iter().chain(SHARED).find(|known| *known == name);
        // Variables are where they are, for all objects.
        known.or((!name.starts_with(".text")).then_some(".bss"))
    };
    let piece = |name: &&'static str| {
        let section = object.section_by_name(name)?;
        let words = section.relocations().map(|(at, relocation)| {
            let RelocationTarget::Symbol(symbol) = relocation.target() else { panic!("{relocation:?}") };
            let symbol = object.symbol_by_index(symbol).unwrap();
            let value = symbol.address().wrapping_add_signed(relocation.addend());
            (at as usize, usize::from(relocation.size() / 8), name_of(symbol.section_index().unwrap()), value)
        });
        Some((*name, Piece { bytes: section.data().unwrap().to_vec(), words: words.collect() }))
    };
    REPEATED.iter().chain(&SHARED).filter_map(piece).collect()
}

impl Piece {
    /// As the object number `copy` has it.
    fn relocated(&self, copy: u64, text_bytes: u64, sizes: &BTreeMap<&str, u64>) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        for (at, width, target, value) in &self.words {
            let base = match target {
                None => TEXT + copy * text_bytes,
                Some(section) if REPEATED.contains(section) => copy * sizes[section],
                Some(_) => 0,
            };
            bytes[*at..*at + *width].copy_from_slice(&(base + value).to_le_bytes()[..*width]);
        }
        bytes
    }
}

/// Writes the file; how many objects are in it, and how far apart their code is.
fn write(to: &Path, object: &[u8]) -> (u64, u64) {
    let object = object::File::parse(object).unwrap();
    let text_bytes = object.section_by_name(".text").unwrap().size().next_multiple_of(16);
    let pieces = pieces(&object);
    let sizes: BTreeMap<&str, u64> = pieces.iter().map(|(name, piece)| (*name, piece.bytes.len() as u64)).collect();
    let each: u64 = REPEATED.iter().filter_map(|name| sizes.get(name)).sum();
    let copies = DWARF_BYTES.div_ceil(each);
    let mut out = BufWriter::with_capacity(1 << 20, File::create(to).unwrap());
    // Elf64_Ehdr is written last, when it is known where the sections' headers are.
    let mut at = 64u64;
    out.write_all(&[0; 64]).unwrap();
    let mut names = vec![0u8];
    let mut headers = vec![[0u64; 8]];
    let mut header = |names: &mut Vec<u8>, name: &str, kind: u32, flags: u64, address: u64, at: u64, size: u64| {
        let offset = names.len() as u64;
        names.extend(name.as_bytes());
        names.push(0);
        headers.push([offset | u64::from(kind) << 32, flags, address, at, size, 0, 1, 0]);
    };
    // SHT_NOBITS, SHF_ALLOC | SHF_EXECINSTR.
    header(&mut names, ".text", 8, 6, TEXT, at, copies * text_bytes);
    for (name, piece) in &pieces {
        let begin = at;
        let times = if REPEATED.contains(name) { copies } else { 1 };
        for copy in 0..times {
            let bytes = piece.relocated(copy, text_bytes, &sizes);
            out.write_all(&bytes).unwrap();
            at += bytes.len() as u64;
        }
        header(&mut names, name, 1, 0, 0, begin, at - begin);
    }
    let names_at = at;
    header(&mut names, ".shstrtab", 3, 0, 0, names_at, 0);
    headers.last_mut().unwrap()[4] = names.len() as u64;
    out.write_all(&names).unwrap();
    at += names.len() as u64;
    for words in &headers {
        out.write_all(words.map(u64::to_le_bytes).as_flattened()).unwrap();
    }
    let mut file = out.into_inner().unwrap();
    let mut start = b"\x7fELF\x02\x01\x01".to_vec();
    start.resize(16, 0);
    // ET_EXEC, x86-64, version; entry, no program headers; flags and sizes.
    start.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    start.extend([TEXT, 0, at].map(u64::to_le_bytes).as_flattened());
    start.extend([0, 0, 0, 0, 64, 0, 56, 0, 0, 0, 64, 0, headers.len() as u8, 0, headers.len() as u8 - 1, 0]);
    std::io::Seek::rewind(&mut file).unwrap();
    file.write_all(&start).unwrap();
    (copies, text_bytes)
}

fn anonymous_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn a_gigabyte_of_dwarf() {
    if let Some(path) = std::env::var_os(FILE) {
        return answers(Path::new(&path), &std::env::var(UNITS).unwrap());
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("p.c"), source()).unwrap();
    let status = Command::new("cc")
        .args(["-g", "-gdwarf-5", "-O1", "-c", "-fno-asynchronous-unwind-tables", "-o"])
        .args([path("p.o"), path("p.c")])
        .status()
        .unwrap();
    assert!(status.success());
    let (copies, text_bytes) = write(&path("p"), &fs::read(path("p.o")).unwrap());
    let size = fs::metadata(path("p")).unwrap().len();
    assert!(size >= DWARF_BYTES, "{size}");

    // In a process of its own, whose heap has no room left over from all this.
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_gigabyte_of_dwarf", "--nocapture"])
        .env(FILE, path("p"))
        .env(UNITS, format!("{copies} {text_bytes}"))
        .status()
        .unwrap();
    assert!(status.success());
}

/// What the file says of the same places of many objects, the last one among them.
fn answers(path: &Path, numbers: &str) {
    let (copies, text_bytes) = numbers.split_once(' ').unwrap();
    let (copies, text_bytes): (u64, u64) = (copies.parse().unwrap(), text_bytes.parse().unwrap());
    let size = fs::metadata(path).unwrap().len();
    let places = ASKED / 40;
    let step = text_bytes / places;
    let addresses: Vec<Svma> = (0..40)
        .map(|n| n * (copies - 1) / 39)
        .flat_map(|copy| (0..places).map(move |place| Svma(TEXT + copy * text_bytes + place * step)))
        .collect();
    let image = Image::open(&File::open(path).unwrap()).unwrap();
    let dirs = DebugDirs { dirs: Vec::new() };
    for lean in [false, true] {
        let settings = Settings { lean, ..Settings::new(&dirs) };
        let mut answers = vec![(Vec::new(), 0); addresses.len()];
        let (before, mut most) = (anonymous_bytes(), 0);
        resolve_each(&image, Some(path), &settings, &addresses, &mut |question, answer| {
            most = most.max(anonymous_bytes());
            if let Ok(answer) = answer {
                let frames = answer.frames.iter();
                let lines = frames.clone().filter(|frame| frame.line.is_some()).count();
                answers[question] = (frames.map(|frame| frame.function.unwrap_or("?").to_owned()).collect(), lines);
            }
        });
        let grown = most.saturating_sub(before);
        println!("{size} bytes, {copies} units, lean {lean}: {grown} bytes of anonymous memory");
        let first: Vec<_> = answers[..places as usize].to_vec();
        assert!(first.iter().all(|(names, lines)| !names.is_empty() && *lines == names.len()), "{first:?}");
        assert!(first.iter().any(|(names, _)| names.len() == 2), "{first:?}");
        for others in answers.chunks(places as usize) {
            assert_eq!(others, first);
        }
        assert!(grown <= MOST_BYTES, "{grown} bytes");
    }
}
