//! What is read, shown, and told to be wrong.

use super::*;
use crate::hold::Cushion;
use std::fs;

fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("conf.d")).unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn problems(files: &[(&str, &str)]) -> Vec<String> {
    let dir = dir(files);
    let Problems(problems) = Config::load(dir.path()).unwrap_err();
    problems.iter().map(|p| p.to_string().replace(&dir.path().display().to_string(), "DIR")).collect()
}

#[test]
fn later_files_win_and_are_named() {
    let dir = dir(&[
        ("reprieve.toml", "[run]\nmemory = \"1G\"\non_oom = [\"grant=64M\", \"ask\"]\n[store]\nmax_count = 7\n"),
        ("conf.d/20-b.toml", "run.memory = '3G'\n"),
        ("conf.d/10-a.toml", "run.memory = '2G'\nrun.heap = false\n"),
        ("conf.d/README", "no TOML"),
    ]);
    let config = Config::load(dir.path()).unwrap();
    assert_eq!(config.run_memory(), 3 << 30);
    assert_eq!(config.policy().otherwise.len(), 2);
    assert_eq!(config.limits().max_count, 7);
    assert!(!config.run_records_heap());
    let shown = config.show(true);
    assert!(shown.contains("20-b.toml:1\n") && shown.contains("reprieve.toml:3\n"), "{shown}");
    assert!(shown.contains("deadline = \"5s\"") && shown.contains("# default"), "{shown}");
}

#[test]
fn what_is_shown_can_be_read_again() {
    let first = dir(&[("reprieve.toml", "store.dir = '/a \"b\"'\nstore.max_age = '90d'\nrun.heap_period = 4096\n")]);
    let shown = Config::load(first.path()).unwrap().show(true);
    let second = dir(&[("reprieve.toml", &shown)]);
    assert_eq!(Config::load(second.path()).unwrap().show(false), Config::load(first.path()).unwrap().show(false));
}

#[test]
fn every_default_is_a_value() {
    let config = Config::default();
    for key in KEYS {
        let is_list = matches!(key.kind, Kind::List | Kind::Actions | Kind::Parts);
        assert!(is_list || key.default.len() == 1, "{}", key.name);
        for text in key.default {
            (key.check)(text).unwrap_or_else(|error| panic!("{}: {error}", key.name));
        }
    }
    let _ = (config.limits(), config.run_memory(), config.run_deadline(), config.policy(), config.run_brake());
    let _ = (config.run_growth_period(), config.run_watches_growth());
    let _ = (config.run_heap_period(), config.snapshot_deadline(), config.store_dir());
    let _ = (config.guard_cgroups(), config.guard_except(), config.guard_analysts(), config.guard_cooldown());
    let _ = (config.guarded("/a"), config.guard_run_dir(), config.guard_log(), config.guard_metrics());
    let _ = (config.asking(), config.machine_answer(), config.machine_on_oom(), config.machine_deadline());
    let _ = (config.machine_reserve(), config.machine_depth(), config.machine_jobs());
}

#[test]
fn who_answers_for_the_machine_is_told_what_concerns_him() {
    let jobs =
        "[[cgroup]]\nmatch = '/batch/*'\npriority = -5\non_oom = ['kill']\n[[cgroup]]\nmatch = '/a'\ndry_run = true\n";
    let text = format!("machine.answer = 'auto'\nmachine.depth = 2\nstore.dir = '/a'\nguard.analysts = 3\n{jobs}");
    let whole = Config::load(dir(&[("reprieve.toml", &text)]).path()).unwrap();
    assert_eq!((whole.machine_answer(), whole.machine_depth()), (None, 2));
    // As it is handed over: by its text.
    let part = whole.of_machine().show(false);
    let told = Config::load(dir(&[("reprieve.toml", &part)]).path()).unwrap();
    assert_eq!((told.machine_depth(), told.store_dir()), (2, whole.store_dir()));
    assert_eq!((told.guard_analysts(), told.machine_answer()), (4, Some(false)));
    let worths = |config: &Config| format!("{:?}", config.worths());
    assert_eq!(worths(&told), worths(&whole));
    let shown = |text: &str| Config::load(dir(&[("reprieve.toml", text)]).path()).unwrap().of_machine().show(false);
    for same in [text.replace("= 3", "= 5"), text.replace("'auto'", "true"), text.replace("['kill']", "['defer']")] {
        assert_eq!(shown(&same), part);
    }
    for other in [text.replace("-5", "-6"), text.replace("depth", "jobs"), text.replace("store.dir = '/a'", "")] {
        assert_ne!(shown(&other), part);
    }
}

