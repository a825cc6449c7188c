//! Stacks, each once, in memory that never grows.

use crate::incident::model::ModuleAddress;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};

/// Distinct frames that are kept.
const FRAMES: usize = 1 << 15;
/// Distinct stacks.
const STACKS: usize = 1 << 14;
/// Frames of all of them.
const PLACES: usize = 1 << 18;

/// A frame: what to look up. Processes that have the same file share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Frame {
    /// Its place in a module.
    pub at: Option<ModuleAddress>,
    /// Where it was, in no module; else 0.
    pub address: u64,
}

/// The kernel among modules, as long as they are the witness's own.
pub const KERNEL: u32 = u32::MAX;

/// Number of a stack in [`Stacks`].
pub type StackId = u32;

/// The stack of whom nothing is known; it is always there, and cut.
pub const NO_STACK: StackId = 0;

#[derive(Debug, Clone, Copy)]
struct Place {
    from: u32,
    frames: u16,
    is_cut: bool,
}

/// The stacks.
#[derive(Debug)]
pub struct Stacks {
    frames: Vec<Frame>,
    by_frame: HashMap<Frame, u32>,
    places: Vec<Place>,
    /// Frames of each stack, innermost first, as indices in `frames`.
    list: Vec<u32>,
    by_hash: HashMap<u64, StackId>,
    /// Stacks that found no room.
    pub unplaced: u64,
}

impl Stacks {
    /// With all the memory that it ever takes, but for what a [`keep`](Self::keep) needs
    /// while it works.
    pub fn new() -> Self {
        let mut stacks = Stacks {
            frames: Vec::with_capacity(FRAMES),
            by_frame: HashMap::with_capacity(FRAMES),
            places: Vec::with_capacity(STACKS),
            list: Vec::with_capacity(PLACES),
            by_hash: HashMap::with_capacity(STACKS),
            unplaced: 0,
        };
        stacks.places.push(Place { from: 0, frames: 0, is_cut: true });
        stacks
    }

    /// Bytes that they take, about.
    #[must_use]
    pub fn bytes() -> usize {
        // A hash table has a byte more for each place, and an eighth of them is free.
        let table = |entries: usize, each: usize| (entries * 8 / 7).next_power_of_two() * (each + 1);
        FRAMES * size_of::<Frame>()
            + table(FRAMES, size_of::<(Frame, u32)>())
            + STACKS * size_of::<Place>()
            + PLACES * 4
            + table(STACKS, size_of::<(u64, StackId)>())
    }

    /// Number of a stack, innermost frame first; [`NO_STACK`] where there is no room.
    pub fn add(&mut self, stack: &[Frame], is_cut: bool) -> StackId {
        let Some(indices) = self.indices(stack) else {
            self.unplaced += 1;
            return NO_STACK;
        };
        let mut hash = hash_of(&indices, is_cut);
        while let Some(&id) = self.by_hash.get(&hash) {
            if self.is(id, &indices, is_cut) {
                return id;
            }
            // Another with the same hash.
            hash = hash.wrapping_add(1);
        }
        if self.places.len() >= STACKS || self.list.len() + indices.len() > PLACES {
            self.unplaced += 1;
            return NO_STACK;
        }
        let id = self.places.len() as StackId;
        self.places.push(Place { from: self.list.len() as u32, frames: indices.len() as u16, is_cut });
        self.list.extend(indices);
        self.by_hash.insert(hash, id);
        id
    }

    fn indices(&mut self, stack: &[Frame]) -> Option<Vec<u32>> {
        if stack.len() > usize::from(u16::MAX) {
            return None;
        }
        stack
            .iter()
            .map(|frame| match self.by_frame.get(frame) {
                Some(&index) => Some(index),
                None if self.frames.len() >= FRAMES => None,
                None => {
                    let index = self.frames.len() as u32;
                    self.frames.push(*frame);
                    self.by_frame.insert(*frame, index);
                    Some(index)
                }
            })
            .collect()
    }

    fn is(&self, id: StackId, indices: &[u32], is_cut: bool) -> bool {
        let place = self.places[id as usize];
        place.is_cut == is_cut && self.of(place) == indices
    }

    fn of(&self, place: Place) -> &[u32] {
        &self.list[place.from as usize..][..usize::from(place.frames)]
    }

