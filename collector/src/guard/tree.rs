//! The tree of cgroups, and what happens in it, told by inotify(7).
//!
//! A folder of cgroupfs tells of new and removed cgroups, and of who writes to its
//! files: a limit as well.

use crate::cgroup::{Glob, Hierarchy, Memcg};
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// Files in which owners set limits, of both versions.
const LIMITS: [&str; 3] = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.max"];

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum News {
    /// There is a cgroup.
    Appeared(String),
    /// It is gone, or has another name.
    Gone(String),
    /// Somebody wrote a limit.
    Limited(String),
    /// More happened than was told: everything has to be looked at.
    Lost,
}

/// Watches the cgroups that are asked for, and those above them.
#[derive(Debug)]
pub struct Tree {
    inotify: Inotify,
    hierarchy: Hierarchy,
    globs: Vec<Glob>,
    paths: HashMap<WatchDescriptor, String>,
}

impl Tree {
    /// Watches what the globs may ever match; with what is there now.
    pub fn plant(hierarchy: &Hierarchy, globs: Vec<Glob>) -> io::Result<(Self, Vec<String>)> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let mut tree = Tree { inotify, hierarchy: hierarchy.clone(), globs, paths: HashMap::new() };
        let found = tree.watch("/")?;
        Ok((tree, found))
    }

    /// Readable when there is news.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// Watches a cgroup and those below it; returns their paths, parents first. What is
    /// gone meanwhile is left out.
    fn watch(&mut self, path: &str) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        let mut next = vec![path.to_owned()];
        while let Some(path) = next.pop() {
            if !self.globs.iter().any(|glob| glob.may_lead_on(&path)) {
                continue;
            }
            let memcg = Memcg::at(&self.hierarchy, &path);
            let flags = AddWatchFlags::IN_ONLYDIR
                | AddWatchFlags::IN_CREATE
                | AddWatchFlags::IN_DELETE
                | AddWatchFlags::IN_MOVE
                | AddWatchFlags::IN_MODIFY;
            // Before its folder is listed, so that none is missed in between.
            match self.inotify.add_watch(memcg.dir(), flags) {
                Ok(watch) => drop(self.paths.insert(watch, path.clone())),
                Err(Errno::ENOENT | Errno::ENOTDIR) => continue,
                Err(Errno::ENOSPC) => {
                    return Err(io::Error::other(
                        "there are more cgroups than inotify may watch; raise fs.inotify.max_user_watches",
                    ));
                }
                Err(errno) => return Err(errno.into()),
            }
            let entries = std::fs::read_dir(memcg.dir()).into_iter().flatten().flatten();
            let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            next.extend(folders.map(|folder| below(&path, &folder.file_name().to_string_lossy())));
            found.push(path);
        }
        Ok(found)
    }

    /// What has happened since the last call. A cgroup may be told to have appeared twice.
    pub fn news(&mut self) -> io::Result<Vec<News>> {
        let mut news = Vec::new();
        loop {
            let events = match self.inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => return Ok(news),
                Err(errno) => return Err(errno.into()),
            };
            for event in events {
                self.take(&event, &mut news)?;
            }
        }
    }

    fn take(&mut self, event: &InotifyEvent, news: &mut Vec<News>) -> io::Result<()> {
        let has = |flags| event.mask.intersects(flags);
        if has(AddWatchFlags::IN_Q_OVERFLOW) {
            news.push(News::Lost);
            return Ok(());
        }
        if has(AddWatchFlags::IN_IGNORED) {
            self.paths.remove(&event.wd);
            return Ok(());
        }
        let (Some(parent), Some(name)) = (self.paths.get(&event.wd), &event.name) else { return Ok(()) };
        let name = name.to_string_lossy();
        if !has(AddWatchFlags::IN_ISDIR) {
            if has(AddWatchFlags::IN_MODIFY) && LIMITS.contains(&&*name) {
                let limited = News::Limited(parent.clone());
                // One write after the other is one piece of news.
                if news.last() != Some(&limited) {
                    news.push(limited);
                }
            }
            return Ok(());
        }
        let path = below(parent, &name);
        if has(AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM) {
            self.forget(&path);
            news.push(News::Gone(path));
        } else if has(AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO) {
            news.extend(self.watch(&path)?.into_iter().map(News::Appeared));
        }
        Ok(())
    }

    /// A folder that was renamed keeps its watch, under a name that is wrong.
    fn forget(&mut self, path: &str) {
        let is_below = |known: &str| known == path || known.starts_with(&below(path, ""));
        let lost: Vec<WatchDescriptor> =
            self.paths.iter().filter(|(_, known)| is_below(known)).map(|(watch, _)| *watch).collect();
        for watch in lost {
            self.paths.remove(&watch);
            // EINVAL: it is gone with its folder.
            let _ = self.inotify.rm_watch(watch);
        }
    }
}

fn below(path: &str, name: &str) -> String {
    format!("{}/{name}", path.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Version;
    use std::fs;

    fn plant(dir: &std::path::Path, globs: &[&str]) -> (Tree, Vec<String>) {
        let hierarchy = Hierarchy { version: Version::V1, mount: dir.to_owned(), own: "/".to_owned() };
        Tree::plant(&hierarchy, globs.iter().map(|glob| Glob::parse(glob).unwrap()).collect()).unwrap()
    }

    #[test]
    fn what_comes_and_goes_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let make = |path: &str| fs::create_dir_all(dir.path().join(path)).unwrap();
        make("a/old");
        make("other/deep");
        let (mut tree, mut found) = plant(dir.path(), &["/a/*", "/b/**"]);
        found.sort();
        assert_eq!(found, ["/", "/a", "/a/old"]);
        assert_eq!(tree.news().unwrap(), []);
        make("a/new/below");
        make("b");
        make("other/new");
        let told = tree.news().unwrap();
        assert!(told.contains(&News::Appeared("/a/new".into())) && told.contains(&News::Appeared("/b".into())));
        assert!(!told.iter().any(|news| matches!(news, News::Appeared(path) if path.contains("other"))), "{told:?}");
        // Several levels at once, of which the first alone is told by the kernel.
        make("b/c/d/e");
        let mut told = tree.news().unwrap();
        told.sort();
        told.dedup();
        assert_eq!(told, ["/b/c", "/b/c/d", "/b/c/d/e"].map(|path| News::Appeared(path.into())));
        fs::write(dir.path().join("a/old/memory.limit_in_bytes"), "1").unwrap();
        fs::write(dir.path().join("a/old/cgroup.procs"), "1").unwrap();
        assert_eq!(tree.news().unwrap(), [News::Limited("/a/old".into())]);
        fs::rename(dir.path().join("b/c"), dir.path().join("b/x")).unwrap();
        let told = tree.news().unwrap();
        assert!(
            told.contains(&News::Gone("/b/c".into())) && told.contains(&News::Appeared("/b/x/d".into())),
            "{told:?}"
        );
        fs::remove_dir_all(dir.path().join("a/old")).unwrap();
        assert_eq!(tree.news().unwrap(), [News::Gone("/a/old".into())]);
    }
}
