//! `docs/incident.schema.json` says what incidents are.

#[path = "common/store.rs"]
mod store;

use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use store::{check, recorded};

const SCHEMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/incident.schema.json");

/// Where the types of an incident are.
const SOURCES: [&str; 8] = [
    include_str!("../src/incident/accounting.rs"),
    include_str!("../src/incident/growth.rs"),
    include_str!("../src/incident/baseline.rs"),
    include_str!("../src/incident/left_out.rs"),
    include_str!("../src/incident/model.rs"),
    include_str!("../../symbolizer/src/frame.rs"),
    include_str!("../../symbolizer/src/unwind/stack.rs"),
    include_str!("../../symbolizer/src/debug_files/trail.rs"),
];

#[test]
fn recorded_incidents_are_what_the_schema_says() {
    let names = ["python", "redis", "shop", "sort"];
    let answers = check(Path::new(SCHEMA), &names.map(recorded));
    for (name, (errors, first)) in names.iter().zip(answers) {
        assert_eq!(errors, 0, "{name}: {first}");
    }
}

#[test]
fn what_no_reader_expects_is_told() {
    let changes: [(&str, Value); 9] = [
        ("/schema", json!("reprieve.incident/2")),
        ("/trigger", json!("boredom")),
        ("/time_unix_us", json!("yesterday")),
        ("/memcg/usage_bytes", json!(-1)),
        ("/memcg/stat/pgfault", json!(0.5)),
        ("/processes/0/state", json!("RR")),
        ("/processes/0/threads/0/stack/end", json!({"kind": "missing_memory"})),
        ("/verdict/steps/0/outcome", json!(null)),
        ("/symbols/addresses/0/at", json!({"module": 0})),
    ];
    let changed = changes.clone().map(|(pointer, value)| {
        let mut incident = recorded("sort");
        *incident.pointer_mut(pointer).unwrap_or_else(|| panic!("no {pointer}")) = value;
        incident
    });
    for ((pointer, _), (errors, _)) in changes.iter().zip(check(Path::new(SCHEMA), &changed)) {
        assert!(errors > 0, "{pointer} is wrong, and nobody said so");
    }
}

/// Names of a type's fields or variants, as they are written in JSON.
fn members(source: &str) -> Vec<(String, BTreeSet<String>)> {
    let mut types: Vec<(String, BTreeSet<String>)> = Vec::new();
    let (mut is_stored, mut inside, mut is_skipped, mut rename) = (false, false, false, None);
    for line in source.lines() {
        let opens = |word: &str| line.strip_prefix(word)?.strip_suffix(" {");
        if let Some(name) = opens("pub struct ").or(opens("pub enum ")) {
            inside = is_stored && !name.contains('<');
            // What derives nothing has no line of its own.
            is_stored = false;
            if inside {
                types.push((name.to_owned(), BTreeSet::new()));
            }
        } else if line == "}" || !line.starts_with([' ', '#', '/', '}']) {
            inside = false;
        }
        if line.starts_with("#[derive") {
            is_stored = line.contains("Deserialize");
        }
        let (Some(text), true) = (line.strip_prefix("    "), inside) else { continue };
        if text.starts_with("#[serde") {
            // What is flattened has its own name in none.
            is_skipped = text.contains("(skip)") || text.contains("(flatten)");
            rename = text.split("rename = \"").nth(1).and_then(|rest| rest.split('"').next());
        } else if !text.starts_with([' ', '/', '#', '}']) {
            let word = text.trim_start_matches("pub ").split([':', '(', ',', ' ']).next().unwrap();
            let member = rename.map_or_else(|| snake(word), str::to_owned);
            if !is_skipped {
                types.last_mut().unwrap().1.insert(member);
            }
            (is_skipped, rename) = (false, None);
        }
    }
    types
}

fn snake(word: &str) -> String {
    let mut snake = String::new();
    for (index, c) in word.chars().enumerate() {
        if c.is_uppercase() && index > 0 {
            snake.push('_');
        }
        snake.extend(c.to_lowercase());
    }
    snake
}

/// Names of the properties or constants of a part of the schema.
fn described(part: &Value) -> BTreeSet<String> {
    let mut names: BTreeSet<String> =
        part["properties"].as_object().into_iter().flat_map(|p| p.keys().cloned()).collect();
    for one in part["oneOf"].as_array().into_iter().flatten() {
        let tag = ["kind", "architecture"].iter().find_map(|tag| one["properties"][tag]["const"].as_str());
        match one["const"].as_str().or(tag) {
            Some(constant) => drop(names.insert(constant.to_owned())),
            // Told apart by which property it has.
            None => names.extend(one["properties"].as_object().unwrap().keys().cloned()),
        }
    }
    names
}

#[test]
fn every_field_and_variant_is_in_the_schema_and_no_other() {
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(SCHEMA).unwrap()).unwrap();
    let mut known: BTreeSet<&str> = schema["$defs"].as_object().unwrap().keys().map(String::as_str).collect();
    let mut fields = 0;
    for (name, members) in SOURCES.iter().flat_map(|source| members(source)) {
        // It is in no incident but as a sentence.
        if name == "Miss" {
            continue;
        }
        let part = if name == "Incident" { &schema } else { &schema["$defs"][&name] };
        assert_eq!(described(part), members, "{name}: docs/incident.schema.json and the source differ");
        known.remove(name.as_str());
        fields += members.len();
    }
    assert!(known.is_empty() && fields > 200, "{known:?} of the schema are not in the source; {fields} fields seen");
}
