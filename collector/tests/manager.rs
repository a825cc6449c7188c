//! What the guard tells a service manager, a journal, and who reads JSON; and that it sees
//! who else kills.

mod common;
#[path = "common/guard.rs"]
mod guard;

use common::{Doomed, Lab, text, unpacked, wait_for};
use guard::{Grove, Guard, end_of, leak_in};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Nothing to guard, and so nothing needed of cgroups.
const NOWHERE: &[&str] = &["/nowhere/*"];
/// A killer that never acts: it only tells, and that when a hundredth of all is left.
const HARMLESS: [&str; 5] = ["--dryrun", "-m", "1", "-s", "1"];

/// The socket of a manager, and all that came through it.
struct Manager {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    fn bind(lab: &Lab) -> (Self, String) {
        let path = lab.out().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        (Manager { socket, heard: Vec::new() }, path.display().to_string())
    }

    fn hear(&mut self) -> io::Result<String> {
        let mut packet = [0; 4096];
        let size = self.socket.recv(&mut packet)?;
        let said = String::from_utf8_lossy(&packet[..size]).trim_end().to_owned();
        self.heard.push(said.clone());
        Ok(said)
    }

    /// Hears until something begins so.
    fn hear_of(&mut self, what: &str) -> String {
        loop {
            let said = self.hear().unwrap_or_else(|error| panic!("no {what}: {error}; {:?}", self.heard));
            if said.lines().any(|line| line.starts_with(what)) {
                return said;
            }
        }
    }
}

#[test]
fn the_manager_hears_of_every_step() {
    let lab = Lab::new();
    let (mut manager, socket) = Manager::bind(&lab);
    let env = [("NOTIFY_SOCKET", socket.as_str()), ("WATCHDOG_USEC", "400000")];
    let guard = Guard::start_in_environment(&lab, "", NOWHERE, &env);
    assert!(manager.hear_of("STATUS=").contains("STATUS=guarding 0 cgroups"));
    manager.hear_of("READY=1");
    // It lives, and says so at least twice in the time it has.
    let begun = Instant::now();
    let beats = 5;
    (0..beats).for_each(|_| drop(manager.hear_of("WATCHDOG=1")));
    let took = begun.elapsed();
    assert!(took < Duration::from_millis(400) * beats, "{beats} took {took:?}");
    guard.signal(Signal::SIGHUP);
    let reloading = manager.hear_of("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    manager.hear_of("READY=1");
    guard.signal(Signal::SIGTERM);
    manager.hear_of("STOPPING=1");
    guard.end();
}

#[test]
fn a_guard_that_hangs_is_silent() {
    let lab = Lab::new();
    let (mut manager, socket) = Manager::bind(&lab);
    let env = [("NOTIFY_SOCKET", socket.as_str()), ("WATCHDOG_USEC", "200000")];
    let guard = Guard::start_in_environment(&lab, "", NOWHERE, &env);
    manager.hear_of("WATCHDOG=1");
    guard.signal(Signal::SIGSTOP);
    // What was sent before.
    manager.socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    while manager.hear().is_ok() {}
    let heard = manager.heard.len();
    assert!(manager.hear().is_err(), "{:?}", &manager.heard[heard..]);
    guard.signal(Signal::SIGCONT);
    manager.socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    manager.hear_of("WATCHDOG=1");
    guard.end();
}

#[test]
fn json_has_a_line_for_each_thing_and_fields() {
    // Where nobody reads along, it need not be asked for.
    ["json", "auto"].into_iter().for_each(json_has_all);
}

fn json_has_all(form: &str) {
    let (lab, grove) = (Lab::new(), Grove::new());
    let dir = grove.memcg("one", 48);
    let path = format!("{}/one", grove.path());
    let toml = "[[rule]]\nname = 'always'\nwhen = 'true'\non_oom = ['kill']\n";
    let guard = Guard::start_only(&lab, toml, &["--log", form, &path]);
    guard.wait_for("\"guarding 1 cgroup\"");
    end_of(&mut leak_in(&dir, "96"));
    guard.wait_for("report  ");
    let said = guard.end();
    let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for line in &lines {
        assert!(line["message"].is_string() && line["time_unix_us"].is_u64(), "{line}");
        assert!(["error", "warning", "notice", "info"].contains(&line["level"].as_str().unwrap()), "{line}");
    }
    let of = |event: &str| lines.iter().find(|line| line["event"] == event).unwrap_or_else(|| panic!("{said}"));
    let oom = of("oom");
    assert_eq!((oom["cgroup"].as_str(), oom["level"].as_str()), (Some(path.as_str()), Some("notice")));
    assert_eq!((oom["action"].as_str(), oom["relieved"].as_bool()), (Some("kill"), Some(true)));
    assert_eq!(oom["rule"], "always");
    assert_eq!(oom["incident"], lab.incident()["id"]);
    assert!(oom["held_us"].as_u64().unwrap() > 0);
    assert!(of("report")["file"].as_str().unwrap().ends_with("/report.html"));
    let armed = lines.iter().find(|line| line["brake"].is_string()).unwrap();
    assert_eq!(armed["limit_bytes"], 48 << 20);
}

#[test]
fn on_a_terminal_the_log_is_text() {
    let lab = Lab::new();
    let toml = format!("guard.run_dir = {:?}\nstore.dir = {:?}\n", lab.out().join("run"), lab.out());
    let config = tempfile::tempdir().unwrap();
    std::fs::write(config.path().join("reprieve.toml"), toml).unwrap();
    let reprieve = env!("CARGO_BIN_EXE_reprieve");
    let guard = format!("timeout 2 {reprieve} --config {} guard {}", config.path().display(), NOWHERE.join(" "));
    let output = Command::new("script").args(["-qec", &guard, "/dev/null"]).stdin(Stdio::null()).output().unwrap();
    assert!(text(&output).contains("reprieve: guarding 0 cgroups\r\n"), "{}", text(&output));
}

/// A journal of its own, in a mount namespace of its own; the guard in it is connected as
/// systemd connects services.
const IN_A_JOURNAL: &str = r#"
set -e
mount -t tmpfs none /run
mkdir -p /run/systemd/journal /run/log/journal
/lib/systemd/systemd-journald 2>/run/journald.log &
journald=$!
for _ in $(seq 200); do [ -S /run/systemd/journal/socket ] && [ -S /run/systemd/journal/stdout ] && break; sleep 0.05; done
# The connection that `systemd-cat` makes, named as systemd.exec(5) has it.
systemd-cat --identifier=guard sh -c '
    export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2)
    exec "$@"' guard "$@" &
