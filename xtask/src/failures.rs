//! What failed, said once more at the end of hours of output.

use std::io::{self, Write};

/// Bytes that are kept.
const ROOM: usize = 64 << 10;
/// Begins what libtest says of the tests of a program that failed.
const BEGIN: &str = "failures:";
/// Comes after it.
const END: &str = "test result:";

/// Passes on what tests print, line by line, and keeps what libtest says of those
/// that failed.
#[derive(Debug)]
pub struct Failures<W> {
    out: W,
    line: Vec<u8>,
    is_failure: bool,
    kept: Vec<u8>,
}

impl<W: Write> Failures<W> {
    /// Passes on to `out`.
    pub fn new(out: W) -> Self {
        Failures { out, line: Vec::new(), is_failure: false, kept: Vec::new() }
    }

    /// What was said of tests that failed; empty when none did.
    pub fn into_text(mut self) -> String {
        self.end_line();
        String::from_utf8_lossy(&self.kept).into_owned()
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let begins = |mark: &str| line.starts_with(mark.as_bytes());
        self.is_failure = begins(BEGIN) || self.is_failure && !begins(END);
        if self.is_failure && self.kept.len() + line.len() <= ROOM {
            self.kept.extend(line);
        }
    }
}

impl<W: Write> Write for Failures<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.line.extend(part);
            if part.ends_with(b"\n") {
                self.end_line();
            }
        }
        self.out.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_kept_and_all_is_passed_on() {
        let said = "test a ... FAILED\ntest b ... ok\n\nfailures:\n\n---- a stdout ----\nthread 'a' panicked\n\n\
                    failures:\n    a\n\ntest result: FAILED. 1 passed\n\nrunning 0 tests\ntest result: ok.\n";
        let mut passed_on = Vec::new();
        let mut failures = Failures::new(&mut passed_on);
        // In pieces, as pipes deliver it.
        said.as_bytes().chunks(7).for_each(|piece| failures.write_all(piece).unwrap());
        let kept = failures.into_text();
        assert_eq!(passed_on, said.as_bytes());
        assert!(kept.starts_with("failures:\n\n---- a stdout") && kept.ends_with("    a\n\n"), "{kept}");
    }

    #[test]
    fn nothing_is_kept_where_all_passed() {
        let mut failures = Failures::new(io::sink());
        failures.write_all(b"running 1 test\ntest a ... ok\n\ntest result: ok. 1 passed").unwrap();
        assert_eq!(failures.into_text(), "");
    }
}
