//! What is configured: read, shown, won over by options, and what is wrong told.

mod common;

use common::{Lab, text};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const DOC: &str = include_str!("../../docs/configuration.md");

fn reprieve(config: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reprieve"));
    command.arg("--config").arg(config).args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn a_run_is_as_configured_unless_told_otherwise() {
    let (lab, dir) = (Lab::new(), tempfile::tempdir().unwrap());
    let store = lab.out().to_str().unwrap();
    let toml = format!("store.dir = {store:?}\n[run]\nmemory = '32M'\non_oom = ['grant=64M']\nheap = false\n");
    fs::write(dir.path().join("reprieve.toml"), toml).unwrap();
    let victim = common::fixture("steady_leak");
    let ran = reprieve(dir.path(), &["run", "--", &victim, "--mib", "48"]);
    assert!(ran.status.success(), "{}", text(&ran));
    let incident = lab.incident();
    assert_eq!(incident["memcg"]["limit_bytes"], 32 << 20);
    assert_eq!(incident["verdict"]["steps"][0]["action"], "grant=64M", "{:#}", incident["verdict"]);
    assert_eq!(incident["processes"][0]["heaps"].as_array().unwrap().len(), 0, "no heap was asked for");
    let ran = reprieve(dir.path(), &["run", "--memory", "40M", "--on-oom", "kill", "--", &victim, "--mib", "48"]);
    assert_eq!(ran.status.code(), Some(137), "{}", text(&ran));
    assert_eq!(lab.incidents()[1]["memcg"]["limit_bytes"], 40 << 20);
    // The folder is known to the others, too.
    assert_eq!(stdout(&reprieve(dir.path(), &["list"])).lines().count(), 2);
    assert!(stdout(&reprieve(dir.path(), &["show"])).contains("40.0 MiB"));
}

#[test]
fn the_rule_that_holds_decides_and_one_that_fails_is_told() {
    let (lab, dir) = (Lab::new(), tempfile::tempdir().unwrap());
    let rules = "run.on_oom = ['kill']\n\
        [[rule]]\nname = 'fails'\nwhen = 'stacks[60].size > 0.0'\non_oom = ['kill']\n\
        [[rule]]\nname = 'small'\nwhen = 'memcg.limit < size_of(\"1M\")'\non_oom = ['kill']\n\
        [[rule]]\nname = 'known leak'\nwhen = 'share(\"leak_medium\") > 0.2'\non_oom = ['grant=64M']\n";
    fs::write(dir.path().join("reprieve.toml"), rules).unwrap();
    // The sample in which rules are tried has one stack.
    let refused = reprieve(dir.path(), &["config", "check"]);
    assert!(refused.status.code() == Some(1) && text(&refused).contains("reprieve.toml:4: rule.when: "));
    // What one version of memory cgroups tells the other does not.
    let wrong = "memcg.stat['anon'] > 0.0 && memcg.stat['rss'] > 0.0";
    let rules = rules.replace("when = 'stacks[60].size > 0.0'", &format!("when = \"{wrong}\""));
    fs::write(dir.path().join("reprieve.toml"), rules).unwrap();
    let (store, victim) = (lab.out().to_str().unwrap(), common::fixture("steady_leak"));
    let run = |more: &[&str]| {
        let run = ["run", "--memory", "48M", "--out", store];
        reprieve(dir.path(), &[&run, more, &["--", &victim, "--mib", "64"]].concat())
    };
    let ran = run(&[]);
    assert!(ran.status.success(), "{}", text(&ran));
    let verdict = &lab.incident()["verdict"];
    assert_eq!((&verdict["rule"], &verdict["steps"][0]["action"]), (&"known leak".into(), &"grant=64M".into()));
    assert_eq!(verdict["problems"].as_array().unwrap().len(), 1, "{verdict:#}");
    let shown = stdout(&reprieve(dir.path(), &["show", "--out", store]));
    assert!(shown.contains("by rule \"known leak\"") && shown.contains("rule \"fails\" was passed over"), "{shown}");
    // What is typed wins over rules.
    assert_eq!(run(&["--on-oom", "kill"]).status.code(), Some(137));
}

#[test]
fn a_rule_sees_the_same_live_and_replayed() {
    let (lab, dir) = (Lab::new(), tempfile::tempdir().unwrap());
    let has_pressure = Path::new("/proc/pressure/memory").exists();
    let rule = format!(
        "[[rule]]\nname = 'worth it'\non_oom = ['grant=64M']\nwhen = \"priority == 7 && reservation == size_of('8M') \
         && ('pressure' in known) == {has_pressure}\"\n"
    );
    let worth = "[[cgroup]]\nmatch = '/**'\npriority = 7\nreservation = '8M'\n";
    fs::write(dir.path().join("reprieve.toml"), format!("run.on_oom = ['kill']\n{worth}{rule}")).unwrap();
    let (store, victim) = (lab.out().to_str().unwrap(), common::fixture("steady_leak"));
    let ran = reprieve(dir.path(), &["run", "--memory", "48M", "--out", store, "--", &victim, "--mib", "64"]);
    assert!(ran.status.success(), "{}", text(&ran));
    let incident = lab.incident();
    let memcg = &incident["memcg"];
    assert_eq!((&memcg["priority"], &memcg["reservation_bytes"]), (&7.into(), &(8 << 20).into()), "{memcg:#}");
    assert_eq!(memcg["pressure"].is_object(), has_pressure, "{memcg:#}");
    // A policy that says nothing of the cgroup goes by what was recorded.
    let id = incident["id"].as_str().unwrap();
    for (policy, code) in [
        (rule.clone(), 0),
        (rule.replace("priority == 7", "priority == 8"), 6),
        (format!("{}{}", worth.replace('7', "8"), rule), 6),
    ] {
        let file = dir.path().join("policy.toml");
        fs::write(&file, policy).unwrap();
        let told = reprieve(dir.path(), &["replay", "--out", store, "--assert", "grant", file.to_str().unwrap(), id]);
        assert_eq!(told.status.code(), Some(code), "{}", text(&told));
    }
}

#[test]
fn a_rule_that_would_take_minutes_does_not_hold_the_program() {
    let (lab, dir) = (Lab::new(), tempfile::tempdir().unwrap());
    // There are some forty counters, and three million ways to take four of them.
    let slow = "memcg.stat.all(a, memcg.stat.all(b, memcg.stat.all(c, memcg.stat.all(d, a + b + c + d != ''))))";
    let rules =
        format!("run.on_oom = ['grant=64M']\n[[rule]]\nname = 'slow'\nwhen = \"{slow} || true\"\non_oom = ['kill']\n");
    fs::write(dir.path().join("reprieve.toml"), rules).unwrap();
    let (store, victim) = (lab.out().to_str().unwrap(), common::fixture("steady_leak"));
    let ran = reprieve(dir.path(), &["run", "--memory", "48M", "--out", store, "--", &victim, "--mib", "64"]);
    assert!(ran.status.success(), "{}", text(&ran));
    let incident = lab.incident();
    let verdict = &incident["verdict"];
    assert_eq!((&verdict["rule"], &verdict["steps"][0]["action"]), (&().into(), &"grant=64M".into()), "{verdict:#}");
    let problem = verdict["problems"][0].as_str().unwrap();
    assert!(problem.starts_with("rule \"slow\" was passed over: it "), "{problem}");
    let (held, deadline) = (incident["hold"]["held_us"].as_u64(), incident["hold"]["deadline_us"].as_u64());
    assert!(held.is_some() && held < deadline, "{:#}", incident["hold"]);
}

#[test]
fn a_rule_leaves_out_evidence_of_one_program_and_not_of_another() {
    let (lab, dir) = (Lab::new(), tempfile::tempdir().unwrap());
    let vault = dir.path().join("vault");
    fs::copy(common::fixture("steady_leak"), &vault).unwrap();
    let rules = "run.on_oom = ['grant=64M']\n\
        [[rule]]\nname = 'secrets'\nwhen = 'processes.exists(p, p.name == \"vault\" && p.size > size_of(\"16M\"))'\n\
        collect = ['stacks', 'mappings']\n\
        [[rule]]\nname = 'leak'\nwhen = 'share(\"leak_medium\") > 0.2'\nmatch = '/nowhere/**'\non_oom = ['kill']\n";
    let file = dir.path().join("reprieve.toml");
    fs::write(&file, rules).unwrap();
    let store = lab.out().to_str().unwrap();
    for victim in [vault.to_str().unwrap(), &common::fixture("steady_leak")] {
        let run = ["run", "--memory", "48M", "--growth", "--out", store, "--", victim, "--mib", "64"];
        let ran = reprieve(dir.path(), &run);
        assert!(ran.status.success(), "{}", text(&ran));
    }
    let incidents = lab.incidents();
    let of = |name: &str| incidents.iter().find(|incident| incident["processes"][0]["comm"] == name).unwrap();
    let (without, with) = (of("vault"), of("steady_leak"));
    let left_out = serde_json::json!({ "parts": ["heap", "malloc", "growth", "accounting"], "rule": "secrets" });
    assert_eq!((&without["left_out"], &with["left_out"]), (&left_out, &().into()), "{:#}", without["left_out"]);
    let has = |incident: &serde_json::Value| {
        let process = &incident["processes"][0];
        let is_some = |value: &serde_json::Value| !value.is_null();
        assert!(process["memory"]["pss_bytes"].as_u64().unwrap() > 16 << 20, "{process:#}");
        assert!(!process["mappings"].as_array().unwrap().is_empty(), "{process:#}");
        assert!(!process["threads"][0]["stack"]["frames"].as_array().unwrap().is_empty(), "{process:#}");
        [&process["malloc"], &process["heaps"][0], &process["growth"], &incident["accounting"]].map(is_some)
    };
    assert_eq!((has(without), has(with)), ([false; 4], [true; 4]));
    // That nobody looked for a heap is no gap.
    assert!(!without["processes"][0]["gaps"].to_string().contains("heap"), "{:#}", without["processes"][0]["gaps"]);
    let id = without["id"].as_str().unwrap();
    let told = "heap, malloc, growth, accounting, by rule \"secrets\": nobody looked";
    let shown = stdout(&reprieve(dir.path(), &["show", "--out", store, id]));
    assert!(shown.contains("LEFT OUT  heap, malloc, growth,"), "{shown}");
    let page = fs::read_to_string(lab.out().join(id).join("report.html")).unwrap();
    assert!(page.contains("<strong>Left out on purpose:</strong> heap, malloc, growth, accounting"), "{page:.3000}");
    // A replay knows, but not whether page faults would have been sampled.
    let replay = |more: &[&str]| {
        let replay = ["replay", "--out", store, file.to_str().unwrap(), id];
        stdout(&reprieve(dir.path(), &[&replay, more].concat()))
    };
    assert!(replay(&[]).contains(&format!("    left out: {told}")), "{}", replay(&[]));
    let json: serde_json::Value = serde_json::from_str(&replay(&["--json"])).unwrap();
    assert_eq!(
        (&json["collected"], &json["collected_by"]),
        (&serde_json::json!(["stacks", "mappings"]), &"secrets".into())
    );
    // What is typed wins over what is done, not over what is collected.
    let victim = vault.to_str().unwrap();
    let run = ["run", "--memory", "48M", "--out", store, "--on-oom", "kill", "--", victim, "--mib", "64"];
    assert_eq!(reprieve(dir.path(), &run).status.code(), Some(137));
    assert_eq!(lab.incidents()[2]["left_out"]["rule"], "secrets");
}

#[test]
fn a_rule_takes_over_when_the_other_did_not_help() {
    let (lab, dir) = (Lab::new(), tempfile::tempdir().unwrap());
    let rules = "[[rule]]\nname = 'in vain'\non_oom = ['kill']\n\
        when = 'steps.exists(s, s.action.startsWith(\"throttle\") && s.outcome != \"relieved\")'\n\
        [[rule]]\nname = 'slowly'\nwhen = 'true'\non_oom = ['throttle=1s', 'grant=64M']\n";
    let file = dir.path().join("reprieve.toml");
    fs::write(&file, rules).unwrap();
    let (store, victim) = (lab.out().to_str().unwrap(), common::fixture("steady_leak"));
    let ran = reprieve(dir.path(), &["run", "--memory", "48M", "--out", store, "--", &victim, "--mib", "512"]);
    assert_eq!(ran.status.code(), Some(137), "{}", text(&ran));
    let incident = lab.incident();
    let verdict = &incident["verdict"];
    let steps: Vec<_> = verdict["steps"].as_array().unwrap().iter().map(|s| (&s["action"], &s["rule"])).collect();
    let expected = [(&"throttle=1s".into(), &"slowly".into()), (&"kill".into(), &"in vain".into())];
    assert!(steps == expected && verdict["rule"] == "in vain", "{verdict:#}");
    let shown = stdout(&reprieve(dir.path(), &["show", "--out", store]));
    assert!(shown.contains("by rule \"slowly\"") && shown.contains("by rule \"in vain\""), "{shown}");
    // A replay knows what came of the first.
    let replay = ["replay", "--out", store, file.to_str().unwrap(), incident["id"].as_str().unwrap()];
    let told = stdout(&reprieve(dir.path(), &replay));
    assert!(told.contains("slowly, then in vain") && told.trim_end().ends_with("throttle=1s, kill"), "{told}");
}

#[test]
fn replay_tells_what_would_have_been_done() {
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("policy.toml");
    fs::write(
        &policy,
        "[[rule]]\nname = 'cache'\nwhen = \"share('Cache.insert') > 0.4\"\non_oom = ['throttle=10s', 'kill']\n",
    )
    .unwrap();
    let recorded = |name: &str| format!("{}/../fixtures/incidents/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let (python, sort) = (recorded("python"), recorded("sort"));
    let replay = |more: &[&str]| reprieve(Path::new("/sys"), &[&["replay", policy.to_str().unwrap()], more].concat());
    let told = stdout(&replay(&[&python, &sort, &recorded("redis")]));
    let lines: Vec<&str> = told.lines().skip(1).collect();
    assert!(told.starts_with("INCIDENT ") && lines[0].contains("  python3 ["), "{told}");
    assert!(lines.len() == 3 && lines[0].contains("cache ") && lines[0].ends_with("throttle=10s, kill"), "{told}");
    assert!(lines[1..].iter().all(|line| line.contains("(no rule)") && line.ends_with("reclaim, kill")), "{told}");
    let json = stdout(&replay(&[&python, "--json", "--assert", "throttle"]));
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["rule"], "cache");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["kill_begins_with"]["comm"], "python3", "{json}");
    // Incidents of guarded cgroups are answered as those are.
    let guarding = "[guard]\ncgroups = ['/process_api/**']\non_oom = ['freeze', 'kill']\n\
                    [[cgroup]]\nmatch = '/process_api/*/reprieve-13782*'\non_oom = ['grant=1G']\n";
    let guard = dir.path().join("guard.toml");
    fs::write(&guard, guarding).unwrap();
    let of = |incident: &str| {
        let told = reprieve(Path::new("/sys"), &["replay", guard.to_str().unwrap(), incident]);
        stdout(&told).lines().last().unwrap().to_owned()
    };
    assert!(of(&python).ends_with("freeze=300s, kill") && of(&sort).ends_with("grant=1G"), "{}", of(&python));
    for (arguments, code) in [
        (&[&python, "--assert", "kill"][..], 6),
        (&[&python, &sort, "--assert", "throttle=10s"], 6),
        (&[&sort, "--assert", "pray"], 2),
        (&[&python, "--assert-rule", "cache"], 0),
        (&[&python, "--assert-rule", "cache", "--assert", "kill"], 6),
        (&[&python, &sort, "--assert-rule", "cache"], 6),
        (&[&sort, "--assert-rule", "(no rule)"], 0),
        (&[&python, "--assert-rule", "(no rule)"], 6),
        (&[&sort, "--assert-rule", "cash"], 2),
        (&["/dev/null"], 1),
    ] {
        assert_eq!(replay(arguments).status.code(), Some(code), "{arguments:?}");
    }
    // What says nothing is no policy: what is built in would be told as if it were one.
    for (nothing, part) in
        [("empty", "conf.d/*.toml is in this folder; name"), ("none.toml", "no such file or folder; name")]
    {
        let path = dir.path().join(nothing);
        if nothing == "empty" {
            fs::create_dir(&path).unwrap();
        }
        let told = reprieve(Path::new("/sys"), &["replay", path.to_str().unwrap(), &python]);
        let words = String::from_utf8(told.stderr).unwrap();
        assert!(told.status.code() == Some(1) && told.stdout.is_empty() && words.contains(part), "{words}");
    }
}

