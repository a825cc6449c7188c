//! The incident: one answered out-of-memory, as plain data.
//!
//! This is the contract with scripts (`incident.json`, schema
//! [`SCHEMA`]); `docs/incident.md` documents it field by field. Units are in the names: `_bytes`, `_us`
//! (microseconds), `_unix_us` (microseconds since 1970). An absent value is
//! `null`, never a sentinel.

use super::accounting::Accounting;
use super::baseline::Baseline;
use super::growth::{Ended, Growth, GrowthSampling};
use super::left_out::LeftOut;
use reprieve_symbolizer::{Frame, RawStack, Registers, SymbolSource, Tried};
use serde::{Deserialize, Serialize};

/// Name and version of the format; a reader refuses a name it does not know.
pub const SCHEMA: &str = "reprieve.incident/1";

/// One answered OOM, or one snapshot on demand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// Folder name; sorts by time.
    pub id: String,
    /// What made us write this.
    pub trigger: Trigger,
    /// When the OOM was noticed (or the snapshot asked for).
    pub time_unix_us: u64,
    /// The machine.
    pub host: Host,
    /// The memcg, when there is one.
    pub memcg: Option<MemcgState>,
    /// How the memcg was held.
    pub hold: Option<HoldReport>,
    /// Every process seen.
    pub processes: Vec<Process>,
    /// Whom the kernel's OOM killer killed, when it did.
    #[serde(default)]
    pub kernel_victims: Vec<KernelVictim>,
    /// Processes that ended before the evidence was taken, as far as their page faults
    /// are remembered: whom the kernel killed, or where it does not say, the last.
    #[serde(default)]
    pub ended: Vec<Ended>,
    /// How page faults were sampled; `None` where they were not.
    #[serde(default)]
    pub growth: Option<GrowthSampling>,
    /// Other programs that kill for memory and ran at the time.
    #[serde(default)]
    pub other_killers: Vec<OtherKiller>,
    /// Who was killed while stopped, by somebody else than the kernel and us.
    #[serde(default)]
    pub other_victims: Vec<OtherVictim>,
    /// Whom a kill could have hit when everybody was stopped, first to go in front; empty in
    /// incidents without a hold of a memcg, and in older ones.
    #[serde(default)]
    pub candidates: Vec<Candidate>,
    /// ELF images mapped executable in any process; `Mapping::module` and
    /// `ResolvedAddress::module` index into it.
    pub modules: Vec<Module>,
    /// Symbols for the addresses in the stacks; empty until symbolized.
    pub symbols: Symbols,
    /// What was decided and what it did. `None` for a snapshot.
    pub verdict: Option<Verdict>,
    /// What the memcg is charged for; `None` without a memcg.
    #[serde(default)]
    pub accounting: Option<Accounting>,
    /// What it was like before; `None` where nobody had kept a record of it.
    #[serde(default)]
    pub baseline: Option<Baseline>,
    /// What nobody looked at, since the configuration says so; `None`: all was looked at.
    #[serde(default)]
    pub left_out: Option<LeftOut>,
    /// Everything that could not be had, each a sentence; empty is complete.
    pub gaps: Vec<String>,
}

/// What made us write the incident.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// The memcg reached its limit and was held.
    Oom,
    /// The kernel's OOM killer acted: before a hold was possible, or because no
    /// action had helped.
    KilledByKernel,
    /// `reprieve snapshot`.
    Snapshot,
}

/// The machine the incident happened on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// `uname -n`.
    pub name: String,
    /// `uname -r`.
    pub kernel: String,
    /// `MemTotal`.
    pub memory_bytes: u64,
    /// `MemAvailable` at the OOM.
    pub available_bytes: u64,
    /// Version of reprieve.
    pub reprieve: String,
}

