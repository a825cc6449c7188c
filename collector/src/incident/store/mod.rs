//! The folder of incidents.
//!
//! An incident is written into a staging folder and appears under its name by
//! one rename, complete or not at all. What a killed reprieve left staged is
//! published by the next one if it holds an `incident.json`.

mod retention;

pub use retention::{Limits, Removal};

use super::model::Incident;
use super::read::read_incident;
use crate::moment::parse_moment;
use crate::snapshot::process::start_ticks;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Disk space kept in hand while guarding, enough for an incident.
pub const RESERVE_BYTES: i64 = 4 << 20;

/// The incident itself in its folder.
pub const INCIDENT: &str = "incident.json";
/// The unsymbolized incident that the guardian leaves in the staging folder.
pub const DRAFT: &str = "draft.json";
const STAGING: &str = ".tmp-";
const RESERVE: &str = ".reserve-";

/// What can go wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder cannot be used.
    #[error("incidents cannot be written to {path}: {reason}; {}", remedy(.reason))]
    Unusable {
        /// The folder.
        path: PathBuf,
        /// Why.
        reason: io::Error,
    },
    /// A file could not be written or read.
    #[error("failed on {path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: io::Error,
    },
    /// No such incident.
    #[error("no incident {wanted:?} in {path}; `reprieve list` shows what there is")]
    NotFound {
        /// As asked for.
        wanted: String,
        /// The folder.
        path: PathBuf,
    },
    /// A prefix fits several.
    #[error("{wanted:?} fits several incidents: {fits}; write more of the ID")]
    Ambiguous {
        /// As asked for.
        wanted: String,
        /// What fits.
        fits: String,
    },
    /// The JSON is damaged or of another format.
    #[error("{path} is not a readable incident: {reason}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl StoreError {
    /// Whether the disk is to blame, and not who named the folder: it is full, or came to
    /// be read-only, or fails. That may be otherwise later.
    #[must_use]
    pub fn is_of_the_disk(&self) -> bool {
        let (StoreError::Unusable { reason, .. } | StoreError::File { reason, .. }) = self else { return false };
        let of_the_disk = [Errno::ENOSPC, Errno::EDQUOT, Errno::EROFS, Errno::EIO];
        of_the_disk.iter().any(|&errno| reason.raw_os_error() == Some(errno as i32))
    }
}

/// What to do about a folder that cannot be written to.
fn remedy(reason: &io::Error) -> &'static str {
    match reason.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free space there or name another folder with --out"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "make it writable or name another folder with --out"
        }
        _ => "name another folder with --out",
    }
}

/// A folder of incidents.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

/// Where incidents are kept unless the user says otherwise: `/var/lib/reprieve`
/// for root, the XDG state directory for others.
#[must_use]
pub fn default_dir() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return PathBuf::from("/var/lib/reprieve");
    }
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".local/state");
    std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).unwrap_or_else(home).join("reprieve")
}

impl Store {
    /// A store to read from; need not exist.
    #[must_use]
    pub fn at(dir: Option<PathBuf>) -> Self {
        Store { dir: dir.unwrap_or_else(default_dir) }
    }

