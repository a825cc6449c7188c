//! What this machine can do, found out by doing it.

mod reserve;

pub use reserve::eat;

use crate::cgroup::{self, Hierarchy, Memcg};
use crate::hold::stop::StoppedThreads;
use crate::hold::{self, BrakeChoice, Look};
use crate::incident::store::Store;
use crate::incident::units;
use crate::killers;
use crate::signals::Signals;
use crate::snapshot::TargetMemory;
use nix::poll::{PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};
use reprieve_heap_walk::Memory;
use serde::Serialize;
use std::time::{Duration, Instant};

/// Limit of the memcg in which a child runs out of memory.
const TRIAL_BYTES: u64 = 32 << 20;
/// Time for that to be noticed.
const TRIAL_TIME: Duration = Duration::from_secs(5);

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Works.
    Ok,
    /// Works in part, or is missing without much harm.
    Degraded,
    /// Does not work.
    Missing,
}

/// One thing that was tried.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// How it came out.
    pub status: Status,
    /// What was seen.
    pub detail: String,
    /// What does not work without it.
    pub lost: &'static str,
    /// What to do about it.
    pub remedy: &'static str,
    /// Whether `run` cannot work without it.
    pub essential: bool,
    /// For `memory.oom.reserve` where a guardian is inside the memcg.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recommended_reserve_bytes: Option<u64>,
}

/// Tries everything.
#[must_use]
pub fn examine() -> Vec<Check> {
    // As for a hold: stops are not signalled.
    let _signals = Signals::block();
    vec![
        hold_check(),
        reserve_check(),
        ptrace_check(),
        pagemap_check(),
        map_files_check(),
        perf_check(),
        lock_check(),
        adj_check(),
        store_check(),
        killers_check(),
    ]
}

/// Whether `run` can work.
#[must_use]
pub fn able(checks: &[Check]) -> bool {
    checks.iter().all(|c| !c.essential || c.status != Status::Missing)
}

/// For a terminal.
#[must_use]
pub fn table(checks: &[Check]) -> String {
    let mut out = String::new();
    for check in checks {
        let status = match check.status {
            Status::Ok => "ok",
            Status::Degraded => "degraded",
            Status::Missing => "MISSING",
        };
        out.push_str(&format!("{:<10} {:<24} {}\n", status, check.name, check.detail));
        if check.status != Status::Ok {
            out.push_str(&format!("{:<10} without it: {}\n{:<10} remedy: {}\n", "", check.lost, "", check.remedy));
        }
    }
    out
}

fn check(
    name: &'static str,
    result: Result<String, String>,
    otherwise: Status,
    lost: &'static str,
    remedy: &'static str,
) -> Check {
    let (status, detail) = match result {
        Ok(detail) => (Status::Ok, detail),
        Err(detail) => (otherwise, detail),
    };
    let essential = otherwise == Status::Missing;
    Check { name, status, detail, lost, remedy, essential, recommended_reserve_bytes: None }
}

