//! Names as people know them.

use std::fmt::{self, Write};

/// Longest name that is told, in bytes. What is longer is cut: compilers write names of
/// tens of kilobytes, and a damaged file has them without end.
pub(crate) const MOST_NAME_BYTES: usize = 16 << 10;
/// At the end of what was cut.
const CUT: char = '…';

/// Demangles Rust (v0 and legacy, without the hash) and C++ (Itanium) names;
/// any other name stays as it is. No name is longer than 16 KiB; a few hundred bytes of
/// C++ can stand for gigabytes.
#[must_use]
pub fn demangle(name: &str) -> String {
    let mut short = Short::default();
    if name.len() > MOST_NAME_BYTES {
        // It would have to be read whole.
    } else if let Ok(rust) = rustc_demangle::try_demangle(name) {
        // Version suffix of dynamic symbols and clone suffixes of GCC stay useful
        // to the reader, so only the mangled part is replaced.
        let _ = write!(short, "{rust:#}");
        return short.finish();
    } else if name.starts_with("_Z")
        && let Ok(symbol) = cpp_demangle::Symbol::new(name)
    {
        let written = symbol.structured_demangle(&mut short, &cpp_demangle::DemangleOptions::new());
        if written.is_ok() || short.is_cut {
            return short.finish();
        }
        short = Short::default();
    }
    let _ = short.write_str(name);
    short.finish()
}

/// The name in bytes of a file, which need not be text.
pub(crate) fn demangle_bytes(name: &[u8]) -> String {
    // One more, so that it is seen to be cut.
    demangle(&String::from_utf8_lossy(&name[..name.len().min(MOST_NAME_BYTES + 1)]))
}

/// A text that takes no more than [`MOST_NAME_BYTES`].
#[derive(Default)]
struct Short {
    text: String,
    is_cut: bool,
}

impl Short {
    fn finish(mut self) -> String {
        if self.is_cut {
            self.text.push(CUT);
        }
        self.text
    }
}

impl Write for Short {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        let room = MOST_NAME_BYTES - CUT.len_utf8() - self.text.len();
        if more.len() <= room {
            self.text.push_str(more);
            return Ok(());
        }
        let end = (0..=room).rev().find(|&end| more.is_char_boundary(end)).unwrap_or(0);
        self.text.push_str(&more[..end]);
        self.is_cut = true;
        // Whoever writes shall end.
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages() {
        assert_eq!(demangle("_ZN3foo3barEv"), "foo::bar()");
        assert_eq!(demangle("_ZN4core3fmt5Write9write_fmt17h0123456789abcdefE"), "core::fmt::Write::write_fmt");
        assert_eq!(demangle("_RNvC6_123foo3bar"), "123foo::bar");
        assert_eq!(demangle("main"), "main");
        assert_eq!(demangle("_Zgarbage"), "_Zgarbage");
    }

    #[test]
    fn no_name_is_without_end() {
        // Each parameter is a function of the one before, twice: it doubles every time.
        let mut bomb = "_Z1fPFvvE".to_owned();
        for reference in ["S0_", "S2_", "S4_", "S6_", "S8_", "SA_", "SC_", "SE_", "SG_", "SI_", "SK_", "SM_", "SO_"] {
            bomb += &format!("PF{reference}{reference}E");
        }
        for name in [bomb, "x".repeat(1 << 20), format!("_ZN{}E", "1a".repeat(1 << 16)), "é".repeat(MOST_NAME_BYTES)] {
            let told = demangle(&name);
            assert!(told.len() <= MOST_NAME_BYTES, "{} bytes of {:.20}", told.len(), name);
        }
        let cut = demangle_bytes(&[b'x'; 1 << 20]);
        assert!(cut.ends_with("x…") && cut.len() == MOST_NAME_BYTES, "{}", cut.len());
        assert_eq!(demangle_bytes(b"a\xffb"), "a\u{fffd}b");
        let whole = "y".repeat(MOST_NAME_BYTES - CUT.len_utf8());
        assert_eq!(demangle(&whole), whole);
    }
}
