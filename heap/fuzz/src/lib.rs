//! Hostile memory for fuzz targets.
//!
//! A walk is steered by what it reads, so random bytes lead nowhere. Inputs are
//! what a walk over a real process read, piece by piece; the fuzzer changes them.

use reprieve_heap_walk::Memory;
use std::collections::BTreeMap;
use std::ops::Range;

/// What a walk is told, and the memory it is told it of.
#[derive(Debug, Default)]
pub struct Input {
    /// Addresses and other words; what they mean, each target knows.
    pub words: Vec<u64>,
    /// Mappings by what they are.
    pub ranges: Vec<Vec<Range<u64>>>,
    /// The memory.
    pub memory: Pieces,
}

impl Input {
    /// Reads `words: u8, lists: u8`, the words, each list as `ranges: u8` and their
    /// starts and ends, and the pieces. What is missing is 0 or empty.
    #[must_use]
    pub fn parse(input: &[u8]) -> Self {
        let mut input = input;
        let word_count = take_byte(&mut input);
        let list_count = take_byte(&mut input);
        let words = (0..word_count).map(|_| take_word(&mut input)).collect();
        let ranges = (0..list_count)
            .map(|_| {
                let count = take_byte(&mut input);
                (0..count).map(|_| take_word(&mut input)..take_word(&mut input)).collect()
            })
            .collect();
        Input { words, ranges, memory: Pieces::parse(input) }
    }

    /// As [`Input::parse`] reads it.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![self.words.len() as u8, self.ranges.len() as u8];
        self.words.iter().for_each(|word| out.extend(word.to_le_bytes()));
        for list in &self.ranges {
            out.push(list.len() as u8);
            list.iter().for_each(|r| out.extend([r.start.to_le_bytes(), r.end.to_le_bytes()].concat()));
        }
        out.extend(self.memory.to_input());
        out
    }

    /// A word, 0 where there is none.
    #[must_use]
    pub fn word(&self, index: usize) -> u64 {
        self.words.get(index).copied().unwrap_or(0)
    }

    /// A list of mappings, none where there is none.
    #[must_use]
    pub fn list(&self, index: usize) -> Vec<Range<u64>> {
        self.ranges.get(index).cloned().unwrap_or_default()
    }
}

fn take_byte(input: &mut &[u8]) -> u8 {
    let Some((&byte, rest)) = input.split_first() else { return 0 };
    *input = rest;
    byte
}

fn take_word(input: &mut &[u8]) -> u64 {
    let Some((word, rest)) = input.split_first_chunk() else {
        *input = &[];
        return 0;
    };
    *input = rest;
    u64::from_le_bytes(*word)
}

/// Bytes before each piece: its address, and its length.
const HEAD: usize = 10;
/// Zeroes from so many on are told by their number.
const ZEROES: usize = 64;
/// Most zeroes in one piece, and in all.
const ZEROES_MAX: usize = 1 << 20;
const ALL_ZEROES_MAX: usize = 16 << 20;

/// Memory that consists of pieces, one behind the other: `address: u64, length: u16,
/// bytes`, or, with a length of 0, `zeroes: u32`. All is little-endian. Of two at one
/// address the later counts.
#[derive(Debug, Default)]
pub struct Pieces {
    pieces: BTreeMap<u64, Vec<u8>>,
}

impl Pieces {
    /// Reads as many as there are; a piece that is cut short is what is there of it.
    #[must_use]
    pub fn parse(mut input: &[u8]) -> Self {
        let mut pieces = Pieces::default();
        let mut zeroes_left = ALL_ZEROES_MAX;
        while let Some((head, rest)) = input.split_at_checked(HEAD) {
            let address = u64::from_le_bytes(head[..8].try_into().unwrap_or_default());
            let length = usize::from(u16::from_le_bytes([head[8], head[9]]));
            input = rest;
            let piece = if length == 0 {
                let Some((count, rest)) = input.split_first_chunk() else { break };
                input = rest;
                let count = (u32::from_le_bytes(*count) as usize).min(ZEROES_MAX).min(zeroes_left);
                zeroes_left -= count;
                vec![0; count]
            } else {
                let (piece, rest) = input.split_at(length.min(input.len()));
                input = rest;
                piece.to_vec()
            };
            pieces.pieces.insert(address, piece);
        }
        pieces
    }

    /// As an input that [`Pieces::parse`] reads.
    #[must_use]
    pub fn to_input(&self) -> Vec<u8> {
        let mut input = Vec::new();
        for (&address, bytes) in &self.pieces {
            let mut at = 0;
            while at < bytes.len() {
                let rest = &bytes[at..];
                let zeroes = rest.iter().take(ZEROES_MAX).take_while(|&&byte| byte == 0).count();
                input.extend((address + at as u64).to_le_bytes());
                if zeroes >= ZEROES || zeroes == rest.len() {
                    input.extend(0u16.to_le_bytes());
                    input.extend((zeroes as u32).to_le_bytes());
                    at += zeroes;
                } else {
                    let is_zero = |window: &[u8]| window.iter().all(|&byte| byte == 0);
                    let length = rest.windows(ZEROES).position(is_zero).unwrap_or(rest.len());
                    let length = length.clamp(1, usize::from(u16::MAX));
                    input.extend((length as u16).to_le_bytes());
                    input.extend(&rest[..length]);
                    at += length;
                }
            }
        }
        input
    }

    /// Adds what was read somewhere; what overlaps becomes one piece.
    pub fn record(&mut self, address: u64, bytes: &[u8]) {
        let mut start = address;
        let mut joined = bytes.to_vec();
        let end = |start: u64, bytes: &[u8]| start + bytes.len() as u64;
        while let Some((&other, _)) = self.pieces.range(..=end(start, &joined)).next_back() {
            if end(other, &self.pieces[&other]) < start {
                break;
            }
            let Some(known) = self.pieces.remove(&other) else { break };
            let first = other.min(start);
            let mut both = vec![0; (end(other, &known).max(end(start, &joined)) - first) as usize];
            for (at, bytes) in [(other, &known), (start, &joined)] {
                both[(at - first) as usize..][..bytes.len()].copy_from_slice(bytes);
            }
            (start, joined) = (first, both);
        }
        self.pieces.insert(start, joined);
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
