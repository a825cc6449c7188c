//! What a process does to its own part of the table.
//!
//! Any thread, at any time, also in a signal handler; a thread that is frozen or
//! killed half-way leaves at most one entry unused.

use crate::MAX_FRAMES;
use crate::layout::{MAX_MORE, SAMPLES_PER_SLAB, SLAB_BYTES, home, kind, region, sample, stack};
use crate::region::Region;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Entries in which a key may be, from its place by hash on.
const WINDOW: usize = 8;

/// A process's part.
#[derive(Debug, Clone, Copy)]
pub struct Writer<'a> {
    region: Region<'a>,
    /// Offset of the home.
    home: usize,
}

/// A sampled allocation.
#[derive(Debug, Clone, Copy)]
pub struct Allocation<'s> {
    /// Its address.
    pub key: u64,
    /// Bytes it can hold.
    pub usable: u64,
    /// Bytes asked for.
    pub asked: u64,
    /// Probability with which it was sampled.
    pub probability: f64,
    /// Whether it is a mapping.
    pub mapping: bool,
    /// The words of its frames, innermost first ([`crate::frames`]).
    pub frames: &'s [u64],
    /// Whether frames are missing at the outer end.
    pub cut: bool,
}

/// An entry as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Address.
    pub key: u64,
    /// Bytes it can hold.
    pub usable: u64,
    /// Bytes asked for.
    pub asked: u64,
    /// Stack and flags.
    pub stack: u64,
}

impl Entry {
    /// Whether it is a mapping.
    #[must_use]
    pub fn is_mapping(self) -> bool {
        self.stack & sample::FLAG_MAPPING != 0
    }
}

impl<'a> Writer<'a> {
    /// A new home, of a process that is there or of one that will be. With `parent`, the samples that were live there are live here
    /// too: after a fork its memory is ours.
    /// `now`: milliseconds of CLOCK_MONOTONIC.
    #[must_use]
    pub fn claim(
        region: Region<'a>,
        (pid, pid_namespace): (Option<u64>, u64),
        now: u64,
        parent: Option<Writer<'a>>,
    ) -> Option<Self> {
        let slab = region.take(kind::HOME, 0)?;
        let words = region.words();
        let writer = Writer { region, home: slab * SLAB_BYTES };
        let sequence = words.add(region::HOMES, 1);
        for (field, value) in [
            (home::PID, pid.unwrap_or(home::UNBORN | sequence)),
            (home::PID_NAMESPACE, pid_namespace),
            (home::SEQUENCE, sequence),
            (home::PARENT, parent.map_or(0, |p| p.home as u64)),
            (home::BASE, words.base()),
            (home::STACK_NEXT, (writer.home + home::STACKS) as u64),
            // Last: a sweep asks only about a home that has it.
            (home::MADE, now.max(1)),
        ] {
            words.store(writer.home + field, value);
        }
        if let Some(parent) = parent {
            parent.for_each(|entry| {
                writer.put(Entry { stack: entry.stack | sample::FLAG_INHERITED, ..entry });
            });
        }
        words.store(writer.home + home::STATE, home::STATE_LIVE);
        Some(writer)
    }

    /// Says whose it is, where that was not known when it was claimed; false when
    /// it has been taken back meanwhile.
    #[must_use]
    pub fn set_pid(self, pid: u64, pid_namespace: u64) -> bool {
        let words = self.region.words();
        // The namespace of whoever forked us stands there until then: a sweep asks
        // about no other.
        let before = words.load(self.home + home::PID_NAMESPACE);
        if before != pid_namespace {
            words.store(self.home + home::PID_NAMESPACE, 0);
        }
        let unborn = home::UNBORN | words.load(self.home + home::SEQUENCE);
        if !words.swap_if(self.home + home::PID, unborn, pid) {
            return false;
        }
        words.store(self.home + home::PID_NAMESPACE, pid_namespace);
        true
    }

