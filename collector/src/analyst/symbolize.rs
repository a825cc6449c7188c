//! Names for the addresses of an incident, one module at a time.

use super::{files, jit, kernel, memory};
use crate::incident::model::{
    GeneratedAddress, Incident, Module, ModuleAddress, ResolvedAddress, Search, Subject, SymbolState, Symbols,
};
use reprieve_symbolizer::{
    Account, DebugDirs, Debuginfod, Miss, Outcome, Resolution, Settings, Source, Svma, SymbolSource, Tried,
    resolve_each,
};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Where names are looked for.
#[derive(Debug, Clone, Copy)]
pub struct Places<'p> {
    /// Folders with debug files.
    pub dirs: &'p DebugDirs,
    /// Servers, where the user named any.
    pub debuginfod: Option<&'p Debuginfod>,
    /// Whether it is not the moment of the incident any more, nor its machine perhaps:
    /// then a file is the one that was mapped only if its build ID says so.
    pub later: bool,
}

impl<'p> Places<'p> {
    /// At the OOM, or right after it.
    #[must_use]
    pub fn now(dirs: &'p DebugDirs) -> Self {
        Places { dirs, debuginfod: None, later: false }
    }

    /// For one module; within the analyst's limit of memory.
    pub(super) fn settings(&self) -> Settings<'p> {
        Settings { debuginfod: self.debuginfod, headroom: &memory::headroom, ..Settings::new(self.dirs) }
    }
}

/// What was found.
#[derive(Debug, Default)]
pub struct Names {
    /// Of addresses in modules.
    pub addresses: Vec<ResolvedAddress>,
    /// Of others.
    pub generated: Vec<GeneratedAddress>,
    /// Where they were looked for.
    pub searches: Vec<Search>,
}

impl Names {
    /// As an incident has them.
    #[must_use]
    pub fn into_symbols(self, state: SymbolState) -> Symbols {
        let Names { addresses, generated, searches } = self;
        Symbols { state, completed_unix_us: None, addresses, generated, searches }
    }
}

/// Resolves every distinct address in the incident's stacks.
#[must_use]
pub fn symbolize(incident: &Incident, places: &Places<'_>) -> Names {
    let mut by_module: BTreeMap<u32, BTreeSet<u64>> = BTreeMap::new();
    let threads = incident.processes.iter().flat_map(|p| &p.threads);
    let heaps = incident.processes.iter().flat_map(|p| &p.heaps);
    let of_heaps = heaps.flat_map(|heap| heap.frames.iter().filter_map(|f| f.at.as_ref()));
    let living = incident.processes.iter().filter_map(|process| process.growth.as_ref());
    let growths = living.chain(incident.ended.iter().map(|ended| &ended.growth));
    let of_growths = growths.flat_map(|growth| growth.frames.iter().filter_map(|f| f.at.as_ref()));
    for at in threads.flat_map(|t| t.frame_modules.iter().flatten()).chain(of_heaps).chain(of_growths) {
        by_module.entry(at.module).or_default().insert(at.svma);
    }
    let mut names = Names::default();
    for (index, addresses) in by_module {
        let addresses: Vec<u64> = addresses.into_iter().collect();
        let module = incident.modules.get(index as usize);
        let (resolved, search) = resolve_module(incident, module, index, &addresses, places);
        names.addresses.extend(resolved);
        names.searches.extend(search);
    }
    jit::symbolize(incident, places, &mut names);
    names
}

fn resolve_module(
    incident: &Incident,
    module: Option<&Module>,
    index: u32,
    addresses: &[u64],
    places: &Places<'_>,
) -> (Vec<ResolvedAddress>, Option<Search>) {
    let mut tried = Vec::new();
    let mut account = Account::default();
    let mut answers: Vec<Result<Resolution, Miss>>;
    let is_kernel = |module: &&Module| module.is_kernel();
    if let Some(module) = module.filter(is_kernel) {
        let source = SymbolSource::Kallsyms;
        let found = kernel::names(module, addresses, places, &mut tried).into_iter();
        answers = found.map(|found| found.map(|frame| Resolution { frames: vec![frame], source })).collect();
        return told(index, addresses, answers, tried, &account);
    }
    match module.map(|module| files::open(incident, module, places, &mut tried)) {
        Some(Ok((image, path))) => {
            answers = vec![Err(Miss::NotElf); addresses.len()];
            let svmas: Vec<Svma> = addresses.iter().map(|&a| Svma(a)).collect();
            let settings = places.settings();
            let work = || {
                resolve_each(&image, Some(&path), &settings, &svmas, &mut |question, answer| {
                    answers[question] = answer.map(|a| a.to_resolution());
                })
            };
            // Parsers must not panic; if one does, it costs this module's names.
            account = catch_unwind(AssertUnwindSafe(work)).unwrap_or_default();
        }
        Some(Err(miss)) => answers = vec![Err(miss); addresses.len()],
        None => answers = vec![Err(Miss::NoModule); addresses.len()],
    }
    tried.append(&mut account.tried);
    told(index, addresses, answers, tried, &account)
}

/// What was found of a module's addresses, and where.
fn told(
    index: u32,
    addresses: &[u64],
    answers: Vec<Result<Resolution, Miss>>,
    tried: Vec<Tried>,
    account: &Account,
) -> (Vec<ResolvedAddress>, Option<Search>) {
    let search = Search {
        subject: Subject::Module(index),
        tried,
        without_inlined: account.without_inlined as u64,
        without_lines: account.without_lines as u64,
    };
    let resolved = addresses.iter().zip(answers).map(|(&svma, answer)| {
        let at = ModuleAddress { module: index, svma };
        match answer {
            Ok(resolution) => {
                ResolvedAddress { at, frames: resolution.frames, source: Some(resolution.source), miss: None }
            }
            Err(miss) => ResolvedAddress { at, frames: Vec::new(), source: None, miss: Some(miss.to_string()) },
        }
    });
    (resolved.collect(), Some(search).filter(tells_something))
}

/// A binary that was found where it should be, and had all itself, tells nothing; nor does
/// the kernel that was asked for its own.
fn tells_something(search: &Search) -> bool {
    let is_plain =
        |tried: &Tried| matches!(tried.source, Source::Binary | Source::Kallsyms) && tried.outcome == Outcome::Used;
    !search.tried.iter().all(is_plain) || search.without_inlined + search.without_lines > 0
}
