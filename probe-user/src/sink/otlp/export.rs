//! The tasks that deliver: one for metrics, one for events. Whatever the collector does (away, hanging,
//! refusing, answering garbage), the caller never waits and the totals are right when it is back.

use std::collections::VecDeque;
use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceResponse;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::client::{Client, ClientError, Failure, Outcome, Response, Retry};
use super::config::{OtlpConfig, Preferences};
use super::deltas::Deltas;
use super::encode::{EncodedRequest, RequestLimits, encode_metrics};
use super::logs::{self, EventQueue};
use super::parts;
use super::resource::Resources;
use super::spool::{Encoding, Spool, UnderWay};
use crate::entity::Entity;
use crate::event::{Attributes, key};
use crate::series::{Limits, Snapshot, attr, metrics};
use crate::telemetry::SelfStats;

/// Attempts at a request that the server refuses with a retryable code. One that cannot be reached is tried
/// for as long as there is nothing newer.
const REFUSED_ATTEMPTS: u32 = 5;
/// The same of one out of the spool, where nothing is short but disk: about an hour.
const SPOOLED_ATTEMPTS: u32 = 120;
/// Octets of a body that is not halved any more: who finds that too large takes nothing.
const SMALLEST: usize = 16 << 10;

/// How the exporter works; not a matter of the specification's variables.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Where requests are cut.
    pub limits: RequestLimits,
    /// Of what waits as deltas; those of the store that snapshots are taken of.
    pub series: Limits,
    /// Events that wait at most.
    pub event_queue: usize,
    /// Events sent together at most.
    pub event_batch: usize,
    /// Longest time an event waits for others to be sent with.
    pub event_delay: Duration,
    /// Wait before the second attempt; doubled for each further one.
    pub first_back_off: Duration,
    /// Longest wait between attempts.
    pub longest_back_off: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            limits: RequestLimits::default(),
            series: Limits::default(),
            event_queue: 10_000,
            event_batch: 1_000,
            event_delay: Duration::from_secs(1),
            first_back_off: Duration::from_secs(1),
            longest_back_off: Duration::from_secs(30),
        }
    }
}

/// How a flush ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// Everything that was handed over has been delivered, or refused and counted.
    Done,
    /// The deadline came first.
    DeadlinePassed,
}

/// When in each interval a node exports: spread by a hash of its name, so that ten thousand agents that
/// were started together do not arrive together.
#[must_use]
pub fn phase(node: &str, interval: Duration) -> Duration {
    // The same on every run and build: FNV-1a, and MurmurHash3's last step, because names that differ in
    // their last digit differ in FNV's low bits only.
    let mut hash = node
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^= hash >> 33;
    let interval_ns = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(((u128::from(hash) * u128::from(interval_ns)) >> 64) as u64)
}

/// Sends snapshots and events.
#[derive(Debug)]
pub struct Exporter {
    resources: Arc<Resources>,
    preferences: Preferences,
    options: Options,
    stats: Arc<SelfStats>,
    metrics: Option<MetricsLane>,
    logs: Option<LogsLane>,
    /// Where events go that nobody takes.
    spool: Option<Arc<Spool>>,
    /// Counts flushes; a change ends any wait between attempts.
    flushes: watch::Sender<u64>,
}

/// What was told of series last and what is still to be told, for a collector that takes the place of another.
#[derive(Clone, Debug)]
pub struct SharedDeltas(Arc<Mutex<Deltas>>);

#[derive(Debug)]
struct MetricsLane {
    slot: Arc<Slot>,
    /// Where deltas are wanted.
    deltas: Option<Arc<Mutex<Deltas>>>,
    submitted: AtomicU64,
    done: watch::Receiver<u64>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct LogsLane {
    queue: Arc<EventQueue>,
    /// There is a batch full of events, or a flush.
    enough: Arc<Notify>,
    done: watch::Receiver<u64>,
    under_way: Arc<UnderWay>,
    /// With a spool: more wait than should in memory.
    many: Arc<Notify>,
    task: JoinHandle<()>,
    /// From the queue to the spool.
    spilling: Option<JoinHandle<()>>,
}

impl Exporter {
    /// Starts the tasks. Connects when there is something to send. Must be called inside a runtime.
    ///
    /// # Errors
    ///
    /// The certificate cannot be read, or the endpoint is of no use to the transport.
    pub fn start(
        config: &OtlpConfig,
        resources: Arc<Resources>,
        stats: Arc<SelfStats>,
        options: Options,
    ) -> Result<Self, ClientError> {
        Self::start_with(config, resources, stats, options, None, None)
    }

