//! `list`, `diff` and `redact` on recorded incidents, and on ten thousand.

#[path = "common/store.rs"]
mod store;

use flate2::read::GzDecoder;
use reprieve::incident::units::compact_time;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::time::Instant;
use store::{Stored, check, golden, later, recorded};

/// Three recorded ones, and one each of: the kernel was first, in a pod; a snapshot; one
/// whose memory was not well again.
fn stored() -> Stored {
    let stored = Stored::new();
    let mut pod = recorded("redis");
    let uid = "0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f";
    let container = "0123456789abcdef".repeat(4);
    let path = format!("/kubepods.slice/kubepods-pod{}.slice/cri-containerd-{container}.scope", uid.replace('-', "_"));
    pod["id"] = json!("20261126T100000.000Z-redis-server-000001");
    pod["time_unix_us"] = json!(1_795_687_200_000_000_u64);
    pod["trigger"] = json!("killed_by_kernel");
    pod["verdict"] = Value::Null;
    pod["memcg"]["path"] = json!(path);
    pod["processes"][0]["cgroup"] = json!(path);
    pod["processes"][0]["container_id"] = json!(container);
    pod["kernel_victims"] = json!([{"pid": 13810, "comm": "redis-server", "rss_bytes": 66_936_832}]);
    stored.add(&pod);
    let mut snapshot = recorded("sort");
    snapshot["id"] = json!("20261127T100000.000Z-sort-000002");
    snapshot["time_unix_us"] = json!(1_795_773_600_000_000_u64);
    snapshot["trigger"] = json!("snapshot");
    snapshot["verdict"] = Value::Null;
    stored.add(&snapshot);
    let mut unwell = recorded("sort");
    unwell["id"] = json!("20261128T100000.000Z-sort-000003");
    unwell["time_unix_us"] = json!(1_795_860_000_000_000_u64);
    unwell["verdict"]["relieved"] = json!(false);
    unwell["verdict"]["summary"] = json!("reclaim: 3 MiB came back, which is not enough");
    unwell["verdict"]["steps"][0]["action"] = json!("reclaim");
    unwell["verdict"]["steps"][0]["outcome"] = json!("not_enough");
    stored.add(&unwell);
    stored
}

#[test]
fn lists_are_as_they_were() {
    let stored = stored();
    stored.golden(&["list"], "list.txt");
    stored.golden(&["list", "--json"], "list.jsonl");
    stored.golden(&["list", "--help"], "list-help.txt");
}

/// Of one step that tells all, and of two.
#[test]
fn an_incident_is_shown_as_it_was() {
    let stored = Stored::new();
    stored.golden(&["show", "7ee0a8"], "show-sort.txt");
    let shown = String::from_utf8(stored.prints(&["show", "7ee0a8"])).unwrap();
    assert_eq!(shown.matches("kill: killed sort [13784]").count(), 1, "{shown}");
    stored.add(&recorded("shop"));
    stored.golden(&["show", recorded("shop")["id"].as_str().unwrap()], "show-shop.txt");
}

