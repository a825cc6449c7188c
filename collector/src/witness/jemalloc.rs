//! Live heap by stack, from jemalloc's own profile.

use super::timed::Timed;
use super::{Frames, Target, estimate};
use crate::incident::model::{Heap, HeapStack, Process, Witness};
use crate::snapshot::process::anonymous_bytes;
use crate::snapshot::{LoadedModule, MapLine, TargetMemory};
use memchr::memmem;
use reprieve_heap_walk::jemalloc::{self, Place, Profile};
use reprieve_heap_walk::{Memory, Sum};
use std::ops::Range;
use std::time::{Duration, Instant};

/// Longest walk of a process: ten thousand stacks take a tenth of it.
const TIME: Duration = Duration::from_millis(300);
/// Reads of all, eight bytes each at least: what time cannot reach.
const BUDGET_BYTES: u64 = 1 << 30;
/// In what jemalloc prints, and the bytes of constants it is searched in.
const MARK: &[u8] = b"<jemalloc>: ";
const SEARCHED: usize = 8 << 20;
/// `prof_active_state` by the private prefixes of jemalloc and of the Rust crates.
const ACTIVE_SYMBOLS: [&str; 2] = ["je_prof_active_state", "_rjem_je_prof_active_state"];
/// The same in stripped libraries: build ID and address. Debian 12's 5.3.0-1 for amd64.
const ACTIVE_BY_BUILD: [(&str, u64); 1] = [("1d5163c246dc9cd2b4d339f2ac42efd95c6e0ae1", 0x2d_6489)];

/// Reads jemalloc's profile, where the process has jemalloc, and says what to set
/// where it keeps none.
pub fn look(process: &mut Process, target: &mut Target<'_>) {
    let (maps, modules) = (target.maps, target.modules);
    let library = modules.iter().find(|m| name_of(m, maps).is_some_and(|n| n.starts_with("libjemalloc")));
    let Some(module) = library.or_else(|| program(process, maps, modules)) else { return };
    match walk(target, module) {
        Ok(Some(profile)) => {
            process.gaps.extend(profile.gaps.iter().cloned());
            if is_active(target, module) == Some(false) {
                let why = "jemalloc's profile is switched off (prof_active): what was allocated meanwhile is missing";
                process.gaps.push(why.to_owned());
            } else if profile.stacks.is_empty() {
                let why = "jemalloc's profile has no sample yet: too little was allocated, or prof_active is off";
                process.gaps.push(why.to_owned());
            }
            if !profile.stacks.is_empty() {
                process.heaps.push(heap(&profile, library, modules));
            }
        }
        // Nothing is missing where another witness saw the same heap.
        Ok(None) if process.heaps.iter().any(|heap| heap.witness.overlaps(Witness::Jemalloc)) => {}
        Ok(None) if library.is_some() || is_part_of(process, module) => process.gaps.push(no_profile(module)),
        Ok(None) => {}
        Err(error) => process.gaps.push(format!("jemalloc's profile was not read: {error}")),
    }
}

fn no_profile(module: &LoadedModule) -> String {
    let build = module.image.build_id().map_or("no build ID".to_owned(), |id| format!("build ID {id}"));
    format!(
        "jemalloc keeps no profile of its heap: start it with MALLOC_CONF=prof:true,lg_prof_sample:19 (Rust programs: \
         _RJEM_MALLOC_CONF); if that is set, it was built without --enable-prof or is not version 5.3 ({build})"
    )
}

fn name_of<'t>(module: &LoadedModule, maps: &'t [MapLine]) -> Option<&'t str> {
    maps.iter().find(|map| module.range.contains(&map.start))?.path().0.rsplit('/').next()
}

/// The program itself, which may have jemalloc in it.
fn program<'t>(process: &Process, maps: &[MapLine], modules: &'t [LoadedModule]) -> Option<&'t LoadedModule> {
    let exe = process.exe.as_deref()?;
    let is_exe = |m: &&LoadedModule| maps.iter().any(|map| m.range.contains(&map.start) && map.name == exe);
    modules.iter().find(is_exe)
}

