//! Functions of the running kernel: `/proc/kallsyms`, lines of `ADDRESS TYPE NAME`, with the
//! module in brackets behind a tab (kernel/kallsyms.c, `s_show`; types as of nm(1)).
//!
//! Addresses are asked for as offsets from where the kernel's own text begins, `_stext`: at
//! each boot it lies somewhere else, and where is nobody's business. Whoever may not know has
//! a list in which all addresses are zero.
//!
//! A list of a distribution's kernel is some ten megabytes. It is read once, and takes
//! memory for the addresses that are asked for alone.

use crate::debug_files::Outcome;
use crate::frame::Frame;
use crate::jit::skip_line;
use std::io::{BufRead, Read};

/// Bytes of a list that are read.
pub const MOST_LIST_BYTES: u64 = 256 << 20;
/// Of a line: a number, a name (`KSYM_NAME_LEN` is 512) and a module's.
const MOST_LINE_BYTES: u64 = 1024;
/// Symbols have no size. One that begins further away is not the function's: there are gaps
/// between modules, and behind what the kernel compiled for eBPF.
const MOST_FUNCTION_BYTES: u64 = 256 << 10;
/// Where text begins and ends, which are no functions.
const MARKS: [&str; 6] = ["_text", "_stext", "_etext", "_sinittext", "_einittext", "__init_end"];

/// A line of the list.
struct Symbol<'l> {
    address: u64,
    is_function: bool,
    name: &'l str,
    module: Option<&'l str>,
}

impl<'l> Symbol<'l> {
    fn parse(line: &'l [u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?;
        let (address, rest) = line.split_once(' ')?;
        let (kind, rest) = rest.split_once(' ')?;
        let address = u64::from_str_radix(address, 16).ok()?;
        let (name, module) = rest.split_once('\t').map_or((rest, None), |(name, module)| (name, Some(module)));
        let is_named = !name.is_empty() && kind.len() == 1;
        let is_function = matches!(kind, "T" | "t" | "W" | "w") && !MARKS.contains(&name);
        is_named.then_some(Symbol { address, is_function, name, module })
    }

    /// Of those at one address the plainest name is the function's: others are marks of
    /// sections and ways to call it.
    fn rank(&self) -> (bool, usize) {
        (!self.is_function, self.name.len() - self.name.trim_start_matches('_').len())
    }
}

/// The nearest symbol below an address, so far.
#[derive(Clone)]
struct Nearest {
    offset: u64,
    rank: (bool, usize),
    function: Option<String>,
}

/// Where the kernel's text begins; `Hidden` where we may not know.
pub fn kernel_base(list: &mut dyn BufRead) -> Result<u64, Outcome> {
    let mut base = None;
    let outcome = each_symbol(list, MOST_LIST_BYTES, |symbol| {
        base = is_base(symbol).then_some(symbol.address);
        base.is_none()
    });
    match base {
        Some(0) => Err(Outcome::Hidden),
        Some(base) => Ok(base),
        None if outcome == Outcome::Used => Err(Outcome::Damaged),
        None => Err(outcome),
    }
}

/// For each of these offsets from where the kernel's text begins, which are sorted, the function there.
/// Modules and code for eBPF lie elsewhere at each boot: `with_modules` only where the offsets
/// are of this one. Nothing is at 0, which is told where addresses are hidden. With how
/// reading ended: `Used` to the end of the list, `Hidden` where we may not know addresses,
/// `TooLarge` after `most` bytes, `Damaged` where any line was no such line.
pub fn kallsyms(
    list: &mut dyn BufRead,
    sorted: &[u64],
    with_modules: bool,
    most: u64,
) -> (Vec<Option<Frame>>, Outcome) {
    let mut nearest: Vec<Option<Nearest>> = vec![None; sorted.len()];
    let mut base = None;
    let mut outcome = each_symbol(list, most, |symbol| {
        if base.is_none() && is_base(symbol) {
            base = Some(symbol.address);
        }
        // Before it there are variables of CPUs.
        let Some(base) = base else { return true };
        if base == 0 || (symbol.module.is_some() && !with_modules) {
            return base != 0;
        }
        let offset = symbol.address.wrapping_sub(base);
        // Those of the next addresses up are taken from this one's in the end.
        let place = sorted.partition_point(|&asked| asked < offset);
        if let Some(best) = nearest.get_mut(place) {
            let rank = symbol.rank();
            if best.as_ref().is_none_or(|best| (best.offset, rank) < (offset, best.rank)) {
                let function = || match symbol.module {
                    Some(module) => format!("{} {module}", symbol.name),
                    None => symbol.name.to_owned(),
                };
                *best = Some(Nearest { offset, rank, function: symbol.is_function.then(function) });
            }
        }
        true
    });
    match base {
        Some(0) => outcome = Outcome::Hidden,
        None if outcome == Outcome::Used => outcome = Outcome::Damaged,
        _ => {}
    }
    let mut below: Option<Nearest> = None;
    let frames = sorted.iter().zip(nearest).map(|(&asked, own)| {
        below = own.or(below.take());
        let nearest = below.as_ref().filter(|below| asked != 0 && asked - below.offset < MOST_FUNCTION_BYTES)?;
        let function = nearest.function.clone()?;
        Some(Frame { function, file: None, line: None, column: None, inlined: false })
    });
    (frames.collect(), outcome)
}

