//! Code that is not where a simple binary has it: programs whose parts lie at addresses that are no
//! offsets in their files, functions in two pieces, and those that are chosen when they are bound.

use object::{Object, ObjectSegment, SegmentFlags};
use reprieve_symbolizer::{DebugDirs, Image, Resolution, Svma, SymbolSource, resolve};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

struct Program {
    dir: tempfile::TempDir,
    path: PathBuf,
}

impl Program {
    fn build(source: &str, compiler: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("p.c"), source).unwrap();
        let program = Program { path: dir.path().join("p"), dir };
        let (name, flags) = compiler.split_first().unwrap();
        program.run(name, &[flags, &["-o", "p", "p.c"]].concat());
        program
    }

    fn run(&self, name: &str, args: &[&str]) {
        let output = Command::new(name).args(args).current_dir(self.dir.path()).output();
        let output = output.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(output.status.success(), "{name} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn image(&self) -> Image {
        Image::open(&File::open(&self.path).unwrap()).unwrap()
    }

    /// Every byte of a symbol.
    fn every(&self, symbol: &str) -> Vec<Svma> {
        let (start, size) = self.image().symbols(&[symbol])[0].unwrap_or_else(|| panic!("no {symbol}"));
        assert!(size > 0, "{symbol}");
        (start.0..start.0 + size).map(Svma).collect()
    }

    #[track_caller]
    fn ask(&self, addresses: &[Svma]) -> Vec<Resolution> {
        let answers = resolve(&self.image(), Some(&self.path), &DebugDirs { dirs: Vec::new() }, addresses);
        answers.into_iter().map(Result::unwrap).collect()
    }
}

/// Names, innermost first.
fn names(resolution: &Resolution) -> Vec<&str> {
    resolution.frames.iter().map(|frame| frame.function.as_str()).collect()
}

/// A program that has told where a function of it is.
struct Running(Child);

