//! `probe tcp` against what the kernel counts and what the processes at both ends did.
//!
//! Every test has a network namespace of its own, so that the kernel's counters are the test's alone, and a cgroup of its
//! own, on which `testdrop` loses what the test says. `probe` runs outside of both.
#![expect(clippy::indexing_slicing, reason = "a test fails by panicking, its helpers too")]
#![expect(clippy::print_stdout, reason = "the sums beside the kernel's are what a reader wants to see")]

use anyhow::{Context as _, Result};
use probe_common::testdrop::{BARE, DATA, EGRESS, INGRESS, SYN, SYN_ACK};
use probe_tests::counters::Counters;
use probe_tests::drop::{RuleExt as _, lose};
use probe_tests::live;
use probe_tests::probe::{DEADLINE, Line, Probe, in_guest, poll};

#[path = "tcp/connections.rs"]
mod connections;
#[path = "tcp/scene.rs"]
mod scene;

use connections::{
    connections_that_are_made, connections_that_end, connections_that_fail, reset_reasons, resets,
};
use scene::{FULL, LOOPBACKS, Peer, SEGMENT, Scene, at};

live! {
    syn
    syn_ack
    timeout_and_slow_start
    fast
    tail_loss_probe
    reset_reasons
    segments_of_one_skb
    failed_retransmits_do_not_count
    mix_under_cubic
    mix_under_bbr
    listeners_of_several_processes_own_nothing
    a_port_that_changes_hands
    older_sockets_have_owners
    ipv4_in_ipv6_sockets
    connections_that_are_made
    connections_that_fail
    connections_that_end
    resets
    filters
}

fn syn() -> Result<()> {
    let mut scene = Scene::new("retransmit")?;
    for address in LOOPBACKS {
        let port = scene.server.listen(address, "")?;
        scene.loss.set(&[lose(SYN).sent_to(port).after(0, 1)])?;
        let connection = scene.connect(address, port, "")?;
        let event = scene.retransmit("syn", connection.client_port)?;
        scene.check(&event, (address, connection.client_port), (address, port), &scene.client)?;
        assert_eq!(event.text("network.connection.state"), Some("syn_sent"));
        assert_eq!(event.int("segments"), Some(1));
        assert_eq!(event.get("tcp.srtt"), None, "nothing was measured yet");
    }
    let outcome = scene.finish()?;
    outcome.require_kernels_sums("syn")?;
    assert_eq!(outcome.segments()["syn"], 2);
    Ok(())
}

fn syn_ack() -> Result<()> {
    let mut scene = Scene::new("retransmit")?;
    for address in LOOPBACKS {
        let port = scene.server.listen(address, "")?;
        scene.loss.set(&[lose(SYN_ACK).sent_from(port).after(0, 1)])?;
        let connection = scene.connect(address, port, "")?;
        let event = scene.retransmit("syn_ack", port)?;
        scene.check(&event, (address, port), (address, connection.client_port), &scene.server)?;
        assert_eq!(event.text("network.connection.state"), Some("syn_received"));
        assert_eq!(event.int("segments"), Some(1));
    }
    scene.finish()?.require_kernels_sums("syn_ack")
}

fn timeout_and_slow_start() -> Result<()> {
    let mut scene = Scene::new("retransmit")?;
    for address in LOOPBACKS {
        let port = scene.server.listen(address, "")?;
        let connection = scene.connect(address, port, FULL)?;
        scene.loss.set(&[lose(DATA).sent_to(port)])?;
        scene.send(&connection, 8)?;
        let timeout = scene.retransmit("timeout", connection.client_port)?;
        scene.loss.heal()?;
        scene.receive(&connection, 8)?;
        let slow_start = scene.retransmit("slow_start", connection.client_port)?;
        for event in [&timeout, &slow_start] {
            scene.check(event, (address, connection.client_port), (address, port), &scene.client)?;
            assert_eq!(event.text("network.connection.state"), Some("established"));
            assert!(event.float("tcp.srtt").is_some_and(|srtt| srtt > 0.0), "{event:?}");
            assert!(event.int("tcp.cwnd").is_some_and(|cwnd| cwnd > 0), "{event:?}");
        }
        assert_eq!(timeout.int("segments"), Some(1));
        assert_eq!(timeout.int("tcp.unacked"), Some(8));
    }
    let outcome = scene.finish()?;
    outcome.require_kernels_sums("timeout_and_slow_start")?;
    assert!(outcome.segments()["timeout"] >= 2);
    assert!(outcome.segments()["slow_start"] >= 2);
    Ok(())
}

