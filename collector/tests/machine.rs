//! OOMs of the whole machine, on a kernel with the series of kernel/patches:
//! `cargo xtask test --only machine` boots a small one for these, since they fill it,
//! and a stock one beside it, which shows what is lost without.

mod common;
#[path = "common/guard.rs"]
mod guard;

use common::{Doomed, Group, Lab, assert_unharmed, fixture, prioritize, rounds, text, wait_for};
use guard::{Grove, Guard, end_of, leak_in};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Rounds; REPRIEVE_ROUNDS_PERCENT of it, or as many as REPRIEVE_ROUNDS says.
const ROUNDS: u64 = 30;

/// A kind of memory that jobs take.
#[derive(Clone, Copy)]
struct Eater {
    what: &'static str,
    program: &'static str,
    options: &'static [&'static str],
    /// Of three jobs, each takes so much of what is told to be available: three are too
    /// many, also if that was told by a fifth too low, two are not.
    percent: u64,
    /// In a frame of somebody who was looked at.
    source: &'static str,
}

const EATERS: [Eater; 6] = [
    Eater { what: "anonymous", program: "steady_leak", options: &[], percent: 44, source: "(steady_leak.c:" },
    Eater { what: "tmpfs", program: "tmpfs_writer", options: &[], percent: 44, source: "(tmpfs_writer.c:" },
    Eater { what: "pipes", program: "pipes", options: &["--sockets", "0"], percent: 44, source: "(pipes.c:" },
    Eater { what: "sockets", program: "pipes", options: &["--sockets", "100"], percent: 43, source: "(pipes.c:" },
    Eater { what: "page tables", program: "page_tables", options: &[], percent: 44, source: "(page_tables.c:" },
    // Each of them costs the kernel something, too: about a tenth of what it has.
    Eater { what: "processes", program: "processes", options: &[], percent: 41, source: "(processes.c:" },
];

/// Code is reclaimed and read again for long before a machine is out of memory.
const OOM_PATIENCE: Duration = Duration::from_secs(120);

/// `MemAvailable` in MiB.
fn available_mib() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// What there is to know of the machine and the jobs when an OOM did not come.
fn of_the_machine(groups: &[Group]) -> String {
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_else(|error| format!("{}: {error}\n", path.display()));
    let mut all = read(Path::new("/proc/meminfo")) + &read(Path::new("/sys/fs/cgroup/memory.oom.state"));
    for group in groups {
        let usage = read(&group.0.join("memory.current"));
        all += &format!("{} uses {usage}", group.0.display());
        for pid in read(&group.0.join("cgroup.procs")).lines() {
            let of = |name| read(&Path::new("/proc").join(pid).join(name));
            all += &format!("{pid} {} in {}\n{}", of("comm").trim(), of("wchan"), of("stack"));
        }
    }
    all
}

/// A command in a group. The tests themselves may be spared by the OOM killer, it not.
fn in_group(group: &Group, program: &str, options: &[&str]) -> Command {
    let mut shell = Command::new("sh");
    let exposed = ["sh", "-c", "echo 0 > /proc/self/oom_score_adj && exec \"$@\"", "sh"];
    group.entered_by(&mut shell).args(exposed).arg(fixture(program)).args(options);
    shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    shell
}

/// One of three jobs that are too many.
fn job(group: &Group, eater: &Eater, available_mib: u64) -> Child {
    let mib = (available_mib * eater.percent / 100).to_string();
    let mut job = in_group(group, eater.program, eater.options);
    job.args(["--mib", &mib, "--linger", "1"]).stdin(Stdio::piped()).spawn().unwrap()
}

/// Somebody with a little memory, who has nothing to do with it.
struct Bystander {
    service: Doomed,
    group: Group,
}

