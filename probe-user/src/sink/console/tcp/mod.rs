//! The screen of `probe tcp`: a line an event, and what all of them together come to at the end.

mod account;
mod reading;
mod summary;

use std::borrow::Cow;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use probe_common::tcp::CAUSES;

pub use self::account::Account;
pub use self::summary::write as closing;
use super::owners::{OWNER_LEAST, owner};
use super::text::{age, cut, octets, seconds, width};
use super::{escape, time_of_day};
use crate::signals::Who;
use crate::signals::tcp::{Close, Connect, Connection, Reset, Retransmit};

/// What a line fits into, as long as its addresses are IPv4.
const COLUMNS: usize = 120;
/// Owner and details have this in any case: beside IPv6 addresses a line grows.
const TAIL: usize = 30;
/// Owners shorter than this are filled up, so that details stand below each other, also those of most octets.
const OWNER: usize = 15;
/// Both ends of a connection, of IPv4.
const ENDS: usize = 43;
/// Between owner and details.
const GAP: usize = 2;
/// A peer's name shorter cut than this says nothing.
const NAME_LEAST: usize = 12;
/// `probe_common::tcp::CAUSES` in plain words.
const CAUSES_IN_WORDS: [&str; CAUSES.len()] =
    ["SYN again", "SYN-ACK again", "timeout", "slow start", "fast retransmit", "tail loss probe"];

pub(super) fn heading() -> String {
    let row = row("TIME", "KIND", "SEGS", "LOCAL → PEER", "SRTT");
    format!("{row}  {:<OWNER$}  DETAILS", "OWNER")
}

fn row(time: &str, kind: &str, segments: &str, ends: &str, srtt: &str) -> String {
    format!("{time:<12} {kind:<15} {segments:>4} {ends:<ENDS$} {srtt:>6}")
}

pub(super) fn retransmit(out: &mut dyn Write, event: &Retransmit) -> io::Result<()> {
    let Retransmit { time_unix_ns, connection, cause, segments, srtt, cwnd: _, unacked } = event;
    let unacked = unacked.filter(|unacked| unacked > segments);
    let details = match connection.state {
        // These go without saying.
        "established" | "syn_sent" | "syn_received" => unacked.map(|unacked| format!("{unacked} unacked")),
        state => Some(state.to_owned()),
    };
    Line {
        time_unix_ns: *time_unix_ns,
        kind: in_words(cause).into(),
        segments: Some(*segments),
        connection,
        srtt: *srtt,
        details: details.unwrap_or_default(),
    }
    .write(out)
}

pub(super) fn reset(out: &mut dyn Write, event: &Reset) -> io::Result<()> {
    let Reset { time_unix_ns, connection, direction, reason } = event;
    let details = match reason {
        Some(reason) if **reason != *"not_specified" => reason,
        _ if matches!(connection.state, "established" | "closed" | "unknown") => "",
        _ => connection.state,
    };
    Line {
        time_unix_ns: *time_unix_ns,
        kind: if *direction == "receive" { "reset received" } else { "reset sent" }.into(),
        segments: None,
        connection,
        srtt: None,
        details: escape(details),
    }
    .write(out)
}

pub(super) fn connect(out: &mut dyn Write, event: &Connect) -> io::Result<()> {
    let Connect { time_unix_ns, connection, role, error, duration } = event;
    let kind = match error.as_deref() {
        Some("ECONNREFUSED") => "refused".into(),
        Some(errno) => escape(errno).into(),
        None if *role == "server" => "accepted".into(),
        None => "connected".into(),
    };
    Line {
        time_unix_ns: *time_unix_ns,
        kind,
        segments: None,
        connection,
        srtt: None,
        details: duration.map(|duration| format!("after {}", seconds(duration))).unwrap_or_default(),
    }
    .write(out)
}

pub(super) fn close(out: &mut dyn Write, event: &Close) -> io::Result<()> {
    let Close {
        time_unix_ns,
        connection,
        duration,
        bytes_sent,
        bytes_received,
        segments_sent: _,
        segments_received: _,
        segments_retransmitted,
        segments_spurious: _,
        segments_out_of_order: _,
        srtt,
        recoveries_undone: _,
    } = event;
    let carried = [("↑", bytes_sent), ("↓", bytes_received)].map(|(way, count)| {
        let count = count.map(octets);
        count.map(|count| format!("{way}{count}"))
    });
    Line {
        time_unix_ns: *time_unix_ns,
        kind: duration.map_or("closed".into(), |duration| format!("closed ({})", age(duration)).into()),
        segments: segments_retransmitted.filter(|segments| *segments != 0),
        connection,
        srtt: *srtt,
        details: carried.into_iter().flatten().collect::<Vec<_>>().join(" "),
    }
    .write(out)
}

