//! `probe run`.

use std::ffi::OsString;
use std::io;
use std::mem::swap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{ArgMatches, FromArgMatches as _};
use tokio::sync::mpsc;

use super::args::{PeerArgs, RunCallArgs, RunLookupArgs, Shared, positive};
use super::collector::{OtlpSink, Route};
use super::layers::{self, Layers, Origin};
use super::listen::listen_address;
use super::logging::{self, LogFormat, stderr_line};
use super::notify::Manager;
use super::output::{StdoutSink, Style, Tee, closing_lines, ended, on_terminal};
use super::reload::{EarlyHangups, Reload};
use super::{Failure, block_on, effective};
use crate::config::{Config, DnsOptions, OtlpEvents, Output, PinConfig, QuestionNames};
use crate::load::{PIN_DIRECTORY, Pinned};
use crate::pipeline::{Pipeline, Sink};
use crate::signals;
use crate::sink::otlp::{OtlpConfig, OtlpFlags, Resources, Spool, new_instance_id, phase};
use crate::sink::prometheus::{Listener, Server};
use crate::telemetry::SelfStats;

/// Export period and summary interval where neither flag nor environment says otherwise.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);
/// The standard's word for it.
pub(super) const INTERVAL_VARIABLE: &str = "OTEL_METRIC_EXPORT_INTERVAL";

/// Flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4317 probe run --interval 30s")]
pub(super) struct Args {
    /// How what is said on stderr is written: text, or json, an object a line with time, level, target, message and fields
    #[arg(long, value_name = "FORM", default_value = "text")]
    log_format: LogFormat,
    /// Have the kernel take the time of probe's programs: probe.program.run.time, .runs and .misses. It then does so for all programs of
    /// the host, for as long as probe runs. Takes CAP_SYS_ADMIN at the start (or kernel.bpf_stats_enabled=1)
    #[arg(long)]
    program_stats: bool,
    /// Leave programs and maps in the kernel when probe ends, for the next start with the same flag, which goes on with every total and
    /// misses nothing of what happened in between: pinned in a directory of a BPF file system (made if only it itself is missing; /sys/fs/bpf/probe
    /// where none is named). `rm -r` of it ends the programs
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = PIN_DIRECTORY)]
    pin: Option<PathBuf>,
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
    #[command(flatten)]
    file: FileArgs,
}

#[derive(Debug, clap::Args)]
#[command(
    next_help_heading = "Configuration (a flag beats its variable, PROBE_ and the flag's words, OTEL_* after that; then the file)"
)]
struct FileArgs {
    /// YAML or TOML file (.yaml, .yml, .toml) whose keys are the long flags without --; read again on SIGHUP
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Say whether flags, environment and file are right, and all that is not; attaches nothing and needs no privileges
    #[arg(long)]
    check_config: bool,
    /// Print what flags, environment and file come to, as a YAML file that says where each value is from (no secrets)
    #[arg(long)]
    print_config: bool,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Prometheus")]
struct PrometheusArgs {
    /// Answer HTTP there: /metrics for Prometheus, /healthz and /readyz; 127.0.0.1:9464, or [::]:9464 for every address of the host
    /// (of an IPv6 address without brackets the last colon begins the port, as $(POD_IP):9464 comes to in a pod)
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = listen_address)]
    prometheus_listen: Option<SocketAddr>,
}

/// Takes the address.
fn listen(address: SocketAddr) -> Result<Listener, Failure> {
    Listener::bind(address).map_err(|error| {
        Failure::running(format_args!("cannot listen on {address} (--prometheus-listen): {error}"))
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
    /// How many such names metrics tell of one container, and of the host, but no more than are left for all others; further ones are _other
    #[arg(long, value_name = "N", default_value_t = 100,
          value_parser = clap::value_parser!(u16).range(1..=signals::dns::MOST_NAMES as i64))]
    dns_names_max: u16,
}

