//! The image at work: what the kernel counts is what comes out of the container.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::MetadataExt as _,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::thread::UnshareFlags;
use serde_json::Value;

use super::docker::{Docker, poll};
use crate::process::{self, say, show};

const NAME: &str = "probe-check";
const PATIENCE: Duration = Duration::from_secs(60);
/// How many connections are refused.
const REFUSED: u64 = 200;
const ALWAYS: &[&str] = &["--rm", "--pid=host", "--network=host"];
/// As deploy/container/README.md has them; a test compares.
const LEAST: &[&str] = &[
    "--cap-drop=ALL",
    "--cap-add=BPF",
    "--cap-add=PERFMON",
    "--cap-add=NET_ADMIN",
    "--cap-add=SYS_PTRACE",
    "--cap-add=DAC_READ_SEARCH",
    "--read-only",
    "--security-opt=no-new-privileges",
];

/// Once with every privilege, and once with those that it needs.
pub(super) fn traces_the_host(docker: &Docker, image: &str) -> Result<()> {
    for (how, flags) in [("privileged", &["--privileged"][..]), ("least privilege", LEAST)] {
        traces(docker, image, flags).with_context(|| format!("the image, {how}"))?;
    }
    Ok(())
}

fn traces(docker: &Docker, image: &str, flags: &[&str]) -> Result<()> {
    let page = free_address()?;
    let mut command = docker.command(["run", "--name", NAME]);
    command.args(ALWAYS).args(flags).arg(image);
    command.args(["run", "-o", "json", "--prometheus-listen", &page.to_string()]);
    say(format_args!("+ {}", show(&command)));
    let mut agent = Agent::start(docker, command)?;
    let ready = poll("the agent is ready", PATIENCE, || {
        if let Some(status) = agent.child.try_wait()? {
            bail!("it ended, {status}");
        }
        Ok(get(page, "/readyz").ok().filter(|answer| answer.contains(" 200 ")))
    })?;
    let signals = ready.lines().last().unwrap_or_default();
    ensure!(["tcp", "dns", "syscalls"].iter().all(|signal| signals.contains(signal)), "{signals}");

    let before = refused_on(&get(page, "/metrics")?);
    let traffic = thread::spawn(refuse).join().ok().context("the traffic fell over")??;
    let counted = poll("the page has them", PATIENCE, || {
        let now = refused_on(&get(page, "/metrics")?) - before;
        Ok((now >= traffic.failed).then_some(now))
    })?;

    process::output(&mut docker.command(["stop", NAME]))?;
    let lines = agent.end()?;
    let of_ours = |line: &&Value| {
        line.get("event").and_then(Value::as_str) == Some("tcp.connect")
            && line.get("linux.netns").and_then(Value::as_u64) == Some(traffic.netns)
            && line.get("error.type").and_then(Value::as_str) == Some("ECONNREFUSED")
    };
    let ours: Vec<&Value> = lines.iter().filter(of_ours).collect();
    let seen = u64::try_from(ours.len())?;
    ensure!(
        seen == traffic.failed && traffic.failed == REFUSED,
        "{seen} refused connections seen, the kernel counts {}",
        traffic.failed
    );
    let own = u64::from(std::process::id());
    let is_named = |line: &&&Value| line.get("process.pid").and_then(Value::as_u64) == Some(own);
    let named = ours.iter().filter(is_named).count();
    ensure!(named == ours.len(), "{named} of {seen} are known to be of process {own}");
    say(format_args!(
        "{signals}: {seen} refused connections seen, all of process {own}; the kernel counts {} (AttemptFails), the page {counted}",
        traffic.failed
    ));
    Ok(())
}

/// What was done, as the kernel has it.
struct Traffic {
    netns: u64,
    /// AttemptFails.
    failed: u64,
}

