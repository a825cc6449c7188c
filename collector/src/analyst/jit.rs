//! Names for generated code: finding the files that a runtime wrote about it.
//!
//! A perf map is `/tmp/perf-PID.map`; a jitdump may lie anywhere, and its writer maps a
//! page of it so that it can be found (Linux, tools/perf/Documentation:
//! jit-interface.txt, jitdump-specification.txt). PID and path are those of the process's
//! own namespaces.

use super::files::is_alive;
use super::symbolize::{Names, Places};
use crate::incident::model::{GeneratedAddress, Incident, Process, Search, Subject};
use crate::snapshot::smaps::MapLine;
use reprieve_symbolizer::{Avma, Frame, MOST_MAP_BYTES, Miss, Outcome, Source, SymbolSource, Tried, jitdump, perf_map};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Adds names of addresses that lie in no module.
pub fn symbolize(incident: &Incident, places: &Places<'_>, names: &mut Names) {
    for process in &incident.processes {
        let addresses: Vec<Avma> = addresses(process).into_iter().map(Avma).collect();
        if addresses.is_empty() {
            continue;
        }
        let mut tried = Vec::new();
        let found = look_up(incident, process, &addresses, places, &mut tried);
        let was_read = tried.iter().any(|t| !matches!(t.outcome, Outcome::Absent | Outcome::OtherProcess));
        let miss = if was_read { Miss::NoMap } else { Miss::NoModule };
        names.generated.extend(addresses.iter().zip(found).map(|(address, found)| {
            let (frame, source) = found.unzip();
            let miss = frame.is_none().then(|| miss.to_string());
            GeneratedAddress { pid: process.pid, address: address.0, frame, source, miss }
        }));
        let subject = Subject::Process(process.pid);
        names.searches.push(Search { subject, tried, without_inlined: 0, without_lines: 0 });
    }
}

/// What to look up of a process, sorted.
fn addresses(process: &Process) -> BTreeSet<u64> {
    let of_threads = process.threads.iter().flat_map(|thread| {
        let frames = thread.stack.frames.iter().zip(&thread.frame_modules);
        frames.filter(|(_, at)| at.is_none()).map(|(frame, _)| frame.lookup_address().0)
    });
    let heap_frames = process.heaps.iter().flat_map(|heap| &heap.frames);
    let heap_frames = heap_frames.chain(process.growth.iter().flat_map(|growth| &growth.frames));
    let of_heaps = heap_frames.filter(|f| f.at.is_none() && f.named.is_none()).map(|f| f.address.wrapping_sub(1));
    of_threads.chain(of_heaps).collect()
}

type Found = Option<(Frame, SymbolSource)>;

/// The jitdump, which knows lines, and then the map.
fn look_up(
    incident: &Incident,
    process: &Process,
    addresses: &[Avma],
    places: &Places<'_>,
    tried: &mut Vec<Tried>,
) -> Vec<Found> {
    let mut found: Vec<Found> = vec![None; addresses.len()];
    let home = Home::of(incident, process, places);
    let Some(home) = home else { return found };
    let mut add = |frames: Vec<Option<Frame>>, source| {
        for (found, frame) in found.iter_mut().zip(frames) {
            *found = found.take().or_else(|| Some((frame?, source)));
        }
    };
    for path in home.jitdumps(process) {
        let read = home.open(process, &path).map(|mut file| jitdump(&mut file, addresses));
        let outcome = read.as_ref().map_or_else(|&outcome| outcome, |(_, outcome)| *outcome);
        tried.push(Tried { source: Source::JitDump, place: path.display().to_string(), outcome });
        add(read.map(|(frames, _)| frames).unwrap_or_default(), SymbolSource::JitDump);
    }
    let path = home.root.join(format!("tmp/perf-{}.map", home.pid));
    let read = home.open(process, &path).map(|file| perf_map(&mut BufReader::new(file), addresses, MOST_MAP_BYTES));
    let outcome = read.as_ref().map_or_else(|&outcome| outcome, |(_, outcome)| *outcome);
    tried.push(Tried { source: Source::PerfMap, place: path.display().to_string(), outcome });
    add(read.map(|(frames, _)| frames).unwrap_or_default(), SymbolSource::PerfMap);
    found
}

