//! The tables from which Go's runtime prints stacks.
//!
//! Nothing in them is trusted: what does not fit is not there.

use super::module_data::ModuleData;
use crate::address::Svma;
use crate::image::Image;
use std::ops::Range;

/// Header: the first function's entry in the table comes after eight words.
const HEADER_BYTES: usize = 8 + 8 * 8;
/// Most functions that one inlined call chain is believed to have.
const MAX_INLINED: usize = 256;
/// Longest name that is believed.
const MAX_NAME: usize = 4096;
/// `_PCDATA_InlTreeIndex` (`internal/abi/symtab.go`).
const PCDATA_INL_TREE_INDEX: u64 = 2;
/// `FuncFlagTopFrame`: nobody called it.
const TOP_FRAME: u8 = 1;
/// `FuncFlagSPWrite`: it writes the stack pointer, so its size tells nothing.
const SP_WRITE: u8 = 2;
/// Largest frame that is believed.
const MAX_FRAME: u32 = 1 << 30;
/// Entries of tables that one frame may cost.
const FRAME_STEPS: u64 = 1 << 20;
/// `_FUNCDATA_InlTree`.
const FUNCDATA_INL_TREE: u64 = 3;

/// Versions of the tables that differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Generation {
    /// Go 1.18 and 1.19.
    Go118,
    /// Go 1.20 and later.
    Go120,
}

impl Generation {
    /// From the first eight bytes (`pcHeader`): magic, two zeros, least
    /// instruction size (1 on x86-64, 4 on aarch64), pointer size.
    fn of(header: &[u8]) -> Option<Self> {
        let magic = match header.get(..4)? {
            [0xf0, 0xff, 0xff, 0xff] => Generation::Go118,
            [0xf1, 0xff, 0xff, 0xff] => Generation::Go120,
            _ => return None,
        };
        matches!(header.get(4..8)?, [0, 0, 1 | 4, 8]).then_some(magic)
    }

    /// Bytes of `_func` before its pcdata.
    fn func_bytes(self) -> u64 {
        match self {
            Generation::Go118 => 40,
            Generation::Go120 => 44,
        }
    }
}

/// A function of the tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoFunction {
    /// Its code.
    pub range: Range<Svma>,
    /// Of its `_func` in the image's table.
    at: u64,
}

/// The frame of a function, as it stands at one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GoFrame {
    /// The return address is so many bytes above the stack pointer.
    Size(u64),
    /// There is none.
    Outermost,
    /// The caller is on another stack: the goroutine's.
    OtherStack,
}

/// A place in the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoPlace {
    /// Like `main.(*T).Run`.
    pub function: String,
    /// Source file as the compiler recorded it.
    pub file: Option<String>,
    /// Line, from 1.
    pub line: Option<u32>,
    /// The address that is in that place.
    pub address: Svma,
}

/// Finds the header of the tables (SVMA).
pub(super) fn find(image: &Image) -> Option<(u64, Generation)> {
    for name in [".gopclntab", ".data.rel.ro.gopclntab"] {
        if let Some((svma, bytes)) = image.section_data(name)
            && let Some(generation) = Generation::of(bytes)
        {
            return Some((svma.start, generation));
        }
    }
    // A C linker puts it among other data that is relocated.
    let ranges = match image.section_data(".data.rel.ro") {
        Some((svma, _)) => vec![svma.start],
        None => image.segment_addresses(),
    };
    ranges.into_iter().find_map(|start| {
        let bytes = image.at(Svma(start))?;
        let at = (0..bytes.len())
            .step_by(8)
            .find(|&at| Generation::of(&bytes[at..]).is_some() && is_header(image, start, at))?;
        Some((start.checked_add(at as u64)?, Generation::of(&bytes[at..])?))
    })
}

fn is_header(image: &Image, start: u64, at: usize) -> bool {
    start.checked_add(at as u64).is_some_and(|header| names_address(image, header).is_some())
}

/// Where function names are (SVMA), for the header at `header`; `None` where it
/// is none.
pub(super) fn names_address(image: &Image, header: u64) -> Option<u64> {
    let bytes = image.at(Svma(header))?;
    // nfunc, nfiles, textStart, then where the parts begin, in this order.
    let word = |index: usize| Some(u64::from_le_bytes(bytes.get(8 + 8 * index..16 + 8 * index)?.try_into().ok()?));
    let starts = [word(3)?, word(4)?, word(5)?, word(6)?, word(7)?];
    let in_order = starts.windows(2).all(|pair| pair[0] <= pair[1]);
    if !in_order || starts[0] < HEADER_BYTES as u64 || starts[4] >= bytes.len() as u64 {
        return None;
    }
    header.checked_add(starts[0])
}

/// The tables of an image.
pub(super) struct Tables<'i> {
    image: &'i Image,
    /// From the header to the segment's end.
    bytes: &'i [u8],
    data: &'i ModuleData,
    generation: Generation,
    functions: u64,
    names: u64,
    units: u64,
    files: u64,
    values: u64,
    table: u64,
}

