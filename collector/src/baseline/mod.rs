//! What a memcg was like until now: a few records of it, the older, the sparser, in memory
//! that does not grow.
//!
//! A record is made every second or so, and more rarely where that would take more than a
//! thousandth of a processor. When the memcg is full, the incident is compared with the
//! latest record after which four fifths of the growth came
//! ([why](../../../docs/decisions/0021-a-rolling-baseline.md)).

mod record;

pub use record::Record;

use crate::cgroup::Memcg;
use crate::incident::baseline::{Baseline, BaselineCost, KindGrowth, ProcessGrowth, UsagePoint};
use crate::incident::model::Process;
use crate::witness::HeapTable;
use record::KINDS;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Records that are kept: of a second ago, two, four … up to a quarter of an hour.
const RECORDS: usize = 10;
/// Stacks of the heap that a record keeps, 32 bytes each.
const STACKS: usize = 640;
/// What is older is of no use to anybody who asks what happened.
const OLDEST: Duration = Duration::from_secs(15 * 60);
/// A record takes at most one part in so many of the time.
const COST: u32 = 1000;
/// Of the growth that must have come after the record that is compared.
const MOST: f64 = 0.8;

/// Of the growth that may have come while usage is still called what it was in the record.
const LEVEL: u64 = 50;

/// How often to look, and how much of it to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Between points of the curve.
    pub usage: Duration,
    /// Between records.
    pub record: Duration,
    /// The same at most, and between points, while usage stays what it was to the byte: then
    /// the last record is as good as a new one. None without.
    pub rest: Option<Duration>,
    /// Points of the curve.
    pub points: usize,
    /// Processes of a record, those with most.
    pub processes: usize,
}

impl Pace {
    /// For one command: 220 KiB at most.
    pub const OF_ONE: Pace = Pace {
        usage: Duration::from_millis(250),
        record: Duration::from_secs(1),
        // A heap may change below the same usage.
        rest: None,
        points: 240,
        processes: 32,
    };
    /// For each of many memcgs: 4 KiB at most.
    pub const OF_MANY: Pace = Pace {
        usage: Duration::from_secs(5),
        record: Duration::from_secs(10),
        rest: Some(Duration::from_secs(80)),
        points: 48,
        processes: 4,
    };
}

/// The records of one memcg.
#[derive(Debug)]
pub struct History {
    pace: Pace,
    records: Vec<Record>,
    curve: Vec<(Instant, u64)>,
    began: Instant,
    next_usage: Instant,
    next_record: Instant,
    /// Until the next look, if nothing changes.
    rest: Duration,
    /// What says so: most looks read no more.
    usage: Option<File>,
    made: u64,
    took: Duration,
}

impl History {
    /// An empty one; the first look is due at once.
    #[must_use]
    pub fn new(pace: Pace) -> Self {
        let now = Instant::now();
        History {
            pace,
            records: Vec::with_capacity(RECORDS + 1),
            curve: Vec::with_capacity(pace.points),
            began: now,
            next_usage: now,
            next_record: now,
            rest: pace.usage,
            usage: None,
            made: 0,
            took: Duration::ZERO,
        }
    }

    /// When to look next.
    #[must_use]
    pub fn due(&self) -> Instant {
        self.next_usage.min(self.next_record)
    }

    /// Looks, where it is time to.
    pub fn look(&mut self, memcg: &Memcg, heap: Option<&HeapTable>) {
        let began = Instant::now();
        if began < self.due() {
            return;
        }
        if self.rests(began, memcg) {
            self.took += began.elapsed();
            return;
        }
        self.rest = self.pace.usage;
        if began >= self.next_record {
            if let Some(record) = Record::take(memcg, self.pace.processes, heap.map(|table| (table, STACKS))) {
                self.add_point(began, record.usage_bytes);
                self.add(record);
            }
            let took = began.elapsed();
            self.took += took;
            self.next_record = began + self.pace.record.max(took * COST);
            self.next_usage = began + self.pace.usage;
        } else {
            if let Ok(usage) = memcg.usage() {
                self.add_point(began, usage);
            }
            self.took += began.elapsed();
            self.next_usage = began + self.pace.usage;
        }
    }

    /// Whether nothing has changed since the last record, which is then one of now; the next
    /// look is later than the last was.
    fn rests(&mut self, now: Instant, memcg: &Memcg) -> bool {
        let Some(most) = self.pace.rest.filter(|_| !self.records.is_empty()) else { return false };
        let usage = self.read_usage(memcg);
        let Some(last) = self.records.last_mut().filter(|last| usage == Some(last.usage_bytes)) else { return false };
        last.at = now;
        let usage_bytes = last.usage_bytes;
        self.add_point(now, usage_bytes);
        self.rest = (self.rest * 2).min(most);
        (self.next_usage, self.next_record) = (now + self.rest, now + self.rest);
        true
    }

