//! What the numbers of a run say to who has to act on them, in a sentence, and nothing where they do not carry one.
//!
//! Two subjects, each a table of rules of which the first that applies speaks: segments of connections, and connections
//! that do not come about. A rule sees losses only, and traffic that went well only where `--kind connect,close` shows it:
//! what would take more than it sees is said as a condition. SYNs belong to the latter subject alone.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use probe_common::tcp::{CAUSES, Cause};

use super::super::text::{counted, is_most, percent, seconds, too_much_is_missing};
use super::account::{Account, Counts, Door, Failure, Peer};

/// Fewer segments sent again than this say nothing: of five, four of a kind are chance.
const ENOUGH_SEGMENTS: u64 = 10;
/// Connections that fail do so for a reason each; three of one kind are enough.
const ENOUGH_CONNECTIONS: u64 = 3;
/// "Spread": none has more than so many hundredths, and there are so many.
const SPREAD_PERCENT: u64 = 50;
const SPREAD_PEERS: usize = 4;
/// To compare peers takes so many segments sent to the others, and a loss there of at most a tenth.
const ENOUGH_SENT: u64 = 1_000;
const TIMES_BETTER: u64 = 10;
/// Round trips that vary by so much, up to so long, wait in a queue somewhere.
const QUEUE_TIMES: u32 = 10;
const QUEUE_LEAST: Duration = Duration::from_millis(100);

/// So many addresses and ports are spoken of, those of most trouble first.
const DOORS: usize = 3;

/// A sentence, if a rule applies.
type Rule = fn(&Account) -> Option<String>;
/// One on an address and port to which connections do not come about: what others do says nothing against it.
type DoorRule = fn(&Account, &SocketAddr, &Door) -> Option<String>;

const CONNECTING: &[DoorRule] = &[refused, unreachable, unanswered];
/// Why segments of connections are sent again.
const SENDING: &[Rule] = &[needless, at_one_peer, spread, one_kind];

/// A sentence a door, and one for each other subject at most. `lost`: events that probe itself lost.
pub(super) fn readings(account: &Account, lost: u64) -> Vec<String> {
    let seen = account.all.events.sum() + account.failed.sum() + account.all.carried.connections;
    if too_much_is_missing(lost, seen) {
        return Vec::new();
    }
    let mut doors: Vec<_> = account.doors.rows.iter().collect();
    doors.sort_by_key(|(address, door)| (std::cmp::Reverse(door.trouble()), **address));
    let of_door = |(address, door): (_, _)| CONNECTING.iter().find_map(|rule| rule(account, address, door));
    let mut said: Vec<String> = doors.into_iter().filter_map(of_door).take(DOORS).collect();
    if said.is_empty() {
        said.extend(late_syns(account));
    }
    said.extend(SENDING.iter().find_map(|rule| rule(account)));
    said
}

// Connecting.

/// The address and port that has most of what failed or was not answered.
fn one_door(account: &Account) -> Option<(&SocketAddr, &Door)> {
    let all = account.failed.sum() + account.all.segments.of(Cause::Syn);
    let (door, at) = account.doors.rows.iter().max_by_key(|(_, door)| door.trouble())?;
    is_most(at.trouble(), all).then_some((door, at))
}

fn refused(account: &Account, door: &SocketAddr, at: &Door) -> Option<String> {
    let refused = at.failed.of(Failure::Refused);
    let why = match at.opened {
        0 => "nobody listens there, or a firewall rejects them; an answer comes, so it is no loss of packets"
            .to_owned(),
        made => format!("and was open to {made} others: nobody listens there at times"),
    };
    (refused >= ENOUGH_CONNECTIONS && is_most(refused, at.trouble())).then(|| {
        format!("{} refuses connections ({refused} times): {why}", account.with_name(door, &door.ip()))
    })
}

fn unreachable(account: &Account, door: &SocketAddr, at: &Door) -> Option<String> {
    let unreachable = at.failed.of(Failure::Unreachable);
    // Where nobody answers for the address, each has sent its SYN again while it waited.
    (unreachable >= ENOUGH_CONNECTIONS && is_most(unreachable, at.failed.sum()) && at.opened == 0).then(|| {
        format!(
            "{} is unreachable ({unreachable} times): no route, a router or the last hop says that nobody has the \
             address, or a firewall rejects them (ICMP prohibited)",
            account.with_name(door, &door.ip())
        )
    })
}

