//! Figures of an incident that cannot be those of a machine, and stacks without end: a
//! process whose heap is damaged writes anything into its books, and anybody into a file.
//! Readers add figures up and follow stacks without a look at each; so what cannot be is
//! left out here, and told.

use super::accounting::{AccountNode, Accounting};
use super::baseline::{Baseline, BaselineCost, KindGrowth, ProcessGrowth, UsagePoint};
use super::growth::{Growth, GrowthStack};
use super::model::{Estimate, Heap, HeapStack, Incident, MallocState, Process, ProcessMemory, Thread};
use super::units::grouped;

/// More than all bytes, objects and samples of an incident are together: a million
/// terabytes.
const BEYOND: u64 = 1 << 60;
/// Frames of one stack that are believed; 1024 are recorded at most, by Go.
const MOST_FRAMES: usize = 1 << 13;
/// Functions inlined into each other that are believed; some hundreds are found at most.
const MOST_INLINED: usize = 1 << 10;

/// Leaves out what cannot be; each part that is left out is a sentence of `gaps`.
pub fn sift(incident: &mut Incident) {
    let mut gaps = Vec::new();
    let mut room = Room(BEYOND);
    for process in &mut incident.processes {
        sift_process(process, &mut room);
        process.threads.iter_mut().for_each(|thread| cut_thread(thread, &mut process.gaps));
        for stack in process.heaps.iter_mut().flat_map(|heap| &mut heap.stacks) {
            stack.cut |= cut(&mut stack.frames, MOST_FRAMES, "frames of a heap's stack", &mut process.gaps);
        }
        process.growth.iter_mut().for_each(|growth| cut_growth(growth, &mut process.gaps));
    }
    incident.ended.retain(|ended| {
        let can_be = room.takes(of_growth(&ended.growth));
        if !can_be {
            gaps.push(absurd(&format!("who made {} [{}] grow", ended.comm, ended.pid)));
        }
        can_be
    });
    incident.ended.iter_mut().for_each(|ended| cut_growth(&mut ended.growth, &mut gaps));
    for killer in &mut incident.other_killers {
        if !room.takes(killer.kills_here.unwrap_or(0)) {
            killer.kills_here = None;
            gaps.push(absurd(&format!("whom {} has killed", killer.name)));
        }
    }
    for address in &mut incident.symbols.addresses {
        cut(&mut address.frames, MOST_INLINED, "functions inlined at one address", &mut gaps);
    }
    if incident.accounting.as_ref().is_some_and(|accounting| !room.takes(of_accounting(accounting))) {
        incident.accounting = None;
        gaps.push(absurd("what is charged"));
    }
    if incident.baseline.as_ref().is_some_and(|baseline| !room.takes(of_baseline(baseline))) {
        incident.baseline = None;
        gaps.push(absurd("what it was like before"));
    }
    incident.gaps.append(&mut gaps);
}

fn absurd(what: &str) -> String {
    format!("{what}: sizes that no machine has; left out")
}

fn sift_process(process: &mut Process, room: &mut Room) {
    let Process { memory, mappings, heaps, malloc, growth, gaps, .. } = process;
    if !room.takes(of_memory(memory)) {
        *memory = ProcessMemory::default();
        gaps.push(absurd("its memory"));
    }
    let of_mappings = mappings.iter().flat_map(|m| [m.pss_bytes, m.swap_pss_bytes, m.anonymous_bytes]);
    if !room.takes(sum(of_mappings)) {
        mappings.clear();
        gaps.push(absurd("its mappings"));
    }
    heaps.retain(|heap| {
        let can_be = room.takes(of_heap(heap));
        if !can_be {
            gaps.push(absurd(&format!("its heap as {} has it", heap.witness.title())));
        }
        can_be
    });
    if malloc.as_ref().is_some_and(|malloc| !room.takes(of_malloc(malloc))) {
        *malloc = None;
        gaps.push(absurd("its malloc's books"));
    }
    if growth.as_ref().is_some_and(|growth| !room.takes(of_growth(growth))) {
        *growth = None;
        gaps.push(absurd("who made it grow"));
    }
}

fn cut_thread(thread: &mut Thread, gaps: &mut Vec<String>) {
    cut(&mut thread.stack.frames, MOST_FRAMES, "frames of a thread's stack", gaps);
    thread.frame_modules.truncate(MOST_FRAMES);
    cut(&mut thread.script, MOST_FRAMES, "frames of an interpreter's stack", gaps);
}

