//! All addresses of a file, unit by unit.

use super::index::{Group, Index};
use super::lines::places;
use super::names::{NameKey, Names};
use super::paths::Paths;
use super::split::Split;
use super::unit::{Scopes, scopes};
use super::{Dwarf, Place, Unit};
use crate::demangle::demangle_bytes;
use crate::frame::FrameRef;
use crate::settings::Detail;
use gimli::{DebugInfoOffset, Section};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Addresses of one unit that are looked up in one go, for each of which the unit is walked
/// once more; what a go needs grows with them.
const BATCH: usize = 16384;
/// The same where memory is dearer than time.
const LEAN_BATCH: usize = 2048;
/// Threads share a unit that has more addresses than this and than they have turns.
const LEAST_PIECE: usize = 4096;
const TURNS: usize = 4;

/// Names of the functions that a go finds, in bytes; those beyond are left to symbol tables.
const MOST_NAMES_BYTES: usize = 16 << 20;

/// Who takes the answers: the position of the address, and its frames, innermost
/// first, none where DWARF knows nothing.
pub(crate) type Sink<'s> = dyn FnMut(usize, &[FrameRef<'_>]) + Send + 's;

/// A file's DWARF, asked for many addresses at once.
pub(crate) struct Sweep<'d, 'a> {
    pub(crate) dwarf: &'d Dwarf<'a>,
    pub(crate) split: Split<'d, 'a>,
    /// Who share the units.
    pub(crate) threads: usize,
    /// As little memory as can be, for more time.
    pub(crate) lean: bool,
    /// Asked with the number of addresses before they are looked up.
    pub(crate) detail: &'d (dyn Fn(usize) -> Detail + Sync),
    /// Told of bytes that will be read from begin to end.
    pub(crate) before: &'d (dyn Fn(&[u8]) + Sync),
    /// Told of each unit that is done.
    pub(crate) after: &'d (dyn Fn() + Sync),
    /// Told where a parser panicked.
    pub(crate) damaged: &'d (dyn Fn() + Sync),
}

impl<'a> Sweep<'_, 'a> {
    /// Answers for `addresses`, which are sorted, in any order, each once.
    pub(crate) fn run(&self, addresses: &[u64], sink: &mut Sink<'_>) {
        let index = self.guarded(|| Index::new(self.dwarf, addresses)).unwrap_or_else(|| Index::empty(addresses));
        for outside in (0..addresses.len()).filter(|&p| index.is_outside(p)) {
            sink(outside, &[]);
        }
        let (positions, groups) = index.groups();
        drop(index);
        let groups = pieces(self.threads, positions.len(), groups);
        let sink = Mutex::new(sink);
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(group) = groups.get(next.fetch_add(1, Ordering::Relaxed)) {
                let positions = &positions[group.positions.clone()];
                let answered = AtomicUsize::new(0);
                let answer = |position: usize, frames: &[FrameRef<'_>]| {
                    answered.fetch_add(1, Ordering::Relaxed);
                    lock(&sink)(position, frames);
                };
                self.guarded(|| self.group(group.unit, addresses, positions, &answer));
                // All, unless a parser panicked.
                for &position in positions.iter().skip(answered.into_inner()) {
                    lock(&sink)(position as usize, &[]);
                }
                (self.after)();
            }
        };
        let helpers = self.threads.min(groups.len()).saturating_sub(1);
        std::thread::scope(|scope| {
            for _ in 0..helpers {
                // Without a helper it takes longer, no more.
                let _ = std::thread::Builder::new().spawn_scoped(scope, work);
            }
            work();
        });
    }

    /// Parsers return errors; but where one panics, as gimli does on sums that overflow if it
    /// is built to look for them, it shall cost no more than what it was about to say.
    fn guarded<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        // What it leaves half done is dropped with it, but for the sink, which is between
        // two answers.
        catch_unwind(AssertUnwindSafe(work)).inspect_err(|_| (self.damaged)()).ok()
    }

    /// A unit's addresses, answered in the order of `positions`.
    fn group(&self, unit: u64, addresses: &[u64], positions: &[u32], answer: &Answer<'_>) {
        let detail = (self.detail)(positions.len());
        let header = self.dwarf.debug_info.header_from_offset(DebugInfoOffset(unit as usize)).ok();
        let unit = header.filter(|_| detail > Detail::Symbols).and_then(|header| {
            let bytes = self.dwarf.debug_info.reader().slice();
            let begin = unit as usize;
            (self.before)(bytes.get(begin..begin + header.length_including_self()).unwrap_or_default());
            self.dwarf.unit(header).ok()
        });
        let Some(unit) = unit else {
            return positions.iter().for_each(|&position| answer(position as usize, &[]));
        };
        if let Some(program) = &unit.line_program {
            (self.before)(program.header().raw_program_buf().slice());
        }
        self.split.with_entries(self.dwarf, &unit, positions.len(), &mut |dwarf, full| {
            for batch in positions.chunks(if self.lean { LEAN_BATCH } else { BATCH }) {
                self.batch(dwarf, full, &unit, detail, addresses, batch, answer);
            }
        });
    }

    /// `full` has the entries, `unit` the lines; they differ for split DWARF only.
    #[allow(clippy::too_many_arguments, reason = "two halves of a unit, each with its DWARF")]
    fn batch(
        &self,
        dwarf: &Dwarf<'_>,
        full: &Unit<'_>,
        unit: &Unit<'a>,
        detail: Detail,
        addresses: &[u64],
        positions: &[u32],
        answer: &Answer<'_>,
    ) {
        let pcs: Vec<u64> = positions.iter().map(|&p| addresses[p as usize]).collect();
        let found = scopes(dwarf, full, &pcs, detail == Detail::Inlined);
        let names = names(dwarf, full, &found);
        let name = |key: NameKey| {
            let place = names.binary_search_by_key(&key, |(known, _)| *known).ok()?;
            names[place].1.as_deref()
        };
        let lines = places(unit, &pcs);
        let mut paths = Paths::new(self.dwarf, unit);
        lines.iter().flatten().for_each(|line| paths.learn(line.file));
        found.scopes.iter().for_each(|scope| paths.learn(scope.call.file));
        let mut frames = Vec::new();
        for ((&position, &innermost), line) in positions.iter().zip(&found.innermost).zip(lines) {
            frames.clear();
            let mut place = line.unwrap_or_default();
            let mut scope = found.scopes.get(innermost as usize);
            if scope.is_none() && line.is_some() {
                frames.push(frame(None, place, &paths));
            }
            while let Some(s) = scope {
                frames.push(frame(name(s.name), place, &paths));
                place = s.call;
                scope = found.scopes.get(s.parent as usize);
            }
            answer(position as usize, &frames);
        }
    }
}

