//! Profiles and their renderings.
