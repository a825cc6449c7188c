//! What the Go linker leaves in a binary, stripped or not: the version, the
//! addresses of its variables, and the tables from which its runtime prints
//! stacks.
//!
//! Read in the runtime's own sources of 1.19 to 1.27: `runtime/symtab.go`
//! (`pcHeader`, `moduledata`), `runtime/runtime2.go` (`_func`),
//! `runtime/symtabinl.go` (`inlinedCall`), `debug/buildinfo`.

mod buildinfo;
mod module_data;
mod pclntab;

pub use buildinfo::GoVersion;
pub(crate) use pclntab::GoFrame;
pub use pclntab::{GoFunction, GoPlace};

use crate::address::Svma;
use crate::image::Image;
use module_data::ModuleData;
use pclntab::{Generation, Tables};
use std::ops::Range;

/// The Go part of an ELF file.
#[derive(Debug, Clone)]
pub struct GoImage {
    image: Image,
    version: Option<GoVersion>,
    data: ModuleData,
    generation: Generation,
}

impl GoImage {
    /// Finds it; `None` for a binary without Go in it, and for versions before
    /// 1.18, whose tables are others.
    #[must_use]
    pub fn find(image: &Image) -> Option<Self> {
        let version = buildinfo::version(image)?;
        let (header, generation) = pclntab::find(image)?;
        let names = pclntab::names_address(image, header)?;
        let minor = version.as_ref().and_then(|v| v.minor);
        let data = module_data::find(image, header, names, minor)?;
        Some(GoImage { image: image.clone(), version, data, generation })
    }

    /// The toolchain that built it; `None` where it gave itself no number.
    #[must_use]
    pub fn version(&self) -> Option<&GoVersion> {
        self.version.as_ref()
    }

    /// Where Go's own code is.
    #[must_use]
    pub fn text(&self) -> Range<Svma> {
        Svma(self.data.text.start)..Svma(self.data.text.end)
    }

    /// Where variables without an initial value are, those with pointers in them
    /// first.
    #[must_use]
    pub fn zeroed(&self) -> [Range<Svma>; 2] {
        [&self.data.bss, &self.data.noptrbss].map(|range| Svma(range.start)..Svma(range.end))
    }

    /// Where all variables are.
    #[must_use]
    pub fn variables(&self) -> Vec<Range<Svma>> {
        let ranges = [&self.data.noptrdata, &self.data.data, &self.data.bss, &self.data.noptrbss];
        ranges.map(|range| Svma(range.start)..Svma(range.end)).to_vec()
    }

    /// The image that it is in.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The code of a function, from the file.
    #[must_use]
    pub fn code(&self, function: &GoFunction) -> Option<&[u8]> {
        let bytes = self.image.at(function.range.start)?;
        let size = function.range.end.0.checked_sub(function.range.start.0)?;
        bytes.get(..usize::try_from(size).ok()?)
    }

    /// Functions by name, in the order of `names`; `None` for one that the
    /// program has not. Looks through all functions.
    #[must_use]
    pub fn functions(&self, names: &[&str]) -> Vec<Option<GoFunction>> {
        let mut found = vec![None; names.len()];
        let Some(tables) = self.tables() else { return found };
        for function in tables.functions() {
            if let Some(place) = names.iter().position(|name| tables.is_named(&function, name)) {
                found[place].get_or_insert(function);
                if found.iter().all(Option::is_some) {
                    break;
                }
            }
        }
        found
    }

    /// The function at an address.
    #[must_use]
    pub fn function_at(&self, address: Svma) -> Option<GoFunction> {
        self.tables()?.function_at(address)
    }

    /// The name of a function.
    #[must_use]
    pub fn name(&self, function: &GoFunction) -> Option<String> {
        self.tables()?.name(function)
    }

    /// Where an address is in the source: the innermost inlined function first,
    /// the function that the machine is in last. Looks at no more than `steps`
    /// entries of tables, and takes off what it looked at.
    #[must_use]
    pub fn places(&self, address: Svma, steps: &mut u64) -> Vec<GoPlace> {
        let Some(tables) = self.tables() else { return Vec::new() };
        tables.places(address, steps)
    }

    /// How to leave the frame of a function at an address; `None` where the tables
    /// do not say.
    pub(crate) fn frame(&self, address: Svma) -> Option<GoFrame> {
        self.tables()?.frame(address)
    }

    fn tables(&self) -> Option<Tables<'_>> {
        Tables::new(&self.image, &self.data, self.generation)
    }
}
