//! What the tests with real memory cgroups share.
#![allow(dead_code, reason = "each test program uses its part")]

use serde_json::Value;
use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// A fixture's path; the tests do not run without fixtures.
pub fn fixture(name: &str) -> String {
    let dir = std::env::var("REPRIEVE_FIXTURES").expect("REPRIEVE_FIXTURES is not set; run `cargo xtask test`");
    let path = Path::new(&dir).join(name);
    assert!(path.is_file(), "{} is missing; run `cargo xtask test`", path.display());
    path.display().to_string()
}

/// A program of a Debian package that is unpacked, not installed: to install it would start it.
pub fn unpacked(package: &str, program: &str) -> PathBuf {
    let dir = std::env::var("REPRIEVE_DEBIAN").expect("REPRIEVE_DEBIAN is not set; run `cargo xtask test`");
    let path = Path::new(&dir).join(package).join("usr/bin").join(program);
    assert!(path.is_file(), "{} is missing; run `cargo xtask test`", path.display());
    path
}

/// How often a test that repeats does so: `usual`, or a share of it where
/// REPRIEVE_ROUNDS_PERCENT says so.
pub fn rounds(usual: u64) -> u64 {
    let percent = std::env::var("REPRIEVE_ROUNDS_PERCENT").map_or(100, |p| p.parse().expect("a number of percent"));
    (usual * percent / 100).max(1)
}

/// What this machine is configured to do is not what is tested.
const NO_CONFIG: [&str; 2] = ["--config", "/sys"];

/// A folder for incidents and ways to run reprieve into it.
pub struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    pub fn new() -> Self {
        Lab { dir: tempfile::tempdir().unwrap() }
    }

    pub fn out(&self) -> &Path {
        self.dir.path()
    }

    /// `reprieve SUBCOMMAND --out …`, not yet started.
    pub fn reprieve(&self, subcommand: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_reprieve"));
        command.args(NO_CONFIG).arg(subcommand).arg("--out").arg(self.out()).stdin(Stdio::null());
        command
    }

    /// Runs a command under reprieve to its end.
    pub fn run(&self, options: &[&str], command: &[&str]) -> Output {
        // A hang must fail, not last.
        let mut run = Command::new("timeout");
        run.args(["-s", "KILL", "120", env!("CARGO_BIN_EXE_reprieve")]).args(NO_CONFIG);
        run.args(["run", "--out"]).arg(self.out());
        let output = run.args(options).arg("--").args(command).stdin(Stdio::null()).output().unwrap();
        assert_no_group_of(&output);
        output
    }

    /// Starts a command under reprieve.
    pub fn start(&self, options: &[&str], command: &[&str]) -> Child {
        // Whoever started the tests may ignore signals, as nohup(1) and shells do.
        let reprieve = self.reprieve("run");
        let mut run = Command::new("env");
        run.arg("--default-signal").arg(reprieve.get_program()).args(reprieve.get_args()).stdin(Stdio::null());
        run.args(options).arg("--").args(command).stdout(Stdio::piped()).stderr(Stdio::piped());
        run.spawn().unwrap()
    }

    /// All incidents, oldest first.
    pub fn incidents(&self) -> Vec<Value> {
        let output = self.reprieve("list").arg("--json").output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|line| {
                let summary: Value = serde_json::from_str(line).unwrap();
                let file = Path::new(summary["dir"].as_str().unwrap()).join("incident.json");
                serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
            })
            .collect()
    }

    /// The only incident; beside one that something was done about, holds may have found
    /// room by themselves.
    pub fn incident(&self) -> Value {
        let (free_again, acted_on): (Vec<_>, Vec<_>) = self.incidents().into_iter().partition(ended_by_itself);
        let mut all = if acted_on.is_empty() { free_again } else { acted_on };
        assert_eq!(all.len(), 1, "{all:#?}");
        all.remove(0)
    }

    /// A file of the newest incident.
    pub fn file(&self, name: &str) -> Vec<u8> {
        let newest = self.incidents().pop().expect("an incident");
        let path = self.out().join(newest["id"].as_str().unwrap()).join(name);
        fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }
}

/// Whether a hold was over, with room, before anything was done about it.
pub fn ended_by_itself(incident: &Value) -> bool {
    let verdict = &incident["verdict"];
    verdict["relieved"] == true && verdict["steps"] == Value::Array(Vec::new())
}

/// Both outputs, for messages.
pub fn text(output: &Output) -> String {
    format!(
        "{}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// The truth that a fixture prints as its last line.
pub fn truth(output: &Output) -> Value {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let line = stdout.lines().rfind(|l| l.starts_with('{')).unwrap_or_else(|| panic!("no truth in {}", text(output)));
    serde_json::from_str(line).unwrap()
}

/// Asserts that a fixture finished and found its memory as it left it.
pub fn assert_unharmed(output: &Output) {
    assert!(output.status.success(), "{}", text(output));
    let truth = truth(output);
    assert_eq!((&truth["ok"], &truth["bad_pages"]), (&Value::Bool(true), &Value::from(0)), "{truth}");
    assert_eq!(truth["threads_started"], truth["threads_finished"], "{truth}");
}

/// Paths of all cgroups that reprieve made and that still exist.
pub fn groups() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                if entry.file_name().to_string_lossy().starts_with("reprieve-") {
                    found.push(entry.path());
                }
                dirs.push(entry.path());
            }
        }
    }
    found
}

