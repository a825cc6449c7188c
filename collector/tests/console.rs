//! Persons who decide: the console as its user sees it, `decide`, and what becomes of those
//! who hang, die, come late or may not.

#[path = "common/asked.rs"]
mod asked;
mod common;
#[path = "common/guard.rs"]
mod guard;
#[path = "common/store.rs"]
mod store;
#[path = "common/tmux.rs"]
mod tmux;

use asked::{Guarded, Here, REPRIEVE, said};
use common::wait_for;
use guard::Brake;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reprieve::desk::{Announce, Desk, Manner, Place, Question, Standing, Subject};
use reprieve::incident::read::read_incident;
use reprieve::incident::{show, units};
use reprieve::verdict::Action;
use std::fs::{self, Permissions};
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use store::{golden, recorded};
use tmux::{Tmux, timeless};

impl Here {
    /// A desk of the test's own, where a hold with recorded evidence waits.
    fn desk(&self) -> Desk {
        let manner = Manner { most: Duration::from_secs(9000), announce: Announce::default() };
        Desk::open(Place { dir: self.run_dir(), manner }, "guard").unwrap()
    }

    /// Asks about a recorded incident, as who held it would.
    fn ask(&self, desk: &Desk, name: &str, time: Duration) -> Question {
        let folder = self.config.path().join(format!("evidence-{name}"));
        fs::create_dir_all(&folder).unwrap();
        let cgroup = format!("/batch/{name}");
        let mut incident = recorded(name);
        incident["memcg"]["path"] = cgroup.clone().into();
        let draft = folder.join("draft.json");
        fs::write(&draft, incident.to_string()).unwrap();
        let incident = read_incident(&draft).unwrap();
        let (memcg, process) = (incident.memcg.as_ref().unwrap(), &incident.processes[0]);
        let subject = Subject {
            id: &format!("20261125T084613-{name}-fe9a6a"),
            cgroup: &cgroup,
            summary: &show::headline(&incident),
            usage_bytes: memcg.usage_bytes,
            limit_bytes: memcg.limit_bytes.unwrap(),
            fallback: "kill",
            recommended: &format!(
                "kill: {} [{}] is first of 1 candidate: priority 0, {} that a kill frees",
                process.comm,
                process.pid,
                units::bytes(process.memory.pss_anon_bytes)
            ),
            folder: Some(&folder),
        };
        desk.ask(&subject, time).unwrap()
    }
}

const LONG: Duration = Duration::from_secs(5000);

/// The screen, with what differs from run to run made the same.
fn shown(console: &Tmux, screen: &str) -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    timeless(screen)
        .replace(&format!(" on {} ", host.trim()), " on HOST ")
        .replace(&format!("PID {}", console.pid()), "PID 1")
}

#[test]
fn a_decision_about_no_hold_in_particular_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for action in ["kill", "grant=64M", "more"] {
        let output = Command::new(REPRIEVE).args(["decide", action, "--run-dir"]).arg(dir.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(said(&output).contains(&format!("{action} is a decision; which hold")), "{}", said(&output));
    }
}

#[test]
fn the_screens_of_recorded_incidents() {
    let here = Here::new("");
    let console = here.console();
    console.wait_for(&["nothing waits", "No guardian listens in"]);
    let desk = here.desk();
    let python = here.ask(&desk, "python", LONG);
    let shop = here.ask(&desk, "shop", LONG);
    golden(
        &shown(&console, &console.wait_for(&["2 holds wait", "/batch/shop", "Cache.insert (cache.py:5)"])),
        "console-flame.txt",
    );
    // No further than there is something, and so back with as many keys.
    console.press(&["NPage"; 9]);
    console.wait_for(&["40-58 of 58 lines"]);
    console.press(&["PPage"; 4]);
    console.wait_for(&["│all 100 %"]);
    console.press(&["Right"]);
    golden(&shown(&console, &console.wait_for(&["objects"])), "console-objects.txt");
    console.press(&["Tab"]);
    golden(&shown(&console, &console.wait_for(&["THREADS"])), "console-processes.txt");
    console.press(&["Tab", "k"]);
    console.wait_for(&["kill in /batch/python?"]);
    console.press(&["n"]);
    console.wait_for(&["nothing was decided"]);
    console.press(&["Down", "k"]);
    golden(&shown(&console, &console.wait_for(&["kill in /batch/shop?"])), "console-memory.txt");
    console.press(&["n", "g", "BSpace", "BSpace", "BSpace", "x", "Enter"]);
    console.wait_for(&["\"x\" is not a size", "grant how much?"]);
    console.press(&["BSpace", "1", "G", "Enter"]);
    console.wait_for(&["accepted: grant=1G"]);
    assert!(matches!(shop.look(), Standing::Decided(decision) if decision.action == Action::Grant(1 << 30)));
    assert!(matches!(python.look(), Standing::Open(_)));
    shop.ask_again("the operator chose grant=1G: refused: the machine would have less than 64.0 MiB left", None);
    console.wait_for(&["so far", "refused: the machine"]);
    console.press(&["z"]);
    console.wait_for(&["accepted: freeze"]);
    python.close("killed python3 [13793], 67.4 MiB came back");
    golden(&shown(&console, &console.wait_for(&["over"])), "console-over.txt");
    drop((shop, desk));
    console.wait_for(&["0 guardians"]);
    console.press(&["q"]);
    assert_eq!(console.end(), "0");
}

