//! `bench symbolize`: the same addresses of the same binaries, sorted, named by us, by two
//! libraries and by three commands.

use super::accounting::Group;
use super::median;
use crate::demo::{BUILD_PACKAGES, target};
use crate::deps::{self, Package};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// The peers that are commands.
const PEERS: &[Package] = &[
    Package { name: "llvm-19", why: "llvm-symbolizer, to compare with" },
    Package { name: "binutils", why: "addr2line, to compare with" },
    Package { name: "elfutils", why: "eu-addr2line, to compare with" },
];
/// A kernel with DWARF 5 by GCC. It is unpacked here, not installed.
const KERNEL_PACKAGE: &str = "linux-image-6.12.117+deb12-cloud-amd64-dbg";
const KERNEL_FILE: &str = "./usr/lib/debug/boot/vmlinux-6.12.117+deb12-cloud-amd64";
/// How many addresses, and how many in the shorter lists.
const COUNTS: [usize; 3] = [1, 1000, 100_000];
/// Contestants that are libraries, in the driver.
const LIBRARIES: &[&str] =
    &["reprieve", "reprieve-lean", "reprieve-2-threads", "addr2line", "blazesym", "blazesym-batch"];
/// More addresses than this take GNU addr2line and eu-addr2line minutes.
const FEW: usize = 1000;
/// How often the memory of a command is looked at.
const LOOK: Duration = Duration::from_millis(2);
/// What is asked of the time for all addresses, and of anonymous memory.
const AIM_OF_ADDR2LINE: f64 = 0.7;
const AIM_OF_BLAZESYM: f64 = 0.5;
const AIM_OF_FASTEST_ON_TWO: f64 = 0.5;
const AIM_BYTES: f64 = 16e6;
const AIM_LEAN_BYTES: f64 = 4e6;
/// What is asked of the share of addresses that llvm-symbolizer says the same of, in percent.
const AIM_EQUAL: f64 = 99.5;
/// A memcg in which 1,000 addresses of a file that is not in memory are named, and the
/// longest that this may take.
const TIGHT_BYTES: u64 = 8 << 20;
const AIM_TIGHT_MS: f64 = 5000.0;

/// One run.
#[derive(Debug, Clone, Copy, Default)]
struct Run {
    /// The work alone in a library, the whole command otherwise.
    ms: f64,
    anonymous_bytes: f64,
    peak_bytes: f64,
    frames: u64,
    unnamed: u64,
}

/// A contestant, its times in milliseconds (first, cold, 1 k, 100 k) and its
/// anonymous memory in bytes, each the median.
type Row<'r> = (&'r str, [Option<f64>; 4], Option<f64>);

/// What is asked for.
pub struct Options<'o> {
    /// Rounds, of which the median counts.
    pub rounds: usize,
    /// A kernel with debug information instead of Debian's.
    pub vmlinux: Option<&'o Path>,
    /// All addresses for GNU addr2line and eu-addr2line, too.
    pub slow: bool,
}

