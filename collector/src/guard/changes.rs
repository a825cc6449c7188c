//! Which memcgs are guarded: as they come and go, and as the configuration says.

use super::deputy::Order;
use super::post::{Over, Post, WATCHED};
use super::settings::Settings;
use super::tree::Tree;
use super::{ENDING_TIME, Guard, PAGES_TIME, TREE, TROUBLE_TIME, recorder, system};
use crate::baseline::{History, Pace};
use crate::cgroup::Memcg;
use crate::hold::{self, BrakeError};
use crate::incident::units;
use crate::metrics::{Event, Exporter, Places};
use crate::run::RunError;
use crate::say;
use crate::signals::Interrupt;
use crate::verdict::quota;
use nix::sys::epoll::{EpollEvent, EpollFlags};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Memcgs of which a history is kept, 4 KiB each: the guardian's memory does not grow with the
/// number of cgroups. Of the others an incident tells no growth.
const RECORDED: usize = 128;

impl Guard {
    pub(super) fn consider_those_settled(&mut self) {
        let now = Instant::now();
        let settled: Vec<String> =
            self.settling.iter().filter(|(_, at)| **at <= now).map(|(path, _)| path.clone()).collect();
        for path in settled {
            self.settling.remove(&path);
            self.consider(&path);
        }
    }

    /// Guards a cgroup if it is to be guarded, can be, and is not yet; else looks whether
    /// its limit is another.
    pub(super) fn consider(&mut self, path: &str) {
        if let Some(&number) = self.numbers.get(path) {
            return self.look(number);
        }
        let memcg = Memcg::at(&self.hierarchy, path);
        quota::undo(&memcg, self.cpu.as_ref());
        if !self.settings.wants(path) {
            // A guard that died with its watchdog may have been to guard more; of one that
            // lives it is no business of ours.
            let _ = hold::undo(&memcg);
            return;
        }
        if memcg.has_us() {
            say!(Error, cgroup = path; "{path} is not guarded: reprieve itself is in it");
            return;
        }
        if self.revive(path) {
            return;
        }
        let Some(watchdog) = &self.watchdog else { return };
        let (number, guarded) = (self.next, self.settings.config.guarded(path));
        let line = watchdog.line(number);
        match Post::take(number, memcg, self.given.apply(guarded), self.settings.options, line) {
            Ok(mut post) => {
                self.next += 1;
                if let Some(brake) = post.brake() {
                    let (limit, name) = (brake.limit(), brake.name());
                    say!(Info, cgroup = path, limit_bytes = limit, brake = name;
                        "guarding {path}: limit {}, brake {name}", units::bytes(limit));
                }
                post.watch_growth(self.may_watch());
                post.history = (self.posts.len() < RECORDED).then(|| History::new(Pace::OF_MANY));
                // A guard before us may have granted it something.
                self.purse.settle(number, post.granted());
                self.posts.insert(number, post);
                self.numbers.insert(path.to_owned(), number);
                self.listen(number, true);
            }
            // It will be told when somebody limits it.
            Err(BrakeError::Unlimited { .. }) => {}
            // It is gone again.
            Err(_) if !Memcg::at(&self.hierarchy, path).dir().is_dir() => {}
            Err(error) => {
                say!(Error, cgroup = path; "{path} is not guarded: {:#}", anyhow::Error::new(error));
            }
        }
    }

    /// Whether page faults of one more may be sampled.
    fn may_watch(&self) -> bool {
        self.posts.values().filter(|post| post.is_watched()).count() < WATCHED
    }

    /// Goes on with a memcg that was given up but is still with us.
    fn revive(&mut self, path: &str) -> bool {
        let is_it = |post: &&mut Post| post.over == Some(Over::Unwanted) && post.memcg.path() == path;
        let Some(number) = self.posts.values_mut().find(is_it).map(|post| post.number) else { return false };
        let guarded = self.given.apply(self.settings.config.guarded(path));
        let Some(post) = self.posts.get_mut(&number) else { return false };
        if post.is_out() && post.change(guarded, self.settings.options) {
            post.over = None;
            self.numbers.insert(path.to_owned(), number);
            return true;
        }
        // Half of it is given back already: from the beginning.
        if !post.is_out() {
            let _ = post.line.forget();
            self.remove(number);
        }
        false
    }

    pub(super) fn gone(&mut self, path: &str) {
        if let Some(number) = self.numbers.remove(path) {
            self.drop_post(number);
        }
    }

    /// Nothing is left of the memcg; a thread that has it brings it back first.
    pub(super) fn drop_post(&mut self, number: u32) {
        let Some(post) = self.posts.get_mut(&number) else { return };
        post.over = Some(Over::Gone);
        if post.is_out() {
            return;
        }
        let path = post.memcg.path();
        say!(Info, cgroup = path; "{path} is gone");
        let _ = post.line.forget();
        self.remove(number);
    }

    fn remove(&mut self, number: u32) {
        self.posts.remove(&number);
        self.purse.settle(number, 0);
    }

    /// Gives a memcg back; what the kernel refuses for now is left to the watchdog.
    pub(super) fn release(&mut self, number: u32) {
        self.listen(number, false);
        let Some(post) = self.posts.get_mut(&number) else { return };
        if post.over.replace(Over::Unwanted).is_none() {
            let path = post.memcg.path();
            say!(Info, cgroup = path; "{path} is not guarded any more");
        }
        self.numbers.remove(post.memcg.path());
        post.waits = None;
        if post.is_out() {
            return;
        }
        if post.release() {
            self.remove(number);
        } else {
            // Tried again until it is allowed.
            post.look_at = Instant::now() + TROUBLE_TIME;
        }
    }

