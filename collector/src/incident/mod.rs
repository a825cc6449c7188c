//! Incidents: the model, the store on disk, and their renderings.

pub mod model;
