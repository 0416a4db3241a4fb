//! `network.peer.name`: the name by which a connection was made, as far as a DNS answer before it tells.

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};

use anyhow::{Context as _, Result, ensure};
use probe_tests::dns_server::{A, AAAA, DnsServer, Script, query};
use probe_tests::live;
use probe_tests::netns::Netns;
use probe_tests::otlp_receiver::{Receiver, Record};
use probe_tests::privileges::{LEAST, PublicCopy, as_nobody};
use probe_tests::probe::{DEADLINE, Line, Probe, run};
use probe_tests::workload::Workload;
use rustix::thread::CapabilitySet;

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
const SERVER: &str = "127.0.0.2:53";
const SERVER_V6: &str = "[::1]:53";
/// Where DNS is spoken too, by nobody that anybody asked.
const STRANGER: &str = "127.0.0.3:53";
/// Nobody listens there.
const CLOSED: u16 = 9;

live! {
    peers_have_the_names_that_were_given_out
    a_name_is_known_before_its_first_connection
    names_stay_in_their_network_namespace
    what_is_asked_later_names_no_connection
    strangers_give_no_names
    the_agent_sends_them_on_events_and_on_no_metric
    whoever_asked_filters_leave_names_alone
    without_names_everything_else_is_as_before
}

/// A namespace with a DNS server in it, and probe looking on.
struct World {
    netns: Netns,
    _server: DnsServer,
    probe: Probe,
}

impl World {
    fn new(arguments: &[&str], scripts: &[(&str, Script)]) -> Result<Self> {
        let (netns, server) = served(scripts)?;
        Ok(Self { netns, _server: server, probe: Probe::start(&[&["tcp"], arguments].concat())? })
    }

    fn refused(&self, address: &str) -> Result<Line> {
        refused(&self.netns, &self.probe, address)
    }
}

/// Whether an event is of a connection of this namespace to an address.
fn is_connection(line: &Line, netns: &Netns, address: &str) -> bool {
    line.event() == "tcp.connect"
        && line.text("network.peer.address") == Some(address)
        && line.int("linux.netns") == Some(i64::from(netns.inode()))
}

fn served(scripts: &[(&str, Script)]) -> Result<(Netns, DnsServer)> {
    let netns = Netns::new()?;
    let addresses = [SERVER, SERVER_V6].map(str::parse::<SocketAddr>);
    let [v4, v6] = addresses;
    let (v4, v6) = (v4?, v6?);
    let server = netns.run(|| DnsServer::start(&[v4, v6], scripts))??;
    Ok((netns, server))
}

fn ip(address: &str) -> Result<IpAddr> {
    address.parse().with_context(|| format!("{address} is no address"))
}

fn at(addresses: &[&str]) -> Result<Script> {
    Ok(Script::at(&addresses.iter().map(|address| ip(address)).collect::<Result<Vec<_>>>()?))
}

/// A connection that nobody takes, and what probe says of it.
fn refused(netns: &Netns, probe: &Probe, address: &str) -> Result<Line> {
    let target = SocketAddr::new(ip(address)?, CLOSED);
    let connected = netns.run(|| TcpStream::connect(target))?;
    ensure!(connected.is_err(), "somebody listens at {target}");
    probe.line(&format!("the connection to {target}"), |line| is_connection(line, netns, address))
}

fn require_name(line: &Line, name: Option<&str>) -> Result<()> {
    let got = line.text("network.peer.name");
    ensure!(got == name, "{got:?} instead of {name:?}: {line:?}");
    Ok(())
}

/// A socket in the namespace that gives up in the end.
fn socket(netns: &Netns, local: &str) -> Result<UdpSocket> {
    let socket = netns.run(|| UdpSocket::bind(local))??;
    socket.set_read_timeout(Some(DEADLINE))?;
    Ok(socket)
}

