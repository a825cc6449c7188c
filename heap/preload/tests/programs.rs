//! The library in real programs: what the table says, and that they work.

mod common;

use common::{Table, c_program, live, ok};
use std::process::Command;

const SITES: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <malloc.h>
static void *keep[1 << 20];
__attribute__((noinline)) void *leak_small(void) { char *p = malloc(200); p[0] = 1; return p; }
__attribute__((noinline)) void *leak_big(void) { char *p = malloc(20000); p[0] = 1; return p; }
__attribute__((noinline)) void *churn(void) { char *p = malloc(300); p[0] = 1; return p; }
__attribute__((noinline)) void *mapped(void) {
	char *p = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(p, 1, 1 << 20); return p;
}
int main(void) {
	long n = 0, live = 0;
	for (int i = 0; i < 200000; i++) {
		live += malloc_usable_size(keep[n++] = leak_small());
		if (i % 100 == 0) live += malloc_usable_size(keep[n++] = leak_big());
		free(churn());
		if (i % 20000 == 0) { keep[n++] = mapped(); live += 1 << 20; }
	}
	printf("%ld\n", live);
	return 0;
}
"#;

#[test]
fn live_bytes_are_estimated_and_stacks_reach_main() {
    let dir = tempfile::tempdir().unwrap();
    let program = c_program(&dir, "sites", SITES);
    let period = 64 << 10;
    let mut sum = 0.0;
    let rounds = 10;
    for seed in 1..=rounds {
        let table = Table::new(period, seed);
        let truth: f64 = ok(&table.command(program.to_str().unwrap()).output().unwrap()).trim().parse().unwrap();
        let tables = table.tables();
        assert_eq!(tables.len(), 1);
        let process = &tables[0];
        assert_eq!(process.lost_samples, 0);
        let estimate = live(process, period);
        // One sigma: the root of the number of samples behind it.
        let sigma = truth / (truth / period as f64).sqrt();
        assert!((estimate - truth).abs() < 4.0 * sigma, "{estimate} for {truth} ± {sigma}");
        sum += estimate / truth;
        let cut = process.live.iter().filter(|s| process.stacks[&s.stack].cut).count();
        assert!(cut * 100 <= process.live.len(), "{cut} of {} stacks are cut", process.live.len());
        // mapped memory, each piece of which is bigger than the period.
        assert_eq!(process.live.iter().filter(|s| s.mapping && s.usable == 1 << 20).count(), 10);
    }
    let mean = sum / rounds as f64;
    assert!((mean - 1.0).abs() < 0.03, "{mean}");
}

/// Two libraries whose functions lie at the same offsets with frames of different
/// sizes, loaded in turn: at the same address, or the test says so.
const RELOADED: &str = r#"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
typedef void *(*allocate)(void *(*)(size_t));
static void *keep[4000];
__attribute__((noinline)) int one(const char *path, int from) {
	void *library = dlopen(path, RTLD_NOW);
	allocate f = (allocate)dlsym(library, "allocate");
	if (!f) { fprintf(stderr, "%s\n", dlerror()); exit(1); }
	printf("%p\n", (void *)f);
	for (int i = 0; i < 1000; i++) keep[from + i] = f(malloc);
	dlclose(library);
	return 0;
}
int main(int n, char **argv) {
	for (int i = 1; i < n; i++) if (one(argv[i], (i - 1) * 1000)) return 1;
	return 0;
}
"#;

