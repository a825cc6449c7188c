//! The walk of CPython on memory that we made: what must be found, and whatever
//! else may be there.

use reprieve_heap_walk::Memory;
use reprieve_heap_walk::cpython::{Codes, Interpreter, Place, Refusal, stacks};
use std::collections::BTreeMap;

/// Bytes by page; what is not there cannot be read.
#[derive(Default, Clone)]
struct Pages(BTreeMap<u64, [u8; 4096]>);

impl Pages {
    fn write(&mut self, at: u64, bytes: &[u8]) {
        for (i, &byte) in bytes.iter().enumerate() {
            let at = at + i as u64;
            self.0.entry(at / 4096).or_insert([0; 4096])[(at % 4096) as usize] = byte;
        }
    }

    fn word(&mut self, at: u64, word: u64) {
        self.write(at, &word.to_le_bytes());
    }
}

impl Memory for Pages {
    fn read(&mut self, address: u64, out: &mut [u8]) -> bool {
        for (i, byte) in out.iter_mut().enumerate() {
            let Some(at) = address.checked_add(i as u64) else { return false };
            let Some(page) = self.0.get(&(at / 4096)) else { return false };
            *byte = page[(at % 4096) as usize];
        }
        true
    }
}

const RUNTIME: u64 = 0x10_0000;
const INTERPRETER: u64 = 0x20_0000;
const THREAD: u64 = 0x30_0000;
const CODE: u64 = 0x40_0000;
const CODE_TYPE: u64 = 0x50_0000;
const FRAMES: u64 = 0x60_0000;
const C_STACK: u64 = 0x70_0000;
/// Where 3.12.1 has its fields, by the compiler; see the layouts of the crate.
const PLACE: Place = Place { runtime: RUNTIME, version: Some(0x030c_01f0), code_type: Some(CODE_TYPE) };

fn string(memory: &mut Pages, at: u64, text: &str) {
    memory.word(at + 16, text.chars().count() as u64);
    let (state, data, width) = match text.chars().max().map_or(0, u32::from) {
        0..=0x7f => (1u32 << 2 | 1 << 5 | 1 << 6, 40, 1),
        0x80..=0xff => (1 << 2 | 1 << 5, 56, 1),
        0x100..=0xffff => (2 << 2 | 1 << 5, 56, 2),
        _ => (4 << 2 | 1 << 5, 56, 4),
    };
    memory.write(at + 32, &state.to_le_bytes());
    for (i, c) in text.chars().enumerate() {
        memory.write(at + data + i as u64 * width, &u32::from(c).to_le_bytes()[..width as usize]);
    }
}

/// One interpreter, one thread, two functions: the first calls the second by C.
fn program() -> Pages {
    let mut memory = Pages::default();
    memory.write(RUNTIME, &[0; 1024]);
    memory.word(RUNTIME + 40, INTERPRETER);
    memory.word(INTERPRETER, 0);
    memory.word(INTERPRETER + 72, THREAD);
    memory.write(THREAD, &[0; 256]);
    memory.word(THREAD + 56, C_STACK);
    memory.word(THREAD + 144, 4711);
    memory.word(C_STACK, FRAMES);
    // Innermost first: code, caller, owner.
    for (at, code, previous, owner) in [
        (FRAMES, CODE, C_STACK + 0x100, 0u8),
        (C_STACK + 0x100, CODE, FRAMES + 0x200, 3),
        (FRAMES + 0x200, CODE + 0x1000, C_STACK + 0x800, 1),
        (C_STACK + 0x800, CODE, 0, 3),
    ] {
        memory.write(at, &[0; 80]);
        memory.word(at, code);
        memory.word(at + 8, previous);
        // The second instruction.
        memory.word(at + 56, code + 192 + 2);
        memory.write(at + 70, &[owner]);
    }
    for (at, name, file, line) in
        [(CODE, "Größe.<locals>.λ", "/srv/app.py", 40u32), (CODE + 0x1000, "main", "/srv/𝕞.py", 7)]
    {
        memory.word(at + 8, CODE_TYPE);
        for (field, text) in [(112, Some(file)), (128, Some(name)), (136, None)] {
            let object = at + 0x200 + field * 16;
            memory.word(at + field, object);
            match text {
                Some(text) => string(&mut memory, object, text),
                None => {
                    // One instruction of the first line, three of the third.
                    memory.word(object + 16, 6);
                    memory.write(object + 32, &[0x80 | 10 << 3, 0, 0, 0x80 | 12 << 3 | 2, 0, 0]);
                }
            }
        }
        memory.write(at + 68, &line.to_le_bytes());
    }
    memory
}