fn fast() -> Result<()> {
    let mut scene = Scene::new("retransmit")?;
    for address in LOOPBACKS {
        let port = scene.server.listen(address, "")?;
        let connection = scene.connect(address, port, FULL)?;
        scene.loss.set(&[lose(DATA).sent_to(port).after(2, 1)])?;
        scene.send(&connection, 10)?;
        scene.receive(&connection, 10)?;
        let event = scene.retransmit("fast", connection.client_port)?;
        scene.check(&event, (address, connection.client_port), (address, port), &scene.client)?;
        assert_eq!(event.text("network.connection.state"), Some("established"));
        assert_eq!(event.int("segments"), Some(1));
    }
    let outcome = scene.finish()?;
    outcome.require_kernels_sums("fast")?;
    assert_eq!(outcome.segments()["fast"], 2);
    Ok(())
}

fn tail_loss_probe() -> Result<()> {
    let mut scene = Scene::new("retransmit")?;
    for address in LOOPBACKS {
        let port = scene.server.listen(address, "")?;
        let connection = scene.connect(address, port, FULL)?;
        scene.loss.set(&[lose(DATA).sent_to(port).after(3, 1)])?;
        scene.send(&connection, 4)?;
        scene.receive(&connection, 4)?;
        let event = scene.retransmit("tail_loss_probe", connection.client_port)?;
        scene.check(&event, (address, connection.client_port), (address, port), &scene.client)?;
        assert_eq!(event.int("segments"), Some(1));
        assert_eq!(event.int("tcp.unacked"), Some(1));

        // The other direction: an accepted socket is its listener's.
        scene.loss.set(&[lose(DATA).sent_from(port).after(3, 1)])?;
        scene.server.tell(&format!("send {} {SEGMENT} 4", connection.server))?;
        scene.client.tell(&format!("receive {} {}", connection.client, 4 * SEGMENT.parse::<u32>()?))?;
        let event = scene.retransmit("tail_loss_probe", port)?;
        scene.check(&event, (address, port), (address, connection.client_port), &scene.server)?;
    }
    let outcome = scene.finish()?;
    outcome.require_kernels_sums("tail_loss_probe")?;
    // One probe is one event.
    assert_eq!(outcome.segments()["tail_loss_probe"], 4);
    assert_eq!(outcome.events.len(), 4);
    Ok(())
}

/// One skb can stand for many segments; the kernel counts segments.
fn segments_of_one_skb() -> Result<()> {
    let mut scene = Scene::new("retransmit")?;
    for address in LOOPBACKS {
        let port = scene.server.listen(address, "")?;
        let connection = scene.connect(address, port, "cc=cubic mss=1000")?;
        scene.loss.set(&[lose(DATA).sent_to(port)])?;
        // One write, one skb.
        scene.client.tell(&format!("send {} 8000 1", connection.client))?;
        scene.loss.wait_for_drops(0, 1)?;
        let lost = scene.loss.counts(0)?;
        assert!(lost.dropped_segments > lost.dropped, "the test's own loss: {lost:?}");
        scene.retransmit("timeout", connection.client_port)?;
        scene.loss.heal()?;
        scene.server.tell(&format!("receive {} 8000", connection.server))?;
    }
    let outcome = scene.finish()?;
    outcome.require_kernels_sums("segments_of_one_skb")?;
    assert!(outcome.events.iter().any(|event| event.int("segments") > Some(1)), "{:?}", outcome.events);
    Ok(())
}