#[test]
fn conditions_choose() {
    let stored = stored();
    // By the last character of the ID: a8, 6a, 75 (python, redis), then 1, 2, 3.
    let chosen = |args: &[&str]| -> String {
        let mut all = vec!["list", "--json"];
        all.extend(args);
        let printed = String::from_utf8(stored.prints(&all)).unwrap();
        let ids =
            printed.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned());
        ids.map(|id| match &id[id.len() - 6..] {
            "7ee0a8" => 's',
            "fe9a6a" => 'p',
            "b16875" => 'r',
            other => other.chars().last().unwrap(),
        })
        .collect()
    };
    for (args, expected) in [
        (&[][..], "spr123"),
        (&["--reverse"], "321rps"),
        (&["-n", "2"], "23"),
        (&["-n", "2", "--reverse"], "32"),
        (&["--since", "2026-11-26"], "123"),
        (&["--until", "2026-11-25T08:46:14Z"], "sp"),
        (&["--since", "2026-11-26", "--until", "2026-11-27 10:00"], "12"),
        (&["-S", "@1795773600"], "23"),
        (&["--trigger", "snapshot"], "2"),
        (&["--trigger", "snapshot", "--trigger", "killed-by-kernel"], "12"),
        (&["--trigger", "killed_by_kernel"], "1"),
        (&["--verdict", "kill"], "spr"),
        (&["--verdict", "reclaim"], "3"),
        (&["--verdict", "relieved"], "spr"),
        (&["--verdict", "not-relieved"], "3"),
        (&["--verdict", "none"], "12"),
        (&["--pod", "0a1b2c3d-0a1b"], "1"),
        (&["--pod", "0a1b2c3d_0a1b"], "1"),
        (&["--container", "0123456789ab"], "1"),
        (&["--cgroup", "kubepods.slice"], "1"),
        (&["--cgroup", "/process_api/"], "spr23"),
        (&["sort"], "s23"),
        (&["sort", "python3"], "sp23"),
        (&["13793"], "p"),
        (&["/usr/bin/sort"], "s23"),
        (&["b16875"], "r"),
        (&["sort", "--verdict", "kill"], "s"),
        (&["sort", "-n", "1"], "3"),
    ] {
        assert_eq!(chosen(args), expected, "{args:?}");
    }
    for (args, parts) in [
        (&["list", "--cgroup", "slice"][..], &["none of 6 incidents"][..]),
        (&["list", "--since", "2027-01-01"], &["none of 6"]),
        (&["list", "nobody"], &["none of 6"]),
    ] {
        stored.fails(args, 3, parts);
    }
    stored.fails(&["list", "--since", "soon"], 2, &["soon", "2026-11-25"]);
    stored.fails(&["list", "--verdict", "murder"], 2, &["murder", "not-relieved"]);
    stored.fails(&["list", "--verdict", "grant=64M"], 2, &["grant=64M"]);
    // No incidents are no failure where nothing was asked for.
    assert!(Stored::empty().prints(&["list"]).is_empty());
}

#[test]
fn a_damaged_one_hides_no_other() {
    let stored = stored();
    let dir = stored.path().join("20261129T100000.000Z-sort-000004");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("incident.json"), "{").unwrap();
    let output = stored.reprieve(&["list"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 6);
    assert!(String::from_utf8(output.stderr).unwrap().contains("000004"));
    // It was not read where its time is another.
    assert!(stored.reprieve(&["list", "--until", "2026-11-25 12:00"]).status.success());
}

/// A python incident of recorded stacks, and the same 40 s later with more at one, and less
/// at the others.
fn grown() -> Stored {
    let stored = Stored::empty();
    let before = recorded("python");
    let bytes = |index: usize, was: u64| match index {
        0 => was + (360 << 20),
        _ => was / 2,
    };
    stored.add(&before);
    stored.add(&later(&before, "20261125T084653.932Z-python3-000001", 40, bytes));
    stored
}

#[test]
fn growth_is_told_by_stack_and_function() {
    let stored = grown();
    let pair = ["20261125T084613", "000001"];
    stored.golden(&["diff", pair[0], pair[1]], "diff.txt");
    stored.golden(&["diff", pair[0], pair[1], "-n", "2", "--json"], "diff.json");
    let same = String::from_utf8(stored.prints(&["diff", pair[1], pair[0], "--sample-type", "memory"])).unwrap();
    assert!(same.contains("the second is 40.0 s older") && same.contains("nothing grew or shrank"), "{same}");
    // Without a heap in both, memory says more than threads do.
    Stored::new().golden(&["diff", "7ee0a8", "b16875"], "diff-memory.txt");
    let all: Value = serde_json::from_slice(&stored.prints(&["diff", pair[0], pair[1], "--json"])).unwrap();
    let growth = |change: &Value| change["growth"].as_i64().unwrap();
    let stacks = all["stacks"].as_array().unwrap();
    assert_eq!(stacks.iter().map(growth).sum::<i64>(), growth(&all["total"]));
    assert!(growth(&stacks[0]) > 300 << 20 && stacks[0]["frames"][0] == "Cache.insert (cache.py:5)", "{}", stacks[0]);
    assert!(growth(stacks.last().unwrap()) < 0);
    // The graph goes where it is told, the words to the terminal.
    let svg = stored.path().join("growth.svg");
    let mut args = vec!["diff", pair[0], pair[1], "--svg"];
    args.push(svg.to_str().unwrap());
    let words = stored.prints(&args);
    let image = fs::read(&svg).unwrap();
    assert_eq!(stored.prints(&args), words);
    assert!(fs::read(&svg).unwrap() == image && String::from_utf8(image).unwrap().contains("what grew"));
    stored.fails(&["diff", pair[0], "nobody"], 3, &["nobody"]);
    stored.fails(&["diff", pair[0], pair[1], "--sample-type", "wishes"], 3, &["wishes", "inuse_space", "memory"]);
}

