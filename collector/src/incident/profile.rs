//! An incident's evidence as profiles.

use super::model::{Estimate, Heap, HeapFrame, Incident, Module, ModuleAddress, Process, ResolvedAddress, Thread};
use super::{accounts, growers};
use reprieve_flamegraph::{Frame, FrameKind, LabelValue, Mapping, Profile, Sample, SampleType, Spread};
use reprieve_symbolizer::{FoundBy, StackEnd};
use std::collections::HashMap;

/// A profile with what a reader must know of it.
///
/// Every witness adds one; renderers take the list as it comes.
#[derive(Debug, Clone)]
pub struct View {
    /// File stem, like `threads`.
    pub name: &'static str,
    /// Heading.
    pub title: &'static str,
    /// What it answers and what it does not.
    pub explanation: &'static str,
    /// The data; each sample type is a drawing, the first is shown first.
    pub profile: Profile,
}

impl View {
    /// File stem of a drawing: the view's name, and the sample type of all but
    /// the first, like `heap-alloc_space`.
    #[must_use]
    pub fn stem(&self, sample_type: usize) -> String {
        match self.profile.sample_types.get(sample_type) {
            Some(t) if sample_type > 0 => format!("{}-{}", self.name, t.kind),
            _ => self.name.to_owned(),
        }
    }

    /// Heading of a drawing.
    #[must_use]
    pub fn title_of(&self, sample_type: usize) -> String {
        match self.profile.sample_types.get(sample_type) {
            Some(t) if self.profile.sample_types.len() > 1 => format!("{}: {}", self.title, meaning(&t.kind)),
            _ => self.title.to_owned(),
        }
    }

    /// Names by which its sample types are selected, in their order; memory by mapping by
    /// the view's own, since `space` could be anything's.
    pub fn selectable(&self) -> impl Iterator<Item = &str> {
        let name = |kind| if self.name == MEMORY { MEMORY } else { kind };
        self.profile.sample_types.iter().map(move |sample_type| name(sample_type.kind.as_str()))
    }
}

/// The view of threads, and its sample type: the one that counts no bytes.
pub const THREADS: &str = "threads";
/// The view of memory by mapping.
const MEMORY: &str = "memory";

/// What a sample type is, for people.
#[must_use]
pub fn meaning(kind: &str) -> &str {
    match kind {
        "inuse_space" => "live bytes",
        "inuse_objects" => "live objects",
        "alloc_space" => "bytes ever allocated",
        "alloc_objects" => "objects ever allocated",
        "growth" => "bytes by who touched them first",
        "growth_reliable" => "of those what is reliable",
        "charged" => "bytes charged to the cgroup",
        other => other,
    }
}

/// All views that the incident has evidence for.
#[must_use]
pub fn views(incident: &Incident) -> Vec<View> {
    views_with(incident, memory(incident))
}

/// The same to be compared with another incident's: processes are known by their names,
/// since PIDs are others each time.
#[must_use]
pub fn comparable_views(incident: &Incident) -> Vec<View> {
    views_with(incident, memory_by(incident, |process| process.comm.clone(), |_| "smaller mappings".to_owned()))
}

fn views_with(incident: &Incident, memory: Profile) -> Vec<View> {
    let mut views = Vec::new();
    if incident.processes.iter().any(|p| !p.heaps.is_empty()) {
        views.push(View {
            name: "heap",
            title: "Live heap by stack",
            explanation: heap_explanation(incident),
            profile: heap(incident),
        });
    }
    if growers::is_known(incident) {
        views.push(View {
            name: "growth",
            title: "Who grew RSS (not who owns the heap)",
            explanation: "Who touched the memory first that is resident, by sampled page faults. It shows who made the process \
                grow. Of what it mapped itself, of shared memory and of stacks that is who owns it; of malloc's \
                memory it need not be: a page may have been used and freed by others before, and counts for them.",
            profile: growers::profile(incident),
        });
    }
    views.extend([
        View {
            name: THREADS,
            title: "Threads by stack",
            explanation: "Where every thread stood when it was stopped. Width is the number of threads. \
                It shows who was allocating at that instant, not who owns the memory.",
            profile: threads(incident),
        },
        View {
            name: MEMORY,
            title: "Memory by process and mapping",
            explanation: "Resident and swapped memory of each process (PSS: shared pages divided among \
                their users), by mapping. Width is bytes.",
            profile: memory,
        },
    ]);
    if incident.accounting.is_some() {
        views.push(View {
            name: "accounting",
            title: "Where every charged byte went",
            explanation: "All that the kernel charges the cgroup, by cause and owner, each page once and only if it is \
                charged here. Width is bytes. What nobody could explain is there with its size.",
            profile: accounting(incident),
        });
    }
    views
}

