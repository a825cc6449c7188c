//! Jobs of a machine, and which of them has to go.

use crate::cgroup::Memcg;
use crate::incident::model::Candidate;
use crate::verdict::worth::order;
use std::cmp::Reverse;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Longest `memory.current`: 2⁶⁴ has 20 digits, then comes a newline.
const NUMBER_BYTES: usize = 24;
/// More than there is in `cgroup.events`.
const EVENTS_BYTES: usize = 128;

/// Where a job lives, with what is needed to weigh and to kill it, opened while there
/// was memory.
#[derive(Debug)]
pub struct Place {
    /// Its cgroup.
    pub memcg: Memcg,
    /// Its folder.
    pub dir: File,
    /// Its `memory.current`.
    current: File,
    /// Its `cgroup.events`.
    events: File,
}

impl Place {
    /// Opens what will be needed.
    pub fn open(memcg: Memcg) -> io::Result<Self> {
        let open = |file: &str| File::open(memcg.dir().join(file));
        let (dir, current, events) = (File::open(memcg.dir())?, open("memory.current")?, open("cgroup.events")?);
        let place = Place { dir, current, events, memcg };
        // The buffer of a file of cgroupfs is made by its first read (seq_read_iter,
        // fs/seq_file.c), and stays until it is closed.
        place.has_processes();
        place.usage().map(|_| place).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    #[cfg(test)]
    pub fn of_files(memcg: Memcg, [dir, current, events]: [File; 3]) -> Self {
        Place { memcg, dir, current, events }
    }

    /// Whether anybody is in it. The kernel reads a counter and a flag for it
    /// (cgroup_events_show, kernel/cgroup/cgroup.c).
    pub fn has_processes(&self) -> bool {
        let mut bytes = [0; EVENTS_BYTES];
        let length = nix::sys::uio::pread(&self.events, &mut bytes, 0).unwrap_or(0);
        std::str::from_utf8(&bytes[..length]).is_ok_and(|text| text.lines().any(|line| line == "populated 1"))
    }

    /// Bytes charged to it; `None` when it is gone. The kernel reads one counter for it
    /// (memory_current_read, mm/memcontrol.c): no lock that others hold, no memory.
    pub fn usage(&self) -> Option<u64> {
        let mut bytes = [0; NUMBER_BYTES];
        let length = nix::sys::uio::pread(&self.current, &mut bytes, 0).ok()?;
        std::str::from_utf8(&bytes[..length]).ok()?.trim_end().parse().ok()
    }
}

/// A memcg that lives or dies as one.
#[derive(Debug)]
pub struct Job {
    /// Where it is.
    pub place: Arc<Place>,
    /// What its owner says it is worth; 0 without a word.
    pub priority: i32,
    /// What it may keep when memory is short.
    pub reservation_bytes: u64,
    size: AtomicU64,
}

impl Job {
    /// A job as it is now.
    pub fn new(place: Arc<Place>, priority: i32, reservation_bytes: u64, size_bytes: u64) -> Self {
        Job { place, priority, reservation_bytes, size: size_bytes.into() }
    }

    /// What it used when it was weighed last.
    pub fn size_bytes(&self) -> u64 {
        self.size.load(Relaxed)
    }

    /// Takes note of what it uses.
    pub fn weigh(&self, size_bytes: u64) {
        self.size.store(size_bytes, Relaxed);
    }

    /// Whether it uses more than it may keep.
    pub fn is_over(&self) -> bool {
        self.size_bytes() > self.reservation_bytes
    }

    /// Who goes first has the least.
    fn rank(&self) -> impl Ord + use<> {
        order(self.priority, self.size_bytes(), self.reservation_bytes)
    }

    /// For the incident: a job is no process, so it has no PID.
    #[must_use]
    pub fn candidate(&self) -> Candidate {
        Candidate {
            pid: 0,
            comm: self.place.memcg.path().to_owned(),
            priority: self.priority,
            size_bytes: self.size_bytes(),
            reservation_bytes: self.reservation_bytes,
        }
    }
}

/// The jobs of a machine.
#[derive(Debug, Default)]
pub struct List(pub Vec<Job>);

impl List {
    /// The one to go, but for those of `spared`; of who uses nothing, nothing comes.
    /// (Who has nobody left to be killed is to be weighed as nothing.)
    pub fn choose(&self, spared: impl Fn(usize) -> bool) -> Option<usize> {
        let jobs = self.0.iter().enumerate().filter(|(index, job)| !spared(*index) && job.size_bytes() > 0);
        jobs.min_by_key(|(_, job)| job.rank()).map(|(index, _)| index)
    }

