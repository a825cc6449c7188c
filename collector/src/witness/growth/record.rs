//! Records that the kernel writes into a ring, from their bytes.
//!
//! Source: perf_event_open(2), "MMAP layout", and `enum perf_event_type` in
//! include/uapi/linux/perf_event.h. The layout of a sample is that of
//! [`SAMPLE_TYPE`] and of no other.
//!
//! The bytes are the kernel's, but the stack in them is the target's, and a ring that
//! was overwritten could hold anything: nothing here trusts a length.

use perf_event_open_sys::bindings as perf;
use reprieve_symbolizer::Registers;

/// What each sample has, in the order of the bits. Other records end with the first two.
pub const SAMPLE_TYPE: u64 = perf::PERF_SAMPLE_TID as u64
    | perf::PERF_SAMPLE_TIME as u64
    | perf::PERF_SAMPLE_ADDR as u64
    | perf::PERF_SAMPLE_CALLCHAIN as u64
    | perf::PERF_SAMPLE_REGS_USER as u64
    | perf::PERF_SAMPLE_STACK_USER as u64;

/// Registers that unwinding starts from, as bits (arch/x86/include/uapi/asm/perf_regs.h):
/// BP, SP and IP, which a sample has in this order.
#[cfg(target_arch = "x86_64")]
pub const REGISTERS: u64 = 1 << 6 | 1 << 7 | 1 << 8;
/// The same (arch/arm64/include/uapi/asm/perf_regs.h): X29, LR, SP and PC.
#[cfg(target_arch = "aarch64")]
pub const REGISTERS: u64 = 1 << 29 | 1 << 30 | 1 << 31 | 1 << 32;

/// What other records than samples end with: PID and TID, and the time.
const ID_BYTES: usize = 16;

/// How many those are.
const REGISTER_COUNT: usize = REGISTERS.count_ones() as usize;

/// `struct perf_event_header`: type, misc, size.
pub const HEADER_BYTES: usize = 8;

/// The header of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    kind: u32,
    misc: u16,
    /// Bytes of the record, the header included.
    pub size: usize,
}

impl Header {
    /// Of the first bytes of a record.
    #[must_use]
    pub fn parse(bytes: [u8; HEADER_BYTES]) -> Self {
        let mut fields = Fields(&bytes);
        // Eight bytes are there.
        let mut word = || fields.u32().unwrap_or_default();
        let (kind, rest) = (word(), word().to_ne_bytes());
        Header {
            kind,
            misc: u16::from_ne_bytes([rest[0], rest[1]]),
            size: usize::from(u16::from_ne_bytes([rest[2], rest[3]])),
        }
    }
}

/// A page fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault<'r> {
    /// Whose.
    pub pid: i32,
    /// When, in nanoseconds of the kernel's clock for this.
    pub time: u64,
    /// What was touched.
    pub address: u64,
    /// Where in the kernel, if it was in a system call.
    pub kernel: Chain<'r>,
    /// In user mode; `None` of a 32-bit program, and of a task that was not in it.
    pub registers: Option<Registers>,
    /// What is on its stack from the stack pointer on, as far as it was copied.
    pub stack: &'r [u8],
}

/// Where the kernel was, as it wrote it down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Chain<'r>(pub &'r [u8]);

impl<'r> Chain<'r> {
    /// What to look up of each of its frames, innermost first: the instruction that touched the
    /// page, and of return addresses the byte before them.
    pub fn look_ups(self) -> impl Iterator<Item = u64> + use<'r> {
        let (words, _) = self.0.as_chunks::<8>();
        let words = words.iter().map(|word| u64::from_ne_bytes(*word));
        // Marks between parts are the highest numbers.
        let part = words.skip_while(|&word| word != perf::PERF_CONTEXT_KERNEL).skip(1);
        let part = part.take_while(|&word| word < perf::PERF_CONTEXT_MAX);
        part.enumerate().map(|(index, word)| word.wrapping_sub(u64::from(index > 0)))
    }
}

