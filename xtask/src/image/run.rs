//! The image at work: what the kernel counts is what comes out of the container.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::thread::UnshareFlags;
use serde_json::{Value, json};

use super::docker::{Docker, poll};
use crate::process::{self, say, show};

const NAME: &str = "probe-check";
const PATIENCE: Duration = Duration::from_secs(60);
const CGROUPS: &str = "/sys/fs/cgroup";
/// How many connections are refused.
const REFUSED: u64 = 200;
const ALWAYS: &[&str] =
    &["--rm", "--pid=host", "--network=host", "--volume=/sys/fs/cgroup:/sys/fs/cgroup:ro"];
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

/// For Docker 20.10, as Debian 12 has it, which knows neither BPF nor PERFMON: what the kernel takes for both.
const OLDER: [(&str, &str); 1] = [("--cap-add=BPF", "--cap-add=SYS_ADMIN")];
const UNKNOWN_TO_OLDER: &str = "--cap-add=PERFMON";
/// In place of `--privileged` where the machine itself lacks a capability, as some virtual ones do: runc cannot give what it has not.
const NEARLY_ALL: &[&str] =
    &["--cap-add=ALL", "--cap-drop=SYS_RESOURCE", "--security-opt=seccomp=unconfined"];

/// Once with every privilege, and once with those that it needs.
pub(super) fn traces_the_host(docker: &Docker, image: &str, tree: &Path) -> Result<()> {
    let is_taken = |flags: &[&str]| -> Result<Result<(), String>> {
        let mut command = docker.command(["run", "--rm", "--network=none"]);
        let said = command.args(flags).args([image, "--version"]).stdin(Stdio::null()).output()?;
        let refusal = String::from_utf8_lossy(&said.stderr).lines().next().unwrap_or_default().to_owned();
        Ok(if said.status.success() { Ok(()) } else { Err(refusal) })
    };
    let docker_with = |flags: &[&str]| {
        let mut command = docker.command(["run", "--name", NAME]);
        command.args(ALWAYS).args(flags).arg(image);
        let (stop, remove) = (docker.command(["stop", NAME]), docker.command(["rm", "--force", NAME]));
        Container { command, stop, remove }
    };
    let privileged = match is_taken(&["--privileged"])? {
        Ok(()) => &["--privileged"][..],
        Err(refusal) => {
            say(format_args!("WARNING: --privileged IS NOT TO BE HAD HERE: {refusal}"));
            NEARLY_ALL
        }
    };
    traces(docker_with(privileged), Arguments::ToGive).context("the image with every privilege")?;
    match is_taken(LEAST)? {
        Ok(()) => traces(docker_with(LEAST), Arguments::ToGive).context("the image with least privilege"),
        Err(refusal) if refusal.contains("unknown capability") => {
            say(format_args!("WARNING: {refusal}"));
            let known = LEAST.iter().filter(|flag| **flag != UNKNOWN_TO_OLDER);
            let in_place = |flag: &&str| OLDER.iter().find(|(new, _)| new == flag).map(|(_, old)| *old);
            let older: Vec<&str> = known.map(|flag| in_place(flag).unwrap_or(flag)).collect();
            traces(docker_with(&older), Arguments::ToGive)
                .context("the image with SYS_ADMIN in place of BPF and PERFMON")?;
            say("in a container of runc's own, with the capabilities as documented:");
            let bundle = Bundle::make(tree)?;
            traces(bundle.container(), bundle.arguments()).context("the image's tree with least privilege")
        }
        Err(refusal) => bail!("{refusal}"),
    }
}

/// How a container is started, ended, and got rid of.
struct Container {
    command: Command,
    stop: Command,
    remove: Command,
}

/// What runc takes: a tree, and how to run it.
struct Bundle {
    directory: PathBuf,
    page: SocketAddr,
}