impl Bystander {
    fn start() -> Self {
        let group = Group::new("bystander");
        prioritize(&group.0, "100");
        let mut service = in_group(&group, "parked/service", &["--mib", "12"]).stdin(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(service.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Bystander { service: Doomed(service), group }
    }

    /// Ends it; what it has to say, and its group, which goes when nobody is in it.
    fn end(self) -> (Group, Output) {
        (self.group, end(self.service))
    }
}

/// Tells a program that lingers to end, if it lives; what it has to say.
fn end(mut child: Doomed) -> Output {
    drop(child.0.stdin.take());
    let mut stdout = Vec::new();
    child.0.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
    let mut stderr = Vec::new();
    child.0.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
    Output { status: child.0.wait().unwrap(), stdout, stderr }
}

/// How everybody ended.
struct Ended {
    /// Before the jobs began, in MiB.
    available: u64,
    /// In the order of their priorities.
    jobs: Vec<(Group, Output)>,
    bystander: (Group, Output),
}

/// Three jobs against the machine, with more to set for them before they start.
fn three_jobs(eater: &Eater, priorities: [&str; 3], set: impl FnOnce(&[Group])) -> Ended {
    let bystander = Bystander::start();
    let groups: Vec<Group> = ["a", "b", "c"].iter().map(|name| Group::new(name)).collect();
    groups.iter().zip(priorities).for_each(|(group, priority)| prioritize(&group.0, priority));
    set(&groups);
    let available = available_mib();
    let children: Vec<Child> = groups.iter().map(|group| job(group, eater, available)).collect();
    let mut children: Vec<Doomed> = children.into_iter().map(Doomed).collect();
    // All of them keep what they have until one is dead: they are three at once.
    let begun = Instant::now();
    while !children.iter_mut().any(|child| child.0.try_wait().unwrap().is_some()) {
        let told = || format!("{available} MiB were available\n{}", of_the_machine(&groups));
        assert!(begun.elapsed() < OOM_PATIENCE, "nobody died in {OOM_PATIENCE:?}; {}", told());
        std::thread::sleep(Duration::from_millis(10));
    }
    let outputs: Vec<Output> = children.into_iter().map(end).collect();
    Ended { available, jobs: groups.into_iter().zip(outputs).collect(), bystander: bystander.end() }
}

/// The same while reprieve watches.
fn watched(lab: &Lab, options: &[&str], eater: &Eater, priorities: [&str; 3], set: impl FnOnce(&[Group])) -> Ended {
    let mut guardian = Doomed(lab.reprieve("machine").args(options).spawn().unwrap());
    let state = || fs::read_to_string("/sys/fs/cgroup/memory.oom.state").unwrap();
    wait_for("the watch", || {
        state().contains("handler 1") && fs::read_to_string("/sys/fs/cgroup/memory.oom.delay_ms").unwrap().trim() != "0"
    });
    let ended = three_jobs(eater, priorities, set);
    assert_eq!(fs::read_to_string(COMPACT_LOCKED).unwrap().trim(), "0");
    let unlocked = unlocked_of(guardian.pid());
    kill(Pid::from_raw(guardian.pid()), Signal::SIGTERM).unwrap();
    assert!(guardian.0.wait().unwrap().success());
    assert_eq!(unlocked, Vec::<String>::new());
    assert_eq!(fs::read_to_string(COMPACT_LOCKED).unwrap().trim(), "1");
    assert!(state().contains("handler 0"));
    assert_eq!(fs::read_to_string("/sys/fs/cgroup/memory.oom.reserve").unwrap().trim(), "0");
    ended
}

/// Whether compaction may move locked pages, which makes who touches them wait.
const COMPACT_LOCKED: &str = "/proc/sys/vm/compact_unevictable_allowed";

/// Mappings of a process with pages that the kernel may take or move.
fn unlocked_of(pid: i32) -> Vec<String> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let value = |line: &str, key: &str| line.strip_prefix(key).map(|rest| rest.trim().to_owned());
    let (mut mapping, mut rss, mut unlocked) = ("", String::new(), Vec::new());
    for line in smaps.lines() {
        // Only the begin of a mapping has such a word at first.
        if line.split_once(' ').is_some_and(|(word, _)| word.contains('-') && !word.ends_with(':')) {
            mapping = line;
        }
        rss = value(line, "Rss:").unwrap_or(rss);
        // That of the vDSO is of the kernel, which never takes it.
        if value(line, "VmFlags:").is_some_and(|flags| !flags.split(' ').any(|flag| flag == "lo"))
            && rss != "0 kB"
            && !mapping.ends_with("[vdso]")
        {
            unlocked.push(format!("{rss} of {mapping}"));
        }
    }
    assert!(!mapping.is_empty());
    unlocked
}

/// /dev/shm may be filled with all there is.
fn allow_tmpfs_everything() {
    let done = Command::new("mount").args(["-o", "remount,size=1G", "/dev/shm"]).output().unwrap();
    assert!(done.status.success(), "{}", text(&done));
}

const ORDERS: [[&str; 3]; 3] = [["-5", "3", "7"], ["3", "-5", "7"], ["7", "3", "-5"]];

/// One round; what there is to say of it.
fn round(eater: &Eater, priorities: [&str; 3]) -> String {
    let lab = Lab::new();
    let ended = watched(&lab, &[], eater, priorities, |_| {});
    let incidents = lab.incidents();
    let told = || {
        let of = |i: &Value| format!("{:#}\n{:#}\n{:#}\n{:#}", i["trigger"], i["hold"], i["verdict"], i["gaps"]);
        incidents.iter().map(of).collect::<Vec<_>>().join("\n")
    };
    for ((group, output), priority) in ended.jobs.iter().zip(priorities) {
        let is_as_it_should = if priority == "-5" { !output.status.success() } else { output.status.success() };
        assert!(is_as_it_should, "{}: {}\n{}", group.0.display(), text(output), told());
        if priority != "-5" {
            assert_unharmed(output);
        }
    }
    assert_unharmed(&ended.bystander.1);
    // Before that one, holds may have ended by themselves.
    let (decided, free): (Vec<&Value>, Vec<&Value>) =
        incidents.iter().partition(|i| !i["verdict"]["steps"].as_array().unwrap().is_empty());
    for incident in &free {
        assert_eq!((&incident["trigger"], &incident["verdict"]["relieved"]), (&Value::from("oom"), &Value::Bool(true)));
        assert_eq!(incident["hold"]["kernel"]["ended"], "margin", "{}", told());
        assert!(incident["verdict"]["summary"].as_str().unwrap().contains("nobody was killed"), "{}", told());
    }
    assert_eq!(decided.len(), 1, "{}", told());
    let incident = decided[0];
    assert_eq!((&incident["trigger"], &incident["memcg"]["path"]), (&Value::from("oom"), &Value::from("/")));
    assert_eq!(incident["kernel_victims"], Value::Array(Vec::new()), "{}", told());
    let (verdict, hold) = (&incident["verdict"], &incident["hold"]);
    assert_eq!(verdict["relieved"], true, "{}", told());
    let steps = verdict["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 1, "{}", told());
    let candidates = steps[0]["candidates"].as_array().unwrap();
    assert_eq!(candidates.len(), 4, "{}", told());
    assert_eq!(candidates[0]["priority"], -5, "{}", told());
    assert!(steps[0]["reason"].as_str().unwrap().contains("lowest priority (-5)"), "{}", told());
    // By the kill, or by room that came in the same moment.
    assert!(["killed", "margin"].contains(&hold["kernel"]["ended"].as_str().unwrap()), "{}", told());
    // It waited for no page.
    assert_eq!(hold["deciding_faults"], 0, "{}", told());
    let folded = lab.out().join(incident["id"].as_str().unwrap()).join("stacks.folded");
    let folded = fs::read_to_string(folded).unwrap();
    assert!(folded.contains(eater.source), "{}\n{folded}", told());
    let processes = incident["processes"].as_array().unwrap().len();
    format!(
        "of {} MiB; held {} ms in {} of the kernel's holds, after {} that ended by themselves; evidence after {} ms of {processes} processes; {}",
        ended.available,
        hold["held_us"].as_u64().unwrap() / 1000,
        hold["kernel"]["holds"],
        free.len(),
        hold["snapshot_us"].as_u64().unwrap() / 1000,
        verdict["summary"].as_str().unwrap(),
    )
}

/// A number from the environment.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
#[ignore = "fills the machine, on a kernel with the series: `cargo xtask test --only machine` runs it"]
fn the_job_of_the_lowest_priority_dies() {
    allow_tmpfs_everything();
    let (rounds, seed) = (number("REPRIEVE_ROUNDS").unwrap_or_else(|| rounds(ROUNDS)), number("REPRIEVE_SEED"));
    let first = seed.unwrap_or(0);
    let kind = std::env::var("REPRIEVE_KIND").ok();
    let eaters: Vec<&Eater> =
        EATERS.iter().filter(|eater| kind.as_ref().is_none_or(|kind| kind == eater.what)).collect();
    assert!(!eaters.is_empty(), "REPRIEVE_KIND is one of {:?}", EATERS.map(|eater| eater.what));
    let mut failed = 0;
    for number in first..first + rounds {
        let eater = eaters[(number % eaters.len() as u64) as usize];
        let priorities = ORDERS[(number / eaters.len() as u64) as usize % ORDERS.len()];
        // The others are to be had, too.
        match catch_unwind(AssertUnwindSafe(|| round(eater, priorities))) {
            Ok(told) => println!("round {number}, {}: {told}", eater.what),
            Err(_) => {
                println!("round {number}, {}: FAILED", eater.what);
                failed += 1;
            }
        }
    }
    println!("the job of the lowest priority died, and nobody else, in {} of {rounds} rounds", rounds - failed);
    assert_eq!(failed, 0, "of {rounds} rounds");
}

#[test]
#[ignore = "fills the machine, on a kernel with the series: `cargo xtask test --only machine` runs it"]
fn an_oom_that_follows_at_once_is_decided_as_undisturbed() {
    // After the first kill the other two go on, while the first incident is rendered.
    let eater = Eater { percent: 80, ..EATERS[0] };
    let lab = Lab::new();
    let ended = watched(&lab, &[], &eater, ORDERS[0], |_| {});
    let is_dead = |(_, output): &(Group, Output)| output.status.code().is_none();
    assert_eq!(ended.jobs.iter().map(is_dead).collect::<Vec<_>>(), [true, true, false]);
    assert_unharmed(&ended.jobs[2].1);
    assert_unharmed(&ended.bystander.1);
    let incidents = lab.incidents();
    let decided = incidents.iter().filter(|i| !i["verdict"]["steps"].as_array().unwrap().is_empty());
    let decided: Vec<(&Value, &Value)> = decided
        .map(|i| (&i["verdict"]["steps"][0]["candidates"][0]["priority"], &i["hold"]["deciding_faults"]))
        .collect();
    assert_eq!(decided, [(&Value::from(-5), &Value::from(0)), (&Value::from(3), &Value::from(0))], "{incidents:#?}");
}

#[test]
#[ignore = "fills the machine, on a kernel with the series: `cargo xtask test --only machine` runs it"]
fn who_keeps_to_a_reservation_is_spared() {
    let lab = Lab::new();
    // More than it will ever use.
    let reserve = |groups: &[Group]| fs::write(groups[0].0.join("memory.low"), "240M").unwrap();
    let ended = watched(&lab, &[], &EATERS[0], ORDERS[0], reserve);
    assert_unharmed(&ended.jobs[0].1);
    assert_eq!(ended.jobs[1].1.status.code(), None, "{}", text(&ended.jobs[1].1));
    assert_unharmed(&ended.jobs[2].1);
    assert_unharmed(&ended.bystander.1);
    let incidents = lab.incidents();
    let mut steps = incidents.iter().flat_map(|incident| incident["verdict"]["steps"].as_array().unwrap());
    let step = steps.next().unwrap();
    assert_eq!(steps.next(), None);
    let order: Vec<i64> =
        step["candidates"].as_array().unwrap().iter().map(|c| c["priority"].as_i64().unwrap()).collect();
    assert_eq!(order, [3, 7, 100, -5], "{step:#}");
    // What came back is what it had.
    let gained = step["usage_before_bytes"].as_u64().unwrap() - step["usage_after_bytes"].as_u64().unwrap();
    assert!(gained > 40 << 20, "{step:#}");
}

#[test]
#[ignore = "fills the machine, on a kernel with the series: `cargo xtask test --only machine` runs it"]
fn a_second_watch_is_told_that_there_is_one() {
    let lab = Lab::new();
    let mut first = Doomed(lab.reprieve("machine").spawn().unwrap());
    wait_for("the watch", || fs::read_to_string("/sys/fs/cgroup/memory.oom.state").unwrap().contains("handler 1"));
    let second = lab.reprieve("machine").output().unwrap();
    assert_eq!(second.status.code(), Some(4), "{}", text(&second));
    kill(Pid::from_raw(first.pid()), Signal::SIGTERM).unwrap();
    assert!(first.0.wait().unwrap().success());
}

#[test]
#[ignore = "fills the machine, on a kernel with the series: `cargo xtask test --only machine` runs it"]
fn a_kill_of_the_kernels_leaves_an_incident() {
    let lab = Lab::new();
    let mut guardian = Doomed(lab.reprieve("machine").spawn().unwrap());
    let delay = "/sys/fs/cgroup/memory.oom.delay_ms";
    wait_for("the watch", || fs::read_to_string(delay).unwrap().trim() != "0");
    // No holds: the kernel does not wait for anybody.
    fs::write(delay, "0").unwrap();
    fs::write("/proc/self/oom_score_adj", "-1000").unwrap();
    let group = Group::new("alone");
    let mib = available_mib() * 2;
    let output = in_group(&group, "steady_leak", &["--mib", &mib.to_string()]).output().unwrap();
    fs::write("/proc/self/oom_score_adj", "0").unwrap();
    assert!(!output.status.success(), "{}", text(&output));
    wait_for("the incident", || !lab.incidents().is_empty());
    kill(Pid::from_raw(guardian.pid()), Signal::SIGTERM).unwrap();
    assert!(guardian.0.wait().unwrap().success());
    let incident = lab.incident();
    assert_eq!((&incident["trigger"], &incident["hold"]), (&Value::from("killed_by_kernel"), &Value::Null));
    assert_eq!(incident["kernel_victims"][0]["comm"], "steady_leak", "{:#}", incident["kernel_victims"]);
}

/// PID of the child of a guard that answers for the machine.
fn deputy_of(guard: &Guard) -> Option<Pid> {
    let pid = guard.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let is_it =
        |pid: &&str| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"reprieve-machine"));
    children.split_whitespace().find(is_it).map(|pid| Pid::from_raw(pid.parse().unwrap()))
}

