//! A memcg of version 2 whose files are plain ones, for tests of what is written when.

use crate::cgroup::{Hierarchy, Memcg, Version, note};
use std::fs;

/// The memcg, and its folder, which can have notes.
pub struct Plain {
    dir: tempfile::TempDir,
    pub memcg: Memcg,
}

impl Plain {
    /// With a limit, and so much in use.
    pub fn new(limit_mib: u64, usage_mib: u64) -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let hierarchy = Hierarchy { version: Version::V2, mount: dir.path().to_owned(), own: "/".to_owned() };
        let plain = Plain { memcg: Memcg::at(&hierarchy, "/"), dir };
        plain.set("memory.max", limit_mib << 20);
        plain.set("memory.current", usage_mib << 20);
        for (file, text) in [
            ("memory.high", "max"),
            ("memory.events", "oom_kill 0"),
            ("memory.stat", ""),
            ("memory.oom.delay_ms", "0"),
            ("memory.oom.reserve", "0"),
            ("cgroup.freeze", "0"),
            ("cgroup.threads", ""),
            ("cgroup.procs", ""),
        ] {
            fs::write(plain.dir.path().join(file), text).unwrap();
        }
        plain
    }

    pub fn set(&self, file: &str, bytes: u64) {
        fs::write(self.dir.path().join(file), format!("{bytes}\n")).unwrap();
    }

    pub fn text(&self, file: &str) -> String {
        fs::read_to_string(self.dir.path().join(file)).unwrap().trim().to_owned()
    }

    pub fn mib(&self, file: &str) -> u64 {
        self.text(file).parse::<u64>().unwrap() >> 20
    }

    pub fn note(&self) -> Option<String> {
        note::read(&self.memcg)
    }

    /// As if the guardian that wrote the note were dead.
    pub fn maker_dies(&self) {
        let note = self.note().unwrap();
        let (_, writes) = note.split_once('\n').unwrap();
        // No process starts at tick 0.
        note::keep(&self.memcg, &format!("reprieve-1-0\n{writes}")).unwrap();
    }
}
