//! What lets the guardian live through an OOM: memory it already has.

pub mod heap;
pub mod sigbus;
pub mod tables;

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::getppid;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};
use std::{fs, io};

/// Heap touched in advance: a hold's evidence fits in it.
pub const HEAP_BYTES: usize = 4 << 20;

/// What stays in memory whatever happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Locks {
    /// Code and data: of who may be in the memcg that is full, or answers for the machine.
    All,
    /// Data: of who is in no memcg that it guards, and may read its code from the disk
    /// again.
    Data,
}

impl Locks {
    /// Locks that of this process. Where it has not the right to, nothing is.
    pub fn take(self) -> io::Result<()> {
        // Not MCL_FUTURE: mapped binaries of the victims would be locked whole. Code that
        // is not locked need not be read for it, either (MCL_ONFAULT, mlockall(2)).
        let flags = match self {
            Locks::All => libc::MCL_CURRENT,
            Locks::Data => libc::MCL_CURRENT | libc::MCL_ONFAULT,
        };
        // SAFETY: mlockall takes flags only.
        let result = unsafe { libc::mlockall(flags) };
        let result = if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
        match self {
            Locks::All => tables::unlock(),
            Locks::Data => tables::unlock_all_constants(),
        }
        result
    }
}

/// Locks the process in memory with a heap in reserve. Returns what could not
/// be done; the guardian then works on, less protected.
pub fn settle(locks: Locks) -> Vec<String> {
    let mut missing = Vec::new();
    // SAFETY: mallopt only sets parameters of malloc (mallopt(3)). One arena,
    // never trimmed, never by mmap: what was touched once stays ours.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
    }
    // Written, so that the pages exist, and freed to malloc, not to the kernel.
    drop(std::hint::black_box(vec![1u8; HEAP_BYTES]));
    if let Err(error) = locks.take() {
        missing.push(format!("memory is not locked ({error}); give CAP_IPC_LOCK or `ulimit -l unlimited`"));
    }
    run_first();
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "-1000") {
        missing.push(format!(
            "the kernel may choose reprieve itself in a system-wide OOM (oom_score_adj: {error}); give CAP_SYS_RESOURCE"
        ));
    }
    missing
}

/// Locks what is touched from now on, too: heap, stacks of threads. Only for who maps
/// no binaries of victims, which would stay locked as far as they were looked at. What
/// could not be done.
pub fn lock_what_comes() -> Option<String> {
    // SAFETY: mlockall takes flags only. Nothing is read that was not touched
    // (MCL_ONFAULT, mlockall(2)).
    let result = unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) };
    (result != 0).then(|| format!("later memory is not locked ({})", std::io::Error::last_os_error()))
}

/// Runs before every ordinary task, so that a busy machine does not lengthen the
/// time in which a victim runs on; our children do not inherit it (sched(7)).
/// Without the right to it, we are only slower.
fn run_first() {
    // SAFETY: sched_param has only integers, for which zero is a value.
    let mut param: libc::sched_param = unsafe { std::mem::zeroed() };
    param.sched_priority = 1;
    Priority { policy: libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, param }.take();
}

/// How urgent a thread is (sched(7)). Our threads begin like every other.
#[derive(Debug, Clone, Copy)]
pub struct Priority {
    policy: i32,
    param: libc::sched_param,
}

impl Priority {
    /// That of the caller.
    #[must_use]
    pub fn of_this_thread() -> Self {
        // SAFETY: sched_param has only integers, for which zero is a value.
        let mut param: libc::sched_param = unsafe { std::mem::zeroed() };
        // SAFETY: 0 is this thread; the pointer is to a live local.
        let policy = unsafe {
            libc::sched_getparam(0, &raw mut param);
            libc::sched_getscheduler(0)
        };
        Priority { policy, param }
    }

    /// One that goes before this, where this is one of those that go first.
    #[must_use]
    pub fn above(mut self) -> Self {
        self.param.sched_priority += 1;
        self
    }

    /// Gives it to the caller, which stays as it is where it has no right to it.
    pub fn take(self) {
        // SAFETY: 0 is this thread; the pointer is to a live local.
        unsafe { libc::sched_setscheduler(0, self.policy, &raw const self.param) };
    }
}

/// Each cgroup that is watched takes some open files. Without the right to more, some are
/// left out, which is told.
pub fn allow_many_files() {
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
}

/// Has this process, a child of `parent` (its PID), get a signal when that dies; ends it where
/// that has died already.
pub fn end_with(parent: i32, signal: Signal) {
    // The kernel refuses only what is no signal.
    let _ = prctl::set_pdeathsig(signal);
    if getppid().as_raw() != parent {
        // It died before we asked to be told.
        std::process::exit(1);
    }
}

/// PID of the watchdog; 0 while there is none.
static WATCHDOG: AtomicI32 = AtomicI32::new(0);

/// Remembers the watchdog as one of us.
pub fn has_watchdog(pid: i32) {
    WATCHDOG.store(pid, Relaxed);
}

/// Whether a process is the guardian or its watchdog: in a memcg that they guard from
/// inside they are nobody to stop, to record or to kill.
#[must_use]
pub fn is_one_of_us(pid: i32) -> bool {
    pid == std::process::id() as i32 || pid == WATCHDOG.load(Relaxed)
}

/// Gives the kernel what the heap has beyond [`HEAP_BYTES`]: inside the guarded memcg
/// it is the program's.
pub fn give_back() {
    // SAFETY: malloc_trim gives away free memory only (malloc_trim(3)).
    unsafe { libc::malloc_trim(HEAP_BYTES) };
}

/// A size in bytes from `/proc/self/status`, like `VmLck`.
#[must_use]
pub fn own_status_bytes(key: &str) -> u64 {
    fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|text| {
            let value = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
            value.trim().strip_suffix(" kB")?.parse::<u64>().ok()
        })
        .unwrap_or(0)
        * 1024
}