/// Everything in one profile, for pprof: heap sample types first, where there are
/// any, then threads, then what is charged.
#[must_use]
pub fn whole(incident: &Incident) -> Profile {
    let threads = threads(incident);
    let mut whole = if incident.processes.iter().all(|p| p.heaps.is_empty()) {
        threads
    } else {
        let mut heap = heap(incident);
        heap.append(&threads);
        heap
    };
    if growers::is_known(incident) {
        whole.append(&growers::profile(incident));
        whole.comments.extend(growers::disagreements(incident));
    }
    if incident.accounting.is_some() {
        whole.append(&accounting(incident));
    }
    whole
}

/// What the memcg is charged for, by cause and owner; empty without a memcg.
#[must_use]
pub fn accounting(incident: &Incident) -> Profile {
    let mut profile = start(incident, accounts::sample_type());
    accounts::fill(&mut profile, incident);
    profile
}

/// What the heap's view shows.
fn heap_explanation(incident: &Incident) -> &'static str {
    const ALL: &str = "Who allocated what was not freed by then, estimated from allocations sampled \
        as they were made; or who ever allocated, freed or not, which shows churn.";
    const PYTHON: &str = "Who allocated what was not freed by then, estimated from allocations sampled \
        as they were made; or who ever allocated, freed or not, which shows churn. Python puts objects of up to 512 bytes into arenas of 1 MiB \
        (pymalloc): an arena counts for the line that made it grow, so a leak of small objects shows at the lines \
        that leak, in coarse steps. A program started with PYTHONMALLOC=malloc shows each object's own line.";
    let is_python = |p: &Process| !p.heaps.is_empty() && p.threads.iter().any(|t| !t.script.is_empty());
    if incident.processes.iter().any(is_python) { PYTHON } else { ALL }
}

/// Threads by stack.
#[must_use]
pub fn threads(incident: &Incident) -> Profile {
    let mut profile = start(incident, SampleType::new(THREADS, "count"));
    let symbols = symbols_of(incident);
    // The biggest first: of equal stacks, theirs are shown first.
    let mut processes: Vec<&Process> = incident.processes.iter().collect();
    processes.sort_by_key(|p| std::cmp::Reverse(p.memory.pss_bytes));
    for process in processes {
        let root = profile.frame(Frame::label(&process.comm));
        for thread in &process.threads {
            let mut stack = vec![root];
            if thread.stack.end != StackEnd::Complete {
                stack.push(profile.frame(Frame::label(&format!("[stack cut: {}]", cut(&thread.stack.end)))));
            }
            for frame in thread_frames(incident, &symbols, process, thread) {
                stack.push(profile.frame(frame));
            }
            let labels = vec![
                ("pid".to_owned(), LabelValue::Number(i64::from(process.pid), String::new())),
                ("tid".to_owned(), LabelValue::Number(i64::from(thread.tid), String::new())),
                ("thread".to_owned(), LabelValue::Text(thread.comm.clone())),
                ("cgroup".to_owned(), LabelValue::Text(process.cgroup.clone())),
            ];
            profile.samples.push(Sample { stack, values: vec![1], labels, ..Sample::default() });
        }
    }
    profile
}

/// A cut without its address, so that equal stacks merge.
fn cut(end: &StackEnd) -> &'static str {
    match end {
        StackEnd::Complete => "complete",
        StackEnd::MissingMemory { .. } => "page not in memory",
        StackEnd::NoUnwindInfo { .. } => "no unwind information",
        StackEnd::TooDeep => "too deep",
        StackEnd::Loop => "loop",
        StackEnd::NoRegisters => "no registers",
        StackEnd::LeftOut => "left out",
    }
}

