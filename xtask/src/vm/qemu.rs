//! The machine: QEMU with the devices the guest's kernel has drivers for.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};

use super::cache::{self, Key, Scratch};
use super::kernel::Kernel;
use super::output::Output;
use super::{Cgroup, Extras, Flavor, GuestSpec, TIMED_OUT, init};
use crate::deps::{self, Package};

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGES: &[Package] = &[Package { name: "qemu-system-x86", why: "the machine the guest's kernel boots on" }];

/// How long a guest under KVM may take to run `true`. A working one takes
/// about a second.
const KVM_PATIENCE: Duration = Duration::from_secs(8);
/// How much of the kernel's log a failure shows.
const LOG_LINES: usize = 40;

/// What executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accelerator {
    /// The processor.
    Kvm,
    /// QEMU's translator: slower by an order of magnitude, and always there.
    Tcg,
}

/// The accelerator that works here.
///
/// That `/dev/kvm` can be opened does not say it: where this machine is itself
/// a guest, a kernel may hang on it. So one is booted, once, and the outcome
/// kept in the cache under the kernels and the QEMU it was found with.
pub(super) fn accelerator(kernel: &Kernel) -> Result<Accelerator> {
    deps::ensure(PACKAGES)?;
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(Accelerator::Tcg);
    }
    let qemu = Command::new(PROGRAM).arg("--version").output().with_context(|| format!("{PROGRAM} cannot be run"))?;
    let host = fs::read("/proc/version").context("/proc/version: cannot be read")?;
    let key = Key::new().field(&qemu.stdout).field(&host).field(kernel.bzimage.as_os_str().as_encoded_bytes());
    let verdict = cache::directory()?.join(format!("accelerator-{}", key.hex()));
    match fs::read_to_string(&verdict).as_deref() {
        Ok("kvm\n") => return Ok(Accelerator::Kvm),
        Ok("tcg\n") => return Ok(Accelerator::Tcg),
        // Absent, or half written by a task that was killed.
        _ => {}
    }
    let spec = GuestSpec {
        command: vec!["true".into()],
        env: Vec::new(),
        cwd: "/".into(),
        memory_mib: 256,
        cpus: 1,
        timeout: KVM_PATIENCE,
        cgroup: Cgroup::V2,
        kernel: Flavor::Stock,
        terminal: false,
    };
    eprintln!("trying whether a guest boots with KVM");
    let (ending, log) = attempt(kernel, Accelerator::Kvm, &spec, &Extras::default(), &mut io::sink())?;
    let (accelerator, word, outcome) = match ending {
        Ending::Exit(0) => (Accelerator::Kvm, "kvm\n", "it does".to_owned()),
        Ending::TimedOut => {
            (Accelerator::Tcg, "tcg\n", format!("not within {} s: guests are emulated", spec.timeout.as_secs()))
        }
        Ending::Exit(_) | Ending::Died => {
            let last = log.lines().last().unwrap_or_default().trim();
            (Accelerator::Tcg, "tcg\n", format!("it dies: guests are emulated; its last words: {last}"))
        }
    };
    eprintln!("{outcome} (remembered in {})", verdict.display());
    fs::write(&verdict, word).with_context(|| format!("{}: cannot be written", verdict.display()))?;
    Ok(accelerator)
}

/// Runs `spec` in a guest; its output goes to `sink`, its status is returned, with
/// all that its kernel said.
pub(super) fn boot(
    kernel: &Kernel,
    accelerator: Accelerator,
    spec: &GuestSpec,
    extras: &Extras,
    sink: &mut dyn Write,
) -> Result<(i32, String)> {
    let (ending, log) = attempt(kernel, accelerator, spec, extras, sink)?;
    match ending {
        Ending::Exit(status) => Ok((status, log)),
        Ending::TimedOut => {
            let seconds = spec.timeout.as_secs();
            eprintln!("the guest ran out of its {seconds} s; its kernel said last:\n{}", tail(&log));
            Ok((TIMED_OUT, log))
        }
        Ending::Died if extras.may_die => Ok((super::DIED, log)),
        Ending::Died => bail!("the guest died before its command ended; its kernel said last:\n{}", tail(&log)),
    }
}

/// How a guest ended.
enum Ending {
    /// Its command exited.
    Exit(i32),
    /// It was still running at its deadline.
    TimedOut,
    /// QEMU ended on its own: a panic, or it could not start.
    Died,
}

/// One boot, from start to end; with the kernel's log.
fn attempt(
    kernel: &Kernel,
    accelerator: Accelerator,
    spec: &GuestSpec,
    extras: &Extras,
    sink: &mut dyn Write,
) -> Result<(Ending, String)> {
    let deadline = Instant::now() + spec.timeout;
    let directory = Scratch::make(directory()?)?;
    let marker = marker();
    let init = directory.path().join("init");
    fs::write(&init, init::script(spec, &marker)?)
        .and_then(|()| fs::set_permissions(&init, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("{}: the guest's first script cannot be written", init.display()))?;
    let log = directory.path().join("console.log");

    let (ours, theirs) = UnixStream::pair().context("a socket for the guest's output cannot be made")?;
    let machine = Machine::start(command(kernel, accelerator, spec, extras, &init, &log, &theirs)?, theirs)?;
    let ending = listen(ours, deadline, Output::new(&marker), sink)?;
    // Kills it: there is nothing in it to be saved.
    drop(machine);
    Ok((ending, read_log(&log)))
}

/// A directory for one guest, which the guest sees at the same path.
fn directory() -> Result<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let cache = cache::directory()?;
    // What tasks that were killed left behind goes: their process is no more.
    for entry in fs::read_dir(&cache).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix("guest-")?.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Another task may be doing the same.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = cache.join(format!("guest-{}-{number}", std::process::id()));
    // It becomes part of the kernel's command line and of QEMU's option lists.
    if !path.to_str().is_some_and(|text| text.bytes().all(|b| b.is_ascii_graphic() && b != b',' && b != b'"')) {
        bail!("{}: no path for a guest; set REPRIEVE_CACHE to one without spaces and commas", path.display());
    }
    Ok(path)
}

