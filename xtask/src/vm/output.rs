//! The stream that comes out of the guest: the command's output and, after
//! all of it, a line with its exit status.
//!
//! One stream and not two, because two would leave open whether all output
//! had arrived when the status does. The line starts with a byte that text
//! does not have and holds a number made up for this one run, so a command
//! cannot be mistaken for it.

use std::io::{self, Write};

/// Finds the end of the command's output and passes on what comes before it.
pub(super) struct Output {
    marker: Vec<u8>,
    pending: Vec<u8>,
}

impl Output {
    /// A reader of the stream that ends with `marker`, a decimal number and a line break.
    pub(super) fn new(marker: &str) -> Self {
        Self { marker: marker.as_bytes().to_owned(), pending: Vec::new() }
    }

    /// Takes the next piece; writes what surely is the command's to `sink`.
    /// Returns the exit status once it has arrived.
    pub(super) fn feed(&mut self, piece: &[u8], sink: &mut dyn Write) -> io::Result<Option<i32>> {
        self.pending.extend_from_slice(piece);
        let end = self.end();
        sink.write_all(&self.pending[..end])?;
        sink.flush()?;
        self.pending.drain(..end);
        let Some(number) = self.pending.strip_prefix(&self.marker[..]) else { return Ok(None) };
        // The number may still be on its way: its line break tells.
        let Some(length) = number.iter().position(|&byte| byte == b'\n') else { return Ok(None) };
        let status = std::str::from_utf8(&number[..length]).ok().and_then(|text| text.parse().ok());
        status.map(Some).ok_or_else(|| {
            let text = String::from_utf8_lossy(&number[..length]);
            io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} is no exit status"))
        })
    }

    /// Where the marker begins, or what may become it when more has arrived;
    /// else the end of what is there.
    fn end(&self) -> usize {
        let marker = |rest: &[u8]| rest.starts_with(&self.marker) || self.marker.starts_with(rest);
        (0..self.pending.len())
            .filter(|&at| self.pending[at] == self.marker[0])
            .find(|&at| marker(&self.pending[at..]))
            .unwrap_or(self.pending.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARKER: &str = "\u{1e}end 7:";
    const STREAM: &[u8] = b"a\x1eb\x1eend 8:1\n\x1e\x1eend 7:137\n";
    const TEXT: &[u8] = b"a\x1eb\x1eend 8:1\n\x1e";

    #[test]
    fn pieces_of_any_size_give_the_same() {
        for size in 1..=STREAM.len() {
            let (mut text, mut status) = (Vec::new(), None);
            let mut output = Output::new(MARKER);
            for piece in STREAM.chunks(size) {
                status = status.or(output.feed(piece, &mut text).unwrap());
            }
            assert_eq!(status, Some(137), "pieces of {size}");
            assert_eq!(text, TEXT, "pieces of {size}");
        }
    }

    #[test]
    fn what_cannot_be_the_marker_is_not_held_back() {
        let (mut text, mut output) = (Vec::new(), Output::new(MARKER));
        assert_eq!(output.feed(b"prompt> ", &mut text).unwrap(), None);
        assert_eq!(text, b"prompt> ");
        assert_eq!(output.feed(b"\x1eenx", &mut text).unwrap(), None);
        assert_eq!(text, b"prompt> \x1eenx");
    }
}
