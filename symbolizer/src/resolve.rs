//! Addresses of one ELF file to functions and lines.

use crate::Svma;
use crate::debug_files::{DebugDirs, Outcome, Source, Trail, Tried};
use crate::dwarf::{DebugSections, Dwarf, PackageSections, Split, Sweep};
use crate::frame::{Answer, FrameRef, Miss, Resolution, SymbolSource};
use crate::image::{BuildId, Image};
use crate::mini;
use crate::settings::{Detail, Settings};
use crate::symbols::Symbols;
use gimli::{Reader, Section};
use object::Object;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Who takes the answers: the index of the question, and what came of it.
pub type Sink<'s> = dyn FnMut(usize, Result<Answer<'_>, Miss>) + Send + 's;

/// How a file's addresses were resolved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    /// Files that were looked for, in order, beside the binary itself.
    pub tried: Vec<Tried>,
    /// Addresses that were resolved without inlined functions, for want of memory.
    pub without_inlined: usize,
    /// Addresses that were resolved without debug information, for want of memory.
    pub without_lines: usize,
}

/// Resolves addresses of one image; the answers are in the order of the
/// questions. `path` is where the image lies, for `.gnu_debuglink`. Everything
/// that was parsed is dropped on return.
#[must_use]
pub fn resolve(
    image: &Image,
    path: Option<&Path>,
    dirs: &DebugDirs,
    addresses: &[Svma],
) -> Vec<Result<Resolution, Miss>> {
    let mut answers = vec![Err(Miss::NoSymbol); addresses.len()];
    resolve_each(image, path, &Settings::new(dirs), addresses, &mut |question, answer| {
        answers[question] = answer.map(|a| a.to_resolution());
    });
    answers
}

