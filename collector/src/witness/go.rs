//! Live heap by stack, from the memory profile of a Go program.

use super::{Frames, estimate};
use crate::incident::model::{Estimate, Heap, HeapStack, Process, Witness};
use crate::snapshot::LoadedModule;
use crate::witness::Target;
use reprieve_heap_walk::Sum;
use reprieve_heap_walk::go::{self, Folder, Profile, Program, Refusal, Stack};
use reprieve_symbolizer::{GoImage, Svma};
use std::collections::HashMap;
use std::ops::Range;

/// Variables of the runtime that the walk needs.
const VARIABLES: [&str; 2] = ["runtime.mbuckets", "runtime.MemProfileRate"];
/// What a program must reach for the linker to leave its profile on: the first
/// since Go 1.23, the second before (`linksetup` in `cmd/link/internal/ld/lib.go`).
const SWITCHES: [&str; 2] = ["runtime.memProfileInternal", "runtime.MemProfile"];
/// What gaps begin with where a program in Go has a heap that is not told.
const UNKNOWN: &str = "its Go heap is not known";
/// How to have a profile.
const REMEDY: &str = "import net/http/pprof, or call runtime/pprof.WriteHeapProfile somewhere";

/// Through them the runtime of a program with C in it maps memory
/// (`runtime/cgo_mmap.go`). The innermost keeps no frame pointer, so stacks may
/// lack it.
const MAPPERS: [&str; 3] = ["runtime.callCgoMmap", "runtime.mmap.func1", "runtime.mmap"];

/// What the Go runtime of a process knows.
#[derive(Debug, Default)]
pub struct Seen {
    /// Its heap.
    pub heap: Option<Heap>,
    /// Sentences about what is missing.
    pub gaps: Vec<String>,
    /// Code through which the heap's memory came from the C library.
    mappers: Vec<Range<u64>>,
}

impl Seen {
    /// Takes out of the C library's heap what Go has its own heap in: it is the
    /// same memory. `None` when nothing is left.
    #[must_use]
    pub fn leave(&self, mut heap: Heap) -> Option<Heap> {
        if self.heap.is_none() {
            return Some(heap);
        }
        let is_gos = |index: &u32| {
            let address = heap.frames.get(*index as usize).map_or(0, |frame| frame.address.wrapping_sub(1));
            self.mappers.iter().any(|code| code.contains(&address))
        };
        let (gos, others): (Vec<_>, Vec<_>) = heap.stacks.into_iter().partition(|s| s.frames.iter().any(is_gos));
        for stack in &gos {
            heap.inuse = less(heap.inuse, stack.inuse);
            heap.alloc = less(heap.alloc, stack.alloc);
        }
        heap.stacks = others;
        (heap.alloc.samples > 0).then_some(heap)
    }
}

fn less(all: Estimate, part: Estimate) -> Estimate {
    let sigma = |all: u64, part: u64| ((all as f64).powi(2) - (part as f64).powi(2)).max(0.0).sqrt() as u64;
    Estimate {
        bytes: all.bytes.saturating_sub(part.bytes),
        objects: all.objects.saturating_sub(part.objects),
        samples: all.samples.saturating_sub(part.samples),
        sigma_bytes: sigma(all.sigma_bytes, part.sigma_bytes),
        sigma_objects: sigma(all.sigma_objects, part.sigma_objects),
    }
}

/// Whether a process that was asked is a program in Go.
#[must_use]
pub fn is_go(process: &Process) -> bool {
    let has_heap = process.heaps.iter().any(|heap| heap.witness == Witness::Go);
    has_heap || process.gaps.iter().any(|gap| gap.starts_with(UNKNOWN))
}

/// What the Go runtime of a process says; `None` without one.
pub fn look(target: &mut Target<'_>) -> Option<Seen> {
    let is_go = |m: &&LoadedModule| m.image.section_data(".go.buildinfo").is_some() || !m.image.has_sections();
    for module in target.modules.iter().filter(is_go) {
        let Some(image) = GoImage::find(&module.image) else {
            if module.image.has_sections() {
                let why = format!("{UNKNOWN}: its Go runtime is older than 1.18, or damaged");
                return Some(Seen { gaps: vec![why], ..Seen::default() });
            }
            continue;
        };
        let place = |svma: Svma| svma.0.wrapping_add(module.bias);
        let mappers = image.functions(&MAPPERS).into_iter().flatten();
        let mappers = mappers.map(|f| place(f.range.start)..place(f.range.end)).collect();
        return Some(match read(target, module, &image) {
            Ok((heap, gaps)) => Seen { heap: Some(heap), gaps, mappers },
            Err(why) => Seen { heap: None, gaps: vec![format!("{UNKNOWN}: {why}")], mappers },
        });
    }
    None
}

