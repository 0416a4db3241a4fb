//! How connections come about and how they end: outcomes, resets, what they carried.

use anyhow::{Context as _, Result, ensure};
use probe_common::testdrop::{BARE, SYN};
use probe_tests::drop::{RuleExt as _, lose};
use probe_tests::probe::{DEADLINE, Line};
use probe_tests::require;
use probe_user::kernel::btf::KernelBtf;

use crate::scene::{FULL, LOOPBACKS, SEGMENT, Scene, at};

pub(crate) fn connections_that_are_made() -> Result<()> {
    let mut scene = Scene::new("connect")?;
    for (bound, address) in [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::1", "::1"),
        ("::", "::1"),
        ("::", "127.0.0.1"),
    ] {
        let port = scene.server.listen(bound, "")?;
        let connection = scene.connect(address, port, "")?;
        let (here, there) = ((address, connection.client_port), (address, port));
        for (local, peer, owner, role) in
            [(here, there, &scene.client, "client"), (there, here, &scene.server, "server")]
        {
            let event = scene.probe.line(role, |line| {
                scene.is_ours(line) && line.int("network.local.port") == Some(local.1.into())
            })?;
            scene.check(&event, local, peer, owner)?;
            assert_eq!(event.event(), "tcp.connect");
            assert_eq!(event.text("outcome"), Some("established"));
            assert_eq!(event.text("network.tcp.handshake.role"), Some(role));
            assert_eq!(event.text("network.connection.state"), Some("established"));
            assert_eq!(event.get("error.type"), None);
            let duration = event.float("duration");
            if role == "client" {
                assert!(duration.is_some_and(|seconds| seconds > 0.0 && seconds < 1.0), "{event:?}");
            } else {
                assert_eq!(duration, None, "nobody measures it there");
            }
        }
    }
    let outcome = scene.finish()?;
    assert_eq!(outcome.events.len(), 10, "{:?}", outcome.events);
    assert_eq!(outcome.counters.get("TcpPassiveOpens")?, 5);
    Ok(())
}

/// What a connection carried is said at its end, whichever side ends it.
pub(crate) fn connections_that_end() -> Result<()> {
    const BACK: u32 = 3;
    let octets = SEGMENT.parse::<i64>()?;
    let mut scene = Scene::new("close,retransmit")?;
    let mut closes: Vec<Line> = Vec::new();
    for address in LOOPBACKS {
        let port = scene.server.listen(address, "")?;
        for first in ["client", "server", "reset"] {
            let connection = scene.connect(address, port, FULL)?;
            // The acknowledgement is lost, so the segment is sent again, which the server says it had.
            scene.loss.set(&[lose(BARE).sent_from(port).sent_to(connection.client_port).after(0, 1)])?;
            scene.send(&connection, 1)?;
            scene.receive(&connection, 1)?;
            scene.retransmit("tail_loss_probe", connection.client_port)?;
            scene.server.tell(&format!("send {} {SEGMENT} {BACK}", connection.server))?;
            let back = octets * i64::from(BACK);
            scene.client.tell(&format!("receive {} {back}", connection.client))?;
            match first {
                "client" => scene.part(&connection)?,
                "server" => {
                    scene.server.tell(&format!("close {}", connection.server))?;
                    scene.client.tell(&format!("close {}", connection.client))?;
                }
                _ => {
                    scene.client.tell(&format!("reset {}", connection.client))?;
                }
            }
            let (here, there) = ((address, connection.client_port), (address, port));
            let ends = [
                (here, there, &scene.client, (octets, back), (1, 1)),
                (there, here, &scene.server, (back, octets), (0, 0)),
            ];
            for (local, peer, owner, (sent, received), (again, spurious)) in ends {
                let event = scene.event("tcp.close", local.1, peer.1)?;
                scene.check(&event, local, peer, owner)?;
                for (key, value) in [
                    ("tcp.bytes_sent", sent),
                    ("tcp.bytes_received", received),
                    ("tcp.segments_retransmitted", again),
                    ("tcp.segments_spurious", spurious),
                    ("tcp.segments_out_of_order", 0),
                ] {
                    ensure!(event.int(key) == Some(value), "{key} is not {value}, {first}: {}", event.0);
                }
                ensure!(event.text("network.connection.state") == Some("closed"), "{}", event.0);
                for key in ["duration", "tcp.srtt"] {
                    ensure!(event.float(key).is_some_and(|s| s > 0.0 && s < 60.0), "{key}: {}", event.0);
                }
                closes.push(event);
            }
        }
    }
    let outcome = scene.finish()?;
    let sum = |key: &str| closes.iter().filter_map(|line| line.int(key)).sum::<i64>();
    let counter = |name: &str| outcome.counters.get(name);
    assert_eq!(outcome.events.iter().filter(|line| line.event() == "tcp.close").count(), closes.len());
    assert_eq!(sum("tcp.segments_retransmitted"), counter("TcpRetransSegs")?);
    assert_eq!(sum("tcp.segments_spurious"), counter("TcpExtTCPDSACKRecvSegs")?);
    // The kernel counts what sockets that wait or only began sent too.
    let (sent, all) = (sum("tcp.segments_sent"), counter("TcpOutSegs")?);
    ensure!(sent > 0 && sent <= all, "{sent} of {all} segments");
    outcome.require_kernels_sums("connections_that_end")
}

