//! `cargo xtask kernel matrix`: the series compiled in every way that its options
//! allow, with all warnings, by sparse and for arm64; and the device as a module.
//!
//! Compiled are the files that the series touches and some that include its headers.
//! What counts is what is new: the same files are compiled without the series first.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::cache::{self, Lock, Scratch};
use super::kernel::{self, Flavor, Toolchain};
use super::{Cgroup, Extras, GuestSpec, config, make, run_with, splat};
use crate::deps::{self, Package};

const PACKAGES: &[Package] = &[Package { name: "sparse", why: "the kernel's checker of address spaces and locks" }];

/// For another architecture; none is for the machine's.
const ARM64: &str = "ARCH=arm64";

/// What a matrix takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Also compile after each patch of the series, with its options and without
    #[arg(long)]
    each: bool,
    /// Only the rows whose name contains this
    #[arg(long)]
    only: Option<String>,
}

/// One way to configure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Options {
    memcg: bool,
    memcg_v1: bool,
    rust: bool,
    /// Of the series.
    hold: bool,
    /// `n`, `m` or `y`.
    reserve: char,
}

impl Options {
    /// All that the dependencies allow and that differ where the series looks.
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for rust in [false, true] {
            all.push(Self { memcg: false, memcg_v1: false, rust, hold: false, reserve: 'n' });
            for memcg_v1 in [false, true] {
                all.push(Self { memcg: true, memcg_v1, rust, hold: false, reserve: 'n' });
                for &reserve in if rust { &['m', 'y'][..] } else { &['n'] } {
                    all.push(Self { memcg: true, memcg_v1, rust, hold: true, reserve });
                }
            }
        }
        all
    }

    /// As a fragment that wins over those of the guests. Without RUST, the option
    /// says so; the others of the series do not exist where they cannot be set.
    fn fragment(self) -> String {
        let line = |name: &str, value: char| match value {
            'n' => format!("# CONFIG_{name} is not set\n"),
            value => format!("CONFIG_{name}={value}\n"),
        };
        let letter = |set: bool| if set { 'y' } else { 'n' };
        [
            line("MEMCG", letter(self.memcg)),
            line("MEMCG_V1", letter(self.memcg_v1)),
            line("RUST", letter(self.rust)),
            line("OOM_HOLD", letter(self.hold)),
            line("OOM_RESERVE", self.reserve),
        ]
        .concat()
    }

    /// What of the touched files exists so configured, on that architecture.
    fn objects(self, arm64: bool) -> Vec<&'static str> {
        // The first two lines include headers that the series changes.
        let mut objects = vec!["mm/memory.o", "fs/exec.o", "mm/vmscan.o"];
        objects.push(if arm64 { "arch/arm64/kernel/entry-common.o" } else { "kernel/entry/common.o" });
        objects.extend(["kernel/fork.o", "kernel/exit.o", "kernel/cgroup/cgroup.o"]);
        objects.extend(["mm/oom_kill.o", "mm/page_alloc.o", "mm/vmstat.o"]);
        objects.extend(if self.memcg { &["mm/memcontrol.o", "mm/page_counter.o"][..] } else { &[] });
        objects.extend(self.memcg_v1.then_some("mm/memcontrol-v1.o"));
        objects.extend(self.hold.then_some("mm/oom_hold.o"));
        objects.extend(if self.rust { &["rust/helpers/helpers.o", "rust/kernel.o"][..] } else { &[] });
        objects.extend((self.reserve != 'n').then_some("drivers/misc/oom_reserve.o"));
        objects
    }

    fn name(self) -> String {
        let mark = |set: bool| if set { 'y' } else { '-' };
        let [memcg, v1, rust, hold] = [self.memcg, self.memcg_v1, self.rust, self.hold].map(mark);
        format!("MEMCG {memcg}  V1 {v1}  RUST {rust}  HOLD {hold}  RESERVE {}", self.reserve)
            .replace("RESERVE n", "RESERVE -")
    }
}

/// Complaints without their line numbers, and how often each came.
type Complaints = BTreeMap<String, usize>;

/// What is checked, for the table.
struct Row {
    name: String,
    seconds: f64,
    /// What is wrong; empty if nothing.
    problem: String,
}

/// The trees and how to build in them.
struct Matrix {
    toolchain: Toolchain,
    fragments: Vec<PathBuf>,
    /// With the series.
    series: PathBuf,
    /// Without.
    plain: PathBuf,
    /// Of what is built.
    out: PathBuf,
}