/// Measures and prints.
pub fn run(root: &Path, options: &Options<'_>) -> Result<ExitCode> {
    ensure!(options.rounds > 0, "--rounds must be at least 1");
    deps::ensure(BUILD_PACKAGES)?;
    deps::ensure(PEERS)?;
    let dir = target(root).join("bench-symbolize");
    fs::create_dir_all(&dir)?;
    let driver = build_driver(root, &dir)?;
    let vmlinux = match options.vmlinux {
        Some(path) => path.to_owned(),
        None => unpack_kernel(&dir)?,
    };
    let rust = build_rust(root, &dir)?;
    let mut met = true;
    for (name, file) in [("kernel, DWARF 5 by GCC", &vmlinux), ("reprieve, DWARF 4 by rustc", &rust)] {
        println!("\n== {name}: {} ({} MB)", file.display(), fs::metadata(file)?.len() / 1_000_000);
        met &= one(&driver, &dir, file, options)?;
        met &= tight(&driver, &dir, file, options.rounds)?;
        met &= compare(&driver, &dir, file)?;
    }
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One binary; whether it met the aims.
fn one(driver: &Path, dir: &Path, file: &Path, options: &Options<'_>) -> Result<bool> {
    let count = COUNTS[COUNTS.len() - 1].to_string();
    let text = output(Command::new(driver).arg("addresses").arg(file).arg(&count))?;
    println!("{count} addresses, FNV-1a of the list {:016x}\n", fnv(&text));
    println!(
        "{:20} {:>9} {:>9} {:>9} {:>9} {:>10} {:>8} {:>8} {:>8}",
        "ms", "first", "cold", "1 k", "100 k", "anon MB", "peak MB", "frames", "unnamed"
    );
    let lists: Vec<PathBuf> = COUNTS.iter().map(|n| head(dir, &text, *n)).collect::<Result<_>>()?;
    let commands = ["llvm-symbolizer", "addr2line (GNU)", "eu-addr2line"];
    let names: Vec<&str> = LIBRARIES.iter().chain(&commands).copied().collect();
    // For each contestant: first, cold, 1 k, 100 k.
    let mut runs: Vec<[Vec<Run>; 4]> = names.iter().map(|_| Default::default()).collect();
    for round in 0..options.rounds {
        // Interleaved, so that a slow minute hits all of them.
        for (name, runs) in names.iter().zip(&mut runs) {
            let is_slow = matches!(*name, "addr2line (GNU)" | "eu-addr2line");
            for (column, list) in [(0, 0), (1, 0), (2, 1), (3, 2)] {
                if is_slow && (round > 0 && COUNTS[list] >= FEW || COUNTS[list] > FEW && !options.slow) {
                    continue;
                }
                if column == 1 {
                    evict(file)?;
                }
                runs[column].push(contest(driver, name, file, &lists[list])?);
                if column == 1 {
                    warm(file)?;
                }
            }
        }
    }
    let middle = |runs: &[Run], what: fn(&Run) -> f64| median(runs.iter().map(what).collect());
    let mut last: Vec<Row<'_>> = Vec::new();
    for (name, runs) in names.iter().zip(&runs) {
        let ms = [0, 1, 2, 3].map(|column| middle(&runs[column], |r| r.ms));
        let most = runs.iter().rev().find(|r| !r.is_empty()).map_or(&[][..], Vec::as_slice);
        let anonymous = middle(most, |r| r.anonymous_bytes);
        let show = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.1}"));
        let mega = |value: Option<f64>| show(value.map(|v| v / 1e6));
        let counted = most.first().filter(|r| r.frames > 0);
        println!(
            "{name:20} {:>9} {:>9} {:>9} {:>9} {:>10} {:>8} {:>8} {:>8}",
            show(ms[0]),
            show(ms[1]),
            show(ms[2]),
            show(ms[3]),
            mega(anonymous),
            mega(middle(most, |r| r.peak_bytes)),
            counted.map_or("-".to_owned(), |r| r.frames.to_string()),
            counted.map_or("-".to_owned(), |r| r.unnamed.to_string()),
        );
        last.push((name, ms, anonymous));
    }
    Ok(judge(&last))
}

/// Prints ratios beside the aims; whether all were met.
fn judge(rows: &[Row<'_>]) -> bool {
    let row = |name: &str| rows.iter().find(|r| r.0 == name);
    let ms = |name: &str, column: usize| row(name).and_then(|r| r.1[column]).unwrap_or(f64::INFINITY);
    let bytes = |name: &str| row(name).and_then(|r| r.2).unwrap_or(f64::INFINITY);
    let peers = || rows.iter().filter(|r| !r.0.starts_with("reprieve"));
    let fastest = |column: usize| peers().filter_map(|r| r.1[column]).fold(f64::INFINITY, f64::min);
    let blazesym = ms("blazesym", 3).min(ms("blazesym-batch", 3));
    let checks = [
        ("100 k of addr2line", ms("reprieve", 3) / ms("addr2line", 3), AIM_OF_ADDR2LINE),
        ("100 k of blazesym", ms("reprieve", 3) / blazesym, AIM_OF_BLAZESYM),
        ("100 k on two cores of the fastest peer", ms("reprieve-2-threads", 3) / fastest(3), AIM_OF_FASTEST_ON_TWO),
        ("first symbol, warm, of the fastest peer", ms("reprieve", 0) / fastest(0), 1.0),
        ("first symbol, cold, of the fastest peer", ms("reprieve", 1) / fastest(1), 1.0),
        ("anonymous MB", bytes("reprieve") / 1e6, AIM_BYTES / 1e6),
        ("anonymous MB, lean", bytes("reprieve-lean") / 1e6, AIM_LEAN_BYTES / 1e6),
    ];
    println!();
    for (what, value, aim) in &checks {
        println!("{:4} {what}: {value:.2}, aim {aim}", if value <= aim { "met" } else { "MISS" });
    }
    checks.iter().all(|(_, value, aim)| value <= aim)
}

fn contest(driver: &Path, name: &str, file: &Path, list: &Path) -> Result<Run> {
    if LIBRARIES.contains(&name) {
        let text = output(Command::new(driver).args(["measure", name]).arg(file).arg(list))?;
        let value: Value = serde_json::from_slice(&text)?;
        let number = |key: &str| value[key].as_u64().with_context(|| format!("the driver tells no {key}"));
        return Ok(Run {
            ms: number("us")? as f64 / 1000.0,
            anonymous_bytes: number("anonymous_bytes")? as f64,
            peak_bytes: number("peak_bytes")? as f64,
            frames: number("frames")?,
            unnamed: number("unnamed")?,
        });
    }
    let mut command = match name {
        "llvm-symbolizer" => llvm_symbolizer(file),
        "eu-addr2line" => with_args("eu-addr2line", &["-f", "-i", "-C", "-e"], file),
        _ => with_args("addr2line", &["-f", "-i", "-C", "-a", "-e"], file),
    };
    let begun = Instant::now();
    let mut child = command.stdin(File::open(list)?).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let mut run = Run::default();
    while child.try_wait()?.is_none() {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let bytes = |key: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(key));
            line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<f64>().ok()).unwrap_or(0.0) * 1024.0
        };
        run.anonymous_bytes = run.anonymous_bytes.max(bytes("RssAnon:"));
        run.peak_bytes = run.peak_bytes.max(bytes("VmHWM:"));
        std::thread::sleep(LOOK);
    }
    run.ms = begun.elapsed().as_secs_f64() * 1000.0;
    ensure!(child.wait()?.success(), "{name} failed");
    Ok(run)
}

