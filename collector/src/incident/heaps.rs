//! Heaps of all processes side by side, each figure with who saw it.

use super::model::{Estimate, Heap, Incident, Process};
use super::profile::counted;

/// One witness's view of one process, or the sum.
#[derive(Debug, Clone, PartialEq)]
pub struct HeapRow<'i> {
    /// Whose heap; `None` in the sum.
    pub process: Option<&'i Process>,
    /// Who saw it, like `malloc`.
    pub witness: &'static str,
    /// Mean bytes between samples; `None` in the sum of several.
    pub period_bytes: Option<u64>,
    /// What was not freed.
    pub inuse: Estimate,
    /// What was ever allocated.
    pub alloc: Estimate,
    /// Bytes of samples that found no room.
    pub lost_bytes: u64,
    /// Whether it is part of the sum: not, if a better witness saw the same.
    pub is_counted: bool,
}

/// One row for each heap, the biggest first, and the sum where there are several.
#[must_use]
pub fn rows(incident: &Incident) -> Vec<HeapRow<'_>> {
    let row = |process, heap: &Heap, is_counted| HeapRow {
        process: Some(process),
        witness: heap.witness.title(),
        period_bytes: Some(heap.period_bytes),
        inuse: heap.inuse,
        alloc: heap.alloc,
        lost_bytes: heap.lost_bytes,
        is_counted,
    };
    let mut rows: Vec<HeapRow<'_>> = incident
        .processes
        .iter()
        .flat_map(|process| process.heaps.iter().map(move |heap| (process, heap)))
        .map(|(process, heap)| row(process, heap, counted(process).any(|c| c.witness == heap.witness)))
        .collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.inuse.bytes));
    if rows.len() > 1 {
        rows.extend(sum(&rows));
    }
    rows
}

/// The rows that count, added up; errors of different heaps are independent.
/// `None` without any.
#[must_use]
pub fn sum(rows: &[HeapRow<'_>]) -> Option<HeapRow<'static>> {
    let counted = || rows.iter().filter(|row| row.is_counted);
    let first = counted().next()?;
    let same = counted().all(|row| row.period_bytes == first.period_bytes);
    Some(HeapRow {
        process: None,
        witness: "all",
        period_bytes: first.period_bytes.filter(|_| same),
        inuse: add(counted().map(|row| row.inuse)),
        alloc: add(counted().map(|row| row.alloc)),
        lost_bytes: counted().map(|row| row.lost_bytes).sum(),
        is_counted: true,
    })
}

fn add(estimates: impl Iterator<Item = Estimate>) -> Estimate {
    let (mut sum, mut bytes, mut objects) = (Estimate::default(), 0.0, 0.0);
    for e in estimates {
        sum.bytes += e.bytes;
        sum.objects += e.objects;
        sum.samples += e.samples;
        bytes += (e.sigma_bytes as f64).powi(2);
        objects += (e.sigma_objects as f64).powi(2);
    }
    Estimate { sigma_bytes: bytes.sqrt() as u64, sigma_objects: objects.sqrt() as u64, ..sum }
}
