//! A heap made by hand, whole and broken.

use super::layout::{arena, chunk, tcache};
use super::*;
use std::collections::BTreeMap;

const DATA: u64 = 0x7f00_0000_0000;
const MAIN: u64 = DATA + 0x100;
const HEAP: u64 = 0x5500_0000_0000;
const HEAP_BYTES: u64 = 0x2_1000;
const SECOND: u64 = 0x7e00_0000_0000;
const SECOND_BYTES: u64 = 0x2000;
const KEY: u64 = 0x1234_5678_9abc_def0;

/// Words that are not 0, in a few mappings.
#[derive(Clone, Default)]
struct Words {
    words: BTreeMap<u64, u64>,
    reads: u64,
}

impl Words {
    fn put(&mut self, at: u64, word: u64) {
        self.words.insert(at, word);
    }

    /// Chunks of a heap, `(bytes, bits)` each; returns where they begin and end.
    fn chunks(&mut self, start: u64, chunks: &[(u64, u64)]) -> Vec<u64> {
        let mut at = start;
        let mut places = Vec::new();
        for (bytes, bits) in chunks {
            self.put(at + chunk::SIZE, bytes | bits);
            places.push(at);
            at += bytes;
        }
        places.push(at);
        places
    }

    fn arena(&mut self, at: u64, top: u64, next: u64, system_mem: u64) {
        for bin in 0..arena::BIN_COUNT {
            for field in [0, 8] {
                self.put(at + arena::BINS + bin * 16 + field, arena::bin(at, bin));
            }
        }
        self.put(at + arena::TOP, top);
        self.put(at + arena::NEXT, next);
        self.put(at + arena::SYSTEM_MEM, system_mem);
    }
}

impl Memory for Words {
    fn read(&mut self, address: u64, out: &mut [u8]) -> bool {
        self.reads += 1;
        let mapped = [DATA..DATA + 0x2000, HEAP..HEAP + HEAP_BYTES, SECOND..SECOND + SECOND_BYTES];
        let Some(end) = address.checked_add(out.len() as u64) else { return false };
        if !mapped.iter().any(|range| range.contains(&address) && end <= range.end) {
            return false;
        }
        for (at, byte) in (address..).zip(out) {
            let word = self.words.get(&(at & !7)).copied().unwrap_or(0);
            *byte = word.to_le_bytes()[(at & 7) as usize];
        }
        true
    }
}

/// Every second page is in memory.
struct Half;

impl Pages for Half {
    fn present_bytes(&mut self, pages: Range<u64>) -> Option<u64> {
        Some(
            (pages.start..pages.end).step_by(PAGE as usize).filter(|at| (at / PAGE).is_multiple_of(2)).count() as u64
                * PAGE,
        )
    }
}

fn walked(memory: &mut Words) -> Option<Malloc> {
    let (data, heap) = (DATA..DATA + 0x2000, HEAP..HEAP + HEAP_BYTES);
    let second = SECOND..SECOND + SECOND_BYTES;
    let place = Place {
        data: std::slice::from_ref(&data),
        heap: Some(heap.clone()),
        writable: &[heap, second.clone(), data.clone()],
        anonymous: std::slice::from_ref(&second),
    };
    walk(memory, &mut Half, &place, 1 << 20)
}

/// A tcache, live chunks, one in the tcache, two in a fastbin, a free one of
/// many pages in the unsorted bin, and a thread's arena with one chunk.
fn sample() -> Words {
    let mut memory = Words::default();
    let at = memory
        .chunks(HEAP, &[(0x290, 1), (0x40, 1), (0x40, 1), (0x30, 1), (0x30, 1), (0x8000, 1), (0x20, 0), (0x5000, 1)]);
    let top = *at.last().unwrap();
    memory.put(top + chunk::SIZE, (HEAP + HEAP_BYTES - top) | 1);
    memory.arena(MAIN, top, SECOND + 0x30, HEAP_BYTES);
    // A tcache with one entry of 0x40 bytes.
    memory.put(at[0] + 16, 1 << 32);
    let entry = at[1] + 16;
    memory.put(at[0] + 16 + tcache::BINS as u64 * 2 + 2 * 8, entry);
    memory.put(entry, entry >> 12);
    memory.put(entry + 8, KEY);
    // A fastbin with both of 0x30 bytes.
    memory.put(MAIN + arena::FASTBINS + 8, at[3]);
    memory.put(at[3] + chunk::FD, at[4] ^ (at[3] + chunk::FD) >> 12);
    memory.put(at[4] + chunk::FD, (at[4] + chunk::FD) >> 12);
    for field in [0, 8] {
        memory.put(MAIN + arena::BINS + field, at[5]);
    }
    memory.put(at[5] + chunk::FD, arena::bin(MAIN, 0));
    memory.put(at[5] + chunk::BK, arena::bin(MAIN, 0));
    // The other arena.
    let start = (SECOND + 0x30 + arena::BYTES).next_multiple_of(16);
    let at = memory.chunks(start, &[(0x400, 5)]);
    memory.put(at[1] + chunk::SIZE, (SECOND + 0x1000 - at[1]) | 1);
    memory.arena(SECOND + 0x30, at[1], MAIN, 0x1000);
    memory.put(SECOND, SECOND + 0x30);
    memory.put(SECOND + 16, 0x1000);
    memory
}

