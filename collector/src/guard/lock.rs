//! One guard at a time.

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The watchdog of a guard that died keeps its lock until it has given everything back
/// (ten seconds at most).
const DEAD_TIME: Duration = Duration::from_secs(15);
const AGAIN: Duration = Duration::from_millis(20);

/// As long as it lives no other guard starts; our watchdog, a fork, has it, too.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code, reason = "held, not read")] Flock<File>);

/// Why it could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another guard has it.
    #[error(
        "another reprieve guard is running (PID {pid}, {}); end it first, or have it read its configuration again with `kill -HUP {pid}`",
        file.display()
    )]
    Taken {
        /// Its PID.
        pid: String,
        /// The lock.
        file: PathBuf,
    },
    /// No file to lock.
    #[error("{} cannot be locked: {source}; name another folder with guard.run_dir", file.display())]
    Unusable {
        /// The lock.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Where it is unless the configuration says otherwise.
#[must_use]
pub fn default_dir() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|_| !nix::unistd::geteuid().is_root()) {
        Some(dir) => PathBuf::from(dir).join("reprieve"),
        None => PathBuf::from("/run/reprieve"),
    }
}

impl Lock {
    /// Takes it.
    pub fn take(dir: &Path) -> Result<Self, LockError> {
        let path = dir.join("guard.lock");
        let unusable = |source| LockError::Unusable { file: path.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(unusable)?;
        let mut options = OpenOptions::new();
        // std sets O_CLOEXEC: no analyst inherits it.
        let mut file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let begun = Instant::now();
        loop {
            match Flock::lock(file.map_err(unusable)?, FlockArg::LockExclusiveNonblock) {
                Ok(mut lock) => {
                    let pid = std::process::id().to_string();
                    // On a disk that is full nobody is told who we are, but we are there.
                    let _ = lock.set_len(0).and_then(|()| lock.write_all(pid.as_bytes()));
                    return Ok(Lock(lock));
                }
                Err((mut held, Errno::EWOULDBLOCK)) => {
                    let mut pid = String::new();
                    held.rewind().and_then(|()| held.read_to_string(&mut pid)).map_err(unusable)?;
                    held.rewind().map_err(unusable)?;
                    let lives = Path::new("/proc").join(&pid).is_dir() && !pid.is_empty();
                    if lives || begun.elapsed() > DEAD_TIME {
                        let pid = if pid.is_empty() { "not known".to_owned() } else { pid };
                        return Err(LockError::Taken { pid, file: path });
                    }
                    std::thread::sleep(AGAIN);
                    file = Ok(held);
                }
                Err((_, errno)) => return Err(unusable(errno.into())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_was_first() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("run");
        let first = Lock::take(&folder).unwrap();
        let error = Lock::take(&folder).unwrap_err().to_string();
        assert!(error.contains(&format!("PID {}", std::process::id())) && error.contains("guard.lock"), "{error}");
        drop(first);
        drop(Lock::take(&folder).unwrap());
        let error = Lock::take(Path::new("/proc/reprieve")).unwrap_err().to_string();
        assert!(error.contains("guard.run_dir"), "{error}");
    }

    #[test]
    fn what_the_dead_hold_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let held = Lock::take(dir.path()).unwrap();
        // No process has this PID: the kernel gives at most 2^22.
        std::fs::write(dir.path().join("guard.lock"), "999999999").unwrap();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(held);
        });
        drop(Lock::take(dir.path()).unwrap());
        thread.join().unwrap();
    }
}