/// A process's own view of the file system, and of itself.
struct Home {
    root: PathBuf,
    pid: i32,
    is_alive: bool,
    /// When it started and when the incident was.
    life: (SystemTime, SystemTime),
}

impl Home {
    /// `None` where the process is gone and nothing of its namespaces is left, or where
    /// it was on another machine.
    fn of(incident: &Incident, process: &Process, places: &Places<'_>) -> Option<Self> {
        let is_alive = is_alive(incident, process.pid);
        let time = UNIX_EPOCH + Duration::from_micros(incident.time_unix_us);
        let age = Duration::try_from_secs_f64(process.age_s).unwrap_or_default();
        let life = (time.checked_sub(age).unwrap_or(UNIX_EPOCH), time);
        if is_alive {
            let root = PathBuf::from(format!("/proc/{}/root", process.pid));
            let pid = own_pid(process.pid).unwrap_or(process.pid);
            return Some(Home { root, pid, is_alive, life });
        }
        let is_foreign = |kind: &str| process.foreign_namespaces.iter().any(|link| link.starts_with(kind));
        let is_here =
            !places.later || fs::read_to_string("/proc/sys/kernel/hostname").ok()?.trim() == incident.host.name;
        (is_here && !is_foreign("pid:") && !is_foreign("mnt:")).then(|| Home {
            root: PathBuf::from("/"),
            pid: process.pid,
            is_alive,
            life,
        })
    }

    /// Files that the process has mapped and that are called like jitdumps.
    fn jitdumps(&self, process: &Process) -> Vec<PathBuf> {
        let name = format!("/jit-{}.dump", self.pid);
        let maps = fs::read_to_string(format!("/proc/{}/maps", process.pid)).unwrap_or_default();
        let of_live = maps.lines().filter_map(MapLine::parse).map(|map| map.path().0.to_owned());
        let of_dead = process.mappings.iter().map(|map| map.name.clone());
        let mut paths: Vec<PathBuf> = if self.is_alive { of_live.collect() } else { of_dead.collect::<Vec<_>>() }
            .into_iter()
            .filter(|path| path.ends_with(&name))
            .map(|path| self.root.join(path.trim_start_matches('/')))
            .collect();
        paths.sort_unstable();
        paths.dedup();
        paths
    }

    /// Opens a file that must be the process's own: anybody can write to `/tmp`, and PIDs
    /// come again.
    fn open(&self, process: &Process, path: &Path) -> Result<File, Outcome> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file =
            OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|error| match error.kind() {
                ErrorKind::NotFound => Outcome::Absent,
                _ => Outcome::NotReadable,
            })?;
        let about = file.metadata().map_err(|_| Outcome::NotReadable)?;
        if !about.is_file() {
            return Err(Outcome::NotReadable);
        }
        let (start, incident) = self.life;
        // Clocks of processes are coarse.
        let slack = Duration::from_secs(1);
        let is_before = about.modified().is_ok_and(|time| time + slack < start);
        let is_after = !self.is_alive && about.created().is_ok_and(|time| time > incident + slack);
        if (about.uid() != process.uid && about.uid() != 0) || is_before || is_after {
            return Err(Outcome::OtherProcess);
        }
        Ok(file)
    }
}