#[test]
fn problems_name_file_line_key_and_remedy() {
    let found = problems(&[
        (
            "reprieve.toml",
            "[run]\nmemmory = '1G'\nmemory = 'much'\nheap = 'no'\non_oom = ['reclaim', 'pray']\n\n[stor]\ndir = 1\n",
        ),
        ("conf.d/x.toml", "a = \n"),
    ]);
    assert_eq!(found.len(), 6, "{found:#?}");
    for (problem, part) in found.iter().zip([
        "DIR/reprieve.toml:2: run.memmory is not a key; did you mean run.memory?",
        "DIR/reprieve.toml:3: run.memory: \"much\" is not a size",
        "DIR/reprieve.toml:4: run.heap: write true or false, without quotes",
        "DIR/reprieve.toml:5: run.on_oom: unknown action \"pray\"",
        "DIR/reprieve.toml:8: stor.dir is not a key; did you mean store.dir?",
        "DIR/conf.d/x.toml:1: ",
    ]) {
        assert!(problem.starts_with(part), "{problem:?} {part:?}");
    }
}

#[test]
fn more_that_is_wrong() {
    for (text, part) in [
        ("store.dir = 'here'", "store.dir: \"here\" is not absolute"),
        ("store.max_count = 0", "store.max_count: "),
        ("store.max_age = '1fortnight'", "store.max_age: "),
        ("run = 3", "run is a table"),
        ("[run]\nmemory = { a = 1 }", "run.memory: "),
        ("run.on_oom = []", "run.on_oom: "),
        ("run.on_oom = [1]", "run.on_oom: "),
        ("run.memory = 1979-05-27", "run.memory: "),
        ("run.memory = '1G'\nrun.memory = '2G'", "duplicate"),
        ("guard.log = 'xml'", "guard.log: \"xml\" is no form of a log; write auto, text, json or journal"),
        (
            "guard.metrics = '0.0.0.0:9913'",
            "guard.metrics: 0.0.0.0 is not on loopback; write 127.0.0.1:9913 or [::1]:9913",
        ),
        ("guard.metrics = 9913", "guard.metrics: \"9913\" is no address with a port"),
        ("guard.textfile = '/a/b.txt'", "guard.textfile: \"/a/b.txt\" is not read by node_exporter"),
        ("x = 1", "x is not a key; `reprieve config show` lists all"),
    ] {
        let found = problems(&[("reprieve.toml", text)]);
        assert!(found.len() == 1 && found[0].contains(part), "{text}: {found:?}");
    }
    let not_utf8 = dir(&[]);
    fs::write(not_utf8.path().join("reprieve.toml"), [b'#', 0xff]).unwrap();
    assert!(Config::load(not_utf8.path()).unwrap_err().to_string().contains("UTF-8"));
}