/// Asks through a socket of its own, connected to the server.
fn ask(netns: &Netns, server: &str, name: &str, qtype: u16) -> Result<()> {
    let socket = socket(netns, if server.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" })?;
    socket.connect(server)?;
    socket.send(&query(7, name, qtype))?;
    socket.recv(&mut [0; 512]).with_context(|| format!("no answer about {name}"))?;
    Ok(())
}

fn peers_have_the_names_that_were_given_out() -> Result<()> {
    let aliased = Script { aliases: vec!["edge.cdn.test", "e7.cdn.test"], ..at(&["127.0.1.3"])? };
    let scripts = [
        ("plain.test", at(&["127.0.1.1", "::1"])?),
        ("several.test", at(&["127.0.1.4", "127.0.1.5", "127.0.1.6"])?),
        ("www.alias.test", aliased),
        ("loud.test", Script { shouts: true, ..at(&["127.0.1.7"])? }),
        ("again.test", at(&["127.0.1.1"])?),
        ("failed.test", Script { rcode: 2, ..at(&["127.0.1.8"])? }),
    ];
    let world = World::new(&[], &scripts)?;
    let netns = &world.netns;

    require_name(&world.refused("127.0.1.1")?, None)?;
    ask(netns, SERVER, "plain.test", A)?;
    ask(netns, SERVER_V6, "plain.test", AAAA)?;
    let named = |address: &str, name: &str, count: usize| -> Result<()> {
        let target = SocketAddr::new(ip(address)?, CLOSED);
        ensure!(netns.run(|| TcpStream::connect(target))?.is_err(), "somebody listens at {target}");
        let events = world.probe.wait_for(&format!("{count} events of {address}"), DEADLINE, |lines| {
            let its = lines.iter().filter(|line| is_connection(line, netns, address));
            let events: Vec<Line> = its.cloned().collect();
            (events.len() >= count).then_some(events)
        })?;
        require_name(events.last().context("just counted")?, Some(name))
    };
    named("127.0.1.1", "plain.test", 2)?;
    named("::1", "plain.test", 1)?;
    ask(netns, SERVER, "several.test", A)?;
    for address in ["127.0.1.4", "127.0.1.5", "127.0.1.6"] {
        named(address, "several.test", 1)?;
    }
    // What the process asked for, not where that led.
    ask(netns, SERVER, "www.alias.test", A)?;
    named("127.0.1.3", "www.alias.test", 1)?;
    ask(netns, SERVER, "LOUD.test", A)?;
    named("127.0.1.7", "loud.test", 1)?;
    // Of several names, the last.
    ask(netns, SERVER, "again.test", A)?;
    named("127.0.1.1", "again.test", 3)?;
    // An answer that says that there is none gives out nothing, whatever it carries.
    ask(netns, SERVER, "failed.test", A)?;
    require_name(&world.refused("127.0.1.8")?, None)?;

    let finished = world.probe.stop()?;
    finished.require_complete()
}

/// Answers and connections come by different ways; who connects as soon as the answer is there has its name all the same.
fn a_name_is_known_before_its_first_connection() -> Result<()> {
    const TIMES: u8 = 200;
    let names: Vec<(String, String)> =
        (1..=TIMES).map(|number| (format!("n{number}.test"), format!("127.0.3.{number}"))).collect();
    let scripts: Vec<(&str, Script)> = names
        .iter()
        .map(|(name, address)| Ok((name.as_str(), at(&[address])?)))
        .collect::<Result<Vec<_>>>()?;
    let world = World::new(&[], &scripts)?;
    // In one go, so that nothing of the test stands between answer and connection.
    world.netns.run(|| -> Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(DEADLINE))?;
        socket.connect(SERVER)?;
        for (name, address) in &names {
            socket.send(&query(7, name, A))?;
            socket.recv(&mut [0; 512]).with_context(|| format!("no answer about {name}"))?;
            ensure!(TcpStream::connect((ip(address)?, CLOSED)).is_err(), "somebody listens at {address}");
        }
        Ok(())
    })??;
    let netns = i64::from(world.netns.inode());
    let events = world.probe.wait_for("an event each", DEADLINE, |lines| {
        let events: Vec<Line> = lines
            .iter()
            .filter(|line| line.event() == "tcp.connect" && line.int("linux.netns") == Some(netns))
            .cloned()
            .collect();
        (events.len() >= usize::from(TIMES)).then_some(events)
    })?;
    for (name, address) in &names {
        let event = events.iter().find(|line| line.text("network.peer.address") == Some(address));
        require_name(event.with_context(|| format!("no event of {address}"))?, Some(name))?;
    }
    world.probe.stop()?.require_complete()
}

