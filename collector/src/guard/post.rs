//! One memcg under guard.

use super::care::Care;
use super::crew::Task;
use crate::baseline::History;
use crate::cgroup::{CgroupError, Memcg};
use crate::config::Guarded;
use crate::hold::watchdog::{Charge, Debt, Line};
use crate::hold::{self, Brake, BrakeError};
use crate::run::Manner;
use crate::say;
use crate::snapshot::Options;
use crate::verdict::Quota;
use crate::witness::GrowthWitness;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Memcgs whose page faults are sampled: each has tables of 8 MiB, and rings.
pub const WATCHED: usize = 16;
/// The kernel that was left to decide, and then did not have to, is relieved after this.
const KERNEL_TIME: Duration = Duration::from_secs(10);

/// A memcg, its brake, and where it is with its OOMs.
#[derive(Debug)]
pub struct Post {
    /// Its number.
    pub number: u32,
    /// The memcg.
    pub memcg: Memcg,
    /// How it is guarded.
    pub guarded: Guarded,
    /// The same for who answers.
    pub manner: Arc<Manner>,
    /// To the watchdog.
    pub line: Line,
    /// `None` while a thread has it.
    brake: Option<Box<dyn Brake>>,
    /// What it has to be freed of step by step.
    care: Option<Care>,
    debts: Vec<Debt>,
    /// What waits for a thread, since when.
    pub waits: Option<(Task, Instant)>,
    /// When to look without a bell.
    pub look_at: Instant,
    /// What it was like until now; `None` while a thread has it, and where too many have one.
    pub history: Option<History>,
    /// Who watches its page faults.
    pub growth: Option<Arc<GrowthWitness>>,
    /// Since when the kernel decides, after which incident.
    left: Option<(Instant, Option<String>)>,
    /// Why it is not guarded any more.
    pub over: Option<Over>,
}

/// Why a memcg is not guarded any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// It is gone; what has its path now is another.
    Gone,
    /// It is to be as it was found.
    Unwanted,
}

impl Post {
    /// Arms the best brake, and tells the watchdog.
    pub fn take(number: u32, memcg: Memcg, guarded: Guarded, options: Options, line: Line) -> Result<Self, BrakeError> {
        let brake = hold::adopt(&memcg, guarded.brake, guarded.cushion)?;
        let manner = Arc::new(manner(&guarded, options));
        let mut post = Post {
            number,
            memcg,
            guarded,
            manner,
            line,
            brake: Some(brake),
            care: None,
            debts: Vec::new(),
            waits: None,
            look_at: Instant::now(),
            history: None,
            growth: None,
            left: None,
            over: None,
        };
        post.tell_watchdog();
        Ok(post)
    }

    /// The brake, unless a thread has it.
    pub fn brake(&mut self) -> Option<&mut (dyn Brake + 'static)> {
        self.brake.as_deref_mut()
    }

    /// Bytes that it was granted; of one that a thread has, that thread knows.
    pub fn granted(&self) -> u64 {
        self.brake.as_ref().map_or(0, |brake| brake.granted())
    }

    /// Whether a thread has it.
    pub fn is_out(&self) -> bool {
        self.brake.is_none()
    }

    /// For a thread.
    pub fn give(&mut self) -> Option<Box<dyn Brake>> {
        self.waits = None;
        self.brake.take()
    }

    /// When to record next what it is like; `None` while it is being answered.
    pub fn record_due(&self) -> Option<Instant> {
        let is_idle = self.waits.is_none() && !self.is_out();
        self.history.as_ref().filter(|_| is_idle).map(History::due)
    }

    /// Records what it is like.
    pub fn record(&mut self) {
        if let Some(history) = &mut self.history {
            history.look(&self.memcg, None);
        }
    }

    /// Says what is wrong with it.
    pub fn complain(&self, error: CgroupError) {
        let path = self.memcg.path();
        say!(Error, cgroup = path; "{path}: {:#}", anyhow::Error::new(error));
    }

    /// Its throttle, for the same.
    pub fn give_throttle(&mut self) -> Option<Quota> {
        self.care.take().map(Care::end)
    }

    /// When to look after its throttle; never while it is being answered.
    pub fn care_due(&self) -> Option<Instant> {
        self.care.as_ref().filter(|_| self.waits.is_none() && !self.is_out()).map(Care::due)
    }