fn unanswered(account: &Account, door: &SocketAddr, at: &Door) -> Option<String> {
    let Door { syns, connections, counted_syns, failed, opened } = at;
    let gave_up = failed.of(Failure::TimedOut);
    // A SYN sent again twice went unanswered twice at least, which is no chance.
    let insists = *connections >= ENOUGH_CONNECTIONS && *counted_syns >= 2 * connections;
    if *opened != 0 || gave_up != failed.sum() || !(insists || gave_up >= ENOUGH_CONNECTIONS) {
        return None;
    }
    let heard = account.peers.rows.get(&door.ip()).is_some_and(|peer| peer.heard != 0);
    let so = if heard {
        "the address is heard from otherwise, so a firewall drops them, or the queue of who listens there is full; unless it \
         is a service's, with another host behind each port (--nat tells which)"
    } else {
        "dropped rather than refused: by a firewall, by a listener whose queue is full, or the host is down"
    };
    let mut numbers = Vec::new();
    if *syns != 0 {
        numbers.push(format!("{syns} sent again by {}", counted(*connections, "connection")));
    }
    if gave_up != 0 {
        numbers.push(format!("{gave_up} gave up"));
    }
    // Those that did not give up may have been answered later.
    let verb = if gave_up >= ENOUGH_CONNECTIONS { "answers no SYN" } else { "leaves SYNs unanswered" };
    Some(format!("{} {verb} ({}): {so}", account.with_name(door, &door.ip()), numbers.join(", ")))
}

fn late_syns(account: &Account) -> Option<String> {
    let doors = || account.doors.rows.values();
    let connections: u64 = doors().map(|door| door.connections).sum();
    let syns: u64 = doors().map(|door| door.counted_syns).sum();
    // More than one in four of them sent its SYN again twice: that is something else.
    let once = connections >= ENOUGH_SEGMENTS && syns * 4 <= connections * 5;
    // Or else they may still wait for the first answer of all.
    let opened: u64 = doors().map(|door| door.opened).sum();
    (once && opened * 2 >= connections && account.failed.sum() == 0).then(|| {
        let place = one_door(account).map(|(door, _)| format!(" to {}", account.with_name(door, &door.ip()))).unwrap_or_default();
        format!(
            "{connections} connections{place} sent their SYN again, most of them once, and others were made: now and \
             then a SYN or its answer is lost, which costs the connection a second"
        )
    })
}

// Sending.

/// What a kind of retransmit means when it has most of them.
struct Kind {
    causes: &'static [Cause],
    name: &'static str,
    meaning: &'static str,
}

const KINDS: [Kind; 4] = [
    Kind {
        causes: &[Cause::TailLossProbe],
        name: "tail loss probes",
        meaning: "the last packets of requests or answers are lost on the way there, or their ACKs on the way back (look for drops at the end of bursts)",
    },
    Kind {
        causes: &[Cause::Timeout, Cause::SlowStart],
        name: "timeouts",
        meaning: "whole windows or all ACKs of a while are lost, or the other end falls silent",
    },
    Kind {
        causes: &[Cause::Fast],
        name: "fast retransmits",
        meaning: "single packets are lost out of flows that go on: congestion, or a lossy link",
    },
    Kind {
        causes: &[Cause::SynAck],
        name: "SYN-ACKs",
        meaning: "our answers or the clients' last ACKs are lost, the queue of who listens here is full, or somebody only knocks",
    },
];

/// The kind that has most of what connections sent again.
fn main_kind(segments: &Counts<{ CAUSES.len() }>) -> Option<(&'static Kind, u64)> {
    let all = segments.of_connections();
    KINDS.iter().find_map(|kind| {
        let count = kind.causes.iter().map(|cause| segments.of(*cause)).sum();
        is_most(count, all).then_some((kind, count))
    })
}

fn enough(account: &Account) -> Option<u64> {
    Some(account.all.segments.of_connections()).filter(|all| *all >= ENOUGH_SEGMENTS)
}

