//! `reprieve guard`: every memcg that the configuration matches, for as long as it runs.
//!
//! One thread waits for bells and news of the tree ([`Tree`]), and looks; what is out of
//! memory goes to a thread of the [`Crew`] and comes back. While all is well it looks every
//! few seconds at what each is like, so that an incident can tell what grew.

mod care;
mod changes;
mod crew;
mod deputy;
mod lock;
mod manager;
mod post;
mod settings;
mod tell;
mod tree;

#[cfg(test)]
pub(crate) use crew::STACK_BYTES;
pub use lock::{LockError, default_dir};
pub use settings::{Given, Settings};

use crate::cgroup::{Hierarchy, Version};
use crate::desk::{Desk, Place};
use crate::guardian::{self, Priority};
use crate::hold::Look;
use crate::hold::watchdog::Watchdog;
use crate::incident::units;
use crate::metrics::{Event, Exporter};
use crate::run::{Answered, Bounds, Ration, Recorder, RunError, open_store, tell_unserved};
use crate::say;
use crate::signals::{Interrupt, Signals};
use crate::verdict::purse::Purse;
use crew::{Crew, Done, Job, Task};
use deputy::{Deputy, Order};
use lock::Lock;
use manager::Manager;
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use post::{Over, Post};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tree::{News, Tree};

/// What the epoll tells of: first these, then memcgs by their numbers.
const SIGNALS: u64 = 0;
const TREE: u64 = 1;
const CREW: u64 = 2;
const WATCHDOG: u64 = 3;
const EXPORTER: u64 = 4;
const DEPUTY: u64 = 5;
const FIRST: u32 = 6;
/// Bells taken at a time.
const EVENTS: usize = 64;
/// Time that OOMs under way get to end when we end: a kill may take as long.
const ENDING_TIME: Duration = Duration::from_secs(10);
/// Time that who answers for the machine gets to write its incidents then.
const PAGES_TIME: Duration = Duration::from_secs(30);
/// A memcg whose brake cannot be read is looked at again after this.
const TROUBLE_TIME: Duration = Duration::from_secs(1);
/// Longest that bells wait for records to be made, but for the last of them.
const RECORD_TIME: Duration = Duration::from_micros(200);
/// After an owner wrote a limit he may be about to write the next, which the kernel
/// refuses if the first does not say what he wrote (memory+swap below memory).
const SETTLE_TIME: Duration = Duration::from_millis(40);

/// Guards until a signal ends it.
pub fn watch(given: Given) -> Result<(), RunError> {
    let signals = Signals::block_for_daemon().map_err(|e| RunError::System("signals could not be blocked", e))?;
    let settings = Settings::load(&given).map_err(|problems| RunError::Refused(problems.to_string()))?;
    if settings.cgroups.is_empty() && settings.config.machine_answer() != Some(true) {
        return Err(RunError::Refused(
            "there is nothing to guard; name cgroups, like `reprieve guard '/system.slice/*.service'`, or write \
             cgroups = [\"/system.slice/*.service\"] below [guard] in reprieve.toml"
                .to_owned(),
        ));
    }
    // For as long as we live, whatever is read later.
    let log = given.log.unwrap_or(settings.config.guard_log());
    say::choose(log);
    let given = Given { log: Some(log), ..given };
    let _lock = Lock::take(&settings.run_dir)?;
    let hierarchy = Hierarchy::memory()?;
    guardian::allow_many_files();
    let watchdog = Watchdog::start_for_many(hierarchy.clone())
        .map_err(|e| RunError::System("the watchdog could not be started", e))?;
    for missing in guardian::settle(guardian::Locks::Data) {
        say!(Warning; "warning: {missing}");
    }
    guardian::sigbus::install().map_err(|e| RunError::System("the SIGBUS handler could not be installed", e.into()))?;
    let recorder = Arc::new(recorder(&settings)?);
    let desk = desk(&settings);
    let crew = Crew::start(settings.analysts, Priority::of_this_thread())
        .map_err(|e| RunError::System("a thread could not be started", e))?;
    let exporter = Exporter::start(settings.config.guard_metrics());
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(system)?;
    let (tree, found) = Tree::plant(&hierarchy, settings.cgroups.clone())
        .map_err(|e| RunError::System("the tree of cgroups cannot be watched", e))?;
    let ours = [(signals.fd(), SIGNALS), (tree.fd(), TREE), (crew.fd(), CREW), (watchdog.fd(), WATCHDOG)];
    for (fd, number) in ours {
        epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, number)).map_err(system)?;
    }
    let purse = Purse::new(settings.config.most_granted_in_all());
    let mut guard = Guard {
        given,
        settings,
        hierarchy,
        watchdog: Some(watchdog),
        recorder,
        desk,
        crew,
        epoll,
        tree,
        signals,
        cpu: Hierarchy::find("cpu").ok().flatten().filter(|cpu| cpu.version == Version::V1),
        posts: BTreeMap::new(),
        numbers: HashMap::new(),
        next: FIRST,
        ration: Ration::default(),
        purse,
        settling: BTreeMap::new(),
        manager: Manager::of_environment(),
        exporter,
        deputy: Deputy::new(),
        told: None,
    };
    found.iter().for_each(|path| guard.consider(path));
    say!(Info; "guarding {}", units::count(guard.posts.len() as u64, "cgroup"));
    if guard.posts.is_empty() {
        say!(Warning; "warning: no cgroup with a limit matches what is to be guarded now; those that come are guarded");
    }
    guard.listen_to_exporter();
    guard.deputy.order(Order::of(&guard.given, &guard.settings));
    guard.tell_all();
    guard.manager.ready();
    let result = guard.run();
    guard.end();
    result
}