    /// Looks after its throttle.
    pub fn look_after_throttle(&mut self) {
        let (Some(care), Some(brake)) = (&mut self.care, &self.brake) else { return };
        // One whose memcg or quota is gone is over.
        let usage = self.memcg.usage();
        if usage.is_ok_and(|usage| care.look(usage, brake.level()).unwrap_or(false)) {
            return;
        }
        let (path, time) = (self.memcg.path(), care.age().as_secs_f64());
        say!(Info, event = "lifted", cgroup = path; "{path}: the throttle is lifted, {time:.1} s after it helped");
        self.care = None;
        self.tell_watchdog();
    }

    /// From a thread, with a throttle that is to be looked after.
    pub fn put(&mut self, brake: Box<dyn Brake>, throttle: Option<Quota>) {
        let usage = self.memcg.usage().unwrap_or(0);
        self.care = throttle.map(|quota| Care::begin(quota, usage));
        self.brake = Some(brake);
        // Bells that rang meanwhile were heard, and more may have happened.
        self.look_at = Instant::now();
        self.tell_watchdog();
    }

    /// Says anew what is to be given back, where that has changed.
    pub fn tell_watchdog(&mut self) {
        let Some(brake) = &self.brake else { return };
        let mut debts = brake.debts();
        debts.extend(self.care.as_ref().map(Care::debt));
        if debts == self.debts {
            return;
        }
        let charge = Charge {
            path: self.memcg.path().to_owned(),
            brake: brake.name().to_owned(),
            answer_us: self.guarded.deadline.as_micros() as u64,
            writes: debts.clone(),
        };
        match self.line.guard(charge) {
            Ok(()) => self.debts = debts,
            Err(error) => {
                let path = self.memcg.path();
                say!(Error, cgroup = path; "{path}: the watchdog does not know of it: {error}");
            }
        }
    }

    /// Other settings for a memcg that stays under guard; false where another brake is
    /// wanted.
    pub fn change(&mut self, guarded: Guarded, options: Options) -> bool {
        if guarded.brake != self.guarded.brake || guarded.cushion != self.guarded.cushion {
            return false;
        }
        if guarded.deadline != self.guarded.deadline {
            self.debts.clear();
        }
        self.manner = Arc::new(manner(&guarded, options));
        self.guarded = guarded;
        self.tell_watchdog();
        true
    }

    /// Has its page faults sampled as it is guarded now, if there may be one more of whom
    /// they are.
    pub fn watch_growth(&mut self, may: bool) {
        let Some(period) = self.guarded.growth_period else {
            self.growth = None;
            return;
        };
        let path = self.memcg.path();
        let witness = match may {
            true => GrowthWitness::of_memcg(&self.memcg, period),
            false => GrowthWitness::refused(format!(
                "who made it grow is not known: page faults of {WATCHED} other cgroups are sampled; guard.growth for \
                 fewer of them"
            )),
        };
        if let Some(why) = witness.refusal() {
            say!(Warning, cgroup = path; "{path}: {why}");
        }
        self.growth = Some(Arc::new(witness));
    }

    /// Whether its page faults are sampled.
    pub fn is_watched(&self) -> bool {
        self.growth.as_ref().is_some_and(|growth| growth.refusal().is_none())
    }

    /// The kernel was left to decide after this incident.
    pub fn leave(&mut self, incident: Option<String>) {
        self.left = Some((Instant::now(), incident));
    }

    /// What was left to the kernel is over; after which incident it was.
    pub fn back(&mut self) -> Option<String> {
        self.left.take().and_then(|(_, incident)| incident)
    }

    /// Takes up guarding again where the kernel did not have to kill.
    pub fn retake(&mut self) {
        if self.left.as_ref().is_some_and(|(since, _)| since.elapsed() > KERNEL_TIME)
            && let Some(brake) = self.brake.as_mut()
        {
            self.left = None;
            if let Err(error) = brake.rearm() {
                let path = self.memcg.path();
                say!(Error, cgroup = path; "{path}: the brake could not be armed again: {error}");
            }
        }
    }

    /// Leaves it as it was found; false where the watchdog has to go on with that.
    pub fn release(&mut self) -> bool {
        let Some(brake) = self.brake.as_mut() else { return false };
        // Nobody would look after it.
        self.care = None;
        match brake.put_back() {
            Err(_) if self.memcg.exists() => false,
            // One that is gone needs nothing.
            _ => {
                let _ = self.line.forget();
                true
            }
        }
    }
}

fn manner(guarded: &Guarded, options: Options) -> Manner {
    Manner { deadline: guarded.deadline, policy: guarded.policy.clone(), options, is_dry: guarded.is_dry }
}
