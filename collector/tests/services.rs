//! Programs that nobody guards, started by hand with what `heap env` prints:
//! `snapshot` finds their tables.

mod common;

use common::{Doomed, Group, Lab, assert_held_well, assert_unharmed, fixture, text, wait_for};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// All of python's memory from malloc, so that malloc can be asked how much it is.
const PYTHON: &str = "/usr/bin/python3";

/// A lab whose folder other users can read, with the library in it.
struct Site {
    lab: Lab,
    library: PathBuf,
}

impl Site {
    fn new() -> Self {
        let lab = Lab::new();
        fs::set_permissions(lab.out(), fs::Permissions::from_mode(0o755)).unwrap();
        let env = heap_env(&["--json", "--dir", lab.out().join("lib").to_str().unwrap()]);
        let env: Value = serde_json::from_str(&env).unwrap();
        let library = PathBuf::from(env["environment"]["LD_PRELOAD"].as_str().unwrap());
        Site { lab, library }
    }

    /// A command as a unit file would start it.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LD_PRELOAD", &self.library).env("REPRIEVE_HEAP", "own:65536").env("PYTHONMALLOC", "malloc");
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }

    /// The processes of a snapshot.
    fn snapshot(&self, target: &str) -> Vec<Value> {
        let output = self.lab.reprieve("snapshot").arg(target).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        self.lab.incidents().pop().unwrap()["processes"].as_array().unwrap().clone()
    }
}

