//! What `vacuum` and `symbolize` print.

#[path = "common/store.rs"]
mod store;

use reprieve_symbolizer::Image;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use store::{Stored, golden, recorded};

/// Commands and what they print, as on a terminal.
fn session(commands: &[&[&str]], prints: impl Fn(&[&str]) -> Vec<u8>) -> String {
    let one = |args: &&[&str]| format!("$ reprieve {}\n{}", args.join(" "), String::from_utf8(prints(args)).unwrap());
    commands.iter().map(one).collect()
}

#[test]
fn each_limit_is_named_by_what_is_beyond_it() {
    let stored = Stored::empty();
    let add = |id: &str, bytes: u64| {
        let dir = stored.path().join(id);
        fs::create_dir(&dir).unwrap();
        File::create(dir.join("incident.json")).unwrap().set_len(bytes).unwrap();
        File::create(dir.join("report.html")).unwrap().set_len(1024).unwrap();
    };
    add("19710101T000000.000Z-sort-000001", 1023);
    add("19710102T000000.000Z-redis-server-000002", 3 << 20);
    // These are young for as long as a limit of 50 years is.
    for (number, bytes) in [(3, 5 << 20), (4, 700 << 10), (5, 10 << 20), (6, 1 << 20)] {
        add(&format!("2026112{number}T084613.639Z-python3-00000{number}"), bytes);
    }
    add("my-favourite", 1 << 30);
    let none = ["--max-count", "100", "--max-use", "1T", "--keep-free", "1", "--max-age", "never"];
    let with = |limits: &[&'static str], more: &[&'static str]| -> Vec<&'static str> {
        let is_given = |option: &&[&'static str]| !limits.contains(&option[0]);
        let rest = none.chunks(2).filter(is_given).flatten().copied();
        ["vacuum"].into_iter().chain(limits.iter().copied()).chain(rest).chain(more.iter().copied()).collect()
    };
    let commands = [
        with(&[], &[]),
        with(&["--max-age", "18250d"], &["--dry-run"]),
        with(&["--max-count", "4"], &["--dry-run"]),
        with(&["--max-use", "12M"], &["--dry-run"]),
        // Nothing is enough: the newest is kept all the same.
        with(&["--keep-free", "8000000T"], &["--dry-run"]),
        with(&["--max-age", "18250d", "--max-count", "3", "--max-use", "12M"], &["--dry-run", "--json"]),
        with(&["--max-age", "18250d", "--max-count", "3", "--max-use", "12M"], &[]),
        with(&["--max-age", "18250d", "--max-count", "3", "--max-use", "12M"], &[]),
    ];
    let commands: Vec<&[&str]> = commands.iter().map(Vec::as_slice).collect();
    golden(&session(&commands, |args| stored.prints(args)), "vacuum.txt");
    let mut left: Vec<_> =
        fs::read_dir(stored.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    let young = [4, 5, 6].map(|number| format!("2026112{number}T084613.639Z-python3-00000{number}"));
    assert_eq!((&left[..3], &left[3..]), (&young[..], &["my-favourite".to_owned()][..]));
}

fn run_in(dir: &Path, program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).current_dir(dir).status().unwrap();
    assert!(status.success(), "{program} {args:?}");
}