    /// The same in place of another one, with what that one knows of deltas; and with a spool.
    ///
    /// # Errors
    ///
    /// As [`Self::start`].
    pub fn start_with(
        config: &OtlpConfig,
        resources: Arc<Resources>,
        stats: Arc<SelfStats>,
        options: Options,
        deltas: Option<SharedDeltas>,
        spool: Option<Arc<Spool>>,
    ) -> Result<Self, ClientError> {
        let (flushes, _) = watch::channel(0);
        let endpoints = (&config.metrics, &config.logs);
        let health_of_metrics = Arc::new(Health::default());
        let health_of_logs = match endpoints {
            (Some(metrics), Some(logs)) if metrics.is_beside(logs) => health_of_metrics.clone(),
            _ => Arc::new(Health::default()),
        };
        let spools_events = spool.is_some();
        let delivery = |sink, signal, endpoint: String, health| Delivery {
            sink,
            signal,
            endpoint,
            health,
            stats: stats.clone(),
            options,
            flushes: flushes.subscribe(),
            too_large: usize::MAX,
            spool: None,
            spools_events,
        };
        let metrics = match &config.metrics {
            None => None,
            Some(target) => {
                let client = Client::<ExportMetricsServiceResponse>::new(target.clone())?;
                let slot = Arc::new(Slot::default());
                let (done_tx, done) = watch::channel(0);
                let endpoint = target.endpoint.to_string();
                let delivery = delivery("otlp_metrics", "metrics", endpoint, health_of_metrics);
                let is_delta = config.preferences.temporality.is_delta();
                let deltas = is_delta.then(|| {
                    deltas
                        .map_or_else(|| Arc::new(Mutex::new(Deltas::new(options.series))), |shared| shared.0)
                });
                let sender = MetricsSender {
                    slot: slot.clone(),
                    deltas: deltas.clone(),
                    resources: resources.clone(),
                    preferences: config.preferences,
                    done: done_tx,
                };
                let task = tokio::spawn(send_metrics(client, sender, delivery));
                Some(MetricsLane { slot, deltas, submitted: AtomicU64::new(0), done, task })
            }
        };
        let logs = match &config.logs {
            None => None,
            Some(target) => {
                let client = Client::<ExportLogsServiceResponse>::new(target.clone())?;
                let queue = Arc::new(EventQueue::new(options.event_queue));
                let enough = Arc::new(Notify::new());
                let (under_way, many) = (Arc::new(UnderWay::default()), Arc::new(Notify::new()));
                let (done_tx, done) = watch::channel(0);
                let delivery = delivery("otlp_logs", "events", target.endpoint.to_string(), health_of_logs);
                let delivery = Delivery { spool: spool.clone(), ..delivery };
                let sender = LogSender {
                    queue: queue.clone(),
                    enough: enough.clone(),
                    resources: resources.clone(),
                    done: done_tx,
                    under_way: under_way.clone(),
                };
                let spilling = spool.clone().map(|spool| {
                    let encoding = encoding(&resources, options);
                    tokio::spawn(spill(spool, queue.clone(), many.clone(), encoding, options))
                });
                let task = tokio::spawn(send_logs(client, sender, delivery));
                Some(LogsLane { queue, enough, done, under_way, many, task, spilling })
            }
        };
        let preferences = config.preferences;
        Ok(Self { resources, preferences, options, stats, metrics, logs, spool, flushes })
    }

    /// What it knows of deltas, if those are told.
    #[must_use]
    pub fn deltas(&self) -> Option<SharedDeltas> {
        self.metrics.as_ref().and_then(|lane| lane.deltas.clone()).map(SharedDeltas)
    }

    /// Whether events are wanted: so that nobody makes one for nothing.
    #[must_use]
    pub const fn wants_events(&self) -> bool {
        self.logs.is_some()
    }

    /// What is in the snapshot has been told by an earlier agent: it is nothing new where deltas are told.
    pub fn go_on(&self, snapshot: &Snapshot<'_>) {
        if let Some(deltas) = self.metrics.as_ref().and_then(|lane| lane.deltas.as_ref()) {
            lock(deltas).go_on(snapshot);
        }
    }

