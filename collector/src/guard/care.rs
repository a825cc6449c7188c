//! Throttles that outlive the rung of the ladder that set them.
//!
//! What a throttled memcg freed, it may use up again as soon as it has a whole CPU. So the
//! throttle is lifted by steps, and tightened where that was too soon; not for ever, since
//! every second without growth is a step upwards.

use super::Guard;
use crate::cgroup::CgroupError;
use crate::hold::watchdog::Debt;
use crate::verdict::{Quota, THROTTLE_ROOM_SHARE, Turn};
use std::time::{Duration, Instant};

/// Time of a step.
const STEP_TIME: Duration = Duration::from_secs(1);

/// A throttle, and what it is measured by.
#[derive(Debug)]
pub struct Care {
    quota: Quota,
    begun: Instant,
    due: Instant,
    /// In use at the last step.
    usage: u64,
}

impl Care {
    /// The throttle has just helped.
    pub fn begin(quota: Quota, usage: u64) -> Self {
        let now = Instant::now();
        Care { quota, begun: now, due: now + STEP_TIME, usage }
    }

    /// When to look.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// For how long.
    pub fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Somebody else has the throttle.
    pub fn end(self) -> Quota {
        self.quota
    }

    /// What is to be written when it is lifted.
    pub fn debt(&self) -> Debt {
        self.quota.debt()
    }

    /// A step; false where the throttle is over.
    pub fn look(&mut self, usage: u64, level: u64) -> Result<bool, CgroupError> {
        let turn = turn(usage, self.usage, level);
        (self.usage, self.due) = (usage, Instant::now() + STEP_TIME);
        match turn {
            Turn::Tighter => self.quota.tighten(),
            Turn::Looser => self.quota.loosen(u32::MAX),
        }
    }
}

/// Which way it goes on: a memcg that is nearly full again and grows is not well.
fn turn(usage: u64, before: u64, level: u64) -> Turn {
    match usage > before && usage > level - level / THROTTLE_ROOM_SHARE {
        true => Turn::Tighter,
        false => Turn::Looser,
    }
}

impl Guard {
    pub(super) fn look_after_throttles(&mut self) {
        let now = Instant::now();
        let posts = self.posts.values_mut();
        let due = posts.filter(|post| post.care_due().is_some_and(|due| due <= now));
        due.for_each(super::post::Post::look_after_throttle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_growth_near_the_limit_tightens() {
        // Now, a step before, and the limit.
        assert_eq!(turn(58, 57, 64), Turn::Tighter);
        assert_eq!(turn(58, 58, 64), Turn::Looser);
        assert_eq!(turn(58, 63, 64), Turn::Looser);
        assert_eq!(turn(56, 20, 64), Turn::Looser);
    }
}