impl<'i> Tables<'i> {
    pub(super) fn new(image: &'i Image, data: &'i ModuleData, generation: Generation) -> Option<Self> {
        let bytes = image.at(Svma(data.header))?;
        let word = |index: u64| u64_at(bytes, 8 + 8 * index);
        let mut tables = Tables {
            image,
            bytes,
            data,
            generation,
            functions: word(0)?,
            names: word(3)?,
            units: word(4)?,
            files: word(5)?,
            values: word(6)?,
            table: word(7)?,
        };
        // So that adding 32 bits to any of them never overflows.
        let parts = [tables.names, tables.units, tables.files, tables.values, tables.table];
        if parts.iter().any(|&part| part > bytes.len() as u64) {
            return None;
        }
        // Each takes eight bytes, and there is one more than functions.
        let room = (bytes.len() as u64 - tables.table) / 8;
        tables.functions = tables.functions.min(room.saturating_sub(1));
        Some(tables)
    }

    /// All functions, by address.
    pub(super) fn functions(&self) -> impl Iterator<Item = GoFunction> + '_ {
        (0..self.functions).filter_map(|index| self.function(index))
    }

    /// Entry of a function in the text, and where its `_func` is.
    fn entry(&self, index: u64) -> Option<(u64, u64)> {
        let at = self.table + index * 8;
        let text = self.data.text.start.checked_add(u64::from(u32_at(self.bytes, at)?))?;
        Some((text, u64::from(u32_at(self.bytes, at + 4)?)))
    }

    fn function(&self, index: u64) -> Option<GoFunction> {
        let (start, func) = self.entry(index)?;
        // The last entry is an end only, of half the size.
        let end = self.data.text.start.checked_add(u64::from(u32_at(self.bytes, self.table + (index + 1) * 8)?))?;
        (start < end).then_some(GoFunction { range: Svma(start)..Svma(end), at: self.table + func })
    }

    pub(super) fn function_at(&self, address: Svma) -> Option<GoFunction> {
        if !self.data.text.contains(&address.0) {
            return None;
        }
        let (mut low, mut high) = (0, self.functions);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.entry(middle)?.0 <= address.0 { low = middle + 1 } else { high = middle }
        }
        self.function(low.checked_sub(1)?).filter(|f| f.range.contains(&address))
    }

    fn name_bytes(&self, offset: u32) -> Option<&'i [u8]> {
        // The first name is empty, and none begins within another.
        let at = self.names + u64::from(offset);
        let before = self.bytes.get(usize::try_from(at).ok()?.checked_sub(1)?)?;
        if (*before != 0 && offset != 0) || at >= self.units {
            return None;
        }
        string_at(self.bytes, at)
    }

    pub(super) fn name(&self, function: &GoFunction) -> Option<String> {
        self.name_of(u32_at(self.bytes, function.at + 4)?)
    }

    fn name_of(&self, offset: u32) -> Option<String> {
        Some(String::from_utf8_lossy(self.name_bytes(offset)?).into_owned()).filter(|name| !name.is_empty())
    }

    pub(super) fn is_named(&self, function: &GoFunction, name: &str) -> bool {
        let offset = u32_at(self.bytes, function.at + 4);
        offset.and_then(|offset| self.name_bytes(offset)).is_some_and(|bytes| bytes == name.as_bytes())
    }

    /// As `runtime.inlineUnwinder` goes.
    pub(super) fn places(&self, address: Svma, steps: &mut u64) -> Vec<GoPlace> {
        let mut places = Vec::new();
        let Some(function) = self.function_at(address) else { return places };
        let tree = self.inline_tree(&function);
        let mut address = address;
        while places.len() < MAX_INLINED {
            let index = self.pcdata(&function, PCDATA_INL_TREE_INDEX, address, steps);
            let inlined = tree.zip(index).and_then(|(tree, index)| self.inlined(&function, tree, index));
            let name = match &inlined {
                Some((name, _)) => Some(name.clone()),
                None => self.name(&function),
            };
            let Some(name) = name else { break };
            let (file, line) = self.file_and_line(&function, address, steps).unzip();
            places.push(GoPlace { function: name, file: file.flatten(), line, address });
            // A call site lies before what was inlined there; anything else
            // could go round for ever, which MAX_INLINED ends.
            match inlined {
                Some((_, parent)) => address = parent,
                None => break,
            }
        }
        places
    }

    /// As `unwinder.resolveInternal` in `runtime/traceback.go` goes.
    pub(super) fn frame(&self, address: Svma) -> Option<GoFrame> {
        let function = self.function_at(address)?;
        // The flags stand before a byte of padding and nfuncdata.
        let flags = *self.bytes.get(usize::try_from(function.at + self.generation.func_bytes() - 3).ok()?)?;
        if flags & TOP_FRAME != 0 {
            return Some(GoFrame::Outermost);
        }
        if flags & SP_WRITE != 0 {
            return self.is_named(&function, "runtime.systemstack").then_some(GoFrame::OtherStack);
        }
        let table = u32_at(self.bytes, function.at + 16)?;
        let size = self.value(table, &function, address, &mut FRAME_STEPS.clone())?;
        (size < MAX_FRAME).then_some(GoFrame::Size(u64::from(size)))
    }

    /// `funcdata(f, _FUNCDATA_InlTree)` (SVMA).
    fn inline_tree(&self, function: &GoFunction) -> Option<u64> {
        let (pcdata, funcdata) = self.counts(function)?;
        if FUNCDATA_INL_TREE >= u64::from(funcdata) {
            return None;
        }
        let at = function.at + self.generation.func_bytes() + 4 * (u64::from(pcdata) + FUNCDATA_INL_TREE);
        let offset = u32_at(self.bytes, at).filter(|&offset| offset != u32::MAX)?;
        self.data.gofunc.checked_add(u64::from(offset))
    }

    /// How many words of pcdata and of funcdata a `_func` has.
    fn counts(&self, function: &GoFunction) -> Option<(u32, u8)> {
        let last = function.at + self.generation.func_bytes() - 1;
        Some((u32_at(self.bytes, function.at + 28)?, *self.bytes.get(usize::try_from(last).ok()?)?))
    }

    /// An entry of the tree (`inlinedCall`): the inlined function's name, and an
    /// address at the place of the call.
    fn inlined(&self, function: &GoFunction, tree: u64, index: u32) -> Option<(String, Svma)> {
        let (bytes, name, parent) = match self.generation {
            Generation::Go118 => (20, 12, 16),
            Generation::Go120 => (16, 4, 8),
        };
        let entry = self.image.at(Svma(tree.checked_add(u64::from(index) * bytes)?))?;
        let parent = Svma(function.range.start.0.checked_add(u64::from(u32_at(entry, parent)?))?);
        let name = self.name_of(u32_at(entry, name)?)?;
        function.range.contains(&parent).then_some((name, parent))
    }

    /// `pcdatavalue1`; `None` for its -1.
    fn pcdata(&self, function: &GoFunction, table: u64, address: Svma, steps: &mut u64) -> Option<u32> {
        if table >= u64::from(self.counts(function)?.0) {
            return None;
        }
        let offset = u32_at(self.bytes, function.at + self.generation.func_bytes() + 4 * table)?;
        self.value(offset, function, address, steps)
    }

    fn file_and_line(&self, function: &GoFunction, address: Svma, steps: &mut u64) -> Option<(Option<String>, u32)> {
        let field = |index: u64| u32_at(self.bytes, function.at + 4 * index);
        let line = self.value(field(6)?, function, address, steps).filter(|&line| line > 0)?;
        let file = self.value(field(5)?, function, address, steps);
        let path = file.and_then(|file| {
            // Files are numbered by compilation unit.
            let at = self.units + 4 * (u64::from(field(8)?) + u64::from(file));
            let offset = u32_at(self.bytes, at).filter(|&offset| at < self.files && offset != u32::MAX)?;
            let path = string_at(self.bytes, self.files + u64::from(offset))?;
            Some(String::from_utf8_lossy(path).into_owned()).filter(|path| !path.is_empty())
        });
        Some((path, line))
    }

    /// `pcvalue`: pairs of differences, of the value (zigzag) and of the
    /// address, until the address is passed. `None` for negative values.
    fn value(&self, offset: u32, function: &GoFunction, address: Svma, steps: &mut u64) -> Option<u32> {
        if offset == 0 {
            return None;
        }
        let quantum = u64::from(*self.bytes.get(6)?);
        let mut at = usize::try_from(self.values + u64::from(offset)).ok()?;
        let (mut value, mut end) = (-1_i32, function.range.start.0);
        let mut first = true;
        loop {
            *steps = steps.checked_sub(1)?;
            let difference = varint(self.bytes, &mut at)?;
            if difference == 0 && !first {
                return None;
            }
            first = false;
            value = value.wrapping_add((difference >> 1) as i32 ^ -((difference & 1) as i32));
            end = end.checked_add(u64::from(varint(self.bytes, &mut at)?) * quantum)?;
            if address.0 < end {
                return u32::try_from(value).ok();
            }
        }
    }
}

fn varint(bytes: &[u8], at: &mut usize) -> Option<u32> {
    let mut value = 0;
    for shift in [0, 7, 14, 21, 28] {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u32::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn u32_at(bytes: &[u8], at: u64) -> Option<u32> {
    let at = usize::try_from(at).ok()?;
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: u64) -> Option<u64> {
    let at = usize::try_from(at).ok()?;
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// Up to a zero.
fn string_at(bytes: &[u8], at: u64) -> Option<&[u8]> {
    let rest = bytes.get(usize::try_from(at).ok()?..)?;
    let rest = &rest[..rest.len().min(MAX_NAME)];
    Some(&rest[..rest.iter().position(|&byte| byte == 0)?])
}
