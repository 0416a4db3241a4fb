//! Lookups whose server is another than the one that was asked: destinations rewritten where they are asked, and on the way. As on a
//! Kubernetes node, where the cluster's DNS service is an address that nobody has.
//!
//! Takes ip (iproute2) and nft (nftables), and a kernel with them.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use probe_tests::dns_server::{A, AAAA, DnsServer, Script, query};
use probe_tests::dns_world::{Sent, Stream, ask, check_latency, receive, send};
use probe_tests::netns::Netns;
use probe_tests::probe::{DEADLINE, Line, Probe, in_guest, patient};
use probe_tests::require::own_host;

/// What is asked.
const SERVICE: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
/// Where it is answered, on another port.
const PORT: u16 = 5_353;

fn at(address: &str, port: u16) -> Result<SocketAddr> {
    Ok(SocketAddr::new(address.parse()?, port))
}

/// Sends what goes to the service's port to another address and port instead.
fn rewrite(netns: &Netns, hook: &str, to: [&str; 2]) -> Result<()> {
    let mut rules = String::new();
    for ((family, service), to) in ["ip", "ip6"].into_iter().zip(SERVICE).zip(to) {
        let to = at(to, PORT)?;
        rules += &format!("table {family} nat {{\nchain rewritten {{\ntype nat hook {hook} priority -100;\n");
        for protocol in ["udp", "tcp"] {
            rules += &format!("{family} daddr {service} {protocol} dport 53 dnat to {to}\n");
        }
        rules += "}\n}\n";
    }
    let file = std::env::temp_dir().join(format!("probe-dns-nat-{}-{hook}.nft", std::process::id()));
    std::fs::write(&file, rules)?;
    let loaded = netns.call("nft", &format!("-f {}", file.display()));
    std::fs::remove_file(&file)?;
    loaded
}

/// Who asks the service.
enum Way {
    Connected,
    Unconnected,
    Tcp,
}

/// Asks the service in every way that there is, and requires that it is what probe names, with the latencies that the server made.
fn ask_the_service(client: &Netns, server: &DnsServer) -> Result<()> {
    let probe = Probe::start(&["dns"])?;
    let mut asked: Vec<(u16, &str, Sent, u64)> = Vec::new();
    let mut id = 0;
    for service in SERVICE {
        let address = at(service, 53)?.to_string();
        let any = if service.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
        for way in [Way::Connected, Way::Unconnected, Way::Tcp] {
            // Twice over the same socket.
            let socket = client.run(|| std::net::UdpSocket::bind(any))??;
            socket.set_read_timeout(Some(patient(DEADLINE)))?;
            let mut stream = match way {
                Way::Tcp => Some(Stream::connect(client, &address)?),
                Way::Connected => socket.connect(&address).map(|()| None)?,
                Way::Unconnected => None,
            };
            let to = matches!(way, Way::Unconnected).then_some(&*address);
            for name in ["now.test", "slow.test"] {
                id += 1;
                let question = query(id, name, if id % 2 == 0 { A } else { AAAA });
                let (sent, received_ns) = match &mut stream {
                    Some(stream) => stream.ask(&question)?,
                    None => ask(&socket, to, &question)?,
                };
                asked.push((id, service, sent, received_ns));
            }
            if stream.is_none() {
                // Two at once.
                let pair = [id + 1, id + 2];
                let sent = pair
                    .iter()
                    .map(|id| send(&socket, to, &query(*id, "slow.test", A)))
                    .collect::<Result<Vec<_>>>()?;
                for _ in pair {
                    let (got, received_ns) = receive(&socket)?;
                    let at = usize::from(got.wrapping_sub(id + 1));
                    asked.push((got, service, *sent.get(at).context("an answer to another")?, received_ns));
                }
                id += 2;
            }
        }
    }
    server.wait_answers(asked.len(), DEADLINE)?;
    let ours = |lines: &[Line]| -> Vec<Line> {
        let netns = i64::from(client.inode());
        let is_ours = |line: &&Line| line.event() == "dns.lookup" && line.int("linux.netns") == Some(netns);
        lines.iter().filter(is_ours).cloned().collect()
    };
    probe.wait_for("all lookups", DEADLINE, |lines| (ours(lines).len() >= asked.len()).then_some(()))?;
    let finished = probe.stop()?;
    finished.require_complete()?;
    let mut lines = ours(&finished.lines);
    lines.sort_by_key(|line| line.text("time").map(str::to_owned));
    ensure!(lines.len() == asked.len(), "{} instead of {}: {lines:#?}", lines.len(), asked.len());
    asked.sort_by_key(|(.., received_ns)| *received_ns);
    for (line, (id, service, sent, received_ns)) in lines.iter().zip(&asked) {
        ensure!(line.text("dns.outcome") == Some("answered"), "{}", line.0);
        let peer = (line.text("server.address"), line.int("server.port"));
        ensure!(peer == (Some(*service), Some(53)), "not {service}, which was asked: {}", line.0);
        ensure!(line.int("process.pid") == Some(std::process::id().into()), "{}", line.0);
        let served = server.one(*id)?;
        ensure!(served.server.port() == PORT, "nothing was rewritten: {served:?}");
        ensure!(line.text("dns.question.name") == Some(&served.name), "{} is not {served:?}", line.0);
        check_latency(line, *sent, *received_ns, &served, 0)?;
    }
    Ok(())
}