/// Everything that can be read in a folder's files, decompressed.
fn readable(dir: &Path) -> Vec<(String, String)> {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files
        .map(|path| {
            let mut content = fs::read(&path).unwrap();
            if path.extension().is_some_and(|extension| extension == "gz") {
                let packed = std::mem::take(&mut content);
                GzDecoder::new(&packed[..]).read_to_end(&mut content).unwrap();
            }
            (path.file_name().unwrap().to_string_lossy().into_owned(), String::from_utf8_lossy(&content).into_owned())
        })
        .collect()
}

/// Changes every text of an incident but those with a meaning fixed by the format.
fn change(value: &mut Value, to: &mut dyn FnMut(&str) -> String) {
    const FIXED: [&str; 14] = [
        "schema",
        "trigger",
        "state",
        "kind",
        "found",
        "source",
        "outcome",
        "witness",
        "architecture",
        "id",
        "stat",
        "events",
        "basis",
        "scope",
    ];
    match value {
        Value::String(text) => *text = to(text),
        Value::Array(items) => items.iter_mut().for_each(|item| change(item, to)),
        Value::Object(fields) => {
            // The state of symbols is no letter.
            let is_fixed = |name: &str, value: &Value| FIXED.contains(&name) && !(name == "state" && value.is_object());
            fields.iter_mut().filter(|(name, value)| !is_fixed(name, value)).for_each(|(_, value)| change(value, to));
        }
        _ => {}
    }
}

/// Fills what the recorded incidents have not.
fn complete(incident: &mut Value) {
    let process = &mut incident["processes"][0];
    process["cmdline"] = json!(["server", "--password", "hunter"]);
    process["container_id"] = json!("0123");
    process["foreign_namespaces"] = json!(["pid:[1]"]);
    process["gaps"] = json!(["its heap is not known: it was started without the library"]);
    let thread = &mut process["threads"][0];
    thread["stop"] = json!({"kind": "not_stopped", "reason": "it is gone"});
    thread["wchan"] = json!("do_wait");
    thread["script"] = json!([{"native": null, "frame": frame()}]);
    incident["kernel_victims"] = json!([{"pid": 1, "comm": "victim", "rss_bytes": 1}]);
    incident["other_killers"] = json!([{"pid": 2, "name": "earlyoom", "kills_here": null}]);
    incident["other_victims"] = json!([{"pid": 3, "comm": "victim"}]);
    incident["memcg"]["pressure"] = json!({"scope": "machine", "some_percent": 1.5, "full_percent": 0.0});
    incident["memcg"]["labels"] = json!({"container_runtime": "docker", "container_id": "0123", "pod_uid": "4567"});
    let process = &mut incident["processes"][0];
    (process["container_runtime"], process["pod_uid"]) = (json!("docker"), json!("4567"));
    process["growth"] = growth();
    incident["ended"] = json!([{"pid": 4, "comm": "victim", "killed_by_kernel": true, "growth": growth()}]);
    incident["growth"] = json!({"scope": "cgroup", "period": 64, "of_kernel": true, "samples": 2, "lost_samples": 0,
        "unplaced_samples": 0, "kept_one_in": 1, "ring_bytes": 1, "table_bytes": 1});
    incident["baseline"] = json!({"usage": [{"before_us": 2, "usage_bytes": 1}], "before_us": 1, "before_bytes": 1,
        "after_bytes": 4096, "kinds": [{"kind": "anon", "before_bytes": 1, "after_bytes": 4096}],
        "processes": [{"pid": 5, "comm": "victim", "before_bytes": null, "after_bytes": 4096}], "has_heap": false,
        "heap_rest_bytes": 0, "cost": {"records": 1, "took_us": 1, "since_us": 2, "kept_bytes": 1}});
    incident["gaps"] = json!(["no kernel log"]);
    incident["verdict"]["rule"] = json!("batch first");
    incident["verdict"]["steps"][0]["rule"] = json!("batch last");
    incident["verdict"]["problems"] = json!(["rule \"x\" was passed over"]);
    incident["symbols"]["state"] = json!({"kind": "after_verdict", "reason": "late"});
    incident["symbols"]["generated"] =
        json!([{"pid": 1, "address": 1, "frame": frame(), "source": "perf_map", "miss": "none"}]);
    incident["symbols"]["searches"] = json!([{"module": 0, "without_inlined": 0, "without_lines": 0,
        "tried": [{"source": "binary", "place": "/opt/x", "outcome": "absent"}]}]);
}

