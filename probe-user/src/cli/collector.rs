//! The collector as a sink of `probe run`, which may become another one while everything runs.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Failure;
use super::logging::stderr_line;
use crate::config::OtlpEvents;
use crate::entity::Entity;
use crate::pipeline::{Flow, Sink};
use crate::series::Snapshot;
use crate::signals::{Event, Summary};
use crate::sink::otlp::{Exporter, Options, OtlpConfig, Preferences, Resources, SharedDeltas, Spool};
use crate::telemetry::{SelfStats, Telemetry};

/// How long the last export may hold the end up.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Where metrics and events go, which events, and how often the agent's own metrics.
#[derive(Clone, Debug)]
pub(super) struct Route {
    pub(super) config: Option<OtlpConfig>,
    pub(super) events: OtlpEvents,
    pub(super) interval: Duration,
}

impl Route {
    /// Whether a certificate is read from a file, which may be another one under the same name.
    fn has_certificate(&self) -> bool {
        let targets = self.config.iter().flat_map(|config| [&config.metrics, &config.logs]);
        targets.flatten().any(|target| target.certificate.is_some() || target.client.is_some())
    }
}

/// The collector of the moment, if there is one.
pub(super) struct OtlpSink {
    route: Route,
    resources: Arc<Resources>,
    stats: Arc<SelfStats>,
    exporter: Option<Exporter>,
    telemetry: Option<Telemetry>,
    /// Those of the first collector.
    preferences: Option<Preferences>,
    /// What was told of series last, where deltas are told: it outlives a collector.
    deltas: Option<SharedDeltas>,
    /// Where events wait that no collector takes; it outlives them all.
    spool: Option<Arc<Spool>>,
    changes: mpsc::Receiver<Route>,
    /// Those of before, with what they still have to send.
    leaving: JoinSet<()>,
}

impl OtlpSink {
    /// Must be called inside a runtime. What comes out of `changes` is taken over between two turns of the pipeline.
    pub(super) fn start(
        route: Route,
        resources: Resources,
        stats: &Arc<SelfStats>,
        spool: Option<Spool>,
        changes: mpsc::Receiver<Route>,
    ) -> Result<Self, Failure> {
        let mut sink = Self {
            route: Route { config: None, ..route.clone() },
            resources: Arc::new(resources),
            stats: Arc::clone(stats),
            exporter: None,
            telemetry: None,
            preferences: None,
            deltas: None,
            spool: spool.map(Arc::new),
            changes,
            leaving: JoinSet::new(),
        };
        sink.change(route)?;
        Ok(sink)
    }

    /// An earlier agent has told what is in the snapshot.
    pub(super) fn go_on(&self, snapshot: &Snapshot<'_>) {
        if let Some(exporter) = &self.exporter {
            exporter.go_on(snapshot);
        }
    }

    /// Sends elsewhere, or otherwise, from now on. Totals are cumulative, so the next snapshot has all of them; events that wait go
    /// the new way, those under way have [`SHUTDOWN`] to arrive. On an error everything is as it was.
    fn change(&mut self, route: Route) -> Result<(), Failure> {
        let usage = |error: &dyn std::fmt::Display| Failure::usage(error.to_string());
        let mut route = route;
        // What the series' points mean stays as it was; [`super::reload`] has said so.
        let preferences = self.preferences.or(route.config.as_ref().map(|config| config.preferences));
        let preferences = preferences.unwrap_or_default();
        if let Some(config) = &mut route.config {
            config.preferences = preferences;
            self.preferences = Some(preferences);
        }
        if route.config != self.route.config || route.has_certificate() {
            let exporter = match &route.config {
                Some(config) => {
                    let (resources, stats) = (Arc::clone(&self.resources), Arc::clone(&self.stats));
                    let exporter = Exporter::start_with(
                        config,
                        resources,
                        stats,
                        Options::default(),
                        self.deltas.clone(),
                        self.spool.clone(),
                    );
                    Some(exporter.map_err(|error| usage(&error))?)
                }
                None => None,
            };
            let metrics = route.config.as_ref().and_then(|config| config.metrics.as_ref());
            match (metrics, &self.telemetry) {
                (Some(target), Some(telemetry)) => {
                    telemetry.change_target(target).map_err(|error| usage(&error))?;
                }
                (Some(target), None) => {
                    let temporality = preferences.temporality;
                    let telemetry =
                        Telemetry::start(target, temporality, &self.resources, route.interval, &self.stats);
                    self.telemetry = Some(telemetry.map_err(|error| usage(&error))?);
                }
                (None, _) => {
                    if let Some(telemetry) = self.telemetry.take() {
                        self.leaving.spawn(end_telemetry(telemetry));
                    }
                }
            }
            self.deltas = exporter.as_ref().and_then(Exporter::deltas).or(self.deltas.take());
            let before = std::mem::replace(&mut self.exporter, exporter);
            if let Some(before) = before {
                if let Some(exporter) = &self.exporter {
                    exporter.take_over(&before);
                }
                self.leaving.spawn(async move {
                    before.shutdown(SHUTDOWN).await;
                });
            }
        }
        if let Some(telemetry) = &self.telemetry {
            telemetry.change_interval(route.interval);
        }
        self.route = route;
        // Those that have left.
        while self.leaving.try_join_next().is_some() {}
        Ok(())
    }

    /// Sends what is left.
    pub(super) async fn shutdown(self) {
        let Self { exporter, telemetry, mut leaving, spool, .. } = self;
        // Side by side: collectors that hang hold up the end once, not twice.
        leaving.spawn(async move {
            if let Some(exporter) = exporter {
                exporter.shutdown(SHUTDOWN).await;
            }
        });
        if let Some(telemetry) = telemetry {
            leaving.spawn(end_telemetry(telemetry));
        }
        while leaving.join_next().await.is_some() {}
        let waiting = spool.map_or(0, |spool| spool.waiting());
        if waiting > 0 {
            stderr_line(
                tracing::Level::INFO,
                format_args!("{waiting} events wait on disk for the next start (--spool)"),
            );
        }
    }
}

async fn end_telemetry(telemetry: Telemetry) {
    if !telemetry.shutdown(SHUTDOWN).await {
        tracing::debug!("the agent's own metrics were not delivered at the end");
    }
}

impl Sink for OtlpSink {
    fn wants_events(&self) -> bool {
        self.route.events != OtlpEvents::None && self.exporter.as_ref().is_some_and(Exporter::wants_events)
    }

    fn event(&mut self, event: &Event) -> io::Result<Flow> {
        let wanted = match event {
            // These are the metrics.
            Event::SyscallSummary(_) => false,
            Event::Lookup(lookup) => self.route.events == OtlpEvents::All || lookup.is_notable(),
            Event::Retransmit(_)
            | Event::Reset(_)
            | Event::Connect(_)
            | Event::Close(_)
            | Event::SyscallSlow(_)
            | Event::SyscallInFlight(_)
            | Event::Loss(_) => true,
        };
        if let (true, Some(exporter)) = (wanted, &self.exporter) {
            let entity = event.who().map_or(&Entity::Host, |who| &who.entity);
            exporter.event(entity, event);
        }
        Ok(Flow::More)
    }

    fn interval(&mut self, _summaries: &[Summary], snapshot: &Snapshot<'_>) -> io::Result<()> {
        if let Some(exporter) = &self.exporter {
            exporter.submit(snapshot);
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        while let Ok(route) = self.changes.try_recv() {
            if let Err(failure) = self.change(route) {
                tracing::error!("the collector stays as it was: {}", failure.message);
            }
        }
        Ok(())
    }
}