fn scripts() -> [(&'static str, Script); 1] {
    [("slow.test", Script::after(Duration::from_millis(30)))]
}

/// By rules of the namespace that asks: what leaves its sockets has another destination by the time it passes the programs.
#[test]
fn a_service_rewritten_where_it_is_asked() -> Result<()> {
    if in_guest() {
        return own_host("nftables");
    }
    let netns = Netns::new()?;
    let backend = ["127.0.0.2", "fd00:1::2"];
    for words in [
        "addr add 10.1.0.2/32 dev lo",
        "addr add fd00:1::2/128 dev lo nodad",
        "route add 10.96.0.10 dev lo src 10.1.0.2",
        "route add fd00:96::10 dev lo src fd00:1::2",
    ] {
        netns.call("ip", words)?;
    }
    rewrite(&netns, "output", backend)?;
    let addresses = [at(backend[0], PORT)?, at(backend[1], PORT)?];
    let server = netns.run(|| DnsServer::start(&addresses, &scripts()))??;
    ask_the_service(&netns, &server)
}

/// By another namespace's, between who asks and who answers.
#[test]
fn a_service_rewritten_on_the_way() -> Result<()> {
    if in_guest() {
        return own_host("nftables");
    }
    let (client, router, backend) = (Netns::new()?, Netns::new()?, Netns::new()?);
    for (netns, link, number) in [(&client, "client", 1), (&backend, "backend", 2)] {
        router.call("ip", &format!("link add {link} type veth peer name eth0 netns {}", netns.path()))?;
        router.call("ip", &format!("link set {link} up"))?;
        netns.call("ip", "link set eth0 up")?;
        for (prefix, gateway, nodad) in
            [(format!("10.{number}.0."), "1/24", ""), (format!("fd00:{number}::"), "1/64", "nodad")]
        {
            router.call("ip", &format!("addr add {prefix}{gateway} dev {link} {nodad}"))?;
            netns.call(
                "ip",
                &format!("addr add {prefix}{} dev eth0 {nodad}", gateway.replacen("1", "2", 1)),
            )?;
            netns.call("ip", &format!("route add default via {prefix}1"))?;
        }
    }
    router.run(|| -> Result<()> {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        Ok(std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?)
    })??;
    let real = ["10.2.0.2", "fd00:2::2"];
    rewrite(&router, "prerouting", real)?;
    let addresses = [at(real[0], PORT)?, at(real[1], PORT)?];
    let server = backend.run(|| DnsServer::start(&addresses, &scripts()))??;
    ask_the_service(&client, &server)
}
