//! Real compilers' output, resolved and unwound.

use reprieve_symbolizer::{
    Avma, DebugDirs, FoundBy, Image, Miss, Registers, StackEnd, Svma, SymbolSource, Unwinder, resolve,
};
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Three functions of which the compiler inlines two into the third.
const INLINED: &str = "\
static inline __attribute__((always_inline)) int innermost(volatile int *p) { return *p + 1; }\n\
static inline __attribute__((always_inline)) int middle(volatile int *p) { return innermost(p) * 3; }\n\
__attribute__((noinline)) int outer(volatile int *p) { return middle(p) - 2; }\n\
int main(int argc, char **argv) { (void)argv; volatile int v = argc; return outer(&v); }\n";

struct Built {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn build(compiler: &str, extension: &str, source: &str, flags: &[&str]) -> Built {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(format!("program.{extension}"));
    fs::write(&file, source).unwrap();
    let path = dir.path().join("program");
    let mut args = vec!["-o", path.to_str().unwrap(), file.to_str().unwrap()];
    args.extend(flags);
    run(compiler, &args);
    Built { _dir: dir, path }
}

/// ELF address of a symbol plus one, by another tool than ours.
fn address_in(path: &Path, name: &str) -> Svma {
    let output = Command::new("nm").arg(path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line =
        text.lines().find(|l| l.ends_with(&format!(" {name}"))).unwrap_or_else(|| panic!("{name} not in {text}"));
    Svma(u64::from_str_radix(&line[..16], 16).unwrap() + 1)
}

fn names(path: &Path, debug: &DebugDirs, address: Svma) -> (Vec<(String, Option<u32>, bool)>, SymbolSource) {
    let image = Image::open(&File::open(path).unwrap()).unwrap();
    let answer = resolve(&image, Some(path), debug, &[address]).remove(0).unwrap();
    let frames = answer.frames.into_iter().map(|f| (f.function, f.line, f.inlined)).collect();
    (frames, answer.source)
}

fn inline_chain() -> Vec<(String, Option<u32>, bool)> {
    vec![("innermost".into(), Some(1), true), ("middle".into(), Some(2), true), ("outer".into(), Some(3), false)]
}

#[test]
fn inline_chains_in_each_kind_of_binary() {
    for flags in [
        &["-O2", "-g"][..],
        &["-O2", "-g", "-no-pie"],
        &["-O2", "-g", "-gz"],
        &["-O2", "-gdwarf-4"],
        &["-O2", "-g", "-static"],
    ] {
        let built = build("cc", "c", INLINED, flags);
        let (frames, source) = names(&built.path, &DebugDirs::default(), address_in(&built.path, "outer"));
        assert_eq!((frames, source), (inline_chain(), SymbolSource::Dwarf), "{flags:?}");
    }
}

#[test]
fn stripped_binary_with_debug_file_beside_or_in_a_build_id_tree() {
    let built = build("cc", "c", INLINED, &["-O2", "-g", "-Wl,--build-id"]);
    let address = address_in(&built.path, "outer");
    let text = |p: &Path| p.to_str().unwrap().to_owned();
    let debug = built.path.with_extension("debug");
    run("objcopy", &["--only-keep-debug", &text(&built.path), &text(&debug)]);
    run("strip", &["-s", &text(&built.path)]);
    let image = Image::open(&File::open(&built.path).unwrap()).unwrap();
    let nothing = DebugDirs { dirs: vec![] };
    assert_eq!(resolve(&image, Some(&built.path), &nothing, &[address]), [Err(Miss::NoSymbol)]);

    run("objcopy", &[&format!("--add-gnu-debuglink={}", text(&debug)), &text(&built.path)]);
    assert_eq!(names(&built.path, &nothing, address), (inline_chain(), SymbolSource::Dwarf));

    let tree = tempfile::tempdir().unwrap();
    let id = image.build_id().unwrap().as_str().to_owned();
    let home = tree.path().join(".build-id").join(&id[..2]);
    fs::create_dir_all(&home).unwrap();
    fs::rename(&debug, home.join(format!("{}.debug", &id[2..]))).unwrap();
    let dirs = DebugDirs { dirs: vec![tree.path().to_owned()] };
    assert_eq!(names(&built.path, &dirs, address), (inline_chain(), SymbolSource::Dwarf));
}

#[test]
fn symbol_table_is_the_fall_back() {
    let built = build("cc", "c", INLINED, &["-O2"]);
    let (frames, source) = names(&built.path, &DebugDirs { dirs: vec![] }, address_in(&built.path, "outer"));
    assert_eq!(frames, [("outer".to_owned(), None, false)]);
    assert_eq!(source, SymbolSource::SymbolTable);
}

#[test]
fn cxx_and_rust_names_are_demangled() {
    let source = "namespace shop { template <class T> struct Cache { T v; __attribute__((noinline)) T grow(T by) { return v += by; } }; }\n\
        int main(int argc, char **) { shop::Cache<long> c{argc}; return (int)c.grow(3); }\n";
    let built = build("c++", "cc", source, &["-O1", "-g"]);
    let (frames, _) = names(&built.path, &DebugDirs::default(), address_in(&built.path, "_ZN4shop5CacheIlE4growEl"));
    assert_eq!(frames, [("shop::Cache<long>::grow(long)".to_owned(), Some(1), false)]);

    let source = "mod shop { #[inline(never)] #[unsafe(no_mangle)] pub extern \"C\" fn plain(x: u64) -> u64 { grow(&x) }\n\
        #[inline(never)] pub fn grow<T: Copy + Into<u64>>(x: &T) -> u64 { std::hint::black_box((*x).into()) } }\n\
        fn main() { shop::plain(std::env::args().count() as u64); }\n";
    let built = build("rustc", "rs", source, &["-g", "-Copt-level=1", "--edition=2024"]);
    let text = String::from_utf8(Command::new("nm").arg(&built.path).output().unwrap().stdout).unwrap();
    let mangled = text.lines().find(|l| l.contains("shop4grow")).unwrap().split(' ').next_back().unwrap();
    let (frames, _) = names(&built.path, &DebugDirs::default(), address_in(&built.path, mangled));
    let outermost = frames.last().unwrap();
    assert!(outermost.0.contains("shop::grow") && !outermost.0.contains("17h"), "{frames:?}");
}

/// Bytes that symbols with a size cover, as `nm` has them.
fn functions(path: &Path) -> Vec<Range<u64>> {
    let output = Command::new("nm").args(["-S", "--defined-only"]).arg(path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let hex = |text| u64::from_str_radix(text, 16).unwrap();
    let sized = text.lines().map(|line| line.split(' ').collect::<Vec<_>>()).filter(|fields| fields.len() == 4);
    sized.map(|fields| hex(fields[0])..hex(fields[0]) + hex(fields[1])).collect()
}

/// Addresses all over a binary of ours, against binutils.
#[test]
fn agrees_with_addr2line() {
    let built = build("cc", "c", INLINED, &["-O2", "-g", "-static"]);
    let start = address_in(&built.path, "outer").0 - 1;
    let addresses: Vec<Svma> =
        (start..start + 16).map(Svma).chain((0..2000).map(|i| Svma(start + 4096 + i * 61))).collect();
    let image = Image::open(&File::open(&built.path).unwrap()).unwrap();
    let ours = resolve(&image, Some(&built.path), &DebugDirs { dirs: vec![] }, &addresses);
    let args: Vec<String> = addresses.iter().map(|a| format!("{:#x}", a.0)).collect();
    let output = Command::new("addr2line").args(["-afiC", "-e"]).arg(&built.path).args(&args).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut theirs: Vec<Vec<String>> = Vec::new();
    for line in text.lines() {
        if line.starts_with("0x") { theirs.push(Vec::new()) } else { theirs.last_mut().unwrap().push(line.to_owned()) }
    }
    assert_eq!(theirs.len(), ours.len());
    let functions = functions(&built.path);
    let (mut named, mut between) = (0, 0);
    for ((ours, theirs), address) in ours.iter().zip(&theirs).zip(&addresses) {
        let covering = functions.iter().find(|function| function.contains(&address.0));
        match ours {
            Ok(ours) => {
                assert!(covering.is_some(), "{address:x?} {ours:?}");
                let theirs: Vec<&str> = theirs.iter().step_by(2).map(String::as_str).collect();
                let ours: Vec<&str> = ours.frames.iter().map(|f| f.function.as_str()).collect();
                assert_eq!(ours, theirs, "{address:x?}");
                named += 1;
            }
            // What fills up to the next function is of none; addr2line calls it by the one before.
            Err(miss) => {
                assert_eq!(*miss, Miss::NoSymbol);
                assert!(covering.is_none(), "{address:x?} {theirs:?}: {covering:x?}");
                between += 1;
            }
        }
    }
    println!("{named} equal, {between} between functions");
    assert!(named > 1500 && between > 0, "{named} {between}");
}

/// No input makes the parsers panic.
#[test]
fn damaged_files_are_misses() {
    let built = build("cc", "c", INLINED, &["-O2", "-g"]);
    let good = fs::read(&built.path).unwrap();
    let address = address_in(&built.path, "outer");
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    let mut survived = 0;
    for round in 0..1500 {
        let mut bytes = good.clone();
        if round % 3 == 0 {
            bytes.truncate(random(good.len()));
        } else {
            for _ in 0..1 + random(8) {
                let at = random(bytes.len());
                bytes[at] ^= 1 << random(8);
            }
        }
        let Ok(image) = Image::from_bytes(bytes) else { continue };
        survived += 1;
        let _ = resolve(&image, None, &DebugDirs { dirs: vec![] }, &[address, Svma(u64::MAX)]);
        let mut unwinder = Unwinder::new();
        unwinder.add_module(0x1000..0x10_0000, 0, &image, "damaged");
        let registers = Registers { ip: address.0, sp: 0x7000, fp: 0x7010, lr: 0 };
        let stack = unwinder.unwind(&registers, &mut |a| Some(a ^ 0x55), 64);
        assert!(stack.frames.len() <= 64);
    }
    assert!(survived > 500, "{survived}");
}

/// Frames of this very thread, read from our own memory.
#[test]
fn unwinds_its_own_thread_to_the_thread_start() {
    #[inline(never)]
    fn deep(levels: u32, then: &mut dyn FnMut()) {
        if levels == 0 {
            then();
        } else {
            deep(levels - 1, then);
        }
        std::hint::black_box(levels);
    }
    std::thread::spawn(|| {
        deep(20, &mut || {
            let maps = fs::read_to_string("/proc/self/maps").unwrap();
            let mut unwinder = Unwinder::new();
            let mut own = None;
            for line in maps.lines().filter(|l| l.contains(" r-xp ") && l.contains('/')) {
                let fields: Vec<&str> = line.split_whitespace().collect();
                let (start, end) = fields[0].split_once('-').unwrap();
                let (start, end) = (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
                let image = Image::open(&File::open(fields[5]).unwrap()).unwrap();
                let bias = image.bias(start, u64::from_str_radix(fields[2], 16).unwrap()).unwrap();
                unwinder.add_module(start..end, bias, &image, fields[5]);
                if Path::new(fields[5]) == std::env::current_exe().unwrap() {
                    own = Some((start..end, bias, image));
                }
            }
            let (ip, sp, fp): (u64, u64, u64);
            // SAFETY: reads three registers and changes nothing.
            #[cfg(target_arch = "x86_64")]
            unsafe {
                std::arch::asm!("lea {}, [rip]", "mov {}, rsp", "mov {}, rbp", out(reg) ip, out(reg) sp, out(reg) fp);
            };
            let mut read = |a: u64| {
                (a >= sp && a.is_multiple_of(8) && a < sp + (1 << 20)).then(|| {
                    // SAFETY: the unwinder asks for addresses above sp on this
                    // thread's own stack, which is mapped.
                    unsafe { (a as *const u64).read() }
                })
            };
            let stack = unwinder.unwind(&Registers { ip, sp, fp, lr: 0 }, &mut read, 256);
            assert_eq!(stack.end, StackEnd::Complete, "{stack:?}");
            assert!(stack.frames.iter().skip(1).all(|f| f.found == FoundBy::Cfi), "{stack:?}");
            let (range, bias, image) = own.unwrap();
            let addresses: Vec<Svma> = stack
                .frames
                .iter()
                .map(|f| f.lookup_address().0)
                .filter(|a| range.contains(a))
                .map(|a| Svma(a - bias))
                .collect();
            let names: Vec<String> = resolve(&image, None, &DebugDirs::default(), &addresses)
                .into_iter()
                .flatten()
                .flat_map(|r| r.frames)
                .map(|f| f.function)
                .collect();
            assert_eq!(names.iter().filter(|n| n.ends_with("deep")).count(), 21, "{names:#?}");
        });
    })
    .join()
    .unwrap();
}

/// A build ID is a part of a path, of a URL and of each incident.
#[test]
fn a_note_without_end_is_no_build_id() {
    for (bytes, is_id) in [(20, true), (64, true), (65, false), (4000, false)] {
        let built = build("cc", "c", INLINED, &[&format!("-Wl,--build-id=0x{}", "ab".repeat(bytes))]);
        let image = Image::open(&File::open(&built.path).unwrap()).unwrap();
        let id = image.build_id().map(|id| id.as_str().len());
        assert_eq!(id, is_id.then_some(2 * bytes));
    }
}

/// Of a thread that waits in the kernel the frame pointer is not known, as it is where 0 is
/// one that ends a stack.
#[cfg(target_arch = "x86_64")]
#[test]
fn an_unknown_frame_pointer_ends_no_stack() {
    let built = build("cc", "c", INLINED, &["-O0", "-fno-omit-frame-pointer", "-no-pie"]);
    let image = Image::open(&File::open(&built.path).unwrap()).unwrap();
    let (outer, size) = image.symbols(&["outer"])[0].unwrap();
    // After `push %rbp; mov %rsp, %rbp`.
    let ip = outer.0 + 4 + size / 2;
    let end = |fp: u64, ip: u64, word: u64| {
        let mut unwinder = Unwinder::new();
        unwinder.add_module(0x40_0000..0x50_0000, 0, &image, "program");
        let mut read = |address: u64| (0x7000..0x8000).contains(&address).then_some(word);
        unwinder.unwind(&Registers { ip, sp: 0x7000, fp, lr: 0 }, &mut read, 64).end
    };
    assert_eq!(end(0, ip, 0), StackEnd::NoUnwindInfo { address: Avma(ip) });
    // Known, it leads to a caller at 0; and so does the stack pointer at the first instruction.
    assert_eq!(end(0x7010, ip, 0), StackEnd::Complete);
    assert_eq!(end(0, outer.0, 0), StackEnd::Complete);
    // Outside of all that is known.
    assert_eq!(end(0, 0x1234, 0x7000), StackEnd::NoUnwindInfo { address: Avma(0x1234) });
}
