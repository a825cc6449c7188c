//! How many incidents are written: so many of a memcg in an hour, and none too soon
//! after the last. Those in which somebody was killed are written beyond that, for they are
//! what is looked for later; but a program that dies again and again is not to fill the disk.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

const HOUR: Duration = Duration::from_secs(3600);
/// Kills that are written in an hour beyond the others, as a multiple of them.
const KILLS: usize = 10;

/// Who has had incidents when.
#[derive(Debug, Default)]
pub struct Ration {
    last: Option<Instant>,
    of: HashMap<String, Times>,
}

#[derive(Debug, Default)]
struct Times {
    any: VecDeque<Instant>,
    /// Kills beyond those.
    kills: VecDeque<Instant>,
}

/// How many are written at most.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Incidents of a memcg in an hour.
    pub per_hour: usize,
    /// Where that is set.
    pub key: &'static str,
    /// Least time between two incidents.
    pub cooldown: Duration,
}

/// Whether an OOM leaves an incident.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Share {
    /// It does.
    Any,
    /// Only where somebody was killed; why.
    Kill(String),
    /// It does not; why.
    Nothing(String),
}

impl Share {
    /// Why there is no incident of an OOM that was deadly or not.
    #[must_use]
    pub fn refuses(&self, is_deadly: bool) -> Option<&str> {
        match self {
            Share::Any => None,
            Share::Kill(why) => Some(why.as_str()).filter(|_| !is_deadly),
            Share::Nothing(why) => Some(why),
        }
    }

    /// Whether only kills have one: then it is told with [`Ration::spend`].
    #[must_use]
    pub fn is_for_kills(&self) -> bool {
        matches!(self, Share::Kill(_))
    }
}

impl Ration {
    /// Takes one for the memcg at `path`.
    pub fn take(&mut self, path: &str, bounds: Bounds, now: Instant) -> Share {
        let drop_old = |times: &mut VecDeque<Instant>| {
            while times.front().is_some_and(|at| now.saturating_duration_since(*at) >= HOUR) {
                times.pop_front();
            }
        };
        self.of.retain(|_, times| {
            drop_old(&mut times.any);
            drop_old(&mut times.kills);
            !(times.any.is_empty() && times.kills.is_empty())
        });
        let Bounds { per_hour, key, cooldown } = bounds;
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < cooldown) {
            return Share::Nothing(format!("the last one was less than {cooldown:?} ago (guard.cooldown)"));
        }
        let (any, kills) = self.of.get(path).map_or((0, 0), |times| (times.any.len(), times.kills.len()));
        if any >= per_hour {
            let why = format!("{path} had {any} within the hour ({key})");
            return match kills < per_hour.saturating_mul(KILLS) {
                true => Share::Kill(why),
                false => Share::Nothing(format!("{why}, and {kills} more in which somebody was killed")),
            };
        }
        self.last = Some(now);
        self.of.entry(path.to_owned()).or_default().any.push_back(now);
        Share::Any
    }

    /// A kill had an incident beyond the others.
    pub fn spend(&mut self, path: &str, now: Instant) {
        self.last = Some(now);
        self.of.entry(path.to_owned()).or_default().kills.push_back(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(per_hour: usize, cooldown_s: u64) -> Bounds {
        Bounds { per_hour, key: "guard.reports_per_hour", cooldown: Duration::from_secs(cooldown_s) }
    }

    #[test]
    fn each_memcg_has_so_many_in_an_hour() {
        let (mut ration, begun) = (Ration::default(), Instant::now());
        let mut take = |path, minute: u64| ration.take(path, bounds(2, 0), begun + Duration::from_secs(60 * minute));
        assert_eq!((take("/a", 0), take("/a", 10)), (Share::Any, Share::Any));
        let third = take("/a", 20);
        assert_eq!(third.refuses(false), Some("/a had 2 within the hour (guard.reports_per_hour)"));
        assert_eq!(take("/b", 20), Share::Any);
        // The first of them is an hour old.
        assert_eq!(take("/a", 60), Share::Any);
        assert!(take("/a", 61).is_for_kills());
        assert_eq!(take("/a", 70), Share::Any);
    }

    #[test]
    fn kills_are_written_beyond_it_but_not_for_ever() {
        let (mut ration, now) = (Ration::default(), Instant::now());
        assert_eq!(ration.take("/a", bounds(1, 0), now), Share::Any);
        for _ in 0..KILLS {
            let share = ration.take("/a", bounds(1, 0), now);
            assert!(share.refuses(true).is_none() && share.refuses(false).is_some() && share.is_for_kills());
            ration.spend("/a", now);
        }
        let share = ration.take("/a", bounds(1, 0), now);
        assert!(share.refuses(true).unwrap().ends_with("and 10 more in which somebody was killed"), "{share:?}");
        assert_eq!(ration.take("/a", bounds(1, 0), now + HOUR), Share::Any);
    }

    #[test]
    fn and_none_follows_another_too_soon() {
        let (mut ration, begun) = (Ration::default(), Instant::now());
        let mut take = |path, second: u64| ration.take(path, bounds(9, 30), begun + Duration::from_secs(second));
        assert_eq!(take("/a", 0), Share::Any);
        assert!(take("/b", 29).refuses(true).unwrap().contains("guard.cooldown"));
        // One that was refused does not count.
        assert_eq!(take("/b", 30), Share::Any);
    }
}
