//! Frames of a heap, each once.

use crate::incident::model::HeapFrame;
use crate::snapshot::{LoadedModule, locate};
use reprieve_symbolizer::{Avma, Frame};
use std::collections::BTreeMap;

/// Distinct frames.
#[derive(Default)]
pub(super) struct Frames {
    pub(super) list: Vec<HeapFrame>,
    by_address: BTreeMap<u64, u32>,
    by_name: BTreeMap<(String, Option<String>, Option<u32>), u32>,
}

impl Frames {
    /// Place of a return address.
    pub(super) fn native(&mut self, address: u64, modules: &[LoadedModule]) -> u32 {
        *self.by_address.entry(address).or_insert_with(|| {
            // A return address stands behind its call.
            let at = locate(Avma(address.wrapping_sub(1)), modules);
            self.list.push(HeapFrame { address, at, named: None });
            self.list.len() as u32 - 1
        })
    }

    /// Place of a frame that its runtime named. Names that are equal are one frame: code
    /// that is compiled again has another address.
    pub(super) fn named(&mut self, address: u64, named: Frame) -> u32 {
        let key = (named.function.clone(), named.file.clone(), named.line);
        *self.by_name.entry(key).or_insert_with(|| {
            self.list.push(HeapFrame { address, at: None, named: Some(named) });
            self.list.len() as u32 - 1
        })
    }
}
