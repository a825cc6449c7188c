//! Who made a program grow, by its page faults, in real memcgs.

mod common;
#[path = "common/guard.rs"]
mod guard;

use common::{Doomed, Lab, assert_unharmed, fixture, text, truth, wait_for};
use guard::{Grove, Guard, end_of};
use nix::sys::signal::Signal;
use reprieve::cgroup::{Hierarchy, Memcg};
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const MIB: f64 = (1 << 20) as f64;
/// Headings in drawings.
const RELIABLE: &str = "(reliable)";
const HEAP: &str = "(who touched it first, not who owns it)";

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Bytes of lines that have all of these.
fn bytes_of(folded: &str, words: &[&str]) -> f64 {
    let lines = folded.lines().filter(|line| words.iter().all(|word| line.contains(word)));
    lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
}

fn folded(lab: &Lab) -> String {
    String::from_utf8(lab.file("growth.folded")).unwrap()
}

/// The growth of the only process.
fn growth(incident: &Value) -> &Value {
    let growth = &incident["processes"][0]["growth"];
    assert_eq!(growth["basis"], "present", "{:#}\n{}", incident["gaps"], incident["processes"][0]["gaps"]);
    growth
}

fn assert_nothing_lost(incident: &Value) {
    let sampling = &incident["growth"];
    let gaps = &incident["gaps"];
    assert_eq!((&sampling["lost_samples"], &sampling["unplaced_samples"]), (&0.into(), &0.into()), "{sampling} {gaps}");
    assert!(sampling["samples"].as_u64().unwrap() > 0 && sampling["ring_bytes"].as_u64().unwrap() > 0, "{sampling}");
}

#[test]
fn what_a_leak_mapped_itself_is_told_and_reliable() {
    let lab = Lab::new();
    // No more faults than one ring has room for, however late its reader is.
    let options = ["--memory", "24M", "--on-oom", "grant=256M", "--no-heap", "--growth=16"];
    let output = lab.run(&options, &[&fixture("steady_leak"), "--mib", "96"]);
    assert_unharmed(&output);
    let incident = lab.incident();
    assert_nothing_lost(&incident);
    assert_eq!((&incident["growth"]["period"], &incident["growth"]["of_kernel"]), (&16.into(), &true.into()));
    let growth = growth(&incident);
    // All that is in memory is told, and no more.
    let memory = &incident["processes"][0]["memory"];
    let (all, unseen) = (number(&growth["bytes"]), number(&growth["unseen_bytes"]));
    let anon = number(&memory["pss_anon_bytes"]);
    assert!((all + unseen - anon).abs() < 0.02 * anon, "{all} and {unseen} of {anon}");
    assert!(unseen < 0.02 * anon, "{unseen} of {anon}");
    let folded = folded(&lab);
    // The victim leaks its sites in fixed shares from start to end, and makes no garbage.
    let sites = truth(&output);
    let sites = sites["sites"].as_array().unwrap();
    let whole: f64 = sites.iter().map(|site| number(&site["bytes"])).sum();
    for site in sites {
        let function = site["function"].as_str().unwrap();
        let expected = all * number(&site["bytes"]) / whole;
        let found = bytes_of(&folded, &[function]);
        // A block of 64 bytes takes 80.
        assert!((found - expected).abs() < 0.15 * expected + 2.0 * MIB, "{site}: {found}, expected {expected}");
        let reliable = bytes_of(&folded, &[function, RELIABLE]);
        let is_mapped = function == "leak_mmap";
        assert!(
            if is_mapped { reliable > 0.98 * found } else { reliable < 0.02 * found },
            "{site}: {reliable} of {found}"
        );
    }
    let direct = number(&growth["direct_bytes"]);
    assert!((direct - bytes_of(&folded, &["leak_mmap"])).abs() < 2.0 * MIB, "{direct}");
    // Of faults in user mode the kernel has nothing to tell of itself.
    assert!(bytes_of(&folded, &["_[k]"]) < 0.02 * all, "{folded}");
    // Every stack reaches its start.
    let cut = growth["stacks"].as_array().unwrap().iter().filter(|stack| stack["cut"] == true);
    let cut: f64 = cut.map(|stack| number(&stack["bytes"])).sum();
    assert!(cut < 0.02 * all, "{cut} of {all}\n{folded}");
    // It is labelled as what it is wherever it is shown.
    let shown = text(&lab.reprieve("show").output().unwrap());
    assert!(shown.contains("who grew RSS, not who owns the heap") && shown.contains("leak_mmap"), "{shown}");
    let page = String::from_utf8(lab.file("report.html")).unwrap();
    assert!(page.contains("Who grew RSS (not who owns the heap)") && page.contains("leak_mmap"));
    let exported = lab.reprieve("export").args(["--format", "folded", "--sample-type", "growth_reliable"]).output();
    let exported = text(&exported.unwrap());
    assert!(exported.contains("leak_mmap") && !exported.contains("leak_small"), "{exported}");
}