#[test]
fn the_first_of_two_operators_decides_and_the_other_sees_it() {
    let here = Here::new("");
    let desk = here.desk();
    let question = here.ask(&desk, "python", LONG);
    let (first, second) = (here.console(), here.console());
    first.wait_for(&["/batch/python"]);
    second.wait_for(&["/batch/python"]);
    second.press(&["+"]);
    second.wait_for(&["accepted: ", " s are left"]);
    first.wait_for(&["so far  more time, by uid 0"]);
    first.press(&["t"]);
    second.wait_for(&["decided", "throttle=3s, by uid 0"]);
    second.press(&["k"]);
    second.wait_for(&["kill in /batch/python?"]);
    second.press(&["y"]);
    second.wait_for(&["refused: throttle=3s was decided before, by uid 0"]);
    assert!(matches!(question.look(), Standing::Decided(d) if d.action.to_string() == "throttle=3s"));
    // One that dies takes nothing with it.
    kill(Pid::from_raw(first.pid()), Signal::SIGKILL).unwrap();
    question.ask_again("throttle did not help", None);
    second.press(&["k"]);
    second.wait_for(&["kill in /batch/python?"]);
    second.press(&["y"]);
    second.wait_for(&["accepted: kill"]);
    assert!(matches!(question.look(), Standing::Decided(d) if d.action == Action::Kill));
    drop(first);
    // Its shell's cgroup is as `reprieve run` finds those of the dead.
    assert!(reprieve::cgroup::clean_leftovers().iter().any(|done| done.starts_with("removed /reprieve-")));
}

#[test]
fn decide_says_what_it_did_by_its_exit_code() {
    let here = Here::new("");
    let code = |words: &[&str]| here.decide(words).status.code();
    let none = here.decide(&["nobody", "kill"]);
    assert_eq!(none.status.code(), Some(3), "{}", said(&none));
    assert!(said(&none).contains("nothing called nobody waits for a decision in "), "{}", said(&none));
    assert!(said(&here.decide(&[])).is_empty());
    let desk = here.desk();
    let (python, sort) = (here.ask(&desk, "python", LONG), here.ask(&desk, "sort", LONG));
    let listed = said(&here.decide(&[]));
    assert!(
        listed.lines().count() == 2 && listed.contains("s left, then kill  python3 [13793] ran out of memory"),
        "{listed}"
    );
    let json: serde_json::Value = serde_json::from_str(&said(&here.decide(&["--json", "sort-fe9a6a"]))).unwrap();
    assert_eq!((&json["cgroup"], &json["limit_bytes"]), (&"/batch/sort".into(), &(24 << 20).into()), "{json}");
    for (words, wanted, part) in [
        (&["20261125", "kill"][..], 2, "could be any of 20261125T084613-python-fe9a6a, "),
        (&["sort-fe9a6a", "explode"], 2, "known are reclaim"),
        (&["sort-fe9a6a", "more=much"], 2, "not a duration"),
        (&["sort-fe9a6a", "ask=5s"], 1, "asked already"),
        (&["nobody", "kill"], 3, "nothing called nobody"),
    ] {
        let output = here.decide(words);
        assert_eq!(output.status.code(), Some(wanted), "{words:?}: {}", said(&output));
        assert!(said(&output).contains(part), "{words:?}: {}", said(&output));
    }
    assert_eq!((code(&["sort-fe9a6a", "more=5s"]), code(&["sort-fe9a6a", "grant=64M"])), (Some(0), Some(0)));
    let second = here.decide(&["sort-fe9a6a", "kill"]);
    assert!(said(&second).contains("grant=64M was decided before, by uid 0"), "{}", said(&second));
    assert_eq!(second.status.code(), Some(5));
    // What is over is known by its whole ID.
    sort.close("the limit is now 128 MiB");
    assert_eq!(code(&["20261125T084613-sort-fe9a6a", "kill"]), Some(5));
    drop(python);
    let late = here.ask(&desk, "redis", Duration::from_millis(1));
    wait_for("the deadline", || late.look() == Standing::Late);
    let output = here.decide(&["20261125T084613-redis-fe9a6a", "kill"]);
    assert!(said(&output).contains("nobody decided in time; next is kill"), "{}", said(&output));
    assert_eq!(output.status.code(), Some(5));
}