fn heap_env(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_reprieve")).args(["heap", "env"]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// A process that tells about itself.
struct Service(Doomed);

impl Service {
    fn start(command: &mut Command) -> Self {
        Service(Doomed(command.spawn().unwrap()))
    }

    fn pid(&self) -> String {
        self.0.pid().to_string()
    }

    /// Its next line.
    fn line(&mut self) -> String {
        let mut line = String::new();
        let out = self.0.0.stdout.as_mut().unwrap();
        BufReader::with_capacity(1, out).read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

/// Memory in blocks of malloc (mallinfo(3)), printed when it has grown.
const GROWN: &str = r"
import ctypes, os, signal, sys
class Info(ctypes.Structure):
    _fields_ = [(n, ctypes.c_size_t) for n in 'arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keep'.split()]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
def in_use():
    info = libc.mallinfo2()
    return info.uordblks + info.hblkhd
def grow(mib):
    return [bytes(1000 + i % 9000) for i in range(mib * 1024 * 1024 // 5500)]
";

/// Asserts that a heap is estimated within 3 sigma; headers of chunks and cached
/// blocks are malloc's and not the program's.
fn assert_estimates(process: &Value, truth: f64) {
    let heap = &process["heaps"][0];
    assert_eq!(heap["witness"], "preload", "{:#}", process["gaps"]);
    let number = |key: &str| heap["inuse"][key].as_f64().unwrap();
    let (bytes, sigma) = (number("bytes"), number("sigma_bytes"));
    assert!((bytes - truth).abs() < 3.0 * sigma + 0.02 * truth, "{bytes} ± {sigma} for {truth}");
    assert_eq!((&heap["lost_samples"], &heap["period_bytes"]), (&Value::from(0), &Value::from(65536)));
    let stacks = heap["stacks"].as_array().unwrap();
    let cut = stacks.iter().filter(|stack| stack["cut"] == true).count();
    assert!(cut * 100 <= stacks.len(), "{cut} of {} stacks are cut", stacks.len());
}

#[test]
fn what_heap_env_prints_is_taken_by_a_shell() {
    let site = Site::new();
    let dir = site.lab.out().join("lib");
    let dir = dir.to_str().unwrap();
    let shell = heap_env(&["--dir", dir, "--period", "64K"]);
    let script = format!("{shell}exec {PYTHON} -c 'print(open(\"/proc/self/maps\").read())'");
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    let maps = String::from_utf8_lossy(&output.stdout);
    assert!(maps.contains("/memfd:reprieve-heap (deleted)") && maps.contains(dir), "{maps}");
    let unit = heap_env(&["--dir", dir, "--for", "systemd"]);
    assert!(
        unit.contains("[Service]\nEnvironment=LD_PRELOAD=/") && unit.contains("Environment=REPRIEVE_HEAP=own:524288")
    );
    let options = heap_env(&["--dir", dir, "--for", "docker"]);
    assert!(
        options.starts_with(&format!("-v {dir}/libreprieve_heap.so:")) && options.contains(" -e REPRIEVE_HEAP=own:")
    );
    assert!(heap_env(&["--dir", dir, "--for", "kubernetes"]).contains("name: LD_PRELOAD"));
}

#[test]
fn a_service_is_seen_running_and_stopped() {
    let site = Site::new();
    let script = format!("{GROWN}\nl = grow(60)\nprint(in_use(), flush=True)\nsignal.pause()");
    let mut python = Service::start(site.command(PYTHON).args(["-c", &script]));
    let truth: f64 = python.line().parse().unwrap();
    assert_estimates(&site.snapshot(&python.pid())[0], truth);
    python.0.stop();
    let process = &site.snapshot(&python.pid())[0];
    assert_eq!(process["state"], "T");
    assert_estimates(process, truth);
}

#[test]
fn redis_knows_as_much_as_its_table() {
    let site = Site::new();
    let socket = site.lab.out().join("redis.sock");
    let options = ["--port", "0", "--save", "", "--enable-debug-command", "local", "--unixsocket"];
    let redis = Service::start(site.command("redis-server").args(options).arg(&socket));
    let client = |arguments: &[&str]| {
        let output = Command::new("redis-cli").arg("-s").arg(&socket).args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    wait_for("redis", || client(&["ping"]) == "PONG\n");
    assert_eq!(client(&["debug", "populate", "100000", "key", "400"]), "OK\n");
    // What it had from malloc, by malloc_usable_size.
    let info = client(&["info", "memory"]);
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
    let process = &site.snapshot(&redis.pid())[0];
    assert_estimates(process, used.trim().parse().unwrap());
}

#[test]
fn children_of_a_prefork_server_share_its_table_and_count_what_is_shared_once() {
    let site = Site::new();
    let group = Group::new("prefork");
    // Workers come and go before those that stay.
    let script = format!(
        "{GROWN}
l = grow(30)
for i in range(300):
    if not (pid := os.fork()): os._exit(len(grow(1)) == 0)
    assert os.waitpid(pid, 0)[1] == 0
shared = in_use()
own = 0
for i in range(3):
    r, w = os.pipe()
    if not os.fork():
        more = grow(10)
        os.write(w, str(in_use() - shared).encode())
        while True: signal.pause()
    own += int(os.read(r, 100))
print(shared, own, flush=True)
signal.pause()"
    );
    let mut server = Service::start(group.entered_by(&mut site.command("sh")).args([PYTHON, "-c", &script]));
    let line = server.line();
    let (shared, own) = line.split_once(' ').unwrap();
    let (shared, own): (f64, f64) = (shared.parse().unwrap(), own.parse().unwrap());
    let processes = site.snapshot(group.0.to_str().unwrap());
    assert_eq!(processes.len(), 4);
    let total: f64 = processes.iter().map(|p| p["heaps"][0]["inuse"]["bytes"].as_f64().unwrap()).sum();
    let sigma = (65536.0 * (shared + own)).sqrt();
    assert!((total - shared - own).abs() < 3.0 * sigma + 0.02 * total, "{total} ± {sigma} for {shared} + {own}");
    // The table is shared by all, and holds no slabs of the 300.
    let shmem = fs::read_to_string(group.0.join("memory.stat")).unwrap();
    let shmem: u64 = shmem.lines().find_map(|l| l.strip_prefix("total_shmem ")?.parse().ok()).unwrap();
    assert!(shmem < 8 << 20, "{shmem}");
    // A worker alone has what it inherited.
    let worker = processes.iter().map(|p| p["pid"].to_string()).find(|pid| *pid != server.pid()).unwrap();
    let alone = &site.snapshot(&worker)[0];
    assert_estimates(alone, shared + own / 3.0);
    let pids = processes.iter().map(|p| p["pid"].as_i64().unwrap() as i32);
    for pid in pids.filter(|&pid| pid != server.0.pid()) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
}

#[test]
fn a_service_in_namespaces_of_its_own_and_without_proc_is_seen() {
    let site = Site::new();
    let root = site.lab.out().join("root");
    fs::create_dir(&root).unwrap();
    let script = format!(
        "{GROWN}\nl = grow(40)\nassert not os.path.exists('/proc/self')\nprint(in_use(), flush=True)\nsignal.pause()"
    );
    let root = root.to_str().unwrap();
    let enter = format!("mount --bind / {root} && mount -t tmpfs none {root}/proc && exec chroot {root} \"$@\"");
    let arguments = ["--pid", "--mount", "--fork", "--kill-child", "sh", "-c", &enter, "sh", PYTHON, "-c", &script];
    let mut unshare = Service::start(site.command("unshare").args(arguments));
    let truth: f64 = unshare.line().parse().unwrap();
    let pid = unshare.pid();
    let child = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let process = &site.snapshot(child.trim())[0];
    assert_eq!(process["comm"], "python3");
    assert_estimates(process, truth);
}

#[test]
fn another_users_service_is_seen_by_root_and_by_that_user() {
    let site = Site::new();
    let script = format!("{GROWN}\nl = grow(40)\nprint(in_use(), flush=True)\nsignal.pause()");
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let mut python = Service::start(site.command("setpriv").args(nobody).args([PYTHON, "-c", &script]));
    let truth: f64 = python.line().parse().unwrap();
    let process = &site.snapshot(&python.pid())[0];
    assert_eq!(process["uid"], 65534);
    assert_estimates(process, truth);
    // The user cannot open /proc/PID/map_files, but the descriptor.
    let program = site.lab.out().join("reprieve");
    fs::copy(env!("CARGO_BIN_EXE_reprieve"), &program).unwrap();
    let theirs = site.lab.out().join("theirs");
    fs::create_dir(&theirs).unwrap();
    std::os::unix::fs::chown(&theirs, Some(65534), Some(65534)).unwrap();
    let mut snapshot = Command::new("setpriv");
    snapshot.args(nobody).arg(&program).args(["snapshot", "--out"]).arg(&theirs).arg(python.pid());
    let output = snapshot.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let folder = fs::read_dir(&theirs).unwrap().flatten().find(|e| e.path().join("incident.json").is_file()).unwrap();
    let incident: Value = serde_json::from_slice(&fs::read(folder.path().join("incident.json")).unwrap()).unwrap();
    assert_estimates(&incident["processes"][0], truth);
}

#[test]
fn a_table_of_its_own_is_also_found_under_run() {
    let lab = Lab::new();
    let command = ["env", "REPRIEVE_HEAP=own:65536", &fixture("steady_leak"), "--mib", "96"];
    let output = lab.run(&["--memory", "64M", "--on-oom", "grant=256M"], &command);
    assert_unharmed(&output);
    let incident = lab.incident();
    assert_held_well(&incident);
    let process = &incident["processes"][0];
    let bytes = process["heaps"][0]["inuse"]["bytes"].as_f64().unwrap();
    let sigma = process["heaps"][0]["inuse"]["sigma_bytes"].as_f64().unwrap();
    let anon = process["memory"]["pss_anon_bytes"].as_f64().unwrap();
    assert!((bytes - anon).abs() < 4.0 * sigma + f64::from(2 << 20), "{bytes} ± {sigma} of {anon}");
}

/// The sentences on a process that was started so.
fn gaps(site: &Site, command: &mut Command) -> String {
    let mut service = Service::start(command);
    assert_eq!(service.line(), "ready");
    let process = &site.snapshot(&service.pid())[0];
    process["gaps"].to_string()
}

fn compile(site: &Site, name: &str, text: &str, options: &[&str]) -> String {
    let (source, program) = (site.lab.out().join(format!("{name}.c")), site.lab.out().join(name));
    fs::write(&source, text).unwrap();
    assert!(Command::new("cc").args(options).arg("-o").arg(&program).arg(&source).status().unwrap().success());
    program.display().to_string()
}

const READY: &str =
    "#include <stdio.h>\n#include <unistd.h>\nint main(void) { puts(\"ready\"); fflush(stdout); pause(); return 0; }\n";

#[test]
fn why_nothing_is_known_is_found_out() {
    let site = Site::new();
    let plain = compile(&site, "plain", READY, &["-O2"]);
    let missing = gaps(&site, Command::new(&plain).stdout(Stdio::piped()));
    let shown = text(&site.lab.reprieve("show").output().unwrap()).replace("\n  ", " ");
    assert!(shown.contains("NOT KNOWN") && shown.contains("started without libreprieve_heap.so"), "{shown}");
    assert!(
        missing.contains("started without libreprieve_heap.so") && missing.contains("reprieve heap env"),
        "{missing}"
    );
    let tableless = gaps(&site, site.command(&plain).env_remove("REPRIEVE_HEAP"));
    assert!(tableless.contains("REPRIEVE_HEAP is not in its environment"), "{tableless}");
    let is_static = compile(&site, "static", READY, &["-static"]);
    let is_static = gaps(&site, &mut site.command(&is_static));
    assert!(is_static.contains("static program"), "{is_static}");
    let setuid = compile(&site, "setuid", READY, &["-O2"]);
    fs::set_permissions(&setuid, fs::Permissions::from_mode(0o4755)).unwrap();
    let mut as_nobody = site.command("setpriv");
    let secure = gaps(&site, as_nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups", &setuid]));
    assert!(secure.contains("AT_SECURE"), "{secure}");
    let own = format!(
        "#include <stddef.h>\nstatic char heap[1 << 24]; static size_t used;\n\
         void *malloc(size_t n) {{ void *p = heap + used; used += (n + 15) & ~15ul; return p; }}\n\
         void free(void *p) {{ (void)p; }}\n{READY}"
    );
    let own = compile(&site, "own", &own, &["-O2", "-fno-builtin", "-rdynamic"]);
    let own = gaps(&site, &mut site.command(&own));
    assert!(own.contains("a malloc of its own"), "{own}");
    let small = gaps(&site, site.command("prlimit").args(["--fsize=4096", &plain]));
    assert!(small.contains("RLIMIT_FSIZE"), "{small}");
}

#[test]
fn a_table_that_lies_is_read_within_bounds() {
    let site = Site::new();
    // Of a size that would be the end of the guardian; all noise; noise behind a
    // true header; shrinking while it is read.
    let script = "
import mmap, os, random, signal, sys, threading
kind = sys.argv[1]
f = os.memfd_create('reprieve-heap')
size = 1 << 40 if kind == 'huge' else 8 << 20
os.ftruncate(f, size)
m = mmap.mmap(f, 8 << 20)
random.seed(int(sys.argv[2]))
m[:] = random.randbytes(8 << 20)
if kind in ('header', 'shrinking'):
    word = lambda at, value: m.__setitem__(slice(at, at + 8), value.to_bytes(8, 'little'))
    word(0, int.from_bytes(b'RPRVHP02', 'little'))
    for i, value in enumerate([64, 64, 64, 0, 0, 65536, 65536, 0, 63, 63, 1]): word(8 + 8 * i, value)
    for slab in range(1, 64):
        word(4096 + 8 * slab, 1 | slab << 32)
        word(slab << 17, 0x4c495645)
        word((slab << 17) + 8, os.getpid())
        word((slab << 17) + 16, os.stat('/proc/self/ns/pid').st_ino)
print('ready', flush=True)
def shrink():
    while True:
        for mib in (0, 1, 2): os.ftruncate(f, mib << 20)
if kind == 'shrinking': threading.Thread(target=shrink, daemon=True).start()
signal.pause()
";
    for (seed, kind) in ["huge", "noise", "header", "header", "shrinking"].iter().enumerate() {
        let mut command = Command::new(PYTHON);
        command.args(["-c", script, kind, &seed.to_string()]).stdout(Stdio::piped());
        let mut liar = Service::start(&mut command);
        assert_eq!(liar.line(), "ready");
        let begun = std::time::Instant::now();
        let process = &site.snapshot(&liar.pid())[0];
        assert!(begun.elapsed().as_secs() < 20, "{kind} took {:?}", begun.elapsed());
        assert!(process["gaps"].to_string().contains("heap") || process["heaps"][0].is_object(), "{process:#}");
    }
}
