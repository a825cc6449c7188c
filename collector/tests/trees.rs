//! A memcg that holds several jobs, out of memory: the one of the lowest priority that is over
//! its reservation dies, all of it, and nobody else. Trees are drawn by lot; each prints its
//! seed, and `REPRIEVE_SEED=N` draws that one alone.

mod common;
#[path = "common/guard.rs"]
mod guard;

use common::{Doomed, Lab, fixture, prioritize, rounds, wait_for};
use guard::{Brake, Grove, Guard, is_guarded};
use std::cmp::Reverse;
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

/// Trees; REPRIEVE_ROUNDS_PERCENT of it.
const ROUNDS: u64 = 100;
/// Sizes and reservations are so many MiB apart, much more than what the kernel charges a
/// process for beside them.
const UNIT_MIB: u64 = 4;
/// Reservations, in units, that the guard's configuration has.
const RESERVED: std::ops::RangeInclusive<u64> = 1..=6;
const PRIORITIES: std::ops::RangeInclusive<i32> = -3..=3;
/// What is left when all jobs have their memory, in KiB, and what one of them then takes.
const LEFT_KIB: u64 = 1536;
const MORE_MIB: &str = "3";

/// Who says what a job is worth.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Said<T> {
    Nobody,
    /// Its owner, by an attribute or a file of its cgroup.
    Owner(T),
    /// The guard's configuration, which knows it by its name.
    Configuration(T),
}

impl<T: Copy + Default> Said<T> {
    fn value(self) -> T {
        match self {
            Said::Nobody => T::default(),
            Said::Owner(value) | Said::Configuration(value) => value,
        }
    }
}

#[derive(Debug)]
struct Job {
    /// Below the tree.
    path: String,
    priority: Said<i32>,
    /// In units.
    reserved: Said<u64>,
    /// In units.
    size: u64,
    processes: u64,
}

impl Job {
    /// By how much it is over its reservation; `None` where it is within.
    fn over(&self) -> Option<u64> {
        self.size.checked_sub(self.reserved.value()).filter(|over| *over > 0)
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Job { path, priority, reserved, size, processes } = self;
        write!(f, "{path}: {priority:?}, {size} units in {processes} processes, reserved {reserved:?}")
    }
}

#[derive(Debug)]
struct Tree {
    jobs: Vec<Job>,
    /// The job that takes more in the end.
    grows: usize,
    /// The one that has to die.
    dies: usize,
}

impl Tree {
    /// One in which it is clear who has to die: no other is as good by less than a unit.
    fn draw(seed: u64) -> Self {
        let mut lot = fastrand::Rng::with_seed(seed);
        loop {
            let jobs = Self::draw_jobs(&mut lot);
            if let Some(dies) = who_dies(&jobs) {
                return Tree { grows: lot.usize(..jobs.len()), jobs, dies };
            }
        }
    }

    fn draw_jobs(lot: &mut fastrand::Rng) -> Vec<Job> {
        // Folders that hold jobs, some of them in each other.
        let mut folders = vec![String::new()];
        for number in 0..lot.usize(..4) {
            let parent = lot.choice(&folders).unwrap();
            folders.push(format!("{parent}group{number}/"));
        }
        // In one tree of eight nobody is over.
        let all_within = lot.u8(..8) == 0;
        let mut has_job = vec![false; folders.len()];
        let count = lot.usize(3..=30);
        (0..count).map(|number| Self::draw_job(lot, number, &folders, &mut has_job, all_within)).collect()
    }

    fn draw_job(
        lot: &mut fastrand::Rng,
        number: usize,
        folders: &[String],
        has_job: &mut [bool],
        all_within: bool,
    ) -> Job {
        let folder = lot.usize(..folders.len());
        let value = lot.i32(PRIORITIES);
        // In each folder the first has a priority: where nobody has, there are no jobs.
        let is_first = !std::mem::replace(&mut has_job[folder], true);
        let priority = match lot.u8(..5) {
            0 if !is_first => Said::Nobody,
            1 | 2 => Said::Configuration(value),
            _ => Said::Owner(value),
        };
        let size = lot.u64(2..=4);
        let units = match all_within || lot.u8(..3) == 0 {
            true => size + lot.u64(1..=2),
            false => lot.u64(..size),
        };
        let reserved = match (units, lot.bool()) {
            (0, _) => Said::Nobody,
            (_, true) => Said::Owner(units),
            (_, false) => Said::Configuration(units),
        };
        let mut name = format!("job{number}_");
        if let Said::Configuration(priority) = priority {
            name += &format!("p{priority}_");
        }
        if let Said::Configuration(units) = reserved {
            name += &format!("r{units}_");
        }
        Job { path: format!("{}{name}", folders[folder]), priority, reserved, size, processes: lot.u64(1..=2) }
    }
}