fn cut_growth(growth: &mut Growth, gaps: &mut Vec<String>) {
    for stack in &mut growth.stacks {
        stack.cut |= cut(&mut stack.frames, MOST_FRAMES, "frames of a stack that grew", gaps);
    }
}

/// Keeps so many; whether there were more.
fn cut<T>(list: &mut Vec<T>, most: usize, what: &str, gaps: &mut Vec<String>) -> bool {
    let more = list.len().saturating_sub(most);
    list.truncate(most);
    if more > 0 {
        gaps.push(format!("{what}: {} more than {most}; left out", grouped(more as u64)));
    }
    more > 0
}

/// What sums may still come to.
struct Room(u64);

impl Room {
    /// Whether there is room for it, which is then taken.
    fn takes(&mut self, sum: u64) -> bool {
        let left = self.0.checked_sub(sum);
        self.0 = left.unwrap_or(self.0);
        left.is_some()
    }
}

fn sum(figures: impl IntoIterator<Item = u64>) -> u64 {
    figures.into_iter().fold(0, u64::saturating_add)
}

fn of_memory(memory: &ProcessMemory) -> u64 {
    let ProcessMemory { rss_bytes, pss_bytes, pss_anon_bytes, pss_file_bytes, pss_shmem_bytes, swap_pss_bytes } =
        *memory;
    sum([rss_bytes, pss_bytes, pss_anon_bytes, pss_file_bytes, pss_shmem_bytes, swap_pss_bytes])
}

fn of_heap(heap: &Heap) -> u64 {
    let of_stack = |stack: &HeapStack| {
        let HeapStack { frames: _, cut: _, inuse, alloc, before_bytes } = stack;
        [of_estimate(inuse), of_estimate(alloc), before_bytes.unwrap_or(0)]
    };
    let all = [heap.lost_bytes, heap.lost_samples, of_estimate(&heap.inuse), of_estimate(&heap.alloc)];
    sum(heap.stacks.iter().flat_map(of_stack).chain(all))
}

fn of_estimate(estimate: &Estimate) -> u64 {
    let Estimate { bytes, objects, samples, sigma_bytes, sigma_objects } = *estimate;
    sum([bytes, objects, samples, sigma_bytes, sigma_objects])
}

fn of_malloc(malloc: &MallocState) -> u64 {
    let of_arenas = malloc.arenas.iter().flat_map(|arena| {
        let free = &arena.free;
        let kinds = [arena.live, free.tcache, free.fastbins, free.unsorted, free.small, free.large];
        let known = [arena.resident_bytes, arena.free_resident_bytes, arena.top_resident_bytes];
        let all = [arena.system_bytes, arena.top_bytes, arena.overhead_bytes, arena.unknown_bytes, arena.heaps];
        let of_kinds = sum(kinds.iter().flat_map(|kind| [kind.chunks, kind.bytes]));
        [of_kinds, sum(known.into_iter().flatten()), sum(all)]
    });
    let of_mmapped = malloc.mmapped.iter().flat_map(|m| [m.chunks, m.bytes, m.resident_bytes.unwrap_or(0)]);
    let of_classes = malloc.size_classes.iter().flat_map(|class| [class.chunks, class.bytes]);
    sum(of_arenas.chain(of_mmapped).chain(of_classes))
}

fn of_growth(growth: &Growth) -> u64 {
    // Named, so that a new figure is looked at.
    let Growth {
        basis: _,
        samples,
        bytes,
        direct_bytes,
        shared_bytes,
        stack_bytes,
        heap_bytes,
        unseen_bytes,
        frames: _,
        ref stacks,
    } = *growth;
    let of_stack = |&GrowthStack { bytes, sigma_bytes, samples, reliable_bytes, .. }: &GrowthStack| {
        [bytes, sigma_bytes, samples, reliable_bytes]
    };
    let all = [samples, bytes, direct_bytes, shared_bytes, stack_bytes, heap_bytes, unseen_bytes];
    sum(stacks.iter().flat_map(of_stack).chain(all))
}

fn of_accounting(accounting: &Accounting) -> u64 {
    let mut all = sum([accounting.usage_after_bytes, accounting.elsewhere_bytes]);
    for node in accounting.beside.iter().chain([&accounting.root]) {
        node.walk(&mut |node: &AccountNode, _| all = sum([all, node.bytes, node.excess_bytes]));
    }
    all
}