#[test]
fn rules_are_read_in_order_and_shown() {
    let dir = dir(&[
        (
            "reprieve.toml",
            "[[rule]]\nname = 'leak'\nwhen = \"share('Cache') > 0.5\"\non_oom = ['throttle=10s', 'kill']\n",
        ),
        (
            "conf.d/a.toml",
            "[[rule]]\nname = 'rest'\nmatch = '/a/*'\nwhen = 'true'\non_oom = ['grant=64M']\n\
             [[rule]]\nname = 'web'\nmatch.unit = 'nginx*'\nmatch.cgroup = '/**'\nwhen = 'true'\non_oom = ['kill']\n\
             [[cgroup]]\nmatch = { runtime = 'docker' }\ndry_run = true\n",
        ),
    ]);
    let config = Config::load(dir.path()).unwrap();
    let rules = config.policy().rules;
    let is_for = |rule: usize, path: &str| rules[rule].matches.as_ref().unwrap().matches(path);
    assert!(is_for(1, "/a/b") && !is_for(1, "/b") && is_for(2, "/system.slice/nginx.service") && !is_for(2, "/a/b"));
    let container = format!("/docker/{}", "0123456789abcdef".repeat(4));
    assert!(config.guarded(&container).is_dry && !config.guarded("/a/b").is_dry);
    let names: Vec<String> = config.policy().rules.into_iter().map(|rule| rule.name).collect();
    assert_eq!(names, ["leak", "rest", "web"]);
    let shown = config.show(false);
    std::fs::remove_dir_all(dir.path().join("conf.d")).unwrap();
    fs::write(dir.path().join("reprieve.toml"), &shown).unwrap();
    assert_eq!(Config::load(dir.path()).unwrap().show(false), shown);
}

#[test]
fn mistakes_in_rules() {
    let text = "[[rule]]\nname = 'a'\nwhen = 'memgc.usage > 1'\non_oom = ['kill']\n[[rule]]\nwhen = 'true'\n\
                on_oom = ['pray']\n[[rule]]\nname = 'b'\nwhat = 1\nwhen = 1\non_oom = []\n";
    let found = problems(&[("reprieve.toml", text)]);
    for (problem, part) in found.iter().zip([
        "DIR/reprieve.toml:3: rule.when: ",
        "DIR/reprieve.toml:5: rule: name is missing",
        "DIR/reprieve.toml:7: rule.on_oom: unknown action \"pray\"",
        "DIR/reprieve.toml:10: rule.what is not a key; a rule has name, match, when, collect and on_oom",
        "DIR/reprieve.toml:11: rule.when: write a string",
        "DIR/reprieve.toml:12: rule.on_oom: there is no action",
    ]) {
        assert!(problem.starts_with(part), "{problem:?} {part:?}");
    }
    assert_eq!(found.len(), 6, "{found:#?}");
    assert!(problems(&[("reprieve.toml", "rule = 3")])[0].contains("write [[rule]]"));
}

#[test]
fn what_is_collected_is_said_of_all_of_some_and_by_rules() {
    let lean = "[[rule]]\nname = 'lean'\nwhen = 'age > 1'\ncollect = ['cmdline', 'stacks']\n";
    let text = format!(
        "run.collect = []\n[guard]\ncollect = ['all', 'cmdline']\n[[cgroup]]\nmatch = '/a'\ncollect = ['heap']\n\
         [[cgroup]]\nmatch = '/b'\ncollect = []\n{lean}"
    );
    let dir = dir(&[("reprieve.toml", &text)]);
    let config = Config::load(dir.path()).unwrap();
    let of_runs = config.policy();
    assert_eq!(of_runs.rules[0].collect.unwrap().words(), ["stacks", "cmdline"]);
    assert!(of_runs.rules[0].ladder.is_empty() && of_runs.collect.words().is_empty());
    let words = |path: &str| config.guarded(path).policy.collect.words();
    assert_eq!((words("/a"), words("/b"), words("/c")), (vec!["heap"], vec![], vec!["all", "cmdline"]));
    // A ladder that is typed leaves it as it is.
    let typed = config.policy().always(vec![Action::Kill]);
    assert!(typed.rules[0].collect == of_runs.rules[0].collect && typed.collect == of_runs.collect);
    let shown = config.show(false);
    fs::write(dir.path().join("reprieve.toml"), &shown).unwrap();
    assert_eq!(Config::load(dir.path()).unwrap().show(false), shown);
    for (wrong, told) in [
        ("run.collect = ['core']", "1: run.collect: \"core\" is no part of the evidence; write stacks, heap,"),
        ("run.collect = 'heap'", "1: run.collect: write an array of strings, like [\"stacks\", \"heap\"]"),
        ("[[cgroup]]\nmatch = '/a'\ncollect = ['heaps']", "3: cgroup.collect: \"heaps\" is no part"),
        ("[[rule]]\nname = 'a'\nwhen = 'true'\ncollect = ['heaps']", "4: rule.collect: \"heaps\" is no part"),
        ("[[rule]]\nname = 'a'\nwhen = 'true'", "1: rule: on_oom is missing"),
        (
            "[[rule]]\nname = 'a'\ncollect = ['heap']\nwhen = 'heap.live > 1'",
            "3: rule.collect: what is collected is decided before anybody looks at the heap, which `when` asks for; make",
        ),
    ] {
        let found = problems(&[("reprieve.toml", wrong)]);
        assert!(found.len() == 1 && found[0].starts_with(&format!("DIR/reprieve.toml:{told}")), "{wrong}: {found:?}");
    }
}