/// The rule as the guard's book has it; `None` where it is not clear.
fn who_dies(jobs: &[Job]) -> Option<usize> {
    let is_any_over = jobs.iter().any(|job| job.over().is_some());
    let mut all: Vec<usize> = (0..jobs.len()).filter(|&index| jobs[index].over().is_some() == is_any_over).collect();
    let rank = |&index: &usize| {
        let job = &jobs[index];
        // Who is within is over by nothing: then size decides.
        (job.priority.value(), Reverse(job.over().unwrap_or(job.size)))
    };
    all.sort_by_key(rank);
    let is_clear = all.get(1).is_none_or(|second| rank(&all[0]) != rank(second));
    is_clear.then(|| all[0])
}

/// What the guard is told of all trees.
fn configuration() -> String {
    let mut toml = "[guard]\non_oom = ['kill']\ncooldown = '1h'\n".to_owned();
    for priority in PRIORITIES {
        toml += &format!("[[cgroup]]\nmatch = '/**/job*_p{priority}_*'\npriority = {priority}\n");
    }
    for units in RESERVED {
        toml += &format!("[[cgroup]]\nmatch = '/**/job*_r{units}_*'\nreservation = '{}M'\n", units * UNIT_MIB);
    }
    toml
}

/// A process of a job.
struct Process {
    child: Doomed,
    lines: Option<ChildStdin>,
    words: BufReader<ChildStdout>,
}

impl Process {
    fn start(dir: &Path, mib: u64) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(dir.join("cgroup.procs"));
        command.arg(fixture("parked/job")).args(["--mib", &mib.to_string(), "--more", MORE_MIB]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (lines, words) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Process { child: Doomed(child), lines, words }
    }

    fn wait_for(&mut self, word: &str) {
        let mut line = String::new();
        self.words.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), word);
    }

    /// Has it take more.
    fn grow(&mut self) {
        self.lines.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    /// The signal that killed it; none where it has ended well, with its memory as it was.
    fn end(mut self) -> Option<i32> {
        self.lines = None;
        let status = self.child.0.wait().unwrap();
        assert!(status.success() || status.signal().is_some(), "{status}: memory was lost");
        status.signal()
    }
}

/// Limits a tree whose jobs have their memory, and waits until it is guarded.
fn leave_little(root: &Path) {
    let limit = common::usage(root) + (LEFT_KIB << 10);
    fs::write(root.join(Brake::here().limit_file()), limit.to_string()).unwrap();
    wait_for("the guard", || is_guarded(root));
}

/// Removes a tree whose processes have ended.
fn fell(root: &Path) {
    let mut dirs = vec![root.to_owned()];
    let mut next = 0;
    while let Some(dir) = dirs.get(next) {
        let folders = fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
        let folders: Vec<PathBuf> = folders.collect();
        dirs.extend(folders);
        next += 1;
    }
    dirs.iter().rev().for_each(|dir| wait_for("the end of a tree", || fs::remove_dir(dir).is_ok()));
}

/// Has a tree run out of memory, and tells what came of it.
fn round(guard: &Guard, grove: &Grove, tree: &Tree, seed: u64) -> String {
    let root = grove.root.0.join(format!("tree{seed}"));
    let mut jobs: Vec<Vec<Process>> = Vec::new();
    for job in &tree.jobs {
        let dir = grove.group(&format!("tree{seed}/{}", job.path));
        if let Said::Owner(priority) = job.priority {
            prioritize(&dir, &priority.to_string());
        }
        if let Said::Owner(units) = job.reserved {
            fs::write(dir.join(Brake::here().reservation_file()), ((units * UNIT_MIB) << 20).to_string()).unwrap();
        }
        let each = job.size * UNIT_MIB / job.processes;
        jobs.push((0..job.processes).map(|_| Process::start(&dir, each)).collect());
    }
    jobs.iter_mut().flatten().for_each(|process| process.wait_for("ready"));
    leave_little(&root);
    jobs[tree.grows][0].grow();
    let begins = format!("{}/tree{seed}: out of memory", grove.path());
    guard.wait_for(&begins);
    if tree.grows != tree.dies {
        jobs[tree.grows][0].wait_for("grown");
    }
    let said = guard.said();
    let told: Vec<&str> = said.lines().filter(|line| line.contains(&begins)).collect();
    for (index, processes) in jobs.into_iter().enumerate() {
        let expected = (index == tree.dies).then_some(9);
        let job = &tree.jobs[index];
        processes.into_iter().for_each(|process| assert_eq!(process.end(), expected, "{job}: {told:#?}"));
    }
    fell(&root);
    let killed = format!("killed all of {}/tree{seed}/{}, ", grove.path(), tree.jobs[tree.dies].path);
    assert!(told.len() == 1 && told[0].contains(&killed), "not {killed:?}: {told:#?}");
    let dead = &tree.jobs[tree.dies];
    let why = if dead.over().is_some() { "over" } else { "none over" };
    format!("of {} jobs died {dead} ({why})", tree.jobs.len())
}

