//! Programs that do what is hard on whoever stands in front of malloc, each named
//! for it: they work as without the library, and the table is right.

mod common;

use common::{Table, ok};
use reprieve_heap_table::ProcessTable;
use reprieve_heap_table::layout::region;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Debian's other allocators.
const ALLOCATORS: [&str; 3] = ["libjemalloc.so.2", "libtcmalloc_minimal.so.4", "libmimalloc.so.2"];

/// Compiles `tests/traps/NAME`, a program in C or C++ or a library.
fn compile(dir: &tempfile::TempDir, name: &str, options: &[&str]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/traps").join(name);
    let out = dir.path().join(Path::new(name).file_stem().unwrap());
    let compiler = if name.ends_with(".cc") { "c++" } else { "cc" };
    let flags = ["-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-fomit-frame-pointer", "-fno-builtin-malloc"];
    let mut command = Command::new(compiler);
    assert!(command.args(flags).args(options).arg("-o").arg(&out).arg(source).status().unwrap().success());
    out
}

fn library_of(dir: &tempfile::TempDir, name: &str) -> PathBuf {
    compile(dir, name, &["-shared", "-fPIC", "-mcmodel=large", "-fno-builtin"])
}

/// Runs a command; a hang must fail, not last.
fn run(command: &Command) -> Output {
    let mut bounded = Command::new("timeout");
    // Only the command itself has the library.
    bounded.args(["-s", "KILL", "60", "env"]);
    for (name, value) in command.get_envs() {
        let pair = [name, value.unwrap_or_default()].map(|text| text.to_str().unwrap());
        bounded.arg(pair.join("="));
    }
    bounded.arg(command.get_program()).args(command.get_args());
    bounded.output().unwrap()
}

/// The table of the trap itself: the last of its PID, and with most samples.
fn main_table(table: &Table) -> ProcessTable {
    table.tables().into_iter().max_by_key(|t| t.taken).expect("a table")
}

/// Samples of blocks of a size; how many, and how many stacks are cut.
fn of_size(table: &ProcessTable, asked: u64) -> (usize, usize) {
    let samples = table.live.iter().filter(|s| s.asked == asked);
    let cut = samples.clone().filter(|s| table.stacks[&s.stack].cut || table.stacks[&s.stack].frames.len() < 2);
    (samples.count(), cut.count())
}

/// Runs a trap that prints `says` when all is well.
fn spring(table: &Table, name: &str, arguments: &[&str], says: &str) {
    let dir = tempfile::tempdir().unwrap();
    let program = compile(&dir, name, &[]);
    assert_eq!(ok(&run(table.command(program.to_str().unwrap()).args(arguments))), format!("{says}\n"));
}

#[test]
fn the_family_keeps_to_its_man_pages_with_each_allocator() {
    let dir = tempfile::tempdir().unwrap();
    let program = compile(&dir, "semantics.c", &["-fno-builtin"]);
    for allocator in [None].into_iter().chain(ALLOCATORS.map(Some)) {
        let mut plain = Command::new(&program);
        let strict: &[&str] = if allocator.is_none() { &["strict"] } else { &[] };
        plain.envs(allocator.map(|name| ("LD_PRELOAD", name))).args(strict);
        let plain = ok(&run(&plain));
        for period in [1, 1000, 64 << 10] {
            let table = Table::new(period, 5);
            for ours_first in [true, false] {
                let mut command = table.command(program.to_str().unwrap());
                let ours = std::env::var("REPRIEVE_HEAP_LIBRARY").unwrap();
                let mut preload = vec![ours.as_str()];
                preload.insert(usize::from(ours_first), allocator.unwrap_or(""));
                command.env("LD_PRELOAD", preload.join(":")).args(strict);
                assert_eq!(ok(&run(&command)), plain, "{allocator:?}, one in {period}, ours first: {ours_first}");
                // Behind another malloc there is nothing to see, and no harm done.
                let seen = table.tables().iter().any(|t| t.taken > 50);
                assert!(seen || !ours_first && allocator.is_some(), "{allocator:?}, one in {period}");
            }
        }
    }
}

#[test]
fn children_that_do_the_same_are_sampled_differently() {
    for (arguments, says) in [(&[] as &[&str], "forked"), (&["unknown"], "unknown")] {
        let table = Table::new(64 << 10, 7);
        spring(&table, "forks_alike.c", arguments, says);
        assert_sampled_differently(&table);
    }
}

