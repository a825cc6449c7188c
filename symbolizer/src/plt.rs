//! Names for the stubs of the procedure linkage table, which have no symbols: each
//! jumps to where a word of the GOT says, and a relocation says what the loader puts
//! there.
//!
//! Codes as GNU ld, gold and lld write them: System V ABI for x86-64, "Procedure
//! Linkage Table"; ELF for the Arm 64-bit Architecture, "Program Linkage Table".

use object::{Architecture, Object, ObjectSection, ObjectSymbol, ObjectSymbolTable, RelocationTarget};
use std::ops::Range;

/// Sections with such stubs.
const SECTIONS: [&str; 4] = [".plt", ".plt.sec", ".plt.got", ".plt.bnd"];
/// `Elf64_Rela`.
const RELA_BYTES: usize = 24;
/// Stubs begin at multiples of it on x86-64, but those of `.plt.got`.
const STUB: usize = 16;

/// For each of the addresses, which are sorted, that is in a stub with a name:
/// its position and the name.
pub(crate) fn names(file: &object::File<'_>, sorted: &[u64]) -> Vec<(usize, String)> {
    let mut slots: Vec<(u64, usize)> = Vec::new();
    for section in SECTIONS.iter().filter_map(|name| file.section_by_name(name)) {
        let range = section.address()..section.address().saturating_add(section.size());
        let first = sorted.partition_point(|&a| a < range.start);
        let count = sorted[first..].partition_point(|&a| a < range.end);
        let Ok(code) = section.data() else { continue };
        for (position, &address) in sorted.iter().enumerate().skip(first).take(count) {
            slots.extend(slot(file, code, &range, address).map(|slot| (slot, position)));
        }
    }
    if slots.is_empty() {
        return Vec::new();
    }
    slots.sort_unstable();
    let (Some(relocations), Some(symbols)) = (file.dynamic_relocations(), file.dynamic_symbol_table()) else {
        return Vec::new();
    };
    let mut names = Vec::new();
    for (at, relocation) in relocations {
        let first = slots.partition_point(|&(slot, _)| slot < at);
        let mine = slots[first..].iter().take_while(|&&(slot, _)| slot == at);
        let RelocationTarget::Symbol(index) = relocation.target() else { continue };
        let Some(name) = symbols.symbol_by_index(index).ok().and_then(|s| s.name().ok()) else { continue };
        names.extend(mine.filter(|_| !name.is_empty()).map(|&(_, position)| (position, name.to_owned())));
    }
    names.sort_unstable();
    names
}

/// The word of the GOT that the stub at `address` jumps to.
fn slot(file: &object::File<'_>, code: &[u8], range: &Range<u64>, address: u64) -> Option<u64> {
    let within = usize::try_from(address - range.start).ok()?;
    match file.architecture() {
        Architecture::X86_64 => {
            let is_jump = |at: usize| code.get(at..at + 2) == Some(&[0xff, 0x25]);
            let size = if is_jump(0) && is_jump(STUB / 2) { STUB / 2 } else { STUB };
            let begin = within / size * size;
            let stub = code.get(begin..code.len().min(begin + size))?;
            slot_x86_64(stub, range.start + begin as u64).or_else(|| slot_by_number(file, stub))
        }
        Architecture::Aarch64 => slot_aarch64(code, within, range.start),
        _ => None,
    }
}

/// `jmp *slot(%rip)`, behind `endbr64` and prefixes perhaps.
fn slot_x86_64(stub: &[u8], address: u64) -> Option<u64> {
    let at = stub.windows(2).position(|code| code == [0xff, 0x25])?;
    let offset = i32::from_le_bytes(stub.get(at + 2..at + 6)?.try_into().ok()?);
    Some(address.wrapping_add(at as u64 + 6).wrapping_add_signed(i64::from(offset)))
}

/// `endbr64; push $number; jmp …`: the number of a relocation in `.rela.plt`. Such a
/// stub is a second one, that a lazy binding goes through.
fn slot_by_number(file: &object::File<'_>, stub: &[u8]) -> Option<u64> {
    let push = stub.strip_prefix(&[0xf3, 0x0f, 0x1e, 0xfa, 0x68])?;
    let number = u32::from_le_bytes(push.get(..4)?.try_into().ok()?) as usize;
    let table = file.section_by_name(".rela.plt")?.data().ok()?;
    let entry = table.get(number.checked_mul(RELA_BYTES)?..)?.get(..8)?;
    Some(u64::from_le_bytes(entry.try_into().ok()?))
}

/// `adrp x16, page; ldr x17, [x16, #offset]`, two words of a stub of four to six.
fn slot_aarch64(code: &[u8], within: usize, section: u64) -> Option<u64> {
    let word = |at: usize| Some(u32::from_le_bytes(code.get(at..at + 4)?.try_into().ok()?));
    (0..6).find_map(|back| {
        let at = (within / 4).checked_sub(back)? * 4;
        let (adrp, ldr) = (word(at)?, word(at + 4)?);
        if adrp & 0x9f00_001f != 0x9000_0010 || ldr & 0xffc0_03ff != 0xf940_0211 {
            return None;
        }
        // 21 bits, of which the lowest two are elsewhere, in pages.
        let pages = ((adrp >> 5 & 0x7_ffff) << 2 | adrp >> 29 & 3) << 11;
        let page = ((section + at as u64) & !0xfff).wrapping_add_signed(i64::from(pages as i32 >> 11) << 12);
        Some(page.wrapping_add(u64::from(ldr >> 10 & 0xfff) * 8))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_both_architectures() {
        // 401030: ff 25 e2 2f 00 00  jmp *0x2fe2(%rip)  # 404018
        assert_eq!(slot_x86_64(&[0xff, 0x25, 0xe2, 0x2f, 0, 0, 0x68, 0, 0, 0, 0, 0xe9], 0x40_1030), Some(0x40_4018));
        // 1050: f3 0f 1e fa f2 ff 25 75 2f 00 00  endbr64; bnd jmp *0x2f75(%rip)  # 3fd0
        let code = [0xf3, 0x0f, 0x1e, 0xfa, 0xf2, 0xff, 0x25, 0x75, 0x2f, 0, 0];
        assert_eq!(slot_x86_64(&code, 0x1050), Some(0x3fd0));
        // 610: 90000090 adrp x16, 20000; f947fe11 ldr x17, [x16, #4088]; 913fe210 add …; d61f0220 br x17
        let code: Vec<u8> =
            [0x9000_0110_u32, 0xf947_fe11, 0x913f_e210, 0xd61f_0220].iter().flat_map(|w| w.to_le_bytes()).collect();
        for within in [0, 4, 8, 12] {
            assert_eq!(slot_aarch64(&code, within, 0x610), Some(0x2_0ff8));
        }
        // A page before: adrp x16, #-0x1000.
        let code: Vec<u8> = [0xf0ff_fff0_u32, 0xf940_0211].iter().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!(slot_aarch64(&code, 0, 0x5000), Some(0x4000));
        assert_eq!(slot_aarch64(&[0; 32], 16, 0x5000), None);
    }

    #[test]
    fn addresses_at_the_end_of_all() {
        assert_eq!(slot_x86_64(&[0xff, 0x25, 1, 0, 0, 0], u64::MAX - 2), Some(4));
        // adrp x16, #0; ldr x17, [x16, #32760]: from the last page to the first ones.
        let code: Vec<u8> = [0x9000_0010_u32, 0xf97f_fe11].iter().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!(slot_aarch64(&code, 0, u64::MAX - 7), Some(0x6ff8));
    }
}
