//! The rings of all CPUs, the thread that empties them, and what a snapshot asks.

use super::ledger::Ledger;
use super::look::{self, Grown, Loss};
use super::office::Office;
use super::ring::{Ring, What, Whose, online_cpus};
use super::samples::{BookId, Sample};
use super::stacks::KERNEL;
use super::sweep;
use crate::cgroup::{Memcg, Version, find_perf_dir};
use crate::incident::growth::{Ended, Growth, GrowthBasis, GrowthSampling, GrowthScope};
use crate::incident::model::{KernelVictim, Module, Process};
use crate::snapshot::{Evidence, ModuleTable, kernel, page_size};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// What rings of all CPUs take together at most.
const RINGS_BYTES: usize = 128 << 20;
/// A ring at period 1; at others so much less as there is less to write, but not
/// below what a scheduler's delay may fill.
const RING_BYTES: usize = 64 << 20;
const LEAST_RING_BYTES: usize = 512 << 10;
const MOST_RING_BYTES: usize = 32 << 20;
/// What is taken out of all rings before somebody else may have the ledger.
const AT_ONCE_BYTES: usize = 512 << 10;
/// How soon rings are looked at that wake nobody, while there are faults and else.
const BUSY: Duration = Duration::from_millis(20);
const IDLE: Duration = Duration::from_millis(250);
/// How often pages are looked for that are no more, and how much longer than that takes.
const SWEEP: Duration = Duration::from_secs(1);
const SWEEP_SHARE: u32 = 100;
/// How long a snapshot waits for the thread.
const PATIENCE: Duration = Duration::from_millis(300);
/// Processes told that ended, where it is not known whom the kernel killed.
const MOST_ENDED: usize = 4;

/// The witness, from before a command starts until it is gone.
#[derive(Debug)]
pub struct GrowthWitness {
    state: State,
}

#[derive(Debug)]
enum State {
    /// Its tables are there, to be locked with all that the guardian has.
    Prepared {
        // Nobody waits for it: threads may share a witness.
        ledger: Box<Mutex<Ledger>>,
        period: u64,
    },
    Running(Watch),
    /// With the reason.
    Refused(String),
}

#[derive(Debug)]
struct Watch {
    office: Arc<Office<Desk>>,
    scope: GrowthScope,
    what: What,
    ring_bytes: usize,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread and a snapshot work on, one at a time.
#[derive(Debug)]
struct Desk {
    rings: Vec<Ring>,
    ledger: Ledger,
    scratch: Vec<u8>,
}

impl GrowthWitness {
    /// With one sample in `period` faults. Makes the tables, not yet the rings.
    #[must_use]
    pub fn prepare(period: u64) -> Self {
        GrowthWitness { state: State::Prepared { ledger: Box::new(Mutex::new(Ledger::new())), period } }
    }

    /// Watches a memcg that others made, with all that is in it and comes into it.
    #[must_use]
    pub fn of_memcg(memcg: &Memcg, period: u64) -> Self {
        let started = match find_perf_dir(memcg) {
            Some(dir) => Watch::of_cgroup(Ledger::new(), period, &dir).map_err(|error| could_not(&error)),
            None => {
                Err("who made it grow is not known: page faults are sampled by cgroup, which under version 1 of the \
                         memory controller needs one of the same path and with the same processes for perf_event"
                    .to_owned())
            }
        };
        GrowthWitness { state: started.map_or_else(State::Refused, State::Running) }
    }

    /// One that watches nothing, with the reason.
    #[must_use]
    pub fn refused(why: String) -> Self {
        GrowthWitness { state: State::Refused(why) }
    }

    /// Why nothing is watched, if so.
    #[must_use]
    pub fn refusal(&self) -> Option<&str> {
        if let State::Refused(why) = &self.state { Some(why) } else { None }
    }

