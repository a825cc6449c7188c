//! `cargo xtask test`: every check, stage by stage.

use crate::demo::{BUILD_PACKAGES, build_release, target};
use crate::deps::{self, Package};
use crate::failures::Failures;
use crate::labelled::Labelled;
use crate::programs::test_program;
use crate::{deb, fixtures, fuzz, npm, vm};
use anyhow::{Context, Result, bail};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Programs that nobody here wrote, and what the tests compare with.
const TEST_PACKAGES: &[Package] = &[
    Package { name: "binutils", why: "strip, objcopy, dwp and addr2line, to compare symbols with" },
    Package { name: "gcc", why: "programs with each kind of debug information" },
    Package { name: "clang-19", why: "the same by another compiler" },
    Package { name: "lld-19", why: "the same by another linker, which has code at no offset that is its address" },
    Package { name: "gcc-aarch64-linux-gnu", why: "a program of another machine, to unwind" },
    Package { name: "libc6-dev-arm64-cross", why: "the C library that it is linked with" },
    Package { name: "qemu-user", why: "the emulator that runs it, one instruction at a time" },
    Package { name: "dwz", why: "debug information that several files share" },
    Package { name: "xz-utils", why: "MiniDebugInfo, as distributions leave it in stripped programs" },
    Package { name: "debuginfod", why: "a server to fetch debug information from, on loopback" },
    Package { name: "python3", why: "a real program to run out of memory" },
    Package { name: "python3-jsonschema", why: "incidents and exports are checked by their schemas" },
    Package { name: "python3-numpy", why: "a C extension whose arrays belong to lines of Python" },
    Package { name: "chromium", why: "reports and exports are read in it" },
    Package { name: "cmark-gfm", why: "exports in Markdown are read as GitHub does" },
    Package { name: "nodejs", why: "a real program to run out of memory, and to generate code" },
    Package { name: "openjdk-17-jre-headless", why: "a JVM, whose generated code is named; it compiles and has jcmd" },
    Package { name: "redis-server", why: "a real program to run out of memory" },
    Package { name: "redis-tools", why: "the client that fills redis" },
    Package { name: "libjemalloc2", why: "a malloc with a profile of its own" },
    Package { name: "coreutils", why: "sort, a real program to run out of memory" },
    Package { name: "golang-go", why: "victims in Go; its own compiler as one; its pprof reads our profiles" },
    Package { name: "git", why: "a real program whose heap is looked at" },
    Package { name: "sqlite3", why: "a real program whose heap is looked at" },
    Package { name: "libtcmalloc-minimal4", why: "an allocator behind ours" },
    Package { name: "libmimalloc2.0", why: "an allocator behind ours" },
    Package { name: "e2fsprogs", why: "a file system on the disk of a guest" },
    Package { name: "tmux", why: "a terminal on which the console is used like a person does" },
    Package { name: "systemd", why: "its checks of our units, and a real journal" },
    Package { name: "man-db", why: "reads our manual pages" },
    Package { name: "util-linux", why: "unshare and setpriv, to start services like containers do" },
];

/// Where a check says what it does.
type Out<'a> = &'a mut (dyn Write + Send);
/// A named check.
type Stage = (&'static str, fn(&Path, Out<'_>) -> Result<()>);

/// Those that are only unpacked: installed, each would start a server, or a killer.
const UNPACKED: &[Package] = &[
    Package { name: "prometheus", why: "promtool checks our metrics; a real server scrapes them" },
    Package { name: "prometheus-alertmanager", why: "alerts of it reach a webhook" },
    Package { name: "earlyoom", why: "another killer to tell of" },
];

/// In order; a later one may use what an earlier one built.
const STAGES: &[Stage] = &[
    ("packages", packages),
    ("format", format),
    ("lint", lint),
    ("one gimli", one_gimli),
    ("build", build),
    ("tests", tests),
    ("fixtures", fixture_tests),
    ("fuzz", fuzz_shortly),
    ("series", series),
];

