//! Each format that `export` writes is read by that format's own tool, or by its own schema
//! or types, and its sums are those of the incident.

#[path = "common/store.rs"]
mod store;

use flate2::read::GzDecoder;
use inferno::flamegraph::{self, Options};
use opentelemetry_proto::tonic::profiles::v1development::ProfilesData;
use prost::Message;
use reprieve_flamegraph::pprof::proto;
use serde_json::{Value, json};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use store::{Stored, check, npm, recorded, with_input};

const HEAP: [&str; 4] = ["inuse_space", "inuse_objects", "alloc_space", "alloc_objects"];

/// What a sample type adds up to, by the incident itself.
fn sum(incident: &Value, sample_type: &str) -> u64 {
    let processes = || incident["processes"].as_array().unwrap().iter();
    let heap = |kind: &str, unit: &str| {
        let stacks =
            processes().flat_map(|p| p["heaps"].as_array().unwrap()).flat_map(|h| h["stacks"].as_array().unwrap());
        stacks.map(|stack| stack[kind][unit].as_u64().unwrap()).sum()
    };
    match sample_type {
        "inuse_space" => heap("inuse", "bytes"),
        "inuse_objects" => heap("inuse", "objects"),
        "alloc_space" => heap("alloc", "bytes"),
        "alloc_objects" => heap("alloc", "objects"),
        "threads" => processes().map(|p| p["threads"].as_array().unwrap().len() as u64).sum(),
        "memory" => processes()
            .map(|p| p["memory"]["pss_bytes"].as_u64().unwrap() + p["memory"]["swap_pss_bytes"].as_u64().unwrap())
            .sum(),
        other => panic!("{other}"),
    }
}

/// Every incident with each of its sample types.
fn all() -> Vec<(&'static str, &'static str)> {
    let mut all = Vec::new();
    for name in ["python", "redis", "sort"] {
        let has_heap = sum(&recorded(name), "alloc_space") > 0;
        all.extend(HEAP.iter().filter(|_| has_heap).map(|sample_type| (name, *sample_type)));
        all.extend([(name, "threads"), (name, "memory")]);
    }
    assert!(all.len() > 6, "no recorded incident has a heap");
    all
}

fn id(name: &str) -> String {
    id_of(&recorded(name))
}

fn id_of(incident: &Value) -> String {
    incident["id"].as_str().unwrap().to_owned()
}

fn export(stored: &Stored, name: &str, format: &str, more: &[&str]) -> Vec<u8> {
    let id = id(name);
    let mut args = vec!["export", &id, "--format", format];
    args.extend(more);
    let content = stored.prints(&args);
    assert!(stored.prints(&args) == content, "{args:?} is not the same each time");
    content
}

/// `go tool pprof -top`; nothing is looked for elsewhere.
fn pprof(profile: &Path, index: &str) -> Output {
    let mut go = Command::new("go");
    go.args(["tool", "pprof", "-top", "-nodefraction=0", "-unit=B"]).arg(format!("-sample_index={index}")).arg(profile);
    go.envs([("PPROF_BINARY_PATH", "/nonexistent"), ("HOME", "/nonexistent")]);
    go.output().expect("go is missing; run `cargo xtask test`")
}

