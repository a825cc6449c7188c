//! Who made processes grow, for readers: a sentence, rows, a profile, and where the heap's
//! own witness says otherwise.

use super::growth::{Growth, GrowthBasis, GrowthScope};
use super::model::{Incident, Witness};
use super::profile::{self, Names};
use super::units::{bytes, count, grouped};
use reprieve_flamegraph::{Frame, FrameKind, LabelValue, Profile, Sample, SampleType, Spread};
use std::collections::{BTreeMap, BTreeSet};

/// What it is and is not, wherever it is shown.
pub const LABEL: &str = "who grew RSS, not who owns the heap";
/// Heading in drawings of what can be relied on.
const RELIABLE: &str = "direct mappings, shared memory, stacks (reliable)";
/// Heading of the rest.
const HEAP: &str = "malloc's memory (who touched it first, not who owns it)";

/// Share of a process that witnesses must differ by, and bytes, to be told.
const DIFFERENCE: f64 = 0.25;
const DIFFERENCE_BYTES: i64 = 1 << 20;

/// Whose growth it is.
struct Grower<'i> {
    pid: i32,
    comm: &'i str,
    growth: &'i Growth,
}

fn growers(incident: &Incident) -> impl Iterator<Item = Grower<'_>> {
    let living = incident
        .processes
        .iter()
        .filter_map(|process| Some(Grower { pid: process.pid, comm: &process.comm, growth: process.growth.as_ref()? }));
    let ended = incident.ended.iter().map(|e| Grower { pid: e.pid, comm: &e.comm, growth: &e.growth });
    living.chain(ended)
}

/// Whether there is any.
#[must_use]
pub fn is_known(incident: &Incident) -> bool {
    growers(incident).next().is_some()
}

/// A process in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrowthRow {
    /// Its PID.
    pub pid: i32,
    /// Its name, and whether it has ended.
    pub name: String,
    /// What it grew by.
    pub grown: String,
    /// What of that is reliable, and its share.
    pub reliable: String,
    /// What is mapped directly.
    pub direct: String,
    /// What is shared memory.
    pub shared: String,
    /// What is stacks.
    pub stacks: String,
    /// What is malloc's.
    pub heap: String,
    /// What is in mappings without a sample.
    pub unseen: String,
    /// Samples.
    pub samples: String,
}

/// One row for each process, the biggest first.
#[must_use]
pub fn rows(incident: &Incident) -> Vec<GrowthRow> {
    let mut all: Vec<Grower<'_>> = growers(incident).collect();
    all.sort_by_key(|grower| std::cmp::Reverse(grower.growth.bytes));
    all.into_iter()
        .map(|Grower { pid, comm, growth }| GrowthRow {
            pid,
            name: if growth.basis == GrowthBasis::Present { comm.to_owned() } else { format!("{comm} (ended)") },
            grown: bytes(growth.bytes),
            reliable: format!("{}, {}", bytes(growth.reliable_bytes()), percent(growth.reliable_bytes(), growth.bytes)),
            direct: bytes(growth.direct_bytes),
            shared: bytes(growth.shared_bytes),
            stacks: bytes(growth.stack_bytes),
            heap: bytes(growth.heap_bytes),
            unseen: bytes(growth.unseen_bytes),
            samples: grouped(growth.samples),
        })
        .collect()
}

fn percent(part: u64, whole: u64) -> String {
    format!("{:.0} %", part as f64 / whole.max(1) as f64 * 100.0)
}