/// Answers that came after a connection began, but before probe looked at it, are another connection's.
fn what_is_asked_later_names_no_connection() -> Result<()> {
    let world = World::new(&[], &[("first.test", at(&["127.0.1.1"])?), ("other.test", at(&["127.0.1.1"])?)])?;
    let target = (ip("127.0.1.1")?, CLOSED);
    // In one go: probe looks a few times a second.
    world.netns.run(|| -> Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(DEADLINE))?;
        socket.connect(SERVER)?;
        for name in ["first.test", "other.test"] {
            ensure!(TcpStream::connect(target).is_err(), "somebody listens at {target:?}");
            socket.send(&query(7, name, A))?;
            socket.recv(&mut [0; 512]).with_context(|| format!("no answer about {name}"))?;
        }
        ensure!(TcpStream::connect(target).is_err(), "somebody listens at {target:?}");
        Ok(())
    })??;
    let events = world.probe.wait_for("three events", DEADLINE, |lines| {
        let its = lines.iter().filter(|line| is_connection(line, &world.netns, "127.0.1.1"));
        let events: Vec<Line> = its.cloned().collect();
        (events.len() == 3).then_some(events)
    })?;
    for (event, name) in events.iter().zip([None, Some("first.test"), Some("other.test")]) {
        require_name(event, name)?;
    }
    world.probe.stop()?.require_complete()
}

fn names_stay_in_their_network_namespace() -> Result<()> {
    let world = World::new(&[], &[("here.test", at(&["127.0.1.1"])?)])?;
    let (elsewhere, _server) = served(&[("there.test", at(&["127.0.1.1"])?)])?;
    ask(&world.netns, SERVER, "here.test", A)?;
    require_name(&refused(&elsewhere, &world.probe, "127.0.1.1")?, None)?;
    require_name(&world.refused("127.0.1.1")?, Some("here.test"))?;
    ask(&elsewhere, SERVER, "there.test", A)?;
    let again = |netns: &Netns| -> Result<()> {
        let connected = netns.run(|| TcpStream::connect((ip("127.0.1.1")?, CLOSED)).context("refused"))?;
        ensure!(connected.is_err(), "somebody listens there");
        // Probe tells in order: another peer's event is the end of what came before.
        require_name(&refused(netns, &world.probe, "127.0.9.9")?, None)
    };
    again(&elsewhere)?;
    again(&world.netns)?;
    let lines = world.probe.lines();
    let at_both = |netns: &Netns| {
        let its = lines.iter().filter(|line| is_connection(line, netns, "127.0.1.1"));
        its.map(|line| line.text("network.peer.name").unwrap_or("-")).collect::<Vec<_>>()
    };
    ensure!(at_both(&elsewhere) == ["-", "there.test"], "{:?}", at_both(&elsewhere));
    ensure!(at_both(&world.netns) == ["here.test", "here.test"], "{:?}", at_both(&world.netns));
    Ok(())
}

/// What anybody can send to a port is no answer.
fn strangers_give_no_names() -> Result<()> {
    let world = World::new(&[], &[("asked.test", at(&["127.0.1.1"])?)])?;
    let netns = &world.netns;
    let stranger = socket(netns, STRANGER)?;
    let asks = socket(netns, "127.0.0.1:0")?;
    // An answer as it should be, but for who sends it: taken off the server.
    let answer = |name: &str, address: &str| -> Result<Vec<u8>> {
        let (other, _server) = served(&[(name, at(&[address])?)])?;
        let socket = socket(&other, "0.0.0.0:0")?;
        socket.send_to(&query(7, name, A), SERVER)?;
        let mut message = [0; 512];
        let (len, _from) = socket.recv_from(&mut message)?;
        Ok(message.get(..len).context("a message")?.to_vec())
    };
    let mut message = [0; 512];

    // To a socket that has asked nobody.
    let spoofed = answer("spoofed.test", "127.0.1.2")?;
    stranger.send_to(&spoofed, asks.local_addr()?)?;
    asks.recv_from(&mut message)?;
    require_name(&world.refused("127.0.1.2")?, None)?;
    // To one that has asked another, before that one answers and after.
    asks.send_to(&query(7, "asked.test", A), SERVER)?;
    asks.recv_from(&mut message)?;
    stranger.send_to(&answer("spoofed.test", "127.0.1.3")?, asks.local_addr()?)?;
    asks.recv_from(&mut message)?;
    require_name(&world.refused("127.0.1.3")?, None)?;
    require_name(&world.refused("127.0.1.1")?, Some("asked.test"))?;
    // Once it is asked it is none any more, also where others were asked after it: musl's resolver asks all at once.
    asks.send_to(&query(7, "spoofed.test", A), STRANGER)?;
    asks.send_to(&query(8, "asked.test", A), SERVER)?;
    asks.recv_from(&mut message)?;
    stranger.send_to(&answer("spoofed.test", "127.0.1.4")?, asks.local_addr()?)?;
    asks.recv_from(&mut message)?;
    require_name(&world.refused("127.0.1.4")?, Some("spoofed.test"))?;
    // What is no answer, or none that can be read.
    let cut = answer("cut.test", "127.0.1.5")?;
    for len in 0..cut.len() {
        stranger.send_to(cut.get(..len).context("a part")?, asks.local_addr()?)?;
        asks.recv_from(&mut message)?;
    }
    require_name(&world.refused("127.0.1.5")?, None)?;
    world.probe.stop()?.require_complete()
}