/// Groups of which none keeps one of the threads so long that the others wait for it.
fn pieces(threads: usize, addresses: usize, groups: Vec<Group>) -> Vec<Group> {
    if threads < 2 {
        return groups;
    }
    let most = (addresses / (threads * TURNS)).max(LEAST_PIECE);
    let pieces = groups.into_iter().flat_map(|Group { unit, positions }| {
        let end = positions.end;
        positions.step_by(most).map(move |begin| Group { unit, positions: begin..end.min(begin + most) })
    });
    pieces.collect()
}

/// Who passes answers on.
type Answer<'f> = dyn Fn(usize, &[FrameRef<'_>]) + 'f;

/// A panic of another thread has left the sink between two answers.
fn lock<'m, T>(sink: &'m Mutex<T>) -> MutexGuard<'m, T> {
    sink.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Names of all functions that were found, sorted, each looked up once.
fn names(dwarf: &Dwarf<'_>, unit: &Unit<'_>, found: &Scopes) -> Vec<(NameKey, Option<String>)> {
    let mut keys: Vec<NameKey> = found.scopes.iter().map(|s| s.name).collect();
    keys.sort_unstable();
    keys.dedup();
    let mut names = Names::new(dwarf);
    let mut room = MOST_NAMES_BYTES;
    let name = |key: NameKey| {
        let name = names.find(unit, key).filter(|_| room > 0).map(|name| demangle_bytes(&name));
        room = room.saturating_sub(name.as_ref().map_or(0, String::len));
        (key, name)
    };
    keys.into_iter().map(name).collect()
}

fn frame<'s>(function: Option<&'s str>, place: Place, paths: &'s Paths<'_, '_>) -> FrameRef<'s> {
    let known = |number: u32| (number > 0).then_some(number);
    FrameRef { function, file: paths.get(place.file), line: known(place.line), column: known(place.column) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(threads: usize, sizes: &[usize]) -> Vec<(u64, usize, usize)> {
        let mut begin = 0;
        let groups = sizes.iter().zip(1..).map(|(size, unit)| {
            begin += size;
            Group { unit, positions: begin - size..begin }
        });
        let groups = groups.collect();
        let pieces = pieces(threads, sizes.iter().sum(), groups);
        pieces.into_iter().map(|piece| (piece.unit, piece.positions.start, piece.positions.end)).collect()
    }

    #[test]
    fn threads_share_a_unit_that_has_most_of_the_addresses() {
        let (big, small) = (5 * LEAST_PIECE / 2, LEAST_PIECE);
        assert_eq!(told(1, &[big, small]), [(1, 0, big), (2, big, big + small)]);
        assert_eq!(
            told(2, &[big, small]),
            [(1, 0, LEAST_PIECE), (1, LEAST_PIECE, 2 * LEAST_PIECE), (1, 2 * LEAST_PIECE, big), (2, big, big + small)]
        );
        // Of many addresses a piece is bigger, since a unit is walked for each.
        assert_eq!(told(2, &[100 * LEAST_PIECE]).len(), 2 * TURNS);
    }
}
