//! Entries of a page map, and who is charged for their frames: words of which the first
//! half are entries, and the others inodes as kpagecgroup has them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reprieve::accounting::hostile::count_pages;
use reprieve::snapshot::{Entry, page_size};
use std::fs::File;
use std::io::{Seek, Write};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Longest input, in words: each entry may have a piece of the set of frames for itself,
/// which are 4 KiB.
const MOST_WORDS: usize = 8192;

/// In memory, whoever looks.
fn file_of(bytes: &[u8]) -> File {
    static FILE: OnceLock<Mutex<File>> = OnceLock::new();
    let path = || format!("/dev/shm/reprieve-fuzz-{}", std::process::id());
    let open = || {
        let file = File::options().read(true).write(true).create_new(true).open(path()).expect("tmpfs");
        // The descriptor is all that is needed.
        std::fs::remove_file(path()).expect("it was just made");
        Mutex::new(file)
    };
    let mut file = FILE.get_or_init(open).lock().unwrap_or_else(PoisonError::into_inner);
    file.set_len(0).expect("it is ours");
    file.rewind().expect("it is ours");
    file.write_all(bytes).expect("there is room");
    file.try_clone().expect("a descriptor")
}

fuzz_target!(|input: &[u8]| {
    let words = &input.as_chunks::<8>().0[..(input.len() / 8).min(MOST_WORDS)];
    let (entries, inodes) = words.split_at(words.len() / 2);
    let entries: Vec<u64> = entries.iter().map(|word| u64::from_le_bytes(*word)).collect();
    let present = entries.iter().filter(|&&entry| Entry(entry).is_present()).count() as u64;
    assert!(entries.iter().all(|&entry| Entry(entry).pfn().is_none_or(|pfn| pfn < 1 << 55)));
    let [first, second] = count_pages(&entries, file_of(inodes.as_flattened()), vec![7, 9, u64::MAX]);
    assert!(first.iter().sum::<u64>() <= present * page_size(), "{first:?} of {present} pages");
    assert!(first.iter().all(|bytes| bytes % page_size() == 0), "{first:?}");
    // Pages that can be in other page tables, too, are counted once.
    let [own, common, filed, elsewhere] = second;
    assert_eq!([own, common, filed], [first[0], 0, 0]);
    assert!(elsewhere <= first[3], "{elsewhere} {first:?}");
});
