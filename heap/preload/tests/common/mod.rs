//! A table, and programs with the library that fill it.
#![allow(dead_code, reason = "each test program uses its part")]

use reprieve_heap_table::{ProcessTable, Region, Settings, Words, read};
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Output};

/// A region in a memory file, as a guardian has it.
pub struct Table {
    file: File,
    pub region: Region<'static>,
}

impl Table {
    pub fn new(period: u64, seed: u64) -> Self {
        let bytes = 512 * reprieve_heap_table::layout::SLAB_BYTES;
        // SAFETY: a C string; the result is checked by what follows.
        let file = unsafe { File::from_raw_fd(libc::memfd_create(c"reprieve-heap".as_ptr(), 0)) };
        file.set_len(bytes as u64).unwrap();
        // SAFETY: a new shared mapping of our own file; it stays to the end.
        let words = unsafe {
            let flags = libc::PROT_READ | libc::PROT_WRITE;
            let base = libc::mmap(std::ptr::null_mut(), bytes, flags, libc::MAP_SHARED, file.as_raw_fd(), 0);
            assert_ne!(base, libc::MAP_FAILED);
            Words::at(base.cast(), bytes)
        };
        let region = Region::format(words, Settings { period, mapping: 64 << 10, seed }).unwrap();
        region.set_ready(512);
        Table { file, region }
    }

    /// A command with the library.
    pub fn command(&self, program: &str) -> Command {
        let library = std::env::var("REPRIEVE_HEAP_LIBRARY").expect("not set; run `cargo xtask test`");
        let meta = self.file.metadata().unwrap();
        let fd = self.file.as_raw_fd();
        let path = format!("/proc/{}/fd/{fd}", std::process::id());
        let mut command = Command::new(program);
        command.env("LD_PRELOAD", library).env("REPRIEVE_HEAP", format!("{fd}:{}:{}:{path}", meta.dev(), meta.ino()));
        command
    }

    pub fn tables(&self) -> Vec<ProcessTable> {
        read(self.region)
    }
}

pub fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Estimated live bytes.
pub fn live(table: &ProcessTable, period: u64) -> f64 {
    let weight = |asked: u64| 1.0 / (1.0 - (-(asked.max(1) as f64) / period as f64).exp());
    table.live.iter().map(|s| s.usable as f64 * weight(s.asked)).sum()
}

pub fn c_program(dir: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
    let (source, program) = (dir.path().join(format!("{name}.c")), dir.path().join(name));
    std::fs::write(&source, text).unwrap();
    let compiler = ["-O2", "-g", "-pthread", "-fomit-frame-pointer", "-o"];
    let status = Command::new("cc").args(compiler).arg(&program).arg(&source).status().unwrap();
    assert!(status.success());
    program
}