fn the_agent_sends_them_on_events_and_on_no_metric() -> Result<()> {
    let (netns, _server) = served(&[("plain.test", at(&["127.0.1.1"])?)])?;
    let receiver = Receiver::start()?;
    let probe = Probe::start(&["run", "--interval", "500ms", "--otlp-endpoint", &receiver.endpoint()])?;
    ask(&netns, SERVER, "plain.test", A)?;
    require_name(&refused(&netns, &probe, "127.0.1.1")?, Some("plain.test"))?;
    let attribute = "network.peer.name".to_owned();
    receiver.wait_for("the event", DEADLINE, |receiver| {
        let has_it =
            |record: &Record| record.attributes.get(&attribute).is_some_and(|name| name == "plain.test");
        receiver.records().iter().find(|record| has_it(record)).map(|record| record.event.clone())
    })?;
    receiver.wait_for("its count", DEADLINE, |receiver| {
        let points = receiver.points();
        points.iter().find(|point| point.name == "system.network.tcp.connections").map(|_point| ())
    })?;
    ensure!(!receiver.points().iter().any(|point| point.attributes.contains_key(&attribute)));
    probe.stop()?.require_complete()
}

/// A process that is asked for may have its addresses from another: a filter is for events.
fn whoever_asked_filters_leave_names_alone() -> Result<()> {
    let (netns, _server) = served(&[("plain.test", at(&["127.0.1.1"])?)])?;
    let mut workload = netns.run(|| Workload::start(WORKLOAD))??;
    let probe = Probe::start(&["tcp", "--pid", &workload.pid().to_string()])?;
    ask(&netns, SERVER, "plain.test", A)?;
    let refused = workload.tell(&format!("connect 127.0.1.1:{CLOSED}"));
    ensure!(refused.is_err(), "somebody listens there");
    let line = probe.line("the connection", |line| is_connection(line, &netns, "127.0.1.1"))?;
    require_name(&line, Some("plain.test"))?;
    ensure!(line.int("process.pid") == Some(i64::from(workload.pid())), "{line:?}");
    probe.stop()?.require_complete()
}

fn without_names_everything_else_is_as_before() -> Result<()> {
    let (netns, _server) = served(&[("plain.test", at(&["127.0.1.1"])?)])?;
    let unwanted = Probe::start(&["tcp", "--no-names"])?;
    // CAP_NET_ADMIN is for names alone: tcp does without, and complains of nothing.
    let copy = PublicCopy::new("names")?;
    let unprivileged = Probe::start_with(&["tcp"], |command| {
        copy.put_into(command);
        as_nobody(command, LEAST - CapabilitySet::NET_ADMIN);
    })?;
    ask(&netns, SERVER, "plain.test", A)?;
    for probe in [unwanted, unprivileged] {
        let line = refused(&netns, &probe, "127.0.1.1")?;
        require_name(&line, None)?;
        let finished = probe.stop()?;
        finished.require_complete()?;
        ensure!(!finished.stderr.contains("names"), "{}", finished.stderr);
    }
    let help = run(["tcp", "--help"])?;
    ensure!(String::from_utf8_lossy(&help.stdout).contains("--no-names"));
    Ok(())
}