/// The eight children of `forks_alike`.
fn assert_sampled_differently(table: &Table) {
    let tables = table.tables();
    let mut sampled: Vec<Vec<u64>> = tables.iter().map(|t| t.live.iter().map(|s| s.asked).collect()).collect();
    sampled.iter_mut().for_each(|sizes| sizes.retain(|size| (10_000..10_400).contains(size)));
    sampled.retain(|sizes| !sizes.is_empty());
    assert_eq!(sampled.len(), 8);
    // 400 blocks, each with 1 - e^-0.156.
    assert!(sampled.iter().all(|sizes| (28..=90).contains(&sizes.len())), "{sampled:?}");
    sampled.iter_mut().for_each(|sizes| sizes.sort_unstable());
    sampled.sort_unstable();
    sampled.dedup();
    assert_eq!(sampled.len(), 8);
}

#[test]
fn a_child_of_vfork_allocates_in_its_parents_name() {
    let table = Table::new(1, 1);
    spring(&table, "vfork_allocates.c", &[], "200");
    let (count, cut) = of_size(&main_table(&table), 50_000);
    assert_eq!((count, cut), (200, 0));
    assert_eq!(table.tables().len(), 1 + 100 + 20, "each exec has a table");
}

#[test]
fn threads_come_and_go() {
    let table = Table::new(4096, 1);
    spring(&table, "threads_come_and_go.c", &[], "1000");
    let process = main_table(&table);
    let (count, cut) = of_size(&process, 20_000);
    // 1 - e^-4.9 of them.
    assert!((975..=1000).contains(&count), "{count}");
    assert!(cut * 100 <= count, "{cut} of {count} stacks are cut");
    assert_eq!(process.lost_samples, 0);
}

#[test]
fn a_signal_handler_allocates_in_the_hook() {
    let dir = tempfile::tempdir().unwrap();
    let bump = library_of(&dir, "bump.c");
    let program = compile(&dir, "handler_allocates.c", &[]);
    let table = Table::new(100, 1);
    let ours = std::env::var("REPRIEVE_HEAP_LIBRARY").unwrap();
    let mut command = table.command(program.to_str().unwrap());
    command.env("LD_PRELOAD", format!("{ours}:{}", bump.display()));
    assert_eq!(ok(&run(&command)), "handled\n");
    assert!(main_table(&table).taken > 10_000);
}

#[test]
fn a_signal_handler_jumps_out_of_the_hook() {
    let dir = tempfile::tempdir().unwrap();
    let bump = library_of(&dir, "bump.c");
    let program = compile(&dir, "handler_jumps.c", &[]);
    let ours = std::env::var("REPRIEVE_HEAP_LIBRARY").unwrap();
    for stack in [&[] as &[&str], &["other"]] {
        let table = Table::new(50, 1);
        let mut command = table.command(program.to_str().unwrap());
        command.env("LD_PRELOAD", format!("{ours}:{}", bump.display())).args(stack);
        assert_eq!(ok(&run(&command)), "jumped\n");
        // Nothing of the hook was left taken: all are seen, each with its stack.
        assert_eq!(of_size(&main_table(&table), 100_000), (300, 0), "{stack:?}");
    }
}

#[test]
fn a_signal_handler_jumps_within_itself_in_the_hook() {
    let dir = tempfile::tempdir().unwrap();
    let bump = library_of(&dir, "bump.c");
    let program = compile(&dir, "handler_jumps_within.c", &[]);
    let table = Table::new(50, 1);
    let ours = std::env::var("REPRIEVE_HEAP_LIBRARY").unwrap();
    let mut command = table.command(program.to_str().unwrap());
    command.env("LD_PRELOAD", format!("{ours}:{}", bump.display()));
    assert_eq!(ok(&run(&command)), "returned\n");
    // The hook goes on, so what the handler allocates is not looked at.
    let process = main_table(&table);
    assert_eq!((of_size(&process, 70_000).0, of_size(&process, 100_000)), (0, (100, 0)));
}

#[test]
fn a_constructor_allocates_before_ours_or_after() {
    let dir = tempfile::tempdir().unwrap();
    let other = library_of(&dir, "constructor_allocates.c");
    let ours = std::env::var("REPRIEVE_HEAP_LIBRARY").unwrap();
    for preload in [format!("{ours}:{}", other.display()), format!("{}:{ours}", other.display())] {
        let table = Table::new(1, 1);
        let mut command = table.command("ls");
        command.arg("/").env("LD_PRELOAD", &preload);
        assert_eq!(ok(&run(&command)), ok(&Command::new("ls").arg("/").output().unwrap()), "{preload}");
        assert!(main_table(&table).taken > 5);
    }
}

