//! The metrics, by the rules for names of Prometheus: base units, `_total` for what only
//! grows. `docs/metrics.md` has them all.

use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder,
};
use reprieve::incident::model::Labels;
use reprieve::metrics::Event;
use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// What tells one cgroup from the other.
const OF_CGROUP: [&str; 4] = ["cgroup", "container_runtime", "container_id", "pod_uid"];
/// Cgroups that have series of their own; further ones share one.
const MOST_CGROUPS: usize = 1000;
/// The one that they share.
const OTHERS: &str = "(others)";
/// Bounds of holds in seconds: symbols take tenths, deadlines are 5 s, a person may take
/// minutes.
const HOLD_BOUNDS: [f64; 12] = [0.01, 0.03, 0.1, 0.3, 0.6, 1.0, 2.0, 3.0, 5.0, 10.0, 60.0, 300.0];
/// Bounds of stops.
const STOP_BOUNDS: [f64; 9] = [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0];

/// All of them.
pub struct Counts {
    registry: Registry,
    guarded: IntGauge,
    answering: IntGauge,
    machine: IntGauge,
    locked: IntGauge,
    ooms: IntCounterVec,
    kernel_kills: IntCounterVec,
    verdicts: IntCounterVec,
    other_kills: IntCounterVec,
    unanswered: IntCounter,
    incidents: IntCounter,
    unrecorded: IntCounter,
    held: Histogram,
    stopped: Histogram,
    last_oom: Gauge,
    config_right: IntGauge,
    config_time: Gauge,
    killers: GaugeVec,
    lost: IntCounter,
    cgroups: Mutex<HashSet<String>>,
}

