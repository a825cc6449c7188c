//! The accounting of a memcg adds up, for each kind of memory, on either version.

mod common;

use common::{Doomed, Group, Lab, fixture, text};
use flate2::read::GzDecoder;
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, statfs};
use prost::Message;
use reprieve_flamegraph::pprof::proto;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

/// MiB of a kind of memory that a victim takes.
const MIB: u64 = 96;

/// A victim's memory, and what was said of it.
struct Recorded {
    /// What it took by its own words.
    truth: u64,
    pid: u64,
    incident: Value,
    lab: Lab,
}

impl Recorded {
    /// Has a victim take a kind of memory, files in `dir`, and records its memcg.
    fn of(kind: &str, dir: &str) -> Self {
        let group = Group::new(&format!("accounting-{kind}"));
        let mut shell = Command::new("sh");
        let command = group.entered_by(&mut shell).args([&fixture("parked/charged"), kind, &MIB.to_string(), dir]);
        let mut victim = Doomed(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
        let mut line = String::new();
        BufReader::new(victim.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let truth: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{kind}: {e}: {line:?}"));
        let lab = Lab::new();
        let output = lab.reprieve("snapshot").args(["--deadline", "60s"]).arg(&group.0).output().unwrap();
        // It cleans up by itself, whatever comes of this.
        victim.0.stdin.take().unwrap().write_all(b"\n").unwrap();
        assert!(victim.0.wait().unwrap().success());
        assert!(output.status.success(), "{}", text(&output));
        let number = |key: &str| truth[key].as_u64().unwrap();
        let recorded = Recorded { truth: number("bytes"), pid: number("pid"), incident: lab.incident(), lab };
        recorded.assert_adds_up();
        recorded
    }

    fn accounting(&self) -> &Value {
        &self.incident["accounting"]
    }

    fn root(&self) -> &Value {
        &self.accounting()["root"]
    }

    /// The whole is what the kernel charges, and each node what is below it.
    fn assert_adds_up(&self) {
        let (usage, after) = (&self.incident["memcg"]["usage_bytes"], &self.accounting()["usage_after_bytes"]);
        for charged in [usage, after] {
            assert_near(bytes(self.root()), charged.as_u64().unwrap(), "all that is charged");
        }
        // Nobody ran, and looking charges nothing but a batch for each CPU at most.
        let grown = after.as_u64().unwrap().saturating_sub(usage.as_u64().unwrap());
        let batches = std::thread::available_parallelism().unwrap().get() as u64 * (256 << 10);
        assert!(grown <= batches, "{grown} bytes were charged by looking");
        // The snapshot's time is that of threads and processes: this one comes after it.
        let us = |of: &Value, key: &str| of[key].as_u64().unwrap();
        let hold = &self.incident["hold"];
        let took = us(self.accounting(), "took_us");
        assert!(took > 0 && us(hold, "held_us") >= us(hold, "snapshot_us") + took, "{took} us in {hold}");
        let mut leaves = 0;
        visit(self.root(), &mut |node| {
            let children = children(node);
            if children.is_empty() {
                leaves += bytes(node);
            } else {
                let sum: u64 = children.iter().map(bytes).sum();
                assert_eq!(sum, bytes(node) + node["excess_bytes"].as_u64().unwrap(), "{node:#}");
            }
            assert!(bytes(node) > 0 && node["source"].as_str().is_some_and(|source| !source.is_empty()), "{node:#}");
        });
        assert_near(leaves, bytes(self.root()), "the leaves");
        assert_eq!(self.accounting()["gaps"], Value::Array(Vec::new()), "{}", self.accounting());
    }

    /// The node of that name, wherever it is.
    fn node(&self, what: &str) -> &Value {
        find(self.root(), what).unwrap_or_else(|| panic!("no {what:?} in {:#}", self.root()))
    }

    /// Nodes of that name below another hold what the victim took.
    fn assert_told(&self, below: &str, what: &str) {
        assert_near(bytes(find(self.node(below), what).unwrap_or(&Value::Null)), self.truth, what);
    }

    fn is_v1(&self) -> bool {
        self.incident["memcg"]["version"] == 1
    }

    /// Kernel memory that nobody can tell apart.
    fn other_kernel(&self) -> u64 {
        let what = if self.is_v1() { OTHER_KERNEL } else { "other kernel memory" };
        find(self.root(), what).map_or(0, bytes)
    }

    /// But for kernel memory that version 1 does not tell apart, all is explained to
    /// within one percent.
    fn assert_explained(&self) {
        let mut unexplained = 0;
        visit(self.root(), &mut |node| {
            if node["kind"] == "unexplained" && children(node).is_empty() && node["what"] != OTHER_KERNEL {
                unexplained += bytes(node);
            }
        });
        assert!(unexplained * 100 <= bytes(self.root()), "{unexplained} bytes in {:#}", self.root());
    }
}

const OTHER_KERNEL: &str = "slab, per-CPU data, vmalloc (version 1 tells no more)";
const COMMON: &str = "pages that processes have in common";

fn bytes(node: &Value) -> u64 {
    node["bytes"].as_u64().unwrap_or_else(|| panic!("no node: {node}"))
}

fn children(node: &Value) -> &[Value] {
    node["children"].as_array().unwrap()
}

fn visit(node: &Value, each: &mut dyn FnMut(&Value)) {
    each(node);
    children(node).iter().for_each(|child| visit(child, each));
}

/// The first node whose name begins so, parents first.
fn find<'v>(node: &'v Value, what: &str) -> Option<&'v Value> {
    if node["what"].as_str().unwrap().starts_with(what) {
        return Some(node);
    }
    children(node).iter().find_map(|child| find(child, what))
}

