//! Finding the files that hold a binary's debug information, or the binary.
//!
//! Order and places as in GDB's manual, "Debugging Information in Separate
//! Files"; a server is asked last.

mod debuginfod;
mod trail;

pub use debuginfod::{Debuginfod, UnusableUrl};
pub(crate) use trail::Trail;
pub use trail::{Outcome, Source, Tried};

use crate::image::{BuildId, Image};
use debuginfod::Kind;
use object::Object;
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

/// A file that was found, and where.
pub(crate) type Found = (Image, PathBuf);

/// Where files are looked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Search<'s> {
    pub(crate) dirs: &'s DebugDirs,
    pub(crate) server: Option<&'s Debuginfod>,
}

impl Search<'_> {
    /// The separate debug file of `image`, if there is one that matches it: the
    /// first with DWARF, else the first, which has symbols perhaps.
    pub(crate) fn find(&self, image: &Image, path: Option<&Path>, trail: &mut Trail) -> Option<Found> {
        let mut poor = None;
        self.by_build_id(image.build_id(), trail, &mut poor)
            .or_else(|| self.by_link(image, path, trail, &mut poor))
            .or_else(|| {
                let is_meant = |found: &Image| judge_debug(found, found.build_id() == image.build_id());
                self.server?.fetch(image.build_id()?, Kind::DebugInfo, Source::BuildId, trail, &is_meant)
            })
            .or(poor)
    }

    /// `DIR/.build-id/xx/yyyy.debug`.
    fn by_build_id(&self, id: Option<&BuildId>, trail: &mut Trail, poor: &mut Option<Found>) -> Option<Found> {
        let id = id?;
        let candidates = self.dirs.dirs.iter().filter_map(|dir| in_tree(dir, id, ".debug"));
        first_with_dwarf(Source::BuildId, candidates, trail, poor, &|image| image.build_id() == Some(id))
    }

    /// `.gnu_debuglink`: a file name and the CRC-32 of the file.
    fn by_link(
        &self,
        image: &Image,
        path: Option<&Path>,
        trail: &mut Trail,
        poor: &mut Option<Found>,
    ) -> Option<Found> {
        let file = object::File::parse(image.bytes()).ok()?;
        let (name, crc) = file.gnu_debuglink().ok()??;
        let name = Path::new(std::str::from_utf8(name).ok()?);
        // A path in there would lead anywhere.
        let name = name.file_name()?;
        let folder = path?.parent()?;
        let beside = [folder.join(name), folder.join(".debug").join(name)];
        let in_trees = self
            .dirs
            .dirs
            .iter()
            .flat_map(|dir| [dir.join(folder.strip_prefix("/").unwrap_or(folder)).join(name), dir.join(name)]);
        let candidates = beside.into_iter().chain(in_trees);
        first_with_dwarf(
            Source::DebugLink,
            candidates,
            trail,
            poor,
            &|debug| match (image.build_id(), debug.build_id()) {
                (Some(a), Some(b)) => a == b,
                _ => crc32(debug.bytes()) == crc,
            },
        )
    }

    /// `.gnu_debugaltlink`: what dwz shared between several debug files.
    pub(crate) fn alternate(&self, debug: &Image, debug_path: Option<&Path>, trail: &mut Trail) -> Option<Found> {
        let file = object::File::parse(debug.bytes()).ok()?;
        let (name, id) = file.gnu_debugaltlink().ok()??;
        let id = BuildId::from_bytes(id);
        let name = Path::new(std::str::from_utf8(name).ok()?);
        let in_trees = self.dirs.dirs.iter().flat_map(|dir| {
            in_tree(dir, &id, ".debug").into_iter().chain(name.file_name().map(|name| dir.join(".dwz").join(name)))
        });
        // Debian's are relative to the debug file, which lies in a build-id tree.
        let beside = debug_path.and_then(Path::parent).map(|dir| dir.join(name));
        let is_meant = |image: &Image| judge_debug(image, image.build_id() == Some(&id));
        trail
            .first(Source::Alternate, in_trees.chain(beside), &is_meant)
            .or_else(|| self.server?.fetch(&id, Kind::DebugInfo, Source::Alternate, trail, &is_meant))
    }

    /// The other halves of units, packed into one file beside the binary or its
    /// debug file.
    pub(crate) fn package(&self, paths: &[&Path], trail: &mut Trail) -> Option<Found> {
        let names = paths.iter().flat_map(|path| {
            // Of `p.debug` the package is called after `p`.
            let stem = path.extension().is_some_and(|e| e == "debug").then(|| path.with_extension(""));
            std::iter::once(path.to_path_buf()).chain(stem)
        });
        let mut candidates = Vec::new();
        for path in names {
            let Some(name) = path.file_name().map(|name| format!("{}.dwp", name.display())) else { continue };
            let in_dirs = self.dirs.dirs.iter().map(|dir| dir.join(&name));
            for candidate in std::iter::once(path.with_file_name(&name)).chain(in_dirs) {
                if !candidates.contains(&candidate) {
                    candidates.push(candidate);
                }
            }
        }
        // Whether it is of this build, the units tell.
        trail.first(Source::Package, candidates, &|_| Outcome::Used)
    }

    /// The other half of a unit: where the compiler wrote it, beside the binary or its
    /// debug file, or in one of the folders.
    pub(crate) fn split(
        &self,
        folder: &Path,
        name: &Path,
        paths: &[&Path],
        is_meant: &dyn Fn(&Image) -> bool,
        trail: &mut Trail,
    ) -> Option<Image> {
        let bare = name.file_name()?;
        let beside = paths.iter().filter_map(|path| Some(path.parent()?.join(bare)));
        let in_dirs = self.dirs.dirs.iter().map(|dir| dir.join(bare));
        let candidates = std::iter::once(folder.join(name)).chain(beside).chain(in_dirs);
        let judge = |image: &Image| if is_meant(image) { Outcome::Used } else { Outcome::OtherBuild };
        trail.first(Source::SplitUnit, candidates, &judge).map(|(image, _)| image)
    }

    /// The binary with this build ID, which was at `path` on its own machine: in a
    /// tree by build ID, in a copy of its file system or anywhere in a folder under
    /// its name; else its debug file, which has names and no code.
    pub(crate) fn binary(&self, id: &BuildId, path: &Path, trail: &mut Trail) -> Option<Found> {
        let inside = path.strip_prefix("/").unwrap_or(path);
        let name = path.file_name();
        let dirs = || self.dirs.dirs.iter();
        let binaries = dirs().flat_map(|dir| {
            let by_path = (inside.components().count() > 1).then(|| dir.join(inside));
            in_tree(dir, id, "").into_iter().chain(by_path).chain(name.map(|name| dir.join(name)))
        });
        let debug_files = dirs().flat_map(|dir| {
            let by_name = name.map(|name| dir.join(format!("{}.debug", name.display())));
            in_tree(dir, id, ".debug").into_iter().chain(by_name)
        });
        let is_meant = |image: &Image| if image.build_id() == Some(id) { Outcome::Used } else { Outcome::OtherBuild };
        let by_server = |kind, trail: &mut Trail| self.server?.fetch(id, kind, Source::Binary, trail, &is_meant);
        trail
            .first(Source::Binary, binaries, &is_meant)
            .or_else(|| trail.first(Source::BuildId, debug_files, &is_meant))
            .or_else(|| by_server(Kind::DebugInfo, trail))
            .or_else(|| by_server(Kind::Executable, trail))
    }
}