/// Frames of a thread, outermost first, inline frames expanded.
fn thread_frames(incident: &Incident, symbols: &Known<'_>, process: &Process, thread: &Thread) -> Vec<Frame> {
    let mut frames = Vec::new();
    let script = |native: Option<u32>| thread.script.iter().filter(move |frame| frame.native == native);
    for (index, (raw, at)) in thread.stack.frames.iter().zip(&thread.frame_modules).enumerate() {
        // What an interpreter runs tells more than how it runs it.
        let before = frames.len();
        frames.extend(script(u32::try_from(index).ok()).map(|script| known_frame(&script.frame)));
        if frames.len() > before {
            continue;
        }
        let kind = if raw.found == FoundBy::FramePointer { FrameKind::Guessed } else { FrameKind::Function };
        let look_up = Looked { pid: process.pid, address: raw.address.0, look_up: raw.lookup_address().0, at: *at };
        frames.extend(named_frames(incident, symbols, look_up, kind));
    }
    frames.extend(script(None).map(|script| known_frame(&script.frame)));
    frames.reverse();
    frames
}

/// A frame that needs no symbols.
fn known_frame(frame: &reprieve_symbolizer::Frame) -> Frame {
    Frame {
        name: frame.function.clone(),
        file: frame.file.clone(),
        line: frame.line,
        inlined: frame.inlined,
        kind: FrameKind::Script,
        ..Frame::default()
    }
}

/// An address that was looked up.
#[derive(Clone, Copy)]
struct Looked {
    pid: i32,
    address: u64,
    /// One less for a return address.
    look_up: u64,
    at: Option<ModuleAddress>,
}

/// The frames of one address, innermost first: more than one where functions
/// were inlined.
fn named_frames(incident: &Incident, symbols: &Known<'_>, looked: Looked, kind: FrameKind) -> Vec<Frame> {
    let Some(at) = looked.at else {
        let address = Some(looked.address);
        let unknown =
            || Frame { name: "[no module]".to_owned(), address, kind: FrameKind::Unknown, ..Frame::default() };
        let generated = symbols.generated.get(&(looked.pid, looked.look_up));
        // That it has a name does not make it less of a guess.
        let kind = if kind == FrameKind::Guessed { kind } else { FrameKind::Script };
        return vec![generated.map_or_else(unknown, |frame| Frame { address, kind, ..known_frame(frame) })];
    };
    let module = incident.modules.get(at.module as usize);
    let is_kernel = module.is_some_and(Module::is_kernel);
    let kind = if is_kernel { FrameKind::Kernel } else { kind };
    let base = Frame { address: Some(at.svma), mapping: Some(at.module as usize), ..Frame::default() };
    match symbols.addresses.get(&at).filter(|a| !a.frames.is_empty()) {
        Some(resolved) => resolved
            .frames
            .iter()
            .map(|f| Frame {
                name: f.function.clone(),
                file: f.file.clone(),
                line: f.line,
                inlined: f.inlined,
                kind,
                ..base.clone()
            })
            .collect(),
        // Where it was hidden, or nobody could tell: which of its functions is not known.
        None if is_kernel => vec![Frame { name: "[kernel]".to_owned(), kind: FrameKind::Unknown, ..base }],
        None => vec![Frame {
            name: format!("{}+{:#x}", module_name(incident, at.module), at.svma),
            kind: FrameKind::Unknown,
            ..base
        }],
    }
}

/// Heaps of a process that may be added up: of two that look at the same memory
/// only the one to be trusted more.
pub fn counted(process: &Process) -> impl Iterator<Item = &Heap> {
    process.heaps.iter().enumerate().filter_map(|(index, heap)| {
        let better = process.heaps[..index].iter().any(|other| other.witness.overlaps(heap.witness));
        (!better).then_some(heap)
    })
}

