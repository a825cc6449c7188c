//! Starting the command inside its cgroups.
//!
//! `std::process::Command` waits for the exec, but a command that runs out of
//! memory before it must be answered meanwhile; so the fork is our own.

use crate::cgroup::{CpuGroup, Memcg};
use crate::witness::HeapTable;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal};
use nix::unistd::{ForkResult, Pid};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

/// A command between fork and end.
#[derive(Debug)]
pub struct Started {
    /// Its PID.
    pub pid: Pid,
    /// Becomes readable when it ends.
    pub pidfd: OwnedFd,
    exec: Option<File>,
}

/// What the child could not do.
#[derive(Debug)]
pub enum StartFailure {
    /// Join the cgroup.
    Join(io::Error),
    /// Execute the program.
    Exec(io::Error),
}

/// Forks; the child joins the cgroups, if there are any, and executes, once `attach` has
/// seen to whatever is to watch it.
pub fn start(
    command: &[OsString],
    memcg: Option<&Memcg>,
    cpu: Option<&CpuGroup>,
    oom_score_adj: &CStr,
    mask: &SigSet,
    heap: Option<&HeapTable>,
    attach: Option<impl FnOnce(Pid)>,
) -> io::Result<Started> {
    let environment = environment(heap)?;
    let inherited = heap.map(HeapTable::fd);
    let arguments: Vec<CString> =
        command.iter().map(|a| CString::new(a.as_bytes())).collect::<Result<_, _>>().map_err(io::Error::other)?;
    let dirs = memcg.map(Memcg::dir).into_iter().chain(cpu.map(CpuGroup::dir));
    let groups: Vec<File> =
        dirs.map(|dir| OpenOptions::new().write(true).open(dir.join("cgroup.procs"))).collect::<io::Result<_>>()?;
    let mut pointers: Vec<*const libc::c_char> = arguments.iter().map(|a| a.as_ptr()).collect();
    pointers.push(std::ptr::null());
    let mut variables: Vec<*const libc::c_char> = environment.iter().map(|v| v.as_ptr()).collect();
    variables.push(std::ptr::null());
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let gate = attach.as_ref().map(|_| nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)).transpose()?;
    // SAFETY: the process has one thread, and the child calls only
    // async-signal-safe functions on memory prepared above.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => {
            if let Some((wait, open)) = &gate {
                wait_at(wait, open);
            }
            let failed = in_child(&groups, [&pointers, &variables], oom_score_adj, mask, inherited);
            // SAFETY: writes eight bytes of a live local to an open pipe, then
            // ends the child without running anything of the guardian's.
            unsafe {
                libc::write(write.as_raw_fd(), (&raw const failed).cast(), 8);
                libc::_exit(127)
            }
        }
        ForkResult::Parent { child } => {
            drop(write);
            attach.into_iter().for_each(|attach| attach(child));
            // The child goes on when nobody can write any more.
            drop(gate);
            let pidfd = crate::hold::watchdog::open_pidfd(child.as_raw())?;
            Ok(Started { pid: child, pidfd, exec: Some(File::from(read)) })
        }
    }
}

/// Waits in the child until the parent has closed its end of a pipe.
fn wait_at(wait: &OwnedFd, open: &OwnedFd) {
    let mut word = 0_u8;
    // SAFETY: async-signal-safe calls on open descriptors, of which ours of the writing
    // end is not used again, and one byte of a live local.
    unsafe {
        libc::close(open.as_raw_fd());
        libc::read(wait.as_raw_fd(), (&raw mut word).cast(), 1);
    }
}

/// Our environment, with what the heap's witness needs.
fn environment(heap: Option<&HeapTable>) -> io::Result<Vec<CString>> {
    let mut variables: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
    for (name, value) in heap.map(HeapTable::environment).transpose()?.into_iter().flatten() {
        variables.insert(name.into(), value.into());
    }
    let join = |(name, value): (OsString, OsString)| [name.as_bytes(), b"=", value.as_bytes()].concat();
    variables.into_iter().map(|pair| CString::new(join(pair)).map_err(io::Error::other)).collect()
}

/// Never returns when all goes well; else the step and errno.
fn in_child(
    groups: &[File],
    [arguments, environment]: [&[*const libc::c_char]; 2],
    oom_score_adj: &CStr,
    mask: &SigSet,
    inherited: Option<RawFd>,
) -> [i32; 2] {
    if let Some(fd) = inherited {
        // SAFETY: takes the close-on-exec flag off an open descriptor.
        unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
    }
    for group in groups {
        // SAFETY: one byte of a constant to an open descriptor; "0" is the writer itself.
        if unsafe { libc::write(group.as_raw_fd(), c"0".as_ptr().cast(), 1) } != 1 {
            return [1, nix::errno::Errno::last_raw()];
        }
    }
    // SAFETY: a constant path, and as many bytes as the live string has. Where
    // it fails it could not be lowered before either.
    unsafe {
        let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        libc::write(file, oom_score_adj.as_ptr().cast(), oom_score_adj.count_bytes());
    }
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // Rust ignores SIGPIPE; a command expects it to work.
    // SAFETY: installs no handler of ours.
    unsafe {
        let _ = nix::sys::signal::sigaction(Signal::SIGPIPE, &default);
        let _ = nix::sys::signal::sigaction(Signal::SIGBUS, &default);
    }
    let _ = nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(mask), None);
    // SAFETY: null-terminated arrays of pointers to NUL-terminated strings
    // that live until the exec.
    unsafe { libc::execvpe(arguments[0], arguments.as_ptr(), environment.as_ptr()) };
    [2, nix::errno::Errno::last_raw()]
}

impl Started {
    /// Readable once the exec has happened or failed.
    pub fn exec_fd(&self) -> Option<BorrowedFd<'_>> {
        self.exec.as_ref().map(AsFd::as_fd)
    }

    /// Takes the news of the exec.
    pub fn exec_result(&mut self) -> Result<(), StartFailure> {
        let Some(mut pipe) = self.exec.take() else { return Ok(()) };
        let mut news = [0; 8];
        // Closed by the exec without a word.
        if pipe.read_exact(&mut news).is_err() {
            return Ok(());
        }
        let word = |i: usize| i32::from_ne_bytes(news[i..i + 4].try_into().expect("four bytes"));
        let error = io::Error::from_raw_os_error(word(4));
        Err(if word(0) == 1 { StartFailure::Join(error) } else { StartFailure::Exec(error) })
    }
}
