//! `jit-PID.dump`: a record for each piece of code that was made, moved or described
//! (Linux, tools/perf/Documentation/jitdump-specification.txt).
//!
//! Read twice: the first time for which piece each address is in at the end, the second
//! for names and lines of those pieces. The code itself is passed over.

use super::{MOST_NAME_BYTES, name, v8};
use crate::address::Avma;
use crate::debug_files::Outcome;
use crate::frame::Frame;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom};

/// "JiTD" as a little-endian word.
const MAGIC: u32 = 0x4a69_5444;
/// Bytes of the file's header and of a record's that are always there.
const HEADER: u64 = 40;
const RECORD: u64 = 16;
/// Bytes of an entry without its name, and of that at least its 0.
const ENTRY: u64 = 16;
/// Records that are looked at.
const MOST_RECORDS: u64 = 4 << 20;
/// V8 puts its lines so much too high, for an ELF header that perf once forgot
/// (`src/diagnostics/perf-jit.cc`, `kElfHeaderSize`).
const V8_SHIFT: u64 = 0x40;

const LOAD: u32 = 0;
const MOVE: u32 = 1;
const DEBUG_INFO: u32 = 2;

/// The piece of code that an address is in.
#[derive(Debug, Clone, Copy)]
struct Piece {
    number: u64,
    /// Where it is now.
    start: u64,
}

/// For each of the addresses, which are sorted, what the file says of it. With how
/// reading ended: `Used` to the end of the file or to where it is written on,
/// `TooLarge` after too many records, `Damaged` where it is no such file any more.
pub fn jitdump(file: &mut (impl Read + Seek), sorted: &[Avma]) -> (Vec<Option<Frame>>, Outcome) {
    let mut reader = Reader { file: BufReader::new(file) };
    let mut pieces = vec![None; sorted.len()];
    let mut frames = vec![None; sorted.len()];
    let outcome = reader.walk(&mut |reader, record| {
        if let Some((piece, size)) = reader.piece(record)? {
            let first = sorted.partition_point(|a| a.0 < piece.start);
            let count = sorted[first..].partition_point(|a| a.0 - piece.start < size);
            pieces[first..first + count].fill(Some(piece));
        }
        Ok(())
    });
    // What was found in the first pass can be named, however that ended.
    let mut lines: Option<Lines> = None;
    reader.walk(&mut |reader, record| {
        match record.kind {
            DEBUG_INFO => lines = Some(reader.lines(record)?),
            LOAD => {
                let load = reader.load(record)?;
                let mine = pieces.iter().enumerate().filter_map(|(index, piece)| Some((index, (*piece)?)));
                let mut text = None;
                for (index, piece) in mine.filter(|(_, piece)| piece.number == load.number) {
                    let text = match &text {
                        Some(text) => text,
                        None => text.insert(reader.text(record.begin + record.size)?),
                    };
                    let within = sorted[index].0 - piece.start;
                    let mut frame = v8::frame(text);
                    // They are written just before the code.
                    if let Some(lines) = lines.filter(|lines| lines.start == load.start) {
                        let shift = if v8::is_script(text) { V8_SHIFT } else { 0 };
                        reader.place(&lines, load.start.wrapping_add(within).wrapping_add(shift), &mut frame)?;
                    }
                    frames[index] = Some(frame);
                }
                lines = None;
            }
            _ => {}
        }
        Ok(())
    });
    (frames, outcome)
}

/// A record's place and size, without its head.
#[derive(Debug, Clone, Copy)]
struct Record {
    kind: u32,
    begin: u64,
    size: u64,
}

/// What a load says before its name.
struct Load {
    start: u64,
    number: u64,
}

/// Where lines are described.
#[derive(Debug, Clone, Copy)]
struct Lines {
    start: u64,
    count: u64,
    begin: u64,
    end: u64,
}

/// The entry that an address belongs to.
struct Best {
    at: u64,
    line: u32,
    file: String,
}

struct Reader<R: Read> {
    file: BufReader<R>,
}

/// Who looks at a record.
type Visit<'v, R> = dyn FnMut(&mut Reader<R>, Record) -> io::Result<()> + 'v;

impl<R: Read + Seek> Reader<R> {
    /// Goes through all records.
    fn walk(&mut self, visit: &mut Visit<'_, R>) -> Outcome {
        let Ok(mut at) = self.header() else { return Outcome::Damaged };
        for _ in 0..MOST_RECORDS {
            let record = match self.record(at) {
                Ok(record) => record,
                // It is still written to.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Outcome::Used,
                Err(_) => return Outcome::Damaged,
            };
            match visit(self, record) {
                Ok(()) => at = record.begin + record.size,
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Outcome::Used,
                Err(_) => return Outcome::Damaged,
            }
        }
        Outcome::TooLarge
    }

