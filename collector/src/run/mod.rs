//! `run` and `snapshot`: the whole way from a limit to an incident.

mod answer;
mod command;
mod on_demand;
mod ration;
mod recorder;
mod scribe;
mod session;

pub use answer::{Answered, Answerer, Manner};
pub use on_demand::snapshot;
pub use ration::{Bounds, Ration, Share};
pub use recorder::Recorder;
pub use scribe::{InHand, Staged};

use crate::cgroup::{self, CgroupError, CpuGroup, Hierarchy, Memcg, Version};
use crate::desk::{Desk, Place};
use crate::guardian;
use crate::hold::watchdog::Watchdog;
use crate::hold::{self, BrakeChoice, BrakeError};
use crate::incident::store::{Limits, Store, StoreError};
use crate::say;
use crate::signals::Signals;
use crate::witness::{GrowthWitness, HeapTable};
use std::ffi::{CString, OsString};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Environment variable that makes sampling repeatable, for tests.
const HEAP_SEED: &str = "REPRIEVE_HEAP_SEED";

/// What `reprieve run` was asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// Program and arguments.
    pub command: Vec<OsString>,
    /// Limit of the memcg; of one that is there already, what it has.
    pub limit_bytes: u64,
    /// Guard the memcg that we are in, instead of one made for the command.
    pub here: bool,
    /// How an OOM is answered.
    pub manner: Manner,
    /// Folder for incidents.
    pub out: Option<PathBuf>,
    /// What is kept there.
    pub limits: Limits,
    /// Bounds that grants add to the limit; `None` depends on the limit.
    pub most_granted: Option<u64>,
    /// Bounds incidents in an hour of OOMs that did no harm.
    pub reports_per_hour: usize,
    /// How to hold.
    pub brake: BrakeChoice,
    /// Mean bytes between sampled allocations; `None` to leave the heap alone.
    pub heap_period: Option<u64>,
    /// Page faults of one sample; `None` to sample none.
    pub growth_period: Option<u64>,
    /// Where operators are served, if somebody is to be asked.
    pub desk: Place,
}

