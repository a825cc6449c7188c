//! Making memcgs, and the CPU group that throttles on version 1.

use super::{CgroupError, Hierarchy, Memcg, Version};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Makes a memcg called `name`: below our own cgroup where that is allowed,
/// else below the nearest ancestor that allows it, at last at the root.
pub fn create_memcg(hierarchy: &Hierarchy, name: &str) -> Result<Memcg, CgroupError> {
    let mut tried = Vec::new();
    let mut parent = Some(Path::new(&hierarchy.own));
    while let Some(path) = parent {
        let dir = hierarchy.mount.join(path.strip_prefix("/").unwrap_or(path));
        match enable_controllers(hierarchy.version, &dir).and_then(|()| fs::create_dir(dir.join(name))) {
            Ok(()) => {
                return Ok(Memcg::at(
                    hierarchy,
                    &format!("{}/{name}", path.display().to_string().trim_end_matches('/')),
                ));
            }
            Err(error) => tried.push(format!("{}: {error}", dir.display())),
        }
        parent = path.parent();
    }
    Err(CgroupError::NotAllowed { tried: tried.join("; ") })
}

/// Version 2 gives children a controller only when the parent passes it on;
/// it refuses (EBUSY) while the parent itself has processes, unless it is the
/// root ("no internal process constraint", cgroup-v2.rst).
fn enable_controllers(version: Version, dir: &Path) -> io::Result<()> {
    if version == Version::V1 {
        return Ok(());
    }
    let control = dir.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&control)?;
    let has = |controller| enabled.split_whitespace().any(|c| c == controller);
    if !has("memory") {
        fs::write(&control, "+memory")?;
    }
    if !has("cpu") {
        // Only throttling needs it; it does without where this is refused.
        let _ = fs::write(&control, "+cpu");
    }
    Ok(())
}

/// A version 1 group of the `cpu` controller beside the memcg.
#[derive(Debug)]
pub struct CpuGroup {
    dir: PathBuf,
    is_made: bool,
}

/// Makes a `cpu` group called `name` where that controller is on version 1;
/// `None` where it is not (on version 2 the memcg itself has `cpu.max`).
#[must_use]
pub fn create_cpu_group(name: &str) -> Option<CpuGroup> {
    let hierarchy = Hierarchy::find("cpu").ok()??;
    if hierarchy.version != Version::V1 {
        return None;
    }
    [hierarchy.own.as_str(), "/"].iter().find_map(|parent| {
        let dir = hierarchy.mount.join(parent.trim_start_matches('/')).join(name);
        fs::create_dir(&dir).ok()?;
        Some(CpuGroup { dir, is_made: true })
    })
}

/// The `cpu` group of version 1 that others made for a memcg of theirs: of the same
/// path, and with everybody in it who is in the memcg.
#[must_use]
pub fn find_cpu_group(memcg: &Memcg) -> Option<CpuGroup> {
    let hierarchy = Hierarchy::find("cpu").ok()??;
    if memcg.version() != Version::V1 || hierarchy.version != Version::V1 || memcg.path() == "/" {
        return None;
    }
    let group = Memcg::at(&hierarchy, memcg.path());
    let (there, here) = (group.pids().ok()?, memcg.pids().ok()?);
    let has_all = !here.is_empty() && here.iter().all(|pid| there.contains(pid)) && there.len() == here.len();
    has_all.then(|| CpuGroup { dir: group.dir().to_owned(), is_made: false })
}

/// The folder of a memcg's processes in the hierarchy whose page faults can be sampled:
/// on version 2 its own, on version 1 of the same path, and with everybody in it who is in
/// the memcg and nobody else.
#[must_use]
pub fn find_perf_dir(memcg: &Memcg) -> Option<PathBuf> {
    if memcg.version() == Version::V2 {
        return Some(memcg.dir().to_owned());
    }
    let group = Memcg::at(&Hierarchy::find("perf_event").ok()??, memcg.path());
    let (mut there, mut here) = (group.pids().ok()?, memcg.pids().ok()?);
    there.sort_unstable();
    here.sort_unstable();
    (memcg.path() != "/" && there == here).then(|| group.dir().to_owned())
}

impl CpuGroup {
    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Of what its quota is a part, in microseconds.
    #[must_use]
    pub fn period_us(&self) -> u32 {
        let text = fs::read_to_string(self.dir.join("cpu.cfs_period_us")).unwrap_or_default();
        // The kernel's default.
        text.trim().parse().unwrap_or(100_000)
    }
}

impl Drop for CpuGroup {
    fn drop(&mut self) {
        if self.is_made {
            // Busy while a process is in it; the next run cleans it then.
            let _ = fs::remove_dir(&self.dir);
        }
    }
}
