//! Sockets that are not made, or not used, as most are.

use std::path::Path;

use anyhow::{Result, ensure};
use probe_common::testdrop::{DATA, SYN, SYN_ACK};
use probe_tests::drop::{RuleExt as _, lose};
use probe_tests::probe::in_guest;
use probe_tests::require;
use probe_tests::require::own_host;

use crate::scene::{LOOPBACKS, Outcome, Peer, SEGMENT, Scene, at};
use crate::{ends, retransmit_in};

const EVERYTHING: &str = "retransmit,reset,failed,connect,close";

/// How many events of a name there were.
fn count(outcome: &Outcome, name: &str) -> usize {
    outcome.events.iter().filter(|line| line.event() == name).count()
}

/// MPTCP's own sockets are no TCP; those below them, which the kernel makes, are.
pub(crate) fn mptcp_subflows_are_their_processes() -> Result<()> {
    const SWITCH: &str = "/proc/sys/net/mptcp/enabled";
    // It is older, but an option of the kernel's build; Debian chose it later.
    require!(Path::new(SWITCH).exists(), "MPTCP", since = "6.1");
    let mut scene = Scene::new(EVERYTHING)?;
    scene.netns.run(|| std::fs::write(SWITCH, "1"))??;
    for address in LOOPBACKS {
        let port = scene.server.listen(address, "mptcp")?;
        let connection = scene.connect(address, port, "mptcp")?;
        let (here, there) = ends(address, &connection, port);
        scene.loss.set(&[lose(DATA).sent_to(port)])?;
        scene.send(&connection, 1)?;
        let retransmit = retransmit_in(&scene, "established", connection.client_port)?;
        scene.check(&retransmit, here, there, &scene.client)?;
        scene.loss.heal()?;
        scene.receive(&connection, 1)?;
        scene.client.tell(&format!("close {}", connection.client))?;
        scene.server.tell(&format!("close {}", connection.server))?;
        for name in ["tcp.connect", "tcp.close"] {
            for (local, peer, owner) in [(here, there, &scene.client), (there, here, &scene.server)] {
                scene.check(&scene.event(name, local.1, peer.1)?, local, peer, owner)?;
            }
        }

        scene.server.tell("unlisten")?;
        let refused = scene.client.tell(&format!("connect {} mptcp", at(address, port)))?;
        ensure!(refused == "error ConnectionRefused", "{refused}");
        let failed = scene.probe.line("a refused connection", |line| {
            scene.is_ours(line)
                && line.text("error.type") == Some("ECONNREFUSED")
                && line.text("network.peer.address") == Some(address)
        })?;
        let chosen = u16::try_from(failed.int("network.local.port").unwrap_or_default())?;
        scene.check(&failed, (address, chosen), (address, port), &scene.client)?;
    }
    let outcome = scene.finish()?;
    ensure!(outcome.counters.get("MPTcpExtMPCapableSYNACKRX")? == 2, "it was no MPTCP");
    assert_eq!(
        (count(&outcome, "tcp.connect"), count(&outcome, "tcp.close")),
        (6, 4),
        "{:?}",
        outcome.events
    );
    outcome.require_kernels_sums("mptcp_subflows_are_their_processes")
}

/// Further paths of an MPTCP connection are connected by a thread of the kernel's own: nobody's, and no stranger's.
pub(crate) fn further_paths_of_mptcp_are_nobodys() -> Result<()> {
    const FURTHER: &str = "127.0.0.2";
    if in_guest() {
        return own_host("ip mptcp");
    }
    let mut scene = Scene::new(EVERYTHING)?;
    scene.netns.call("ip", "mptcp limits set subflows 4 add_addr_accepted 4")?;
    scene.netns.call("ip", &format!("mptcp endpoint add {FURTHER} dev lo subflow"))?;
    let port = scene.server.listen("127.0.0.1", "mptcp")?;
    let connection = scene.connect("127.0.0.1", port, "mptcp")?;
    // It is made once data was acknowledged.
    scene.send(&connection, 1)?;
    scene.receive(&connection, 1)?;
    let made = |key: &'static str| {
        scene.probe.line("the further path", |line| {
            scene.is_ours(line) && line.event() == "tcp.connect" && line.text(key) == Some(FURTHER)
        })
    };
    let (ours, theirs) = (made("network.local.address")?, made("network.peer.address")?);
    for (line, role) in [(&ours, "client"), (&theirs, "server")] {
        ensure!(line.text("network.tcp.handshake.role") == Some(role), "{}", line.0);
    }
    for key in ["process.pid", "process.comm", "process.executable.name"] {
        ensure!(ours.get(key).is_none(), "{key}: {}", ours.0);
    }
    ensure!(theirs.int("process.pid") == Some(scene.server.pid().into()), "{}", theirs.0);
    scene.finish()?.require_kernels_sums("further_paths_of_mptcp_are_nobodys")
}