fn with_args(program: &str, args: &[&str], file: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(args).arg(file);
    command
}

fn llvm_symbolizer(file: &Path) -> Command {
    with_args("llvm-symbolizer-19", &["--inlines", "-e"], file)
}

/// 1,000 addresses, cold, by the lean sweep in a small memcg; whether that met the aim.
fn tight(driver: &Path, dir: &Path, file: &Path, rounds: usize) -> Result<bool> {
    let group = Group::new()?;
    group.limit(TIGHT_BYTES)?;
    let list = dir.join(format!("addresses-{}", COUNTS[1]));
    let mut times = Vec::new();
    for _ in 0..rounds {
        evict(file)?;
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(group.0.join("cgroup.procs")).arg(driver);
        let begun = Instant::now();
        let told = output(command.args(["measure", "reprieve-lean"]).arg(file).arg(&list))?;
        // The whole command: its start is slow there, too.
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
        let told: Value = serde_json::from_slice(&told)?;
        ensure!(told["addresses"] == COUNTS[1], "not all addresses were answered: {told}");
    }
    warm(file)?;
    let ms = median(times).context("no round")?;
    println!(
        "{:4} {} addresses, cold, in a memcg of {} MiB: {ms:.0} ms, aim {AIM_TIGHT_MS}",
        if ms <= AIM_TIGHT_MS { "met" } else { "MISS" },
        COUNTS[1],
        TIGHT_BYTES >> 20
    );
    Ok(ms <= AIM_TIGHT_MS)
}

/// Shares of equal chains, with examples of the others; whether enough are equal.
fn compare(driver: &Path, dir: &Path, file: &Path) -> Result<bool> {
    let list = dir.join(format!("addresses-{}", COUNTS[COUNTS.len() - 1]));
    let (theirs, ours) = (dir.join("llvm.json"), dir.join("ours"));
    // Mangled names: how they are demangled is no difference.
    let status = llvm_symbolizer(file)
        .args(["--no-demangle", "--output-style=JSON"])
        .stdin(File::open(&list)?)
        .stdout(File::create(&theirs)?)
        .status()?;
    ensure!(status.success(), "llvm-symbolizer failed");
    fs::write(&ours, output(Command::new(driver).args(["dump", "reprieve"]).arg(file).arg(&list))?)?;
    println!("\nchains of function, file and line, against llvm-symbolizer:");
    let text = output(Command::new(driver).arg("compare").arg(&theirs).arg(&ours))?;
    let text = String::from_utf8_lossy(&text);
    print!("{text}");
    let (equal, but_for_suffix) =
        (share(&text, |kind| kind == "equal"), share(&text, |kind| kind.starts_with("equal")));
    println!(
        "{:4} equal: {equal:.3} %, with those that differ in a clone's suffix {but_for_suffix:.3} %, aim {AIM_EQUAL}",
        if but_for_suffix >= AIM_EQUAL { "met" } else { "MISS" }
    );
    Ok(but_for_suffix >= AIM_EQUAL)
}

