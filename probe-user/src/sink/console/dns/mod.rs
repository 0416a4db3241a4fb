//! The screen of `probe dns`: a line a lookup, and what all of them together come to at the end.

mod account;
mod reading;
mod summary;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

pub use self::account::Account;
pub use self::summary::write as closing;
use super::colours::{Colours, Tone};
use super::owners::{OWNER_LEAST, owner};
use super::text::{seconds, width};
use super::{escape, time_of_day};
use crate::signals::dns::{Lookup, Outcome, Role, Transport};

/// What a line fits into, as long as its name is not too long: a name is not cut.
const COLUMNS: usize = 120;
/// Characters of an owner beside names and details that leave as much; less for the sake of those.
const OWNER: usize = 21;
/// An IPv4 address, and port or arrow.
const SERVER: usize = 17;
/// Between owner, name and details.
const GAP: usize = 2;
/// The port that goes without saying.
const DOMAIN: u16 = 53;

/// A cache answers in a few milliseconds, and who waits from here on notices.
const SLOW: Duration = Duration::from_millis(100);
/// Resolvers ask again after one to five seconds: something is lost or overloaded.
const VERY_SLOW: Duration = Duration::from_secs(1);

pub(super) fn heading() -> String {
    let [time, latency, code, qtype, server] = columns("TIME", "LATENCY", "CODE", "TYPE", "SERVER");
    format!("{time} {latency} {code} {qtype} {server} {:<OWNER$}  NAME  DETAILS", "OWNER")
}

fn columns(time: &str, latency: &str, code: &str, qtype: &str, server: &str) -> [String; 5] {
    [
        format!("{time:<12}"),
        format!("{latency:>7}"),
        format!("{code:<10}"),
        format!("{qtype:<6}"),
        format!("{server:<SERVER$}"),
    ]
}

/// Writes a lookup as a line.
pub(super) fn lookup(out: &mut dyn Write, lookup: &Lookup, colours: Colours) -> io::Result<()> {
    let name = escape(&lookup.name);
    let code = code(lookup);
    let peer = peer(lookup);
    let time = time_of_day(lookup.time_unix_ns);
    let [time, latency, code_column, qtype, server] =
        columns(&time, &seconds(lookup.duration), &code, &lookup.qtype, &peer);
    let details = details(lookup);
    let details = if details.is_empty() { details } else { format!("{:GAP$}{}", "", details) };
    let before: usize =
        [&time, &latency, &code_column, &qtype, &server].map(|column| width(column) + 1).iter().sum();
    let taken = before + GAP + width(&name) + width(&details);
    let room = COLUMNS.saturating_sub(taken).clamp(OWNER_LEAST, OWNER);
    let owner = owner(&lookup.who, room);
    let latency = colours.paint(tone_of_latency(lookup), latency);
    let code = colours.paint(tone_of_code(lookup), code_column);
    writeln!(out, "{time} {latency} {code} {qtype} {server} {owner:<room$}  {name}{details}")
}

/// How it ended, in a word.
fn code(lookup: &Lookup) -> String {
    match lookup.outcome {
        Outcome::Answered => lookup.rcode.as_deref().unwrap_or_default().to_owned(),
        outcome @ (Outcome::Unanswered | Outcome::Late) => outcome.as_str().to_owned(),
    }
}

/// The server; seen from there, the client.
fn peer(lookup: &Lookup) -> String {
    match (lookup.role, lookup.peer) {
        (Role::Client, peer) => server(peer),
        // A client's port is another one each time.
        (Role::Server, Some(client)) => format!("← {}", client.ip()),
        (Role::Server, None) => "← -".to_owned(),
    }
}

/// A server's address, with its port where it is not the usual one.
fn server(server: Option<SocketAddr>) -> String {
    match server {
        Some(server) if server.port() == DOMAIN => server.ip().to_string(),
        Some(server) => server.to_string(),
        None => "-".to_owned(),
    }
}