fn is_base(symbol: &Symbol<'_>) -> bool {
    symbol.name == "_stext" && symbol.module.is_none()
}

/// Tells each symbol while it is wanted.
fn each_symbol(list: &mut dyn BufRead, most: u64, mut tell: impl FnMut(&Symbol<'_>) -> bool) -> Outcome {
    let mut outcome = Outcome::Used;
    let mut list = list.take(most);
    let mut line = Vec::new();
    loop {
        line.clear();
        match list.by_ref().take(MOST_LINE_BYTES).read_until(b'\n', &mut line) {
            Ok(0) => break,
            Ok(_) => {}
            Err(_) => return Outcome::Damaged,
        }
        let is_whole = line.pop_if(|last| *last == b'\n').is_some();
        match Symbol::parse(&line).filter(|_| is_whole) {
            Some(symbol) if !tell(&symbol) => return outcome,
            Some(_) => {}
            None if is_whole || list.limit() > 0 => outcome = Outcome::Damaged,
            // Cut by the limit.
            None => {}
        }
        if !is_whole && line.len() as u64 == MOST_LINE_BYTES && skip_line(&mut list).is_err() {
            return Outcome::Damaged;
        }
    }
    if list.limit() == 0 && list.into_inner().fill_buf().is_ok_and(|rest| !rest.is_empty()) {
        outcome = Outcome::TooLarge;
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufReader;

    const LIST: &[u8] = b"0000000000000000 A fixed_percpu_data\n\
        0000000000001000 A __per_cpu_end\n\
        ffffffff9e000000 T _text\n\
        ffffffff9e000000 T _stext\n\
        ffffffff9e000000 T startup_64\n\
        ffffffff9e001000 T __pi_read\n\
        ffffffff9e001000 t read\n\
        ffffffff9e001000 T __read\n\
        ffffffff9e001080 t copy.isra.0\n\
        ffffffff9e002000 T _etext\n\
        ffffffff9e003000 D table\n\
        ffffffffc0001000 t ext4_read\t[ext4]\n\
        ffffffffc0002000 d ext4_data\t[ext4]\n\
        ffffffffc0800000 t bpf_prog_6deef7357e7b4530\t[bpf]\n";
    const EXT4: u64 = 0xffff_ffff_c000_1000 - 0xffff_ffff_9e00_0000;

    fn read(list: &[u8], offsets: &[u64], with_modules: bool) -> (Vec<String>, Outcome) {
        let (frames, outcome) = kallsyms(&mut &*list, offsets, with_modules, u64::MAX);
        (frames.into_iter().map(|f| f.map_or_else(|| "-".to_owned(), |f| f.function)).collect(), outcome)
    }

    #[test]
    fn an_offset_is_in_the_function_below_it() {
        let offsets = [1, 0xfff, 0x1000, 0x107f, 0x1080, 0x1fff, 0x2000, 0x3010];
        let (names, outcome) = read(LIST, &offsets, true);
        assert_eq!(names, ["startup_64", "startup_64", "read", "read", "copy.isra.0", "copy.isra.0", "-", "-"]);
        assert_eq!(outcome, Outcome::Used);
        assert_eq!(kernel_base(&mut &*LIST), Ok(0xffff_ffff_9e00_0000));
        // One alone is what it is among others, and nothing is at 0.
        assert_eq!(read(LIST, &[0, 0x1020], true).0, ["-", "read"]);
    }

    #[test]
    fn modules_are_those_of_this_boot_alone() {
        let offsets = [0x1000, EXT4 + 5, EXT4 + 0x1005, EXT4 + 0x7f_f005, EXT4 + 0x7f_f000 + MOST_FUNCTION_BYTES];
        let here = ["read", "ext4_read [ext4]", "-", "bpf_prog_6deef7357e7b4530 [bpf]", "-"];
        assert_eq!(read(LIST, &offsets, true), (here.map(str::to_owned).to_vec(), Outcome::Used));
        assert_eq!(read(LIST, &offsets, false).0, ["read", "-", "-", "-", "-"]);
        // As on aarch64, where they lie below the kernel.
        let list = b"ffff800080010000 T _stext\nffff80007a000000 t xfs_read\t[xfs]\nffff800080020000 T vfs_read\n";
        let offset = 0xffff_8000_7a00_0008_u64.wrapping_sub(0xffff_8000_8001_0000);
        assert_eq!(read(list, &[0x10010, offset], true).0, ["vfs_read", "xfs_read [xfs]"]);
    }

    /// As the list is for whoever may not know (kernel.kptr_restrict, CAP_SYSLOG).
    #[test]
    fn hidden_addresses_are_told_as_such() {
        let text = String::from_utf8(LIST.to_vec()).unwrap();
        let hidden: String = text.lines().map(|line| format!("{}{}\n", "0".repeat(16), &line[16..])).collect();
        assert_eq!(kernel_base(&mut hidden.as_bytes()), Err(Outcome::Hidden));
        assert_eq!(read(hidden.as_bytes(), &[0, 0x1000, EXT4], true).0, ["-", "-", "-"]);
        assert_eq!(read(hidden.as_bytes(), &[0, 0x1000, EXT4], true).1, Outcome::Hidden);
    }

    #[test]
    fn bad_lines_are_passed_over_and_told() {
        let mut list = b"rubbish\nffffffff9e000000 T _stext\nffffffff9e000010 T ".to_vec();
        list.resize(list.len() + 100_000, b'x');
        list.extend_from_slice(
            b"\nffffffff9e000020 T good\n\xff\xfe\nffffffff9e000030 TT no\n10000000000000000 T no\n",
        );
        assert_eq!(read(&list, &[0x38], true), (vec!["good".to_owned()], Outcome::Damaged));
        // Without its beginning nothing is known.
        assert_eq!(read(b"ffffffff9e000020 T good\n", &[0x38], true), (vec!["-".to_owned()], Outcome::Damaged));
        assert_eq!(read(b"", &[0x38], true), (vec!["-".to_owned()], Outcome::Damaged));
        assert_eq!(kernel_base(&mut &b"ffffffff9e000020 T good\n"[..]), Err(Outcome::Damaged));
        let (frames, outcome) = kallsyms(&mut &*LIST, &[0x1001], true, LIST.len() as u64 / 2);
        assert_eq!((frames[0].as_ref().unwrap().function.as_str(), outcome), ("read", Outcome::TooLarge));
    }

    /// Every function of the running kernel, as root; else that it is hidden.
    #[test]
    fn the_running_kernel_is_read() {
        let open = || BufReader::new(std::fs::File::open("/proc/kallsyms").unwrap());
        let base = match kernel_base(&mut open()) {
            Ok(base) => base,
            Err(outcome) => return assert_eq!(outcome, Outcome::Hidden),
        };
        let text = std::fs::read_to_string("/proc/kallsyms").unwrap();
        let vfs_read = text.lines().find(|line| line.ends_with(" vfs_read")).unwrap();
        let offset = u64::from_str_radix(&vfs_read[..16], 16).unwrap() - base;
        let (frames, outcome) = kallsyms(&mut open(), &[offset, offset + 1], false, MOST_LIST_BYTES);
        let names: Vec<_> = frames.into_iter().map(|frame| frame.unwrap().function).collect();
        assert_eq!((names, outcome), (vec!["vfs_read".to_owned(); 2], Outcome::Used));
    }
}