/// Has the kernel fill fresh memory, a piece at a time, and no faster than what is not optimised reads of it.
const READER: &str = r#"
import mmap, time
block = mmap.mmap(-1, 96 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
zeros = open("/dev/zero", "rb", buffering=0)
whole = memoryview(block)
for at in range(0, len(whole), 1 << 16):
    try:
        zeros.readinto(whole[at:at + (1 << 16)])
    except OSError:
        pass # EFAULT, as system calls may see while a hold of version 1 begins
    time.sleep(0.001)
"#;

#[test]
fn memory_that_read_fills_shows_what_the_kernel_did() {
    let lab = Lab::new();
    let options = ["--memory", "32M", "--on-oom", "grant=256M", "--no-heap", "--growth=16"];
    let output = lab.run(&options, &["/usr/bin/python3", "-c", READER]);
    assert!(output.status.success(), "{}", text(&output));
    let incident = lab.incident();
    assert_nothing_lost(&incident);
    let direct = number(&growth(&incident)["bytes"]);
    let folded = folded(&lab);
    let read = bytes_of(&folded, &["ksys_read_[k];vfs_read_[k];"]);
    assert!(read > 0.7 * direct && read > 12.0 * MIB, "{read} of {direct}\n{folded}");
    for line in folded.lines().filter(|line| line.contains("_[k]")) {
        // The program, then the system call, then what is in it; not how the kernel is entered or takes faults.
        let path = line.rsplit_once(' ').unwrap().0;
        let frames: Vec<bool> = path.split(';').map(|frame| frame.ends_with("_[k]")).collect();
        assert!(frames.is_sorted() && !frames[2], "{line}");
        assert!(!line.contains("do_syscall_64") && !line.contains("asm_exc_page_fault"), "{line}");
    }
    // Names and offsets are told, and no address of the kernel.
    let modules = incident["modules"].as_array().unwrap();
    let kernel = modules.iter().position(|module| module["path"] == "[kernel.kallsyms]").unwrap();
    assert!(modules[kernel]["build_id"].is_string(), "{}", modules[kernel]);
    let addresses = incident["symbols"]["addresses"].as_array().unwrap();
    let names: Vec<&Value> = addresses.iter().filter(|address| address["at"]["module"] == kernel).collect();
    for name in &names {
        assert_eq!((&name["source"], &name["miss"]), (&"kallsyms".into(), &Value::Null), "{name}");
        assert!(name["at"]["svma"].as_u64().unwrap() < 1 << 31, "{name}");
    }
    assert!(names.len() > 3, "{names:?}");
    for part in [growth(&incident), &incident["modules"], &incident["symbols"]] {
        assert_eq!(of_kernel(part), [0; 0], "addresses of the kernel");
    }
    // One line of it is shown, in the call that is meant.
    let shown = text_of(lab.reprieve("show").output());
    assert!(shown.contains("read_[k]") && !shown.contains("vfs_read_[k]"), "{shown}");
    let page = String::from_utf8(lab.file("report.html")).unwrap();
    assert!(page.contains("vfs_read_[k]"));
    let raw = text_of(lab.reprieve("export").args(["--format", "speedscope", "--sample-type", "growth"]).output());
    assert!(raw.contains("vfs_read_[k]"), "{raw}");
    // Without names of the program it is told all the same.
    let redacted = text_of(lab.reprieve("export").args(["--format", "markdown"]).output());
    assert!(redacted.contains("read_[k]"), "{redacted}");
}

/// Numbers in the upper half, which is the kernel's.
fn of_kernel(value: &Value) -> Vec<u64> {
    match value {
        Value::Number(number) => number.as_u64().filter(|number| number >> 63 == 1).into_iter().collect(),
        Value::Array(values) => values.iter().flat_map(of_kernel).collect(),
        Value::Object(fields) => fields.values().flat_map(of_kernel).collect(),
        _ => Vec::new(),
    }
}

fn text_of(output: std::io::Result<Output>) -> String {
    text(&output.unwrap())
}

#[test]
fn where_memory_was_used_before_witnesses_disagree_and_say_so() {
    let lab = Lab::new();
    let options = ["--memory", "96M", "--on-oom", "grant=256M", "--growth"];
    let output = lab.run(&options, &[&fixture("reused_heap"), "--mib", "128"]);
    assert_unharmed(&output);
    let incident = lab.incident();
    assert_nothing_lost(&incident);
    let heap = &incident["processes"][0]["heaps"][0];
    assert_eq!(heap["witness"], "preload");
    let (grown, owned) = (folded(&lab), String::from_utf8(lab.file("heap.folded")).unwrap());
    assert!(bytes_of(&grown, &["make_garbage", HEAP]) > 32.0 * MIB, "{grown}");
    assert!(bytes_of(&owned, &["make_garbage"]) < 4.0 * MIB, "{owned}");
    assert!(bytes_of(&owned, &["keep_sessions"]) > 64.0 * MIB, "{owned}");
    let shown = text(&lab.reprieve("show").output().unwrap());
    let page = String::from_utf8(lab.file("report.html")).unwrap();
    // Lines are wrapped.
    let words = shown.split_whitespace().collect::<Vec<_>>().join(" ");
    for text in [&words, &page] {
        assert!(text.contains("malloc and page faults disagree, most about "), "{text}");
    }
}

#[test]
fn where_mappings_come_and_go_at_the_same_place_nothing_mapped_is_reliable() {
    let told = |period: &str| {
        let lab = Lab::new();
        let options = ["--memory", "48M", "--on-oom", "grant=256M", "--no-heap", period];
        assert_unharmed(&lab.run(&options, &[&fixture("remapped"), "--mib", "64"]));
        let (incident, folded) = (lab.incident(), folded(&lab));
        let gaps = incident["gaps"].as_array().unwrap().iter().filter_map(Value::as_str);
        let doubts = gaps.filter(|gap| gap.starts_with("remapped [") && gap.contains("--growth=1 tells them apart"));
        let direct = number(&growth(&incident)["direct_bytes"]);
        (doubts.count(), direct, bytes_of(&folded, &[RELIABLE]), bytes_of(&folded, &["keep_mapped", RELIABLE]))
    };
    let (doubts, direct, reliable, _) = told("--growth=64");
    assert_eq!((doubts, direct), (1, 0.0));
    assert!(reliable < MIB, "{reliable}");
    // Of every fault the last is known, unless too many found no room in the ring.
    let (doubts, direct, _, kept) = told("--growth=1");
    assert!(doubts == 1 && direct == 0.0 || kept > 40.0 * MIB && kept > 0.95 * direct, "{kept} of {direct}");
}

#[test]
fn where_nothing_was_used_before_witnesses_agree() {
    let lab = Lab::new();
    let options = ["--memory", "64M", "--on-oom", "grant=256M", "--growth"];
    let output = lab.run(&options, &[&fixture("steady_leak"), "--mib", "96"]);
    assert_unharmed(&output);
    assert_eq!(lab.incident()["processes"][0]["heaps"][0]["witness"], "preload");
    let shown = text(&lab.reprieve("show").output().unwrap());
    assert!(shown.contains("WHO MADE IT GROW") && !shown.contains("disagree"), "{shown}");
}

#[test]
fn whom_the_kernel_killed_is_remembered() {
    let lab = Lab::new();
    let options = ["--memory", "64M", "--on-oom", "defer", "--no-heap", "--growth"];
    let output = lab.run(&options, &[&fixture("steady_leak"), "--mib", "96"]);
    assert_eq!(output.status.code(), Some(137), "{}", text(&output));
    let incidents = lab.incidents();
    let killed = incidents.iter().find(|incident| incident["trigger"] == "killed_by_kernel").unwrap();
    assert_nothing_lost(killed);
    let (victim, ended) = (&killed["kernel_victims"][0], &killed["ended"][0]);
    assert_eq!((&ended["pid"], &ended["comm"]), (&victim["pid"], &"steady_leak".into()), "{victim}");
    assert_eq!((&ended["killed_by_kernel"], &ended["growth"]["basis"]), (&true.into(), &"ended".into()));
    let (all, had) =
        (number(&ended["growth"]["bytes"]), number(&victim["anon_bytes"]) + number(&victim["shmem_bytes"]));
    assert!((all - had).abs() < 4096.0 && had > 48.0 * MIB, "{all} of {had}");
    let folded = folded(&lab);
    // Each site has its share: 1:2:1.
    for (site, share) in [("leak_small", 0.25), ("leak_medium", 0.5), ("leak_mmap", 0.25)] {
        let found = bytes_of(&folded, &[site]) / all;
        assert!((found - share).abs() < 0.1, "{site}: {found}\n{folded}");
    }
    assert!(bytes_of(&folded, &["leak_mmap", RELIABLE]) > 8.0 * MIB, "{folded}");
    let shown = text(&lab.reprieve("show").output().unwrap());
    assert!(shown.contains("steady_leak (ended)"), "{shown}");
}

/// Victims of the kernel alone; the guest, which is slow, has fewer.
const KILLED: u64 = 100;

/// Lowers the limit of its memcg to below where a hold would begin, and lets the kernel kill
/// there. Then it becomes what its further arguments say.
const OUT_OF_REACH: &str = r#"
    limit=$1; shift
    path=$(sed -n 's/^[0-9]*:memory://p' /proc/self/cgroup)
    if [ -n "$path" ]; then
        echo 0 > /sys/fs/cgroup/memory$path/memory.oom_control || exit 9
        echo $limit > /sys/fs/cgroup/memory$path/memory.limit_in_bytes || exit 9
    else
        path=$(sed -n 's/^0:://p' /proc/self/cgroup)
        echo $limit > /sys/fs/cgroup$path/memory.max || exit 9
    fi
    exec "$@"
"#;

#[test]
fn whom_the_kernel_kills_before_any_hold_is_remembered_each_time() {
    for round in 0..common::rounds(KILLED) {
        let lab = Lab::new();
        let options = ["--memory", "40M", "--no-heap", "--growth=16"];
        let leak = fixture("steady_leak");
        let output = lab.run(&options, &["sh", "-c", OUT_OF_REACH, "sh", "24M", &leak, "--mib", "64"]);
        let said = format!("round {round}: {}", text(&output));
        assert_eq!(output.status.code(), Some(137), "{said}");
        // One incident, which no hold came before.
        let incidents = lab.incidents();
        assert_eq!(incidents.len(), 1, "{said}\n{incidents:#?}");
        let killed = &incidents[0];
        assert_eq!((&killed["trigger"], &killed["hold"]), (&"killed_by_kernel".into(), &Value::Null), "{said}");
        assert_nothing_lost(killed);
        let (victims, ended) = (killed["kernel_victims"].as_array().unwrap(), killed["ended"].as_array().unwrap());
        assert_eq!((victims.len(), ended.len()), (1, 1), "{said}\n{victims:#?}\n{ended:#?}\n{:#}", killed["gaps"]);
        let (victim, ended) = (&victims[0], &ended[0]);
        assert_eq!((&ended["pid"], &ended["comm"]), (&victim["pid"], &"steady_leak".into()), "{said}");
        assert_eq!((&ended["killed_by_kernel"], &ended["growth"]["basis"]), (&true.into(), &"ended".into()), "{said}");
        let all = number(&ended["growth"]["bytes"]);
        let had = number(&victim["anon_bytes"]) + number(&victim["shmem_bytes"]);
        assert!((all - had).abs() < 4096.0 && had > 16.0 * MIB, "{said}\n{all} of {had}");
        let folded = folded(&lab);
        assert!((bytes_of(&folded, &["steady_leak;ended;"]) - all).abs() < 4096.0, "{said}\n{folded}");
        for (site, share) in [("leak_small", 0.25), ("leak_medium", 0.5), ("leak_mmap", 0.25)] {
            let found = bytes_of(&folded, &[site]) / all;
            assert!((found - share).abs() < 0.1, "{said}\n{site}: {found}\n{folded}");
        }
    }
}

#[test]
fn each_process_of_a_server_has_its_own_growth() {
    let lab = Lab::new();
    let options = ["--memory", "48M", "--on-oom", "grant=256M", "--no-heap", "--growth"];
    let output = lab.run(&options, &[&fixture("prefork"), "--mib", "96", "--children", "4"]);
    assert_unharmed(&output);
    let incident = lab.incidents().remove(0);
    assert_nothing_lost(&incident);
    let processes = incident["processes"].as_array().unwrap();
    let grown: Vec<f64> = processes.iter().filter_map(|process| process["growth"]["bytes"].as_f64()).collect();
    // What they share since the fork is its parent's alone.
    let (total, charged) = (grown.iter().sum::<f64>(), number(&incident["memcg"]["usage_bytes"]));
    assert!(grown.len() >= 2 && total < 1.1 * charged && total > 0.5 * charged, "{grown:?} of {charged}");
}

#[test]
fn programs_that_come_and_go_leave_room() {
    let lab = Lab::new();
    let script = "for i in $(seq 400); do /bin/true; done; exec \"$@\"";
    let options = ["--memory", "24M", "--on-oom", "grant=256M", "--no-heap", "--growth=16"];
    let output = lab.run(&options, &["bash", "-c", script, "bash", &fixture("steady_leak"), "--mib", "96"]);
    assert_unharmed(&output);
    let incident = lab.incident();
    assert_eq!(incident["growth"]["unplaced_samples"], 0, "{}\n{:#}", incident["growth"], incident["gaps"]);
    // Of what bash was before, nothing is left in the program that took its place.
    let folded = folded(&lab);
    let leaked = bytes_of(&folded, &["leak_"]);
    let said = format!("{leaked} leaked: {} {:#}\n{folded}", incident["growth"], incident["gaps"]);
    assert!(leaked > 0.95 * number(&growth(&incident)["bytes"]), "{said}");
}

/// Runs with a system call refused.
fn without_perf(lab: &Lab, options: &[&str], command: &[&str]) -> Output {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let rules = [(libc::SYS_perf_event_open, Vec::new())].into_iter().collect();
    let refused = SeccompAction::Errno(libc::EACCES as u32);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, arch).unwrap();
    let program = BpfProgram::try_from(filter).unwrap();
    let mut run = lab.reprieve("run");
    run.args(options).arg("--").args(command);
    // SAFETY: only prctl(2) and seccomp(2), on a program made before.
    unsafe { run.pre_exec(move || apply_filter(&program).map_err(|_| std::io::Error::other("seccomp"))) };
    run.output().unwrap()
}