/// Segments that could not be sent again were not sent again.
fn failed_retransmits_do_not_count() -> Result<()> {
    let mut scene = Scene::new("retransmit")?;
    for address in LOOPBACKS {
        let port = scene.server.listen(address, "")?;
        let connection = scene.connect(address, port, FULL)?;
        scene.loss.set(&[lose(DATA).sent_to(port)])?;
        scene.send(&connection, 4)?;
        scene.retransmit("timeout", connection.client_port)?;
        let before = Counters::read(&scene.netns)?.get("TcpExtTCPRetransFail")?;
        let mut refuse = lose(DATA).sent_to(port);
        refuse.what ^= INGRESS | EGRESS;
        scene.loss.set(&[refuse])?;
        poll("a retransmit that fails", DEADLINE, || {
            let failed = Counters::read(&scene.netns)?.get("TcpExtTCPRetransFail")? - before;
            Ok((failed > 0).then_some(()))
        })?;
        scene.loss.heal()?;
        scene.receive(&connection, 4)?;
    }
    let outcome = scene.finish()?;
    outcome.require_kernels_sums("failed_retransmits_do_not_count")?;
    assert!(outcome.counters.get("TcpExtTCPRetransFail")? >= 2);
    Ok(())
}

/// Hundreds of connections that lose 3 % of everything, all kinds at once.
fn mix(congestion_control: &str) -> Result<()> {
    // To each of two addresses. With more at a time, emulated machines whose programs lose their CPU skip backups too (from 7.0 on).
    let (connections, octets) = if in_guest() { (6, 420_000) } else { (150, 40_000) };
    let mut scene = Scene::new("retransmit")?;
    let options = format!("mss=1000 cc={congestion_control}");
    let ports = LOOPBACKS.map(|address| scene.server.listen(address, &options));
    let [v4, v6] = ports;
    let addresses = format!("127.0.0.1:{},[::1]:{}", v4?, v6?);
    scene.loss.set(&[lose(SYN | SYN_ACK | DATA | BARE).percent(3)])?;
    scene.server.workload.order(&format!("serve 2 {connections} {octets}"))?;
    scene.client.tell(&format!("load {connections} {octets} {addresses} {options}"))?;
    scene.server.workload.hear()?;
    let lost = scene.loss.counts(0)?;
    let pids = [scene.client.pid(), scene.server.pid()];
    let path = scene.cgroup.path().to_owned();

    let outcome = scene.finish()?;
    println!("mix, {congestion_control}: {lost:?}, {} events", outcome.events.len());
    outcome.require_kernels_sums(&format!("mix, {congestion_control}"))?;
    assert!(outcome.segments().values().sum::<i64>() >= 100, "too little was lost to tell anything");
    for kind in ["ipv4", "ipv6"] {
        assert!(outcome.events.iter().any(|event| event.text("network.type") == Some(kind)), "{kind}");
    }
    for event in &outcome.events {
        assert!(pids.iter().any(|pid| event.int("process.pid") == Some((*pid).into())), "{event:?}");
        assert_eq!(event.text("linux.cgroup.path"), Some(&*path), "{event:?}");
    }
    Ok(())
}

fn mix_under_cubic() -> Result<()> {
    mix("cubic")
}

fn mix_under_bbr() -> Result<()> {
    let available = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control")?;
    if available.split_whitespace().any(|name| name == "bbr") {
        return mix("bbr");
    }
    println!("this kernel has no bbr ({}): reno instead", available.trim());
    mix("reno")
}