    /// A store to write to: made if need be, and what a dead reprieve left in
    /// it is put in order.
    pub fn open(dir: Option<PathBuf>) -> Result<Self, StoreError> {
        let store = Self::at(dir);
        let unusable = |reason| StoreError::Unusable { path: store.dir.clone(), reason };
        store.make_dir().map_err(unusable)?;
        store.dir.canonicalize().map_err(unusable).map(|dir| Store { dir }).inspect(Store::salvage)
    }

    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn make_dir(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)
    }

    /// Bytes that we may still write there; `None` where nobody can tell.
    #[must_use]
    pub fn free_bytes(&self) -> Option<u64> {
        nix::sys::statvfs::statvfs(&self.dir).ok().map(|fs| fs.blocks_available() * fs.fragment_size())
    }

    /// Keeps disk space in hand. Fails when there is none now.
    pub fn reserve(&self) -> Result<DiskReserve, StoreError> {
        // One may be there until another takes its place.
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let path = self.dir.join(format!("{RESERVE}{}.{}", own_mark(), NUMBER.fetch_add(1, Relaxed)));
        let unusable = |reason| StoreError::Unusable { path: self.dir.clone(), reason };
        self.make_dir().map_err(unusable)?;
        let file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path).map_err(unusable)?;
        let reserve = DiskReserve { path };
        nix::fcntl::posix_fallocate(&file, 0, RESERVE_BYTES).map_err(|errno| unusable(errno.into()))?;
        Ok(reserve)
    }

    /// A name for a new incident: time, what it is about, and a random part.
    #[must_use]
    pub fn new_id(&self, time_unix_us: u64, subject: &str) -> String {
        let slug: String = subject
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c.to_ascii_lowercase() } else { '-' })
            .take(32)
            .collect();
        let mut random = [0u8; 3];
        // Without randomness the microseconds tell incidents apart.
        if File::open("/dev/urandom").and_then(|mut f| io::Read::read_exact(&mut f, &mut random)).is_err() {
            random.copy_from_slice(&time_unix_us.to_le_bytes()[..3]);
        }
        let hex: String = random.iter().map(|b| format!("{b:02x}")).collect();
        format!("{}-{}-{hex}", super::units::compact_time(time_unix_us), slug.trim_matches('-'))
    }

    /// Begins to write an incident.
    pub fn stage(&self, id: &str) -> Result<Staging, StoreError> {
        let path = self.dir.join(format!("{STAGING}{}-{id}", own_mark()));
        let make = || DirBuilder::new().mode(0o700).create(&path);
        let made = match make() {
            // When it was opened, there was no room even for the folder.
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.make_dir().and_then(|()| make()),
            made => made,
        };
        made.map_err(|reason| StoreError::Unusable { path: path.clone(), reason })?;
        Ok(Staging { path, id: id.to_owned(), published: false })
    }

    /// IDs, oldest first; a store that was never made has none.
    pub fn ids(&self) -> Result<Vec<String>, StoreError> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(reason) => return Err(StoreError::File { path: self.dir.clone(), reason }),
        };
        let mut ids: Vec<String> = entries
            .flatten()
            .filter(|e| e.path().join(INCIDENT).is_file())
            .filter_map(|e| e.file_name().into_string().ok())
            .filter(|name| !name.starts_with('.'))
            .collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// The incident with this ID or unique beginning of one; the newest
    /// without. Returns its folder too.
    pub fn load(&self, wanted: Option<&str>) -> Result<(PathBuf, Incident), StoreError> {
        // A whole name needs no look at all the others, of which there can be thousands.
        let is_name = |wanted: &&str| !wanted.is_empty() && !wanted.starts_with('.') && !wanted.contains('/');
        if let Some(dir) = wanted.filter(is_name).map(|wanted| self.dir.join(wanted))
            && dir.join(INCIDENT).is_file()
        {
            return read_incident(&dir.join(INCIDENT)).map(|incident| (dir, incident));
        }
        let ids = self.ids()?;
        let not_found =
            || StoreError::NotFound { wanted: wanted.unwrap_or("(newest)").to_owned(), path: self.dir.clone() };
        let id = match wanted {
            None => ids.last().ok_or_else(not_found)?,
            Some(wanted) => {
                let fits: Vec<&String> =
                    ids.iter().filter(|id| id.starts_with(wanted) || id.ends_with(wanted)).collect();
                match fits[..] {
                    [] => return Err(not_found()),
                    [one] => one,
                    _ => {
                        let fits = fits.iter().map(|s| s.as_str()).collect::<Vec<_>>().join(", ");
                        return Err(StoreError::Ambiguous { wanted: wanted.to_owned(), fits });
                    }
                }
            }
        };
        let dir = self.dir.join(id);
        read_incident(&dir.join(INCIDENT)).map(|incident| (dir, incident))
    }

    /// Removes an incident.
    pub fn remove(&self, id: &str) -> Result<(), StoreError> {
        let path = self.dir.join(id);
        fs::remove_dir_all(&path).map_err(|reason| StoreError::File { path, reason })
    }

    /// Publishes or removes what dead processes left staged.
    fn salvage(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(rest) = name.strip_prefix(RESERVE) {
                if mark_is_dead(rest.split('.').next().unwrap_or_default()) {
                    let _ = fs::remove_file(entry.path());
                }
            } else if let Some(rest) = name.strip_prefix(STAGING) {
                let mut parts = rest.splitn(3, '-');
                let (Some(pid), Some(ticks), Some(id)) = (parts.next(), parts.next(), parts.next()) else { continue };
                if !mark_is_dead(&format!("{pid}-{ticks}")) {
                    continue;
                }
                let whole = entry.path().join(INCIDENT);
                // A draft is all evidence without verdict: its writer died in
                // the hold.
                let _ = fs::hard_link(entry.path().join(DRAFT), &whole);
                // One that was to replace an older one, or that was replaced.
                let is_published = self.dir.join(id).join(INCIDENT).is_file();
                let result = if whole.is_file() && !is_published {
                    fs::rename(entry.path(), self.dir.join(id))
                } else {
                    fs::remove_dir_all(entry.path())
                };
                // What resists stays for the next run; it hinders nobody.
                let _ = result;
            }
        }
    }
}