/// State of the memcg at the OOM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemcgState {
    /// Path below the memory controller's mount, starting with `/`.
    pub path: String,
    /// 1 or 2.
    pub version: u8,
    /// `memory.usage_in_bytes` or `memory.current`.
    pub usage_bytes: u64,
    /// The limit that counts as out of memory; `None` is unlimited.
    pub limit_bytes: Option<u64>,
    /// `memory.max_usage_in_bytes` or `memory.peak`.
    pub peak_bytes: Option<u64>,
    /// `memory.stat`, as the kernel names it, in the kernel's units (bytes
    /// for sizes, events for counters).
    pub stat: std::collections::BTreeMap<String, u64>,
    /// Counters: `memory.events` (v2) or failcnt and oom_control (v1).
    pub events: std::collections::BTreeMap<String, u64>,
    /// Which container and pod it is.
    #[serde(default)]
    pub labels: Labels,
    /// What it is worth, the larger the more; `None` where nobody has said.
    #[serde(default)]
    pub priority: Option<i32>,
    /// What it may keep when memory is short; `None` where nobody has looked.
    #[serde(default)]
    pub reservation_bytes: Option<u64>,
    /// How long tasks waited for memory; `None` where the kernel does not tell.
    #[serde(default)]
    pub pressure: Option<Pressure>,
}

/// Waiting for memory in the ten seconds before, as the kernel averages it (PSI).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Pressure {
    /// Whose tasks.
    pub scope: PressureScope,
    /// Part of the time in which one or more of them waited, 0 to 100.
    pub some_percent: f64,
    /// Part of the time in which all that had something to do waited, 0 to 100.
    pub full_percent: f64,
}

/// Whose tasks waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PressureScope {
    /// Those of the memcg.
    Memcg,
    /// Those of the machine, where the kernel does not tell of the memcg, as on version 1.
    Machine,
}

/// What the path of a cgroup says of containers; of one in another, the inner one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Labels {
    /// `docker`, `containerd`, `cri-o`, `podman` or `nomad`, where the path tells.
    pub container_runtime: Option<String>,
    /// 64 hexadecimal digits; of Nomad the allocation's UUID, a dot, and the task.
    pub container_id: Option<String>,
    /// UID of the pod in Kubernetes, with dashes; of podman its ID.
    pub pod_uid: Option<String>,
}

/// A process that the kernel's OOM killer killed, from the kernel log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelVictim {
    /// PID in the initial PID namespace.
    pub pid: i32,
    /// Its name.
    pub comm: String,
    /// Resident when it was killed, shared pages counted in full.
    pub rss_bytes: u64,
    /// Anonymous part of that.
    #[serde(default)]
    pub anon_bytes: Option<u64>,
    /// Shared memory in it.
    #[serde(default)]
    pub shmem_bytes: Option<u64>,
}

/// A program on the machine that kills for memory, like `earlyoom`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherKiller {
    /// Its PID.
    pub pid: i32,
    /// Its name.
    pub name: String,
    /// Processes that it has killed in this memcg so far; only systemd-oomd tells.
    pub kills_here: Option<u64>,
}

/// A process that somebody else killed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherVictim {
    /// Its PID.
    pub pid: i32,
    /// Its name.
    pub comm: String,
}

/// What the kernel tells of a hold of its own (brake `reserve`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelHold {
    /// The process that hit the limit, in our PID namespace; 0 is one outside it.
    pub pid: i32,
    /// Its thread.
    pub tid: i32,
    /// Whether it touched a page; otherwise it was in a system call.
    pub user_fault: bool,
    /// It wanted two to the power of this many pages.
    pub order: u32,
    /// Threads that waited for memory when the stop began.
    pub parked: u32,
    /// `memory.oom.reserve`.
    pub reserve_bytes: u64,
    /// What was charged above the limit so that system calls did not fail.
    pub above_limit_bytes: u64,
    /// What more could have been.
    pub overrun_left_bytes: u64,
    /// Whether the guardian is itself in the memcg that is full.
    #[serde(default)]
    pub guardian_inside: bool,
    /// Most that was charged above the limit when the evidence, and when the symbols
    /// were there, the guardian's memory included.
    #[serde(default)]
    pub reserve_used_bytes: u64,
    /// How the last hold ended, as `last_end` of memory.oom.state has it; `None` while
    /// it lasts.
    #[serde(default)]
    pub ended: Option<String>,
    /// How many holds there were, one after the other, until it was decided.
    #[serde(default)]
    pub holds: u32,
}