fn listeners_of_several_processes_own_nothing() -> Result<()> {
    let mut scene = Scene::new("retransmit,connect")?;
    let mut second = Peer::start("test-second", &scene.netns, &scene.cgroup)?;
    // Shared by two processes, and, to compare, by two sockets of one.
    let own = scene.server.listen("127.0.0.1", "reuse_port")?;
    scene.server.tell(&format!("listen 127.0.0.1:{own} reuse_port"))?;
    let shared = scene.server.listen("127.0.0.1", "reuse_port")?;
    second.tell(&format!("listen 127.0.0.1:{shared} reuse_port"))?;
    for port in [shared, own] {
        scene.loss.set(&[lose(SYN_ACK).sent_from(port).after(0, 1)])?;
        for _ in 0..4 {
            scene.client.tell(&format!("connect 127.0.0.1:{port}"))?;
        }
    }
    let accepted =
        |line: &Line, port: u16| scene.is_ours(line) && line.int("network.local.port") == Some(port.into());
    let events = scene.probe.wait_for("four connections and a retransmit of each", DEADLINE, |lines| {
        let of = |port| lines.iter().filter(|line| accepted(line, port)).cloned().collect::<Vec<_>>();
        let events = [of(shared), of(own)];
        events
            .iter()
            .all(|events| {
                events.iter().filter(|event| event.event() == "tcp.connect").count() == 4
                    && events.iter().any(|event| event.event() == "tcp.retransmit")
            })
            .then_some(events)
    })?;
    let [of_two, of_one] = events;
    for event in of_one {
        // The port may be shared with somebody who is older than the probe: only the listener that sent a SYN-ACK is known.
        let owner = (event.event() == "tcp.retransmit").then(|| i64::from(scene.server.pid()));
        assert_eq!(event.int("process.pid"), owner, "{event:?}");
    }
    let of_second = second.tell("drain")?;
    for event in of_two {
        assert_eq!(event.text("linux.cgroup.path"), Some(scene.cgroup.path()));
        let peer_port = event.int("network.peer.port").context("no peer port")?.to_string();
        let owner = if of_second.split(' ').any(|port| port == peer_port) { &second } else { &scene.server };
        if event.event() == "tcp.retransmit" {
            // A SYN-ACK is sent for one listener, and that is known.
            assert_eq!(event.int("process.pid"), Some(owner.pid().into()), "{event:?}");
            continue;
        }
        for key in ["process.pid", "process.comm", "process.executable.name"] {
            assert_eq!(event.get(key), None, "it may be either's: {event:?}");
        }
    }
    second.workload.end()?;
    scene.finish()?.require_kernels_sums("listeners_of_several_processes_own_nothing")
}

/// Who listens at an address now owns what is accepted there, not who did before.
fn a_port_that_changes_hands() -> Result<()> {
    let mut scene = Scene::new("connect")?;
    for address in LOOPBACKS {
        // The kernel chooses the first one's port, and takes it back as the listener closes.
        let mut first = Peer::start("test-first", &scene.netns, &scene.cgroup)?;
        let port = first.listen(address, "")?;
        first.tell("unlisten")?;
        for _ in 0..2 {
            scene.server.tell(&format!("listen {}", at(address, port)))?;
            let connection = scene.connect(address, port, "")?;
            let event = scene.event("tcp.connect", port, connection.client_port)?;
            scene.check(&event, (address, port), (address, connection.client_port), &scene.server)?;
            // So that nothing of the address is left.
            scene.client.tell(&format!("reset {}", connection.client))?;
            scene.server.tell(&format!("close {}", connection.server))?;
            scene.server.tell("unlisten")?;
        }
        first.workload.end()?;
    }
    scene.finish()?.require_kernels_sums("a_port_that_changes_hands")
}

/// Connections and listeners that were there before probe: who has them open owns them; of several, the oldest process.
fn older_sockets_have_owners() -> Result<()> {
    const KINDS: &str = "retransmit,connect,reset";
    let octets = 4 * SEGMENT.parse::<u32>()?;
    let mut scene = Scene::new(KINDS)?;
    let mut heir = Peer::start("test-heir", &scene.netns, &scene.cgroup)?;
    heir.tell("door heir")?;
    let mut older = Vec::new();
    for address in LOOPBACKS {
        let port = scene.server.listen(address, "")?;
        for (handed, kept) in [(false, true), (true, false), (true, true)] {
            let connection = scene.connect(address, port, FULL)?;
            let mut at_heir = None;
            if handed {
                scene.server.tell(&format!("hand {} heir", connection.server))?;
                at_heir = Some(heir.tell("take")?);
            }
            if !kept {
                scene.server.tell(&format!("close {}", connection.server))?;
            }
            older.push((address, port, connection, at_heir.filter(|_number| !kept)));
        }
    }

    scene.begin_anew(KINDS)?;
    for (address, port, connection, at_heir) in &older {
        scene.loss.set(&[
            lose(DATA).sent_to(*port).sent_from(connection.client_port).after(3, 1),
            lose(DATA).sent_from(*port).sent_to(connection.client_port).after(3, 1),
        ])?;
        scene.send(connection, 4)?;
        let (end, number) = match at_heir {
            Some(number) => (&mut heir, number),
            None => (&mut scene.server, &connection.server),
        };
        end.tell(&format!("receive {number} {octets}"))?;
        end.tell(&format!("send {number} {SEGMENT} 4"))?;
        scene.client.tell(&format!("receive {} {octets}", connection.client))?;
        scene.client.tell(&format!("reset {}", connection.client))?;
        let owner = if at_heir.is_some() { &heir } else { &scene.server };
        let (here, there) = ((*address, connection.client_port), (*address, *port));
        for name in ["tcp.retransmit", "tcp.reset"] {
            for (local, peer, owner) in [(here, there, &scene.client), (there, here, owner)] {
                let event = scene.event(name, local.1, peer.1)?;
                scene.check(&event, local, peer, owner)?;
            }
        }
    }
    // What comes now belongs to who listened then.
    for address in LOOPBACKS.into_iter().rev() {
        let port = older.iter().find(|(at, ..)| *at == address).context("no listener")?.1;
        let connection = scene.connect(address, port, "")?;
        let event = scene.event("tcp.connect", port, connection.client_port)?;
        scene.check(&event, (address, port), (address, connection.client_port), &scene.server)?;
        scene.server.tell("unlisten")?;
    }
    heir.workload.end()?;
    scene.finish()?.require_kernels_sums("older_sockets_have_owners")
}