/// Makes a memcg and lets a child run out of memory in it.
fn hold_check() -> Check {
    let result = (|| {
        let hierarchy = Hierarchy::memory().map_err(|e| e.to_string())?;
        let memcg = cgroup::create_memcg(&hierarchy, &format!("{}-doctor", cgroup::name_of_own_group()))
            .map_err(|e| e.to_string())?;
        let result = hold_a_child(&memcg);
        // The child is dead; its charge may leave a moment later.
        for _ in 0..100 {
            if memcg.remove().is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        result
    })();
    check(
        "hold an OOM",
        result,
        Status::Missing,
        "`reprieve run` cannot hold anything",
        "run as root on a kernel with the cgroup memory controller (not cgroup_disable=memory)",
    )
}

/// Has a guardian live through an OOM of the memcg that it is in.
fn reserve_check() -> Check {
    let need = reserve::measure();
    let detail = need.clone().map(|need| {
        format!(
            "a guardian inside a full memcg used {} with {} threads; memory.oom.reserve should be {}M",
            units::bytes(need.used_bytes),
            reserve::THREADS,
            need.recommended_bytes >> 20
        )
    });
    let check = check(
        "live on a reserve",
        detail,
        Status::Degraded,
        "`run --here` and `machine` do not work; on cgroup version 2 holds begin below the limit, which one large system call can pass",
        "boot a kernel with the series in kernel/patches (`cargo xtask kernel build`), with cgroup version 2",
    );
    Check { recommended_reserve_bytes: need.ok().map(|need| need.recommended_bytes), ..check }
}

fn hold_a_child(memcg: &Memcg) -> Result<String, String> {
    let mut brake = hold::arm(memcg, TRIAL_BYTES, BrakeChoice::Auto).map_err(|e| format!("{e:#}"))?;
    let child = eater(memcg)?;
    let begun = Instant::now();
    let held = (|| {
        while begun.elapsed() < TRIAL_TIME {
            let mut bell = brake.bells();
            let _ = poll(&mut bell, PollTimeout::from(100u8));
            match brake.look().map_err(|e| e.to_string())? {
                Look::OutOfMemory => {
                    let noticed = Instant::now();
                    let threads = brake.stop(noticed + Duration::from_secs(1)).map_err(|e| e.to_string())?;
                    let took = noticed.elapsed();
                    let (stopped, not) = threads.counts();
                    kill(child, Signal::SIGKILL).map_err(|e| e.to_string())?;
                    brake.resume(threads).map_err(|e| e.to_string())?;
                    let version = memcg.version().number();
                    return if not == 0 {
                        Ok(format!(
                            "brake {} on cgroup version {version}: {stopped} thread stopped in {:.1} ms",
                            brake.name(),
                            took.as_secs_f64() * 1e3
                        ))
                    } else {
                        Err(format!("brake {}: the child was noticed but did not stop", brake.name()))
                    };
                }
                Look::KilledByKernel => return Err("the kernel killed the child before it was held".to_owned()),
                Look::Well => {}
            }
        }
        Err("a child filled its memcg and nothing was noticed".to_owned())
    })();
    let _ = kill(child, Signal::SIGKILL);
    let _ = waitpid(child, None);
    held
}

/// A child that touches more memory than the memcg may have.
fn eater(memcg: &Memcg) -> Result<Pid, String> {
    let procs = memcg.dir().join("cgroup.procs");
    // SAFETY: one thread; the child ends in this block without returning.
    match unsafe { fork() }.map_err(|e| e.to_string())? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            if std::fs::write(procs, "0").is_ok() {
                // One page at a time, so that a fault, not a system call, meets the limit.
                let mut hoard: Vec<Vec<u8>> = Vec::new();
                while hoard.len() < 4 * TRIAL_BYTES as usize / 65536 {
                    hoard.push(vec![1; 65536]);
                }
                std::hint::black_box(hoard);
            }
            // SAFETY: ends the child at once; nothing of the parent's may run.
            unsafe { libc::_exit(1) }
        }
    }
}

/// A child that waits to be looked at.
fn with_child<T>(look: impl FnOnce(i32) -> Result<T, String>) -> Result<T, String> {
    // SAFETY: one thread; the child only waits.
    match unsafe { fork() }.map_err(|e| e.to_string())? {
        ForkResult::Child => loop {
            nix::unistd::pause();
        },
        ForkResult::Parent { child } => {
            let result = look(child.as_raw());
            let _ = kill(child, Signal::SIGKILL);
            let _ = waitpid(child, None);
            result
        }
    }
}

fn ptrace_check() -> Check {
    let result = with_child(|pid| {
        let mut threads = StoppedThreads::default();
        threads.arm(&[pid]);
        let all = threads.wait(Instant::now() + Duration::from_secs(1));
        let registers = threads.threads().get(&pid).and_then(|t| t.registers);
        let why = format!("{:?}", threads.threads().get(&pid).map(|t| &t.outcome));
        drop(threads.resume());
        match registers {
            Some(r) if all && r.to_unwind().ip != 0 => Ok("a child was stopped and its registers read".to_owned()),
            _ => Err(why),
        }
    });
    check(
        "ptrace",
        result,
        Status::Missing,
        "threads cannot be stopped, stacks are guesses",
        "run as root or with CAP_SYS_PTRACE; set kernel.yama.ptrace_scope below 3",
    )
}

fn pagemap_check() -> Check {
    // On the heap before the fork: the child has the same value at the same
    // address, in a page that is present in it.
    let here = Box::new(0x5eed_u64);
    let result = with_child(|pid| {
        let mut memory = TargetMemory::open(pid).map_err(|e| e.to_string())?;
        match memory.u64(&raw const *here as u64) {
            Some(0x5eed) => Ok("a child's memory was read without faulting".to_owned()),
            other => Err(format!("read {other:?} instead of the child's memory")),
        }
    });
    check(
        "read memory and pagemap",
        result,
        Status::Missing,
        "no stacks",
        "run as root or with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH; the kernel needs CONFIG_PROC_PAGE_MONITOR and CONFIG_CROSS_MEMORY_ATTACH",
    )
}