/// Files of another machine, in a folder `files`: one of each that can be found, or not be of use.
/// Returns the build IDs, by name, and an address in `main` of those that are programs.
fn put_files(dir: &Path) -> ([(&'static str, String); 6], u64) {
    let files = dir.join("files");
    fs::create_dir(&files).unwrap();
    let names = ["whole", "bare", "gone.so", "other.so", "text.so", "loop.so"];
    let mut number = 0;
    let ids = names.map(|name| {
        number += 1;
        (name, number.to_string().repeat(40))
    });
    fs::write(dir.join("p.c"), "int main(void) { return 3; }\n").unwrap();
    for (name, id) in &ids[..2] {
        let (id, to) = (format!("-Wl,--build-id=0x{id}"), format!("files/{name}"));
        run_in(dir, "cc", &["-g", "-O1", &id, "-o", &to, "p.c"]);
    }
    let image = Image::open(&File::open(files.join("whole")).unwrap()).unwrap();
    let (main, _) = image.symbols(&["main"])[0].unwrap();
    run_in(&files, "strip", &["-s", "bare"]);
    let id = &ids[1].1;
    let home = files.join(".build-id").join(&id[..2]);
    fs::create_dir_all(&home).unwrap();
    fs::copy(files.join("whole"), home.join(format!("{}.debug", &id[2..]))).unwrap();
    fs::copy(files.join("whole"), files.join("other.so")).unwrap();
    fs::write(files.join("text.so"), "not a library\n").unwrap();
    std::os::unix::fs::symlink("loop.so", files.join("loop.so")).unwrap();
    (ids, main.0)
}

/// An incident with one address in each of those, in one without build ID, and in none;
/// that of the second has a name that cannot be found any more.
fn with_addresses(ids: &[(&str, String)], at: u64) -> Value {
    let mut incident = recorded("sort");
    incident["host"]["name"] = json!("elsewhere");
    let module = |index: usize, name: &str, id: Value| {
        json!({"pid": 13784, "path": format!("/opt/shop/lib/{name}"), "build_id": id, "start": index << 32,
            "end": (index << 32) + 65536, "file_offset": 0, "bias": index << 32, "deleted": id.is_null()})
    };
    let known = ids.iter().enumerate().map(|(index, (name, id))| module(index + 1, name, json!(id)));
    let all: Vec<Value> = known.chain([module(ids.len() + 1, "replaced.so", Value::Null)]).collect();
    let addresses = (0..all.len()).map(|index| json!({"module": index, "svma": at}));
    let (mut frames, mut places): (Vec<Value>, Vec<Value>) = addresses
        .enumerate()
        .map(|(index, place)| (json!({"address": ((index as u64 + 1) << 32) + at + 1, "found": "cfi"}), place))
        .unzip();
    frames.push(json!({"address": 0x7000_0000_0001_u64, "found": "frame_pointer"}));
    places.push(Value::Null);
    frames[0]["found"] = json!("register");
    let process = &mut incident["processes"][0];
    process["threads"][0]["stack"]["frames"] = json!(frames);
    process["threads"][0]["frame_modules"] = json!(places);
    process["heaps"] = json!([]);
    incident["modules"] = json!(all);
    let frame = json!({"function": "known", "file": "known.c", "line": 7, "column": null, "inlined": false});
    incident["symbols"]["addresses"] =
        json!([{"at": {"module": 2, "svma": at}, "frames": [frame], "source": "dwarf", "miss": null}]);
    incident
}

/// A miss of each kind, with all places that were looked at; then again, when nothing is new.
#[test]
fn what_was_found_and_why_the_rest_was_not() {
    let dir = tempfile::tempdir().unwrap();
    let (ids, at) = put_files(dir.path());
    let incident = with_addresses(&ids, at);
    let folder = dir.path().join("incident");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("incident.json"), incident.to_string()).unwrap();
    // Names of folders are as long everywhere where they are relative.
    let prints = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_reprieve"));
        command.args(["--config", "/sys"]).args(args).current_dir(dir.path()).stdin(Stdio::null());
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{args:?}: {}: {said}", output.status);
        output.stdout
    };
    let symbolize = ["symbolize", "incident", "--debug-dir", "files"];
    golden(&session(&[&symbolize, &symbolize], prints), "symbolize.txt");
    let json = prints(&[&symbolize[..], &["--json"]].concat());
    let json: Value = serde_json::from_slice(&json).unwrap();
    golden(&format!("{json:#}\n"), "symbolize.json");
    let after: Value = serde_json::from_slice(&fs::read(folder.join("incident.json")).unwrap()).unwrap();
    let names = after["symbols"]["addresses"].as_array().unwrap().iter().map(|a| &a["frames"][0]["function"]);
    let names: Vec<&Value> = names.filter(|name| !name.is_null()).collect();
    assert_eq!(names, ["known", "main"]);
}
