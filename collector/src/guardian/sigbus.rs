//! Reading mapped files that someone may truncate meanwhile.
//!
//! An access past the end of a shrunken file raises SIGBUS (mmap(2)). The
//! handler puts a page of zeros under the access, so that the parser sees a
//! damaged file, which it reports, instead of the process dying in a hold.

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Installs the handler for the process.
pub fn install() -> nix::Result<()> {
    let action = SigAction::new(SigHandler::SigAction(on_sigbus), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler makes one system call and touches no state of the
    // program, so it is async-signal-safe.
    unsafe { sigaction(Signal::SIGBUS, &action) }.map(drop)
}

extern "C" fn on_sigbus(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to a SA_SIGINFO handler, and
    // for SIGBUS si_addr is set (sigaction(2)).
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // Largest page size of our architectures is 64 KiB, but mapping more than
    // one page would hide neighbours that are intact.
    // SAFETY: sysconf reads a constant.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    // BUS_ADRERR: no page of the file there. Anything else is not ours.
    const BUS_ADRERR: i32 = 2;
    if code == BUS_ADRERR {
        // SAFETY: replaces the one page that was accessed and cannot be read
        // anyway; it lies in a file mapping, for only those raise BUS_ADRERR.
        let at = unsafe {
            libc::mmap(
                (address & !(page - 1)) as *mut libc::c_void,
                page,
                libc::PROT_READ,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            )
        };
        if at != libc::MAP_FAILED {
            return;
        }
    }
    // SAFETY: ends the process without running anything of it.
    unsafe { libc::_exit(128 + libc::SIGBUS) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    #[test]
    fn truncated_file_reads_as_zeros() {
        super::install().unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        // SAFETY: a fresh shared mapping of an open file, at the kernel's choice.
        let at =
            unsafe { libc::mmap(std::ptr::null_mut(), 8192, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert_ne!(at, libc::MAP_FAILED);
        file.set_len(0).unwrap();
        // SAFETY: inside the mapping; the handler makes it readable.
        let byte = unsafe { at.cast::<u8>().add(5000).read_volatile() };
        assert_eq!(byte, 0);
        // SAFETY: unmaps what was mapped above.
        unsafe { libc::munmap(at, 8192) };
    }
}