/// Asserts that two figures are the same to within one percent.
fn assert_near(seen: u64, truth: u64, what: &str) {
    assert!(seen.abs_diff(truth) * 100 <= truth, "{what}: {seen} and not {truth}");
}

/// A folder whose files are page cache, which can be dirty, unlike those of tmpfs.
fn disk() -> String {
    let dir = std::env::var("REPRIEVE_DISK").unwrap_or_else(|_| "/var/tmp".to_owned());
    let kind = statfs(dir.as_str()).unwrap_or_else(|e| panic!("{dir}: {e}")).filesystem_type();
    assert!(
        kind != TMPFS_MAGIC && kind != OVERLAYFS_SUPER_MAGIC,
        "{dir} lies on no disk: name a folder that does in REPRIEVE_DISK"
    );
    dir
}

#[test]
fn a_heap_is_its_processs() {
    let recorded = Recorded::of("heap", "/");
    recorded.assert_explained();
    recorded.assert_told("anonymous memory", "charged [");
    let owner = &recorded.node("charged [")["owner"];
    assert_eq!((&owner["kind"], &owner["pid"]), (&"process".into(), &recorded.pid.into()));
}

#[test]
fn stacks_of_threads_are_known_as_such() {
    let recorded = Recorded::of("stacks", "/");
    recorded.assert_explained();
    recorded.assert_told("anonymous memory", "[stack of a thread]");
    // Each has one in the kernel, too.
    let kernel = bytes(recorded.node("kernel stacks"));
    let threads = MIB / 4 + 1;
    assert!((threads * 8192..=threads * 65536).contains(&kernel), "{kernel}");
}

#[test]
fn files_of_tmpfs_have_holders() {
    let recorded = Recorded::of("tmpfs", "/dev/shm");
    recorded.assert_explained();
    recorded.assert_told("tmpfs and shared memory", "/dev/shm/");
    let owner = &recorded.node("/dev/shm/")["owner"];
    assert_eq!((&owner["pids"][0], &owner["holders"]), (&recorded.pid.into(), &1.into()), "{owner}");
}