/// A memcg of a test's own, gone with it.
pub struct Group(pub PathBuf);

impl Group {
    pub fn new(name: &str) -> Self {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let root = if v1.is_dir() { v1 } else { Path::new("/sys/fs/cgroup") };
        let dir = root.join(format!("{name}-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        Group(dir)
    }

    pub fn usage(&self) -> u64 {
        usage(&self.0)
    }

    /// Makes a shell, `command`, that enters it and becomes what further arguments say.
    pub fn entered_by<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(self.0.join("cgroup.procs"))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The last of it may still be going.
        let begun = Instant::now();
        while fs::remove_dir(&self.0).is_err() && begun.elapsed() < Duration::from_secs(5) {
            std::thread::yield_now();
        }
    }
}

/// Bytes of a process in memory, to the page (unlike VmRSS).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resident {
    /// Its own anonymous pages.
    pub anonymous: u64,
    /// All it has mapped.
    pub all: u64,
}

impl Resident {
    pub fn of(pid: i32) -> Self {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let bytes = |key: &str| {
            let line = rollup.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
        };
        Resident { anonymous: bytes("Pss_Anon:"), all: bytes("Rss:") }
    }

    /// Asserts that reading it has brought no page in. The kernel may take pages of
    /// files away at any time, as DAMON does with cold ones.
    pub fn assert_not_grown(self, before: Resident, whose: &str) {
        assert_eq!(self.anonymous, before.anonymous, "{whose}: {self:?} after {before:?}");
        assert!(self.all <= before.all, "{whose}: {self:?} after {before:?}");
    }
}

/// Says what a job is worth, as its owner does.
pub fn prioritize(dir: &Path, priority: &str) {
    let path = CString::new(dir.as_os_str().as_bytes()).unwrap();
    let name = c"user.reprieve.priority";
    // SAFETY: two C strings, and as many bytes as the live text has.
    let set = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), priority.as_ptr().cast(), priority.len(), 0) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

/// Bytes that are charged to a memcg.
pub fn usage(group: &Path) -> u64 {
    let read = |file: &str| fs::read_to_string(group.join(file));
    read("memory.usage_in_bytes").or_else(|_| read("memory.current")).unwrap().trim().parse().unwrap()
}

/// A child that is killed and reaped in the end.
pub struct Doomed(pub Child);

impl Doomed {
    pub fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    /// Stops it until it dies.
    pub fn stop(&self) {
        let pid = nix::unistd::Pid::from_raw(self.pid());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
        wait_for("the stop", || self.is_stopped());
    }

    /// Whether each of its threads is.
    pub fn is_stopped(&self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        let mut states = threads.map(|t| fs::read_to_string(t.unwrap().path().join("stat")).unwrap());
        states.all(|stat| stat.contains(") T "))
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A command that has a terminal of its own.
pub struct Terminal {
    script: Child,
    keys: ChildStdin,
    shown: PathBuf,
}

impl Terminal {
    /// Starts a command under reprieve on a terminal.
    pub fn start(lab: &Lab, options: &[&str], command: &[&str]) -> Self {
        let shown = lab.out().join("typescript");
        let [config, none] = NO_CONFIG;
        let run = [env!("CARGO_BIN_EXE_reprieve"), config, none, "run", "--out", lab.out().to_str().unwrap()];
        let words = run.iter().chain(options).chain(&["--"]).chain(command).map(|word| format!("'{word}'"));
        let mut script = Command::new("script");
        script.args(["--quiet", "--flush", "--return", "--command"]);
        script.arg(words.collect::<Vec<_>>().join(" ")).arg(&shown);
        let mut script = script.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let keys = script.stdin.take().unwrap();
        Terminal { script, keys, shown }
    }

    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.shown).unwrap_or_default()).into_owned()
    }

    pub fn wait_for(&self, text: &str) {
        wait_for(text, || self.screen().contains(text));
    }

    pub fn enter(&mut self, line: &str) {
        self.keys.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// How the command ended.
    pub fn wait(mut self) -> ExitStatus {
        self.script.wait().unwrap()
    }
}

fn assert_no_group_of(output: &Output) {
    // One whose maker lives is somebody else's: ours has ended.
    let is_left = |group: &PathBuf| {
        let name = group.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let maker = name.split('-').nth(1).and_then(|pid| pid.parse::<u32>().ok());
        !maker.is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists())
    };
    let left: Vec<PathBuf> = groups().into_iter().filter(is_left).collect();
    assert!(left.is_empty(), "left behind: {left:?}\n{}", text(output));
}