fn details(lookup: &Lookup) -> String {
    let Lookup {
        time_unix_ns: _,
        who: _,
        name: _,
        qtype,
        rcode,
        outcome,
        duration: _,
        role,
        peer: _,
        transport,
        truncated,
        fallback,
        attempt,
        answers,
        ttl: _,
        lost_twin,
        search_misses,
    } = lookup;
    let rcode = rcode.as_deref().unwrap_or_default();
    let mut details = Vec::new();
    if *role == Role::Server {
        details.push("served here".to_owned());
    }
    if *attempt > 1 {
        details.push(format!("try {attempt}"));
    }
    if *outcome == Outcome::Late && rcode != "NOERROR" {
        details.push(rcode.to_owned());
    }
    if *lost_twin {
        details.push(format!("lost twin ({} came)", if &**qtype == "A" { "AAAA" } else { "A" }));
    }
    match (transport, fallback) {
        (_, true) => details.push("tcp after cut".to_owned()),
        (Transport::Tcp, false) => details.push("tcp".to_owned()),
        (Transport::Udp, false) => {}
    }
    if *truncated {
        details.push("cut".to_owned());
    } else if rcode == "NOERROR" && *answers == Some(0) {
        details.push("empty".to_owned());
    }
    if *search_misses != 0 {
        details.push(format!("after {search_misses} NXDOMAIN"));
    }
    details.join(", ")
}

fn tone_of_code(lookup: &Lookup) -> Tone {
    match (lookup.outcome, lookup.rcode.as_deref()) {
        (Outcome::Answered, Some("NOERROR") | None) => Tone::Plain,
        (Outcome::Answered, Some("NXDOMAIN")) | (Outcome::Late, _) => Tone::Odd,
        (Outcome::Answered, Some(_)) | (Outcome::Unanswered, _) => Tone::Bad,
    }
}

