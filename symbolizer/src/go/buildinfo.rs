//! Which Go built a binary (`debug/buildinfo`).

use crate::image::Image;

/// Begins the blob.
const MAGIC: &[u8] = b"\xff Go buildinf:";
/// Flag: strings follow in the blob itself (Go 1.18 and later).
const INLINE: u8 = 2;
/// Where they do.
const STRINGS: usize = 32;
/// No version is longer.
const MAX_VERSION: usize = 256;
/// How much of a segment without section headers is searched.
const SEARCHED: usize = 1 << 20;
/// How the blob is aligned.
const ALIGN: usize = 16;

/// Version of the Go toolchain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoVersion {
    /// As the toolchain calls itself, like `go1.22.10`.
    pub text: String,
    /// The second number; `None` where there is none to be seen.
    pub minor: Option<u32>,
}

impl GoVersion {
    fn parse(text: &str) -> Self {
        let digits = text.split("go1.").nth(1).unwrap_or("");
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        GoVersion { text: text.to_owned(), minor: digits[..end].parse().ok() }
    }
}

/// `None` where nothing says that this is Go; `Some(None)` where it is, of no
/// known version.
pub(super) fn version(image: &Image) -> Option<Option<GoVersion>> {
    match image.section_data(".go.buildinfo") {
        Some((_, blob)) => Some(parse(blob)),
        None if image.has_sections() => None,
        None => image.variables_bytes().find_map(|bytes| {
            let bytes = &bytes[..bytes.len().min(SEARCHED)];
            let at = (0..bytes.len()).step_by(ALIGN).find(|&at| bytes[at..].starts_with(MAGIC))?;
            Some(parse(&bytes[at..]))
        }),
    }
}

fn parse(blob: &[u8]) -> Option<GoVersion> {
    if !blob.starts_with(MAGIC) || blob.get(15)? & INLINE == 0 {
        return None;
    }
    // Versions are shorter than the two bytes of a varint reach.
    let (first, second) = (*blob.get(STRINGS)?, *blob.get(STRINGS + 1)?);
    let (length, at) = match first < 0x80 {
        true => (usize::from(first), STRINGS + 1),
        false => (usize::from(first & 0x7f) | usize::from(second & 0x7f) << 7, STRINGS + 2),
    };
    let text = std::str::from_utf8(blob.get(at..at.checked_add(length.min(MAX_VERSION))?)?).ok()?;
    Some(GoVersion::parse(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let minor = |text: &str| GoVersion::parse(text).minor;
        assert_eq!(minor("go1.19.8"), Some(19));
        assert_eq!(minor("go1.22"), Some(22));
        assert_eq!(minor("devel go1.24-abcdef Mon X:rangefunc"), Some(24));
        assert_eq!(minor("devel +abcdef"), None);
        assert_eq!(minor("go1."), None);
        assert_eq!(minor("go1.99999999999999999999"), None);
    }

    #[test]
    fn blobs() {
        let mut blob = MAGIC.to_vec();
        blob.extend([8, 2]);
        blob.resize(STRINGS, 0);
        blob.push(8);
        blob.extend(b"go1.19.8and more");
        assert_eq!(parse(&blob).unwrap().text, "go1.19.8");
        for cut in 0..blob.len() - 8 {
            assert_eq!(parse(&blob[..cut]), None, "{cut}");
        }
        blob[15] = 0;
        assert_eq!(parse(&blob), None);
    }
}