/// Whether a name looks like one of [`Store::new_id`].
fn is_own_name(name: &str) -> bool {
    let mut parts = name.split('-');
    let time = parts.next().unwrap_or_default();
    let random = parts.next_back().unwrap_or_default();
    time.len() == super::units::compact_time(0).len()
        && time.ends_with('Z')
        && time.bytes().all(|b| b.is_ascii_digit() || b"T.Z".contains(&b))
        && random.len() == 6
        && random.bytes().all(|b| b.is_ascii_hexdigit())
}

/// When a folder with one of our names was named, in microseconds since 1970.
#[must_use]
pub fn time_of(id: &str) -> Option<u64> {
    let time = id.split('-').next().filter(|_| is_own_name(id))?;
    // As moments are written: 20261123T174801.042Z.
    let part = |range: std::ops::Range<usize>| time.get(range).unwrap_or_default();
    let date = format!("{}-{}-{}", part(0..4), part(4..6), part(6..8));
    parse_moment(&format!("{date}T{}:{}:{}", part(9..11), part(11..13), part(13..20))).ok()
}

/// Disk space in hand; given back when dropped.
#[derive(Debug)]
pub struct DiskReserve {
    path: PathBuf,
}

impl Drop for DiskReserve {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// An incident being written.
#[derive(Debug)]
pub struct Staging {
    path: PathBuf,
    id: String,
    published: bool,
}

impl Staging {
    /// The folder to write to.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the place of the incident with its ID, which is removed: at every moment
    /// there is one or the other.
    pub fn exchange(self) -> Result<(), StoreError> {
        let to = self.path.with_file_name(&self.id);
        let fail = |reason| StoreError::Unusable { path: to.clone(), reason };
        File::open(&self.path).and_then(|d| d.sync_all()).map_err(fail)?;
        match renameat2(AT_FDCWD, &self.path, AT_FDCWD, &to, RenameFlags::RENAME_EXCHANGE) {
            Ok(()) => {}
            // A file system that cannot: file by file, each whole, the incident last.
            Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => move_files(&self.path, &to).map_err(fail)?,
            Err(errno) => return Err(fail(errno.into())),
        }
        if let Some(parent) = to.parent() {
            File::open(parent).and_then(|d| d.sync_all()).map_err(fail)?;
        }
        // Dropped with what is under our name now.
        Ok(())
    }