fn in_tree(dir: &Path, id: &BuildId, suffix: &str) -> Option<PathBuf> {
    let (head, tail) = id.as_str().split_at_checked(2)?;
    Some(dir.join(".build-id").join(head).join(format!("{tail}{suffix}")))
}

/// The first that is meant and has DWARF; `poor` keeps the first that is meant and
/// has none.
fn first_with_dwarf(
    source: Source,
    candidates: impl Iterator<Item = PathBuf>,
    trail: &mut Trail,
    poor: &mut Option<Found>,
    is_meant: &dyn Fn(&Image) -> bool,
) -> Option<Found> {
    for path in candidates {
        match trail.open(source, &path, &|image| judge_debug(image, is_meant(image))) {
            Some((image, Outcome::Used)) => return Some((image, path)),
            Some((image, Outcome::NoDebugInfo)) if poor.is_none() => *poor = Some((image, path)),
            _ => {}
        }
    }
    None
}

fn judge_debug(image: &Image, is_meant: bool) -> Outcome {
    let has_dwarf =
        || object::File::parse(image.bytes()).is_ok_and(|file| file.section_by_name(".debug_info").is_some());
    match is_meant {
        false => Outcome::OtherBuild,
        true if has_dwarf() => Outcome::Used,
        true => Outcome::NoDebugInfo,
    }
}

/// CRC-32 as in `.gnu_debuglink` (the zlib polynomial, reflected).
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(bytes);
    crc.finalize()
}
