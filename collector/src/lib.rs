//! The collector: holds a memcg at its limit, records it, decides and acts.
//!
//! Data flows one way: [`hold`] → [`snapshot`] → [`analyst`] (symbols) →
//! [`verdict`] → [`incident`]. [`run`] drives it for one command, [`guard`] for many
//! memcgs; [`guardian`] keeps this process alive meanwhile. Only this crate touches `/proc` and
//! cgroupfs.

pub mod accounting;
pub mod analyst;
pub mod baseline;
pub mod cgroup;
pub mod cli;
pub mod config;
pub mod desk;
pub mod doctor;
pub mod guard;
pub mod guardian;
pub mod heap_env;
pub mod hold;
pub mod incident;
pub mod killers;
pub mod machine;
pub mod metrics;
pub mod moment;
pub mod run;
pub mod say;
pub mod signals;
pub mod size;
pub mod snapshot;
pub mod verdict;
pub mod witness;