/// How the memcg was held and for how long.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HoldReport {
    /// `v1`, `high` or `reserve`; `none` for a snapshot.
    pub brake: String,
    /// What the kernel told, where it holds itself.
    #[serde(default)]
    pub kernel: Option<KernelHold>,
    /// From the notice to the last thread stopped: the time in which system
    /// calls of the memcg could see ENOMEM or EFAULT (brake `v1`), or in
    /// which it could still grow (brake `high`).
    pub stop_window_us: u64,
    /// From the notice until system calls could charge memory again, in
    /// microseconds; only brake v1 lets them fail at all.
    pub exposed_us: u64,
    /// From the notice until all was known of threads and processes. What the accounting
    /// takes comes after that: it has a time of its own.
    pub snapshot_us: u64,
    /// From the notice until the symbols were there; `None` when the verdict
    /// fell on unsymbolized evidence.
    pub symbolized_us: Option<u64>,
    /// From the notice until the threads were let go.
    pub held_us: u64,
    /// Longest the hold was allowed to last.
    pub deadline_us: u64,
    /// Threads that were stopped with full registers.
    pub threads_stopped: u32,
    /// Threads that could not be stopped (see the thread's `stop`).
    pub threads_not_stopped: u32,
    /// Memory the guardian has locked (VmLck), without the heap table.
    pub guardian_locked_bytes: u64,
    /// Heap table of all processes, locked too; it grows with them.
    #[serde(default)]
    pub heap_table_bytes: u64,
    /// Highest resident size of the guardian so far (VmHWM).
    pub guardian_peak_bytes: u64,
    /// Most heap the guardian had allocated during the hold beyond what it
    /// had before.
    pub guardian_hold_heap_bytes: u64,
    /// Page faults that the thread which decides took from the notice to the end of
    /// the hold, where it is one of its own: in a hold of the machine a fault can wait
    /// for memory.
    #[serde(default)]
    pub deciding_faults: Option<u64>,
}

/// One process of the memcg.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// PID in our PID namespace.
    pub pid: i32,
    /// Parent's PID.
    pub ppid: i32,
    /// `/proc/PID/comm`.
    pub comm: String,
    /// Target of `/proc/PID/exe`, " (deleted)" included.
    pub exe: Option<String>,
    /// Command line; only with `--with-cmdline` since it can hold secrets.
    pub cmdline: Option<Vec<String>>,
    /// Real user ID.
    pub uid: u32,
    /// Start time in clock ticks since boot (`/proc/PID/stat`, field 22).
    pub start_ticks: u64,
    /// Seconds the process had been alive.
    pub age_s: f64,
    /// cgroup path (memory controller on v1).
    pub cgroup: String,
    /// Container ID, when the cgroup path shows one.
    pub container_id: Option<String>,
    /// Who runs the container, when the cgroup path shows it.
    #[serde(default)]
    pub container_runtime: Option<String>,
    /// The pod, when the cgroup path shows one.
    #[serde(default)]
    pub pod_uid: Option<String>,
    /// Namespace links that differ from our own, like `pid:[4026531836]`.
    pub foreign_namespaces: Vec<String>,
    /// `/proc/PID/stat` state letter: R, S, D, Z, T, t, X.
    pub state: char,
    /// `/proc/PID/oom_score_adj`.
    pub oom_score_adj: i32,
    /// Memory by kind.
    pub memory: ProcessMemory,
    /// Biggest mappings by PSS first; the rest is summed in `memory`.
    pub mappings: Vec<Mapping>,
    /// Number of mappings the process has.
    pub mapping_count: u32,
    /// Its threads.
    pub threads: Vec<Thread>,
    /// Its heap by stack, once for each witness that saw it; the one to be
    /// trusted most comes first.
    #[serde(default)]
    pub heaps: Vec<Heap>,
    /// What malloc gave out and holds free, where it is one that we know.
    #[serde(default)]
    pub malloc: Option<MallocState>,
    /// Who made it grow, where its page faults were sampled and some were seen.
    #[serde(default)]
    pub growth: Option<Growth>,
    /// What could not be read of it, each a sentence.
    pub gaps: Vec<String>,
}