/// Peers to which something was sent again, but for SYNs.
fn losing(account: &Account) -> impl Iterator<Item = (&IpAddr, &Peer, u64)> {
    let peers = account.peers.rows.iter();
    let counted = peers.map(|(address, peer)| (address, peer, peer.tally.segments.of_connections()));
    counted.filter(|(_, _, segments)| *segments != 0)
}

/// Half or more of what was sent again was there already.
fn needless(account: &Account) -> Option<String> {
    let carried = &account.all.carried;
    let (judged, needless) = (carried.judged, carried.needless);
    // They speak for what was seen to be sent again only if they are most of it.
    let speaks = is_most(judged, account.all.segments.of_connections().max(judged));
    (judged >= ENOUGH_SEGMENTS && needless <= judged && needless * 2 >= judged && speaks).then(|| {
        format!(
            "of {judged} segments that closed connections had sent again, the peers got {needless} twice (D-SACK, undo): \
             those were late, or their ACKs were late or lost; they were not lost themselves"
        )
    })
}

fn at_one_peer(account: &Account) -> Option<String> {
    let all = enough(account)?;
    let (address, peer, there) = losing(account).max_by_key(|(_, _, segments)| *segments)?;
    if !is_most(there, all) {
        return None;
    }
    let what = main_kind(&peer.tally.segments);
    let meaning = what.map(|(kind, count)| format!(", {count} of them {}: {}", kind.name, kind.meaning));
    let conclusion = compared(account, address, peer).unwrap_or_else(|| {
        let rest = all - there;
        let others = if rest == 0 { "none".to_owned() } else { counted(rest, "segment") };
        let hint =
            if account.all.carried.connections == 0 { " (`--kind retransmit,close` tells)" } else { "" };
        format!("to others {others}, so that path or that peer, if others have traffic too{hint}")
    });
    let queue = peer.srtt.filter(|(least, greatest, count)| {
        *count >= ENOUGH_SEGMENTS && *greatest >= QUEUE_LEAST && *greatest >= *least * QUEUE_TIMES
    });
    let queue = queue.map(|(least, greatest, _)| {
        format!(
            "; round trips there took {} to {}: a queue may fill on the way",
            seconds(least),
            seconds(greatest)
        )
    });
    Some(format!(
        "{there} of {all} segments that connections sent again went to {}{}; {conclusion}{}",
        account.with_name(address, address),
        meaning.unwrap_or_default(),
        queue.unwrap_or_default()
    ))
}

/// How others fare, where connections that ended tell.
fn compared(account: &Account, address: &IpAddr, peer: &Peer) -> Option<String> {
    let (all, here) = (&account.all.carried, &peer.tally.carried);
    let (sent, again) = (all.sent - here.sent, all.sent_again - here.sent_again);
    // again/sent ≤ here.sent_again/here.sent/TIMES_BETTER, without fractions.
    let better = u128::from(again) * u128::from(here.sent) * u128::from(TIMES_BETTER)
        <= u128::from(here.sent_again) * u128::from(sent);
    (sent >= ENOUGH_SENT && here.sent_again >= ENOUGH_SEGMENTS && better).then(|| {
        format!(
            "closed connections sent {} of {} segments again to {address} and {again} of {sent} to others, so that path \
             or that peer, not this host as a whole",
            here.sent_again, here.sent
        )
    })
}

fn spread(account: &Account) -> Option<String> {
    let all = enough(account)?;
    let peers = losing(account).count();
    let greatest = losing(account).map(|(_, _, segments)| segments).max()?;
    if peers < SPREAD_PEERS || percent(greatest, all) > SPREAD_PERCENT {
        return None;
    }
    let what = main_kind(&account.all.segments);
    let meaning = what.map(|(kind, count)| format!(", {count} of them {}: {}", kind.name, kind.meaning));
    let owners = || account.owners.rows.values().map(|owner| owner.tally.segments.of_connections());
    let (losers, greatest) = (owners().filter(|segments| *segments != 0).count(), owners().max()?);
    let conclusion = if losers > 1 && is_most(greatest, all) {
        "most are one owner's, so what its connections share, if the other owners have traffic too"
    } else if losers > 1 && percent(greatest, all) <= SPREAD_PERCENT {
        "they are of several owners too, so look at what all share, this host's link first"
    } else {
        "so not one peer's path alone"
    };
    let more = if account.peers.rest.tally.segments.of_connections() == 0 { "" } else { " and more" };
    Some(format!(
        "{all} segments that connections sent again went to {peers}{more} peers{}; {conclusion}",
        meaning.unwrap_or_default()
    ))
}