    /// Encodes the snapshot and leaves it to be sent. One that still waits is replaced; of deltas it is added to what waits. Never
    /// waits for the network.
    pub fn submit(&self, snapshot: &Snapshot<'_>) {
        let Some(lane) = &self.metrics else { return };
        let requests = match &lane.deltas {
            None => encode_metrics(snapshot, &self.resources, self.preferences, self.options.limits),
            // Encoded when the one before has been delivered or not: only then is it known what is to be told.
            Some(deltas) => {
                lock(deltas).count(snapshot);
                Vec::new()
            }
        };
        let generation = lane.submitted.fetch_add(1, Ordering::AcqRel) + 1;
        if let Some(unsent) = lane.slot.put(Batch { generation, requests }) {
            let items: u64 = unsent.requests.iter().map(|request| request.items).sum();
            count_failed(&self.stats, "otlp_metrics", "superseded", items);
        }
    }

    /// Leaves an event to be sent with others. Never waits; when the queue is full, the oldest goes.
    pub fn event(&self, entity: &Entity, event: &dyn Attributes) {
        let Some(lane) = &self.logs else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let observed = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let (waiting, dropped) = lane.queue.push(entity.clone(), logs::record(event, observed));
        if dropped {
            count_failed(&self.stats, "otlp_logs", "queue_full", 1);
        }
        if waiting == self.options.event_batch {
            lane.enough.notify_one();
        }
        if waiting == many(self.options) {
            lane.many.notify_one();
        }
    }

    /// Events that wait.
    #[must_use]
    pub fn waiting_events(&self) -> usize {
        self.logs.as_ref().map_or(0, |lane| lane.queue.len())
    }

    /// Waits until what was handed over so far is delivered, or refused for good, but no longer than
    /// `deadline`.
    pub async fn flush(&self, deadline: Duration) -> Flushed {
        let mut flush_no = 0;
        self.flushes.send_modify(|flushes| {
            *flushes += 1;
            flush_no = *flushes;
        });
        let metrics = async {
            if let Some(lane) = &self.metrics {
                let submitted = lane.submitted.load(Ordering::Acquire);
                // An error means that the task is gone; then there is nothing to wait for.
                drop(lane.done.clone().wait_for(|done| *done >= submitted).await);
            }
        };
        let logs = async {
            if let Some(lane) = &self.logs {
                lane.enough.notify_one();
                drop(lane.done.clone().wait_for(|done| *done >= flush_no).await);
            }
        };
        let both = async { tokio::join!(metrics, logs) };
        match tokio::time::timeout(deadline, both).await {
            Ok(((), ())) => Flushed::Done,
            Err(_elapsed) => Flushed::DeadlinePassed,
        }
    }

    /// Takes over the events that another one has not begun to send, if it sends events itself.
    pub fn take_over(&self, other: &Self) {
        let (Some(lane), Some(before)) = (&self.logs, &other.logs) else { return };
        for (entity, record) in before.queue.take(usize::MAX) {
            if lane.queue.push(entity, record).1 {
                count_failed(&self.stats, "otlp_logs", "queue_full", 1);
            }
        }
        lane.enough.notify_one();
    }