/// Who saw a heap, in order of trust.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Witness {
    /// `libreprieve_heap.so` in the process sampled its allocations.
    Preload,
    /// The Go runtime's memory profile.
    Go,
    /// jemalloc's own profile.
    Jemalloc,
}

impl Witness {
    /// What it looks at, for people.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Witness::Preload => "malloc",
            Witness::Go => "Go heap",
            Witness::Jemalloc => "jemalloc",
        }
    }

    /// Whether it looks at memory that `other` looks at too, so that their sum
    /// would count twice.
    #[must_use]
    pub fn overlaps(self, other: Witness) -> bool {
        (self == Witness::Go) == (other == Witness::Go)
    }
}

/// Heap of a process by the stacks that allocated it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Heap {
    /// Who saw it.
    pub witness: Witness,
    /// Mean bytes between samples.
    pub period_bytes: u64,
    /// Samples that found no room in the table.
    pub lost_samples: u64,
    /// Their estimated bytes.
    pub lost_bytes: u64,
    /// What was not freed, all together.
    pub inuse: Estimate,
    /// What was ever allocated, all together.
    pub alloc: Estimate,
    /// Distinct return addresses of the stacks.
    pub frames: Vec<HeapFrame>,
    /// Stacks, those that own most first.
    pub stacks: Vec<HeapStack>,
}

/// An estimate from samples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Estimate {
    /// Usable bytes; of mappings those in memory.
    pub bytes: u64,
    /// Blocks and mappings.
    pub objects: u64,
    /// Samples behind it.
    pub samples: u64,
    /// Standard deviation of `bytes`.
    pub sigma_bytes: u64,
    /// Standard deviation of `objects`.
    #[serde(default)]
    pub sigma_objects: u64,
}

/// A frame of a heap's stacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeapFrame {
    /// Return address as it was on the stack; of an interpreter's frame, whatever
    /// identifies it.
    pub address: u64,
    /// What to look up; `None` outside any module.
    pub at: Option<ModuleAddress>,
    /// Its name, where a runtime told it and nothing need be looked up.
    #[serde(default)]
    pub named: Option<Frame>,
}

/// What one stack allocated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeapStack {
    /// Indices in [`Heap::frames`], innermost first.
    pub frames: Vec<u32>,
    /// Whether frames are missing at the outer end.
    pub cut: bool,
    /// What it owns.
    pub inuse: Estimate,
    /// What it ever allocated.
    pub alloc: Estimate,
    /// What it owned in the record that the incident is compared with; `None` where that
    /// is not known.
    #[serde(default)]
    pub before_bytes: Option<u64>,
}

/// What malloc gave out and holds free, by its own books. Bytes are those of
/// chunks with their headers, as malloc_info(3) counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MallocState {
    /// Like `glibc 2.36`; without a version where none was found.
    pub library: String,
    /// Its arenas, the main one first.
    pub arenas: Vec<MallocArena>,
    /// Blocks with a mapping of their own, where that is known.
    pub mmapped: Option<MallocMmapped>,
    /// Live chunks of all arenas by size, those with most bytes first.
    pub size_classes: Vec<MallocSizeClass>,
}

/// An arena of malloc.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MallocArena {
    /// Where it is.
    pub address: u64,
    /// What it has from the system.
    pub system_bytes: u64,
    /// What of its heaps is in memory.
    pub resident_bytes: Option<u64>,
    /// Heaps it has: of 64 MiB each, the main arena has one.
    pub heaps: u64,
    /// Given out.
    pub live: MallocChunks,
    /// Free, by where malloc keeps it.
    pub free: MallocFree,
    /// What of all the free chunks is in memory: charged, of use to nobody.
    pub free_resident_bytes: Option<u64>,
    /// From the last chunk to the end.
    pub top_bytes: u64,
    /// What of that is in memory.
    pub top_resident_bytes: Option<u64>,
    /// Heads of heaps and the like.
    pub overhead_bytes: u64,
    /// What could not be walked.
    pub unknown_bytes: u64,
}

