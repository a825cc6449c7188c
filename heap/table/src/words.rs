//! Shared memory as atomic words.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Memory that other processes write at any time; every access is atomic and in
/// bounds, an offset outside reads as 0 and is not written.
#[derive(Debug, Clone, Copy)]
pub struct Words<'a> {
    words: &'a [AtomicU64],
}

impl<'a> Words<'a> {
    /// Over memory that is there already.
    #[must_use]
    pub fn new(words: &'a [AtomicU64]) -> Self {
        Words { words }
    }

    /// Over mapped memory.
    ///
    /// # Safety
    ///
    /// `base` must be aligned to 8 and `bytes` of it mapped, readable and
    /// writable, for `'a`, and be accessed by atomic operations only.
    #[must_use]
    pub unsafe fn at(base: *mut u8, bytes: usize) -> Self {
        // SAFETY: the caller's duty; AtomicU64 has the layout of a u64.
        Words { words: unsafe { core::slice::from_raw_parts(base.cast::<AtomicU64>(), bytes / 8) } }
    }

    /// Address of the first word.
    #[must_use]
    pub fn base(self) -> u64 {
        self.words.as_ptr() as u64
    }

    /// Size in bytes.
    #[must_use]
    pub fn bytes(self) -> usize {
        self.words.len() * 8
    }

    /// The word at a byte offset.
    #[must_use]
    pub fn word(self, offset: usize) -> Option<&'a AtomicU64> {
        if offset.is_multiple_of(8) { self.words.get(offset / 8) } else { None }
    }

    /// The byte at an offset.
    #[must_use]
    pub fn byte(self, offset: usize) -> Option<&'a AtomicU8> {
        let word = self.words.get(offset / 8)?;
        // SAFETY: the byte lies within the word; both are atomic, and mixed sizes
        // are what the shared memory of a filter is: no byte of it is ever part
        // of a word access of a writer.
        Some(unsafe { &*core::ptr::from_ref(word).cast::<AtomicU8>().add(offset % 8) })
    }

    /// Loads a word; acquires what was published with it.
    #[must_use]
    pub fn load(self, offset: usize) -> u64 {
        self.word(offset).map_or(0, |w| w.load(Ordering::Acquire))
    }

    /// Stores a word; publishes what was written before.
    pub fn store(self, offset: usize, value: u64) {
        if let Some(word) = self.word(offset) {
            word.store(value, Ordering::Release);
        }
    }

    /// Adds to a word; returns what it was.
    pub fn add(self, offset: usize, value: u64) -> u64 {
        self.word(offset).map_or(0, |w| w.fetch_add(value, Ordering::AcqRel))
    }

    /// Replaces a word if it is as expected.
    pub fn swap_if(self, offset: usize, expected: u64, value: u64) -> bool {
        self.word(offset)
            .is_some_and(|w| w.compare_exchange(expected, value, Ordering::AcqRel, Ordering::Relaxed).is_ok())
    }
}
