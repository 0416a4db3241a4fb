//! What the lookups of a run say to who has to act on them, in a sentence, and nothing where the numbers do not carry one.
//!
//! Subjects: silence, by server and by owner; twins; codes; speed; cut answers; search lists; what is served here. Lookups that
//! were chosen for how they ended carry none that speaks of a share of all.

use std::cmp::Reverse;
use std::net::SocketAddr;
use std::time::Duration;

use super::super::text::{counted, is_most, percent, seconds, too_much_is_missing};
use super::account::{Account, Owner, Server, Tally};

/// One lost packet leaves a lookup unanswered, two are bad luck.
const ENOUGH_SILENCE: u64 = 3;
/// Unanswered: so many hundredths. Below, it is a packet now and then, which a retry makes good.
const SILENCE_PERCENT: u64 = 1;
/// Owners are compared by what so many lookups each came to, servers too: quantiles of fewer are accidents.
const ENOUGH_LOOKUPS: u64 = 20;
/// "Hardly any": an owner has most of the silence with at most so many hundredths of the lookups.
const FEW_PERCENT: u64 = 50;
/// Answers that say that a server failed: so many, and so many hundredths of its answers. A zone somewhere is always broken.
const ENOUGH_FAILURES: u64 = 5;
const FAILURES_PERCENT: u64 = 10;
/// Medians so many times apart, of which the longer takes so long at least: below, nobody waits for names.
const SLOWER_TIMES: u32 = 5;
const SLOWER_LEAST: Duration = Duration::from_millis(5);
/// Cut answers: below, one name may have grown too large.
const ENOUGH_CUT: u64 = 3;
/// Lookups for the sake of a search list: so many, and so many hundredths of all.
const ENOUGH_MISSES: u64 = 20;
const MISSES_PERCENT: u64 = 10;
/// Tries that are not the first: so many, and so many hundredths of all.
const ENOUGH_RETRIES: u64 = 10;
const RETRIES_PERCENT: u64 = 5;

/// So many servers are spoken of in a subject, those of most trouble first.
const SERVERS: usize = 3;

/// A server as the rules see it.
type Row<'a> = (&'a Option<SocketAddr>, &'a Server);
/// A sentence on a server, if a rule applies.
type ServerRule = fn(Row<'_>) -> Option<String>;
/// A sentence, if a rule applies.
type Rule = fn(&Account) -> Option<String>;

/// The first that applies speaks.
const SILENT: &[ServerRule] = &[answers_nothing, answers_late, leaves_some];
/// Each speaks for itself.
const OTHERS: &[Rule] = &[one_owner, retries, slower, cut, search_list, not_served];

/// `lost`: lookups that probe itself lost.
pub(super) fn readings(account: &Account, lost: u64) -> Vec<String> {
    let seen = account.asked.lookups() + account.served.lookups();
    if too_much_is_missing(lost, seen) {
        return Vec::new();
    }
    let mut said: Vec<String> = twins(account).into_iter().collect();
    if account.is_selective {
        return said;
    }
    let mut servers: Vec<Row<'_>> = account.servers.rows.iter().collect();
    servers.sort_by_key(|(address, server)| (Reverse(server.tally.unanswered), **address));
    let of_server = |row: &Row<'_>| SILENT.iter().find_map(|rule| rule(*row));
    said.extend(servers.iter().filter_map(of_server).take(SERVERS));
    servers.sort_by_key(|(address, server)| (Reverse(server.tally.failed), **address));
    said.extend(servers.iter().filter_map(|row| fails(account, *row)).take(SERVERS));
    said.extend(OTHERS.iter().filter_map(|rule| rule(account)));
    said
}

fn server(address: Option<SocketAddr>) -> String {
    match address {
        Some(_) => super::server(address),
        None => "a server whose address is not known".to_owned(),
    }
}

/// Lookups, and how many hundredths of others they are.
fn of(part: u64, all: u64) -> String {
    match percent(part, all) {
        0 => format!("{part} of {all} lookups"),
        percent => format!("{part} of {all} lookups ({percent}%)"),
    }
}

// Silence.

fn twins(account: &Account) -> Option<String> {
    let twins = &account.asked.twins;
    let lost = twins.lost();
    if lost < ENOUGH_SILENCE {
        return None;
    }
    let which = match (twins.a, twins.aaaa) {
        (0, _) => "for AAAA went unanswered while the one for A, asked beside it,",
        (_, 0) => "for A went unanswered while the one for AAAA, asked beside it,",
        (_, _) => "for A or AAAA went unanswered while the one for the other, asked beside it,",
    };
    let place = one_server(account, |server| server.tally.twins.lost());
    let waited = twins.waited.quantile(0.5).map(seconds).unwrap_or_default();
    // What was let through for how it ended does not tell whether others were answered.
    let deaf = |(_, server): &Row<'_>| match (twins.a, twins.aaaa) {
        (0, _) => server.aaaa_answered == 0,
        (_, 0) => server.a_answered == 0,
        (_, _) => false,
    };
    let why = match place.filter(deaf) {
        Some((address, _)) if !account.is_selective => format!(
            "none of that kind was answered by {}, so it, or a firewall before it, drops them all",
            server(*address)
        ),
        _ => "where both leave one socket through NAT, the kernel's connection tracking can drop the second (conntrack -S: \
              insert_failed); `options single-request` or `single-request-reopen` (glibc) or a cache on the node \
              (NodeLocal DNSCache) avoids it"
            .to_owned(),
    };
    let at = place.map(|(address, _)| format!(" by {}", server(*address))).unwrap_or_default();
    Some(format!(
        "{lost} lookups {which} was answered{at}: whoever asked waited {waited} (p50) for that; {why}"
    ))
}