/// Why a command could not be guarded, or a target not be recorded.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is no such program.
    #[error("command {0:?} was not found; give a path or check PATH")]
    NotFound(OsString),
    /// It cannot be executed.
    #[error("command {0:?} cannot be run: {1}")]
    NotExecutable(OsString, io::Error),
    /// The limit leaves no room even to start.
    #[error("command {0:?} could not start within {1} bytes: {2}; raise --memory")]
    TooSmall(OsString, u64, io::Error),
    /// There is no such process or cgroup.
    #[error("{0}")]
    NoTarget(String),
    /// It cannot be done as configured; the whole sentence.
    #[error("{0}")]
    Refused(String),
    /// Another guard is there.
    #[error(transparent)]
    Lock(#[from] crate::guard::LockError),
    /// We may not look at it.
    #[error("{0}")]
    NotAllowed(String),
    /// The incident store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The brake.
    #[error(transparent)]
    Brake(#[from] BrakeError),
    /// A system call of ours.
    #[error("{0}: {1}")]
    System(&'static str, io::Error),
}

/// Opens the store of a guard, with space in hand. Where the disk is full or ails, that is
/// told: what is guarded must not wait for it.
pub fn open_store(out: Option<PathBuf>, limits: &Limits) -> Result<(Store, InHand), StoreError> {
    let store = match Store::open(out.clone()) {
        // Its folder is made with the first incident that can be.
        Err(error) if error.is_of_the_disk() => Store::at(out),
        opened => opened?,
    };
    let reserve = store.reserve().or_else(|_| {
        // Old incidents may be what is in the way.
        store.trim(limits, 1);
        store.reserve()
    });
    match reserve {
        Ok(reserve) => Ok((store, InHand::Space(reserve))),
        Err(error) if error.is_of_the_disk() => {
            scribe::warn_of(&error, &store);
            Ok((store, InHand::Missing))
        }
        Err(error) => Err(error),
    }
}

/// Runs the command to its end; returns its exit code, 128+N for signal N.
pub fn run(request: &Request) -> Result<u8, RunError> {
    let signals = Signals::block().map_err(|e| RunError::System("signals could not be blocked", e))?;
    for done in cgroup::clean_leftovers() {
        eprintln!("reprieve: {done}");
    }
    let store = Store::open(request.out.clone())?;
    let reserve = store.reserve()?;
    let (group, brake) = if request.here {
        let group = Group::here()?;
        let brake = hold::arm_here(&group.memcg, request.brake)?;
        (group, brake)
    } else {
        let group = Group::make(request.limit_bytes)?;
        let brake = hold::arm(&group.memcg, request.limit_bytes, request.brake)?;
        (group, brake)
    };
    let mut hand_back = brake.hand_back();
    hand_back.beside.extend(group.cpu.iter().map(|c| c.dir().to_owned()));
    let watchdog = Watchdog::start(hand_back, request.manner.deadline)
        .map_err(|e| RunError::System("the watchdog could not be started", e))?;
    // Before the locking, which takes them with all the rest.
    let growth = request.growth_period.map(GrowthWitness::prepare);
    for missing in guardian::settle(guardian::Locks::All) {
        eprintln!("reprieve: warning: {missing}");
    }
    // After the locking, which would take the whole of its room.
    let heap = request.heap_period.and_then(|period| {
        let seed = std::env::var(HEAP_SEED).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
        let table = HeapTable::make(period, seed);
        table.inspect_err(|error| eprintln!("reprieve: warning: the heap is not recorded: {error}")).ok()
    });
    guardian::sigbus::install().map_err(|e| RunError::System("the SIGBUS handler could not be installed", e.into()))?;
    let is_inside = !group.is_made && group.memcg.has_us();
    let recorder = recorder::Recorder::new(store, reserve, request, is_inside)?;
    // After the locking, too: who does not ask needs none.
    let desk = request.manner.policy.may_ask().then(|| Desk::open(request.desk.clone(), &own_name()));
    let desk = desk.and_then(|desk| desk.inspect_err(|error| tell_unserved(&request.desk, error)).ok());
    let witnesses = session::Witnesses { heap, growth };
    let session = session::Session::new(request, &group, brake, watchdog, signals, recorder, witnesses, desk);
    session.run()
}

/// Name of a run's socket.
fn own_name() -> String {
    format!("run-{}", std::process::id())
}

/// Says that operators cannot be served, and what to do about it.
pub fn tell_unserved(place: &Place, error: &io::Error) {
    let dir = place.dir.display();
    say!(Warning; "warning: no console can reach us in {dir}: {error}; name another folder with guard.run_dir");
}

/// The memcg of a run, removed when dropped if it was made for it.
#[derive(Debug)]
struct Group {
    memcg: Memcg,
    is_made: bool,
    cpu: Option<CpuGroup>,
    /// oom_score_adj before we exempted ourselves: a child inherits ours, and
    /// an exempt command could never be killed.
    oom_score_adj: CString,
}

impl Group {
    fn make(limit_bytes: u64) -> Result<Self, RunError> {
        let hierarchy = Hierarchy::memory()?;
        let name = cgroup::name_of_own_group();
        let memcg = cgroup::create_memcg(&hierarchy, &name)?;
        let oom_score_adj = own_oom_score_adj();
        let group = Group { cpu: cgroup::create_cpu_group(&name), memcg, is_made: true, oom_score_adj };
        // Smaller than a page is no limit the kernel can keep.
        if limit_bytes < crate::snapshot::page_size() {
            let error = io::Error::from_raw_os_error(libc::ENOMEM);
            return Err(RunError::TooSmall(OsString::from("(any)"), limit_bytes, error));
        }
        Ok(group)
    }

    /// What limits us.
    fn here() -> Result<Self, RunError> {
        let hierarchy = Hierarchy::memory()?;
        if hierarchy.version != Version::V2 {
            return Err(BrakeError::HereNeedsReserve.into());
        }
        let memcg =
            Memcg::limited_around_us(&hierarchy).ok_or_else(|| BrakeError::NoLimit { path: hierarchy.own.clone() })?;
        Ok(Group { memcg, is_made: false, cpu: None, oom_score_adj: own_oom_score_adj() })
    }
}

fn own_oom_score_adj() -> CString {
    let adj = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    CString::new(adj.trim()).unwrap_or_default()
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.is_made {
            return;
        }
        // Processes that just ended leave the group a moment later.
        for _ in 0..50 {
            match self.memcg.remove() {
                Ok(()) => return,
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        eprintln!("reprieve: {} still has processes; the next run removes it", self.memcg.path());
    }
}
