//! What malloc holds, against what it says itself, of processes that cannot move.

mod common;

use common::{Lab, fixture, text};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// A child that is killed in the end.
struct Stopped {
    child: Child,
    said: String,
}

impl Stopped {
    /// Starts a program, reads until it says `last`, and stops it for good.
    fn start(command: &mut Command, last: &str) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut said = String::new();
        while !said.contains(last) {
            assert_ne!(output.read_line(&mut said).unwrap(), 0, "it ended: {said}");
        }
        let stopped = Stopped { child, said };
        // SAFETY: a plain system call on our own child.
        assert_eq!(unsafe { libc::kill(stopped.child.id() as i32, libc::SIGSTOP) }, 0);
        common::wait_for("the stop", || stopped.proc("stat").contains(") T "));
        stopped
    }

    fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap()
    }

    /// Its only process in a snapshot, which changes none of its pages.
    fn snapshot(&self, lab: &Lab) -> Value {
        // Exact, unlike VmRSS; shares of files change with other processes.
        let pages = || -> Vec<String> {
            let is_own = |line: &&str| line.starts_with("Rss:") || line.starts_with("Anonymous:");
            self.proc("smaps_rollup").lines().filter(is_own).map(str::to_owned).collect()
        };
        let before = pages();
        assert_eq!(before.len(), 2);
        let output = lab.reprieve("snapshot").arg(self.child.id().to_string()).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        assert_eq!(before, pages());
        lab.incidents().pop().unwrap()["processes"][0].clone()
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// The value of an attribute of the first element that begins so.
fn attribute(xml: &str, element: &str, name: &str) -> u64 {
    let at = xml.find(element).unwrap_or_else(|| panic!("no {element} in {xml}"));
    let (element, _) = xml[at..].split_once('>').unwrap();
    let (_, value) = element.split_once(&format!(" {name}=\"")).unwrap_or_else(|| panic!("no {name} in {element}"));
    value.split_once('"').unwrap().0.parse().unwrap()
}

fn chunks(value: &Value) -> (u64, u64) {
    (value["chunks"].as_u64().unwrap(), value["bytes"].as_u64().unwrap())
}

#[test]
fn a_fragmented_heap_is_known_to_the_chunk() {
    let lab = Lab::new();
    let stopped = Stopped::start(Command::new(fixture("fragmented")).arg("3"), "live_bytes");
    let process = stopped.snapshot(&lab);
    assert_eq!(process["gaps"].as_array().unwrap().len(), 0, "{:#}", process["gaps"]);
    let malloc = &process["malloc"];
    let arenas = malloc["arenas"].as_array().unwrap();
    assert!(arenas.len() == 4 && malloc["library"].as_str().unwrap().starts_with("glibc 2."), "{malloc:#}");
    let (_, info) = stopped.said.split_once("<malloc").unwrap();
    let heaps: Vec<&str> = info.split("</heap>").collect();
    let (mut live, mut live_bytes, mut free_resident) = (0, 0, 0);
    for (arena, heap) in arenas.iter().zip(&heaps) {
        let free = &arena["free"];
        let total = |kind: &str| {
            let element = format!("<total type=\"{kind}\"");
            (attribute(heap, &element, "count"), attribute(heap, &element, "size"))
        };
        assert_eq!(chunks(&free["fastbins"]), total("fast"), "{arena:#}\n{heap}");
        // Its sizes of bins have the PREV_INUSE bit of each chunk, and its count has top.
        let bins = ["unsorted", "small", "large"].map(|bin| chunks(&free[bin]));
        let (count, bytes) = bins.into_iter().fold((0, 0), |sum, bin| (sum.0 + bin.0, sum.1 + bin.1));
        let top = arena["top_bytes"].as_u64().unwrap();
        assert_eq!((count + 1, bytes + top + count), total("rest"), "{arena:#}\n{heap}");
        if heap.contains("<unsorted") {
            let told = (attribute(heap, "<unsorted", "count"), attribute(heap, "<unsorted", "total"));
            assert_eq!((bins[0].0, bins[0].1 + bins[0].0), told);
        } else {
            assert_eq!(bins[0], (0, 0));
        }
        assert_eq!(arena["system_bytes"], attribute(heap, "<system type=\"current\"", "size"));
        assert_eq!(arena["unknown_bytes"], 0);
        live += chunks(&arena["live"]).0;
        live_bytes += chunks(&arena["live"]).1;
        free_resident += arena["free_resident_bytes"].as_u64().unwrap();
        // All of it was touched but some of what goes to top.
        assert!(arena["free_resident_bytes"].as_u64().unwrap() > bytes * 9 / 10, "{arena:#}");
    }
    let mapped = &malloc["mmapped"];
    assert_eq!(
        chunks(mapped),
        (attribute(heaps[4], "type=\"mmap\"", "count"), attribute(heaps[4], "type=\"mmap\"", "size"))
    );
    // Half of the big ones was touched.
    let resident = mapped["resident_bytes"].as_u64().unwrap();
    assert!(resident > chunks(mapped).1 * 2 / 5 && resident < chunks(mapped).1 * 3 / 5, "{mapped:#}");
    // What the program did not ask for itself: a cache and a few words for each thread.
    let truth: Value = serde_json::from_str(stopped.said.lines().last().unwrap()).unwrap();
    let (own, own_bytes) = (truth["live_chunks"].as_u64().unwrap(), truth["live_bytes"].as_u64().unwrap());
    assert!(
        (own + 4..own + 12).contains(&live) && (own_bytes..own_bytes + 10_000).contains(&live_bytes),
        "{truth} {live} {live_bytes}"
    );
    let anon = process["memory"]["pss_anon_bytes"].as_u64().unwrap();
    let arenas_resident: u64 = arenas.iter().map(|arena| arena["resident_bytes"].as_u64().unwrap()).sum();
    let sum = arenas_resident + resident;
    assert!(sum <= anon && anon - sum < 1 << 20, "{sum} of {anon} anonymous bytes are malloc's, {free_resident} free");
    let shown = text(&lab.reprieve("show").output().unwrap());
    assert!(shown.contains("MALLOC"), "{shown}");
    let page = String::from_utf8(lab.file("report.html")).unwrap();
    assert!(page.contains("What malloc holds"));
}

#[test]
fn a_program_parked_at_its_limit_is_walked_with_and_without_the_library() {
    // Small blocks run out behind top, big ones in a new mapping.
    for (bytes, heap) in [("100", None), ("3000", Some("--no-heap")), ("300000", None)] {
        let lab = Lab::new();
        let mut options = vec!["--memory", "96M", "--on-oom", "kill"];
        options.extend(heap);
        let output = lab.run(&options, &[&fixture("fragmented"), "3", bytes]);
        assert_eq!(output.status.code(), Some(137), "{}", text(&output));
        let incident = lab.incident();
        common::assert_held_well(&incident);
        let process = &incident["processes"][0];
        let malloc = &process["malloc"];
        assert_eq!(malloc["arenas"].as_array().map(Vec::len), Some(4), "{:#}", process["gaps"]);
        let mut resident = malloc["mmapped"]["resident_bytes"].as_u64().unwrap();
        for arena in malloc["arenas"].as_array().unwrap() {
            // A chunk just cut from top may be there and not be counted yet.
            assert!(arena["unknown_bytes"].as_u64().unwrap() < 10_000, "{bytes}: {arena:#}");
            resident += arena["resident_bytes"].as_u64().unwrap();
        }
        let anon = process["memory"]["pss_anon_bytes"].as_u64().unwrap();
        assert!(resident <= anon && anon - resident < 4 << 20, "{bytes}: {resident} of {anon}");
        assert_eq!(process["heaps"].as_array().unwrap().len(), usize::from(heap.is_none()));
    }
}

#[test]
fn real_programs_are_walked_whole() {
    let list = "l = [{i: str(i)} for i in range(60000)]; del l[::2]; print('ready', flush=True); input()";
    let array = "for i in {1..30000}; do a+=(\"x$i\"); done; echo ready; read";
    for (command, argument) in [("python3", list), ("bash", array)] {
        let lab = Lab::new();
        let mut program = Command::new(command);
        let stopped = Stopped::start(program.args(["-c", argument]), "ready");
        let process = stopped.snapshot(&lab);
        let malloc = &process["malloc"];
        assert_eq!(process["gaps"].as_array().unwrap().len(), 0, "{:#}", process["gaps"]);
        let main = &malloc["arenas"][0];
        assert!(main["unknown_bytes"] == 0 && chunks(&main["live"]).1 > 500_000, "{command}: {malloc:#}");
        assert!(chunks(&main["free"]["tcache"]).0 > 0, "{command}: {malloc:#}");
    }
}