    /// Begins: in the memcg, where the kernel samples cgroups and it is one of version 2,
    /// else from the next exec of `pid` on. Where it cannot, that is told with every
    /// incident.
    pub fn attach(&mut self, pid: i32, memcg: Option<&Memcg>) {
        let state = std::mem::replace(&mut self.state, State::Refused("its growth is not watched".to_owned()));
        let State::Prepared { ledger, period } = state else {
            self.state = state;
            return;
        };
        let ledger = ledger.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.state = match Watch::start(ledger, period, pid, memcg) {
            Ok(watch) => State::Running(watch),
            Err(error) => {
                let why = could_not(&error);
                eprintln!("reprieve: warning: {why}");
                State::Refused(why)
            }
        };
    }

    /// Adds to the evidence who made its processes grow.
    pub fn tell(&self, evidence: &mut Evidence, until: Instant) {
        self.with_desk(evidence, |watch, desk, evidence| {
            // What is left is for the page maps.
            let left = until.saturating_duration_since(Instant::now());
            let is_read = desk.drain_all(until - left / 2, &mut evidence.gaps);
            let loss = Loss {
                // How many were not read nobody counted.
                samples: if is_read { desk.lost() } else { u64::MAX },
                period_bytes: watch.what.period * desk.ledger.samples.one_in() * page_size(),
            };
            let (mut late, period) = (0, desk.faults_of_one(watch.what.period));
            let all = desk.ledger.samples.all();
            for process in &mut evidence.processes {
                let is_doubtful = desk.ledger.of(process.pid).is_some_and(|book| book.of_mapped.is_much(period));
                late += u64::from(desk.present(process, &all, loss, is_doubtful, until));
                if process.growth.is_some() && is_doubtful {
                    evidence.gaps.push(doubt(&process.comm, process.pid));
                }
            }
            if late > 0 {
                evidence.gaps.push("time was up before all mappings were looked at for who made them grow".to_owned());
            }
            let growths = evidence.processes.iter_mut().filter_map(|process| process.growth.as_mut());
            desk.share_modules(growths, &mut evidence.modules);
            evidence.growth = Some(watch.sampling(desk));
        });
    }

    /// Adds what is remembered of those whom the kernel killed.
    pub fn tell_of_killed(&self, evidence: &mut Evidence, victims: &[KernelVictim], until: Instant) {
        self.with_desk(evidence, |watch, desk, evidence| {
            desk.drain_all(until, &mut evidence.gaps);
            evidence.ended = desk.killed(victims, watch.what.period);
            let period = desk.faults_of_one(watch.what.period);
            for ended in &evidence.ended {
                if desk.ledger.of(ended.pid).is_some_and(|book| book.of_mapped.is_much(period)) {
                    evidence.gaps.push(doubt(&ended.comm, ended.pid));
                }
            }
            if evidence.ended.is_empty() {
                evidence.gaps.push("of whom the kernel killed no page fault was sampled".to_owned());
            }
            // It may still have been there a moment ago, and counts once.
            let has_ended = |pid| evidence.ended.iter().any(|ended| ended.pid == pid);
            evidence.processes.iter_mut().filter(|p| has_ended(p.pid)).for_each(|process| process.growth = None);
            let growths = evidence.ended.iter_mut().map(|ended| &mut ended.growth);
            desk.share_modules(growths, &mut evidence.modules);
            evidence.growth = Some(watch.sampling(desk));
        });
    }

    /// Whether page faults of a process were told, also of one that has ended.
    #[must_use]
    pub fn has_seen(&self, pid: i32) -> bool {
        let State::Running(watch) = &self.state else { return false };
        watch.office.ask(Instant::now() + PATIENCE).is_some_and(|desk| desk.ledger.has_seen(pid))
    }

