//! `report.html` in headless Chromium, driven by puppeteer: what is clicked, searched, sorted,
//! printed and heard, and what must not be possible.

#[path = "common/store.rs"]
mod store;

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use store::{Stored, recorded};

const DRIVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/browser/report.mjs");

/// An incident and its report, as `export` writes it.
struct Page {
    stored: Stored,
    html: PathBuf,
    json: PathBuf,
}

impl Page {
    fn of(incident: &Value) -> Self {
        let stored = Stored::empty();
        stored.add(incident);
        let id = incident["id"].as_str().unwrap();
        let (html, json) = (stored.path().join("report.html"), stored.path().join(id).join("incident.json"));
        stored.prints(&["export", id, "--format", "html", "--to", html.to_str().unwrap()]);
        Page { stored, html, json }
    }

    /// Runs a case of the driver; returns what it printed.
    fn passes(&self, case: &str) -> String {
        let npm = std::env::var("REPRIEVE_NPM").expect("REPRIEVE_NPM is not set; run `cargo xtask test`");
        let mut node = Command::new("node");
        node.arg(DRIVER).arg(case).args([&self.html, &self.json]).env("REPRIEVE_NPM", npm);
        let output = node.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{case}: {said}{}", String::from_utf8_lossy(&output.stderr));
        said
    }
}

#[test]
fn graphs_are_searched_zoomed_and_compared() {
    Page::of(&recorded("shop")).passes("graphs");
}

/// The shop, also seen by its page faults: 20 MiB that it mapped itself, 10 MiB of malloc's.
fn grown() -> Value {
    let mut incident = recorded("shop");
    let process = &mut incident["processes"][0];
    let (frames, stacks) = (process["heaps"][0]["frames"].clone(), &process["heaps"][0]["stacks"]);
    let stack = |index: usize, mib: u64, reliable: u64| {
        json!({"frames": stacks[index]["frames"], "cut": false, "bytes": mib << 20, "sigma_bytes": 1 << 20,
            "samples": mib, "reliable_bytes": reliable << 20})
    };
    let stacks = json!([stack(0, 20, 20), stack(1, 10, 0)]);
    process["growth"] = json!({"basis": "present", "samples": 30, "bytes": 30 << 20, "direct_bytes": 20 << 20,
        "shared_bytes": 0, "stack_bytes": 0, "heap_bytes": 10 << 20, "unseen_bytes": 0, "frames": frames,
        "stacks": stacks});
    incident
}

#[test]
fn who_grew_is_shown_and_is_not_who_owns() {
    Page::of(&grown()).passes("growth");
}

#[test]
fn tables_are_sorted() {
    Page::of(&recorded("shop")).passes("tables");
}

/// Three processes, in another order by each of the figures; texts of bytes would be in another still.
#[test]
fn processes_are_sorted_by_each_column() {
    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    let mut incident = recorded("shop");
    let first = incident["processes"][0].clone();
    // PID, parent, name, age, oom_score_adj, UID.
    let told =
        [(800, 90, "worker", 9.5, 1000, 33), (1200, 9, "cache", 86400.0, -500, 1000), (90, 100, "Shop", 100.25, 0, 5)];
    // PSS, anonymous, shared, swap, RSS.
    let bytes = [
        [90 * MIB, 80 * MIB, 9 * KIB, GIB, 1900 * MIB],
        [1000 * MIB, 9 * KIB, GIB, 80 * MIB, 1000 * MIB],
        [419 * MIB, GIB, 80 * MIB, 9 * KIB, 1500 * MIB],
    ];
    let mut processes = Vec::new();
    for ((pid, parent, name, age, oom_score_adj, uid), [pss, anon, shmem, swap, rss]) in told.into_iter().zip(bytes) {
        let mut process = first.clone();
        process["pid"] = json!(pid);
        process["ppid"] = json!(parent);
        process["comm"] = json!(name);
        process["age_s"] = json!(age);
        process["oom_score_adj"] = json!(oom_score_adj);
        process["uid"] = json!(uid);
        process["memory"] = json!({"pss_bytes": pss, "pss_anon_bytes": anon, "pss_file_bytes": 0,
            "pss_shmem_bytes": shmem, "swap_pss_bytes": swap, "rss_bytes": rss});
        process["threads"].as_array_mut().unwrap().truncate(processes.len() + 1);
        process["heaps"] = json!([]);
        processes.push(process);
    }
    incident["processes"] = processes.into();
    Page::of(&incident).passes("sorts");
}

