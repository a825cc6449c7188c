//! What is configured for OOMs of the machine.

use super::guard::Override;
use super::{Config, keys};
use crate::machine::Remedy;
use crate::size::{parse_duration, parse_size};
use std::time::Duration;

impl Config {
    /// Whether a guard answers them; `None` where it does if the kernel can.
    #[must_use]
    pub fn machine_answer(&self) -> Option<bool> {
        self.parsed("machine.answer", keys::switch)
    }

    /// What is done with the job that has to go.
    #[must_use]
    pub fn machine_on_oom(&self) -> Remedy {
        self.parsed("machine.on_oom", keys::remedy)
    }

    /// Longest that everybody waits.
    #[must_use]
    pub fn machine_deadline(&self) -> Duration {
        self.parsed("machine.deadline", parse_duration)
    }

    /// Memory that is kept free, in bytes.
    #[must_use]
    pub fn machine_reserve(&self) -> u64 {
        self.parsed("machine.reserve", parse_size)
    }

    /// Level of the cgroups that are jobs.
    #[must_use]
    pub fn machine_depth(&self) -> u8 {
        self.parsed("machine.depth", keys::depth)
    }

    /// How many jobs are recorded.
    #[must_use]
    pub fn machine_jobs(&self) -> u8 {
        self.parsed("machine.jobs", keys::jobs)
    }

    /// What of it concerns who answers OOMs of the machine, and nothing else: where two are
    /// shown alike, nothing has changed for him.
    #[must_use]
    pub fn of_machine(&self) -> Config {
        let is_of_job = |name: &str| matches!(name, "priority" | "reservation");
        let concerns = |key: &str| match key.split_once('.') {
            Some(("guard", name)) => is_of_job(name),
            Some(("machine", name)) => name != "answer",
            Some((table, _)) => matches!(table, "store" | "record"),
            None => false,
        };
        let set = self.set.iter().filter(|(key, _)| concerns(key)).map(|(key, setting)| (*key, setting.clone()));
        let of_jobs = self.overrides.iter().map(|one| {
            let set = one.set.iter().filter(|(name, _)| is_of_job(name));
            Override { set: set.map(|(name, texts)| (*name, texts.clone())).collect(), ..one.clone() }
        });
        let overrides = of_jobs.filter(|one| !one.set.is_empty()).collect();
        Config { set: set.collect(), rules: Vec::new(), overrides }
    }
}
