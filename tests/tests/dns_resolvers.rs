//! Real servers and real resolvers: dnsmasq and unbound, asked by the C library, as musl asks, by Python's sockets and by dig over
//! TCP, while tshark captures. The same lookups, and the same latencies, side by side.
//!
//! Takes the packages that [`TOOLS`] names.

#![expect(clippy::print_stdout, reason = "probe and tshark, side by side")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use probe_tests::dns_server::{A, query};
use probe_tests::netns::Netns;
use probe_tests::probe::{DEADLINE, Line, Probe, in_guest, patient, poll};
use probe_tests::require::own_host;
use probe_tests::workload::Workload;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
const TOOLS: &str = "install dnsmasq-base, unbound, bind9-dnsutils, tshark and python3";
const SERVER: &str = "127.0.0.2";
const RESOLVERS: [&str; 4] = ["glibc", "musl", "python", "dig"];
/// Names that each resolver asks for, A and AAAA: of each server 2,000 lookups. Those from [`KNOWN`] on do not exist.
const NAMES: u32 = 250;
const KNOWN: u32 = 200;
/// What probe may be away from tshark in a single lookup: both look at the same packets, but at other places on their way.
const NEAR: f64 = 0.005;
/// Asked for until it is in the capture: all before it is, too.
const SENTINEL: &str = "sentinel.zone.test";

/// Each name of a file, A and AAAA, from a socket of its own.
const PYTHON: &str = r#"
import socket, struct, sys
server, names = sys.argv[1], open(sys.argv[2]).read().split()
for number, name in enumerate(names):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(20)
        for qtype in (1, 28):
            labels = b"".join(bytes([len(label)]) + label for label in name.encode().split(b"."))
            header = struct.pack("!6H", number * 32 + qtype, 0x100, 1, 0, 0, 0)
            sock.sendto(header + labels + b"\0" + struct.pack("!2H", qtype, 1), (server, 53))
            sock.recv(4096)
"#;

/// A directory for one test's files.
struct Files(PathBuf);

