//! What a guard grants and takes back, and how it throttles and lets go. The grants also run
//! in guests, under version 2 and both of its brakes; throttles are timed too closely for that.

mod common;
#[path = "common/guard.rs"]
mod guard;

use common::{Doomed, Lab, ended_by_itself, fixture, usage, wait_for};
use guard::{Grove, Guard, end_of, files, is_guarded, is_v1, leak_in, limit, limit_file, start_in};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reprieve::cgroup::Hierarchy;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Keeps 88 MiB until it is told to let go, and then does nothing.
const HOLDS: &str = "import signal
kept = []
signal.signal(signal.SIGUSR1, lambda *_: kept.clear())
for _ in range(88):
    kept.append(bytearray(1 << 20))
while True:
    signal.pause()
";

fn holds_in(dir: &Path) -> Doomed {
    start_in(dir, &["python3", "-c", HOLDS])
}

/// Waits until it has all that it wants, beyond a limit of 64 MiB.
fn wait_until_full(dir: &Path) {
    wait_for("the memory in use", || usage(dir) > 88 << 20);
}

fn let_go(holder: &Doomed) {
    kill(Pid::from_raw(holder.pid()), Signal::SIGUSR1).unwrap();
}

fn wall(dir: &Path) -> u64 {
    fs::read_to_string(dir.join(limit_file())).unwrap().trim().parse().unwrap()
}

#[test]
fn a_grant_goes_back_as_soon_as_it_is_not_in_use() {
    let (lab, grove) = (Lab::new(), Grove::new());
    let dir = grove.memcg("one", 64);
    let before = files(&dir);
    let guard = Guard::start(&lab, "guard.on_oom = ['grant=64M', 'kill']\n", &[&format!("{}/*", grove.path())]);
    let guarded = wall(&dir);
    let holder = holds_in(&dir);
    wait_until_full(&dir);
    assert!(wall(&dir) >= guarded + (64 << 20), "{}", guard.said());
    let_go(&holder);
    let begun = Instant::now();
    wait_for("the limit", || wall(&dir) == guarded);
    assert!(begun.elapsed() < Duration::from_secs(5), "took {:?}", begun.elapsed());
    // What came back it may have once more.
    drop(holder);
    let again = holds_in(&dir);
    wait_until_full(&dir);
    assert!(wall(&dir) >= guarded + (64 << 20), "{}", guard.said());
    drop(again);
    wait_for("the limit", || wall(&dir) == guarded);
    let said = guard.end();
    assert_eq!(files(&dir), before, "{said}");
}

#[test]
fn what_is_granted_is_bounded_for_one_and_for_all() {
    let (lab, grove) = (Lab::new(), Grove::new());
    let (first, second, third) = (grove.memcg("first", 64), grove.memcg("second", 64), grove.memcg("third", 64));
    let path = grove.path();
    let toml = format!(
        "[guard]\non_oom = ['grant=64M', 'kill']\nmost_granted_in_all = '100M'\n\
         [[cgroup]]\nmatch = '{path}/third'\nmost_granted = '32M'\n"
    );
    let guard = Guard::start(&lab, &toml, &[&format!("{path}/*")]);
    // Of holds that found room by themselves nothing is told.
    let effect_in = |name: &str| {
        let is_it = |incident: &serde_json::Value| {
            incident["memcg"]["path"] == format!("{path}/{name}") && !ended_by_itself(incident)
        };
        let mut incident = None;
        wait_for("its incident", || {
            incident = lab.incidents().into_iter().find(is_it);
            incident.is_some()
        });
        incident.unwrap()["verdict"]["steps"][0]["effect"].as_str().unwrap().to_owned()
    };
    let mut refused = leak_in(&third, "96");
    assert!(!end_of(&mut refused).success());
    assert_eq!(
        effect_in("third"),
        "refused: it would have been granted 64.0 MiB, and may be 32.0 MiB (guard.most_granted)"
    );
    let holder = holds_in(&first);
    wait_until_full(&first);
    let mut refused = leak_in(&second, "96");
    assert!(!end_of(&mut refused).success());
    assert_eq!(
        effect_in("second"),
        "refused: all cgroups would have been granted 128 MiB, and may be 100 MiB (guard.most_granted_in_all)"
    );
    // What the first one gives back the second may have.
    let raised = wall(&first);
    let_go(&holder);
    wait_for("the limit", || wall(&first) < raised);
    let home = wall(&second);
    assert!(end_of(&mut leak_in(&second, "96")).success(), "{}", guard.said());
    wait_for("the limit", || wall(&second) == home);
    // And what one had that is gone.
    drop(holder);
    let again = holds_in(&first);
    wait_until_full(&first);
    drop(again);
    wait_for("its end", || fs::remove_dir(&first).is_ok());
    guard.wait_for("first is gone");
    assert!(end_of(&mut leak_in(&second, "96")).success(), "{}", guard.said());
    guard.end();
}

