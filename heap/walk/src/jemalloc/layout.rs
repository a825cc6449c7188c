//! Where jemalloc's profile keeps its fields, on 64-bit machines.
//!
//! Source: src/ckh.c, ckh.h, rb.h and prof_structs.h of jemalloc 5.3.0, compiled without CKH_COUNT.

/// Offsets in `ckh_t`.
pub mod ckh {
    /// Entries.
    pub const COUNT: u64 = 8;
    /// `lg_minbuckets`, then `lg_curbuckets`, 32 bits each.
    pub const BUCKETS: u64 = 16;
    /// Function.
    pub const HASH: u64 = 24;
    /// Function.
    pub const KEYCOMP: u64 = 32;
    /// The cells.
    pub const TAB: u64 = 40;
    /// All of it.
    pub const BYTES: u64 = 48;
    /// A bucket has four cells of a key and its data.
    pub const LG_CELLS: u32 = 2;
    /// Bytes of a cell.
    pub const CELL: u64 = 16;
    /// `lg_minbuckets` for `PROF_CKH_MINITEMS` = 64 (`ckh_new`).
    pub const PROF_BUCKETS: u64 = 5;
}

/// Offsets in `prof_gctx_t`, a stack.
pub mod gctx {
    /// Root of the tree of threads.
    pub const TCTXS: u64 = 16;
    /// `prof_bt_t`: the frames' address and how many there are.
    pub const BT: u64 = 104;
    /// The frames.
    pub const VEC: u64 = 120;
}

/// Offsets in `prof_tctx_t`, what a thread allocated from a stack.
pub mod tctx {
    /// The thread, `prof_tdata_t`.
    pub const TDATA: u64 = 0;
    /// Eight counters, `prof_cnt_t`.
    pub const CNTS: u64 = 32;
    /// The stack.
    pub const GCTX: u64 = 96;
    /// Left side in the tree.
    pub const LEFT: u64 = 112;
    /// The lowest bit is the colour.
    pub const RIGHT_RED: u64 = 120;
    /// `prof_tctx_state_t`.
    pub const STATE: u64 = 132;
    /// `prof_tctx_state_initializing`.
    pub const INITIALIZING: u32 = 0;
}

/// `prof_tdata_t.expired`: from before a prof.reset.
pub const TDATA_EXPIRED: u64 = 33;
