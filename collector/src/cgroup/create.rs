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
        Some(CpuGroup { dir })
    })
}

impl CpuGroup {
    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Limits the group to `percent` of one CPU; `None` lifts the limit.
    pub fn limit(&self, percent: Option<u32>) -> io::Result<()> {
        let quota = percent.map_or(-1, |p| i64::from(p) * 1000);
        fs::write(self.dir.join("cpu.cfs_quota_us"), quota.to_string())
    }
}

impl Drop for CpuGroup {
    fn drop(&mut self) {
        // Busy while a process is in it; the next run cleans it then.
        let _ = fs::remove_dir(&self.dir);
    }
}