fn of_baseline(baseline: &Baseline) -> u64 {
    // Named, so that a new figure is looked at.
    let Baseline {
        ref usage,
        before_us,
        within_us,
        before_bytes,
        after_bytes,
        ref kinds,
        ref processes,
        has_heap: _,
        heap_rest_bytes,
        cost,
    } = *baseline;
    let BaselineCost { records, took_us, since_us, kept_bytes } = cost;
    let of_points = usage.iter().map(|&UsagePoint { before_us, usage_bytes }| sum([before_us, usage_bytes]));
    let of_kinds = kinds.iter().map(|&KindGrowth { before_bytes, after_bytes, .. }| sum([before_bytes, after_bytes]));
    let of_processes = processes
        .iter()
        .map(|&ProcessGrowth { before_bytes, after_bytes, .. }| sum([before_bytes.unwrap_or(0), after_bytes]));
    let within_us = within_us.unwrap_or(0);
    let all =
        [before_us, within_us, before_bytes, after_bytes, heap_rest_bytes, records, took_us, since_us, kept_bytes];
    sum(of_points.chain(of_kinds).chain(of_processes).chain(all))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incident::model::{MallocMmapped, MallocSizeClass, OtherKiller};
    use crate::incident::read::read_incident;
    use std::path::Path;

    fn recorded(name: &str) -> Incident {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/incidents")).join(name);
        read_incident(&path).unwrap()
    }

    fn sifted(mut incident: Incident) -> Incident {
        sift(&mut incident);
        incident
    }

    #[test]
    fn sizes_that_no_machine_has_are_left_out_and_told() {
        let python = recorded("python.json");
        assert_eq!(sifted(python.clone()), python);
        let malloc = |mmapped, bytes| {
            let size_classes = vec![MallocSizeClass { bytes, ..Default::default() }];
            Some(MallocState { mmapped, size_classes, ..MallocState::default() })
        };
        type Change = fn(&mut Process, u64);
        let changes: [(Change, &str); 5] = [
            (|process, size| process.memory.pss_bytes = size, "its memory"),
            (|process, size| process.mappings[0].anonymous_bytes = size, "its mappings"),
            (|process, size| process.heaps[0].stacks[0].alloc.objects = size, "its heap as malloc has it"),
            (|process, size| process.heaps[0].inuse.sigma_bytes = size, "its heap as malloc has it"),
            (|process, size| process.heaps[0].lost_bytes = size, "its heap as malloc has it"),
        ];
        for (change, what) in changes {
            let with = |size| {
                let mut incident = python.clone();
                change(&mut incident.processes[0], size);
                incident
            };
            assert_eq!(sifted(with(1 << 56)), with(1 << 56), "{what}");
            for size in [BEYOND, 1 << 63, u64::MAX] {
                let told = sifted(with(size)).processes.remove(0).gaps;
                assert_eq!(told, [absurd(what)], "{size}");
            }
        }
        let mut books = python.clone();
        books.processes[0].malloc = malloc(None, 5);
        assert_eq!(sifted(books.clone()), books);
        books.processes[0].malloc = malloc(Some(MallocMmapped { bytes: u64::MAX, ..Default::default() }), u64::MAX);
        let books = sifted(books).processes.remove(0);
        assert_eq!((books.malloc, books.gaps), (None, vec![absurd("its malloc's books")]));
        assert_eq!((books.heaps, books.memory), (python.processes[0].heaps.clone(), python.processes[0].memory));
    }

    #[test]
    fn what_processes_grew_by_is_sifted_as_well() {
        const SEED: &[u8] = include_bytes!("../../fuzz/seeds/incident/growth.json");
        let grown: Incident = serde_json::from_slice(SEED).unwrap();
        assert_eq!(sifted(grown.clone()), grown);
        let of_living = |incident: &mut Incident| incident.processes[0].growth.take();
        let changes: [fn(&mut Growth); 4] = [
            |growth| growth.unseen_bytes = BEYOND,
            |growth| growth.samples = u64::MAX,
            |growth| growth.stacks[1].reliable_bytes = BEYOND,
            |growth| growth.stacks[0].sigma_bytes = u64::MAX,
        ];
        for change in changes {
            let mut living = grown.clone();
            change(living.processes[0].growth.as_mut().unwrap());
            let mut living = sifted(living);
            assert_eq!((of_living(&mut living), living.ended.len()), (None, 1));
            assert_eq!(living.processes[0].gaps, [absurd("who made it grow")]);
            let mut ended = grown.clone();
            change(&mut ended.ended[0].growth);
            let mut ended = sifted(ended);
            assert!(of_living(&mut ended).is_some() && ended.ended.is_empty());
            assert_eq!(ended.gaps, [absurd("who made victim [13790] grow")]);
        }
        let mut deep = grown;
        deep.ended[0].growth.stacks[0].frames = vec![0; MOST_FRAMES + 2];
        let deep = sifted(deep);
        assert_eq!(deep.gaps, ["frames of a stack that grew: 2 more than 8192; left out"]);
        let stack = &deep.ended[0].growth.stacks[0];
        assert!(stack.cut && stack.frames.len() == MOST_FRAMES);
    }

    #[test]
    fn what_it_was_like_before_is_sifted_as_well() {
        let shop = recorded("shop.json");
        assert!(shop.baseline.is_some());
        assert_eq!(sifted(shop.clone()), shop);
        let changes: [fn(&mut Baseline); 7] = [
            |baseline| baseline.usage[0].usage_bytes = u64::MAX,
            |baseline| baseline.kinds[0].after_bytes = BEYOND,
            |baseline| baseline.processes[0].before_bytes = Some(1 << 63),
            |baseline| baseline.before_us = u64::MAX,
            |baseline| baseline.within_us = Some(u64::MAX),
            |baseline| baseline.heap_rest_bytes = u64::MAX,
            |baseline| baseline.cost.since_us = u64::MAX,
        ];
        for change in changes {
            let mut incident = shop.clone();
            change(incident.baseline.as_mut().unwrap());
            let incident = sifted(incident);
            assert_eq!((incident.baseline, incident.gaps), (None, vec![absurd("what it was like before")]));
        }
        let mut heap = shop;
        heap.processes[0].heaps[0].stacks[0].before_bytes = Some(u64::MAX);
        let heap = sifted(heap).processes.remove(0);
        assert_eq!((heap.heaps, heap.gaps.last()), (Vec::new(), Some(&absurd("its heap as malloc has it"))));
    }

    #[test]
    fn what_others_have_killed_is_sifted_as_well() {
        let mut incident = recorded("sort.json");
        let killer = |kills_here| OtherKiller { pid: 7, name: "systemd-oomd".to_owned(), kills_here };
        incident.other_killers = vec![killer(Some(u64::MAX)), killer(Some(3)), killer(None)];
        let incident = sifted(incident);
        assert_eq!(incident.other_killers, [killer(None), killer(Some(3)), killer(None)]);
        assert_eq!(incident.gaps, [absurd("whom systemd-oomd has killed")]);
    }

    #[test]
    fn what_each_could_be_not_all_can() {
        let mut many = recorded("python.json");
        many.processes[0].memory.pss_bytes = 1 << 56;
        many.processes = vec![many.processes[0].clone(); 100];
        let many = sifted(many);
        let left = many.processes.iter().map(|process| process.memory.pss_bytes);
        assert!(left.clone().sum::<u64>() < BEYOND && left.filter(|&bytes| bytes > 0).count() == 15);
        let mut charged = recorded("sort.json");
        let leaf = AccountNode::leaf("all", 1 << 62, "x");
        charged.accounting = Some(Accounting {
            root: leaf,
            beside: Vec::new(),
            usage_after_bytes: 0,
            elsewhere_bytes: 0,
            took_us: 0,
            gaps: Vec::new(),
        });
        let charged = sifted(charged);
        assert_eq!((charged.accounting, charged.gaps), (None, vec![absurd("what is charged")]));
    }

    #[test]
    fn stacks_without_end_are_cut_and_told() {
        let mut deep = recorded("python.json");
        deep.processes[0].heaps[0].stacks[0].frames = vec![0; MOST_FRAMES + 1];
        deep.processes[0].heaps[0].stacks[0].cut = false;
        let process = sifted(deep).processes.remove(0);
        assert_eq!(process.gaps, ["frames of a heap's stack: 1 more than 8192; left out"]);
        let stack = &process.heaps[0].stacks[0];
        assert!(stack.cut && stack.frames.len() == MOST_FRAMES);
        let mut inlined = recorded("sort.json");
        let address = inlined.symbols.addresses.iter_mut().find(|address| !address.frames.is_empty()).unwrap();
        address.frames = vec![address.frames[0].clone(); MOST_INLINED + 2];
        assert_eq!(sifted(inlined).gaps.len(), 1);
    }
}
