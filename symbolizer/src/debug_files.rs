//! Finding the files that hold a binary's debug information.
//!
//! Order and places as in GDB's manual, "Debugging Information in Separate
//! Files".

use crate::image::{BuildId, Image};
use object::Object;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Folders that hold separate debug files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DebugDirs {
    /// Searched in order.
    pub dirs: Vec<PathBuf>,
}

impl Default for DebugDirs {
    /// Debian's and everybody else's place.
    fn default() -> Self {
        DebugDirs { dirs: vec![PathBuf::from("/usr/lib/debug")] }
    }
}

/// A file that was looked at, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    /// The file.
    pub path: PathBuf,
    /// What it gave.
    pub outcome: Outcome,
}

/// What a file gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is the one that was looked for.
    Used,
    /// There is none.
    Absent,
    /// It could not be opened.
    NotReadable,
    /// It is no ELF file, or a damaged one.
    NotElf,
    /// It belongs to another build.
    OtherBuild,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::Used => "used",
            Outcome::Absent => "absent",
            Outcome::NotReadable => "not readable",
            Outcome::NotElf => "not a valid ELF file",
            Outcome::OtherBuild => "of another build",
        })
    }
}

/// Files that are remembered of one binary; split DWARF can have thousands.
const MOST_TRIED: usize = 64;

/// What was tried so far.
pub(crate) type Trail = Vec<Tried>;

/// A file that was found, and where.
pub(crate) type Found = (Image, PathBuf);

impl DebugDirs {
    /// The separate debug file of `image`, if there is one that matches it.
    pub(crate) fn find(&self, image: &Image, path: Option<&Path>, trail: &mut Trail) -> Option<Found> {
        self.by_build_id(image.build_id(), trail).or_else(|| self.by_link(image, path, trail))
    }

    /// `DIR/.build-id/xx/yyyy.debug`.
    fn by_build_id(&self, id: Option<&BuildId>, trail: &mut Trail) -> Option<Found> {
        let id = id?;
        let candidates = self.dirs.iter().flat_map(|dir| in_tree(dir, id, ".debug"));
        first(candidates, trail, |image| image.build_id() == Some(id))
    }

    /// `.gnu_debuglink`: a file name and the CRC-32 of the file.
    fn by_link(&self, image: &Image, path: Option<&Path>, trail: &mut Trail) -> Option<Found> {
        let file = object::File::parse(image.bytes()).ok()?;
        let (name, crc) = file.gnu_debuglink().ok()??;
        let name = Path::new(std::str::from_utf8(name).ok()?);
        // A path in there would lead anywhere.
        let name = name.file_name()?;
        let folder = path?.parent()?;
        let beside = [folder.join(name), folder.join(".debug").join(name)];
        let in_trees = self
            .dirs
            .iter()
            .flat_map(|dir| [dir.join(folder.strip_prefix("/").unwrap_or(folder)).join(name), dir.join(name)]);
        first(beside.into_iter().chain(in_trees), trail, |debug| match (image.build_id(), debug.build_id()) {
            (Some(a), Some(b)) => a == b,
            _ => crc32(debug.bytes()) == crc,
        })
    }

    /// `.gnu_debugaltlink`: what dwz shared between several debug files.
    pub(crate) fn alternate(&self, debug: &Image, debug_path: Option<&Path>, trail: &mut Trail) -> Option<Found> {
        let file = object::File::parse(debug.bytes()).ok()?;
        let (name, id) = file.gnu_debugaltlink().ok()??;
        let id = BuildId::from_bytes(id);
        let name = Path::new(std::str::from_utf8(name).ok()?);
        let in_trees = self.dirs.iter().flat_map(|dir| {
            in_tree(dir, &id, ".debug").into_iter().chain(name.file_name().map(|name| dir.join(".dwz").join(name)))
        });
        // Debian's are relative to the debug file, which lies in a build-id tree.
        let beside = debug_path.and_then(Path::parent).map(|dir| dir.join(name));
        first(in_trees.chain(beside), trail, |image| image.build_id() == Some(&id))
    }

    /// The other halves of units, packed into one file beside the binary.
    pub(crate) fn package(&self, path: &Path, trail: &mut Trail) -> Option<Found> {
        let name = format!("{}.dwp", path.file_name()?.display());
        let candidates = std::iter::once(path.with_file_name(&name)).chain(self.dirs.iter().map(|d| d.join(&name)));
        first(candidates, trail, |_| true)
    }

    /// The other half of a unit: where the compiler wrote it, beside the binary, or
    /// in one of the folders.
    pub(crate) fn split(&self, folder: &Path, name: &Path, path: Option<&Path>, trail: &mut Trail) -> Option<Image> {
        let bare = name.file_name()?;
        let beside = path.and_then(Path::parent).map(|dir| dir.join(bare));
        let candidates =
            std::iter::once(folder.join(name)).chain(beside).chain(self.dirs.iter().map(|dir| dir.join(bare)));
        first(candidates, trail, |_| true).map(|(image, _)| image)
    }
}

fn in_tree(dir: &Path, id: &BuildId, suffix: &str) -> Option<PathBuf> {
    let (head, tail) = id.as_str().split_at_checked(2)?;
    Some(dir.join(".build-id").join(head).join(format!("{tail}{suffix}")))
}

/// The first candidate that is the one meant; all that were tried are kept.
fn first(
    candidates: impl Iterator<Item = PathBuf>,
    trail: &mut Trail,
    is_meant: impl Fn(&Image) -> bool,
) -> Option<Found> {
    for path in candidates {
        let (outcome, image) = match File::open(&path).map(|file| Image::open(&file)) {
            Ok(Ok(image)) if is_meant(&image) => (Outcome::Used, Some(image)),
            Ok(Ok(_)) => (Outcome::OtherBuild, None),
            Ok(Err(_)) => (Outcome::NotElf, None),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                (Outcome::Absent, None)
            }
            Err(_) => (Outcome::NotReadable, None),
        };
        if trail.len() < MOST_TRIED {
            trail.push(Tried { path: path.clone(), outcome });
        }
        if let Some(image) = image {
            return Some((image, path));
        }
    }
    None
}

/// CRC-32 as in `.gnu_debuglink` (the zlib polynomial, reflected).
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(bytes);
    crc.finalize()
}
