//! Each source of names: a file of a real tool's making, the names that are found by it,
//! and the reason that is kept where it is of no use.

use object::{CompressionFormat, Object, ObjectSection};
use reprieve_symbolizer::{
    Account, Avma, DebugDirs, Debuginfod, Frame, Image, MOST_MAP_BYTES, Miss, Outcome, Resolution, Settings, Source,
    Svma, SymbolSource, Tried, find_binary, jitdump, perf_map, resolve_each,
};
use std::fs::{self, File};
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// `half` is inlined into `whole`, which calls into libc through the PLT.
const C: &str = "\
#include <stdlib.h>\n\
struct s { int a, b; };\n\
static inline __attribute__((always_inline)) int half(struct s *p) { struct s q = *p;\n\
  return abs(q.a) / 2 + atoi(\"3\"); }\n\
__attribute__((noipa)) int whole(struct s *p) { if (p->b) { int x = half(p);\n\
  return x + half(p + 1); } return 0; }\n\
int main(int n, char **v) { struct s s[2] = {{n, n}, {2, 3}}; srand(n); return rand() + whole(s) + atoi(v[0]); }\n";

/// A program in a folder of its own.
struct Program {
    dir: tempfile::TempDir,
    path: PathBuf,
    /// Every byte of `whole`, from before anything was stripped.
    whole: Vec<Svma>,
}

impl Program {
    fn build(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        fs::write(dir.path().join("p.c"), C).unwrap();
        let mut args = vec!["-O2", "-o", "p", "p.c"];
        args.extend(flags);
        run_in(dir.path(), "cc", &args);
        let (start, size) = image(&path).symbols(&["whole"])[0].unwrap();
        Program { dir, path, whole: (start.0..start.0 + size).map(Svma).collect() }
    }

    fn run(&self, program: &str, args: &[&str]) {
        run_in(self.dir.path(), program, args);
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Leaves `p` stripped beside its debug file `p.debug`.
    fn separate(&self) {
        self.run("objcopy", &["--only-keep-debug", "p", "p.debug"]);
        self.run("strip", &["-s", "p"]);
    }

    fn id(&self) -> String {
        image(&self.path).build_id().expect("it has a build ID").as_str().to_owned()
    }

    /// Puts a file into a tree by build ID, and returns the tree.
    fn tree(&self, file: &str, suffix: &str) -> PathBuf {
        let (tree, id) = (self.file("tree"), self.id());
        let home = tree.join(".build-id").join(&id[..2]);
        fs::create_dir_all(&home).unwrap();
        fs::copy(self.file(file), home.join(format!("{}{suffix}", &id[2..]))).unwrap();
        tree
    }

    fn ask(&self, dirs: &[PathBuf]) -> Answers {
        Answers::of(&image(&self.path), &self.path, &self.whole, &DebugDirs { dirs: dirs.to_vec() }, u64::MAX)
    }

    fn ask_with(&self, headroom: u64) -> Answers {
        Answers::of(&image(&self.path), &self.path, &self.whole, &DebugDirs { dirs: Vec::new() }, headroom)
    }
}

/// What came of all questions.
struct Answers {
    results: Vec<Result<Resolution, Miss>>,
    account: Account,
}

impl Answers {
    fn of(image: &Image, path: &Path, addresses: &[Svma], dirs: &DebugDirs, headroom: u64) -> Self {
        Self::by(image, path, addresses, &Settings { headroom: &move || headroom, ..Settings::new(dirs) })
    }

    fn by(image: &Image, path: &Path, addresses: &[Svma], settings: &Settings<'_>) -> Self {
        let mut results = vec![Err(Miss::NoModule); addresses.len()];
        let account = resolve_each(image, Some(path), settings, addresses, &mut |question, answer| {
            results[question] = answer.map(|a| a.to_resolution());
        });
        Answers { results, account }
    }

    /// Whether all is known of `whole`: names, lines, and what was inlined where.
    #[track_caller]
    fn assert_full(&self) {
        let names: Vec<Vec<&str>> = self.resolutions().map(names).collect();
        assert!(self.resolutions().all(|r| r.source == SymbolSource::Dwarf), "{:?}", self.account);
        assert!(names.iter().all(|n| n.ends_with(&["whole"])), "{names:?}");
        assert!(names.iter().any(|n| n[..] == ["half", "whole"]), "{names:?}");
        assert!(self.resolutions().any(|r| r.frames.iter().any(|f| f.line == Some(4))), "a line of half");
    }