    /// The filter's counter for an address: 0 means that it has no sample.
    #[must_use]
    pub fn filter(self, key: u64) -> Option<&'a AtomicU8> {
        self.region.words().byte(self.home + home::FILTER + filter_place(key))
    }

    /// Address of the first counter, for a look that is one load.
    #[must_use]
    pub fn filter_base(self) -> Option<&'a AtomicU8> {
        self.region.words().byte(self.home + home::FILTER)
    }

    /// A pair of words that the unwinder keeps for a program counter.
    #[must_use]
    pub fn plan(self, place: usize) -> Option<(&'a AtomicU64, &'a AtomicU64)> {
        let at = self.home + home::PLANS + (place & (home::PLAN_COUNT - 1)) * 16;
        Some((self.region.words().word(at)?, self.region.words().word(at + 8)?))
    }

    /// Forgets all of them: code went from where it was.
    pub fn forget_plans(self) {
        for (key, _) in (0..home::PLAN_COUNT).filter_map(|place| self.plan(place)) {
            key.store(0, Ordering::Release);
        }
    }

    /// Records a sampled allocation.
    pub fn insert(self, allocation: &Allocation<'_>) {
        let words = self.region.words();
        words.add(self.home + home::TAKEN, 1);
        let weight = 1.0 / allocation.probability.clamp(f64::MIN_POSITIVE, 1.0);
        let bytes = allocation.usable as f64 * weight;
        let at = self.stack(allocation.frames, allocation.cut);
        if let Some(at) = at {
            let kib = bytes / 1024.0;
            words.add(at + stack::ALLOC_BYTES, bytes as u64);
            words.add(at + stack::ALLOC_OBJECTS, (weight * 1024.0) as u64);
            words.add(at + stack::ALLOC_SAMPLES, 1);
            words.add(at + stack::ALLOC_VARIANCE, (kib * kib * (1.0 - allocation.probability)) as u64);
            words.add(at + stack::ALLOC_OBJECTS_VARIANCE, (weight * weight * (1.0 - allocation.probability)) as u64);
        }
        let flag = if allocation.mapping { sample::FLAG_MAPPING } else { 0 };
        let entry = Entry {
            key: allocation.key,
            usable: allocation.usable,
            asked: allocation.asked,
            stack: at.unwrap_or(0) as u64 | flag,
        };
        if at.is_none() || !self.put(entry) {
            words.add(self.home + home::LOST_SAMPLES, 1);
            words.add(self.home + home::LOST_BYTES, bytes as u64);
        }
    }

    /// Puts an entry back that [`Writer::remove`] took.
    pub fn put(self, entry: Entry) -> bool {
        if entry.key <= sample::BUSY {
            return false;
        }
        let Some(filter) = self.filter(entry.key) else { return false };
        // Before the entry: whoever frees the block must find it. A counter that
        // is full stays so.
        let _ = filter.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |n| n.checked_add(1));
        loop {
            for (base, count) in self.tables() {
                for place in window(entry.key, count) {
                    let at = base + place * sample::BYTES;
                    if self.region.words().swap_if(at + sample::KEY, sample::EMPTY, sample::BUSY) {
                        self.region.words().store(at + sample::USABLE, entry.usable);
                        self.region.words().store(at + sample::ASKED, entry.asked);
                        self.region.words().store(at + sample::STACK, entry.stack);
                        // From here on it counts.
                        self.region.words().store(at + sample::KEY, entry.key);
                        return true;
                    }
                }
            }
            if !self.grow() {
                uncount(filter);
                return false;
            }
        }
    }

    /// Takes the entry of an address away, before the block is freed: after
    /// that another thread may get the same address.
    pub fn remove(self, key: u64) -> Option<Entry> {
        let words = self.region.words();
        for (base, count) in self.tables() {
            for place in window(key, count) {
                let at = base + place * sample::BYTES;
                if words.load(at + sample::KEY) != key {
                    continue;
                }
                let entry = self.entry(at, key);
                // A double free of the program must not remove twice.
                if words.swap_if(at + sample::KEY, key, sample::EMPTY) {
                    if let Some(filter) = self.filter(key) {
                        uncount(filter);
                    }
                    return Some(entry);
                }
            }
        }
        None
    }

    /// Looks at each live entry.
    pub fn for_each(self, mut look: impl FnMut(Entry)) {
        for (base, count) in self.tables() {
            for place in 0..count {
                let at = base + place * sample::BYTES;
                let key = self.region.words().load(at + sample::KEY);
                if key > sample::BUSY {
                    look(self.entry(at, key));
                }
            }
        }
    }

    fn entry(self, at: usize, key: u64) -> Entry {
        let word = |field| self.region.words().load(at + field);
        Entry { key, usable: word(sample::USABLE), asked: word(sample::ASKED), stack: word(sample::STACK) }
    }

    /// Offset and number of entries of each of its tables, the newest first.
    fn tables(self) -> impl Iterator<Item = (usize, usize)> {
        let words = self.region.words();
        let slabs = self.region.state().slabs;
        let more = (words.load(self.home + home::SAMPLE_SLABS) as usize).min(MAX_MORE);
        let home = self.home;
        (0..more)
            .rev()
            .map(move |i| words.load(home + home::MORE_SAMPLES + i * 8) as usize)
            .filter(move |slab| (1..slabs).contains(slab))
            .map(|slab| (slab * SLAB_BYTES, SAMPLES_PER_SLAB))
            .chain([(home + home::SAMPLES, home::SAMPLE_COUNT)])
    }

    /// One more table of samples. Two threads may both make one; both are used.
    fn grow(self) -> bool {
        let words = self.region.words();
        let count = words.load(self.home + home::SAMPLE_SLABS) as usize;
        if count >= MAX_MORE {
            return false;
        }
        let Some(slab) = self.region.take(kind::SAMPLES, self.home / SLAB_BYTES) else { return false };
        for place in count..MAX_MORE {
            if words.swap_if(self.home + home::MORE_SAMPLES + place * 8, 0, slab as u64) {
                // Whoever is later counts both.
                if let Some(word) = words.word(self.home + home::SAMPLE_SLABS) {
                    word.fetch_max(place as u64 + 1, Ordering::AcqRel);
                }
                return true;
            }
        }
        self.region.give_back(slab);
        false
    }

    /// Offset of the record of a stack, found or made.
    fn stack(self, frames: &[u64], cut: bool) -> Option<usize> {
        let frames = &frames[..frames.len().min(MAX_FRAMES)];
        let hash = frames.iter().fold(frames.len() as u64, |hash, frame| mix(hash ^ frame));
        let index = self.home + home::STACK_INDEX + (hash as usize & (home::STACK_INDEX_COUNT - 1)) * 8;
        let words = self.region.words();
        let length = frames.len() as u64 | if cut { stack::FLAG_CUT } else { 0 };
        let is_it = |at: usize| {
            words.load(at + stack::HASH) == hash
                && words.load(at + stack::LENGTH) == length
                && frames.iter().enumerate().all(|(i, frame)| words.load(at + stack::FRAMES + i * 8) == *frame)
        };
        let mut made = None;
        loop {
            let head = words.load(index);
            let mut at = head as usize;
            // A chain is as long as there are stacks, and it has no loop, since
            // we wrote it; still it ends.
            for _ in 0..1 << 16 {
                if at == 0 {
                    break;
                }
                if is_it(at) {
                    // What we made in vain stays unused.
                    return Some(at);
                }
                at = words.load(at + stack::NEXT) as usize;
            }
            let new = match made {
                Some(new) => new,
                None => *made.insert(self.stack_room(stack::FRAMES + frames.len() * 8)?),
            };
            words.store(new + stack::HASH, hash);
            words.store(new + stack::LENGTH, length);
            for (i, frame) in frames.iter().enumerate() {
                words.store(new + stack::FRAMES + i * 8, *frame);
            }
            words.store(new + stack::NEXT, head);
            if words.swap_if(index, head, new as u64) {
                return Some(new);
            }
        }
    }

    /// Room for a stack. The last word of a slab stays unused, so that an
    /// offset always tells its slab.
    fn stack_room(self, bytes: usize) -> Option<usize> {
        let words = self.region.words();
        let next = self.home + home::STACK_NEXT;
        loop {
            let at = words.load(next);
            // A home that was taken from us has none, and the header is nobody's.
            if (at as usize) < SLAB_BYTES {
                return None;
            }
            if at as usize % SLAB_BYTES + bytes <= SLAB_BYTES - 8 {
                if words.swap_if(next, at, at + bytes as u64) {
                    return Some(at as usize);
                }
                continue;
            }
            let slab = self.region.take(kind::STACKS, self.home / SLAB_BYTES)?;
            if !words.swap_if(next, at, (slab * SLAB_BYTES) as u64) {
                self.region.give_back(slab);
            }
        }
    }
}

fn uncount(filter: &AtomicU8) {
    // A full counter has forgotten how many there are.
    let _ = filter.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |n| (n > 0 && n < u8::MAX).then(|| n - 1));
}

/// Place of an address's counter.
#[must_use]
pub fn filter_place(key: u64) -> usize {
    (spread(key) >> (64 - home::FILTER_BYTES.trailing_zeros())) as usize
}

/// Places in which a key may be, in a table of `count` entries.
fn window(key: u64, count: usize) -> impl Iterator<Item = usize> {
    let first = ((u128::from(mix(key)) * count as u128) >> 64) as usize;
    (0..WINDOW).map(move |i| (first + i) % count)
}

/// Cheap: multiplies by 2^64 divided by the golden ratio (Knuth, TAOCP 3, 6.4).
fn spread(key: u64) -> u64 {
    (key >> 4).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Good: the finalizer of MurmurHash3.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let value = (value ^ (value >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    value ^ (value >> 33)
}