guard=$!
for _ in $(seq 400); do
    journalctl --quiet --directory=/run/log/journal -o json >/run/entries 2>/dev/null || true
    grep -q 'guarding 0 cgroups' /run/entries && break
    sleep 0.05
done
kill -TERM $guard
wait $guard
for _ in $(seq 200); do
    journalctl --quiet --directory=/run/log/journal -o json >/run/entries 2>/dev/null || true
    grep -q 'is given back' /run/entries && break
    sleep 0.05
done
kill -TERM $journald
cat /run/entries
"#;

#[test]
fn the_journal_gets_fields() {
    let lab = Lab::new();
    let config = lab.out().join("config");
    std::fs::create_dir(&config).unwrap();
    let toml = format!("guard.run_dir = {:?}\nstore.dir = {:?}\n", lab.out().join("run"), lab.out());
    std::fs::write(config.join("reprieve.toml"), toml).unwrap();
    let killer = Doomed(
        Command::new(unpacked("earlyoom", "earlyoom"))
            .args(HARMLESS)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let mut command = Command::new("timeout");
    command.args([
        "-s",
        "KILL",
        "60",
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        IN_A_JOURNAL,
        "sh",
    ]);
    command.arg(env!("CARGO_BIN_EXE_reprieve")).arg("--config").arg(&config).arg("guard").args(NOWHERE);
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let entries: Vec<Value> =
        String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let says = |entry: &&Value, part: &str| entry["MESSAGE"].as_str().is_some_and(|text| text.contains(part));
    let of = |part: &str| entries.iter().find(|e| says(e, part)).unwrap_or_else(|| panic!("no {part}: {entries:#?}"));
    let start = of("guarding 0 cgroups");
    assert_eq!(start["_TRANSPORT"], "journal");
    assert_eq!((&start["PRIORITY"], &start["SYSLOG_IDENTIFIER"]), (&Value::from("6"), &Value::from("reprieve")));
    let warned = of(&format!("earlyoom [{}] kills for memory, too", killer.pid()));
    assert_eq!((&warned["PRIORITY"], &warned["REPRIEVE_KILLER"]), (&Value::from("4"), &Value::from("earlyoom")));
    // Nothing of ours came as text.
    assert!(!entries.iter().any(|entry| says(&entry, "reprieve: ")), "{entries:#?}");
}

#[test]
fn other_killers_are_told_by_doctor_and_when_the_guard_starts() {
    let lab = Lab::new();
    let remedy = "give it --avoid with their names";
    let killer = Doomed(
        Command::new(unpacked("earlyoom", "earlyoom"))
            .args(HARMLESS)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let named = format!("earlyoom [{}]", killer.pid());
    wait_for("its name", || std::fs::read_to_string(format!("/proc/{}/comm", killer.pid())).unwrap() == "earlyoom\n");
    let examined = Command::new(env!("CARGO_BIN_EXE_reprieve")).arg("doctor").output().unwrap();
    let said = String::from_utf8_lossy(&examined.stdout).into_owned();
    let line = said.lines().find(|line| line.contains(" alone ")).unwrap_or_else(|| panic!("{said}"));
    assert!(line.starts_with("degraded") && line.contains(&named) && line.contains(remedy), "{line}");
    let guard = Guard::start(&lab, "", NOWHERE);
    guard.wait_for(&format!("reprieve: warning: {named} kills for memory, too, and may be first: {remedy}"));
    drop(killer);
    // When it is read again, who is gone is not told.
    guard.signal(Signal::SIGHUP);
    guard.wait_for("the configuration was read again");
    let said = guard.end();
    assert_eq!(said.matches(&named).count(), 1, "{said}");
}

#[test]
fn an_incident_says_that_another_was_first() {
    let (lab, grove) = (Lab::new(), Grove::new());
    let dir = grove.memcg("one", 48);
    let toml = "guard.on_oom = ['freeze=100s', 'kill']\n";
    let guard = Guard::start(&lab, toml, &[&format!("{}/*", grove.path())]);
    let killer = Doomed(
        Command::new(unpacked("earlyoom", "earlyoom"))
            .args(HARMLESS)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let mut victim = leak_in(&dir, "96");
    guard.wait_for("is frozen");
    // As it does.
    kill(Pid::from_raw(victim.pid()), Signal::SIGKILL).unwrap();
    end_of(&mut victim);
    guard.wait_for("report  ");
    let said = guard.end();
    let incident = lab.incident();
    let step = &incident["verdict"]["steps"][0];
    let effect = step["effect"].as_str().unwrap();
    assert!(effect.contains(&format!("since somebody else had killed steady_leak [{}]", victim.pid())), "{effect}");
    assert_eq!(incident["verdict"]["steps"].as_array().unwrap().len(), 1, "{said}");
    let killers = incident["other_killers"].as_array().unwrap();
    let ours = killers.iter().find(|other| other["pid"] == killer.pid()).unwrap_or_else(|| panic!("{incident:#}"));
    assert_eq!((&ours["name"], &ours["kills_here"]), (&Value::from("earlyoom"), &Value::Null));
    assert_eq!(incident["other_victims"][0]["pid"], victim.pid());
    assert_eq!(incident["other_victims"].as_array().unwrap().len(), 1);
    assert!(said.contains("killed while held, by neither reprieve nor the kernel: steady_leak"), "{said}");
    let shown = lab.reprieve("show").output().unwrap();
    assert!(String::from_utf8_lossy(&shown.stdout).contains("OTHERS"), "{}", text(&shown));
}

#[test]
fn whom_we_kill_is_no_victim_of_others() {
    let (lab, grove) = (Lab::new(), Grove::new());
    let dir = grove.memcg("one", 48);
    let guard = Guard::start(&lab, "guard.on_oom = ['reclaim', 'kill']\n", &[&format!("{}/*", grove.path())]);
    end_of(&mut leak_in(&dir, "96"));
    guard.wait_for("report  ");
    let said = guard.end();
    assert_eq!(lab.incident()["other_victims"], Value::Array(Vec::new()), "{said}");
}
