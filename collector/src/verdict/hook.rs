//! A command of the operator's, with a hard deadline.

use crate::cgroup::Memcg;
use crate::hold::watchdog::{open_pidfd, wait_pidfd};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// Runs `program` about a memcg; the error is a sentence. It and all that it started are
/// killed at the deadline.
pub fn run(program: &Path, memcg: &Memcg, limit_bytes: u64, at_most: Duration) -> Result<ExitStatus, String> {
    let failed = |error: io::Error| format!("{} could not be run: {error}", program.display());
    let mut command = Command::new(program);
    command.env("REPRIEVE_CGROUP", memcg.path()).env("REPRIEVE_CGROUP_DIR", memcg.dir());
    command.env("REPRIEVE_LIMIT_BYTES", limit_bytes.to_string());
    command.env("REPRIEVE_USAGE_BYTES", memcg.usage().unwrap_or(0).to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = start(&mut command).map_err(failed)?;
    let in_time = open_pidfd(child.id() as i32).is_ok_and(|pidfd| wait_pidfd(&pidfd, at_most));
    let status = end(&mut child).map_err(failed)?;
    match in_time {
        true => Ok(status),
        false => Err(format!("{} was not done after {at_most:?} and was killed", program.display())),
    }
}

/// Starts a program of the operator's, with a process group of its own.
pub fn start(command: &mut Command) -> io::Result<Child> {
    command.process_group(0);
    // SAFETY: the closure makes system calls only, all of them async-signal-safe; it
    // allocates nothing.
    unsafe {
        command.pre_exec(|| {
            // Ours are blocked, which it would inherit, and it is nobody to spare.
            nix::sys::signal::SigSet::empty().thread_set_mask()?;
            let normal = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            libc::write(normal, c"0".as_ptr().cast(), 1);
            Ok(())
        });
    }
    command.spawn()
}

/// Kills what is left of it and of all that it started.
pub fn end(child: &mut Child) -> io::Result<ExitStatus> {
    // Also those whom it left behind. ESRCH: nobody.
    let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
    child.wait()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::{Hierarchy, Version};
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Instant;

    fn hook(text: &str, at_most: Duration) -> (tempfile::TempDir, Result<ExitStatus, String>) {
        let dir = tempfile::tempdir().unwrap();
        let hierarchy = Hierarchy { version: Version::V2, mount: dir.path().into(), own: "/".to_owned() };
        fs::create_dir(dir.path().join("job")).unwrap();
        fs::write(dir.path().join("job/memory.current"), "5").unwrap();
        let program = dir.path().join("hook");
        fs::write(&program, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let status = run(&program, &Memcg::at(&hierarchy, "/job"), 9, at_most);
        (dir, status)
    }

    #[test]
    fn it_is_told_what_it_is_about() {
        let said = "echo $REPRIEVE_CGROUP $REPRIEVE_USAGE_BYTES $REPRIEVE_LIMIT_BYTES > $REPRIEVE_CGROUP_DIR/said";
        let (dir, status) = hook(said, Duration::from_secs(20));
        assert!(status.unwrap().success());
        assert_eq!(fs::read_to_string(dir.path().join("job/said")).unwrap(), "/job 5 9\n");
        assert_eq!(hook("exit 3", Duration::from_secs(20)).1.unwrap().code(), Some(3));
        let none = Hierarchy { version: Version::V2, mount: "/nowhere".into(), own: "/".to_owned() };
        let error = run(Path::new("/nowhere/hook"), &Memcg::at(&none, "/"), 0, Duration::from_secs(1)).unwrap_err();
        assert!(error.contains("/nowhere/hook could not be run"), "{error}");
    }

    #[test]
    fn what_hangs_is_killed_with_all_that_it_started() {
        let begun = Instant::now();
        let (dir, status) =
            hook("sleep 1000 & echo $! > $REPRIEVE_CGROUP_DIR/child; trap '' TERM; wait", Duration::from_secs(1));
        assert!(status.unwrap_err().contains("was not done after 1s and was killed"));
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        let child = fs::read_to_string(dir.path().join("job/child")).unwrap();
        let state = || fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
        // Reaped by whoever inherits it, or about to be.
        while !(state().is_empty() || state().contains(") Z ")) {
            assert!(begun.elapsed() < Duration::from_secs(30), "{}", state());
            std::thread::yield_now();
        }
    }
}