#[test]
fn the_lowest_priority_over_its_reservation_dies() {
    let only = std::env::var("REPRIEVE_SEED").ok().map(|seed| seed.parse::<u64>().expect("REPRIEVE_SEED is a number"));
    let seeds = only.map_or(0..rounds(ROUNDS), |seed| seed..seed + 1);
    let (lab, grove) = (Lab::new(), Grove::new());
    let guard = Guard::start(&lab, &configuration(), &[&format!("{}/*", grove.path())]);
    let (count, mut failed) = (seeds.end - seeds.start, 0);
    for seed in seeds {
        let tree = Tree::draw(seed);
        // The others are to be had, too.
        match catch_unwind(AssertUnwindSafe(|| round(&guard, &grove, &tree, seed))) {
            Ok(told) => println!("seed {seed}: {told}"),
            Err(_) => {
                println!("seed {seed}: FAILED");
                tree.jobs.iter().for_each(|job| println!("  {job}"));
                fell(&grove.root.0.join(format!("tree{seed}")));
                failed += 1;
            }
        }
    }
    println!(
        "the job of the lowest priority over its reservation died, and nobody else, in {} of {count}",
        count - failed
    );
    assert_eq!(failed, 0, "of {count} trees:\n{}", guard.said());
    let said = guard.end();
    // Only the first leaves one.
    let incident = lab.incident();
    let step = &incident["verdict"]["steps"][0];
    assert!(step["reason"].as_str().unwrap().starts_with("job /"), "{step:#}\n{said}");
    assert!(step["candidates"].as_array().unwrap().iter().all(|candidate| candidate["pid"] == 0), "{step:#}");
}

#[test]
fn the_second_verdict_follows_a_priority_that_was_changed_after_the_first() {
    let (lab, grove) = (Lab::new(), Grove::new());
    let guard = Guard::start(&lab, "guard.on_oom = ['kill']\n", &[&format!("{}/*", grove.path())]);
    let dirs = ["first", "second", "third"].map(|name| grove.group(&format!("tree/{name}")));
    dirs.iter().zip(["1", "2", "3"]).for_each(|(dir, priority)| prioritize(dir, priority));
    let mib = 4 * UNIT_MIB;
    let [mut first, mut second, mut third] = dirs.each_ref().map(|dir| Process::start(dir, mib));
    [&mut first, &mut second, &mut third].into_iter().for_each(|process| process.wait_for("ready"));
    leave_little(&grove.root.0.join("tree"));
    third.grow();
    third.wait_for("grown");
    assert_eq!(first.end(), Some(9), "{}", guard.said());
    // Its owner thinks less of the one that was worth most.
    prioritize(&dirs[2], "0");
    // More than what the first had, less than what two have.
    let mut more = Process::start(&dirs[1], mib + 3 * UNIT_MIB);
    more.wait_for("ready");
    assert_eq!(third.end(), Some(9), "{}", guard.said());
    assert_eq!((second.end(), more.end()), (None, None), "{}", guard.said());
    fell(&grove.root.0.join("tree"));
    let said = guard.end();
    let path = grove.path();
    let killed: Vec<&str> = said.lines().filter_map(|line| Some(line.split_once("killed all of ")?.1)).collect();
    assert!(
        killed.len() == 2
            && killed[0].starts_with(&format!("{path}/tree/first,"))
            && killed[1].starts_with(&format!("{path}/tree/third,")),
        "{said}"
    );
}
