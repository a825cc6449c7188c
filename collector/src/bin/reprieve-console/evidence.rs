//! What is known of a hold: its incident, as it was recorded when it began.

use reprieve::analyst::SYMBOLS;
use reprieve::incident::model::{Incident, Symbols};
use reprieve::incident::profile::{self, View, meaning};
use reprieve::incident::read::read_incident;
use reprieve::incident::store::{DRAFT, INCIDENT};
use reprieve::incident::{accounts, units};
use std::fs;
use std::path::Path;

/// What memory.stat has in bytes and by what it is used for, on both versions of cgroups; the
/// rest are counts, limits, lists of the reclaim, or sums with those below
/// (Documentation/admin-guide/cgroup-v1/memory.rst, cgroup-v2.rst). For incidents without
/// an accounting.
const IN_BYTES: [&str; 15] = [
    "anon",
    "cache",
    "file",
    "kernel_stack",
    "mapped_file",
    "pagetables",
    "percpu",
    "rss",
    "sec_pagetables",
    "shmem",
    "slab",
    "sock",
    "swap",
    "vmalloc",
    "zswap",
];

/// What is known.
#[derive(Debug)]
pub struct Evidence {
    incident: Incident,
    views: Vec<View>,
}

impl Evidence {
    /// Reads it; the error is a sentence.
    pub fn read(folder: &Path) -> Result<Self, String> {
        let draft = folder.join(DRAFT);
        let file = if draft.exists() { draft } else { folder.join(INCIDENT) };
        let mut incident = read_incident(&file).map_err(|error| error.to_string())?;
        let symbols = fs::read(folder.join(SYMBOLS)).ok();
        if let Some(symbols) = symbols.and_then(|text| serde_json::from_slice::<Symbols>(&text).ok()) {
            incident.symbols = symbols;
        }
        let views = profile::views(&incident);
        Ok(Evidence { incident, views })
    }

    /// How many profiles there are.
    pub fn profiles(&self) -> usize {
        self.views.iter().map(|view| view.profile.sample_types.len()).sum()
    }

    /// The profile of a number, and its heading.
    pub fn profile(&self, number: usize) -> Option<(String, &reprieve_flamegraph::Profile, usize)> {
        let all = self.views.iter().flat_map(|view| (0..view.profile.sample_types.len()).map(move |at| (view, at)));
        all.into_iter().nth(number).map(|(view, at)| {
            let kind = &view.profile.sample_types[at].kind;
            (format!("{} ({})", view.title, meaning(kind)), &view.profile, at)
        })
    }

    /// Its processes, the biggest first.
    pub fn processes(&self) -> Vec<String> {
        let mut processes: Vec<_> = self.incident.processes.iter().collect();
        processes.sort_by_key(|process| std::cmp::Reverse(process.memory.pss_bytes));
        let head = "     PID        RSS       ANON   SWAPPED  THREADS  ADJ     AGE  NAME".to_owned();
        let row = |process: &&reprieve::incident::model::Process| {
            format!(
                "{:>8} {:>10} {:>10} {:>9} {:>8} {:>4} {:>5.0} s  {}",
                process.pid,
                units::bytes(process.memory.rss_bytes),
                units::bytes(process.memory.pss_anon_bytes),
                units::bytes(process.memory.swap_pss_bytes),
                process.threads.len(),
                process.oom_score_adj,
                process.age_s,
                process.comm
            )
        };
        std::iter::once(head).chain(processes.iter().map(row)).collect()
    }

    /// What its memcg is charged for.
    pub fn memory(&self) -> Vec<String> {
        let rows = accounts::rows(&self.incident);
        if !rows.is_empty() {
            let row = |row: accounts::AccountRow| {
                let mark = if row.is_unexplained { "? " } else { "" };
                format!("{:>10} {:>8}  {}{mark}{}", row.bytes, row.share, "  ".repeat(row.depth), row.what)
            };
            return rows.into_iter().map(row).collect();
        }
        let Some(memcg) = &self.incident.memcg else { return vec!["nothing is known of its memory".to_owned()] };
        let is_told = |name: &String, bytes: u64| bytes >= 4096 && IN_BYTES.contains(&name.as_str());
        let mut stat: Vec<_> = memcg.stat.iter().filter(|(name, bytes)| is_told(name, **bytes)).collect();
        stat.sort_by_key(|(_, bytes)| std::cmp::Reverse(**bytes));
        stat.into_iter().map(|(name, bytes)| format!("{:>10}  {name}", units::bytes(*bytes))).collect()
    }
}