pub(crate) fn connections_that_fail() -> Result<()> {
    let mut scene = Scene::new("failed,connect")?;
    scene.netns.run(|| std::fs::write("/proc/sys/net/ipv4/tcp_syn_retries", "1"))??;
    for address in LOOPBACKS {
        // A port that was somebody's a moment ago is nobody's now.
        let closed = scene.server.listen(address, "")?;
        scene.server.tell("unlisten")?;
        // The kernel's choice of local port is over when the connection has failed; a port of the test's is not.
        let local = scene.server.listen(address, "")?;
        scene.server.tell("unlisten")?;
        assert_eq!(
            scene.client.tell(&format!("connect {} from={}", at(address, closed), at(address, local)))?,
            "error ConnectionRefused"
        );
        let answer = scene.client.tell(&format!("connect {}", at(address, closed)))?;
        assert_eq!(answer, "error ConnectionRefused");
        let refused = scene.probe.wait_for("two refused connections", DEADLINE, |lines| {
            let refused =
                |line: &&Line| scene.is_ours(line) && line.int("network.peer.port") == Some(closed.into());
            let lines: Vec<Line> = lines.iter().filter(refused).cloned().collect();
            (lines.len() == 2).then_some(lines)
        })?;
        scene.check(&refused[0], (address, local), (address, closed), &scene.client)?;
        let chosen = refused[1].int("network.local.port").context("no local port")?;
        scene.check(&refused[1], (address, u16::try_from(chosen)?), (address, closed), &scene.client)?;
        assert_ne!(chosen, 0, "0 is no port");
        for event in refused {
            assert_eq!(event.event(), "tcp.connect");
            assert_eq!(event.text("outcome"), Some("failed"));
            assert_eq!(event.text("error.type"), Some("ECONNREFUSED"));
            assert_eq!(event.text("network.tcp.handshake.role"), Some("client"));
            assert!(event.float("duration").is_some_and(|seconds| seconds > 0.0), "{event:?}");
        }
    }

    // Nobody answers: one connection is given up by its process, one by the kernel.
    let silent = LOOPBACKS.map(|address| scene.server.listen(address, ""));
    let [v4, v6] = silent;
    let (v4, v6) = (v4?, v6?);
    scene.loss.set(&[lose(SYN).sent_to(v4), lose(SYN).sent_to(v6)])?;
    for (address, port) in [("127.0.0.1", v4), ("::1", v6)] {
        scene.client.tell(&format!("begin {}", at(address, port)))?;
        let given_up = scene.client.tell(&format!("begin {}", at(address, port)))?;
        scene.client.tell(&format!("close {given_up}"))?;
    }
    for (address, port) in [("127.0.0.1", v4), ("::1", v6)] {
        let event = scene.probe.line("a connection that nobody answered", |line| {
            scene.is_ours(line) && line.int("network.peer.port") == Some(port.into())
        })?;
        let chosen = event.int("network.local.port").context("no local port")?;
        scene.check(&event, (address, u16::try_from(chosen)?), (address, port), &scene.client)?;
        assert_eq!(event.text("error.type"), Some("ETIMEDOUT"));
        // A SYN, another after a second, and two more seconds of waiting.
        assert!(event.float("duration").is_some_and(|seconds| seconds > 2.5), "{event:?}");
    }
    let outcome = scene.finish()?;
    assert_eq!(outcome.events.len(), 6, "closing a half-open connection is no failure: {:?}", outcome.events);
    Ok(())
}

