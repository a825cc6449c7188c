//! Incidents: the model, the store on disk, and their renderings.

pub mod accounting;
pub mod accounts;
pub mod heaps;
pub mod mallocs;
pub mod model;
pub mod profile;
pub mod report;
pub mod show;
pub mod store;
pub mod units;