#[test]
fn pprof_is_read_by_gos_own() {
    let (stored, dir) = (Stored::new(), tempfile::tempdir().unwrap());
    for (name, sample_type) in all() {
        let kind = if sample_type == "memory" { "space" } else { sample_type };
        let total = |profile: &proto::Profile| {
            let text = |index: i64| profile.string_table[index as usize].as_str();
            let place = profile.sample_type.iter().position(|t| text(t.r#type) == kind);
            let place = place.unwrap_or_else(|| panic!("{name}: no {kind}"));
            profile.sample.iter().map(|sample| sample.value[place] as u64).sum::<u64>()
        };
        for more in [&["--sample-type", sample_type][..], &[]] {
            // By mapping is not what pprof is for, unless it is asked for.
            if more.is_empty() && sample_type == "memory" {
                continue;
            }
            let file = dir.path().join("p.pb.gz");
            fs::write(&file, export(&stored, name, "pprof", more)).unwrap();
            let output = pprof(&file, kind);
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.contains(&format!("Type: {kind}")), "{name}: {output:?}");
            let mut raw = Vec::new();
            GzDecoder::new(&fs::read(&file).unwrap()[..]).read_to_end(&mut raw).unwrap();
            let profile = proto::Profile::decode(&raw[..]).unwrap();
            assert_eq!(total(&profile), sum(&recorded(name), sample_type), "{name} {sample_type}");
            assert!(more.is_empty() || profile.sample_type.len() == 1);
        }
    }
}

#[test]
fn folded_lines_add_up_and_are_drawn() {
    let stored = Stored::new();
    for (name, sample_type) in all() {
        let more = ["--sample-type", sample_type];
        let folded = String::from_utf8(export(&stored, name, "folded", &more)).unwrap();
        let total: u64 = folded.lines().map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum();
        assert_eq!(total, sum(&recorded(name), sample_type), "{name} {sample_type}: {folded}");
        // inferno passes over what it cannot read.
        let mut drawn = Vec::new();
        flamegraph::from_reader(&mut Options::default(), folded.as_bytes(), &mut drawn).unwrap();
        let drawn = String::from_utf8(drawn).unwrap();
        assert!(drawn.contains(&format!(" total_samples=\"{total}\"")), "{name} {sample_type}: {drawn}");
        let image = String::from_utf8(export(&stored, name, "svg", &more)).unwrap();
        // What is too narrow to be seen is not drawn.
        let lines = folded.lines().map(|line| line.rsplit_once(' ').unwrap());
        let (widest, _) = lines.max_by_key(|(_, value)| value.parse::<u64>().unwrap()).unwrap();
        let leaf = widest.rsplit(';').next().unwrap();
        let escaped = leaf.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        assert!(image.contains(&escaped), "{name} {sample_type}: no {leaf}");
        // expat, which takes nothing that is not well formed.
        let parse = "import sys, xml.parsers.expat as x; x.ParserCreate().ParseFile(sys.stdin.buffer)";
        let output = with_input(Command::new("/usr/bin/python3").args(["-c", parse]), image.into_bytes());
        assert!(output.status.success(), "{name} {sample_type}: {output:?}");
    }
}

/// With what is missing left out, two stacks that end differently are not taken for one.
#[test]
fn a_cut_stack_says_so() {
    let stored = Stored::new();
    let mut incident = recorded("sort");
    incident["id"] = json!("20261128T100000.000Z-sort-000003");
    let thread = incident["processes"][0]["threads"][0].clone();
    let ends = [
        (json!({"kind": "complete"}), None),
        (json!({"kind": "missing_memory", "address": 0x7000}), Some("page not in memory")),
        (json!({"kind": "no_unwind_info", "address": 0x7000}), Some("no unwind information")),
        (json!({"kind": "too_deep"}), Some("too deep")),
        (json!({"kind": "loop"}), Some("loop")),
        (json!({"kind": "no_registers"}), Some("no registers")),
    ];
    let threads = ends.iter().map(|(end, _)| {
        let mut thread = thread.clone();
        thread["stack"]["end"] = end.clone();
        thread
    });
    incident["processes"][0]["threads"] = threads.collect();
    stored.add(&incident);
    let args = ["export", "000003", "--format", "folded", "--sample-type", "threads"];
    let folded = String::from_utf8(stored.prints(&args)).unwrap();
    let whole = folded.lines().find(|line| !line.contains("[stack cut")).unwrap().strip_prefix("sort;").unwrap();
    assert!(whole.matches(';').count() > 3 && whole.ends_with(" 1"), "{folded}");
    let mut expected: Vec<String> = ends
        .iter()
        .map(|(_, cut)| cut.map_or(format!("sort;{whole}"), |cut| format!("sort;[stack cut: {cut}];{whole}")))
        .collect();
    expected.sort();
    let mut lines: Vec<&str> = folded.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, expected);
}

#[test]
fn speedscope_is_what_its_schema_says() {
    let stored = Stored::new();
    let exports: Vec<(&str, Value)> = ["python", "redis", "sort"]
        .map(|name| (name, serde_json::from_slice(&export(&stored, name, "speedscope", &[])).unwrap()))
        .into();
    let mut documents: Vec<Value> = exports.iter().map(|(_, file)| file.clone()).collect();
    // The schema can say no.
    let mut wrong = documents[0].clone();
    wrong["profiles"][0]["weights"] = "much".into();
    documents.push(wrong);
    let answers = check(&npm().join("speedscope/dist/release/file-format-schema.json"), &documents);
    for ((name, file), (errors, first)) in exports.iter().zip(&answers) {
        assert_eq!(*errors, 0, "{name}: {first}");
        let ends: Vec<u64> =
            file["profiles"].as_array().unwrap().iter().map(|p| p["endValue"].as_u64().unwrap()).collect();
        let of_this = all().into_iter().filter(|(other, _)| other == name);
        let sums: Vec<u64> = of_this.map(|(_, sample_type)| sum(&recorded(name), sample_type)).collect();
        assert_eq!(ends, sums, "{name}");
    }
    assert!(answers[3].0 > 0);
    let one: Value =
        serde_json::from_slice(&export(&stored, "sort", "speedscope", &["--sample-type", "memory"])).unwrap();
    assert_eq!(one["profiles"].as_array().unwrap().len(), 1);
    assert_eq!(one["profiles"][0]["unit"], "bytes");
}

