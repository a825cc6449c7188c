//! What grew since the record of the baseline until the memcg was full: one phrase, and the
//! rows behind it.

use super::baseline::Baseline;
use super::model::Incident;
use super::profile;
use super::units::bytes;
use reprieve_flamegraph::{Frame, FrameKind, Profile};
use std::collections::BTreeMap;

/// A place is named alone when this part of the growth is its.
const TELLING: f64 = 0.25;

/// What grew, or shrank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grown {
    /// Function, process or kind of memory.
    pub place: String,
    /// In the record.
    pub before_bytes: u64,
    /// At the OOM.
    pub after_bytes: u64,
}

impl Grown {
    /// How much more there is.
    #[must_use]
    pub fn growth(&self) -> i64 {
        self.after_bytes as i64 - self.before_bytes as i64
    }

    /// `+360 MiB`.
    #[must_use]
    pub fn signed(&self) -> String {
        let sign = if self.growth() < 0 { '−' } else { '+' };
        format!("{sign}{}", bytes(self.growth().unsigned_abs()))
    }
}

/// `+360 MiB in Cache::insert, 40 s`; `None` without a record to compare with, or where
/// nothing grew.
#[must_use]
pub fn line(incident: &Incident) -> Option<String> {
    line_of(incident, functions(incident))
}

/// The same where the functions are known.
pub(super) fn line_of(incident: &Incident, functions: Vec<Grown>) -> Option<String> {
    let baseline = incident.baseline.as_ref().filter(|baseline| is_compared(baseline))?;
    let whole = baseline.after_bytes.saturating_sub(baseline.before_bytes);
    let tells = |grown: &Grown| grown.growth() > 0 && grown.growth() as f64 >= whole as f64 * TELLING;
    let place = |rows: Vec<Grown>, how: fn(&Grown) -> String| rows.into_iter().next().filter(tells).map(|g| how(&g));
    let time = span(baseline.span_us());
    let what = place(functions, |g| format!("{} in {}", g.signed(), g.place))
        .or_else(|| place(kinds_but_anonymous(baseline), |g| format!("{} of {}", g.signed(), g.place)))
        .or_else(|| place(processes(baseline), |g| format!("{} in {}", g.signed(), g.place)))
        .or_else(|| (whole > 0).then(|| format!("+{} charged", bytes(whole))))?;
    Some(format!("{what}, {time}"))
}

/// `71 % of the heap in Cache::insert`; `None` where no heap was recorded, or no function
/// stands out.
#[must_use]
pub fn owner(incident: &Incident) -> Option<String> {
    let heap = profile::heap(incident);
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for sample in &heap.samples {
        let live = sample.values.first().map_or(0, |value| value.unsigned_abs());
        *sums.entry(who_asked(&heap, &sample.stack)).or_default() += live;
    }
    let share = |live: u64| live as f64 / sums.values().sum::<u64>().max(1) as f64;
    let (place, live) = sums.iter().max_by_key(|(_, live)| **live)?;
    (share(*live) >= TELLING).then(|| format!("{:.0} % of the heap in {place}", share(*live) * 100.0))
}

/// All that is charged.
#[must_use]
pub fn charged(baseline: &Baseline) -> Grown {
    let (before_bytes, after_bytes) = (baseline.before_bytes, baseline.after_bytes);
    Grown { place: "all that is charged".to_owned(), before_bytes, after_bytes }
}

/// Whether there was a record to compare with, and not only a curve of usage.
#[must_use]
pub fn is_compared(baseline: &Baseline) -> bool {
    baseline.after_bytes > 0
}

/// `40 s`, `3 min`.
#[must_use]
pub fn span(us: u64) -> String {
    match us {
        0..10_000_000 => format!("{:.1} s", us as f64 / 1e6),
        10_000_000..120_000_000 => format!("{} s", (us + 500_000) / 1_000_000),
        _ => format!("{} min", (us + 30_000_000) / 60_000_000),
    }
}

/// The heap by the function that asked for it, those that grew most first; empty where
/// no heap was recorded.
#[must_use]
pub fn functions(incident: &Incident) -> Vec<Grown> {
    let after = profile::heap(incident);
    profile::heap_before(incident, &after).map_or(Vec::new(), |before| functions_of(&after, &before))
}

/// The same of profiles that were made already.
pub(super) fn functions_of(after: &Profile, before: &Profile) -> Vec<Grown> {
    let value = |values: &[i64]| values.first().map_or(0, |value| value.unsigned_abs());
    let mut sums: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    // One is made of the other: the same stacks in the same order.
    for (sample, then) in after.samples.iter().zip(&before.samples) {
        let sum = sums.entry(who_asked(after, &sample.stack)).or_default();
        sum.0 += value(&then.values);
        sum.1 += value(&sample.values);
    }
    sorted(sums.into_iter().map(|(place, (before_bytes, after_bytes))| Grown {
        place: place.to_owned(),
        before_bytes,
        after_bytes,
    }))
}

