//! A perf event of page faults on one CPU, with the ring that the kernel fills.

use super::record::{HEADER_BYTES, Header, REGISTERS, Record, SAMPLE_TYPE, parse};
use crate::snapshot::page_size;
use perf_event_open_sys::{self as sys, bindings as perf};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// What is copied of a stack at each sample, from the stack pointer on.
pub const STACK_BYTES: u32 = 8 << 10;
/// The smallest ring that is of any use: fifteen samples.
const LEAST_BYTES: usize = 128 << 10;
/// How much wakes who reads it, or a quarter of a smaller ring: 29 samples. To wake costs
/// whoever faults more than some samples do; but a process must be alive still when its
/// mappings are read, and one that is about to be killed grows fast.
const WAKE_BYTES: usize = 256 << 10;

/// Frames of the kernel that are asked for, of which a system call has some ten until it
/// touches a page.
const KERNEL_FRAMES: u16 = 32;

/// Whose faults are sampled.
#[derive(Debug, Clone, Copy)]
pub enum Whose<'a> {
    /// Those of everybody in this cgroup and below it, by its open folder.
    Cgroup(BorrowedFd<'a>),
    /// Those of this process and of all that it will start, from its next exec on.
    Process(i32),
}

/// What is sampled.
#[derive(Debug, Clone, Copy)]
pub struct What {
    /// Faults of one sample.
    pub period: u64,
    /// Also those that the kernel takes for a program, in a system call.
    pub of_kernel: bool,
}

/// The event and its ring.
#[derive(Debug)]
pub struct Ring {
    fd: OwnedFd,
    base: *mut u8,
    page: usize,
    /// A power of two.
    data_bytes: usize,
    /// Pieces that the kernel cannot have written.
    broken: u64,
}

// SAFETY: the mapping belongs to the Ring alone, and no thread's identity matters to it.
unsafe impl Send for Ring {}