/// IPv4 in IPv6 sockets is IPv4 on the wire, and reported as that.
fn ipv4_in_ipv6_sockets() -> Result<()> {
    let mut scene = Scene::new("retransmit,connect,reset")?;
    let port = scene.server.listen("::", "")?;
    // An IPv4 socket of the client, and an IPv6 socket of it; the server's are IPv6 in both cases.
    for address in ["127.0.0.1", "::ffff:127.0.0.1"] {
        let connection = scene.connect(address, port, FULL)?;
        scene.loss.set(&[
            lose(DATA).sent_to(port).after(3, 1),
            lose(DATA).sent_from(port).sent_to(connection.client_port).after(3, 1),
        ])?;
        scene.send(&connection, 4)?;
        scene.receive(&connection, 4)?;
        scene.server.tell(&format!("send {} {SEGMENT} 4", connection.server))?;
        scene.client.tell(&format!("receive {} {}", connection.client, 4 * SEGMENT.parse::<u32>()?))?;
        scene.client.tell(&format!("reset {}", connection.client))?;
        let (here, there) = (("127.0.0.1", connection.client_port), ("127.0.0.1", port));
        for name in ["tcp.connect", "tcp.retransmit", "tcp.reset"] {
            for (local, peer, owner) in [(here, there, &scene.client), (there, here, &scene.server)] {
                let event = scene.event(name, local.1, peer.1)?;
                scene.check(&event, local, peer, owner)?;
            }
        }
    }
    scene.finish()?.require_kernels_sums("ipv4_in_ipv6_sockets")
}

/// What identifies an event, whichever `probe` saw it.
fn identity(line: &Line) -> Vec<String> {
    let keys = [
        "event",
        "network.tcp.retransmit.type",
        "network.io.direction",
        "outcome",
        "network.tcp.handshake.role",
        "network.local.address",
        "network.local.port",
        "network.peer.address",
        "network.peer.port",
        "process.pid",
    ];
    keys.iter().map(|key| line.get(key).map(ToString::to_string).unwrap_or_default()).collect()
}