#[test]
fn a_mistake_is_told_and_hinders_only_what_needs_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("reprieve.toml");
    fs::write(&file, "[run]\nmemory = '1G'\non_om = ['kill']\n").unwrap();
    for (arguments, code) in [
        (&["config", "check"][..], 1),
        (&["config", "show"], 1),
        (&["list"], 1),
        (&["vacuum", "--dry-run"], 1),
        (&["run", "--", "true"], 125),
        (&["doctor", "--json"], 0),
    ] {
        let output = reprieve(dir.path(), arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output));
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        let expected = format!("reprieve: {}:3: run.on_om is not a key; did you mean run.on_oom?\n", file.display());
        assert_eq!(told, if code == 0 { "" } else { &expected }, "{arguments:?}");
    }
    fs::write(&file, "[run]\nmemory = '1G'\non_oom = ['kill']\n").unwrap();
    assert_eq!(stdout(&reprieve(dir.path(), &["config", "check"])), "the configuration is right\n");
    let shown = stdout(&reprieve(dir.path(), &["config", "show", "--origin"]));
    assert!(shown.contains(&format!("{}:2\n", file.display())) && shown.contains("# default\n"), "{shown}");
}

#[test]
fn a_folder_that_was_named_must_be_there() {
    let dir = tempfile::tempdir().unwrap();
    let (typo, empty) = (dir.path().join("typo"), dir.path().join("empty"));
    fs::create_dir(&empty).unwrap();
    let policy = empty.join("reprieve.toml");
    for (arguments, code) in [(&["config", "check"][..], 1), (&["run", "--", "true"], 125), (&["list"], 1)] {
        let told = reprieve(&typo, arguments);
        assert_eq!(told.status.code(), Some(code), "{arguments:?}: {}", text(&told));
        assert!(text(&told).contains("typo: there is no such folder"), "{}", text(&told));
    }
    fs::write(&policy, "").unwrap();
    let told = reprieve(&policy, &["config", "check"]);
    assert!(told.status.code() == Some(1) && text(&told).contains("it is no folder"), "{}", text(&told));
    let out = ["--out", typo.to_str().unwrap()];
    let policy = policy.to_str().unwrap();
    for command in [
        &["list"][..],
        &["show"],
        &["vacuum"],
        &["vacuum", "--dry-run"],
        &["replay", policy],
        &["export", "--format", "folded"],
        &["diff", "A", "B"],
        &["symbolize", "A"],
    ] {
        let told = reprieve(&empty, &[command, &out].concat());
        assert_eq!(told.status.code(), Some(3), "{command:?}: {}", text(&told));
        assert!(text(&told).contains("typo: there is no such folder"), "{command:?}: {}", text(&told));
    }
    assert!(!typo.exists());
    // One that is configured may not have been made yet.
    fs::write(empty.join("reprieve.toml"), format!("store.dir = {:?}\n", typo.to_str().unwrap())).unwrap();
    assert!(stdout(&reprieve(&empty, &["vacuum"])).starts_with("0 incidents removed"));
    assert_eq!(stdout(&reprieve(&empty, &["list"])), "");
    assert!(!typo.exists());
    let told = reprieve(&empty, &["replay", policy]);
    assert!(stdout(&told).is_empty() && text(&told).contains("no incident in "), "{}", text(&told));
    let told = reprieve(&empty, &["replay", policy, "--assert", "kill"]);
    assert!(told.status.code() == Some(3) && text(&told).contains("nothing for --assert kill"), "{}", text(&told));
}

