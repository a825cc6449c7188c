//! `docs/incident.md` names every field that an incident has.

mod common;

use common::{Lab, fixture};
use serde_json::Value;

#[test]
fn every_field_is_documented() {
    let lab = Lab::new();
    // The second is of one that the kernel killed.
    for action in ["reclaim,kill", "defer"] {
        let options = ["--memory", "64M", "--on-oom", action, "--growth"];
        lab.run(&options, &[&fixture("steady_leak"), "--mib", "96"]);
    }
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/incident.md")).unwrap();
    let mut names = std::collections::BTreeSet::new();
    let mut seen = 0;
    let mut missing = Vec::new();
    for incident in lab.incidents() {
        visit(&incident, &mut |field| {
            seen += 1;
            names.insert(field.to_owned());
            if !page.contains(&format!("`{field}`")) && !page.contains(&format!(".{field}`")) {
                missing.push(field.to_owned());
            }
        });
    }
    assert!(
        ["killed_by_kernel", "kept_one_in", "reliable_bytes"].iter().all(|field| names.contains(*field)),
        "{names:?}"
    );
    assert!(seen > 100, "only {seen} fields seen");
    missing.sort();
    missing.dedup();
    assert!(missing.is_empty(), "not in docs/incident.md: {missing:?}");
}

fn visit(value: &Value, field: &mut dyn FnMut(&str)) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                field(key);
                // Named by the kernel, not by us.
                if key != "stat" && key != "events" {
                    visit(value, field);
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| visit(item, field)),
        _ => {}
    }
}
