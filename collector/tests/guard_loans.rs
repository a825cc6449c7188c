//! What a guard grants and takes back.

mod common;
#[path = "common/guard.rs"]
mod guard;

use common::{Doomed, Lab, usage, wait_for};
use guard::{Grove, Guard, end_of, files, is_guarded, leak_in, start_in};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::Path;
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
    fs::read_to_string(dir.join("memory.limit_in_bytes")).unwrap().trim().parse().unwrap()
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
    let effect_in = |name: &str| {
        let is_it = |incident: &serde_json::Value| incident["memcg"]["path"] == format!("{path}/{name}");
        let incident = lab.incidents().into_iter().rfind(is_it).expect("an incident");
        incident["verdict"]["steps"][0]["effect"].as_str().unwrap().to_owned()
    };
    let mut refused = leak_in(&third, "96");
    assert!(!end_of(&mut refused).success());
    wait_for("the first report", || guard.said().matches("report ").count() == 1);
    assert_eq!(
        effect_in("third"),
        "refused: it would have been granted 64.0 MiB, and may be 32.0 MiB (guard.most_granted)"
    );
    let holder = holds_in(&first);
    wait_until_full(&first);
    let mut refused = leak_in(&second, "96");
    assert!(!end_of(&mut refused).success());
    wait_for("the third report", || guard.said().matches("report ").count() == 3);
    assert_eq!(
        effect_in("second"),
        "refused: all cgroups would have been granted 128 MiB, and may be 100 MiB (guard.most_granted_in_all)"
    );
    // What the first one gives back the second may have.
    let raised = wall(&first);
    let_go(&holder);
    wait_for("the limit", || wall(&first) < raised);
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