    /// Bytes charged, by a file that stays open.
    fn read_usage(&mut self, memcg: &Memcg) -> Option<u64> {
        if self.usage.is_none() {
            self.usage = memcg.open_usage().ok();
        }
        // As long as a number can be.
        let mut text = [0; 24];
        let length = self.usage.as_ref()?.read_at(&mut text, 0).unwrap_or(0);
        let bytes = std::str::from_utf8(&text[..length]).ok().and_then(|text| text.trim().parse().ok());
        if bytes.is_none() {
            self.usage = None;
        }
        bytes
    }

    fn add_point(&mut self, at: Instant, usage: u64) {
        let points = self.pace.points;
        if self.curve.len() >= points {
            // Every other one of the older half goes: what is old is sparse.
            let mut index = 0;
            self.curve.retain(|_| {
                index += 1;
                index > points / 2 || index % 2 == 1
            });
        }
        self.curve.push((at, usage));
    }

    fn add(&mut self, record: Record) {
        self.made += 1;
        let now = record.at;
        self.records.retain(|old| now.duration_since(old.at) <= OLDEST);
        self.records.push(record);
        if self.records.len() > RECORDS {
            let ages: Vec<f64> = self.records.iter().map(|old| now.duration_since(old.at).as_secs_f64()).collect();
            self.records.remove(least_missed(&ages));
        }
    }

    /// The record to compare with, where usage has grown since any.
    #[must_use]
    pub fn choose(&self, usage_bytes: u64) -> Option<&Record> {
        let growths: Vec<u64> = self.records.iter().map(|r| usage_bytes.saturating_sub(r.usage_bytes)).collect();
        self.records.get(chosen(&growths)?)
    }

    /// The curve alone, where nothing can be compared any more.
    #[must_use]
    pub fn curve(&self, noticed: Instant) -> Option<Baseline> {
        (!self.curve.is_empty()).then(|| Baseline {
            usage: self.points(noticed),
            cost: self.cost(),
            ..Baseline::default()
        })
    }

    fn points(&self, noticed: Instant) -> Vec<UsagePoint> {
        let until = self.curve.iter().filter(|(at, _)| *at <= noticed);
        until.map(|&(at, usage_bytes)| UsagePoint { before_us: micros_until(noticed, at), usage_bytes }).collect()
    }

    fn cost(&self) -> BaselineCost {
        BaselineCost {
            records: self.made,
            took_us: self.took.as_micros() as u64,
            since_us: self.began.elapsed().as_micros() as u64,
            kept_bytes: self.kept_bytes() as u64,
        }
    }

    /// What the incident says of it. `noticed` is when the OOM was; `processes` have the names.
    #[must_use]
    pub fn tell(&self, noticed: Instant, chosen: &Record, memcg: &Memcg, processes: &[Process]) -> Option<Baseline> {
        let now = Record::take(memcg, usize::MAX, None)?;
        let kinds = KINDS.iter().zip(chosen.kinds).zip(now.kinds).filter_map(|((kind, before), after)| {
            Some(KindGrowth { kind: (*kind).to_owned(), before_bytes: before?, after_bytes: after? })
        });
        let mut grown: Vec<ProcessGrowth> = now
            .processes
            .iter()
            .filter_map(|(pid, after)| {
                let process = processes.iter().find(|process| process.pid == *pid)?;
                // Who has its PID now may be another.
                let is_same = process.age_s >= now.at.duration_since(chosen.at).as_secs_f64();
                let then = chosen.processes.iter().find(|(then, _)| then == pid).filter(|_| is_same);
                Some(ProcessGrowth {
                    pid: *pid,
                    comm: process.comm.clone(),
                    before_bytes: then.map(|(_, bytes)| *bytes),
                    after_bytes: *after,
                })
            })
            .collect();
        grown.sort_by_key(|p| std::cmp::Reverse(p.after_bytes as i64 - p.before_bytes.unwrap_or(0) as i64));
        Some(Baseline {
            usage: self.points(noticed),
            before_us: micros_until(noticed, chosen.at),
            within_us: self.within(noticed, chosen, &now, processes),
            before_bytes: chosen.usage_bytes,
            after_bytes: now.usage_bytes,
            kinds: kinds.collect(),
            processes: grown,
            has_heap: chosen.heap.is_some(),
            heap_rest_bytes: chosen.heap.as_ref().map_or(0, |heap| heap.rest_bytes),
            cost: self.cost(),
        })
    }

