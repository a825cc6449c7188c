//! Where every charged byte went: a tree that adds up to what the kernel charges.
//!
//! In: a memcg that is stopped, and its processes. Out: [`Accounting`], plain data.
//! The kernel's counters give the sizes ([`counters`]); page maps of the processes and
//! pages of their files give the owners, each page once and only if this memcg is
//! charged for it ([`mappings`], [`files`], [`charges`]); [`tree`] puts both together.
//! Nothing is read from a disk and nothing is charged to the memcg. It takes a bounded
//! time: what it does not get to is unexplained, and told.
//!
//! Not for: who allocated it, which the witnesses tell.

mod buffers;
mod charges;
mod counters;
mod descriptors;
mod file_pages;
mod files;
mod found;
#[doc(hidden)]
pub mod hostile;
mod kernel;
mod leftovers;
mod mappings;
mod mounts;
mod page_set;
mod tree;

use crate::cgroup::Memcg;
use crate::incident::accounting::Accounting;
use crate::incident::model::{Process, Thread};
use crate::incident::units;
use crate::size::can_be;
use crate::snapshot::Pagemap;
use crate::witness::go;
use charges::Charges;
use counters::Counters;
use files::Known;
use found::{Found, FoundProcess};
use mappings::{Pages, Runtime};
use mounts::Kind;
pub use mounts::{Kind as FileSystem, Mounts};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Longest that the look takes, about, while somebody waits for a verdict.
pub const AT_MOST: Duration = Duration::from_secs(1);
/// Part of the time that page tables may take; files have the rest.
const FOR_MAPPINGS: u32 = 2;
/// What of a kind is left to others: less is not searched for.
const ENOUGH: u64 = 500;

/// Accounts for `memcg`, whose processes the snapshot took, for at most `at_most`.
#[must_use]
pub fn take(memcg: &Memcg, processes: &[Process], at_most: Duration) -> Accounting {
    let begun = Instant::now();
    let counters = Counters::read(memcg);
    let (charges, refused) = Charges::open(memcg);
    let mut found = Found::default();
    if let Some(error) = refused {
        found.gaps.push(format!("/proc/kpagecgroup: {error}: shared pages and files may be charged to others"));
    }
    let mut pages = Pages::new(charges, begun + at_most / FOR_MAPPINGS);
    found.kernel_stack = kernel::stack_bytes().unwrap_or_else(|| {
        found.gaps.push("/proc/meminfo does not tell how big kernel stacks are".to_owned());
        0
    });
    let mut mounts = MountTables::default();
    look_at_mappings(processes, &mut mounts, &mut pages, &mut found);
    pages.until = begun + at_most;
    look_at_files(&counters, processes, &mut mounts, &mut pages, &mut found);
    if pages.is_blind {
        found
            .gaps
            .push("the kernel does not tell page frames (CAP_SYS_ADMIN): shared pages are unexplained".to_owned());
    }
    let (root, beside) = tree::build(&counters, &found);
    Accounting {
        root,
        beside,
        usage_after_bytes: memcg.usage().unwrap_or(0),
        elsewhere_bytes: found.elsewhere,
        took_us: begun.elapsed().as_micros() as u64,
        gaps: found.gaps,
    }
}

fn look_at_mappings(processes: &[Process], mounts: &mut MountTables, pages: &mut Pages, found: &mut Found) {
    let mut late = 0;
    for process in processes {
        let pid = process.pid;
        let mut seen = FoundProcess {
            pid,
            comm: process.comm.clone(),
            threads: process.threads.len() as u64,
            swap: can_be(process.memory.swap_pss_bytes).unwrap_or(0),
            ..FoundProcess::default()
        };
        if let Some(kernel) = kernel::for_process(pid, crate::snapshot::page_size()) {
            (seen.page_tables, seen.hugetlb) = (kernel.page_tables, kernel.hugetlb);
        }
        let stack = |thread: &Thread| Some(thread.registers.as_ref()?.to_unwind().sp);
        let stacks = process.threads.iter().filter_map(stack).collect();
        let of = Runtime { stacks, is_go: go::is_go(process) };
        if pages.is_late() {
            late += 1;
        } else {
            let table = mounts.of(pid);
            match pages.look_at_process(pid, &of, &table, found) {
                Ok(anonymous) => seen.anonymous = anonymous,
                Err(error) => found.gaps.push(format!("{} [{pid}]: its pages: {error}", process.comm)),
            }
            late += u64::from(pages.is_late());
        }
        found.processes.push(seen);
    }
    if late > 0 {
        found.gaps.push(format!("no time was left for the page tables of {}", units::count(late, "process")));
    }
}