/// Of one page, which one function touched.
fn growth() -> Value {
    json!({"basis": "present", "samples": 1, "bytes": 4096, "direct_bytes": 4096, "shared_bytes": 0, "stack_bytes": 0,
        "heap_bytes": 0, "unseen_bytes": 0, "frames": [{"address": 1, "at": null, "named": frame()}],
        "stacks": [{"frames": [0], "cut": false, "bytes": 4096, "sigma_bytes": 0, "samples": 1, "reliable_bytes": 4096}]})
}

fn frame() -> Value {
    json!({"function": "f", "file": "/src/a.py", "line": 1, "column": null, "inlined": false})
}

#[test]
fn no_text_of_an_incident_is_left_by_redaction() {
    let stored = Stored::empty();
    let mut whole = recorded("redis");
    complete(&mut whole);
    let mut marked = 0;
    change(&mut whole, &mut |text| {
        marked += 1;
        format!("{text} XSECRETX{text}/XSECRETX.{marked}")
    });
    assert!(marked > 200, "only {marked} texts");
    stored.add(&whole);
    let id = whole["id"].as_str().unwrap();
    let to = stored.path().join("redacted");
    stored.prints(&["redact", id, "--to", to.to_str().unwrap()]);
    let files = readable(&to);
    assert!(files.len() > 8, "{:?}", files.iter().map(|f| &f.0).collect::<Vec<_>>());
    for (name, content) in files {
        let found = content.to_lowercase().find("xsecretx");
        assert!(found.is_none(), "{name}: {}", &content[found.unwrap().saturating_sub(200)..][..300]);
        assert!(!content.contains("hunter") && !content.contains("redis-server"), "{name}");
    }
}

/// Names in a recorded incident, of at least four characters.
fn names(incident: &Value) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut add = |value: &Value| {
        let text = value.as_str().unwrap_or_default();
        names.extend(text.split('/').map(str::to_owned));
    };
    add(&incident["host"]["name"]);
    add(&incident["memcg"]["path"]);
    for process in incident["processes"].as_array().unwrap() {
        ["comm", "exe", "cgroup"].iter().for_each(|field| add(&process[field]));
        process["threads"].as_array().unwrap().iter().for_each(|t| add(&t["comm"]));
        process["mappings"].as_array().unwrap().iter().for_each(|m| add(&m["name"]));
        for heap in process["heaps"].as_array().unwrap() {
            heap["frames"].as_array().unwrap().iter().for_each(|f| add(&f["named"]["function"]));
        }
    }
    for module in incident["modules"].as_array().unwrap() {
        ["path", "build_id"].iter().for_each(|field| add(&module[field]));
    }
    for address in incident["symbols"]["addresses"].as_array().unwrap() {
        for frame in address["frames"].as_array().unwrap() {
            ["function", "file"].iter().for_each(|field| add(&frame[field]));
        }
    }
    // Shorter ones are in any text; marks in brackets are the kernel's or ours.
    names.retain(|name| name.len() > 3 && !name.starts_with('['));
    names
}

