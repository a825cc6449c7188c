//! The same addresses on every machine.

use anyhow::{Context, Result};
use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};
use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;

const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// Prints `count` addresses, drawn uniformly from the bytes of functions in
/// `.text` that have a size.
pub fn print(path: &Path, count: usize) -> Result<()> {
    let bytes = fs::read(path)?;
    let file = object::File::parse(&*bytes)?;
    let text = file.section_by_name(".text").context("no .text")?;
    let text = text.address()..text.address() + text.size();
    let mut functions: Vec<(u64, u64)> = file
        .symbols()
        .filter(|s| s.kind() == SymbolKind::Text && s.size() > 0 && text.contains(&s.address()))
        .map(|s| (s.address(), s.size()))
        .collect();
    functions.sort_unstable();
    functions.dedup();
    // Where each function's bytes begin among all.
    let mut begins = Vec::with_capacity(functions.len());
    let mut total = 0;
    for (_, size) in &functions {
        begins.push(total);
        total += size;
    }
    anyhow::ensure!(total > 0, "no functions");
    let mut state = SEED;
    let mut out = BufWriter::new(std::io::stdout().lock());
    for _ in 0..count {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let byte = state % total;
        let which = begins.partition_point(|&b| b <= byte) - 1;
        writeln!(out, "{:#x}", functions[which].0 + byte - begins[which])?;
    }
    Ok(())
}