pub(crate) fn resets() -> Result<()> {
    let mut scene = Scene::new("reset")?;
    for address in LOOPBACKS {
        let port = scene.server.listen(address, "")?;
        for client_resets in [true, false] {
            let connection = scene.connect(address, port, "")?;
            let here = ((address, connection.client_port), &scene.client);
            let there = ((address, port), &scene.server);
            let (from, to) = if client_resets { (here, there) } else { (there, here) };
            let events: [(_, _, _, _); 2] =
                [(from.0, to.0, from.1.pid(), "transmit"), (to.0, from.0, to.1.pid(), "receive")];
            if client_resets {
                scene.client.tell(&format!("reset {}", connection.client))?;
            } else {
                scene.server.tell(&format!("reset {}", connection.server))?;
            }
            for (local, peer, pid, direction) in events {
                let event = scene.probe.line(direction, |line| {
                    scene.is_ours(line)
                        && line.int("network.local.port") == Some(local.1.into())
                        && line.int("network.peer.port") == Some(peer.1.into())
                })?;
                let owner = if pid == scene.client.pid() { &scene.client } else { &scene.server };
                scene.check(&event, local, peer, owner)?;
                assert_eq!(event.event(), "tcp.reset");
                assert_eq!(event.text("network.io.direction"), Some(direction), "{event:?}");
            }
        }
    }
    // A refused connection is a reset received; the one who refuses has no socket to speak of.
    let closed = scene.server.listen("127.0.0.1", "")?;
    scene.server.tell("unlisten")?;
    scene.client.tell(&format!("connect 127.0.0.1:{closed}"))?;
    let refused = scene.probe.line("a reset instead of a connection", |line| {
        scene.is_ours(line) && line.int("network.peer.port") == Some(closed.into())
    })?;
    assert_eq!(refused.text("network.io.direction"), Some("receive"));
    assert_eq!(refused.int("process.pid"), Some(scene.client.pid().into()));
    let outcome = scene.finish()?;
    assert_eq!(outcome.events.len(), 9, "{:?}", outcome.events);
    Ok(())
}

/// Why a reset was sent, in the kernel's own words: those of `enum sk_rst_reason` of its BTF.
pub(crate) fn reset_reasons() -> Result<()> {
    let reasons = KernelBtf::from_host()?.enum_variants("sk_rst_reason");
    let told = reasons.iter().any(|reason| reason.name == "SK_RST_REASON_TCP_STATE");
    require!(told, "the reason of a reset by SO_LINGER", since = "6.12");
    let mut scene = Scene::new("reset")?;
    for address in LOOPBACKS {
        let port = scene.server.listen(address, "")?;
        let connection = scene.connect(address, port, "")?;
        scene.client.tell(&format!("reset {}", connection.client))?;
        for (direction, local_port, reason) in
            [("transmit", connection.client_port, Some("tcp_state")), ("receive", port, None)]
        {
            let event = scene.probe.line(direction, |line| {
                scene.is_ours(line)
                    && line.event() == "tcp.reset"
                    && line.int("network.local.port") == Some(local_port.into())
            })?;
            // One that was received carries none.
            assert_eq!(event.text("tcp.reset.reason"), reason, "{event:?}");
        }
    }
    assert_eq!(scene.finish()?.events.len(), 4);
    Ok(())
}