#[test]
#[ignore = "fills the machine, on a kernel with the series: `cargo xtask test --only machine` runs it"]
fn a_guard_has_the_machine_answered_for() {
    let lab = Lab::new();
    let metrics = lab.out().join("reprieve.prom");
    let toml = |priorities: [i32; 2]| {
        let job = |name: &str, priority: i32| format!("[[cgroup]]\nmatch = '/{name}-*'\npriority = {priority}\n");
        let jobs = job("a", priorities[0]) + &job("b", priorities[1]);
        format!("guard.textfile = {metrics:?}\nmachine.answer = true\n{jobs}")
    };
    let guard = Guard::start(&lab, &toml([-5, 3]), &["/nowhere/*"]);
    let watches = |count: usize| {
        wait_for("a watch", || guard.said().matches("watching the machine; ").count() == count);
        wait_for("its metric", || {
            fs::read_to_string(&metrics).is_ok_and(|t| t.contains("\nreprieve_machine_answered 1\n"))
        });
    };
    let decided = || -> Vec<Value> {
        let all = lab.incidents().into_iter();
        all.filter(|incident| !incident["verdict"]["steps"].as_array().unwrap().is_empty()).collect()
    };
    // The jobs' own words say otherwise, and lose.
    let mut killed = Vec::new();
    let mut dies = |which: usize| {
        let ended = three_jobs(&EATERS[0], ["7", "7", "5"], |_| {});
        let dead: Vec<bool> = ended.jobs.iter().map(|(_, output)| !output.status.success()).collect();
        assert_eq!(dead, [0, 1, 2].map(|job| job == which), "{}", guard.said());
        assert_unharmed(&ended.bystander.1);
        killed.push(format!("/{}", ended.jobs[which].0.0.file_name().unwrap().to_str().unwrap()));
        wait_for("the incident", || decided().len() == killed.len());
        let incident = decided().pop().unwrap();
        assert_eq!(incident["verdict"]["steps"][0]["candidates"][0]["comm"], killed[which].as_str(), "{incident:#}");
        assert_eq!(incident["hold"]["deciding_faults"], 0, "{incident:#}");
        guard.wait_for(&format!(". kill: {} gave ", killed[which]));
        // Those that ended by themselves are counted as well.
        let of_machine = "reprieve_ooms_total{cgroup=\"/\",container_id=\"\",container_runtime=\"\",pod_uid=\"\"} ";
        wait_for("the metric", || {
            let counted = format!("\n{of_machine}{}\n", lab.incidents().len());
            fs::read_to_string(&metrics).is_ok_and(|text| text.contains(&counted))
        });
    };
    watches(1);
    dies(0);
    // What does not concern the machine is none of his business.
    let first = deputy_of(&guard).unwrap();
    guard.reload(&format!("guard.cooldown = '1s'\n{}", toml([-5, 3])));
    guard.wait_for("the configuration was read again");
    assert_eq!(deputy_of(&guard), Some(first));
    guard.reload(&toml([3, -5]));
    watches(2);
    dies(1);
    let second = deputy_of(&guard).unwrap();
    assert_ne!(second, first);
    kill(second, Signal::SIGKILL).unwrap();
    guard.wait_for("ended (signal: 9 (SIGKILL)); until it is started again, in 1s, they are left to the kernel");
    watches(3);
    assert_eq!(fs::read_to_string(COMPACT_LOCKED).unwrap().trim(), "0");
    // Nobody but the guard is killed: its child ends by itself.
    guard.signal(Signal::SIGKILL);
    let root = |file: &str| fs::read_to_string(format!("/sys/fs/cgroup/{file}")).unwrap().trim().to_owned();
    wait_for("the end of the watch", || root("memory.oom.state").contains("handler 0"));
    assert_eq!([root("memory.oom.reserve"), root("memory.oom.delay_ms")], ["0", "0"]);
    assert_eq!(fs::read_to_string(COMPACT_LOCKED).unwrap().trim(), "1");
}