/// Whether a text has a name that is no part of a longer word.
fn has_word(text: &str, name: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(name).any(|(at, _)| {
        !text[..at].chars().next_back().is_some_and(is_word)
            && !text[at + name.len()..].chars().next().is_some_and(is_word)
    })
}

#[test]
fn no_recorded_name_is_left_and_all_sums_are() {
    let stored = Stored::new();
    let key = stored.path().join("key");
    fs::write(&key, "sixteen bytes or more").unwrap();
    // What a page has in it, whatever the incident's names are.
    let bare = {
        let bare = Stored::empty();
        let mut incident = recorded("redis");
        incident["id"] = json!("bare");
        complete(&mut incident);
        change(&mut incident, &mut |_| "x".to_owned());
        bare.add(&incident);
        let to = bare.path().join("to");
        bare.prints(&["redact", "bare", "--to", to.to_str().unwrap()]);
        readable(&to).into_iter().map(|(_, content)| content).collect::<String>()
    };
    for name in ["python", "redis", "sort"] {
        let incident = recorded(name);
        let id = incident["id"].as_str().unwrap();
        let to = stored.path().join(format!("{name}-redacted"));
        stored.prints(&["redact", id, "--to", to.to_str().unwrap(), "--key-file", key.to_str().unwrap()]);
        let names = names(&incident);
        assert!(names.len() > 10, "{names:?}");
        for (file, content) in readable(&to) {
            for left in names.iter().filter(|name| has_word(&content, name)) {
                // A word of the page itself, or a field's name, tells nothing.
                assert!(
                    has_word(&bare, left) || fields(&incident).contains(left),
                    "{left} is left in {file} of {name}"
                );
            }
        }
        let redacted: Value = serde_json::from_slice(&fs::read(to.join("incident.json")).unwrap()).unwrap();
        let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/incident.schema.json");
        let (errors, first) = check(&schema, std::slice::from_ref(&redacted)).remove(0);
        assert_eq!(errors, 0, "{first}");
        // Numbers are what they were, and the same name is the same everywhere.
        assert_eq!(redacted["memcg"]["usage_bytes"], incident["memcg"]["usage_bytes"]);
        assert_eq!(redacted["processes"][0]["memory"], incident["processes"][0]["memory"]);
        let comm = redacted["processes"][0]["comm"].as_str().unwrap();
        assert!(comm.len() == 12 && comm.bytes().all(|b| b.is_ascii_hexdigit()));
        assert!(redacted["verdict"]["summary"].as_str().unwrap().contains(comm));
        assert_eq!(redacted["verdict"]["steps"][0]["candidates"][0]["comm"], comm);
        assert_eq!(redacted["processes"][0]["threads"][0]["registers"], Value::Null);
    }
    let shown =
        stored.prints(&["export", stored.path().join("sort-redacted").to_str().unwrap(), "--format", "markdown"]);
    golden(&String::from_utf8(shown).unwrap(), "redacted.md");
}

/// Names of all fields.
fn fields(value: &Value) -> BTreeSet<String> {
    match value {
        Value::Object(map) => {
            map.iter().flat_map(|(name, value)| fields(value).into_iter().chain([name.clone()])).collect()
        }
        Value::Array(items) => items.iter().flat_map(fields).collect(),
        _ => BTreeSet::new(),
    }
}