    /// Where the first record is.
    fn header(&mut self) -> io::Result<u64> {
        self.file.seek(SeekFrom::Start(0))?;
        let (magic, version, size) = (self.u32()?, self.u32()?, self.u32()?);
        if magic == MAGIC && version == 1 && u64::from(size) >= HEADER { Ok(size.into()) } else { Err(damaged()) }
    }

    fn record(&mut self, at: u64) -> io::Result<Record> {
        self.go_to(at)?;
        let (kind, size) = (self.u32()?, self.u32()?);
        self.u64()?;
        let size = u64::from(size).checked_sub(RECORD).ok_or_else(damaged)?;
        Ok(Record { kind, begin: at + RECORD, size })
    }

    /// Where a record puts code, and how much.
    fn piece(&mut self, record: Record) -> io::Result<Option<(Piece, u64)>> {
        if !matches!(record.kind, LOAD | MOVE) {
            return Ok(None);
        }
        // PID and TID, and the address again; of a move where it was.
        self.go_to(record.begin + 16)?;
        let mut start = self.u64()?;
        if record.kind == MOVE {
            start = self.u64()?;
        }
        let (size, number) = (self.u64()?, self.u64()?);
        Ok(Some((Piece { number, start }, size)))
    }

    /// Leaves the reader at the name.
    fn load(&mut self, record: Record) -> io::Result<Load> {
        self.go_to(record.begin + 16)?;
        let (start, _, number) = (self.u64()?, self.u64()?, self.u64()?);
        Ok(Load { start, number })
    }

    fn lines(&mut self, record: Record) -> io::Result<Lines> {
        self.go_to(record.begin)?;
        let (start, count) = (self.u64()?, self.u64()?);
        Ok(Lines { start, count, begin: record.begin + 16, end: record.begin + record.size })
    }

    /// The file and the line of an address: those of the last entry that is not above
    /// it.
    fn place(&mut self, lines: &Lines, address: u64, frame: &mut Frame) -> io::Result<()> {
        let (mut best, is_whole) = self.search(lines, address, None)?;
        if !is_whole {
            // For scripts of its user's node writes what is in memory where their name was
            // before, and of its length. So all entries are as long, and have no name.
            let size = (lines.end - lines.begin).checked_div(lines.count).unwrap_or(0);
            best = match size * lines.count == lines.end - lines.begin && size > ENTRY {
                true => self.search(lines, address, Some(size))?.0.map(|best| Best { file: String::new(), ..best }),
                false => None,
            };
        }
        if let Some(Best { line, file, .. }) = best {
            frame.file = (!file.is_empty()).then_some(file).or(frame.file.take());
            frame.line = (line > 0).then_some(line);
            frame.column = None;
        }
        Ok(())
    }

    /// Of entries that are each as long as their name, or that have all this size. With
    /// whether they end where the record does, and names can be names.
    fn search(&mut self, lines: &Lines, address: u64, size: Option<u64>) -> io::Result<(Option<Best>, bool)> {
        self.go_to(lines.begin)?;
        let mut file = String::new();
        let mut best: Option<Best> = None;
        let mut is_whole = true;
        for number in 0..lines.count {
            if self.file.stream_position()? >= lines.end {
                return Ok((best, false));
            }
            let (at, line, _) = (self.u64()?, self.u32()?, self.u32()?);
            match size {
                Some(size) => self.go_to(lines.begin + (number + 1) * size)?,
                None => {
                    let text = self.text(lines.end)?;
                    // The same file as before.
                    if text.as_bytes() != "\u{fffd}".as_bytes() {
                        is_whole &= !text.contains(|c: char| c.is_control() || c == '\u{fffd}');
                        file = text;
                    }
                }
            }
            if at <= address && best.as_ref().is_none_or(|other| at >= other.at) {
                best = Some(Best { at, line, file: file.clone() });
            }
        }
        is_whole &= self.file.stream_position()? == lines.end;
        Ok((best, is_whole))
    }

    /// A text to its 0, or to where its record ends; all of it is passed over, and the
    /// beginning is kept.
    fn text(&mut self, end: u64) -> io::Result<String> {
        let room = end.saturating_sub(self.file.stream_position()?);
        let mut bytes = Vec::new();
        self.file.by_ref().take(room.min(MOST_NAME_BYTES as u64)).read_until(0, &mut bytes)?;
        if bytes.pop_if(|last| *last == 0).is_none() && bytes.len() == MOST_NAME_BYTES {
            self.file.by_ref().take(room - MOST_NAME_BYTES as u64).skip_until(0)?;
        }
        Ok(name(&bytes))
    }