/// Free chunks of an arena by where malloc keeps them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MallocFree {
    /// In caches of threads, for their next malloc.
    pub tcache: MallocChunks,
    /// Small ones, not merged.
    pub fastbins: MallocChunks,
    /// Freed and not sorted yet.
    pub unsorted: MallocChunks,
    /// Below 1024 bytes.
    pub small: MallocChunks,
    /// Others.
    pub large: MallocChunks,
}

impl MallocFree {
    /// All of them.
    #[must_use]
    pub fn all(&self) -> MallocChunks {
        let kinds = [self.tcache, self.fastbins, self.unsorted, self.small, self.large];
        MallocChunks {
            chunks: kinds.iter().map(|kind| kind.chunks).sum(),
            bytes: kinds.iter().map(|kind| kind.bytes).sum(),
        }
    }
}

/// Chunks and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MallocChunks {
    /// How many.
    pub chunks: u64,
    /// Their bytes, headers included.
    pub bytes: u64,
}

/// Blocks with a mapping of their own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MallocMmapped {
    /// How many.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What of them is in memory.
    pub resident_bytes: Option<u64>,
}

/// Live chunks of about one size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MallocSizeClass {
    /// Smallest chunk of the class.
    pub from_bytes: u64,
    /// Biggest.
    pub to_bytes: u64,
    /// How many.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Memory of a process by kind, in bytes (`/proc/PID/smaps`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessMemory {
    /// Resident, shared pages counted in full.
    pub rss_bytes: u64,
    /// Resident, shared pages counted by their share.
    pub pss_bytes: u64,
    /// Share of anonymous pages.
    pub pss_anon_bytes: u64,
    /// Share of file pages.
    pub pss_file_bytes: u64,
    /// Share of shared memory (tmpfs, memfd, SysV).
    pub pss_shmem_bytes: u64,
    /// Swapped out, by share.
    pub swap_pss_bytes: u64,
}

/// A mapping of a process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// End, exclusive.
    pub end: u64,
    /// File path, `[heap]`, `[stack]`, … or empty for anonymous.
    pub name: String,
    /// Permissions as in maps, like `r-xp`.
    pub permissions: String,
    /// Share of resident pages.
    pub pss_bytes: u64,
    /// Swapped out, by share.
    pub swap_pss_bytes: u64,
    /// Anonymous part of the resident size.
    pub anonymous_bytes: u64,
}

/// Path of the kernel among modules, as perf and pprof call it; no file has such a one.
pub const KERNEL_PATH: &str = "[kernel.kallsyms]";

/// An ELF image mapped executable in at least one process; or the kernel, at [`KERNEL_PATH`],
/// with addresses that begin with its text, wherever it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Module {
    /// Process in which it was first seen; its `map_files` lead to the file
    /// even when it is deleted or in another mount namespace.
    pub pid: i32,
    /// Path as the process sees it, without " (deleted)".
    pub path: String,
    /// Build ID in hexadecimal.
    pub build_id: Option<String>,
    /// Lowest address of its mappings in `pid`.
    pub start: u64,
    /// End of its highest mapping in `pid`, exclusive.
    pub end: u64,
    /// File offset of the first mapping.
    pub file_offset: u64,
    /// Run-time address minus ELF address in `pid`.
    pub bias: u64,
    /// Whether the file was deleted after it was mapped.
    pub deleted: bool,
}

impl Module {
    /// Whether it is the kernel.
    #[must_use]
    pub fn is_kernel(&self) -> bool {
        self.path == KERNEL_PATH
    }
}

