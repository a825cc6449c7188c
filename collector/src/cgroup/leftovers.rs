//! Cgroups that a killed reprieve left behind.
//!
//! The name carries its maker's PID and start time, so that a later run can
//! prove that the maker is dead: `reprieve-PID-STARTTICKS`.

use super::{Hierarchy, Memcg, Version};
use crate::snapshot::process::start_ticks;
use std::path::{Path, PathBuf};

const PREFIX: &str = "reprieve-";

/// Name for a group made by this process.
#[must_use]
pub fn name_of_own_group() -> String {
    let pid = std::process::id();
    let ticks = start_ticks(pid as i32).unwrap_or(0);
    format!("{PREFIX}{pid}-{ticks}")
}

/// Releases and removes groups whose maker is dead. A group that still has
/// processes is given back to the kernel and left; an empty one is removed.
/// Returns a sentence for each thing done.
pub fn clean_leftovers() -> Vec<String> {
    let mut done = Vec::new();
    for controller in ["memory", "cpu"] {
        let Ok(Some(hierarchy)) = Hierarchy::find(controller) else {
            continue;
        };
        for group in groups_of_the_dead(&hierarchy) {
            let path = format!("/{}", group.display());
            let memcg = Memcg::at(&hierarchy, &path);
            if controller == "memory" {
                hand_back(&memcg);
            }
            let empty = memcg.pids().is_ok_and(|pids| pids.is_empty());
            if !empty {
                done.push(format!("{path} of a dead reprieve still has processes: left to the kernel"));
            } else if memcg.remove().is_ok() {
                done.push(format!("removed {path}, left by a dead reprieve"));
            }
        }
    }
    done
}

/// Undoes every hold a memcg may be under.
fn hand_back(memcg: &Memcg) {
    // Each may be absent or gone: what remains is what matters.
    match memcg.version() {
        Version::V1 => drop(memcg.write("memory.oom_control", "0")),
        Version::V2 => {
            let _ = memcg.write("memory.high", "max");
            let _ = memcg.write("cgroup.freeze", "0");
        }
    }
}

/// Paths below the mount of groups whose maker no longer lives; looks where
/// [`super::create_memcg`] can have made them.
fn groups_of_the_dead(hierarchy: &Hierarchy) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for parent in Path::new(&hierarchy.own).ancestors() {
        let parent = parent.strip_prefix("/").unwrap_or(parent);
        let Ok(entries) = std::fs::read_dir(hierarchy.mount.join(parent)) else {
            continue;
        };
        found.extend(
            entries
                .flatten()
                .filter(|e| e.file_name().to_str().is_some_and(maker_is_dead))
                .map(|e| parent.join(e.file_name())),
        );
    }
    found
}

/// Whether `name` is one of [`name_of_own_group`] and its maker is dead. A PID that lives
/// again with another start time is a different process.
pub fn maker_is_dead(name: &str) -> bool {
    let Some((pid, ticks)) = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')) else {
        return false;
    };
    let (Ok(pid), Ok(ticks)) = (pid.parse::<i32>(), ticks.parse::<u64>()) else {
        return false;
    };
    start_ticks(pid) != Some(ticks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_group_is_alive_and_strangers_are_not_ours() {
        assert!(!maker_is_dead(&name_of_own_group()));
        let pid = std::process::id();
        assert!(maker_is_dead(&format!("reprieve-{pid}-1")));
        assert!(!maker_is_dead("reprieve-extra"));
        assert!(!maker_is_dead("system.slice"));
    }
}