impl DnsArgs {
    /// Puts them into options.
    fn apply(self, options: &mut DnsOptions) -> Result<(), Failure> {
        let Self { lookups, dns_names, dns_names_max } = self;
        lookups.apply(options)?;
        options.names = dns_names;
        options.names_max = usize::from(dns_names_max);
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
    /// Compression of what is sent: none (unless told otherwise), gzip or zstd
    #[arg(long, value_name = "NAME")]
    otlp_compression: Option<String>,
    /// PEM file of the authorities that may have signed the collector's certificate, in place of the system's
    #[arg(long, value_name = "FILE")]
    otlp_certificate: Option<String>,
    /// PEM file of probe's own certificate, for collectors that ask who it is
    #[arg(long, value_name = "FILE")]
    otlp_client_certificate: Option<String>,
    /// PEM file of the key of that certificate
    #[arg(long, value_name = "FILE")]
    otlp_client_key: Option<String>,
    /// Since when points of metrics count: cumulative (unless told otherwise), delta or lowmemory
    #[arg(long, value_name = "NAME")]
    otlp_temporality: Option<String>,
    /// Buckets of histograms: base2_exponential_bucket_histogram (unless told otherwise; the specification's default is the other), or explicit_bucket_histogram
    #[arg(long, value_name = "NAME")]
    otlp_histograms: Option<String>,
    /// Which events become log records; lookups that went well are not notable
    #[arg(long, value_name = "WHICH", default_value = "notable")]
    otlp_events: OtlpEvents,
    #[command(flatten)]
    spool: SpoolArgs,
}

#[derive(Debug, clap::Args)]
struct SpoolArgs {
    /// Directory (made if only it itself is missing) where events wait that the collector does not take, also for the next start;
    /// without it they wait in memory, 10,000 at most
    #[arg(long, value_name = "DIR")]
    spool: Option<PathBuf>,
    /// MiB that may wait there; beyond that the oldest are dropped
    #[arg(long, value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    spool_mib: u64,
}

impl SpoolArgs {
    /// Takes the directory, if there is to be one.
    fn open(&self, stats: &Arc<SelfStats>) -> Result<Option<Spool>, Failure> {
        let open = |dir: &PathBuf| Spool::open(dir, self.spool_mib << 20, stats);
        self.spool.as_ref().map(open).transpose().map_err(|error| Failure::usage(error.to_string()))
    }
}

impl Args {
    /// What of it is no matter of the environment; logging is not started.
    fn config(self, interval: Duration) -> Result<Config, Failure> {
        let mut config = self.shared.config(interval)?;
        config.program_stats = self.program_stats;
        config.pin = self.pin.map(|directory| PinConfig { directory, instance: String::new() });
        self.peers.apply(&mut config.tcp);
        self.dns.apply(&mut config.dns)?;
        self.calls.apply(&mut config.syscalls)?;
        Ok(config)
    }
}

/// Everything wrong with what stands alone.
pub(super) fn check(matches: &ArgMatches) -> Vec<String> {
    let args = match Args::from_arg_matches(matches) {
        Ok(args) => args,
        Err(error) => return vec![error.to_string()],
    };
    let mut faults: Vec<String> = args.otlp.flags().faults().iter().map(ToString::to_string).collect();
    faults.extend(args.config(DEFAULT_INTERVAL).err().map(|failure| failure.message));
    faults
}

impl OtlpArgs {
    fn flags(&self) -> OtlpFlags {
        OtlpFlags {
            endpoint: self.otlp_endpoint.clone(),
            protocol: self.otlp_protocol.clone(),
            headers: self.otlp_headers.clone(),
            timeout: self.otlp_timeout,
            compression: self.otlp_compression.clone(),
            certificate: self.otlp_certificate.clone(),
            client_certificate: self.otlp_client_certificate.clone(),
            client_key: self.otlp_client_key.clone(),
            temporality: self.otlp_temporality.clone(),
            histograms: self.otlp_histograms.clone(),
        }
    }
}

/// Layers, and what they come to.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) layers: Layers,
    pub(super) config: Config,
    pub(super) events: OtlpEvents,
    pub(super) resources: Resources,
    listen: Option<SocketAddr>,
    spool: SpoolArgs,
    log_format: LogFormat,
    /// Whether stdout was asked for.
    speaks: bool,
    check: bool,
    print: bool,
}