/// A thread.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Thread {
    /// TID in our PID namespace.
    pub tid: i32,
    /// Thread name.
    pub comm: String,
    /// State letter before we stopped it.
    pub state: char,
    /// Whether, and if not why not, it was stopped.
    pub stop: StopOutcome,
    /// Its general registers in user mode; `None` unless it was stopped.
    #[serde(default)]
    pub registers: Option<RegisterSet>,
    /// Where it waits in the kernel (`/proc/…/wchan`), when it does.
    pub wchan: Option<String>,
    /// Its user stack, innermost frame first; module of each address in
    /// `frame_modules`.
    pub stack: RawStack,
    /// For each frame of `stack` the index in `Incident::modules` and the
    /// ELF address to look up; `None` outside any module.
    pub frame_modules: Vec<Option<ModuleAddress>>,
    /// Its frames in an interpreter, innermost first; empty where it runs none.
    #[serde(default)]
    pub script: Vec<ScriptFrame>,
}

/// All general registers of a stopped thread, as ptrace gives them
/// (`NT_PRSTATUS`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "architecture")]
pub enum RegisterSet {
    /// x86-64.
    #[serde(rename = "x86_64")]
    X86_64(X86Registers),
    /// 64-bit ARM.
    #[serde(rename = "aarch64")]
    Aarch64(ArmRegisters),
}

/// `struct user_regs_struct` (arch/x86/include/asm/user_64.h), in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the processor's manual has these")]
pub struct X86Registers {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    /// Number of the system call it is in; else as the kernel leaves it, mostly -1.
    pub orig_rax: u64,
    pub rip: u64,
    pub cs: u64,
    pub eflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub ds: u64,
    pub es: u64,
    pub fs: u64,
    pub gs: u64,
}

/// `struct user_pt_regs` (arch/arm64/include/uapi/asm/ptrace.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the processor's manual has these")]
pub struct ArmRegisters {
    /// x0 to x30.
    pub x: [u64; 31],
    pub sp: u64,
    pub pc: u64,
    pub pstate: u64,
}

impl RegisterSet {
    /// Those that unwinding starts from.
    #[must_use]
    pub fn to_unwind(&self) -> Registers {
        match self {
            RegisterSet::X86_64(regs) => Registers { ip: regs.rip, sp: regs.rsp, fp: regs.rbp, lr: 0 },
            RegisterSet::Aarch64(regs) => Registers { ip: regs.pc, sp: regs.sp, fp: regs.x[29], lr: regs.x[30] },
        }
    }

    /// Whether the thread was born just now, and has not run yet: as its maker it is in
    /// clone(2) or clone3(2), which has returned 0. On 64-bit ARM the call is not known.
    #[must_use]
    pub fn is_newborn(&self) -> bool {
        /// arch/x86/entry/syscalls/syscall_64.tbl
        const CLONES: [u64; 2] = [56, 435];
        matches!(self, RegisterSet::X86_64(regs) if regs.rax == 0 && CLONES.contains(&regs.orig_rax))
    }
}

/// A frame of an interpreter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScriptFrame {
    /// Index in `stack.frames` of the native frame that runs it; one may run
    /// several. `None` where that is not known.
    pub native: Option<u32>,
    /// Its name and place.
    pub frame: Frame,
}

/// An address inside a module, ready to look up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ModuleAddress {
    /// Index in `Incident::modules`.
    pub module: u32,
    /// ELF address (SVMA); for a return address already one less.
    pub svma: u64,
}

/// Whether a thread was stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "reason")]
pub enum StopOutcome {
    /// Stopped by ptrace; registers are exact.
    Stopped,
    /// Not stopped; PC and SP are from `/proc/TID/syscall`.
    NotStopped(String),
    /// It ended before it could be stopped.
    Gone,
}

/// Symbols of an incident.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Symbols {
    /// When they were found, or why they are missing.
    pub state: SymbolState,
    /// When `reprieve symbolize` last looked for more.
    #[serde(default)]
    pub completed_unix_us: Option<u64>,
    /// One entry per distinct module address.
    pub addresses: Vec<ResolvedAddress>,
    /// One entry per address of a process that lies in no module.
    #[serde(default)]
    pub generated: Vec<GeneratedAddress>,
    /// What was looked at for modules with addresses, where anything was.
    #[serde(default)]
    pub searches: Vec<Search>,
}

