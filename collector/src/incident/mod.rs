//! Incidents: the model, the store on disk, and their renderings.

pub mod accounting;
pub mod accounts;
pub mod compare;
pub mod heaps;
pub mod mallocs;
pub mod markdown;
pub mod model;
pub mod others;
pub mod profile;
pub mod redact;
pub mod report;
pub mod select;
pub mod show;
pub mod store;
pub mod summary;
pub mod units;
