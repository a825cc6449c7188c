//! All stacks of a process, again and again.

use anyhow::{Context, Result, ensure};
use reprieve_symbolizer::{Image, Registers, StackEnd, Unwinder};
use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Instant;

/// Bytes that are fetched at once, as the collector does.
const WINDOW: usize = 16 << 10;
/// Of a stack that are copied, to unwind without a system call.
const COPIED: usize = 64 << 10;
const MOST_FRAMES: usize = 512;

/// Prints, as JSON, threads and frames, and nanoseconds of: adding modules, and passes over
/// all threads, the first of which is cold, with reads of the target and from copies.
pub fn print(pid: i32, passes: usize) -> Result<()> {
    let threads = stop(pid)?;
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let begun = Instant::now();
    let mut unwinder = load(pid, &memory)?;
    let load_ns = begun.elapsed().as_nanos() as u64;
    let mut window = (0, Vec::new());
    let mut reading = Vec::new();
    for _ in 0..passes {
        reading.push(pass(&mut unwinder, &threads, &mut |_, address| word(&memory, &mut window, address))?);
        window.1.clear();
    }
    let copies: Vec<Vec<u8>> = threads.iter().map(|thread| copy(&memory, thread.sp)).collect();
    let mut unwinder = load(pid, &memory)?;
    let mut copied = Vec::new();
    for _ in 0..passes {
        let mut read = |thread: usize, address: u64| {
            let from = usize::try_from(address.checked_sub(threads[thread].sp)?).ok()?;
            Some(u64::from_ne_bytes(copies[thread].get(from..from.checked_add(8)?)?.try_into().ok()?))
        };
        copied.push(pass(&mut unwinder, &threads, &mut read)?);
    }
    println!(
        "{}",
        serde_json::json!({ "threads": threads.len(), "load_ns": load_ns, "passes": reading, "copied": copied })
    );
    Ok(())
}

/// Reads a word of a thread's stack.
type Read<'r> = dyn FnMut(usize, u64) -> Option<u64> + 'r;

fn pass(unwinder: &mut Unwinder, threads: &[Registers], read: &mut Read<'_>) -> Result<serde_json::Value> {
    let (mut frames, mut incomplete) = (0, Vec::new());
    let begun = Instant::now();
    for (index, registers) in threads.iter().enumerate() {
        let stack = unwinder.unwind(registers, &mut |address| read(index, address), MOST_FRAMES);
        frames += stack.frames.len();
        if stack.end != StackEnd::Complete {
            incomplete.push(format!("{:#x} after {} frames: {}", registers.ip, stack.frames.len(), stack.end));
        }
    }
    let ns = begun.elapsed().as_nanos() as u64;
    ensure!(incomplete.is_empty(), "of {} stacks, not complete: {}", threads.len(), incomplete.join("; "));
    Ok(serde_json::json!({ "frames": frames, "ns": ns }))
}

/// Stops all threads; they go on when this process ends.
fn stop(pid: i32) -> Result<Vec<Registers>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let tid: i32 = entry?.file_name().to_string_lossy().parse()?;
        let mut status = 0;
        // SAFETY: all zeros is a value of this structure of integers.
        let mut all: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        let mut data = libc::iovec { iov_base: (&raw mut all).cast(), iov_len: size_of_val(&all) };
        // SAFETY: the thread is not ours to share memory with; pointers are to live locals of
        // the size that is told.
        let done = unsafe {
            libc::ptrace(libc::PTRACE_SEIZE, tid, 0, 0) == 0
                && libc::ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0) == 0
                && libc::waitpid(tid, &raw mut status, libc::__WALL) == tid
                && libc::ptrace(libc::PTRACE_GETREGSET, tid, 1, &raw mut data) == 0
        };
        ensure!(done, "thread {tid}: {}", std::io::Error::last_os_error());
        #[cfg(target_arch = "x86_64")]
        threads.push(Registers { ip: all.rip, sp: all.rsp, fp: all.rbp, lr: 0 });
        #[cfg(target_arch = "aarch64")]
        threads.push(Registers { ip: all.pc, sp: all.sp, fp: all.regs[29], lr: all.regs[30] });
    }
    Ok(threads)
}

fn load(pid: i32, memory: &File) -> Result<Unwinder> {
    let mut unwinder = Unwinder::new();
    let mut images: HashMap<String, Image> = HashMap::new();
    for line in fs::read_to_string(format!("/proc/{pid}/maps"))?.lines().filter(|line| line.contains(" r-xp ")) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let Some(name) = fields.get(5).filter(|name| name.starts_with('/') || **name == "[vdso]") else { continue };
        let (start, end) = fields[0].split_once('-').context("maps has ranges")?;
        let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
        if !images.contains_key(*name) {
            let image = if *name == "[vdso]" {
                let mut bytes = vec![0; (end - start) as usize];
                memory.read_exact_at(&mut bytes, start)?;
                Image::from_bytes(bytes)?
            } else {
                Image::open(&File::open(name)?)?
            };
            images.insert((*name).to_owned(), image);
        }
        let image = &images[*name];
        let bias = image.bias(start, u64::from_str_radix(fields[2], 16)?).context("no segment is mapped there")?;
        unwinder.add_module(start..end, bias, image, name);
    }
    Ok(unwinder)
}

fn word(memory: &File, window: &mut (u64, Vec<u8>), address: u64) -> Option<u64> {
    let offset = address.wrapping_sub(window.0) as usize;
    if let Some(bytes) = offset.checked_add(8).and_then(|end| window.1.get(offset..end)) {
        return Some(u64::from_ne_bytes(bytes.try_into().ok()?));
    }
    *window = (address & !4095, vec![0; WINDOW]);
    let got = memory.read_at(&mut window.1, window.0).unwrap_or(0);
    window.1.truncate(got);
    let offset = (address - window.0) as usize;
    Some(u64::from_ne_bytes(window.1.get(offset..offset + 8)?.try_into().ok()?))
}

/// The stack from its pointer up, as much as there is.
fn copy(memory: &File, sp: u64) -> Vec<u8> {
    let mut bytes = vec![0; COPIED];
    let got = memory.read_at(&mut bytes, sp).unwrap_or(0);
    bytes.truncate(got);
    bytes
}
