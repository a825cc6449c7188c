//! What mallocs hold, against what they say themselves, of processes that cannot move.

mod common;

use common::{Lab, Resident, fixture, text};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
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
        let pid = self.child.id() as i32;
        let before = Resident::of(pid);
        let output = lab.reprieve("snapshot").arg(self.child.id().to_string()).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        Resident::of(pid).assert_not_grown(before, &self.said);
        lab.incidents().pop().unwrap()["processes"][0].clone()
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Asserts that no page was charged between the stop of the threads and the end
/// of the evidence. The kernel may give back what it had charged ahead, or what
/// it frees late, like buffers of sockets.
fn assert_nothing_charged(incident: &Value) {
    let step = &incident["verdict"]["steps"][0];
    let bytes = |value: &Value| value.as_u64().unwrap();
    let (before, after) = (bytes(&incident["memcg"]["usage_bytes"]), bytes(&step["usage_before_bytes"]));
    assert!(after <= before, "{before} bytes were charged, then {after}");
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
    let stopped = Stopped::start(Command::new(fixture("parked/fragmented")).arg("3"), "live_bytes");
    let process = stopped.snapshot(&lab);
    assert_eq!(common::gaps(&process), [""; 0]);
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
        let output = lab.run(&options, &[&fixture("parked/fragmented"), "3", bytes]);
        assert_eq!(output.status.code(), Some(137), "{}", text(&output));
        let incident = lab.incident();
        common::assert_held_well(&incident);
        assert_nothing_charged(&incident);
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
        assert_eq!(common::gaps(&process), [""; 0]);
        let main = &malloc["arenas"][0];
        assert!(main["unknown_bytes"] == 0 && chunks(&main["live"]).1 > 300_000, "{command}: {malloc:#}");
        assert!(chunks(&main["free"]["tcache"]).0 > 0, "{command}: {malloc:#}");
    }
}

/// Debian's jemalloc, by the name that the loader finds it by.
const JEMALLOC: &str = "libjemalloc.so.2";

/// Stacks of a dump of jemalloc itself: frames outside its library, and objects
/// and bytes as it prints them.
fn dumped(dump: &str) -> Vec<(Vec<u64>, f64, f64)> {
    let hex = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap();
    let (stacks, maps) = dump.split_once("MAPPED_LIBRARIES").unwrap();
    let own: Vec<(u64, u64)> = maps
        .lines()
        .filter(|line| line.contains(JEMALLOC))
        .map(|line| line.split(' ').next().unwrap().split_once('-').unwrap())
        .map(|(start, end)| (hex(start), hex(end)))
        .collect();
    assert!(!own.is_empty());
    let mut all = Vec::new();
    for stack in stacks.split("\n@ ").skip(1) {
        let (frames, counts) = stack.split_once('\n').unwrap();
        let frames = frames.split_whitespace().map(hex);
        let frames = frames.skip_while(|at| own.iter().any(|(start, end)| (start..end).contains(&at)));
        // t*: 28: 3000 [0: 0]
        let numbers = counts.lines().next().unwrap().trim().strip_prefix("t*: ").unwrap();
        let (objects, bytes) = numbers.split_once(" [").unwrap().0.split_once(": ").unwrap();
        all.push((frames.collect(), objects.parse().unwrap(), bytes.parse().unwrap()));
    }
    all.retain(|(_, objects, _)| *objects > 0.0);
    all
}