/// What a reader of the bare profile must know of a heap.
fn heap_comment(process: &Process, heap: &Heap) -> String {
    let Estimate { bytes, sigma_bytes, samples, .. } = heap.inuse;
    let counted = counted(process).any(|c| c.witness == heap.witness);
    format!(
        "{} [{}]: {} {}: one sample in {} bytes, {bytes} ± {sigma_bytes} bytes live from {samples} samples{}",
        process.comm,
        process.pid,
        heap.witness.title(),
        if counted { "heap" } else { "heap (not in this profile, which has it from a better witness)" },
        heap.period_bytes,
        if heap.lost_bytes > 0 { format!(", {} bytes lost", heap.lost_bytes) } else { String::new() },
    )
}

/// Heap by stack, of all processes that a witness saw; empty without any.
#[must_use]
pub fn heap(incident: &Incident) -> Profile {
    // Names and order as in Go's heap profiles (runtime/pprof).
    let mut profile = start(incident, SampleType::new("inuse_space", "bytes"));
    profile.sample_types.extend([
        SampleType::new("inuse_objects", "count"),
        SampleType::new("alloc_space", "bytes"),
        SampleType::new("alloc_objects", "count"),
    ]);
    let names = Names::of(incident);
    let mut periods: Vec<u64> = incident.processes.iter().flat_map(counted).map(|h| h.period_bytes).collect();
    periods.sort_unstable();
    periods.dedup();
    if let [period] = periods[..] {
        profile.period = Some((SampleType::new("space", "bytes"), period as i64));
    }
    for process in &incident.processes {
        profile.comments.extend(process.heaps.iter().map(|heap| heap_comment(process, heap)));
        let root = profile.frame(Frame::label(&process.comm));
        let several = counted(process).count() > 1;
        for (heap, stack) in counted(process).flat_map(|heap| heap.stacks.iter().map(move |stack| (heap, stack))) {
            let mut frames: Vec<Frame> = stack
                .frames
                .iter()
                .filter_map(|&index| heap.frames.get(index as usize))
                .flat_map(|frame| names.of_frame(process.pid, frame))
                .collect();
            if stack.cut {
                frames.push(Frame::label("[stack cut]"));
            }
            let mut indices = vec![root];
            if several {
                indices.push(profile.frame(Frame::label(heap.witness.title())));
            }
            indices.extend(frames.into_iter().rev().map(|frame| profile.frame(frame)));
            let values = [stack.inuse.bytes, stack.inuse.objects, stack.alloc.bytes, stack.alloc.objects];
            let spread = [stack.inuse, stack.alloc]
                .into_iter()
                .flat_map(|e| [Spread::new(e.samples, e.sigma_bytes), Spread::new(e.samples, e.sigma_objects)]);
            profile.samples.push(Sample {
                stack: indices,
                values: values.map(|v| v as i64).to_vec(),
                spread: spread.collect(),
                labels: vec![
                    ("pid".to_owned(), LabelValue::Number(i64::from(process.pid), String::new())),
                    ("witness".to_owned(), LabelValue::Text(heap.witness.title().to_owned())),
                ],
            });
        }
    }
    profile
}

/// Of `heap`, which is the incident's, the same stacks in the same order with what they owned in
/// the record that the incident is compared with; `None` where no heap was recorded. A stack of
/// which that is not known has what it had at the OOM: it did not grow as far as anybody knows.
#[must_use]
pub fn heap_before(incident: &Incident, heap: &Profile) -> Option<Profile> {
    let stacks = || incident.processes.iter().flat_map(counted).flat_map(|heap| &heap.stacks);
    stacks().any(|stack| stack.before_bytes.is_some()).then(|| {
        let mut profile = heap.clone();
        profile.sample_types.truncate(1);
        for (sample, stack) in profile.samples.iter_mut().zip(stacks()) {
            sample.values = vec![stack.before_bytes.unwrap_or(stack.inuse.bytes) as i64];
            sample.spread.clear();
        }
        profile
    })
}

/// Names by what they are looked up by.
struct Known<'i> {
    addresses: HashMap<ModuleAddress, &'i ResolvedAddress>,
    generated: HashMap<(i32, u64), &'i reprieve_symbolizer::Frame>,
}

