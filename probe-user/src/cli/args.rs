//! Flags that the live commands and `run` share, and how they become a [`Config`].

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{Failure, defaults};
use crate::config::{CgroupFilter, Config, DnsOptions, Output, Sizes, SyscallOptions, TcpOptions};
use crate::entity::kube::{KubeletConfig, KubeletFlags};
use crate::signals::syscalls::names;

/// Shared flags.
#[derive(Debug, Args)]
pub(super) struct Shared {
    /// Stop after this time, e.g. 30s, 5m
    #[arg(long, value_name = "TIME", value_parser = positive)]
    pub(super) duration: Option<Duration>,
    /// How much time a summary or table covers; for `run` also the export period
    #[arg(long, value_name = "TIME", value_parser = interval)]
    pub(super) interval: Option<Duration>,
    /// Form of the output
    #[arg(short, long, value_name = "FORM")]
    pub(super) output: Option<Output>,
    /// Stop after this many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) count: Option<u64>,
    /// Say more on stderr; twice for more still
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,

    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    kube: KubeArgs,
    #[command(flatten)]
    limits: LimitArgs,
}

/// What the commands that show TCP events find out about peers.
#[derive(Debug, Args)]
pub(super) struct PeerArgs {
    /// Say where NAT sends a connection's packets (the pod behind a service's address): asks the connection tracking of the
    /// network namespace in which probe runs, and keeps CAP_NET_ADMIN for that. Of connections refused at once it knows nothing
    /// any more
    #[arg(long)]
    nat: bool,
    /// Do not look into DNS answers for the names of peers. That looks at every packet that reaches a socket, and takes CAP_NET_ADMIN
    /// and cgroup v2 to attach; without them, peers have no names
    #[arg(long)]
    no_names: bool,
}

impl PeerArgs {
    /// Puts them into options.
    pub(super) fn apply(&self, options: &mut TcpOptions) {
        options.nat = self.nat;
        options.names = !self.no_names;
    }
}

/// What `probe dns` and `run` take for a lookup: each flag once, under the name that it has there.
macro_rules! lookup_args {
    ($name:ident, $port:literal, $timeout:literal, $servers:literal) => {
        /// What is taken for a lookup.
        #[derive(Debug, Args)]
        pub(super) struct $name {
            /// Ports of DNS servers, at most four
            #[arg(long = $port, value_name = "PORT", value_delimiter = ',', default_value = "53", num_args = 1..,
                  value_parser = clap::value_parser!(u16).range(1..))]
            ports: Vec<u16>,
            /// After this time without an answer a lookup is unanswered
            #[arg(long = $timeout, value_name = "TIME", value_parser = positive, default_value = "5s")]
            timeout: Duration,
            /// Look at the DNS servers of this host from their end too: what they answer is told apart from what is asked
            /// (dns.role=server)
            #[arg(long = $servers)]
            servers: bool,
        }

        impl $name {
            /// Puts them into options.
            pub(super) fn apply(self, options: &mut DnsOptions) -> Result<(), Failure> {
                let Self { ports, timeout, servers } = self;
                let (given, most) = (ports.len(), probe_common::settings::DNS_PORTS);
                if given > most {
                    return Err(Failure::usage(format!(
                        "--{}: {given} ports given, at most {most} are allowed",
                        $port
                    )));
                }
                options.ports = ports;
                options.timeout = timeout;
                options.servers = servers;
                Ok(())
            }
        }
    };
}
lookup_args!(LookupArgs, "port", "timeout", "servers");
lookup_args!(RunLookupArgs, "dns-port", "dns-timeout", "dns-servers");

/// What `probe syscalls` and `run` do with system calls: each flag once, under the name that it has there.
macro_rules! call_args {
    ($name:ident, $slower_than:literal, $sample:literal, $no_latency:literal) => {
        /// What is done with system calls.
        #[derive(Debug, Args)]
        pub(super) struct $name {
            /// A call that takes at least this time is an event of its own, and one that has not returned by then is told of while
            /// it hangs; single calls may have another: 100ms,fsync=1s,openat=10ms (calls that wait by design only so)
            #[arg(long = $slower_than, value_name = "TIME", value_delimiter = ',', default_value = "100ms",
                                                  value_parser = threshold)]
            slower_than: Vec<(Option<&'static str>, Duration)>,
            /// Measure one call in N, at random; counts and errors stay exact, slow calls are still caught, but their durations may
            /// be a tick of the kernel (1 to 10 ms) too long. Each that is measured stands for those before it: what rests on K calls is
            /// off by about the root of 4N/3K (16 of 10,000: 5 %)
            #[arg(long = $sample, value_name = "N", conflicts_with = "no_latency",
                                                  value_parser = clap::value_parser!(u32).range(1..=65_536))]
            latency_sample: Option<u32>,
            /// Measure none: counts and errors only, and no slow calls
            #[arg(long = $no_latency)]
            no_latency: bool,
        }

        impl $name {
            /// Puts them into options.
            pub(super) fn apply(self, options: &mut SyscallOptions) -> Result<(), Failure> {
                let Self { slower_than, latency_sample, no_latency } = self;
                for (name, threshold) in slower_than {
                    match name {
                        None => options.slower_than.usual = threshold,
                        Some(name) if options.slower_than.own(name).is_some() => {
                            return Err(Failure::usage(format!("--{}: {name} is there twice", $slower_than)));
                        }
                        Some(name) => options.slower_than.own.push((name, threshold)),
                    }
                }
                options.latency_every = if no_latency { 0 } else { latency_sample.unwrap_or(1) };
                Ok(())
            }
        }
    };
}
call_args!(CallArgs, "slower-than", "latency-sample", "no-latency");
call_args!(RunCallArgs, "syscall-slower-than", "syscall-latency-sample", "syscall-no-latency");

