//! `bench bell`: from the moment at which a memcg is full to the one at which all of its threads
//! stand still, as they note it themselves, by how many memcgs are guarded.

use super::field::{Field, Guard, wait_for};
use super::median;
use crate::demo::BUILD_PACKAGES;
use crate::{deps, fixtures};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// How many memcgs are guarded.
const COUNTS: [usize; 3] = [1, 100, 1000];
/// Guards of each count, in turns: a machine is not the same for minutes.
const TURNS: usize = 3;
const LIMIT_BYTES: u64 = 16 << 20;
const PAGE_BYTES: u64 = 4096;
/// Threads of the victim beside the one that takes memory.
const THREADS: usize = 4;
/// Words of the file that the victim writes (fixtures/bench/bell.c).
const MOST_PAGES: usize = 16384;
/// How much longer it may take with many than with one.
const AIM_RATIO: f64 = 1.2;
/// Without incidents: to write one takes the CPU after the stop, which the next must not see.
const CONFIG: &str = "[guard]\non_oom = ['kill']\ncooldown = '1h'\n";

struct Bench {
    program: PathBuf,
    victim: PathBuf,
}

/// Measures and prints.
pub fn run(root: &Path, program: &Path, rounds: usize) -> Result<ExitCode> {
    ensure!(rounds > 0, "--rounds must be at least 1");
    deps::ensure(BUILD_PACKAGES)?;
    let victim = fixtures::build_bench_in_c(root)?.join("bell");
    let bench = Bench { program: program.to_owned(), victim };
    let mut times: [Vec<f64>; COUNTS.len()] = Default::default();
    for turn in 0..TURNS {
        for (count, times) in COUNTS.iter().zip(&mut times) {
            eprintln!("turn {} of {TURNS}: {count} guarded", turn + 1);
            times.extend(bench.with(*count, rounds)?);
        }
    }
    println!("From a full memcg to {} threads that stand still, in ms; {} OOMs each.\n", THREADS + 1, rounds * TURNS);
    println!("{:>8} {:>9} {:>9} {:>9} {:>7}", "guarded", "median", "least", "most", "ratio");
    let mut medians = Vec::new();
    for (count, times) in COUNTS.iter().zip(&times) {
        let middle = median(times.clone()).context("no round")?;
        medians.push(middle);
        let least = times.iter().copied().fold(f64::INFINITY, f64::min);
        let most = times.iter().copied().fold(0.0, f64::max);
        println!("{count:8} {middle:9.3} {least:9.3} {most:9.3} {:7.3}", middle / medians[0]);
    }
    let met = medians.iter().all(|middle| middle / medians[0] <= AIM_RATIO);
    println!("\nratio to one at most {AIM_RATIO}: {}", if met { "met" } else { "MISSED" });
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Bench {
    /// Milliseconds of each OOM under one guard; its first is not counted.
    fn with(&self, count: usize, rounds: usize) -> Result<Vec<f64>> {
        let field = Field::new()?;
        let dirs: Vec<PathBuf> =
            (0..count).map(|number| field.memcg(&format!("bell{number}"), LIMIT_BYTES)).collect::<Result<_>>()?;
        let guard = Guard::start(&self.program, CONFIG, &field.glob(), count)?;
        let times: Result<Vec<f64>> = (0..=rounds).map(|_| self.one(&field, &dirs[count / 2], &guard)).collect();
        Ok(times?.split_off(1))
    }

    fn one(&self, field: &Field, dir: &Path, guard: &Guard) -> Result<f64> {
        // Of a file on a disk a note would wait for who writes it back.
        let notes = tempfile::NamedTempFile::new_in("/dev/shm")?;
        let before = guard.log().matches("out of memory at").count();
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(dir.join("cgroup.procs")).arg(&self.victim);
        command.arg(LIMIT_BYTES.to_string()).arg(field.usage_file(dir)).arg(notes.path()).arg(THREADS.to_string());
        let status = command.stdin(Stdio::null()).status()?;
        ensure!(status.signal() == Some(libc::SIGKILL), "the victim ended with {status}: {}", guard.log());
        // Its hold is over, too.
        wait_for("the verdict", || guard.log().matches("out of memory at").count() > before)?;
        let bytes = fs::read(notes.path())?;
        let words: Vec<u64> =
            bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap_or_default())).collect();
        let nanoseconds = full_to_still(&words)?;
        Ok(nanoseconds as f64 / 1e6)
    }
}

/// What the victim's notes say, in ns.
fn full_to_still(words: &[u64]) -> Result<u64> {
    let (Some(usage), Some(pages), Some(threads)) =
        (words.first(), words.get(1..=MOST_PAGES), words.get(1 + MOST_PAGES..1 + MOST_PAGES + THREADS))
    else {
        bail!("the victim's notes have {} words", words.len());
    };
    // A note that was never written is 1.
    let touched: Vec<u64> = pages.iter().copied().take_while(|time| *time > 1).collect();
    let free = LIMIT_BYTES.saturating_sub(*usage) / PAGE_BYTES;
    // Where the kernel stopped it before that, by its last one.
    let full = touched.get(free as usize).or(touched.last()).context("the victim touched nothing")?;
    let still = touched.last().into_iter().chain(threads).max().context("the victim has no threads")?;
    Ok(still.saturating_sub(*full))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_the_page_that_filled_it_to_the_last_note_of_all() {
        let mut words = vec![1; 1 + MOST_PAGES + THREADS];
        words[0] = LIMIT_BYTES - 2 * PAGE_BYTES;
        words[1..6].copy_from_slice(&[100, 200, 300, 400, 500]);
        assert_eq!(full_to_still(&words).unwrap(), 200);
        words[1 + MOST_PAGES + 2] = 750;
        assert_eq!(full_to_still(&words).unwrap(), 450);
        // It did not get that far.
        words[0] = LIMIT_BYTES - 20 * PAGE_BYTES;
        assert_eq!(full_to_still(&words).unwrap(), 250);
        assert!(full_to_still(&words[..9]).is_err());
    }
}
