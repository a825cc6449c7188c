//! Incidents: the model, the store on disk, and their renderings.

pub mod accounting;
pub mod accounts;
pub mod baseline;
pub mod compare;
pub mod growers;
pub mod growth;
pub mod heaps;
pub mod left_out;
pub mod mallocs;
pub mod markdown;
pub mod model;
pub mod others;
mod plausible;
pub mod profile;
pub mod read;
pub mod redact;
pub mod report;
pub mod select;
pub mod show;
pub mod since;
pub mod store;
pub mod summary;
pub mod units;
