//! Which stack touched a page last, of sampled pages, in memory that never grows.

use super::stacks::StackId;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};

/// Pages that are remembered: at a period of 64, 14 GiB of small ones.
const MOST: usize = 56 << 10;
/// A hash table in which entries come and go takes no more memory than at first if it is
/// never more than half full (hashbrown, `reserve_rehash`).
const CAPACITY: usize = 2 * MOST;

/// A process for as long as it runs one program.
pub type BookId = u16;

/// What kind of memory a page is of, which says how far its stack is to be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Mapped by the program itself: who touches it first is who wanted it.
    Direct,
    /// Of tmpfs, a memory file or the like.
    Shared,
    /// The stack of a thread.
    Stack,
    /// A malloc's, as far as can be seen: others may have used and freed it before.
    Heap,
}

impl Kind {
    /// Whether the first touch of such a page tells who owns it.
    #[must_use]
    pub fn is_reliable(self) -> bool {
        self != Kind::Heap
    }
}

/// What is known of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Of the fault, in nanoseconds of the kernel's clock.
    pub time: u64,
    /// Who touched it.
    pub stack: StackId,
    /// What it seemed to be then.
    pub kind: Kind,
}

/// The pages.
#[derive(Debug)]
pub struct Samples {
    by_page: HashMap<u64, Sample>,
    /// Of pages one in two to the power of this is kept.
    shift: u32,
}

/// A page number has 45 bits at most, with five levels of page tables.
const BOOK_SHIFT: u32 = 48;

fn key(book: BookId, page: u64) -> u64 {
    u64::from(book) << BOOK_SHIFT | page & ((1 << BOOK_SHIFT) - 1)
}

fn book_of(key: u64) -> BookId {
    (key >> BOOK_SHIFT) as BookId
}

impl Samples {
    /// With all the memory that it ever takes.
    pub fn new() -> Self {
        Samples { by_page: HashMap::with_capacity(CAPACITY), shift: 0 }
    }

    /// Bytes that it takes.
    #[must_use]
    pub fn bytes() -> usize {
        (CAPACITY * 8 / 7).next_power_of_two() * (size_of::<(u64, Sample)>() + 1)
    }

    /// Of sampled pages one in so many is kept.
    #[must_use]
    pub fn one_in(&self) -> u64 {
        1 << self.shift
    }

    /// Puts down who touched a page, unless it is one of those that are not kept; whether
    /// it had been touched before. Where there is no room, half of all pages go: of each
    /// mapping the same share.
    pub fn put(&mut self, book: BookId, page: u64, sample: Sample) -> bool {
        let key = key(book, page);
        if !is_kept(key, self.shift) {
            return false;
        }
        // Records of several CPUs may come in another order.
        if let Some(known) = self.by_page.get_mut(&key) {
            if known.time <= sample.time {
                *known = sample;
            }
            return true;
        }
        while self.by_page.len() >= MOST {
            self.shift += 1;
            let shift = self.shift;
            self.by_page.retain(|&key, _| is_kept(key, shift));
        }
        if is_kept(key, self.shift) {
            self.by_page.insert(key, sample);
        }
        false
    }

    /// Pages of a book in order.
    pub fn of(&self, book: BookId) -> Vec<(u64, Sample)> {
        let pages = self.by_page.iter().filter(|(key, _)| book_of(**key) == book);
        let mut pages: Vec<(u64, Sample)> =
            pages.map(|(key, sample)| (key & ((1 << BOOK_SHIFT) - 1), *sample)).collect();
        pages.sort_unstable_by_key(|(page, _)| *page);
        pages
    }

    /// Pages of all books, in order, by one look at all.
    pub fn all(&self) -> HashMap<BookId, Vec<(u64, Sample)>> {
        let mut all: HashMap<BookId, Vec<(u64, Sample)>> = HashMap::new();
        for (&key, sample) in &self.by_page {
            all.entry(book_of(key)).or_default().push((key & ((1 << BOOK_SHIFT) - 1), *sample));
        }
        all.values_mut().for_each(|pages| pages.sort_unstable_by_key(|(page, _)| *page));
        all
    }