impl Ring {
    /// Opens it for one CPU, with a ring of `bytes`, a power of two, or less where the
    /// kernel does not lock so much for us. Of a cgroup it begins at once.
    pub fn open(whose: Whose<'_>, what: What, cpu: i32, bytes: usize) -> io::Result<Self> {
        let mut data_bytes = bytes.max(LEAST_BYTES);
        loop {
            let fd = open_event(whose, what, cpu, (data_bytes / 4).min(WAKE_BYTES))?;
            let page = page_size() as usize;
            // SAFETY: a new shared mapping of our own file at an address of the kernel's choice.
            let base = unsafe {
                let access = libc::PROT_READ | libc::PROT_WRITE;
                libc::mmap(std::ptr::null_mut(), page + data_bytes, access, libc::MAP_SHARED, fd.as_raw_fd(), 0)
            };
            if base != libc::MAP_FAILED {
                return Ok(Ring { fd, base: base.cast(), page, data_bytes, broken: 0 });
            }
            let error = io::Error::last_os_error();
            // More than kernel.perf_event_mlock_kb and RLIMIT_MEMLOCK allow.
            if !matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOMEM)) || data_bytes <= LEAST_BYTES {
                return Err(error);
            }
            data_bytes /= 2;
        }
    }

    /// One whose kernel is us: nobody else writes into it.
    pub(super) fn of_ours(data_bytes: usize) -> io::Result<Self> {
        let page = page_size() as usize;
        let fd = std::fs::File::open("/dev/null")?.into();
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
        let base = unsafe {
            let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            libc::mmap(std::ptr::null_mut(), page + data_bytes, access, flags, -1, 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Ring { fd, base: base.cast(), page, data_bytes, broken: 0 })
    }

    /// Writes at a place of the stream, in the kernel's place.
    pub(super) fn write(&mut self, at: u64, bytes: &[u8]) {
        for (place, byte) in (at..).zip(bytes) {
            let place = (place & (self.data_bytes as u64 - 1)) as usize;
            // SAFETY: within the data, of which nobody has a reference.
            unsafe { self.base.add(self.page + place).write(*byte) };
        }
    }

    /// Says where the stream ends, in the kernel's place, and where what is unread begins.
    pub(super) fn set_ends(&mut self, head: u64, tail: u64) {
        let (of_kernel, ours) = self.ends();
        of_kernel.store(head, Ordering::Release);
        ours.store(tail, Ordering::Relaxed);
    }

    /// Bytes of the ring without its first page.
    #[must_use]
    pub fn data_bytes(&self) -> usize {
        self.data_bytes
    }

    /// Pieces that were no records.
    #[must_use]
    pub fn broken(&self) -> u64 {
        self.broken
    }

    /// Readable when some samples are in the ring; hung up when all are gone whose
    /// faults it samples.
    #[must_use]
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Where the stream ends and where it begins, counted in bytes since it was opened.
    fn ends(&self) -> (&AtomicU64, &AtomicU64) {
        // SAFETY: `base` is the page that perf_event_open(2) calls perf_event_mmap_page,
        // mapped as long as we live. The kernel writes these two words at any time, so
        // that they are looked at through atomics only.
        unsafe {
            let page = self.base.cast::<perf::perf_event_mmap_page>();
            (AtomicU64::from_ptr(&raw mut (*page).data_head), AtomicU64::from_ptr(&raw mut (*page).data_tail))
        }
    }

    /// Tells each record, oldest first, and gives its room back; no more than about
    /// `most` bytes. `scratch` is for one record. Returns whether it is empty now.
    pub fn drain(&mut self, scratch: &mut Vec<u8>, most: usize, mut tell: impl FnMut(Record<'_>)) -> bool {
        let (head, tail) = self.ends();
        // What was written before is seen behind it; the tail nobody but us writes.
        let (end, begin) = (head.load(Ordering::Acquire), tail.load(Ordering::Relaxed));
        let mut at = begin;
        while at < end && at - begin < most as u64 {
            match self.record(at, end, scratch) {
                Some(header) => {
                    match parse(header, &scratch[HEADER_BYTES..]) {
                        Some(record) => tell(record),
                        None => self.broken += 1,
                    }
                    at += header.size as u64;
                }
                // Where a record ends is not known any more.
                None => {
                    self.broken += 1;
                    at = end;
                }
            }
        }
        // All our reads are done before the kernel may write there.
        self.ends().1.store(at, Ordering::Release);
        at >= end
    }

    /// Copies the record at `at` of what ends at `end`.
    fn record(&self, at: u64, end: u64, scratch: &mut Vec<u8>) -> Option<Header> {
        let there = usize::try_from(end.checked_sub(at)?).ok()?;
        if there < HEADER_BYTES || there > self.data_bytes {
            return None;
        }
        let mut bytes = [0; HEADER_BYTES];
        self.copy(at, &mut bytes);
        let header = Header::parse(bytes);
        if header.size < HEADER_BYTES || header.size > there {
            return None;
        }
        scratch.clear();
        scratch.resize(header.size, 0);
        self.copy(at, scratch);
        Some(header)
    }

    /// Copies what is at a place of the stream; the kernel must not be writing there.
    fn copy(&self, at: u64, out: &mut [u8]) {
        let from = (at & (self.data_bytes as u64 - 1)) as usize;
        let (first, second) = out.split_at_mut(out.len().min(self.data_bytes - from));
        // SAFETY: the data begins behind the first page and is `data_bytes` long; `first`
        // ends there at the latest, and `second` is shorter than a record, which is no
        // longer than the data. Between tail and head the kernel does not write.
        unsafe {
            let data = self.base.add(self.page);
            std::ptr::copy_nonoverlapping(data.add(from), first.as_mut_ptr(), first.len());
            std::ptr::copy_nonoverlapping(data, second.as_mut_ptr(), second.len());
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: exactly what was mapped; no reference to it outlives us.
        unsafe { libc::munmap(self.base.cast(), self.page + self.data_bytes) };
    }
}

/// The event of one CPU, which makes its ring readable when `wake_bytes` are in it.
fn open_event(whose: Whose<'_>, what: What, cpu: i32, wake_bytes: usize) -> io::Result<OwnedFd> {
    let mut attr = perf::perf_event_attr {
        size: size_of::<perf::perf_event_attr>() as u32,
        type_: perf::PERF_TYPE_SOFTWARE,
        config: u64::from(perf::PERF_COUNT_SW_PAGE_FAULTS),
        sample_type: SAMPLE_TYPE,
        sample_regs_user: REGISTERS,
        sample_stack_user: STACK_BYTES,
        ..Default::default()
    };
    attr.__bindgen_anon_1.sample_period = what.period;
    attr.__bindgen_anon_2.wakeup_watermark = wake_bytes as u32;
    attr.set_watermark(1);
    attr.set_exclude_kernel(u64::from(!what.of_kernel));
    attr.set_exclude_hv(1);
    // Of a fault in user mode the kernel has nothing to say of itself: it begins with the
    // registers of whoever faulted. Of one in a system call it tells where that was.
    attr.set_exclude_callchain_user(1);
    attr.set_exclude_callchain_kernel(u64::from(!what.of_kernel));
    // What becomes of processes, and when: behind each record.
    attr.set_sample_id_all(1);
    attr.set_task(1);
    attr.set_comm(1);
    attr.set_comm_exec(1);
    attr.set_mmap(1);
    attr.set_mmap2(1);
    let mut flags = u64::from(perf::PERF_FLAG_FD_CLOEXEC);
    let pid = match whose {
        Whose::Cgroup(dir) => {
            flags |= u64::from(perf::PERF_FLAG_PID_CGROUP);
            dir.as_raw_fd()
        }
        Whose::Process(pid) => {
            attr.set_inherit(1);
            attr.set_disabled(1);
            attr.set_enable_on_exec(1);
            pid
        }
    };
    // Where kernel.perf_event_max_stack allows less, as many as that.
    for frames in [KERNEL_FRAMES, 0] {
        attr.sample_max_stack = frames;
        // SAFETY: `attr` is a live, initialised struct whose size field is right.
        let fd = unsafe { sys::perf_event_open(&raw mut attr, pid, cpu, -1, flags) };
        if fd >= 0 {
            // SAFETY: just made, and nobody else's.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EOVERFLOW) || frames == 0 {
            return Err(error);
        }
    }
    Err(io::Error::from_raw_os_error(libc::EOVERFLOW))
}

/// CPUs that are online, from /sys/devices/system/cpu/online, like `0-3,8`.
pub fn online_cpus() -> io::Result<Vec<i32>> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online")?;
    let cpus = parse_cpus(text.trim());
    if cpus.is_empty() { Err(io::Error::other(format!("no CPU in {text:?}"))) } else { Ok(cpus) }
}

fn parse_cpus(text: &str) -> Vec<i32> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<i32>().ok()?..=last.parse::<i32>().ok()?.min(1 << 16))
    };
    text.split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::witness::growth::record::made_up::{body, record};

    fn ring(data_bytes: usize) -> Ring {
        Ring::of_ours(data_bytes).unwrap()
    }

    /// Writes what begins where all was read; returns where it ends.
    fn write(ring: &mut Ring, at: u64, bytes: &[u8]) -> u64 {
        ring.write(at, bytes);
        let head = at + bytes.len() as u64;
        ring.set_ends(head, at);
        head
    }

    fn lost(number: u64) -> Vec<u8> {
        record(perf::PERF_RECORD_LOST, 0, &body(&[], &[0, number]))
    }

    fn all(ring: &mut Ring, most: usize) -> (Vec<u64>, bool) {
        let mut told = Vec::new();
        let empty = ring.drain(&mut Vec::new(), most, |record| match record {
            Record::Lost(number) => told.push(number),
            other => panic!("{other:?}"),
        });
        (told, empty)
    }

    #[test]
    fn records_are_told_in_order_around_the_end() {
        let mut ring = ring(4096);
        let mut at = 0;
        for round in 0..1000 {
            let numbers: Vec<u64> = (0..round % 100).map(|i| round * 1000 + i).collect();
            let bytes: Vec<u8> = numbers.iter().flat_map(|&number| lost(number)).collect();
            at = write(&mut ring, at, &bytes);
            assert_eq!(all(&mut ring, usize::MAX), (numbers, true));
        }
        assert_eq!(ring.broken(), 0);
    }

    #[test]
    fn no_more_is_told_than_was_asked_for() {
        let mut ring = ring(4096);
        write(&mut ring, 0, &(0..10).flat_map(lost).collect::<Vec<u8>>());
        assert_eq!(all(&mut ring, 1), (vec![0], false));
        assert_eq!(all(&mut ring, 25), (vec![1, 2], false));
        assert_eq!(all(&mut ring, 4096), ((3..10).collect(), true));
        assert_eq!(all(&mut ring, 4096), (vec![], true));
    }

    #[test]
    fn what_is_no_record_is_passed_over_and_counted() {
        let mut ring = ring(4096);
        // A size of nothing, one beyond the head, a head that is further than the ring is long.
        for (size, rest) in [(0_u16, 32), (7, 32), (4000, 32), (24, 2)] {
            let mut bytes = lost(5);
            bytes[6..8].copy_from_slice(&size.to_ne_bytes());
            bytes.extend(vec![0xff; rest]);
            write(&mut ring, 0, &bytes);
            let before = ring.broken();
            let (_, empty) = all(&mut ring, 1 << 20);
            assert!(empty && ring.broken() > before, "{size}");
        }
        ring.set_ends(1 << 40, 0);
        assert_eq!(all(&mut ring, usize::MAX), (vec![], true));
        // It goes on behind that.
        let at = write(&mut ring, 1 << 40, &lost(9));
        assert_eq!((all(&mut ring, usize::MAX), at), ((vec![9], true), (1 << 40) + 24));
    }

    #[test]
    fn lists_of_cpus() {
        assert_eq!(parse_cpus("0-3,8"), [0, 1, 2, 3, 8]);
        assert_eq!(parse_cpus("0"), [0]);
        assert_eq!(parse_cpus("x,-"), [0; 0]);
        assert!(!online_cpus().unwrap().is_empty());
    }

    /// A child that executes a program when the writing end of a pipe is closed.
    fn waiting_child(program: &[&std::ffi::CStr]) -> (nix::unistd::Pid, OwnedFd) {
        let mut arguments: Vec<*const libc::c_char> = program.iter().map(|word| word.as_ptr()).collect();
        arguments.push(std::ptr::null());
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        // SAFETY: the child calls only async-signal-safe functions on what is prepared.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Parent { child } => (child, write),
            // SAFETY: as above; the arguments end with a null pointer.
            nix::unistd::ForkResult::Child => unsafe {
                libc::close(write.as_raw_fd());
                let mut word = 0_u8;
                libc::read(read.as_raw_fd(), (&raw mut word).cast(), 1);
                libc::execv(arguments[0], arguments.as_ptr());
                libc::_exit(127)
            },
        }
    }

    /// Two processes in a cgroup of version 2, and one outside it.
    #[test]
    fn the_kernel_tells_what_a_cgroup_touched_and_nobody_else() {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let root = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|fields| fields[2] == "cgroup2");
        let root = root.expect("a mount of cgroup version 2")[1].to_owned();
        let dir = std::path::Path::new(&root).join(format!("growth-ring-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let program: &[&std::ffi::CStr] = &[c"/usr/bin/python3", c"-c", c"b = bytearray(16 << 20)"];
        let children: Vec<_> = (0..3).map(|_| waiting_child(program)).collect();
        let pids: Vec<i32> = children.iter().map(|(pid, _)| pid.as_raw()).collect();
        for pid in &pids[..2] {
            std::fs::write(dir.join("cgroup.procs"), pid.to_string()).unwrap();
        }
        let what = What { period: 16, of_kernel: true };
        let folder = std::fs::File::open(&dir).unwrap();
        let open = |cpu| Ring::open(Whose::Cgroup(folder.as_fd()), what, cpu, 8 << 20).unwrap();
        let mut rings: Vec<Ring> = online_cpus().unwrap().into_iter().map(open).collect();
        // A later child has the earlier ones' pipes, too, until it executes.
        let (children, go): (Vec<_>, Vec<_>) = children.into_iter().unzip();
        drop(go);
        for pid in children {
            assert_eq!(nix::sys::wait::waitpid(pid, None).unwrap(), nix::sys::wait::WaitStatus::Exited(pid, 0));
        }
        let mut faults = std::collections::BTreeMap::<i32, u64>::new();
        let mut scratch = Vec::new();
        for ring in &mut rings {
            ring.drain(&mut scratch, usize::MAX, |record| match record {
                Record::Fault(fault) => *faults.entry(fault.pid).or_default() += 1,
                Record::Exec { pid, .. } | Record::Exit { pid, .. } => assert!(pids[..2].contains(&pid)),
                _ => {}
            });
        }
        drop(rings);
        std::fs::remove_dir(&dir).unwrap();
        let told: Vec<i32> = faults.keys().copied().collect();
        let mut expected = pids[..2].to_vec();
        expected.sort_unstable();
        assert_eq!(told, expected, "{faults:?}");
        assert!(faults.values().all(|&faults| faults >= 16 * 256 / 16), "{faults:?}");
    }

    /// Faults of a program that fills memory in user mode, and of one that has the kernel
    /// fill it.
    #[test]
    fn the_kernel_tells_what_a_child_touched() {
        const MIB: u64 = 1 << 20;
        let in_user: &[&std::ffi::CStr] = &[c"/usr/bin/python3", c"-c", c"b = bytearray(64 << 20)"];
        let in_kernel: &[&std::ffi::CStr] =
            &[c"/bin/dd", c"if=/dev/zero", c"of=/dev/null", c"bs=64M", c"count=1", c"status=none"];
        for (program, of_kernel) in [(in_user, false), (in_user, true), (in_kernel, true)] {
            let (pid, go) = waiting_child(program);
            let what = What { period: 16, of_kernel };
            let open = |cpu| Ring::open(Whose::Process(pid.as_raw()), what, cpu, 16 << 20).unwrap();
            let mut rings: Vec<Ring> = online_cpus().unwrap().into_iter().map(open).collect();
            drop(go);
            let status = nix::sys::wait::waitpid(pid, None).unwrap();
            assert_eq!(status, nix::sys::wait::WaitStatus::Exited(pid, 0));
            let (mut faults, mut with_stack, mut with_kernel, mut execs, mut exits, mut lost) = (0, 0, 0, 0, 0, 0);
            let mut scratch = Vec::new();
            for ring in &mut rings {
                let empty = ring.drain(&mut scratch, usize::MAX, |record| match record {
                    Record::Fault(fault) => {
                        assert_eq!(fault.pid, pid.as_raw());
                        faults += 1;
                        with_stack += u64::from(fault.registers.is_some() && !fault.stack.is_empty());
                        with_kernel += u64::from(fault.kernel.look_ups().count() > 2);
                        // The kernel has the upper half of all addresses.
                        assert!(fault.kernel.look_ups().all(|address| address >> 63 == 1), "{:?}", fault.kernel);
                    }
                    Record::Exec { pid: whose, time } => execs += u64::from(whose == pid.as_raw() && time > 0),
                    Record::Exit { pid: whose, .. } => exits += u64::from(whose == pid.as_raw()),
                    Record::Lost(number) => lost += number,
                    _ => {}
                });
                assert!(empty);
            }
            // A huge page is one fault.
            let thp = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
            let expected = if thp.contains("[always]") { 1 } else { 64 * MIB / page_size() / 16 };
            // Where the stack grows, the page that the stack pointer is in is not there yet.
            let all_but_a_few = with_stack >= faults - faults / 20 - 1;
            assert!(faults >= expected && all_but_a_few, "{program:?}: {faults}, {with_stack} of {expected}");
            let is_right = if program == in_kernel { with_kernel * 5 > faults * 4 } else { with_kernel * 5 < faults };
            assert!(is_right && (of_kernel || with_kernel == 0), "{program:?}: {with_kernel} of {faults}");
            assert_eq!((execs, exits, lost), (1, 1, 0), "{program:?}");
            assert!(rings.iter().all(|ring| ring.broken() == 0));
        }
    }
}
