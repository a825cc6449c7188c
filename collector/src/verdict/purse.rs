//! What memcgs are granted beyond their limits: so much one of them, and so much all.
//!
//! Whether the machine has the memory now says nothing of what it has when all of it is
//! used.

use super::machine_memory;
use crate::incident::units;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Shares of the machine's memory that one memcg, and all, may be granted unless somebody
/// says otherwise.
const SHARE_OF_ONE: u64 = 8;
const SHARE_OF_ALL: u64 = 4;

/// Grants that are out.
#[derive(Debug)]
pub struct Purse(Mutex<Inside>);

#[derive(Debug, Default)]
struct Inside {
    /// Most that all may have; `None` is a share of the machine's memory.
    most: Option<u64>,
    /// What each memcg has, by its number.
    out: BTreeMap<u32, u64>,
}

/// What one memcg may be granted.
#[derive(Debug, Clone)]
pub struct Allowance {
    purse: Arc<Purse>,
    number: u32,
    most: Option<u64>,
    /// The biggest grant that its ladders name: the first one is made as it is written.
    biggest: u64,
    /// Whether it is that of a run, of which nothing comes back.
    is_of_run: bool,
}

/// Who grants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The ladder, which nobody may be watching.
    Ladder,
    /// A person, who has looked.
    Person,
}

impl Purse {
    /// Nothing is out.
    #[must_use]
    pub fn new(most: Option<u64>) -> Arc<Self> {
        Arc::new(Purse(Mutex::new(Inside { most, out: BTreeMap::new() })))
    }

    /// So much for all from now on.
    pub fn allow(&self, most: Option<u64>) {
        self.inside().most = most;
    }

    /// So many bytes are out to the memcg with this number.
    pub fn settle(&self, number: u32, bytes: u64) {
        match bytes {
            0 => self.inside().out.remove(&number),
            _ => self.inside().out.insert(number, bytes),
        };
    }

