//! How many incidents are written: so many of a memcg in an hour, and none too soon
//! after the last.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

const HOUR: Duration = Duration::from_secs(3600);

/// Who has had incidents when.
#[derive(Debug, Default)]
pub struct Ration {
    last: Option<Instant>,
    of: HashMap<String, VecDeque<Instant>>,
}

impl Ration {
    /// Takes one for the memcg at `path`; the error says why there is none.
    pub fn take(&mut self, path: &str, per_hour: usize, cooldown: Duration, now: Instant) -> Result<(), String> {
        let is_old = |at: &Instant| now.saturating_duration_since(*at) >= HOUR;
        self.of.retain(|_, times| {
            while times.front().is_some_and(is_old) {
                times.pop_front();
            }
            !times.is_empty()
        });
        if self.of.get(path).is_some_and(|times| times.len() >= per_hour) {
            return Err(format!("{path} had {per_hour} within the hour (guard.reports_per_hour)"));
        }
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < cooldown) {
            return Err(format!("the last one was less than {cooldown:?} ago (guard.cooldown)"));
        }
        self.last = Some(now);
        self.of.entry(path.to_owned()).or_default().push_back(now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_memcg_has_so_many_in_an_hour() {
        let (mut ration, begun) = (Ration::default(), Instant::now());
        let mut take =
            |path, minute: u64| ration.take(path, 2, Duration::ZERO, begun + Duration::from_secs(60 * minute));
        assert_eq!((take("/a", 0), take("/a", 10)), (Ok(()), Ok(())));
        assert!(take("/a", 20).unwrap_err().contains("/a had 2 within the hour"));
        assert_eq!(take("/b", 20), Ok(()));
        // The first of them is an hour old.
        assert_eq!(take("/a", 60), Ok(()));
        assert!(take("/a", 61).is_err());
        assert_eq!(take("/a", 70), Ok(()));
    }

    #[test]
    fn and_none_follows_another_too_soon() {
        let (mut ration, begun) = (Ration::default(), Instant::now());
        let mut take =
            |path, second: u64| ration.take(path, 9, Duration::from_secs(30), begun + Duration::from_secs(second));
        assert_eq!(take("/a", 0), Ok(()));
        assert!(take("/b", 29).unwrap_err().contains("guard.cooldown"));
        // One that was refused does not count.
        assert_eq!(take("/b", 30), Ok(()));
    }
}
