//! What the memory of a process is for, as far as its mappings tell.
//!
//! A page fault tells who touched a page first. Of memory that a program maps for itself
//! that is who wanted it; of a malloc's it is whoever came first, and the page may have
//! changed hands since. So a mapping counts as direct only where nothing speaks for a
//! malloc: of a process that has glibc's and no other allocator that we know, what is
//! neither the heap nor an arena.

use super::samples::Kind;
use crate::snapshot::{LoadedModule, MapLine, TargetMemory};
use reprieve_heap_walk::Memory;
use std::collections::HashMap;

/// Ranges that are kept apart; of more, neighbours are joined.
const MOST_RANGES: usize = 8_000;

/// glibc's arenas but for the main one are in heaps of this size, aligned to it
/// (HEAP_MAX_SIZE, malloc/arena.c, where malloc uses no huge pages).
const ARENA_HEAP_BYTES: u64 = 64 << 20;
/// An arena is just behind the head of its first heap.
const ARENA_HEAD_BYTES: u64 = 4096;

/// How far from the stack pointer a touch is one of the stack: below it the red zone
/// and what a frame of some size touches first.
const BELOW_STACK_POINTER: u64 = 64 << 10;
const ABOVE_STACK_POINTER: u64 = 8 << 10;

/// Symbols of allocators and runtimes that give memory out again which they mapped. Of
/// what is static and stripped nobody can tell.
const ALLOCATORS: [&str; 22] = [
    "mallocx",
    "je_malloc",
    "_rjem_malloc",
    "_rjem_je_malloc",
    "tc_malloc",
    "mi_malloc",
    "sn_malloc",
    "hoard_malloc",
    "rpmalloc",
    "scudo_malloc",
    "PyObject_Malloc",
    "_PyRuntime",
    "JNI_CreateJavaVM",
    "_ZN4node5StartEiPPc",
    "v8_inspector",
    "coreclr_initialize",
    "mono_gc_collect",
    "_emalloc",
    "lua_newstate",
    "erts_alloc",
    "hs_init",
    "GC_malloc",
];

/// What a mapping is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Private, without a file.
    Anonymous,
    /// `[heap]`.
    Heap,
    /// `[stack]`.
    Stack,
    /// A private mapping of a file: pages that were written count.
    File,
    /// Of tmpfs, a memory file, SysV or anonymous shared memory.
    Shared,
}

/// A mapping, or several that follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// End, exclusive.
    pub end: u64,
    /// What it is.
    pub class: Class,
}

/// The mappings of a process that memory can grow in, in order.
#[derive(Debug, Default)]
pub struct Layout {
    /// Them.
    pub ranges: Vec<Range>,
    /// Whether glibc's malloc is the only allocator that there is.
    pub is_plain: bool,
    /// By the place where a heap of an arena could begin: whether one does.
    arenas: HashMap<u64, bool>,
}

impl Layout {
    /// Adds a line of maps; `is_tmpfs` says whether its file is memory.
    pub fn add(&mut self, map: &MapLine, is_tmpfs: impl FnOnce() -> bool) {
        let is_private = map.permissions.ends_with('p');
        let class = match map.name.as_str() {
            "[heap]" => Class::Heap,
            "[stack]" => Class::Stack,
            "[vdso]" | "[vvar]" | "[vvar_vclock]" | "[vsyscall]" => return,
            _ if map.inode == 0 && is_private => Class::Anonymous,
            _ if is_private => Class::File,
            // Pages of a file on a disk come and go with reclaim.
            _ if map.inode != 0 && !is_tmpfs() => return,
            _ => Class::Shared,
        };
        let range = Range { start: map.start, end: map.end, class };
        let known = self.ranges.len();
        match self.ranges.last_mut() {
            Some(last) if known >= MOST_RANGES && last.class == class && last.end == range.start => {
                last.end = range.end;
            }
            _ if known < 2 * MOST_RANGES => self.ranges.push(range),
            // What is in it is not told.
            _ => {}
        }
    }

    /// The mapping that an address is in.
    #[must_use]
    pub fn range_of(&self, address: u64) -> Option<Range> {
        let index = self.ranges.partition_point(|range| range.end <= address);
        self.ranges.get(index).copied().filter(|range| range.start <= address)
    }

    /// What kind of memory an address is of; `None` in no mapping that is known.
    pub fn kind(&mut self, address: u64, memory: Option<&mut TargetMemory>) -> Option<Kind> {
        Some(match self.range_of(address)?.class {
            Class::Shared => Kind::Shared,
            Class::Stack => Kind::Stack,
            // A library's variables are whose code touches them.
            Class::File => Kind::Direct,
            Class::Heap => Kind::Heap,
            Class::Anonymous => self.anonymous(address, memory),
        })
    }

    /// The same of what is known to be anonymous. Without its memory, as of one that is
    /// gone, nothing new is known to be an arena, and nothing to be none.
    pub fn anonymous(&mut self, address: u64, memory: Option<&mut TargetMemory>) -> Kind {
        if self.is_plain && !self.is_in_arena(address, memory) { Kind::Direct } else { Kind::Heap }
    }

    fn is_in_arena(&mut self, address: u64, memory: Option<&mut TargetMemory>) -> bool {
        let base = address & !(ARENA_HEAP_BYTES - 1);
        let Some(memory) = memory else { return self.arenas.get(&base).copied().unwrap_or(true) };
        *self.arenas.entry(base).or_insert_with(|| {
            memory.invalidate();
            is_arena_heap(base, &mut |at| memory.u64(at))
        })
    }
}