/// The PID that a process has for itself, the last of `NSpid` (proc_pid_status(5)).
fn own_pid(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_whitespace().next_back()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incident::read::read_incident;
    use crate::snapshot::process::start_ticks;
    use reprieve_symbolizer::{DebugDirs, FoundBy, RawFrame};

    /// The map of this very process, gone with the test.
    struct Map(PathBuf);

    impl Map {
        fn write(text: &str) -> Self {
            let path = PathBuf::from(format!("/tmp/perf-{}.map", own_pid(std::process::id() as i32).unwrap()));
            fs::write(&path, text).unwrap();
            Map(path)
        }
    }

    impl Drop for Map {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    /// A recorded incident of which one frame is in generated code of this process.
    fn of_this_process() -> Incident {
        let recorded = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/incidents/sort.json");
        let mut incident = read_incident(Path::new(recorded)).unwrap();
        let process = &mut incident.processes[0];
        process.pid = std::process::id() as i32;
        process.start_ticks = start_ticks(process.pid).unwrap();
        process.uid = nix::unistd::getuid().as_raw();
        let thread = &mut process.threads[0];
        thread.frame_modules.truncate(1);
        thread.stack.frames = vec![RawFrame { address: Avma(0x1000), found: FoundBy::Register, stack_pointer: 0 }; 2];
        thread.stack.frames[1] = RawFrame { address: Avma(0x2010), found: FoundBy::FramePointer, stack_pointer: 0 };
        thread.frame_modules = vec![None, None];
        incident
    }

    fn look(incident: &Incident, later: bool) -> (Vec<Option<String>>, Vec<(Source, Outcome)>) {
        let dirs = DebugDirs { dirs: Vec::new() };
        let mut names = Names::default();
        symbolize(incident, &Places { dirs: &dirs, debuginfod: None, later }, &mut names);
        let frames = names.generated.into_iter().map(|a| a.frame.map(|f| f.function));
        let tried = names.searches.into_iter().flat_map(|s| s.tried).map(|t| (t.source, t.outcome));
        (frames.collect(), tried.collect())
    }

    /// One after the other: they share a file.
    #[test]
    fn a_map_is_believed_that_is_the_processes_own() {
        let incident = of_this_process();
        let path = PathBuf::from(format!("/tmp/perf-{}.map", std::process::id()));
        let none = vec![None, None];
        assert_eq!(look(&incident, false), (none.clone(), vec![(Source::PerfMap, Outcome::Absent)]));
        let map = Map::write("1000 10 first\n2000 10 second\n");
        // Of a return address the byte before it is meant.
        let both = vec![Some("first".to_owned()), Some("second".to_owned())];
        assert_eq!(look(&incident, false), (both.clone(), vec![(Source::PerfMap, Outcome::Used)]));
        assert_eq!(look(&incident, true).0, both);

        // The process is gone, the file is not: its time tells whose it is.
        let mut gone = incident.clone();
        gone.processes[0].start_ticks += 1;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
        gone.time_unix_us = now + 60_000_000;
        gone.processes[0].age_s = 3600.0;
        assert_eq!(look(&gone, false).0, both);
        gone.time_unix_us = now - 60_000_000;
        assert_eq!(look(&gone, false), (none.clone(), vec![(Source::PerfMap, Outcome::OtherProcess)]));
        // On another machine nothing is looked at, nor where it was in a container.
        gone.time_unix_us = now + 60_000_000;
        gone.host.name = "another".to_owned();
        assert_eq!(look(&gone, true), (none.clone(), Vec::new()));
        gone.processes[0].foreign_namespaces = vec!["mnt:[4026532000]".to_owned()];
        assert_eq!(look(&gone, false), (none.clone(), Vec::new()));

        // Older than the process, of another user, and no file at all.
        let long_ago = SystemTime::now() - Duration::from_secs(86_400);
        OpenOptions::new().write(true).open(&map.0).unwrap().set_modified(long_ago).unwrap();
        let mut young = incident.clone();
        young.time_unix_us = now;
        assert_eq!(look(&young, false), (none.clone(), vec![(Source::PerfMap, Outcome::OtherProcess)]));
        drop(map);
        std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
        let link = Map(path);
        assert_eq!(look(&incident, false), (none, vec![(Source::PerfMap, Outcome::NotReadable)]));
        drop(link);
    }
}