/// The same without keeping the answers: each question is answered once, in any
/// order, and memory depends on the number of questions and not on the binary.
pub fn resolve_each(
    image: &Image,
    path: Option<&Path>,
    settings: &Settings<'_>,
    addresses: &[Svma],
    sink: &mut Sink<'_>,
) -> Account {
    let mut account = Account::default();
    let Ok(file) = object::File::parse(image.bytes()) else {
        (0..addresses.len()).for_each(|question| sink(question, Err(Miss::NotElf)));
        return account;
    };
    let mut trail = Trail::default();
    let companions = Companions::find(image, &file, path, settings, &mut trail);
    let (debug_image, debug_path) =
        companions.separate.as_ref().map_or((image, path), |(image, path)| (image, Some(path.as_path())));
    let debug_file = companions.separate.as_ref().and_then(|(debug, _)| object::File::parse(debug.bytes()).ok());
    let alternate_file = companions.alternate.as_ref().and_then(|image| object::File::parse(image.bytes()).ok());
    let mini_file = companions.mini.as_ref().and_then(|image| object::File::parse(image.bytes()).ok());
    if settings.lean {
        debug_image.expect_random();
    }

    // Neighbours share a unit, so the questions are asked in order of addresses.
    let mut order: Vec<u32> = (0..addresses.len() as u32).collect();
    order.sort_unstable_by_key(|&question| addresses[question as usize]);
    let sorted: Vec<u64> = order.iter().map(|&question| addresses[question as usize].0).collect();
    let mut symbols = Symbols::new(image, &file, debug_file.as_ref(), mini_file.as_ref(), &sorted);
    let mut answer = |position: usize, frames: &[FrameRef<'_>]| {
        let question = order[position] as usize;
        if frames.iter().any(|f| f.function.is_some()) {
            sink(question, Ok(Answer { frames, source: SymbolSource::Dwarf }));
        } else {
            symbols.answer(position, frames.first(), &mut |found| sink(question, found));
        }
    };
    // What is compressed is decompressed here, if there is room for it.
    let mut room = settings.room();
    let debug_place = debug_path.unwrap_or(Path::new("(in memory)"));
    let sections = match DebugSections::read(debug_file.as_ref().unwrap_or(&file), &mut room) {
        Ok(sections) => sections,
        Err(outcome) => {
            if outcome != Outcome::NoDebugInfo {
                trail.add(Source::DebugSections, debug_place, outcome);
                account.without_lines = sorted.len();
            }
            (0..sorted.len()).for_each(|position| answer(position, &[]));
            account.tried = trail.into_tried();
            return account;
        }
    };
    if sections.is_damaged {
        trail.add(Source::DebugSections, debug_place, Outcome::Damaged);
    }
    let shared = alternate_file.as_ref().and_then(|file| {
        let shared = DebugSections::read(file, &mut room);
        shared.inspect_err(|outcome| trail.correct(Source::Alternate, *outcome)).ok()
    });
    let dwarf = sections.dwarf(shared.as_ref());
    let search = settings.search();
    let paths: Vec<&Path> = path.into_iter().chain(debug_path.filter(|d| Some(*d) != path)).collect();
    let package = if has_skeletons(&dwarf) { search.package(&paths, &mut trail) } else { None };
    let package_file = package.as_ref().and_then(|(package, _)| object::File::parse(package.bytes()).ok());
    let package_sections = package_file.as_ref().and_then(|file| {
        let sections = PackageSections::read(file, &mut room);
        sections.inspect_err(|outcome| trail.correct(Source::Package, *outcome)).ok()
    });
    let package = package_sections.as_ref().and_then(PackageSections::package);
    let trail = Mutex::new(trail);
    let trail = || trail.lock().unwrap_or_else(PoisonError::into_inner);
    let (without_inlined, without_lines) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (packed, not_packed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let has_panicked = AtomicBool::new(false);
    let sweep = Sweep {
        dwarf: &dwarf,
        split: Split {
            package: package.as_ref(),
            in_package: &|is_there| {
                let count = if is_there { &packed } else { &not_packed };
                count.fetch_add(1, Ordering::Relaxed);
            },
            open: &|folder, name, is_meant| search.split(&folder, &name, &paths, is_meant, &mut trail()),
            room: &|| settings.room(),
            unusable: &|outcome, count| {
                trail().correct(Source::SplitUnit, outcome);
                without_inlined.fetch_add(count, Ordering::Relaxed);
            },
        },
        threads: settings.threads,
        lean: settings.lean,
        detail: &|count| {
            let detail = settings.detail();
            match detail {
                Detail::Symbols => without_lines.fetch_add(count, Ordering::Relaxed),
                Detail::Functions => without_inlined.fetch_add(count, Ordering::Relaxed),
                Detail::Inlined => 0,
            };
            detail
        },
        before: &|bytes| {
            if settings.lean {
                debug_image.expect(bytes);
            }
        },
        after: &|| {
            if settings.lean {
                debug_image.release();
            }
        },
        damaged: &|| has_panicked.store(true, Ordering::Relaxed),
    };
    sweep.run(&sorted, &mut answer);
    if has_panicked.into_inner() && !sections.is_damaged {
        trail().add(Source::DebugSections, debug_place, Outcome::Damaged);
    }
    if packed.into_inner() == 0 && not_packed.into_inner() > 0 {
        trail().correct(Source::Package, Outcome::OtherBuild);
    }
    account.tried = std::mem::take(&mut *trail()).into_tried();
    account.without_inlined = without_inlined.into_inner();
    account.without_lines = without_lines.into_inner();
    account
}

/// Files that tell more of a binary than it does.
struct Companions {
    /// Its debug file, if it has no DWARF itself.
    separate: Option<(Image, PathBuf)>,
    /// What dwz took out of it or of its debug file.
    alternate: Option<Image>,
    /// What is in its `.gnu_debugdata`, if there is no better symbol table.
    mini: Option<Image>,
}

impl Companions {
    fn find(
        image: &Image,
        file: &object::File<'_>,
        path: Option<&Path>,
        settings: &Settings<'_>,
        trail: &mut Trail,
    ) -> Self {
        let search = settings.search();
        let has_dwarf = file.section_by_name(".debug_info").is_some();
        let separate = if has_dwarf { None } else { search.find(image, path, trail) };
        let (debug, debug_path) =
            separate.as_ref().map_or((image, path), |(image, path)| (image, Some(path.as_path())));
        // A stripped binary may still have the link, which is its debug file's.
        let has_debug = has_dwarf || separate.is_some();
        let alternate = has_debug.then(|| search.alternate(debug, debug_path, trail)).flatten().map(|(image, _)| image);
        let has_table = |bytes| object::File::parse(bytes).is_ok_and(|file| file.symbol_table().is_some());
        let is_named = file.symbol_table().is_some() || has_table(debug.bytes());
        let mini = if is_named { None } else { mini::open(file, path, settings.room(), trail) };
        Companions { separate, alternate, mini }
    }
}

/// Whether units may have their other halves elsewhere: what is left of them has its
/// addresses in a section that GCC makes for nothing else.
fn has_skeletons(dwarf: &Dwarf<'_>) -> bool {
    !dwarf.debug_addr.reader().is_empty()
}

/// The file with this build ID, which lay at `path` on a machine that need not be this
/// one: the binary, or its debug file. With what was tried.
pub fn find_binary(id: &BuildId, path: &Path, settings: &Settings<'_>) -> (Option<(Image, PathBuf)>, Vec<Tried>) {
    let mut trail = Trail::default();
    let found = settings.search().binary(id, path, &mut trail);
    (found, trail.into_tried())
}