#[test]
fn mistakes_in_what_is_matched() {
    let rule = |said: &str| format!("[[rule]]\nname = 'a'\nwhen = 'true'\non_oom = ['kill']\n{said}\n");
    for (said, told) in [
        ("match = 3", &["5: rule.match: write a pattern of paths, like"][..]),
        ("match = {}", &["5: rule.match: write a pattern of paths, like"]),
        ("match = 'a'", &["5: rule.match: \"a\" does not begin with /"]),
        ("match.units = 'a.service'", &["5: rule.match.units is not a key; a match has cgroup, unit, pod"]),
        ("match.unit = 1", &["5: rule.match.unit: write a string in quotes"]),
        (
            "match.unit = 'nginx'\nmatch.runtime = 'rkt'",
            &["5: rule.match.unit: \"nginx\" is no unit", "6: rule.match.runtime: \"rkt\" is no runtime"],
        ),
    ] {
        let found = problems(&[("reprieve.toml", &rule(said))]);
        assert_eq!(found.len(), told.len(), "{said}: {found:?}");
        for (found, told) in found.iter().zip(told) {
            assert!(found.starts_with(&format!("DIR/reprieve.toml:{told}")), "{said}: {found}");
        }
    }
    let found = problems(&[("reprieve.toml", "[[cgroup]]\nmatch.pod = 'web'\n")]);
    assert!(found.len() == 1 && found[0].starts_with("DIR/reprieve.toml:2: cgroup.match.pod: "), "{found:?}");
}

#[test]
fn what_is_said_of_one_cgroup_wins_over_all_and_later_over_earlier() {
    let dir = dir(&[
        (
            "reprieve.toml",
            "[guard]\ncgroups = ['/a/*', '/b']\ndeadline = '7s'\n[[cgroup]]\nmatch = '/a/*'\n\
             on_oom = ['grant=64M', 'kill']\ndry_run = true\ncushion = 0\n",
        ),
        ("conf.d/one.toml", "[[cgroup]]\nmatch = '/a/x*'\non_oom = ['reclaim']\nreports_per_hour = 3\n"),
    ]);
    let config = Config::load(dir.path()).unwrap();
    let told = |path: &str| {
        let one = config.guarded(path);
        let ladder: Vec<String> = one.policy.otherwise.iter().map(ToString::to_string).collect();
        (ladder.join(","), one.is_dry, one.reports_per_hour, one.cushion, one.deadline.as_secs())
    };
    assert_eq!(told("/b"), ("reclaim,kill".into(), false, 12, Cushion::Auto, 7));
    assert_eq!(told("/a/y"), ("grant=64M,kill".into(), true, 12, Cushion::Bytes(0), 7));
    assert_eq!(told("/a/x1"), ("reclaim".into(), true, 3, Cushion::Bytes(0), 7));
    assert!(config.guard_cgroups()[0].matches("/a/y"));
    let shown = config.show(false);
    fs::remove_dir_all(dir.path().join("conf.d")).unwrap();
    fs::write(dir.path().join("reprieve.toml"), &shown).unwrap();
    assert_eq!(Config::load(dir.path()).unwrap().show(false), shown);
}

