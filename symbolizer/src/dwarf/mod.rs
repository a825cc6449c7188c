//! DWARF, one unit at a time.
//!
//! Who keeps what it parsed pays for the whole binary: hundreds of megabytes for
//! a kernel. So the addresses are sorted and grouped by unit ([`index`]), each unit
//! is walked once ([`unit`], [`lines`]), its answers are handed out and all of it is
//! dropped ([`sweep`]). What stays is a few bytes per address that was asked for.

mod index;
mod lines;
mod names;
mod paths;
mod sections;
mod split;
mod sweep;
mod unit;

pub(crate) use sections::{DebugSections, PackageSections};
pub(crate) use split::Split;
pub(crate) use sweep::Sweep;

/// Little-endian only, as every target that is unwound here.
pub(crate) type Slice<'a> = gimli::EndianSlice<'a, gimli::LittleEndian>;
pub(crate) type Dwarf<'a> = gimli::Dwarf<Slice<'a>>;
pub(crate) type Unit<'a> = gimli::Unit<Slice<'a>>;

/// A place in a source file, as a unit's line table numbers files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// `None` where the file is not known.
    pub(crate) file: Option<u32>,
    /// 0 where the line is not known.
    pub(crate) line: u32,
    /// 0 where the column is not known.
    pub(crate) column: u32,
}
