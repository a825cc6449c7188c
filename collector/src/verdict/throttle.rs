//! Letting a memcg run on slowly, to see whether it gets well by itself.

use super::quota::Quota;
use super::{Effect, GLANCE, ROOM_MIN_BYTES, Scene};
use crate::cgroup::CgroupError;
use crate::incident::model::StepOutcome;
use crate::incident::units;
use std::time::{Duration, Instant};

/// A throttle is lifted when this share of the limit is free: less would be
/// used up again at once.
pub const THROTTLE_ROOM_SHARE: u64 = 8;
/// Loans to a throttled memcg. One is enough for most; but what needs memory may take
/// all of it at once, and then who would free some parks beside it.
const THROTTLE_LOANS: u32 = 4;
/// A throttled memcg in which nobody gets any further for so long is lent more.
const STUCK_TIME: Duration = Duration::from_millis(500);
/// Share of one CPU that a throttled memcg gets.
const THROTTLE_CPU_PERCENT: u32 = 10;

/// When a throttle is to be another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It grew in spite of it, or did not get less in time.
    Tighter,
    /// It got less.
    Looser,
}

/// How a throttle goes with the usage while its rung lasts: what got no less in half of the
/// time is tried with less CPU in what is left, and then with less again.
#[derive(Debug)]
struct Grip {
    low: u64,
    since: Instant,
    patience: Duration,
}

impl Grip {
    fn new(usage: u64, time: Duration, now: Instant) -> Self {
        Grip { low: usage, since: now, patience: time / 2 }
    }

    fn look(&mut self, usage: u64, now: Instant) -> Option<Turn> {
        // Pages come and go all the time.
        if usage.saturating_add(ROOM_MIN_BYTES) <= self.low {
            (self.low, self.since) = (usage, now);
            return Some(Turn::Looser);
        }
        if now.saturating_duration_since(self.since) >= self.patience {
            (self.since, self.patience) = (now, self.patience / 2);
            return Some(Turn::Tighter);
        }
        None
    }
}

impl Scene<'_> {
    pub(super) fn throttle(&mut self, time: Duration) -> Result<Effect, CgroupError> {
        let mut quota = match self.throttle.as_deref_mut().and_then(Option::take) {
            // It was not lifted yet since the last time, and was too loose.
            Some(mut quota) => quota.change(THROTTLE_CPU_PERCENT)?.then_some(quota),
            None => Quota::set(self.memcg, self.cpu, THROTTLE_CPU_PERCENT, self.watchdog)?,
        };
        let reason = match (&quota, self.memcg.has_us()) {
            (Some(quota), _) => {
                format!("given {} % of a CPU to see whether it frees memory by itself", quota.percent())
            }
            (None, true) => {
                "let run to see whether it frees memory by itself; its CPU is the guardian's, too".to_owned()
            }
            (None, false) => "let run to see whether it frees memory by itself; its CPU cannot be limited".to_owned(),
        };
        let (outcome, mut effect) = self.let_recover(time, quota.as_mut())?;
        if outcome == StepOutcome::Relieved
            && let (Some(kept), Some(quota)) = (self.throttle.as_deref_mut(), quota)
        {
            effect.push_str(&format!("; it has {} % of a CPU, and more step by step", quota.percent()));
            *kept = Some(quota);
        }
        Ok(Effect::new(outcome, reason, effect))
    }

    /// Lets it run, with a little room, and sees whether usage falls.
    pub(super) fn let_recover(
        &mut self,
        time: Duration,
        mut quota: Option<&mut Quota>,
    ) -> Result<(StepOutcome, String), CgroupError> {
        let mut loans = 1;
        self.brake.lend(loans)?;
        self.let_go()?;
        let before = self.memcg.usage()?;
        let begun = Instant::now();
        let mut well = false;
        let mut better = (before, begun);
        let mut grip = Grip::new(before, time, begun);
        while !well && begun.elapsed() < time && !self.interrupted(GLANCE) {
            let usage = self.memcg.usage()?;
            let needs_no_hold = self.brake.is_well()?;
            well = self.room()?.0 >= self.brake.level() / THROTTLE_ROOM_SHARE && needs_no_hold;
            if needs_no_hold || usage < better.0 {
                better = (usage, Instant::now());
            } else if loans < THROTTLE_LOANS && better.1.elapsed() >= STUCK_TIME {
                loans += 1;
                self.brake.lend(loans)?;
                better = (usage, Instant::now());
            }
            if let (Some(quota), Some(turn)) = (&mut quota, grip.look(usage, Instant::now())) {
                // One that resists stays as it is.
                let _ = match turn {
                    Turn::Tighter => quota.tighten(),
                    Turn::Looser => quota.loosen(THROTTLE_CPU_PERCENT),
                };
            }
        }
        self.brake.take_back()?;
        let after = self.memcg.usage()?;
        let took = begun.elapsed().as_secs_f64();
        Ok(match well {
            true => {
                let fell = units::bytes(before.saturating_sub(after));
                (StepOutcome::Relieved, format!("usage fell by {fell} in {took:.1} s"))
            }
            false => {
                // What it was lent is above the limit that the user knows.
                let left = match after.saturating_sub(self.brake.limit()) {
                    0 => format!("{} free", units::bytes(self.room()?.0)),
                    over => format!("{} above the limit, on loan", units::bytes(over)),
                };
                let at_last = match quota {
                    Some(quota) if quota.percent() < THROTTLE_CPU_PERCENT => {
                        format!(", at last with {} % of a CPU", quota.percent())
                    }
                    _ => String::new(),
                };
                (StepOutcome::NotEnough, format!("usage did not fall enough in {took:.1} s{at_last} ({left})"))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_tightened_ever_sooner_and_loosened_by_every_gain() {
        const MIB: u64 = 1 << 20;
        let begun = Instant::now();
        let mut grip = Grip::new(50 * MIB, Duration::from_secs(8), begun);
        let mut look = |millis: u64, mib: u64| grip.look(mib * MIB, begun + Duration::from_millis(millis));
        assert_eq!((look(3900, 50), look(4000, 50)), (None, Some(Turn::Tighter)));
        assert_eq!((look(5900, 51), look(6000, 51)), (None, Some(Turn::Tighter)));
        // A page less is nothing, a mebibyte is.
        assert_eq!((look(6500, 49), look(7000, 49)), (Some(Turn::Looser), None));
        assert_eq!((look(7400, 49), look(7500, 49)), (None, Some(Turn::Tighter)));
    }
}