/// TCP Fast Open (RFC 7413): the server's socket is there before the handshake is over.
pub(crate) fn tcp_fast_open() -> Result<()> {
    const SWITCH: &str = "/proc/sys/net/ipv4/tcp_fastopen";
    /// For clients, for servers, and for all listeners, Documentation/networking/ip-sysctl.rst.
    const EVERYWHERE: &str = "1027";
    let mut scene = Scene::new(EVERYTHING)?;
    scene.netns.run(|| std::fs::write(SWITCH, EVERYWHERE))??;
    for address in LOOPBACKS {
        let port = scene.server.listen(address, "")?;
        // The first gets a cookie, the second sends data in its SYN, of the third the answer to that is lost.
        for round in 1..=3 {
            let lost = if round == 3 { &[lose(SYN_ACK).sent_from(port).after(0, 1)][..] } else { &[] };
            scene.loss.set(lost)?;
            let connection = scene.meet(&format!("fast {} {SEGMENT}", at(address, port)))?;
            let (here, there) = ends(address, &connection, port);
            scene.receive(&connection, 1)?;
            scene.server.tell(&format!("send {} {SEGMENT} 1", connection.server))?;
            scene.client.tell(&format!("receive {} {SEGMENT}", connection.client))?;
            scene.client.tell(&format!("close {}", connection.client))?;
            scene.server.tell(&format!("close {}", connection.server))?;
            for name in ["tcp.connect", "tcp.close"] {
                for (local, peer, owner) in [(here, there, &scene.client), (there, here, &scene.server)] {
                    let event = scene.event(name, local.1, peer.1)?;
                    scene.check(&event, local, peer, owner)?;
                    ensure!(
                        name != "tcp.connect" || event.text("outcome") == Some("established"),
                        "{event:?}"
                    );
                }
            }
            if round == 3 {
                let event = scene.event("tcp.retransmit", there.1, here.1)?;
                scene.check(&event, there, here, &scene.server)?;
                assert_eq!(event.text("network.tcp.retransmit.type"), Some("syn_ack"), "{event:?}");
            }
        }
    }
    let outcome = scene.finish()?;
    // All but the first of each address.
    assert_eq!(outcome.counters.get("TcpExtTCPFastOpenPassive")?, 4);
    assert_eq!(
        (count(&outcome, "tcp.connect"), count(&outcome, "tcp.close")),
        (12, 12),
        "{:?}",
        outcome.events
    );
    outcome.require_kernels_sums("tcp_fast_open")
}

/// Whoever makes TCP's segments by hand makes no connection of the kernel's.
pub(crate) fn raw_sockets_are_no_connections() -> Result<()> {
    const FROM: u16 = 7001;
    let mut scene = Scene::new(EVERYTHING)?;
    let nobodys = scene.server.listen("127.0.0.1", "")?;
    scene.server.tell("unlisten")?;
    let port = scene.server.listen("127.0.0.1", "")?;
    for to in [nobodys, port] {
        scene.client.tell(&format!("raw {} {}", at("127.0.0.1", 0), syn([127, 0, 0, 1], FROM, to)))?;
    }
    let connection = scene.connect("127.0.0.1", port, "")?;
    let (here, there) = ends("127.0.0.1", &connection, port);
    for (local, peer, owner) in [(here, there, &scene.client), (there, here, &scene.server)] {
        scene.check(&scene.event("tcp.connect", local.1, peer.1)?, local, peer, owner)?;
    }
    let outcome = scene.finish()?;
    assert!(
        outcome.events.iter().all(|line| {
            [line.int("network.local.port"), line.int("network.peer.port")].contains(&Some(here.1.into()))
        }),
        "{:?}",
        outcome.events
    );
    assert_eq!(
        (count(&outcome, "tcp.connect"), count(&outcome, "tcp.close")),
        (2, 2),
        "{:?}",
        outcome.events
    );
    // Both were answered by a reset: of nobody to the one, of the kernel that knows no such connection to the other's answer.
    assert_eq!(outcome.counters.get("TcpOutRsts")?, 2);
    Ok(())
}