    fn with_desk(&self, evidence: &mut Evidence, ask: impl FnOnce(&Watch, &mut Desk, &mut Evidence)) {
        let watch = match &self.state {
            State::Running(watch) => watch,
            State::Refused(why) => {
                if !evidence.gaps.contains(why) {
                    evidence.gaps.push(why.clone());
                }
                return;
            }
            State::Prepared { .. } => return,
        };
        match watch.office.ask(Instant::now() + PATIENCE) {
            Some(mut desk) => ask(watch, &mut desk, evidence),
            None => evidence.gaps.push("who made it grow is not known: the thread that knows was busy".to_owned()),
        }
    }
}

/// Why there is nothing.
fn could_not(error: &io::Error) -> String {
    format!(
        "who made it grow is not known: page faults could not be sampled ({error}); run as root or with CAP_PERFMON, or \
         set kernel.perf_event_paranoid to 1"
    )
}

impl Watch {
    fn start(mut ledger: Ledger, period: u64, pid: i32, memcg: Option<&Memcg>) -> io::Result<Self> {
        // Before there is anything to be read.
        ledger.kernel_base = kernel::base();
        let of_cgroup = memcg.filter(|memcg| memcg.version() == Version::V2).and_then(|memcg| {
            let dir = File::open(memcg.dir()).ok()?;
            open_rings(Whose::Cgroup(dir.as_fd()), period).ok()
        });
        match of_cgroup {
            Some(opened) => Self::work_on(ledger, GrowthScope::Cgroup, opened),
            None => Self::work_on(ledger, GrowthScope::Process, open_rings(Whose::Process(pid), period)?),
        }
    }

    fn of_cgroup(mut ledger: Ledger, period: u64, dir: &Path) -> io::Result<Self> {
        let dir = File::open(dir)?;
        ledger.kernel_base = kernel::base();
        Self::work_on(ledger, GrowthScope::Cgroup, open_rings(Whose::Cgroup(dir.as_fd()), period)?)
    }

    fn work_on(ledger: Ledger, scope: GrowthScope, (rings, what): (Vec<Ring>, What)) -> io::Result<Self> {
        let bells = rings.iter().map(|ring| ring.bell().try_clone_to_owned()).collect::<io::Result<Vec<_>>>()?;
        let ring_bytes = rings.iter().map(Ring::data_bytes).sum();
        let desk = Desk { rings, ledger, scratch: Vec::with_capacity(1 << 16) };
        let office = Arc::new(Office::of(desk));
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let (for_thread, stop_thread) = (Arc::clone(&office), Arc::clone(&stop));
        let thread =
            Builder::new().name("reprieve-growth".to_owned()).spawn(move || work(&for_thread, bells, &stop_thread))?;
        Ok(Watch { office, scope, what, ring_bytes, stop, thread: Some(thread) })
    }