    fn go_to(&mut self, at: u64) -> io::Result<()> {
        let here = self.file.stream_position()?;
        // Nearly always forwards, and in what is buffered.
        self.file.seek_relative(at.wrapping_sub(here) as i64)
    }

    fn u32(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.file.read_exact(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn u64(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.file.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

fn damaged() -> io::Error {
    io::Error::from(ErrorKind::InvalidData)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    /// A file as a runtime writes it.
    struct Dump(Vec<u8>);

    impl Dump {
        fn new() -> Self {
            let mut dump = Dump(Vec::new());
            for word in [MAGIC, 1, HEADER as u32, 62, 0, 4711, 0, 0, 0, 0] {
                dump.0.extend(word.to_le_bytes());
            }
            dump
        }

        fn record(mut self, kind: u32, body: &[&[u8]]) -> Self {
            let body = body.concat();
            self.0.extend(kind.to_le_bytes());
            self.0.extend((RECORD as u32 + body.len() as u32).to_le_bytes());
            self.0.extend([0; 8]);
            self.0.extend(body);
            self
        }

        fn load(self, start: u64, size: u64, number: u64, name: &str) -> Self {
            let words = [4711, start, start, size, number].map(u64::to_le_bytes);
            let code = vec![0xcc; size as usize];
            self.record(LOAD, &[words.as_flattened(), name.as_bytes(), &[0], &code])
        }

        fn moved(self, from: u64, to: u64, size: u64, number: u64) -> Self {
            self.record(MOVE, &[[4711, to, from, to, size, number].map(u64::to_le_bytes).as_flattened()])
        }

        fn lines(self, start: u64, lines: &[(u64, u32, &[u8])]) -> Self {
            let mut body = [start, lines.len() as u64].map(u64::to_le_bytes).concat();
            for (at, line, file) in lines {
                body.extend(at.to_le_bytes());
                body.extend(line.to_le_bytes());
                body.extend([0; 4]);
                body.extend(*file);
                body.push(0);
            }
            self.record(DEBUG_INFO, &[&body])
        }

        fn read(&self, addresses: &[u64]) -> (Vec<String>, Outcome) {
            let addresses: Vec<Avma> = addresses.iter().map(|&a| Avma(a)).collect();
            let (frames, outcome) = jitdump(&mut Cursor::new(&self.0), &addresses);
            let text = |frame: Frame| match (frame.file, frame.line) {
                (Some(file), Some(line)) => format!("{} {file}:{line}", frame.function),
                _ => frame.function,
            };
            (frames.into_iter().map(|f| f.map_or_else(|| "-".to_owned(), text)).collect(), outcome)
        }
    }

    #[test]
    fn code_is_named_where_it_is_at_the_end() {
        let dump = Dump::new()
            .load(0x1000, 0x40, 1, "first")
            .load(0x2000, 0x40, 2, "second")
            .load(0x1000, 0x10, 3, "over the first")
            .moved(0x2000, 0x3000, 0x40, 2)
            .record(4, &[&[0; 32]])
            .record(77, &[b"of a later version"]);
        let (names, outcome) = dump.read(&[0xfff, 0x1000, 0x1010, 0x103f, 0x1040, 0x2000, 0x3000, 0x303f]);
        // Code that moved is not forgotten where it was: frames may still be in it.
        assert_eq!(names, ["-", "over the first", "first", "first", "-", "second", "second", "second"]);
        assert_eq!(outcome, Outcome::Used);
    }

    #[test]
    fn rubbish_is_no_name_of_a_file() {
        let dump = |lines: &[(u64, u32, &[u8])]| {
            let dump = Dump::new().lines(0x1000, lines).load(0x1000, 0x40, 1, "JS:*run /s/leak.js:5:13");
            dump.read(&[0x1000, 0x1020]).0
        };
        let told = |first: &[u8], second: &[u8]| dump(&[(0x1040, 5, first), (0x1060, 9, second)]);
        assert_eq!(told(b"/s/other.js", b"\xff"), ["run /s/other.js:5", "run /s/other.js:9"]);
        // As long as the name, with zeros in it or without.
        let known = ["run /s/leak.js:5", "run /s/leak.js:9"];
        assert_eq!(told(b"\xe0\x8a@\x11\0\0abc", b"\xe0\x8a@\x11\0\0abc"), known);
        assert_eq!(told(b"'lz \0\x7f\0\0\0", b"'lz \0\x7f\0\0\0"), known);
        assert_eq!(told(b"\xe0\x8a@", b"\xe0\x8a@"), known);
        // Neither that nor whole: where the function is.
        assert_eq!(told(b"a\0bc", b"d"), ["run /s/leak.js:5", "run /s/leak.js:5"]);
    }

    #[test]
    fn lines_belong_to_the_code_that_follows_them() {
        let dump = Dump::new()
            .lines(0x1000, &[(0x1000, 3, b"a.py"), (0x1010, 5, b"\xff"), (0x1020, 9, b"b.py")])
            .load(0x1000, 0x40, 1, "run")
            .load(0x2000, 0x40, 2, "other")
            .moved(0x1000, 0x5000, 0x40, 1)
            .lines(0x6000, &[(0x6040, 1, b"x.js"), (0x6060, 2, b"\xff")])
            .load(0x6000, 0x40, 3, "JS:*leak x.js:1:1");
        let (names, _) = dump.read(&[0x2000, 0x5000, 0x500f, 0x5010, 0x503f, 0x6000, 0x6020]);
        let wanted = ["other", "run a.py:3", "run a.py:3", "run a.py:5", "run b.py:9", "leak x.js:1", "leak x.js:2"];
        assert_eq!(names, wanted);
    }

    #[test]
    fn what_is_no_dump_is_told_and_half_of_one_is_read() {
        let read = |bytes: &[u8]| jitdump(&mut Cursor::new(bytes), &[Avma(0x1000)]);
        assert_eq!(read(b"").1, Outcome::Damaged);
        assert_eq!(read(b"1000 10 a perf map\n1010 10 and more of it, much more\n").1, Outcome::Damaged);
        let dump = Dump::new().load(0x1000, 0x40, 1, "first").load(0x2000, 0x40, 2, "second");
        for end in HEADER as usize..dump.0.len() {
            let (frames, outcome) = read(&dump.0[..end]);
            // The name is there from its 0 on, or cut.
            let is_there = frames[0].as_ref().is_some_and(|f| "first".starts_with(&f.function));
            assert!(outcome == Outcome::Used && (is_there || end < 102), "{end}: {outcome:?} {frames:?}");
        }
        // A record that says it is shorter than its head.
        let mut short = dump.0.clone();
        short[HEADER as usize + 4] = 15;
        short[HEADER as usize + 5] = 0;
        assert_eq!(read(&short), (vec![None], Outcome::Damaged));
    }

    #[test]
    fn names_end_with_their_record() {
        let long = "n".repeat(5000);
        let dump = Dump::new()
            .lines(0x1000, &[(0x1000, 3, &[b'f'; 3000]), (0x1010, 5, b"b.py")])
            .load(0x1000, 0x40, 1, &long)
            .load(0x2000, 0x40, 2, "next");
        let (names, outcome) = dump.read(&[0x1000, 0x1010, 0x2000]);
        let cut = &long[..MOST_NAME_BYTES];
        let wanted = [format!("{cut} {}:3", "f".repeat(MOST_NAME_BYTES)), format!("{cut} b.py:5"), "next".to_owned()];
        assert_eq!((names, outcome), (wanted.to_vec(), Outcome::Used));
        // A name and a file without their 0 do not go on into what follows.
        let mut words = [4711, 0x1000, 0x1000, 4, 1].map(u64::to_le_bytes).concat();
        words.extend(b"cut");
        let mut lines = [0x1000, 1, 0x1000, 9].map(u64::to_le_bytes).concat();
        lines.extend(b"x.c");
        let dump = Dump::new().record(DEBUG_INFO, &[&lines]).record(LOAD, &[&words]).load(0x2000, 4, 2, "next");
        assert_eq!(dump.read(&[0x1000, 0x2000]).0, ["cut x.c:9", "next"]);
    }

    #[test]
    fn damage_costs_names_alone() {
        let dump = Dump::new()
            .lines(0x1000, &[(0x1000, 3, b"a.py"), (0x1010, 5, b"\xff")])
            .load(0x1000, 0x40, 1, "run")
            .moved(0x1000, 0x5000, 0x40, 1);
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed % below as u64) as usize
        };
        let (mut named, mut unnamed) = (0, 0);
        for _ in 0..20_000 {
            let mut bytes = dump.0.clone();
            for _ in 0..=random(4) {
                let at = random(bytes.len());
                bytes[at] = [0, 0xff, 0x80, random(256) as u8][random(4)];
            }
            let (frames, _) = jitdump(&mut Cursor::new(&bytes), &[Avma(0x1008), Avma(0x5008), Avma(u64::MAX)]);
            if frames.iter().any(Option::is_some) { named += 1 } else { unnamed += 1 }
        }
        assert!(named > 1000 && unnamed > 100, "{named} {unnamed}");
    }
}