#[test]
fn a_grant_outlives_its_guard_only_as_long_as_it_is_in_use() {
    let (lab, grove) = (Lab::new(), Grove::new());
    let dir = grove.memcg("one", 64);
    let before = files(&dir);
    let start = || Guard::start(&lab, "guard.on_oom = ['grant=64M', 'kill']\n", &[&format!("{}/*", grove.path())]);
    let mut guard = start();
    let guarded = wall(&dir);
    let mut holder = holds_in(&dir);
    wait_until_full(&dir);
    guard.wait_for("report ");
    let raised = wall(&dir);
    guard.signal(Signal::SIGKILL);
    guard.child.wait().unwrap();
    // The next one waits until the watchdog has tried for its time.
    let next = start();
    assert!(guard.said().contains("a limit could not be put back"), "{}", guard.said());
    assert!(is_guarded(&dir) && holder.0.try_wait().unwrap().is_none(), "{}", next.said());
    // The limit is found from the wall, whose cushion is counted in pages.
    assert!(wall(&dir).abs_diff(raised) <= 64 << 10, "{} after {raised}", wall(&dir));
    let_go(&holder);
    wait_for("the limit", || wall(&dir) == guarded);
    drop(holder);
    let said = next.end();
    assert_eq!(files(&dir), before, "{said}");
}

/// What limits the CPU of a memcg: on version 1 a `cpu` group of the same path.
struct Cpu {
    dir: PathBuf,
    file: PathBuf,
}

impl Cpu {
    /// With a quota of 1.5 CPUs.
    fn beside(grove: &Grove, memcg: &Path) -> Self {
        if is_v1() {
            let hierarchy = Hierarchy::find("cpu").unwrap().expect("the cpu controller");
            let name = memcg.strip_prefix(grove.root.0.parent().unwrap()).unwrap();
            let dir = hierarchy.mount.join(name);
            fs::create_dir_all(&dir).unwrap();
            let file = dir.join("cpu.cfs_quota_us");
            fs::write(&file, "150000").unwrap();
            return Cpu { dir, file };
        }
        for above in [grove.root.0.parent().unwrap(), &grove.root.0] {
            fs::write(above.join("cgroup.subtree_control"), "+cpu").unwrap();
        }
        let file = memcg.join("cpu.max");
        fs::write(&file, "150000 100000").unwrap();
        Cpu { dir: memcg.to_owned(), file }
    }

    /// Microseconds of 100,000.
    fn quota(&self) -> String {
        let text = fs::read_to_string(&self.file).unwrap();
        text.split_whitespace().next().unwrap().to_owned()
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        if is_v1() {
            wait_for("the end of the cpu group", || fs::remove_dir(&self.dir).is_ok());
            let _ = fs::remove_dir(self.dir.parent().unwrap());
        }
    }
}

/// Starts a program in both of its groups.
fn start_in_both(dir: &Path, cpu: &Cpu, command: &[&str]) -> Doomed {
    let both = format!("echo $$ > {}; exec \"$@\"", cpu.dir.join("cgroup.procs").display());
    start_in(dir, &[&["sh", "-c", &both, "sh"], command].concat())
}