#[test]
fn files_of_tmpfs_that_nobody_has_open_are_found() {
    let recorded = Recorded::of("tmpfs_left", "/dev/shm");
    recorded.assert_explained();
    recorded.assert_told("tmpfs and shared memory", "/dev/shm/reprieve-charged-");
}

#[test]
fn a_memfd_has_a_name() {
    let recorded = Recorded::of("memfd", "/");
    recorded.assert_explained();
    recorded.assert_told("tmpfs and shared memory", "/memfd:charged (deleted)");
}

#[test]
fn segments_are_told_attached_or_not() {
    let recorded = Recorded::of("segment", "/");
    recorded.assert_explained();
    recorded.assert_told("tmpfs and shared memory", "/SYSV");
    let recorded = Recorded::of("segment_left", "/");
    recorded.assert_explained();
    recorded.assert_told("tmpfs and shared memory", "SysV segment");
}

#[test]
fn page_cache_is_told_by_file_and_as_dirty_or_clean() {
    let disk = disk();
    let file = format!("{disk}/");
    let dirty = Recorded::of("dirty", &disk);
    dirty.assert_explained();
    dirty.assert_told("page cache", &file);
    // What the kernel has written meanwhile is clean.
    assert!(find(dirty.node(&file), "to be written").is_some(), "{:#}", dirty.root());
    let clean = Recorded::of("clean", &disk);
    clean.assert_explained();
    clean.assert_told("page cache", &file);
    assert!(find(clean.node(&file), "to be written").is_none(), "{:#}", clean.root());
}

#[test]
fn pages_that_a_parent_and_its_children_share_are_counted_once() {
    let recorded = Recorded::of("prefork", "/");
    recorded.assert_explained();
    let processes = recorded.incident["processes"].as_array().unwrap();
    assert_eq!(processes.len(), 9);
    let resident: u64 = processes.iter().map(|p| p["memory"]["rss_bytes"].as_u64().unwrap()).sum();
    assert!(resident > 8 * recorded.truth, "the pages must be shared for this to mean anything");
    // Each child has a MiB of its own.
    assert_near(bytes(recorded.node("anonymous memory")), recorded.truth, "anonymous memory");
    assert_near(bytes(recorded.node(COMMON)), recorded.truth - (8 << 20), COMMON);
}

#[test]
fn huge_pages_are_memory_like_other() {
    let recorded = Recorded::of("huge", "/");
    recorded.assert_explained();
    recorded.assert_told("anonymous memory", "charged [");
    let (stat, key) =
        (&recorded.incident["memcg"]["stat"], if recorded.is_v1() { "total_rss_huge" } else { "anon_thp" });
    let huge = stat[key].as_u64().unwrap_or_else(|| panic!("no {key}: a kernel without huge pages? {stat}"));
    assert!(huge > recorded.truth / 2, "{huge}");
}

/// Pages that the machine keeps for hugetlb while a test runs.
struct HugePages(String);

impl HugePages {
    const FILE: &str = "/proc/sys/vm/nr_hugepages";

    fn of(pages: u64) -> Self {
        let before = std::fs::read_to_string(Self::FILE)
            .unwrap_or_else(|e| panic!("{}: {e}: a kernel without CONFIG_HUGETLBFS?", Self::FILE));
        std::fs::write(Self::FILE, pages.to_string()).unwrap();
        let kept = HugePages(before);
        let got = std::fs::read_to_string(Self::FILE).unwrap();
        assert_eq!(got.trim(), pages.to_string(), "huge pages that the machine could keep for hugetlb");
        kept
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = std::fs::write(Self::FILE, self.0.trim());
    }
}

#[test]
fn hugetlb_is_beside_since_nobody_is_charged() {
    let _pages = HugePages::of(4);
    let recorded = Recorded::of("hugetlb", "/");
    recorded.assert_explained();
    recorded.assert_told("anonymous memory", "charged [");
    let beside = &recorded.accounting()["beside"];
    let node = beside.as_array().unwrap().iter().find(|n| n["what"].as_str().unwrap().starts_with("huge pages"));
    assert_eq!(bytes(node.unwrap_or_else(|| panic!("{beside}"))), 8 << 20);
}