fn one_kind(account: &Account) -> Option<String> {
    let all = enough(account)?;
    let (kind, count) = main_kind(&account.all.segments)?;
    Some(format!("{count} of {all} segments that connections sent again are {}: {}", kind.name, kind.meaning))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{connection, ended, sent_again, who};
    use super::*;
    use crate::signals::Event;
    use crate::signals::tcp::{Close, Connect, Reset, Retransmit};

    /// Retransmits of a cause: of so many segments each, so many of them.
    fn again(cause: &'static str, peer: &str, comm: &str, times: usize) -> Vec<Event> {
        let event = sent_again(cause, 1, connection("10.9.9.9:40000", &at(peer), who(comm, 7, "/")));
        vec![Event::Retransmit(event); times]
    }

    fn at(peer: &str) -> String {
        if peer.contains(':') { peer.to_owned() } else { format!("{peer}:8080") }
    }

    /// SYNs sent again, so many times by each of so many connections.
    fn syns(door: &str, connections: usize, times: usize) -> Vec<Event> {
        let syn = |port: usize| {
            let local = format!("10.9.9.9:{}", 40_000 + port);
            Event::Retransmit(sent_again("syn", 1, connection(&local, door, who("curl", 7, "/"))))
        };
        (0..connections).flat_map(|port| vec![syn(port); times]).collect()
    }

    fn failed(errno: &'static str, door: &str, times: usize) -> Vec<Event> {
        let event = Connect {
            time_unix_ns: 0,
            connection: connection("10.9.9.9:40000", door, who("curl", 7, "/")),
            role: "client",
            error: (!errno.is_empty()).then(|| errno.into()),
            duration: None,
        };
        vec![Event::Connect(event); times]
    }

    fn reset(peer: &str) -> Vec<Event> {
        let connection = connection("10.9.9.9:40000", &at(peer), who("curl", 7, "/"));
        vec![Event::Reset(Reset { time_unix_ns: 0, connection, direction: "receive", reason: None })]
    }

    fn closed(peer: &str, sent: u32, again: u32, needless: u32) -> Vec<Event> {
        let close = Close {
            segments_sent: Some(sent),
            segments_retransmitted: Some(again),
            segments_spurious: Some(needless),
            ..ended(connection("10.9.9.9:40000", &at(peer), who("curl", 7, "/")))
        };
        vec![Event::Close(close)]
    }

    fn round_trip(mut events: Vec<Event>, micros: u64) -> Vec<Event> {
        for event in &mut events {
            if let Event::Retransmit(Retransmit { srtt, .. }) = event {
                *srtt = Some(Duration::from_micros(micros));
            }
        }
        events
    }

    fn account(events: &[Vec<Event>]) -> Account {
        let mut account = Account::new();
        events.iter().flatten().for_each(|event| account.add(event));
        account
    }

    const A: &str = "10.0.0.7";
    const B: &str = "10.0.0.8";
    const DOOR: &str = "10.0.0.7:81";
    const OTHER: &str = "10.0.0.8:443";

    /// Name, what happened, and words that must be in each sentence; none: nothing may be said.
    type Case = (&'static str, Vec<Vec<Event>>, &'static [&'static [&'static str]]);

    fn check(cases: Vec<Case>) {
        for (name, events, want) in cases {
            let said = readings(&account(&events), 0);
            assert_eq!(said.len(), want.len(), "{name}: {said:?}");
            for (sentence, words) in said.iter().zip(want) {
                for word in *words {
                    assert!(sentence.contains(word), "{name}: no {word:?} in: {sentence}");
                }
                assert!(!sentence.contains('\n') && !sentence.contains("  "), "{name}: {sentence:?}");
            }
        }
    }

    #[test]
    fn segments_sent_again() {
        let tlp = |peer, times| again("tail_loss_probe", peer, "nginx", times);
        let fast = |peer, comm, times| again("fast", peer, comm, times);
        let hosts = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"];
        check(vec![
            ("nothing", vec![], &[]),
            ("too few", vec![tlp(A, 9)], &[]),
            (
                "tail loss at one peer",
                vec![tlp(A, 10)],
                &[&["10 of 10", A, "10 of them tail loss probes: the last packets", "to others none"]],
            ),
            (
                "most of them at one peer",
                vec![tlp(A, 9), tlp(B, 1)],
                &[&[
                    "9 of 10",
                    A,
                    "to others 1 segment,",
                    "if others have traffic",
                    "--kind retransmit,close",
                ]],
            ),
            (
                "timeouts, slow start among them",
                vec![again("timeout", A, "nginx", 4), again("slow_start", A, "nginx", 8)],
                &[&["12 of them timeouts", "falls silent"]],
            ),
            ("fast", vec![fast(A, "nginx", 10)], &[&["10 of them fast retransmits", "congestion"]]),
            (
                "SYN-ACKs",
                vec![again("syn_ack", A, "nginx", 10)],
                &[&["10 of them SYN-ACKs", "queue", "knocks"]],
            ),
            (
                "one peer, no kind has most",
                vec![tlp(A, 6), fast(A, "nginx", 6)],
                &[&["12 of 12", A, "that path or that peer"]],
            ),
            ("two peers, two kinds", vec![tlp(A, 6), fast(B, "nginx", 6)], &[]),
            (
                "two peers, one kind",
                vec![tlp(A, 6), tlp(B, 6)],
                &[&["12 of 12 segments that connections sent again are tail loss probes", "last packets"]],
            ),
            (
                "others are seen to fare better",
                vec![tlp(A, 12), closed(A, 1_000, 12, 0), closed(B, 5_000, 2, 0)],
                &[&["12 of 1000", "2 of 5000", "not this host"]],
            ),
            (
                "others fare as badly",
                vec![tlp(A, 12), closed(A, 1_000, 12, 0), closed(B, 5_000, 60, 0)],
                &[&["if others have traffic"]],
            ),
            (
                "others have hardly any traffic",
                vec![tlp(A, 12), closed(A, 1_000, 12, 0), closed(B, 900, 0, 0)],
                &[&["if others have traffic"]],
            ),
            (
                "spread over peers, one owner of several",
                hosts.iter().map(|host| fast(host, "nginx", 4)).chain([fast(hosts[0], "curl", 1)]).collect(),
                &[&["21 segments", "5 peers", "one owner's", "if the other owners"]],
            ),
            (
                "spread over peers and owners",
                hosts.iter().flat_map(|host| [fast(host, "nginx", 2), fast(host, "curl", 2)]).collect(),
                &[&["20 segments", "5 peers", "this host's link"]],
            ),
            (
                "spread over peers, the only owner",
                hosts.iter().map(|host| fast(host, "nginx", 2)).collect(),
                &[&["5 peers", "not one peer's path alone"]],
            ),
            (
                "a queue fills",
                vec![round_trip(fast(A, "nginx", 9), 1_200), round_trip(fast(A, "nginx", 1), 340_000)],
                &[&["1.20ms to 340ms", "queue"]],
            ),
            (
                "the peers had them already",
                vec![tlp(A, 12), closed(A, 500, 12, 9)],
                &[&["of 12 segments", "9 twice", "not lost themselves"]],
            ),
            ("some of them", vec![tlp(A, 12), closed(A, 500, 12, 5)], &[&["tail loss probes"]]),
            // The network makes copies too: then it tells nothing of what was sent again.
            ("more twice than were sent again", vec![closed(A, 500, 12, 40)], &[]),
            ("closed connections that lost nothing", vec![closed(A, 500, 0, 0), closed(B, 500, 0, 0)], &[]),
        ]);
        let calm = readings(&account(&[round_trip(fast(A, "nginx", 10), 340_000)]), 0);
        assert!(!calm[0].contains("queue"), "far away is no queue: {calm:?}");
    }

    #[test]
    fn connections_that_do_not_come_about() {
        check(vec![
            ("refused twice", vec![failed("ECONNREFUSED", DOOR, 2)], &[]),
            ("refused", vec![failed("ECONNREFUSED", DOOR, 3)], &[&[DOOR, "3 times", "nobody listens"]]),
            (
                "refused here and there",
                vec![failed("ECONNREFUSED", DOOR, 3), failed("ECONNREFUSED", OTHER, 3)],
                &[&[DOOR, "nobody listens"], &[OTHER, "nobody listens"]],
            ),
            ("refused or silent", vec![failed("ECONNREFUSED", DOOR, 3), failed("ETIMEDOUT", DOOR, 3)], &[]),
            (
                "no answer, given up",
                vec![syns(DOOR, 3, 6), failed("ETIMEDOUT", DOOR, 3)],
                &[&[DOOR, "18 sent again by 3 connections", "3 gave up", "host is down"]],
            ),
            (
                "no answer so far",
                vec![syns(DOOR, 3, 2)],
                &[&[DOOR, "6 sent again by 3 connections", "firewall"]],
            ),
            ("two connections only", vec![syns(DOOR, 2, 4)], &[]),
            (
                "a door each, one of them silent and one out of reach",
                vec![
                    failed("ECONNREFUSED", "10.96.0.1:80", 3),
                    syns("10.96.0.1:81", 3, 3),
                    failed("EHOSTUNREACH", "10.96.0.1:81", 3),
                    syns("10.96.0.1:82", 3, 4),
                ],
                &[
                    &["10.96.0.1:81 is unreachable (3 times)"],
                    &["10.96.0.1:82 leaves SYNs unanswered (12 sent again by 3 connections)"],
                    &["10.96.0.1:80 refuses"],
                ],
            ),
            ("once each", vec![syns(DOOR, 3, 1)], &[]),
            (
                "the host is heard from",
                vec![syns(DOOR, 3, 2), reset("10.0.0.7:22")],
                &[&[DOOR, "heard from otherwise"]],
            ),
            ("but connections were made", vec![syns(DOOR, 3, 2), failed("", DOOR, 1)], &[]),
            (
                "unreachable",
                vec![syns(DOOR, 3, 2), failed("EHOSTUNREACH", DOOR, 3)],
                &[&[DOOR, "unreachable (3 times)", "no route"]],
            ),
            ("some other failure", vec![failed("EADDRNOTAVAIL", DOOR, 9)], &[]),
            (
                "single SYNs",
                vec![syns(DOOR, 10, 1), failed("", DOOR, 5)],
                &[&["10 connections to 10.0.0.7:81", "most of them once", "a second"]],
            ),
            (
                "single SYNs to many",
                vec![syns(DOOR, 6, 1), syns(OTHER, 6, 1), failed("", DOOR, 6)],
                &[&["12 connections sent", "most of them once"]],
            ),
            ("single SYNs, and nobody knows what became of them", vec![syns(DOOR, 10, 1)], &[]),
            (
                "given up, and retransmits are not watched",
                vec![failed("ETIMEDOUT", DOOR, 3)],
                &[&["answers no SYN (3 gave up)"]],
            ),
            (
                "each subject for itself",
                vec![failed("ECONNREFUSED", DOOR, 3), again("fast", A, "nginx", 10)],
                &[&["refuses"], &["fast retransmits"]],
            ),
        ]);
    }

    #[test]
    fn what_probe_lost_itself_silences_it() {
        let account = account(&[again("fast", A, "nginx", 90)]);
        assert_eq!(readings(&account, 9).len(), 1);
        assert_eq!(readings(&account, 10), Vec::<String>::new());
    }

    /// Peers beyond the limit have no row, but what was sent to them counts.
    #[test]
    fn peers_without_a_row_are_no_reason_to_name_another() {
        let mut account = Account::with_room(1);
        for events in [again("fast", A, "nginx", 10), again("timeout", B, "nginx", 10)] {
            events.iter().for_each(|event| account.add(event));
        }
        assert_eq!(readings(&account, 0), Vec::<String>::new());
    }
}