/// Every quota that there is until the last of these.
fn quotas_until(cpu: &Cpu, last: &str) -> Vec<String> {
    let mut seen = vec![cpu.quota()];
    wait_for(last, || {
        let now = cpu.quota();
        if seen.last() != Some(&now) {
            seen.push(now);
        }
        seen.last().is_some_and(|now| now == last)
    });
    seen
}

/// Grows until it is slowed down, which is at a limit of 48 MiB, then drops everything, once,
/// and lives.
const GETS_WELL: &str = "import time
kept = []
last = time.monotonic()
while True:
    kept.append(bytearray(1 << 20))
    now = time.monotonic()
    if len(kept) > 36 and now - last > 0.4:
        break
    last = now
kept.clear()
while True:
    time.sleep(0.01)
";

#[test]
fn a_throttle_is_lifted_also_after_a_crash() {
    let (lab, grove) = (Lab::new(), Grove::new());
    let dir = grove.memcg("slow", 48);
    let cpu = Cpu::beside(&grove, &dir);
    let mut guard = Guard::start(&lab, "guard.on_oom = ['throttle=60s', 'kill']\n", &[&format!("{}/*", grove.path())]);
    let mut victim = start_in_both(&dir, &cpu, &[&fixture("steady_leak"), "--mib", "256"]);
    wait_for("the throttle", || cpu.quota() == "10000");
    guard.signal(Signal::SIGKILL);
    guard.child.wait().unwrap();
    wait_for("the end of the throttle", || cpu.quota() == "150000");
    assert!(!end_of(&mut victim).success());
    // In one that is over it is lifted by the guard itself.
    let guard = Guard::start(&lab, "guard.on_oom = ['throttle=1s', 'kill']\n", &[&format!("{}/*", grove.path())]);
    let mut victim = start_in_both(&dir, &cpu, &[&fixture("steady_leak"), "--mib", "256"]);
    assert!(!end_of(&mut victim).success());
    let said = guard.end();
    assert_eq!(cpu.quota(), "150000", "{said}");
    let steps = &lab.incidents().pop().unwrap()["verdict"]["steps"];
    assert!(steps[0]["reason"].as_str().unwrap().starts_with("given 10 % of a CPU"), "{steps:#}");
}

#[test]
fn a_throttle_is_tightened_where_usage_does_not_fall() {
    let (lab, grove) = (Lab::new(), Grove::new());
    let dir = grove.memcg("slow", 48);
    let cpu = Cpu::beside(&grove, &dir);
    let guard = Guard::start(&lab, "guard.on_oom = ['throttle=6s', 'kill']\n", &[&format!("{}/*", grove.path())]);
    let mut victim = start_in_both(&dir, &cpu, &[&fixture("steady_leak"), "--mib", "256"]);
    let seen = quotas_until(&cpu, "2000");
    assert_eq!(seen, ["150000", "10000", "5000", "2000"]);
    // It did not help, and is over before the next rung.
    assert!(!end_of(&mut victim).success());
    assert_eq!(cpu.quota(), "150000");
    let said = guard.end();
    let step = &lab.incident()["verdict"]["steps"][0];
    assert!(step["effect"].as_str().unwrap().contains("at last with 2 % of a CPU"), "{step:#}\n{said}");
}

#[test]
fn a_throttle_that_helped_is_lifted_step_by_step() {
    let (lab, grove) = (Lab::new(), Grove::new());
    let dir = grove.memcg("slow", 48);
    let cpu = Cpu::beside(&grove, &dir);
    let guard = Guard::start(&lab, "guard.on_oom = ['throttle=60s', 'kill']\n", &[&format!("{}/*", grove.path())]);
    let mut victim = start_in_both(&dir, &cpu, &["python3", "-c", GETS_WELL]);
    wait_for("the throttle", || cpu.quota() == "10000");
    let seen = quotas_until(&cpu, "150000");
    assert_eq!(seen, ["10000", "20000", "40000", "80000", "150000"], "{}", guard.said());
    guard.wait_for("slow: the throttle is lifted, ");
    assert!(victim.0.try_wait().unwrap().is_none(), "{}", guard.said());
    let step = &lab.incident()["verdict"]["steps"][0];
    let effect = step["effect"].as_str().unwrap();
    assert!(effect.ends_with("; it has 10 % of a CPU, and more step by step"), "{effect}");
    guard.end();
    drop(victim);
}

