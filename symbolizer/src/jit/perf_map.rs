//! `/tmp/perf-PID.map`: lines of `START SIZE NAME`, numbers in hexadecimal, in the order
//! in which code was made (Linux, tools/perf/Documentation/jit-interface.txt).

use super::{MOST_NAME_BYTES, name, v8};
use crate::address::Avma;
use crate::debug_files::Outcome;
use crate::frame::Frame;
use std::io::{BufRead, Read};

/// Bytes of a map that are read.
pub const MOST_MAP_BYTES: u64 = 256 << 20;
/// Of a line: two numbers and a name.
const MOST_LINE_BYTES: u64 = 40 + MOST_NAME_BYTES as u64;

/// For each of the addresses, which are sorted, what the map says of it; where pieces
/// of code overlap the last that was made. With how reading ended: `Used` to the end of
/// the file, `TooLarge` after `most` bytes, `Damaged` where any line was no such line.
pub fn perf_map(map: &mut dyn BufRead, sorted: &[Avma], most: u64) -> (Vec<Option<Frame>>, Outcome) {
    let mut names: Vec<Option<String>> = vec![None; sorted.len()];
    let mut outcome = Outcome::Used;
    let mut map = map.take(most);
    let mut line = Vec::new();
    loop {
        line.clear();
        match map.by_ref().take(MOST_LINE_BYTES).read_until(b'\n', &mut line) {
            Ok(0) => break,
            Ok(_) => {}
            Err(_) => {
                outcome = Outcome::Damaged;
                break;
            }
        }
        let is_whole = line.pop_if(|last| *last == b'\n').is_some();
        if let Some((start, size, text)) = parse(&line) {
            let first = sorted.partition_point(|a| a.0 < start);
            let count = sorted[first..].partition_point(|a| a.0 - start < size);
            names[first..first + count].fill_with(|| Some(name(text)));
        } else if is_whole || map.limit() > 0 {
            // The last line may be half written, as that of a process that was held.
            outcome = Outcome::Damaged;
        }
        if !is_whole && line.len() as u64 == MOST_LINE_BYTES && skip_line(&mut map).is_err() {
            outcome = Outcome::Damaged;
            break;
        }
    }
    if map.limit() == 0 && map.into_inner().fill_buf().is_ok_and(|rest| !rest.is_empty()) {
        outcome = Outcome::TooLarge;
    }
    (names.into_iter().map(|name| name.map(|name| v8::frame(&name))).collect(), outcome)
}

fn parse(line: &[u8]) -> Option<(u64, u64, &[u8])> {
    let mut fields = line.splitn(3, |&byte| byte == b' ');
    let mut number = || {
        let text = std::str::from_utf8(fields.next()?).ok()?;
        u64::from_str_radix(text.trim_start_matches("0x"), 16).ok()
    };
    let (start, size) = (number()?, number()?);
    let name = fields.next().filter(|name| !name.is_empty())?;
    Some((start, size, name))
}

/// Reads to the end of a line without keeping it.
pub(crate) fn skip_line(map: &mut impl BufRead) -> std::io::Result<()> {
    loop {
        let bytes = map.fill_buf()?;
        let end = bytes.iter().position(|&byte| byte == b'\n');
        let (used, is_done) = (end.map_or(bytes.len(), |end| end + 1), end.is_some() || bytes.is_empty());
        map.consume(used);
        if is_done {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(map: &[u8], addresses: &[u64], most: u64) -> (Vec<String>, Outcome) {
        let addresses: Vec<Avma> = addresses.iter().map(|&a| Avma(a)).collect();
        let (frames, outcome) = perf_map(&mut &*map, &addresses, most);
        (frames.into_iter().map(|f| f.map_or_else(|| "-".to_owned(), |f| f.function)).collect(), outcome)
    }

    #[test]
    fn the_last_code_at_an_address_counts() {
        let map = b"1000 10 first\n0x2000 20 second one\n1008 8 third\nffffffffffffff00 ff end\n";
        let (names, outcome) =
            read(map, &[0xfff, 0x1000, 0x1007, 0x1008, 0x100f, 0x1010, 0x201f, 0x2020, u64::MAX - 1], u64::MAX);
        assert_eq!(names, ["-", "first", "first", "third", "third", "-", "second one", "-", "end"]);
        assert_eq!(outcome, Outcome::Used);
    }

    #[test]
    fn bad_lines_are_passed_over_and_told() {
        let mut map = b"rubbish\n1000 10 good\n".to_vec();
        assert_eq!(read(&map, &[0x1000], u64::MAX), (vec!["good".to_owned()], Outcome::Damaged));
        map.drain(..8);
        // A name without end is cut, and the next line is found.
        map.extend_from_slice(b"2000 10 ");
        map.resize(map.len() + 100_000, b'x');
        map.extend_from_slice(b"\n3000 10 last\n");
        let (names, outcome) = read(&map, &[0x1000, 0x2000, 0x3000], u64::MAX);
        assert_eq!((&*names[0], names[1].len(), &*names[2], outcome), ("good", MOST_NAME_BYTES, "last", Outcome::Used));
        // Bytes that are no text, and numbers without end.
        let odd = b"1000 10 \xff\xfe\n-1 10 a\n10000000000000000 1 b\n1000 ffffffffffffffff all\n\n";
        assert_eq!(read(odd, &[0x1000, u64::MAX], u64::MAX), (vec!["all".into(), "all".into()], Outcome::Damaged));
    }

    #[test]
    fn a_map_of_any_size_is_read_to_a_limit() {
        let line = b"1000 10 again\n";
        let map: Vec<u8> = line.iter().copied().cycle().take(line.len() * 1000).collect();
        let most = line.len() as u64 * 10;
        assert_eq!(read(&map, &[0x1000], most), (vec!["again".to_owned()], Outcome::TooLarge));
        assert_eq!(read(&map, &[0x1000], map.len() as u64).1, Outcome::Used);
    }
}