#[test]
fn where_the_kernel_refuses_the_program_runs_and_incidents_say_why() {
    let lab = Lab::new();
    let options = ["--memory", "64M", "--on-oom", "grant=256M", "--no-heap", "--growth"];
    let output = without_perf(&lab, &options, &[&fixture("steady_leak"), "--mib", "96"]);
    assert_unharmed(&output);
    assert!(text(&output).contains("page faults could not be sampled"), "{}", text(&output));
    let incident = lab.incident();
    assert_eq!((&incident["growth"], &incident["processes"][0]["growth"]), (&Value::Null, &Value::Null));
    let gaps: Vec<&str> = incident["gaps"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(gaps.iter().any(|gap| gap.contains("page faults could not be sampled")), "{gaps:?}");
    let folder = lab.out().join(incident["id"].as_str().unwrap());
    assert!(!folder.join("growth.svg").exists() && folder.join("flamegraph.svg").exists());
}

#[test]
fn with_less_right_only_user_mode_is_sampled() {
    let lab = Lab::new();
    let paranoid: i32 = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap().trim().parse().unwrap();
    let mut run = std::process::Command::new("setpriv");
    run.args(["--bounding-set", "-sys_admin,-perfmon", "--inh-caps", "-sys_admin,-perfmon"]);
    let reprieve = lab.reprieve("run");
    run.arg(reprieve.get_program()).args(reprieve.get_args()).stdin(std::process::Stdio::null());
    run.args(["--memory", "64M", "--on-oom", "grant=256M", "--no-heap", "--growth", "--"]);
    let output = run.args([&fixture("steady_leak"), "--mib", "96"]).output().unwrap();
    assert_unharmed(&output);
    let incident = lab.incident();
    match paranoid {
        ..=1 => assert_eq!(incident["growth"]["of_kernel"], true),
        2 => {
            assert_eq!(incident["growth"]["of_kernel"], false, "{}", text(&output));
            assert!(bytes_of(&folded(&lab), &["leak_medium"]) > 16.0 * MIB);
            let shown = text(&lab.reprieve("show").output().unwrap());
            let words = shown.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(words.contains("faults in system calls are not in it"), "{shown}");
        }
        _ => assert_eq!(incident["growth"], Value::Null),
    }
}

/// A memcg of so many MiB and, under version 1, the cgroup of the same path in which
/// page faults are sampled.
struct Watched {
    memcg: PathBuf,
    perf: Option<PathBuf>,
}

impl Watched {
    fn new(grove: &Grove, name: &str, mib: u64) -> Self {
        let memcg = grove.memcg(name, mib);
        let perf = Hierarchy::find("perf_event").unwrap().expect("a hierarchy with perf_event");
        let path = format!("{}/{name}", grove.path());
        let perf = guard::is_v1().then(|| Memcg::at(&perf, &path).dir().to_owned());
        perf.iter().for_each(|dir| fs::create_dir_all(dir).unwrap());
        Watched { memcg, perf }
    }

    /// Starts a program in both, which begins when its input has a line.
    fn start(&self, command: &[&str]) -> Doomed {
        let mut shell = Command::new("sh");
        let enter = "for dir; do case $dir in --) shift; break;; *) echo $$ >$dir/cgroup.procs; shift;; esac; done";
        shell.args(["-c", &format!("{enter}; exec \"$@\""), "sh"]).arg(&self.memcg).args(&self.perf).arg("--");
        Doomed(shell.args(command).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(dir) = &self.perf {
            wait_for("the end of all in it", || fs::remove_dir(dir).is_ok());
            let _ = fs::remove_dir(dir.parent().unwrap_or(Path::new("/")));
        }
    }
}

/// Runs before the guard does, and grows when it is told to.
const PATIENT: &str = "input(); kept = [bytearray(1 << 20) for _ in range(96)]";

#[test]
fn a_guard_tells_who_made_each_of_its_cgroups_grow() {
    let (lab, grove) = (Lab::new(), Grove::new());
    let [leaky, old, quiet] = ["leaky", "old", "quiet"].map(|name| Watched::new(&grove, name, 48));
    let mut patient = old.start(&["python3", "-c", PATIENT]);
    wait_for("python", || fs::read_to_string(format!("/proc/{}/comm", patient.0.id())).unwrap() == "python3\n");
    let path = grove.path();
    let toml = format!(
        "[guard]\non_oom = ['kill']\ngrowth = true\ngrowth_period = 16\n\
         [[cgroup]]\nmatch = '{path}/quiet'\ngrowth = false\n"
    );
    let guard = Guard::start(&lab, &toml, &[&format!("{path}/*")]);
    let mut leak = leaky.start(&[&fixture("steady_leak"), "--mib", "96"]);
    let mut silent = quiet.start(&[&fixture("steady_leak"), "--mib", "96"]);
    patient.0.stdin.take().unwrap().write_all(b"\n").unwrap();
    for victim in [&mut leak, &mut silent, &mut patient] {
        assert!(!end_of(victim).success(), "{}", guard.said());
    }
    wait_for("all incidents", || guard.said().matches("report ").count() == 3);
    guard.signal(Signal::SIGTERM);
    let said = guard.end();
    let incidents = lab.incidents();
    let of = |name: &str| {
        let found = incidents.iter().find(|i| i["memcg"]["path"] == format!("{path}/{name}"));
        found.unwrap_or_else(|| panic!("{name}: {said}\n{incidents:#?}"))
    };
    for (name, least) in [("leaky", 0.95), ("old", 0.8)] {
        let incident = of(name);
        assert_nothing_lost(incident);
        assert_eq!((&incident["growth"]["scope"], &incident["growth"]["period"]), (&"cgroup".into(), &16.into()));
        let grown = number(&growth(incident)["bytes"]);
        let charged = number(&incident["memcg"]["usage_bytes"]);
        assert!(grown > least * charged && grown < 1.02 * charged, "{name}: {grown} of {charged}: {said}");
        let file = lab.out().join(incident["id"].as_str().unwrap()).join("growth.folded");
        let folded = fs::read_to_string(&file).unwrap();
        // Of one not those of the other.
        let site = |word: &str| bytes_of(&folded, &[word]) / grown;
        let (leaked, in_python) = (site("leak_"), site("python3"));
        let is_its_own = if name == "leaky" { leaked > 0.95 && in_python == 0.0 } else { leaked == 0.0 };
        assert!(is_its_own && (name == "leaky" || in_python > 0.95), "{name}: {leaked} {in_python}\n{folded}");
    }
    let quiet = of("quiet");
    assert_eq!((&quiet["growth"], &quiet["processes"][0]["growth"]), (&Value::Null, &Value::Null), "{quiet:#}");
}