/// What was seen, in a few sentences; `None` where nothing was.
#[must_use]
pub fn line(incident: &Incident) -> Option<String> {
    if !is_known(incident) {
        return None;
    }
    let sum = |of: fn(&Growth) -> u64| growers(incident).map(|grower| of(grower.growth)).sum::<u64>();
    let (all, reliable, unseen) = (sum(|g| g.bytes), sum(Growth::reliable_bytes), sum(|g| g.unseen_bytes));
    let mut line = format!(
        "{} by who touched it first, from {}. Reliable is {} of it, {}: mapped directly, shared memory and stacks. {} is \
         malloc's, or may be: who touched a page first need not own what is in it now",
        bytes(all),
        count(sum(|g| g.samples), "sample"),
        bytes(reliable),
        percent(reliable, all),
        bytes(sum(|g| g.heap_bytes)),
    );
    if unseen > 0 {
        line.push_str(&format!("; {} more is in mappings with no sample or too few", bytes(unseen)));
    }
    if let Some(sampling) = &incident.growth {
        let whose = match sampling.scope {
            GrowthScope::Cgroup => "of the cgroup",
            GrowthScope::Process => "of the command and its children",
        };
        line.push_str(&format!(". One fault in {} {whose} was sampled", grouped(sampling.period)));
        if sampling.lost_samples > 0 {
            line.push_str(&format!("; {} found no room", count(sampling.lost_samples, "sample")));
        }
        if !sampling.of_kernel {
            line.push_str("; faults in system calls are not in it");
        }
    }
    if growers(incident).any(|grower| grower.growth.basis == GrowthBasis::EndedUnscaled) {
        line.push_str(". Of a process that ended, what it had given back just before may be in it");
    }
    Some(line + ".")
}

/// By stack, of all processes that it is known of; empty where of none.
#[must_use]
pub fn profile(incident: &Incident) -> Profile {
    let mut profile = profile::start(incident, SampleType::new("growth", "bytes"));
    profile.sample_types.push(SampleType::new("growth_reliable", "bytes"));
    profile.comments.push(format!("growth: {LABEL}"));
    profile.comments.extend(line(incident).map(|line| format!("growth: {line}")));
    let names = Names::of(incident);
    for Grower { pid, comm, growth } in growers(incident) {
        let mut root = vec![profile.frame(Frame::label(comm))];
        if growth.basis != GrowthBasis::Present {
            root.push(profile.frame(Frame::label("ended")));
        }
        for stack in &growth.stacks {
            let frames = stack.frames.iter().filter_map(|&index| growth.frames.get(index as usize));
            let mut frames: Vec<Frame> = frames.flat_map(|frame| names.of_frame(pid, frame)).collect();
            leave_out_entry(&mut frames);
            if stack.cut {
                frames.push(Frame::label("[stack cut]"));
            }
            let parts = [(stack.reliable_bytes, RELIABLE), (stack.bytes.saturating_sub(stack.reliable_bytes), HEAP)];
            for (part, heading) in parts.into_iter().filter(|(part, _)| *part > 0) {
                let mut indices = root.clone();
                indices.push(profile.frame(Frame::label(heading)));
                indices.extend(frames.iter().rev().map(|frame| profile.frame(frame.clone())));
                let reliable = if heading == RELIABLE { part } else { 0 };
                // Its share of the samples and of their error.
                let share = (part as f64 / stack.bytes.max(1) as f64).min(1.0);
                let spread = Spread::new(
                    (stack.samples as f64 * share).round().max(1.0) as u64,
                    (stack.sigma_bytes as f64 * share.sqrt()) as u64,
                );
                profile.samples.push(Sample {
                    stack: indices,
                    values: vec![part as i64, reliable as i64],
                    spread: vec![spread, if reliable > 0 { spread } else { Spread::default() }],
                    labels: vec![
                        ("pid".to_owned(), LabelValue::Number(i64::from(pid), String::new())),
                        ("witness".to_owned(), LabelValue::Text("page faults".to_owned())),
                    ],
                });
            }
        }
    }
    profile
}

/// How the kernel is entered: the same in every stack (arch/x86/entry, arch/arm64/kernel).
const ENTRIES: [&str; 17] = [
    "entry_SYSCALL_64_after_hwframe",
    "entry_SYSCALL_64_safe_stack",
    "entry_SYSCALL_64",
    "entry_INT80_compat",
    "do_syscall_64",
    "x64_sys_call",
    "ia32_sys_call",
    "do_int80_emulation",
    "do_fast_syscall_32",
    "__do_fast_syscall_32",
    "el0t_64_sync",
    "el0t_64_sync_handler",
    "el0_svc",
    "do_el0_svc",
    "el0_svc_common",
    "invoke_syscall",
    "syscall_return_via_sysret",
];