fn map_files_check() -> Check {
    let result = with_child(|pid| {
        let dir = format!("/proc/{pid}/map_files");
        let first = std::fs::read_dir(&dir)
            .and_then(|mut entries| entries.next().ok_or_else(|| std::io::Error::other("empty"))?)
            .map_err(|e| format!("{dir}: {e}"))?;
        std::fs::File::open(first.path()).map_err(|e| format!("{}: {e}", first.path().display()))?;
        Ok("a mapped file was opened".to_owned())
    });
    check(
        "open map_files",
        result,
        Status::Degraded,
        "deleted binaries and those of other mount namespaces have no names",
        "run as root or with CAP_CHECKPOINT_RESTORE (kernel 5.9), on a kernel with CONFIG_CHECKPOINT_RESTORE",
    )
}

fn perf_check() -> Check {
    use perf_event_open_sys as sys;
    let mut attr = sys::bindings::perf_event_attr {
        size: size_of::<sys::bindings::perf_event_attr>() as u32,
        type_: sys::bindings::PERF_TYPE_SOFTWARE,
        config: u64::from(sys::bindings::PERF_COUNT_SW_PAGE_FAULTS),
        ..Default::default()
    };
    attr.set_exclude_kernel(1);
    // SAFETY: `attr` is a live, initialised struct whose size field is right;
    // the descriptor is closed below.
    let fd = unsafe { sys::perf_event_open(&raw mut attr, 0, -1, -1, 0) };
    let result = if fd < 0 {
        Err(std::io::Error::last_os_error().to_string())
    } else {
        // SAFETY: we own the descriptor that was just made.
        unsafe { libc::close(fd) };
        Ok("page-fault event opened".to_owned())
    };
    check(
        "perf software event",
        result,
        Status::Degraded,
        "`run --growth` samples nothing: who made a program grow, or one that was killed first, is not known",
        "run as root or with CAP_PERFMON, or set kernel.perf_event_paranoid to 1",
    )
}

fn lock_check() -> Check {
    // SAFETY: takes flags only.
    let locked = unsafe { libc::mlockall(libc::MCL_CURRENT) } == 0;
    let error = std::io::Error::last_os_error();
    // SAFETY: takes nothing.
    unsafe { libc::munlockall() };
    check(
        "lock memory",
        if locked { Ok("mlockall works".to_owned()) } else { Err(error.to_string()) },
        Status::Degraded,
        "when the whole machine is short of memory the guardian may be slow",
        "run as root or with CAP_IPC_LOCK, or raise `ulimit -l`",
    )
}

fn adj_check() -> Check {
    let file = "/proc/self/oom_score_adj";
    let before = std::fs::read_to_string(file).unwrap_or_default();
    let result = std::fs::write(file, "-1000").map_err(|e| e.to_string());
    let _ = std::fs::write(file, before.trim());
    check(
        "lower oom_score_adj",
        result.map(|()| "the guardian can exempt itself".to_owned()),
        Status::Degraded,
        "in a machine-wide OOM the kernel may kill the guardian",
        "run with CAP_SYS_RESOURCE, or set OOMScoreAdjust=-1000 in the unit",
    )
}

fn killers_check() -> Check {
    let found = killers::active();
    let result = match found.first() {
        None => Ok("no other program is known to kill for memory".to_owned()),
        Some(first) => Err(format!("{} kill for memory; {}", killers::told(&found), killers::remedy(&first.name))),
    };
    check(
        "alone",
        result,
        Status::Degraded,
        "they may kill before reprieve decides, and whom it would have kept",
        "let them spare what reprieve guards, or stop them (docs/guard.md)",
    )
}

fn store_check() -> Check {
    let result = Store::open(None).and_then(|store| {
        let _reserve = store.reserve()?;
        Ok(format!("{} is writable", store.dir().display()))
    });
    check(
        "incident folder",
        result.map_err(|e| e.to_string()),
        Status::Degraded,
        "`run` needs --out",
        "make the folder writable, free space, or use --out DIR",
    )
}