fn look_at_files(
    counters: &Counters,
    processes: &[Process],
    mounts: &mut MountTables,
    pages: &mut Pages,
    found: &mut Found,
) {
    let own = match Pagemap::open(std::process::id() as i32) {
        Ok(own) => own,
        Err(error) => return found.gaps.push(format!("our own page map: {error}: open files were not looked at")),
    };
    let mut known = Known::default();
    let mut late = 0;
    for process in processes {
        // A zombie has closed all, and of whom we may not look at that is told already.
        match files::open_files(process.pid, &mounts.of(process.pid), &own, pages, &mut known, found) {
            Err(_) if pages.is_late() => late += 1,
            _ => {}
        }
    }
    let is_missing = |counted: u64, seen: u64| counted.saturating_sub(seen) > counters.usage / ENOUGH;
    if is_missing(counters.shmem(), found.of_kind(Kind::Tmpfs)) {
        files::mapped_files(Kind::Tmpfs, &own, pages, found);
    }
    for kind in [Kind::Local, Kind::Layered] {
        if is_missing(counters.cache(), found.of_kind(Kind::Local) + found.of_kind(Kind::Layered)) {
            files::mapped_files(kind, &own, pages, found);
        }
    }
    if is_missing(counters.shmem(), found.of_kind(Kind::Tmpfs)) {
        // Whoever made it may have seen less than others, but few do.
        if let Some(process) = processes.iter().find(|process| process.state != 'Z') {
            let mounts = mounts.of(process.pid);
            for place in &mounts.tmpfs {
                leftovers::tmpfs(process.pid, place, &own, pages, found);
            }
        }
    }
    if is_missing(counters.shmem(), found.of_kind(Kind::Tmpfs)) {
        found.segments = leftovers::segments();
    }
    if late > 0 || pages.is_late() {
        found.gaps.push("no time was left for all files".to_owned());
    }
}

/// Mounts of processes, read once for each mount namespace.
#[derive(Default)]
struct MountTables {
    by_namespace: HashMap<std::path::PathBuf, Rc<Mounts>>,
}

impl MountTables {
    fn of(&mut self, pid: i32) -> Rc<Mounts> {
        let Ok(namespace) = std::fs::read_link(format!("/proc/{pid}/ns/mnt")) else { return Rc::default() };
        Rc::clone(self.by_namespace.entry(namespace).or_insert_with(|| Rc::new(Mounts::of(pid))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::{Hierarchy, Version};
    use crate::incident::accounting::AccountKind;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_process_that_is_gone_and_counters_that_a_kernel_lacks_leave_what_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let hierarchy = Hierarchy { version: Version::V2, mount: dir.path().to_owned(), own: "/".to_owned() };
        std::fs::write(dir.path().join("memory.current"), (64 * MIB).to_string()).unwrap();
        std::fs::write(dir.path().join("memory.stat"), format!("anon {}\n", 32 * MIB)).unwrap();
        // A PID that no process has.
        let gone = Process { pid: i32::MAX, comm: "gone".to_owned(), state: 'S', ..Process::default() };
        let told = take(&Memcg::at(&hierarchy, "/"), &[gone], Duration::from_secs(20));
        hostile::assert_adds_up(&told);
        let of_it = told.gaps.iter().filter(|gap| gap.starts_with("gone [2147483647]: its pages: ")).count();
        assert_eq!(of_it, 1, "{:?}", told.gaps);
        // All is there, and nothing of it is explained.
        assert_eq!((told.root.bytes, told.sums()), (64 * MIB, (0, 64 * MIB)));
        let anonymous = told.root.children.iter().find(|node| node.what == "anonymous memory").unwrap();
        assert_eq!((anonymous.bytes, anonymous.kind), (32 * MIB, AccountKind::Unexplained));
        assert!(told.root.children.iter().any(|node| node.what == "in no counter that this kernel has"));
    }
}
