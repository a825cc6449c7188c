//! Taking back what the dead have left.
//!
//! Done by the guardian, or in a region without one by any process that is short
//! of slabs; several at once, and each may be killed half-way. What is taken is
//! told by the count of takes in its owner's word, so that nothing is taken that
//! somebody has got since.

use crate::layout::{MAX_SLABS, SLAB_BYTES, home, kind};
use crate::region::{Owner, Region};

/// Milliseconds after which a fork that never came to be is forgotten.
const UNBORN_MS: u64 = 10_000;

/// Whose home it is, as it says itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Home {
    /// Its slab.
    pub slab: usize,
    /// PID in the namespace below.
    pub pid: u64,
    /// Inode of that namespace, 0 where it is not known.
    pub pid_namespace: u64,
    /// Of two homes of one process the later is its own.
    pub sequence: u64,
}

/// Takes back the slabs of homes whose process `is_dead` says has ended, and of
/// forks that failed. `now`: milliseconds of CLOCK_MONOTONIC. Needs no allocator.
pub fn sweep(region: Region<'_>, now: u64, mut is_dead: impl FnMut(Home) -> bool) {
    let words = region.words();
    let slabs = region.state().next;
    let word = |slab: usize, field: usize| words.load(slab * SLAB_BYTES + field);
    let read = |slab: usize| Home {
        slab,
        pid: word(slab, home::PID),
        pid_namespace: word(slab, home::PID_NAMESPACE),
        sequence: word(slab, home::SEQUENCE),
    };
    // A home that is being made has no time yet.
    let is_made = |slab: usize| word(slab, home::MADE) != 0;
    let is_home = |slab: usize, owner: Owner| owner.kind() == kind::HOME && owner.home() == slab;
    let mut kept = Slabs::default();
    let mut dead = Slabs::default();
    for slab in 1..slabs {
        let owner = region.owner_word(slab);
        if !is_home(slab, owner) {
            continue;
        }
        let gone = is_made(slab)
            && match read(slab) {
                Home { pid: home::NEVER, .. } => true,
                // The child may come at this instant: who is first has it.
                Home { pid, .. } if pid >= home::UNBORN => {
                    now.saturating_sub(word(slab, home::MADE)) > UNBORN_MS
                        && words.swap_if(slab * SLAB_BYTES + home::PID, pid, home::NEVER)
                }
                known => is_dead(known),
            };
        // What was read is of the owner that was seen.
        if gone && region.owner_word(slab) == owner { dead.add(slab) } else { kept.add(slab) }
    }
    // A child's stacks may be in its parent's slabs.
    for slab in (1..slabs).filter(|&slab| kept.has(slab)) {
        let mut ancestor = slab;
        for _ in 0..slabs {
            ancestor = usize::try_from(word(ancestor, home::PARENT)).unwrap_or(0) / SLAB_BYTES;
            if ancestor == 0 || !dead.has(ancestor) {
                break;
            }
            dead.remove(ancestor);
        }
    }
    for dead_home in (1..slabs).filter(|&slab| dead.has(slab)) {
        let its_owner = region.owner_word(dead_home);
        // Another sweep may have been faster, and the slab be somebody's home again.
        let still = read(dead_home);
        let gone = still.pid == home::NEVER || still.pid < home::UNBORN && is_made(dead_home) && is_dead(still);
        if !gone || !is_home(dead_home, its_owner) {
            continue;
        }
        for slab in (1..slabs).filter(|&slab| slab != dead_home) {
            let owner = region.owner_word(slab);
            // Where the home is still what it was, the slab is of the dead.
            if owner.home() == dead_home && region.owner_word(dead_home) == its_owner {
                region.give_back_if(slab, owner);
            }
        }
        region.give_back_if(dead_home, its_owner);
    }
}

/// A set of slabs.
struct Slabs([u64; MAX_SLABS / 64]);

impl Default for Slabs {
    fn default() -> Self {
        Slabs([0; MAX_SLABS / 64])
    }
}

impl Slabs {
    fn add(&mut self, slab: usize) {
        if let Some(word) = self.0.get_mut(slab / 64) {
            *word |= 1 << (slab % 64);
        }
    }

    fn remove(&mut self, slab: usize) {
        if let Some(word) = self.0.get_mut(slab / 64) {
            *word &= !(1 << (slab % 64));
        }
    }

    fn has(&self, slab: usize) -> bool {
        self.0.get(slab / 64).is_some_and(|word| word >> (slab % 64) & 1 != 0)
    }
}
