//! Names for functions of the kernel.
//!
//! At the incident by `/proc/kallsyms`. Later the kernel is another one, perhaps, or the same
//! that has its modules elsewhere: then it has to have the same build ID, and names are those
//! of its own text alone.

use super::symbolize::Places;
use crate::incident::model::Module;
use crate::snapshot::kernel::{KALLSYMS, build_id, open};
use reprieve_symbolizer::{Frame, MOST_LIST_BYTES, Miss, Outcome, Source, Tried, kallsyms};
use std::io::BufRead;

/// A function of each of these addresses, which are sorted, or the reason why there is none.
pub fn names(module: &Module, sorted: &[u64], places: &Places<'_>, tried: &mut Vec<Tried>) -> Vec<Result<Frame, Miss>> {
    let is_same = !places.later || module.build_id.is_some() && module.build_id == build_id();
    let list = if is_same { open() } else { Err(Outcome::OtherBuild) };
    look_up(list, sorted, places, tried)
}

/// The same in this list, or without one.
fn look_up(
    list: Result<impl BufRead, Outcome>,
    sorted: &[u64],
    places: &Places<'_>,
    tried: &mut Vec<Tried>,
) -> Vec<Result<Frame, Miss>> {
    let read = list.map(|mut list| kallsyms(&mut list, sorted, !places.later, MOST_LIST_BYTES));
    let (frames, outcome) = read.unwrap_or_else(|outcome| (vec![None; sorted.len()], outcome));
    tried.push(Tried { source: Source::Kallsyms, place: KALLSYMS.to_owned(), outcome });
    let miss = match outcome {
        Outcome::Hidden => Miss::KernelHidden,
        Outcome::OtherBuild => Miss::OtherKernel,
        Outcome::Absent | Outcome::NotReadable => Miss::FileUnavailable,
        _ => Miss::NoSymbol,
    };
    // At 0 is what was hidden at the incident.
    let why = |address: u64| if address == 0 { Miss::KernelHidden } else { miss };
    sorted.iter().zip(frames).map(|(&address, frame)| frame.ok_or_else(|| why(address))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::kernel;
    use reprieve_symbolizer::DebugDirs;

    #[test]
    fn where_the_kernel_hides_its_addresses_that_is_the_reason() {
        let dirs = DebugDirs { dirs: Vec::new() };
        let look = |list: Result<&[u8], Outcome>| {
            let mut tried = Vec::new();
            let found = look_up(list, &[0, 0x1010], &Places::now(&dirs), &mut tried);
            assert!(tried.len() == 1 && tried[0].place == KALLSYMS && tried[0].source == Source::Kallsyms);
            (found.into_iter().map(|found| found.unwrap_err()).collect::<Vec<_>>(), tried[0].outcome)
        };
        let hidden = b"0000000000000000 T _stext\n0000000000000000 T vfs_read\n";
        assert_eq!(look(Ok(hidden)), (vec![Miss::KernelHidden; 2], Outcome::Hidden));
        let none = vec![Miss::KernelHidden, Miss::FileUnavailable];
        assert_eq!(look(Err(Outcome::Absent)), (none, Outcome::Absent));
        let other = b"ffffffff9e000000 T _stext\nffffffff9e002000 T vfs_read\n";
        assert_eq!(look(Ok(other)), (vec![Miss::KernelHidden, Miss::NoSymbol], Outcome::Used));
    }

    /// An offset of the running kernel that has a name, with it.
    fn known() -> (u64, String) {
        let base = kernel::base().expect("the kernel's addresses (as root, with kernel.kptr_restrict at most 1)");
        let text = std::fs::read_to_string(KALLSYMS).unwrap();
        let line = text.lines().find(|line| line.ends_with(" ksys_read")).expect("ksys_read");
        (u64::from_str_radix(&line[..16], 16).unwrap() + 1 - base, "ksys_read".to_owned())
    }

    #[test]
    fn names_are_those_of_the_kernel_that_it_was() {
        let (offset, name) = known();
        let dirs = DebugDirs { dirs: Vec::new() };
        let look = |module: &Module, later: bool| {
            let mut tried = Vec::new();
            let places = Places { dirs: &dirs, debuginfod: None, later };
            let found = names(module, &[0, offset], &places, &mut tried);
            let found: Vec<_> = found.into_iter().map(|found| found.map(|frame| frame.function)).collect();
            (found, tried.into_iter().map(|tried| (tried.source, tried.outcome)).collect::<Vec<_>>())
        };
        let module = kernel::module();
        assert!(module.build_id.is_some() && module.is_kernel());
        let here = (vec![Err(Miss::KernelHidden), Ok(name)], vec![(Source::Kallsyms, Outcome::Used)]);
        assert_eq!((look(&module, false), look(&module, true)), (here.clone(), here));
        // Another kernel is not asked for names of this one, nor is one that nobody knows.
        for build_id in [None, Some("00ff".to_owned())] {
            let other = Module { build_id, ..module.clone() };
            let expected = vec![Err(Miss::KernelHidden), Err(Miss::OtherKernel)];
            assert_eq!(look(&other, true), (expected, vec![(Source::Kallsyms, Outcome::OtherBuild)]));
        }
    }
}