impl Running {
    fn start(path: &Path) -> (Self, u64) {
        let child = Command::new(path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut running = Running(child);
        let mut told = String::new();
        BufReader::new(running.0.stdout.as_mut().unwrap()).read_line(&mut told).unwrap();
        let address = u64::from_str_radix(told.trim().trim_start_matches("0x"), 16).unwrap();
        (running, address)
    }

    /// Start and offset in the file of the mapping that has an address.
    fn mapping(&self, address: u64) -> (u64, u64) {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.0.id())).unwrap();
        let number = |text: &str| u64::from_str_radix(text, 16).unwrap();
        let found = maps.lines().find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (start, end) = fields[0].split_once('-')?;
            (number(start)..number(end)).contains(&address).then(|| (number(start), number(fields[2])))
        });
        found.unwrap_or_else(|| panic!("{address:x} in {maps}"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Tells where `whole` is, and waits.
const TELLS: &str = "\
#include <stdio.h>\n\
__attribute__((noinline)) int whole(int n) { return n * 3 + fgetc(stdin); }\n\
int main(int n, char **v) { (void)v; printf(\"%p\\n\", (void *)whole); fflush(stdout); return whole(n); }\n";

/// By how much the address of the code is above its offset in the file.
fn shift(path: &Path) -> u64 {
    let bytes = fs::read(path).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let is_code = |flags| matches!(flags, SegmentFlags::Elf { p_flags } if p_flags & object::elf::PF_X != 0);
    let code = file.segments().find(|segment| is_code(segment.flags())).unwrap();
    code.address() - code.file_range().0
}

#[test]
fn code_at_an_address_that_is_not_its_offset() {
    for (compiler, is_shifted) in [
        (&["cc", "-O1", "-g"][..], false),
        (&["cc", "-O1", "-g", "-Wl,-z,noseparate-code"], false),
        // Not to be moved, at the usual place and at another.
        (&["cc", "-O1", "-g", "-no-pie"], true),
        (&["cc", "-O1", "-g", "-no-pie", "-Wl,-Ttext-segment=0x7000000"], true),
        // To be moved, and linked for a place, as prelinked ones are.
        (&["cc", "-O1", "-g", "-pie", "-Wl,-Ttext-segment=0x10000000"], true),
        // Each segment is where the last one ended in the file, a page further on in memory.
        (&["clang-19", "-O1", "-g", "-fuse-ld=lld"], true),
        (&["clang-19", "-O1", "-g", "-fuse-ld=lld", "-Wl,-z,separate-code", "-no-pie"], true),
    ] {
        let program = Program::build(TELLS, compiler);
        assert_eq!(shift(&program.path) > 0, is_shifted, "{compiler:?}: {:x}", shift(&program.path));
        let (running, told) = Running::start(&program.path);
        let (start, offset) = running.mapping(told);
        let bias = program.image().bias(start, offset).unwrap();
        let size = program.every("whole").len() as u64;
        let addresses: Vec<Svma> = (told..told + size).map(|avma| Svma(avma.wrapping_sub(bias))).collect();
        assert_eq!(addresses, program.every("whole"), "{compiler:?}");
        for answer in program.ask(&addresses) {
            assert_eq!((names(&answer), answer.source), (vec!["whole"], SymbolSource::Dwarf), "{compiler:?}");
            assert_eq!(answer.frames[0].line, Some(2), "{compiler:?}");
        }
        drop(running);
        program.run("strip", &["-g", "p"]);
        for answer in program.ask(&addresses) {
            assert_eq!((names(&answer), answer.source), (vec!["whole"], SymbolSource::SymbolTable), "{compiler:?}");
        }
    }
}

#[test]
fn a_function_in_two_pieces() {
    let source = "\
#include <stdlib.h>\n\
static inline __attribute__((always_inline)) void give_up(int n) { if (n > 3) exit(n);\n\
  abort(); }\n\
__attribute__((noinline)) int whole(int n) { if (__builtin_expect(n > 1, 0)) give_up(n);\n\
  return n + 1; }\n\
int main(int n, char **v) { (void)v; return whole(n) + whole(n - 1); }\n";
    let program = Program::build(source, &["cc", "-O2", "-g", "-freorder-blocks-and-partition"]);
    let (cold, hot) = (program.every("whole.cold"), program.every("whole"));
    // Elsewhere: `main` or another is between them, whose names are not theirs.
    assert!(!hot.contains(&cold[0]) && cold[0].0.abs_diff(hot[0].0) > hot.len() as u64);
    let answers = program.ask(&cold);
    for answer in &answers {
        assert!(names(answer).ends_with(&["whole"]) && answer.source == SymbolSource::Dwarf, "{answer:?}");
    }
    let inlined = answers.iter().filter(|answer| names(answer) == ["give_up", "whole"]).count();
    assert!(inlined > 0, "{answers:?}");
    let answers = program.ask(&hot);
    assert!(answers.iter().all(|answer| names(answer).ends_with(&["whole"])), "{answers:?}");
    assert!(answers.iter().any(|answer| names(answer) == ["whole"]), "{answers:?}");
    program.run("strip", &["-g", "p"]);
    for (addresses, name) in [(&cold, "whole.cold"), (&hot, "whole")] {
        for answer in program.ask(addresses) {
            assert_eq!((names(&answer), answer.source), (vec![name], SymbolSource::SymbolTable));
        }
    }
}

/// The symbol of such a function is where its resolver is; what runs there is the resolver.
#[test]
fn a_function_that_is_chosen_when_it_is_bound() {
    let source = "\
#include <stdio.h>\n\
static int fast(int n) { return n * 3 + fgetc(stdin); }\n\
static int slow(int n) { return n + 1; }\n\
static int (*pick(void))(int) { __builtin_cpu_init();\n\
  return __builtin_cpu_supports(\"sse2\") ? fast : slow; }\n\
int work(int) __attribute__((ifunc(\"pick\")));\n\
int main(int n, char **v) { (void)v; printf(\"%p\\n\", (void *)fast); fflush(stdout); return work(n); }\n";
    for flags in [&["cc", "-O1", "-g"][..], &["clang-19", "-O1", "-g", "-fuse-ld=lld"], &["cc", "-O1", "-g", "-static"]]
    {
        let program = Program::build(source, flags);
        let (running, told) = Running::start(&program.path);
        let (start, offset) = running.mapping(told);
        let at = Svma(told.wrapping_sub(program.image().bias(start, offset).unwrap()));
        assert_eq!(at, program.every("fast")[0], "{flags:?}");
        let check = |source: SymbolSource| {
            for name in ["fast", "slow", "pick"] {
                for answer in program.ask(&program.every(name)) {
                    assert_eq!((names(&answer), answer.source), (vec![name], source), "{flags:?}");
                }
            }
        };
        check(SymbolSource::Dwarf);
        drop(running);
        program.run("strip", &["-g", "p"]);
        check(SymbolSource::SymbolTable);
    }
    // Where nothing else is left, as of a C library, its name stands for the resolver.
    let library = Program::build(source, &["cc", "-O1", "-shared", "-fPIC"]);
    let pick = library.every("pick");
    library.run("strip", &["-s", "p"]);
    for answer in library.ask(&pick) {
        assert_eq!((names(&answer), answer.source), (vec!["work"], SymbolSource::DynamicSymbolTable));
    }
}