/// A cause in plain words.
fn in_words(cause: &'static str) -> &'static str {
    let index = CAUSES.iter().position(|name| *name == cause);
    index.and_then(|index| CAUSES_IN_WORDS.get(index)).copied().unwrap_or(cause)
}

struct Line<'a> {
    time_unix_ns: u64,
    kind: Cow<'static, str>,
    segments: Option<u32>,
    connection: &'a Connection,
    srtt: Option<Duration>,
    details: String,
}

impl Line<'_> {
    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let Self { time_unix_ns, kind, segments, connection, srtt, details } = self;
        // Where the packets went matters more, and both do not fit beside an owner.
        let led = connection.destination.map(|destination| format!("at {destination}"));
        let details = led.as_ref().unwrap_or(details);
        let segments = segments.map(|segments| segments.to_string()).unwrap_or_default();
        let srtt = srtt.map(seconds).unwrap_or_default();
        let row = row(&time_of_day(*time_unix_ns), kind, &segments, &ends(connection), &srtt);
        // An address is not cut: then the line grows, too.
        let least = led.as_ref().map_or(TAIL, |led| OWNER_LEAST + GAP + width(led));
        let room = COLUMNS.saturating_sub(width(&row) + GAP).max(least);
        writeln!(out, "{row}  {}", tail(&connection.who, details, room))
    }
}

/// Both ends of a connection, and the peer's name where it is known. It takes the place of the local address, of which the port is
/// left, where both do not fit: what a process calls its peer says more than what its host is called.
fn ends(connection: &Connection) -> String {
    let local = SocketAddr::new(connection.local, connection.local_port);
    let peer = SocketAddr::new(connection.peer, connection.peer_port);
    let whole = format!("{local} → {peer}");
    let Some(name) = connection.peer_name.as_deref().map(escape) else { return whole };
    let short = format!(":{} → {peer}", local.port());
    let room = |ends: &str| ENDS.saturating_sub(width(ends) + 1);
    if width(&name) <= room(&whole) {
        format!("{whole} {name}")
    } else if NAME_LEAST.min(width(&name)) <= room(&short) {
        format!("{short} {}", cut(&name, room(&short)))
    } else {
        whole
    }
}

