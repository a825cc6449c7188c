//! How much memory the analyst may still take.

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use std::fs;

/// What an analyst without a limit of its own may take: it is a thread in a full memcg,
/// of whose reserve it must leave something to the snapshot.
const UNLIMITED_BYTES: u64 = 16 << 20;

/// Bytes up to RLIMIT_DATA.
#[must_use]
pub fn headroom() -> u64 {
    match getrlimit(Resource::RLIMIT_DATA) {
        Ok((limit, _)) if limit != RLIM_INFINITY => limit.saturating_sub(used().unwrap_or(0)),
        _ => UNLIMITED_BYTES,
    }
}

/// Limits this process, which does nothing else. What has a lower limit keeps it.
pub fn limit_to(bytes: u64) {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_DATA) {
        // Without it memory is taken as it comes.
        let _ = setrlimit(Resource::RLIMIT_DATA, soft.min(bytes), hard);
    }
}

/// What counts for the limit: data and stack, in pages, the sixth field of
/// `/proc/self/statm` (proc_pid_statm(5)).
fn used() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_whitespace().nth(5)?.parse().ok()?;
    Some(pages * 4096)
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_taken_counts() {
        let before = super::used().unwrap();
        // Address space only, and much: other tests take and free meanwhile.
        let taken = std::hint::black_box(Vec::<u8>::with_capacity(1 << 30));
        let after = super::used().unwrap();
        assert!(after >= before + taken.capacity() as u64 / 2, "{before} {after}");
    }
}
