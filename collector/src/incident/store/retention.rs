//! What is kept of incidents, and what goes first.

use super::{INCIDENT, Store, StoreError, is_own_name};
use crate::incident::model::{OtherVictim, Trigger, Verdict};
use crate::incident::units;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Incidents with kills that are passed over, from the oldest on, for one without. Each is read for
/// that.
const PASSED_OVER: usize = 64;

/// What is kept; beyond it the oldest incidents go first, those in which somebody was killed
/// after the others, and never the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Incidents.
    pub max_count: usize,
    /// Bytes of all their files.
    pub max_use_bytes: u64,
    /// Bytes that are left free on the file system.
    pub keep_free_bytes: u64,
    /// From their OOM on.
    pub max_age: Option<Duration>,
}

/// An incident that was removed, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Removal {
    /// Its ID.
    pub id: String,
    /// Bytes of its files.
    pub bytes: u64,
    /// Which limit it was beyond.
    pub why: &'static str,
}

/// What of an incident tells whether somebody was killed.
#[derive(Debug, Deserialize)]
struct Harm {
    trigger: Trigger,
    #[serde(default)]
    other_victims: Vec<OtherVictim>,
    verdict: Option<Verdict>,
}

impl Store {
    /// What is beyond `limits`, in the order in which it goes; no folder that somebody gave a name
    /// of their own. `coming` is about to be added.
    pub fn beyond(&self, limits: &Limits, coming: usize) -> Result<Vec<Removal>, StoreError> {
        let now_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
        // IDs begin with the time, in an order of their own.
        let oldest = limits.max_age.map(|age| units::compact_time(now_us.saturating_sub(age.as_micros() as u64)));
        // Where nobody can tell, nothing is removed for it.
        let free = self.free_bytes().unwrap_or(u64::MAX);
        let missing = limits.keep_free_bytes.saturating_sub(free);
        let own: Vec<(String, u64)> = self
            .ids()?
            .into_iter()
            .filter(|id| is_own_name(id))
            .map(|id| (size_of_dir(&self.dir.join(&id)), id))
            .map(|(bytes, id)| (id, bytes))
            .collect();
        let (mut count, mut used) = (own.len() + coming, own.iter().map(|(_, bytes)| bytes).sum::<u64>());
        let mut removals = Vec::new();
        let mut gained = 0;
        // The newest may be what somebody is about to read.
        let kept = own.len().saturating_sub(usize::from(coming == 0));
        let (old, young): (Vec<_>, Vec<_>) =
            own.into_iter().take(kept).partition(|(id, _)| oldest.as_ref().is_some_and(|oldest| id < oldest));
        for (id, bytes) in old {
            (count, used, gained) = (count - 1, used - bytes, gained + bytes);
            removals.push(Removal { id, bytes, why: "max_age" });
        }
        let (mut harmless, mut deadly) = (young.into_iter(), VecDeque::new());
        loop {
            let why = if count > limits.max_count {
                "max_count"
            } else if used > limits.max_use_bytes {
                "max_use"
            } else if gained < missing {
                "keep_free"
            } else {
                break;
            };
            let Some((id, bytes)) = self.first_to_go(&mut harmless, &mut deadly) else { break };
            (count, used, gained) = (count - 1, used - bytes, gained + bytes);
            removals.push(Removal { id, bytes, why });
        }
        Ok(removals)
    }

    /// The oldest in which nobody was killed, or else the oldest; `deadly` has those that were
    /// passed over for that.
    fn first_to_go(
        &self,
        others: &mut impl Iterator<Item = (String, u64)>,
        deadly: &mut VecDeque<(String, u64)>,
    ) -> Option<(String, u64)> {
        while deadly.len() < PASSED_OVER {
            match others.next() {
                Some(one) if self.is_deadly(&one.0) => deadly.push_back(one),
                Some(harmless) => return Some(harmless),
                None => break,
            }
        }
        deadly.pop_front()
    }

    /// Whether somebody was killed in an incident; one that cannot be read is none.
    fn is_deadly(&self, id: &str) -> bool {
        // Piece by piece: it can be bigger than the memory that we may take.
        let Ok(file) = File::open(self.dir.join(id).join(INCIDENT)) else { return false };
        serde_json::from_reader::<_, Harm>(BufReader::new(file)).is_ok_and(|harm| {
            harm.trigger == Trigger::KilledByKernel
                || !harm.other_victims.is_empty()
                || harm.verdict.is_some_and(|verdict| verdict.is_deadly())
        })
    }

    /// Makes room for `coming` more incidents.
    pub fn trim(&self, limits: &Limits, coming: usize) {
        for removal in self.beyond(limits, coming).unwrap_or_default() {
            // A folder that resists is tried again with the next incident.
            let _ = self.remove(&removal.id);
        }
    }
}

