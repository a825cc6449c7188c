//! `bench kernel`: what the series costs who does not use it, in instructions of
//! page faults and of small allocations inside a memcg.
//!
//! The kernels differ by the patches only: the same source, configuration and
//! compilers. Guests count instructions (QEMU's `-icount`), so that neither this
//! machine's load nor its caches show. Of the guest's clocks the time stamp counter
//! is the exact one: its read ends the emulator's block of instructions. That is
//! proven in each run by a loop of known length.

use crate::demo::BUILD_PACKAGES;
use crate::deps;
use crate::fixtures;
use crate::vm::{self, Cgroup, Extras, Flavor, GuestSpec};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// What the series may cost without a handler, and with one that has nothing to do.
const AIM: f64 = 1.005;
/// How far the clock may be from the length of the loop: the calls around it.
const CLOCK_TOLERANCE: f64 = 0.001;
/// Time for a guest; it takes some seconds.
const GUEST_TIME: Duration = Duration::from_secs(300);
/// Instructions that clearing a page takes in the emulator: it counts each word of
/// `rep stosq`, a processor counts one. Taken off, for they would hide what differs.
const CLEARING: f64 = 512.0;

/// Instructions per operation.
#[derive(Debug, Clone, Copy)]
struct Costs {
    page_fault: f64,
    pipe_open: f64,
}

/// Measures and prints; fails if an aim is missed.
pub fn run(root: &Path) -> Result<ExitCode> {
    deps::ensure(BUILD_PACKAGES)?;
    let program = fixtures::build(root)?.join("kernel_costs");
    let baseline = measure(root, &program, Flavor::Baseline, false)?;
    let unused = measure(root, &program, Flavor::Reserve, false)?;
    let attached = measure(root, &program, Flavor::Reserve, true)?;

    println!("Instructions per operation in a memcg, medians. A page fault: one of mmap, a touch of each");
    println!("page, munmap, without the clearing of the page. pipe + open: a pipe with a byte in it and a");
    println!("file, opened and closed.\n");
    println!("{:24}  {:>10}  {:>6}  {:>11}  {:>6}", "kernel", "page fault", "ratio", "pipe + open", "ratio");
    let rows =
        [("without the series", baseline), ("series, no handler", unused), ("series, handler attached", attached)];
    for (name, costs) in rows {
        println!(
            "{name:24}  {:10.1}  {:6.4}  {:11.1}  {:6.4}",
            costs.page_fault,
            costs.page_fault / baseline.page_fault,
            costs.pipe_open,
            costs.pipe_open / baseline.pipe_open
        );
    }
    let mut all_met = true;
    println!();
    for (name, costs) in &rows[1..] {
        let ratios = [
            ("page fault", costs.page_fault / baseline.page_fault),
            ("pipe + open", costs.pipe_open / baseline.pipe_open),
        ];
        for (operation, ratio) in ratios {
            let word = if ratio <= AIM { "met" } else { "MISSED" };
            println!("{operation}, {name} / {}: {ratio:.4}; aim {AIM}: {word}", rows[0].0);
            all_met &= ratio <= AIM;
        }
    }
    Ok(if all_met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One guest.
fn measure(root: &Path, program: &Path, kernel: Flavor, handler: bool) -> Result<Costs> {
    let mut command = vec![program.display().to_string()];
    command.extend(handler.then(|| "--handler".to_owned()));
    let spec = GuestSpec {
        command,
        env: Vec::new(),
        cwd: PathBuf::from("/"),
        memory_mib: 1024,
        cpus: 1,
        timeout: GUEST_TIME,
        cgroup: Cgroup::V2,
        kernel,
        terminal: false,
    };
    let extras = Extras { counted: true, ..Extras::default() };
    let mut output = Vec::new();
    let (status, _) = vm::run_with(root, &spec, &extras, &mut output)?;
    let text = String::from_utf8_lossy(&output);
    ensure!(status == 0, "the loads ended with status {status}: {text}");
    let values: serde_json::Value =
        serde_json::from_str(text.trim()).with_context(|| format!("the loads said {text:?}"))?;
    let number = |name: &str| values[name].as_f64().with_context(|| format!("the loads told no {name}: {text}"));

    let (counted, known) = (number("loop")?, number("loop_instructions")?);
    ensure!(
        (counted / known - 1.0).abs() <= CLOCK_TOLERANCE,
        "a loop of {known} instructions took {counted} ticks: this clock does not count them"
    );
    let (filled, words) = (number("fill")?, number("fill_words")?);
    ensure!(filled >= words, "{words} words filled by one instruction took {filled} ticks: they are not counted");
    eprintln!("{kernel:?}: a loop of {known} instructions took {counted} ticks, a fill of {words} words {filled}");
    Ok(Costs { page_fault: number("page_fault")? - CLEARING, pipe_open: number("pipe_open")? })
}