#[test]
fn what_waits_in_sockets_and_pipes_is_told() {
    let recorded = Recorded::of("sockets", "/");
    recorded.assert_explained();
    let told = bytes(recorded.node("unix sockets and pipes"));
    if recorded.is_v1() {
        // Their heads are charged, too.
        assert!((recorded.truth..recorded.truth * 5 / 4).contains(&told), "{told} and not {}", recorded.truth);
    } else {
        // Their heads are slab, which version 2 counts.
        assert_near(told, recorded.truth, "unix sockets");
    }
    assert!(recorded.other_kernel() < recorded.truth / 10, "{:#}", recorded.root());
    let recorded = Recorded::of("pipes", "/");
    recorded.assert_explained();
    recorded.assert_told("kernel memory", "unix sockets and pipes");
}

#[test]
fn page_tables_are_told_by_process() {
    let recorded = Recorded::of("tables", "/");
    recorded.assert_explained();
    recorded.assert_told("page tables", "charged [");
}

#[test]
fn slab_of_many_files_has_a_name_and_a_size() {
    let recorded = Recorded::of("slab", "/dev/shm");
    recorded.assert_explained();
    let kernel = bytes(recorded.node("kernel memory"));
    let slab = if recorded.is_v1() {
        // It does not tell slab from other kernel memory: that is said.
        assert_eq!(recorded.node(OTHER_KERNEL)["kind"], "unexplained");
        recorded.other_kernel()
    } else {
        bytes(recorded.node("slab, reclaimable")) + bytes(recorded.node("slab, not reclaimable"))
    };
    assert!(slab * 100 > kernel * 98 && kernel > recorded.truth / 2, "{:#}", recorded.root());
}

#[test]
fn all_renderings_carry_it() {
    let recorded = Recorded::of("heap", "/");
    let read = |name: &str| String::from_utf8(recorded.lab.file(name)).unwrap();
    let assert_is_all = |folded: &str| {
        let sum: u64 = folded.lines().map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum();
        assert_eq!(sum, bytes(recorded.root()), "{folded}");
        assert!(folded.lines().all(|line| line.starts_with("all that is charged")), "{folded}");
    };
    assert_is_all(&read("accounting.folded"));
    assert!(read("accounting.svg").contains("anonymous memory"));
    assert!(read("report.html").contains("What filled it"));
    let said = |subcommand: &str, arguments: &[&str]| {
        let output = recorded.lab.reprieve(subcommand).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let shown = said("show", &[]);
    for part in ["WHERE EVERY BYTE WENT", "anonymous memory", "kernel memory", "[anonymous]"] {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    assert_is_all(&said("export", &["--format", "folded", "--sample-type", "charged"]));
    let json: Value = serde_json::from_str(&said("export", &["--format", "json"])).unwrap();
    assert_eq!(&json["accounting"], recorded.accounting());
    let page = said("export", &["--format", "markdown"]);
    assert!(page.contains("## What it is charged for") && page.contains("anonymous memory"), "{page}");
    // In pprof it is one of several sample types.
    let mut raw = Vec::new();
    GzDecoder::new(&recorded.lab.file("profile.pb.gz")[..]).read_to_end(&mut raw).unwrap();
    let profile = proto::Profile::decode(&raw[..]).unwrap();
    let is_charged = |kind: &proto::ValueType| profile.string_table[kind.r#type as usize] == "charged";
    let place = profile.sample_type.iter().position(is_charged).expect("a sample type \"charged\"");
    let sum: i64 = profile.sample.iter().map(|sample| sample.value[place]).sum();
    assert_eq!(sum as u64, bytes(recorded.root()));
}
