//! Names of functions where DWARF has none.

use crate::Svma;
use crate::demangle::demangle;
use crate::frame::{Answer, FrameRef, Miss, SymbolSource};
use crate::go::GoImage;
use crate::image::Image;
use crate::plt;
use crate::symtab::{Covering, Table};

/// Entries of Go's tables that one address may cost.
const GO_STEPS: u64 = 1 << 20;

/// Symbol tables and Go's tables; looked at when first needed, then for all
/// addresses at once.
pub(crate) struct Symbols<'s, 'a> {
    image: &'s Image,
    files: Vec<(&'s object::File<'a>, Table, SymbolSource)>,
    sorted: &'s [u64],
    /// Of each of `files`, once those before it did not know an address.
    covering: Vec<Covering>,
    stubs: Option<Vec<(usize, String)>>,
    go: Option<Option<GoImage>>,
}

impl<'s, 'a> Symbols<'s, 'a> {
    /// For `sorted` addresses of `image`, which `file` is of; `mini` is what its
    /// `.gnu_debugdata` has.
    pub(crate) fn new(
        image: &'s Image,
        file: &'s object::File<'a>,
        debug_file: Option<&'s object::File<'a>>,
        mini: Option<&'s object::File<'a>>,
        sorted: &'s [u64],
    ) -> Self {
        let mut files = vec![(file, Table::Full, SymbolSource::SymbolTable)];
        files.extend(debug_file.map(|debug| (debug, Table::Full, SymbolSource::SymbolTable)));
        files.extend(mini.map(|mini| (mini, Table::Full, SymbolSource::MiniDebugInfo)));
        files.push((file, Table::Dynamic, SymbolSource::DynamicSymbolTable));
        Symbols { image, files, sorted, covering: Vec::new(), stubs: None, go: None }
    }

    /// `place` is where DWARF knows the line only: assembly, or a unit that does not
    /// list its functions.
    pub(crate) fn answer(
        &mut self,
        position: usize,
        place: Option<&FrameRef<'_>>,
        sink: &mut dyn FnMut(Result<Answer<'_>, Miss>),
    ) {
        if self.answer_by_stub(position, sink) {
            return;
        }
        // Go's own tables know lines and inlined functions, as no symbol table does.
        if self.answer_by_go(position, sink) {
            return;
        }
        let (files, sorted, covering) = (&self.files, self.sorted, &mut self.covering);
        let mut places = files.iter().enumerate();
        let named = places.find_map(|(place, (file, table, source))| {
            if covering.len() <= place {
                covering.push(Covering::find(file, *table, sorted));
            }
            Some((covering[place].name(file, position)?, *source))
        });
        let Some((name, source)) = named else { return sink(Err(Miss::NoSymbol)) };
        let name = demangle(name);
        let unknown = FrameRef { function: None, file: None, line: None, column: None };
        let frame = FrameRef { function: Some(&name), ..place.copied().unwrap_or(unknown) };
        sink(Ok(Answer { frames: &[frame], source }));
    }

    /// `malloc@plt`, as disassemblers write it.
    fn answer_by_stub(&mut self, position: usize, sink: &mut dyn FnMut(Result<Answer<'_>, Miss>)) -> bool {
        let (file, _, _) = self.files[0];
        let stubs = self.stubs.get_or_insert_with(|| plt::names(file, self.sorted));
        let Ok(place) = stubs.binary_search_by_key(&position, |(p, _)| *p) else { return false };
        let name = format!("{}@plt", demangle(&stubs[place].1));
        let frame = FrameRef { function: Some(&name), file: None, line: None, column: None };
        sink(Ok(Answer { frames: &[frame], source: SymbolSource::Plt }));
        true
    }

    fn answer_by_go(&mut self, position: usize, sink: &mut dyn FnMut(Result<Answer<'_>, Miss>)) -> bool {
        let go = self.go.get_or_insert_with(|| GoImage::find(self.image));
        let places = go.as_ref().map(|go| go.places(Svma(self.sorted[position]), &mut GO_STEPS.clone()));
        let Some(places) = places.filter(|p| !p.is_empty()) else { return false };
        let frames: Vec<FrameRef<'_>> = places
            .iter()
            .map(|place| FrameRef {
                function: Some(&place.function),
                file: place.file.as_deref(),
                line: place.line,
                column: None,
            })
            .collect();
        sink(Ok(Answer { frames: &frames, source: SymbolSource::GoPclntab }));
        true
    }
}
