//! Where the sampling rate stands, told by the code that reads it.

use iced_x86::{Decoder, DecoderOptions, Instruction, MemorySize, Mnemonic, OpKind};
use reprieve_symbolizer::{GoImage, Svma};
use std::collections::BTreeSet;

/// Functions of the runtime that read `runtime.MemProfileRate`, in Go 1.19 to
/// 1.27; no other variable of 64 bits is read by both.
const READERS: [&str; 2] = ["runtime.allocmcache", "runtime.profilealloc"];
/// Bytes of each that are looked at.
const MAX_CODE: usize = 4096;

/// Address of `runtime.MemProfileRate` in the file; `None` where it cannot be
/// told, and for other machines than x86-64.
#[must_use]
pub fn rate_address(go: &GoImage) -> Option<Svma> {
    if !go.image().is_x86_64() {
        return None;
    }
    let variables = go.variables();
    let mut common: Option<BTreeSet<u64>> = None;
    for function in go.functions(&READERS) {
        let function = function?;
        let code = go.code(&function)?;
        let mut read = words_read(&code[..code.len().min(MAX_CODE)], function.range.start.0);
        read.retain(|&at| variables.iter().any(|range| range.contains(&Svma(at))));
        common = Some(match common {
            Some(others) => others.intersection(&read).copied().collect(),
            None => read,
        });
    }
    let common = common?;
    let only = common.first().copied()?;
    (common.len() == 1).then_some(Svma(only))
}

fn is_word(size: MemorySize) -> bool {
    matches!(size, MemorySize::UInt64 | MemorySize::Int64)
}

/// Addresses from which 64 bits are loaded, relative to the instruction.
fn words_read(code: &[u8], address: u64) -> BTreeSet<u64> {
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    let mut found = BTreeSet::new();
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        let is_load = match instruction.mnemonic() {
            Mnemonic::Mov => instruction.op0_kind() == OpKind::Register && instruction.op1_kind() == OpKind::Memory,
            Mnemonic::Cmp => instruction.op0_kind() == OpKind::Memory || instruction.op1_kind() == OpKind::Memory,
            _ => false,
        };
        if is_load && instruction.is_ip_rel_memory_operand() && is_word(instruction.memory_size()) {
            found.insert(instruction.ip_rel_memory_address());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_of_words_only() {
        let code = [
            0x48, 0x8b, 0x05, 0x10, 0, 0, 0, // mov rax, [rip+0x10]
            0x8b, 0x05, 0x20, 0, 0, 0, // mov eax, [rip+0x20]
            0x48, 0x89, 0x05, 0x30, 0, 0, 0, // mov [rip+0x30], rax
            0x48, 0x83, 0x3d, 0x40, 0, 0, 0, 1, // cmp qword [rip+0x40], 1
            0x48, 0x8d, 0x05, 0x50, 0, 0, 0, // lea rax, [rip+0x50]
            0x48, 0x8b, // cut
        ];
        assert_eq!(words_read(&code, 0x1000), BTreeSet::from([0x1017, 0x105c]));
    }
}