#[test]
fn another_user_is_refused() {
    let here = Here::new("");
    let desk = here.desk();
    let question = here.ask(&desk, "python", LONG);
    // Where he can start it.
    let public = tempfile::tempdir().unwrap();
    let program = public.path().join("reprieve");
    fs::copy(REPRIEVE, &program).unwrap();
    let open = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    open(public.path(), 0o755);
    let run = here.run_dir();
    let as_nobody = || {
        let mut setpriv = Command::new("setpriv");
        setpriv.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&program);
        setpriv.args(["decide", "python-fe9a6a", "kill", "--run-dir"]).arg(&run).current_dir("/").output().unwrap()
    };
    let refused = |part: &str| {
        let output = as_nobody();
        assert_eq!(output.status.code(), Some(4), "{}", said(&output));
        assert!(said(&output).contains(part), "{}", said(&output));
        assert!(matches!(question.look(), Standing::Open(_)));
    };
    // The folder is not for him, nor is the socket.
    open(here.config.path(), 0o755);
    refused("is of another user; be that user, or root");
    open(&run, 0o755);
    refused("guard.sock is of another user; be that user, or root");
    // Where somebody opened both the kernel still says who he is.
    open(&run.join("guard.sock"), 0o666);
    let output = as_nobody();
    assert!(said(&output).contains("refuses: uid 65534 may not decide; be uid 0, or root"), "{}", said(&output));
    assert_ne!(output.status.code(), Some(0));
    assert!(matches!(question.look(), Standing::Open(_)));
}

#[test]
fn a_hold_of_a_guard_is_decided_at_the_console_which_has_a_shell_meanwhile() {
    let mut guarded = Guarded::new("'ask=120s', 'kill'", "guard.deadline = '20s'");
    let console = guarded.here.console();
    let screen = console.wait_for(&["1 hold waits", "then kill", "recommended  kill: steady_leak [", "steady_leak.c"]);
    assert!(screen.contains("/asked-") && screen.contains("of 48.0 MiB"), "{screen}");
    console.press(&["Tab", "Tab"]);
    console.wait_for(&["anonymous memory", "steady_leak"]);
    console.press(&["s"]);
    console.wait_for(&["a shell in /reprieve-", "16.0 MiB that were set aside"]);
    console.press(&["grep /reprieve- /proc/self/cgroup; ps -o comm= -p $$; cat /proc/sys/kernel/ostype", "Enter"]);
    let own = if Brake::here() == Brake::V1 { ":memory:/reprieve-" } else { "\n0::/reprieve-" };
    console.wait_for(&[own, "\nsh\n", "\nLinux\n"]);
    console.press(&["exit", "Enter"]);
    console.wait_for(&["the shell has ended", "1 hold waits"]);
    console.press(&["+"]);
    console.wait_for(&["so far  more time, by uid 0"]);
    console.press(&["g"]);
    console.wait_for(&["grant how much? 64M_"]);
    console.press(&["Enter"]);
    console.wait_for(&["over", "the limit is now 112 MiB"]);
    assert!(guarded.end_of_victim().success());
    let incident = guarded.incident();
    let step = &incident["verdict"]["steps"][0];
    assert_eq!((&step["action"], &step["outcome"]), (&"ask=120s".into(), &"relieved".into()), "{step}");
    let effect = step["effect"].as_str().unwrap();
    assert!(effect.starts_with("the operator (uid 0") && effect.contains(") chose grant=64M: the limit"), "{effect}");
}

#[test]
fn a_console_that_was_started_in_the_full_memcg_is_not_held_with_it() {
    let mut guarded = Guarded::idle("'ask=120s', 'kill'", "");
    let console = guarded.here.console_in(&guarded.group);
    console.wait_for(&["nothing waits", "1 guardian"]);
    guarded.start_victim();
    console.wait_for(&["1 hold waits", "then kill", "recommended  kill: steady_leak ["]);
    console.wait_for_seconds(2);
    console.press(&["s"]);
    console.wait_for(&["a shell in /reprieve-", "16.0 MiB that were set aside"]);
    console.press(&[&format!("ps -o stat= -p {}; ps -o comm= -p $$", guarded.victim().pid()), "Enter"]);
    // The victim is stopped meanwhile, for its tracer.
    console.wait_for(&["\nt", "\nsh\n"]);
    console.press(&["exit", "Enter"]);
    console.wait_for(&["the shell has ended", "1 hold waits"]);
    console.press(&["k"]);
    console.wait_for(&["kill in /asked-"]);
    console.press(&["y"]);
    console.wait_for(&["over", "killed steady_leak"]);
    assert_eq!(guarded.end_of_victim().signal(), Some(9));
    console.press(&["q"]);
    assert_eq!(console.end(), "0");
}