    /// Frames of a stack, innermost first, and whether its outer end is missing.
    pub fn get(&self, id: StackId) -> (impl Iterator<Item = Frame>, bool) {
        let place = self.places[id as usize];
        (self.of(place).iter().map(|&index| self.frames[index as usize]), place.is_cut)
    }

    /// Whether there will soon be no room.
    #[must_use]
    pub fn is_nearly_full(&self) -> bool {
        let nearly = |used: usize, all: usize| used > all / 8 * 7;
        nearly(self.places.len(), STACKS) || nearly(self.list.len(), PLACES) || nearly(self.frames.len(), FRAMES)
    }

    /// Forgets all stacks but these; returns the new number of each.
    pub fn keep(&mut self, used: impl Fn(StackId) -> bool) -> Vec<StackId> {
        // Copies go away again: what was made at the start is locked in memory.
        let (old, frames, list) = (self.places.clone(), self.frames.clone(), self.list.clone());
        self.places.clear();
        self.frames.clear();
        self.list.clear();
        self.by_frame.clear();
        self.by_hash.clear();
        self.places.push(old[NO_STACK as usize]);
        let mut renumbered = vec![NO_STACK; old.len()];
        for (id, place) in old.iter().enumerate().skip(1).filter(|(id, _)| used(*id as StackId)) {
            let indices = &list[place.from as usize..][..usize::from(place.frames)];
            let stack: Vec<Frame> = indices.iter().map(|&index| frames[index as usize]).collect();
            renumbered[id] = self.add(&stack, place.is_cut);
        }
        renumbered
    }
}

fn hash_of(indices: &[u32], is_cut: bool) -> u64 {
    let mut hasher = DefaultHasher::new();
    indices.iter().for_each(|&index| hasher.write_u32(index));
    hasher.write_u8(u8::from(is_cut));
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(address: u64) -> Frame {
        Frame { at: None, address }
    }

    fn stack(stacks: &Stacks, id: StackId) -> (Vec<u64>, bool) {
        let (frames, is_cut) = stacks.get(id);
        (frames.map(|frame| frame.address).collect(), is_cut)
    }

    #[test]
    fn equal_stacks_are_one() {
        let mut stacks = Stacks::new();
        let a = stacks.add(&[frame(1), frame(2)], false);
        let b = stacks.add(&[frame(1), frame(2)], true);
        let c = stacks.add(&[frame(1)], false);
        assert_eq!(stacks.add(&[frame(1), frame(2)], false), a);
        assert!(a != b && b != c && a != NO_STACK);
        assert_eq!(stack(&stacks, b), (vec![1, 2], true));
        assert_eq!(stack(&stacks, NO_STACK), (vec![], true));
    }

    #[test]
    fn what_finds_no_room_is_counted_and_the_memory_stays() {
        let mut stacks = Stacks::new();
        let before = (stacks.frames.capacity(), stacks.list.capacity(), stacks.by_frame.capacity());
        let ids: Vec<StackId> = (0..2 * STACKS as u64).map(|i| stacks.add(&[frame(i), frame(7)], false)).collect();
        let placed = ids.iter().filter(|id| **id != NO_STACK).count();
        assert_eq!(placed, STACKS - 1);
        assert_eq!(stacks.unplaced, (ids.len() - placed) as u64);
        assert!(stacks.is_nearly_full());
        assert_eq!(before, (stacks.frames.capacity(), stacks.list.capacity(), stacks.by_frame.capacity()));
    }

    #[test]
    fn those_in_use_stay_what_they_are() {
        let mut stacks = Stacks::new();
        let ids: Vec<StackId> = (0..1000).map(|i| stacks.add(&[frame(i), frame(i / 10)], i % 3 == 0)).collect();
        let renumbered = stacks.keep(|id| id % 7 == 0);
        for (i, id) in ids.iter().enumerate() {
            let now = renumbered[*id as usize];
            if id % 7 == 0 {
                assert_eq!(stack(&stacks, now), (vec![i as u64, i as u64 / 10], i % 3 == 0));
                assert_eq!(stacks.add(&[frame(i as u64), frame(i as u64 / 10)], i % 3 == 0), now);
            } else {
                assert_eq!(now, NO_STACK);
            }
        }
        assert!(stacks.places.len() < 150 && stacks.frames.len() < 400);
    }
}
