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

    /// What this memcg may have, of which there is a most for it as well.
    #[must_use]
    pub fn allowance(self: &Arc<Self>, number: u32, most: Option<u64>) -> Allowance {
        Allowance { purse: Arc::clone(self), number, most }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Allowance {
    /// Takes bytes; the error says why it may not have them.
    pub fn take(&self, bytes: u64) -> Result<(), String> {
        self.take_of(bytes, machine_memory().0)
    }

    fn take_of(&self, bytes: u64, machine: u64) -> Result<(), String> {
        let mut inside = self.purse.inside();
        let own = inside.out.get(&self.number).copied().unwrap_or(0).saturating_add(bytes);
        let all = inside.out.values().sum::<u64>().saturating_add(bytes);
        for (would_have, most, whom, key) in [
            (own, self.most.unwrap_or(machine / SHARE_OF_ONE), "it", "guard.most_granted"),
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

    /// So many bytes are out now.
    pub fn settle(&self, bytes: u64) {
        self.purse.settle(self.number, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn one_may_have_so_much_and_all_so_much() {
        let purse = Purse::new(Some(100 * MIB));
        let (a, b) = (purse.allowance(1, Some(64 * MIB)), purse.allowance(2, Some(64 * MIB)));
        assert_eq!(a.take(40 * MIB), Ok(()));
        let refused = a.take(40 * MIB).unwrap_err();
        assert_eq!(refused, "it would have been granted 80.0 MiB, and may be 64.0 MiB (guard.most_granted)");
        assert_eq!(b.take(60 * MIB), Ok(()));
        let refused = a.take(MIB).unwrap_err();
        assert_eq!(
            refused,
            "all cgroups would have been granted 101 MiB, and may be 100 MiB (guard.most_granted_in_all)"
        );
        // What one gave back the other may have.
        b.settle(0);
        assert_eq!(a.take(24 * MIB), Ok(()));
        assert!(a.take(1).is_err());
        purse.allow(Some(0));
        assert!(b.take(1).is_err());
    }

    #[test]
    fn without_a_word_it_depends_on_the_machine() {
        let purse = Purse::new(None);
        let allowances = [1, 2, 3].map(|number| purse.allowance(number, None));
        assert!(allowances[0].take_of(129 * MIB, 1024 * MIB).is_err());
        assert_eq!(allowances.each_ref().map(|a| a.take_of(128 * MIB, 1024 * MIB).is_ok()), [true, true, false]);
    }
}