#[test]
fn a_library_in_the_place_of_another_is_unwound_as_itself() {
    let dir = tempfile::tempdir().unwrap();
    let program = c_program(&dir, "reloaded", RELOADED);
    let library = |name: &str, frame: usize| {
        let text = format!(
            "void *allocate(void *(*f)(unsigned long)) {{ volatile char x[{frame}]; x[0] = 1; void *p = f(5000); \
             x[1] = 2; return p; }}"
        );
        let (source, out) = (dir.path().join(format!("{name}.c")), dir.path().join(name));
        std::fs::write(&source, text).unwrap();
        let options = ["-O2", "-fPIC", "-shared", "-fomit-frame-pointer", "-fno-stack-protector", "-o"];
        assert!(Command::new("cc").args(options).arg(&out).arg(&source).status().unwrap().success());
        out
    };
    let libraries = [library("small.so", 32), library("wide.so", 96), library("small2.so", 48)];
    let table = Table::new(1024, 7);
    let output = table.command(program.to_str().unwrap()).args(&libraries).output().unwrap();
    let places = ok(&output);
    let places: std::collections::BTreeSet<_> = places.lines().collect();
    assert_eq!(places.len(), 1, "the loader put them elsewhere: {places:?}");
    let tables = table.tables();
    let live = &tables[0].live;
    let cut = live.iter().filter(|s| s.asked == 5000 && tables[0].stacks[&s.stack].cut).count();
    let all = live.iter().filter(|s| s.asked == 5000).count();
    assert!(all > 2500 && cut == 0, "{cut} of {all} stacks are cut");
}

#[test]
fn forks_and_execs_have_tables_of_their_own() {
    let table = Table::new(16 << 10, 3);
    let script =
        "x=$(head -c 3000000 /dev/zero | tr '\\0' a); (y=$x$x; echo ${#y}); python3 -c 'print(sum(range(10)))'";
    assert_eq!(ok(&table.command("bash").args(["-c", script]).output().unwrap()), "6000000\n45\n");
    let tables = table.tables();
    assert!(tables.len() >= 5, "{} tables", tables.len());
    let child = tables.iter().find(|t| t.live.iter().any(|s| s.inherited)).expect("a child with inherited memory");
    assert!(tables.iter().any(|t| t.home == child.parent));
    let mut pids: Vec<_> = tables.iter().map(|t| (t.pid, t.sequence)).collect();
    pids.sort_unstable();
    pids.dedup();
    assert_eq!(pids.len(), tables.len());
}

#[test]
fn sampled_memory_is_told_to_tracers() {
    let library = std::env::var("REPRIEVE_HEAP_LIBRARY").expect("not set; run `cargo xtask test`");
    let notes = Command::new("readelf").args(["--notes", "--wide"]).arg(library).output().unwrap();
    let notes = ok(&notes);
    for name in ["alloc", "free"] {
        assert!(notes.contains("Provider: otel_memory") && notes.contains(&format!("Name: {name}")), "{notes}");
    }
}

#[test]
fn it_needs_the_c_library_and_nothing_else() {
    let library = std::env::var("REPRIEVE_HEAP_LIBRARY").expect("not set; run `cargo xtask test`");
    let needed = ok(&Command::new("readelf").args(["--dynamic", "--wide"]).arg(library).output().unwrap());
    let needed: Vec<_> = needed.lines().filter(|line| line.contains("(NEEDED)")).collect();
    assert!(needed.iter().all(|line| line.contains("[libc.so.6]") || line.contains("[ld-linux")), "{needed:?}");
}

#[test]
fn ordinary_programs_work_as_without_it() {
    let cases: &[&[&str]] = &[
        &["ls", "-la", "/usr/bin"],
        &["sort", "/etc/passwd"],
        &["python3", "-c", "import json,re; print(len(json.dumps([{'a': i} for i in range(100000)])))"],
        &["bash", "-c", "for i in 1 2 3 4 5 6 7 8 9; do echo $(echo $i | cat); done"],
        &["perl", "-e", "my %h; $h{$_} = $_ x 3 for 1..100000; print scalar(keys %h), \"\\n\""],
    ];
    for case in cases {
        let plain = ok(&Command::new(case[0]).args(&case[1..]).output().unwrap());
        let table = Table::new(4 << 10, 1);
        let sampled = ok(&table.command(case[0]).args(&case[1..]).output().unwrap());
        assert_eq!(plain, sampled, "{case:?}");
        let tables = table.tables();
        assert!(tables.iter().any(|t| t.taken > 0), "{case:?}: {} tables without a sample", tables.len());
    }
}