    /// Flushes, then ends the tasks. What is left when the deadline comes goes to the spool; without one it is counted as failed.
    pub async fn shutdown(mut self, deadline: Duration) -> Flushed {
        let flushed = self.flush(deadline).await;
        let Some(lane) = &mut self.logs else { return flushed };
        // It may be delivered this very moment; what is said to be lost rather is than not.
        lane.task.abort();
        lane.spilling.iter().for_each(JoinHandle::abort);
        let lost = match &self.spool {
            None => {
                let under_way: u64 = lock(&lane.under_way).iter().map(|request| request.items).sum();
                count(lane.queue.len()).saturating_add(under_way)
            }
            Some(spool) => {
                // Only what has ended holds nothing back.
                drop((&mut lane.task).await);
                let (spool, queue, under_way) = (spool.clone(), lane.queue.clone(), lane.under_way.clone());
                let encoding = encoding(&self.resources, self.options);
                let close = tokio::task::spawn_blocking(move || spool.close(&queue, &under_way, &encoding));
                match tokio::time::timeout(deadline, close).await {
                    Ok(Ok(lost)) => lost.saturating_add(count(lane.queue.len())),
                    // The disk hangs.
                    Ok(Err(_)) | Err(_) => count(lane.queue.len()),
                }
            }
        };
        count_failed(&self.stats, "otlp_logs", "shutdown", lost);
        if lost > 0 {
            let remedy = match &self.spool {
                None => "--spool DIR keeps them for the next start",
                Some(_) => "--spool-mib is too small for them, or the disk took no more",
            };
            tracing::warn!(
                "{lost} events did not reach the collector before the end, and are lost: {remedy}"
            );
        }
        flushed
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        if let Some(lane) = &self.metrics {
            lane.task.abort();
        }
        if let Some(lane) = &self.logs {
            lane.task.abort();
            lane.spilling.iter().for_each(JoinHandle::abort);
        }
    }
}

fn encoding(resources: &Arc<Resources>, options: Options) -> Encoding {
    Encoding { resources: resources.clone(), limits: options.limits, batch: options.event_batch }
}

/// How many events are more than should wait in memory where there is a disk.
const fn many(options: Options) -> usize {
    options.event_queue / 2
}

fn count(items: usize) -> u64 {
    u64::try_from(items).unwrap_or(u64::MAX)
}

/// One encoded snapshot.
#[derive(Debug)]
struct Batch {
    generation: u64,
    requests: Vec<EncodedRequest>,
}

/// Room for one snapshot.
#[derive(Debug, Default)]
struct Slot {
    batch: Mutex<Option<Batch>>,
    filled: Notify,
}

impl Slot {
    /// Puts a snapshot in and hands back the one that it replaces.
    fn put(&self, batch: Batch) -> Option<Batch> {
        let before = lock(&self.batch).replace(batch);
        self.filled.notify_one();
        before
    }

    async fn take(&self) -> Batch {
        loop {
            if let Some(batch) = lock(&self.batch).take() {
                return batch;
            }
            self.filled.notified().await;
        }
    }

