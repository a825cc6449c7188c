//! Memory that lies in files and segments which nobody has open or attached: left by
//! those who ended, and charged all the same.

use super::file_pages;
use super::found::{FileKey, Found};
use super::mappings::Pages;
use super::mounts::Kind;
use crate::snapshot::Pagemap;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Files of tmpfs looked at.
const MOST_FILES: usize = 10_000;

/// Looks for files in what `pid` sees of a tmpfs at `place`. Those that
/// somebody has open were looked at already. When no time is left it ends: the caller tells.
pub fn tmpfs(pid: i32, place: &str, own: &Pagemap, pages: &mut Pages, found: &mut Found) {
    let root = PathBuf::from(format!("/proc/{pid}/root{place}"));
    let Ok(device) = fs::metadata(&root).map(|m| m.dev()) else { return };
    let mut folders = vec![root.clone()];
    let mut looked = 0;
    while let Some(folder) = folders.pop().filter(|_| !pages.is_late()) {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            if pages.is_late() {
                return;
            }
            if looked >= MOST_FILES {
                found.gaps.push(format!("{place}: only {looked} files that nobody has open were looked at"));
                return;
            }
            // Of the link itself; another file system below is another's.
            let Ok(meta) = fs::symlink_metadata(entry.path()) else { continue };
            if meta.dev() != device {
                continue;
            }
            if meta.is_dir() {
                folders.push(entry.path());
            } else if meta.is_file() && meta.blocks() > 0 {
                looked += 1;
                let below = Path::new(place).join(entry.path().strip_prefix(&root).unwrap_or(&entry.path()));
                one_file(&entry.path(), &below, &meta, own, pages, found);
            }
        }
    }
}

fn one_file(path: &Path, seen_as: &Path, meta: &fs::Metadata, own: &Pagemap, pages: &mut Pages, found: &mut Found) {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOATIME;
    let Ok(file) = fs::OpenOptions::new().read(true).custom_flags(flags).open(path) else { return };
    if !file_pages::may_look(meta) {
        return;
    }
    let Ok(seen) = file_pages::look(file.as_fd(), meta.len(), true, own, pages) else { return };
    found.elsewhere += seen.elsewhere;
    if seen.filed > 0 {
        let entry = found.files.entry(FileKey::of(meta)).or_default();
        (entry.path, entry.kind) = (seen_as.display().to_string(), Some(Kind::Tmpfs));
        entry.bytes += seen.filed;
        entry.is_looked_at = true;
    }
}

/// SysV segments that nobody has attached, of our IPC namespace: name and bytes, by
/// `/proc/sysvipc/shm`. Whom they are charged to it does not say.
#[must_use]
pub fn segments() -> Vec<(String, u64)> {
    parse_segments(&fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default())
}

/// Columns by their heads, since their number grew (ipc/shm.c, sysvipc_shm_proc_show).
fn parse_segments(text: &str) -> Vec<(String, u64)> {
    let mut lines = text.lines();
    let heads: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    let column = |name| heads.iter().position(|head| *head == name);
    let (Some(key), Some(id), Some(attached), Some(rss), Some(maker)) =
        (column("key"), column("shmid"), column("nattch"), column("rss"), column("cpid"))
    else {
        return Vec::new();
    };
    let segment = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let bytes = fields.get(rss)?.parse().ok().filter(|&bytes| bytes > 0)?;
        let is_attached = *fields.get(attached)? != "0";
        let (key, id, maker) = (fields.get(key)?, fields.get(id)?, fields.get(maker)?);
        (!is_attached).then(|| (format!("SysV segment {id}, key {key}, made by {maker}"), bytes))
    };
    lines.filter_map(segment).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHM: &str = "       key      shmid perms       size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime      ctime        rss       swap\n\
        0          0   600    1048576   100   100      0     0     0     0     0  1  0  1  524288  0\n\
        42         1   600    1048576   100   100      2     0     0     0     0  1  0  1  1048576  0\n\
        43         2   600    1048576   101   101      0     0     0     0     0  1  0  1  0  0\n";

    #[test]
    fn segments_without_anybody() {
        assert_eq!(parse_segments(SHM), [("SysV segment 0, key 0, made by 100".to_owned(), 524_288)]);
        assert!(parse_segments("").is_empty());
        assert!(parse_segments("key shmid\n1 2\n").is_empty());
        let cut: String = SHM.lines().map(|line| line.chars().take(60).collect::<String>() + "\n").collect();
        assert!(parse_segments(&cut).is_empty());
    }
}
