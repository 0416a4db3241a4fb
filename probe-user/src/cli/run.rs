//! `probe run`.

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use super::args::{PeerArgs, RunCallArgs, RunLookupArgs, Shared, positive};
use super::output::{StdoutSink, Style, Tee, closing_lines, ended, on_terminal};
use super::{Failure, block_on};
use crate::config::{DnsOptions, OtlpEvents, Output, QuestionNames};
use crate::entity::Entity;
use crate::pipeline::{Flow, Pipeline, Sink};
use crate::series::Snapshot;
use crate::signals::{self, Event, Summary};
use crate::sink::otlp::{Exporter, Options, OtlpConfig, OtlpFlags, Resources, new_instance_id, phase};
use crate::sink::prometheus::{Listener, Server};
use crate::telemetry::{SelfStats, Telemetry};

/// Export period and summary interval where neither flag nor environment says otherwise.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);
/// How long the last export may hold the end up.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4317 probe run --interval 30s")]
pub(super) struct Args {
    #[command(flatten)]
    shared: Shared,
    #[command(flatten)]
    peers: PeerArgs,
    #[command(flatten)]
    dns: DnsArgs,
    #[command(flatten, next_help_heading = "System calls")]
    calls: RunCallArgs,
    #[command(flatten)]
    otlp: OtlpArgs,
    #[command(flatten)]
    prometheus: PrometheusArgs,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Prometheus")]
struct PrometheusArgs {
    /// Answer HTTP there: /metrics for Prometheus, /healthz and /readyz; 127.0.0.1:9464, or [::]:9464 for every address of the host
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = listen_address)]
    prometheus_listen: Option<SocketAddr>,
}

impl PrometheusArgs {
    /// Takes the address.
    fn listen(&self) -> Result<Option<Listener>, Failure> {
        let Some(address) = self.prometheus_listen else { return Ok(None) };
        let listener = Listener::bind(address).map_err(|error| {
            Failure::running(format_args!("cannot listen on {address} (--prometheus-listen): {error}"))
        })?;
        Ok(Some(listener))
    }
}

fn listen_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_unclear| {
        "an IP address and a port are allowed: 127.0.0.1:9464, [::1]:9464, or [::]:9464 for every address"
            .to_owned()
    })
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "DNS")]
struct DnsArgs {
    #[command(flatten)]
    lookups: RunLookupArgs,
    /// What metrics tell of the names that are asked for (dns.question.name)
    #[arg(long, value_name = "HOW", default_value = "off")]
    dns_names: QuestionNames,
    /// How many such names metrics tell of one container, and of the host; further ones are _other [default: 100]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=signals::dns::MOST_NAMES as i64))]
    dns_names_max: Option<u16>,
}

impl DnsArgs {
    /// Puts them into options.
    fn apply(self, options: &mut DnsOptions) -> Result<(), Failure> {
        let Self { lookups, dns_names, dns_names_max } = self;
        lookups.apply(options)?;
        options.names = dns_names;
        options.names_max = dns_names_max.map_or(options.names_max, usize::from);
        Ok(())
    }
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "OTLP (a flag beats its OTEL_EXPORTER_OTLP_* variable)")]
struct OtlpArgs {
    /// Collector, e.g. http://localhost:4317; over HTTP http://localhost:4318, /v1/metrics and /v1/logs are appended
    #[arg(long, value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// Protocol: grpc (unless told otherwise), or http/protobuf
    #[arg(long, value_name = "NAME")]
    otlp_protocol: Option<String>,
    /// Headers of every request: key=value,key=value
    #[arg(long, value_name = "LIST")]
    otlp_headers: Option<String>,
    /// How long one request may take
    #[arg(long, value_name = "TIME", value_parser = positive)]
    otlp_timeout: Option<Duration>,
    /// PEM file of the authorities that may have signed the collector's certificate, in place of the system's
    #[arg(long, value_name = "FILE")]
    otlp_certificate: Option<String>,
    /// PEM file of probe's own certificate, for collectors that ask who it is
    #[arg(long, value_name = "FILE")]
    otlp_client_certificate: Option<String>,
    /// PEM file of the key of that certificate
    #[arg(long, value_name = "FILE")]
    otlp_client_key: Option<String>,
    /// Since when points of metrics count: cumulative (unless told otherwise), delta or lowmemory; OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE
    #[arg(long, value_name = "NAME")]
    otlp_temporality: Option<String>,
    /// Buckets of histograms: base2_exponential_bucket_histogram (unless told otherwise; the specification's default is the other), or explicit_bucket_histogram; OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION
    #[arg(long, value_name = "NAME")]
    otlp_histograms: Option<String>,
    /// Which events become log records; lookups that went well are not notable
    #[arg(long, value_name = "WHICH", default_value = "notable")]
    otlp_events: OtlpEvents,
}

