//! `runtime.mbuckets` without a symbol.
//!
//! It is a word among the variables that points to a bucket, and a bucket
//! proves itself: it has the hash of its own stack and size.

use super::buckets::{Bucket, List};
use crate::memory::Memory;
use std::ops::Range;

/// Bytes of variables that are searched.
const MAX_SEARCHED: u64 = 16 << 20;
/// Words that may be pointers to buckets.
const MAX_CANDIDATES: usize = 1 << 16;
/// Read at once: a page.
const CHUNK: u64 = 4096;
/// Where the garbage-collected heap begins on 64-bit Linux (`mallocinit` in
/// `runtime/malloc.go`); buckets are never in it. That it may go on elsewhere
/// costs only time.
const HEAP: Range<u64> = 0xc0_0000_0000..0xe0_0000_0000;
/// Lists that are followed to find the longest.
const MAX_LISTS: usize = 8;

/// The first bucket of the longest list that a variable points to.
pub(super) fn head(memory: &mut dyn Memory, variables: &[Range<u64>]) -> Option<u64> {
    let mut candidates = candidates(memory, variables);
    candidates.sort_unstable();
    candidates.dedup();
    let mut lists: Vec<u64> = Vec::new();
    for at in candidates {
        if lists.len() < MAX_LISTS && is_bucket(memory, at) {
            lists.push(at);
        }
    }
    // Another variable may point to an older bucket.
    match lists[..] {
        [] => None,
        [only] => Some(only),
        _ => lists.into_iter().max_by_key(|&at| length(memory, at)),
    }
}

fn candidates(memory: &mut dyn Memory, variables: &[Range<u64>]) -> Vec<u64> {
    let mut found = Vec::new();
    let mut left = MAX_SEARCHED;
    let mut chunk = [0; CHUNK as usize];
    for range in variables {
        let mut at = range.start.checked_next_multiple_of(8).unwrap_or(range.end);
        while at < range.end && left > 0 && found.len() < MAX_CANDIDATES {
            // To the end of the page, since the next may be absent.
            let length = (CHUNK - at % CHUNK).min(range.end - at);
            left = left.saturating_sub(length);
            let chunk = &mut chunk[..length as usize];
            if memory.read(at, chunk) {
                let words = chunk.chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().expect("eight bytes")));
                found.extend(words.filter(|&word| {
                    let is_pointer = word.is_multiple_of(8) && (1 << 16..1 << 47).contains(&word);
                    is_pointer && !HEAP.contains(&word) && !variables.iter().any(|range| range.contains(&word))
                }));
            }
            let Some(next) = at.checked_add(length) else { break };
            at = next;
        }
    }
    found.truncate(MAX_CANDIDATES);
    found
}

fn is_bucket(memory: &mut dyn Memory, at: u64) -> bool {
    let Some(bucket) = Bucket::read(memory, at) else { return false };
    let Some(counters) = bucket.counters(memory) else { return false };
    hash(&counters, bucket.size) == bucket.hash
}

fn length(memory: &mut dyn Memory, head: u64) -> usize {
    let mut list = List::at(head);
    while list.next(memory).is_some() {}
    list.length
}

/// As `stkbucket` mixes it, the same in Go 1.19 to 1.27.
pub(super) fn hash(stack: &[u64], size: u64) -> u64 {
    let mut hash = 0_u64;
    for &word in stack.iter().chain([&size]) {
        hash = hash.wrapping_add(word);
        hash = hash.wrapping_add(hash << 10);
        hash ^= hash >> 6;
    }
    hash = hash.wrapping_add(hash << 3);
    hash ^ hash >> 11
}