    /// Makes it visible under its ID; returns the folder.
    pub fn publish(mut self) -> Result<PathBuf, StoreError> {
        let to = self.path.with_file_name(&self.id);
        let fail = |reason| StoreError::Unusable { path: to.clone(), reason };
        File::open(&self.path).and_then(|d| d.sync_all()).map_err(fail)?;
        fs::rename(&self.path, &to).map_err(fail)?;
        self.published = true;
        if let Some(parent) = to.parent() {
            File::open(parent).and_then(|d| d.sync_all()).map_err(fail)?;
        }
        Ok(to)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.published {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

fn move_files(from: &Path, to: &Path) -> io::Result<()> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(from)?.map(|entry| entry.map(|e| e.path())).collect::<io::Result<_>>()?;
    files.sort_by_key(|path| path.file_name().is_some_and(|name| name == INCIDENT));
    for file in files.iter().filter(|path| path.is_file()) {
        fs::rename(file, to.join(file.file_name().unwrap_or_default()))?;
    }
    File::open(to)?.sync_all()
}

/// Writes a file whole or not at all.
pub fn write_atomically(dir: &Path, name: &str, content: &[u8]) -> Result<(), StoreError> {
    let path = dir.join(name);
    let temporary = dir.join(format!(".{name}"));
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    };
    write().map_err(|reason| {
        let _ = fs::remove_file(&temporary);
        StoreError::Unusable { path, reason }
    })
}

/// `PID-STARTTICKS` of this process.
fn own_mark() -> String {
    let pid = std::process::id() as i32;
    format!("{pid}-{}", start_ticks(pid).unwrap_or(0))
}

fn mark_is_dead(mark: &str) -> bool {
    let Some((pid, ticks)) = mark.split_once('-') else { return false };
    let (Ok(pid), Ok(ticks)) = (pid.parse::<i32>(), ticks.parse::<u64>()) else { return false };
    start_ticks(pid) != Some(ticks)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(Some(dir.path().to_owned())).unwrap();
        (dir, store)
    }

    pub(super) fn publish(store: &Store, second: u64, bytes: usize) -> String {
        let id = store.new_id(second * 1_000_000, "a program");
        let staging = store.stage(&id).unwrap();
        write_atomically(staging.path(), INCIDENT, &vec![b' '; bytes]).unwrap();
        staging.publish().unwrap();
        id
    }

    #[test]
    fn what_to_do_about_a_folder_fits_what_is_wrong_with_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let told = Store::open(Some(file.path().join("incidents"))).unwrap_err().to_string();
        assert!(told.ends_with("; name another folder with --out") && !told.contains("space"), "{told}");
        let told = |errno: Errno| StoreError::Unusable { path: "/x".into(), reason: errno.into() }.to_string();
        for full in [Errno::ENOSPC, Errno::EDQUOT] {
            assert!(told(full).ends_with("; free space there or name another folder with --out"), "{}", told(full));
        }
        for refused in [Errno::EACCES, Errno::EPERM, Errno::EROFS] {
            assert!(told(refused).ends_with("; make it writable or name another folder with --out"));
        }
        // A wrong name stays wrong, a disk may be mended.
        let is_of_the_disk =
            |errno: Errno| StoreError::Unusable { path: "/x".into(), reason: errno.into() }.is_of_the_disk();
        assert!([Errno::ENOSPC, Errno::EDQUOT, Errno::EROFS, Errno::EIO].into_iter().all(is_of_the_disk));
        assert!(![Errno::EACCES, Errno::EPERM, Errno::ENOTDIR].into_iter().any(is_of_the_disk));
    }

