//! Mallocs of all processes side by side.

use super::model::{Incident, MallocArena};
use super::units::bytes;

/// A process's malloc in figures for people; those that are not known are a dash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MallocRow {
    /// PID.
    pub pid: i32,
    /// Its name.
    pub name: String,
    /// Chunks given out from arenas.
    pub live: String,
    /// Free chunks.
    pub free: String,
    /// What of those is in memory.
    pub free_resident: String,
    /// Behind the last chunks.
    pub top: String,
    /// Blocks with mappings of their own.
    pub mmapped: String,
    /// Anonymous memory of the process, malloc's or not.
    pub anon: String,
}

/// A row for each process whose malloc was walked, the biggest first.
#[must_use]
pub fn rows(incident: &Incident) -> Vec<MallocRow> {
    let mut walked: Vec<_> = incident.processes.iter().filter_map(|p| Some((p, p.malloc.as_ref()?))).collect();
    walked.sort_by_key(|(process, _)| std::cmp::Reverse(process.memory.pss_anon_bytes));
    let known = |figure: Option<u64>| figure.map_or_else(|| "—".to_owned(), bytes);
    walked
        .into_iter()
        .map(|(process, malloc)| {
            let sum = |of: fn(&MallocArena) -> u64| malloc.arenas.iter().map(of).sum::<u64>();
            MallocRow {
                pid: process.pid,
                name: process.comm.clone(),
                live: bytes(sum(|a| a.live.bytes)),
                free: bytes(sum(|a| a.free.all().bytes)),
                free_resident: known(malloc.arenas.iter().map(|a| a.free_resident_bytes).sum()),
                top: bytes(sum(|a| a.top_bytes)),
                mmapped: known(malloc.mmapped.map(|m| m.bytes)),
                anon: bytes(process.memory.pss_anon_bytes),
            }
        })
        .collect()
}