/// The server that has most of something.
fn one_server(account: &Account, count: impl Fn(&Server) -> u64) -> Option<Row<'_>> {
    let servers = || account.servers.rows.iter();
    let all: u64 = servers().map(|(_, server)| count(server)).sum::<u64>() + count(&account.servers.rest);
    servers().max_by_key(|(_, server)| count(server)).filter(|(_, server)| is_most(count(server), all))
}

/// What twins do not explain.
fn silence(tally: &Tally) -> Option<u64> {
    let silent = tally.unanswered.saturating_sub(tally.twins.lost());
    (silent >= ENOUGH_SILENCE && is_enough(tally)).then_some(tally.unanswered)
}

fn is_enough(tally: &Tally) -> bool {
    percent(tally.unanswered, tally.lookups()) >= SILENCE_PERCENT
}

fn answers_nothing((address, at): Row<'_>) -> Option<String> {
    let unanswered = silence(&at.tally)?;
    (at.tally.answered.count() + at.tally.late.count() == 0).then(|| {
        format!(
            "{} answers nothing ({} unanswered): it is down, a firewall drops what goes there or comes back, or no \
             DNS server has that address; whoever has it first in resolv.conf waits for it at each lookup",
            server(*address),
            counted(unanswered, "lookup")
        )
    })
}

fn answers_late((address, at): Row<'_>) -> Option<String> {
    let unanswered = silence(&at.tally)?;
    let late = &at.tally.late;
    (late.count() >= ENOUGH_SILENCE && late.count() * 2 >= unanswered).then(|| {
        format!(
            "{} answers late: of {unanswered} unanswered lookups {} got an answer after they were given up, after {} \
             (p50): no packets are lost, the server or what it asks is slower than who waits is patient (resolv.conf: \
             timeout; probe: --timeout)",
            server(*address),
            late.count(),
            late.quantile(0.5).map(seconds).unwrap_or_default()
        )
    })
}

fn leaves_some((address, at): Row<'_>) -> Option<String> {
    let Tally { retries, retries_answered, .. } = at.tally;
    let unanswered = silence(&at.tally)?;
    let again = if retries == 0 {
        String::new()
    } else {
        format!("; {retries_answered} of {retries} that were asked again were answered")
    };
    Some(format!(
        "{} leaves {} unanswered{again}: packets are lost on the way there or back, it is overloaded or limits who asks \
         too much, or it waits for servers of some names (SLOWEST NAMES)",
        server(*address),
        of(unanswered, at.tally.lookups())
    ))
}

/// An owner whose lookups are most of those unanswered, but not of all.
fn one_owner(account: &Account) -> Option<String> {
    let all = &account.asked;
    let owners = || account.owners.rows.iter();
    let (key, Owner { tally, processes }) = owners().max_by_key(|(_, owner)| owner.tally.unanswered)?;
    let others = all.lookups() - tally.lookups();
    let stands_out = tally.unanswered >= ENOUGH_SILENCE
        && is_enough(tally)
        && is_most(tally.unanswered, all.unanswered)
        && percent(tally.lookups(), all.lookups()) <= FEW_PERCENT
        && others >= ENOUGH_LOOKUPS;
    stands_out.then(|| {
        format!(
            "{} of {} unanswered lookups are those of {}, which made {}: look at what is its own (network policy, network \
             namespace, what it asks for) before the server, if others ask the same one",
            tally.unanswered,
            all.unanswered,
            key.name(*processes),
            of(tally.lookups(), all.lookups())
        )
    })
}