/// A marker for the exit status that no other run has.
fn marker() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let key = Key::new().field(&now.as_nanos().to_le_bytes()).field(&std::process::id().to_le_bytes());
    format!("\u{1e}reprieve {}:", key.hex())
}

/// QEMU's command line.
fn command(
    kernel: &Kernel,
    accelerator: Accelerator,
    spec: &GuestSpec,
    extras: &Extras,
    init: &Path,
    log: &Path,
    port: &UnixStream,
) -> Result<Command> {
    let errors = File::create(log).with_context(|| format!("{}: cannot be made", log.display()))?;
    // QEMU's own complaints and the kernel's log share a file: both append.
    let log_option = format!("file,id=log,path={},append=on", log.display());
    let mut command = Command::new(PROGRAM);
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    match accelerator {
        // Time is the count of instructions, one a nanosecond, and passes at once
        // when there are none. Without ERMS, pages are cleared by words: the
        // emulator counts what `rep` repeats, a processor does not.
        _ if extras.counted => {
            command.args(["-accel", "tcg,thread=single", "-cpu", "max,-erms,-fsrm", "-icount", "shift=0,sleep=off"])
        }
        Accelerator::Kvm => command.args(["-accel", "kvm", "-cpu", "host"]),
        Accelerator::Tcg => command.args(["-accel", "tcg,thread=multi", "-cpu", "max"]),
    };
    command
        .args(["-smp", &spec.cpus.to_string()])
        .args(["-m", &format!("{}M", spec.memory_mib)])
        .args(["-chardev", &log_option, "-serial", "chardev:log"])
        .args(if spec.terminal {
            &["-chardev", "stdio,id=terminal,signal=off", "-serial", "chardev:terminal"][..]
        } else {
            &[]
        })
        .args(["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"])
        .args(["-chardev", &format!("socket,id=output,fd={}", port.as_raw_fd())])
        .args(["-device", "virtserialport,chardev=output,name=reprieve"])
        // The host may have several file systems below its root; remap keeps
        // their inode numbers apart.
        .args(["-virtfs", "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap"])
        .arg("-kernel")
        .arg(&kernel.bzimage)
        // 512000 is the most that the kernel's 9p transport over virtio takes. The check
        // counts ticks: an emulator that gets no processor for some has a broken timer.
        .arg("-append")
        .arg(format!(
            "console=ttyS0 panic=-1 oops=panic no_timer_check ro root=root rootfstype=9p \
             rootflags=trans=virtio,version=9p2000.L,msize=512000,cache=loose init={} {}",
            init.display(),
            extras.parameters
        ))
        .stderr(errors);
    if !spec.terminal {
        command.stdin(Stdio::null()).stdout(Stdio::null());
    }
    Ok(command)
}

/// A running QEMU; killed when dropped, and by the kernel when we die.
struct Machine(Child);

impl Machine {
    /// Starts `command`, which inherits `port` and is its only holder then.
    fn start(mut command: Command, port: UnixStream) -> Result<Self> {
        let descriptor = port.as_raw_fd();
        let parent = std::process::id();
        let prepare = move || {
            // SAFETY: prctl(2), getppid(2) and fcntl(2) with these arguments
            // take integers only, and are async-signal-safe, as they must be
            // between fork and exec. `descriptor` is open: `port` is dropped
            // after the spawn.
            let failed = unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0
                    || libc::fcntl(descriptor, libc::F_SETFD, 0) != 0
            };
            if failed {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: getppid(2) takes nothing and cannot fail.
            if unsafe { libc::getppid() }.cast_unsigned() != parent {
                // We died before the signal was asked for.
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        };
        // SAFETY: the closure allocates nothing and takes no lock; all it
        // calls is async-signal-safe.
        unsafe { command.pre_exec(prepare) };
        let child = command.spawn().with_context(|| format!("{PROGRAM} cannot be run"))?;
        drop(port);
        Ok(Self(child))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Fails only if it has ended and was waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Passes the guest's output on until its command, it or its time ends.
fn listen(mut stream: UnixStream, deadline: Instant, mut output: Output, sink: &mut dyn Write) -> Result<Ending> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Ending::TimedOut);
        }
        stream.set_read_timeout(Some(left)).context("the guest's output: no timeout can be set")?;
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(Ending::Died),
            Ok(length) => {
                let status = output.feed(&buffer[..length], sink).context("the guest's output cannot be written")?;
                if let Some(status) = status {
                    return Ok(Ending::Exit(status));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(Ending::Died),
            // The time is up, or a signal came: the loop's head knows.
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error).context("the guest's output cannot be read"),
        }
    }
}

/// What the kernel wrote to its console.
fn read_log(log: &Path) -> String {
    match fs::read(log) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).replace('\r', ""),
        Err(error) => format!("{}: cannot be read: {error}", log.display()),
    }
}

/// The last lines of a log, each indented.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
    last.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}