/// Code of a file, as it was mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code<'r> {
    /// First address.
    pub start: u64,
    /// How much was mapped, in bytes.
    pub bytes: u64,
    /// Where in the file.
    pub offset: u64,
    /// Major and minor number of its device.
    pub device: (u32, u32),
    /// Its inode.
    pub inode: u64,
    /// Its path, as the kernel gives it.
    pub path: &'r [u8],
}

/// What the ring tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record<'r> {
    /// A sampled page fault.
    Fault(Fault<'r>),
    /// So many records found no room.
    Lost(u64),
    /// A program took the place of another.
    Exec {
        /// Whose.
        pid: i32,
        /// When.
        time: u64,
    },
    /// A process was made.
    Fork {
        /// The new one.
        pid: i32,
        /// Who made it.
        parent: i32,
        /// When.
        time: u64,
    },
    /// The first thread of a process ended.
    Exit {
        /// Whose.
        pid: i32,
        /// When.
        time: u64,
    },
    /// Code was mapped.
    Mapped {
        /// Whose.
        pid: i32,
        /// When.
        time: u64,
        /// Of which file; `None` where it is none.
        code: Option<Code<'r>>,
    },
    /// Anything else.
    Other,
}

/// The record with this header; `body` is all behind it. `None` where they do not fit
/// together.
#[must_use]
pub fn parse(header: Header, body: &[u8]) -> Option<Record<'_>> {
    let mut fields = Fields(body);
    Some(match header.kind {
        perf::PERF_RECORD_SAMPLE => Record::Fault(fault(&mut fields)?),
        perf::PERF_RECORD_LOST => {
            let _id = fields.u64()?;
            Record::Lost(fields.u64()?)
        }
        perf::PERF_RECORD_COMM if u32::from(header.misc) & perf::PERF_RECORD_MISC_COMM_EXEC != 0 => {
            Record::Exec { pid: fields.i32()?, time: last_u64(body)? }
        }
        perf::PERF_RECORD_FORK | perf::PERF_RECORD_EXIT => {
            let (pid, parent, tid, _parents_tid) = (fields.i32()?, fields.i32()?, fields.i32()?, fields.i32()?);
            let time = fields.u64()?;
            match header.kind {
                // Threads come and go without a change of memory.
                _ if tid != pid => Record::Other,
                perf::PERF_RECORD_FORK => Record::Fork { pid, parent, time },
                _ => Record::Exit { pid, time },
            }
        }
        perf::PERF_RECORD_MMAP | perf::PERF_RECORD_MMAP2 => {
            let (pid, _tid) = (fields.i32()?, fields.i32()?);
            let is_known = header.kind == perf::PERF_RECORD_MMAP2;
            Record::Mapped { pid, time: last_u64(body)?, code: is_known.then(|| code(&mut fields)).flatten() }
        }
        _ => Record::Other,
    })
}

/// What a `PERF_RECORD_MMAP2` that has no build ID, which nobody asked for, says behind
/// PID and TID.
fn code<'r>(fields: &mut Fields<'r>) -> Option<Code<'r>> {
    let (start, bytes, offset) = (fields.u64()?, fields.u64()?, fields.u64()?);
    let device = (fields.u32()?, fields.u32()?);
    let (inode, _generation) = (fields.u64()?, fields.u64()?);
    let (_protection, _flags) = (fields.u32()?, fields.u32()?);
    let name = fields.take(fields.0.len().checked_sub(ID_BYTES)?)?;
    let path = name.get(..name.iter().position(|&byte| byte == 0)?)?;
    (inode != 0 && path.starts_with(b"/")).then_some(Code { start, bytes, offset, device, inode, path })
}

/// A sample, field by field in the order of the bits.
fn fault<'r>(fields: &mut Fields<'r>) -> Option<Fault<'r>> {
    let (pid, _tid) = (fields.i32()?, fields.i32()?);
    let time = fields.u64()?;
    let address = fields.u64()?;
    let frames = usize::try_from(fields.u64()?).ok()?;
    let kernel = Chain(fields.take(frames.checked_mul(8)?)?);
    let abi = fields.u64()?;
    let registers = if abi == u64::from(perf::PERF_SAMPLE_REGS_ABI_NONE) {
        None
    } else {
        let mut values = [0; REGISTER_COUNT];
        for value in &mut values {
            *value = fields.u64()?;
        }
        (abi == u64::from(perf::PERF_SAMPLE_REGS_ABI_64)).then(|| to_unwind(values))
    };
    let room = fields.u64()?;
    let mut stack: &[u8] = &[];
    if room > 0 {
        let copied = fields.take(usize::try_from(room).ok()?)?;
        // How much of the room was filled.
        let filled = usize::try_from(fields.u64()?).ok()?;
        stack = copied.get(..filled)?;
    }
    Some(Fault { pid, time, address, kernel, registers, stack })
}