#[test]
fn chunks_are_where_malloc_has_them() {
    let malloc = walked(&mut sample()).unwrap();
    assert_eq!(malloc.gaps, [""; 0]);
    let [main, second] = malloc.arenas.as_slice() else { panic!("{malloc:#?}") };
    let one = |bytes| Chunks { chunks: 1, bytes };
    assert_eq!(main.live, Chunks { chunks: 4, bytes: 0x290 + 0x40 + 0x20 + 0x5000 });
    assert_eq!((main.tcache, main.fastbins), (one(0x40), Chunks { chunks: 2, bytes: 0x60 }));
    assert_eq!((main.unsorted, main.small, main.large), (one(0x8000), Chunks::default(), Chunks::default()));
    // Seven pages of the big one are its own, and four of them absent.
    let absent = (1..8).filter(|page| page % 2 == 1).count() as u64 * PAGE;
    assert_eq!(main.free_resident_bytes, Some(0x40 + 0x60 + 0x8000 - absent));
    assert_eq!((main.overhead_bytes, main.unknown_bytes), (0, 0));
    assert_eq!((second.live, second.unknown_bytes), (one(0x400), 0));
    assert_eq!(second.system_bytes, second.live.bytes + second.top_bytes + second.overhead_bytes);
    assert_eq!(malloc.classes.iter().map(|class| class.chunks.bytes).sum::<u64>(), main.live.bytes + second.live.bytes);
}

#[test]
fn lists_from_before_safe_linking_are_followed() {
    let mut memory = sample();
    let fast = HEAP + 0x290 + 0x80;
    memory.put(fast + chunk::FD, fast + 0x30);
    memory.put(fast + 0x30 + chunk::FD, 0);
    memory.put(HEAP + 0x290 + chunk::FD, 0);
    let malloc = walked(&mut memory).unwrap();
    assert_eq!((malloc.arenas[0].fastbins.chunks, malloc.arenas[0].tcache.chunks), (2, 1));
}

/// Seen in a threaded Python: with a chunk in the fastbin that stands where `top` would be, what
/// lies two bins before the arena looks like one, and its binmap like an absurd size.
#[test]
fn two_bins_before_the_arena_is_no_arena() {
    const BINMAP: u64 = arena::NEXT - 16;
    for binmap in [0, 7 << 48] {
        let mut memory = sample();
        let fast = HEAP + 0x290 + 0x80;
        memory.put(MAIN + arena::FASTBINS + 6 * 8, fast);
        memory.put(MAIN + arena::TOP + 8, fast);
        memory.put(MAIN + BINMAP + 8, binmap);
        let malloc = walked(&mut memory).unwrap();
        let addresses: Vec<u64> = malloc.arenas.iter().map(|arena| arena.address).collect();
        assert_eq!(addresses, [MAIN, SECOND + 0x30]);
    }
}

#[test]
fn a_broken_chunk_ends_its_heap_and_is_told() {
    let mut memory = sample();
    memory.put(HEAP + 0x290 + chunk::SIZE, 0x1_0000_0001);
    let malloc = walked(&mut memory).unwrap();
    assert_eq!(malloc.arenas.len(), 2);
    assert!(malloc.arenas[0].unknown_bytes > 0x8000 && malloc.gaps[0].contains("impossible size"), "{malloc:#?}");
}

#[test]
fn lists_that_bite_their_tail_end() {
    let mut memory = sample();
    let fast = HEAP + 0x290 + 0x80;
    memory.put(fast + 0x30 + chunk::FD, fast ^ (fast + 0x30 + chunk::FD) >> 12);
    memory.put(HEAP + 0x290 + 0xe0 + chunk::BK, HEAP + 0x290 + 0xe0);
    memory.put(MAIN + arena::NEXT, SECOND + 0x30);
    memory.put(SECOND + 0x30 + arena::NEXT, SECOND + 0x30);
    let malloc = walked(&mut memory).unwrap();
    assert!(malloc.gaps.iter().any(|gap| gap.contains("does not close")), "{malloc:#?}");
    assert!(memory.reads < 1 << 17);
}

#[test]
fn no_damage_ends_in_a_panic_or_a_long_walk() {
    let whole = sample();
    let places: Vec<u64> = whole.words.keys().copied().collect();
    let mut seed = 88_172_645_463_325_252u64;
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let mut found = 0;
    for _ in 0..1000 {
        let mut memory = whole.clone();
        for _ in 0..1 + next() % 4 {
            let at = places[(next() % places.len() as u64) as usize];
            let word = match next() % 5 {
                0 => next(),
                1 => u64::MAX - next() % 64,
                2 => whole.words[&places[(next() % places.len() as u64) as usize]],
                3 => whole.words[&at] ^ 1 << (next() % 64),
                _ => places[(next() % places.len() as u64) as usize],
            };
            memory.put(at, word);
        }
        found += u64::from(walked(&mut memory).is_some());
        assert!(memory.reads <= 1 << 17, "{} reads", memory.reads);
    }
    assert!(found > 300, "only {found} heaps were found at all");
}