/// Of the kernel's frames, which are the innermost, takes away those before the system call's
/// own function.
fn leave_out_entry(frames: &mut Vec<Frame>) {
    let kernel = frames.iter().take_while(|frame| frame.kind == FrameKind::Kernel).count();
    // Compilers add to names what they made of a function, like `.constprop.0`.
    let is_entry = |frame: &Frame| ENTRIES.contains(&frame.name.split('.').next().unwrap_or_default());
    let entries = frames[..kernel].iter().rev().take_while(|frame| is_entry(frame)).count();
    frames.drain(kernel - entries..kernel);
}

/// Where the library that records allocations says otherwise: for each process the
/// function that the two differ about most, if that is much. Memory that a function
/// allocates may well be touched by others first; what speaks against a growth is a
/// function that allocated as much, and of which little is live: its garbage was there first.
#[must_use]
pub fn disagreements(incident: &Incident) -> Vec<String> {
    let is_asked = |pid: i32| {
        incident.processes.iter().any(|process| {
            process.pid == pid
                && process.growth.is_some()
                && process.heaps.iter().any(|heap| heap.witness == Witness::Preload)
        })
    };
    if !incident.processes.iter().any(|process| is_asked(process.pid)) {
        return Vec::new();
    }
    let heap = profile::heap(incident);
    let (live, ever) = (heap.find("inuse_space").unwrap_or(0), heap.find("alloc_space").unwrap_or(0));
    let malloc = Some(Witness::Preload.title());
    let (heaps, all_time) = (by_function(&heap, live, malloc), by_function(&heap, ever, malloc));
    let growths = by_function(&profile(incident), 0, None);
    let mut told = Vec::new();
    // Lines of an interpreter are no functions that touch memory.
    for (pid, (heap, _)) in heaps.iter().filter(|(pid, (_, has_script))| is_asked(**pid) && !has_script) {
        let (Some((growth, _)), Some((ever, _))) = (growths.get(pid), all_time.get(pid)) else { continue };
        let of = |sums: &ByFunction, name: &str| sums.of.get(name).copied().unwrap_or_default();
        let made_garbage = |name: &str| of(ever, name) >= of(growth, name) / 2;
        let most = heap.of.iter().filter(|(name, _)| made_garbage(name)).max_by_key(|(name, owned)| {
            // Of those in one stack the innermost has least else.
            (of(growth, name) - *owned, std::cmp::Reverse(**owned))
        });
        let Some((name, &owned)) = most else { continue };
        let grown = of(growth, name);
        let (difference, whole) = (grown - owned, heap.whole.max(growth.whole));
        if difference < DIFFERENCE_BYTES || (difference as f64) < DIFFERENCE * whole as f64 {
            continue;
        }
        let comm = incident.processes.iter().find(|process| process.pid == *pid).map_or("", |p| p.comm.as_str());
        let say = |value: i64| bytes(value.unsigned_abs());
        told.push(format!(
            "{comm} [{pid}]: malloc and page faults disagree, most about {name}: {} grown by its page faults, but of what it \
             allocated {} is live. Believe malloc about who owns the heap: a page that is used again counts for who touched \
             it first",
            say(grown),
            say(owned),
        ));
    }
    told
}

/// Bytes with a function anywhere in their stacks.
#[derive(Debug, Default)]
struct ByFunction {
    of: BTreeMap<String, i64>,
    whole: i64,
}