#[test]
fn jemallocs_profile_agrees_with_its_own_dump() {
    let lab = Lab::new();
    let prefix = lab.out().join("dump");
    let conf = format!("prof:true,lg_prof_sample:16,prof_final:true,prof_prefix:{}", prefix.display());
    let mut program = Command::new(fixture("parked/sites"));
    program.env("LD_PRELOAD", JEMALLOC).env("MALLOC_CONF", conf);
    let mut stopped = Stopped::start(&mut program, "site_large");
    let process = stopped.snapshot(&lab);
    assert_eq!(common::gaps(&process), [""; 0]);
    assert!(process["malloc"].is_null(), "glibc's malloc is not used: {:#}", process["malloc"]);
    let heap = &process["heaps"][0];
    assert_eq!((&heap["witness"], &heap["period_bytes"]), (&Value::from("jemalloc"), &Value::from(65536)));
    // What it owns by site, within its error.
    let truth: Value = serde_json::from_str(&stopped.said).unwrap();
    let folded = String::from_utf8(lab.file("heap.folded")).unwrap();
    for (site, bytes) in truth.as_object().unwrap() {
        let lines =
            folded.lines().filter(|line| line.contains(&format!(";{site} ")) || line.contains(&format!(";{site};")));
        let found: f64 = lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum();
        let bytes = bytes.as_f64().unwrap();
        // Its classes round a MiB and more up by a quarter at most, but not these sizes.
        let error = 5.0 * (bytes * 65536.0).sqrt() + 5120.0;
        assert!((found - bytes).abs() < error, "{site}: {found}, not {bytes} ± {error}\n{folded}");
    }
    // Let go, it writes the same down.
    // SAFETY: a plain system call on our own child.
    assert_eq!(unsafe { libc::kill(stopped.child.id() as i32, libc::SIGCONT) }, 0);
    stopped.child.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert!(stopped.child.wait().unwrap().success());
    let dumps = std::fs::read_dir(lab.out()).unwrap().flatten().map(|entry| entry.path());
    let dump = dumps.into_iter().find(|path| path.extension().is_some_and(|e| e == "heap")).expect("a dump");
    let dump = std::fs::read_to_string(dump).unwrap();
    assert!(dump.starts_with("heap_v2/65536\n"), "{dump}");
    let theirs = dumped(&dump);
    let ours = heap["stacks"].as_array().unwrap();
    assert_eq!(theirs.len(), ours.iter().filter(|s| s["inuse"]["samples"] != 0).count(), "{dump}");
    for (frames, objects, bytes) in theirs {
        let address = |index: &Value| heap["frames"][index.as_u64().unwrap() as usize]["address"].as_u64().unwrap();
        let own = ours
            .iter()
            .find(|stack| stack["frames"].as_array().unwrap().iter().map(address).eq(frames.iter().copied()));
        let own = &own.unwrap_or_else(|| panic!("{frames:x?} is missing"))["inuse"];
        // It prints what jeprof makes the estimate of again, in whole objects (prof_do_unbias).
        let (count, sum) = (own["objects"].as_f64().unwrap(), own["bytes"].as_f64().unwrap());
        let printed = 1.0 - (-sum / count / 65536.0).exp();
        assert!((count * printed - objects).abs() <= 1.0, "{own:#} is not {objects} objects");
        assert!((sum * printed - bytes).abs() <= 1.0 + bytes / count, "{own:#} is not {bytes} bytes");
    }
}

#[test]
fn redis_at_its_limit_is_seen_by_jemalloc_too() {
    let conf = "MALLOC_CONF=prof:true,lg_prof_sample:17";
    for (options, witnesses) in [(&["--no-heap"][..], &["jemalloc"][..]), (&[], &["preload", "jemalloc"])] {
        let lab = Lab::new();
        let socket = lab.out().join("redis.sock");
        let socket = socket.to_str().unwrap();
        let mut all = vec!["--memory", "64M", "--on-oom", "kill"];
        all.extend(options);
        let mut command = vec!["env", conf, "redis-server", "--port", "0", "--unixsocket", socket, "--save", ""];
        command.extend(["--enable-debug-command", "local"]);
        let server = lab.start(&all, &command);
        let client =
            |arguments: &[&str]| Command::new("redis-cli").arg("-s").arg(socket).args(arguments).output().unwrap();
        common::wait_for("redis", || client(&["ping"]).stdout == b"PONG\n");
        client(&["debug", "populate", "300000", "key", "300"]);
        let output = server.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(137), "{}", text(&output));
        let incident = lab.incident();
        common::assert_held_well(&incident);
        assert_nothing_charged(&incident);
        let process = &incident["processes"][0];
        let heaps = process["heaps"].as_array().unwrap();
        let seen: Vec<&str> = heaps.iter().map(|heap| heap["witness"].as_str().unwrap()).collect();
        assert_eq!(seen, witnesses, "{:#}", process["gaps"]);
        let anon = process["memory"]["pss_anon_bytes"].as_f64().unwrap();
        let inuse = &heaps.last().unwrap()["inuse"];
        let (bytes, sigma) = (inuse["bytes"].as_f64().unwrap(), inuse["sigma_bytes"].as_f64().unwrap());
        // Sampled blocks of jemalloc have a page each; its own books are not in the heap.
        assert!(bytes < anon + 4.0 * sigma && bytes > anon * 0.75 - 4.0 * sigma, "{bytes} ± {sigma} of {anon}");
        let folded = String::from_utf8(lab.file("heap.folded")).unwrap();
        let largest =
            folded.lines().max_by_key(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).unwrap();
        assert!(largest.contains("debugCommand"), "{largest}");
    }
}

#[test]
fn without_a_profile_jemalloc_is_told_how_to_keep_one() {
    let lab = Lab::new();
    let mut program = Command::new(fixture("parked/sites"));
    let stopped = Stopped::start(program.env("LD_PRELOAD", JEMALLOC).env_remove("MALLOC_CONF"), "site_large");
    let process = stopped.snapshot(&lab);
    let gaps = process["gaps"].to_string();
    assert!(gaps.contains("MALLOC_CONF=prof:true") && gaps.contains("build ID"), "{gaps}");
    assert_eq!(process["heaps"].as_array().unwrap().len(), 0);
    drop(stopped);
    let mut program = Command::new(fixture("parked/sites"));
    program.env("LD_PRELOAD", JEMALLOC).env("MALLOC_CONF", "prof:true,prof_active:false");
    let stopped = Stopped::start(&mut program, "site_large");
    let gaps = stopped.snapshot(&lab)["gaps"].to_string();
    assert!(gaps.contains("prof_active"), "{gaps}");
}