/// Whether a program has jemalloc in it, by what that prints of its errors. Not
/// looked for where glibc's malloc has the memory.
fn is_part_of(process: &Process, module: &LoadedModule) -> bool {
    let live: u64 = process.malloc.iter().flat_map(|m| &m.arenas).map(|arena| arena.live.bytes).sum();
    if live > 0 && anonymous_bytes(process.pid).is_some_and(|bytes| live > bytes / 4) {
        return false;
    }
    let Some((_, bytes)) = module.image.section_data(".rodata") else { return false };
    let bytes = &bytes[..bytes.len().min(SEARCHED)];
    memmem::find(bytes, MARK).is_some()
}

fn walk(target: &Target<'_>, module: &LoadedModule) -> std::io::Result<Option<Profile>> {
    let ranges = |flag: usize, chosen: &dyn Fn(&MapLine) -> bool| -> Vec<Range<u64>> {
        let has = |map: &&MapLine| map.permissions.as_bytes().get(flag).is_some_and(|&byte| byte != b'-');
        target.maps.iter().filter(has).filter(|map| chosen(map)).map(|map| map.start..map.end).collect()
    };
    // Behind the file's last page `.bss` goes on without a file.
    let end = module.range.end;
    let is_its = |map: &MapLine| module.range.contains(&map.start);
    let data = ranges(1, &|map| is_its(map) || (map.start == end && map.inode == 0 && map.name != "[heap]"));
    let code = ranges(2, &is_its);
    let memory = TargetMemory::reading_ahead(target.pid)?;
    let mut memory = Timed::new(memory, target.until.min(Instant::now() + TIME));
    Ok(jemalloc::walk(&mut memory, &Place { data: &data, code: &code }, BUDGET_BYTES))
}

/// Whether it samples now, where that is known.
fn is_active(target: &mut Target<'_>, module: &LoadedModule) -> Option<bool> {
    let by_symbol = module.image.symbols(&ACTIVE_SYMBOLS).into_iter().flatten().next().map(|(svma, _)| svma.0);
    let build = module.image.build_id().map_or("", |id| id.as_str());
    let by_build = || ACTIVE_BY_BUILD.iter().find(|(id, _)| *id == build).map(|(_, svma)| *svma);
    let svma = by_symbol.or_else(by_build)?;
    Some(target.memory.u8(svma.wrapping_add(module.bias))? != 0)
}

/// The profile as a heap. Frames inside jemalloc's own library are left out.
fn heap(profile: &Profile, library: Option<&LoadedModule>, modules: &[LoadedModule]) -> Heap {
    let mut frames = Frames::default();
    let (mut inuse, mut alloc) = (Sum::default(), Sum::default());
    let is_own = |address: &u64| library.is_some_and(|library| library.range.contains(address));
    let mut stacks: Vec<HeapStack> = profile
        .stacks
        .iter()
        .map(|stack| {
            let (live, ever) = (stack.live.sum(profile.period), stack.ever.sum(profile.period));
            inuse.join(&live);
            alloc.join(&ever);
            let callers = stack.addresses.iter().skip_while(|address| is_own(address));
            HeapStack {
                frames: callers.map(|&address| frames.native(address, modules)).collect(),
                cut: stack.cut,
                inuse: estimate(&live),
                alloc: estimate(&ever),
                before_bytes: None,
            }
        })
        .collect();
    stacks.sort_by_key(|stack| std::cmp::Reverse((stack.inuse.bytes, stack.alloc.bytes)));
    Heap {
        witness: Witness::Jemalloc,
        period_bytes: profile.period,
        lost_samples: 0,
        lost_bytes: 0,
        inuse: estimate(&inuse),
        alloc: estimate(&alloc),
        frames: frames.list,
        stacks,
    }
}
