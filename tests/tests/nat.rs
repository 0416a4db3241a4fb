//! `--nat`: what a process connected to, and where the packets went. As on a Kubernetes node: a pod's network namespace, a
//! host's in which `probe` runs and nftables turn a service's address into another pod's, and that pod's.
//!
//! Takes ip (iproute2) and nft (nftables), and a kernel with them.

#![expect(clippy::print_stdout, reason = "of the scene that it shares")]

use anyhow::{Context as _, Result, ensure};
use probe_common::testdrop::DATA;
use probe_tests::drop::{Cgroup, Loss, RuleExt as _, lose};
use probe_tests::live;
use probe_tests::netns::Netns;
use probe_tests::privileges::{LEAST, PublicCopy, as_nobody, of_threads};
use probe_tests::probe::{Line, Probe, command, in_guest};
use probe_tests::require::own_host;
use rustix::thread::CapabilitySet;

#[expect(dead_code, reason = "tests/tests/tcp.rs uses the rest")]
#[path = "tcp/scene.rs"]
mod scene;

use scene::{Peer, at};

live! {
    packets_go_where_nat_sends_them
    without_its_capability_nat_is_refused
}

/// A family's addresses: of the pod and its gateway, of the other pod and its gateway, of the service.
struct Addresses {
    pod: &'static str,
    pod_gateway: &'static str,
    backend: &'static str,
    backend_gateway: &'static str,
    service: &'static str,
    prefix: u8,
}

const V4: Addresses = Addresses {
    pod: "10.1.0.2",
    pod_gateway: "10.1.0.1",
    backend: "10.2.0.2",
    backend_gateway: "10.2.0.1",
    service: "10.96.0.1",
    prefix: 24,
};
const V6: Addresses = Addresses {
    pod: "fd00:1::2",
    pod_gateway: "fd00:1::1",
    backend: "fd00:2::2",
    backend_gateway: "fd00:2::1",
    service: "fd00:96::1",
    prefix: 64,
};
const SERVICE_PORT: u16 = 80;
const BACKEND_PORT: u16 = 8080;
/// The same at both ends, in two namespaces.
const OWN_PORT: u16 = 40_001;
const LOOPBACK_PORT: u16 = 9_001;
const REDIRECTED_PORT: u16 = 9_002;

/// Three network namespaces, with routes.
struct Node {
    host: Netns,
    pod: Netns,
    backend: Netns,
}

impl Node {
    fn new() -> Result<Self> {
        let node = Self { host: Netns::new()?, pod: Netns::new()?, backend: Netns::new()? };
        let host = &node.host;
        for (netns, name) in [(&node.pod, "pod"), (&node.backend, "backend")] {
            host.call("ip", &format!("link add {name} type veth peer name eth0 netns {}", netns.path()))?;
            host.call("ip", &format!("link set {name} up"))?;
            netns.call("ip", "link set eth0 up")?;
            for Addresses { pod, pod_gateway, backend, backend_gateway, prefix, .. } in [V4, V6] {
                let (address, gateway) =
                    if name == "pod" { (pod, pod_gateway) } else { (backend, backend_gateway) };
                // Its duplicate is looked for, else, before it may be used.
                let nodad = if address.contains(':') { "nodad" } else { "" };
                host.call("ip", &format!("addr add {gateway}/{prefix} dev {name} {nodad}"))?;
                netns.call("ip", &format!("addr add {address}/{prefix} dev eth0 {nodad}"))?;
                netns.call("ip", &format!("route add default via {gateway}"))?;
            }
        }
        for (address, gateway) in [(V4.service, V4.backend), (V6.service, V6.backend)] {
            host.call("ip", &format!("route add {address} via {gateway}"))?;
        }
        host.run(|| -> Result<()> {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
            Ok(std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?)
        })??;
        let mut rules = String::new();
        for (family, addresses) in [("ip", V4), ("ip6", V6)] {
            let Addresses { service, backend, .. } = addresses;
            let to = at(backend, BACKEND_PORT);
            let rule = format!("{family} daddr {service} tcp dport {SERVICE_PORT} dnat to {to}");
            rules += &format!(
                "table {family} nat {{
                     chain prerouting {{ type nat hook prerouting priority -100; {rule}; }}
                     chain output {{
                         type nat hook output priority -100; {rule};
                         {}
                     }}
                 }}\n",
                if family == "ip" {
                    format!(
                        "ip daddr 127.0.0.1 tcp dport {LOOPBACK_PORT} dnat to 127.0.0.1:{REDIRECTED_PORT};"
                    )
                } else {
                    String::new()
                }
            );
        }
        let file = std::env::temp_dir().join(format!("probe-nat-{}.nft", std::process::id()));
        std::fs::write(&file, rules)?;
        let loaded = host.call("nft", &format!("-f {}", file.display()));
        std::fs::remove_file(&file)?;
        loaded?;
        Ok(node)
    }
}

/// Where an event says that packets go.
fn destination(line: &Line) -> Option<(&str, i64)> {
    Some((line.text("destination.address")?, line.int("destination.port")?))
}

