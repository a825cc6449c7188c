//! What the rings have told: processes, and who touched which of their pages.

use super::book::{Book, Library, Reuse};
use super::record::{Code, Fault, Record};
use super::samples::{BookId, Sample, Samples};
use super::stacks::{Frame, KERNEL, NO_STACK, StackId, Stacks};
use crate::incident::model::ModuleAddress;
use crate::snapshot::page_size;
use std::collections::{HashMap, HashSet, VecDeque};

/// Processes that are known at a time.
const MOST_BOOKS: usize = 4096;
/// Processes that can be unwound at a time: each takes some 50 KiB and two open files.
const MOST_VIEWS: usize = 32;
/// Processes while there are no more than which their code is put down as it is mapped: with
/// all that it may be, some 3 MiB.
const MOST_TOLD: usize = 256;
/// Processes that ended and are remembered.
const MOST_ENDED: usize = 32;

/// A page that was sampled, to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// Its number.
    pub number: u64,
    /// When it was touched.
    pub time: u64,
}

/// The whole of it.
#[derive(Debug)]
pub struct Ledger {
    /// Files of processes.
    pub library: Library,
    /// Pages.
    pub samples: Samples,
    /// Stacks.
    pub stacks: Stacks,
    books: HashMap<i32, Book>,
    /// The last one is the newest.
    ended: VecDeque<Book>,
    /// Processes that ended while their last samples may be in another ring.
    ending: Vec<(i32, u64)>,
    last_id: BookId,
    page: u64,
    /// Where the text of the running kernel begins; `None` where we may not know.
    pub kernel_base: Option<u64>,
    /// Samples that were taken.
    pub faults: u64,
    /// Samples that found no room in a ring.
    pub lost: u64,
    /// Samples of processes that there was no room for.
    pub unplaced: u64,
}

impl Ledger {
    /// An empty one, with the memory that it needs for pages and stacks.
    #[must_use]
    pub fn new() -> Self {
        Ledger {
            library: Library::default(),
            samples: Samples::new(),
            stacks: Stacks::new(),
            books: HashMap::new(),
            ended: VecDeque::with_capacity(MOST_ENDED + 1),
            ending: Vec::new(),
            last_id: 0,
            page: page_size(),
            kernel_base: None,
            faults: 0,
            lost: 0,
            unplaced: 0,
        }
    }

    /// Puts down a record.
    pub fn take(&mut self, record: &Record<'_>) {
        match *record {
            Record::Fault(fault) => self.fault(&fault),
            Record::Lost(number) => self.lost = self.lost.saturating_add(number),
            Record::Exec { pid, time } => {
                if let Some(book) = self.books.get_mut(&pid) {
                    // Its pages are no more.
                    self.samples.forget_before(book.id, time);
                    (book.began, book.is_forked, book.view) = (time, false, None);
                    book.of_mapped = Reuse::default();
                    book.biases.clear();
                    book.unclear.clear();
                    book.code.retain(|(mapped, _)| *mapped >= time);
                    book.read_name();
                }
            }
            Record::Fork { pid, parent, time } => self.fork(pid, parent, time),
            Record::Exit { pid, time } => self.ending.push((pid, time)),
            Record::Mapped { pid, time, code } => self.mapped(pid, time, code),
            Record::Other => {}
        }
    }

    /// To be called when all rings were empty: what ended has no more samples now.
    pub fn settle(&mut self) {
        for (pid, time) in std::mem::take(&mut self.ending) {
            if self.books.get(&pid).is_some_and(|book| book.began <= time) {
                self.end(pid);
            }
        }
        self.clear_up(false);
        if self.stacks.is_nearly_full() {
            self.renumber();
        }
    }

    /// Finds out what pages are of that were in no mapping that was known; `now` even where
    /// mappings were read just before.
    pub fn clear_up(&mut self, now: bool) {
        let Ledger { books, library, samples, .. } = self;
        for book in books.values_mut().filter(|book| !book.unclear.is_empty()) {
            let id = book.id;
            book.clear_up(library, now, |page, kind| samples.clear_up(id, page, kind));
        }
    }

    fn fault(&mut self, fault: &Fault<'_>) {
        self.faults += 1;
        if fault.pid <= 0 || !self.make_book(fault.pid, 0) {
            self.unplaced += 1;
            return;
        }
        let Ledger { books, library, stacks, samples, kernel_base, .. } = self;
        let Some(book) = books.get_mut(&fault.pid) else { return };
        // Of the program before, from another ring.
        if fault.time < book.began {
            return;
        }
        book.first_fault.get_or_insert(fault.time);
        let is_new_view = book.view.is_none();
        let unwound = book.unwind(fault, library);
        let mut frames = kernel_frames(fault, *kernel_base);
        frames.extend(unwound.frames);
        let stack = if frames.is_empty() { NO_STACK } else { stacks.add(&frames, unwound.is_cut) };
        let sample = Sample { time: fault.time, stack, kind: unwound.kind };
        let is_again = samples.put(book.id, fault.address / self.page, sample);
        book.faults += 1;
        if unwound.may_be_mapped {
            book.of_mapped.faults += 1;
            book.of_mapped.again += u64::from(is_again);
        }
        book.used = self.faults;
        if is_new_view {
            self.close_views();
        }
    }