    /// What this memcg may have, of which there is a most for it as well; `biggest` is the
    /// biggest grant of its ladders.
    #[must_use]
    pub fn allowance(self: &Arc<Self>, number: u32, most: Option<u64>, biggest: u64) -> Allowance {
        Allowance { purse: Arc::clone(self), number, most, biggest, is_of_run: false }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Allowance {
    /// That of a run, alone on its machine as far as it knows.
    #[must_use]
    pub fn of_run(most: Option<u64>, biggest: u64) -> Self {
        Allowance { is_of_run: true, ..Purse::new(Some(u64::MAX)).allowance(0, most, biggest) }
    }

    /// Takes bytes for a memcg that is limited to `limit` now; the error says why it may
    /// not have them.
    pub fn take(&self, bytes: u64, limit: u64, by: By) -> Result<(), String> {
        self.take_of(bytes, limit, by, machine_memory().0)
    }

    fn take_of(&self, bytes: u64, limit: u64, by: By, machine: u64) -> Result<(), String> {
        let mut inside = self.purse.inside();
        let has = inside.out.get(&self.number).copied().unwrap_or(0);
        let own = has.saturating_add(bytes);
        let all = inside.out.values().sum::<u64>().saturating_add(bytes);
        let of_machine = if self.is_of_run { u64::MAX } else { machine / SHARE_OF_ONE };
        // Every OOM begins the ladder anew: without it no action after a grant would be
        // tried as long as the machine has memory.
        let of_limit = match by {
            By::Ladder => limit.saturating_sub(has).max(self.biggest),
            By::Person => u64::MAX,
        };
        let key = if self.is_of_run { "run.most_granted" } else { "guard.most_granted" };
        for (would_have, most, whom, key) in [
            (own, self.most.unwrap_or(of_limit.min(of_machine)), "it", key),
            (all, inside.most.unwrap_or(machine / SHARE_OF_ALL), "all cgroups", "guard.most_granted_in_all"),
        ] {
            if would_have > most {
                let (would_have, most) = (units::bytes(would_have), units::bytes(most));
                return Err(format!("{whom} would have been granted {would_have}, and may be {most} ({key})"));
            }
        }
        inside.out.insert(self.number, own);
        Ok(())
    }

    /// So many bytes are out now, of those that come back.
    pub fn settle(&self, bytes: u64) {
        if !self.is_of_run {
            self.purse.settle(self.number, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const LIMIT: u64 = 64 * MIB;

    #[test]
    fn one_may_have_so_much_and_all_so_much() {
        let purse = Purse::new(Some(100 * MIB));
        let (a, b) = (purse.allowance(1, Some(64 * MIB), 0), purse.allowance(2, Some(64 * MIB), 0));
        assert_eq!(a.take(40 * MIB, LIMIT, By::Ladder), Ok(()));
        let refused = a.take(40 * MIB, LIMIT, By::Ladder).unwrap_err();
        assert_eq!(refused, "it would have been granted 80.0 MiB, and may be 64.0 MiB (guard.most_granted)");
        assert_eq!(b.take(60 * MIB, LIMIT, By::Ladder), Ok(()));
        let refused = a.take(MIB, LIMIT, By::Ladder).unwrap_err();
        assert_eq!(
            refused,
            "all cgroups would have been granted 101 MiB, and may be 100 MiB (guard.most_granted_in_all)"
        );
        // What one gave back the other may have.
        b.settle(0);
        assert_eq!(a.take(24 * MIB, LIMIT, By::Ladder), Ok(()));
        assert!(a.take(1, LIMIT, By::Ladder).is_err());
        purse.allow(Some(0));
        assert!(b.take(1, LIMIT, By::Ladder).is_err());
    }

    #[test]
    fn without_a_word_it_depends_on_the_machine() {
        let purse = Purse::new(None);
        let allowances = [1, 2, 3].map(|number| purse.allowance(number, None, 128 * MIB));
        assert!(allowances[0].take_of(129 * MIB, LIMIT, By::Person, 1024 * MIB).is_err());
        assert_eq!(
            allowances.each_ref().map(|a| a.take_of(128 * MIB, LIMIT, By::Ladder, 1024 * MIB).is_ok()),
            [true, true, false]
        );
    }

    #[test]
    fn without_a_word_a_ladder_may_double_the_limit() {
        let take = |allowance: &Allowance, mib: u64, limit: u64, by| {
            allowance
                .take_of(mib * MIB, limit * MIB, by, 16384 * MIB)
                .map_err(|why| why.split(", ").last().unwrap().to_owned())
        };
        for (allowance, key) in
            [(Allowance::of_run(None, 16 * MIB), "run"), (Purse::new(None).allowance(7, None, 16 * MIB), "guard")]
        {
            // What was granted is a part of the limit by then.
            let taken = [64, 80, 96, 112].map(|limit| take(&allowance, 16, limit, By::Ladder));
            assert!(taken.iter().all(Result::is_ok), "{taken:?}");
            let refused = take(&allowance, 16, 128, By::Ladder);
            assert_eq!(refused, Err(format!("and may be 64.0 MiB ({key}.most_granted)")));
            assert_eq!(take(&allowance, 16, 128, By::Person), Ok(()));
        }
        // The first one is as it is written, also where it is bigger than the limit.
        let allowance = Allowance::of_run(None, 512 * MIB);
        let taken = [64, 576].map(|limit| take(&allowance, 512, limit, By::Ladder));
        assert!(taken[0].is_ok() && taken[1].is_err(), "{taken:?}");
        // Nothing of a run comes back.
        allowance.settle(0);
        assert!(take(&allowance, 512, 576, By::Ladder).is_err());
        let said = Allowance::of_run(Some(32 * MIB), 512 * MIB);
        assert!(take(&said, 33, 64, By::Person).is_err() && take(&said, 32, 64, By::Ladder).is_ok());
    }
}