/// Retries that silence does not explain: what is asked again after an answer of no use.
fn retries(account: &Account) -> Option<String> {
    let Tally { retries, retries_answered, unanswered, .. } = account.asked;
    let all = account.asked.lookups();
    let speaks = retries >= ENOUGH_RETRIES && percent(retries, all) >= RETRIES_PERCENT;
    // Who was not answered asks again: that has been said.
    (speaks && unanswered * 2 < retries).then(|| {
        format!(
            "{} asked again what they had asked before, though {unanswered} were unanswered: an answer was of no use \
             (SERVFAIL, REFUSED) or did not reach the process; {retries_answered} were answered then",
            of(retries, all)
        )
    })
}

// Answers.

fn fails(account: &Account, (address, at): Row<'_>) -> Option<String> {
    let answered = at.tally.answered.count();
    let failures = at.codes.rows.iter().filter(|(code, _)| !matches!(&***code, "NOERROR" | "NXDOMAIN"));
    let (code, count) = failures
        .map(|(code, durations)| (&**code, durations.count()))
        .max_by_key(|(code, count)| (*count, Reverse(*code)))?;
    if count < ENOUGH_FAILURES || percent(count, answered) < FAILURES_PERCENT {
        return None;
    }
    let meaning = match code {
        "SERVFAIL" => {
            "the servers that it asks in turn do not answer it, or what they answer is not signed right (DNSSEC)"
        }
        "REFUSED" => "it does not serve who asks, or knows nothing of the names and asks nobody",
        "FORMERR" | "NOTIMP" | "BADVERS" => "it does not understand the questions (EDNS?)",
        _ => "see what it logs",
    };
    let others = account.servers.rows.iter().filter(|(other, _)| *other != address);
    let (mut others_answered, mut others_failed) = (0, 0);
    for (_, other) in others {
        others_answered += other.tally.answered.count();
        others_failed += other.answered_with(code);
    }
    let compared = if others_answered < ENOUGH_LOOKUPS {
        ""
    } else if others_failed == 0 {
        "; no other server does, so it is that one, if all are asked for the same names"
    } else {
        "; others do too"
    };
    Some(format!(
        "{} answers {code} to {count} of {answered} lookups ({}%): {meaning}{compared}",
        server(*address),
        percent(count, answered)
    ))
}

fn slower(account: &Account) -> Option<String> {
    let rows = account.servers.rows.iter().filter(|(_, at)| at.tally.answered.count() >= ENOUGH_LOOKUPS);
    let mut rows: Vec<_> =
        rows.filter_map(|(address, at)| Some((at.tally.answered.quantile(0.5)?, address, at))).collect();
    rows.sort_by_key(|(p50, address, _)| (*p50, **address));
    let ((fast, fastest, least), (slow, slowest, most)) = (rows.first()?, rows.last()?);
    (*slow >= SLOWER_LEAST && *slow >= *fast * SLOWER_TIMES).then(|| {
        format!(
            "{} takes {} (p50 of {}), {} takes {} (of {}): if both are asked for the same names, the former is far away, \
             overloaded, or has less in its cache",
            server(**slowest),
            seconds(*slow),
            most.tally.answered.count(),
            server(**fastest),
            seconds(*fast),
            least.tally.answered.count()
        )
    })
}

fn cut(account: &Account) -> Option<String> {
    let Tally { cut, fallbacks, fallbacks_answered, .. } = &account.asked;
    if *cut < ENOUGH_CUT {
        return None;
    }
    let answered = fallbacks_answered.count();
    let silent = fallbacks.saturating_sub(answered);
    let took = fallbacks_answered.quantile(0.5).map(|p50| format!(" in {} (p50)", seconds(p50)));
    let then = if *fallbacks == 0 {
        "nobody was seen to ask again over TCP: what was cut off is missing, or whole names are (old musl)"
            .to_owned()
    } else if silent >= ENOUGH_SILENCE && answered == 0 {
        format!("{fallbacks} asked again over TCP, none was answered: is TCP to that port open?")
    } else {
        format!(
            "{fallbacks} asked again over TCP, {answered} were answered{}: a larger EDNS size, or fewer records, spares that",
            took.unwrap_or_default()
        )
    };
    Some(format!("{cut} answers were cut for want of room in a UDP packet; {then}"))
}