/// What was checked.
struct Table<'a> {
    rows: Vec<Row>,
    /// What names of rows must contain.
    only: &'a str,
}

impl Table<'_> {
    fn wants(&self, name: &str) -> bool {
        name.contains(self.only)
    }

    /// Notes how a check went, and shows at once what is wrong.
    fn row(&mut self, name: &str, check: impl FnOnce() -> Result<()>) {
        if !self.wants(name) {
            return;
        }
        let begun = Instant::now();
        let problem = check().err().map_or_else(String::new, |error| format!("{error:#}"));
        let seconds = begun.elapsed().as_secs_f64();
        println!("{name}: {} in {seconds:.0} s", if problem.is_empty() { "good" } else { &problem });
        self.rows.push(Row { name: name.to_owned(), seconds, problem });
    }

    /// Prints all; whether all is good.
    fn print(&self) -> bool {
        let failed = self.rows.iter().filter(|row| !row.problem.is_empty()).count();
        println!();
        for row in &self.rows {
            let word = if row.problem.is_empty() { "good" } else { "BAD" };
            println!("{:48}  {:5.0} s  {word}", row.name, row.seconds);
        }
        println!("{} good, {failed} bad", self.rows.len() - failed);
        failed == 0
    }
}

/// Builds all and prints a table.
///
/// # Errors
///
/// When the trees cannot be made. What does not compile is a row of the table.
pub(super) fn check(root: &Path, arguments: &Arguments) -> Result<ExitCode> {
    deps::ensure(PACKAGES)?;
    // First, because it has a build of its own, under its own lock.
    let mut table = Table { rows: Vec::new(), only: arguments.only.as_deref().unwrap_or_default() };
    table.row("module: loaded, used, busy, unloaded", || module(root));
    let toolchain = kernel::toolchain()?;
    let cache = cache::directory()?;
    let lock = Lock::take(&cache.join("series.lock"))?;
    let scratch = Scratch::make(cache.join("matrix"))?;
    let log = cache.join("matrix.log");
    fs::File::create(&log).with_context(|| format!("{}: cannot be made", log.display()))?;
    let [plain, series] = ["plain", "series"].map(|name| scratch.path().join(name));
    for (tree, patches) in [(&plain, Vec::new()), (&series, kernel::series(root)?)] {
        fs::create_dir(tree).with_context(|| format!("{}: cannot be made", tree.display()))?;
        kernel::unpack(tree, &patches, &log)?;
    }
    let matrix = Matrix {
        toolchain,
        fragments: config::fragments(&root.join("kernel/config"))?,
        series: series.join(kernel::TREE),
        plain: plain.join(kernel::TREE),
        out: scratch.path().to_owned(),
    };
    matrix.compile_all(&mut table);
    matrix.sparse(&mut table);
    matrix.arm64(&mut table);
    if arguments.each {
        matrix.each_patch(&kernel::series(root)?, &log, &mut table);
    }
    drop(lock);

    // No row of that name is a mistake, not a success.
    Ok(if table.print() && !table.rows.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Matrix {
    /// Every combination, with the warnings of `W=1` that the plain tree lacks.
    fn compile_all(&self, table: &mut Table) {
        let richest = Options { memcg: true, memcg_v1: true, rust: false, hold: false, reserve: 'n' };
        let poorest = Options { memcg: false, memcg_v1: false, ..richest };
        let mut known = Complaints::new();
        if Options::all().iter().any(|options| table.wants(&options.name())) {
            for options in [poorest, richest] {
                match self.compile(&self.plain, "plain", options, &["W=1"]) {
                    Ok(complaints) => merge(&mut known, complaints),
                    // A tree that does not compile has no warnings to compare with.
                    Err(error) => eprintln!("without the series, {}: {error:#}", options.name()),
                }
            }
        }
        for options in Options::all() {
            let folder = if options.rust { "rust" } else { "c" };
            table.row(&options.name(), || no_new(&self.compile(&self.series, folder, options, &["W=1"])?, &known));
        }
    }

    /// sparse on the touched files, with the series and without.
    fn sparse(&self, table: &mut Table) {
        let plain = Options { memcg: true, memcg_v1: true, rust: false, hold: false, reserve: 'n' };
        let check = ["C=2", "CHECK=sparse"];
        table.row("sparse: no new line", || {
            let before = self.compile(&self.plain, "plain", plain, &check)?;
            no_new(&self.compile(&self.series, "c", Options { hold: true, ..plain }, &check)?, &before)
        });
    }

    /// The touched files for another architecture; no Rust there.
    fn arm64(&self, table: &mut Table) {
        let plain = Options { memcg: true, memcg_v1: true, rust: false, hold: false, reserve: 'n' };
        let arguments = [ARM64, "W=1"];
        table.row("arm64: MEMCG y  V1 y  HOLD y", || {
            let before = self.compile(&self.plain, "plain-arm64", plain, &arguments)?;
            no_new(&self.compile(&self.series, "arm64", Options { hold: true, ..plain }, &arguments)?, &before)
        });
    }

    /// After each patch, in the tree that was plain until now.
    fn each_patch(&self, patches: &[PathBuf], log: &Path, table: &mut Table) {
        let full = Options { memcg: true, memcg_v1: true, rust: false, hold: true, reserve: 'n' };
        for patch in patches {
            let name = patch.file_name().unwrap_or_default().to_string_lossy().into_owned();
            table.row(&name.chars().take(48).collect::<String>(), || {
                kernel::apply_one(&self.plain, patch, log)?;
                // Some come before the first that adds an option, or touches rust/.
                let there = |file: &str| self.plain.join(file).exists();
                let (hold, rust) = (there("mm/oom_hold.c"), there("rust/kernel/miscdevice.rs"));
                let reserve = if there("drivers/misc/oom_reserve.rs") { 'm' } else { 'n' };
                for options in [
                    Options { memcg: false, memcg_v1: false, hold: false, ..full },
                    Options { memcg_v1: false, hold: false, ..full },
                    Options { hold, ..full },
                    Options { hold, rust, reserve, ..full },
                ] {
                    let folder = if options.rust { "plain-rust" } else { "plain" };
                    self.compile(&self.plain, folder, options, &["W=1"])?;
                }
                Ok(())
            });
        }
    }

    /// Configures and compiles the touched files; returns what the compilers mind.
    fn compile(&self, tree: &Path, folder: &str, options: Options, arguments: &[&str]) -> Result<Complaints> {
        let out = self.out.join(format!("o-{folder}"));
        fs::create_dir_all(&out).with_context(|| format!("{}: cannot be made", out.display()))?;
        let output = format!("O={}", out.display());
        let architecture = arguments.iter().filter(|argument| argument.starts_with("ARCH="));
        let common = || std::iter::once(output.as_str()).chain(architecture.clone().copied());
        self.make(tree, common().chain(["allnoconfig"]))?;
        let fragment = out.join("matrix.config");
        fs::write(&fragment, options.fragment())
            .with_context(|| format!("{}: cannot be written", fragment.display()))?;
        let mut merge = Command::new("scripts/kconfig/merge_config.sh");
        merge.args(["-m", "-O"]).arg(&out).arg(out.join(".config")).args(&self.fragments).arg(&fragment);
        if options.rust {
            // Modules, with the device as one.
            let modules = out.join("modules.config");
            fs::write(&modules, "CONFIG_MODULES=y\nCONFIG_MODULE_UNLOAD=y\n")
                .with_context(|| format!("{}: cannot be written", modules.display()))?;
            merge.arg(modules);
        }
        finish(self.toolchain.environment(merge.current_dir(tree)))?;
        self.make(tree, common().chain(["olddefconfig"]))?;
        verify(&out.join(".config"), options)?;
        // Without the warnings and checks, which are for the touched files.
        self.make(tree, common().chain(["prepare"]))?;
        let objects = options.objects(architecture.clone().next() == Some(&ARM64));
        let text = self.make(tree, common().chain(arguments.iter().copied()).chain(objects))?;
        Ok(complaints(&text, tree, &out))
    }

    fn make<'a>(&self, tree: &Path, arguments: impl Iterator<Item = &'a str>) -> Result<String> {
        let mut command = self.toolchain.make(tree);
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        finish(command.arg(format!("-j{jobs}")).args(arguments))
    }
}

/// Runs a command to its end; returns what it printed, and fails with what of it
/// names an error.
fn finish(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?} cannot be run"))?;
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    if !output.status.success() {
        let errors: Vec<&str> = text.lines().filter(|line| make::is_error(line)).take(make::ERRORS_SHOWN).collect();
        bail!("{:?} ended with {}\n{}", command.get_args().collect::<Vec<_>>(), output.status, errors.join("\n"));
    }
    Ok(text)
}