fn system(errno: Errno) -> RunError {
    RunError::System("the bells could not be listened to", errno.into())
}

fn recorder(settings: &Settings) -> Result<Recorder, RunError> {
    let (store, in_hand) = open_store(settings.out.clone(), &settings.limits)?;
    Recorder::with_subject(store, settings.limits, in_hand, "guard".to_owned())
}

/// Where operators are served, for which the lock is ours alone.
fn desk(settings: &Settings) -> Option<Arc<Desk>> {
    let place = Place { dir: settings.run_dir.clone(), manner: settings.asking.clone() };
    Desk::open(place.clone(), "guard").map(Arc::new).inspect_err(|error| tell_unserved(&place, error)).ok()
}

struct Guard {
    given: Given,
    settings: Settings,
    hierarchy: Hierarchy,
    /// `None` when it has been sent home.
    watchdog: Option<Watchdog>,
    recorder: Arc<Recorder>,
    /// `None` where it could not be opened.
    desk: Option<Arc<Desk>>,
    crew: Crew,
    epoll: Epoll,
    tree: Tree,
    signals: Signals,
    /// Where quotas are on version 1.
    cpu: Option<Hierarchy>,
    posts: BTreeMap<u32, Post>,
    /// Their numbers, by their paths; not of those that are over.
    numbers: HashMap<String, u32>,
    next: u32,
    ration: Ration,
    purse: Arc<Purse>,
    /// Cgroups that are new, or that somebody limits, until when they are let alone.
    settling: BTreeMap<String, Instant>,
    manager: Manager,
    exporter: Exporter,
    deputy: Deputy,
    /// How many are guarded and answered, and whether the machine is, as it was told last.
    told: Option<(u64, u64, bool)>,
}