fn search_list(account: &Account) -> Option<String> {
    let Tally { searched, misses, .. } = account.asked;
    let all = account.asked.lookups();
    if misses < ENOUGH_MISSES || percent(misses, all) < MISSES_PERCENT {
        return None;
    }
    let owners = account.owners.rows.iter();
    let whose = owners.max_by_key(|(_, owner)| owner.tally.misses);
    let whose = whose.filter(|(_, owner)| is_most(owner.tally.misses, misses));
    let whose = whose.map(|(key, owner)| format!(", mostly of {}", key.name(owner.processes)));
    Some(format!(
        "{misses} lookups of names that do not exist went before {} found{}: the search list of resolv.conf is tried \
         first for names of fewer dots than ndots; a dot at the end of a name, or a smaller ndots, spares them",
        counted(searched, "name"),
        whose.unwrap_or_default()
    ))
}

// Servers of this host.

fn not_served(account: &Account) -> Option<String> {
    let rows = account.answerers.rows.iter();
    let (key, Owner { tally, processes }) = rows.max_by_key(|(_, owner)| owner.tally.unanswered)?;
    (tally.unanswered >= ENOUGH_SILENCE && is_enough(tally)).then(|| {
        format!(
            "{}, a server of this host, leaves {} unanswered, as seen there: it drops them, or waits for servers that it \
             asks in turn; the network between it and who asks has no part in that",
            key.name(*processes),
            of(tally.unanswered, tally.lookups())
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::owners::tests::who;
    use super::super::tests::{answered, late, served, unanswered, with_code};
    use super::*;
    use crate::signals::Event;
    use crate::signals::dns::{Lookup, Transport};

    const A: &str = "10.96.0.10:53";
    const B: &str = "10.0.0.7:53";

    fn ok(server: &str, ms: u64, times: usize) -> Vec<Lookup> {
        vec![answered("www.test", server, ms); times]
    }

    fn code(code: &'static str, server: &str, times: usize) -> Vec<Lookup> {
        vec![with_code(code, answered("www.test", server, 1)); times]
    }

    fn silent(server: &str, times: usize) -> Vec<Lookup> {
        vec![unanswered(answered("www.test", server, 5_000)); times]
    }

    fn with(lookups: Vec<Lookup>, change: impl Fn(&mut Lookup)) -> Vec<Lookup> {
        let mut lookups = lookups;
        lookups.iter_mut().for_each(change);
        lookups
    }

    fn aaaa(lookups: Vec<Lookup>) -> Vec<Lookup> {
        with(lookups, |lookup| lookup.qtype = "AAAA".into())
    }

    fn twins(lookups: Vec<Lookup>) -> Vec<Lookup> {
        with(lookups, |lookup| lookup.lost_twin = true)
    }

    fn by(comm: &str, lookups: Vec<Lookup>) -> Vec<Lookup> {
        with(lookups, |lookup| lookup.who = who(comm, 7, "/"))
    }

    fn again(lookups: Vec<Lookup>) -> Vec<Lookup> {
        with(lookups, |lookup| lookup.attempt = 2)
    }

    fn cut(times: usize) -> Vec<Lookup> {
        with(ok(A, 1, times), |lookup| lookup.truncated = true)
    }

    fn over_tcp(lookups: Vec<Lookup>) -> Vec<Lookup> {
        with(lookups, |lookup| {
            lookup.transport = Transport::Tcp;
            lookup.fallback = true;
        })
    }

    fn account(lookups: &[Vec<Lookup>], is_selective: bool) -> Account {
        let mut account = Account::new(is_selective);
        for lookup in lookups.iter().flatten() {
            account.add(&Event::Lookup(lookup.clone()));
        }
        account
    }

    /// Name, what happened, and words that must be in each sentence; none: nothing may be said.
    type Case = (&'static str, Vec<Vec<Lookup>>, &'static [&'static [&'static str]]);

    fn check(cases: Vec<Case>) {
        for (name, lookups, want) in cases {
            let said = readings(&account(&lookups, false), 0);
            assert_eq!(said.len(), want.len(), "{name}: {said:#?}");
            for (sentence, words) in said.iter().zip(want) {
                for word in *words {
                    assert!(sentence.contains(word), "{name}: no {word:?} in: {sentence}");
                }
                assert!(!sentence.contains('\n') && !sentence.contains("  "), "{name}: {sentence:?}");
                assert!(!sentence.ends_with('.'), "{name}: {sentence:?}");
            }
        }
    }

    #[test]
    fn silence() {
        check(vec![
            ("nothing", vec![], &[]),
            ("all is well", vec![ok(A, 1, 1_000), code("NXDOMAIN", A, 300)], &[]),
            ("two packets lost", vec![silent(A, 2)], &[]),
            (
                "nobody there",
                vec![silent(A, 3)],
                &[&["10.96.0.10 answers nothing (3 lookups unanswered)", "firewall", "resolv.conf"]],
            ),
            (
                "nobody there, another helps",
                vec![silent(A, 30), ok(B, 1, 30)],
                &[&["10.96.0.10 answers nothing (30 lookups unanswered)"]],
            ),
            (
                "some",
                vec![silent(A, 5), ok(A, 1, 95)],
                &[&["10.96.0.10 leaves 5 of 100 lookups (5%) unanswered:", "overloaded"]],
            ),
            (
                "some, asked again",
                vec![silent(A, 5), ok(A, 1, 92), again(ok(A, 1, 3))],
                &[&["5 of 100 lookups (5%) unanswered; 3 of 3 that were asked again were answered:"]],
            ),
            ("hardly any", vec![silent(A, 3), ok(A, 1, 400)], &[]),
            (
                "late",
                vec![silent(A, 4), ok(A, 1, 20), vec![late(answered("www.test", A, 6_000)); 3]],
                &[&["10.96.0.10 answers late: of 4 unanswered lookups 3 got", "(p50): no packets are lost"]],
            ),
            (
                "late, but most never",
                vec![silent(A, 8), ok(A, 1, 20), vec![late(answered("www.test", A, 6_000)); 3]],
                &[&["10.96.0.10 leaves 8 of 28 lookups (28%) unanswered"]],
            ),
            (
                "two servers, the worse first",
                vec![silent(A, 3), ok(A, 1, 30), silent(B, 9)],
                &[&["10.0.0.7 answers nothing"], &["10.96.0.10 leaves 3 of 33"]],
            ),
            (
                "one owner's",
                vec![by("app", silent(A, 6)), by("app", ok(A, 1, 6)), by("curl", ok(A, 1, 40))],
                &[
                    &["10.96.0.10 leaves 6 of 52"],
                    &[
                        "6 of 6 unanswered lookups are those of app[7]",
                        "12 of 52 lookups (23%)",
                        "network policy",
                    ],
                ],
            ),
            (
                "the only owner's",
                vec![by("app", silent(A, 6)), by("app", ok(A, 1, 40))],
                &[&["10.96.0.10 leaves 6 of 46"]],
            ),
        ]);
        let nowhere = with(silent(A, 3), |lookup| lookup.peer = None);
        assert!(
            readings(&account(&[nowhere], false), 0)[0]
                .starts_with("a server whose address is not known answers nothing")
        );
    }

    #[test]
    fn twins_that_are_lost() {
        check(vec![
            ("two", vec![twins(aaaa(silent(A, 2))), ok(A, 1, 2)], &[]),
            (
                "AAAA is never answered",
                vec![twins(aaaa(silent(A, 3))), ok(A, 1, 3)],
                &[&[
                    "3 lookups for AAAA went unanswered while the one for A",
                    "answered by 10.96.0.10:",
                    "waited 5.00s (p50)",
                    "none of that kind was answered by 10.96.0.10",
                ]],
            ),
            (
                "AAAA is answered at other times",
                vec![twins(aaaa(silent(A, 3))), ok(A, 1, 30), aaaa(ok(A, 1, 30))],
                &[&["3 lookups for AAAA", "insert_failed", "options single-request", "NodeLocal DNSCache"]],
            ),
            (
                "one or the other",
                vec![twins(aaaa(silent(A, 3))), twins(silent(A, 3)), ok(A, 1, 3), aaaa(ok(A, 1, 3))],
                &[&["6 lookups for A or AAAA", "insert_failed"]],
            ),
            (
                "the server leaves more unanswered than that",
                vec![twins(silent(A, 3)), silent(A, 3), aaaa(ok(A, 1, 30))],
                &[&["3 lookups for A went"], &["10.96.0.10 leaves 6 of 36"]],
            ),
        ]);
    }

    #[test]
    fn answers() {
        check(vec![
            ("four failures", vec![code("SERVFAIL", A, 4), ok(A, 1, 20)], &[]),
            (
                "SERVFAIL",
                vec![code("SERVFAIL", A, 5), ok(A, 1, 20)],
                &[&["10.96.0.10 answers SERVFAIL to 5 of 25 lookups (20%)", "DNSSEC"]],
            ),
            ("a zone is broken", vec![code("SERVFAIL", A, 5), ok(A, 1, 50)], &[]),
            (
                "REFUSED by one of two",
                vec![code("REFUSED", A, 9), ok(B, 1, 20)],
                &[&["answers REFUSED to 9 of 9", "does not serve who asks", "no other server does"]],
            ),
            (
                "by both",
                vec![code("REFUSED", A, 9), code("REFUSED", B, 20)],
                &[&["10.0.0.7 answers REFUSED"], &["10.96.0.10 answers REFUSED to 9 of 9", "others do too"]],
            ),
            (
                "an odd code",
                vec![code("RCODE3841", A, 9)],
                &[&["answers RCODE3841 to 9 of 9", "what it logs"]],
            ),
            (
                "asked again, though all were answered",
                vec![ok(A, 1, 40), again(ok(A, 1, 10))],
                &[&[
                    "10 of 50 lookups (20%) asked again",
                    "though 0 were unanswered",
                    "10 were answered then",
                ]],
            ),
            (
                "slower",
                vec![ok(A, 50, 20), ok(B, 1, 20)],
                &[&["10.96.0.10 takes", "(p50 of 20), 10.0.0.7 takes", "has less in its cache"]],
            ),
            ("slower, of too few", vec![ok(A, 50, 19), ok(B, 1, 20)], &[]),
            ("slower, not much", vec![ok(A, 50, 20), ok(B, 20, 20)], &[]),
            (
                "slower, and nobody waits",
                vec![
                    ok(A, 4, 20),
                    vec![
                        with_code(
                            "NXDOMAIN",
                            Lookup { duration: Duration::from_micros(50), ..answered("x.test", B, 0) }
                        );
                        20
                    ],
                ],
                &[],
            ),
        ]);
    }

    #[test]
    fn cut_answers_and_search_lists() {
        let found = |times| with(ok(A, 1, times), |lookup| lookup.search_misses = 5);
        check(vec![
            ("two are cut", vec![cut(2)], &[]),
            ("and nobody asks again", vec![cut(3)], &[&["3 answers were cut", "nobody was seen", "musl"]]),
            (
                "asked again",
                vec![cut(3), over_tcp(ok(A, 2, 3))],
                &[&["3 answers were cut", "3 asked again over TCP, 3 were answered in ", "EDNS"]],
            ),
            (
                "TCP is closed",
                vec![cut(3), over_tcp(silent(A, 3))],
                &[&["10.96.0.10 leaves 3 of 6"], &["none was answered: is TCP to that port open?"]],
            ),
            ("a few misses", vec![found(3), code("NXDOMAIN", A, 15)], &[]),
            (
                "search list",
                vec![by("app", found(4)), code("NXDOMAIN", A, 20)],
                &[&[
                    "20 lookups of names that do not exist went before 4 names found, mostly of app[7]:",
                    "ndots",
                ]],
            ),
            ("not worth a word", vec![found(4), code("NXDOMAIN", A, 20), ok(A, 1, 300)], &[]),
        ]);
    }

    #[test]
    fn servers_of_this_host() {
        let at = |lookups: Vec<Lookup>| -> Vec<Lookup> {
            lookups.into_iter().map(|lookup| served(who("dnsmasq", 9, "/"), lookup)).collect()
        };
        check(vec![
            ("all served", vec![at(ok(A, 1, 100))], &[]),
            (
                "not all",
                vec![at(ok(A, 1, 97)), at(silent(A, 3))],
                &[&[
                    "dnsmasq[9], a server of this host, leaves 3 of 100 lookups (3%) unanswered, as seen there",
                ]],
            ),
        ]);
    }

    #[test]
    fn what_was_chosen_for_its_end_has_no_shares() {
        let lookups = [silent(A, 30), code("SERVFAIL", A, 30), cut(9), again(silent(B, 50))];
        assert!(readings(&account(&lookups, false), 0).len() > 2);
        assert_eq!(readings(&account(&lookups, true), 0), Vec::<String>::new());
        let twin = readings(&account(&[twins(aaaa(silent(A, 3)))], true), 0);
        assert!(twin.len() == 1 && twin[0].contains("insert_failed"), "{twin:?}");
    }

    #[test]
    fn what_probe_lost_itself_silences_it() {
        let account = account(&[silent(A, 90)], false);
        assert_eq!(readings(&account, 9).len(), 1);
        assert_eq!(readings(&account, 10), Vec::<String>::new());
    }
}