#[test]
fn one_key_one_name_and_none_without() {
    let stored = Stored::new();
    let key = stored.path().join("key");
    fs::write(&key, "sixteen bytes or more").unwrap();
    let comm = |to: &str, more: &[&str]| {
        let to = stored.path().join(to);
        let mut args = vec!["redact", "7ee0a8", "--to", to.to_str().unwrap()];
        args.extend(more);
        stored.prints(&args);
        let incident: Value = serde_json::from_slice(&fs::read(to.join("incident.json")).unwrap()).unwrap();
        incident["processes"][0]["comm"].as_str().unwrap().to_owned()
    };
    let with_key = ["--key-file", key.to_str().unwrap()];
    assert_eq!(comm("a", &with_key), comm("b", &with_key));
    assert_ne!(comm("c", &[]), comm("d", &[]));
    let to = stored.path().join("a");
    stored.fails(&["redact", "7ee0a8", "--to", to.to_str().unwrap()], 2, &["is there already", "new folder"]);
    fs::write(&key, "short").unwrap();
    let e = stored.path().join("e");
    let args = ["redact", "7ee0a8", "--to", e.to_str().unwrap(), "--key-file", key.to_str().unwrap()];
    stored.fails(&args, 2, &["5 bytes", "at least 16"]);
    stored.fails(&["redact", "nobody", "--to", e.to_str().unwrap()], 3, &["nobody"]);
    stored.fails(&["redact", "7ee0a8"], 2, &["--to"]);
    assert!(!e.exists());
}

/// Each command on as many incidents as a busy machine has in a year. How long it took is
/// told, not judged: machines differ.
#[test]
fn ten_thousand_incidents() {
    const MANY: u64 = 10_000;
    let stored = Stored::empty();
    let text = recorded("sort").to_string();
    let first_us = 1_767_225_600_000_000; // 2026-01-01
    for number in 0..MANY {
        let time_us = first_us + number * 3_000_000_000;
        let day = 1 + number * 3000 / 86_400;
        let id = format!("{}-sort-{number:06x}", compact_time(time_us));
        let incident = text
            .replace("20261125T084613.639Z-sort-7ee0a8", &id)
            .replace("\"time_unix_us\":1795596373632765", &format!("\"time_unix_us\":{time_us}"))
            .replace("process_api", &format!("day-{day}"));
        let dir = stored.path().join(id);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("incident.json"), incident).unwrap();
    }
    let timed = |args: &[&str]| {
        let begun = Instant::now();
        let printed = String::from_utf8(stored.prints(args)).unwrap();
        println!("{:6} ms  {}", begun.elapsed().as_millis(), args.join(" "));
        printed
    };
    assert_eq!(timed(&["list"]).lines().count() as u64, MANY);
    assert_eq!(timed(&["list", "--json"]).lines().count() as u64, MANY);
    assert_eq!(timed(&["list", "-n", "3"]).lines().count(), 3);
    assert_eq!(timed(&["list", "--cgroup", "day-2"]).lines().count(), 29);
    assert_eq!(timed(&["list", "--since", "2026-12-01", "--verdict", "kill"]).lines().count(), 380);
    assert!(timed(&["show"]).contains("sort [13784]"));
    assert!(timed(&["show", "001388"]).contains("sort [13784]"));
    assert!(timed(&["export", "20260102T00", "--format", "markdown"]).contains("-00001d`"));
    assert!(timed(&["diff", "000001", "00270f"]).contains("nothing grew or shrank"));
    let to = stored.path().join("redacted");
    timed(&["redact", "00270f", "--to", to.to_str().unwrap()]);
    assert!(timed(&["symbolize", "001389"]).contains(" named, "));
    let limits = ["--max-count", "10", "--max-use", "1T", "--keep-free", "1", "--max-age", "never", "--dry-run"];
    let removals = timed(&[&["vacuum"], &limits[..]].concat());
    assert!(removals.contains(&format!("{} incidents would be removed", MANY - 10)), "{removals}");
    timed(&[&["vacuum"], &limits[..limits.len() - 1]].concat());
    // The redacted one has a name that is not the store's, so it is not to be removed.
    assert!(to.exists());
    assert_eq!(timed(&["list"]).lines().count(), 10 + 1);
}
