//! Sections that are compressed (`SHF_COMPRESSED`, `.zdebug_*`), and their size in
//! memory, which is known before it is taken.

use crate::debug_files::Outcome;
use flate2::bufread::ZlibDecoder;
use object::{CompressionFormat, Object, ObjectSection};
use ruzstd::decoding::StreamingDecoder;
use std::borrow::Cow;
use std::io::Read;

/// Bytes that decompressing a section takes; 0 for one that is used as it lies in
/// the file.
pub(crate) fn expanded_bytes(file: &object::File<'_>, name: &str) -> u64 {
    file.section_by_name(name).map_or(0, |section| expanded(&section))
}

/// The same of a section that was found.
pub(crate) fn expanded(section: &object::Section<'_, '_>) -> u64 {
    match section.compressed_file_range() {
        Ok(range) if range.format != CompressionFormat::None => range.uncompressed_size,
        _ => 0,
    }
}

/// Empty where there is none.
///
/// `object` could do it, but decompresses zstd to whatever end, and a few bytes of it can
/// be gigabytes.
pub(crate) fn section<'a>(file: &object::File<'a>, name: &str) -> Result<Cow<'a, [u8]>, Outcome> {
    let Some(section) = file.section_by_name(name) else { return Ok(Cow::default()) };
    let data = section.compressed_data().map_err(|_| Outcome::Damaged)?;
    let size = usize::try_from(data.uncompressed_size).map_err(|_| Outcome::TooLarge)?;
    let mut bytes = Vec::new();
    match data.format {
        CompressionFormat::None => return Ok(Cow::Borrowed(data.data)),
        CompressionFormat::Zlib => fill(&mut bytes, size, ZlibDecoder::new(data.data))?,
        CompressionFormat::Zstandard => {
            let mut input = data.data;
            while !input.is_empty() && bytes.len() <= size {
                let frame = StreamingDecoder::new(&mut input).map_err(|_| Outcome::Damaged)?;
                fill(&mut bytes, size, frame)?;
            }
        }
        _ => return Err(Outcome::Damaged),
    }
    if bytes.len() == size { Ok(Cow::Owned(bytes)) } else { Err(Outcome::Damaged) }
}

/// Reads up to `size` bytes, and one more where there are too many.
fn fill(bytes: &mut Vec<u8>, size: usize, from: impl Read) -> Result<(), Outcome> {
    bytes.try_reserve_exact(size - bytes.len()).map_err(|_| Outcome::TooLarge)?;
    let most = (size - bytes.len()) as u64 + 1;
    from.take(most).read_to_end(bytes).map_err(|_| Outcome::Damaged)?;
    Ok(())
}