/// After those, side by side, one for each processor: a guest has but one, and is
/// no measure of time.
const GUESTS: &[Stage] = &[
    ("guest", guest),
    ("accounting", accounting),
    ("reserve", reserve),
    ("guarding", guarding),
    ("trees", trees),
    ("selftests", selftests),
    ("machine", machine),
];

/// Tests of the collector that run in the guest, under cgroup version 2 and its
/// brake; `v2` only there, the host ignores it.
const GUEST_TESTS: &[&str] = &["v2", "run", SNAPSHOT, "documented", "guardian_dies", "unharmed", GRANTS];
/// What a guard lends, whatever the brake; its throttles are tried on version 1.
const GRANTS: &str = "guard_loans grant";
/// No machine of a guest's size may have so many threads.
const SNAPSHOT: &str = "snapshot --skip ten_thousand_threads";
/// Tests of where every byte went, and of whom the kernel killed first, under version 2.
const ACCOUNTING_TESTS: &[&str] = &["accounting", "growth before_any_hold a_guard_tells"];
/// Makes a disk of the guest's memory, with a file system on it.
const MAKE_DISK: &str = "echo 512M >/sys/block/zram0/disksize; mkfs.ext4 -q /dev/zram0; mkdir /run/disk; \
    mount -t ext4 /dev/zram0 /run/disk";
const DISK: &str = "/run/disk";
/// The same on the kernel with the series, under its brake; `reserve` only there.
const RESERVE_TESTS: &[&str] = &["reserve", "inside", "run", SNAPSHOT, "guardian_dies", "unharmed", GRANTS];
/// Tests of guards under each of the two brakes. What a guard does in how many milliseconds,
/// and how often it wakes, is measured on the host.
const GUARDING_TESTS: &[&str] = &[
    "guard --skip new_ones_are_found_in_time --skip an_idle_guard",
    "console a_hold_of_a_guard without_a_decision a_webhook_and_a_hook what_a_dead_guardian a_console_that",
];
/// The test of `machine` that wants a kernel without the series.
const MACHINE_ON_STOCK: &str = "the_stock_kernel_beside_it";
/// And the one that wants a host without it.
const MACHINE_IS_MISSING: &str = "what_is_missing";
/// Its test that has rounds, and the time for one under emulation.
const MACHINE_ROUNDS: &str = "the_job_of_the_lowest_priority_dies";
const MACHINE_ROUND_TIME: Duration = Duration::from_secs(30);
/// Share of the host's rounds that tests which repeat do there, under emulation.
const ROUNDS_PERCENT: &str = "REPRIEVE_ROUNDS_PERCENT";
const GUEST_ROUNDS_PERCENT: &str = "20";
/// Time for each fuzz target, in seconds.
const FUZZ_SECONDS: u64 = 5;
/// Time for them under emulation.
const GUEST_TIME: Duration = Duration::from_secs(1200);

/// Runs the stages; all of them, so that one run tells everything.
pub fn run(root: &Path, only: Option<&str>) -> Result<ExitCode> {
    let is_asked = |name: &str| only.is_none_or(|only| name.contains(only));
    let mut results = Vec::new();
    for stage in STAGES.iter().filter(|(name, _)| is_asked(name)) {
        results.push(run_one(root, stage, &mut io::stdout()));
    }
    let guests: Vec<&Stage> = GUESTS.iter().filter(|(name, _)| is_asked(name)).collect();
    results.extend(if let [guest] = guests[..] {
        vec![run_one(root, guest, &mut io::stdout())]
    } else {
        run_side_by_side(root, &guests)
    });

    let failed: Vec<_> = results.iter().filter_map(|(name, result)| Some((name, result.as_ref().err()?))).collect();
    // Long ago, with much in between.
    failed.iter().for_each(|(name, error)| println!("\n== {name} FAILED: {error:#}"));
    println!("{} passed, {} failed", results.len() - failed.len(), failed.len());
    // No stage of that name is a mistake, not a success.
    Ok(if failed.is_empty() && !results.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs as many at a time as there are processors, each as soon as it may.
fn run_side_by_side(root: &Path, stages: &[&Stage]) -> Vec<(&'static str, Result<()>)> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..processors.min(stages.len()) {
            scope.spawn(|| {
                while let Some(stage) = stages.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = run_one(root, stage, &mut Labelled::new(stage.0, io::stdout()));
                    results.lock().unwrap_or_else(PoisonError::into_inner).push(result);
                }
            });
        }
    });
    results.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a stage, and says how it ended.
