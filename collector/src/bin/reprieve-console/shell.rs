//! A shell that works while memory is out: in a cgroup of its own, with memory set aside
//! in advance, and its files kept in memory.
//!
//! A child waits in that cgroup from the start with the memory that the shell will need.
//! When it is asked for, it gives that memory free and becomes the shell, so that what was
//! free a moment ago is what it takes. (A limit cannot reserve: it says how much one may
//! have, not that it is there.)

use nix::sys::mman::{MapFlags, ProtFlags, mlock, mmap, mmap_anonymous, munmap};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, killpg, sigaction};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpgrp, pipe, read, setpgid, tcsetpgrp, write};
use reprieve::cgroup::{self, Hierarchy, Memcg, Version};
use reprieve::incident::units;
use std::ffi::CString;
use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What is set aside. A shell and a few tools need less than half of it.
const SET_ASIDE_BYTES: usize = 16 << 20;
/// What the shell and all that it starts may have.
const LIMIT_BYTES: usize = 64 << 20;
/// Tools that are kept in memory with the shell.
const TOOLS: [&str; 7] = ["ps", "cat", "ls", "kill", "top", "free", "grep"];

/// The shell, before it is one.
pub struct Shell {
    memcg: Option<Memcg>,
    keeper: Option<Keeper>,
    /// What is missing, each a sentence.
    missing: Vec<String>,
    program: CString,
}

/// The child that waits.
struct Keeper {
    pid: Pid,
    go: OwnedFd,
    ready: OwnedFd,
}

impl Shell {
    /// Sets everything aside.
    pub fn set_aside() -> Self {
        let program = std::env::var("SHELL").ok().filter(|shell| shell.starts_with('/'));
        let program = program.unwrap_or_else(|| "/bin/sh".to_owned());
        let mut missing = Vec::new();
        if let Err(why) = keep_files(&program) {
            missing.push(format!("its files are not kept in memory ({why})"));
        }
        let memcg = own_group().map_err(|why| missing.push(format!("it has no cgroup of its own ({why})"))).ok();
        let mut shell = Shell { memcg, keeper: None, missing, program: CString::new(program).unwrap_or_default() };
        shell.hire();
        shell
    }

    /// The same again, after it was used.
    pub fn set_aside_again(mut self) -> Self {
        self.hire();
        self
    }

    fn hire(&mut self) {
        match Keeper::start(self.memcg.as_ref(), &self.program) {
            Ok(keeper) => self.keeper = Some(keeper),
            Err(error) => self.missing.push(format!("nothing is set aside for it ({error})")),
        }
    }

    /// Becomes the shell on this terminal, until it ends; says how that was.
    pub fn open(&mut self) -> String {
        let Some(keeper) = self.keeper.take() else {
            return format!("there is no shell: {}", self.missing.join("; "));
        };
        let group = self.memcg.as_ref().map_or_else(|| "this cgroup".to_owned(), |memcg| memcg.path().to_owned());
        println!(
            "reprieve: a shell in {group}, with {} that were set aside; `exit` goes back to the console",
            units::bytes(SET_ASIDE_BYTES as u64)
        );
        self.missing.iter().for_each(|missing| println!("reprieve: {missing}"));
        match keeper.become_shell() {
            Ok(()) => "the shell has ended".to_owned(),
            Err(error) => format!("the shell could not be started: {error}"),
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        if let Some(keeper) = self.keeper.take() {
            let _ = kill(keeper.pid, Signal::SIGKILL);
            let _ = waitpid(keeper.pid, None);
        }
        // What was started in the background and left running keeps its cgroup; the next
        // `reprieve run` removes it when it is empty.
        self.memcg.iter().for_each(|memcg| drop(memcg.remove()));
    }
}

/// A cgroup below the root, whatever we are in ourselves: that may be what is full.
fn own_group() -> Result<Memcg, String> {
    let hierarchy = Hierarchy::memory().map_err(|error| error.to_string())?;
    let hierarchy = Hierarchy { own: "/".to_owned(), ..hierarchy };
    let memcg = cgroup::create_memcg(&hierarchy, &cgroup::name_of_own_group()).map_err(|error| error.to_string())?;
    let limit = LIMIT_BYTES.to_string();
    let written = match memcg.version() {
        Version::V1 => memcg.write("memory.limit_in_bytes", &limit),
        Version::V2 => {
            // What is charged to it is not reclaimed for others.
            let _ = memcg.write("memory.min", &(2 * SET_ASIDE_BYTES).to_string());
            memcg.write("memory.max", &limit)
        }
    };
    written.map(|()| memcg).map_err(|error| error.to_string())
}

/// Maps and locks the files that the shell and its tools are made of, for as long as we
/// live: a page of a program that is read from the disk wants memory, too.
fn keep_files(shell: &str) -> Result<(), String> {
    // Two commands, or a shell becomes the only one.
    let probe = "cat /proc/$$/maps; cat /proc/self/maps";
    let maps = Command::new(shell).args(["-c", probe]).stdin(Stdio::null()).stderr(Stdio::null()).output();
    let maps = maps.map_err(|error| error.to_string())?;
    let maps = String::from_utf8_lossy(&maps.stdout).into_owned();
    let mapped = maps.lines().filter_map(|line| line.find('/').map(|at| PathBuf::from(&line[at..])));
    let tools = TOOLS.iter().flat_map(|tool| ["/usr/bin/", "/bin/"].map(|dir| PathBuf::from(format!("{dir}{tool}"))));
    let mut files: Vec<PathBuf> = mapped.chain(tools).filter_map(|path| fs::canonicalize(path).ok()).collect();
    files.sort();
    files.dedup();
    // Locales and the like are big, and not needed to run.
    files.retain(|path| fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() < 8 << 20));
    let failed = files.iter().filter_map(|path| keep(path).err().map(|error| format!("{}: {error}", path.display())));
    // All of them are tried before one is told of.
    let mut failed: Vec<String> = failed.collect();
    failed.pop().map_or(Ok(()), Err)
}