#[cfg(target_arch = "x86_64")]
fn to_unwind([fp, sp, ip]: [u64; REGISTER_COUNT]) -> Registers {
    Registers { ip, sp, fp, lr: 0 }
}

#[cfg(target_arch = "aarch64")]
fn to_unwind([fp, lr, sp, ip]: [u64; REGISTER_COUNT]) -> Registers {
    Registers { ip, sp, fp, lr }
}

/// The time at the end of a record that has a name of any length before it.
fn last_u64(body: &[u8]) -> Option<u64> {
    Some(u64::from_ne_bytes(*body.last_chunk()?))
}

/// What is left of a record.
struct Fields<'r>(&'r [u8]);

impl<'r> Fields<'r> {
    fn take(&mut self, bytes: usize) -> Option<&'r [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_ne_bytes(self.take(4)?.try_into().ok()?))
    }

    fn i32(&mut self) -> Option<i32> {
        self.u32().map(u32::cast_signed)
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_ne_bytes(self.take(8)?.try_into().ok()?))
    }
}

/// Records as the kernel would write them.
#[cfg(test)]
pub mod made_up {
    use super::*;

    /// A whole record.
    pub fn record(kind: u32, misc: u16, body: &[u8]) -> Vec<u8> {
        let size = (HEADER_BYTES + body.len()) as u16;
        [&kind.to_ne_bytes()[..], &misc.to_ne_bytes(), &size.to_ne_bytes(), body].concat()
    }

    /// The words of a record one after the other.
    pub fn body(ids: &[i32], words: &[u64]) -> Vec<u8> {
        let ids = ids.iter().flat_map(|id| id.to_ne_bytes());
        ids.chain(words.iter().flat_map(|word| word.to_ne_bytes())).collect()
    }

    /// A sample of `pid` at `address`, with registers and this much of its stack.
    pub fn sample(pid: i32, time: u64, address: u64, registers: [u64; REGISTER_COUNT], stack: &[u8]) -> Vec<u8> {
        sample_in_kernel(pid, time, address, &[], registers, stack)
    }

