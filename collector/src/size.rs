//! Sizes and durations as people write them, and sizes that can be.

use std::time::Duration;

/// More bytes than any counter of memory can have: physical addresses have at most 52 bits
/// (MAX_PHYSMEM_BITS, arch/x86/include/asm/sparsemem.h; PARange, arch/arm64/Kconfig). Some
/// thousands of such counters can be added up without a look at the sum.
pub const BEYOND_BYTES: u64 = 1 << 52;

/// A counter of the kernel, if it can be one of memory; what cannot is not there.
#[must_use]
pub fn can_be(bytes: u64) -> Option<u64> {
    Some(bytes).filter(|&bytes| bytes < BEYOND_BYTES)
}

/// A number of kB, as `/proc` has them, in bytes.
#[must_use]
pub fn from_kb(kb: u64) -> Option<u64> {
    kb.checked_mul(1024).and_then(can_be)
}

/// Parses `256M`, `1.5G`, `4096`, `64KiB`: binary units, bytes without one.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let help = || format!("{text:?} is not a size; write bytes or a number with K, M, G or T, like 256M");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| help())?;
    let unit = unit.trim().to_ascii_uppercase();
    let shift = match unit.strip_suffix("IB").or(unit.strip_suffix('B')).unwrap_or(&unit) {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(help()),
    };
    let bytes = number * (1u64 << shift) as f64;
    // Limits are page counts in an i64 in the kernel.
    if bytes < 1.0 || bytes > i64::MAX as f64 {
        return Err(format!("{text:?} is out of range; a size is between 1 byte and 8E"));
    }
    Ok(bytes as u64)
}

/// Parses `5s`, `250ms`, `2m`, `1.5s`. A bare number is refused: who wrote it may have meant
/// any unit.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let help = || format!("{text:?} is not a duration; write a number with ms, s, m or h, like 5s");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| help())?;
    let seconds = match unit.trim() {
        "" => return Err(format!("{text:?} has no unit; write a number with ms, s, m or h, like {text}s")),
        "ms" => number / 1000.0,
        "s" => number,
        "m" | "min" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(help()),
    };
    if !(0.001..=7.0 * 86_400.0).contains(&seconds) {
        return Err(format!("{text:?} is out of range; a duration is between 1ms and 168h"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Parses `90d`, `2w`, `36h` and the units of [`parse_duration`]; `never` is `None`.
pub fn parse_age(text: &str) -> Result<Option<Duration>, String> {
    if text == "never" {
        return Ok(None);
    }
    let help = || format!("{text:?} is not an age; write a number with h, d or w, like 90d, or never");
    let days = |number: &str, days: u64| {
        let number: u64 = number.parse().map_err(|_| help())?;
        number.checked_mul(days * 86_400).filter(|s| *s > 0).map(Duration::from_secs).ok_or_else(help)
    };
    match (text.strip_suffix('d'), text.strip_suffix('w')) {
        (Some(number), _) => days(number, 1).map(Some),
        (_, Some(number)) => days(number, 7).map(Some),
        _ if text.parse::<f64>().is_ok() => {
            Err(format!("{text:?} has no unit; write a number with h, d or w, like {text}d, or never"))
        }
        _ => parse_duration(text).map(Some).map_err(|_| help()),
    }
}

/// Parses how many page faults one sample stands for.
pub fn parse_faults(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(faults @ 1..=1_000_000) => Ok(faults),
        _ => Err(format!("{text:?} is no number of page faults; write 1 to 1000000, like 64")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        assert_eq!(parse_age("never"), Ok(None));
        assert_eq!(parse_age("2w"), Ok(Some(Duration::from_secs(14 * 86_400))));
        assert_eq!(parse_age("90d"), Ok(Some(Duration::from_secs(90 * 86_400))));
        assert_eq!(parse_age("36h"), Ok(Some(Duration::from_secs(36 * 3600))));
        for bad in ["", "d", "0d", "-1d", "1.5d", "x", "99999999999999999999w"] {
            assert!(parse_age(bad).is_err(), "{bad}");
        }
        assert!(parse_age("30").unwrap_err().contains("no unit; write a number with h, d or w, like 30d"));
    }

    #[test]
    fn faults() {
        assert_eq!((parse_faults("1"), parse_faults("1000000")), (Ok(1), Ok(1_000_000)));
        for bad in ["", "0", "-1", "1000001", "64K", "x"] {
            assert!(parse_faults(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("256M"), Ok(256 << 20));
        assert_eq!(parse_size("1.5g"), Ok(3 << 29));
        assert_eq!(parse_size("64KiB"), Ok(64 << 10));
        assert_eq!(parse_size("12B"), Ok(12));
        for bad in ["", "M", "-1", "12X", "1e9", "0", "999999999T"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert!(parse_duration("5").unwrap_err().contains("no unit; write a number with ms, s, m or h, like 5s"));
        assert_eq!(parse_duration("1.5m"), Ok(Duration::from_secs(90)));
        for bad in ["", "s", "5 parsecs", "0s", "1000h", "-1s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