/// Processes, those that grew most first.
#[must_use]
pub fn processes(baseline: &Baseline) -> Vec<Grown> {
    sorted(baseline.processes.iter().map(|p| Grown {
        place: format!("{} [{}]", p.comm, p.pid),
        before_bytes: p.before_bytes.unwrap_or(0),
        after_bytes: p.after_bytes,
    }))
}

/// Kinds of what is charged, those that grew most first.
#[must_use]
pub fn kinds(baseline: &Baseline) -> Vec<Grown> {
    sorted(baseline.kinds.iter().map(|kind| Grown {
        place: name_of(&kind.kind).to_owned(),
        before_bytes: kind.before_bytes,
        after_bytes: kind.after_bytes,
    }))
}

/// What has no process for an owner.
fn kinds_but_anonymous(baseline: &Baseline) -> Vec<Grown> {
    let mut kinds = kinds(baseline);
    let grew_most = |kind: &Grown| kind.place == name_of("anon");
    // Where it is the processes' own, they tell more.
    if kinds.first().is_some_and(grew_most) {
        kinds.clear();
    }
    kinds
}

fn name_of(kind: &str) -> &str {
    match kind {
        "anon" => "anonymous memory",
        "file" => "page cache",
        "shmem" => "tmpfs and shared memory",
        "kernel" => "kernel memory",
        "sock" => "network buffers",
        other => other,
    }
}

fn sorted(rows: impl Iterator<Item = Grown>) -> Vec<Grown> {
    let mut rows: Vec<Grown> = rows.collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.growth()));
    rows
}

/// The innermost function that is neither an allocator's nor a container's; the innermost
/// of all where every one is.
fn who_asked<'p>(profile: &'p Profile, stack: &[usize]) -> &'p str {
    let frames = || stack.iter().rev().filter_map(|&index| profile.frames.get(index));
    let functions = || frames().filter(|frame| frame.kind != FrameKind::Label);
    let script = functions().find(|frame| frame.kind == FrameKind::Script);
    let unnamed = || functions().find(|frame| frame.kind == FrameKind::Unknown && !is_of_the_loader(&frame.name));
    let asked = script.or_else(|| functions().find(|frame| is_of_the_program(frame))).or_else(unnamed);
    asked.or_else(|| functions().next()).map_or("an unknown function", |frame| frame.name.as_str())
}

/// Whether a frame without a name is of a library: `libc.so.6+0x2a1ca`.
fn is_of_the_loader(name: &str) -> bool {
    name.contains(".so")
}

