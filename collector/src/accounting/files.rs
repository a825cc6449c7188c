//! Files that processes have open or mapped, sockets and pipes.

use super::buffers;
use super::descriptors::{Descriptors, Target};
use super::file_pages::{self, cached};
use super::found::{FileKey, Found, FoundFile};
use super::mappings::Pages;
use super::mounts::{Kind, Mounts};
use crate::snapshot::{Pagemap, page_size};
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;

/// What was looked at, since processes share it.
#[derive(Debug, Default)]
pub struct Known {
    sockets: HashSet<u64>,
    pipes: HashSet<u64>,
}

/// Looks at all that a process has open. `own` is our own page map.
pub fn open_files(
    pid: i32,
    mounts: &Mounts,
    own: &Pagemap,
    pages: &mut Pages,
    known: &mut Known,
    found: &mut Found,
) -> io::Result<()> {
    let descriptors = Descriptors::of(pid)?;
    for number in descriptors.numbers()? {
        if pages.is_late() {
            return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
        }
        // What was closed or ended meanwhile is nobody's any more.
        match descriptors.target(number, mounts) {
            Some(Target::Socket(inode)) if known.sockets.insert(inode) => {
                let Ok(socket) = descriptors.duplicate(number) else { continue };
                let Some(buffers) = buffers::of_socket(socket.as_fd()).filter(|b| b.bytes > 0) else { continue };
                let sockets = found.sockets.entry((buffers.family, buffers.peer)).or_default();
                sockets.sockets += 1;
                sockets.bytes += buffers.bytes;
                if !sockets.pids.contains(&pid) {
                    sockets.pids.push(pid);
                }
            }
            Some(Target::Pipe(inode)) if known.pipes.insert(inode) => {
                let Ok(pipe) = descriptors.duplicate(number) else { continue };
                let bytes = buffers::of_pipe(pipe.as_fd()).next_multiple_of(page_size());
                if bytes > 0 {
                    found.pipes = (found.pipes.0 + bytes, found.pipes.1 + 1);
                }
            }
            Some(Target::File(name, kind)) => {
                let Ok(file) = descriptors.duplicate(number).map(File::from) else { continue };
                let Ok(meta) = file.metadata() else { continue };
                if !meta.is_file() {
                    continue;
                }
                let entry = found.files.entry(FileKey::of(&meta)).or_default();
                entry.pids.insert(pid);
                if entry.path.is_empty() {
                    (entry.path, entry.kind) = (name, Some(kind));
                }
                found.elsewhere += look(&file, entry, own, pages);
            }
            _ => {}
        }
    }
    Ok(())
}

/// Looks at the files of which only page tables were looked at, of one kind.
pub fn mapped_files(kind: Kind, own: &Pagemap, pages: &mut Pages, found: &mut Found) {
    let mut elsewhere = 0;
    for file in found.files.values_mut() {
        let Some((pid, start, end)) = file.mapped.filter(|_| file.kind == Some(kind) && !file.is_looked_at) else {
            continue;
        };
        if pages.is_late() {
            break;
        }
        // Also when it was deleted, or is in a mount namespace of its own; it may be gone.
        if let Ok(open) = File::open(format!("/proc/{pid}/map_files/{start:x}-{end:x}")) {
            elsewhere += look(&open, file, own, pages);
        }
    }
    found.elsewhere += elsewhere;
}

/// Adds to a file what of it is in memory, once; returns what of that is charged
/// elsewhere.
fn look(open: &File, file: &mut FoundFile, own: &Pagemap, pages: &mut Pages) -> u64 {
    let Ok(meta) = open.metadata() else { return 0 };
    if file.kind == Some(Kind::Hugetlbfs) || file.is_looked_at {
        return 0;
    }
    let is_counted = file.kind != Some(Kind::Layered);
    let cached = if is_counted { cached(open.as_fd(), 0, 0) } else { Err(io::ErrorKind::Unsupported.into()) };
    if let Ok(cached) = &cached {
        file.dirty = cached.dirty;
        if cached.there == 0 {
            file.is_looked_at = true;
            return 0;
        }
    }
    let can_tell = file_pages::may_look(&meta) && !pages.is_blind;
    match can_tell.then(|| file_pages::look(open.as_fd(), meta.len(), is_counted, own, pages)) {
        Some(Ok(seen)) => {
            file.is_looked_at = true;
            file.bytes += seen.filed;
            // What there was no time for is its all the same.
            let there = if pages.is_late() { cached.map_or(0, |cached| cached.there) } else { 0 };
            file.unsure = there.saturating_sub(file.bytes + seen.elsewhere);
            seen.elsewhere
        }
        // Open for writing only, so that we cannot map it, or its frames are not told:
        // what is known is how much there is. Another may have it open for reading.
        _ => {
            file.unsure = cached.map_or(0, |cached| cached.there).saturating_sub(file.bytes);
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounting::charges::Charges;
    use nix::sys::mman::{MapFlags, ProtFlags, mmap};
    use std::io::Write;
    use std::num::NonZero;
    use std::time::{Duration, Instant};

    #[test]
    fn a_deleted_file_is_looked_at_and_that_of_a_process_that_is_gone_is_left_as_it_was() {
        let (page, pid) = (page_size(), std::process::id() as i32);
        // It has no name.
        let mut file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.write_all(&vec![7; 10 * page as usize]).unwrap();
        let length = NonZero::new(10 * page as usize).unwrap();
        // SAFETY: a new mapping at an address of the kernel's choice, which nobody reads.
        let at = unsafe { mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, &file, 0) }.unwrap();
        let start = at.as_ptr() as u64;
        let mapped = |pid, bytes| FoundFile {
            kind: Some(Kind::Tmpfs),
            bytes,
            mapped: Some((pid, start, start + 10 * page)),
            ..FoundFile::default()
        };
        let mut found = Found::default();
        let key = |inode| FileKey { device: "00:01".to_owned(), inode };
        found.files.insert(key(1), mapped(pid, 0));
        found.files.insert(key(2), mapped(i32::MAX, 3 * page));
        let own = Pagemap::open(pid).unwrap();
        let mut pages = Pages::new(Charges::of_everybody(), Instant::now() + Duration::from_secs(20));
        mapped_files(Kind::Tmpfs, &own, &mut pages, &mut found);
        let told = |inode| (found.files[&key(inode)].bytes, found.files[&key(inode)].is_looked_at);
        assert_eq!((told(1), told(2)), ((10 * page, true), (3 * page, false)));
        let mut known = Known::default();
        let gone = open_files(i32::MAX, &Mounts::default(), &own, &mut pages, &mut known, &mut found);
        assert_eq!(gone.unwrap_err().raw_os_error(), Some(libc::ESRCH));
        // SAFETY: exactly what was mapped.
        unsafe { nix::sys::mman::munmap(at, length.get()) }.unwrap();
    }
}
