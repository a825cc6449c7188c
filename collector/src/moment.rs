//! Moments as people write them, in UTC, as all output has them.

use crate::size::parse_age;
use std::time::{SystemTime, UNIX_EPOCH};

/// Parses `2026-11-25`, `2026-11-25 08:46`, `2026-11-25T08:46:13Z`, `@1795596373`, `now`,
/// `today`, `yesterday`, and `2h` or `-2h`, which is so long ago. In microseconds since 1970.
pub fn parse_moment(text: &str) -> Result<u64, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    moment(text, now.as_micros() as u64)
}

fn moment(text: &str, now_us: u64) -> Result<u64, String> {
    const DAY_US: u64 = 86_400_000_000;
    let help = || {
        format!(
            "{text:?} is no time; write 2026-11-25, \"2026-11-25 08:46:13\" (UTC), today, yesterday, or an age like 2h or 7d"
        )
    };
    match text {
        "now" => return Ok(now_us),
        "today" => return Ok(now_us - now_us % DAY_US),
        "yesterday" => return Ok((now_us - now_us % DAY_US).saturating_sub(DAY_US)),
        _ => {}
    }
    if let Some(seconds) = text.strip_prefix('@') {
        return seconds.parse::<u64>().ok().and_then(|s| s.checked_mul(1_000_000)).ok_or_else(help);
    }
    if let Some(moment) = civil(text) {
        return Ok(moment);
    }
    match parse_age(text.strip_prefix('-').unwrap_or(text)) {
        Ok(Some(age)) => Ok(now_us.saturating_sub(age.as_micros() as u64)),
        _ => Err(help()),
    }
}

/// A date with a time or without.
fn civil(text: &str) -> Option<u64> {
    let text = text.strip_suffix(" UTC").or(text.strip_suffix('Z')).unwrap_or(text);
    let (date, time) = text.split_once([' ', 'T']).unwrap_or((text, "00:00"));
    let (seconds_of_day, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let date: Vec<i32> = numbers(date, '-')?;
    let time: Vec<i32> = numbers(seconds_of_day, ':')?;
    let ([year, month @ 1..=12, day @ 1..=31], [hour @ 0..=23, minute @ 0..=59, rest @ ..]) = (&date[..], &time[..])
    else {
        return None;
    };
    let second = match rest {
        [] => 0,
        [second @ 0..=60] => *second,
        _ => return None,
    };
    if *year < 1970 || fraction.is_empty() || fraction.len() > 6 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let micros: u64 = format!("{fraction:0<6}").parse().ok()?;
    // SAFETY: all-zero is a valid tm.
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    (tm.tm_year, tm.tm_mon, tm.tm_mday) = (year - 1900, month - 1, *day);
    (tm.tm_hour, tm.tm_min, tm.tm_sec) = (*hour, *minute, second);
    // SAFETY: timegm reads and normalizes the tm, a live local.
    let seconds = unsafe { libc::timegm(&raw mut tm) };
    // A day that the month does not have is another month's.
    (tm.tm_mon == month - 1).then_some(())?;
    Some(u64::try_from(seconds).ok()? * 1_000_000 + micros)
}

fn numbers(text: &str, between: char) -> Option<Vec<i32>> {
    let number = |part: &str| part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok())?;
    text.split(between).map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        // 2026-11-25 08:46:13 UTC
        let now = 1_795_596_373_000_000;
        for (text, expected) in [
            ("now", now),
            ("today", now - 31_573_000_000),
            ("yesterday", now - 31_573_000_000 - 86_400_000_000),
            ("2026-11-25", now - 31_573_000_000),
            ("2026-11-25 08:46", now - 13_000_000),
            ("2026-11-25 08:46:13", now),
            ("2026-11-25 08:46:13 UTC", now),
            ("2026-11-25T08:46:13.5Z", now + 500_000),
            ("@1795596373", now),
            ("2h", now - 7_200_000_000),
            ("-7d", now - 7 * 86_400_000_000),
            ("1970-01-01", 0),
        ] {
            assert_eq!(moment(text, now), Ok(expected), "{text}");
        }
        for bad in [
            "",
            "never",
            "tomorrow",
            "30",
            "2026-13-01",
            "2026-02-30",
            "2026-11-25 24:00",
            "2026-11",
            "25.11.2026",
            "@x",
            "1969-12-31",
            "2026-11-25T08:46:13.Z",
        ] {
            let error = moment(bad, now).unwrap_err();
            assert!(error.contains(bad) && error.contains("write"), "{error}");
        }
    }
}