    /// Those who use anything, first to go in front.
    #[must_use]
    pub fn ranked(&self) -> Vec<&Job> {
        let mut jobs: Vec<&Job> = self.0.iter().filter(|job| job.size_bytes() > 0).collect();
        jobs.sort_by_key(|job| job.rank());
        jobs
    }

    /// The biggest first.
    #[must_use]
    pub fn biggest(&self, count: usize) -> Vec<&Job> {
        let mut jobs: Vec<&Job> = self.0.iter().filter(|job| job.size_bytes() > 0).collect();
        jobs.sort_by_key(|job| Reverse(job.size_bytes()));
        jobs.truncate(count);
        jobs
    }
}

/// Cgroups that are jobs: those `depth` levels below the root, and leaves above that.
/// The one that `own` is in, our cgroup's path, is none.
#[must_use]
pub fn find(root: &Memcg, depth: usize, own: &str) -> Vec<Memcg> {
    let level = |memcg: &Memcg| memcg.path().split('/').filter(|part| !part.is_empty()).count();
    let all = root.subtree();
    let is_leaf = |memcg: &Memcg| !all.iter().any(|m| m.dir() != memcg.dir() && m.dir().starts_with(memcg.dir()));
    let is_job = |memcg: &&Memcg| level(memcg) == depth || (0 < level(memcg) && level(memcg) < depth && is_leaf(memcg));
    let has_us = |memcg: &Memcg| std::path::Path::new(own).starts_with(memcg.path());
    all.iter().filter(is_job).filter(|memcg| !has_us(memcg)).cloned().collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::cgroup::{Hierarchy, Version};
    use std::io::Write;

    fn memcg(name: &str) -> Memcg {
        let hierarchy = Hierarchy { version: Version::V2, mount: "/nowhere".into(), own: "/".to_owned() };
        Memcg::at(&hierarchy, name)
    }

    fn file(text: &str) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    /// A job whose files are of ours.
    pub fn job(name: &str, priority: i32, size_bytes: u64, reservation_bytes: u64) -> Job {
        let files = [file(""), file(&format!("{size_bytes}\n")), file("populated 1\nfrozen 0\n")];
        Job::new(Arc::new(Place::of_files(memcg(name), files)), priority, reservation_bytes, size_bytes)
    }

    fn ranked(jobs: Vec<Job>) -> Vec<String> {
        let list = List(jobs);
        let all: Vec<String> = list.ranked().iter().map(|job| job.place.memcg.path().to_owned()).collect();
        let first = list.choose(|_| false).map(|index| list.0[index].place.memcg.path());
        assert_eq!(first, all.first().map(String::as_str));
        all
    }

    #[test]
    fn the_lowest_priority_over_its_reservation_goes_first() {
        let jobs =
            vec![job("/kept", -5, 50, 60), job("/big", 1, 90, 0), job("/low", -1, 20, 10), job("/more", -1, 30, 10)];
        assert_eq!(ranked(jobs), ["/more", "/low", "/big", "/kept"]);
    }

    #[test]
    fn within_their_reservation_only_when_nobody_is_over() {
        assert_eq!(ranked(vec![job("/a", 2, 10, 20), job("/b", 1, 10, 20)]), ["/b", "/a"]);
    }

    #[test]
    fn nobody_dies_for_nothing() {
        assert_eq!(ranked(vec![job("/empty", -9, 0, 0), job("/a", 2, 10, 20)]), ["/a"]);
        assert_eq!(ranked(vec![job("/empty", -9, 0, 0)]), [""; 0]);
    }

    #[test]
    fn usage_is_what_the_file_says_now() {
        let there = job("/a", 0, 12_345, 0);
        assert_eq!((there.place.usage(), there.place.has_processes()), (Some(12_345), true));
        let gone = Place::of_files(memcg("/b"), [file(""), file(""), file("")]);
        assert_eq!((gone.usage(), gone.has_processes()), (None, false));
        let empty = Place::of_files(memcg("/c"), [file(""), file("8192\n"), file("populated 0\nfrozen 0\n")]);
        assert_eq!((empty.usage(), empty.has_processes()), (Some(8192), false));
    }

    #[test]
    fn our_own_cgroup_is_no_job() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "ours", "ours/deep", "ours-too"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let hierarchy = Hierarchy { version: Version::V2, mount: dir.path().to_owned(), own: "/".to_owned() };
        let root = Memcg::at(&hierarchy, "/");
        let mut found: Vec<String> = find(&root, 1, "/ours/deep").iter().map(|m| m.path().to_owned()).collect();
        found.sort();
        assert_eq!(found, ["/a", "/ours-too"]);
    }
}
