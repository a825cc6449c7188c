//! An incident without names, to show it to others.
//!
//! Whatever could be a name is replaced by digits of a hash with a secret key, the same name
//! by the same digits; without the key nobody can try whether a name that he guesses is one
//! of them. Paths are replaced part by part. Our own sentences stay, word by word, as far as
//! their words are in a list; every other word is taken for a name.
//!
//! Each type is taken apart field by field: a field that is new does not compile before it
//! is decided what becomes of it.

mod accounts;
mod words;

use super::baseline::{Baseline, KindGrowth, ProcessGrowth};
use super::growth::{Ended, Growth};
use super::left_out::LeftOut;
use super::model::{
    Candidate, GeneratedAddress, Heap, HeapFrame, HeapStack, HoldReport, Host, Incident, KERNEL_PATH, KernelHold,
    KernelVictim, Labels, MallocState, Mapping, MemcgState, Module, OtherKiller, OtherVictim, Process, ResolvedAddress,
    ScriptFrame, Search, Step, StopOutcome, SymbolState, Symbols, Thread, Verdict,
};
use crate::snapshot::kernel::KALLSYMS;
use reprieve_symbolizer::{Frame, Source, Tried};
use std::collections::BTreeSet;
use words::Redactor;

pub use words::Key;

/// The incident without names.
#[must_use]
pub fn redact(incident: Incident, key: &Key) -> Incident {
    let mut names = BTreeSet::new();
    collect(&incident, &mut names);
    Redactor::new(key, names).incident(incident)
}

/// Names that sentences could have in them, with spaces, too.
fn collect(incident: &Incident, names: &mut BTreeSet<String>) {
    let mut add = |name: &str| {
        if !name.is_empty() {
            names.insert(name.to_owned());
        }
    };
    add(&incident.host.name);
    if let Some(memcg) = &incident.memcg {
        memcg.path.split('/').for_each(&mut add);
        add(&memcg.path);
    }
    for process in &incident.processes {
        add(&process.comm);
        process.exe.iter().for_each(|exe| add(exe));
        process.cgroup.split('/').for_each(&mut add);
        add(&process.cgroup);
        process.threads.iter().for_each(|thread| add(&thread.comm));
        process.mappings.iter().for_each(|mapping| add(&mapping.name));
    }
    incident.kernel_victims.iter().for_each(|victim| add(&victim.comm));
    incident.ended.iter().for_each(|ended| add(&ended.comm));
    incident.other_victims.iter().for_each(|victim| add(&victim.comm));
    incident.modules.iter().for_each(|module| add(&module.path));
    if let Some(verdict) = &incident.verdict {
        verdict.rule.iter().chain(verdict.steps.iter().flat_map(|step| &step.rule)).for_each(|rule| add(rule));
        verdict.steps.iter().flat_map(|step| &step.candidates).for_each(|candidate| add(&candidate.comm));
    }
    incident.left_out.iter().flat_map(|left_out| &left_out.rule).for_each(|rule| add(rule));
    incident.candidates.iter().for_each(|candidate| add(&candidate.comm));
    incident.accounting.iter().for_each(|accounting| accounts::collect(accounting, &mut add));
    // These are no more than numbers and marks, which sentences are full of.
    names.retain(|name| name.chars().any(char::is_alphabetic));
}