/// Whether the configuration is the one that was asked for: Kconfig drops what it
/// cannot have without a word.
fn verify(config: &Path, options: Options) -> Result<()> {
    let actual = fs::read_to_string(config).with_context(|| format!("{}: cannot be read", config.display()))?;
    for line in options.fragment().lines() {
        let name = line.trim_start_matches("# ").split(['=', ' ']).next().unwrap_or_default();
        let set = actual.lines().find(|actual| actual.starts_with(&format!("{name}=")));
        if set != line.starts_with("CONFIG_").then_some(line) {
            bail!("the configuration has {set:?} where {line:?} was asked for");
        }
    }
    Ok(())
}

/// The lines that complain, without numbers of lines and without where the tree is.
fn complaints(text: &str, tree: &Path, out: &Path) -> Complaints {
    let mut found = Complaints::new();
    for line in text.lines().filter(|line| line.contains("warning: ") || line.contains("error: ")) {
        let line =
            [tree, out].iter().fold(line.to_owned(), |line, path| line.replace(&format!("{}/", path.display()), ""));
        let line = line.trim_start_matches("../");
        let nameless: Vec<&str> = line.split(':').filter(|part| part.parse::<u32>().is_err()).collect();
        *found.entry(nameless.join(":")).or_default() += 1;
    }
    found
}