#[test]
fn what_is_missing_for_the_machine_is_told_and_cgroups_are_guarded() {
    let (lab, grove) = (Lab::new(), Grove::new());
    let dir = grove.memcg("one", 48);
    let pattern = format!("{}/*", grove.path());
    let left = "OOMs of the machine are left to the kernel";
    for (answer, said) in
        [("true", ", though machine.answer is true: there is no /dev/oom_reserve; boot "), ("'auto'", ": there is no ")]
    {
        let toml = format!("machine.answer = {answer}\nguard.on_oom = ['kill']\n");
        let guard = Guard::start(&lab, &toml, &[&pattern]);
        guard.wait_for(&format!("{left}{said}"));
        assert!(!end_of(&mut leak_in(&dir, "96")).success());
        guard.wait_for("report  ");
        guard.end();
    }
    let guard = Guard::start(&lab, "machine.answer = true\n", &["--dry-run", &pattern]);
    guard.wait_for(&format!("dry run: {left}"));
    // Where nobody has asked for it, nothing is said of it.
    let before = guard.said().matches(left).count();
    guard.reload("");
    guard.wait_for("the configuration was read again");
    assert_eq!(guard.end().matches(left).count(), before);
    // Nor does the command do what it cannot.
    let alone = lab.reprieve("machine").output().unwrap();
    assert!(
        alone.status.code() == Some(4) && text(&alone).contains("there is no /dev/oom_reserve"),
        "{}",
        text(&alone)
    );
}