    /// What is there may be other than what was told.
    pub(super) fn look_everywhere(&mut self) -> Result<(), RunError> {
        let unwatched = |e| RunError::System("the tree of cgroups cannot be watched", e);
        let (tree, found) = Tree::plant(&self.hierarchy, self.settings.cgroups.clone()).map_err(unwatched)?;
        // The old one is closed, and so out of the epoll.
        self.tree = tree;
        self.epoll.add(self.tree.fd(), EpollEvent::new(EpollFlags::EPOLLIN, TREE)).map_err(system)?;
        let gone: Vec<String> = self.numbers.keys().filter(|path| !found.contains(path)).cloned().collect();
        for path in gone {
            match Memcg::at(&self.hierarchy, &path).exists() {
                // It is not watched any more, since no glob leads to it.
                true => self.numbers.get(&path).copied().into_iter().for_each(|number| self.release(number)),
                false => self.gone(&path),
            }
        }
        found.iter().for_each(|path| self.consider(path));
        Ok(())
    }

    /// Reads the configuration again; the old one stays where the new one is wrong.
    pub(super) fn reload(&mut self) {
        self.manager.reloading();
        self.read_again();
        self.manager.ready();
    }

    fn read_again(&mut self) {
        let settings = match Settings::load(&self.given) {
            Ok(settings) => settings,
            Err(problems) => {
                problems.0.iter().for_each(|problem| say!(Error; "{problem}"));
                self.exporter.tell(&Event::Configured { is_right: false });
                say!(Error; "the old configuration stays in force");
                return;
            }
        };
        if settings.out != self.settings.out || settings.limits != self.settings.limits {
            match recorder(&settings) {
                // The old one writes what it has, and ends.
                Ok(recorder) => self.recorder = Arc::new(recorder),
                Err(error) => {
                    self.exporter.tell(&Event::Configured { is_right: false });
                    say!(Error; "{error}; the old configuration stays in force");
                    return;
                }
            }
        }
        // What was started stays as it is until the end: the lock and the threads.
        let before = std::mem::replace(&mut self.settings, settings);
        (self.settings.run_dir, self.settings.analysts) = (before.run_dir, before.analysts);
        self.desk.iter().for_each(|desk| desk.change(self.settings.asking.clone()));
        self.purse.allow(self.settings.config.most_granted_in_all());
        if *self.exporter.places() != self.settings.config.guard_metrics() {
            self.leave_exporter();
            // The old one has left its address before the new one wants it.
            self.exporter = Exporter::start(Places::default());
            self.exporter = Exporter::start(self.settings.config.guard_metrics());
            self.listen_to_exporter();
        }
        let numbers: Vec<(u32, String)> = self.numbers.iter().map(|(path, number)| (*number, path.clone())).collect();
        for (number, path) in numbers {
            let guarded = self.given.apply(self.settings.config.guarded(&path));
            let options = self.settings.options;
            let may_watch = self.may_watch();
            let Some(post) = self.posts.get_mut(&number) else { continue };
            let period = post.guarded.growth_period;
            if !self.settings.wants(&path) || !post.change(guarded, options) {
                self.release(number);
            } else if post.guarded.growth_period != period {
                post.watch_growth(may_watch || post.is_watched());
            }
        }
        if let Err(error) = self.look_everywhere() {
            say!(Error; "{error}");
        }
        self.deputy.order(Order::of(&self.given, &self.settings));
        self.tell_all();
        let count = units::count(self.numbers.len() as u64, "cgroup");
        say!(Info; "the configuration was read again; guarding {count}");
    }

    /// Gives everything back.
    pub(super) fn end(mut self) {
        self.manager.ending();
        if let Some(ending) = self.signals.ending() {
            say!(Info; "{} was received: everything is given back to the kernel", ending.signal);
            self.crew.halt(ending.signal);
        }
        self.deputy.order(None);
        let until = Instant::now() + ENDING_TIME;
        while self.posts.values().any(Post::is_out) && Instant::now() < until {
            for done in self.crew.take() {
                if let Some(post) = self.posts.get_mut(&done.number) {
                    post.put(done.brake, done.throttle);
                }
            }
            self.manager.live();
            std::thread::sleep(Duration::from_millis(5));
        }
        // With its brake, which is what ends a handler: the watchdog may take its time.
        self.posts.retain(|_, post| !post.release());
        if let Some(watchdog) = self.watchdog.take() {
            // What was refused for now, or is still with a thread, is the watchdog's.
            if self.posts.is_empty() { watchdog.dismiss() } else { watchdog.give_back() }
        }
        drop(self.posts);
        // A thread may be about to let go of it.
        while Arc::strong_count(&self.recorder) > 1 && Instant::now() < until {
            self.manager.live();
            std::thread::sleep(Duration::from_millis(5));
        }
        if let Some(recorder) = Arc::into_inner(self.recorder) {
            // Pages take their time, which is not that of one who hangs.
            recorder.drain(|| self.manager.live());
        }
        self.deputy.wait(Instant::now() + PAGES_TIME, |events| {
            events.iter().for_each(|event| self.exporter.tell(event));
            self.manager.live();
        });
    }
}