    /// It may be gone before anybody reads its mappings: what code it has is put down.
    fn mapped(&mut self, pid: i32, time: u64, code: Option<Code<'_>>) {
        let is_room = self.books.len() < MOST_TOLD;
        let Some(code) = code.filter(|_| pid > 0 && is_room && self.make_book(pid, 0)) else {
            if let Some(view) = self.books.get_mut(&pid).and_then(|book| book.view.as_mut()) {
                view.is_stale = true;
            }
            return;
        };
        if let Some(book) = self.books.get_mut(&pid).filter(|book| time >= book.began) {
            book.map(time, &code);
        }
    }

    /// Of those that can be unwound the one that was used longest ago can be no more.
    fn close_views(&mut self) {
        let open = || self.books.values().filter(|book| book.view.is_some());
        if open().count() > MOST_VIEWS
            && let Some(pid) = open().min_by_key(|book| book.used).map(|book| book.pid)
            && let Some(book) = self.books.get_mut(&pid)
        {
            book.view = None;
        }
    }

    /// Whether there is a book of a process now.
    fn make_book(&mut self, pid: i32, began: u64) -> bool {
        if self.books.contains_key(&pid) {
            return true;
        }
        if self.books.len() >= MOST_BOOKS {
            // Ends can be lost.
            let gone: Vec<i32> = self.books.keys().copied().filter(|&pid| !is_there(pid)).collect();
            gone.into_iter().for_each(|pid| self.end(pid));
        }
        if self.books.len() >= MOST_BOOKS {
            return false;
        }
        let id = self.free_id();
        self.books.insert(pid, Book::new(id, pid, began));
        true
    }

    /// There are more numbers than books.
    fn free_id(&mut self) -> BookId {
        let used: HashSet<BookId> = self.books.values().chain(&self.ended).map(|book| book.id).collect();
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            if !used.contains(&self.last_id) {
                return self.last_id;
            }
        }
    }

    fn fork(&mut self, pid: i32, parent: i32, time: u64) {
        // One that had the number before, and whose end was lost.
        if self.books.get(&pid).is_some_and(|book| book.first_seen() < time) {
            self.end(pid);
        }
        // Whose parent was never seen to touch anything has nothing from it.
        if !self.books.contains_key(&parent) || !self.make_book(pid, time) {
            return;
        }
        let comm = self.books[&parent].comm.clone();
        let code = if self.books.len() < MOST_TOLD { self.books[&parent].code.clone() } else { Vec::new() };
        if let Some(book) = self.books.get_mut(&pid) {
            book.is_forked = true;
            if book.code.is_empty() {
                book.code = code;
            }
            if book.comm.is_empty() {
                book.comm = comm;
            }
        }
    }

    fn end(&mut self, pid: i32) {
        let Some(mut book) = self.books.remove(&pid) else { return };
        if book.faults == 0 {
            return;
        }
        (book.view, book.code) = (None, Vec::new());
        self.ended.push_back(book);
        if self.ended.len() > MOST_ENDED
            && let Some(oldest) = self.ended.pop_front()
        {
            self.samples.forget_before(oldest.id, u64::MAX);
        }
    }

    fn renumber(&mut self) {
        let used: HashSet<StackId> = self.samples.stacks_mut().map(|stack| *stack).collect();
        let now = self.stacks.keep(|id| used.contains(&id));
        self.samples.stacks_mut().for_each(|stack| *stack = now[*stack as usize]);
    }

    /// The book of a process, where it lives as far as is known.
    pub fn living(&mut self, pid: i32) -> Option<(&mut Book, &mut Library, &Stacks)> {
        let book = self.books.get_mut(&pid)?;
        Some((book, &mut self.library, &self.stacks))
    }

    /// All who live as far as is known.
    pub fn all_living(&self) -> impl Iterator<Item = &Book> {
        self.books.values()
    }

    /// Bytes of the tables, which are made at the start.
    #[must_use]
    pub fn table_bytes() -> usize {
        Samples::bytes() + Stacks::bytes()
    }

    /// The book of a process, alive or not.
    #[must_use]
    pub fn of(&self, pid: i32) -> Option<&Book> {
        self.books.get(&pid).or_else(|| self.ended.iter().rev().find(|book| book.pid == pid))
    }

    /// Those who ended, the newest first.
    pub fn ended(&self) -> impl Iterator<Item = &Book> {
        self.ended.iter().rev()
    }

    /// Whether it is or was one of them, as far as that is remembered.
    #[must_use]
    pub fn has_seen(&self, pid: i32) -> bool {
        self.of(pid).is_some() || self.ended().any(|book| book.pid == pid)
    }

    /// Pages of all who live, by PID and book, in order.
    pub fn pages(&self) -> Vec<(i32, BookId, Vec<Page>)> {
        let mut all = self.samples.all();
        let living = self.books.values();
        let with_pages = living.filter_map(|book| Some((book, all.remove(&book.id)?)));
        let only_times = |pages: Vec<(u64, Sample)>| -> Vec<Page> {
            pages.into_iter().map(|(number, sample)| Page { number, time: sample.time }).collect()
        };
        with_pages.map(|(book, pages)| (book.pid, book.id, only_times(pages))).collect()
    }

    /// Forgets a page, unless it was touched again since.
    pub fn forget(&mut self, book: BookId, page: Page) {
        self.samples.forget(book, page.number, page.time);
    }
}

