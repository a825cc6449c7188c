//! Tables that processes made for themselves, found in their mappings.
//!
//! Nothing of them is trusted. They are copied by read(2), which maps nothing of a
//! file that the target may change and makes no page of a hole, and only pages
//! that are in memory are read: nothing is charged to the target.

use crate::snapshot::{MapLine, page_size, read_maps};
use crate::witness::{ProcessTables, TABLE_NAME};
use reprieve_heap_table::layout::{OWN_SLABS, SLAB_BYTES};
use reprieve_heap_table::{Region, Words};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

/// The biggest table that the library makes.
const TABLE_BYTES: u64 = (OWN_SLABS * SLAB_BYTES) as u64;
/// Most that is copied for one snapshot.
const COPIED_BYTES: u64 = 256 << 20;
/// Most descriptors of a process among which its table is looked for.
const FDS: usize = 8192;

/// Adds the tables of those of `pids` that have one of their own: what is known of
/// such a process from another is of the program before an exec.
pub fn add(tables: &mut ProcessTables, pids: &[i32]) {
    // By inode: who was forked shares its parent's.
    let mut found: BTreeMap<u64, Vec<(i32, MapLine)>> = BTreeMap::new();
    for &pid in pids {
        let mut maps = read_maps(pid).unwrap_or_default().into_iter();
        if let Some(map) = maps.find(|map| is_table(map) && map.inode != tables.guardians) {
            found.entry(map.inode).or_default().push((pid, map));
            tables.by_pid.remove(&pid);
            tables.have_own.insert(pid);
        }
    }
    if found.is_empty() {
        return;
    }
    let device = match memory_file_device() {
        Ok(device) => device,
        Err(error) => {
            let pids = found.values().flatten().map(|(pid, _)| *pid);
            tables.unread.extend(pids.map(|pid| (pid, format!("its heap is not known: memfd_create: {error}"))));
            return;
        }
    };
    let mut budget = COPIED_BYTES;
    for sharers in found.into_values() {
        let pids: Vec<i32> = sharers.iter().map(|(pid, _)| *pid).collect();
        match copy(&sharers, device, &mut budget) {
            Ok(copy) => match Region::open(copy.words()) {
                Ok(region) => tables.add(region, &pids),
                Err(error) => {
                    let why = format!("its heap is not known: {error}; its library may be older or newer");
                    tables.unread.extend(pids.into_iter().map(|pid| (pid, why.clone())));
                }
            },
            Err(error) => {
                let why = format!("its heap is not known: its table could not be read ({error}); run as root");
                tables.unread.extend(pids.into_iter().map(|pid| (pid, why.clone())));
            }
        }
    }
}

/// Whether a mapping calls itself a table, from its beginning.
fn is_table(map: &MapLine) -> bool {
    let name = map.name.strip_prefix('/').and_then(|name| name.strip_suffix(" (deleted)"));
    name == Some(TABLE_NAME) && map.offset == 0 && map.permissions.ends_with('s')
}

/// The device that all memory files are on, and nothing else.
fn memory_file_device() -> io::Result<u64> {
    // SAFETY: a C string; the result is checked.
    let fd = unsafe { libc::memfd_create(c"reprieve".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, and nobody else's.
    Ok(unsafe { File::from_raw_fd(fd) }.metadata()?.dev())
}

/// A table as it was, in memory of our own.
struct Copy {
    base: *mut libc::c_void,
    bytes: usize,
}

impl Copy {
    fn words(&self) -> Words<'_> {
        // SAFETY: our own mapping of that size, which lives as long as `self`.
        unsafe { Words::at(self.base.cast(), self.bytes) }
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with that size, and no words outlive us.
        unsafe { libc::munmap(self.base, self.bytes) };
    }
}

/// A mapping of ours: of a file, or of zeros.
fn map(bytes: usize, file: Option<&File>) -> io::Result<Copy> {
    let (access, flags, fd) = match file {
        Some(file) => (libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd()),
        None => (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1),
    };
    // SAFETY: a new mapping at an address of the kernel's choice.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, flags, fd, 0) };
    if base == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Copy { base, bytes }) }
}

/// Copies what is in memory of the table that these processes share.
fn copy(sharers: &[(i32, MapLine)], device: u64, budget: &mut u64) -> io::Result<Copy> {
    let mut last = io::Error::other("it is in no process");
    let mut file = None;
    for (pid, map) in sharers {
        match open(*pid, map, device) {
            Ok(opened) => {
                file = Some(opened);
                break;
            }
            Err(error) => last = error,
        }
    }
    let file = file.ok_or(last)?;
    // The size is the target's word; more than the library makes is not looked at.
    let bytes = file.metadata()?.len().min(TABLE_BYTES) as usize;
    let there = present(&file, bytes)?;
    let copy = map(bytes, None)?;
    let page = page_size() as usize;
    for (index, _) in there.iter().enumerate().filter(|(_, there)| **there & 1 != 0) {
        let offset = index * page;
        let length = page.min(bytes - offset);
        *budget = budget.checked_sub(length as u64).ok_or_else(|| io::Error::other("there are too many tables"))?;
        // SAFETY: within our own new mapping, to which nobody has a reference yet.
        let out = unsafe { std::slice::from_raw_parts_mut(copy.base.cast::<u8>().add(offset), length) };
        // Where it ends early, zeros stay.
        let _ = file.read_at(out, offset as u64)?;
    }
    Ok(copy)
}

/// For each page whether it is in memory (mincore(2)); none is read for that.
fn present(file: &File, bytes: usize) -> io::Result<Vec<u8>> {
    if bytes == 0 {
        return Err(io::Error::other("it is empty"));
    }
    let mapped = map(bytes, Some(file))?;
    let mut there = vec![0u8; bytes.div_ceil(page_size() as usize)];
    // SAFETY: our own mapping, and a byte for each of its pages.
    if unsafe { libc::mincore(mapped.base, bytes, there.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(there)
}

/// Opens the file behind a mapping of `pid`, if it is the memory file that the
/// mapping says. A name alone could be that of any file, even of a device.
fn open(pid: i32, map: &MapLine, device: u64) -> io::Result<File> {
    // As `maps` writes it (fs/proc/task_mmu.c).
    if map.device != format!("{:02x}:{:02x}", libc::major(device), libc::minor(device)) {
        return Err(io::Error::other("it is no memory file"));
    }
    let by_mapping = format!("/proc/{pid}/map_files/{:x}-{:x}", map.start, map.end);
    let file = read_only(&by_mapping).or_else(|error| {
        // That needs CAP_CHECKPOINT_RESTORE; its descriptor only the right to trace.
        let fds = fs::read_dir(format!("/proc/{pid}/fd"))?.take(FDS).flatten();
        let is_it =
            |path: &std::path::Path| fs::metadata(path).is_ok_and(|m| (m.dev(), m.ino()) == (device, map.inode));
        let path = fds.map(|entry| entry.path()).find(|path| is_it(path)).ok_or(error)?;
        read_only(&path.to_string_lossy())
    })?;
    let meta = file.metadata()?;
    if (meta.dev(), meta.ino()) == (device, map.inode) { Ok(file) } else { Err(io::Error::other("it has changed")) }
}

fn read_only(path: &str) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}
