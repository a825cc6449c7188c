//! Addresses of one ELF file to functions and lines.

use crate::Svma;
use crate::debug_files::{DebugDirs, Tried};
use crate::dwarf::{DebugSections, PackageSections, Split, Sweep};
use crate::frame::{Answer, FrameRef, Miss, Resolution, SymbolSource};
use crate::image::Image;
use crate::settings::{Detail, Settings};
use crate::symbols::Symbols;
use object::Object;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
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
    let (dirs, tried) = (settings.dirs, &mut account.tried);
    let has_dwarf = file.section_by_name(".debug_info").is_some();
    let separate = if has_dwarf { None } else { dirs.find(image, path, tried) };
    let (debug_image, debug_path) =
        separate.as_ref().map_or((image, path), |(image, path)| (image, Some(path.as_path())));
    let debug_file = separate.as_ref().and_then(|(debug, _)| object::File::parse(debug.bytes()).ok());
    let alternate = dirs.alternate(debug_image, debug_path, tried);
    let alternate_file = alternate.as_ref().and_then(|(shared, _)| object::File::parse(shared.bytes()).ok());
    let package = if has_dwarf { path.and_then(|path| dirs.package(path, tried)) } else { None };
    let package_file = package.as_ref().and_then(|(package, _)| object::File::parse(package.bytes()).ok());
    let package_sections = package_file.as_ref().and_then(PackageSections::read);
    let package = package_sections.as_ref().and_then(PackageSections::package);
    if settings.lean {
        debug_image.expect_random();
    }

    // Neighbours share a unit, so the questions are asked in order of addresses.
    let mut order: Vec<u32> = (0..addresses.len() as u32).collect();
    order.sort_unstable_by_key(|&question| addresses[question as usize]);
    let sorted: Vec<u64> = order.iter().map(|&question| addresses[question as usize].0).collect();
    let mut symbols = Symbols::new(image, &file, debug_file.as_ref(), &sorted);
    let mut answer = |position: usize, frames: &[FrameRef<'_>]| {
        let question = order[position] as usize;
        if frames.iter().any(|f| f.function.is_some()) {
            sink(question, Ok(Answer { frames, source: SymbolSource::Dwarf }));
        } else {
            symbols.answer(position, frames.first(), &mut |found| sink(question, found));
        }
    };
    let Some(sections) = DebugSections::read(debug_file.as_ref().unwrap_or(&file)) else {
        (0..sorted.len()).for_each(|position| answer(position, &[]));
        return account;
    };
    let shared = alternate_file.as_ref().and_then(DebugSections::read);
    let dwarf = sections.dwarf(shared.as_ref());
    let tried = Mutex::new(tried);
    let (without_inlined, without_lines) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let sweep = Sweep {
        dwarf: &dwarf,
        split: Split {
            package: package.as_ref(),
            open: &|folder, name| {
                dirs.split(&folder, &name, path, &mut tried.lock().unwrap_or_else(PoisonError::into_inner))
            },
        },
        threads: settings.threads,
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
    };
    sweep.run(&sorted, &mut answer);
    account.without_inlined = without_inlined.into_inner();
    account.without_lines = without_lines.into_inner();
    account
}