    /// The growth came so long before `noticed` at most, where that is less than the age of the
    /// record: a memcg may have been idle since, and looked at rarely.
    fn within(&self, noticed: Instant, chosen: &Record, now: &Record, processes: &[Process]) -> Option<u64> {
        let grew = now.usage_bytes.saturating_sub(chosen.usage_bytes);
        let is_level = |usage: u64| usage <= chosen.usage_bytes + grew / LEVEL;
        let mut seen = self.curve.iter().rev().filter(|(at, _)| (chosen.at..=noticed).contains(at));
        let level = seen.find(|(_, usage)| is_level(*usage)).map(|&(at, _)| micros_until(noticed, at));
        let grown: Vec<Grown> = now.processes.iter().filter_map(|own| Grown::of(own, chosen, processes)).collect();
        let age = age_of_growth(&grown, grew).map(|age_s| (age_s * 1e6) as u64);
        let least = [level, age].into_iter().flatten().min()?;
        (least < micros_until(noticed, chosen.at)).then_some(least)
    }

    fn kept_bytes(&self) -> usize {
        let curve = self.curve.capacity() * size_of::<(Instant, u64)>();
        self.records.iter().map(Record::kept_bytes).sum::<usize>() + curve
    }
}

fn micros_until(noticed: Instant, at: Instant) -> u64 {
    noticed.saturating_duration_since(at).as_micros() as u64
}

/// The latest record after which four fifths of the most growth came; `None` without growth.
fn chosen(growths: &[u64]) -> Option<usize> {
    let most = growths.iter().max().copied().filter(|most| *most > 0)?;
    growths.iter().rposition(|growth| *growth as f64 >= most as f64 * MOST)
}

/// Own memory of a process.
#[derive(Debug, Clone, Copy)]
struct Grown {
    age_s: f64,
    /// What it has.
    bytes: u64,
    /// What of that came since the record, at most.
    grew: u64,
}

impl Grown {
    fn of(&(pid, bytes): &(i32, u64), chosen: &Record, processes: &[Process]) -> Option<Self> {
        let age_s = processes.iter().find(|process| process.pid == pid)?.age_s;
        // One that was among the small ones of the record had nothing, for all we know; who has
        // the PID of one that is gone has more than it is said to, which only makes us careful.
        let then = chosen.processes.iter().find(|(then, _)| *then == pid).map_or(0, |(_, bytes)| *bytes);
        Some(Grown { age_s, bytes, grew: bytes.saturating_sub(then) })
    }
}

/// The age of what grew: of the oldest of the youngest processes that have four fifths of the
/// growth, where the older ones cannot have more than the rest. A child shares what its parent had
/// before the fork, and that is not the child's.
fn age_of_growth(processes: &[Grown], grew: u64) -> Option<f64> {
    let most = grew as f64 * MOST;
    let mut all = processes.to_vec();
    all.sort_by(|a, b| a.age_s.total_cmp(&b.age_s));
    let (mut young, mut old) = (0, all.iter().map(|process| process.grew).sum::<u64>());
    all.iter()
        .find(|process| {
            young += process.bytes;
            old -= process.grew;
            young as f64 >= most && grew as f64 - old as f64 >= most
        })
        .map(|process| process.age_s)
        .filter(|_| grew > 0)
}