    fn sampling(&self, desk: &Desk) -> GrowthSampling {
        let ledger = &desk.ledger;
        GrowthSampling {
            scope: self.scope,
            period: self.what.period,
            of_kernel: self.what.of_kernel,
            samples: ledger.faults,
            lost_samples: desk.lost(),
            unplaced_samples: ledger.unplaced + ledger.stacks.unplaced,
            kept_one_in: ledger.samples.one_in(),
            ring_bytes: self.ring_bytes as u64,
            table_bytes: Ledger::table_bytes() as u64,
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Why what a process mapped itself is not told as reliable.
fn doubt(comm: &str, pid: i32) -> String {
    format!(
        "{comm} [{pid}] maps memory again and again at the same addresses: a page may count for who had it before, so \
         what it mapped itself is not told as reliable; --growth=1 tells them apart"
    )
}

/// Rings for all CPUs, of faults in system calls, too, where we may.
fn open_rings(whose: Whose<'_>, period: u64) -> io::Result<(Vec<Ring>, What)> {
    let cpus = online_cpus()?;
    let bytes = ring_bytes(period, cpus.len());
    let open = |what: What| {
        let mut rings = Vec::with_capacity(cpus.len());
        for &cpu in &cpus {
            match Ring::open(whose, what, cpu, bytes) {
                Ok(ring) => rings.push(ring),
                // It went offline just now.
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
                Err(error) => return Err(error),
            }
        }
        if rings.is_empty() { Err(io::Error::from_raw_os_error(libc::ENODEV)) } else { Ok((rings, what)) }
    };
    let result = open(What { period, of_kernel: true });
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM)) => {
            open(What { period, of_kernel: false })
        }
        result => result,
    }
}

/// Bytes of a ring, a power of two.
fn ring_bytes(period: u64, cpus: usize) -> usize {
    let wanted = (RING_BYTES as u64 / period.max(1)) as usize;
    let most = (RINGS_BYTES / cpus.max(1)).clamp(LEAST_RING_BYTES / 4, MOST_RING_BYTES);
    let bytes = wanted.max(LEAST_RING_BYTES).min(most);
    // Down to a power of two.
    1 << bytes.ilog2()
}

/// What the thread does until it is told to stop.
fn work(office: &Office<Desk>, mut bells: Vec<OwnedFd>, stop: &EventFd) {
    let mut timeout = IDLE;
    let mut sweep_at = Instant::now() + SWEEP;
    loop {
        let mut fds = vec![PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        fds.extend(bells.iter().map(|bell| PollFd::new(bell.as_fd(), PollFlags::POLLIN)));
        // EINTR and time-outs mean the same: look.
        let _ = poll(&mut fds, PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX));
        if fds[0].any().unwrap_or(false) {
            return;
        }
        // Hung up for good: nobody is there any more whose faults it could tell, and
        // whoever polls it is woken all the time.
        let hung: Vec<bool> =
            fds[1..].iter().map(|fd| fd.revents().is_some_and(|r| r.contains(PollFlags::POLLHUP))).collect();
        drop(fds);
        let mut hung = hung.into_iter();
        bells.retain(|_| !hung.next().unwrap_or(false));
        let before = office.take().ledger.faults;
        while !office.take().drain() {}
        timeout = if office.take().ledger.faults > before { BUSY } else { IDLE };
        if Instant::now() >= sweep_at {
            let begun = Instant::now();
            let pages = office.take().ledger.pages();
            for (pid, book, pages) in pages {
                let absent = sweep::absent(pid, &pages);
                let mut desk = office.take();
                absent.into_iter().for_each(|page| desk.ledger.forget(book, page));
            }
            sweep_at = Instant::now() + SWEEP.max(begun.elapsed() * SWEEP_SHARE);
        }
    }
}

impl Desk {
    /// Takes some out of every ring; whether all were empty then.
    fn drain(&mut self) -> bool {
        let Desk { rings, ledger, scratch } = self;
        let most = AT_ONCE_BYTES / rings.len().max(1);
        let mut all_empty = true;
        for ring in rings {
            all_empty &= ring.drain(scratch, most, |record| ledger.take(&record));
        }
        if all_empty {
            ledger.settle();
        }
        all_empty
    }

    /// Takes all out of the rings; whether it did before time was up.
    fn drain_all(&mut self, until: Instant, gaps: &mut Vec<String>) -> bool {
        let mut is_in_time = true;
        while is_in_time && !self.drain() {
            is_in_time = Instant::now() < until;
        }
        if !is_in_time {
            gaps.push("time was up before all page faults were read that were sampled".to_owned());
        }
        self.ledger.clear_up(true);
        is_in_time
    }

    /// Samples that found no room in a ring, and what was no record.
    fn lost(&self) -> u64 {
        let broken: u64 = self.rings.iter().map(Ring::broken).sum();
        self.ledger.lost.saturating_add(broken)
    }

    /// Faults of one sample that was read: where some were lost, more than of one that was taken.
    fn faults_of_one(&self, period: u64) -> u64 {
        let (read, lost) = (u128::from(self.ledger.faults.max(1)), u128::from(self.lost()));
        u64::try_from(u128::from(period) * (read + lost) / read).unwrap_or(u64::MAX)
    }