/// A frame that was found by frame pointer, and one in generated code.
#[test]
fn guesses_are_marked() {
    let mut incident = recorded("sort");
    let process = &mut incident["processes"][0];
    let pid = process["pid"].clone();
    let thread = &mut process["threads"][0];
    for at in [1, 2] {
        thread["stack"]["frames"][at]["found"] = json!("frame_pointer");
    }
    let address = thread["stack"]["frames"][2]["address"].as_u64().unwrap();
    thread["frame_modules"][2] = Value::Null;
    let grow =
        json!({"function": "long Leak.grow(long)", "file": null, "line": null, "column": null, "inlined": false});
    incident["symbols"]["generated"] =
        json!([{"pid": pid, "address": address - 1, "frame": grow, "source": "perf_map", "miss": null}]);
    Page::of(&incident).passes("guesses");
}

#[test]
fn it_looks_well_in_the_dark_on_a_phone_on_paper_and_to_a_screen_reader() {
    Page::of(&grown()).passes("looks");
}

#[test]
fn nothing_is_loaded_and_nothing_foreign_runs() {
    Page::of(&recorded("shop")).passes("policy");
}

/// Two processes, one with a name that would like to be markup.
#[test]
fn processes_are_chosen_and_their_names_are_text() {
    let mut incident = recorded("shop");
    let mut second = incident["processes"][0].clone();
    second["pid"] = json!(4711);
    second["comm"] = json!("<img src=x onerror=alert(1)></script>");
    incident["processes"].as_array_mut().unwrap().push(second);
    Page::of(&incident).passes("processes");
}

/// Incidents without a baseline, without an accounting, without a heap.
#[test]
fn older_incidents_have_a_page_too() {
    for name in ["python", "redis", "sort"] {
        let page = Page::of(&recorded(name));
        let html = fs::read_to_string(&page.html).unwrap();
        assert!(!html.contains("What grew in"), "{name}");
        assert!(html.contains("nobody had kept a record"), "{name}");
        page.passes("looks_old");
    }
}

/// 50,000 stacks of 20 frames, all different.
#[test]
fn fifty_thousand_stacks_open_in_a_second() {
    const STACKS: u64 = 50_000;
    const DEPTH: u32 = 20;
    let mut incident = recorded("shop");
    let heap = &mut incident["processes"][0]["heaps"][0];
    let frame = |index: u64| {
        let function = format!("f{index}::a_function_with_a_name_of_usual_length");
        json!({"address": index, "at": null, "named":
            {"function": function, "file": "src/shop.rs", "line": index, "column": null, "inlined": false}})
    };
    heap["frames"] = (0..4000).map(frame).collect();
    // At each depth twice as many as above it, until each stack is on its own.
    let frames = |stack: u64| -> Vec<u64> {
        let at = |depth: u32| stack * (1 << depth).min(STACKS) / STACKS;
        (0..DEPTH).rev().map(|depth| (at(depth) + u64::from(depth) * 191) % 4000).collect()
    };
    let estimate =
        |bytes: u64| json!({"bytes": bytes, "objects": 1, "samples": 1, "sigma_bytes": 0, "sigma_objects": 0});
    let stack = |stack: u64| {
        let bytes = estimate(1000 + stack % 97);
        json!({"frames": frames(stack), "cut": false, "inuse": bytes, "alloc": bytes, "before_bytes": 500})
    };
    heap["stacks"] = (0..STACKS).map(stack).collect();
    let page = Page::of(&incident);
    let size = fs::metadata(&page.html).unwrap().len();
    println!("{} MiB: {}", size >> 20, page.passes("quick"));
    assert!(Path::new(&page.json).exists() && page.stored.path().exists());
}