fn tone_of_latency(lookup: &Lookup) -> Tone {
    // That nothing came is what its code says.
    if lookup.outcome == Outcome::Unanswered || lookup.duration < SLOW {
        Tone::Plain
    } else if lookup.duration < VERY_SLOW {
        Tone::Odd
    } else {
        Tone::Bad
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::owners::tests::{CONTAINER, who};
    use super::*;
    use crate::signals::{Event, Who};

    const NOON: u64 = 1_767_355_200_000_000_000;

    /// Answered after a while, over UDP.
    pub(super) fn answered(name: &str, server: &str, ms: u64) -> Lookup {
        Lookup {
            time_unix_ns: NOON,
            who: who("curl", 4_711, "/"),
            name: name.into(),
            qtype: "A".into(),
            rcode: Some("NOERROR".into()),
            outcome: Outcome::Answered,
            duration: Duration::from_millis(ms),
            role: Role::Client,
            peer: Some(server.parse().unwrap()),
            transport: Transport::Udp,
            truncated: false,
            fallback: false,
            attempt: 1,
            answers: Some(1),
            ttl: None,
            lost_twin: false,
            search_misses: 0,
        }
    }

    pub(super) fn with_code(code: &'static str, lookup: Lookup) -> Lookup {
        Lookup { rcode: Some(code.into()), answers: Some(0), ..lookup }
    }

    /// Given up after as long.
    pub(super) fn unanswered(lookup: Lookup) -> Lookup {
        Lookup { outcome: Outcome::Unanswered, rcode: None, answers: None, ..lookup }
    }

    pub(super) fn late(lookup: Lookup) -> Lookup {
        Lookup { outcome: Outcome::Late, ..lookup }
    }

    pub(super) fn served(who: Who, lookup: Lookup) -> Lookup {
        Lookup { role: Role::Server, who, ..lookup }
    }

    /// A line as it is on a terminal.
    fn coloured(lookup: Lookup, colours: Colours) -> String {
        let mut out = Vec::new();
        super::super::line(&mut out, &Event::Lookup(lookup), colours).unwrap();
        let line = String::from_utf8(out).unwrap();
        assert_eq!(line.matches('\n').count(), 1, "{line}");
        line.trim_end_matches('\n').to_owned()
    }

    /// And elsewhere.
    fn line(lookup: Lookup) -> String {
        let mut out = Vec::new();
        super::super::event(&mut out, &Event::Lookup(lookup.clone())).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), format!("{}\n", coloured(lookup.clone(), Colours::Off)));
        coloured(lookup, Colours::Off)
    }

    fn www() -> Lookup {
        answered("www.example.org", "10.96.0.10:53", 45)
    }

    #[test]
    fn lines_say_what_matters() {
        // Between server and details.
        let tail = |details: &str| format!(" curl[4711]             www.example.org{details}");
        for (lookup, before, after) in [
            (www(), " 45.0ms NOERROR    A      10.96.0.10       ", tail("")),
            (with_code("NXDOMAIN", www()), " 45.0ms NXDOMAIN   A      10.96.0.10       ", tail("")),
            (with_code("NOERROR", www()), " 45.0ms NOERROR    A      10.96.0.10       ", tail("  empty")),
            (
                Lookup { attempt: 2, ..unanswered(www()) },
                " 45.0ms unanswered A      10.96.0.10       ",
                tail("  try 2"),
            ),
            (
                Lookup { qtype: "AAAA".into(), lost_twin: true, ..unanswered(www()) },
                " 45.0ms unanswered AAAA   10.96.0.10       ",
                tail("  lost twin (A came)"),
            ),
            (
                Lookup { lost_twin: true, ..unanswered(www()) },
                " 45.0ms unanswered A      10.96.0.10       ",
                tail("  lost twin (AAAA came)"),
            ),
            (late(www()), " 45.0ms late       A      10.96.0.10       ", tail("")),
            (
                late(with_code("SERVFAIL", www())),
                " 45.0ms late       A      10.96.0.10       ",
                tail("  SERVFAIL"),
            ),
            (
                Lookup { truncated: true, ..www() },
                " 45.0ms NOERROR    A      10.96.0.10       ",
                tail("  cut"),
            ),
            (
                Lookup { transport: Transport::Tcp, fallback: true, ..www() },
                " 45.0ms NOERROR    A      10.96.0.10       ",
                tail("  tcp after cut"),
            ),
            (
                Lookup { transport: Transport::Tcp, ..www() },
                " 45.0ms NOERROR    A      10.96.0.10       ",
                tail("  tcp"),
            ),
            (
                Lookup { search_misses: 6, ..www() },
                " 45.0ms NOERROR    A      10.96.0.10       ",
                tail("  after 6 NXDOMAIN"),
            ),
            (
                served(who("curl", 4_711, "/"), answered("www.example.org", "10.7.0.9:40123", 45)),
                " 45.0ms NOERROR    A      ← 10.7.0.9       ",
                tail("  served here"),
            ),
            (
                answered("www.example.org", "127.0.0.53:5353", 45),
                " 45.0ms NOERROR    A      127.0.0.53:5353  ",
                tail(""),
            ),
            (Lookup { peer: None, ..www() }, " 45.0ms NOERROR    A      -                ", tail("")),
        ] {
            let line = line(lookup);
            assert_eq!(line, format!("12:00:00.000 {before}{after}"), "{line}");
            let column = |text: &str, part: &str| text.find(part).map(|at| width(&text[..at]));
            assert_eq!(column(&line, "curl"), column(&heading(), "OWNER"), "{line}");
            assert_eq!(column(&line, "www."), column(&heading(), "NAME"), "{line}");
        }
    }

    #[test]
    fn colours_are_few_and_change_nothing_else() {
        let (red, yellow) = ("\u{1b}[31m", "\u{1b}[33m");
        let slow = |ms| answered("www.example.org", "10.96.0.10:53", ms);
        for (what, lookup, want) in [
            ("answered", www(), vec![]),
            ("no such name", with_code("NXDOMAIN", www()), vec![format!("{yellow}NXDOMAIN  ")]),
            ("failed", with_code("SERVFAIL", www()), vec![format!("{red}SERVFAIL  ")]),
            ("refused", with_code("REFUSED", www()), vec![format!("{red}REFUSED   ")]),
            ("unanswered", unanswered(slow(5_000)), vec![format!("{red}unanswered")]),
            ("late", late(slow(700)), vec![format!("{yellow}  700ms"), format!("{yellow}late      ")]),
            ("not slow", slow(99), vec![]),
            ("slow", slow(100), vec![format!("{yellow}  100ms")]),
            ("very slow", slow(1_000), vec![format!("{red}  1.00s")]),
        ] {
            let on = coloured(lookup.clone(), Colours::On);
            let off = coloured(lookup, Colours::Off);
            assert!(!off.contains('\u{1b}'), "{what}: {off:?}");
            for part in &want {
                assert!(on.contains(&format!("{part}\u{1b}[0m")), "{what}: no {part:?} in {on:?}");
            }
            assert_eq!(on.matches('\u{1b}').count(), 2 * want.len(), "{what}: {on:?}");
            let plain = [red, yellow, "\u{1b}[0m"].iter().fold(on, |text, code| text.replace(code, ""));
            assert_eq!(plain, off, "{what}");
        }
    }

    /// Names of 40 characters and less beside whatever else, as long as the server's address is IPv4.
    #[test]
    fn lines_fit_where_names_allow() {
        let server = "255.255.255.255:53";
        let longest = who("nginx-ingress-c", 4_194_304, CONTAINER);
        let all = |name: &str| Lookup {
            qtype: "AAAA".into(),
            who: longest.clone(),
            attempt: 2,
            search_misses: 6,
            ..answered(name, server, 123_456)
        };
        for (name, fits) in [
            ("a.example", true),
            ("db.example.org", true),
            ("payments.shop.svc", true),
            ("payments.shop.svc.cluster.local.eu-west-1.compute.internal", false),
        ] {
            let line = line(all(name));
            assert!(line.contains(&format!("  {name}  try 2, after 6 NXDOMAIN")), "{line}");
            assert!(line.contains(" 3f37e9702f39 "), "the container is what is known best: {line}");
            assert_eq!(width(&line) <= COLUMNS, fits, "{} columns: {line}", width(&line));
        }
        // Without details.
        let name = "payments.shop.svc.cluster.local.internal";
        let line = line(Lookup { attempt: 1, search_misses: 0, ..all(name) });
        assert!(width(&line) <= COLUMNS && line.ends_with(name), "{line}");
        assert!(width(&heading()) <= COLUMNS);
    }

    #[test]
    fn ipv6_servers_are_not_cut() {
        let line = line(answered("www.example.org", "[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:53", 1));
        assert!(line.contains(" 2001:db8:ffff:ffff:ffff:ffff:ffff:ffff curl[4711] "), "{line}");
        assert!(line.ends_with("  www.example.org"), "{line}");
        assert!(width(&line) <= COLUMNS, "{line}");
    }

    #[test]
    fn strangers_steer_no_terminal() {
        let hostile = "a\u{1b}[2J\n\u{202e}\u{9b}31m.example";
        let lookup = Lookup { who: who(hostile, 7, CONTAINER), ..answered(hostile, "10.0.0.1:53", 1) };
        for line in [line(lookup.clone()), coloured(lookup, Colours::On)] {
            assert!(!line.contains(['\u{1b}', '\u{202e}', '\u{9b}', '\n']), "{line:?}");
            assert!(line.contains("a\\u{1b}[2J\\u{a}\\u{202e}\\u{9b}31m.example"), "{line}");
        }
    }
}