/// Owner and details. The owner is cut before the details are.
fn tail(who: &Who, details: &str, room: usize) -> String {
    if details.is_empty() {
        return owner(who, room);
    }
    let for_owner = room.saturating_sub(width(details) + GAP).max(OWNER_LEAST);
    let owner = owner(who, for_owner);
    let filled = width(&owner).max(OWNER.min(for_owner));
    let details = cut(details, room.saturating_sub(filled + GAP));
    format!("{owner:<filled$}  {details}")
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;

    pub(super) use super::super::owners::tests::{CONTAINER, who};
    use super::*;
    use crate::signals::Event;

    const NOON: u64 = 1_767_355_200_000_000_000;

    pub(super) fn connection(local: &str, peer: &str, who: Who) -> Connection {
        let [local, peer] = [local, peer].map(|end| end.parse::<SocketAddr>().unwrap());
        Connection {
            who,
            local: local.ip(),
            local_port: local.port(),
            peer: peer.ip(),
            peer_port: peer.port(),
            peer_name: None,
            destination: None,
            state: "established",
        }
    }

    pub(super) fn sent_again(cause: &'static str, segments: u32, connection: Connection) -> Retransmit {
        Retransmit {
            time_unix_ns: NOON,
            connection,
            cause,
            segments,
            srtt: Some(Duration::from_micros(45_600)),
            cwnd: Some(10),
            unacked: Some(segments),
        }
    }

    pub(super) fn ended(connection: Connection) -> Close {
        Close {
            time_unix_ns: NOON,
            connection,
            duration: Some(Duration::from_secs(45)),
            bytes_sent: Some(1_288_490),
            bytes_received: Some(46_695),
            segments_sent: Some(900),
            segments_received: Some(450),
            segments_retransmitted: Some(0),
            segments_spurious: Some(0),
            segments_out_of_order: Some(0),
            srtt: None,
            recoveries_undone: Some(0),
        }
    }

    fn named(name: &str, connection: Connection) -> Connection {
        Connection { peer_name: Some(name.into()), ..connection }
    }

    fn line(event: impl Into<Event>) -> String {
        let mut out = Vec::new();
        super::super::event(&mut out, &event.into()).unwrap();
        let line = String::from_utf8(out).unwrap();
        assert_eq!(line.matches('\n').count(), 1, "{line}");
        line.trim_end_matches('\n').to_owned()
    }

    impl From<Retransmit> for Event {
        fn from(event: Retransmit) -> Self {
            Self::Retransmit(event)
        }
    }
    impl From<Reset> for Event {
        fn from(event: Reset) -> Self {
            Self::Reset(event)
        }
    }
    impl From<Connect> for Event {
        fn from(event: Connect) -> Self {
            Self::Connect(event)
        }
    }
    impl From<Close> for Event {
        fn from(event: Close) -> Self {
            Self::Close(event)
        }
    }

    fn connect_of(error: Option<&'static str>, role: &'static str, connection: Connection) -> Connect {
        Connect {
            time_unix_ns: NOON,
            connection,
            role,
            error: error.map(Into::into),
            duration: (role == "client").then(|| Duration::from_micros(223)),
        }
    }

    fn reset_of(direction: &'static str, reason: Option<&str>, connection: Connection) -> Reset {
        Reset { time_unix_ns: NOON, connection, direction, reason: reason.map(Arc::from) }
    }

    #[test]
    fn every_cause_has_its_words() {
        let pairs: Vec<_> = CAUSES.iter().map(|cause| (*cause, in_words(cause))).collect();
        let want = [
            ("syn", "SYN again"),
            ("syn_ack", "SYN-ACK again"),
            ("timeout", "timeout"),
            ("slow_start", "slow start"),
            ("fast", "fast retransmit"),
            ("tail_loss_probe", "tail loss probe"),
        ];
        assert_eq!(pairs, want);
    }

    #[test]
    fn where_nat_led_is_said_whole() {
        let connection = |destination: &str| {
            let service =
                connection("10.244.113.207:54632", "10.96.0.1:443", who("frontend-server", 10_781, "/"));
            Connection { destination: Some(destination.parse().unwrap()), state: "fin_wait_1", ..service }
        };
        for destination in ["10.2.0.9:8080", "255.255.255.255:65535"] {
            let event = Retransmit { unacked: Some(8), ..sent_again("timeout", 1, connection(destination)) };
            let line = line(event);
            assert!(line.ends_with(&format!("  at {destination}")), "{line}");
            assert!(line.contains("[10781]"), "{line}");
            let event = sent_again("timeout", 1, named("api.default.svc", connection(destination)));
            let line = self::line(event);
            assert!(line.contains(&format!("  at {destination}")), "{line}");
            assert!(line.contains("[10781]"), "{line}");
        }
    }

    #[test]
    fn lines_say_what_matters() {
        let nginx = || connection("10.7.0.1:54632", "10.7.0.2:8080", who("nginx", 10_781, "/system.slice"));
        let state = |state, connection: Connection| Connection { state, ..connection };
        let unacked = |unacked, event| Retransmit { unacked: Some(unacked), ..event };
        let cases: Vec<(Event, &str, &str)> = vec![
            (
                sent_again("tail_loss_probe", 1, nginx()).into(),
                "tail loss probe    1 10.7.0.1:54632 → 10.7.0.2:8080",
                "45.6ms  nginx[10781]",
            ),
            (
                unacked(8, sent_again("timeout", 1, state("fin_wait_1", nginx()))).into(),
                "timeout            1 10.7.0.1:54632 → 10.7.0.2:8080",
                "45.6ms  nginx[10781]     fin_wait_1",
            ),
            (
                unacked(8, sent_again("fast", 1, nginx())).into(),
                "fast retransmit    1 10.7.0.1:54632 → 10.7.0.2:8080",
                "45.6ms  nginx[10781]     8 unacked",
            ),
            (
                sent_again("fast", 1, named("db.example", nginx())).into(),
                "fast retransmit    1 10.7.0.1:54632 → 10.7.0.2:8080 db.example",
                "45.6ms  nginx[10781]",
            ),
            (
                sent_again("fast", 1, named("payments.example", nginx())).into(),
                "fast retransmit    1 :54632 → 10.7.0.2:8080 payments.example",
                "45.6ms  nginx[10781]",
            ),
            (
                unacked(8, sent_again("fast", 1, named("payments.shop.svc.cluster.local", nginx()))).into(),
                "fast retransmit    1 :54632 → 10.7.0.2:8080 payments.shop.svc.c…",
                "45.6ms  nginx[10781]     8 unacked",
            ),
            (
                sent_again("syn", 1, state("syn_sent", nginx())).into(),
                "SYN again          1 10.7.0.1:54632 → 10.7.0.2:8080",
                "45.6ms  nginx[10781]",
            ),
            (
                connect_of(Some("ECONNREFUSED"), "client", state("closed", nginx())).into(),
                "refused              10.7.0.1:54632 → 10.7.0.2:8080",
                "        nginx[10781]     after 223µs",
            ),
            (
                connect_of(Some("EHOSTUNREACH"), "client", nginx()).into(),
                "EHOSTUNREACH         10.7.0.1:54632 → 10.7.0.2:8080",
                "        nginx[10781]     after 223µs",
            ),
            (
                connect_of(None, "client", nginx()).into(),
                "connected            10.7.0.1:54632 → 10.7.0.2:8080",
                "        nginx[10781]     after 223µs",
            ),
            (
                connect_of(None, "server", nginx()).into(),
                "accepted             10.7.0.1:54632 → 10.7.0.2:8080",
                "        nginx[10781]",
            ),
            (
                reset_of("transmit", Some("tcp_abort_on_close"), nginx()).into(),
                "reset sent           10.7.0.1:54632 → 10.7.0.2:8080",
                "        nginx[10781]    tcp_abort_on_close",
            ),
            (
                reset_of("transmit", Some("not_specified"), state("syn_received", nginx())).into(),
                "reset sent           10.7.0.1:54632 → 10.7.0.2:8080",
                "        nginx[10781]     syn_received",
            ),
            (
                reset_of("receive", None, state("syn_sent", nginx())).into(),
                "reset received       10.7.0.1:54632 → 10.7.0.2:8080",
                "        nginx[10781]     syn_sent",
            ),
            (
                Close { segments_retransmitted: Some(3), ..ended(nginx()) }.into(),
                "closed (45.0s)     3 10.7.0.1:54632 → 10.7.0.2:8080",
                "        nginx[10781]     ↑1.23MiB ↓45.6KiB",
            ),
        ];
        for (event, before, after) in cases {
            let line = line(event);
            assert!(line.starts_with(&format!("12:00:00.000 {before} ")), "{line}\n{before}");
            assert!(line.ends_with(&format!(" {after}")), "{line}\n{after}");
            // The owner stands below its heading.
            let column = |text: &str, part: &str| text.find(part).map(|at| width(&text[..at]));
            assert_eq!(column(&line, "nginx"), column(&heading(), "OWNER"), "{line}");
        }
    }

    /// Whatever comes, as long as the addresses are IPv4.
    #[test]
    fn ipv4_lines_fit() {
        let end = "255.255.255.255:65535";
        let longest = || connection(end, end, who("nginx-ingress-c", 4_194_304, CONTAINER));
        let hostile = || connection(end, end, who(&"\u{1b}".repeat(15), 4_194_304, CONTAINER));
        let reasons =
            [None, Some("tcp_invalid_ack_sequence"), Some("mptcp_rst_emiddlebox"), Some("4294967295")];
        let mut lines = Vec::new();
        let strange = || named(&"\u{1b}".repeat(255), hostile());
        let long = || named(&"service.namespace.svc.cluster.local".repeat(7), longest());
        for connection in [&longest as &dyn Fn() -> Connection, &hostile, &strange, &long] {
            for state in ["established", "fin_wait_1", "syn_received", "close_wait"] {
                let connection = || Connection { state, ..connection() };
                for cause in CAUSES {
                    let event = sent_again(cause, 9_999, connection());
                    lines.push(line(Retransmit { unacked: Some(99_999), ..event }));
                }
                for direction in ["receive", "transmit"] {
                    lines.extend(reasons.map(|reason| line(reset_of(direction, reason, connection()))));
                }
                for error in [None, Some("ECONNREFUSED"), Some("EPROTONOSUPPORT"), Some("ETIMEDOUT")] {
                    let event = connect_of(error, "client", connection());
                    lines.push(line(Connect { duration: Some(Duration::from_secs(999)), ..event }));
                }
                for seconds in [1, 99_999, 86_000_000] {
                    lines.push(line(Close {
                        duration: Some(Duration::from_secs(seconds)),
                        bytes_sent: Some(999 << 30),
                        bytes_received: Some(1_000_000),
                        segments_retransmitted: Some(999_999),
                        srtt: Some(Duration::from_micros(999_999)),
                        ..ended(connection())
                    }));
                }
            }
        }
        for line in lines {
            assert!(width(&line) <= COLUMNS, "{} columns: {line}", width(&line));
            assert!(line.contains("3f37e9702f3"), "the container is what is known best: {line}");
        }
        assert!(width(&heading()) <= COLUMNS);
    }

    #[test]
    fn ipv6_lines_grow_and_keep_their_owner() {
        let end = "[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535";
        let connection = connection(end, end, who("nginx", 10_781, CONTAINER));
        assert!(matches!(connection.peer, IpAddr::V6(_)));
        let line = line(reset_of("transmit", Some("no_socket"), connection));
        assert!(width(&line) > COLUMNS, "{line}");
        assert!(line.ends_with("  3f37e9702f39 nginx  no_socket"), "{line}");
    }
}
