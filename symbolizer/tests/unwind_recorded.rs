//! Snapshots of programs for aarch64, unwound on any machine: registers, what lay in memory,
//! and the program (tests/recorded/README.md, which tells how they are recorded anew).

#[path = "common/emulator.rs"]
mod emulator;

use emulator::{Emulator, TRAP};
use reprieve_symbolizer::{DebugDirs, FoundBy, Image, Machine, RawStack, Registers, StackEnd, Svma, Unwinder, resolve};
use std::collections::HashMap;
use std::fmt::Write;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// From where the stack began down: deeper than any of the programs.
const STACK_BYTES: u64 = 8 << 10;
/// Of the trampoline back from a signal, which the emulator has in no file.
const TRAMPOLINE_BYTES: u64 = 32;

/// A program, and how it is built and run.
struct Recorded {
    name: &'static str,
    cpu: &'static str,
    flags: &'static [&'static str],
}

const DEEP: Recorded = Recorded { name: "deep", cpu: "cortex-a72", flags: &["-fomit-frame-pointer"] };
const SIGNAL: Recorded = Recorded { name: "signal", cpu: "cortex-a72", flags: &["-fomit-frame-pointer"] };
const SIGNED: Recorded = Recorded { name: "signed", cpu: "max", flags: &["-mbranch-protection=pac-ret"] };

impl Recorded {
    fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorded")
    }

    fn program(&self) -> PathBuf {
        Self::folder().join(format!("{}.elf", self.name))
    }

    fn snapshot(&self) -> PathBuf {
        Self::folder().join(format!("{}.snapshot", self.name))
    }

    /// As it is stored; with REPRIEVE_BLESS=1 it is recorded before, which takes the compiler
    /// and the emulator.
    fn read(&self) -> Snapshot {
        if std::env::var_os("REPRIEVE_BLESS").is_some() {
            self.build();
            self.record();
        }
        Snapshot::parse(&fs::read_to_string(self.snapshot()).unwrap())
    }

    fn build(&self) {
        let sources = [format!("{}.c", self.name), "start.S".to_owned()];
        let built = Command::new("aarch64-linux-gnu-gcc")
            .current_dir(Self::folder())
            .args(["-O1", "-ffreestanding", "-nostdlib", "-static", "-no-pie", "-fasynchronous-unwind-tables"])
            .args(["-fno-stack-protector", "-fno-optimize-sibling-calls", "-Wall", "-Werror"])
            .args(["-Wl,--build-id=none", "-Wl,-z,max-page-size=4096", "-Wl,--eh-frame-hdr", "-o"])
            .arg(self.program())
            .args(sources)
            .args(self.flags)
            .status()
            .expect("gcc-aarch64-linux-gnu is installed");
        assert!(built.success());
        let stripped = Command::new("aarch64-linux-gnu-objcopy")
            .args(["--remove-section=.comment"])
            .arg(self.program())
            .status()
            .unwrap();
        assert!(stripped.success());
    }

    /// Runs it to `stop_here`, and puts down what is there then.
    fn record(&self) {
        let image = Image::open(&File::open(self.program()).unwrap()).unwrap();
        let symbol = |name: &str| image.symbols(&[name])[0];
        let dir = tempfile::tempdir().unwrap();
        let mut emulator = Emulator::start(&self.program(), &dir.path().join("socket"), self.cpu);
        let top = emulator.registers()[31];
        let mut ranges = vec![(top - STACK_BYTES, top + 64)];
        let run_to = |emulator: &mut Emulator, function: &str| {
            let at = symbol(function).unwrap().0.0;
            assert_eq!(emulator.ask(&format!("Z0,{at:x},4")), "OK");
            let mut stopped = emulator.go("c").expect("it stops");
            while stopped != TRAP {
                stopped = emulator.go(&format!("vCont;C{stopped:02x}")).expect("it handles its signals");
            }
            let registers = emulator.registers();
            assert_eq!(registers[32], at, "{function}");
            // It would stop there again.
            assert_eq!(emulator.ask(&format!("z0,{at:x},4")), "OK");
            registers
        };
        if symbol("handler").is_some() {
            let trampoline = run_to(&mut emulator, "handler")[30];
            ranges.push((trampoline, trampoline + TRAMPOLINE_BYTES));
            let (start, bytes) = symbol("own_stack").unwrap();
            ranges.push((start.0, start.0 + bytes));
        }
        let registers = run_to(&mut emulator, "stop_here");
        let mut text = String::new();
        for (name, value) in [("pc", 32), ("sp", 31), ("fp", 29), ("lr", 30)].map(|(name, n)| (name, registers[n])) {
            writeln!(text, "{name} {value:#x}").unwrap();
        }
        for (start, end) in ranges {
            writeln!(text, "memory {start:#x} {end:#x}").unwrap();
            for at in (start..end).step_by(8) {
                // Above where the stack begins there may be less.
                let Some(word) = emulator.word(at) else { continue };
                if word != 0 {
                    writeln!(text, "{at:#x} {word:#x}").unwrap();
                }
            }
        }
        fs::write(self.snapshot(), text).unwrap();
    }

    /// Each frame by its function, and how it was found.
    fn unwind(&self, snapshot: &Snapshot) -> (Vec<(String, FoundBy)>, RawStack) {
        let image = Image::open(&File::open(self.program()).unwrap()).unwrap();
        let mut unwinder = Unwinder::of(Machine::Aarch64);
        unwinder.add_module(0x40_0000..0x50_0000, 0, &image, self.name);
        let stack = unwinder.unwind(&snapshot.registers, &mut |address| snapshot.word(address), 128);
        let look_ups: Vec<Svma> = stack.frames.iter().map(|frame| Svma(frame.lookup_address().0)).collect();
        let names = resolve(&image, None, &DebugDirs { dirs: Vec::new() }, &look_ups);
        let name = |found: Result<reprieve_symbolizer::Resolution, _>| {
            found.map_or_else(|_| "-".to_owned(), |resolution| resolution.frames[0].function.clone())
        };
        (names.into_iter().map(name).zip(stack.frames.iter().map(|frame| frame.found)).collect(), stack)
    }
}