/// `100ms`, or `fsync=1s`.
fn threshold(text: &str) -> Result<(Option<&'static str>, Duration), String> {
    let Some((name, time)) = text.split_once('=') else { return Ok((None, positive(text)?)) };
    let known = names::known(name).ok_or_else(|| super::syscalls::unknown(name))?;
    Ok((Some(known), positive(time)?))
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Filters (applied in the kernel, all together)")]
struct FilterArgs {
    /// Only this process
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pid: Option<u32>,
    /// Only processes of this name (at most 15 bytes, as in /proc/PID/comm)
    #[arg(long, value_parser = comm)]
    comm: Option<[u8; 16]>,
    /// Only this cgroup (v2) and what is below it
    #[arg(long, value_name = "PATH", conflicts_with = "container")]
    cgroup: Option<PathBuf>,
    /// Only the container whose id begins so
    #[arg(long, value_name = "ID-PREFIX", value_parser = container)]
    container: Option<String>,
    /// Only this pod of this node, as it runs when the command begins; asks the kubelet
    #[arg(long, value_name = "NS/NAME", value_parser = pod, conflicts_with_all = ["cgroup", "container"])]
    pod: Option<(String, String)>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Kubernetes")]
struct KubeArgs {
    /// Kubelet that is asked for the names of this node's pods: https://10.0.0.7:10250, http://127.0.0.1:10255, or off. auto: where
    /// probe runs in a pod, at $NODE_IP, $PROBE_NODE_IP or the node's name
    #[arg(long, value_name = "URL", env = "PROBE_KUBELET", default_value = "auto", hide_env_values = true)]
    kubelet: String,
    /// Token to show the kubelet, read anew for each request [default: the service account's]
    #[arg(long, value_name = "FILE")]
    kubelet_token_file: Option<PathBuf>,
    /// Authorities (PEM) whose word is taken for the kubelet's certificate [default: the service account's, else the system's]
    #[arg(long, value_name = "FILE", conflicts_with = "kubelet_insecure_tls")]
    kubelet_ca: Option<PathBuf>,
    /// Believe whoever answers, whatever the certificate; the token goes there, too
    #[arg(long)]
    kubelet_insecure_tls: bool,
    /// Labels of pods to tell: k8s.pod.label.<KEY> on resources, k8s_pod_label_<KEY> for Prometheus
    #[arg(long, value_name = "KEYS", value_delimiter = ',')]
    kube_labels: Vec<String>,
}

impl KubeArgs {
    /// Who is asked, if anybody.
    fn resolve(&self) -> Result<Option<KubeletConfig>, Failure> {
        let Self { kubelet, kubelet_token_file, kubelet_ca, kubelet_insecure_tls, kube_labels } = self;
        let flags = KubeletFlags {
            kubelet: Some(kubelet.clone()),
            token_file: kubelet_token_file.clone(),
            ca: kubelet_ca.clone(),
            insecure_tls: *kubelet_insecure_tls,
            labels: kube_labels.clone(),
        };
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        KubeletConfig::resolve(flags, &|key| std::env::var(key).ok(), &|path| path.exists(), &host)
            .map_err(|error| Failure::usage(error.to_string()))
    }
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Limits and kernel")]
struct LimitArgs {
    /// BTF file to use where the kernel brings none in /sys/kernel/btf/vmlinux
    #[arg(long, value_name = "FILE")]
    btf: Option<PathBuf>,
    /// KiB of a ring buffer, a power of two (dns and names have four times that)
    #[arg(long, value_name = "KIB", default_value_t = Sizes::default().ring_kib,
          value_parser = ring_kib)]
    ring_kib: u32,
    /// Sockets whose owner is kept, and whose segments are counted
    #[arg(long, value_name = "N", default_value_t = Sizes::default().tcp_sockets,
          value_parser = clap::value_parser!(u32).range(64..=4_194_304))]
    tcp_sockets: u32,
    /// Cgroups that have TCP totals of their own
    #[arg(long, value_name = "N", default_value_t = Sizes::default().max_cgroups,
          value_parser = clap::value_parser!(u32).range(1..=65_536))]
    max_cgroups: u32,
    /// DNS questions that can wait for their answer at a time
    #[arg(long, value_name = "N", default_value_t = Sizes::default().dns_pending,
          value_parser = clap::value_parser!(u32).range(16..=1_048_576))]
    dns_pending: u32,
    /// (process, system call, CPU) triples that have figures of their own
    #[arg(long, value_name = "N", default_value_t = Sizes::default().syscall_blocks,
          value_parser = clap::value_parser!(u32).range(64..=1_048_576))]
    syscall_blocks: u32,
    /// Threads that can sleep inside a system call at a time
    #[arg(long, value_name = "N", default_value_t = Sizes::default().syscall_threads,
          value_parser = clap::value_parser!(u32).range(64..=4_194_304))]
    syscall_threads: u32,
}

