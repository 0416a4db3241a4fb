//! The end of `probe tcp`: what it came to, by kind, by peer and by owner, and how that reads.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use probe_common::tcp::Cause;

use super::super::rows::{Bounded, TOP, beyond, more, sentences, table};
use super::super::text::{age, counted, octets, share, share_of_sent};
use super::CAUSES_IN_WORDS;
use super::account::{Account, Carried, Counts, Door, Failure, Tally};
use super::reading::readings;

/// Kinds that a row names.
const TOP_KINDS: usize = 2;
/// Columns of numbers.
const NUMBERS: &[&str] = &["SEGMENTS", "EVENTS", "SHARE", "SYNS AGAIN", "FAILED", "SENT", "RECEIVED"];

/// Writes the summary: nothing, if nothing happened. `lost`: events that probe itself lost.
///
/// # Errors
///
/// What `out` returns.
pub fn write(out: &mut dyn Write, account: &Account, lasted: Duration, lost: u64) -> io::Result<()> {
    if account.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n── {} in {}", total(account), age(lasted))?;
    carried(out, &account.all.carried)?;
    if lost != 0 {
        writeln!(out, "lost: {}, by so many at most all figures are short", counted(lost, "event"))?;
    }
    if account.all.events.sum() != 0 {
        by_kind(out, &account.all)?;
        by_peer(out, account)?;
        by_owner(out, account)?;
    }
    failed(out, account)?;
    resets(out, account)?;
    sentences(out, &readings(account, lost))
}

fn total(account: &Account) -> String {
    let Tally { segments, events, resets_sent, resets_received, carried } = &account.all;
    let mut parts = Vec::new();
    // Only what happened: something else may not have been watched.
    if events.sum() != 0 {
        let (segments, events) = (counted(segments.sum(), "segment"), counted(events.sum(), "event"));
        let again = account.all.segments.sum() - account.all.segments.of(Cause::SynAck);
        let share = account.sent().and_then(|sent| share_of_sent(again, sent));
        let share = share.map(|share| format!(" ({share})")).unwrap_or_default();
        parts.push(format!("{segments} sent again in {events}{share}"));
    }
    let connects =
        [(account.failed.sum(), "failed"), (account.connected, "made"), (account.accepted, "accepted")];
    let connects: Vec<_> = connects.iter().filter(|(count, _)| *count != 0).collect();
    if !connects.is_empty() {
        let connects = connects.into_iter().map(|(count, what)| format!("{count} {what}"));
        parts.push(format!("connects {}", connects.collect::<Vec<_>>().join(" ")));
    }
    if resets_sent + resets_received != 0 {
        parts.push(format!("resets {resets_sent} sent {resets_received} received"));
    }
    if carried.connections != 0 {
        parts.push(format!("{} closed", counted(carried.connections, "connection")));
    }
    parts.join(", ")
}

/// What went well, where it is watched.
fn carried(out: &mut dyn Write, carried: &Carried) -> io::Result<()> {
    let Carried { connections, bytes_sent, bytes_received, sent, sent_again, judged, needless } = carried;
    if *connections == 0 {
        return Ok(());
    }
    let mut line = format!("closed ones carried ↑{} ↓{}", octets(*bytes_sent), octets(*bytes_received));
    // Where the kernel tells.
    if *sent != 0 {
        line.push_str(&format!("; {sent_again} of {} sent again", counted(*sent, "segment")));
    }
    if *judged != 0 {
        line.push_str(&format!(", the peers had {needless} of {judged} already (D-SACK, undo)"));
    }
    writeln!(out, "{line}")
}

fn by_kind(out: &mut dyn Write, all: &Tally) -> io::Result<()> {
    let mut rows: Vec<_> =
        CAUSES_IN_WORDS.into_iter().zip(all.segments.iter().zip(all.events.iter())).collect();
    rows.retain(|(_, (_, events))| *events != 0);
    rows.sort_by_key(|(_, counts)| std::cmp::Reverse(*counts));
    let mut table = table(["KIND", "SEGMENTS", "EVENTS", "SHARE"], NUMBERS);
    for (kind, (segments, events)) in rows {
        table.add_row([
            kind.to_owned(),
            segments.to_string(),
            events.to_string(),
            share(segments, all.segments.sum()),
        ]);
    }
    writeln!(out, "\n{}", table.trim_fmt())
}