#[test]
fn mappings_are_cut_covered_moved_and_grown() {
    let table = Table::new(1, 1);
    spring(&table, "mappings.c", &[], "mapped");
    let process = main_table(&table);
    let mib = |asked: u64| -> Vec<u64> {
        let mut of: Vec<u64> =
            process.live.iter().filter(|s| s.mapping && s.asked == asked << 20).map(|s| s.usable >> 12).collect();
        of.sort_unstable();
        of
    };
    // In pages: what is left behind the front, the record of one with a hole, none,
    // none, what is left, what it grew to, and what nobody touched.
    assert_eq!(mib(10), [7 * 256 - 1]);
    assert_eq!(mib(11), [11 * 256]);
    assert!(mib(12).is_empty() && mib(13).is_empty());
    assert_eq!(mib(14), [2 * 256]);
    assert_eq!(mib(15), [150 * 256]);
    assert_eq!(mib(16), [16 * 256]);
}

#[test]
fn forks_of_forks_and_of_threads_leave_room() {
    let table = Table::new(4096, 1);
    // As in a service's own table: nobody takes back what the dead leave but others
    // that fork.
    table.region.words().store(region::UNGUARDED, 1);
    spring(&table, "fork_storm.c", &[], "forked");
    let state = table.region.state();
    assert!(state.next < 200 && state.refused == 0, "{state:?}");
    // Ten thousand bytes each, at one in 4096: nine of ten.
    let parent = table.tables().into_iter().min_by_key(|t| t.sequence).unwrap();
    assert!((80..=100).contains(&of_size(&parent, 10_000).0));
}

#[test]
fn a_child_that_no_handler_knows_of_begins_anew() {
    let table = Table::new(1, 1);
    spring(&table, "fork_without_handlers.c", &[], "forked");
    let tables = table.tables();
    assert_eq!(tables.len(), 2);
    assert_eq!((of_size(&tables[0], 30_000).0, of_size(&tables[1], 30_000).0), (50, 70));
}

#[test]
fn libraries_come_and_go_in_threads() {
    let dir = tempfile::tempdir().unwrap();
    let (source, library) = (dir.path().join("l.c"), dir.path().join("l.so"));
    let text = "void *allocate(void *(*f)(unsigned long)) { volatile char x[600]; x[0] = 1; void *p = f(5000); x[1] = 2; return p; }";
    std::fs::write(&source, text).unwrap();
    let options = ["-O2", "-fPIC", "-shared", "-fomit-frame-pointer", "-o"];
    assert!(Command::new("cc").args(options).arg(&library).arg(&source).status().unwrap().success());
    let table = Table::new(2000, 1);
    spring(&table, "libraries_come_and_go.c", &[library.to_str().unwrap()], "closed");
    assert!(main_table(&table).taken > 10_000);
}

#[test]
fn a_thread_is_not_cancelled_in_malloc() {
    // A random seed, as in real use: it is fetched in a thread's first sample.
    spring(&Table::new(1000, 0), "cancelled_in_malloc.c", &[], "cancelled");
}

#[test]
fn a_sandbox_does_not_kill_for_a_sample() {
    let table = Table::new(1000, 0);
    spring(&table, "sandboxed.c", &[], "sandboxed");
    let (count, cut) = of_size(&main_table(&table), 9000);
    assert!(count > 1990 && cut == 0, "{cut} of {count}");
}

#[test]
fn coroutines_allocate_on_stacks_of_their_own() {
    let table = Table::new(1, 1);
    spring(&table, "coroutines.c", &[], "switched");
    assert_eq!(of_size(&main_table(&table), 5000).0, 800);
}

#[test]
fn cxx_without_frame_pointers_reaches_main_or_the_thread() {
    let table = Table::new(4096, 3);
    spring(&table, "cxx_throws.cc", &[], "thrown");
    let process = main_table(&table);
    let samples = |cut: Option<bool>| -> u64 {
        let those = process.stacks.values().filter(|stack| cut.is_none_or(|cut| stack.cut == cut));
        those.map(|stack| stack.alloc_samples).sum()
    };
    let (cut, all) = (samples(Some(true)), samples(None));
    assert!(all > 1000 && cut * 100 <= all, "{cut} of {all} samples are cut");
}
