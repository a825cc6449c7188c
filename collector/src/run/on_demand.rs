//! `snapshot`: the same evidence without an OOM.

use super::RunError;
use super::recorder::{Recorder, state_of};
use super::scribe::InHand;
use crate::accounting;
use crate::cgroup::{Hierarchy, Memcg};
use crate::guardian;
use crate::hold::HandBack;
use crate::hold::stop::StoppedThreads;
use crate::hold::watchdog::Watchdog;
use crate::incident::model::{HoldReport, Incident, StopOutcome, Trigger};
use crate::incident::read::read_incident;
use crate::incident::store::{INCIDENT, Limits, Store};
use crate::signals::Signals;
use crate::snapshot::process::start_ticks;
use crate::snapshot::{self, Options};
use crate::verdict::worth::Worths;
use crate::witness;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What to record.
enum Target {
    Process(i32),
    Cgroup(Memcg),
}

impl Target {
    fn find(text: &str) -> Result<Self, RunError> {
        if let Ok(pid) = text.parse::<i32>() {
            return match start_ticks(pid) {
                Some(_) => Ok(Target::Process(pid)),
                None => Err(RunError::NoTarget(format!("there is no process {pid}; `ps` shows what there is"))),
            };
        }
        let memcg = Memcg::named(&Hierarchy::memory()?, Path::new(text));
        memcg.map(Target::Cgroup).map_err(|error| RunError::NoTarget(error.to_string()))
    }

    fn pids(&self) -> Vec<i32> {
        match self {
            Target::Process(pid) => vec![*pid],
            Target::Cgroup(memcg) => memcg.pids().unwrap_or_default(),
        }
    }

    fn tids(&self) -> Vec<i32> {
        self.pids().into_iter().flat_map(snapshot::tids_of).collect()
    }
}

/// Stops the target, records it, lets it go, and only then symbolizes.
pub fn snapshot(
    target: &str,
    out: Option<PathBuf>,
    limits: Limits,
    options: Options,
    at_most: Duration,
) -> Result<(Incident, PathBuf), RunError> {
    let target_found = Target::find(target)?;
    // ^C must not leave the target stopped: our end detaches it, so no loop here.
    let signals = Signals::block().map_err(|e| RunError::System("signals could not be blocked", e))?;
    let store = Store::open(out)?;
    let watchdog = Watchdog::start(HandBack::default(), at_most)
        .map_err(|e| RunError::System("the watchdog could not be started", e))?;
    guardian::sigbus::install().map_err(|e| RunError::System("the SIGBUS handler could not be installed", e.into()))?;

    let begun = Instant::now();
    let deadline = begun + at_most;
    let _ = watchdog.only().hold_until(deadline);
    let mut threads = StoppedThreads::default();
    let _ = threads.stop_all(deadline, || Ok::<_, std::convert::Infallible>(target_found.tids()));
    let stop_window = begun.elapsed();
    let (threads_stopped, threads_not_stopped) = threads.counts();
    let memcg = match &target_found {
        Target::Cgroup(memcg) => Some(state_of(memcg, &Worths::default())),
        Target::Process(_) => None,
    };
    let pids = target_found.pids();
    let heaps = || Some(witness::read_tables(None, None, &pids));
    let evidence = snapshot::take(&pids, threads.threads(), heaps, options);
    let snapshot_time = begun.elapsed();
    let accounting = match &target_found {
        Target::Cgroup(memcg) => {
            // Nobody waits for a verdict: who gives it longer wants more to be seen.
            let left = deadline.saturating_duration_since(Instant::now()) / 2;
            Some(accounting::take(memcg, &evidence.processes, left))
        }
        Target::Process(_) => None,
    };
    let refused = threads.threads().values().find_map(|t| match &t.outcome {
        StopOutcome::NotStopped(why) => Some(why.clone()),
        _ => None,
    });
    let mut late = threads.resume();
    let held = begun.elapsed();
    let _ = watchdog.only().released();
    watchdog.dismiss();
    drop(signals);
    if threads_stopped + threads_not_stopped == 0 {
        return Err(RunError::NoTarget(format!(
            "{target} has no living process (a zombie has ended already): there is nothing to record"
        )));
    }
    if let (0, Some(why)) = (threads_stopped, refused) {
        return Err(RunError::NotAllowed(format!(
            "{target} could not be stopped: {why}; run as root or with CAP_SYS_PTRACE, and not under another tracer"
        )));
    }

    let subject = match &target_found {
        Target::Process(_) => evidence.processes.first().map_or(target, |p| &p.comm).to_owned(),
        Target::Cgroup(_) => target.rsplit('/').next().unwrap_or(target).to_owned(),
    };
    let recorder = Recorder::with_subject(store, limits, InHand::Nothing, subject)?;
    let mut incident = recorder.draft(Trigger::Snapshot, memcg, evidence);
    incident.accounting = accounting;
    let micros = |d: Duration| d.as_micros() as u64;
    incident.hold = Some(HoldReport {
        brake: "none".to_owned(),
        kernel: None,
        stop_window_us: micros(stop_window),
        exposed_us: 0,
        snapshot_us: micros(snapshot_time),
        symbolized_us: None,
        held_us: micros(held),
        deadline_us: micros(at_most),
        threads_stopped,
        threads_not_stopped,
        guardian_locked_bytes: 0,
        heap_table_bytes: 0,
        guardian_peak_bytes: guardian::own_status_bytes("VmHWM"),
        guardian_hold_heap_bytes: 0,
        deciding_faults: None,
    });
    let staging = recorder.stage(&incident)?;
    recorder.finish_now(&incident, staging)?;
    let dir = recorder
        .drain(|| late.release_late())
        .pop()
        .ok_or_else(|| RunError::NoTarget("the snapshot could not be written".into()))?;
    let rendered = read_incident(&dir.join(INCIDENT))?;
    Ok((rendered, dir))
}
