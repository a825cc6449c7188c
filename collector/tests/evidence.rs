//! What the evidence of one OOM says of each victim's trap.

mod common;

use common::{Lab, assert_held_well, assert_unharmed, fixture, threads};
use serde_json::Value;

/// Moments tried: a victim is seldom caught outside the function that leaks.
const TRIES: usize = 5;

/// Runs a victim out of memory and lets it finish, until its folded stacks have
/// one line with these frames, outermost first. Returns the first incident of
/// that run with its stacks.
fn evidence(victim: &[&str], frames: &[&str]) -> (Value, String) {
    let mut seen = String::new();
    for _ in 0..TRIES {
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
        if folded.lines().any(|line| has_all(line, frames)) {
            return (incident, folded);
        }
        seen.push_str(&folded);
    }
    panic!("{}: {frames:?} in this order are not in {seen}", victim[0]);
}

/// Whether a line has all frames in this order.
fn has_all(line: &str, frames: &[&str]) -> bool {
    let mut rest = line;
    frames.iter().all(|frame| match rest.split_once(frame) {
        Some((_, after)) => {
            rest = after;
            true
        }
        None => false,
    })
}

#[test]
fn inlined_functions_are_named_each() {
    let frames = ["run_query", "scan_table", "read_page", "decode_row"].map(|name| format!("{name} (inlined_chain.c:"));
    evidence(&["inlined_chain"], &frames.each_ref().map(String::as_str));
}

#[test]
fn a_deleted_binary_has_names_still() {
    let frames = ["main (deleted_binary.c:", "leak_from_deleted (deleted_binary.c:"];
    let (incident, _) = evidence(&["deleted_binary"], &frames);
    let modules = incident["modules"].as_array().unwrap();
    let program = modules.iter().find(|m| m["path"].as_str().unwrap().contains("deleted_binary")).unwrap();
    assert_eq!(program["deleted"], true, "{program}");
    assert!(program["build_id"].is_string(), "{program}");
}

#[test]
fn a_stripped_binary_is_told_by_offsets_and_counted() {
    let (incident, _) = evidence(&["stripped"], &["stripped+0x", "libc_start", "stripped+0x", "stripped+0x"]);
    let addresses = incident["symbols"]["addresses"].as_array().unwrap();
    let missed: Vec<_> = addresses.iter().filter(|a| a["miss"].is_string()).collect();
    assert!(missed.len() >= 3 && missed.iter().all(|a| a["frames"].as_array().unwrap().is_empty()), "{missed:?}");
}

#[test]
fn children_that_share_pages_are_charged_their_share() {
    let frames = ["main (prefork.c:", "leak_in_child (prefork.c:"];
    let (incident, _) = evidence(&["prefork", "--children", "4"], &frames);
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
    let (_, folded) = evidence(&["syscall_storm"], &["leak_block (victim.h:"]);
    assert!(folded.contains("reader (syscall_storm.c:"), "{folded}");
}

#[test]
fn processes_that_come_and_go_leave_the_one_that_leaks() {
    evidence(&["exiting"], &["main (exiting.c:", "leak_block (victim.h:"]);
}

#[test]
fn long_generic_names_are_demangled() {
    let frames = ["main (cxx_names.cc:", "std::function<void (long)>::operator()(long) const", "insert<"];
    let (_, folded) = evidence(&["cxx_names"], &frames);
    assert!(!folded.contains("_ZN"), "{folded}");
    let (_, folded) = evidence(&["rust_names"], &["rust_names::main (rust_names.rs:", "produce"]);
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
        evidence(&[victim], &frames);
    }
}

/// The first thread of a dying process ends last: who waits for it first waits in
/// vain, for two seconds.
#[test]
fn a_kill_of_many_threads_is_not_waited_for_in_vain() {
    let lab = Lab::new();
    let command = [&fixture("many_threads"), "--threads", "50", "--mib", "96"];
    let output = lab.run(&["--memory", "40M", "--on-oom", "kill"], &command);
    assert_eq!(output.status.code(), Some(137), "{}", common::text(&output));
    let incident = lab.incident();
    let step = &incident["verdict"]["steps"][0];
    assert_eq!((&step["action"], &step["outcome"]), (&Value::from("kill"), &Value::from("relieved")), "{step:#}");
    assert!(step["took_us"].as_u64().unwrap() < 2_000_000, "{step:#}");
}
