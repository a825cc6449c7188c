//! What stages that run at the same time say, told apart.

use std::io::{self, Write};

/// Passes on whole lines, each after the name of who says it.
#[derive(Debug)]
pub struct Labelled<W: Write> {
    label: &'static str,
    line: Vec<u8>,
    out: W,
}

impl<W: Write> Labelled<W> {
    /// Passes on to `out`, which takes a line at a time from several of us.
    pub fn new(label: &'static str, out: W) -> Self {
        Labelled { label, line: Vec::new(), out }
    }

    fn end_line(&mut self) -> io::Result<()> {
        let line = [self.label.as_bytes(), b"| ", &std::mem::take(&mut self.line)].concat();
        self.out.write_all(&line)
    }
}

impl<W: Write> Write for Labelled<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.line.extend(part);
            if part.ends_with(b"\n") {
                self.end_line()?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl<W: Write> Drop for Labelled<W> {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            self.line.push(b'\n');
            // Nobody is left to be told.
            _ = self.end_line();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_its_name_and_none_is_cut() {
        let mut out = Vec::new();
        let mut labelled = Labelled::new("guest", &mut out);
        b"test a ... ok\n\nlast".chunks(3).for_each(|piece| labelled.write_all(piece).unwrap());
        drop(labelled);
        assert_eq!(String::from_utf8(out).unwrap(), "guest| test a ... ok\nguest| \nguest| last\n");
    }
}