/// Adds complaints; of the same, the larger number counts.
fn merge(all: &mut Complaints, more: Complaints) {
    for (line, count) in more {
        let most = all.entry(line).or_default();
        *most = count.max(*most);
    }
}

/// Fails with what is there more often than known.
fn no_new(complaints: &Complaints, known: &Complaints) -> Result<()> {
    let new: Vec<&str> = complaints
        .iter()
        .filter(|(line, count)| known.get(*line).is_none_or(|known| known < *count))
        .map(|(line, _)| line.as_str())
        .collect();
    if new.is_empty() { Ok(()) } else { bail!("new:\n{}", new.join("\n")) }
}

/// Longest that the guest may take.
const GUEST_TIME: Duration = Duration::from_secs(240);

/// Loads the device's module in a guest that minds locks and objects: while it is
/// open it stays, else it goes.
fn module(root: &Path) -> Result<()> {
    let kernel = kernel::build(root, Flavor::Module)?;
    let module = kernel.bzimage.with_file_name("oom_reserve.ko");
    let stress = crate::fixtures::build(root)?.join("kernel_stress");
    let script = format!(
        "set -e; ! test -e /dev/oom_reserve
         for turn in 1 2 3; do
             insmod {module}; test -c /dev/oom_reserve; exec 3<>/dev/oom_reserve
             if rmmod oom_reserve 2>/dev/null; then echo unloaded while it was open; exit 1; fi
             test -c /dev/oom_reserve; exec 3>&-
             {stress} 10 $turn
             rmmod oom_reserve; ! test -e /dev/oom_reserve; ! grep oom_reserve /proc/modules
         done",
        module = module.display(),
        stress = stress.display()
    );
    let spec = GuestSpec {
        command: ["sh", "-c", &script].map(str::to_owned).to_vec(),
        env: Vec::new(),
        cwd: PathBuf::from("/"),
        memory_mib: 512,
        cpus: 1,
        timeout: GUEST_TIME,
        cgroup: Cgroup::V2,
        kernel: Flavor::Module,
        terminal: false,
    };
    let mut output = Vec::new();
    let (status, log) = run_with(root, &spec, &Extras::default(), &mut output)?;
    let splats = splat::find(&log).reports;
    if status != 0 || !splats.is_empty() {
        let output = String::from_utf8_lossy(&output);
        bail!("the guest ended with status {status}: {output}\n{}", splats.join("\n"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_twelve_ways() {
        let all = Options::all();
        assert_eq!(all.len(), 12);
        for (at, options) in all.iter().enumerate() {
            assert!(!all[..at].contains(options), "{} twice", options.name());
        }
    }

    #[test]
    fn complaints_are_compared_without_lines() {
        let (tree, out) = (Path::new("/t"), Path::new("/o"));
        let before = complaints("/t/mm/a.c:10:2: warning: unused\n", tree, out);
        let moved = complaints("../mm/a.c:99:2: warning: unused\n  CC mm/a.o\n", tree, out);
        assert!(no_new(&moved, &before).is_ok());
        let twice = complaints("/t/mm/a.c:1:2: warning: unused\n/t/mm/a.c:9:2: warning: unused\n", tree, out);
        assert_eq!(no_new(&twice, &before).unwrap_err().to_string(), "new:\nmm/a.c: warning: unused");
    }
}