#[test]
fn without_a_decision_the_policy_goes_on_and_what_does_not_help_leaves_the_question_open() {
    let mut guarded = Guarded::new("'ask=20s', 'kill'", "ask.most = '20s'");
    let id = guarded.id();
    // It has no cache to drop.
    let reclaim = guarded.here.decide(&[&id, "reclaim", "--wait"]);
    assert!(said(&reclaim).contains("chose reclaim: freed "), "{}", said(&reclaim));
    assert_eq!(reclaim.status.code(), Some(1), "{}", said(&reclaim));
    let more = guarded.here.decide(&[&id, "more"]);
    assert!(said(&more).contains("there is no more time: ask.most is reached"), "{}", said(&more));
    assert!(!guarded.end_of_victim().success());
    let late = guarded.here.decide(&[&id, "grant=64M"]);
    assert_eq!(late.status.code(), Some(5), "{}", said(&late));
    let incident = guarded.incident();
    let steps = &incident["verdict"]["steps"];
    assert_eq!((&steps[0]["outcome"], &steps[1]["action"]), (&"not_enough".into(), &"kill".into()), "{steps:#}");
    assert!(steps[0]["effect"].as_str().unwrap().ends_with("; then nobody answered in time"), "{steps:#}");
}

#[test]
fn a_webhook_and_a_hook_that_hang_are_told_and_change_nothing() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let hooks = tempfile::tempdir().unwrap();
    let hook = hooks.path().join("hook");
    fs::write(&hook, "#!/bin/sh\necho \"$REPRIEVE_ID $REPRIEVE_FALLBACK\" > \"$0.said\"\nexec sleep 1000\n").unwrap();
    fs::set_permissions(&hook, Permissions::from_mode(0o755)).unwrap();
    let url = format!("http://{}/alert", silent.local_addr().unwrap());
    let more = format!(
        "[ask]\nwebhook = '{url}'\nhook = '{}'\nannounce_time = '2s'\nwebhook_body = '{{\"a\": [\"{{{{cgroup}}}}\", \"{{{{limit_bytes}}}}\"]}}'",
        hook.display()
    );
    let mut guarded = Guarded::new("'ask=100s', 'kill'", &more);
    let (mut caller, _) = silent.accept().unwrap();
    let mut posted = String::new();
    let mut bytes = [0; 4096];
    while !posted.contains('}') {
        let count = caller.read(&mut bytes).unwrap();
        assert_ne!(count, 0, "{posted}");
        posted.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
    }
    let body: serde_json::Value = serde_json::from_str(posted.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(body["a"][1], 48 << 20, "{posted}");
    assert!(posted.starts_with("POST /alert ") && body["a"][0].as_str().unwrap().starts_with("/asked-"), "{posted}");
    let id = guarded.id();
    guarded.says(&format!("the hook {} was not done after 2s and was killed", hook.display()));
    guarded.says("the webhook ");
    let heard = fs::read_to_string(hooks.path().join("hook.said")).unwrap();
    assert_eq!(heard, format!("{id} kill\n"));
    let begun = Instant::now();
    assert_eq!(guarded.here.decide(&[&id, "grant=64M", "--wait"]).status.code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(20) && guarded.end_of_victim().success());
    let text = fs::read_to_string(&guarded.said).unwrap();
    assert!(
        text.contains(&format!("the webhook {url} was not done")) || text.contains("the webhook was not told"),
        "{text}"
    );
}

#[test]
fn what_a_dead_guardian_left_says_nothing_and_the_next_takes_its_place() {
    let mut guarded = Guarded::new("'ask=100s', 'kill'", "");
    let id = guarded.id();
    let console = guarded.here.console();
    console.wait_for(&["1 hold waits"]);
    guarded.kill_guard(Signal::SIGKILL);
    console.wait_for(&["0 holds wait", "its guardian is gone"]);
    // Its watchdog gave the hold back, so the kernel has killed.
    assert!(!guarded.end_of_victim().success());
    assert!(guarded.here.run_dir().join("guard.sock").exists());
    assert!(said(&guarded.here.decide(&[])).is_empty());
    assert_eq!(guarded.here.decide(&[&id, "kill"]).status.code(), Some(3));
    let desk = guarded.here.desk();
    let _question = guarded.here.ask(&desk, "python", LONG);
    console.wait_for(&["1 hold waits", "1 guardian"]);
}