fn packets_go_where_nat_sends_them() -> Result<()> {
    if in_guest() {
        return own_host("nftables");
    }
    let node = Node::new()?;
    let cgroup = Cgroup::new()?;
    let mut loss = Loss::attach(&cgroup)?;
    let args = ["tcp", "--nat", "--kind", "connect,retransmit", "--cgroup", cgroup.path()];
    let probe = Probe::start_with(&args, |command| node.host.place(command))?;
    let mut pod = Peer::start("test-pod", &node.pod, &cgroup)?;
    let mut host = Peer::start("test-host", &node.host, &cgroup)?;
    let mut backend = Peer::start("test-backend", &node.backend, &cgroup)?;
    let event = |what: &str, name: &str, pid: u32, peer_port: u16| {
        probe.line(what, |line| {
            line.event() == name
                && line.int("process.pid") == Some(pid.into())
                && line.int("network.peer.port") == Some(peer_port.into())
        })
    };
    for Addresses { service, backend: real, .. } in [V4, V6] {
        backend.tell(&format!("listen {}", at(real, BACKEND_PORT)))?;
        for client in [&mut pod, &mut host] {
            // Around the service: to the pod itself. Then through it.
            for (address, port, expected) in
                [(real, BACKEND_PORT, None), (service, SERVICE_PORT, Some((real, i64::from(BACKEND_PORT))))]
            {
                client.workload.order(&format!("connect {}", at(address, port)))?;
                let accepted = backend.tell("accept")?;
                let (server, server_sees) = accepted.split_once(' ').context(accepted.clone())?;
                let connected = client.workload.hear()?;
                let (number, local_port) = connected.split_once(' ').context(connected.clone())?;
                let local_port: i64 = local_port.parse()?;
                let of_ours = |line: &Line| line.int("network.local.port") == Some(local_port);
                let made = probe.line("a connection", |line| {
                    line.event() == "tcp.connect"
                        && of_ours(line)
                        && line.int("process.pid") == Some(client.pid().into())
                })?;
                ensure!(made.text("network.peer.address") == Some(address), "{}", made.0);
                ensure!(made.int("network.peer.port") == Some(port.into()), "{}", made.0);
                ensure!(destination(&made) == expected, "not {expected:?}: {}", made.0);
                // The other end knows no service.
                let taken = event("the other end", "tcp.connect", backend.pid(), server_sees.parse()?)?;
                ensure!(destination(&taken).is_none(), "{}", taken.0);
                ensure!(taken.text("network.local.address") == Some(real), "{}", taken.0);
                // Sent again, and to where.
                loss.set(&[lose(DATA).after(0, 1)])?;
                client.tell(&format!("send {number} 100 1"))?;
                backend.tell(&format!("receive {server} 100"))?;
                let again =
                    probe.line("a retransmit", |line| line.event() == "tcp.retransmit" && of_ours(line))?;
                ensure!(destination(&again) == expected, "not {expected:?}: {}", again.0);
                loss.heal()?;
            }
        }
    }
    // Two namespaces' loopbacks, the same addresses and ports: one is redirected, the other none of connection tracking's here.
    let from = format!("from=127.0.0.1:{OWN_PORT}");
    let to = format!("127.0.0.1:{LOOPBACK_PORT}");
    let mut listener = Peer::start("test-listener", &node.host, &cgroup)?;
    listener.tell(&format!("listen 127.0.0.1:{REDIRECTED_PORT}"))?;
    let redirected = Some(("127.0.0.1", i64::from(REDIRECTED_PORT)));
    host.tell(&format!("connect {to} {from}"))?;
    let ours = event("a redirected connection", "tcp.connect", host.pid(), LOOPBACK_PORT)?;
    ensure!(destination(&ours) == redirected, "not {redirected:?}: {}", ours.0);
    let mut within = Peer::start("test-within", &node.pod, &cgroup)?;
    within.tell(&format!("listen {to}"))?;
    pod.tell(&format!("connect {to} {from}"))?;
    let theirs = event("another namespace's", "tcp.connect", pod.pid(), LOOPBACK_PORT)?;
    ensure!(theirs.int("linux.netns") == Some(node.pod.inode().into()), "{}", theirs.0);
    ensure!(destination(&theirs).is_none(), "{}", theirs.0);
    probe.stop()?.require_complete()
}

/// What is asked for is not left out in silence; and what it takes is kept, nothing else.
fn without_its_capability_nat_is_refused() -> Result<()> {
    if in_guest() {
        return own_host("connection tracking");
    }
    let copy = PublicCopy::new("nat")?;
    let mut refused = command(["tcp", "--nat", "--duration", "1s"])?;
    copy.put_into(&mut refused);
    as_nobody(&mut refused, LEAST - CapabilitySet::NET_ADMIN);
    let output = refused.output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(4), "{}: {stderr}", output.status);
    ensure!(stderr.contains("--nat") && stderr.contains("CAP_NET_ADMIN"), "{stderr}");

    let allowed = Probe::start_with(&["tcp", "--nat"], |command| {
        copy.put_into(command);
        as_nobody(command, LEAST);
    })?;
    for thread in of_threads(allowed.pid())? {
        ensure!(thread.effective == CapabilitySet::NET_ADMIN, "{thread:?}");
        ensure!(thread.permitted == CapabilitySet::NET_ADMIN && thread.no_new_privs, "{thread:?}");
    }
    let finished = allowed.stop()?;
    ensure!(!finished.stderr.contains("WARN"), "{}", finished.stderr);
    Ok(())
}
