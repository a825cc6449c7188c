//! Finding the file that holds a binary's debug information.
//!
//! Order and places as in GDB's manual, "Debugging Information in Separate
//! Files".

use crate::image::{BuildId, Image};
use object::Object;
use std::fs::File;
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

impl DebugDirs {
    /// The separate debug file of `image`, if there is one that matches it.
    pub(crate) fn find(&self, image: &Image, path: Option<&Path>) -> Option<Image> {
        self.by_build_id(image.build_id()).or_else(|| self.by_link(image, path))
    }

    /// `DIR/.build-id/xx/yyyy.debug`.
    pub(crate) fn by_build_id(&self, id: Option<&BuildId>) -> Option<Image> {
        let id = id?;
        let (head, tail) = id.as_str().split_at_checked(2)?;
        self.dirs.iter().find_map(|dir| {
            let image = open(&dir.join(".build-id").join(head).join(format!("{tail}.debug")))?;
            (image.build_id() == Some(id)).then_some(image)
        })
    }

    /// `.gnu_debuglink`: a file name and the CRC-32 of the file.
    fn by_link(&self, image: &Image, path: Option<&Path>) -> Option<Image> {
        let file = object::File::parse(image.bytes()).ok()?;
        let (name, crc) = file.gnu_debuglink().ok()??;
        let name = Path::new(std::str::from_utf8(name).ok()?);
        // A path in there would lead anywhere.
        let name = name.file_name()?;
        let folder = path?.parent()?;
        let beside = [folder.join(name), folder.join(".debug").join(name)];
        let in_trees = self.dirs.iter().map(|dir| dir.join(folder.strip_prefix("/").unwrap_or(folder)).join(name));
        beside.into_iter().chain(in_trees).find_map(|candidate| {
            let debug = open(&candidate)?;
            let same = match (image.build_id(), debug.build_id()) {
                (Some(a), Some(b)) => a == b,
                _ => crc32(debug.bytes()) == crc,
            };
            same.then_some(debug)
        })
    }

    /// `.gnu_debugaltlink`: what dwz shared between several debug files.
    pub(crate) fn alternate(&self, debug: &Image, debug_path: Option<&Path>) -> Option<Image> {
        let file = object::File::parse(debug.bytes()).ok()?;
        let (name, id) = file.gnu_debugaltlink().ok()??;
        let id = BuildId::from_bytes(id);
        self.by_build_id(Some(&id)).or_else(|| {
            let name = Path::new(std::str::from_utf8(name).ok()?);
            // Debian's are relative to the debug file, which lies in a build-id tree.
            let in_trees = self.dirs.iter().map(|dir| dir.join(".dwz").join(name.file_name().unwrap_or_default()));
            let beside = debug_path.and_then(Path::parent).map(|dir| dir.join(name));
            beside.into_iter().chain(in_trees).find_map(|p| open(&p).filter(|i| i.build_id() == Some(&id)))
        })
    }
}

fn open(path: &Path) -> Option<Image> {
    Image::open(&File::open(path).ok()?).ok()
}

/// CRC-32 as in `.gnu_debuglink` (the zlib polynomial, reflected).
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(bytes);
    crc.finalize()
}
