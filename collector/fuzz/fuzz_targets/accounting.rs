//! The kernel's counters and the tree that is made of them, which has to add up whatever they
//! say. Texts are parted by lines of `--`: usage and other counters (one line), memory.stat,
//! meminfo, loadavg, sysvipc/shm, and then status and smaps of one process after the other.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reprieve::accounting::hostile::{Texts, account, assert_adds_up};

fuzz_target!(|input: &[u8]| {
    let text = String::from_utf8_lossy(input);
    let parts: Vec<&str> = text.split("\n--\n").collect();
    let part = |index: usize| parts.get(index).copied().unwrap_or("");
    let mut numbers = part(0).split(' ').map(|number| number.parse().ok());
    let processes: Vec<_> =
        parts.iter().skip(5).collect::<Vec<_>>().chunks(2).map(|p| (*p[0], p.get(1).map_or("", |p| p))).collect();
    let texts = Texts {
        usage: numbers.next().flatten().unwrap_or(0),
        others: [(); 3].map(|()| numbers.next().flatten()),
        stat: part(1),
        machine: [part(2), part(3)],
        segments: part(4),
        processes: &processes,
        is_v1: false,
    };
    for is_v1 in [false, true] {
        let accounting = account(&Texts { is_v1, ..texts });
        assert_adds_up(&accounting);
        // Of all lists only the biggest are told one by one.
        let mut nodes = 0;
        accounting.root.walk(&mut |_, _| nodes += 1);
        assert!(nodes <= 2000, "{nodes} nodes");
    }
});
