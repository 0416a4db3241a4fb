//! `probe dns --servers`: a lookup as seen where it is answered, beside the one seen where it was asked.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use probe_tests::dns_world::{SERVER, SERVER_V6};
use probe_tests::drop::Cgroup;
use probe_tests::netns::Netns;
use probe_tests::probe::{DEADLINE, Line, Probe};
use probe_tests::workload::Workload;

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
const LOOKUPS: u16 = 10;

/// A server in one container, who asks in another.
struct Scene {
    netns: Netns,
    server: Workload,
    client: Workload,
    containers: [String; 2],
    /// Removed last.
    _cgroups: [Cgroup; 4],
}

impl Scene {
    fn new() -> Result<Self> {
        let netns = Netns::new()?;
        let containers = ["5e".repeat(32), "c1".repeat(32)];
        let [of_server, of_client] = &containers;
        let outer = Cgroup::new()?;
        let docker = outer.below("docker")?;
        let cgroups = [docker.below(of_server)?, docker.below(of_client)?];
        let start = || netns.run(|| Workload::start(WORKLOAD))?;
        let (mut server, client) = (start()?, start()?);
        let [at_server, at_client] = cgroups;
        at_server.add(server.pid())?;
        at_client.add(client.pid())?;
        for address in [SERVER, SERVER_V6] {
            server.tell(&format!("serve {address}"))?;
        }
        Ok(Self { netns, server, client, containers, _cgroups: [at_server, at_client, docker, outer] })
    }

    fn ask(&mut self, command: &str, server: &str) -> Result<()> {
        for id in 0..LOOKUPS {
            self.client.tell(&format!("{command} {server} {id} n{id}.test"))?;
        }
        Ok(())
    }

    fn ours(&self, lines: &[Line]) -> Vec<Line> {
        let netns = i64::from(self.netns.inode());
        let is_ours = |line: &&Line| line.event() == "dns.lookup" && line.int("linux.netns") == Some(netns);
        lines.iter().filter(is_ours).cloned().collect()
    }
}

/// Over UDP and TCP, IPv4 and IPv6.
const WAYS: [(&str, &str, &str, &str); 4] = [
    ("ask", "udp", SERVER, "127.0.0.2"),
    ("ask", "udp", SERVER_V6, "::1"),
    ("ask-tcp", "tcp", SERVER, "127.0.0.2"),
    ("ask-tcp", "tcp", SERVER_V6, "::1"),
];

#[test]
fn both_ends_of_a_lookup_are_told_apart() -> Result<()> {
    let mut scene = Scene::new()?;
    let probe = Probe::start(&["dns", "--servers"])?;
    let [of_server, of_client] = scene.containers.clone();
    let mut told = 0;
    for (command, transport, server, address) in WAYS {
        scene.ask(command, server)?;
        let before = told;
        told += 2 * usize::from(LOOKUPS);
        let lines = probe.wait_for(&format!("{told} lookups"), DEADLINE, |lines| {
            let ours = scene.ours(lines);
            (ours.len() >= told).then_some(ours)
        })?;
        let lines = lines.get(before..).context("as many")?;
        for id in 0..LOOKUPS {
            let name = format!("n{id}.test");
            let its: Vec<&Line> =
                lines.iter().filter(|line| line.text("dns.question.name") == Some(&name)).collect();
            let at_server: Vec<&Line> =
                its.iter().copied().filter(|line| line.text("dns.role") == Some("server")).collect();
            let at_client: Vec<&Line> =
                its.iter().copied().filter(|line| line.get("dns.role").is_none()).collect();
            let ([client], [server]) = (&at_client[..], &at_server[..]) else {
                anyhow::bail!("{transport}: not one of each: {its:#?}");
            };
            for (line, container) in [(client, &of_client), (server, &of_server)] {
                ensure!(line.text("container.id") == Some(container), "not in {container}: {}", line.0);
                ensure!(line.text("network.transport") == Some(transport), "{}", line.0);
                ensure!(line.text("dns.outcome") == Some("answered"), "{}", line.0);
                ensure!(line.text("dns.response_code") == Some("NOERROR"), "{}", line.0);
            }
            ensure!(client.text("server.address") == Some(address), "{}", client.0);
            ensure!(client.int("server.port") == Some(53), "{}", client.0);
            ensure!(client.get("client.address").is_none(), "{}", client.0);
            ensure!(client.int("process.pid") == Some(scene.client.pid().into()), "{}", client.0);
            ensure!(server.get("server.address").is_none(), "{}", server.0);
            let asker = if address == "::1" { "::1" } else { "127.0.0.1" };
            ensure!(server.text("client.address") == Some(asker), "{}", server.0);
            ensure!(server.int("client.port").is_some_and(|port| port > 1_023), "{}", server.0);
            // A connection that was accepted has nobody who connected: its container is all that is known of the server then.
            let pid = server.int("process.pid");
            let of_nobody = transport == "tcp" && pid.is_none();
            ensure!(of_nobody || pid == Some(scene.server.pid().into()), "{}", server.0);
            let [took, served] = [client, server].map(|line| line.float("duration"));
            ensure!(served.is_some() && served <= took, "served in {served:?} of {took:?}: {}", server.0);
        }
    }
    let finished = probe.stop()?;
    finished.require_complete()?;
    let all = scene.ours(&finished.lines);
    ensure!(all.len() == told, "{} instead of {told}: {all:#?}", all.len());
    Ok(())
}

#[test]
fn without_the_flag_a_lookup_is_one_event() -> Result<()> {
    let mut scene = Scene::new()?;
    let probe = Probe::start(&["dns"])?;
    for (command, _, server, _) in WAYS {
        scene.ask(command, server)?;
    }
    let total = WAYS.len() * usize::from(LOOKUPS);
    probe.wait_for("all lookups", DEADLINE + Duration::from_secs(5), |lines| {
        (scene.ours(lines).len() >= total).then_some(())
    })?;
    let finished = probe.stop()?;
    finished.require_complete()?;
    let all = scene.ours(&finished.lines);
    ensure!(all.len() == total, "{} instead of {total}: {all:#?}", all.len());
    ensure!(all.iter().all(|line| line.get("dns.role").is_none()), "{all:#?}");
    Ok(())
}
