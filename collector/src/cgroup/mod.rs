//! Control groups of the memory controller, version 1 or 2.
//!
//! Sources: `Documentation/admin-guide/cgroup-v1/memory.rst`,
//! `Documentation/admin-guide/cgroup-v2.rst`, cgroups(7).

mod create;
mod glob;
mod hierarchy;
mod labels;
mod leftovers;
mod memcg;
pub mod note;
mod pressure;
mod which;

pub use create::{CpuGroup, create_cpu_group, create_memcg, find_cpu_group, find_perf_dir};
pub use glob::Glob;
pub use hierarchy::{Hierarchy, Version, unescape};
pub use labels::labels;
pub use leftovers::{clean_leftovers, maker_is_dead, name_of_own_group};
pub use memcg::{Memcg, UNLIMITED, parse_keyed};
pub use pressure::pressure;
pub use which::Which;

use std::io;
use std::path::PathBuf;

/// What can go wrong with a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No memory controller anywhere.
    #[error(
        "no cgroup memory controller is mounted; mount one (`mount -t cgroup2 none /sys/fs/cgroup`) \
         or boot without cgroup_disable=memory"
    )]
    NoController,
    /// A file of a cgroup could not be read.
    #[error("failed to read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of a cgroup had unexpected content.
    #[error("{path} has unexpected content {content:?}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What it said.
        content: String,
    },
    /// A file of a cgroup could not be written.
    #[error("failed to write {value:?} to {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The value.
        value: String,
        /// Why.
        source: io::Error,
    },
    /// No place allowed a new memcg.
    #[error(
        "could not make a memcg: {tried}; run as root or in a delegated cgroup (`systemd-run --user --scope -p Delegate=yes …`)"
    )]
    NotAllowed {
        /// Each place and its error.
        tried: String,
    },
    /// A path does not name a memcg.
    #[error("{path} is not a cgroup of the memory controller")]
    NotAMemcg {
        /// The path as given.
        path: PathBuf,
    },
}