/// Opens a file in headless Chromium, and does there what the driver's case does.
fn opens(case: &str, file: &Path, words: &[&str]) {
    let driver = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/browser/exports.mjs");
    let mut node = Command::new("node");
    // It wants the folder above.
    node.arg(driver).arg(case).arg(file).args(words).env("REPRIEVE_NPM", npm().parent().unwrap());
    let output = node.output().expect("node is missing; run `cargo xtask test`");
    assert!(output.status.success(), "{case}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A shop in Python, whose cache has most; with the folder that its exports are put into.
fn shop() -> (Stored, String, PathBuf) {
    let (stored, incident) = (Stored::empty(), recorded("shop"));
    stored.add(&incident);
    let folder = stored.path().join("exports");
    fs::create_dir(&folder).unwrap();
    (stored, id_of(&incident), folder)
}

#[test]
fn speedscopes_own_page_opens_it_and_folded_lines() {
    let (stored, id, folder) = shop();
    let write = |format: &str, name: &str| {
        let file = folder.join(name);
        stored.prints(&["export", &id, "--format", format, "--to", file.to_str().unwrap()]);
        file
    };
    let file = write("speedscope", "shop.speedscope.json");
    let export: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let profiles = export["profiles"].as_array().unwrap();
    let title = |(at, profile): (usize, &Value)| {
        format!("{} ({}/{})", profile["name"].as_str().unwrap(), at + 1, profiles.len())
    };
    let titles: Vec<String> = profiles.iter().enumerate().map(title).collect();
    assert_eq!(titles.len(), 7, "{titles:?}");
    // What allocates for Python has most for itself, which the page puts first.
    let words: Vec<&str> = titles.iter().map(String::as_str).chain(["_PyObject_Malloc"]).collect();
    opens("speedscope", &file, &words);
    opens("speedscope", &write("folded", "shop.folded"), &["shop.folded", "_PyObject_Malloc"]);
}

#[test]
fn the_picture_is_searched_and_zoomed_in_a_browser() {
    let (stored, id, folder) = shop();
    let file = folder.join("shop.svg");
    stored.prints(&["export", &id, "--format", "svg", "--to", file.to_str().unwrap()]);
    let folded = String::from_utf8(stored.prints(&["export", &id, "--format", "folded"])).unwrap();
    let lines = || folded.lines().map(|line| line.rsplit_once(' ').unwrap());
    let bytes = |of: &str| -> u64 {
        lines().filter(|(stack, _)| stack.contains(of)).map(|(_, value)| value.parse::<u64>().unwrap()).sum()
    };
    let percent = bytes("Cache.insert") as f64 * 100.0 / bytes("") as f64;
    assert!((50.0..95.0).contains(&percent), "{percent}");
    opens("svg", &file, &["Cache.insert", &percent.to_string()]);
}

/// The Firefox Profiler's command line with a profile loaded; its daemon ends with it.
struct Firefox {
    sessions: tempfile::TempDir,
}

impl Firefox {
    fn load(profile: &Path) -> Self {
        let firefox = Firefox { sessions: tempfile::tempdir().unwrap() };
        // It gives its daemon half a second to start, and says itself to try again; that of
        // a try before is stopped with the others in the end.
        for _ in 0..20 {
            let output = firefox.command(&["load", profile.to_str().unwrap()]);
            if output.status.success() {
                return firefox;
            }
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(said.contains("did not become ready within"), "{output:?}");
        }
        panic!("its daemon never became ready");
    }

    fn command(&self, args: &[&str]) -> Output {
        let package = npm().join("@firefox-devtools/profiler-cli/dist/profiler-cli.js");
        let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "x64" };
        let mut node = Command::new(npm().join(format!("node-linux-{arch}/bin/node")));
        node.arg(package).args(args).env("PROFILER_CLI_SESSION_DIR", self.sessions.path());
        node.output().expect("node is missing; run `cargo xtask test`")
    }

    fn says(&self, args: &[&str]) -> String {
        let output = self.command(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Firefox {
    fn drop(&mut self) {
        let _ = self.command(&["stop", "--all"]);
    }
}

#[test]
fn the_firefox_profilers_own_command_line_reads_it() {
    let (stored, dir) = (Stored::new(), tempfile::tempdir().unwrap());
    let file: PathBuf = dir.path().join("profile.json");
    fs::write(&file, export(&stored, "python", "firefox", &[])).unwrap();
    let firefox = Firefox::load(&file);
    let listed = firefox.says(&["thread", "list"]);
    for title in ["live bytes", "live objects", "Threads by stack", "Memory by process"] {
        assert!(listed.contains(title), "no {title} in {listed}");
    }
    let heap = firefox.says(&["thread", "samples-top-down", "--thread", "t-0"]);
    let folded = String::from_utf8(export(&stored, "python", "folded", &["--sample-type", "inuse_space"])).unwrap();
    // The function with most, by its name without its place.
    let biggest = folded.lines().max_by_key(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).unwrap();
    let frames = biggest.rsplit_once(' ').unwrap().0.split(';').skip(1);
    for name in frames.map(|frame| frame.split(" (").next().unwrap()) {
        assert!(heap.contains(name), "no {name} of {biggest} in {heap}");
    }
    for name in ["redis", "sort"] {
        fs::write(&file, export(&stored, name, "firefox", &["--sample-type", "threads"])).unwrap();
        let listed = Firefox::load(&file).says(&["thread", "list"]);
        assert!(listed.contains("Threads by stack") && !listed.contains("Memory by"), "{listed}");
    }
}

#[test]
fn opentelemetrys_own_types_read_it() {
    let stored = Stored::new();
    for name in ["python", "redis", "sort"] {
        let data = ProfilesData::decode(&export(&stored, name, "otlp", &[])[..]).unwrap();
        let dictionary = data.dictionary.unwrap();
        let profiles = &data.resource_profiles[0].scope_profiles[0].profiles;
        let told: Vec<(&str, u64)> = profiles
            .iter()
            .map(|profile| {
                let kind = profile.sample_type.unwrap().type_strindex as usize;
                let total = profile.samples.iter().flat_map(|sample| &sample.values).sum::<i64>();
                // Every sample leads to a name.
                for sample in &profile.samples {
                    let stack = &dictionary.stack_table[sample.stack_index as usize];
                    let last = &dictionary.location_table[*stack.location_indices.last().unwrap() as usize];
                    let function = &dictionary.function_table[last.lines[0].function_index as usize];
                    assert!(!dictionary.string_table[function.name_strindex as usize].is_empty());
                }
                (dictionary.string_table[kind].as_str(), total as u64)
            })
            .collect();
        let incident = recorded(name);
        let of_this = all().into_iter().filter(|(other, _)| *other == name);
        let sums: Vec<(&str, u64)> =
            of_this.map(|(_, t)| (if t == "memory" { "space" } else { t }, sum(&incident, t))).collect();
        assert_eq!(told, sums, "{name}");
        let one = ProfilesData::decode(&export(&stored, name, "otlp", &["--sample-type", "threads"])[..]).unwrap();
        assert_eq!(one.resource_profiles[0].scope_profiles[0].profiles.len(), 1);
    }
}

#[test]
fn json_is_the_incident_as_the_schema_has_it() {
    let stored = Stored::new();
    for name in ["python", "redis", "sort"] {
        let json = export(&stored, name, "json", &[]);
        assert_eq!(json, stored.prints(&["show", &id(name), "--json"]));
        let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/incident.schema.json");
        let (errors, first) = check(&schema, &[serde_json::from_slice(&json).unwrap()]).remove(0);
        assert_eq!(errors, 0, "{name}: {first}");
    }
}

/// The page as GitHub's own reader has it, with all that it adds to Markdown.
fn by_github(markdown: Vec<u8>) -> String {
    let mut cmark = Command::new("cmark-gfm");
    cmark.args("--to html -e table -e strikethrough -e autolink -e tasklist -e tagfilter".split(' '));
    let output = with_input(&mut cmark, markdown);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn githubs_own_reader_sees_tables_and_names_as_they_are() {
    let (stored, id, _) = shop();
    let html = by_github(stored.prints(&["export", &id, "--format", "markdown"]));
    let heads: Vec<usize> = html.split("<table>").skip(1).map(|table| table.matches("<th").count() - 1).collect();
    // Actions, growth, charge and processes; `<thead>` is none of the columns.
    assert_eq!(heads, [7, 4, 3, 6], "{html}");
    // No row of theirs was left outside.
    let outside: String = html.split("<table>").map(|part| part.rsplit("</table>").next().unwrap()).collect();
    assert!(!outside.contains("|"), "{outside}");

    // Whatever a process or a function is called.
    let mut incident = recorded("sort");
    let (process, function) = ("|*a*<i>~~_[x](y)", "``` ````|<b> *c*");
    incident["processes"][0]["comm"] = process.into();
    for address in incident["symbols"]["addresses"].as_array_mut().unwrap() {
        for frame in address["frames"].as_array_mut().unwrap() {
            frame["function"] = function.into();
        }
    }
    let stored = Stored::empty();
    stored.add(&incident);
    let html = by_github(stored.prints(&["export", &id_of(&incident), "--format", "markdown"]));
    let escaped = |name: &str| name.replace('<', "&lt;").replace('>', "&gt;");
    let pid = &incident["processes"][0]["pid"];
    let row = format!("<tr>\n<td align=\"right\">{pid}</td>\n<td>{}</td>\n", escaped(process));
    assert!(html.contains(&row), "no {row} in {html}");
    let stack = format!("<pre><code class=\"language-text\">{} (read.c:26)\n", escaped(function));
    assert!(html.contains(&stack), "no {stack} in {html}");
    for element in ["<em", "<i", "<b", "<del", "<a"] {
        assert!(!html.contains(&format!("{element}>")) && !html.contains(&format!("{element} ")), "{element}: {html}");
    }
}

#[test]
fn small_ones_are_as_they_were() {
    let stored = Stored::new();
    let (sort, python) = (&id("sort"), &id("python"));
    stored.golden(&["export", sort, "--format", "markdown"], "sort.md");
    stored.golden(&["export", python, "--format", "markdown", "--sample-type", "inuse_objects"], "python.md");
    stored.golden(&["export", sort, "--format", "folded"], "sort.folded");
    stored.golden(&["export", python, "--format", "folded", "--sample-type", "threads"], "python.folded");
    stored.golden(&["export", sort, "--format", "speedscope", "--sample-type", "threads"], "sort.speedscope.json");
    stored.golden(&["export", sort, "--format", "firefox", "--sample-type", "threads"], "sort.firefox.json");
}

#[test]
fn an_incident_is_found_by_id_by_folder_and_by_file() {
    let stored = Stored::new();
    let by_id = export(&stored, "sort", "markdown", &[]);
    let folder = stored.path().join(id("sort"));
    for name in [&folder, &folder.join("incident.json")] {
        assert_eq!(stored.prints(&["export", name.to_str().unwrap(), "--format", "markdown"]), by_id);
    }
    let newest = stored.prints(&["export", "--format", "json"]);
    let newest: Value = serde_json::from_slice(&newest).unwrap();
    assert_eq!(newest["id"], ["python", "redis", "sort"].map(id).into_iter().max().unwrap());
    // Into a file, and no word about it.
    let file = stored.path().join("out.md");
    let said = stored.prints(&["export", &id("sort"), "--format", "markdown", "--to", file.to_str().unwrap()]);
    assert_eq!((said.len(), fs::read(&file).unwrap()), (0, by_id));
}

#[test]
fn mistakes_are_told_with_their_remedy() {
    let stored = Stored::new();
    let sort = &id("sort");
    stored.fails(&["export", sort], 2, &["--format"]);
    stored.fails(&["export", sort, "--format", "excel"], 2, &["excel", "pprof", "markdown"]);
    stored.fails(&["export", "20200101", "--format", "json"], 3, &["20200101", "reprieve list"]);
    let type_missing = ["export", sort, "--format", "svg", "--sample-type", "inuse_space"];
    stored.fails(&type_missing, 3, &["inuse_space", sort, "threads, memory"]);
    stored.fails(&["export", sort, "--format", "json", "--sample-type", "threads"], 2, &["whole incident"]);
    let no_folder = ["export", sort, "--format", "svg", "--to", "/nonexistent/x.svg"];
    stored.fails(&no_folder, 1, &["/nonexistent/x.svg", "another file"]);
    let damaged = stored.path().join("damaged");
    fs::create_dir(&damaged).unwrap();
    fs::write(damaged.join("incident.json"), "{\"schema\": ").unwrap();
    stored.fails(&["export", "damaged", "--format", "json"], 1, &["damaged/incident.json", "not a readable incident"]);
    let full = Command::new("sh")
        .args(["-c", "\"$0\" --config /sys export --out \"$1\" \"$2\" --format json > /dev/full"])
        .args([env!("CARGO_BIN_EXE_reprieve"), stored.path().to_str().unwrap(), sort])
        .output()
        .unwrap();
    assert_eq!(full.status.code(), Some(1), "{full:?}");
    assert!(String::from_utf8_lossy(&full.stderr).contains("standard output"), "{full:?}");
}