#[test]
fn a_throttle_that_helped_is_not_forgotten_when_guards_come_and_go() {
    #[derive(Debug)]
    enum End {
        Asked,
        Killed,
        KilledWithItsWatchdog,
    }
    for end in [End::Asked, End::Killed, End::KilledWithItsWatchdog] {
        let (lab, grove) = (Lab::new(), Grove::new());
        let dir = grove.memcg("slow", 48);
        let cpu = Cpu::beside(&grove, &dir);
        let start = || Guard::start(&lab, "guard.on_oom = ['throttle=60s']\n", &[&format!("{}/*", grove.path())]);
        let mut guard = start();
        let victim = start_in_both(&dir, &cpu, &["python3", "-c", GETS_WELL]);
        // The rung is over, the throttle is not.
        quotas_until(&cpu, "20000");
        match end {
            End::Asked => drop(guard.end()),
            End::Killed => {
                // The watchdog is told anew what it has to write.
                limit(&dir, 64);
                let noted = format!("{} {}\n", limit_file(), 64 << 20);
                wait_for("the new limit", || files(&dir)["note"].contains(&noted));
                std::thread::sleep(Duration::from_millis(50));
                guard.signal(Signal::SIGKILL);
                guard.child.wait().unwrap();
                wait_for("the watchdog", || cpu.quota() == "150000");
            }
            End::KilledWithItsWatchdog => {
                guard.signal(Signal::SIGSTOP);
                kill(guard.watchdog(), Signal::SIGKILL).unwrap();
                guard.signal(Signal::SIGKILL);
                guard.child.wait().unwrap();
                assert_ne!(cpu.quota(), "150000", "somebody lifted it: then this tests nothing");
                start().end();
            }
        }
        assert_eq!(cpu.quota(), "150000", "{end:?}");
        drop(victim);
    }
}

/// The same, but then it grows again: at once beyond seven eighths of its limit, more for two
/// seconds, and no more.
const GROWS_AGAIN: &str = "import sys
def usage():
    return int(open(sys.argv[1]).read())
while usage() < 44 << 20:
    kept.append(bytearray(1 << 18))
for _ in range(10):
    kept.append(bytearray(1 << 18))
    time.sleep(0.2)
";

#[test]
fn a_throttle_is_tightened_where_it_was_let_go_too_soon() {
    let (lab, grove) = (Lab::new(), Grove::new());
    let dir = grove.memcg("slow", 48);
    let cpu = Cpu::beside(&grove, &dir);
    let guard = Guard::start(&lab, "guard.on_oom = ['throttle=60s', 'kill']\n", &[&format!("{}/*", grove.path())]);
    let (begin, end) = GETS_WELL.split_at(GETS_WELL.rfind("while").unwrap());
    let script = [begin, GROWS_AGAIN, end].concat();
    let usage_file = dir.join(if is_v1() { "memory.usage_in_bytes" } else { "memory.current" });
    let command = ["python3", "-c", &script, usage_file.to_str().unwrap()];
    let mut victim = start_in_both(&dir, &cpu, &command);
    wait_for("the throttle", || cpu.quota() == "10000");
    let seen = quotas_until(&cpu, "150000");
    assert!(seen.starts_with(&["10000".to_owned(), "5000".to_owned()]), "{seen:?}\n{}", guard.said());
    // Whoever does not grow any more is let go, however full.
    assert!(usage(&dir) > 42 << 20 && victim.0.try_wait().unwrap().is_none(), "{}", guard.said());
    guard.end();
    lab.incident();
}