    #[test]
    fn a_folder_that_could_not_be_made_is_made_when_it_can() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(Some(dir.path().join("a/b")));
        drop(store.stage("first").unwrap());
        fs::remove_dir_all(dir.path().join("a")).unwrap();
        drop(store.reserve().unwrap());
        assert!(store.dir().is_dir());
    }

    #[test]
    fn names_tell_their_time() {
        let (_dir, store) = store();
        let time = 1_795_596_373_632_000;
        assert_eq!(time_of(&store.new_id(time, "sort")), Some(time));
        assert_eq!(time_of("20261125T084613.632Z-somebody-s"), None);
        assert_eq!(time_of("mine"), None);
    }

    #[test]
    fn what_the_dead_left_is_published_or_removed() {
        let (dir, store) = store();
        // No process starts at tick 1 but the first of the machine.
        let dead = "999999999-1";
        let staged = |id: &str| dir.path().join(format!("{STAGING}{dead}-{id}"));
        for (id, file) in [("whole", INCIDENT), ("in-the-hold", DRAFT), ("empty", "symbols.json")] {
            fs::create_dir(staged(id)).unwrap();
            fs::write(staged(id).join(file), id).unwrap();
        }
        let reserve = dir.path().join(format!("{RESERVE}{dead}.7"));
        fs::write(&reserve, "").unwrap();
        let (first, second) = (store.reserve().unwrap(), store.reserve().unwrap());
        drop(first);
        let mine = store.stage("mine").unwrap();
        // One whose writer died just before or after it took the other's place.
        let first = publish(&store, 1, 1000);
        fs::create_dir(staged(&first)).unwrap();
        fs::write(staged(&first).join(INCIDENT), "the other").unwrap();
        store.salvage();
        assert_eq!(store.ids().unwrap(), [first.as_str(), "in-the-hold", "whole"]);
        assert!(!staged(&first).exists());
        assert_eq!(fs::read(dir.path().join(first).join(INCIDENT)).unwrap(), [b' '; 1000]);
        assert_eq!(fs::read(dir.path().join("in-the-hold").join(INCIDENT)).unwrap(), b"in-the-hold");
        assert!(!staged("empty").exists() && !reserve.exists());
        assert!(mine.path().exists() && second.path.exists(), "its writer lives");
    }

    #[test]
    fn one_takes_the_place_of_another() {
        let (dir, store) = store();
        let id = publish(&store, 1, 10);
        let read = || fs::read_to_string(dir.path().join(&id).join(INCIDENT)).unwrap();
        let staging = store.stage(&id).unwrap();
        write_atomically(staging.path(), INCIDENT, b"new").unwrap();
        let staged = staging.path().to_owned();
        staging.exchange().unwrap();
        assert_eq!(read(), "new");
        assert!(!staged.exists());
        // The way for file systems that cannot exchange.
        fs::write(dir.path().join(&id).join("notes"), "mine").unwrap();
        let staging = store.stage(&id).unwrap();
        write_atomically(staging.path(), INCIDENT, b"newer").unwrap();
        move_files(staging.path(), &dir.path().join(&id)).unwrap();
        drop(staging);
        assert_eq!(read(), "newer");
        assert!(dir.path().join(&id).join("notes").exists());
        // Nothing is left of one whose place nobody has.
        let staging = store.stage("nobody").unwrap();
        assert!(staging.exchange().is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_id_can_be_cut_at_either_end_but_not_guessed() {
        let (_dir, store) = store();
        let (a, b) = (publish(&store, 1, 1), publish(&store, 2, 1));
        let found = |wanted: &str| match store.load(Some(wanted)) {
            // What was found is no JSON; which file it was is in the message.
            Err(StoreError::Corrupt { path, .. }) => path.parent().unwrap().file_name().unwrap().to_owned(),
            other => panic!("{other:?}"),
        };
        assert_eq!(found(&a[..17]), *a);
        assert_eq!(found(&b[b.len() - 6..]), *b);
        assert!(matches!(store.load(Some("1970")), Err(StoreError::Ambiguous { .. })));
        assert!(matches!(store.load(Some("2020")), Err(StoreError::NotFound { .. })));
    }
}
