//! What `/proc/PID` says of a process: maps and smaps, stat, cgroup.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reprieve::cgroup;
use reprieve::snapshot::process::{Stat, memory_cgroup};
use reprieve::snapshot::smaps::{self, KEPT, MapLine};

fuzz_target!(|input: &[u8]| {
    let text = String::from_utf8_lossy(input);
    for line in text.lines() {
        let Some(map) = MapLine::parse(line) else { continue };
        assert!(map.start < map.end && map.path().0.len() <= map.name.len(), "{map:?}");
        let _ = map.is_executable();
        // Written as the kernel does, it is the same.
        let MapLine { start, end, permissions, offset, device, inode, name } = &map;
        let written = format!("{start:08x}-{end:08x} {permissions} {offset:08x} {device} {inode} {name}");
        assert_eq!(MapLine::parse(&written).as_ref(), Some(&map), "{line:?} {written:?}");
    }
    let (sums, mappings) = smaps::parse(input).expect("reading memory does not fail");
    assert!(mappings.len() <= KEPT);
    let sizes = mappings.iter().map(|mapping| mapping.pss_bytes + mapping.swap_pss_bytes);
    assert!(sizes.clone().is_sorted_by(|a, b| a >= b) && sizes.clone().all(|bytes| bytes > 0));
    assert!(mappings.iter().all(|m| m.pss_bytes <= sums.pss_bytes && m.swap_pss_bytes <= sums.swap_pss_bytes));
    if let Some(stat) = Stat::parse(&text) {
        assert!(!stat.state.is_whitespace());
    }
    let path = memory_cgroup(&text);
    assert!(path.len() <= text.len());
    let labels = cgroup::labels(&path);
    let is_nomad = labels.container_runtime.as_deref() == Some("nomad");
    assert!(labels.container_id.is_none_or(|id| path.contains(&id) && (is_nomad || id.len() == 64)));
    assert!(labels.pod_uid.is_none_or(|uid| [32, 36, 64].contains(&uid.len())));
});