/// What was there when it was recorded.
#[derive(Debug)]
struct Snapshot {
    registers: Registers,
    /// Ranges of memory that were looked at.
    ranges: Vec<(u64, u64)>,
    /// What is not zero in them.
    words: HashMap<u64, u64>,
}

impl Snapshot {
    fn parse(text: &str) -> Self {
        let number = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).unwrap();
        let registers = Registers { ip: 0, sp: 0, fp: 0, lr: 0 };
        let mut snapshot = Snapshot { registers, ranges: Vec::new(), words: HashMap::new() };
        for line in text.lines() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["pc", value] => snapshot.registers.ip = number(value),
                ["sp", value] => snapshot.registers.sp = number(value),
                ["fp", value] => snapshot.registers.fp = number(value),
                ["lr", value] => snapshot.registers.lr = number(value),
                ["memory", start, end] => snapshot.ranges.push((number(start), number(end))),
                [at, word] => assert_eq!(snapshot.words.insert(number(at), number(word)), None, "{line}"),
                _ => panic!("{line:?}"),
            }
        }
        snapshot
    }

    fn word(&self, address: u64) -> Option<u64> {
        let is_there = self.ranges.iter().any(|&(start, end)| (start..end).contains(&address));
        assert!(!is_there || address.is_multiple_of(8), "{address:#x}");
        is_there.then(|| self.words.get(&address).copied().unwrap_or(0))
    }
}

/// The innermost, and its callers, which call frame information tells.
fn by_cfi(functions: &[&str]) -> Vec<(String, FoundBy)> {
    let found = |index| if index == 0 { FoundBy::Register } else { FoundBy::Cfi };
    functions.iter().enumerate().map(|(index, name)| ((*name).to_owned(), found(index))).collect()
}

#[test]
fn a_deep_stack() {
    let (told, stack) = DEEP.unwind(&DEEP.read());
    // `even` of 38, 36 … 0, and `odd` between.
    let mut expected = vec!["stop_here", "with_array"];
    expected.extend((0..39).map(|n| if n % 2 == 0 { "even" } else { "odd" }));
    expected.extend(["run", "_start"]);
    assert_eq!((told, stack.end), (by_cfi(&expected), StackEnd::Complete));
}

#[test]
fn a_signal_on_a_stack_of_its_own() {
    let (told, stack) = SIGNAL.unwind(&SIGNAL.read());
    let mut expected = by_cfi(&["stop_here", "in_handler", "handler", "-", "load", "work", "run", "_start"]);
    expected[4].1 = FoundBy::Signal;
    assert_eq!((told, &stack.end), (expected, &StackEnd::Complete));
    // The handler ran elsewhere.
    let distance = |a: usize, b: usize| stack.frames[a].stack_pointer.abs_diff(stack.frames[b].stack_pointer);
    assert!(distance(2, 4) > 1 << 20 && distance(4, 7) < STACK_BYTES, "{stack:x?}");
}

#[test]
fn return_addresses_that_are_signed() {
    let snapshot = SIGNED.read();
    let (told, stack) = SIGNED.unwind(&snapshot);
    let expected = by_cfi(&["stop_here", "inner", "middle", "outer", "run", "_start"]);
    assert_eq!((told, stack.end), (expected, StackEnd::Complete));
    // None of them but the first lies on the stack as it is.
    let returns: Vec<u64> = stack.frames[2..].iter().map(|frame| frame.address.0).collect();
    let is_signed = |word: &u64| word >> 48 != 0 && returns.contains(&(word & ((1 << 48) - 1)));
    assert!(!snapshot.words.values().any(|word| returns.contains(word)), "{returns:x?}");
    assert_eq!(snapshot.words.values().filter(|word| is_signed(word)).count(), returns.len());
}

/// What is missing ends a stack, and nothing is made up in its place.
#[test]
fn without_memory_a_stack_ends_where_it_is_missing() {
    let mut snapshot = DEEP.read();
    let (whole, stack) = DEEP.unwind(&snapshot);
    let from = stack.frames[20].stack_pointer;
    snapshot.ranges[0].1 = from;
    let (told, stack) = DEEP.unwind(&snapshot);
    assert_eq!(told, whole[..told.len()]);
    assert!((20..=21).contains(&told.len()), "{told:?}");
    assert!(matches!(stack.end, StackEnd::MissingMemory { address } if address.0 >= from), "{:?}", stack.end);
}