/// Whether a touch is one of the stack that this is the stack pointer of.
#[must_use]
pub fn is_on_stack(address: u64, stack_pointer: u64) -> bool {
    (stack_pointer.saturating_sub(BELOW_STACK_POINTER)..stack_pointer.saturating_add(ABOVE_STACK_POINTER))
        .contains(&address)
}

/// Whether a heap of one of glibc's arenas begins here: its first word points to its
/// arena (`heap_info`, malloc/arena.c), which is in that heap or in the arena's first.
fn is_arena_heap(base: u64, word: &mut dyn FnMut(u64) -> Option<u64>) -> bool {
    let Some(arena) = word(base).filter(|&arena| arena != 0) else { return false };
    let home = arena & !(ARENA_HEAP_BYTES - 1);
    arena - home < ARENA_HEAD_BYTES && arena != home && (home == base || word(home) == Some(arena))
}

/// Whether glibc's malloc is the only allocator of these modules, with their paths;
/// `has_other` says of a module whether it has one.
pub fn is_plain<'p>(
    modules: impl Iterator<Item = (&'p LoadedModule, &'p str)>,
    mut has_other: impl FnMut(&LoadedModule) -> bool,
) -> bool {
    let mut has_glibc = false;
    for (module, path) in modules {
        let name = path.rsplit('/').next().unwrap_or(path);
        if name == "libc.so.6" || (name.starts_with("libc-2.") && name.ends_with(".so")) {
            has_glibc = true;
        } else if !name.starts_with("ld-") && !name.contains("libreprieve_heap") && has_other(module) {
            return false;
        }
    }
    has_glibc
}

/// Whether a file brings an allocator, or a runtime with one.
#[must_use]
pub fn has_allocator(module: &LoadedModule) -> bool {
    let image = &module.image;
    image.exports("malloc")
        || image.section_data(".go.buildinfo").is_some()
        || image.symbols(&ALLOCATORS).iter().any(Option::is_some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(lines: &[&str]) -> Layout {
        let mut layout = Layout::default();
        for line in lines {
            let map = MapLine::parse(line).unwrap();
            layout.add(&map, || map.name.starts_with("/memfd:"));
        }
        layout
    }

    #[test]
    fn mappings_are_what_they_can_be() {
        let layout = layout(&[
            "1000-2000 r-xp 00000000 fe:00 7 /bin/x",
            "2000-3000 rw-p 00001000 fe:00 7 /bin/x",
            "3000-4000 rw-p 00000000 00:00 0 [heap]",
            "5000-6000 rw-p 00000000 00:00 0 ",
            "6000-7000 rw-s 00000000 fe:00 8 /var/file",
            "7000-8000 rw-s 00000000 00:01 9 /memfd:x (deleted)",
            "8000-9000 rw-p 00000000 00:00 0 [stack]",
            "9000-a000 r-xp 00000000 00:00 0 [vdso]",
        ]);
        let class = |address| layout.range_of(address).map(|range| range.class);
        let expected = [
            (0x0fff, None),
            (0x1000, Some(Class::File)),
            (0x2fff, Some(Class::File)),
            (0x3000, Some(Class::Heap)),
            (0x4000, None),
            (0x5fff, Some(Class::Anonymous)),
            (0x6000, None),
            (0x7000, Some(Class::Shared)),
            (0x8000, Some(Class::Stack)),
            (0x9000, None),
        ];
        for (address, expected) in expected {
            assert_eq!(class(address), expected, "{address:x}");
        }
    }

    #[test]
    fn of_very_many_mappings_neighbours_are_one() {
        let mut layout = Layout::default();
        for index in 0..100_000_u64 {
            let start = index * 0x1000;
            let line = format!("{start:x}-{:x} rw-p 00000000 00:00 0 ", start + 0x1000);
            layout.add(&MapLine::parse(&line).unwrap(), || false);
        }
        assert_eq!(layout.ranges.len(), MOST_RANGES);
        assert_eq!(layout.range_of(99_999 * 0x1000).map(|range| range.class), Some(Class::Anonymous));
    }

    #[test]
    fn heaps_of_arenas_are_known_by_their_heads() {
        let base = 7 * ARENA_HEAP_BYTES;
        let second = 9 * ARENA_HEAP_BYTES;
        let arena = base + 0x30;
        let mut words = HashMap::from([(base, arena), (second, arena)]);
        let is = |words: &HashMap<u64, u64>, at| is_arena_heap(at, &mut |at| words.get(&at).copied());
        assert!(is(&words, base) && is(&words, second));
        // Not in memory, zeros, a pointer to somewhere else, itself.
        assert!(!is(&words, 8 * ARENA_HEAP_BYTES));
        for word in [0, base, base + 0x10_0000, u64::MAX, second + 0x30] {
            words.insert(second, word);
            assert_eq!(is(&words, second), word == second + 0x30, "{word:x}");
        }
        words.insert(second, arena);
        words.insert(base, 1);
        assert!(!is(&words, second));
    }

    #[test]
    fn stacks_are_near_their_pointer() {
        assert!(is_on_stack(0x7fff_0000, 0x7fff_0008) && is_on_stack(0x7fff_1000, 0x7fff_0008));
        assert!(!is_on_stack(0x7ffd_0000, 0x7fff_0008) && !is_on_stack(0x8000_0000, 0x7fff_0008));
        assert!(!is_on_stack(u64::MAX, 0) && is_on_stack(0, 0));
    }
}