    /// The same with what the kernel says of itself.
    pub fn sample_in_kernel(
        pid: i32,
        time: u64,
        address: u64,
        chain: &[u64],
        registers: [u64; REGISTER_COUNT],
        stack: &[u8],
    ) -> Vec<u8> {
        let mut bytes = body(&[pid, pid + 1], &[time, address, chain.len() as u64]);
        bytes.extend(body(&[], chain));
        bytes.extend(body(&[], &[u64::from(perf::PERF_SAMPLE_REGS_ABI_64)]));
        bytes.extend(body(&[], &registers));
        bytes.extend(body(&[], &[64]));
        let mut room = [0xa5; 64];
        room[..stack.len()].copy_from_slice(stack);
        bytes.extend(room);
        bytes.extend(body(&[], &[stack.len() as u64]));
        record(perf::PERF_RECORD_SAMPLE, 0, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use made_up::{body, record, sample, sample_in_kernel};

    fn parse_whole(bytes: &[u8]) -> Option<Record<'_>> {
        let header = Header::parse(*bytes.first_chunk()?);
        assert_eq!(header.size, bytes.len());
        parse(header, &bytes[HEADER_BYTES..])
    }

    #[test]
    fn a_sample_is_taken_apart() {
        let mut values = [0; REGISTER_COUNT];
        values.iter_mut().zip(100..).for_each(|(value, number)| *value = number);
        let bytes = sample(7, 5, 0x7000, values, &[1, 2, 3, 4, 5, 6, 7, 8]);
        let Some(Record::Fault(fault)) = parse_whole(&bytes) else { panic!("{:?}", parse_whole(&bytes)) };
        assert_eq!((fault.pid, fault.time, fault.address), (7, 5, 0x7000));
        assert_eq!(fault.stack, [1, 2, 3, 4, 5, 6, 7, 8]);
        let registers = fault.registers.unwrap();
        assert_eq!((registers.fp, registers.ip), (100, 100 + REGISTER_COUNT as u64 - 1));
        assert_eq!(registers.sp, 100 + REGISTER_COUNT as u64 - 2);
        assert_eq!(fault.kernel, Chain(&[]));
    }

    #[test]
    fn where_the_kernel_was_is_told_without_marks() {
        const CONTEXT: u64 = perf::PERF_CONTEXT_KERNEL;
        let (copy, read, user) = (0xffff_ffff_8100_1000, 0xffff_ffff_8100_2000, perf::PERF_CONTEXT_USER);
        let look_ups = |chain: &[u64]| {
            let bytes = sample_in_kernel(7, 5, 0x7000, chain, [1; REGISTER_COUNT], &[9; 8]);
            let Some(Record::Fault(fault)) = parse_whole(&bytes) else { panic!("{:?}", parse_whole(&bytes)) };
            assert_eq!((fault.stack, fault.registers.is_some()), (&[9; 8][..], true));
            fault.kernel.look_ups().collect::<Vec<u64>>()
        };
        assert_eq!(look_ups(&[CONTEXT, copy, read]), [copy, read - 1]);
        assert_eq!(look_ups(&[CONTEXT, copy, read, user, 0x40_1000]), [copy, read - 1]);
        assert_eq!(look_ups(&[user, 0x40_1000]), [0; 0]);
        assert_eq!(look_ups(&[CONTEXT]), [0; 0]);
    }

    #[test]
    fn samples_without_registers_or_stack_are_samples() {
        let bytes = record(perf::PERF_RECORD_SAMPLE, 0, &body(&[7, 7], &[5, 0x7000, 0, 0, 0]));
        let expected = Fault { pid: 7, time: 5, address: 0x7000, kernel: Chain(&[]), registers: None, stack: &[] };
        assert_eq!(parse_whole(&bytes), Some(Record::Fault(expected)));
        // Those of a 32-bit program are not what we unwind.
        let mut words = vec![5, 0x7000, 0, u64::from(perf::PERF_SAMPLE_REGS_ABI_32)];
        words.extend([9; REGISTER_COUNT]);
        words.push(0);
        let bytes = record(perf::PERF_RECORD_SAMPLE, 0, &body(&[7, 7], &words));
        assert_eq!(parse_whole(&bytes), Some(Record::Fault(expected)));
    }

    #[test]
    fn what_becomes_of_processes() {
        let exec = perf::PERF_RECORD_MISC_COMM_EXEC as u16;
        let comm = [&body(&[7, 7], &[])[..], b"name\0\0\0\0", &body(&[7, 7], &[99])].concat();
        let task = |tid: i32| body(&[7, 3, tid, 3], &[42, 0x0000_0007_0000_0007, 43]);
        let cases = [
            (record(perf::PERF_RECORD_COMM, exec, &comm), Record::Exec { pid: 7, time: 99 }),
            (record(perf::PERF_RECORD_COMM, 0, &comm), Record::Other),
            (record(perf::PERF_RECORD_FORK, 0, &task(7)), Record::Fork { pid: 7, parent: 3, time: 42 }),
            (record(perf::PERF_RECORD_FORK, 0, &task(8)), Record::Other),
            (record(perf::PERF_RECORD_EXIT, 0, &task(7)), Record::Exit { pid: 7, time: 42 }),
            (record(perf::PERF_RECORD_EXIT, 0, &task(8)), Record::Other),
            (record(perf::PERF_RECORD_MMAP2, 0, &task(7)), Record::Mapped { pid: 7, time: 43, code: None }),
            (record(perf::PERF_RECORD_LOST, 0, &body(&[], &[1, 12, 0, 0])), Record::Lost(12)),
            (record(4711, 0, &[]), Record::Other),
        ];
        for (bytes, expected) in cases {
            assert_eq!(parse_whole(&bytes), Some(expected));
        }
    }

    /// A mapping of code, as the kernel tells it.
    fn mapped(inode: u64, path: &[u8]) -> Vec<u8> {
        let numbers = body(&[7, 7], &[0x40_0000, 0x3000, 0x1000]);
        let file = [body(&[254, 1], &[inode, 3]), body(&[5, 2], &[])].concat();
        record(perf::PERF_RECORD_MMAP2, 0, &[&numbers[..], &file, path, &body(&[7, 7], &[99])].concat())
    }

    #[test]
    fn code_is_told_with_its_file() {
        let path = b"/bin/x\0\0";
        let bytes = mapped(12, path);
        let Some(Record::Mapped { pid: 7, time: 99, code: Some(code) }) = parse_whole(&bytes) else {
            panic!("{:?}", parse_whole(&bytes))
        };
        assert_eq!((code.start, code.bytes, code.offset), (0x40_0000, 0x3000, 0x1000));
        assert_eq!((code.device, code.inode, code.path), ((254, 1), 12, &b"/bin/x"[..]));
        // No file, no path, a name without an end.
        for bytes in [mapped(0, path), mapped(12, b"[vdso]\0\0"), mapped(12, b"/binary!")] {
            assert_eq!(parse_whole(&bytes), Some(Record::Mapped { pid: 7, time: 99, code: None }));
        }
    }

    #[test]
    fn what_is_cut_is_no_record() {
        let whole = sample(7, 5, 0x7000, [1; REGISTER_COUNT], &[9; 64]);
        assert!(parse_whole(&whole).is_some());
        let header = Header::parse(*whole.first_chunk().unwrap());
        for length in HEADER_BYTES..whole.len() {
            assert_eq!(parse(header, &whole[HEADER_BYTES..length]), None, "{length}");
        }
        for kind in [perf::PERF_RECORD_LOST, perf::PERF_RECORD_FORK, perf::PERF_RECORD_EXIT, perf::PERF_RECORD_MMAP2] {
            assert_eq!(parse_whole(&record(kind, 0, &[0; 2])), None, "{kind}");
        }
    }

    #[test]
    fn lengths_that_lie_are_no_record() {
        let chain = HEADER_BYTES + 8 + 2 * 8;
        let place = chain + 2 * 8 + REGISTER_COUNT * 8;
        let honest = sample(7, 5, 0x7000, [1; REGISTER_COUNT], &[9; 64]);
        for lie in [65, 1 << 20, u64::MAX, u64::MAX - 7] {
            for at in [chain, place, honest.len() - 8] {
                let mut bytes = honest.clone();
                bytes[at..at + 8].copy_from_slice(&lie.to_ne_bytes());
                assert_eq!(parse_whole(&bytes), None, "{lie} at {at}");
            }
        }
    }

    /// No bytes make it panic, and no stack is longer than its record.
    #[test]
    fn any_bytes_are_borne() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let (mut faults, mut none) = (0, 0);
        for round in 0..200_000 {
            let mut bytes = sample(7, 5, 0x7000, [1; REGISTER_COUNT], &[9; 48]);
            if round % 4 == 0 {
                bytes.truncate(HEADER_BYTES.max(random() as usize % (bytes.len() + 1)));
            } else if round % 4 == 1 {
                bytes.resize(HEADER_BYTES + random() as usize % 300, 0xff);
            }
            for _ in 0..random() % 8 {
                let at = random() as usize % bytes.len();
                bytes[at] = random() as u8;
            }
            let mut header = Header::parse(*bytes.first_chunk().unwrap());
            header.kind = if round % 2 == 0 { random() as u32 % 16 } else { perf::PERF_RECORD_SAMPLE };
            match parse(header, &bytes[HEADER_BYTES..]) {
                Some(Record::Fault(fault)) => {
                    assert!(fault.stack.len() < bytes.len());
                    assert!(fault.kernel.look_ups().count() < bytes.len() / 8);
                    faults += 1;
                }
                None => none += 1,
                Some(_) => {}
            }
        }
        assert!(faults > 10_000 && none > 10_000, "{faults} {none}");
    }
}