    /// Says of a living process who made it grow; whether time was up.
    fn present(
        &mut self,
        process: &mut Process,
        all: &HashMap<BookId, Vec<(u64, Sample)>>,
        loss: Loss,
        is_doubtful: bool,
        until: Instant,
    ) -> bool {
        let Some((book, library, stacks)) = self.ledger.living(process.pid) else { return false };
        let Some(pages) = all.get(&book.id) else { return false };
        let is_forked = book.is_forked;
        let looked =
            book.refresh(library).and_then(|view| look::present(process.pid, view, is_forked, pages, loss, until));
        match looked {
            Ok(mut grown) => {
                let is_late = grown.is_late;
                if is_doubtful {
                    grown.distrust_mapped();
                }
                let bias = |module| book.biases.get(&module).copied().unwrap_or_default();
                process.growth = Some(grown.into_growth(GrowthBasis::Present, None, stacks, bias));
                is_late
            }
            // A zombie has no memory; why else is among the gaps of its stacks.
            Err(_) => false,
        }
    }

    /// What is remembered of those whom the kernel killed; where it does not say whom,
    /// of those who ended last.
    fn killed(&mut self, victims: &[KernelVictim], period: u64) -> Vec<Ended> {
        let named = victims.iter().filter_map(|victim| {
            let scale_to = victim.anon_bytes.zip(victim.shmem_bytes).map(|(anon, shmem)| anon + shmem);
            Some((self.ledger.of(victim.pid)?, Some(victim), scale_to))
        });
        let mut books: Vec<_> = named.collect();
        if books.is_empty() {
            let dying = self.ledger.all_living().filter(|book| sweep::is_ending(book.pid));
            books = dying.chain(self.ledger.ended()).take(MOST_ENDED).map(|book| (book, None, None)).collect();
        }
        let doubted = self.faults_of_one(period);
        let ended = books.into_iter().map(|(book, victim, scale_to)| {
            let samples = self.ledger.samples.of(book.id);
            let mut grown: Grown = look::remembered(&samples, period * self.ledger.samples.one_in());
            if book.of_mapped.is_much(doubted) {
                grown.distrust_mapped();
            }
            let basis = if scale_to.is_some() { GrowthBasis::Ended } else { GrowthBasis::EndedUnscaled };
            let bias = |module| book.biases.get(&module).copied().unwrap_or_default();
            let growth = grown.into_growth(basis, scale_to, &self.ledger.stacks, bias);
            // Where it was gone before it could be asked for its name.
            let comm = victim.filter(|_| book.comm.is_empty()).map_or(&book.comm, |victim| &victim.comm);
            Ended { pid: book.pid, comm: comm.clone(), killed_by_kernel: victim.is_some(), growth }
        });
        ended.filter(|ended| ended.growth.samples > 0).collect()
    }

    /// Gives frames the numbers that their modules have in the evidence.
    fn share_modules<'g>(&self, growths: impl Iterator<Item = &'g mut Growth>, modules: &mut Vec<Module>) {
        let mut table = ModuleTable::of(std::mem::take(modules));
        let ours: &[Module] = &self.ledger.library.table.modules;
        let mut now: HashMap<u32, u32> = HashMap::new();
        let frames = growths.flat_map(|growth| growth.frames.iter_mut());
        for at in frames.filter_map(|frame| frame.at.as_mut()) {
            let module =
                || if at.module == KERNEL { Some(kernel::module()) } else { ours.get(at.module as usize).cloned() };
            let index = match now.get(&at.module) {
                Some(&index) => index,
                None => {
                    let Some(module) = module() else { continue };
                    let index = table.index_of(module);
                    now.insert(at.module, index);
                    index
                }
            };
            at.module = index;
        }
        *modules = table.modules;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_fit_what_there_is_to_write() {
        assert_eq!(ring_bytes(64, 2), 1 << 20);
        assert_eq!(ring_bytes(1, 2), 32 << 20);
        assert_eq!(ring_bytes(16, 4), 4 << 20);
        assert_eq!(ring_bytes(512, 4), 512 << 10);
        // All together they are bounded, as far as a ring can be small.
        assert_eq!(ring_bytes(1, 128), 1 << 20);
        assert_eq!(ring_bytes(64, 100), 1 << 20);
        assert_eq!(ring_bytes(64, 1000), 128 << 10);
    }
}
