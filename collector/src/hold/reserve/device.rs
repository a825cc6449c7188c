//! The device of the kernel series: an open file is a session.

use crate::hold::BrakeError;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use reprieve_oom_uapi::{ATTACH, Attach, DEVICE, Event, STATE, VERDICT, Verdict};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;

nix::ioctl_write_ptr_bad!(
    /// Becomes the handler of a cgroup.
    attach,
    ATTACH,
    Attach
);
nix::ioctl_write_ptr_bad!(
    /// Decides on a hold.
    decide,
    VERDICT,
    Verdict
);
nix::ioctl_read_bad!(
    /// Describes the hold that lasts.
    state,
    STATE,
    Event
);

/// A session: an open file of the device.
#[derive(Debug)]
pub struct Device(File);

impl Device {
    /// Opens it; it has nothing to tell before it is attached.
    pub fn open() -> Result<Self, BrakeError> {
        let mut options = OpenOptions::new();
        // Records are taken when the bell has rung; std sets O_CLOEXEC.
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        options.open(DEVICE).map(Device).map_err(BrakeError::NoReserve)
    }

    /// A session whose records come out of a file.
    #[cfg(test)]
    pub fn of_file(file: File) -> Self {
        Device(file)
    }

    /// Becomes the handler of the cgroup whose directory is open as `dir`.
    pub fn attach(&self, dir: &File) -> nix::Result<()> {
        // SAFETY: the request lives longer than the call, and has the size that it
        // tells and the command's number says.
        unsafe { attach(self.0.as_raw_fd(), &Attach::new(dir.as_raw_fd())) }.map(drop)
    }

    /// Ready when there is a record.
    #[must_use]
    pub fn bell(&self) -> PollFd<'_> {
        PollFd::new(self.0.as_fd(), PollFlags::POLLIN)
    }

    /// What the kernel has to tell, one after the other.
    pub fn record(&self) -> Option<Event> {
        let mut bytes = [0; size_of::<Event>()];
        // EAGAIN is no more of them; ENODEV the end of the memcg, which shows elsewhere.
        matches!((&self.0).read(&mut bytes), Ok(n) if n == bytes.len()).then(|| Event::from_bytes(bytes))
    }

    /// The hold that lasts.
    pub fn state(&self) -> io::Result<Option<Event>> {
        let mut event = Event::default();
        // SAFETY: the kernel writes one record, whose size the command's number
        // says, to a live local.
        match unsafe { state(self.0.as_raw_fd(), &raw mut event) } {
            Ok(_) => Ok(Some(event)),
            Err(Errno::ENODATA | Errno::ENODEV) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Decides on a hold; ESTALE: it is over.
    pub fn decide(&self, verdict: &Verdict) -> nix::Result<()> {
        // SAFETY: the verdict lives longer than the call, and has the size that it
        // tells and the command's number says.
        unsafe { decide(self.0.as_raw_fd(), verdict) }.map(drop)
    }
}