    /// Whether all are called `whole`, as this source says.
    #[track_caller]
    fn assert_named_by(&self, source: SymbolSource) {
        for resolution in self.resolutions() {
            assert_eq!((names(resolution), resolution.source), (vec!["whole"], source));
        }
    }

    #[track_caller]
    fn assert_missed(&self) {
        assert!(self.results.iter().all(|r| *r == Err(Miss::NoSymbol)), "{:?}", self.results);
    }

    #[track_caller]
    fn resolutions(&self) -> impl Iterator<Item = &Resolution> {
        self.results.iter().map(|r| r.as_ref().unwrap_or_else(|miss| panic!("{miss}: {:?}", self.account)))
    }

    /// What came of a source, in order.
    fn outcomes(&self, source: Source) -> Vec<Outcome> {
        outcomes(&self.account.tried, source)
    }
}

fn outcomes(tried: &[Tried], source: Source) -> Vec<Outcome> {
    tried.iter().filter(|t| t.source == source).map(|t| t.outcome).collect()
}

fn names(resolution: &Resolution) -> Vec<&str> {
    resolution.frames.iter().map(|f| f.function.as_str()).collect()
}

fn image(path: &Path) -> Image {
    Image::open(&File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

fn run_in(dir: &Path, program: &str, args: &[&str]) {
    let output =
        Command::new(program).args(args).current_dir(dir).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn debuglink_beside_the_binary_or_in_a_folder_of_debug_files() {
    let p = Program::build(&["-g", "-Wl,--build-id=none"]);
    p.separate();
    // Without a link nothing is looked for.
    let nothing = p.ask(&[]);
    nothing.assert_missed();
    assert_eq!(nothing.account.tried, []);
    p.run("objcopy", &["--add-gnu-debuglink=p.debug", "p"]);
    let beside = p.ask(&[]);
    beside.assert_full();
    assert_eq!(beside.outcomes(Source::DebugLink), [Outcome::Used]);
    // Each place in turn; the others are told.
    let folder = p.file("folder");
    for (home, place) in
        [(p.file(".debug"), 1), (folder.join(p.dir.path().strip_prefix("/").unwrap()), 2), (folder.clone(), 3)]
    {
        fs::create_dir_all(&home).unwrap();
        fs::rename(p.file("p.debug"), home.join("p.debug")).unwrap();
        let there = p.ask(std::slice::from_ref(&folder));
        there.assert_full();
        let mut wanted = vec![Outcome::Absent; place];
        wanted.push(Outcome::Used);
        assert_eq!(there.outcomes(Source::DebugLink), wanted, "{}", home.display());
        fs::rename(home.join("p.debug"), p.file("p.debug")).unwrap();
    }
}

#[test]
fn debuglink_to_a_file_of_another_build_or_to_no_file_at_all() {
    let p = Program::build(&["-g", "-Wl,--build-id=none"]);
    p.separate();
    p.run("objcopy", &["--add-gnu-debuglink=p.debug", "p"]);
    let told = |content: Option<&[u8]>| {
        let _ = fs::remove_file(p.file("p.debug"));
        if let Some(content) = content {
            fs::write(p.file("p.debug"), content).unwrap();
        }
        let answers = p.ask(&[]);
        answers.assert_missed();
        let told = answers.outcomes(Source::DebugLink);
        assert_eq!(told[1], Outcome::Absent, "the place beside it");
        told[0]
    };
    // The link has the checksum of the file that was meant.
    let mut other = fs::read(p.file("p.debug")).unwrap();
    other.push(0);
    assert_eq!(told(Some(&other)), Outcome::OtherBuild);
    assert_eq!(told(Some(b"no ELF")), Outcome::NotElf);
    assert_eq!(told(Some(b"")), Outcome::NotElf);
    assert_eq!(told(None), Outcome::Absent);
    std::os::unix::fs::symlink("p.debug", p.file("p.debug")).unwrap();
    assert_eq!(p.ask(&[]).outcomes(Source::DebugLink)[0], Outcome::NotReadable, "a link to itself");
}

#[test]
fn build_id_tree() {
    let p = Program::build(&["-g", "-Wl,--build-id"]);
    p.separate();
    let empty = p.ask(&[p.file("nowhere")]);
    empty.assert_missed();
    assert_eq!(empty.outcomes(Source::BuildId), [Outcome::Absent]);
    let tree = p.tree("p.debug", ".debug");
    // In order; the second has it.
    let found = p.ask(&[p.file("nowhere"), tree.clone()]);
    found.assert_full();
    assert_eq!(found.outcomes(Source::BuildId), [Outcome::Absent, Outcome::Used]);
    // A file of another build at its place.
    let other = Program::build(&["-g", "-O1", "-Wl,--build-id"]);
    other.separate();
    fs::copy(other.file("p.debug"), p.file("other.debug")).unwrap();
    p.tree("other.debug", ".debug");
    let missed = p.ask(std::slice::from_ref(&tree));
    missed.assert_missed();
    assert_eq!(missed.outcomes(Source::BuildId), [Outcome::OtherBuild]);
    // One with symbols and no DWARF: its symbols, unless the link leads further.
    p.run("strip", &["-g", "-o", "symbols.debug", "p.debug"]);
    p.tree("symbols.debug", ".debug");
    let poor = p.ask(std::slice::from_ref(&tree));
    poor.assert_named_by(SymbolSource::SymbolTable);
    assert_eq!(poor.outcomes(Source::BuildId), [Outcome::NoDebugInfo]);
    p.run("objcopy", &["--add-gnu-debuglink=p.debug", "p"]);
    let further = p.ask(&[tree]);
    further.assert_full();
    assert_eq!(further.outcomes(Source::DebugLink), [Outcome::Used]);
}

/// As on another machine, where nothing lies where it lay.
#[test]
fn binary_by_build_id_under_a_debug_dir() {
    let p = Program::build(&["-g", "-Wl,--build-id"]);
    let id = image(&p.path).build_id().unwrap().clone();
    let was_at = Path::new("/opt/service/bin/p");
    let elsewhere = p.file("elsewhere");
    let dirs = DebugDirs { dirs: vec![elsewhere.clone()] };
    let look = || find_binary(&id, was_at, &Settings::new(&dirs));
    let (none, tried) = look();
    assert!(none.is_none());
    assert_eq!(outcomes(&tried, Source::Binary), [Outcome::Absent; 3]);
    assert_eq!(outcomes(&tried, Source::BuildId), [Outcome::Absent; 2]);
    let tree = format!(".build-id/{}/{}", &id.as_str()[..2], &id.as_str()[2..]);
    for place in [tree.as_str(), "opt/service/bin/p", "p", &format!("{tree}.debug"), "p.debug"] {
        let to = elsewhere.join(place);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        if place.ends_with(".debug") {
            p.run("objcopy", &["--only-keep-debug", "p", to.to_str().unwrap()]);
        } else {
            fs::copy(&p.path, &to).unwrap();
        }
        let (found, tried) = look();
        let (image, at) = found.unwrap_or_else(|| panic!("{place}: {tried:?}"));
        assert_eq!((&at, tried.last().unwrap().outcome), (&to, Outcome::Used));
        Answers::of(&image, &at, &p.whole, &dirs, u64::MAX).assert_full();
        fs::remove_file(&to).unwrap();
    }
    // The same name, another program.
    let other = Program::build(&["-g", "-O1", "-Wl,--build-id"]);
    fs::copy(&other.path, elsewhere.join("p")).unwrap();
    let (none, tried) = look();
    assert!(none.is_none());
    assert_eq!(outcomes(&tried, Source::Binary), [Outcome::Absent, Outcome::Absent, Outcome::OtherBuild]);
}

/// Debian's server on a port of loopback, with the files of one folder.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start(folder: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new("debuginfod")
            .args(["--port", &port.to_string(), "--database", ":memory:", "-F"])
            .arg(folder)
            .env_remove("DEBUGINFOD_URLS")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("debuginfod: {e}"));
        Server { child, url: format!("http://127.0.0.1:{port}") }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn debuginfod_of_debian() {
    let p = Program::build(&["-g", "-Wl,--build-id"]);
    fs::create_dir(p.file("served")).unwrap();
    p.run("objcopy", &["--only-keep-debug", "p", "served/p.debug"]);
    p.run("strip", &["-s", "p"]);
    fs::copy(&p.path, p.file("served/p")).unwrap();
    let size = fs::metadata(p.file("served/p.debug")).unwrap().len();
    let cache = p.file("cache");
    let client = |url: &str, bytes: u64| {
        Debuginfod::new(&[url.to_owned()], cache.clone(), Duration::from_secs(60), bytes).unwrap()
    };
    let dirs = DebugDirs { dirs: Vec::new() };
    let ask = |server: &Debuginfod| {
        let settings = Settings { debuginfod: Some(server), ..Settings::new(&dirs) };
        Answers::by(&image(&p.path), &p.path, &p.whole, &settings)
    };
    // Off unless asked for.
    assert_eq!(p.ask(&[]).account.tried, []);
    let server = Server::start(&p.file("served"));
    // Until it has begun to listen, and then until it has seen the files.
    let (begun, mut reasons) = (Instant::now(), Vec::new());
    let found = loop {
        let answers = ask(&client(&server.url, size));
        match answers.outcomes(Source::BuildId)[..] {
            [Outcome::Used] => break answers,
            [reason @ (Outcome::NoAnswer | Outcome::Absent)] => reasons.push(reason),
            ref other => panic!("{other:?}"),
        }
        answers.assert_missed();
        assert!(begun.elapsed() < Duration::from_secs(60), "debuginfod has not seen the files: {reasons:?}");
        std::thread::sleep(Duration::from_millis(200));
    };
    found.assert_full();
    assert!(found.account.tried[0].place.starts_with(&server.url), "{:?}", found.account.tried);

    // Not one byte more than is allowed.
    fs::remove_dir_all(&cache).unwrap();
    let too_large = ask(&client(&server.url, size - 1));
    too_large.assert_missed();
    assert_eq!(too_large.outcomes(Source::BuildId), [Outcome::TooLarge]);
    assert!(!cache.join(p.id()).join("debuginfo").exists());
    // All requests together.
    let both = client(&server.url, size);
    ask(&both).assert_full();
    let id = image(&p.path).build_id().unwrap().clone();
    let look = |id, server: &Debuginfod| {
        find_binary(id, &p.path, &Settings { debuginfod: Some(server), ..Settings::new(&dirs) })
    };
    fs::remove_dir_all(&cache).unwrap();
    let (none, tried) = look(&id, &both);
    assert!(none.is_none());
    assert_eq!(outcomes(&tried, Source::Binary), [Outcome::TooLarge; 2]);
    // The debug file stands for a binary that is nowhere.
    let (found, tried) = look(&id, &client(&server.url, size));
    let (debug, at) = found.unwrap_or_else(|| panic!("{tried:?}"));
    Answers::of(&debug, &at, &p.whole, &dirs, u64::MAX).assert_full();
    // What it never heard of.
    let other = Program::build(&["-g", "-O1", "-Wl,--build-id"]);
    let other_id = image(&other.path).build_id().unwrap().clone();
    let (none, tried) = look(&other_id, &client(&server.url, size));
    assert!(none.is_none());
    assert_eq!(outcomes(&tried, Source::Binary), [Outcome::Absent; 2]);
    // What was fetched once is there without it.
    let url = server.url.clone();
    drop(server);
    let cached = ask(&client(&url, 0));
    cached.assert_full();
    assert!(cached.account.tried[0].place.starts_with(cache.to_str().unwrap()));
    fs::remove_dir_all(&cache).unwrap();
    assert_eq!(ask(&client(&url, size)).outcomes(Source::BuildId), [Outcome::NoAnswer]);
}

#[test]
fn dwz_alternate() {
    let p = Program::build(&["-g", "-gdwarf-4", "-Wl,--build-id"]);
    // dwz shares what it finds twice.
    fs::copy(&p.path, p.file("q")).unwrap();
    p.run("dwz", &["-m", "shared.debug", "p", "q"]);
    let beside = p.ask(&[]);
    beside.assert_full();
    assert_eq!(beside.outcomes(Source::Alternate), [Outcome::Used]);
    // In a tree by build ID, and in the folder that is called after dwz.
    let shared = image(&p.file("shared.debug")).build_id().unwrap().as_str().to_owned();
    let tree = p.file("tree");
    let by_id = tree.join(format!(".build-id/{}/{}.debug", &shared[..2], &shared[2..]));
    let by_name = tree.join(".dwz/shared.debug");
    for (to, place) in [(&by_id, 0), (&by_name, 1)] {
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::rename(p.file("shared.debug"), to).unwrap();
        let found = p.ask(std::slice::from_ref(&tree));
        found.assert_full();
        let mut wanted = vec![Outcome::Absent; place];
        wanted.push(Outcome::Used);
        assert_eq!(found.outcomes(Source::Alternate), wanted);
        fs::rename(to, p.file("shared.debug")).unwrap();
    }
    // Without it lines are left, and names of the symbol table.
    fs::rename(p.file("shared.debug"), p.file("kept")).unwrap();
    let without = p.ask(&[]);
    assert_eq!(without.outcomes(Source::Alternate), [Outcome::Absent]);
    assert!(without.resolutions().all(|r| names(r).last() == Some(&"whole")));
    assert!(without.resolutions().any(|r| r.frames.iter().any(|f| f.line.is_some())));
    // The alternate of other files.
    let other = Program::build(&["-g", "-gdwarf-4", "-O1", "-DOTHER", "-Wl,--build-id"]);
    fs::copy(&other.path, other.file("q")).unwrap();
    other.run("dwz", &["-m", "shared.debug", "p", "q"]);
    fs::copy(&other.path, p.file("shared.debug")).unwrap();
    assert_eq!(p.ask(&[]).outcomes(Source::Alternate), [Outcome::OtherBuild]);
}

#[test]
fn split_dwarf_in_files_of_units() {
    for version in ["-gdwarf-4", "-gdwarf-5"] {
        let p = Program::build(&["-g", version, "-gsplit-dwarf", "-Wl,--build-id"]);
        let mut files = fs::read_dir(p.dir.path()).unwrap().map(|e| e.unwrap().path());
        let dwo = files.find(|path| path.extension().is_some_and(|e| e == "dwo")).unwrap();
        let found = p.ask(&[]);
        found.assert_full();
        assert_eq!(found.outcomes(Source::SplitUnit), [Outcome::Used], "{version}");
        assert_eq!(found.outcomes(Source::Package), [Outcome::Absent], "{version}");
        // In a folder that is named.
        let folder = p.file("folder");
        fs::create_dir(&folder).unwrap();
        fs::rename(&dwo, folder.join(dwo.file_name().unwrap())).unwrap();
        let there = p.ask(std::slice::from_ref(&folder));
        there.assert_full();
        assert_eq!(there.outcomes(Source::SplitUnit), [Outcome::Absent, Outcome::Absent, Outcome::Used], "{version}");
        // Without it lines and symbols are left.
        let without = p.ask(&[]);
        without.assert_named_by(SymbolSource::SymbolTable);
        assert!(without.resolutions().all(|r| r.frames[0].line.is_some()));
        assert_eq!(without.outcomes(Source::SplitUnit), [Outcome::Absent; 2], "{version}");
        // The unit of another build is not taken for it.
        let other = Program::build(&["-g", version, "-gsplit-dwarf", "-fno-omit-frame-pointer"]);
        fs::copy(other.file(dwo.file_name().unwrap().to_str().unwrap()), &dwo).unwrap();
        let not_it = p.ask(&[]);
        not_it.assert_named_by(SymbolSource::SymbolTable);
        assert_eq!(not_it.outcomes(Source::SplitUnit)[0], Outcome::OtherBuild, "{version}");
        fs::write(&dwo, "no ELF").unwrap();
        assert_eq!(p.ask(&[]).outcomes(Source::SplitUnit)[0], Outcome::NotElf, "{version}");
    }
}

#[test]
fn split_dwarf_in_a_package() {
    let p = Program::build(&["-g", "-gdwarf-4", "-gsplit-dwarf", "-Wl,--build-id"]);
    p.run("dwp", &["-e", "p", "-o", "p.dwp"]);
    let dwo = fs::read_dir(p.dir.path()).unwrap().map(|e| e.unwrap().path());
    dwo.filter(|path| path.extension().is_some_and(|e| e == "dwo")).for_each(|dwo| fs::remove_file(dwo).unwrap());
    let found = p.ask(&[]);
    found.assert_full();
    assert_eq!(found.outcomes(Source::Package), [Outcome::Used]);
    assert_eq!(found.outcomes(Source::SplitUnit), []);
    // Of another build: its units have other numbers.
    let other = Program::build(&["-g", "-gdwarf-4", "-gsplit-dwarf", "-fno-omit-frame-pointer"]);
    other.run("dwp", &["-e", "p", "-o", "p.dwp"]);
    fs::rename(p.file("p.dwp"), p.file("kept.dwp")).unwrap();
    fs::copy(other.file("p.dwp"), p.file("p.dwp")).unwrap();
    let not_it = p.ask(&[]);
    not_it.assert_named_by(SymbolSource::SymbolTable);
    assert_eq!(not_it.outcomes(Source::Package), [Outcome::OtherBuild]);
    // Of a separate debug file: called after the program.
    fs::rename(p.file("kept.dwp"), p.file("p.dwp")).unwrap();
    p.separate();
    p.run("objcopy", &["--add-gnu-debuglink=p.debug", "p"]);
    let separate = p.ask(&[]);
    separate.assert_full();
    assert_eq!(separate.outcomes(Source::Package), [Outcome::Used]);
}

#[test]
fn mini_debug_info() {
    let p = Program::build(&["-Wl,--build-id"]);
    // As Fedora's find-debuginfo does it.
    p.run("objcopy", &["-S", "--remove-section", ".comment", "--keep-symbol=whole", "p", "mini"]);
    p.run("xz", &["-k", "mini"]);
    p.run("strip", &["-s", "-o", "stripped", "p"]);
    let with = |content: &[u8]| {
        fs::write(p.file("section"), content).unwrap();
        p.run("objcopy", &["--add-section", ".gnu_debugdata=section", "stripped", "p"]);
        p.ask(&[])
    };
    let honest = fs::read(p.file("mini.xz")).unwrap();
    let found = with(&honest);
    found.assert_named_by(SymbolSource::MiniDebugInfo);
    assert_eq!(found.outcomes(Source::MiniDebugInfo), [Outcome::Used]);
    // With no memory for it.
    let little = p.ask_with(4 << 20);
    little.assert_missed();
    assert_eq!(little.outcomes(Source::MiniDebugInfo), [Outcome::TooLarge]);
    let mut flipped = honest.clone();
    flipped[honest.len() / 2] ^= 0x10;
    for (content, reason) in [
        (&flipped[..], Outcome::Damaged),
        (&honest[..honest.len() / 2], Outcome::Damaged),
        (b"no xz", Outcome::Damaged),
    ] {
        let missed = with(content);
        missed.assert_missed();
        assert_eq!(missed.outcomes(Source::MiniDebugInfo), [reason]);
    }
    // Small and without end, or with a dictionary that is too large; and no ELF.
    fs::write(p.file("zeros"), vec![0; 65 << 20]).unwrap();
    fs::write(p.file("text"), "no ELF").unwrap();
    p.run("xz", &["-1", "-k", "zeros"]);
    p.run("xz", &["-k", "text"]);
    fs::rename(p.file("mini"), p.file("large")).unwrap();
    p.run("xz", &["-k", "--lzma2=dict=1GiB", "large"]);
    for (file, reason) in
        [("zeros.xz", Outcome::TooLarge), ("large.xz", Outcome::TooLarge), ("text.xz", Outcome::NotElf)]
    {
        let missed = with(&fs::read(p.file(file)).unwrap());
        missed.assert_missed();
        assert_eq!(missed.outcomes(Source::MiniDebugInfo), [reason], "{file}");
    }
}

#[test]
fn compressed_sections() {
    for format in ["zlib", "zlib-gnu", "zstd"] {
        let p = Program::build(&["-g3"]);
        p.run("objcopy", &[&format!("--compress-debug-sections={format}"), "p"]);
        let bytes = fs::read(&p.path).unwrap();
        // `.debug_str` is large enough to be compressed by all of them.
        let section = |bytes: &[u8]| {
            let file = object::File::parse(bytes).unwrap();
            file.section_by_name(".debug_str").unwrap().compressed_file_range().unwrap()
        };
        let range = section(&bytes);
        assert_ne!(range.format, CompressionFormat::None, "{format}");
        let found = p.ask(&[]);
        found.assert_full();
        assert_eq!(found.account.tried, []);
        // No room to decompress: symbols only, and that is told.
        let poor = p.ask_with((4 << 20) + 100);
        poor.assert_named_by(SymbolSource::SymbolTable);
        assert_eq!(poor.outcomes(Source::DebugSections), [Outcome::TooLarge], "{format}");
        assert_eq!(poor.account.without_lines, p.whole.len());
        // A section whose bytes are others, and one that is shorter or longer than it says.
        let damaged = |change: &dyn Fn(&mut [u8])| {
            let mut bytes = bytes.clone();
            change(&mut bytes);
            fs::write(&p.path, &bytes).unwrap();
            p.ask(&[]).outcomes(Source::DebugSections)
        };
        let at = range.offset as usize;
        let middle = at + range.compressed_size as usize / 2;
        assert_eq!(damaged(&|b| b[middle..middle + 16].fill(0xff)), [Outcome::Damaged], "{format}");
        // The size is the second word of Elf64_Chdr, or behind "ZLIB" the other way around.
        let (size_at, is_gnu) = if format == "zlib-gnu" { (at - 8, true) } else { (at - 16, false) };
        let claim = |size: u64| {
            damaged(&|b| {
                let word = if is_gnu { size.to_be_bytes() } else { size.to_le_bytes() };
                b[size_at..size_at + 8].copy_from_slice(&word);
            })
        };
        assert_eq!(claim(range.uncompressed_size), [], "{format}: it is the right place");
        assert_eq!(claim(range.uncompressed_size + 1), [Outcome::Damaged], "{format}");
        assert_eq!(claim(range.uncompressed_size - 1), [Outcome::Damaged], "{format}");
        // GNU's format has no sizes above four gigabytes.
        let wanted = if is_gnu { Outcome::Damaged } else { Outcome::TooLarge };
        assert_eq!(claim(1 << 50), [wanted], "{format}");
    }
}

#[test]
fn symbol_tables() {
    let p = Program::build(&[]);
    p.ask(&[]).assert_named_by(SymbolSource::SymbolTable);
    p.run("strip", &["-s", "p"]);
    p.ask(&[]).assert_missed();
    // What is exported is left of a library.
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("l.c"),
        "int exported(int x) { return x + 1; }\nstatic int own(int x) { return x; }\nint (*p)(int) = own;\n",
    )
    .unwrap();
    run_in(dir.path(), "cc", &["-O1", "-shared", "-fPIC", "-o", "l.so", "l.c"]);
    let path = dir.path().join("l.so");
    let places: Vec<Svma> = image(&path).symbols(&["exported", "own"]).into_iter().map(|s| s.unwrap().0).collect();
    run_in(dir.path(), "strip", &["-s", "l.so"]);
    let dirs = DebugDirs { dirs: Vec::new() };
    let answers = Answers::of(&image(&path), &path, &places, &dirs, u64::MAX);
    let exported = answers.results[0].as_ref().unwrap();
    assert_eq!((names(exported), exported.source), (vec!["exported"], SymbolSource::DynamicSymbolTable));
    assert_eq!(answers.results[1], Err(Miss::NoSymbol));
}

/// Against objdump, at every byte of each kind of stub.
#[test]
fn plt_stubs() {
    let lazy_ibt = ["-fcf-protection=full", "-Wl,-z,lazy", "-Wl,-z,ibtplt"];
    for (flags, sections) in [
        (&["-Wl,-z,lazy"][..], &[".plt"][..]),
        (&["-Wl,-z,now", "-fcf-protection=full"], &[".plt.got"]),
        (&lazy_ibt, &[".plt.sec"]),
        (&["-no-pie", "-Wl,-z,lazy"], &[".plt"]),
    ] {
        let p = Program::build(flags);
        let output = Command::new("objdump").args(["-d", "--no-show-raw-insn"]).arg(&p.path).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        // Each line has an address; those of a stub follow its name.
        let (mut section, mut name, mut wanted) = ("", "", Vec::new());
        for line in text.lines() {
            if let Some(title) = line.strip_prefix("Disassembly of section ") {
                section = title.trim_end_matches(':');
                name = "";
            } else if let Some((_, title)) = line.split_once(" <").filter(|_| !line.starts_with(' ')) {
                name = title.trim_end_matches(">:");
            } else if let Some((address, _)) = line.split_once(':').filter(|_| section.starts_with(".plt")) {
                let address = u64::from_str_radix(address.trim(), 16).unwrap();
                wanted.push((section, Svma(address), name));
            }
        }
        for section in sections {
            assert!(wanted.iter().any(|w| w.0 == *section && w.2.ends_with("@plt")), "{flags:?} {section}: {text}");
        }
        let addresses: Vec<Svma> = wanted.iter().map(|w| w.1).collect();
        let answers = p.ask_for(&addresses);
        let mut named = 0;
        for ((section, address, name), answer) in wanted.iter().zip(&answers.results) {
            if name.ends_with("@plt") && !name.starts_with('*') {
                let answer = answer.as_ref().unwrap_or_else(|miss| panic!("{flags:?} {section} {address:x?}: {miss}"));
                assert_eq!((names(answer), answer.source), (vec![*name], SymbolSource::Plt), "{section} {address:x?}");
                named += 1;
            } else if let Ok(answer) = answer {
                // The first stub of a section, and those of lazy binding where objdump gives up.
                assert!(answer.source == SymbolSource::Plt && section.starts_with(".plt"), "{address:x?} {answer:?}");
            }
        }
        assert!(named >= 4, "{flags:?}: {named}");
        // A stripped program has them all the same.
        p.run("strip", &["-s", "p"]);
        assert_eq!(p.ask_for(&addresses).results, answers.results);
    }
}

impl Program {
    fn ask_for(&self, addresses: &[Svma]) -> Answers {
        Answers::of(&image(&self.path), &self.path, addresses, &DebugDirs { dirs: Vec::new() }, u64::MAX)
    }
}

/// The kernel's own library, which is no file.
#[test]
fn vdso() {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let range = maps.lines().find(|l| l.ends_with("[vdso]")).expect("there is a vDSO").split(' ').next().unwrap();
    let (start, end) = range.split_once('-').unwrap();
    let number = |text| u64::from_str_radix(text, 16).unwrap();
    let mut bytes = vec![0; (number(end) - number(start)) as usize];
    let mut memory = File::open("/proc/self/mem").unwrap();
    memory.seek(SeekFrom::Start(number(start))).unwrap();
    memory.read_exact(&mut bytes).unwrap();
    let image = Image::from_bytes(bytes).unwrap();
    let name = if cfg!(target_arch = "x86_64") { "__vdso_clock_gettime" } else { "__kernel_clock_gettime" };
    let (at, _) = image.symbols(&[name])[0].expect("a symbol that vdso(7) names");
    let dirs = DebugDirs { dirs: Vec::new() };
    let answers = Answers::of(&image, Path::new("[vdso]"), &[at, Svma(u64::MAX)], &dirs, u64::MAX);
    let found = answers.results[0].as_ref().unwrap();
    assert!(names(found)[0].ends_with("clock_gettime"), "{found:?}");
    assert_eq!(found.source, SymbolSource::DynamicSymbolTable);
    assert_eq!(answers.results[1], Err(Miss::NoSymbol));
}

const SCRIPT: &str = "\
function leak(x) { let s = 0;\n\
  for (let i = 0; i < 200; i++) s += (x * i) % 7;\n\
  return s; }\n\
let sum = 0;\n\
for (let i = 0; i < 200000; i++) sum += leak(i);\n\
console.log(sum);\n";

/// Both of node's files of one run, each the other's witness.
#[test]
fn perf_map_and_jitdump_of_node() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("leak.js"), SCRIPT).unwrap();
    let child = Command::new("node")
        .args(["--perf-basic-prof", "--perf-prof", "leak.js"])
        .current_dir(dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("node: {e}"));
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let map_path = format!("/tmp/perf-{pid}.map");
    let map = fs::read_to_string(&map_path).unwrap();
    fs::remove_file(&map_path).unwrap();
    // Where `leak` was optimised to, by the text of the map alone.
    let optimised = map.lines().rev().find(|line| line.contains(":*leak ")).expect("it is hot");
    let fields: Vec<u64> = optimised.split(' ').take(2).map(|f| u64::from_str_radix(f, 16).unwrap()).collect();
    let addresses: Vec<Avma> = (fields[0]..fields[0] + fields[1]).map(Avma).collect();
    let (by_map, outcome) = perf_map(&mut BufReader::new(map.as_bytes()), &addresses, MOST_MAP_BYTES);
    assert_eq!(outcome, Outcome::Used);
    let script = dir.path().join("leak.js").canonicalize().unwrap();
    for frame in &by_map {
        let frame = frame.as_ref().unwrap();
        assert_eq!((frame.function.as_str(), frame.line), ("leak", Some(1)), "{frame:?}");
        assert_eq!(Path::new(frame.file.as_ref().unwrap()), script);
    }
    let mut dump = File::open(dir.path().join(format!("jit-{pid}.dump"))).unwrap();
    let (by_dump, outcome) = jitdump(&mut dump, &addresses);
    assert_eq!(outcome, Outcome::Used);
    let functions = |frames: &[Option<Frame>]| -> Vec<String> {
        frames.iter().map(|f| f.as_ref().map_or_else(String::new, |f| f.function.clone())).collect()
    };
    assert_eq!(functions(&by_dump), functions(&by_map));
    // The dump knows lines, those of the function's body.
    let lines: Vec<u32> = by_dump.iter().flatten().filter_map(|f| f.line).collect();
    assert!(lines.iter().all(|line| (1..=3).contains(line)), "{lines:?}");
    assert!(lines.contains(&2), "{lines:?}");
    // An address outside any code.
    let (nothing, _) = jitdump(&mut dump, &[Avma(1)]);
    assert_eq!(nothing, [None]);
}