fn keep(path: &Path) -> std::io::Result<()> {
    let file = File::open(path)?;
    let Some(length) = NonZeroUsize::new(file.metadata()?.len() as usize) else { return Ok(()) };
    // SAFETY: a fresh mapping at the kernel's choice, which nobody ever reads through: a
    // file that is cut short harms nobody. It lasts as long as we do.
    unsafe {
        let at = mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, &file, 0)?;
        mlock(at, length.get())?;
    }
    Ok(())
}

impl Keeper {
    fn start(memcg: Option<&Memcg>, program: &CString) -> nix::Result<Self> {
        let (wait, go) = pipe()?;
        let (ready, tell) = pipe()?;
        let procs = memcg.map(|memcg| memcg.dir().join("cgroup.procs"));
        let shell = std::iter::once(program.clone()).collect::<Vec<CString>>();
        // SAFETY: there is only this thread, so that the child may do as it likes.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => {
                drop((wait, tell));
                // It says so when it has the memory, or goes.
                let _ = read(&ready, &mut [0]);
                Ok(Keeper { pid: child, go, ready })
            }
            ForkResult::Child => {
                drop((go, ready));
                keep_and_become(procs.as_deref(), &shell, &wait, &tell)
            }
        }
    }

    /// Hands the terminal over and waits until it comes back.
    fn become_shell(self) -> nix::Result<()> {
        let stdin = std::io::stdin();
        // Taking the terminal back from behind would stop us.
        let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
        // SAFETY: no handler of ours runs.
        unsafe { sigaction(Signal::SIGTTOU, &ignore)? };
        tcsetpgrp(stdin.as_fd(), self.pid)?;
        write(&self.go, b"g")?;
        loop {
            match waitpid(self.pid, Some(WaitPidFlag::WUNTRACED)) {
                // There is nobody else who would have it go on.
                Ok(WaitStatus::Stopped(..)) => killpg(self.pid, Signal::SIGCONT)?,
                Ok(_) | Err(nix::errno::Errno::ECHILD) => break,
                Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        tcsetpgrp(stdin.as_fd(), getpgrp())?;
        // Closed at its exec; a word would say why there was none.
        let mut failed = [0];
        match read(&self.ready, &mut failed) {
            Ok(1) => Err(nix::errno::Errno::from_raw(i32::from(failed[0]))),
            _ => Ok(()),
        }
    }
}

/// What the child does: it never returns.
fn keep_and_become(procs: Option<&Path>, shell: &[CString], wait: &OwnedFd, tell: &OwnedFd) -> ! {
    // SAFETY: prctl with these arguments only sets what happens when our parent dies.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
    // First, so that it is charged there.
    procs.iter().for_each(|procs| drop(fs::write(procs, "0")));
    // Where it is not allowed the kernel may take us like everybody.
    let _ = fs::write("/proc/self/oom_score_adj", "-999");
    let size = NonZeroUsize::new(SET_ASIDE_BYTES).unwrap_or(NonZeroUsize::MIN);
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_POPULATE;
    // SAFETY: a fresh anonymous mapping at the kernel's choice, which nobody uses.
    let kept = unsafe { mmap_anonymous(None, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) };
    if let Ok(at) = kept {
        // SAFETY: the mapping that was just made.
        let _ = unsafe { mlock(at, size.get()) };
    }
    for fd in [wait, tell] {
        // SAFETY: fcntl with F_SETFD only sets a flag of a descriptor that is open.
        unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(fd), libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    let _ = write(tell, b"r");
    let mut word = [0];
    if !matches!(read(wait, &mut word), Ok(1)) {
        // SAFETY: ends the process without running anything of its parent's.
        unsafe { libc::_exit(0) };
    }
    if let Ok(at) = kept {
        // SAFETY: nobody has a pointer into it.
        let _ = unsafe { munmap(at, size.get()) };
    }
    // What lives longer than the console is the operator's.
    // SAFETY: as above.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, 0) };
    // What we and our runtime ignore a shell would have all that it starts ignore.
    let normal = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGPIPE, Signal::SIGTTOU] {
        // SAFETY: no handler of ours runs.
        let _ = unsafe { sigaction(signal, &normal) };
    }
    if let Some(program) = shell.first() {
        let failed = nix::unistd::execv(program, shell).unwrap_err();
        let _ = write(tell, &[failed as i32 as u8]);
    }
    // SAFETY: as above.
    unsafe { libc::_exit(127) }
}
