//! From an instruction to its line: the location table of 3.11 and later.
//!
//! Source: Objects/locations.md of 3.11 to 3.13, InternalDocs/code_objects.md of
//! 3.14. An entry begins with a byte whose highest bit is set: four bits of kind,
//! three of its number of instructions less one. What follows depends on the kind;
//! no byte of it has the highest bit.

/// Kinds of entries; those below say columns in one byte more, within the line.
const ONE_LINE_0: u8 = 10;
const ONE_LINE_2: u8 = 12;
const NO_COLUMNS: u8 = 13;
const LONG: u8 = 14;
const NO_LOCATION: u8 = 15;

/// The line of instruction number `instruction` of a function that begins at
/// `first_line`; `None` where the table does not say.
pub(super) fn line_of(table: &[u8], first_line: u32, instruction: u32) -> Option<u32> {
    let mut line = i64::from(first_line);
    let mut end = 0u64;
    let mut rest = table.iter().copied();
    while let Some(first) = rest.next() {
        let kind = first >> 3 & 15;
        end += u64::from(first & 7) + 1;
        match kind {
            0..ONE_LINE_0 => skip(&mut rest, 1)?,
            ONE_LINE_0..=ONE_LINE_2 => {
                line += i64::from(kind - ONE_LINE_0);
                skip(&mut rest, 2)?;
            }
            NO_COLUMNS => line = line.saturating_add(signed(&mut rest)?),
            LONG => {
                line = line.saturating_add(signed(&mut rest)?);
                // End line, column, end column.
                for _ in 0..3 {
                    unsigned(&mut rest)?;
                }
            }
            _ => {}
        }
        if u64::from(instruction) < end {
            return u32::try_from(line).ok().filter(|&line| kind != NO_LOCATION && line > 0);
        }
    }
    None
}

fn skip(bytes: &mut impl Iterator<Item = u8>, count: usize) -> Option<()> {
    bytes.nth(count - 1).map(|_| ())
}

/// Six bits in each byte, the lowest first; bit 6 says that more follow.
fn unsigned(bytes: &mut impl Iterator<Item = u8>) -> Option<u64> {
    let mut value = 0;
    for shift in (0..60).step_by(6) {
        let byte = bytes.next()?;
        value |= u64::from(byte & 63) << shift;
        if byte & 64 == 0 {
            return Some(value);
        }
    }
    None
}

/// The lowest bit is the sign.
fn signed(bytes: &mut impl Iterator<Item = u8>) -> Option<i64> {
    let value = unsigned(bytes)?;
    let magnitude = (value >> 1) as i64;
    Some(if value & 1 == 1 { -magnitude } else { magnitude })
}

#[cfg(test)]
mod tests {
    use super::line_of;

    /// Of 3.11.2, 3.12.1 and 3.13.0 alike: `def f(n):\n    x = [n]\n\n\n    return x + [\n        n]`
    /// at line 1, by `f.__code__.co_linetable`.
    const TABLE: &[u8] = &[
        128, 0, 216, 9, 10, 136, 3, 128, 65, 240, 6, 0, 12, 13, 216, 8, 9, 240, 3, 1, 16, 11, 241, 0, 1, 12, 11, 240,
        0, 1, 5, 11,
    ];

    #[test]
    fn lines_as_python_tells_them() {
        let lines: Vec<Option<u32>> = (0..10).map(|i| line_of(TABLE, 1, i)).collect();
        assert_eq!(lines, [1, 2, 2, 2, 5, 6, 5, 5, 5, 5].map(Some));
    }

    #[test]
    fn a_damaged_table_is_no_line() {
        assert_eq!(line_of(&[], 1, 0), None);
        assert_eq!(line_of(&[0x80], 1, 0), None, "cut short");
        assert_eq!(line_of(&[0xf8], 7, 0), None, "no location");
        assert_eq!(line_of(&[0xe8, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f], 7, 0), None);
        let most = [0xe8, 0x7e, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x3f];
        assert_eq!(line_of(&most.repeat(64), u32::MAX, 600), None);
        for byte in 0..=255u8 {
            let _ = line_of(&[byte; 300], u32::MAX, 5000);
        }
    }
}