impl Files {
    fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("probe-resolvers-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }

    fn write(&self, name: &str, text: &str) -> Result<String> {
        let path = self.path(name);
        std::fs::write(&path, text).with_context(|| path.clone())?;
        Ok(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // The machine's own cleaning takes the rest.
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// A program of another package, and what it starts itself (tshark: dumpcap); killed when dropped.
struct Running(Child);

impl Running {
    fn start(netns: &Netns, program: &str, args: &[&str], output: &str) -> Result<Self> {
        let log = std::fs::File::create(output)?;
        let mut command = Command::new(program);
        command.args(args).process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        netns.place(&mut command);
        Ok(Self(command.spawn().with_context(|| format!("{program}: {TOOLS}"))?))
    }

    fn pid(&self) -> Result<Pid> {
        i32::try_from(self.0.id()).ok().and_then(Pid::from_raw).context("no such pid")
    }

    /// Waits until it ends by itself, with success.
    fn end(mut self, what: &str, log: &str) -> Result<()> {
        let status = poll(what, Duration::from_secs(120), || Ok(self.0.try_wait()?))?;
        ensure!(status.success(), "{what}: {status}: {}", std::fs::read_to_string(log).unwrap_or_default());
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Of one that ended by itself, the number may be another's by now.
        if let (Ok(None), Ok(pid)) = (self.0.try_wait(), self.pid()) {
            let _gone = kill_process_group(pid, Signal::KILL);
        }
        drop(self.0.wait());
    }
}

/// The names of a resolver.
fn names(resolver: &str) -> impl Iterator<Item = String> {
    (0..NAMES).map(move |number| format!("{resolver}{number}.zone.test"))
}

/// Those that exist, with their addresses.
fn data() -> impl Iterator<Item = (String, Ipv4Addr, Ipv6Addr)> {
    RESOLVERS.iter().flat_map(|resolver| (0..KNOWN).zip(names(resolver))).map(|(number, name)| {
        let [.., high, low] = number.to_be_bytes();
        (name, Ipv4Addr::new(10, 9, high, low), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 9, u16::from(low)))
    })
}

/// dnsmasq, with the names as a file of hosts.
fn dnsmasq(netns: &Netns, files: &Files) -> Result<Running> {
    let hosts: String = data().map(|(name, v4, v6)| format!("{v4} {name}\n{v6} {name}\n")).collect();
    let hosts = files.write("hosts", &hosts)?;
    let empty = files.write("dnsmasq.conf", "")?;
    let args = [
        "--keep-in-foreground",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        "--user=root",
        "--pid-file",
        "--log-facility=-",
        "--local=/zone.test/",
        &format!("--conf-file={empty}"),
        &format!("--addn-hosts={hosts}"),
        &format!("--listen-address={SERVER}"),
    ];
    Running::start(netns, "dnsmasq", &args, &files.path("dnsmasq.log"))
}

/// unbound, with the names as local data.
fn unbound(netns: &Netns, files: &Files) -> Result<Running> {
    let data: String = data()
        .map(|(name, v4, v6)| {
            format!("  local-data: \"{name}. A {v4}\"\n  local-data: \"{name}. AAAA {v6}\"\n")
        })
        .collect();
    let config = format!(
        "server:\n  interface: {SERVER}\n  access-control: 127.0.0.0/8 allow\n  username: \"\"\n  chroot: \"\"\n  \
         pidfile: \"\"\n  directory: \"{}\"\n  use-syslog: no\n  do-daemonize: no\n  num-threads: 1\n  \
         module-config: \"iterator\"\n  local-zone: \"zone.test.\" static\n{data}remote-control:\n  control-enable: no\n",
        files.0.display()
    );
    let config = files.write("unbound.conf", &config)?;
    Running::start(netns, "unbound", &["-d", "-c", &config], &files.path("unbound.log"))
}

/// Lookups by what they are, with when they ended and how long they took.
type Lookups = BTreeMap<(&'static str, String, String), Vec<f64>>;

fn transport(tcp: bool) -> &'static str {
    if tcp { "tcp" } else { "udp" }
}

/// Captures what goes over loopback to and from the port.
fn capture(netns: &Netns, files: &Files) -> Result<Running> {
    let file = files.path("capture.pcapng");
    let args = ["-i", "lo", "-f", "port 53", "-B", "64", "-q", "-w", &file];
    let tshark = Running::start(netns, "tshark", &args, &files.path("tshark.log"))?;
    // A row for its socket: it listens.
    let listens = poll("tshark listens", Duration::from_secs(30), || {
        Ok((netns.proc_net("packet")?.lines().count() > 1).then_some(()))
    });
    listens.with_context(|| std::fs::read_to_string(files.path("tshark.log")).unwrap_or_default())?;
    Ok(tshark)
}

/// Ends a capture that has all, and reads it.
fn captured(netns: &Netns, files: &Files, tshark: Running) -> Result<Lookups> {
    let file = files.path("capture.pcapng");
    let socket = netns.run(|| UdpSocket::bind("127.0.0.1:0"))??;
    socket.set_read_timeout(Some(patient(DEADLINE)))?;
    let mut id = 0;
    poll("the end of the capture", Duration::from_secs(30), || {
        id += 1;
        socket.send_to(&query(id, SENTINEL, A), (SERVER, 53))?;
        socket.recv_from(&mut [0; 512])?;
        let octets = std::fs::read(&file)?;
        let label = b"sentinel";
        Ok(octets.windows(label.len()).any(|window| window == label).then_some(()))
    })?;
    kill_process(tshark.pid()?, Signal::INT)?;
    tshark.end("tshark", &files.path("tshark.log"))?;
    let output = Command::new("tshark")
        .args(["-r", &file, "-Y", "dns.flags.response == 1", "-T", "fields", "-E", "occurrence=f"])
        .args(["-e", "ip.proto", "-e", "dns.qry.name", "-e", "dns.qry.type", "-e", "dns.time"])
        .output()
        .context(TOOLS)?;
    ensure!(output.status.success(), "tshark: {}", String::from_utf8_lossy(&output.stderr));
    let mut lookups = Lookups::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [protocol, name, qtype, time] = fields[..] else { anyhow::bail!("not four fields: {line:?}") };
        if name == SENTINEL {
            continue;
        }
        let qtype = match qtype {
            "1" => "A",
            "28" => "AAAA",
            _ => anyhow::bail!("another type: {line:?}"),
        };
        let key = (transport(protocol == "6"), name.to_owned(), qtype.to_owned());
        lookups.entry(key).or_default().push(time.parse().with_context(|| format!("no time: {line:?}"))?);
    }
    Ok(lookups)
}

/// Each resolver asks for its names; by what process.
fn resolve(netns: &Netns, files: &Files) -> Result<BTreeMap<&'static str, u32>> {
    let mut pids = BTreeMap::new();
    let mut lists = BTreeMap::new();
    for resolver in RESOLVERS {
        let lines: Vec<String> = names(resolver).collect();
        lists.insert(resolver, files.write(resolver, &lines.join("\n"))?);
    }
    let list = |resolver: &str| lists.get(resolver).context("just written");
    let mut glibc = netns.run(|| Workload::start(WORKLOAD))??;
    let resolv =
        files.write("resolv.conf", &format!("nameserver {SERVER}\noptions timeout:20 attempts:1\n"))?;
    let switch = files.write("nsswitch.conf", "hosts: dns\n")?;
    glibc.tell(&format!("configure {resolv} /etc/resolv.conf"))?;
    glibc.tell(&format!("configure {switch} /etc/nsswitch.conf"))?;
    glibc.tell(&format!("resolve {}", list("glibc")?))?;
    pids.insert("glibc", glibc.pid());
    glibc.end()?;
    let mut musl = netns.run(|| Workload::start(WORKLOAD))??;
    musl.tell(&format!("unconnected {SERVER}:53 {}", list("musl")?))?;
    pids.insert("musl", musl.pid());
    musl.end()?;
    let script = files.write("ask.py", PYTHON)?;
    let log = files.path("python.log");
    let python = Running::start(netns, "python3", &[&script, SERVER, list("python")?], &log)?;
    pids.insert("python", python.0.id());
    python.end("python3", &log)?;
    let batch: String = names("dig").map(|name| format!("{name} A\n{name} AAAA\n")).collect();
    let batch = files.write("batch", &batch)?;
    let log = files.path("dig.log");
    let server = format!("@{SERVER}");
    let dig = Running::start(netns, "dig", &[&server, "+tcp", "+tries=1", "+time=20", "-f", &batch], &log)?;
    pids.insert("dig", dig.0.id());
    dig.end("dig", &log)?;
    Ok(pids)
}

fn resolver_of(name: &str) -> Option<&'static str> {
    RESOLVERS.into_iter().find(|resolver| name.starts_with(resolver))
}