impl Redactor<'_> {
    fn incident(&self, incident: Incident) -> Incident {
        let Incident {
            schema,
            id,
            trigger,
            time_unix_us,
            host,
            memcg,
            hold,
            processes,
            kernel_victims,
            ended,
            growth,
            other_killers,
            other_victims,
            candidates,
            modules,
            symbols,
            verdict,
            accounting,
            baseline,
            left_out,
            gaps,
        } = incident;
        Incident {
            schema,
            id: self.id(&id),
            trigger,
            time_unix_us,
            host: self.host(host),
            memcg: memcg.map(|memcg| self.memcg(memcg)),
            hold: hold.map(|hold| self.hold(&hold)),
            processes: processes.into_iter().map(|process| self.process(process)).collect(),
            kernel_victims: kernel_victims.into_iter().map(|victim| self.victim(victim)).collect(),
            ended: ended.into_iter().map(|ended| self.ended(ended)).collect(),
            // Numbers and words of ours.
            growth,
            other_killers: other_killers.into_iter().map(|killer| self.other_killer(killer)).collect(),
            other_victims: other_victims.into_iter().map(|victim| self.other_victim(victim)).collect(),
            candidates: candidates.into_iter().map(|candidate| self.candidate(candidate)).collect(),
            symbols: self.symbols(symbols, &modules),
            modules: modules.into_iter().map(|module| self.module(module)).collect(),
            verdict: verdict.map(|verdict| self.verdict(verdict)),
            accounting: accounting.map(|accounting| self.accounting(accounting)),
            baseline: baseline.map(|baseline| self.baseline(baseline)),
            left_out: left_out.map(|left_out| self.left_out(left_out)),
            gaps: gaps.iter().map(|gap| self.sentence(gap)).collect(),
        }
    }

    fn left_out(&self, left_out: LeftOut) -> LeftOut {
        let LeftOut { parts, rule } = left_out;
        LeftOut { parts, rule: rule.map(|rule| self.name(&rule)) }
    }

    fn baseline(&self, baseline: Baseline) -> Baseline {
        let Baseline {
            usage,
            before_us,
            within_us,
            before_bytes,
            after_bytes,
            kinds,
            processes,
            has_heap,
            heap_rest_bytes,
            cost,
        } = baseline;
        let kind = |KindGrowth { kind, before_bytes, after_bytes }| KindGrowth {
            kind: self.sentence(&kind),
            before_bytes,
            after_bytes,
        };
        let process = |ProcessGrowth { pid, comm, before_bytes, after_bytes }| {
            let comm = self.path(&comm);
            ProcessGrowth { pid, comm, before_bytes, after_bytes }
        };
        let kinds = kinds.into_iter().map(kind).collect();
        let processes = processes.into_iter().map(process).collect();
        Baseline {
            usage,
            before_us,
            within_us,
            before_bytes,
            after_bytes,
            kinds,
            processes,
            has_heap,
            heap_rest_bytes,
            cost,
        }
    }

    fn host(&self, host: Host) -> Host {
        let Host { name, kernel, memory_bytes, available_bytes, reprieve } = host;
        Host {
            name: self.name(&name),
            kernel: self.release(&kernel),
            memory_bytes,
            available_bytes,
            reprieve: self.release(&reprieve),
        }
    }

    fn memcg(&self, memcg: MemcgState) -> MemcgState {
        let MemcgState {
            path,
            version,
            usage_bytes,
            limit_bytes,
            peak_bytes,
            stat,
            events,
            labels,
            priority,
            reservation_bytes,
            pressure,
        } = memcg;
        MemcgState {
            path: self.path(&path),
            version,
            usage_bytes,
            limit_bytes,
            peak_bytes,
            stat: self.counters(stat),
            events: self.counters(events),
            labels: self.labels(labels),
            priority,
            reservation_bytes,
            pressure,
        }
    }

    fn labels(&self, labels: Labels) -> Labels {
        let Labels { container_runtime, container_id, pod_uid } = labels;
        Labels {
            container_runtime: container_runtime.map(|runtime| self.sentence(&runtime)),
            container_id: container_id.map(|id| self.name(&id)),
            pod_uid: pod_uid.map(|uid| self.name(&uid)),
        }
    }

    fn hold(&self, hold: &HoldReport) -> HoldReport {
        // All others are numbers; named, so that a new one is looked at.
        let HoldReport {
            brake,
            kernel,
            stop_window_us: _,
            exposed_us: _,
            snapshot_us: _,
            symbolized_us: _,
            held_us: _,
            deadline_us: _,
            threads_stopped: _,
            threads_not_stopped: _,
            guardian_locked_bytes: _,
            heap_table_bytes: _,
            guardian_peak_bytes: _,
            guardian_hold_heap_bytes: _,
            deciding_faults: _,
        } = hold;
        let kernel = kernel.as_ref().map(|kernel| self.kernel_hold(kernel));
        HoldReport { brake: self.sentence(brake), kernel, ..hold.clone() }
    }

    fn kernel_hold(&self, hold: &KernelHold) -> KernelHold {
        let KernelHold {
            pid: _,
            tid: _,
            user_fault: _,
            order: _,
            parked: _,
            reserve_bytes: _,
            above_limit_bytes: _,
            overrun_left_bytes: _,
            guardian_inside: _,
            reserve_used_bytes: _,
            ended,
            holds: _,
        } = hold;
        KernelHold { ended: ended.as_deref().map(|ended| self.sentence(ended)), ..hold.clone() }
    }

    fn victim(&self, victim: KernelVictim) -> KernelVictim {
        let KernelVictim { pid, comm, rss_bytes, anon_bytes, shmem_bytes } = victim;
        KernelVictim { pid, comm: self.path(&comm), rss_bytes, anon_bytes, shmem_bytes }
    }

    fn ended(&self, ended: Ended) -> Ended {
        let Ended { pid, comm, killed_by_kernel, growth } = ended;
        Ended { pid, comm: self.path(&comm), killed_by_kernel, growth: self.growth(growth) }
    }

    fn growth(&self, growth: Growth) -> Growth {
        // All others are numbers; named, so that a new one is looked at.
        let Growth {
            basis: _,
            samples: _,
            bytes: _,
            direct_bytes: _,
            shared_bytes: _,
            stack_bytes: _,
            heap_bytes: _,
            unseen_bytes: _,
            stacks: _,
            frames: _,
        } = &growth;
        let frames = growth.frames.into_iter().map(|frame| self.heap_frame(frame)).collect();
        Growth { frames, ..growth }
    }

    fn heap_frame(&self, frame: HeapFrame) -> HeapFrame {
        let HeapFrame { address, at, named } = frame;
        HeapFrame { address, at, named: named.map(|frame| self.frame(frame)) }
    }

    fn other_killer(&self, killer: OtherKiller) -> OtherKiller {
        let OtherKiller { pid, name, kills_here } = killer;
        OtherKiller { pid, name: self.sentence(&name), kills_here }
    }

    fn other_victim(&self, victim: OtherVictim) -> OtherVictim {
        let OtherVictim { pid, comm } = victim;
        OtherVictim { pid, comm: self.path(&comm) }
    }

    fn process(&self, process: Process) -> Process {
        let Process {
            pid,
            ppid,
            comm,
            exe,
            cmdline: _,
            uid,
            start_ticks,
            age_s,
            cgroup,
            container_id,
            container_runtime,
            pod_uid,
            foreign_namespaces,
            state,
            oom_score_adj,
            memory,
            mappings,
            mapping_count,
            threads,
            heaps,
            malloc,
            growth,
            gaps,
        } = process;
        Process {
            pid,
            ppid,
            comm: self.path(&comm),
            exe: exe.map(|exe| self.path(&exe)),
            cmdline: None,
            uid,
            start_ticks,
            age_s,
            cgroup: self.path(&cgroup),
            container_id: container_id.map(|id| self.name(&id)),
            container_runtime: container_runtime.map(|runtime| self.sentence(&runtime)),
            pod_uid: pod_uid.map(|uid| self.name(&uid)),
            foreign_namespaces: foreign_namespaces.into_iter().map(|link| self.namespace(link)).collect(),
            state,
            oom_score_adj,
            memory,
            mappings: mappings.into_iter().map(|mapping| self.mapping(mapping)).collect(),
            mapping_count,
            threads: threads.into_iter().map(|thread| self.thread(thread)).collect(),
            heaps: heaps.into_iter().map(|heap| self.heap(heap)).collect(),
            malloc: malloc.map(|malloc| self.malloc(malloc)),
            growth: growth.map(|growth| self.growth(growth)),
            gaps: gaps.iter().map(|gap| self.sentence(gap)).collect(),
        }
    }

    fn mapping(&self, mapping: Mapping) -> Mapping {
        let Mapping { start, end, name, permissions, pss_bytes, swap_pss_bytes, anonymous_bytes } = mapping;
        let is_permissions = permissions.bytes().all(|b| b"rwxps-".contains(&b));
        let permissions = if is_permissions { permissions } else { self.name(&permissions) };
        Mapping { start, end, name: self.mapped(&name), permissions, pss_bytes, swap_pss_bytes, anonymous_bytes }
    }

    fn thread(&self, thread: Thread) -> Thread {
        // Registers can hold anything, a part of a password, too.
        let Thread { tid, comm, state, stop, registers: _, wchan, stack, frame_modules, script } = thread;
        let stop = match stop {
            StopOutcome::NotStopped(reason) => StopOutcome::NotStopped(self.sentence(&reason)),
            StopOutcome::Stopped => StopOutcome::Stopped,
            StopOutcome::Gone => StopOutcome::Gone,
        };
        let script =
            script.into_iter().map(|ScriptFrame { native, frame }| ScriptFrame { native, frame: self.frame(frame) });
        Thread {
            tid,
            comm: self.path(&comm),
            state,
            stop,
            registers: None,
            wchan: wchan.map(|wchan| self.name(&wchan)),
            stack,
            frame_modules,
            script: script.collect(),
        }
    }

    fn heap(&self, heap: Heap) -> Heap {
        let Heap { witness, period_bytes, lost_samples, lost_bytes, inuse, alloc, frames, stacks } = heap;
        let frames = frames.into_iter().map(|frame| self.heap_frame(frame)).collect();
        // Numbers; named, so that a new one is looked at.
        let stack = |HeapStack { frames, cut, inuse, alloc, before_bytes }| HeapStack {
            frames,
            cut,
            inuse,
            alloc,
            before_bytes,
        };
        let stacks = stacks.into_iter().map(stack).collect();
        Heap { witness, period_bytes, lost_samples, lost_bytes, inuse, alloc, frames, stacks }
    }

    fn malloc(&self, malloc: MallocState) -> MallocState {
        let MallocState { library, arenas, mmapped, size_classes } = malloc;
        MallocState { library: self.sentence(&library), arenas, mmapped, size_classes }
    }

    fn module(&self, module: Module) -> Module {
        let Module { pid, path, build_id, start, end, file_offset, bias, deleted } = module;
        // By its build ID anybody can look up what a public binary is.
        let build_id = build_id.map(|id| self.name(&id));
        let path = if path == KERNEL_PATH { path } else { self.mapped(&path) };
        Module { pid, path, build_id, start, end, file_offset, bias, deleted }
    }

    fn symbols(&self, symbols: Symbols, modules: &[Module]) -> Symbols {
        let Symbols { state, completed_unix_us, addresses, generated, searches } = symbols;
        let state = match state {
            SymbolState::AfterVerdict(reason) => SymbolState::AfterVerdict(self.sentence(&reason)),
            SymbolState::Failed(reason) => SymbolState::Failed(self.sentence(&reason)),
            SymbolState::Pending => SymbolState::Pending,
            SymbolState::BeforeVerdict => SymbolState::BeforeVerdict,
        };
        let miss = |miss: Option<String>| miss.map(|miss| self.sentence(&miss));
        let address = |a: ResolvedAddress| {
            let ResolvedAddress { at, frames, source, miss: why } = a;
            let is_kernel = modules.get(at.module as usize).is_some_and(Module::is_kernel);
            // What Linux is made of everybody knows; not what modules somebody has, which are
            // behind a space.
            let is_public = |frame: &Frame| {
                let (name, is_name) = (&frame.function, |c: char| c.is_ascii_alphanumeric() || "_.".contains(c));
                is_kernel && frame.file.is_none() && name.chars().all(is_name)
            };
            let one = |frame: Frame| if is_public(&frame) { frame } else { self.frame(frame) };
            let frames = frames.into_iter().map(one).collect();
            ResolvedAddress { at, frames, source, miss: miss(why) }
        };
        let generated_one = |a: GeneratedAddress| {
            let GeneratedAddress { pid, address, frame, source, miss: why } = a;
            GeneratedAddress { pid, address, frame: frame.map(|f| self.frame(f)), source, miss: miss(why) }
        };
        let search = |s: Search| {
            let Search { subject, tried, without_inlined, without_lines } = s;
            let tried = tried.into_iter().map(|Tried { source, place, outcome }| {
                let place = if source == Source::Kallsyms { KALLSYMS.to_owned() } else { self.path(&place) };
                Tried { source, place, outcome }
            });
            Search { subject, tried: tried.collect(), without_inlined, without_lines }
        };
        Symbols {
            state,
            completed_unix_us,
            addresses: addresses.into_iter().map(address).collect(),
            generated: generated.into_iter().map(generated_one).collect(),
            searches: searches.into_iter().map(search).collect(),
        }
    }

    fn frame(&self, frame: Frame) -> Frame {
        let Frame { function, file, line, column, inlined } = frame;
        Frame { function: self.name(&function), file: file.map(|file| self.path(&file)), line, column, inlined }
    }

    fn verdict(&self, verdict: Verdict) -> Verdict {
        let Verdict { summary, relieved, rule, problems, steps } = verdict;
        Verdict {
            summary: self.sentence(&summary),
            relieved,
            rule: rule.map(|rule| self.name(&rule)),
            problems: problems.iter().map(|problem| self.sentence(problem)).collect(),
            steps: steps.into_iter().map(|step| self.step(step)).collect(),
        }
    }

    fn step(&self, step: Step) -> Step {
        let Step {
            action,
            reason,
            outcome,
            effect,
            usage_before_bytes,
            usage_after_bytes,
            limit_us,
            took_us,
            candidates,
            rule,
        } = step;
        Step {
            action: self.sentence(&action),
            reason: self.sentence(&reason),
            outcome,
            effect: self.sentence(&effect),
            usage_before_bytes,
            usage_after_bytes,
            limit_us,
            took_us,
            candidates: candidates.into_iter().map(|candidate| self.candidate(candidate)).collect(),
            rule: rule.map(|rule| self.name(&rule)),
        }
    }

    fn candidate(&self, candidate: Candidate) -> Candidate {
        let Candidate { pid, comm, priority, size_bytes, reservation_bytes } = candidate;
        // Of the machine's jobs it is a cgroup's path. A name with a slash, as the kernel's threads
        // have, is no other than in a path.
        Candidate { pid, comm: self.path(&comm), priority, size_bytes, reservation_bytes }
    }
}