    /// Says what a page is of, now that it is known.
    pub fn clear_up(&mut self, book: BookId, page: u64, kind: Kind) {
        self.by_page.get_mut(&key(book, page)).into_iter().for_each(|sample| sample.kind = kind);
    }

    /// Forgets a page, unless it was touched since `time`.
    pub fn forget(&mut self, book: BookId, page: u64, time: u64) {
        let key = key(book, page);
        if self.by_page.get(&key).is_some_and(|sample| sample.time <= time) {
            self.by_page.remove(&key);
        }
    }

    /// Forgets all of a book that were touched before.
    pub fn forget_before(&mut self, book: BookId, time: u64) {
        self.by_page.retain(|&key, sample| book_of(key) != book || sample.time >= time);
    }

    /// All that stacks are known of, to be renumbered.
    pub fn stacks_mut(&mut self) -> impl Iterator<Item = &mut StackId> {
        self.by_page.values_mut().map(|sample| &mut sample.stack)
    }

    /// Pages that are remembered.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.by_page.len()
    }
}

/// Chosen by what a page is, not when it was touched: a page that is touched again
/// takes its own place.
fn is_kept(key: u64, shift: u32) -> bool {
    let mut hasher = DefaultHasher::new();
    hasher.write_u64(key);
    hasher.finish().trailing_zeros() >= shift
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(time: u64, stack: StackId) -> Sample {
        Sample { time, stack, kind: Kind::Heap }
    }

    #[test]
    fn the_last_touch_counts() {
        let mut samples = Samples::new();
        assert!(!samples.put(1, 7, sample(10, 1)));
        assert!(samples.put(1, 7, sample(20, 2)));
        assert!(samples.put(1, 7, sample(15, 3)));
        assert!(!samples.put(2, 7, sample(1, 4)));
        samples.put(1, 6, sample(1, 5));
        let of = |book| samples.of(book).into_iter().map(|(page, s)| (page, s.stack)).collect::<Vec<_>>();
        assert_eq!((of(1), of(2)), (vec![(6, 5), (7, 2)], vec![(7, 4)]));
    }

    #[test]
    fn a_program_that_took_anothers_place_has_its_own_pages() {
        let mut samples = Samples::new();
        (0..10).for_each(|page| assert!(!samples.put(1, page, sample(page, 1))));
        samples.put(2, 1, sample(1, 1));
        samples.forget_before(1, 7);
        assert_eq!(samples.of(1).iter().map(|(page, _)| *page).collect::<Vec<_>>(), [7, 8, 9]);
        samples.forget(1, 8, 8);
        samples.forget(1, 9, 8);
        assert_eq!((samples.of(1).len(), samples.of(2).len()), (2, 1));
    }

    #[test]
    fn of_too_many_pages_each_book_keeps_its_share() {
        let mut samples = Samples::new();
        let capacity = samples.by_page.capacity();
        let pages = 4 * MOST as u64;
        for page in 0..pages {
            samples.put(if page % 4 == 0 { 1 } else { 2 }, page, sample(page, 1));
        }
        assert!(samples.len() <= MOST && samples.one_in() >= 4, "{} {}", samples.len(), samples.one_in());
        // What is erased counts as used until it is cleaned up, so it may seem less.
        assert!(samples.by_page.capacity() <= capacity, "{}", samples.by_page.capacity());
        let (first, second) = (samples.of(1).len() as f64, samples.of(2).len() as f64);
        assert!((second / first - 3.0).abs() < 0.3, "{first} {second}");
        let estimate = (first + second) * samples.one_in() as f64 / pages as f64;
        assert!((estimate - 1.0).abs() < 0.05, "{estimate}");
        let all = samples.all();
        assert!(all.len() == 2 && all[&1] == samples.of(1) && all[&2] == samples.of(2));
    }

    #[test]
    fn pages_that_come_and_go_take_no_more_memory() {
        let mut samples = Samples::new();
        let capacity = samples.by_page.capacity();
        let full = MOST as u64 - 1;
        for page in 0..full + 500_000 {
            samples.put(1, page, sample(page, 1));
            if page >= full {
                samples.forget(1, page - full, page);
            }
        }
        assert_eq!((samples.len(), samples.one_in()), (MOST - 1, 1));
        assert!(samples.by_page.capacity() <= capacity, "{}", samples.by_page.capacity());
    }
}
