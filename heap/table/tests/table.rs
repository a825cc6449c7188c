//! Writers and a reader on one region.

use reprieve_heap_table::layout::{SLAB_BYTES, home, region};
use reprieve_heap_table::{Allocation, Home, ProcessTable, Region, Settings, Words, Writer, read, sweep, visit_live};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

const SETTINGS: Settings = Settings { period: 1 << 16, mapping: 1 << 16, seed: 7 };

fn memory(slabs: usize) -> Vec<AtomicU64> {
    (0..slabs * SLAB_BYTES / 8).map(|_| AtomicU64::new(0)).collect()
}

fn make(memory: &[AtomicU64]) -> Region<'_> {
    let region = Region::format(Words::new(memory), SETTINGS).unwrap();
    region.set_ready(region.state().slabs);
    region
}

fn allocation(key: u64, frames: &[u64]) -> Allocation<'_> {
    Allocation { key, usable: 100, asked: 90, probability: 0.25, mapping: false, frames, cut: false }
}

fn only(region: Region<'_>) -> ProcessTable {
    let mut all = read(region);
    assert_eq!(all.len(), 1);
    all.remove(0)
}

#[test]
fn what_is_written_is_read_until_it_is_freed() {
    let memory = memory(8);
    let region = make(&memory);
    let writer = Writer::claim(region, (Some(42), 99), 1, None).unwrap();
    writer.insert(&allocation(0x1000, &[1, 2, 3]));
    writer.insert(&Allocation { mapping: true, cut: true, ..allocation(0x2000, &[1, 2]) });
    writer.insert(&allocation(0x3000, &[1, 2, 3]));
    assert!(writer.filter(0x3000).unwrap().load(Ordering::Relaxed) > 0);
    let entry = writer.remove(0x3000).unwrap();
    assert_eq!((entry.usable, entry.asked), (100, 90));
    assert_eq!(writer.remove(0x3000), None, "a second free");
    let table = only(Region::open(Words::new(&memory)).unwrap());
    assert_eq!((table.pid, table.pid_namespace, table.taken, table.lost_samples), (42, 99, 3, 0));
    let mut live: Vec<_> = table.live.iter().map(|s| (s.address, s.mapping)).collect();
    live.sort_unstable();
    assert_eq!(live, [(0x1000, false), (0x2000, true)]);
    let stack = &table.stacks[&table.live.iter().find(|s| s.address == 0x1000).unwrap().stack];
    assert_eq!((&stack.frames[..], stack.cut), (&[1, 2, 3][..], false));
    // Both allocations with it, each standing for four.
    assert_eq!((stack.alloc_bytes, stack.alloc_objects, stack.alloc_samples), (800, 8, 2));
    assert_eq!(table.stacks.len(), 2);
}

#[test]
fn a_fork_has_what_its_parent_had() {
    let memory = memory(8);
    let region = make(&memory);
    let parent = Writer::claim(region, (Some(1), 9), 1, None).unwrap();
    parent.insert(&allocation(0x1000, &[5, 6]));
    let child = Writer::claim(region, (Some(2), 9), 1, Some(parent)).unwrap();
    parent.remove(0x1000).unwrap();
    child.insert(&allocation(0x5000, &[5, 6]));
    let tables = read(region);
    assert!(tables[0].live.is_empty());
    let child = &tables[1];
    assert_eq!(child.parent, tables[0].home);
    let mut live: Vec<_> = child.live.iter().map(|s| (s.address, s.inherited)).collect();
    live.sort_unstable();
    assert_eq!(live, [(0x1000, true), (0x5000, false)]);
    assert!(child.live.iter().all(|s| child.stacks[&s.stack].frames == [5, 6]));
    // Who looks without a copy sees the same.
    let mut seen = Vec::new();
    visit_live(region, |home, is_forked, sample| seen.push((home.pid, is_forked, sample.address, sample.inherited)));
    seen.sort_unstable();
    assert_eq!(seen, [(2, true, 0x1000, true), (2, true, 0x5000, false)]);
    // Only its own counts as allocated by it.
    assert_eq!(child.stacks.values().map(|s| s.alloc_samples).sum::<u64>(), 1);
}

#[test]
fn five_thousand_live_samples_fit_into_three_mebibytes() {
    let memory = memory(64);
    let region = make(&memory);
    let writer = Writer::claim(region, (Some(1), 9), 1, None).unwrap();
    // Thirty frames, each stack another.
    for i in 1..=5000u64 {
        let frames: Vec<u64> = (0..30).map(|f| 0x5555_0000_0000 + f * 64 + i * 4096 * 31).collect();
        writer.insert(&allocation(0x7f00_0000_0000 + i * 48, &frames));
    }
    let table = only(region);
    assert_eq!((table.live.len(), table.lost_samples), (5000, 0));
    assert!(region.state().next * SLAB_BYTES <= 3 << 20, "{:?}", region.state());
}

