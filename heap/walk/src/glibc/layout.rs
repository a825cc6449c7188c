//! Where glibc's malloc keeps its fields, on 64-bit machines.
//!
//! Source: malloc/malloc.c and malloc/arena.c of glibc 2.31, 2.36 and 2.41. `malloc_state`
//! has not changed from 2.27 to 2.41; what has is told below.

/// Bytes of a chunk's header, and what chunks are multiples of.
pub const GRAIN: u64 = 16;
/// Smallest chunk (`MINSIZE`).
pub const SMALLEST: u64 = 32;
/// Smallest chunk of the large bins (`MIN_LARGE_SIZE`).
pub const SMALLEST_LARGE: u64 = 1024;

/// Bits of a chunk's size word.
pub mod bit {
    /// The chunk before is in use, or in a tcache or fastbin.
    pub const PREV_INUSE: u64 = 1;
    /// A mapping of its own.
    pub const IS_MMAPPED: u64 = 2;
    /// Of another arena than the main one; set while in use only.
    pub const NON_MAIN_ARENA: u64 = 4;
    /// All of them.
    pub const ALL: u64 = 7;
}

/// Offsets in a chunk.
pub mod chunk {
    /// Size and bits.
    pub const SIZE: u64 = 8;
    /// Next in its list, of free ones.
    pub const FD: u64 = 16;
    /// The one before, of free ones.
    pub const BK: u64 = 24;
}

/// Offsets in `struct malloc_state`.
pub mod arena {
    /// Heads of the fastbins.
    pub const FASTBINS: u64 = 16;
    /// How many.
    pub const FASTBIN_COUNT: u64 = 10;
    /// The chunk that borders on the end.
    pub const TOP: u64 = 96;
    /// Lists of free chunks, a forward and a backward pointer each; the first is
    /// the unsorted one.
    pub const BINS: u64 = 112;
    /// How many.
    pub const BIN_COUNT: u64 = 127;
    /// The next arena of the circle.
    pub const NEXT: u64 = 2160;
    /// Threads that allocate from it.
    pub const ATTACHED_THREADS: u64 = 2176;
    /// Bytes that it has from the system.
    pub const SYSTEM_MEM: u64 = 2184;
    /// All of it.
    pub const BYTES: u64 = 2200;

    /// A bin's address as a chunk, which an empty one points at (`bin_at`).
    pub const fn bin(arena: u64, bin: u64) -> u64 {
        arena.wrapping_add(BINS + bin * 16 - super::chunk::FD)
    }
}

/// Offsets in `heap_info`, at the start of each heap of a thread's arena.
pub mod heap {
    /// Its arena.
    pub const ARENA: u64 = 0;
    /// The heap made before.
    pub const PREV: u64 = 8;
    /// Bytes that are in use or free.
    pub const SIZE: u64 = 16;
    /// Sizes of it: since 2.35, and before.
    pub const BYTES: [u64; 2] = [48, 32];
    /// Heaps are aligned to this (`HEAP_MAX_SIZE`), without huge pages.
    pub const MAX: u64 = 64 << 20;
}

/// `tcache_perthread_struct` from 2.30 to 2.41: 16-bit counts, then list heads.
pub mod tcache {
    /// Lists.
    pub const BINS: usize = 64;
    /// Counts and heads.
    pub const BYTES: usize = BINS * 2 + BINS * 8;
    /// The chunk that it is allocated in.
    pub const CHUNK: u64 = 0x290;
    /// Offset of the key in an entry, behind the pointer to the next.
    pub const KEY: u64 = 8;
}

/// Offsets in `struct malloc_par`.
#[derive(Debug, Clone, Copy)]
pub struct Parameters {
    /// Size of huge pages for heaps, where it is known.
    pub hp_pagesize: Option<u64>,
    /// 32 bits each: mapped chunks, how many may be, how many ever were.
    pub n_mmaps: u64,
    /// Bytes of mapped chunks, then the most there ever were.
    pub mmapped_mem: u64,
    /// Start of the main heap.
    pub sbrk_base: u64,
    /// Lists in use in a tcache, the biggest request there, chunks in a list.
    pub tcache_bins: u64,
    /// All of what is looked at.
    pub bytes: u64,
}

/// Number of cores by which arenas are limited, in both layouts (`arena_test`).
pub const ARENA_TEST: u64 = 24;

/// `malloc_par` since 2.35 and before.
pub const PARAMETERS: [Parameters; 2] = [
    Parameters { hp_pagesize: Some(48), n_mmaps: 60, mmapped_mem: 80, sbrk_base: 96, tcache_bins: 104, bytes: 128 },
    Parameters { hp_pagesize: None, n_mmaps: 40, mmapped_mem: 56, sbrk_base: 72, tcache_bins: 80, bytes: 104 },
];