/// Runs it.
pub(super) fn main(args: Args) -> Result<ExitCode, Failure> {
    let lookup = |key: &str| std::env::var(key).ok();
    let mut config = args.shared.resolve(default_interval(&lookup)?)?;
    args.peers.apply(&mut config.tcp);
    args.dns.apply(&mut config.dns)?;
    args.calls.apply(&mut config.syscalls)?;
    let flags = OtlpFlags {
        endpoint: args.otlp.otlp_endpoint,
        protocol: args.otlp.otlp_protocol,
        headers: args.otlp.otlp_headers,
        timeout: args.otlp.otlp_timeout,
        certificate: args.otlp.otlp_certificate,
        client_certificate: args.otlp.otlp_client_certificate,
        client_key: args.otlp.otlp_client_key,
        temporality: args.otlp.otlp_temporality,
        histograms: args.otlp.otlp_histograms,
    };
    config.otlp = OtlpConfig::resolve(&flags, &lookup).map_err(|error| Failure::usage(error.to_string()))?;
    // They are on events alone.
    let exports_events = args.otlp.otlp_events != OtlpEvents::None
        && config.otlp.as_ref().is_some_and(|otlp| otlp.logs.is_some());
    config.tcp.names &= exports_events || args.shared.output == Some(Output::Json);
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let instance = new_instance_id().map_err(Failure::running)?;
    let resources =
        Resources::resolve(&lookup, &host, &instance).map_err(|error| Failure::usage(error.to_string()))?;

    let listener = args.prometheus.listen()?;
    let stats = Arc::new(SelfStats::new());
    let mut pipeline = Pipeline::start(&config, signals::ALL, true, Arc::clone(&stats))?;
    tracing::info!(signals = ?pipeline.signals(), "running");
    block_on(async {
        let server = match listener {
            Some(listener) => {
                let address = listener.address().map_err(Failure::running)?;
                let (visitors, signals) = (pipeline.visitors(), pipeline.signals());
                let server =
                    Server::start(listener, visitors, Arc::clone(&stats), resources.clone(), &signals)
                        .map_err(Failure::running)?;
                tracing::info!("http://{address} has /metrics, /healthz and /readyz");
                Some(server)
            }
            None => None,
        };
        let phase = phase(resources.node(), config.interval);
        let otlp = match &config.otlp {
            Some(otlp) => {
                Some(OtlpSink::start(otlp, resources, &stats, config.interval, args.otlp.otlp_events)?)
            }
            None => None,
        };
        if otlp.is_some() {
            pipeline.begin_with(phase);
        }
        // As a service that exports, the summary would only fill the journal.
        let speaks = otlp.is_none() && server.is_none() || args.shared.output.is_some() || on_terminal();
        let mut stdout = StdoutSink::new(&config, Style::Summaries, None);
        let mut otlp = otlp;
        let result = {
            let mut sinks: Vec<&mut dyn Sink> = Vec::new();
            if speaks {
                sinks.push(&mut stdout);
            }
            if let Some(otlp) = &mut otlp {
                sinks.push(otlp);
            }
            pipeline.run(&mut Tee(sinks)).await
        };
        drop(server);
        // Detached before the last export: it may take its time.
        drop(pipeline);
        if let Some(otlp) = otlp {
            otlp.shutdown().await;
        }
        if let Some(report) = ended(result)? {
            closing_lines(&report);
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// `OTEL_METRIC_EXPORT_INTERVAL` (milliseconds) where no flag is given.
fn default_interval(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Duration, Failure> {
    const KEY: &str = "OTEL_METRIC_EXPORT_INTERVAL";
    match lookup(KEY).filter(|value| !value.trim().is_empty()) {
        None => Ok(DEFAULT_INTERVAL),
        Some(value) => match value.trim().parse() {
            Ok(ms @ 250..) => Ok(Duration::from_millis(ms)),
            _ => Err(Failure::usage(format!("{KEY}={value}: milliseconds are allowed, 250 at least"))),
        },
    }
}

/// The collector as a sink.
struct OtlpSink {
    events: OtlpEvents,
    exporter: Exporter,
    telemetry: Option<Telemetry>,
}

impl OtlpSink {
    fn start(
        config: &OtlpConfig,
        resources: Resources,
        stats: &Arc<SelfStats>,
        interval: Duration,
        events: OtlpEvents,
    ) -> Result<Self, Failure> {
        let resources = Arc::new(resources);
        let usage = |error: &dyn std::fmt::Display| Failure::usage(error.to_string());
        let exporter = Exporter::start(config, Arc::clone(&resources), Arc::clone(stats), Options::default())
            .map_err(|error| usage(&error))?;
        let telemetry = match &config.metrics {
            Some(target) => {
                let temporality = config.preferences.temporality;
                let telemetry = Telemetry::start(target, temporality, &resources, interval, stats);
                Some(telemetry.map_err(|error| usage(&error))?)
            }
            None => None,
        };
        Ok(Self { events, exporter, telemetry })
    }

    async fn shutdown(self) {
        let Self { events: _, exporter, telemetry } = self;
        let own = async {
            if let Some(telemetry) = telemetry
                && !telemetry.shutdown(SHUTDOWN).await
            {
                tracing::debug!("the agent's own metrics were not delivered at the end");
            }
        };
        // Side by side: a collector that hangs holds up the end once, not twice.
        tokio::join!(own, exporter.shutdown(SHUTDOWN));
    }
}

impl Sink for OtlpSink {
    fn wants_events(&self) -> bool {
        self.events != OtlpEvents::None && self.exporter.wants_events()
    }

    fn event(&mut self, event: &Event) -> io::Result<Flow> {
        let wanted = match event {
            // These are the metrics.
            Event::SyscallSummary(_) => false,
            Event::Lookup(lookup) => self.events == OtlpEvents::All || lookup.is_notable(),
            Event::Retransmit(_)
            | Event::Reset(_)
            | Event::Connect(_)
            | Event::Close(_)
            | Event::SyscallSlow(_)
            | Event::SyscallInFlight(_)
            | Event::Loss(_) => true,
        };
        if wanted {
            let entity = event.who().map_or(&Entity::Host, |who| &who.entity);
            self.exporter.event(entity, event);
        }
        Ok(Flow::More)
    }

    fn interval(&mut self, _summaries: &[Summary], snapshot: &Snapshot<'_>) -> io::Result<()> {
        self.exporter.submit(snapshot);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