#[test]
fn each_entry_of_a_list_is_told_with_its_line() {
    let list = |entries: &str| format!("[\n  {entries},\n  'kill', 'pray',\n  7,\n]");
    let text = format!(
        "[run]\non_oom = {}\n[guard]\ncgroups = ['/a',\n'b', '/c[']\n[[cgroup]]\nmatch = '/a'\non_oom = {}\n\
         [[rule]]\nname = 'a'\nwhen = 'true'\non_oom = {}\n",
        list("'hope'"),
        list("'grant'"),
        list("'kill=9'"),
    );
    let found = problems(&[("reprieve.toml", &text)]);
    let expected = [
        "3: run.on_oom: unknown action \"hope\"",
        "4: run.on_oom: unknown action \"pray\"",
        "5: run.on_oom: write a string in quotes",
        "9: guard.cgroups: \"b\" does not begin with /",
        "9: guard.cgroups: \"c[\": ",
        "13: cgroup.on_oom: grant needs a size",
        "14: cgroup.on_oom: unknown action \"pray\"",
        "15: cgroup.on_oom: write a string in quotes",
        "21: rule.on_oom: kill takes no value",
        "22: rule.on_oom: unknown action \"pray\"",
        "23: rule.on_oom: write a string in quotes",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(&format!("DIR/reprieve.toml:{expected}")), "{found:?} {expected:?}");
    }
}

#[test]
fn a_comma_is_part_of_an_entry() {
    let (hook, glob) = ("hook=/opt/a,b", "/a,b/*");
    let text = format!(
        "run.on_oom = ['{hook}', 'kill']\n[guard]\ncgroups = ['{glob}']\n[[cgroup]]\nmatch = '/a'\non_oom = ['{hook}']\n"
    );
    let first = dir(&[("reprieve.toml", &text)]);
    let config = Config::load(first.path()).unwrap();
    let told = |ladder: Vec<Action>| ladder.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(told(config.policy().otherwise), [hook, "kill"]);
    assert_eq!(told(config.guarded("/a").policy.otherwise), [hook]);
    assert_eq!(config.guard_cgroups().iter().map(ToString::to_string).collect::<Vec<_>>(), [glob]);
    let shown = config.show(false);
    let second = dir(&[("reprieve.toml", &shown)]);
    assert_eq!(Config::load(second.path()).unwrap().show(false), shown);
    // Nor does a comma make two of one.
    let found = problems(&[("reprieve.toml", "run.on_oom = ['reclaim,kill']")]);
    assert!(found.len() == 1 && found[0].contains("unknown action \"reclaim,kill\""), "{found:?}");
}

/// Values that a key of this kind cannot have, whatever it is about.
fn junk(kind: Kind) -> Vec<&'static str> {
    const OF_NONE: [&str; 7] = ["1.5", "0x10", "1979-05-27", "{}", "{ a = 1 }", "[1]", "[[]]"];
    let more: &[&str] = match kind {
        Kind::Text => &["true", "[]", "['kill']", "'no such value'", "''"],
        Kind::Flag => &["1", "'true'", "[]", "[true]"],
        Kind::Switch => &["1", "'true'", "'no such value'", "[true]"],
        Kind::List | Kind::Parts => &["1", "true", "'/a'", "[true]", "['no such value']", "['']"],
        Kind::Actions => &["1", "true", "'kill'", "[]", "[true]", "['no such value']", "['']"],
    };
    OF_NONE.iter().chain(more).copied().collect()
}