#[test]
fn functions_lines_and_the_calls_that_run_them() {
    let mut memory = program();
    let interpreter = Interpreter::open(&mut memory, PLACE).unwrap();
    assert_eq!(interpreter.version(), (3, 12));
    let threads = interpreter.threads(&mut memory);
    assert_eq!(threads.len(), 1);
    assert_eq!((threads[0].native_id, threads[0].whole), (4711, true));
    let mut codes = Codes::default();
    let told: Vec<_> = threads[0]
        .frames
        .iter()
        .map(|frame| {
            let code = codes.get(&interpreter, &mut memory, frame.code, None).unwrap();
            (code.function.clone(), code.file.clone(), code.line(frame.instruction), frame.entry)
        })
        .collect();
    let expected = [
        ("Größe.<locals>.λ".to_owned(), "/srv/app.py".to_owned(), Some(42), Some(C_STACK + 0x100)),
        ("main".to_owned(), "/srv/𝕞.py".to_owned(), Some(9), Some(C_STACK + 0x800)),
    ];
    assert_eq!(told, expected);
}

#[test]
fn code_that_is_gone_has_no_name() {
    let mut memory = program();
    let interpreter = Interpreter::open(&mut memory, PLACE).unwrap();
    let object = |field: u64| CODE + 0x200 + field * 16;
    let check = reprieve_heap_cpython::check(object(112), object(128), object(136), 40);
    let look = |memory: &mut Pages, address, check| {
        Codes::default().get(&interpreter, memory, address, check).map(|code| code.line(None))
    };
    assert_eq!(look(&mut memory, CODE, Some(check)), Some(Some(40)));
    assert_eq!(look(&mut memory, CODE, Some(check ^ 1)), None, "other code came to its place");
    assert_eq!(look(&mut memory, CODE + 16, None), None);
    assert_eq!(look(&mut memory, 0, None), None);
    assert_eq!(look(&mut memory, u64::MAX, None), None);
    memory.word(CODE + 8, CODE_TYPE + 8);
    assert_eq!(look(&mut memory, CODE, Some(check)), None, "no code any more");
}

#[test]
fn a_type_is_known_by_its_name_where_there_are_no_symbols() {
    let mut memory = program();
    let place = Place { code_type: None, ..PLACE };
    let interpreter = Interpreter::open(&mut memory, place).unwrap();
    memory.word(CODE_TYPE + 24, CODE_TYPE + 512);
    memory.write(CODE_TYPE + 512, b"code\0");
    assert!(Codes::default().get(&interpreter, &mut memory, CODE, None).is_some());
    memory.write(CODE_TYPE + 512, b"codec");
    assert!(Codes::default().get(&interpreter, &mut memory, CODE, None).is_none());
}

#[test]
fn what_cannot_be_looked_at_is_said() {
    let mut memory = program();
    let open = |memory: &mut Pages, version| Interpreter::open(memory, Place { version, ..PLACE }).map(|i| i.version());
    assert_eq!(open(&mut Pages::default(), Some(0x030c_01f0)), Err(Refusal::NotThere));
    assert_eq!(open(&mut memory, None), Err(Refusal::NoVersion));
    assert_eq!(open(&mut memory, Some(0x030a_00f0)), Err(Refusal::Version(3, 10)));
    // One that says where its fields are, in a way that we do not know.
    memory.write(RUNTIME, b"xdebugpy");
    memory.word(RUNTIME + 8, 0x0311_00f0);
    assert_eq!(open(&mut memory, None), Err(Refusal::Version(3, 17)));
    assert_eq!(open(&mut memory, Some(0x0311_00f0)), Err(Refusal::Version(3, 17)));
}

/// Every word may be any: pointers into itself, rings, huge lengths.
#[test]
fn hostile_memory_ends() {
    let mut random = 88_172_645_463_325_252u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let honest = program();
    let pages: Vec<u64> = honest.0.keys().copied().collect();
    for round in 0..400 {
        let mut memory = honest.clone();
        for _ in 0..1 + round % 40 {
            let page = pages[next() as usize % pages.len()];
            let at = page * 4096 + next() % 512 * 8;
            let value = match next() % 5 {
                0 => u64::MAX - next() % 64,
                1 => 1 << (next() % 64),
                2 => next(),
                _ => pages[next() as usize % pages.len()] * 4096 + next() % 512 * 8,
            };
            memory.word(at, value);
        }
        for (_, frames) in stacks(&mut memory, PLACE).unwrap_or_default() {
            assert!(frames.iter().all(|frame| frame.function.len().max(frame.file.len()) <= 4096));
        }
    }
    // A thread that is its own next, and frames that are a ring.
    let mut memory = honest;
    memory.word(THREAD + 8, THREAD);
    memory.word(FRAMES + 8, FRAMES);
    memory.word(INTERPRETER, INTERPRETER);
    let interpreter = Interpreter::open(&mut memory, PLACE).unwrap();
    let threads = interpreter.threads(&mut memory);
    assert!(threads.iter().all(|thread| !thread.whole || thread.frames.is_empty()));
    assert!(threads.iter().map(|thread| thread.frames.len()).sum::<usize>() <= 300_000);
}
