//! Dealing out slabs.

use crate::layout::{MAGIC, MAX_SLABS, SLAB_BYTES, kind, region};
use crate::words::Words;
use core::fmt;

/// The whole shared memory, as guardian and writers see it.
#[derive(Debug, Clone, Copy)]
pub struct Region<'a> {
    words: Words<'a>,
}

/// How far a region is used, in slabs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionState {
    /// There are.
    pub slabs: usize,
    /// May be used.
    pub ready: usize,
    /// Were dealt out from the untouched part.
    pub next: usize,
    /// Times a process got none.
    pub refused: u64,
}

/// Settings that writers read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Mean bytes between samples; at least 1.
    pub period: u64,
    /// Least size of a recorded mapping.
    pub mapping: u64,
    /// Seed for tests, 0 for a random one.
    pub seed: u64,
}

/// The memory is not a region of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotARegion;

/// What a slab was when it was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner(u64);

impl Owner {
    /// One of [`kind`].
    #[must_use]
    pub fn kind(self) -> u64 {
        self.0 & 0xf
    }

    /// The slab of the home that it belongs to.
    #[must_use]
    pub fn home(self) -> usize {
        (self.0 >> 32) as usize
    }
}

impl fmt::Display for NotARegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the memory is no heap table of this version")
    }
}

impl core::error::Error for NotARegion {}

impl<'a> Region<'a> {
    /// Makes a region of zeroed memory. Only the header's slab is ready.
    pub fn format(words: Words<'a>, settings: Settings) -> Result<Self, NotARegion> {
        let slabs = words.bytes() / SLAB_BYTES;
        if !(2..=MAX_SLABS).contains(&slabs) {
            return Err(NotARegion);
        }
        for (field, value) in [
            (region::SLABS, slabs as u64),
            (region::READY, 1),
            (region::NEXT, 1),
            (region::PERIOD, settings.period.max(1)),
            (region::MAPPING, settings.mapping),
            (region::SEED, settings.seed),
            // Last, so that nobody uses what is not finished.
            (region::MAGIC, MAGIC),
        ] {
            words.store(field, value);
        }
        Ok(Region { words })
    }

    /// A region that the guardian has made.
    pub fn open(words: Words<'a>) -> Result<Self, NotARegion> {
        let slabs = words.load(region::SLABS);
        let fits = slabs >= 2 && slabs <= MAX_SLABS as u64 && slabs <= (words.bytes() / SLAB_BYTES) as u64;
        if words.load(region::MAGIC) == MAGIC && fits { Ok(Region { words }) } else { Err(NotARegion) }
    }

    /// Its memory.
    #[must_use]
    pub fn words(self) -> Words<'a> {
        self.words
    }

    /// What writers shall do.
    #[must_use]
    pub fn settings(self) -> Settings {
        Settings {
            period: self.words.load(region::PERIOD).max(1),
            mapping: self.words.load(region::MAPPING),
            seed: self.words.load(region::SEED),
        }
    }

    /// How far it is used.
    #[must_use]
    pub fn state(self) -> RegionState {
        // What others wrote is not believed beyond what there is.
        let slabs = (self.words.bytes() / SLAB_BYTES).min(MAX_SLABS);
        let at_most = |field| usize::try_from(self.words.load(field)).unwrap_or(slabs).min(slabs);
        RegionState {
            slabs,
            ready: at_most(region::READY),
            next: at_most(region::NEXT),
            refused: self.words.load(region::REFUSED),
        }
    }

    /// Tells writers that slabs below `ready` have been touched.
    pub fn set_ready(self, ready: usize) {
        self.words.store(region::READY, ready as u64);
    }

    /// Whether no guardian takes back what the dead leave.
    #[must_use]
    pub fn is_unguarded(self) -> bool {
        self.words.load(region::UNGUARDED) != 0
    }

    /// What a slab is and whose: kind and home slab.
    #[must_use]
    pub fn owner(self, slab: usize) -> (u64, usize) {
        let owner = self.owner_word(slab);
        (owner.kind(), owner.home())
    }

    /// The same, comparable with what it will be later.
    #[must_use]
    pub fn owner_word(self, slab: usize) -> Owner {
        Owner(if slab < self.state().slabs { self.words.load(region::OWNERS + slab * 8) } else { kind::FREE })
    }

    /// Whether a slab can be had at once, without one more that exists.
    #[must_use]
    pub fn has_given_back(self) -> bool {
        self.words.load(region::FREE) & 0xffff_ffff != 0
    }

    /// Takes a slab, all zero. `home` is the slab of the process's home, 0 for a
    /// new home.
    #[must_use]
    pub fn take(self, what: u64, home: usize) -> Option<usize> {
        let slab = self.take_given_back().or_else(|| self.take_new())?;
        let home = if home == 0 { slab } else { home };
        let takes = self.words.add(region::TAKES, 1) & 0xfff_ffff;
        self.words.store(region::OWNERS + slab * 8, what | takes << 4 | (home as u64) << 32);
        Some(slab)
    }

    fn take_given_back(self) -> Option<usize> {
        loop {
            let head = self.words.load(region::FREE);
            let slab = (head & 0xffff_ffff) as usize;
            if slab == 0 || slab >= self.state().slabs {
                return None;
            }
            let next = self.words.load(slab * SLAB_BYTES) & 0xffff_ffff;
            // The count of changes keeps a slab that came back meanwhile from
            // being taken for the one we saw.
            let changes = (head >> 32).wrapping_add(1) << 32;
            if self.words.swap_if(region::FREE, head, changes | next) {
                self.words.store(slab * SLAB_BYTES, 0);
                return Some(slab);
            }
        }
    }

    fn take_new(self) -> Option<usize> {
        loop {
            let next = self.words.load(region::NEXT);
            let state = self.state();
            if next >= state.ready as u64 {
                self.words.add(region::REFUSED, 1);
                return None;
            }
            if self.words.swap_if(region::NEXT, next, next + 1) {
                return Some(next as usize);
            }
        }
    }

    /// Gives a slab back; nobody may use it any more.
    pub fn give_back(self, slab: usize) {
        self.give_back_if(slab, self.owner_word(slab));
    }

    /// Gives a slab back if nobody else has since `owner` was seen.
    pub fn give_back_if(self, slab: usize, owner: Owner) {
        if slab == 0 || slab >= self.state().slabs || owner.kind() == kind::FREE {
            return;
        }
        let at = slab * SLAB_BYTES;
        // Killed from here on, one slab is nobody's.
        if !self.words.swap_if(region::OWNERS + slab * 8, owner.0, kind::FREE) {
            return;
        }
        for offset in (at..at + SLAB_BYTES).step_by(8) {
            if self.words.load(offset) != 0 {
                self.words.store(offset, 0);
            }
        }
        loop {
            let head = self.words.load(region::FREE);
            self.words.store(at, head & 0xffff_ffff);
            let changes = (head >> 32).wrapping_add(1) << 32;
            if self.words.swap_if(region::FREE, head, changes | slab as u64) {
                return;
            }
        }
    }
}