impl Guard {
    fn run(&mut self) -> Result<(), RunError> {
        let mut events = [EpollEvent::empty(); EVENTS];
        while self.signals.ending().is_none() {
            let count = match self.epoll.wait(&mut events, self.timeout()) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(errno) => return Err(system(errno)),
            };
            for event in &events[..count] {
                match event.data() {
                    SIGNALS => drop(self.signals.take()),
                    TREE => self.hear_tree()?,
                    // Nobody would give back what we hold if we died as well.
                    WATCHDOG => return Err(RunError::Refused("the watchdog died; start the guard anew".to_owned())),
                    EXPORTER => {
                        self.leave_exporter();
                        self.exporter.ended();
                    }
                    DEPUTY => self.hear_deputy(),
                    CREW => self.crew.take().into_iter().for_each(|done| self.done(done)),
                    number => self.look(number as u32),
                }
            }
            self.look_at_those_due();
            self.consider_those_settled();
            self.serve();
            self.record();
            self.look_after_throttles();
            if self.signals.take_reload() {
                self.reload();
            }
            if self.exporter.revive() {
                self.listen_to_exporter();
                self.tell_all();
            }
            if self.deputy.start_if_due() {
                self.listen_to_deputy();
            }
            self.tell_state();
            self.manager.live();
        }
        Ok(())
    }

    /// Until the next look, or the end of somebody's wait.
    fn timeout(&self) -> EpollTimeout {
        let due = self.posts.values().filter(|post| !post.is_out()).filter_map(|post| match post.waits {
            Some((Task::Answer, since)) => Some(since + post.guarded.deadline),
            // Until a thread is free.
            Some((Task::RecordKill, _)) => None,
            None => Some(post.look_at),
        });
        let records = self.posts.values().filter(|post| !post.is_out()).filter_map(Post::record_due);
        let cares = self.posts.values().filter_map(Post::care_due);
        let others = [self.manager.due(), self.exporter.due(), self.deputy.due()]
            .into_iter()
            .flatten()
            .chain(records)
            .chain(cares);
        due.chain(self.settling.values().copied()).chain(others).min().map_or(EpollTimeout::NONE, |at| {
            // Rounded up: one of 0 ms would spin through the last one.
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            EpollTimeout::try_from(left).unwrap_or(EpollTimeout::MAX)
        })
    }

    fn hear_tree(&mut self) -> Result<(), RunError> {
        let news = self.tree.news().map_err(|e| RunError::System("the tree of cgroups cannot be watched", e))?;
        for news in news {
            match news {
                News::Appeared(path) | News::Limited(path) => {
                    self.settling.insert(path, Instant::now() + SETTLE_TIME);
                }
                News::Gone(path) => {
                    self.settling.remove(&path);
                    self.gone(&path);
                }
                News::Lost => self.look_everywhere()?,
            }
        }
        Ok(())
    }

    /// Hears the bells of a memcg, or not while somebody answers them.
    fn listen(&mut self, number: u32, wanted: bool) {
        let Some(brake) = self.posts.get_mut(&number).and_then(Post::brake) else { return };
        for bell in brake.bells() {
            // Both are as asked for if it was so already.
            let _ = self.epoll.delete(bell.as_fd());
            let priority = match bell.events().contains(PollFlags::POLLPRI) {
                true => EpollFlags::EPOLLPRI,
                false => EpollFlags::EPOLLIN,
            };
            if wanted && let Err(errno) = self.epoll.add(bell.as_fd(), EpollEvent::new(priority, number.into())) {
                say!(Warning; "a bell cannot be heard, it is looked at instead: {errno}");
            }
        }
    }

    fn look_at_those_due(&mut self) {
        let now = Instant::now();
        let is_due = |post: &&Post| !post.is_out() && post.waits.is_none() && post.look_at <= now;
        let due: Vec<u32> = self.posts.iter().filter(|(_, post)| is_due(post)).map(|(number, _)| *number).collect();
        due.into_iter().for_each(|number| self.look(number));
    }

    /// Records what memcgs are like, those that wait longest for it first, for a moment: then
    /// bells are listened to. Each turn looks at all posts, which for one record would be
    /// most of its cost.
    fn record(&mut self) {
        let now = Instant::now();
        let posts = self.posts.values_mut();
        let mut due: Vec<&mut Post> = posts.filter(|post| post.record_due().is_some_and(|due| due <= now)).collect();
        due.sort_by_key(|post| post.record_due());
        for post in due {
            post.record();
            if now.elapsed() >= RECORD_TIME {
                break;
            }
        }
    }

    fn look(&mut self, number: u32) {
        let Some(post) = self.posts.get_mut(&number).filter(|post| post.waits.is_none()) else { return };
        if post.over.is_some() {
            return self.release(number);
        }
        let Some(brake) = post.brake() else { return };
        let look = brake.look();
        if !post.memcg.exists() {
            let path = post.memcg.path().to_owned();
            return self.gone(&path);
        }
        let task = match look {
            Ok(Look::Well) => None,
            Ok(Look::OutOfMemory) => Some(Task::Answer),
            Ok(Look::KilledByKernel) => Some(Task::RecordKill),
            Err(error) => {
                post.complain(error);
                post.look_at = Instant::now() + TROUBLE_TIME;
                return;
            }
        };
        post.retake();
        let Some(task) = task else {
            let again = post.brake().map_or(TROUBLE_TIME, |brake| brake.look_again());
            // It may have gone back.
            self.purse.settle(number, post.granted());
            post.look_at = Instant::now() + again;
            post.tell_watchdog();
            // A grant or a new limit comes with a new bell.
            return self.listen(number, true);
        };
        post.waits = Some((task, Instant::now()));
        if task == Task::Answer {
            let _ = post.line.hold_until(Instant::now() + post.guarded.deadline);
        }
        self.listen(number, false);
    }

    /// Gives who waits to threads that are free, the longest wait first; whose time is
    /// over is left to the kernel.
    fn serve(&mut self) {
        let mut waiting: Vec<(Instant, u32)> =
            self.posts.iter().filter_map(|(number, post)| Some((post.waits?.1, *number))).collect();
        waiting.sort_unstable();
        for (since, number) in waiting {
            let busy: Vec<&str> = self.posts.values().filter(|p| p.is_out()).map(|p| p.memcg.path()).collect();
            let Some(post) = self.posts.get(&number) else { continue };
            // One thread has one tracer.
            let is_free = !busy.iter().any(|path| are_nested(path, post.memcg.path()));
            if busy.len() < self.settings.analysts && is_free {
                self.dispatch(number);
            } else if post.waits.is_some_and(|(task, _)| task == Task::Answer)
                && since.elapsed() >= post.guarded.deadline
            {
                self.give_up(number);
            }
        }
    }

    fn dispatch(&mut self, number: u32) {
        let Some(post) = self.posts.get_mut(&number) else { return };
        let Some((task, _)) = post.waits else { return };
        let path = post.memcg.path();
        let bounds = Bounds {
            per_hour: post.guarded.reports_per_hour,
            key: "guard.reports_per_hour",
            cooldown: self.settings.cooldown,
        };
        let share = self.ration.take(path, bounds, Instant::now());
        let Some(brake) = post.give() else { return };
        let job = Job {
            number,
            task,
            memcg: post.memcg.clone(),
            brake,
            manner: Arc::clone(&post.manner),
            line: post.line.clone(),
            recorder: Arc::clone(&self.recorder),
            share,
            history: post.history.take(),
            growth: post.growth.clone(),
            desk: self.desk.clone(),
            feed: self.exporter.feed(),
            allowance: self.purse.allowance(number, post.guarded.most_granted, post.guarded.policy.biggest_grant()),
            throttle: post.give_throttle(),
            spent: false,
            left_to_kernel: if task == Task::RecordKill { post.back() } else { None },
        };
        if let Err(brake) = self.crew.put(job) {
            post.put(brake, None);
            self.give_up(number);
        }
    }

    /// The kernel decides, since nobody is free to look.
    fn give_up(&mut self, number: u32) {
        let Some(post) = self.posts.get_mut(&number) else { return };
        post.waits = None;
        let path = post.memcg.path();
        say!(Error, cgroup = path; "{path}: no analyst was free in time; the kernel's OOM killer decides");
        self.exporter.tell(&Event::Unanswered);
        if let Some(brake) = post.brake()
            && let Err(error) = brake.give_up()
        {
            post.complain(error);
        }
        post.leave(None);
        post.look_at = Instant::now();
        let _ = post.line.released();
        self.listen(number, true);
    }

    fn done(&mut self, done: Done) {
        let Some(post) = self.posts.get_mut(&done.number) else { return };
        post.put(done.brake, done.throttle);
        post.history = done.history;
        if done.spent {
            self.ration.spend(post.memcg.path(), Instant::now());
        }
        match done.answered {
            Ok(Answered::LeftToKernel(incident)) => post.leave(incident),
            Ok(Answered::Relieved | Answered::Nobody) => {}
            Err(_) if !post.memcg.exists() => {}
            Err(error) => {
                let path = post.memcg.path();
                say!(Error, cgroup = path; "{path}: {error}; the kernel's OOM killer decides");
                if let Some(brake) = post.brake() {
                    let _ = brake.give_up();
                }
                post.leave(None);
                let _ = post.line.released();
            }
        }
        match post.over {
            Some(Over::Gone) => self.drop_post(done.number),
            _ if !post.memcg.exists() => {
                let path = post.memcg.path().to_owned();
                self.numbers.remove(&path);
                self.drop_post(done.number);
            }
            Some(Over::Unwanted) => self.release(done.number),
            None => self.listen(done.number, true),
        }
    }
}

/// Whether one is the other, or is above it.
fn are_nested(a: &str, b: &str) -> bool {
    let is_above = |above: &str, below: &str| below.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'));
    a == b || is_above(a, b) || is_above(b, a)
}

#[cfg(test)]
mod tests {
    use super::are_nested;

    #[test]
    fn nested_are_those_that_share_threads() {
        assert!(are_nested("/a", "/a") && are_nested("/a", "/a/b") && are_nested("/a/b/c", "/a"));
        assert!(!are_nested("/a", "/ab") && !are_nested("/a/b", "/a/c"));
    }
}