/// A SYN from an address to itself, in hexadecimal digits.
fn syn(address: [u8; 4], from: u16, to: u16) -> String {
    const HEADER: u16 = 20;
    const SYN_BIT: u16 = 1 << 1;
    let mut words = [from, to, 0, 1, 0, 0, ((HEADER / 4) << 12) | SYN_BIT, 1024, 0, 0];
    // RFC 9293, 3.1: with both addresses, the protocol and the length.
    let [a, b, c, d] = address;
    let pseudo = [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])];
    let sum = words
        .iter()
        .chain(&pseudo)
        .chain(&pseudo)
        .chain(&[6, HEADER])
        .map(|word| u32::from(*word))
        .sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    let [.., checksum, _urgent] = &mut words;
    *checksum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    words.iter().map(|word| format!("{word:04x}")).collect()
}

/// Connections that are given up before they are made leave nothing to who comes after them.
pub(crate) fn half_open_connections() -> Result<()> {
    let mut scene = Scene::new(EVERYTHING)?;
    let mut second = Peer::start("test-second", &scene.netns, &scene.cgroup)?;
    for address in LOOPBACKS {
        // Its process closes it. The next socket may well get its memory.
        let port = scene.server.listen(address, "")?;
        scene.loss.set(&[lose(SYN).sent_to(port)])?;
        let number = scene.client.tell(&format!("begin {}", at(address, port)))?;
        let retransmit = scene.probe.line("a SYN sent again", |line| {
            scene.is_ours(line)
                && line.event() == "tcp.retransmit"
                && line.int("network.peer.port") == Some(port.into())
        })?;
        let chosen = u16::try_from(retransmit.int("network.local.port").unwrap_or_default())?;
        scene.check(&retransmit, (address, chosen), (address, port), &scene.client)?;
        scene.client.tell(&format!("close {number}"))?;
        scene.loss.heal()?;
        std::mem::swap(&mut scene.client, &mut second);
        let connection = scene.connect(address, port, "")?;
        let (here, there) = ends(address, &connection, port);
        scene.check(&scene.event("tcp.connect", here.1, there.1)?, here, there, &scene.client)?;
        std::mem::swap(&mut scene.client, &mut second);

        // The one who listened goes, and another comes, before the answer to a SYN arrives.
        let port = scene.server.listen(address, "")?;
        scene.loss.set(&[lose(SYN_ACK).sent_from(port)])?;
        scene.client.workload.order(&format!("connect {}", at(address, port)))?;
        let retransmit = scene.retransmit("syn_ack", port)?;
        let chosen = u16::try_from(retransmit.int("network.peer.port").unwrap_or_default())?;
        scene.check(&retransmit, (address, port), (address, chosen), &scene.server)?;
        scene.server.tell("unlisten")?;
        second.tell(&format!("listen {}", at(address, port)))?;
        scene.loss.heal()?;
        second.tell("accept")?;
        scene.client.workload.hear()?;
        for (local, peer, owner) in [
            ((address, chosen), (address, port), &scene.client),
            ((address, port), (address, chosen), &second),
        ] {
            scene.check(&scene.event("tcp.connect", local.1, peer.1)?, local, peer, owner)?;
        }
    }
    second.workload.end()?;
    let outcome = scene.finish()?;
    assert_eq!(count(&outcome, "tcp.connect"), 8, "{:?}", outcome.events);
    outcome.require_kernels_sums("half_open_connections")
}