/// Without the series nobody asks: what the same load costs there.
#[test]
#[ignore = "fills the machine, on a stock kernel: `cargo xtask test --only machine` runs it"]
fn the_stock_kernel_beside_it() {
    assert!(!fs::exists("/dev/oom_reserve").unwrap());
    allow_tmpfs_everything();
    // It would take us as well.
    fs::write("/proc/self/oom_score_adj", "-1000").unwrap();
    let mut wrong = 0;
    for (number, eater) in EATERS.iter().enumerate() {
        let priorities = ORDERS[number % ORDERS.len()];
        let ended = three_jobs(eater, priorities, |_| {});
        let dead = |output: &Output| !output.status.success();
        let jobs = ended.jobs.iter().zip(priorities).filter(|((_, output), _)| dead(output));
        let mut names: Vec<String> = jobs.map(|(_, priority)| format!("the job of priority {priority}")).collect();
        if dead(&ended.bystander.1) {
            names.push("a bystander of priority 100".to_owned());
        }
        let is_right = names == ["the job of priority -5"];
        wrong += usize::from(!is_right);
        println!("stock kernel, {}: killed {}; no evidence of anybody", eater.what, names.join(" and "));
    }
    println!(
        "stock kernel: the job of the lowest priority died, and nobody else, in {} of {}",
        EATERS.len() - wrong,
        EATERS.len()
    );
    assert!(wrong > 0, "then nothing of this would be needed");
}