/// Which of these ages, the oldest first, leaves the smallest gap for its age when it goes.
/// The oldest and the two latest stay.
fn least_missed(ages: &[f64]) -> usize {
    let gap = |index: usize| ages[index - 1] / ages[index + 1].max(1e-3);
    (1..ages.len() - 2).min_by(|a, b| gap(*a).total_cmp(&gap(*b))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(at: Instant, usage_bytes: u64) -> Record {
        Record { at, usage_bytes, kinds: [None; KINDS.len()], processes: Vec::new(), heap: None }
    }

    #[test]
    fn records_of_every_age_are_kept_and_not_many() {
        let began = Instant::now();
        let mut history = History::new(Pace::OF_ONE);
        for second in 0..1200 {
            let at = began + Duration::from_secs(second);
            history.add(record(at, second));
            history.add_point(at, second);
        }
        let ages: Vec<u64> = history.records.iter().map(|r| 1199 - r.usage_bytes).collect();
        assert_eq!(ages.len(), RECORDS, "{ages:?}");
        assert!(ages[0] <= 900 && ages[0] > 300, "{ages:?}");
        // No age is further than a factor of three from one that is there.
        for age in [2_u64, 5, 10, 20, 40, 80, 160, 300] {
            assert!(ages.iter().any(|a| *a >= age / 3 && *a <= age * 3), "none of about {age} s in {ages:?}");
        }
        assert!(history.curve.len() <= Pace::OF_ONE.points && history.curve.is_sorted());
        assert_eq!(history.curve.first().unwrap().1, 0);
        assert_eq!(history.curve.last().unwrap().1, 1199);
        assert!(history.kept_bytes() < 256 << 10);
    }

    #[test]
    fn a_memcg_in_which_nothing_happens_is_looked_at_more_and_more_rarely() {
        use crate::cgroup::{Hierarchy, Version};
        let dir = tempfile::tempdir().unwrap();
        let hierarchy = Hierarchy { version: Version::V2, mount: dir.path().to_owned(), own: "/".to_owned() };
        let memcg = Memcg::at(&hierarchy, "/");
        let uses = |bytes: &str| std::fs::write(dir.path().join("memory.current"), bytes).unwrap();
        std::fs::write(dir.path().join("cgroup.procs"), "").unwrap();
        let mut history = History::new(Pace::OF_MANY);
        // Looks now, and tells in how many seconds it wants to look again.
        let look = |history: &mut History| {
            (history.next_usage, history.next_record) = (Instant::now(), Instant::now());
            history.look(&memcg, None);
            (history.due() - Instant::now()).as_secs_f64().round()
        };
        uses("4096");
        assert_eq!([(); 6].map(|()| look(&mut history)), [5.0, 10.0, 20.0, 40.0, 80.0, 80.0]);
        assert_eq!((history.made, history.records.len()), (1, 1));
        // Its last record is of now, and no older one is lost.
        assert!(history.records[0].at.elapsed() < Duration::from_secs(1));
        uses("8192");
        assert_eq!([(); 2].map(|()| look(&mut history)), [5.0, 10.0]);
        assert_eq!(history.records.iter().map(|r| r.usage_bytes).collect::<Vec<_>>(), [4096, 8192]);
        assert_eq!(history.choose(12288).map(|record| record.usage_bytes), Some(4096));
        // One command is always looked at.
        let mut history = History::new(Pace::OF_ONE);
        assert_eq!([(); 3].map(|()| look(&mut history)), [0.0; 3]);
        assert_eq!(history.made, 3);
    }

    #[test]
    fn growth_is_no_older_than_what_grew() {
        let grown = |age_s, bytes, grew| Grown { age_s, bytes, grew };
        // A server that rests for long, and a program of half a second.
        let server = grown(600.0, 40, 0);
        assert_eq!(age_of_growth(&[server, grown(0.5, 53, 53)], 55), Some(0.5));
        // Two of a pipe: the older has not enough to be left out.
        assert_eq!(age_of_growth(&[server, grown(0.5, 30, 30), grown(3.0, 25, 25)], 55), Some(3.0));
        // What grew is the server.
        assert_eq!(age_of_growth(&[grown(600.0, 95, 55), grown(0.5, 1, 1)], 55), Some(600.0));
        // A fork that shares with it what came before.
        assert_eq!(age_of_growth(&[grown(600.0, 95, 55), grown(0.1, 95, 95)], 55), Some(600.0));
        // No process has it.
        assert_eq!(age_of_growth(&[server, grown(0.5, 1, 1)], 55), None);
        assert_eq!(age_of_growth(&[], 55), None);
        assert_eq!(age_of_growth(&[server], 0), None);
    }

    #[test]
    fn the_time_of_a_growth_ends_where_the_curve_was_still_level() {
        let noticed = Instant::now();
        let ago = |seconds| noticed.checked_sub(Duration::from_secs(seconds)).unwrap();
        let mut history = History::new(Pace::OF_MANY);
        history.curve.extend([(ago(80), 10 << 20), (ago(15), 11 << 20), (ago(5), 40 << 20)]);
        let within = |history: &History, before: u64| {
            history.within(noticed, &record(ago(80), before << 20), &record(noticed, 110 << 20), &[])
        };
        assert_eq!(within(&history, 10), Some(15_000_000));
        // It grew all the time.
        history.curve[1].1 = 30 << 20;
        assert_eq!(within(&history, 10), None);
        // A process that is there since.
        let (young, old) = ((8, 98 << 20), (7, 9 << 20));
        let now = Record { processes: vec![young, old], ..record(noticed, 110 << 20) };
        let then = Record { processes: vec![old], ..record(ago(80), 10 << 20) };
        let process = |pid, age_s| Process { pid, age_s, ..Process::default() };
        let processes = [process(7, 900.0), process(8, 0.47)];
        assert_eq!(history.within(noticed, &then, &now, &processes), Some(470_000));
    }

    #[test]
    fn the_burst_is_found_and_not_what_was_before() {
        // Level at 100 for long, and 360 more since the fourth.
        assert_eq!(chosen(&[360, 358, 361, 360, 200, 90, 0]), Some(3));
        // As steady as can be: nearly the oldest.
        assert_eq!(chosen(&[100, 95, 75, 40, 10]), Some(1));
        // It has shrunk since all of them.
        assert_eq!(chosen(&[0, 0]), None);
        assert_eq!(chosen(&[]), None);
    }
}
