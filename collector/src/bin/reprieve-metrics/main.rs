//! `reprieve-metrics`: counts what `reprieve guard` tells it, and serves it to Prometheus.
//!
//! Only the guard starts it. It ends when the guard does.

mod counts;
mod serve;
mod textfile;

use counts::Counts;
use linux_raw_sys::general::{__user_cap_data_struct, __user_cap_header_struct, _LINUX_CAPABILITY_VERSION_3};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::SockType as TypeOf};
use reprieve::metrics::{PROGRAM, Places, take};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use textfile::TextFile;

/// Changes of so long a time are written to the file together.
const WRITE_EACH: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{PROGRAM}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let places = places(std::env::args().skip(1))?;
    give_up_rights();
    let guard = std::io::stdin().as_fd().try_clone_to_owned().map_err(|error| format!("standard input: {error}"))?;
    if getsockopt(&guard, TypeOf).is_err() {
        return Err("standard input is no socket; it is `reprieve guard` that starts this program".to_owned());
    }
    let counts = Arc::new(Counts::new().map_err(|error| error.to_string())?);
    if let Some(address) = places.listen {
        let listener = TcpListener::bind(address)
            .map_err(|error| format!("{address} cannot be listened at: {error}; set guard.metrics to another"))?;
        let counts = Arc::clone(&counts);
        std::thread::spawn(move || serve::serve(&listener, &|| counts.text()));
    }
    let file = places.textfile.map(TextFile::new);
    count(&guard, &counts, file.as_ref());
    file.iter().for_each(TextFile::remove);
    Ok(())
}

/// Counts until the guard is gone.
fn count(guard: &OwnedFd, counts: &Counts, file: Option<&TextFile>) {
    let mut is_new = true;
    loop {
        if let Some(file) = file.filter(|_| is_new) {
            let mut ready = [PollFd::new(guard.as_fd(), PollFlags::POLLIN)];
            let wait = PollTimeout::try_from(WRITE_EACH).unwrap_or(PollTimeout::NONE);
            if poll(&mut ready, wait) == Ok(0) {
                file.write(&counts.text());
                is_new = false;
                continue;
            }
        }
        match take(guard) {
            None => return,
            Some(Ok(event)) => {
                counts.add(&event);
                is_new = true;
            }
            Some(Err(error)) => eprintln!("{PROGRAM}: not understood: {error}"),
        }
    }
}

fn places(mut arguments: impl Iterator<Item = String>) -> Result<Places, String> {
    let mut places = Places::default();
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} has no value"))?;
        match name.as_str() {
            "--listen" => places.listen = Some(value.parse().map_err(|_| format!("{value:?} is no address"))?),
            "--textfile" => places.textfile = Some(value.into()),
            _ => return Err(format!("{name} is no option; `reprieve guard` starts this program")),
        }
    }
    Ok(places)
}

/// We are root's, as the guard is, but need none of what root may do; and in an OOM of the
/// machine we are anybody.
fn give_up_rights() {
    let _ = std::fs::write("/proc/self/oom_score_adj", "0");
    let mut header = __user_cap_header_struct { version: _LINUX_CAPABILITY_VERSION_3, pid: 0 };
    let none = [__user_cap_data_struct { effective: 0, permitted: 0, inheritable: 0 }; 2];
    // SAFETY: prctl takes numbers; capset a header and, for this version of it, two data
    // structs (capset(2)), all of them live. Nothing else runs yet.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::syscall(libc::SYS_capset, &raw mut header, none.as_ptr());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &[&str]) -> Result<Places, String> {
        places(words.iter().map(|word| (*word).to_owned()))
    }

    #[test]
    fn options_are_places() {
        let both = of(&["--listen", "127.0.0.1:9", "--textfile", "/a.prom"]).unwrap();
        assert_eq!((both.listen.unwrap().port(), both.textfile.unwrap()), (9, "/a.prom".into()));
        assert!(of(&["--listen", "here"]).is_err() && of(&["--listen"]).is_err() && of(&["--help", "x"]).is_err());
    }
}
