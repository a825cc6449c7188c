//! From evidence to a published incident, without ever hindering the hold.

use super::Request;
use crate::analyst::{Analyst, AnalystFailure, Kind, Phase, SYMBOLS};
use crate::cgroup::Memcg;
use crate::guardian;
use crate::incident::model::{Host, Incident, MemcgState, SCHEMA, Symbols, Trigger};
use crate::incident::store::{DRAFT, DiskReserve, INCIDENT, Limits, Staging, Store, StoreError, write_atomically};
use crate::snapshot::Evidence;
use crate::verdict::machine_memory;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Time for symbols and renderings when nobody waits for them.
const RENDER_TIME: Duration = Duration::from_secs(60);

/// Writes incidents; renders one at a time in the background.
#[derive(Debug)]
pub struct Recorder {
    store: Store,
    limits: Limits,
    reserve: Option<DiskReserve>,
    subject: String,
    kind: Kind,
    waiting: VecDeque<Staging>,
    rendering: Option<(Analyst, Staging, Instant)>,
    /// Folders published so far.
    pub published: Vec<PathBuf>,
}

impl Recorder {
    /// A recorder into `store`; `is_inside` the memcg that it tells of.
    pub fn new(store: Store, reserve: DiskReserve, request: &Request, is_inside: bool) -> Self {
        let program = request.command.first().map(|c| c.to_string_lossy().into_owned()).unwrap_or_default();
        let subject = program.rsplit('/').next().unwrap_or_default().to_owned();
        let kind = if is_inside { Kind::Thread } else { Kind::Process };
        Recorder { kind, ..Self::with_subject(store, request.limits, Some(reserve), subject) }
    }

    /// A recorder for something else than a command.
    pub fn with_subject(store: Store, limits: Limits, reserve: Option<DiskReserve>, subject: String) -> Self {
        let (waiting, published) = (VecDeque::new(), Vec::new());
        let kind = Kind::Process;
        Recorder { store, limits, reserve, subject, kind, waiting, rendering: None, published }
    }

    /// An incident from evidence, unsymbolized.
    pub fn draft(&self, trigger: Trigger, memcg: Option<MemcgState>, evidence: Evidence) -> Incident {
        let time_unix_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
        let (memory_bytes, available_bytes) = machine_memory();
        let read = |file: &str| std::fs::read_to_string(file).map(|t| t.trim().to_owned()).unwrap_or_default();
        Incident {
            schema: SCHEMA.to_owned(),
            id: self.store.new_id(time_unix_us, &self.subject),
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
            modules: evidence.modules,
            symbols: Symbols::default(),
            verdict: None,
            gaps: evidence.gaps,
        }
    }

    /// Puts the draft where the analyst finds it. The disk reserve is given up
    /// for it.
    pub fn stage(&mut self, incident: &Incident) -> Result<Staging, StoreError> {
        self.reserve = None;
        let staging = self.store.stage(&incident.id)?;
        let json = serde_json::to_vec(incident)
            .map_err(|e| StoreError::Corrupt { path: staging.path().join(DRAFT), reason: e.to_string() })?;
        write_atomically(staging.path(), DRAFT, &json)?;
        Ok(staging)
    }

    /// Symbols while the hold lasts.
    pub fn symbolize(&self, staging: &Staging, at_most: Duration) -> Result<Symbols, AnalystFailure> {
        Analyst::start(self.kind, Phase::Symbolize, staging.path(), &self.limits)?.wait(at_most)?;
        let text = std::fs::read(staging.path().join(SYMBOLS)).map_err(|e| AnalystFailure::Died(e.to_string()))?;
        serde_json::from_slice(&text).map_err(|e| AnalystFailure::Died(e.to_string()))
    }

    /// Writes the incident and queues its renderings.
    pub fn finish(&mut self, incident: &Incident, staging: Staging) -> Result<(), StoreError> {
        let json = serde_json::to_vec(incident)
            .map_err(|e| StoreError::Corrupt { path: staging.path().to_owned(), reason: e.to_string() })?;
        write_atomically(staging.path(), INCIDENT, &json)?;
        self.waiting.push_back(staging);
        self.proceed();
        Ok(())
    }

    /// Whether renderings are under way.
    pub fn is_busy(&self) -> bool {
        self.rendering.is_some() || !self.waiting.is_empty()
    }

    /// Publishes what is rendered and starts what waits; never blocks.
    pub fn proceed(&mut self) {
        if let Some((analyst, _, begun)) = &mut self.rendering
            && (analyst.is_done() || begun.elapsed() > RENDER_TIME)
            && let Some((analyst, staging, _)) = self.rendering.take()
        {
            let result = analyst.wait(Duration::ZERO);
            self.publish(staging, result.err().as_ref());
            if self.kind == Kind::Thread {
                guardian::give_back();
            }
        }
        while self.rendering.is_none()
            && let Some(staging) = self.waiting.pop_front()
        {
            match Analyst::start(self.kind, Phase::Render, staging.path(), &self.limits) {
                Ok(analyst) => self.rendering = Some((analyst, staging, Instant::now())),
                Err(failure) => self.publish(staging, Some(&failure)),
            }
        }
        if self.reserve.is_none() && !self.is_busy() {
            // Best effort now: the start insisted on it.
            self.reserve = self.store.reserve().ok();
        }
    }

    /// Publishes everything, calling `meanwhile` every few milliseconds.
    pub fn drain(&mut self, mut meanwhile: impl FnMut()) {
        while self.is_busy() {
            self.proceed();
            meanwhile();
            std::thread::sleep(Duration::from_millis(5));
        }
        // Where no analyst could do it.
        self.store.trim(&self.limits, 0);
    }

    fn publish(&mut self, staging: Staging, failure: Option<&AnalystFailure>) {
        if let Some(failure) = failure {
            eprintln!("reprieve: {failure}: the incident has no report, only incident.json");
        }
        match staging.publish() {
            Ok(dir) => {
                let file = if failure.is_none() { "report.html" } else { INCIDENT };
                eprintln!("reprieve: report  {}", dir.join(file).display());
                self.published.push(dir);
            }
            Err(error) => eprintln!("reprieve: the incident is lost: {error}"),
        }
    }
}

/// The memcg now; what cannot be read is left at zero or empty.
pub fn state_of(memcg: &Memcg) -> MemcgState {
    MemcgState {
        path: memcg.path().to_owned(),
        version: memcg.version().number(),
        usage_bytes: memcg.usage().unwrap_or(0),
        limit_bytes: memcg.limit().unwrap_or(None),
        peak_bytes: memcg.peak(),
        stat: memcg.stat().unwrap_or_default(),
        events: memcg.events().unwrap_or_default(),
    }
}