fn by_peer(out: &mut dyn Write, account: &Account) -> io::Result<()> {
    let peers = account.peers.rows.iter();
    let peers = peers.map(|(address, peer)| (address, account.with_name(address, address), &peer.tally));
    ranking(out, ("PEER", "peer"), account, peers.collect(), &account.peers.rest.tally)
}

fn by_owner(out: &mut dyn Write, account: &Account) -> io::Result<()> {
    let Bounded { rows, rest, .. } = &account.owners;
    let owners = rows.iter().map(|(key, owner)| {
        let name = key.name(owner.processes);
        (name.clone(), name, &owner.tally)
    });
    ranking(out, ("OWNER", "owner"), account, owners.collect(), &rest.tally)
}

/// The first rows by segments; equal ones in the order of their key.
fn ranking<K: Ord>(
    out: &mut dyn Write,
    (heading, what): (&str, &str),
    account: &Account,
    mut rows: Vec<(K, String, &Tally)>,
    rest: &Tally,
) -> io::Result<()> {
    let all = account.all.segments.sum();
    let room = rows.len();
    rows.retain(|(_, _, tally)| tally.events.sum() != 0);
    rows.sort_by(|(a, _, left), (b, _, right)| {
        right.segments.sum().cmp(&left.segments.sum()).then_with(|| a.cmp(b))
    });
    let mut table = table([heading, "SEGMENTS", "EVENTS", "SHARE", "MOSTLY"], NUMBERS);
    for (_, name, tally) in rows.iter().take(TOP) {
        let segments = tally.segments.sum();
        let events = tally.events.sum().to_string();
        table.add_row([name.clone(), segments.to_string(), events, share(segments, all), mostly(tally)]);
    }
    writeln!(out, "\n{}", table.trim_fmt())?;
    if let Some(more) = rows.get(TOP..).filter(|more| !more.is_empty()) {
        let segments: u64 = more.iter().map(|(_, _, tally)| tally.segments.sum()).sum();
        writeln!(out, "… and {} more with {}", more.len(), counted(segments, "segment"))?;
    }
    beyond(out, what, room, rest.segments.sum(), "segment")
}

fn mostly(tally: &Tally) -> String {
    let mut kinds: Vec<_> = CAUSES_IN_WORDS.into_iter().zip(tally.segments.iter()).collect();
    kinds.retain(|(_, segments)| *segments != 0);
    kinds.sort_by_key(|(_, segments)| std::cmp::Reverse(*segments));
    let kinds = kinds.iter().take(TOP_KINDS).map(|(kind, segments)| format!("{kind} {segments}"));
    kinds.collect::<Vec<_>>().join(", ")
}

fn failed(out: &mut dyn Write, account: &Account) -> io::Result<()> {
    let Bounded { rows, rest, .. } = &account.doors;
    let room = rows.len();
    // Whose process gave up before the kernel did has failed too, though nobody says so.
    let in_trouble = |door: &Door| door.failed.sum() != 0 || (door.syns != 0 && door.opened == 0);
    let mut rows: Vec<(&SocketAddr, &Door)> = rows.iter().filter(|(_, door)| in_trouble(door)).collect();
    rows.sort_by(|(a, left), (b, right)| right.trouble().cmp(&left.trouble()).then_with(|| a.cmp(b)));
    if rows.is_empty() {
        return beyond(out, "port", room, rest.failed.sum(), "failed connect");
    }
    let mut table = table(["CONNECTS TO", "SYNS AGAIN", "FAILED", "SHARE", "HOW"], NUMBERS);
    for (address, door) in rows.iter().take(TOP) {
        let count = door.failed.sum();
        table.add_row([
            account.with_name(address, &address.ip()),
            door.syns.to_string(),
            count.to_string(),
            share(count, account.failed.sum()),
            how(&door.failed),
        ]);
    }
    writeln!(out, "\n{}", table.trim_fmt())?;
    more(out, rows.len())?;
    beyond(out, "port", room, rest.failed.sum(), "failed connect")
}

fn how(failed: &Counts<{ Failure::ALL.len() }>) -> String {
    let kinds = Failure::ALL.into_iter().map(|failure| (failure.in_words(), failed.of(failure)));
    let kinds = kinds.filter(|(_, count)| *count != 0).map(|(words, count)| format!("{words} {count}"));
    kinds.collect::<Vec<_>>().join(", ")
}

