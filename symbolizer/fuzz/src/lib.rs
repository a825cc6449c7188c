//! What several targets ask, and what every answer must be.

use reprieve_symbolizer::{Account, Answer, DebugDirs, Image, Miss, Settings, Svma, resolve_each};
use std::path::Path;

/// Memory that a run may take beside the input, in bytes.
pub const HEADROOM: u64 = 32 << 20;

/// Longest name and path, in bytes (one that is no text may become three times as long);
/// functions inlined into each other, and the outermost.
const MOST_NAME: usize = 16 << 10;
const MOST_PATH: usize = 3 * 4096;
const MOST_FRAMES: usize = 257;

/// Addresses that are asked for: in code as the sections have it, and elsewhere.
#[must_use]
pub fn addresses(image: &Image) -> Vec<Svma> {
    let mut addresses: Vec<Svma> = [0, 1, 0x1000, 0x40_1000, u64::MAX].map(Svma).to_vec();
    for name in [".text", ".plt", ".plt.sec", ".init"] {
        if let Some((range, _)) = image.section_data(name) {
            addresses.extend(range.step_by(3).take(64).map(Svma));
        }
    }
    addresses
}

/// Asks, and asserts that each question is answered once and that no answer is without end.
pub fn ask(image: &Image, path: Option<&Path>, dirs: &DebugDirs) -> Account {
    let settings = Settings { headroom: &|| HEADROOM, ..Settings::new(dirs) };
    let addresses = addresses(image);
    let mut answers = vec![0; addresses.len()];
    let account = resolve_each(image, path, &settings, &addresses, &mut |question, answer| {
        answers[question] += 1;
        check(&answer);
    });
    assert!(answers.iter().all(|&count| count == 1), "{answers:?}");
    assert!(account.tried.len() <= 64 && account.without_lines <= addresses.len(), "{account:?}");
    account
}

fn check(answer: &Result<Answer<'_>, Miss>) {
    let Ok(answer) = answer else { return };
    assert!((1..=MOST_FRAMES).contains(&answer.frames.len()), "{} frames", answer.frames.len());
    for frame in answer.frames {
        assert!(frame.function.is_none_or(|name| name.len() <= MOST_NAME + "@plt".len()));
        assert!(frame.file.is_none_or(|path| path.len() <= MOST_PATH));
        assert!(frame.line != Some(0) && frame.column != Some(0), "0 is no line: {frame:?}");
    }
}

/// Files in one input: `length: u32` in little-endian order and the bytes of each; the last
/// is what is left.
#[must_use]
pub fn files(mut input: &[u8]) -> Vec<&[u8]> {
    let mut files = Vec::new();
    while let Some((length, rest)) = input.split_first_chunk() {
        let length = (u32::from_le_bytes(*length) as usize).min(rest.len());
        let (file, rest) = rest.split_at(length);
        files.push(file);
        input = rest;
    }
    files
}
