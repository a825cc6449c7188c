//! The memory file that holds the tables of all processes of a memcg.

use super::library;
use super::totals::StackTotals;
use reprieve_heap_table::layout::{self, SLAB_BYTES, home, kind};
use reprieve_heap_table::{Home, ProcessTable, Region, Settings, Words, read, sweep};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Slabs of the file: 64 MiB, of which only what is used exists.
const SLABS: usize = 512;
/// Slabs kept ready for processes that need one now.
const SPARE: usize = 16;
/// Name of the memory file, as mappings show it.
pub const TABLE_NAME: &str = "memfd:reprieve-heap";
/// How soon to look whether slabs are short again, while they are being taken.
const BUSY: Duration = Duration::from_millis(10);
/// How long after a process came more are expected.
const BUSY_FOR: Duration = Duration::from_millis(500);
/// A program hardly has so many files open by itself.
const HIGH_FD: RawFd = 900;
/// A mapping of this size or more is recorded.
const MAPPING_BYTES: u64 = 64 << 10;
/// How often the dead are looked for.
const SWEEP: Duration = Duration::from_secs(1);
/// The same when half of the slabs are dealt out.
const SWEEP_WHEN_SHORT: Duration = Duration::from_millis(20);

/// The table, made, touched and locked by the guardian, so that it is charged to
/// the guardian and not to those who write it.
#[derive(Debug)]
pub struct HeapTable {
    file: File,
    region: Region<'static>,
    library: PathBuf,
    swept: Instant,
    /// Homes made so far, and when there was a new one.
    homes_made: u64,
    active: Instant,
}

/// The tables of living processes.
#[derive(Debug, Default)]
pub struct ProcessTables {
    /// By PID, one for each process that has the library: mean bytes between
    /// samples, and what it recorded.
    pub by_pid: BTreeMap<i32, (u64, ProcessTable)>,
    /// Why a process that has a table could not be read.
    pub unread: BTreeMap<i32, String>,
    /// Those of them that have a table of their own.
    pub have_own: BTreeSet<i32>,
    /// Inode of the guardian's table, 0 without one.
    pub guardians: u64,
    /// What was live in the guardian's table when the record was made that the incident is
    /// compared with.
    pub before: Option<StackTotals>,
}

impl HeapTable {
    /// A table with one sample in `period` bytes on average. `seed` is for tests;
    /// 0 is a random one.
    pub fn make(period: u64, seed: u64) -> io::Result<Self> {
        let library = library::install()?;
        // SAFETY: a C string; the result is checked.
        let fd = unsafe { libc::memfd_create(c"reprieve-heap".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, and nobody else's.
        let low = unsafe { File::from_raw_fd(fd) };
        // SAFETY: duplicates an open descriptor; the result is checked.
        let high = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, HIGH_FD) };
        // SAFETY: just made, and nobody else's.
        let file = if high < 0 { low } else { unsafe { File::from_raw_fd(high) } };
        let bytes = SLABS * SLAB_BYTES;
        file.set_len(bytes as u64)?;
        // Every process that has it open could truncate it, and those that write it
        // would die of SIGBUS.
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: takes flags only.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new shared mapping of our own file.
        let base = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), bytes, access, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: mapped above, to the end of the process, and used through
        // atomics only.
        let words = unsafe { Words::at(base.cast(), bytes) };
        let settings = Settings { period, mapping: MAPPING_BYTES, seed };
        let region = Region::format(words, settings).map_err(io::Error::other)?;
        let mut table =
            HeapTable { file, region, library, swept: Instant::now(), homes_made: 0, active: Instant::now() };
        table.top_up();
        Ok(table)
    }

    /// The descriptor that a program must inherit.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Variables of the environment that a program must have.
    pub fn environment(&self) -> io::Result<[(&'static str, String); 2]> {
        let meta = self.file.metadata()?;
        let fd = self.fd();
        let table = format!("{fd}:{}:{}:/proc/{}/fd/{fd}", meta.dev(), meta.ino(), std::process::id());
        let mut preload = self.library.display().to_string();
        // Ours comes last: another malloc stays the program's own.
        if let Ok(others) = std::env::var("LD_PRELOAD") {
            preload = format!("{others}:{preload}");
        }
        Ok([("LD_PRELOAD", preload), ("REPRIEVE_HEAP", table)])
    }

    /// Bytes that are in memory, locked if we may.
    #[must_use]
    pub fn ready_bytes(&self) -> u64 {
        (self.region.state().ready * SLAB_BYTES) as u64
    }

    /// Keeps slabs ready: touches and locks as many as were taken.
    pub fn top_up(&mut self) {
        let made = self.region.words().load(layout::region::HOMES);
        if made != self.homes_made {
            self.homes_made = made;
            self.active = Instant::now();
        }
        let state = self.region.state();
        let wanted = (state.next + SPARE).min(SLABS);
        if wanted <= state.ready {
            return;
        }
        let from = state.ready.saturating_sub(1) * SLAB_BYTES;
        for at in (from..wanted * SLAB_BYTES).step_by(4096) {
            // A store of what is there makes the page ours.
            if let Some(word) = self.region.words().word(at) {
                word.fetch_add(0, std::sync::atomic::Ordering::Relaxed);
            }
        }
        if let (Some(first), length) = (self.region.words().word(0), wanted * SLAB_BYTES) {
            // Without the right to, they are only not locked.
            // SAFETY: the range lies within the mapping.
            unsafe { libc::mlock(std::ptr::from_ref(first).cast(), length) };
        }
        self.region.set_ready(wanted);
    }

    /// Longest to wait before [`HeapTable::top_up`]: a script may start a hundred
    /// programs a second, and one that finds no slab is not seen.
    #[must_use]
    pub fn look_again(&self) -> Option<Duration> {
        (self.active.elapsed() < BUSY_FOR).then_some(BUSY)
    }

    /// Gives the slabs of processes that have ended to those who come, at times.
    pub fn sweep(&mut self, living: impl FnOnce() -> Vec<i32>) {
        let next = self.region.state().next;
        let often = if next > SLABS / 2 { SWEEP_WHEN_SHORT } else { SWEEP };
        if self.swept.elapsed() < often || next < SPARE {
            return;
        }
        self.swept = Instant::now();
        // First the tables, then the processes: what is in the first and not in
        // the second has ended.
        let homes = self.homes();
        let ids: Vec<(u64, u64)> = living().into_iter().filter_map(own_id).collect();
        // Who left the memcg still writes.
        let has_left = |home: &Home| {
            i32::try_from(home.pid).ok().and_then(own_id).is_some_and(|id| id == (home.pid, home.pid_namespace))
        };
        let is_alive =
            |home: &Home| (is_of(&ids, home.pid, home.pid_namespace) || has_left(home)) && is_latest(&homes, home);
        let dead: Vec<Home> = homes.iter().filter(|home| !is_alive(home)).copied().collect();
        sweep(self.region, monotonic_ms(), |home| dead.contains(&home));
    }

    pub(super) fn region(&self) -> Region<'static> {
        self.region
    }

    /// What the processes have recorded.
    #[must_use]
    pub fn read(&self, pids: &[i32]) -> ProcessTables {
        let mut tables =
            ProcessTables { guardians: self.file.metadata().map_or(0, |meta| meta.ino()), ..ProcessTables::default() };
        tables.add(self.region, pids);
        tables
    }

    fn homes(&self) -> Vec<Home> {
        let words = self.region.words();
        (1..self.region.state().next)
            .filter(|&slab| self.region.owner(slab) == (kind::HOME, slab))
            .map(|slab| {
                let word = |field: usize| words.load(slab * SLAB_BYTES + field);
                Home {
                    slab,
                    pid: word(home::PID),
                    pid_namespace: word(home::PID_NAMESPACE),
                    sequence: word(home::SEQUENCE),
                }
            })
            .collect()
    }
}