#[test]
fn what_finds_no_room_is_counted() {
    let memory = memory(8);
    let region = make(&memory);
    region.set_ready(2);
    let writer = Writer::claim(region, (Some(1), 9), 1, None).unwrap();
    for i in 1..=3000 {
        writer.insert(&allocation(i * 16, &[1]));
    }
    let table = only(region);
    assert_eq!(table.live.len() as u64 + table.lost_samples, 3000);
    assert!(table.live.len() > 400, "{}", table.live.len());
    assert_eq!(table.lost_bytes, table.lost_samples * 400);
    assert!(region.state().refused > 0);
    assert!(Writer::claim(region, (Some(2), 9), 1, None).is_none());
    // The guardian makes more.
    region.set_ready(8);
    writer.insert(&allocation(1 << 40, &[1]));
    assert_eq!(only(region).live.len(), table.live.len() + 1);
}

#[test]
fn slabs_given_back_are_dealt_out_again_and_empty() {
    let memory = memory(4);
    let region = make(&memory);
    for pid in 0..100 {
        let writer = Writer::claim(region, (Some(pid), 9), 1, None).unwrap();
        writer.insert(&allocation(0x1000, &[pid]));
        let table = only(region);
        assert_eq!((table.pid, table.live.len(), table.stacks.len()), (pid, 1, 1));
        region.give_back(table.home);
        assert!(read(region).is_empty());
    }
    assert_eq!(region.state().next, 2);
}

#[test]
fn threads_at_once_lose_nothing() {
    let memory = memory(256);
    let region = make(&memory);
    let writer = Writer::claim(region, (Some(1), 9), 1, None).unwrap();
    thread::scope(|scope| {
        for t in 0..4u64 {
            scope.spawn(move || {
                for i in 0..20_000u64 {
                    let key = (t << 40) + (i + 1) * 16;
                    writer.insert(&allocation(key, &[t, i % 50]));
                    if i % 10 != 0 {
                        assert_eq!(writer.remove(key).unwrap().key, key);
                    }
                }
            });
        }
    });
    let table = only(region);
    assert_eq!((table.live.len(), table.lost_samples, table.taken), (8000, 0, 80_000));
    assert_eq!(table.stacks.len(), 200);
    assert_eq!(table.stacks.values().map(|s| s.alloc_samples).sum::<u64>(), 80_000);
}

#[test]
fn a_writer_killed_at_any_moment_leaves_a_valid_table() {
    let bytes = 16 * SLAB_BYTES;
    let mut seen = 0;
    for round in 0..200u64 {
        // SAFETY: a fresh shared mapping at an address of the kernel's choice; it
        // is unmapped below.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED);
        // SAFETY: just mapped, zeroed, and used through atomics only.
        let region = Region::format(unsafe { Words::at(base.cast(), bytes) }, SETTINGS).unwrap();
        region.set_ready(16);
        // SAFETY: the child allocates nothing and calls nothing but the writer.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let writer = Writer::claim(region, (Some(1), 9), 1, None).unwrap();
            for i in 0.. {
                let key = (i % 3000 + 1) * 16;
                writer.remove(key);
                writer.insert(&Allocation { usable: key * 3, asked: key, ..allocation(key, &[key, key + 1, i % 7]) });
            }
        }
        std::thread::sleep(std::time::Duration::from_micros(300 + round * 17 % 3000));
        // SAFETY: our own child, which never ends by itself.
        unsafe {
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, std::ptr::null_mut(), 0);
        }
        for table in read(region) {
            for sample in &table.live {
                let key = sample.address;
                assert_eq!((sample.usable, sample.asked), (key * 3, key));
                let frames = &table.stacks[&sample.stack].frames;
                assert!(frames[..2] == [key, key + 1] && frames[2] < 7, "{frames:?}");
                seen += 1;
            }
        }
        // SAFETY: mapped above, and nothing refers to it any more.
        unsafe { libc::munmap(base, bytes) };
    }
    assert!(seen > 10_000, "the writer was killed too early to tell: {seen} samples");
}

#[test]
fn hostile_memory_is_bounded() {
    let mut seed = 1u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for round in 0..200 {
        let memory = memory(4);
        let region = make(&memory);
        let _ = Writer::claim(region, (Some(1), 9), 1, None).unwrap();
        for _ in 0..20_000 {
            let at = random() as usize % memory.len();
            let value = match random() % 4 {
                0 => random(),
                1 => random() % (5 * SLAB_BYTES as u64),
                2 => (random() % 5) * SLAB_BYTES as u64 + random() % 64 * 8,
                _ => random() % 8,
            };
            memory[at].store(value, Ordering::Relaxed);
        }
        // As if the header had survived.
        if round % 2 == 0 {
            for slab in 1..4u64 {
                memory[(region::OWNERS + slab as usize * 8) / 8].store(1 | slab << 32, Ordering::Relaxed);
                memory[(slab as usize * SLAB_BYTES + home::STATE) / 8].store(home::STATE_LIVE, Ordering::Relaxed);
            }
            let tables = read(region);
            let frames: usize = tables.iter().flat_map(|t| t.stacks.values()).map(|s| s.frames.len()).sum();
            assert!(frames <= memory.len());
            let (mut seen, live) = (0, tables.iter().map(|t| t.live.len()).sum::<usize>());
            visit_live(region, |_, _, _| seen += 1);
            assert_eq!(seen, live);
        } else if let Ok(region) = Region::open(Words::new(&memory)) {
            let _ = read(region);
        }
    }
}