impl Wanted {
    /// Reads flags, environment and file. `instance` is the same for as long as this process lives.
    pub(super) fn read(
        arguments: &[OsString],
        lookup: &dyn Fn(&str) -> Option<String>,
        instance: &str,
    ) -> Result<Self, Failure> {
        let layers = layers::read(arguments, lookup, &check)?;
        let args =
            Args::from_arg_matches(&layers.matches).map_err(|error| Failure::usage(error.to_string()))?;
        let mut faults = Vec::new();
        let mut keep = |fault: String| {
            // Two signals may have the same wrong setting.
            if !faults.contains(&fault) {
                faults.push(fault);
            }
        };

        let is_of_file = |key: &str| {
            layers.settings.get(key).is_some_and(|setting| matches!(setting.origin, Origin::File(_)))
        };
        let of_variable = standard_interval(lookup).unwrap_or_else(|fault| {
            keep(fault);
            None
        });
        let interval = match args.shared.interval {
            Some(interval) if !is_of_file("interval") => interval,
            of_file => of_variable.or(of_file).unwrap_or(DEFAULT_INTERVAL),
        };
        // What the file says comes after the variables of the specification.
        let (mut flags, mut file) = (args.otlp.flags(), OtlpFlags::default());
        for (key, move_down) in [
            (
                "otlp-endpoint",
                (|f, t| swap(&mut f.endpoint, &mut t.endpoint)) as fn(&mut OtlpFlags, &mut OtlpFlags),
            ),
            ("otlp-protocol", |f, t| swap(&mut f.protocol, &mut t.protocol)),
            ("otlp-headers", |f, t| swap(&mut f.headers, &mut t.headers)),
            ("otlp-timeout", |f, t| swap(&mut f.timeout, &mut t.timeout)),
            ("otlp-compression", |f, t| swap(&mut f.compression, &mut t.compression)),
            ("otlp-certificate", |f, t| swap(&mut f.certificate, &mut t.certificate)),
            ("otlp-client-certificate", |f, t| swap(&mut f.client_certificate, &mut t.client_certificate)),
            ("otlp-client-key", |f, t| swap(&mut f.client_key, &mut t.client_key)),
            ("otlp-temporality", |f, t| swap(&mut f.temporality, &mut t.temporality)),
            ("otlp-histograms", |f, t| swap(&mut f.histograms, &mut t.histograms)),
        ] {
            if is_of_file(key) {
                move_down(&mut flags, &mut file);
            }
        }
        let otlp = OtlpConfig::resolve_with(&flags, lookup, &file).unwrap_or_else(|error| {
            keep(error.to_string());
            None
        });
        for target in otlp.iter().flat_map(|otlp| [&otlp.metrics, &otlp.logs]).flatten() {
            if let Err(error) = target.check() {
                keep(error.to_string());
            }
        }
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let resources = match Resources::resolve(lookup, &host, instance) {
            Ok(resources) => Some(resources),
            Err(error) => {
                keep(error.to_string());
                None
            }
        };
        let (events, listen) = (args.otlp.otlp_events, args.prometheus.prometheus_listen);
        let (check, print) = (args.file.check_config, args.file.print_config);
        let (speaks, log_format) = (args.shared.output.is_some(), args.log_format);
        let spool = SpoolArgs { spool: args.otlp.spool.spool.clone(), ..args.otlp.spool };
        let mut config = args.config(interval)?;
        // They are on events alone.
        let exports_events =
            events != OtlpEvents::None && otlp.as_ref().is_some_and(|otlp| otlp.logs.is_some());
        config.tcp.names &= exports_events || (speaks && config.output == Output::Json);
        config.otlp = otlp;
        match resources {
            Some(resources) if faults.is_empty() => Ok(Self {
                layers,
                config,
                events,
                resources,
                listen,
                spool,
                log_format,
                speaks,
                check,
                print,
            }),
            Some(_) | None => Err(Failure::usage(faults.join("\nerror: "))),
        }
    }
}

/// Runs it.
pub(super) fn main() -> Result<ExitCode, Failure> {
    // Behind `probe run`.
    let arguments: Vec<OsString> = std::env::args_os().skip(2).collect();
    let lookup = |key: &str| std::env::var(key).ok();
    let instance = new_instance_id().map_err(Failure::running)?;
    let wanted = Wanted::read(&arguments, &lookup, &instance)?;
    logging::speak(wanted.log_format);
    for said in layers::misspelt(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok())) {
        stderr_line(tracing::Level::WARN, format_args!("warning: {said}"));
    }
    if wanted.check || wanted.print {
        let said =
            if wanted.check { effective::ok(&wanted.layers) } else { effective::print(&wanted, &lookup) };
        let written = io::Write::write_all(&mut io::stdout().lock(), said.as_bytes());
        // Who closes it has seen enough.
        return match written {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::running(error)),
            Ok(()) | Err(_) => Ok(ExitCode::SUCCESS),
        };
    }
    run(wanted, arguments, instance)
}

