//! What this process has in memory.

use anyhow::{Context, Result};
use std::fs;

/// `RssAnon` (proc(5)).
pub fn anonymous_bytes() -> Result<u64> {
    status("RssAnon:")
}

/// `VmHWM`, with mapped files.
pub fn peak_bytes() -> Result<u64> {
    status("VmHWM:")
}

fn status(key: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|l| l.strip_prefix(key)).with_context(|| format!("no {key}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}
