//! Our chains against llvm-symbolizer's.

use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Function, file and line.
type Frame = (String, String, u64);
/// Innermost first.
type Chain = Vec<Frame>;

/// Examples that are printed of each kind of difference.
const EXAMPLES: usize = 3;

/// Prints how many addresses have equal chains, and in what the others differ.
///
/// `theirs` is JSON, one object a line, with mangled names (`--no-demangle`): style
/// of demangling is no difference. Both have the addresses in the same order.
pub fn print(theirs: &Path, ours: &Path) -> Result<()> {
    let lines = |path: &Path| Ok::<_, anyhow::Error>(BufReader::new(File::open(path)?).lines());
    let mut kinds: BTreeMap<&'static str, (usize, Vec<String>)> = BTreeMap::new();
    let mut total = 0;
    let (mut theirs, mut ours) = (lines(theirs)?, lines(ours)?);
    loop {
        let (their, our) = match (theirs.next(), ours.next()) {
            (None, None) => break,
            (Some(their), Some(our)) => (their?, our?),
            _ => anyhow::bail!("one of the two ends after {total} addresses"),
        };
        let (address, our_chain) = parse_ours(&our)?;
        let their_chain = parse_theirs(&their)?;
        total += 1;
        let kind = difference(&our_chain, &their_chain);
        let (count, examples) = kinds.entry(kind).or_default();
        *count += 1;
        if kind != EQUAL && examples.len() < EXAMPLES {
            examples.push(format!("{address}\n      ours   {our_chain:?}\n      theirs {their_chain:?}"));
        }
    }
    anyhow::ensure!(total > 0, "nothing to compare");
    for (kind, (count, examples)) in &kinds {
        println!("{:8} {:7.3} %  {kind}", count, *count as f64 * 100.0 / total as f64);
        for example in examples {
            println!("    {example}");
        }
    }
    Ok(())
}

const EQUAL: &str = "equal";

fn difference(ours: &Chain, theirs: &Chain) -> &'static str {
    if ours == theirs {
        return EQUAL;
    }
    match (ours.is_empty(), theirs.is_empty()) {
        (true, false) => return "only llvm-symbolizer knows the address",
        (false, true) => return "only we know the address",
        _ => {}
    }
    if ours.len() != theirs.len() {
        return "inline chains of different length";
    }
    let differs = |what: fn(&Frame, &Frame) -> bool| ours.iter().zip(theirs).any(|(a, b)| what(a, b));
    let outermost_only = ours.split_last().map(|(_, rest)| rest) == theirs.split_last().map(|(_, rest)| rest);
    let (our_last, their_last) = (&ours[ours.len() - 1], &theirs[theirs.len() - 1]);
    let same_place = (&our_last.1, our_last.2) == (&their_last.1, their_last.2);
    if outermost_only && same_place {
        // GCC's copies of a function: .isra.0, .constprop.0, .part.0, .cold.
        if their_last.0.split('.').next() == Some(our_last.0.as_str()) {
            return "equal, but for the suffix of a clone, which only the symbol table has";
        }
        return "the outermost function has another name in the symbol table";
    }
    if differs(|a, b| a.0 != b.0) {
        return "another function";
    }
    if differs(|a, b| a.1 != b.1) { "another file" } else { "another line" }
}

fn parse_ours(line: &str) -> Result<(String, Chain)> {
    let mut fields = line.split('\t');
    let address = fields.next().context("no address")?.to_owned();
    let frames = fields.filter(|f| !f.is_empty()).map(|field| {
        let (function, place) = field.split_once('\u{1f}').context("no place")?;
        let (file, line) = place.rsplit_once(':').context("no line")?;
        Ok((function.to_owned(), plain(file), line.parse()?))
    });
    Ok((address, frames.collect::<Result<_>>()?))
}

fn parse_theirs(line: &str) -> Result<Chain> {
    let value: Value = serde_json::from_str(line)?;
    let frames = value["Symbol"].as_array().map_or(&[][..], Vec::as_slice);
    let chain: Chain = frames
        .iter()
        .map(|frame| {
            let text = |key: &str| frame[key].as_str().unwrap_or_default();
            let function = reprieve_symbolizer::demangle(text("FunctionName"));
            (function, plain(text("FileName")), frame["Line"].as_u64().unwrap_or(0))
        })
        .collect();
    // One frame without anything is its way to know nothing.
    Ok(if chain.iter().all(|(function, file, _)| function.is_empty() && file.is_empty()) { Vec::new() } else { chain })
}

/// `a/./b` and `a/b` are the same file.
fn plain(path: &str) -> String {
    path.replace("/./", "/")
}
