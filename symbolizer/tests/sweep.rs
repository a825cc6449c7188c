//! The sweep against the crate addr2line, at every byte of real compilers' output.

use gimli::{EndianSlice, LittleEndian};
use object::{Object, ObjectSection};
use reprieve_symbolizer::{Account, DebugDirs, Image, Settings, Svma, SymbolSource, demangle, resolve, resolve_each};
use std::fs::{self, File};
use std::process::Command;

/// Function, file and line, innermost first.
type Chain = Vec<(String, Option<String>, Option<u32>)>;

const C: &str = "\
struct s { int a, b; };\n\
static inline __attribute__((always_inline)) int half(struct s *p) { struct s q = *p;\n\
  return q.a / 2; }\n\
__attribute__((noinline)) int whole(struct s *p) { if (p->b) { int x = half(p);\n\
  return x + half(p + 1); } return 0; }\n\
int main(int n, char **v) { (void)v; struct s s[2] = {{n, n}, {2, 3}}; return whole(s); }\n";

/// A function of which a part is elsewhere, with another inlined into it there.
const COLD: &str = "\
#include <stdlib.h>\n\
static inline __attribute__((always_inline)) void give_up(int n) { if (n > 3) exit(n);\n\
  abort(); }\n\
__attribute__((noinline)) int whole(int n) { if (__builtin_expect(n > 1, 0)) give_up(n);\n\
  return n + 1; }\n\
int main(int n, char **v) { (void)v; return whole(n) + whole(n - 1); }\n";

/// A lambda and a local class: functions within functions.
const CXX: &str = "\
template <class F> __attribute__((noinline)) int call(F f) { return f(3); }\n\
__attribute__((noinline)) int outer(int n) {\n\
  struct Local { __attribute__((noinline)) static int twice(int x) { return x * 2; } };\n\
  return call([n](int x) { return x + n; }) + Local::twice(n); }\n\
int main(int n, char **v) { return outer(n) + call([v](int x) { return v[x][0] * x; }); }\n";

const RUST: &str = "#[inline(never)] fn sum(v: &[u64]) -> u64 { v.iter().map(|x| x * 3).sum() }\n\
fn main() { let v: Vec<u64> = std::env::args().map(|a| a.len() as u64).collect(); println!(\"{}\", sum(&v)); }\n";