#[test]
fn what_the_dead_leave_is_taken_back_but_for_what_their_children_need() {
    let memory = memory(64);
    let region = make(&memory);
    let mut parent = Writer::claim(region, (Some(1), 9), 1, None).unwrap();
    for i in 1..=3000 {
        parent.insert(&allocation(i * 16, &[i, 2, 3]));
    }
    let first = region.state().next;
    // A chain of three, of which the last lives.
    for pid in [2, 3] {
        parent = Writer::claim(region, (Some(pid), 9), 1, Some(parent)).unwrap();
    }
    let other = Writer::claim(region, (Some(4), 9), 1, None).unwrap();
    other.insert(&allocation(0x1000, &[1]));
    sweep(region, 2, |home| home.pid != 3);
    assert_eq!(read(region).iter().map(|t| t.pid).collect::<Vec<_>>(), [1, 2, 3]);
    let live = &read(region)[2];
    assert_eq!(live.live.len(), 3000);
    assert!(live.live.iter().all(|s| live.stacks[&s.stack].frames[1..] == [2, 3]));
    sweep(region, 3, |_| true);
    assert!(read(region).is_empty());
    // All of it can be had again.
    let before = region.state().next;
    assert!(before > first);
    for pid in 1..before as u64 {
        assert!(Writer::claim(region, (Some(pid), 9), 1, None).is_some());
    }
    assert_eq!(region.state().next, before);
}

#[test]
fn a_child_that_never_came_is_forgotten_and_one_that_comes_too_late_knows() {
    let memory = memory(8);
    let region = make(&memory);
    let parent = Writer::claim(region, (Some(1), 9), 1000, None).unwrap();
    let child = Writer::claim(region, (None, 9), 1000, Some(parent)).unwrap();
    sweep(region, 5000, |_| false);
    assert_eq!(read(region).len(), 2);
    sweep(region, 20_000, |_| false);
    assert_eq!(read(region).len(), 1);
    assert!(!child.set_pid(2, 9));
    let child = Writer::claim(region, (None, 9), 20_000, Some(parent)).unwrap();
    assert!(child.set_pid(2, 9));
    sweep(region, 60_000, |_| false);
    assert_eq!(read(region).iter().map(|t| t.pid).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn sweeps_at_once_take_back_nothing_of_the_living() {
    let memory = memory(256);
    let region = make(&memory);
    // The last that has ended of each thread's.
    let ended = [const { AtomicU64::new(0) }; 5];
    let ended = &ended;
    thread::scope(|scope| {
        for t in 1..=4u64 {
            scope.spawn(move || {
                let is_dead = |home: Home| home.pid <= ended[home.pid_namespace as usize].load(Ordering::SeqCst);
                for round in 0..1000u64 {
                    let pid = t * 1_000_000 + round * 2;
                    let live = Writer::claim(region, (Some(pid + 1), t), 1, None).unwrap();
                    for i in 1..=20 {
                        live.insert(&allocation(i * 16, &[pid, i]));
                    }
                    let dead = Writer::claim(region, (Some(pid), t), 1, None).unwrap();
                    dead.insert(&allocation(0x1000, &[pid]));
                    ended[t as usize].store(pid, Ordering::SeqCst);
                    sweep(region, 2, is_dead);
                    let mut found = 0;
                    live.for_each(|entry| found += usize::from(entry.usable == 100));
                    assert_eq!(found, 20);
                    ended[t as usize].store(pid + 1, Ordering::SeqCst);
                }
            });
        }
    });
    sweep(region, 2, |_| true);
    assert!(read(region).is_empty());
    assert!(region.state().next < 64, "{:?}", region.state());
}

#[test]
fn a_writer_whose_home_was_taken_harms_nobody() {
    let memory = memory(8);
    let region = make(&memory);
    let stale = Writer::claim(region, (Some(1), 9), 1, None).unwrap();
    sweep(region, 2, |_| true);
    for i in 1..5000 {
        stale.insert(&allocation(i * 16, &[i]));
    }
    assert!(Region::open(Words::new(&memory)).is_ok());
    assert!(read(region).is_empty());
}
