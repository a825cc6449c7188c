//! Sizes and times for readers.

/// Bytes in binary units with three digits or so.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" || value >= 100.0 {
                format!("{value:.0} {unit}")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// A number with its digits in groups: `1 234 567`.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|g| std::str::from_utf8(g).ok()).collect();
    groups.join(" ")
}

/// Microseconds as ms or s.
#[must_use]
pub fn micros(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..100_000 => format!("{:.1} ms", us as f64 / 1e3),
        100_000..1_000_000 => format!("{} ms", us / 1000),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

/// `1 thread`, `2 threads`, `3 addresses`.
#[must_use]
pub fn count(number: u64, noun: &str) -> String {
    let ending = match number {
        1 => return format!("1 {noun}"),
        _ if noun.ends_with('s') => "es",
        _ => "s",
    };
    format!("{number} {noun}{ending}")
}

/// UTC time as `2026-11-23 17:48:01 UTC`.
#[must_use]
pub fn time(unix_us: u64) -> String {
    let (y, mo, d, h, mi, s) = civil(unix_us / 1_000_000);
    format!("{y:04}-{mo:02}-{d:02} {h:02}:{mi:02}:{s:02} UTC")
}

/// UTC time as `20261123T174801.042Z`, which sorts.
#[must_use]
pub fn compact_time(unix_us: u64) -> String {
    let (y, mo, d, h, mi, s) = civil(unix_us / 1_000_000);
    let ms = unix_us / 1000 % 1000;
    format!("{y:04}{mo:02}{d:02}T{h:02}{mi:02}{s:02}.{ms:03}Z")
}

/// Year, month, day, hour, minute, second (UTC).
fn civil(unix_s: u64) -> (i32, i32, i32, i32, i32, i32) {
    let time = unix_s as libc::time_t;
    // SAFETY: all-zero is a valid tm; gmtime_r writes only to it and reads only
    // `time`, both live locals.
    let tm = unsafe {
        let mut tm: libc::tm = std::mem::zeroed();
        libc::gmtime_r(&raw const time, &raw mut tm);
        tm
    };
    (tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readable() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(256 << 20), "256 MiB");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(micros(700), "700 µs");
        assert_eq!(micros(1_234_567), "1.2 s");
        assert_eq!(time(1_795_456_081_000_000), "2026-11-23 17:48:01 UTC");
        assert_eq!(compact_time(0), "19700101T000000.000Z");
        assert_eq!(compact_time(1_000_042_000), "19700101T001640.042Z");
    }
}