#[test]
fn it_says_what_addr2line_says() {
    for (compiler, extension, source, flags) in [
        ("cc", "c", C, &["-O2", "-g", "-gdwarf-5"][..]),
        ("cc", "c", C, &["-O2", "-g", "-gdwarf-4", "-no-pie"]),
        ("c++", "cc", CXX, &["-O0", "-g"]),
        ("cc", "c", COLD, &["-O2", "-g", "-freorder-blocks-and-partition"]),
        ("clang-19", "c", C, &["-O2", "-g", "-gdwarf-5"]),
        ("clang-19", "c", C, &["-O2", "-g", "-gdwarf-4", "-fuse-ld=lld"]),
        ("clang++-19", "cc", CXX, &["-O2", "-g", "-gdwarf-5"]),
        ("clang++-19", "cc", CXX, &["-O0", "-g", "-gdwarf-5"]),
        ("rustc", "rs", RUST, &["-g", "-Copt-level=2", "-Ccodegen-units=2", "--edition=2024"]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (file, program) = (dir.path().join(format!("p.{extension}")), dir.path().join("p"));
        fs::write(&file, source).unwrap();
        let status = Command::new(compiler).args(flags).arg("-o").arg(&program).arg(&file).status().unwrap();
        assert!(status.success(), "{compiler}");
        let bytes = fs::read(&program).unwrap();
        let elf = object::File::parse(&*bytes).unwrap();
        let text = elf.section_by_name(".text").unwrap();
        let addresses: Vec<Svma> = (text.address()..text.address() + text.size()).map(Svma).collect();
        let image = Image::open(&File::open(&program).unwrap()).unwrap();
        let ours = resolve(&image, None, &DebugDirs { dirs: Vec::new() }, &addresses);
        let dwarf = gimli::Dwarf::load(|id| {
            let data = elf.section_by_name(id.name()).and_then(|s| s.data().ok()).unwrap_or_default();
            Ok::<_, gimli::Error>(EndianSlice::new(data, LittleEndian))
        });
        let context = addr2line::Context::from_dwarf(dwarf.unwrap()).unwrap();
        let (mut named, mut inlined) = (0, 0);
        for (ours, address) in ours.iter().zip(&addresses) {
            let theirs = by_addr2line(&context, address.0);
            if theirs.iter().all(|(function, ..)| function.is_empty()) {
                // Then the symbol table has the name, if anything has.
                assert!(ours.as_ref().is_ok_and(|o| o.source != SymbolSource::Dwarf) || ours.is_err());
                continue;
            }
            named += 1;
            inlined += usize::from(theirs.len() > 1);
            let ours = ours.as_ref().unwrap_or_else(|miss| panic!("{compiler} {address:x?}: {miss}"));
            let ours: Chain = ours.frames.iter().map(|f| (f.function.clone(), f.file.clone(), f.line)).collect();
            assert_eq!(ours, theirs, "{compiler} {flags:?} at {address:x?}");
        }
        assert!(named > 50 && (inlined > 0 || extension == "cc"), "{compiler}: {named} {inlined}");
    }
}

fn by_addr2line(context: &addr2line::Context<EndianSlice<'_, LittleEndian>>, address: u64) -> Chain {
    let mut chain = Vec::new();
    let mut frames = context.find_frames(address).skip_all_loads().unwrap();
    while let Some(frame) = frames.next().unwrap() {
        let name = frame.function.and_then(|f| f.raw_name().ok().map(|n| demangle(&n))).unwrap_or_default();
        let place = frame.location.as_ref();
        let line = place.and_then(|l| l.line).filter(|&l| l > 0);
        chain.push((name, place.and_then(|l| l.file).map(str::to_owned), line));
    }
    chain
}

/// Functions at the first byte of `whole`'s inlined code, with so much memory left.
fn with_headroom(bytes: u64, address: Svma, image: &Image) -> (Vec<String>, Account) {
    let dirs = DebugDirs { dirs: Vec::new() };
    let settings = Settings { headroom: &move || bytes, ..Settings::new(&dirs) };
    let mut names = Vec::new();
    let account = resolve_each(image, None, &settings, &[address], &mut |_, answer| {
        names = answer.unwrap().frames.iter().map(|f| f.function.unwrap().to_owned()).collect();
    });
    (names, account)
}

#[test]
fn with_little_memory_it_says_less() {
    let dir = tempfile::tempdir().unwrap();
    let (file, program) = (dir.path().join("p.c"), dir.path().join("p"));
    fs::write(&file, C).unwrap();
    let status = Command::new("cc").args(["-O2", "-g", "-o"]).arg(&program).arg(&file).status().unwrap();
    assert!(status.success());
    let image = Image::open(&File::open(&program).unwrap()).unwrap();
    let (whole, size) = image.symbols(&["whole"])[0].unwrap();
    let inlined = |a: &Svma| with_headroom(u64::MAX, *a, &image).0 == ["half", "whole"];
    let address = (whole.0..whole.0 + size).map(Svma).find(inlined).expect("half is inlined");
    let (names, account) = with_headroom(3 << 20, address, &image);
    assert_eq!((names, account.without_inlined, account.without_lines), (vec!["whole".to_owned()], 1, 0));
    let (names, account) = with_headroom(0, address, &image);
    assert_eq!((names, account.without_inlined, account.without_lines), (vec!["whole".to_owned()], 0, 1));
}

#[test]
fn split_dwarf_is_found_where_it_was_written_and_in_a_package() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("p.c"), C).unwrap();
    let run = |program: &str, args: &[&str]| {
        let status = Command::new(program).args(args).current_dir(dir.path()).status().unwrap();
        assert!(status.success(), "{program} {args:?}");
    };
    run("cc", &["-O2", "-g", "-gdwarf-4", "-gsplit-dwarf", "-c", "p.c"]);
    run("cc", &["-o", "p", "p.o"]);
    let program = dir.path().join("p");
    let image = Image::open(&File::open(&program).unwrap()).unwrap();
    let (whole, size) = image.symbols(&["whole"])[0].unwrap();
    let addresses: Vec<Svma> = (whole.0..whole.0 + size).map(Svma).collect();
    let inlined = || {
        let answers = resolve(&image, Some(&program), &DebugDirs { dirs: Vec::new() }, &addresses);
        let chains = answers.into_iter().flatten().map(|r| r.frames.into_iter().map(|f| f.function));
        chains.filter(|chain| chain.clone().eq(["half", "whole"])).count()
    };
    let written = inlined();
    assert!(written > 0);
    run("dwp", &["-e", "p", "-o", "p.dwp"]);
    fs::remove_file(dir.path().join("p.dwo")).unwrap();
    assert_eq!(inlined(), written, "from the package");
    fs::remove_file(dir.path().join("p.dwp")).unwrap();
    assert_eq!(inlined(), 0, "lines and symbols are left");
}