/// Connections that nobody takes, in a network namespace of this thread's own.
fn refuse() -> Result<Traffic> {
    #[expect(unsafe_code, reason = "rustix marks it so for file descriptors, which stay shared here")]
    // SAFETY: of what threads share, only the network namespace is left behind.
    unsafe {
        rustix::thread::unshare_unsafe(UnshareFlags::NEWNET)?;
    }
    process::run(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    for _time in 0..REFUSED {
        let refused = TcpStream::connect((Ipv4Addr::LOCALHOST, 9));
        ensure!(refused.is_err(), "somebody listens in an empty network namespace");
    }
    let snmp = fs::read_to_string("/proc/thread-self/net/snmp")?;
    let failed = counter(&snmp, "Tcp:", "AttemptFails").context("no AttemptFails")?;
    Ok(Traffic { netns: fs::metadata("/proc/thread-self/ns/net")?.ino(), failed })
}

/// Two lines of one prefix: names, then values.
fn counter(snmp: &str, prefix: &str, name: &str) -> Option<u64> {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix(prefix));
    let (names, values) = (lines.next()?, lines.next()?);
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    pairs.find(|(found, _)| *found == name)?.1.parse().ok()
}

/// Sum over all series.
fn refused_on(page: &str) -> u64 {
    let series = page.lines().filter(|line| {
        line.starts_with("system_network_tcp_connections_total{")
            && line.contains("error_type=\"ECONNREFUSED\"")
    });
    let values = series.filter_map(|line| line.rsplit_once("} ")?.1.split(' ').next()?.parse::<u64>().ok());
    values.sum()
}

/// The container, in the foreground.
struct Agent<'a> {
    docker: &'a Docker,
    child: Child,
    lines: Option<thread::JoinHandle<Vec<Value>>>,
}

impl<'a> Agent<'a> {
    fn start(docker: &'a Docker, mut command: Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("docker run")?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let lines = thread::spawn(move || {
            let lines = BufReader::new(stdout).lines().map_while(Result::ok);
            let kept = lines.filter(|line| line.contains("tcp.connect"));
            kept.filter_map(|line| serde_json::from_str(&line).ok()).collect()
        });
        Ok(Self { docker, child, lines: Some(lines) })
    }

    fn end(&mut self) -> Result<Vec<Value>> {
        let status = self.child.wait()?;
        ensure!(status.success(), "the agent ended with {status}");
        let lines = self.lines.take().and_then(|lines| lines.join().ok());
        lines.context("nobody read what it wrote")
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        if self.lines.is_some() {
            let mut remove = self.docker.command(["rm", "--force", NAME]);
            let _gone = remove.stdout(Stdio::null()).stderr(Stdio::null()).status();
            let _reaped = self.child.wait();
        }
    }
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: check\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::repo_root;

    #[test]
    fn the_flags_that_are_tried_are_those_of_the_readme() {
        let readme = repo_root().unwrap().join("deploy/container/README.md");
        let readme = fs::read_to_string(readme).unwrap();
        for flag in ALWAYS.iter().chain(LEAST).filter(|flag| **flag != "--rm") {
            assert!(readme.contains(flag), "{flag}");
        }
        let capabilities = readme.split_whitespace().filter(|word| word.starts_with("--cap-add="));
        for capability in capabilities {
            assert!(LEAST.contains(&capability), "{capability}");
        }
    }

    #[test]
    fn counters_of_the_kernel() {
        let snmp = "Ip: A B\nIp: 1 2\nTcp: RtoMin AttemptFails\nTcp: 200 7\n";
        assert_eq!(counter(snmp, "Tcp:", "AttemptFails"), Some(7));
        assert_eq!(counter(snmp, "Ip:", "B"), Some(2));
        assert_eq!(counter(snmp, "Udp:", "B"), None);
    }

    #[test]
    fn refused_connections_of_a_page() {
        let page = "# TYPE x counter\nsystem_network_tcp_connections_total{error_type=\"ECONNREFUSED\",a=\"b\"} 3\nsystem_network_tcp_connections_total{error_type=\"ETIMEDOUT\"} 4\nsystem_network_tcp_connections_total{container_id=\"c\",error_type=\"ECONNREFUSED\"} 5\n";
        assert_eq!(refused_on(page), 8);
    }
}