/// The value below which this share of the values lies.
fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (values.len() as f64 * share) as usize;
    values.get(at.min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// Waits until a server answers.
fn wait_for(netns: &Netns, log: &Path) -> Result<()> {
    let socket = netns.run(|| UdpSocket::bind("127.0.0.1:0"))??;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    poll("the server answers", Duration::from_secs(60), || {
        let asked = socket.send_to(&query(1, "first.zone.test", A), (SERVER, 53));
        Ok(asked.and_then(|_len| socket.recv_from(&mut [0; 512])).is_ok().then_some(()))
    })
    .with_context(|| std::fs::read_to_string(log).unwrap_or_default())
}

type Start = fn(&Netns, &Files) -> Result<Running>;

fn compare(server: &str, start: Start) -> Result<()> {
    if in_guest() {
        return own_host(server);
    }
    let (netns, files) = (Netns::new()?, Files::new()?);
    let _server = start(&netns, &files)?;
    wait_for(&netns, Path::new(&files.path(&format!("{server}.log"))))?;
    let tshark = capture(&netns, &files)?;
    let probe = Probe::start(&["dns"])?;
    let pids = resolve(&netns, &files)?;
    let total = RESOLVERS.len() * 2 * NAMES as usize;
    let ours = |lines: &[Line]| -> Vec<Line> {
        let inode = i64::from(netns.inode());
        let is_ours = |line: &&Line| line.event() == "dns.lookup" && line.int("linux.netns") == Some(inode);
        lines.iter().filter(is_ours).cloned().collect()
    };
    probe.wait_for("all lookups", DEADLINE, |lines| (ours(lines).len() >= total).then_some(()))?;
    let finished = probe.stop()?;
    finished.require_complete()?;
    let tshark = captured(&netns, &files, tshark)?;

    let mut seen = Lookups::new();
    for line in ours(&finished.lines) {
        let text = |key| line.text(key).unwrap_or_default();
        let name = text("dns.question.name");
        let resolver = resolver_of(name).with_context(|| line.0.to_string())?;
        ensure!(
            line.int("process.pid") == pids.get(resolver).map(|pid| i64::from(*pid)),
            "{resolver}: {}",
            line.0
        );
        ensure!(text("dns.outcome") == "answered" && line.int("dns.attempt") == Some(1), "{}", line.0);
        ensure!(text("server.address") == SERVER && line.int("server.port") == Some(53), "{}", line.0);
        let number: u32 = name.trim_start_matches(resolver).split('.').next().unwrap_or_default().parse()?;
        let (rcode, answers) = if number < KNOWN { ("NOERROR", 1) } else { ("NXDOMAIN", 0) };
        ensure!(text("dns.response_code") == rcode && line.int("dns.answers") == Some(answers), "{}", line.0);
        let key = (
            transport(text("network.transport") == "tcp"),
            name.to_owned(),
            text("dns.question.type").to_owned(),
        );
        seen.entry(key).or_default().push(line.float("duration").context("no duration")?);
    }
    let counts = |lookups: &Lookups| -> BTreeMap<_, usize> {
        lookups.iter().map(|(key, times)| (key.clone(), times.len())).collect()
    };
    let (of_probe, of_tshark) = (counts(&seen), counts(&tshark));
    let differences: Vec<_> = of_probe
        .keys()
        .chain(of_tshark.keys())
        .filter(|key| of_probe.get(*key) != of_tshark.get(*key))
        .collect();
    ensure!(differences.is_empty(), "not as often at both: {differences:?}");
    ensure!(of_probe.values().sum::<usize>() == total, "not {total}");

    println!("{server}: microseconds  probe                     tshark                    apart");
    println!(
        "                  n      p50      p99      max       p50      p99      max     p50      p99      max"
    );
    for resolver in RESOLVERS {
        let (mut ours, mut theirs, mut apart) = (Vec::new(), Vec::new(), Vec::new());
        for (key, times) in seen.iter().filter(|((_, name, _), _)| resolver_of(name) == Some(resolver)) {
            ensure!(key.0 == transport(resolver == "dig"), "{key:?}");
            for (probe, tshark) in times.iter().zip(tshark.get(key).context("as often")?) {
                ours.push(probe * 1e6);
                theirs.push(tshark * 1e6);
                apart.push((probe - tshark).abs() * 1e6);
            }
        }
        let columns: Vec<String> = [&mut ours, &mut theirs, &mut apart]
            .into_iter()
            .flat_map(|values| [0.5, 0.99, 1.0].map(|share| format!("{:8.0}", quantile(values, share))))
            .collect();
        println!("  {resolver:<8} {:>8} {}", ours.len(), columns.join(" "));
        let middle = quantile(&mut apart, 0.5);
        ensure!(middle < NEAR * 1e6, "{resolver}: {middle} µs from what tshark saw");
        let worst = quantile(&mut apart, 0.99);
        ensure!(worst < 4.0 * NEAR * 1e6, "{resolver}: {worst} µs from what tshark saw, of one in a hundred");
    }
    Ok(())
}

#[test]
fn dnsmasq_as_tshark_saw_it() -> Result<()> {
    compare("dnsmasq", dnsmasq)
}

#[test]
fn unbound_as_tshark_saw_it() -> Result<()> {
    compare("unbound", unbound)
}
