//! `reprieve guard` where the disk has no room for incidents.

mod common;
#[path = "common/guard.rs"]
mod guard;

use common::{Lab, wait_for};
use guard::{Grove, Guard, end_of, files, is_guarded, leak_in};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small disk, in a folder of a lab.
struct Disk(PathBuf);

impl Disk {
    fn new(lab: &Lab, name: &str, size: &str) -> Self {
        let disk = Disk(lab.out().join(name));
        fs::create_dir(&disk.0).unwrap();
        disk.mount(&format!("size={size}"));
        disk
    }

    fn mount(&self, options: &str) {
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(self.path()).status();
        assert!(status.unwrap().success(), "mounting a tmpfs needs root");
    }

    fn path(&self) -> &Path {
        &self.0
    }

    /// Leaves no room on it.
    fn fill(&self, name: &str) {
        assert!(fs::write(self.path().join(name), vec![1; 64 << 20]).is_err(), "it is not full");
    }

    /// Names of all folders, the unfinished ones too, and whether there is an incident in each.
    fn folders(&self) -> Vec<(String, bool)> {
        let entries = fs::read_dir(self.path()).unwrap().flatten().filter(|entry| entry.path().is_dir());
        let name = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
        entries.map(|entry| (name(&entry), entry.path().join("incident.json").is_file())).collect()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A guard whose test failed may be about to end.
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

fn start(lab: &Lab, grove: &Grove, disk: &Disk) -> Guard {
    let path = disk.path().to_str().unwrap();
    Guard::start(lab, "guard.on_oom = ['kill']\n", &["--out", path, &format!("{}/*", grove.path())])
}

#[test]
fn a_disk_that_is_full_at_the_start_leaves_nobody_unguarded() {
    let (lab, grove) = (Lab::new(), Grove::new());
    let disk = Disk::new(&lab, "disk", "64k");
    let dir = grove.memcg("one", 48);
    let before = files(&dir);
    disk.fill("fill");
    let guard = start(&lab, &grove, &disk);
    let said = guard.said();
    let warning = format!("warning: incidents cannot be written to {}: No space left", disk.path().display());
    assert!(said.contains(&warning) && said.contains("free space there or name another folder"), "{said}");
    assert!(said.contains(" 0 B are free there, and 4.0 MiB needed"), "{said}");
    assert!(is_guarded(&dir), "{said}");
    assert_eq!(end_of(&mut leak_in(&dir, "64")).signal(), Some(9));
    guard.wait_for("kill: killed steady_leak");
    guard.wait_for("one: this OOM leaves no incident: incidents cannot be written to");
    wait_for("the unfinished folder to go", || disk.folders().is_empty());
    // As soon as there is room the next is written.
    disk.mount("remount,size=32m");
    assert_eq!(end_of(&mut leak_in(&dir, "64")).signal(), Some(9));
    guard.wait_for("report ");
    let said = guard.end();
    assert!(said.contains(&format!("incidents can be written to {} again", disk.path().display())), "{said}");
    assert_eq!(
        (said.matches("cannot be written").count(), said.matches("killed steady_leak").count()),
        (2, 2),
        "{said}"
    );
    let folders = disk.folders();
    assert!(folders.len() == 1 && folders[0].1, "{folders:?}");
    assert_eq!(files(&dir), before, "{said}");
}

#[test]
fn a_disk_that_fills_up_meanwhile_hinders_no_verdict() {
    let (lab, grove) = (Lab::new(), Grove::new());
    let disk = Disk::new(&lab, "disk", "8m");
    let dir = grove.memcg("one", 48);
    let guard = start(&lab, &grove, &disk);
    disk.fill("fill");
    // The first one has the space that was in hand.
    assert_eq!(end_of(&mut leak_in(&dir, "64")).signal(), Some(9));
    guard.wait_for("report ");
    assert!(!guard.said().contains("leaves no incident"), "{}", guard.said());
    guard.wait_for("warning: incidents cannot be written to");
    disk.fill("the rest");
    assert_eq!(end_of(&mut leak_in(&dir, "64")).signal(), Some(9));
    guard.wait_for("one: this OOM leaves no incident: incidents cannot be written to");
    // That is told while it is still held.
    wait_for("the verdict", || guard.said().matches("killed steady_leak").count() == 2);
    let said = guard.end();
    assert_eq!(
        (said.matches("killed steady_leak").count(), said.matches("warning: incidents").count()),
        (2, 1),
        "{said}"
    );
    let folders = disk.folders();
    assert!(folders.len() == 1 && folders[0].1, "{folders:?}");
}

#[test]
fn who_cannot_write_down_that_it_is_there_is_there() {
    let (lab, grove) = (Lab::new(), Grove::new());
    let dir = grove.memcg("one", 48);
    // That of its lock.
    let disk = Disk::new(&lab, "run", "64k");
    disk.fill("fill");
    let guard = Guard::start(&lab, "guard.on_oom = ['kill']\n", &[&format!("{}/*", grove.path())]);
    assert!(is_guarded(&dir), "{}", guard.said());
    assert_eq!(fs::read_to_string(disk.path().join("guard.lock")).unwrap(), "", "it is not full");
    assert_eq!(end_of(&mut leak_in(&dir, "64")).signal(), Some(9));
    guard.wait_for("kill: killed steady_leak");
    guard.end();
}
