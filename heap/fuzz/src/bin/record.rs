//! Records what a walk reads of a process, as an input for the fuzzer:
//! `record go|glibc|jemalloc|cpython PID > seeds/NAME/FILE`. The process must not
//! move, and must hold no secrets.

use reprieve_heap_fuzz::{Input, Pieces, Recorder};
use reprieve_heap_walk::{Memory, cpython, glibc, go, jemalloc};
use reprieve_symbolizer::{GoImage, Image, Svma};
use std::fs::{self, File};
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;

struct Process(File);

impl Memory for Process {
    fn read(&mut self, address: u64, out: &mut [u8]) -> bool {
        self.0.read_exact_at(out, address).is_ok()
    }
}

/// A line of /proc/PID/maps.
struct Map {
    range: Range<u64>,
    flags: String,
    offset: u64,
    name: String,
}

/// A mapped file.
struct Module {
    range: Range<u64>,
    bias: u64,
    image: Image,
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, walker, pid] = &arguments[..] else { panic!("usage: record go|glibc|jemalloc|cpython PID") };
    let maps = maps(pid);
    let mut process = Process(File::open(format!("/proc/{pid}/mem")).expect("no such process, or not allowed"));
    let mut recorder = Recorder { memory: &mut process, pieces: Pieces::default() };
    let (words, ranges) = match walker.as_str() {
        "go" => record_go(&mut recorder, &exe(pid, &maps)),
        "glibc" => record_glibc(&mut recorder, &module(&maps, "libc.so.6"), &maps),
        "jemalloc" => record_jemalloc(&mut recorder, &module(&maps, "libjemalloc.so.2"), &maps),
        "cpython" => record_cpython(&mut recorder, &exe(pid, &maps)),
        other => panic!("there is no walker {other:?}"),
    };
    let input = Input { words, ranges, memory: recorder.pieces };
    std::io::stdout().write_all(&input.to_bytes()).expect("failed to write");
}

type Told = (Vec<u64>, Vec<Vec<Range<u64>>>);

fn record_go(recorder: &mut Recorder<'_>, exe: &Module) -> Told {
    let image = GoImage::find(&exe.image).expect("not a Go program");
    let place = |svma: Svma| svma.0.wrapping_add(exe.bias);
    let zeroed: Vec<Range<u64>> = image.zeroed().map(|r| place(r.start)..place(r.end)).to_vec();
    let rate = go::rate_address(&image).map(place);
    // Searched for, which reads more than a symbol would.
    let program = go::Program { buckets: None, zeroed: zeroed.clone(), rate };
    let profile = go::walk(recorder, &program).expect("no profile");
    eprintln!("{} records", profile.records.len());
    (vec![0, rate.unwrap_or(0)], vec![zeroed])
}

fn record_glibc(recorder: &mut Recorder<'_>, libc: &Module, maps: &[Map]) -> Told {
    let data = data(libc, maps);
    let writable = ranges(maps, |m| m.is_writable());
    let anonymous = ranges(maps, |m| m.is_writable() && m.name.is_empty());
    let heap = maps.iter().find(|m| m.name == "[heap]").map(|m| m.range.clone());
    let place = glibc::Place { data: &data, heap: heap.clone(), writable: &writable, anonymous: &anonymous };
    struct All;
    impl glibc::Pages for All {
        fn present_bytes(&mut self, pages: Range<u64>) -> Option<u64> {
            Some(pages.end - pages.start)
        }
    }
    let malloc = glibc::walk(recorder, &mut All, &place, 1 << 30).expect("no malloc");
    eprintln!("{} arenas, {:?}", malloc.arenas.len(), malloc.gaps);
    (Vec::new(), vec![data, heap.into_iter().collect(), writable, anonymous])
}

fn record_jemalloc(recorder: &mut Recorder<'_>, library: &Module, maps: &[Map]) -> Told {
    let data = data(library, maps);
    let code = ranges(maps, |m| m.flags.as_bytes()[2] == b'x' && library.range.contains(&m.range.start));
    let profile = jemalloc::walk(recorder, &jemalloc::Place { data: &data, code: &code }, 1 << 30);
    eprintln!("{} stacks", profile.expect("no profile").stacks.len());
    (Vec::new(), vec![data, code])
}

fn record_cpython(recorder: &mut Recorder<'_>, exe: &Module) -> Told {
    let symbols = exe.image.symbols(&["_PyRuntime", "Py_Version", "PyCode_Type"]);
    let at = |index: usize| symbols[index].map(|(svma, _)| svma.0.wrapping_add(exe.bias));
    let version = at(1).and_then(|at| recorder.memory.u32(at));
    let place = cpython::Place { runtime: at(0).expect("no _PyRuntime"), version, code_type: at(2) };
    let stacks = cpython::stacks(recorder, place).expect("no interpreter");
    eprintln!("{} threads, {} frames", stacks.len(), stacks.iter().map(|(_, frames)| frames.len()).sum::<usize>());
    (vec![place.runtime, u64::from(version.unwrap_or(0)), at(2).unwrap_or(0)], Vec::new())
}

/// A file's writable mappings, with what follows its last one: `.bss`.
fn data(module: &Module, maps: &[Map]) -> Vec<Range<u64>> {
    let end = module.range.end;
    ranges(maps, |m| {
        let is_bss = m.range.start == end && m.name.is_empty();
        m.is_writable() && (module.range.contains(&m.range.start) || is_bss)
    })
}

fn ranges(maps: &[Map], chosen: impl Fn(&Map) -> bool) -> Vec<Range<u64>> {
    maps.iter().filter(|m| chosen(m)).map(|m| m.range.clone()).collect()
}

impl Map {
    fn is_writable(&self) -> bool {
        self.flags.as_bytes()[1] == b'w'
    }
}

fn maps(pid: &str) -> Vec<Map> {
    let text = fs::read_to_string(format!("/proc/{pid}/maps")).expect("no such process");
    let hex = |text: &str| u64::from_str_radix(text, 16).expect("maps has hexadecimal numbers");
    text.lines()
        .map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (start, end) = fields[0].split_once('-').expect("maps has ranges");
            let name = fields.get(5).copied().unwrap_or("").to_owned();
            Map { range: hex(start)..hex(end), flags: fields[1].to_owned(), offset: hex(fields[2]), name }
        })
        .collect()
}

fn exe(pid: &str, maps: &[Map]) -> Module {
    let path = fs::read_link(format!("/proc/{pid}/exe")).expect("no executable");
    module(maps, path.to_str().expect("a path in UTF-8"))
}

fn module(maps: &[Map], name: &str) -> Module {
    let of_file: Vec<&Map> = maps.iter().filter(|m| m.name.ends_with(name)).collect();
    let code = of_file.iter().find(|m| m.flags.as_bytes()[2] == b'x').expect("no such file is mapped");
    let path = code.name.clone();
    let image = Image::open(&File::open(&path).expect("no such file")).expect("not ELF");
    let bias = image.bias(code.range.start, code.offset).expect("no segment");
    let range = of_file[0].range.start..of_file[of_file.len() - 1].range.end;
    eprintln!("{path} at {:#x}", range.start);
    Module { range, bias, image }
}