    /// Ready when there is a newer snapshot.
    async fn newer(&self) {
        while lock(&self.batch).is_none() {
            self.filled.notified().await;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct MetricsSender {
    slot: Arc<Slot>,
    deltas: Option<Arc<Mutex<Deltas>>>,
    resources: Arc<Resources>,
    preferences: Preferences,
    done: watch::Sender<u64>,
}

async fn send_metrics(
    mut client: Client<ExportMetricsServiceResponse>,
    sender: MetricsSender,
    mut delivery: Delivery,
) {
    let MetricsSender { slot, deltas, resources, preferences, done } = sender;
    let limits = delivery.options.limits;
    loop {
        let Batch { generation, requests } = slot.take().await;
        match &deltas {
            // The next snapshot has all that this one has.
            None => drop(delivery.deliver(&mut client, requests, || slot.newer(), Patience::Usual).await),
            Some(deltas) => {
                let taken = lock(deltas).take();
                let requests = encode_metrics(&taken.snapshot(), &resources, preferences, limits);
                let outcome = delivery.deliver(&mut client, requests, || slot.newer(), Patience::Usual).await;
                lock(deltas).put_back(&taken, &outcome.unsent);
            }
        }
        done.send_replace(generation);
    }
}

struct LogSender {
    queue: Arc<EventQueue>,
    enough: Arc<Notify>,
    resources: Arc<Resources>,
    done: watch::Sender<u64>,
    /// Out of the queue, and it is not known yet what has come of them.
    under_way: Arc<UnderWay>,
}

async fn send_logs(mut client: Client<ExportLogsServiceResponse>, sender: LogSender, mut delivery: Delivery) {
    let LogSender { queue, enough, resources, done, under_way } = sender;
    let Options { limits, event_batch, event_delay, .. } = delivery.options;
    let spool = delivery.spool.clone();
    loop {
        // A wait that ends without an event costs a look at an empty queue.
        drop(tokio::time::timeout(event_delay, enough.notified()).await);
        let flush_no = *delivery.flushes.borrow();
        loop {
            if let Some(spool) = &spool {
                send_spooled(&mut client, spool, &mut delivery).await;
            }
            let held = match &spool {
                Some(spool) if spool.is_held_up() => {
                    let spool = spool.clone();
                    wait_for_disk(move || spool.take_held()).await.flatten()
                }
                Some(_) | None => None,
            };
            let requests = match held {
                Some(request) => vec![request],
                None => logs::encode(queue.take(event_batch), &resources, limits),
            };
            if requests.is_empty() {
                break;
            }
            lock(&under_way).extend(requests);
            loop {
                // It is there until it is known what has come of it: this task may be ended at any time.
                let Some(request) = lock(&under_way).front().cloned() else { break };
                let patience = if spool.is_some() { Patience::Once } else { Patience::Usual };
                let outcome =
                    delivery.deliver(&mut client, vec![request], std::future::pending, patience).await;
                let is_later = !outcome.later.is_empty();
                {
                    let mut under_way = lock(&under_way);
                    under_way.pop_front();
                    outcome.later.into_iter().rev().for_each(|request| under_way.push_front(request));
                }
                if let (Some(spool), true) = (&spool, is_later) {
                    let (spool, under_way) = (spool.clone(), under_way.clone());
                    wait_for_disk(move || spool.absorb(&under_way)).await;
                    break;
                }
            }
        }
        done.send_replace(flush_no);
    }
}

/// Sends what is on disk, until nothing is.
async fn send_spooled(
    client: &mut Client<ExportLogsServiceResponse>,
    spool: &Arc<Spool>,
    delivery: &mut Delivery,
) {
    if spool.is_empty() {
        return;
    }
    let limits = delivery.options.limits;
    let turn = spool.turn().await;
    loop {
        let (of_call, held) = (spool.clone(), turn.clone());
        let taken = wait_for_disk(move || (of_call.take(limits), held).0).await.flatten();
        let Some(request) = taken else { return };
        // Refused for good or not, it has had its chance.
        drop(delivery.deliver(client, vec![request], std::future::pending, Patience::Long).await);
        let (of_call, held) = (spool.clone(), turn.clone());
        wait_for_disk(move || (of_call.done(), held).0).await;
    }
}

/// From the queue to disk: all of it while nobody takes events, and what is more than should wait in memory.
async fn spill(
    spool: Arc<Spool>,
    queue: Arc<EventQueue>,
    enough: Arc<Notify>,
    encoding: Encoding,
    options: Options,
) {
    loop {
        drop(tokio::time::timeout(options.event_delay, enough.notified()).await);
        let keep = if spool.is_away() { 0 } else { many(options) };
        if queue.len() <= keep && !spool.is_unsynced() {
            continue;
        }
        // What makes room makes some.
        let keep = if queue.len() > keep { keep / 2 } else { keep };
        let (spool, queue, encoding) = (spool.clone(), queue.clone(), encoding.clone());
        wait_for_disk(move || spool.spill(&queue, keep, &encoding)).await;
    }
}

/// `None` at the end of the runtime.
async fn wait_for_disk<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(act).await.ok()
}

/// How the sending of one request ended.
enum Sent {
    /// Taken, or a part of it rejected.
    Taken,
    /// For good, or too often; `error.type`.
    Refused(&'static str),
    /// There is something newer; `error.type` of the last attempt.
    Superseded(&'static str),
    /// One attempt was all there was to be.
    Later,
    /// For its size; so small a one that its other parts will not be taken either.
    RefusedHoweverSmall(&'static str),
    /// Refused for its size, now or one like it before: here are its halves.
    InParts([EncodedRequest; 2]),
}

/// How often a request is tried that a server refuses with a retryable code, or that does not reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Patience {
    /// A few times; where nobody is reached, for as long as there is nothing newer.
    Usual,
    /// There is a spool to wait in.
    Once,
    /// It is out of the spool.
    Long,
}

/// What has not arrived.
#[derive(Debug, Default)]
struct Undelivered {
    /// Lost, by their positions.
    unsent: Vec<Range<u64>>,
    /// To be tried another time.
    later: Vec<EncodedRequest>,
}

/// What delivering takes, whatever the signal.
struct Delivery {
    /// `sink` of the agent's own metrics.
    sink: &'static str,
    /// For messages.
    signal: &'static str,
    endpoint: String,
    health: Arc<Health>,
    stats: Arc<SelfStats>,
    options: Options,
    flushes: watch::Receiver<u64>,
    /// Octets of the smallest body that was refused for its size, and could be halved.
    too_large: usize,
    /// Of events, where there is one.
    spool: Option<Arc<Spool>>,
    /// Whether there is one: the signal that fails first speaks for both.
    spools_events: bool,
}

impl Delivery {
    /// Sends each request until it is accepted, refused for good, or `newer` makes the rest pointless; in parts where it is too
    /// large.
    async fn deliver<R: Response, F: Future<Output = ()>>(
        &mut self,
        client: &mut Client<R>,
        requests: Vec<EncodedRequest>,
        newer: impl Fn() -> F,
        patience: Patience,
    ) -> Undelivered {
        let mut waiting = VecDeque::from(requests);
        // How many of those in front are parts of one request.
        let mut parts = 0usize;
        let mut unsent = Vec::new();
        while let Some(request) = waiting.pop_front() {
            parts = parts.saturating_sub(1);
            // What was refused once would be refused again.
            let known = request.body.len() >= self.too_large;
            let sent = match if known { parts::halves::<R::Request>(&request) } else { None } {
                Some(halves) => Sent::InParts(halves),
                None => self.send(client, &request, &newer, patience).await,
            };
            let (kind, with) = match sent {
                Sent::Taken => continue,
                Sent::InParts([front, back]) => {
                    waiting.push_front(back);
                    waiting.push_front(front);
                    parts += 2;
                    continue;
                }
                Sent::Refused(kind) => (kind, 0),
                // No other part would be taken either.
                Sent::RefusedHoweverSmall(kind) => (kind, std::mem::take(&mut parts)),
                Sent::Superseded(kind) => (kind, waiting.len()),
                Sent::Later => {
                    waiting.push_front(request);
                    break;
                }
            };
            for request in std::iter::once(request).chain(waiting.drain(..with.min(waiting.len()))) {
                count_failed(&self.stats, self.sink, kind, request.items);
                unsent.push(request.first..request.first.saturating_add(request.items));
            }
        }
        Undelivered { unsent, later: waiting.into() }
    }

    /// Sends one request, as often as that makes sense.
    async fn send<R: Response, F: Future<Output = ()>>(
        &mut self,
        client: &mut Client<R>,
        request: &EncodedRequest,
        newer: &impl Fn() -> F,
        patience: Patience,
    ) -> Sent {
        let most_attempts = if patience == Patience::Long { SPOOLED_ATTEMPTS } else { REFUSED_ATTEMPTS };
        let mut attempt = 1u32;
        loop {
            let started = Instant::now();
            let outcome = client.send(request.body.clone()).await;
            self.stats.export_took(self.sink, started.elapsed());
            let failure = match outcome {
                Outcome::Accepted { rejected, message } => {
                    self.spool.iter().for_each(|spool| spool.set_away(false));
                    self.accepted(request.items, rejected, &message);
                    return Sent::Taken;
                }
                Outcome::Failed(failure) => failure,
            };
            if failure.retry == Retry::Smaller
                && request.body.len() > SMALLEST
                && let Some(halves) = parts::halves::<R::Request>(request)
            {
                self.too_large_is(request.body.len(), &failure);
                return Sent::InParts(halves);
            }
            self.health.failed(self, &failure);
            let back_off = self.back_off(attempt);
            let wait = match failure.retry {
                Retry::Smaller if request.body.len() <= SMALLEST => {
                    return Sent::RefusedHoweverSmall(failure.kind);
                }
                Retry::Never | Retry::Smaller => None,
                Retry::BackOff | Retry::After(_) if patience == Patience::Once => {
                    self.spool.iter().for_each(|spool| spool.set_away(true));
                    return Sent::Later;
                }
                Retry::BackOff | Retry::After(_) if !failure.unreachable && attempt >= most_attempts => None,
                Retry::BackOff => Some(back_off / 2 + random_part_of(back_off / 2)),
                Retry::After(asked) => Some(asked + random_part_of(asked / 10)),
            };
            let Some(wait) = wait else { return Sent::Refused(failure.kind) };
            self.spool.iter().for_each(|spool| spool.set_away(true));
            attempt = attempt.saturating_add(1);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = self.flushes.changed() => {}
                () = newer() => return Sent::Superseded(failure.kind),
            }
        }
    }

    /// Requests of this size are too large for the endpoint.
    fn too_large_is(&mut self, len: usize, failure: &Failure) {
        if self.too_large == usize::MAX {
            tracing::info!(
                endpoint = self.endpoint,
                "{len} octets of {} are too large for the endpoint ({}): sent in parts; its limit should be 4 MiB at least",
                self.signal,
                failure.message
            );
        }
        self.too_large = self.too_large.min(len);
    }

    fn back_off(&self, attempt: u32) -> Duration {
        let factor = 1u32 << attempt.saturating_sub(1).min(16);
        self.options.first_back_off.saturating_mul(factor).min(self.options.longest_back_off)
    }

    fn accepted(&self, items: u64, rejected: u64, message: &str) {
        let rejected = rejected.min(items);
        self.stats.add(metrics::PROBE_EXPORT_SENT, &[attr(key::SINK, self.sink)], items - rejected);
        if rejected == 0 {
            self.health.well(self);
            if !message.is_empty() {
                tracing::debug!(endpoint = self.endpoint, message, "the OTLP endpoint has a remark");
            }
        } else {
            count_failed(&self.stats, self.sink, "rejected", rejected);
            self.health.rejected(self, rejected, message);
        }
    }
}

fn count_failed(stats: &SelfStats, sink: &'static str, kind: &'static str, items: u64) {
    if items > 0 {
        stats.add(metrics::PROBE_EXPORT_FAILED, &[attr(key::SINK, sink), attr(key::ERROR_TYPE, kind)], items);
    }
}

/// Up to so much, at random.
fn random_part_of(most: Duration) -> Duration {
    // Its keys are random, which is all that is wanted of it.
    let random = RandomState::new().build_hasher().finish();
    most.mul_f64((random >> 11) as f64 / (1u64 << 53) as f64)
}

/// Says what is wrong with an endpoint once, not at every attempt, and once that it is over.
#[derive(Debug, Default)]
struct Health(Mutex<Ailing>);

#[derive(Debug, Default)]
struct Ailing {
    /// Signals whose last attempt failed.
    signals: Vec<&'static str>,
    /// What has been said since all was well.
    said: Vec<Complaint>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Complaint {
    Unreachable,
    Refused,
    Rejected,
}

impl Health {
    /// Whether this has yet to be said.
    fn is_new(&self, signal: &'static str, complaint: Complaint) -> bool {
        let mut ailing = lock(&self.0);
        if !ailing.signals.contains(&signal) {
            ailing.signals.push(signal);
        }
        let new = !ailing.said.contains(&complaint);
        if new {
            ailing.said.push(complaint);
        }
        new
    }

    fn failed(&self, delivery: &Delivery, failure: &Failure) {
        let complaint = if failure.unreachable { Complaint::Unreachable } else { Complaint::Refused };
        let Delivery { signal, endpoint, spools_events, .. } = delivery;
        let Failure { kind, message, .. } = failure;
        let kept = if *spools_events { "events on disk (--spool)" } else { "of events the newest" };
        if !self.is_new(signal, complaint) {
            tracing::debug!(endpoint, "error.type" = kind, message, "export of {signal} failed");
            return;
        }
        match complaint {
            Complaint::Unreachable => tracing::warn!(
                endpoint,
                "error.type" = kind,
                "cannot export {signal}: {message}; totals are kept, {kept}, and sent when the \
                 endpoint answers; check that it listens there"
            ),
            Complaint::Refused | Complaint::Rejected => tracing::warn!(
                endpoint,
                "error.type" = kind,
                "export of {signal} is refused: {message}; check the endpoint's configuration and log"
            ),
        }
    }

    fn rejected(&self, delivery: &Delivery, rejected: u64, message: &str) {
        let Delivery { signal, endpoint, .. } = delivery;
        if self.is_new(signal, Complaint::Rejected) {
            tracing::warn!(
                endpoint,
                rejected,
                "a part of the exported {signal} is rejected: {message}; check the endpoint's limits"
            );
        }
    }

    fn well(&self, delivery: &Delivery) {
        let mut ailing = lock(&self.0);
        ailing.signals.retain(|signal| *signal != delivery.signal);
        if ailing.signals.is_empty() && !ailing.said.is_empty() {
            ailing.said.clear();
            tracing::info!(endpoint = delivery.endpoint, "export works again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_inside_the_interval_steady_and_spread() {
        let interval = Duration::from_secs(10);
        let mut tenths = [0u32; 10];
        for node in 0..10_000 {
            let phase_of_node = phase(&format!("node-{node}"), interval);
            assert_eq!(phase_of_node, phase(&format!("node-{node}"), interval));
            tenths[phase_of_node.as_secs() as usize] += 1;
        }
        assert!(tenths.iter().all(|n| (800..1_200).contains(n)), "{tenths:?}");
    }
}