impl Shared {
    /// Starts logging, and makes a configuration of the flags.
    pub(super) fn resolve(&self, default_interval: Duration) -> Result<Config, Failure> {
        let program_log_level =
            super::logging::start(self.verbose, super::logging::LogFormat::Text)?.program_level;
        let config = self.config(self.interval.unwrap_or(default_interval))?;
        Ok(Config { program_log_level, ..config })
    }

    /// The same, with another interval than the flags', and without logging.
    pub(super) fn config(&self, interval: Duration) -> Result<Config, Failure> {
        let mut config = defaults(interval)?;
        config.duration = self.duration;
        config.count = self.count;
        config.output = self.output.unwrap_or(Output::Table);
        config.filter.pid = self.filter.pid;
        config.filter.comm = self.filter.comm;
        let FilterArgs { pid: _, comm: _, cgroup, container, pod } = &self.filter;
        config.filter.cgroup = match (cgroup, container, pod) {
            (Some(path), _, _) => Some(CgroupFilter::Path(path.clone())),
            (None, Some(prefix), _) => Some(CgroupFilter::Container(prefix.clone())),
            (None, None, Some((namespace, name))) => Some(CgroupFilter::Pod(namespace.clone(), name.clone())),
            (None, None, None) => None,
        };
        config.kubelet = self.kube.resolve()?;
        config.btf = self.limits.btf.clone();
        let LimitArgs {
            btf: _,
            ring_kib,
            tcp_sockets,
            max_cgroups,
            dns_pending,
            syscall_blocks,
            syscall_threads,
        } = self.limits;
        config.sizes =
            Sizes { ring_kib, tcp_sockets, max_cgroups, dns_pending, syscall_blocks, syscall_threads };
        Ok(config)
    }
}

/// A time above zero.
pub(super) fn positive(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        Ok(_) => Err("it must be longer than 0".to_owned()),
        Err(error) => Err(format!("{error}; write a number and a unit: 100ms, 10s, 5m")),
    }
}

/// An interval that a person can follow and a collector can bear.
fn interval(text: &str) -> Result<Duration, String> {
    const SHORTEST: Duration = Duration::from_millis(250);
    let interval = positive(text)?;
    if interval < SHORTEST { Err(format!("the shortest is {SHORTEST:?}")) } else { Ok(interval) }
}

fn comm(text: &str) -> Result<[u8; 16], String> {
    let mut comm = [0; 16];
    if text.is_empty() || text.len() > 15 {
        return Err(format!("1 to 15 bytes are allowed, this has {}", text.len()));
    }
    for (slot, byte) in comm.iter_mut().zip(text.bytes()) {
        *slot = byte;
    }
    Ok(comm)
}

fn container(text: &str) -> Result<String, String> {
    if text.is_empty()
        || !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    {
        return Err("the beginning of a container's id: letters and digits".to_owned());
    }
    Ok(text.to_owned())
}

fn pod(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        Some(_) | None => Err("a namespace and a pod's name: shop/web-5d78c9869d-abcde".to_owned()),
    }
}

fn ring_kib(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(kib @ 4..=65_536) if u32::is_power_of_two(kib) => Ok(kib),
        _ => Err("a power of two from 4 to 65536".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(interval("1s"), Ok(Duration::from_secs(1)));
        for bad in ["0s", "10", "soon", "-1s", "1ms", ""] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn thresholds() {
        assert_eq!(threshold("5s"), Ok((None, Duration::from_secs(5))));
        assert_eq!(threshold("fsync=1s"), Ok((Some("fsync"), Duration::from_secs(1))));
        for bad in ["fsnyc=1s", "=1s", "fsync=", "fsync=0s", "fsync=1", "1"] {
            assert!(threshold(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_of_processes_are_at_most_fifteen_bytes() {
        assert_eq!(comm("nginx").map(|comm| comm.starts_with(b"nginx\0")), Ok(true));
        assert!(comm("").is_err());
        assert!(comm("0123456789abcdef").is_err());
    }

    #[test]
    fn rings_are_powers_of_two() {
        assert_eq!(ring_kib("256"), Ok(256));
        for bad in ["0", "3", "100", "131072", "-4", "x"] {
            assert!(ring_kib(bad).is_err(), "{bad}");
        }
    }
}