fn read(target: &mut Target<'_>, module: &LoadedModule, image: &GoImage) -> Result<(Heap, Vec<String>), String> {
    let place = |svma: Svma| svma.0.wrapping_add(module.bias);
    let symbols = module.image.symbols(&VARIABLES);
    let symbol = |index: usize| symbols[index].map(|(svma, _)| svma);
    let program = Program {
        buckets: symbol(0).map(place),
        zeroed: image.zeroed().map(|range| place(range.start)..place(range.end)).to_vec(),
        rate: symbol(1).or_else(|| go::rate_address(image)).map(place),
    };
    let version = image.version().map_or("an unknown Go", |version| version.text.as_str());
    let profile = go::walk(target.memory, &program).map_err(|why| match why {
        Refusal::Off | Refusal::NoBuckets if is_switched_off(image) => {
            format!("the linker switched its profile off, since nothing in it asks for one; {REMEDY}")
        }
        Refusal::Off => format!("{why}, set by the program itself or by GODEBUG=memprofilerate=0"),
        _ => format!("{why} ({version})"),
    })?;
    let mut gaps = Vec::new();
    if program.rate.is_none() {
        gaps.push(format!(
            "the sampling rate of its Go heap is not known: {} bytes, the default, assumed",
            profile.rate
        ));
    }
    if profile.is_cut {
        gaps.push("its Go heap is only partly known: the list of its profile breaks off".to_owned());
    }
    if profile.partly_absent > 0 {
        gaps.push(format!(
            "its Go heap counts as never written what {} of its records have in pages that are not in memory",
            profile.partly_absent
        ));
    }
    if profile.without_stack > 0 {
        gaps.push(format!("its Go heap has {} stacks that own little and are not listed", profile.without_stack));
    }
    let mut folder = Folder::new(image, module.bias);
    let heap = heap(&profile, &mut folder, target.modules);
    if folder.is_used_up() {
        gaps.push("its Go heap has so many stacks that inlined functions may be shown twice".to_owned());
    }
    Ok((heap, gaps))
}

fn is_switched_off(image: &GoImage) -> bool {
    let switch = usize::from(image.version().and_then(|v| v.minor).is_some_and(|minor| minor < 23));
    image.functions(&SWITCHES[switch..=switch])[0].is_none()
}

/// Sizes of one stack are one stack to us.
fn heap(profile: &Profile, folder: &mut Folder<'_>, modules: &[LoadedModule]) -> Heap {
    let mut stacks: HashMap<Stack, (Sum, Sum)> = HashMap::new();
    let (mut inuse, mut alloc) = (Sum::default(), Sum::default());
    for record in &profile.records {
        let sums = stacks.entry(folder.fold(&record.counters)).or_default();
        sums.0.join(&record.inuse);
        sums.1.join(&record.alloc);
        inuse.join(&record.inuse);
        alloc.join(&record.alloc);
    }
    let mut frames = Frames::default();
    let mut listed: Vec<HeapStack> = stacks
        .into_iter()
        .map(|(stack, (inuse, alloc))| HeapStack {
            frames: stack.addresses.iter().map(|&address| frames.native(address, modules)).collect(),
            cut: stack.cut,
            inuse: estimate(&inuse),
            alloc: estimate(&alloc),
            before_bytes: None,
        })
        .collect();
    if profile.without_stack > 0 {
        let (inuse, alloc) = (estimate(&profile.inuse.without(&inuse)), estimate(&profile.alloc.without(&alloc)));
        listed.push(HeapStack { frames: Vec::new(), cut: true, inuse, alloc, before_bytes: None });
    }
    listed.sort_by(|a, b| {
        let rank = |stack: &HeapStack| (stack.inuse.bytes, stack.alloc.bytes);
        rank(b).cmp(&rank(a)).then_with(|| a.frames.cmp(&b.frames))
    });
    Heap {
        witness: Witness::Go,
        period_bytes: profile.rate,
        lost_samples: 0,
        lost_bytes: 0,
        inuse: estimate(&profile.inuse),
        alloc: estimate(&profile.alloc),
        frames: frames.list,
        stacks: listed,
    }
}
