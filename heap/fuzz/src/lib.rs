//! Hostile memory for fuzz targets.
//!
//! A walk is steered by what it reads, so random bytes lead nowhere. Inputs are
//! what a walk over a real process read, piece by piece; the fuzzer changes them.

use reprieve_heap_walk::Memory;
use std::collections::BTreeMap;

/// Bytes before each piece: its address, and its length.
const HEAD: usize = 10;

/// Memory that consists of pieces: `address: u64, length: u16, bytes`, all
/// little-endian, one behind the other. Of two at one place the later counts.
#[derive(Debug, Default)]
pub struct Pieces {
    pieces: BTreeMap<u64, Vec<u8>>,
}

impl Pieces {
    /// Reads as many as there are; a piece that is cut short is what is there of it.
    #[must_use]
    pub fn parse(mut input: &[u8]) -> Self {
        let mut pieces = Pieces::default();
        while let Some((head, rest)) = input.split_at_checked(HEAD) {
            let address = u64::from_le_bytes(head[..8].try_into().unwrap_or_default());
            let length = usize::from(u16::from_le_bytes([head[8], head[9]]));
            let (piece, rest) = rest.split_at(length.min(rest.len()));
            pieces.pieces.insert(address, piece.to_vec());
            input = rest;
        }
        pieces
    }

    /// As an input that [`Pieces::parse`] reads.
    #[must_use]
    pub fn to_input(&self) -> Vec<u8> {
        let mut input = Vec::new();
        for (address, bytes) in &self.pieces {
            for (index, chunk) in bytes.chunks(usize::from(u16::MAX)).enumerate() {
                let at = address + (index * usize::from(u16::MAX)) as u64;
                input.extend(at.to_le_bytes());
                input.extend((chunk.len() as u16).to_le_bytes());
                input.extend(chunk);
            }
        }
        input
    }

    /// Adds what was read somewhere.
    pub fn record(&mut self, address: u64, bytes: &[u8]) {
        let known = self.pieces.entry(address).or_default();
        if known.len() < bytes.len() {
            *known = bytes.to_vec();
        }
    }

    fn byte_run(&self, address: u64) -> Option<&[u8]> {
        // A piece that begins before may reach this far; few overlap.
        self.pieces.range(..=address).rev().take(4).find_map(|(start, bytes)| {
            let within = usize::try_from(address - start).ok()?;
            bytes.get(within..).filter(|run| !run.is_empty())
        })
    }
}

impl Memory for Pieces {
    fn read(&mut self, address: u64, out: &mut [u8]) -> bool {
        let mut done = 0;
        while done < out.len() {
            let Some(run) = address.checked_add(done as u64).and_then(|at| self.byte_run(at)) else { return false };
            let n = run.len().min(out.len() - done);
            out[done..done + n].copy_from_slice(&run[..n]);
            done += n;
        }
        true
    }
}

/// Another memory, and all that was read of it.
pub struct Recorder<'m> {
    /// Where it comes from.
    pub memory: &'m mut dyn Memory,
    /// What was read.
    pub pieces: Pieces,
}

impl Memory for Recorder<'_> {
    fn read(&mut self, address: u64, out: &mut [u8]) -> bool {
        let is_there = self.memory.read(address, out);
        if is_there {
            self.pieces.record(address, out);
        }
        is_there
    }
}
