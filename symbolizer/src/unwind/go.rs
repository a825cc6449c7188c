//! Leaving frames of Go, which has tables of its own (x86-64).

use super::Registers;

/// Leaves a frame of which the return address is `size` bytes above the stack pointer.
pub(super) fn by_size(
    registers: &Registers,
    size: u64,
    read: &mut dyn FnMut(u64) -> Result<u64, ()>,
) -> Option<Registers> {
    let at = registers.sp.checked_add(size)?;
    let above = at.checked_add(8)?;
    let ip = read(at).ok()?;
    // A frame pointer below is this function's own, and points to the caller's:
    // the frames above may not be Go's.
    let is_own = (registers.sp..above).contains(&registers.fp);
    let fp = if is_own { read(registers.fp).unwrap_or(registers.fp) } else { registers.fp };
    Some(Registers { ip, sp: above, fp, lr: 0 })
}

/// Leaves a frame by the frame pointer, wherever that leads.
pub(super) fn by_frame_pointer(
    registers: &Registers,
    read: &mut dyn FnMut(u64) -> Result<u64, ()>,
) -> Option<Registers> {
    let frame = registers.fp;
    let ip = read(frame.checked_add(8)?).ok()?;
    let fp = read(frame).ok()?;
    (ip != 0).then_some(Registers { ip, sp: frame.checked_add(16)?, fp, lr: 0 })
}