/// Waits for a condition; panics with `what` when it does not come.
pub fn wait_for(what: &str, condition: impl FnMut() -> bool) {
    wait_for_what(&|| what.to_owned(), condition);
}

/// The same with something to tell of the time when it had not happened.
pub fn wait_for_what(what: &dyn Fn() -> String, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{} did not happen in 30 s", what());
        // A guest has one processor, and who is waited for needs it.
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Every thread of every process of an incident.
pub fn threads(incident: &Value) -> Vec<&Value> {
    let processes = incident["processes"].as_array().unwrap();
    processes.iter().flat_map(|p| p["threads"].as_array().unwrap()).collect()
}

/// A general register of a recorded thread, by its name.
pub fn register(thread: &Value, name: &str) -> u64 {
    let all = &thread["registers"];
    // Those of 64-bit ARM are a list.
    let value = match (all["architecture"].as_str(), name.strip_prefix('x')) {
        (Some("aarch64"), Some(number)) => &all["x"][number.parse::<usize>().unwrap()],
        _ => &all[name],
    };
    value.as_u64().unwrap_or_else(|| panic!("no {name} in {thread}"))
}

/// Asserts that a stopped thread was recorded with its registers: those that its stack
/// begins with, too.
pub fn assert_registers(thread: &Value) {
    let (ip, sp) = if cfg!(target_arch = "x86_64") { ("rip", "rsp") } else { ("pc", "sp") };
    assert_eq!(thread["stop"]["kind"], "stopped", "{thread}");
    assert_eq!(Some(register(thread, ip)), thread["stack"]["frames"][0]["address"].as_u64(), "{thread}");
    assert_ne!(register(thread, sp), 0, "{thread}");
}

/// Asserts that the thread of fixtures/c/marked.h was recorded with the registers that
/// it tells in a fixture's truth.
pub fn assert_marked(incident: &Value, truth: &Value) {
    let marked = &truth["marked"];
    let is_marked = |thread: &&Value| thread["tid"] == marked["tid"];
    let thread = threads(incident).into_iter().find(is_marked).unwrap_or_else(|| panic!("{marked} of {incident}"));
    assert_registers(thread);
    let registers = marked["registers"].as_object().unwrap();
    assert_eq!(registers.len(), 7, "{marked}");
    for (name, value) in registers {
        assert_eq!(Some(register(thread, name)), value.as_u64(), "{name} of {thread}");
    }
}

/// Whether the hold kept to its rules.
pub fn assert_held_well(incident: &Value) {
    let hold = &incident["hold"];
    assert!(hold["guardian_locked_bytes"].as_u64().unwrap() <= 16 << 20, "{hold}");
    assert_stopped_well(incident);
}

/// Whether everybody was stopped in time, with registers.
pub fn assert_stopped_well(incident: &Value) {
    assert_eq!(incident["trigger"], "oom", "{incident}");
    let hold = &incident["hold"];
    assert_eq!(hold["threads_not_stopped"], 0, "{hold}");
    assert!(hold["snapshot_us"].as_u64().unwrap() <= hold["deadline_us"].as_u64().unwrap(), "{hold}");
    assert!(!threads(incident).is_empty());
    let gone = |thread: &&&Value| thread["stop"]["kind"] != "gone";
    threads(incident).iter().filter(gone).for_each(|thread| assert_registers(thread));
}

/// Asserts that the reserve of a hold by the kernel was enough for all threads that the
/// hold found, each of which may be charged 128 KiB of it, and for one large system call.
/// It is made so when the hold is looked at, which may be too late for one that found room.
pub fn assert_reserve_fits(incident: &Value) {
    if ended_by_itself(incident) {
        return;
    }
    let hold = &incident["hold"];
    let threads = hold["threads_stopped"].as_u64().unwrap() + hold["threads_not_stopped"].as_u64().unwrap();
    let reserve = hold["kernel"]["reserve_bytes"].as_u64().unwrap_or_else(|| panic!("{hold}"));
    assert!(reserve >= (8 << 20) + threads * (128 << 10), "{threads} threads: {hold}");
}

/// What could not be had of a process, but for the heap by stack of one that was
/// started without the library.
pub fn gaps(process: &Value) -> Vec<&str> {
    let all = process["gaps"].as_array().unwrap().iter().map(|gap| gap.as_str().unwrap());
    all.filter(|gap| !gap.starts_with("its heap is not known: it was started without")).collect()
}

/// While it lives this thread runs before the guardian, whose priority is 1 (sched(7)).
pub struct Urgent;

impl Urgent {
    pub fn start() -> Self {
        Self::schedule(libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, 2);
        Urgent
    }

    fn schedule(policy: i32, priority: i32) {
        // SAFETY: sched_param has only integers, for which zero is a value.
        let mut param: libc::sched_param = unsafe { std::mem::zeroed() };
        param.sched_priority = priority;
        // SAFETY: 0 is this thread; the pointer is to a live local.
        let result = unsafe { libc::sched_setscheduler(0, policy, &raw const param) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        Self::schedule(libc::SCHED_OTHER, 0);
    }
}