#[test]
fn vacuum_keeps_to_the_limits_and_says_what_it_did() {
    let (lab, dir) = (Lab::new(), tempfile::tempdir().unwrap());
    let store = lab.out().to_str().unwrap();
    for _ in 0..3 {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let taken = reprieve(dir.path(), &["snapshot", "--out", store, &child.id().to_string()]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(taken.status.success(), "{}", text(&taken));
    }
    let vacuum = |more: &[&str]| reprieve(dir.path(), &[&["vacuum", "--out", store], more].concat());
    assert!(stdout(&vacuum(&[])).starts_with("0 incidents removed"));
    let dry = stdout(&vacuum(&["--max-count", "1", "--dry-run"]));
    assert!(dry.lines().count() == 3 && dry.contains("max_count\n2 incidents would be removed"), "{dry}");
    assert_eq!(lab.incidents().len(), 3);
    let oldest = lab.incidents()[0]["id"].clone();
    let json = stdout(&vacuum(&["--max-count", "2", "--json"]));
    let told: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&told["id"], &told["why"]), (&oldest, &"max_count".into()));
    assert!(told["bytes"].as_u64().unwrap() > 1000);
    // Old ones go by age; the newest stays whatever is asked.
    stdout(&vacuum(&["--max-age", "1ms", "--max-use", "1"]));
    assert_eq!(lab.incidents().len(), 1);
    let wrong = vacuum(&["--max-age", "soon"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(text(&wrong).contains("90d"), "{}", text(&wrong));
}

#[test]
fn every_example_of_the_documentation_is_right() {
    let dir = tempfile::tempdir().unwrap();
    let pages = [
        DOC,
        include_str!("../../docs/guard.md"),
        include_str!("../../docs/operating.md"),
        include_str!("../../docs/console.md"),
    ];
    let blocks = |page: &'static str| page.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let examples: Vec<&str> = pages.into_iter().flat_map(blocks).collect();
    assert!(examples.len() >= 6, "{examples:#?}");
    for example in examples {
        fs::write(dir.path().join("reprieve.toml"), example).unwrap();
        let checked = reprieve(dir.path(), &["config", "check"]);
        assert!(checked.status.success(), "{}\n{example}", text(&checked));
    }
}

#[test]
fn every_key_is_documented() {
    let none = tempfile::tempdir().unwrap();
    let explained = stdout(&reprieve(none.path(), &["config", "show", "--explain"]));
    assert!(explained.lines().count() > 10);
    for key in explained.lines().filter_map(|line| line.split_whitespace().next()) {
        assert!(DOC.contains(&format!("| `{key}` |")), "docs/configuration.md does not know {key}");
    }
}
