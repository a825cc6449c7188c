//! Where the console itself is charged: not in a cgroup that may be full, since who is in one
//! is held with all others.

use reprieve::cgroup::{Hierarchy, Memcg};

/// Leaves our cgroup for the root, which is never held, if it or one above it has a limit.
///
/// # Errors
///
/// A sentence, where that is not allowed.
pub fn leave_limits() -> Result<(), String> {
    let Ok(hierarchy) = Hierarchy::memory() else { return Ok(()) };
    // The root of a container may have one: there is no way out.
    let Some(limited) = Memcg::limited_around_us(&hierarchy).filter(|memcg| memcg.path() != "/") else {
        return Ok(());
    };
    let left = Memcg::at(&hierarchy, "/").write("cgroup.procs", "0");
    left.map_err(|_| format!("the console may not leave {}, and is held with it when that is full", limited.path()))
}
