//! Our sweep and the libraries that it is compared with, each as its
//! documentation says it is used best.

use addr2line::Context as Addr2line;
use anyhow::{Context, Result, bail};
use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolized, Symbolizer};
use gimli::{EndianSlice, LittleEndian};
use memmap2::Mmap;
use object::{Object, ObjectSection};
use reprieve_symbolizer::{DebugDirs, Image, Settings, Svma, resolve_each};
use std::borrow::Cow;
use std::fs::File;
use std::path::Path;
use std::str::FromStr;

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contestant {
    /// The sweep.
    Reprieve,
    /// The sweep with as little memory as possible.
    ReprieveLean,
    /// The sweep on two cores.
    ReprieveTwoThreads,
    /// The crate addr2line over a mapped file.
    Addr2line,
    /// The crate blazesym, one address at a time.
    Blazesym,
    /// The same, all in one call.
    BlazesymBatch,
}

impl FromStr for Contestant {
    type Err = anyhow::Error;
    fn from_str(name: &str) -> Result<Self> {
        Ok(match name {
            "reprieve" => Contestant::Reprieve,
            "reprieve-lean" => Contestant::ReprieveLean,
            "reprieve-2-threads" => Contestant::ReprieveTwoThreads,
            "addr2line" => Contestant::Addr2line,
            "blazesym" => Contestant::Blazesym,
            "blazesym-batch" => Contestant::BlazesymBatch,
            _ => bail!("no contestant {name:?}"),
        })
    }
}

/// One frame; nothing is copied that the contestant did not copy.
#[derive(Debug)]
pub struct Frame<'a> {
    /// Demangled; empty where it is not known.
    pub function: Cow<'a, str>,
    /// To be joined with `file`.
    pub folder: Option<&'a Path>,
    pub file: &'a str,
    /// 0 where it is not known.
    pub line: u32,
}

impl Frame<'_> {
    pub fn path(&self) -> String {
        match self.folder {
            Some(folder) => folder.join(self.file).display().to_string(),
            None => self.file.to_owned(),
        }
    }
}

/// Who takes the chains, innermost frame first, in any order: index and frames.
pub type Sink<'s> = dyn FnMut(usize, &[Frame<'_>]) + Send + 's;

/// What came out, in numbers.
#[derive(Debug, Default)]
pub struct Tally {
    pub addresses: usize,
    pub frames: usize,
    pub unnamed: usize,
}

impl Tally {
    pub fn count(&mut self, chain: &[Frame<'_>]) {
        self.addresses += 1;
        self.frames += chain.len();
        self.unnamed += usize::from(chain.iter().all(|f| f.function.is_empty()));
    }
}

/// The same addresses as each contestant wants them, so that nobody has to copy them.
#[derive(Debug)]
pub struct Questions {
    plain: Vec<u64>,
    typed: Vec<Svma>,
}

impl Questions {
    pub fn new(plain: Vec<u64>) -> Self {
        let typed = plain.iter().copied().map(Svma).collect();
        Questions { plain, typed }
    }

    pub fn addresses(&self) -> &[u64] {
        &self.plain
    }
}

impl Contestant {
    pub fn run(self, file: &Path, questions: &Questions, sink: &mut Sink<'_>) -> Result<()> {
        let (addresses, typed) = (&questions.plain[..], &questions.typed[..]);
        match self {
            Contestant::Reprieve => reprieve(file, typed, |_| (), sink),
            Contestant::ReprieveLean => reprieve(file, typed, |s| s.lean = true, sink),
            Contestant::ReprieveTwoThreads => reprieve(file, typed, |s| s.threads = 2, sink),
            Contestant::Addr2line => addr2line(file, addresses, sink),
            Contestant::Blazesym => blazesym(file, addresses, 1, sink),
            Contestant::BlazesymBatch => blazesym(file, addresses, addresses.len(), sink),
        }
    }
}

fn reprieve(path: &Path, addresses: &[Svma], change: fn(&mut Settings<'_>), sink: &mut Sink<'_>) -> Result<()> {
    let image = Image::open(&File::open(path)?)?;
    let dirs = DebugDirs { dirs: Vec::new() };
    let mut settings = Settings::new(&dirs);
    change(&mut settings);
    resolve_each(&image, Some(path), &settings, addresses, &mut |index, answer| {
        let frames = answer.map(|a| a.frames).unwrap_or_default().iter();
        let frames: Vec<Frame<'_>> = frames
            .map(|f| Frame {
                function: Cow::Borrowed(f.function.unwrap_or_default()),
                folder: None,
                file: f.file.unwrap_or_default(),
                line: f.line.unwrap_or(0),
            })
            .collect();
        sink(index, &frames);
    });
    Ok(())
}

fn addr2line(path: &Path, addresses: &[u64], sink: &mut Sink<'_>) -> Result<()> {
    let file = File::open(path)?;
    // SAFETY: nobody writes to the file while it is measured.
    let map = unsafe { Mmap::map(&file)? };
    let file = object::File::parse(&*map)?;
    let dwarf = gimli::Dwarf::load(|id| {
        let data = file.section_by_name(id.name()).and_then(|s| s.data().ok()).unwrap_or_default();
        Ok::<_, gimli::Error>(EndianSlice::new(data, LittleEndian))
    })?;
    let context = Addr2line::from_dwarf(dwarf)?;
    for (index, &address) in addresses.iter().enumerate() {
        let mut frames = Vec::new();
        let mut found = context.find_frames(address).skip_all_loads()?;
        while let Some(frame) = found.next()? {
            let place = frame.location.as_ref();
            frames.push(Frame {
                function: match &frame.function {
                    Some(name) => Cow::Owned(name.demangle()?.into_owned()),
                    None => Cow::Borrowed(""),
                },
                folder: None,
                file: place.and_then(|p| p.file).unwrap_or_default(),
                line: place.and_then(|p| p.line).unwrap_or(0),
            });
        }
        sink(index, &frames);
    }
    Ok(())
}

fn blazesym(path: &Path, addresses: &[u64], at_once: usize, sink: &mut Sink<'_>) -> Result<()> {
    let source = Source::Elf(Elf::new(path));
    let symbolizer = Symbolizer::new();
    for (batch, addresses) in addresses.chunks(at_once.max(1)).enumerate() {
        let found = symbolizer.symbolize(&source, Input::VirtOffset(addresses)).context("blazesym gave up")?;
        for (index, symbol) in found.iter().enumerate() {
            let frames = match symbol {
                Symbolized::Sym(symbol) => frames(symbol),
                Symbolized::Unknown(_) => Vec::new(),
            };
            sink(batch * at_once + index, &frames);
        }
    }
    Ok(())
}

/// blazesym tells the function first and what was inlined into it behind, each
/// with its own place.
fn frames<'a>(symbol: &'a Sym<'_>) -> Vec<Frame<'a>> {
    let inlined = symbol.inlined.iter().rev().map(|f| frame(&f.name, f.code_info.as_ref()));
    inlined.chain([frame(&symbol.name, symbol.code_info.as_deref())]).collect()
}

fn frame<'a>(name: &'a str, place: Option<&'a CodeInfo<'_>>) -> Frame<'a> {
    Frame {
        function: Cow::Borrowed(name),
        folder: place.and_then(|p| p.dir.as_deref()),
        file: place.and_then(|p| p.file.to_str()).unwrap_or_default(),
        line: place.and_then(|p| p.line).unwrap_or(0),
    }
}