impl ProcessTables {
    /// Adds what those of `pids` have recorded that have a home in `region`.
    pub fn add(&mut self, region: Region<'_>, pids: &[i32]) {
        let mut tables = read(region);
        let mut by_pid = BTreeMap::new();
        for &pid in pids {
            let Some(id) = own_id(pid) else { continue };
            let own = tables.iter().enumerate().filter(|(_, t)| is_of(&[id], t.pid, t.pid_namespace));
            if let Some((index, _)) = own.max_by_key(|(_, t)| t.sequence) {
                by_pid.insert(pid, tables.swap_remove(index));
            }
        }
        drop_what_ancestors_have(&mut by_pid);
        let period = region.settings().period;
        self.by_pid.extend(by_pid.into_iter().map(|(pid, table)| (pid, (period, table))));
    }
}

/// Milliseconds of CLOCK_MONOTONIC, as the library writes them.
fn monotonic_ms() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| now.tv_sec() as u64 * 1000 + now.tv_nsec() as u64 / 1_000_000)
}

/// Whether a home is of one of these processes. Its namespace is not known where
/// it has no /proc.
fn is_of(ids: &[(u64, u64)], pid: u64, pid_namespace: u64) -> bool {
    ids.iter().any(|id| id.0 == pid && (pid_namespace == 0 || id.1 == pid_namespace))
}

/// Whether no later home is of the same process, which has called exec since.
fn is_latest(homes: &[Home], home: &Home) -> bool {
    !homes.iter().any(|other| {
        (other.pid, other.pid_namespace) == (home.pid, home.pid_namespace) && other.sequence > home.sequence
    })
}

/// PID of a process in its own namespace, and that namespace's inode, as it
/// sees itself.
pub(super) fn own_id(pid: i32) -> Option<(u64, u64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let own = status.lines().find_map(|l| l.strip_prefix("NSpid:")?.split_whitespace().next_back()?.parse().ok())?;
    Some((own, fs::metadata(format!("/proc/{pid}/ns/pid")).map_or(0, |m| m.ino())))
}

/// Memory from before a fork is its parent's while the parent lives and has not
/// freed it: it is charged once, and counts once.
fn drop_what_ancestors_have(by_pid: &mut BTreeMap<i32, ProcessTable>) {
    let live: BTreeMap<usize, (usize, Vec<u64>)> = by_pid
        .values()
        .map(|t| {
            let mut addresses: Vec<u64> = t.live.iter().map(|s| s.address).collect();
            addresses.sort_unstable();
            (t.home, (t.parent, addresses))
        })
        .collect();
    for table in by_pid.values_mut() {
        let parent = table.parent;
        table.live.retain(|sample| {
            let mut ancestor = parent;
            // No chain of parents is longer than there are homes.
            for _ in 0..live.len() {
                let Some((next, addresses)) = live.get(&ancestor).filter(|_| sample.inherited) else { break };
                if addresses.binary_search(&sample.address).is_ok() {
                    return false;
                }
                ancestor = *next;
            }
            true
        });
    }
}