fn run_one(root: &Path, (name, stage): &Stage, out: Out<'_>) -> (&'static str, Result<()>) {
    println!("== {name}");
    let begun = Instant::now();
    let result = stage(root, out);
    let seconds = begun.elapsed().as_secs_f64();
    match &result {
        Ok(()) => println!("== {name}: passed in {seconds:.0} s"),
        Err(error) => println!("== {name}: FAILED in {seconds:.0} s: {error:#}"),
    }
    (name, result)
}

fn packages(_: &Path, _: Out<'_>) -> Result<()> {
    deps::ensure(BUILD_PACKAGES)?;
    deps::ensure(TEST_PACKAGES)
}

fn format(root: &Path, out: Out<'_>) -> Result<()> {
    cargo(root, &["fmt", "--all", "--check"], &[], out)
        .context("run `cargo fmt --all` (`rustup component add rustfmt`)")
}

fn lint(root: &Path, out: Out<'_>) -> Result<()> {
    cargo(root, &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], &[], out)
        .context("`rustup component add clippy` if it is missing")
}

/// gimli's types do not cross versions: two of them would not even compile
/// together where they meet, but would double build time where they do not.
fn one_gimli(root: &Path, _: Out<'_>) -> Result<()> {
    let output = Command::new("cargo")
        .args(["tree", "--workspace", "--duplicates", "--depth", "0"])
        .current_dir(root)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("cargo tree failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let twice: Vec<&str> =
        text.lines().filter(|l| ["gimli ", "object ", "addr2line "].iter().any(|c| l.starts_with(c))).collect();
    if twice.is_empty() { Ok(()) } else { bail!("in the tree more than once: {}", twice.join(", ")) }
}

fn build(root: &Path, _: Out<'_>) -> Result<()> {
    build_release(root)?;
    fixtures::build(root)?;
    fixtures::build_go(root)
}

/// Unit tests and the tests with real memory cgroups.
fn tests(root: &Path, out: Out<'_>) -> Result<()> {
    let fixtures = fixtures::build(root)?;
    fixtures::build_go(root)?;
    let library = build_heap_library(root, out)?;
    let npm = npm::install(&target(root))?;
    let debian = target(root).join("debian");
    deps::unpack(UNPACKED, &debian)?;
    let deb = deb::build(root, "release")?;
    let env = [
        ("REPRIEVE_FIXTURES", fixtures.as_path()),
        ("REPRIEVE_HEAP_LIBRARY", library.as_path()),
        ("REPRIEVE_NPM", npm.as_path()),
        ("REPRIEVE_DEBIAN", debian.as_path()),
        ("REPRIEVE_DEB", deb.as_path()),
    ];
    // One test at a time: each fills memory and measures time.
    cargo(
        root,
        &[
            "test",
            "--release",
            "--no-fail-fast",
            "-p",
            "reprieve",
            "-p",
            "reprieve-symbolizer",
            "-p",
            "reprieve-flamegraph",
            "-p",
            "reprieve-heap",
            "-p",
            "reprieve-heap-table",
            "-p",
            "reprieve-heap-cpython",
            "-p",
            "reprieve-heap-walk",
            "-p",
            "reprieve-oom-uapi",
            "-p",
            "xtask",
            "--",
            "--test-threads=1",
        ],
        &env,
        out,
    )
}

/// `libreprieve_heap.so` as programs get it.
fn build_heap_library(root: &Path, out: Out<'_>) -> Result<PathBuf> {
    cargo(root, &["build", "--profile", "preload", "-p", "reprieve-heap"], &[], out)?;
    Ok(target(root).join("preload/libreprieve_heap.so"))
}

fn fixture_tests(root: &Path, out: Out<'_>) -> Result<()> {
    let fixtures = fixtures::build(root)?;
    cargo(root, &["test", "--release", "-p", "reprieve-fixtures"], &[("REPRIEVE_FIXTURES", fixtures.as_path())], out)
}

/// Each fuzz target for a moment; `cargo xtask fuzz` takes its time.
fn fuzz_shortly(root: &Path, _: Out<'_>) -> Result<()> {
    if fuzz::run(root, None, FUZZ_SECONDS)? == ExitCode::SUCCESS { Ok(()) } else { bail!("a fuzz target crashed") }
}

/// Each patch of the series, as the kernel's own script sees it.
fn series(root: &Path, _: Out<'_>) -> Result<()> {
    vm::check_series(root)
}

/// The same tests on a stock 6.12 kernel with cgroup version 2.
fn guest(root: &Path, out: Out<'_>) -> Result<()> {
    in_guest(root, vm::Flavor::Stock, GUEST_TESTS, 1024, out)
}

/// Each kind of memory under version 2, with a disk.
fn accounting(root: &Path, out: Out<'_>) -> Result<()> {
    let fixtures = fixtures::build(root)?;
    let script = script(root, MAKE_DISK, ACCOUNTING_TESTS)?;
    let mut spec = guest_spec(root, &fixtures, vm::Flavor::Stock, script, 1024);
    spec.env.push(("REPRIEVE_DISK".to_owned(), DISK.to_owned()));
    spec.timeout = 2 * GUEST_TIME;
    run_guest(root, &spec, out)
}

/// The same tests on the kernel with the series.
fn reserve(root: &Path, out: Out<'_>) -> Result<()> {
    in_guest(root, vm::Flavor::Reserve, RESERVE_TESTS, 1024, out)
}

/// Guards and their operators under version 2, by either of its brakes.
fn guarding(root: &Path, out: Out<'_>) -> Result<()> {
    in_guest(root, vm::Flavor::Stock, GUARDING_TESTS, 1024, out)?;
    in_guest(root, vm::Flavor::Reserve, GUARDING_TESTS, 1024, out)
}

/// Whom a guard kills of several jobs in one memcg, under version 2: in all trees.
fn trees(root: &Path, out: Out<'_>) -> Result<()> {
    let fixtures = fixtures::build(root)?;
    let script = script(root, ":", &["trees --nocapture"])?;
    let mut spec = guest_spec(root, &fixtures, vm::Flavor::Reserve, script, 1024);
    spec.env.retain(|(name, _)| name != ROUNDS_PERCENT);
    spec.timeout = 2 * GUEST_TIME;
    run_guest(root, &spec, out)
}

/// The same kernel in a machine that three programs fill, and the stock one beside it; then in one
/// that is filled while somebody decides at the console.
fn machine(root: &Path, out: Out<'_>) -> Result<()> {
    let on_stock = &format!("machine {MACHINE_ON_STOCK} --nocapture");
    in_guest(
        root,
        vm::Flavor::Reserve,
        &[&format!("machine --nocapture --skip {MACHINE_ON_STOCK} --skip {MACHINE_IS_MISSING}")],
        256,
        out,
    )?;
    in_guest(root, vm::Flavor::Stock, &[on_stock], 256, out)?;
    in_guest(root, vm::Flavor::Reserve, &["overload --nocapture"], 384, out)
}

/// Rounds of the machine's OOMs, as many, in such an order and of such jobs as asked for.
///
/// # Errors
///
/// When one has failed, or there was no guest to have them in.
pub(crate) fn machine_rounds(root: &Path, rounds: u32, seed: u64, kind: Option<&str>, out: Out<'_>) -> Result<()> {
    let fixtures = fixtures::build(root)?;
    let script = format!("{} --include-ignored --nocapture {MACHINE_ROUNDS}", test_program(root, "machine")?);
    let mut spec = guest_spec(root, &fixtures, vm::Flavor::Reserve, script, 256);
    spec.env.extend(
        [("REPRIEVE_ROUNDS", u64::from(rounds)), ("REPRIEVE_SEED", seed)].map(|(n, v)| (n.to_owned(), v.to_string())),
    );
    spec.env.extend(kind.map(|kind| ("REPRIEVE_KIND".to_owned(), kind.to_owned())));
    spec.timeout = GUEST_TIME + MACHINE_ROUND_TIME * rounds;
    run_guest(root, &spec, out)
}

/// The kernel's selftests with the series and without, and the series' own.
fn selftests(root: &Path, out: Out<'_>) -> Result<()> {
    vm::test(root, vm::Rounds::DEFAULT, out)
}

/// Runs test programs of the collector, each with options of its own, in a guest with
/// cgroup version 2.
fn in_guest(root: &Path, kernel: vm::Flavor, tests: &[&str], memory_mib: u32, out: Out<'_>) -> Result<()> {
    let fixtures = fixtures::build(root)?;
    let script = script(root, ":", tests)?;
    run_guest(root, &guest_spec(root, &fixtures, kernel, script, memory_mib), out)
}

/// For the shell: `first`, then test programs, each with options of its own.
fn script(root: &Path, first: &str, tests: &[&str]) -> Result<String> {
    // One after the other: in a list of && a failure ends nothing.
    let mut script = format!("set -e; {first}");
    for test in tests {
        let (name, options) = test.split_once(' ').unwrap_or((test, ""));
        script.push_str(&format!("; {} --test-threads=1 --include-ignored {options}", test_program(root, name)?));
    }
    Ok(script)
}

fn guest_spec(root: &Path, fixtures: &Path, kernel: vm::Flavor, script: String, memory_mib: u32) -> vm::GuestSpec {
    vm::GuestSpec {
        command: vec!["sh".to_owned(), "-c".to_owned(), script],
        env: vec![
            ("REPRIEVE_FIXTURES".to_owned(), fixtures.display().to_string()),
            (ROUNDS_PERCENT.to_owned(), GUEST_ROUNDS_PERCENT.to_owned()),
        ],
        cwd: root.join("collector"),
        memory_mib,
        cpus: 1,
        timeout: GUEST_TIME,
        cgroup: vm::Cgroup::V2,
        kernel,
        terminal: false,
    }
}

fn run_guest(root: &Path, spec: &vm::GuestSpec, out: Out<'_>) -> Result<()> {
    let mut failures = Failures::new(out);
    match vm::run(root, spec, &mut failures)? {
        0 => Ok(()),
        status => bail!("the tests in the guest ended with status {status}\n{}", failures.into_text()),
    }
}

fn cargo(root: &Path, args: &[&str], env: &[(&str, &Path)], out: Out<'_>) -> Result<()> {
    let mut command = Command::new("cargo");
    let mut child = command.args(args).envs(env.iter().copied()).current_dir(root).stdout(Stdio::piped()).spawn()?;
    let mut failures = Failures::new(out);
    let copied = child.stdout.take().map_or(Ok(0), |mut said| io::copy(&mut said, &mut failures));
    let status = child.wait()?;
    copied?;
    if status.success() {
        Ok(())
    } else {
        bail!("cargo {} ended with {status}\n{}", args.join(" "), failures.into_text())
    }
}