fn size_of_dir(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries.flatten().filter_map(|e| e.metadata().ok()).map(|m| m.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{publish, store};
    use super::*;
    use crate::incident::model::Incident;
    use crate::incident::store::write_atomically;

    #[test]
    fn the_oldest_go_first_the_newest_and_foreign_names_stay() {
        let (dir, store) = store();
        let kept = dir.path().join("keep-this-one");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join(INCIDENT), "{}").unwrap();
        let ids: Vec<String> = (1..=5).map(|second| publish(&store, second, 1000)).collect();
        let left = || store.ids().unwrap().into_iter().filter(|id| is_own_name(id)).collect::<Vec<_>>();
        assert_eq!(left(), ids);
        let all = Limits { max_count: 100, max_use_bytes: u64::MAX, keep_free_bytes: 0, max_age: None };
        store.trim(&all, 0);
        assert_eq!(left(), ids);
        store.trim(&Limits { max_count: 3, ..all }, 0);
        assert_eq!(left(), ids[2..]);
        store.trim(&Limits { max_use_bytes: 2500, ..all }, 0);
        assert_eq!(left(), ids[3..]);
        store.trim(&Limits { max_count: 1, max_use_bytes: 1, keep_free_bytes: u64::MAX, ..all }, 0);
        assert_eq!(left(), ids[4..]);
        // Room for one more is room for nothing else.
        store.trim(&Limits { max_count: 1, ..all }, 1);
        assert_eq!(left(), [""; 0]);
        assert!(kept.join(INCIDENT).exists());
    }

    #[test]
    fn those_in_which_somebody_was_killed_go_last() {
        let (_dir, store) = store();
        let sort = include_str!("../../../../fixtures/incidents/sort.json");
        let publish = |second: u64, is_kill: bool| {
            let mut incident: Incident = serde_json::from_str(sort).unwrap();
            let verdict = incident.verdict.as_mut().unwrap();
            verdict.relieved = true;
            let candidates = verdict.steps.iter().flat_map(|step| step.candidates.clone()).collect::<Vec<_>>();
            assert!(!candidates.is_empty());
            verdict.steps.iter_mut().for_each(|step| step.candidates = candidates.clone());
            if !is_kill {
                verdict.steps.iter_mut().for_each(|step| step.candidates.clear());
            }
            let id = store.new_id(second * 1_000_000, "a program");
            let staging = store.stage(&id).unwrap();
            write_atomically(staging.path(), INCIDENT, &serde_json::to_vec(&incident).unwrap()).unwrap();
            staging.publish().unwrap();
            id
        };
        let ids: Vec<String> =
            [true, false, true, false, false].iter().zip(1..).map(|(is_kill, at)| publish(at, *is_kill)).collect();
        let all = Limits { max_count: 100, max_use_bytes: u64::MAX, keep_free_bytes: 0, max_age: None };
        let left = |count| {
            store.trim(&Limits { max_count: count, ..all }, 0);
            let left = store.ids().unwrap();
            ids.iter().enumerate().filter(|(_, id)| left.contains(id)).map(|(at, _)| at).collect::<Vec<_>>()
        };
        assert_eq!(left(4), [0, 2, 3, 4]);
        assert_eq!(left(3), [0, 2, 4]);
        // The newest stays whatever it is.
        assert_eq!(left(2), [2, 4]);
        assert_eq!(left(1), [4]);
    }

    #[test]
    fn not_all_are_read_to_find_one_without_a_kill() {
        let (_dir, store) = store();
        let kill = r#"{"trigger":"killed_by_kernel","verdict":null}"#;
        let write = |second: u64, text: &str| {
            let staging = store.stage(&store.new_id(second * 1_000_000, "a program")).unwrap();
            write_atomically(staging.path(), INCIDENT, text.as_bytes()).unwrap();
            staging.publish().unwrap();
        };
        let kills = PASSED_OVER as u64 + 1;
        (0..kills).for_each(|second| write(second, kill));
        write(kills, r#"{"trigger":"snapshot","verdict":null}"#);
        write(kills + 1, kill);
        let ids = store.ids().unwrap();
        let limits = Limits { max_count: ids.len() - 2, max_use_bytes: u64::MAX, keep_free_bytes: 0, max_age: None };
        let told: Vec<String> = store.beyond(&limits, 0).unwrap().into_iter().map(|removal| removal.id).collect();
        // With the first of them gone one more is looked at, which is another kill.
        assert_eq!(told, ids[..2]);
        let told = store.beyond(&Limits { max_count: ids.len() - 3, ..limits }, 0).unwrap();
        assert_eq!(told.last().unwrap().id, ids[kills as usize]);
    }

    #[test]
    fn removals_are_told_with_their_reason() {
        let (_dir, store) = store();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let ids: Vec<String> = [1, now - 7200, now - 3600, now].iter().map(|s| publish(&store, *s, 100)).collect();
        let limits =
            Limits { max_count: 3, max_use_bytes: 250, keep_free_bytes: 0, max_age: Some(Duration::from_secs(86_400)) };
        let told: Vec<(String, &str)> = store.beyond(&limits, 0).unwrap().into_iter().map(|r| (r.id, r.why)).collect();
        assert_eq!(told, [(ids[0].clone(), "max_age"), (ids[1].clone(), "max_use")]);
        // On a disk that is never free enough all but the newest go.
        let full = Limits { keep_free_bytes: u64::MAX, max_use_bytes: u64::MAX, ..limits };
        let told: Vec<&str> = store.beyond(&full, 0).unwrap().iter().map(|r| r.why).collect();
        assert_eq!(told, ["max_age", "keep_free", "keep_free"]);
        assert_eq!(store.ids().unwrap(), ids);
    }
}
