//! One contestant, one file, one list of addresses, or one process: for `cargo xtask bench
//! symbolize` and `unwind`, which starts each in a process of its own and compares them.
//!
//! ```text
//! reprieve-symbolizer-bench addresses FILE COUNT        a list, one a line
//! reprieve-symbolizer-bench measure WHO FILE LIST       JSON
//! reprieve-symbolizer-bench dump WHO FILE LIST          chains, one line an address
//! reprieve-symbolizer-bench compare LLVM_JSON DUMP      share of equal chains
//! reprieve-symbolizer-bench unwind PID PASSES           JSON
//! ```

mod addresses;
mod compare;
mod contestants;
mod memory;
mod unwinding;

use anyhow::{Context, Result, bail};
use contestants::{Contestant, Questions, Tally};
use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["addresses", file, count] => addresses::print(Path::new(file), count.parse()?),
        ["measure", who, file, list] => measure(who.parse()?, Path::new(file), &read(list)?),
        ["dump", who, file, list] => dump(who.parse()?, Path::new(file), &read(list)?),
        ["compare", theirs, ours] => compare::print(Path::new(theirs), Path::new(ours)),
        ["unwind", pid, passes] => unwinding::print(pid.parse()?, passes.parse()?),
        _ => bail!("see the top of main.rs"),
    }
}

fn read(list: &str) -> Result<Questions> {
    let text = fs::read_to_string(list).with_context(|| format!("failed to read {list}"))?;
    let parse = |line: &str| Ok(u64::from_str_radix(line.trim_start_matches("0x"), 16)?);
    Ok(Questions::new(text.lines().map(parse).collect::<Result<_>>()?))
}

/// Counts what comes out and throws it away, so that memory is the contestant's.
fn measure(who: Contestant, file: &Path, questions: &Questions) -> Result<()> {
    let mut tally = Tally::default();
    let before = memory::anonymous_bytes()?;
    let begun = Instant::now();
    let mut most = before;
    who.run(file, questions, &mut |_, chain| {
        tally.count(chain);
        // Asking costs as much as dozens of addresses.
        if tally.addresses.is_multiple_of(1024) {
            most = most.max(memory::anonymous_bytes().unwrap_or(0));
        }
    })?;
    let time = begun.elapsed();
    let after = memory::anonymous_bytes()?;
    println!(
        "{}",
        serde_json::json!({
            "us": time.as_micros() as u64,
            "addresses": tally.addresses,
            "frames": tally.frames,
            "unnamed": tally.unnamed,
            "anonymous_bytes": most.max(after) - before,
            "peak_bytes": memory::peak_bytes()?,
        })
    );
    Ok(())
}

fn dump(who: Contestant, file: &Path, questions: &Questions) -> Result<()> {
    let addresses = questions.addresses();
    let mut lines = vec![String::new(); addresses.len()];
    who.run(file, questions, &mut |index, chain| {
        let frames = chain.iter().map(|f| format!("{}\u{1f}{}:{}", f.function, f.path(), f.line));
        lines[index] = format!("{:#x}\t{}", addresses[index], frames.collect::<Vec<_>>().join("\t"));
    })?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    lines.iter().try_for_each(|line| writeln!(out, "{line}"))?;
    Ok(())
}