/// Percent of the addresses in lines of count, share, sign and kind of difference.
fn share(text: &str, is_meant: impl Fn(&str) -> bool) -> f64 {
    let lines = text.lines().filter_map(|line| line.split_once(" %  "));
    let meant = lines.filter(|(_, kind)| is_meant(kind));
    meant.filter_map(|(numbers, _)| numbers.split_whitespace().nth(1)?.parse::<f64>().ok()).sum()
}

fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("{command:?} did not start"))?;
    ensure!(output.status.success(), "{command:?} failed");
    Ok(output.stdout)
}

/// A file with the first `count` addresses in ascending order, which is the best case of
/// each contestant.
fn head(dir: &Path, text: &[u8], count: usize) -> Result<PathBuf> {
    let path = dir.join(format!("addresses-{count}"));
    fs::write(&path, sorted(text, count).concat())?;
    Ok(path)
}

fn sorted(text: &[u8], count: usize) -> Vec<&[u8]> {
    let mut lines: Vec<&[u8]> = text.split_inclusive(|&b| b == b'\n').take(count).collect();
    // Hexadecimal without leading zeros: what is longer is bigger.
    lines.sort_by_key(|line| (line.len(), *line));
    lines
}

pub(super) fn build_driver(root: &Path, dir: &Path) -> Result<PathBuf> {
    let status = Command::new("cargo")
        .args(["build", "--release", "--locked", "--manifest-path"])
        .arg(root.join("symbolizer/bench/Cargo.toml"))
        .arg("--target-dir")
        .arg(dir.join("driver"))
        .status()?;
    ensure!(status.success(), "cargo build failed; its words are above");
    Ok(dir.join("driver/release/reprieve-symbolizer-bench"))
}

/// Our own program with all debug information, as rustc makes it.
fn build_rust(root: &Path, dir: &Path) -> Result<PathBuf> {
    let status = Command::new("cargo")
        .args(["build", "--release", "--locked", "-p", "reprieve", "--target-dir"])
        .arg(dir.join("rust"))
        .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_STRIP", "none")
        .current_dir(root)
        .status()?;
    ensure!(status.success(), "cargo build failed; its words are above");
    Ok(dir.join("rust/release/reprieve"))
}

/// Debian's kernel with debug information; the package has 1.8 GB of modules, too.
fn unpack_kernel(dir: &Path) -> Result<PathBuf> {
    let path = dir.join(KERNEL_FILE);
    if !path.exists() {
        println!("downloading {KERNEL_PACKAGE} (318 MB) for a kernel with debug information");
        let script = format!(
            "apt-get download {KERNEL_PACKAGE} && dpkg-deb --fsys-tarfile {KERNEL_PACKAGE}_*.deb | tar -x {KERNEL_FILE} && rm {KERNEL_PACKAGE}_*.deb"
        );
        let status = Command::new("sh").args(["-ec", &script]).current_dir(dir).status()?;
        ensure!(status.success(), "{KERNEL_PACKAGE} could not be had; --vmlinux FILE names another kernel");
    }
    Ok(path)
}

/// Drops a file's page cache.
fn evict(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    // What was just built may not be on disk yet, and stays in memory until it is.
    file.sync_all()?;
    // SAFETY: advice about an open file has no memory of ours in it.
    let result = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    ensure!(result == 0, "posix_fadvise: {}", std::io::Error::from_raw_os_error(result));
    Ok(())
}

fn warm(path: &Path) -> Result<()> {
    std::io::copy(&mut File::open(path)?, &mut std::io::sink())?;
    Ok(())
}

fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    #[test]
    fn addresses_ascend() {
        let lines = super::sorted(b"0xffff\n0x9\n0x10000\n0x1\n", 3);
        assert_eq!(lines.concat(), b"0x9\n0xffff\n0x10000\n");
    }

    #[test]
    fn shares_are_added_up() {
        let text = "   99000  99.000 %  equal\n     600   0.600 %  equal, but for the suffix\n    0x10 100.0 %\n       1   0.001 %  another line\n";
        assert_eq!(super::share(text, |kind| kind == "equal"), 99.0);
        assert_eq!(super::share(text, |kind| kind.starts_with("equal")), 99.6);
    }
}