impl Bundle {
    /// Capabilities and the rest as [`LEAST`] says it to Docker; but for seccomp, of which runc has no profile of its own.
    fn make(tree: &Path) -> Result<Self> {
        let directory = tree.with_file_name("bundle");
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir(&directory)?;
        process::run(Command::new("runc").arg("spec").current_dir(&directory))?;
        let (path, page) = (directory.join("config.json"), free_address()?);
        let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
        let capabilities: Vec<String> = LEAST
            .iter()
            .filter_map(|flag| flag.strip_prefix("--cap-add="))
            .map(|name| format!("CAP_{name}"))
            .collect();
        let mut set = |pointer: &str, value: Value| -> Result<()> {
            *config
                .pointer_mut(pointer)
                .with_context(|| format!("runc's specification has no {pointer}"))? = value;
            Ok(())
        };
        set("/root/path", json!(tree.canonicalize()?))?;
        set("/root/readonly", json!(true))?;
        set("/process/terminal", json!(false))?;
        set("/process/noNewPrivileges", json!(true))?;
        set(
            "/process/capabilities",
            json!({ "bounding": capabilities, "effective": capabilities, "permitted": capabilities }),
        )?;
        let address = page.to_string();
        set("/process/args", json!(["/probe", "run", "-o", "json", "--prometheus-listen", address]))?;
        // Without one of its own it has the host's.
        set("/linux/namespaces", json!([{ "type": "mount" }, { "type": "ipc" }, { "type": "uts" }]))?;
        let mounts = config.pointer_mut("/mounts").and_then(Value::as_array_mut).context("no mounts")?;
        let cgroups = |mount: &Value| mount.get("destination").and_then(Value::as_str) == Some(CGROUPS);
        mounts.retain(|mount| !cgroups(mount));
        mounts.push(
            json!({ "destination": CGROUPS, "type": "bind", "source": CGROUPS, "options": ["rbind", "ro"] }),
        );
        fs::write(path, serde_json::to_vec(&config)?)?;
        Ok(Self { directory, page })
    }

    fn container(&self) -> Container {
        let runc = |args: &[&str]| {
            let mut command = Command::new("runc");
            command.arg("--root").arg(self.directory.join("state")).args(args);
            command
        };
        let mut command = runc(&["run", "--bundle"]);
        command.arg(&self.directory).arg(NAME);
        Container { command, stop: runc(&["kill", NAME, "TERM"]), remove: runc(&["delete", "--force", NAME]) }
    }

    /// They are in the bundle.
    fn arguments(&self) -> Arguments {
        Arguments::Given(self.page)
    }
}

/// Of the agent.
enum Arguments {
    ToGive,
    Given(SocketAddr),
}

fn traces(container: Container, arguments: Arguments) -> Result<()> {
    let Container { mut command, mut stop, remove } = container;
    let page = match arguments {
        Arguments::ToGive => {
            let page = free_address()?;
            command.args(["run", "-o", "json", "--prometheus-listen", &page.to_string()]);
            page
        }
        Arguments::Given(page) => page,
    };
    say(format_args!("+ {}", show(&command)));
    let mut agent = Agent::start(command, remove)?;
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

    process::output(&mut stop)?;
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
        "{signals}: {seen} refused connections seen, all of process {own}; the kernel counts {} (AttemptFails), the page {counted} with everybody's",
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
struct Agent {
    child: Child,
    remove: Command,
    lines: Option<thread::JoinHandle<Vec<Value>>>,
}

impl Agent {
    fn start(mut command: Command, remove: Command) -> Result<Self> {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start it")?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let lines = thread::spawn(move || {
            let lines = BufReader::new(stdout).lines().map_while(Result::ok);
            let kept = lines.filter(|line| line.contains("tcp.connect"));
            kept.filter_map(|line| serde_json::from_str(&line).ok()).collect()
        });
        Ok(Self { child, remove, lines: Some(lines) })
    }

    fn end(&mut self) -> Result<Vec<Value>> {
        let status = self.child.wait()?;
        ensure!(status.success(), "the agent ended with {status}");
        let lines = self.lines.take().and_then(|lines| lines.join().ok());
        lines.context("nobody read what it wrote")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.lines.is_some() {
            let _gone = self.remove.stdout(Stdio::null()).stderr(Stdio::null()).status();
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
