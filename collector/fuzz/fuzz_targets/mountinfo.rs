//! Mounts, and where the memory controller is among them. The text is mountinfo, and a line
//! that begins with `=` ends it: what follows is `/proc/self/cgroup`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reprieve::accounting::hostile;
use reprieve::cgroup::Hierarchy;

fuzz_target!(|input: &[u8]| {
    let text = String::from_utf8_lossy(input);
    let (mountinfo, membership) = text.split_once("\n=").unwrap_or((&text, "0::/user.slice/x.scope\n"));
    for (device, name) in [("fe:00", "/usr/bin/x"), ("00:15", "/dev/shm/x"), ("zz", ""), ("00:01", "/memfd:x")] {
        let (tmpfs, is_tmpfs) = hostile::mounts(mountinfo, device, name);
        assert!(tmpfs <= mountinfo.lines().count());
        assert!(is_tmpfs || !name.starts_with("/memfd:"), "{name}");
    }
    for controllers in [Some("cpu memory"), Some(""), None] {
        let found = Hierarchy::parse("memory", mountinfo, membership, |_| {
            controllers.map(|controllers| controllers.to_owned())
        });
        assert!(controllers.is_some() || found.is_none(), "a hidden mount is none");
        if let Some(hierarchy) = found {
            assert!(hierarchy.own.starts_with('/'), "{hierarchy:?}");
            assert!(matches!(hierarchy.version.number(), 1 | 2));
        }
    }
});
