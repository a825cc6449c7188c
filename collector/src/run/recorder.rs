//! From evidence to a published incident, without ever hindering the hold.

use super::scribe::{InHand, Page, Scribe, Space, Staged, write_incident};
use super::{Request, RunError};
use crate::analyst::{Analyst, AnalystFailure, Kind, Phase, SYMBOLS};
use crate::cgroup::{self, Memcg};
use crate::incident::model::{Host, Incident, MemcgState, SCHEMA, Symbols, Trigger};
use crate::incident::store::{DRAFT, DiskReserve, Limits, Store, StoreError, write_atomically};
use crate::snapshot::Evidence;
use crate::verdict::machine_memory;
use crate::verdict::worth::Worths;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Writes incidents, in the background once nobody is held.
#[derive(Debug)]
pub struct Recorder {
    store: Store,
    limits: Limits,
    subject: String,
    kind: Kind,
    space: Arc<Space>,
    scribe: Scribe,
}

impl Recorder {
    /// A recorder into `store`; `is_inside` the memcg that it tells of.
    pub fn new(store: Store, reserve: DiskReserve, request: &Request, is_inside: bool) -> Result<Self, RunError> {
        let program = request.command.first().map(|c| c.to_string_lossy().into_owned()).unwrap_or_default();
        let subject = program.rsplit('/').next().unwrap_or_default().to_owned();
        let kind = if is_inside { Kind::Thread } else { Kind::Process };
        Self::of_kind(kind, store, request.limits, InHand::Space(reserve), subject)
    }

    /// A recorder for something else than a command.
    pub fn with_subject(store: Store, limits: Limits, in_hand: InHand, subject: String) -> Result<Self, RunError> {
        Self::of_kind(Kind::Process, store, limits, in_hand, subject)
    }

    fn of_kind(kind: Kind, store: Store, limits: Limits, in_hand: InHand, subject: String) -> Result<Self, RunError> {
        let space = Space::new(store.clone(), in_hand);
        let scribe = Scribe::start(store.clone(), limits, kind)
            .map_err(|e| RunError::System("the thread that writes incidents could not be started", e))?;
        Ok(Recorder { store, limits, subject, kind, space, scribe })
    }

    /// What its incidents are about, unless somebody says otherwise.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// An incident from evidence, unsymbolized.
    pub fn draft(&self, trigger: Trigger, memcg: Option<MemcgState>, evidence: Evidence) -> Incident {
        self.draft_about(&self.subject, trigger, memcg, evidence)
    }

    /// The same with a subject of its own.
    pub fn draft_about(
        &self,
        subject: &str,
        trigger: Trigger,
        memcg: Option<MemcgState>,
        evidence: Evidence,
    ) -> Incident {
        let time_unix_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
        let (memory_bytes, available_bytes) = machine_memory();
        let read = |file: &str| std::fs::read_to_string(file).map(|t| t.trim().to_owned()).unwrap_or_default();
        Incident {
            schema: SCHEMA.to_owned(),
            id: self.store.new_id(time_unix_us, subject),
            trigger,
            time_unix_us,
            host: Host {
                name: read("/proc/sys/kernel/hostname"),
                kernel: read("/proc/sys/kernel/osrelease"),
                memory_bytes,
                available_bytes,
                reprieve: env!("CARGO_PKG_VERSION").to_owned(),
            },
            memcg,
            hold: None,
            processes: evidence.processes,
            kernel_victims: Vec::new(),
            ended: evidence.ended,
            growth: evidence.growth,
            other_killers: Vec::new(),
            other_victims: Vec::new(),
            candidates: Vec::new(),
            modules: evidence.modules,
            symbols: Symbols::default(),
            verdict: None,
            accounting: None,
            baseline: None,
            left_out: None,
            gaps: evidence.gaps,
        }
    }

    /// Puts the draft where the analyst finds it. The disk reserve is given up
    /// for it.
    pub fn stage(&self, incident: &Incident) -> Result<Staged, StoreError> {
        let staged = self.space.stage(&incident.id)?;
        let json = serde_json::to_vec(incident)
            .map_err(|e| StoreError::Corrupt { path: staged.path().join(DRAFT), reason: e.to_string() })?;
        write_atomically(staged.path(), DRAFT, &json)?;
        Ok(staged)
    }

    /// Symbols while the hold lasts.
    pub fn symbolize(&self, staged: &Staged, at_most: Duration) -> Result<Symbols, AnalystFailure> {
        Analyst::start(self.kind, Phase::Symbolize, staged.path(), &self.limits)?.wait(at_most)?;
        let text = std::fs::read(staged.path().join(SYMBOLS)).map_err(|e| AnalystFailure::Died(e.to_string()))?;
        serde_json::from_slice(&text).map_err(|e| AnalystFailure::Died(e.to_string()))
    }

    /// Has the incident written, rendered and published; does not wait for it.
    pub fn finish(&self, incident: Incident, staged: Staged) {
        self.scribe.write(Page { incident: Some(incident), staged });
    }

    /// Writes the incident now; has it rendered and published.
    pub fn finish_now(&self, incident: &Incident, staged: Staged) -> Result<(), StoreError> {
        write_incident(incident, staged.path())?;
        self.scribe.write(Page { incident: None, staged });
        Ok(())
    }

    /// Waits until everything is published, calling `meanwhile` every few
    /// milliseconds; returns the folders.
    pub fn drain(self, mut meanwhile: impl FnMut()) -> Vec<PathBuf> {
        while self.scribe.is_busy() {
            meanwhile();
            std::thread::sleep(Duration::from_millis(5));
        }
        self.scribe.finish()
    }
}

/// The memcg now, and what it is worth; what cannot be read is left at zero or empty.
pub fn state_of(memcg: &Memcg, worths: &Worths) -> MemcgState {
    MemcgState {
        path: memcg.path().to_owned(),
        version: memcg.version().number(),
        usage_bytes: memcg.usage().unwrap_or(0),
        limit_bytes: memcg.limit().unwrap_or(None),
        peak_bytes: memcg.peak(),
        stat: memcg.stat().unwrap_or_default(),
        events: memcg.events().unwrap_or_default(),
        labels: cgroup::labels(memcg.path()),
        priority: worths.priority(memcg),
        reservation_bytes: Some(worths.reservation(memcg)),
        pressure: cgroup::pressure(memcg),
    }
}