/// What was looked at for one module, or for a process's generated code.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Search {
    /// Of what.
    #[serde(flatten)]
    pub subject: Subject,
    /// Places in order, each with what came of it.
    pub tried: Vec<Tried>,
    /// Addresses that were resolved without inlined functions, for want of memory.
    pub without_inlined: u64,
    /// Addresses that were resolved without debug information, for want of memory.
    pub without_lines: u64,
}

/// Whose names were looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// Index in `Incident::modules`.
    Module(u32),
    /// PID of a process with generated code.
    Process(i32),
}

/// When symbols were found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "reason")]
pub enum SymbolState {
    /// Nobody has looked yet.
    #[default]
    Pending,
    /// Before the verdict.
    BeforeVerdict,
    /// Only after the verdict, with the reason.
    AfterVerdict(String),
    /// Not at all, with the reason.
    Failed(String),
}

/// What is known of one address.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResolvedAddress {
    /// The address.
    pub at: ModuleAddress,
    /// Innermost first; empty when unresolved.
    pub frames: Vec<Frame>,
    /// Where the names are from.
    #[serde(default)]
    pub source: Option<SymbolSource>,
    /// Why there is no name.
    pub miss: Option<String>,
}

/// What is known of an address in no module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GeneratedAddress {
    /// Whose.
    pub pid: i32,
    /// The address to look up; for a return address already one less.
    pub address: u64,
    /// Its function; `None` when unresolved.
    pub frame: Option<Frame>,
    /// Where the name is from.
    pub source: Option<SymbolSource>,
    /// Why there is no name.
    pub miss: Option<String>,
}

/// What was decided, why, and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// One sentence for a person.
    pub summary: String,
    /// Whether the memcg was well afterwards.
    pub relieved: bool,
    /// Name of the rule that chose the last action; `None` is the default ladder.
    #[serde(default)]
    pub rule: Option<String>,
    /// Rules that failed and were passed over, each a sentence.
    #[serde(default)]
    pub problems: Vec<String>,
    /// Every step of the ladder that was tried, in order; none where the memcg was
    /// well again before the first.
    pub steps: Vec<Step>,
}

/// One action of the ladder and its measured effect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Like `grant=64M` or `kill`.
    pub action: String,
    /// Why this, and on whom.
    pub reason: String,
    /// What happened.
    pub outcome: StepOutcome,
    /// Sentence about what was measured.
    pub effect: String,
    /// Usage just before.
    pub usage_before_bytes: u64,
    /// Usage when the step ended.
    pub usage_after_bytes: u64,
    /// Time the step was allowed.
    pub limit_us: u64,
    /// Time it took.
    pub took_us: u64,
    /// Candidates that were ranked, best victim first (kill only).
    pub candidates: Vec<Candidate>,
    /// Name of the rule whose ladder it is on; `None` of the default ladder.
    #[serde(default)]
    pub rule: Option<String>,
}

impl Verdict {
    /// Whether somebody was to be killed for it, by us, or by the kernel to which it was left.
    #[must_use]
    pub fn is_deadly(&self) -> bool {
        !self.relieved || self.steps.iter().any(|step| !step.candidates.is_empty())
    }
}

/// Result of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepOutcome {
    /// The memcg is well.
    Relieved,
    /// Done, but the memcg is still out of memory.
    NotEnough,
    /// Could not be done.
    Failed,
}

/// A process, or a job, that could be killed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// PID; 0 of a job.
    pub pid: i32,
    /// Its name; of a job, its cgroup.
    pub comm: String,
    /// Importance; the lowest goes first. Of a process that belongs to no job minus
    /// `oom_score_adj`.
    pub priority: i32,
    /// Anonymous, shared-memory and swap share that killing it would free; of a job, what
    /// its cgroup is charged.
    pub size_bytes: u64,
    /// Protected part (memory.low/min); zero when there is none.
    pub reservation_bytes: u64,
}