/// By process, and whether it has frames of an interpreter; of one witness, if it is named.
fn by_function(profile: &Profile, sample_type: usize, witness: Option<&str>) -> BTreeMap<i32, (ByFunction, bool)> {
    let mut processes: BTreeMap<i32, (ByFunction, bool)> = BTreeMap::new();
    for sample in &profile.samples {
        let label = |name: &str| sample.labels.iter().find(|(key, _)| key == name).map(|(_, value)| value);
        let Some(LabelValue::Number(pid, _)) = label("pid") else { continue };
        let is_other = match label("witness") {
            Some(LabelValue::Text(own)) => witness.is_some_and(|wanted| wanted != own),
            _ => false,
        };
        if is_other {
            continue;
        }
        let value = sample.values.get(sample_type).copied().unwrap_or_default();
        let (sums, has_script) = processes.entry(*pid as i32).or_default();
        sums.whole += value;
        let frames = sample.stack.iter().filter_map(|&index| profile.frames.get(index));
        let mut names = BTreeSet::new();
        for frame in frames {
            *has_script |= frame.kind == FrameKind::Script;
            if matches!(frame.kind, FrameKind::Function | FrameKind::Guessed) {
                names.insert(frame.name.as_str());
            }
        }
        for name in names {
            *sums.of.entry(name.to_owned()).or_default() += value;
        }
    }
    processes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incident::growth::{GrowthSampling, GrowthStack};
    use crate::incident::model::{
        Estimate, Heap, HeapFrame, HeapStack, KERNEL_PATH, Module, ModuleAddress, ResolvedAddress,
    };
    use crate::incident::redact::{Key, redact};
    use crate::incident::{markdown, profile::views, report};

    const MIB: u64 = 1 << 20;
    const FUNCTIONS: [&str; 5] = ["main", "keep", "litter", "fill", "must_malloc"];

    fn at(function: &str) -> u64 {
        FUNCTIONS.iter().position(|name| *name == function).unwrap() as u64
    }

    /// One process, with what stacks own, ever allocated and grew by, in MiB; innermost first.
    fn incident(heap: &[(&[&str], u64, u64)], growth: &[(&[&str], u64, u64)]) -> Incident {
        let recorded = include_str!("../../../fixtures/incidents/sort.json");
        let mut incident: Incident = serde_json::from_str(recorded).unwrap();
        let place = |index: usize| ModuleAddress { module: 0, svma: index as u64 };
        let frames: Vec<HeapFrame> = (0..FUNCTIONS.len())
            .map(|index| HeapFrame { address: index as u64, at: Some(place(index)), named: None })
            .collect();
        incident.symbols.addresses = FUNCTIONS
            .iter()
            .enumerate()
            .map(|(index, name)| ResolvedAddress {
                at: place(index),
                frames: vec![reprieve_symbolizer::Frame {
                    function: (*name).to_owned(),
                    file: None,
                    line: None,
                    column: None,
                    inlined: false,
                }],
                source: None,
                miss: None,
            })
            .collect();
        let indices = |stack: &[&str]| stack.iter().map(|name| at(name) as u32).collect::<Vec<_>>();
        let estimate = |mib: u64| Estimate { bytes: mib * MIB, samples: mib, ..Estimate::default() };
        incident.processes.truncate(1);
        let process = &mut incident.processes[0];
        process.comm = "server".to_owned();
        process.threads.clear();
        process.heaps = vec![Heap {
            witness: Witness::Preload,
            period_bytes: 65536,
            lost_samples: 0,
            lost_bytes: 0,
            inuse: estimate(heap.iter().map(|(_, live, _)| live).sum()),
            alloc: estimate(heap.iter().map(|(.., ever)| ever).sum()),
            frames: frames.clone(),
            stacks: heap
                .iter()
                .map(|(stack, live, ever)| HeapStack {
                    frames: indices(stack),
                    cut: false,
                    inuse: estimate(*live),
                    alloc: estimate(*ever),
                    before_bytes: None,
                })
                .collect(),
        }];
        let sum = |of: fn(&(&[&str], u64, u64)) -> u64| growth.iter().map(of).sum::<u64>() * MIB;
        let (all, reliable) = (sum(|(_, bytes, _)| *bytes), sum(|(.., reliable)| *reliable));
        process.growth = Some(Growth {
            basis: GrowthBasis::Present,
            samples: all / MIB,
            bytes: all,
            direct_bytes: reliable,
            shared_bytes: 0,
            stack_bytes: 0,
            heap_bytes: all - reliable,
            unseen_bytes: 3 * MIB,
            frames,
            stacks: growth
                .iter()
                .map(|(stack, bytes, reliable)| GrowthStack {
                    frames: indices(stack),
                    cut: false,
                    bytes: bytes * MIB,
                    sigma_bytes: MIB / 2,
                    samples: *bytes,
                    reliable_bytes: reliable * MIB,
                })
                .collect(),
        });
        incident.growth = Some(GrowthSampling {
            scope: GrowthScope::Process,
            period: 64,
            of_kernel: true,
            samples: 100,
            lost_samples: 0,
            unplaced_samples: 0,
            kept_one_in: 1,
            ring_bytes: 2 * MIB,
            table_bytes: 7 * MIB,
        });
        incident
    }

    #[test]
    fn garbage_that_was_there_first_is_a_disagreement() {
        let heap: &[(&[&str], u64, u64)] = &[(&["keep", "main"], 60, 60), (&["litter", "main"], 0, 500)];
        let told = disagreements(&incident(heap, &[(&["fill", "litter", "main"], 50, 0), (&["keep", "main"], 12, 0)]));
        assert_eq!(told.len(), 1, "{told:?}");
        let expected =
            "disagree, most about litter: 50.0 MiB grown by its page faults, but of what it allocated 0 B is live";
        assert!(told[0].starts_with("server [") && told[0].contains(expected), "{told:?}");
        // Little of it is none.
        let little = [(&["litter", "main"][..], 10, 0), (&["keep", "main"], 50, 0)];
        assert_eq!(disagreements(&incident(heap, &little)), [""; 0]);
    }

    #[test]
    fn memory_that_others_touch_first_is_none() {
        // A wrapper of malloc returns before anybody touches what it gave.
        let heap: &[(&[&str], u64, u64)] = &[(&["must_malloc", "keep", "main"], 60, 60), (&["fill", "main"], 0, 1)];
        let growth: &[(&[&str], u64, u64)] = &[(&["fill", "keep", "main"], 40, 0), (&["fill", "main"], 20, 0)];
        assert_eq!(disagreements(&incident(heap, growth)), [""; 0]);
        let mut without = incident(heap, growth);
        without.processes[0].heaps.clear();
        assert_eq!(disagreements(&without), [""; 0]);
    }

    #[test]
    fn what_is_reliable_is_told_from_what_is_not() {
        let incident = incident(&[(&["keep", "main"], 10, 10)], &[(&["keep", "main"], 30, 20), (&["main"], 10, 0)]);
        let profile = profile(&incident);
        let reliable = profile.find("growth_reliable").unwrap();
        let sum = |sample_type: usize| profile.samples.iter().map(|s| s.values[sample_type] as u64).sum::<u64>() / MIB;
        assert_eq!((sum(0), sum(reliable), profile.samples.len()), (40, 20, 3));
        let headed = |sample: &Sample, heading| sample.stack.iter().any(|&f| profile.frames[f].name == heading);
        for sample in &profile.samples {
            let is_reliable = sample.values[reliable] > 0;
            assert!(headed(sample, if is_reliable { RELIABLE } else { HEAP }), "{sample:?}");
        }
        let line = line(&incident).unwrap();
        for part in
            ["40.0 MiB by who touched it first", "Reliable is 20.0 MiB of it, 50 %", "3.0 MiB more is in mappings"]
        {
            assert!(line.contains(part), "{line}");
        }
        assert_eq!(rows(&incident)[0].reliable, "20.0 MiB, 50 %");
        // Wherever it is shown.
        let views = views(&incident);
        let view = views.iter().find(|view| view.name == "growth").unwrap();
        assert!(view.title.contains("not who owns the heap") && profile.comments.iter().any(|c| c.contains(LABEL)));
        let page = markdown::page(&incident, &[(view, 0)]);
        assert!(
            page.contains("Who grew RSS (not who owns the heap)") && page.contains("Reliable is 20.0 MiB"),
            "{page}"
        );
        let html = report::html(&incident, &views);
        let above = html.find("Reliable is 20.0 MiB").expect("the line");
        let list = html.find("<h3 id=\"growers\">Who grew RSS (not who owns the heap)</h3>").expect("the stacks");
        assert!(above < list && html.contains("data-views=\"heap growth threads memory\""), "{html}");
    }

    /// Of which the kernel filled the memory: its functions are known, or hidden.
    fn with_kernel(names: &[&str]) -> Incident {
        let mut incident = incident(&[], &[(&["keep", "main"], 30, 20)]);
        let module = incident.modules.len() as u32;
        incident.modules.push(Module { path: KERNEL_PATH.to_owned(), ..incident.modules[0].clone() });
        let growth = incident.processes[0].growth.as_mut().unwrap();
        let mut indices = Vec::new();
        for (svma, name) in names.iter().enumerate() {
            let at = ModuleAddress { module, svma: svma as u64 };
            indices.push(growth.frames.len() as u32);
            growth.frames.push(HeapFrame { address: at.svma + 1, at: Some(at), named: None });
            let frames = incident.symbols.addresses[0].frames.iter();
            let frames =
                frames.map(|frame| reprieve_symbolizer::Frame { function: (*name).to_owned(), ..frame.clone() });
            let frames = if name.is_empty() { Vec::new() } else { frames.collect() };
            incident.symbols.addresses.push(ResolvedAddress { at, frames, source: None, miss: None });
        }
        growth.stacks[0].frames.splice(0..0, indices);
        incident
    }

    #[test]
    fn of_the_kernel_what_the_system_call_did_is_told() {
        let path = |names: &[&str]| {
            let profile = profile(&with_kernel(names));
            let titles = profile.samples[0].stack[2..].iter().map(|&frame| profile.frames[frame].title());
            titles.collect::<Vec<_>>()
        };
        let all =
            ["rep_stos", "vfs_read", "ksys_read", "x64_sys_call", "do_syscall_64", "entry_SYSCALL_64_after_hwframe"];
        assert_eq!(path(&all), ["main", "keep", "ksys_read_[k]", "vfs_read_[k]", "rep_stos_[k]"]);
        let arm = ["copy", "__arm64_sys_read", "invoke_syscall.constprop.0", "do_el0_svc", "el0_svc", "el0t_64_sync"];
        assert_eq!(path(&arm), ["main", "keep", "__arm64_sys_read_[k]", "copy_[k]"]);
        assert_eq!(path(&[""]), ["main", "keep", "[kernel]"]);
        // A function of the program by such a name is its own.
        let mut own = with_kernel(&["vfs_read"]);
        own.symbols.addresses[1].frames[0].function = "do_syscall_64".to_owned();
        let profile = profile(&own);
        assert!(profile.frames.iter().any(|frame| frame.name == "do_syscall_64"));
    }

    #[test]
    fn without_names_of_the_program_the_kernels_own_stay() {
        let incident = with_kernel(&["vfs_read", "acme_read [acme]"]);
        let redacted = redact(incident, &Key::random().unwrap());
        let names: Vec<String> = profile(&redacted).frames.into_iter().map(|frame| frame.name).collect();
        assert!(names.contains(&"vfs_read".to_owned()), "{names:?}");
        assert!(!names.iter().any(|name| name.contains("acme") || name == "keep" || name == "main"), "{names:?}");
        assert!(redacted.modules.last().unwrap().is_kernel());
    }

    #[test]
    fn who_ended_is_told_as_such() {
        let mut incident = incident(&[], &[(&["keep", "main"], 30, 20)]);
        let growth = incident.processes[0].growth.take().unwrap();
        incident.ended.push(super::super::growth::Ended {
            pid: 7,
            comm: "victim".to_owned(),
            killed_by_kernel: true,
            growth: Growth { basis: GrowthBasis::EndedUnscaled, ..growth },
        });
        assert_eq!(rows(&incident)[0].name, "victim (ended)");
        assert!(line(&incident).unwrap().contains("may be in it"));
        let profile = profile(&incident);
        assert!(profile.samples.iter().all(|sample| profile.frames[sample.stack[1]].name == "ended"));
    }
}