fn filters() -> Result<()> {
    const KINDS: &str = "retransmit,reset,connect";
    let mut scene = Scene::new(KINDS)?;
    let inner = scene.cgroup.below("inner")?;
    let mut second = Peer::start("test-second", &scene.netns, &inner)?;
    // In a namespace of its own every port is free.
    let (v4, wide, v6) = (7001_u16, 7002_u16, 7003_u16);

    let pid = scene.client.pid().to_string();
    let (v4_text, v6_text) = (v4.to_string(), v6.to_string());
    type Wanted = Box<dyn Fn(&Line) -> bool>;
    let text = |key: &'static str, value: &str| -> Wanted {
        let value = value.to_owned();
        Box::new(move |line| line.text(key) == Some(&value))
    };
    let int =
        |key: &'static str, value: i64| -> Wanted { Box::new(move |line| line.int(key) == Some(value)) };
    let cgroup = scene.cgroup.path().to_owned();
    let cases: Vec<(Vec<&str>, Wanted)> = vec![
        (vec!["--pid", &pid], int("process.pid", scene.client.pid().into())),
        (vec!["--comm", "test-second"], text("process.comm", "test-second")),
        (vec!["--local-port", &v4_text], int("network.local.port", v4.into())),
        (vec!["--peer-port", &v6_text], int("network.peer.port", v6.into())),
        (vec!["--peer", "127.0.0.2"], text("network.peer.address", "127.0.0.2")),
        (
            vec!["--peer", "127.0.0.0/30"],
            Box::new(|line| {
                matches!(line.text("network.peer.address"), Some("127.0.0.1" | "127.0.0.2" | "127.0.0.3"))
            }),
        ),
        (vec!["--peer", "::/64"], text("network.type", "ipv6")),
        (vec!["--cgroup", inner.path()], text("linux.cgroup.path", inner.path())),
        (
            vec!["--cgroup", &cgroup],
            Box::new({
                let cgroup = cgroup.clone();
                move |line| line.text("linux.cgroup.path").is_some_and(|path| path.starts_with(&cgroup))
            }),
        ),
        (
            vec!["--comm", "test-second", "--peer-port", &v6_text],
            Box::new(move |line| {
                line.text("process.comm") == Some("test-second")
                    && line.int("network.peer.port") == Some(v6.into())
            }),
        ),
        (vec!["--kind", "reset"], text("event", "tcp.reset")),
    ];
    let probes = cases
        .iter()
        .map(|(filter, _)| {
            let kinds = if filter.contains(&"--kind") { &[][..] } else { &["--kind", KINDS] };
            Probe::start(&[&["tcp"], &filter[..], kinds].concat())
        })
        .collect::<Result<Vec<_>>>()?;

    // Every one connects everywhere, and loses the first SYN of all; then each connection is reset. A listener's owner is known
    // to those who saw it begin.
    for (listen, address, port) in [
        (Some("127.0.0.1"), "127.0.0.1", v4),
        (Some("0.0.0.0"), "127.0.0.2", wide),
        (None, "127.0.0.5", wide),
        (Some("::1"), "::1", v6),
    ] {
        if let Some(listen) = listen {
            scene.server.tell(&format!("listen {}", at(listen, port)))?;
        }
        scene.loss.set(&[lose(SYN).sent_to(port).after(0, 1)])?;
        // The other's program does not see what is received in a cgroup beside it; here the server receives.
        for peer in [&mut scene.client, &mut second] {
            let answer = peer.tell(&format!("connect {}", at(address, port)))?;
            let (number, _) = answer.split_once(' ').context(answer.clone())?;
            // Or the reset overtakes the last segment of the handshake, and the server never had a connection.
            scene.server.tell("accept")?;
            peer.tell(&format!("reset {number}"))?;
        }
    }
    // Per address: one retransmit; per connection: two ends, two resets.
    let all = scene.probe.wait_for("all events", DEADLINE, |lines| {
        let ours: Vec<Line> = lines.iter().filter(|line| scene.is_ours(line)).cloned().collect();
        (ours.len() >= 4 + 4 * 2 * 4).then_some(ours)
    })?;
    assert_eq!(all.len(), 4 + 4 * 2 * 4);
    for ((filter, wanted), probe) in cases.iter().zip(probes) {
        let mut expected: Vec<_> = all.iter().filter(|line| wanted(line)).map(identity).collect();
        let finished = probe.stop()?;
        finished.require_complete()?;
        let seen = finished.lines.iter().filter(|line| scene.is_ours(line));
        let mut seen: Vec<_> = seen.map(identity).collect();
        expected.sort();
        seen.sort();
        assert!(
            !expected.is_empty() && expected.len() < all.len() || filter.contains(&&*cgroup),
            "{filter:?}"
        );
        assert_eq!(seen, expected, "{filter:?}");
        // What the filter keeps out costs no record: neither does anything of the rest of the host.
        assert!(finished.lines.iter().all(wanted), "{filter:?}");
    }
    second.workload.end()?;
    drop(inner);
    scene.finish()?.require_kernels_sums("filters")
}