/// Names of frames of stacks that were not read at the snapshot.
pub(super) struct Names<'i> {
    incident: &'i Incident,
    known: Known<'i>,
}

impl<'i> Names<'i> {
    /// All that the incident has.
    pub(super) fn of(incident: &'i Incident) -> Self {
        Names { incident, known: symbols_of(incident) }
    }

    /// The frames of one entry, innermost first: more than one where functions were inlined.
    pub(super) fn of_frame(&self, pid: i32, frame: &HeapFrame) -> Vec<Frame> {
        if let Some(named) = &frame.named {
            return vec![known_frame(named)];
        }
        let look_up = frame.address.wrapping_sub(1);
        let looked = Looked { pid, address: frame.address, look_up, at: frame.at };
        named_frames(self.incident, &self.known, looked, FrameKind::Function)
    }
}

fn symbols_of(incident: &Incident) -> Known<'_> {
    let generated = incident.symbols.generated.iter();
    Known {
        addresses: incident.symbols.addresses.iter().map(|a| (a.at, a)).collect(),
        generated: generated.filter_map(|a| Some(((a.pid, a.address), a.frame.as_ref()?))).collect(),
    }
}

fn module_name(incident: &Incident, index: u32) -> &str {
    let path = incident.modules.get(index as usize).map_or("[unknown]", |m| m.path.as_str());
    path.rsplit('/').next().unwrap_or(path)
}

/// Memory by process, kind and mapping.
#[must_use]
pub fn memory(incident: &Incident) -> Profile {
    memory_by(incident, |process| format!("{} [{}]", process.comm, process.pid), others)
}

fn memory_by(incident: &Incident, name: impl Fn(&Process) -> String, others: impl Fn(&Process) -> String) -> Profile {
    let mut profile = start(incident, SampleType::new("space", "bytes"));
    for process in &incident.processes {
        let root = profile.frame(Frame::label(&name(process)));
        let mut add = |kind: &str, name: &str, bytes: u64| {
            if bytes > 0 {
                let stack = vec![root, profile.frame(Frame::label(kind)), profile.frame(Frame::label(name))];
                let labels = vec![("pid".to_owned(), LabelValue::Number(i64::from(process.pid), String::new()))];
                profile.samples.push(Sample { stack, values: vec![bytes as i64], labels, ..Sample::default() });
            }
        };
        let mut rest = process.memory.pss_bytes;
        let mut rest_swap = process.memory.swap_pss_bytes;
        for mapping in &process.mappings {
            let name = if mapping.name.is_empty() { "anonymous mapping" } else { &mapping.name };
            let anonymous = mapping.anonymous_bytes.min(mapping.pss_bytes);
            add("anonymous", name, anonymous);
            add("file and shared memory", name, mapping.pss_bytes - anonymous);
            add("swapped out", name, mapping.swap_pss_bytes);
            rest = rest.saturating_sub(mapping.pss_bytes);
            rest_swap = rest_swap.saturating_sub(mapping.swap_pss_bytes);
        }
        add("other mappings", &others(process), rest);
        add("swapped out", &others(process), rest_swap);
    }
    profile
}

fn others(process: &Process) -> String {
    let shown = process.mappings.len() as u32;
    format!("{} smaller mappings", process.mapping_count.saturating_sub(shown))
}

/// A profile of nothing yet, with what is known of the incident.
pub(super) fn start(incident: &Incident, sample_type: SampleType) -> Profile {
    let mut profile = Profile::new(vec![sample_type]);
    profile.time_unix_nanos = i64::try_from(incident.time_unix_us).unwrap_or(i64::MAX).saturating_mul(1000);
    profile.mappings = incident
        .modules
        .iter()
        .map(|m| Mapping {
            // Addresses in the profile are the ELF file's own.
            start: m.start.wrapping_sub(m.bias),
            end: m.end.wrapping_sub(m.bias),
            file_offset: m.file_offset,
            path: m.path.clone(),
            build_id: m.build_id.clone(),
        })
        .collect();
    profile.comments.push(format!("reprieve incident {}", incident.id));
    if let Some(verdict) = &incident.verdict {
        profile.comments.push(verdict.summary.clone());
    }
    profile
}