#[test]
fn every_key_tells_once_where_its_value_is_wrong() {
    let of_one = guard::OF_ONE.map(|name| {
        let key = guard::key_of_one(name).unwrap();
        (format!("[[cgroup]]\nmatch = '/a'\n\n{name}"), format!("cgroup.{name}"), key.kind)
    });
    let of_all = KEYS.iter().map(|key| (format!("\n\n\n{}", key.name), key.name.to_owned(), key.kind));
    let mut tried = 0;
    for (before, name, kind) in of_all.chain(of_one) {
        for value in junk(kind) {
            let found = problems(&[("reprieve.toml", &format!("{before} = {value}\n"))]);
            let expected = format!("DIR/reprieve.toml:4: {name}: ");
            assert!(found.len() == 1 && found[0].starts_with(&expected), "{name} = {value}: {found:#?}");
            assert!(!found[0].contains('\n') && found[0].len() > expected.len() + 10, "{found:?}");
            tried += 1;
        }
    }
    assert!(tried > 400, "{tried}");
}

#[test]
fn every_key_of_a_rule_tells_once_where_its_value_is_wrong() {
    let keys =
        [("name", "'a'"), ("match", "'/a'"), ("when", "'true'"), ("on_oom", "['kill']"), ("collect", "['heap']")];
    for (wrong, _) in keys {
        let kind = match wrong {
            "on_oom" => Kind::Actions,
            "collect" => Kind::Parts,
            _ => Kind::Text,
        };
        // Any string is a name.
        let is_junk = |value: &&str| wrong != "name" || !value.starts_with('\'');
        for value in junk(kind).into_iter().filter(is_junk) {
            let line = |(key, right): (&str, &str)| format!("{key} = {}\n", if key == wrong { value } else { right });
            let text = format!("[[rule]]\n{}", keys.map(line).concat());
            let at = 2 + keys.iter().position(|(key, _)| *key == wrong).unwrap();
            let found = problems(&[("reprieve.toml", &text)]);
            let expected = format!("DIR/reprieve.toml:{at}: rule.{wrong}");
            assert!(found.len() == 1 && found[0].starts_with(&expected), "{wrong} = {value}: {found:#?}");
        }
    }
}

#[test]
fn mistakes_about_one_cgroup() {
    let text = "[[cgroup]]\nmatch = 'a'\n[[cgroup]]\non_oom = ['kill']\n[[cgroup]]\nmatch = '/a'\nanalysts = 3\n\
                deadline = 'soon'\n";
    let found = problems(&[("reprieve.toml", text)]);
    for (problem, part) in found.iter().zip([
        "DIR/reprieve.toml:2: cgroup.match: \"a\" does not begin with /",
        "DIR/reprieve.toml:3: cgroup: match is missing",
        "DIR/reprieve.toml:7: cgroup.analysts is not a key; a cgroup has match, deadline, on_oom, ",
        "DIR/reprieve.toml:8: cgroup.deadline: ",
    ]) {
        assert!(problem.starts_with(part), "{problem:?} {part:?}");
    }
    assert_eq!(found.len(), 4, "{found:#?}");
    let found = problems(&[("reprieve.toml", "[guard]\ncgroups = ['/a[']\nanalysts = 0\n[cgroup]\nmatch = '/a'\n")]);
    assert!(found.len() == 3 && found[2].contains("write [[cgroup]]"), "{found:#?}");
}

#[test]
fn only_the_folder_that_nobody_has_to_name_may_be_absent() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Config::load(dir.path()).unwrap().run_memory(), 256 << 20);
    assert!(Config::load(&dir.path().join("none")).unwrap_err().to_string().contains("no such folder"));
    assert_eq!(read::named(Path::new(DEFAULT_DIR)), Ok(()));
}
