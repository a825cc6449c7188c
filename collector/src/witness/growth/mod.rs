//! Who made processes grow, by their page faults: no library in them, no restart.
//!
//! In: every so many page faults the kernel copies the registers and a piece of the stack
//! of who took it into a ring ([`ring`], [`record`]). A thread of the guardian empties the
//! rings, unwinds ([`book`]) and remembers for each page who touched it last ([`samples`],
//! [`stacks`], [`ledger`]), in memory that never grows; pages that are no more it forgets
//! ([`sweep`]). Out: at a snapshot what of that is still in memory, scaled mapping by
//! mapping ([`look`]); of a process that died what was remembered of it.
//!
//! Not for: who owns a heap. Who touches a page of a malloc's first need not be whose it
//! is now, which [`layout`] tells apart as far as that can be seen.

mod book;
pub mod hostile;
mod layout;
mod ledger;
mod look;
mod office;
mod record;
mod ring;
mod samples;
mod stacks;
mod sweep;
mod watch;

pub use watch::GrowthWitness;
