//! Incidents that are damaged, cut off, of another version or made up, on the command line.

#[path = "common/store.rs"]
mod store;

use serde_json::{Value, json};
use std::fs::{self, File};
use std::path::Path;
use store::{RECORDED, Stored, recorded};

const ID: &str = "20261125T084613.639Z-sort-7ee0a8";
const GOOD: &str = "20261125T084613.932Z-python3-fe9a6a";

/// The recorded incidents, of which `sort` has another content.
fn with(content: &[u8]) -> Stored {
    let stored = Stored::new();
    assert!(stored.path().join(GOOD).is_dir());
    fs::write(stored.path().join(ID).join("incident.json"), content).unwrap();
    stored
}

/// Asserts that everything that reads an incident refuses this one with such a reason,
/// and does nothing else.
#[track_caller]
fn refused(stored: &Stored, reasons: &[&str]) {
    let file = stored.path().join(ID).join("incident.json");
    let (folder, copy) = (file.parent().unwrap(), stored.path().join("copy"));
    let policy = stored.path().join("policy.toml");
    fs::write(&policy, "").unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (file, folder, to, policy) = (text(&file), text(folder), text(&copy), text(&policy));
    let parts = [&[file.as_str(), "is not a readable incident"], reasons].concat();
    for args in [
        &["show", ID][..],
        &["show", ID, "--json"],
        &["export", ID, "--format", "json"],
        &["export", &file, "--format", "folded"],
        &["export", &folder, "--format", "markdown"],
        &["diff", ID, GOOD],
        &["diff", GOOD, &file],
        &["redact", ID, "--to", &to],
        &["symbolize", ID],
        &["replay", &policy, ID],
    ] {
        stored.fails(args, 1, &parts);
    }
    assert!(!copy.exists());
    let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["incident.json"]);
    // Of many the others are told; those that were replayed are under a heading.
    for (args, lines) in [(&["list"][..], 2), (&["list", "--json"], 2), (&["replay", &policy], 3)] {
        let output = stored.reprieve(args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), lines, "{args:?}");
        parts.iter().for_each(|part| assert!(said.contains(part), "{args:?}: {part:?} is not in {said}"));
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn one_that_is_cut_off() {
    let whole = recorded("sort").to_string();
    for length in [1, 20, whole.len() / 3, whole.len() - 1] {
        refused(&with(&whole.as_bytes()[..length]), &["cut off after", &format!("{length} bytes")]);
    }
    refused(&with(b""), &["it is empty"]);
    refused(&with(b" \n"), &["it is empty"]);
}

#[test]
fn one_of_another_version() {
    let (ours, other) = ("reprieve.incident/1", "reprieve.incident/2");
    let reasons = [other, ours, "the reprieve that wrote it"];
    let mut renamed = recorded("sort");
    renamed["schema"] = json!(other);
    refused(&with(renamed.to_string().as_bytes()), &reasons);
    // What else is in it is not known: it is not blamed for that.
    refused(&with(json!({"schema": other, "when": 5, "processes": "many"}).to_string().as_bytes()), &reasons);
}

#[test]
fn one_that_is_damaged_or_none_at_all() {
    let whole = recorded("sort").to_string();
    let replaced = |from: &str, to: &str| {
        assert!(whole.contains(from), "{from}");
        whole.replacen(from, to, 1).into_bytes()
    };
    for (content, reason) in [
        (replaced("\"rss_bytes\":", "\"rss_bytes\":\"x\",\"was\":"), "it is damaged: invalid type"),
        (replaced("\"rss_bytes\":", "\"rss_bytes\":1e99,\"was\":"), "it is damaged"),
        (replaced("\"trigger\":\"oom\"", "\"trigger\":\"whim\""), "it is damaged: unknown variant `whim`"),
        (replaced("\"trigger\":", "\"tr\u{7}gger\":"), "it is damaged"),
        (replaced("\"comm\":", "comm:"), "it is damaged"),
        ([whole.as_bytes(), b"}"].concat(), "it is damaged: trailing characters"),
        (b"{}".to_vec(), "it is no incident of reprieve"),
        (b"[1, 2]".to_vec(), "it is no incident of reprieve"),
        (b"null".to_vec(), "it is no incident of reprieve"),
        (vec![0; 100], "it is damaged"),
        (vec![0xff; 100], "it is damaged"),
        ("[".repeat(100_000).into_bytes(), "it is"),
    ] {
        refused(&with(&content), &[reason]);
    }
}

#[test]
fn one_that_is_too_large_to_be_read() {
    let stored = with(b"");
    File::options().write(true).open(stored.path().join(ID).join("incident.json")).unwrap().set_len(3 << 30).unwrap();
    refused(&stored, &["it has 3221225472 bytes"]);
}

#[test]
fn one_that_is_no_file_is_none() {
    let stored = with(b"");
    let file = stored.path().join(ID).join("incident.json");
    fs::remove_file(&file).unwrap();
    // Nobody writes to it: whoever opened it would wait.
    assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
    stored.fails(&["show", ID], 3, &["no incident"]);
    let listed = String::from_utf8(stored.prints(&["list"])).unwrap();
    assert_eq!(listed.lines().count(), 2, "{listed}");
}

#[test]
fn what_cannot_be_is_left_out_and_told() {
    let mut python = recorded("python");
    python["processes"][0]["heaps"][0]["stacks"][0]["inuse"]["bytes"] = json!(u64::MAX);
    python["processes"][0]["memory"]["pss_bytes"] = json!(1_u64 << 63);
    let stored = Stored::empty();
    stored.add(&python);
    let told =
        ["its heap as malloc has it: sizes that no machine has; left out", "its memory: sizes that no machine has"];
    for args in [&["show"][..], &["export", "--format", "markdown"]] {
        let page = String::from_utf8(stored.prints(args)).unwrap();
        // A terminal's lines are as wide as they are.
        let page = page.split_whitespace().collect::<Vec<_>>().join(" ");
        told.iter().for_each(|part| assert!(page.contains(part), "{part:?} is not in {page}"));
    }
    let json: Value = serde_json::from_slice(&stored.prints(&["export", "--format", "json"])).unwrap();
    assert_eq!(json["processes"][0]["heaps"], json!([]));
    let stack = |incident: &Value| incident["processes"][0]["threads"][0]["stack"].clone();
    assert!(stack(&json).is_object() && stack(&json) == stack(&python), "{}", stack(&json));
}

/// What fuzzing begins with is what there is.
#[test]
fn seeds_are_incidents_of_this_version() {
    let seeds = Path::new(RECORDED).join("../../collector/fuzz/seeds/incident");
    let mut count = 0;
    for seed in fs::read_dir(seeds).unwrap().map(|entry| entry.unwrap().path()) {
        let text = fs::read(&seed).unwrap();
        let incident =
            reprieve::incident::read::parse_incident(&text).unwrap_or_else(|e| panic!("{}: {e}", seed.display()));
        assert!(incident.processes.iter().all(|process| process.gaps.is_empty()), "{}", seed.display());
        count += 1;
    }
    assert_eq!(count, 4);
}