fn resets(out: &mut dyn Write, account: &Account) -> io::Result<()> {
    let Bounded { rows, rest, .. } = &account.peers;
    let room = rows.len();
    let count = |tally: &Tally| tally.resets_sent + tally.resets_received;
    let mut rows: Vec<_> = rows.iter().map(|(address, peer)| (address, &peer.tally)).collect();
    rows.retain(|(_, tally)| count(tally) != 0);
    rows.sort_by(|(a, left), (b, right)| count(right).cmp(&count(left)).then_with(|| a.cmp(b)));
    if rows.is_empty() {
        return beyond(out, "peer", room, count(&rest.tally), "reset");
    }
    let mut table = table(["RESETS WITH", "SENT", "RECEIVED", "SHARE"], NUMBERS);
    for (address, tally) in rows.iter().take(TOP) {
        let (sent, received) = (tally.resets_sent, tally.resets_received);
        table.add_row([
            account.with_name(address, address),
            sent.to_string(),
            received.to_string(),
            share(sent + received, count(&account.all)),
        ]);
    }
    writeln!(out, "\n{}", table.trim_fmt())?;
    more(out, rows.len())?;
    beyond(out, "peer", room, count(&rest.tally), "reset")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{CONTAINER, connection, ended, sent_again, who};
    use super::*;
    use crate::signals::Event;
    use crate::signals::tcp::{Close, Connect, Connection, Reset};

    fn written(account: &Account, lost: u64) -> String {
        let mut out = Vec::new();
        write(&mut out, account, Duration::from_millis(34_200), lost).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn nothing_has_no_summary() {
        assert_eq!(written(&Account::new(), 0), "");
    }

    /// What was not watched is not said to be nothing.
    #[test]
    fn only_what_happened_is_said() {
        let mut account = Account::new();
        account.add(&Event::Close(ended(connection("10.7.0.1:1", "10.0.0.1:80", who("a", 1, "/")))));
        let want = "
── 1 connection closed in 34.2s
closed ones carried ↑1.23MiB ↓45.6KiB; 0 of 900 segments sent again
";
        assert_eq!(written(&account, 0), want);
    }

    /// The share of all is said where it is known to the end.
    #[test]
    fn of_how_many() {
        let mut account = Account::new();
        let again = || {
            let connection = connection("10.7.0.1:1", "10.0.0.1:80", who("a", 1, "/"));
            Event::Retransmit(sent_again("fast", 1, connection))
        };
        account.add(&again());
        account.interval(700);
        account.interval(20);
        assert!(written(&account, 0).contains("── 1 segment sent again in 1 event (0.14% of 720 sent) in"));
        account.add(&again());
        assert!(written(&account, 0).contains("── 2 segments sent again in 2 events in"));
        account.interval(80);
        assert!(written(&account, 0).contains("(0.25% of 800 sent) in"));
        account.miss_segments();
        account.interval(100);
        assert!(written(&account, 0).contains("── 2 segments sent again in 2 events in"));
    }

    #[test]
    fn peers_are_told_with_their_names() {
        let mut account = Account::new();
        let named = |peer, name: &str| {
            let connection = connection("10.7.0.1:40000", peer, who("curl", 7, "/"));
            Connection { peer_name: Some(name.into()), ..connection }
        };
        for _ in 0..12 {
            let connection = named("10.7.0.2:8080", "db.example");
            account.add(&Event::Retransmit(sent_again("tail_loss_probe", 1, connection)));
        }
        let long = "a.name.that.steers.\u{1b}[2J.and.goes.on.for.ever.and.ever.example";
        for _ in 0..3 {
            account.add(&Event::Connect(Connect {
                time_unix_ns: 0,
                connection: named("10.7.0.9:81", long),
                role: "client",
                error: Some("ECONNREFUSED".into()),
                duration: None,
            }));
        }
        let text = written(&account, 0);
        let cut = "(a.name.that.steers.\\u{1b}[2J.and.goes.o…)";
        for part in [
            "\n10.7.0.2 (db.example)        12",
            "segments that connections sent again went to 10.7.0.2 (db.example), 12 of them tail loss probes",
            &format!("\n10.7.0.9:81 {cut} "),
            &format!("→ 10.7.0.9:81 {cut} refuses connections (3 times)"),
        ] {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
    }

    #[test]
    fn everything_at_once() {
        let mut account = Account::new();
        let peer = |peer: &str, comm: &str, pid| connection("10.7.0.1:40000", peer, who(comm, pid, "/"));
        for pid in [1, 2] {
            for _ in 0..6 {
                let connection = peer("10.7.0.2:8080", "curl", pid);
                account.add(&Event::Retransmit(sent_again("tail_loss_probe", 1, connection)));
            }
        }
        let inside = connection("[2001:db8::1]:443", "[2001:db8::2]:40000", who("nginx", 9, CONTAINER));
        account.add(&Event::Retransmit(sent_again("slow_start", 3, inside)));
        for _ in 0..3 {
            account.add(&Event::Connect(Connect {
                time_unix_ns: 0,
                connection: peer("10.7.0.2:81", "curl", 3),
                role: "client",
                error: Some("ECONNREFUSED".into()),
                duration: None,
            }));
        }
        account.add(&Event::Reset(Reset {
            time_unix_ns: 0,
            connection: peer("10.7.0.2:81", "curl", 3),
            direction: "receive",
            reason: None,
        }));
        let close = ended(peer("10.7.0.2:8080", "curl", 1));
        account.add(&Event::Close(Close { segments_retransmitted: Some(6), ..close }));
        let text = written(&account, 1);
        let want = "
── 15 segments sent again in 13 events, connects 3 failed, resets 0 sent 1 received, 1 connection closed in 34.2s
closed ones carried ↑1.23MiB ↓45.6KiB; 6 of 900 segments sent again, the peers had 0 of 6 already (D-SACK, undo)
lost: 1 event, by so many at most all figures are short

KIND             SEGMENTS  EVENTS  SHARE
tail loss probe        12      12    80%
slow start              3       1    20%

PEER         SEGMENTS  EVENTS  SHARE  MOSTLY
10.7.0.2           12      12    80%  tail loss probe 12
2001:db8::2         3       1    20%  slow start 3

OWNER                  SEGMENTS  EVENTS  SHARE  MOSTLY
curl[…]                      12      12    80%  tail loss probe 12
3f37e9702f39 nginx[9]         3       1    20%  slow start 3

CONNECTS TO  SYNS AGAIN  FAILED  SHARE  HOW
10.7.0.2:81           0       3   100%  refused 3

RESETS WITH  SENT  RECEIVED  SHARE
10.7.0.2        0         1   100%

→ 10.7.0.2:81 refuses connections (3 times): nobody listens there, or a firewall rejects them; an answer comes, so it is no loss of packets.
→ 12 of 15 segments that connections sent again went to 10.7.0.2, 12 of them tail loss probes: the last packets of requests or answers are lost on the way there, or their ACKs on the way back (look for drops at the end of bursts); to others 3 segments, so that path or that peer, if others have traffic too.
";
        assert_eq!(text, want, "{text}");
    }

    #[test]
    fn long_tables_are_cut_and_say_so() {
        let mut account = Account::with_room(20);
        for peer in 0..25_u32 {
            // The lower the address the more.
            let connection =
                connection("10.7.0.1:1", &format!("10.0.0.{peer}:80"), who(&format!("w{peer:02}"), 1, "/"));
            for _ in 0..30 - peer {
                account.add(&Event::Retransmit(sent_again("fast", 1, connection.clone())));
            }
        }
        let text = written(&account, 0);
        let rows: Vec<_> = text.lines().filter(|line| line.starts_with("10.0.0.")).collect();
        assert_eq!(rows.len(), TOP, "{text}");
        assert!(rows[0].starts_with("10.0.0.0 ") && rows[0].contains(" 30 "), "{text}");
        // 20 + … + 11, and 10 + … + 6.
        assert_eq!(text.matches("… and 10 more with 155 segments\n").count(), 2, "peers and owners: {text}");
        for what in ["peers", "owners"] {
            assert!(text.contains(&format!("others, after the first 20 {what}: 40 segments\n")), "{text}");
        }
    }

    #[test]
    fn names_of_owners_steer_no_terminal() {
        let mut account = Account::new();
        let connection = connection("10.7.0.1:1", "10.0.0.1:80", who("a\u{1b}[2J\n\u{202e}", 1, CONTAINER));
        account.add(&Event::Retransmit(sent_again("fast", 1, connection)));
        let text = written(&account, 0);
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text:?}");
        assert!(text.contains("3f37e9702f39 a\\u{1b}[2J"), "{text}");
    }
}