fn is_of_the_program(frame: &Frame) -> bool {
    // Namespaces of the languages' own libraries, as symbols spell them, in a method of a
    // trait behind `<`.
    const LIBRARIES: [&str; 6] = ["std::", "core::", "alloc::", "hashbrown::", "__gnu_cxx::", "runtime."];
    const ALLOCATORS: [&str; 6] =
        ["mmap", "reallocarray", "posix_memalign", "memalign", "operator new", "operator new[]"];
    // What calls main: where it is the only name, the frames of the program have none.
    const STARTS: [&str; 6] =
        ["_start", "__libc_start_main", "__libc_start_main_impl", "__libc_start_call_main", "start_thread", "clone"];
    // Of a word of what allocates, and of what programs wrap it in: must_malloc, PyObject_Malloc,
    // zmalloc_usable, g_malloc0, Arena::alloc.
    const ENDINGS: [&str; 4] = ["alloc", "alloc0", "strdup", "strndup"];
    // `operator new(unsigned long)` is what symbols call it.
    let name = frame.name.trim_start_matches(['<', '&']);
    let bare = name.split('(').next().unwrap_or(name);
    let own = bare.rsplit([':', '.']).next().unwrap_or(bare).to_ascii_lowercase();
    let is_wrapper = own.split('_').any(|word| ENDINGS.iter().any(|ending| word.ends_with(ending)));
    frame.kind != FrameKind::Unknown
        && !bare.starts_with("__r")
        && !ALLOCATORS.contains(&bare)
        && !STARTS.contains(&bare)
        && !is_wrapper
        && !LIBRARIES.iter().any(|library| name.starts_with(library))
        && !name.starts_with("void std::")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incident::baseline::{KindGrowth, ProcessGrowth};
    use crate::incident::read::read_incident;
    use std::path::Path;

    fn recorded(name: &str) -> Incident {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/incidents");
        read_incident(&Path::new(dir).join(name).with_extension("json")).unwrap()
    }

    fn baseline() -> Baseline {
        let kind = |kind: &str, before_bytes, after_bytes| KindGrowth { kind: kind.into(), before_bytes, after_bytes };
        Baseline {
            before_us: 40_200_000,
            before_bytes: 100 << 20,
            after_bytes: 460 << 20,
            kinds: vec![kind("anon", 90 << 20, 400 << 20), kind("file", 10 << 20, 60 << 20)],
            processes: vec![ProcessGrowth { pid: 7, comm: "shop".into(), before_bytes: None, after_bytes: 310 << 20 }],
            ..Baseline::default()
        }
    }

    #[test]
    fn who_owns_most_of_the_heap_is_named() {
        assert_eq!(owner(&recorded("sort")), None);
        assert_eq!(owner(&recorded("shop")).unwrap(), "86 % of the heap in Cache.insert");
    }

    #[test]
    fn the_phrase_names_what_is_known() {
        let mut incident = recorded("sort");
        assert_eq!(line(&incident), None, "nobody kept a record");
        incident.baseline = Some(baseline());
        assert_eq!(line(&incident).unwrap(), "+310 MiB in shop [7], 40 s");
        let cache = incident.baseline.as_mut().unwrap();
        cache.within_us = Some(470_000);
        assert_eq!(line(&incident).unwrap(), "+310 MiB in shop [7], 0.5 s");
        let cache = incident.baseline.as_mut().unwrap();
        cache.within_us = None;
        cache.kinds[1].after_bytes = 330 << 20;
        cache.kinds[0].after_bytes = 130 << 20;
        assert_eq!(line(&incident).unwrap(), "+320 MiB of page cache, 40 s");
        let many = incident.baseline.as_mut().unwrap();
        many.kinds.clear();
        many.processes.clear();
        assert_eq!(line(&incident).unwrap(), "+360 MiB charged, 40 s");
        incident.baseline.as_mut().unwrap().after_bytes = 90 << 20;
        assert_eq!(line(&incident), None, "it has shrunk");
        incident.baseline = Some(Baseline { after_bytes: 0, ..baseline() });
        assert_eq!(line(&incident), None, "only a curve");
    }

    #[test]
    fn a_heap_names_the_function_that_asked() {
        let mut incident = recorded("python");
        incident.baseline = Some(Baseline { has_heap: true, ..baseline() });
        assert_eq!(functions(&incident), [], "no stack tells what it had");
        for stack in incident.processes.iter_mut().flat_map(|p| &mut p.heaps).flat_map(|h| &mut h.stacks) {
            stack.before_bytes = Some(0);
        }
        let rows = functions(&incident);
        let whole: i64 = rows.iter().map(Grown::growth).sum();
        assert_eq!(whole, profile::heap(&incident).total(0));
        incident.baseline.as_mut().unwrap().after_bytes = (100 << 20) + whole.unsigned_abs();
        let line = line(&incident).unwrap();
        assert!(line.starts_with(&format!("{} in {}, ", rows[0].signed(), rows[0].place)), "{line}");
    }

    #[test]
    fn libraries_and_allocators_are_not_blamed() {
        for name in [
            "malloc",
            "must_malloc",
            "PyObject_Malloc",
            "g_malloc0",
            "zmalloc_usable",
            "Arena::alloc(unsigned long)",
            "operator new(unsigned long)",
            "alloc::raw_vec::RawVec<T,A>::grow_one",
            "<alloc::vec::Vec<T> as core::iter::Extend>::extend",
            "void std::vector<int>::_M_realloc_insert<int>(int&&)",
            "std::__cxx11::basic_string<char>::_M_create",
            "__rust_alloc",
            "__libc_start_call_main",
            "__libc_start_main_impl",
        ] {
            assert!(!is_of_the_program(&Frame::named(name)), "{name}");
        }
        for name in ["Cache::insert", "main.(*cache).insert", "mallocate", "shop::alloc::report", "new_page(int)"] {
            assert!(is_of_the_program(&Frame::named(name)), "{name}");
        }
        assert!(!is_of_the_program(&Frame { kind: FrameKind::Unknown, ..Frame::named("libx.so+0x10") }));
    }

    #[test]
    fn spans_are_as_long_as_they_tell() {
        assert_eq!(
            (span(840_000), span(40_400_000), span(170_000_000)),
            ("0.8 s".into(), "40 s".into(), "3 min".into())
        );
    }
}