fn run(wanted: Wanted, arguments: Vec<OsString>, instance: String) -> Result<ExitCode, Failure> {
    let Wanted {
        layers,
        mut config,
        events,
        mut resources,
        listen: address,
        spool,
        log_format,
        speaks,
        check: _,
        print: _,
    } = wanted;
    let logs = logging::start(layers.matches.get_count("verbose"), log_format)?;
    config.program_log_level = logs.program_level;
    // Without a file, it is the hang-up of a terminal; a service lives on.
    let outlives = layers.file.is_some() || !on_terminal();
    let hangups = outlives.then(EarlyHangups::note).transpose().map_err(Failure::running)?;
    let manager = Manager::of_environment();
    let listener = address.map(listen).transpose()?;
    let stats = Arc::new(SelfStats::new());
    let spool = spool.open(&stats)?;
    if spool.is_some() && config.otlp.as_ref().is_none_or(|otlp| otlp.logs.is_none()) {
        tracing::warn!("--spool has nothing to keep: no collector gets events (--otlp-endpoint)");
    }
    if let (None, Pinned::Waiting(links)) = (&config.pin, Pinned::at(Path::new(PIN_DIRECTORY))) {
        tracing::warn!(
            "{links} programs that an agent with --pin has left run beside this one's: end them (rm -r {PIN_DIRECTORY}), or go on \
             with them (--pin)"
        );
    }
    if let Some(pin) = &mut config.pin {
        pin.instance.clone_from(&instance);
        // What they log is decided as they are loaded, and the next agent may want it otherwise.
        config.program_log_level = 0;
    }
    let mut pipeline = Pipeline::start(&config, signals::ALL, true, Arc::clone(&stats))?;
    // Series go on, so it is the same instance that tells them.
    let is_successor = pipeline.successor_of().is_some();
    let instance = match pipeline.successor_of() {
        Some(before) => {
            resources.go_on_as(&instance, before);
            before.to_owned()
        }
        None => instance,
    };
    tracing::info!(signals = ?pipeline.signals(), "running");
    block_on(async {
        let (visitors, signals) = (pipeline.visitors(), pipeline.signals());
        manager.attend(visitors.clone(), &signals);
        let server = match listener {
            Some(listener) => {
                let address = listener.address().map_err(Failure::running)?;
                let server =
                    Server::start(listener, visitors, Arc::clone(&stats), resources.clone(), &signals)
                        .map_err(Failure::running)?;
                tracing::info!("http://{address} has /metrics, /healthz and /readyz");
                Some(server)
            }
            None => None,
        };
        let phase = phase(resources.node(), config.interval);
        let (collector, changes) = mpsc::channel(1);
        let route = Route { config: config.otlp.clone(), events, interval: config.interval };
        let mut otlp = OtlpSink::start(route, resources, &stats, spool, changes)?;
        if is_successor {
            // What is told already is no delta.
            otlp.go_on(&pipeline.snapshot());
        }
        if config.otlp.is_some() {
            pipeline.begin_with(phase);
        }
        if let Some(hangups) = hangups {
            let hangups = hangups.hear().map_err(Failure::running)?;
            let reload = Reload {
                arguments: arguments.into(),
                instance,
                started: layers.settings.clone(),
                present: layers.settings,
                pipeline: pipeline.changes(),
                collector,
                logs,
                manager: manager.clone(),
            };
            tokio::spawn(reload.at_every(hangups));
        }
        // As a service that exports, the summary would only fill the journal.
        let speaks = config.otlp.is_none() && server.is_none() || speaks || on_terminal();
        let mut stdout = StdoutSink::new(&config, Style::Summaries, None);
        let result = {
            let mut sinks: Vec<&mut dyn Sink> = Vec::new();
            if speaks {
                sinks.push(&mut stdout);
            }
            sinks.push(&mut otlp);
            pipeline.run(&mut Tee(sinks)).await
        };
        manager.stopping();
        drop(server);
        // Detached before the last export: it may take its time.
        drop(pipeline);
        otlp.shutdown().await;
        if let Some(report) = ended(result)? {
            closing_lines(&report);
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// `OTEL_METRIC_EXPORT_INTERVAL`, in milliseconds.
fn standard_interval(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Option<Duration>, String> {
    let Some(value) = lookup(INTERVAL_VARIABLE).filter(|value| !value.trim().is_empty()) else {
        return Ok(None);
    };
    match value.trim().parse() {
        Ok(ms @ 250..) => Ok(Some(Duration::from_millis(ms))),
        _ => Err(format!("{INTERVAL_VARIABLE}={value}: milliseconds are allowed, 250 at least")),
    }
}
