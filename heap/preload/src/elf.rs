//! Loaded ELF objects and their symbols, without a lock.
//!
//! dlsym(3) takes the dynamic linker's lock, which another thread may hold while it
//! waits for one that ours holds.

use crate::real;
use core::mem::MaybeUninit;
use libc::c_void;

/// struct dl_find_object (dlfcn.h of glibc 2.35 and later, x86-64).
#[repr(C)]
struct DlFindObject {
    flags: u64,
    map_start: *mut c_void,
    map_end: *mut c_void,
    link_map: *mut c_void,
    eh_frame_hdr: *mut c_void,
    reserved: [u64; 7],
}

/// An object that is loaded.
pub struct Object {
    /// Its first address.
    pub start: u64,
    /// Its end, exclusive.
    pub end: u64,
    /// `.eh_frame_hdr`, or 0.
    pub eh_frame_hdr: u64,
    link_map: u64,
}

/// The object that holds an address. _dl_find_object takes no lock and may be
/// called in a signal handler.
pub fn find_object(ip: u64) -> Option<Object> {
    let find = real::find_object()?;
    let mut found = MaybeUninit::<DlFindObject>::zeroed();
    // SAFETY: the structure is as the C library wants it; 0 is success.
    let found = unsafe {
        if find(ip as *mut c_void, found.as_mut_ptr().cast()) != 0 {
            return None;
        }
        found.assume_init()
    };
    Some(Object {
        start: found.map_start as u64,
        end: found.map_end as u64,
        eh_frame_hdr: found.eh_frame_hdr as u64,
        link_map: found.link_map as u64,
    })
}

/// The exported symbols of an object, found by DT_GNU_HASH.
pub struct Symbols<'o> {
    object: &'o Object,
    bias: u64,
    table: u64,
    names: u64,
    hash: u64,
}

/// d_tag values (elf.h).
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_GNU_HASH: u64 = 0x6fff_fef5;
/// No dynamic section has more entries.
const DYNAMIC_MAX: u64 = 256;
/// Symbols that are looked at in one bucket.
const CHAIN_MAX: u32 = 4096;

impl<'o> Symbols<'o> {
    /// Those of an object that a frame of ours returns into, so that it stays.
    pub fn of(object: &'o Object) -> Option<Self> {
        if object.link_map == 0 {
            return None;
        }
        // struct link_map (link.h): l_addr, l_name, l_ld.
        // SAFETY: the dynamic linker's own, for as long as the object is loaded.
        let (bias, dynamic) = unsafe {
            let map = object.link_map as *const u64;
            (map.read(), map.add(2).read())
        };
        let mut symbols = Symbols { object, bias, table: 0, names: 0, hash: 0 };
        for entry in 0..DYNAMIC_MAX {
            let (tag, value) = (symbols.word(dynamic + entry * 16)?, symbols.word(dynamic + entry * 16 + 8)?);
            // The dynamic linker has added the bias, but for what it did not load
            // itself, like the vDSO.
            let address = if value < object.start { value.wrapping_add(bias) } else { value };
            match tag {
                0 => break,
                DT_STRTAB => symbols.names = address,
                DT_SYMTAB => symbols.table = address,
                DT_GNU_HASH => symbols.hash = address,
                _ => {}
            }
        }
        (symbols.table != 0 && symbols.names != 0 && symbols.hash != 0).then_some(symbols)
    }

    /// Where a symbol is.
    pub fn find(&self, name: &[u8]) -> Option<u64> {
        // The function of DT_GNU_HASH (Bernstein's).
        let hash = name.iter().fold(5381u32, |hash, &byte| hash.wrapping_mul(33).wrapping_add(byte.into()));
        let half = |index: u64| self.half(self.hash + index * 4);
        let (buckets, first, bloom_words, shift) = (half(0)?, half(1)?, half(2)?, half(3)?);
        if buckets == 0 || bloom_words == 0 {
            return None;
        }
        let bloom = self.hash + 16;
        let filter = self.word(bloom + u64::from(hash / 64 % bloom_words) * 8)?;
        if filter >> (hash % 64) & filter >> (hash.checked_shr(shift)? % 64) & 1 == 0 {
            return None;
        }
        let bucket = bloom + u64::from(bloom_words) * 8;
        let chain = bucket + u64::from(buckets) * 4;
        let mut index = self.half(bucket + u64::from(hash % buckets) * 4)?;
        for _ in 0..CHAIN_MAX {
            if index < first {
                return None;
            }
            let entry = self.half(chain + u64::from(index - first) * 4)?;
            if entry | 1 == hash | 1 {
                // Elf64_Sym: st_name, four bytes of others, st_value.
                let symbol = self.table + u64::from(index) * 24;
                if self.is_name(self.names + u64::from(self.half(symbol)?), name) {
                    return Some(self.word(symbol + 8)?.wrapping_add(self.bias));
                }
            }
            if entry & 1 == 1 {
                return None;
            }
            index = index.checked_add(1)?;
        }
        None
    }

    fn is_name(&self, at: u64, name: &[u8]) -> bool {
        let byte = |index: usize| {
            let at = at + index as u64;
            // SAFETY: as in `word`.
            (at >= self.object.start && at < self.object.end).then(|| unsafe { (at as *const u8).read() })
        };
        name.iter().enumerate().all(|(i, &wanted)| byte(i) == Some(wanted)) && byte(name.len()) == Some(0)
    }

    fn word(&self, at: u64) -> Option<u64> {
        let inside = at >= self.object.start && at <= self.object.end.checked_sub(8)?;
        // SAFETY: the object is mapped from its start to its end, but for gaps
        // between its segments, and no table of the dynamic linker is in one.
        inside.then(|| unsafe { (at as *const u64).read_unaligned() })
    }

    fn half(&self, at: u64) -> Option<u32> {
        let inside = at >= self.object.start && at <= self.object.end.checked_sub(4)?;
        // SAFETY: as in `word`.
        inside.then(|| unsafe { (at as *const u32).read_unaligned() })
    }
}