impl Counts {
    /// All at zero.
    #[rustfmt::skip]
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| {
            let metric = IntCounter::new(name, help)?;
            registry.register(Box::new(metric.clone())).map(|()| metric)
        };
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let metric = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone())).map(|()| metric)
        };
        let whole = |name: &str, help: &str| {
            let metric = IntGauge::new(name, help)?;
            registry.register(Box::new(metric.clone())).map(|()| metric)
        };
        let gauge = |name: &str, help: &str| {
            let metric = Gauge::new(name, help)?;
            registry.register(Box::new(metric.clone())).map(|()| metric)
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let metric = GaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone())).map(|()| metric)
        };
        let histogram = |name: &str, help: &str, bounds: &[f64]| {
            let metric = Histogram::with_opts(HistogramOpts::new(name, help).buckets(bounds.to_vec()))?;
            registry.register(Box::new(metric.clone())).map(|()| metric)
        };
        let build = gauges("reprieve_build_info", "Which reprieve it is; always 1.", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
        Ok(Counts {
            guarded: whole("reprieve_guarded_cgroups", "Cgroups under guard.")?,
            answering: whole("reprieve_ooms_in_progress", "OOMs that are being answered.")?,
            machine: whole("reprieve_machine_answered", "Whether OOMs of the machine itself are answered.")?,
            locked: whole("reprieve_guardian_locked_bytes", "Memory that the guardian has locked.")?,
            ooms: counters("reprieve_ooms_total", "OOMs that were held and answered.", &OF_CGROUP)?,
            kernel_kills: counters("reprieve_kernel_kills_total", "OOMs in which the kernel's OOM killer was first, or was left to decide.", &OF_CGROUP)?,
            verdicts: counters("reprieve_verdicts_total", "Verdicts by the last action that was tried, and by what came of it: relieved, or left to the kernel.", &["action", "outcome"])?,
            other_kills: counters("reprieve_other_kills_total", "OOMs in which another program was seen to kill.", &["killer"])?,
            unanswered: counter("reprieve_unanswered_ooms_total", "OOMs left to the kernel because no analyst was free in time.")?,
            incidents: counter("reprieve_incidents_total", "OOMs that leave an incident.")?,
            unrecorded: counter("reprieve_unrecorded_ooms_total", "OOMs that leave none: too many in an hour, or no space.")?,
            held: histogram("reprieve_hold_duration_seconds", "From the notice of an OOM until its threads ran on.", &HOLD_BOUNDS)?,
            stopped: histogram("reprieve_stop_duration_seconds", "From the notice of an OOM until all threads were stopped.", &STOP_BOUNDS)?,
            last_oom: gauge("reprieve_last_oom_timestamp_seconds", "When an OOM was last answered; 0 before the first.")?,
            config_right: whole("reprieve_config_last_reload_successful", "Whether the configuration is right that was read last; if not, the one before is in force.")?,
            config_time: gauge("reprieve_config_last_reload_success_timestamp_seconds", "When the configuration was read that is in force.")?,
            killers: gauges("reprieve_other_killer_active", "Other programs that run and kill for memory.", &["killer"])?,
            lost: counter("reprieve_lost_events_total", "Events that are missing in all of these, for want of room on their way.")?,
            cgroups: Mutex::default(),
            registry,
        })
    }

    /// Counts an event.
    pub fn add(&self, event: &Event) {
        match event {
            Event::State { guarded, answering, locked_bytes } => {
                self.guarded.set(*guarded as i64);
                self.answering.set(*answering as i64);
                self.locked.set(*locked_bytes as i64);
            }
            Event::Oom { cgroup, labels, action, relieved, held_us, stop_us, is_recorded } => {
                self.of_cgroup(&self.ooms, cgroup, labels);
                let outcome = if *relieved { "relieved" } else { "left_to_kernel" };
                let action = if action.is_empty() { "none" } else { action };
                self.verdicts.with_label_values(&[action, outcome]).inc();
                self.held.observe(*held_us as f64 / 1e6);
                self.stopped.observe(*stop_us as f64 / 1e6);
                self.last_oom.set(now());
                self.recorded(*is_recorded);
            }
            Event::KernelKill { cgroup, labels, is_recorded } => {
                self.of_cgroup(&self.kernel_kills, cgroup, labels);
                self.recorded(*is_recorded);
            }
            Event::OtherKill { killer } => self.other_kills.with_label_values(&[killer]).inc(),
            Event::Unanswered => self.unanswered.inc(),
            Event::Machine { is_answered } => self.machine.set((*is_answered).into()),
            Event::Configured { is_right } => {
                self.config_right.set((*is_right).into());
                if *is_right {
                    self.config_time.set(now());
                }
            }
            Event::Killers { names } => {
                self.killers.reset();
                names.iter().for_each(|name| self.killers.with_label_values(&[name]).set(1.0));
            }
            Event::Lost { count } => self.lost.inc_by(*count),
        }
    }

    fn recorded(&self, is_recorded: bool) {
        if is_recorded { self.incidents.inc() } else { self.unrecorded.inc() }
    }

    fn of_cgroup(&self, counter: &IntCounterVec, cgroup: &str, labels: &Labels) {
        let mut known = self.cgroups.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.contains(cgroup) && known.len() >= MOST_CGROUPS {
            counter.with_label_values(&[OTHERS, "", "", ""]).inc();
            return;
        }
        known.insert(cgroup.to_owned());
        let text = |label: &Option<String>| label.clone().unwrap_or_default();
        let labels = [&labels.container_runtime, &labels.container_id, &labels.pod_uid].map(text);
        counter.with_label_values(&[cgroup, &labels[0], &labels[1], &labels[2]]).inc();
    }

    /// In Prometheus' text format, version 0.0.4.
    pub fn text(&self) -> String {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            eprintln!("{}: metrics cannot be written: {error}", reprieve::metrics::PROGRAM);
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oom(cgroup: &str, relieved: bool) -> Event {
        let labels =
            Labels { container_runtime: Some("docker".to_owned()), container_id: Some("0".repeat(64)), pod_uid: None };
        Event::Oom {
            cgroup: cgroup.to_owned(),
            labels,
            action: "throttle".to_owned(),
            relieved,
            held_us: 250_000,
            stop_us: 400,
            is_recorded: relieved,
        }
    }

    #[test]
    fn events_are_counted() {
        let counts = Counts::new().unwrap();
        let id = "0".repeat(64);
        for event in [
            oom("/a\"b", true),
            oom("/a\"b", false),
            Event::State { guarded: 3, answering: 1, locked_bytes: 4096 },
            Event::KernelKill { cgroup: "/c".to_owned(), labels: Labels::default(), is_recorded: true },
            Event::OtherKill { killer: "earlyoom".to_owned() },
            Event::Unanswered,
            Event::Machine { is_answered: true },
            Event::Configured { is_right: true },
            Event::Configured { is_right: false },
            Event::Killers { names: vec!["nohang".to_owned()] },
            Event::Killers { names: vec!["earlyoom".to_owned()] },
            Event::Lost { count: 2 },
        ] {
            counts.add(&event);
        }
        let text = counts.text();
        let of_a = format!("cgroup=\"/a\\\"b\",container_id=\"{id}\",container_runtime=\"docker\",pod_uid=\"\"");
        for line in [
            &format!("reprieve_ooms_total{{{of_a}}} 2"),
            "reprieve_kernel_kills_total{cgroup=\"/c\",container_id=\"\",container_runtime=\"\",pod_uid=\"\"} 1",
            "reprieve_verdicts_total{action=\"throttle\",outcome=\"relieved\"} 1",
            "reprieve_verdicts_total{action=\"throttle\",outcome=\"left_to_kernel\"} 1",
            "reprieve_hold_duration_seconds_bucket{le=\"0.1\"} 0",
            "reprieve_hold_duration_seconds_bucket{le=\"0.3\"} 2",
            "reprieve_hold_duration_seconds_sum 0.5",
            "reprieve_stop_duration_seconds_bucket{le=\"0.001\"} 2",
            "reprieve_guarded_cgroups 3",
            "reprieve_ooms_in_progress 1",
            "reprieve_guardian_locked_bytes 4096",
            "reprieve_other_kills_total{killer=\"earlyoom\"} 1",
            "reprieve_unanswered_ooms_total 1",
            "reprieve_machine_answered 1",
            "reprieve_incidents_total 2",
            "reprieve_unrecorded_ooms_total 1",
            "reprieve_config_last_reload_successful 0",
            "reprieve_other_killer_active{killer=\"earlyoom\"} 1",
            "reprieve_lost_events_total 2",
        ] {
            assert!(text.lines().any(|one| one == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("nohang"), "{text}");
    }

    #[test]
    fn cgroups_without_end_do_not_make_series_without_end() {
        let counts = Counts::new().unwrap();
        (0..MOST_CGROUPS + 5).for_each(|number| counts.add(&oom(&format!("/{number}"), true)));
        counts.add(&oom("/0", true));
        let text = counts.text();
        let series: Vec<&str> = text.lines().filter(|line| line.starts_with("reprieve_ooms_total{")).collect();
        assert_eq!(series.len(), MOST_CGROUPS + 1);
        assert!(series.iter().any(|line| line.contains("cgroup=\"(others)\"") && line.ends_with(" 5")));
        assert!(series.iter().any(|line| line.contains("cgroup=\"/0\"") && line.ends_with(" 2")));
    }
}