/// Where the kernel was when it touched the page itself, innermost first: as offsets from
/// where its text begins, since where that is must not be told. Without it there is one frame
/// for all, at 0.
fn kernel_frames(fault: &Fault<'_>, base: Option<u64>) -> Vec<Frame> {
    let frame = |svma| Frame { at: Some(ModuleAddress { module: KERNEL, svma }), address: 0 };
    match base {
        Some(base) => fault.kernel.look_ups().map(|address| frame(address.wrapping_sub(base))).collect(),
        None => fault.kernel.look_ups().next().map(|_| frame(0)).into_iter().collect(),
    }
}

fn is_there(pid: i32) -> bool {
    std::fs::exists(format!("/proc/{pid}")).unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::witness::growth::record::Chain;
    use crate::witness::growth::samples::Kind;
    use perf_event_open_sys::bindings::PERF_CONTEXT_KERNEL;

    /// PIDs that no process has: nothing is read of them.
    const A: i32 = i32::MAX;
    const B: i32 = i32::MAX - 1;

    fn fault(pid: i32, time: u64, page: u64) -> Record<'static> {
        let (address, kernel) = (page * page_size(), Chain::default());
        Record::Fault(Fault { pid, time, address, kernel, registers: None, stack: &[] })
    }

    fn pages(ledger: &Ledger, pid: i32) -> Vec<u64> {
        ledger.of(pid).map_or(vec![], |book| ledger.samples.of(book.id).into_iter().map(|(page, _)| page).collect())
    }

    #[test]
    fn pages_are_those_of_the_program_that_runs() {
        let mut ledger = Ledger::new();
        ledger.take(&fault(A, 10, 1));
        ledger.take(&fault(A, 30, 2));
        ledger.take(&Record::Exec { pid: A, time: 20 });
        // From another CPU's ring.
        ledger.take(&fault(A, 15, 3));
        ledger.take(&fault(A, 40, 4));
        assert_eq!(pages(&ledger, A), [2, 4]);
        let sample = ledger.samples.of(ledger.of(A).unwrap().id)[0].1;
        assert_eq!((sample.stack, sample.kind), (NO_STACK, Kind::Heap));
    }

    #[test]
    fn where_the_kernel_was_is_told_from_where_its_text_begins() {
        const BASE: u64 = 0xffff_ffff_9e00_0000;
        let words = [PERF_CONTEXT_KERNEL, BASE + 0x100, BASE + 0x201].map(u64::to_ne_bytes).concat();
        let offsets = |kernel_base: Option<u64>, kernel: Chain<'_>| {
            let mut ledger = Ledger { kernel_base, ..Ledger::new() };
            ledger.take(&Record::Fault(Fault { pid: A, time: 10, address: 4096, kernel, registers: None, stack: &[] }));
            let stack = ledger.samples.of(ledger.of(A).unwrap().id)[0].1.stack;
            let (frames, is_cut) = ledger.stacks.get(stack);
            assert!(is_cut);
            let places = frames.map(|frame| frame.at.unwrap());
            places.inspect(|at| assert_eq!(at.module, KERNEL)).map(|at| at.svma).collect::<Vec<_>>()
        };
        assert_eq!(offsets(Some(BASE), Chain(&words)), [0x100, 0x200]);
        // Where that is hidden it is known that it was there.
        assert_eq!(offsets(None, Chain(&words)), [0]);
        assert_eq!(offsets(Some(BASE), Chain::default()), [0; 0]);
    }

    #[test]
    fn pages_that_are_touched_again_are_counted_until_a_program_takes_its_place() {
        let mut ledger = Ledger::new();
        [(10, 1), (20, 1), (30, 2), (40, 1)].into_iter().for_each(|(time, page)| ledger.take(&fault(A, time, page)));
        assert_eq!(ledger.of(A).unwrap().of_mapped, Reuse { faults: 4, again: 2 });
        ledger.take(&Record::Exec { pid: A, time: 50 });
        ledger.take(&fault(A, 60, 1));
        assert_eq!(ledger.of(A).unwrap().of_mapped, Reuse { faults: 1, again: 0 });
    }

    #[test]
    fn who_ended_is_remembered_with_what_came_late() {
        let mut ledger = Ledger::new();
        ledger.take(&fault(A, 10, 1));
        ledger.take(&Record::Exit { pid: A, time: 30 });
        ledger.take(&fault(A, 20, 2));
        ledger.settle();
        assert!(ledger.living(A).is_none() && pages(&ledger, A) == [1, 2]);
        // Another with its number.
        ledger.take(&fault(A, 50, 7));
        assert_eq!(pages(&ledger, A), [7]);
        assert_eq!(ledger.ended().count(), 1);
    }

    #[test]
    fn of_those_who_ended_the_last_are_kept() {
        let mut ledger = Ledger::new();
        for pid in 0..100 {
            ledger.take(&fault(A - pid, 10, 5));
            ledger.take(&Record::Exit { pid: A - pid, time: 20 });
            ledger.settle();
        }
        assert_eq!(ledger.ended().count(), MOST_ENDED);
        assert_eq!(ledger.ended().next().unwrap().pid, A - 99);
        assert_eq!(ledger.samples.len(), MOST_ENDED);
    }

    #[test]
    fn forks_are_known_as_such() {
        let mut ledger = Ledger::new();
        ledger.take(&Record::Fork { pid: B, parent: A, time: 5 });
        assert!(ledger.of(B).is_none());
        ledger.take(&fault(A, 10, 1));
        ledger.take(&Record::Fork { pid: B, parent: A, time: 15 });
        assert!(ledger.of(B).unwrap().is_forked && !ledger.of(A).unwrap().is_forked);
        ledger.take(&fault(B, 20, 1));
        ledger.take(&Record::Exec { pid: B, time: 30 });
        assert!(!ledger.of(B).unwrap().is_forked && pages(&ledger, B).is_empty());
        assert_eq!(pages(&ledger, A), [1]);
    }

    #[test]
    fn code_is_that_of_the_program_that_runs() {
        let mut ledger = Ledger::new();
        let map = |time, inode| {
            let code = Code { start: inode << 20, bytes: 4096, offset: 0, device: (254, 1), inode, path: b"/no/such" };
            Record::Mapped { pid: A, time, code: Some(code) }
        };
        let told = |ledger: &Ledger| -> Vec<u64> {
            ledger.of(A).map_or(vec![], |book| book.code.iter().map(|(_, map)| map.inode).collect())
        };
        ledger.take(&map(10, 1));
        ledger.take(&map(30, 2));
        ledger.take(&Record::Exec { pid: A, time: 20 });
        // From another CPU's ring.
        ledger.take(&map(15, 3));
        ledger.take(&map(40, 4));
        assert_eq!(told(&ledger), [2, 4]);
        (0..10_000).for_each(|inode| ledger.take(&map(50, 100 + inode)));
        assert_eq!(told(&ledger).len(), 64);
        // Whoever touched nothing is not remembered.
        ledger.take(&Record::Exit { pid: A, time: 60 });
        ledger.settle();
        assert!(ledger.of(A).is_none());
    }

    #[test]
    fn a_page_that_was_touched_again_is_not_forgotten() {
        let mut ledger = Ledger::new();
        ledger.take(&fault(A, 10, 1));
        ledger.take(&fault(A, 10, 2));
        let seen = ledger.pages();
        ledger.take(&fault(A, 20, 2));
        let (_, book, pages_then) = &seen[0];
        pages_then.iter().for_each(|page| ledger.forget(*book, *page));
        assert_eq!(pages(&ledger, A), [2]);
    }

    #[test]
    fn processes_beyond_room_are_counted() {
        let mut ledger = Ledger::new();
        let me = std::process::id() as i32;
        ledger.take(&fault(me, 1, 1));
        for index in 0..MOST_BOOKS as i32 + 10 {
            ledger.take(&fault(A - index, 10, 1));
        }
        // Those that are gone made room.
        assert_eq!(ledger.unplaced, 0);
        assert!(ledger.books.len() <= MOST_BOOKS && ledger.books.contains_key(&me));
        ledger.take(&fault(0, 1, 1));
        assert_eq!((ledger.unplaced, ledger.faults), (1, MOST_BOOKS as u64 + 12));
    }
}
