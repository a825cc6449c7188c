//! What the evidence of one OOM says of each victim's trap.

mod common;

use common::{Lab, assert_held_well, assert_unharmed, fixture, threads};
use serde_json::Value;

/// Runs a victim out of memory, lets it finish, and returns the first incident
/// with its folded stacks.
fn evidence(victim: &[&str]) -> (Value, String) {
    let lab = Lab::new();
    let program = fixture(victim[0]);
    let mut command = vec![program.as_str(), "--mib", "96"];
    command.extend(&victim[1..]);
    let output = lab.run(&["--memory", "48M", "--on-oom", "grant=256M"], &command);
    assert_unharmed(&output);
    let incident = lab.incidents().remove(0);
    assert_held_well(&incident);
    let dir = lab.out().join(incident["id"].as_str().unwrap());
    let folded = std::fs::read_to_string(dir.join("stacks.folded")).unwrap();
    for thread in threads(&incident) {
        assert_eq!(thread["stack"]["end"]["kind"], "complete", "{}: {thread:#}", victim[0]);
    }
    (incident, folded)
}

/// Asserts that one line has these frames, outermost first.
fn assert_stack(folded: &str, frames: &[&str]) {
    let has_all = |line: &str| {
        let mut rest = line;
        frames.iter().all(|frame| match rest.split_once(frame) {
            Some((_, after)) => {
                rest = after;
                true
            }
            None => false,
        })
    };
    assert!(folded.lines().any(has_all), "{frames:?} in this order are not in {folded}");
}

#[test]
fn inlined_functions_are_named_each() {
    let (_, folded) = evidence(&["inlined_chain"]);
    let line = |name: &str| format!("{name} (inlined_chain.c:");
    let frames = ["run_query", "scan_table", "read_page", "decode_row"].map(line);
    assert_stack(&folded, &frames.each_ref().map(String::as_str));
}

#[test]
fn a_deleted_binary_has_names_still() {
    let (incident, folded) = evidence(&["deleted_binary"]);
    assert_stack(&folded, &["main (deleted_binary.c:", "leak_from_deleted (deleted_binary.c:"]);
    let modules = incident["modules"].as_array().unwrap();
    let program = modules.iter().find(|m| m["path"].as_str().unwrap().contains("deleted_binary")).unwrap();
    assert_eq!(program["deleted"], true, "{program}");
    assert!(program["build_id"].is_string(), "{program}");
}

#[test]
fn a_stripped_binary_is_told_by_offsets_and_counted() {
    let (incident, folded) = evidence(&["stripped"]);
    assert_stack(&folded, &["stripped+0x", "libc_start", "stripped+0x", "stripped+0x"]);
    let addresses = incident["symbols"]["addresses"].as_array().unwrap();
    let missed: Vec<_> = addresses.iter().filter(|a| a["miss"].is_string()).collect();
    assert!(missed.len() >= 3 && missed.iter().all(|a| a["frames"].as_array().unwrap().is_empty()), "{missed:?}");
}

#[test]
fn children_that_share_pages_are_charged_their_share() {
    let (incident, folded) = evidence(&["prefork", "--children", "4"]);
    assert_stack(&folded, &["main (prefork.c:", "leak_in_child (prefork.c:"]);
    let processes = incident["processes"].as_array().unwrap();
    assert_eq!(processes.len(), 5);
    let sum = |key: &str| processes.iter().map(|p| p["memory"][key].as_u64().unwrap()).sum::<u64>();
    let charged = incident["memcg"]["usage_bytes"].as_u64().unwrap();
    assert!(sum("rss_bytes") > charged, "the pages must be shared for this to mean anything");
    let own = sum("pss_anon_bytes") + sum("pss_shmem_bytes");
    assert!(own <= charged && own * 10 >= charged * 8, "{own} of {charged} bytes are explained");
}

#[test]
fn threads_in_system_calls_show_where() {
    let (_, folded) = evidence(&["syscall_storm"]);
    assert_stack(&folded, &["leak_block (victim.h:"]);
    assert_stack(&folded, &["reader (syscall_storm.c:"]);
}

#[test]
fn processes_that_come_and_go_leave_the_one_that_leaks() {
    let (_, folded) = evidence(&["exiting"]);
    assert_stack(&folded, &["main (exiting.c:", "leak_block (victim.h:"]);
}

#[test]
fn long_generic_names_are_demangled() {
    let (_, folded) = evidence(&["cxx_names"]);
    assert_stack(&folded, &["main (cxx_names.cc:", "std::function<void (long)>::operator()(long) const", "insert<"]);
    assert!(!folded.contains("_ZN"), "{folded}");
    let (_, folded) = evidence(&["rust_names"]);
    assert_stack(&folded, &["rust_names::main (rust_names.rs:", "produce"]);
    assert!(!folded.contains("_ZN") && !folded.contains("_R"), "{folded}");
}

#[test]
fn the_call_that_takes_the_memory_is_named() {
    for (victim, frames) in [
        ("map_populate", ["main (map_populate.c:", "populate_piece (map_populate.c:"]),
        ("tmpfs_writer", ["main (tmpfs_writer.c:", "write_block (tmpfs_writer.c:"]),
        ("thp", ["main (thp.c:", "leak_huge (thp.c:"]),
        ("rust_leak", ["rust_leak::main", "rust_leak.rs:"]),
    ] {
        let (_, folded) = evidence(&[victim]);
        assert_stack(&folded, &frames);
    }
}
