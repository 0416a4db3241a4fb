//! What all lookups of a run come to: by server and code, by owner, by name. Bounded, whatever is asked of whomever.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::super::owners::{OwnerKey, Processes};
use super::super::rows::Bounded;
use crate::series::Histogram;
use crate::signals::Event;
use crate::signals::dns::{Lookup, Outcome, Role, Transport};

/// Servers that have a row of their own each; a resolver that asks its way down from the root meets thousands.
pub(super) const SERVERS: usize = 256;
/// Owners of whom the same is true.
pub(super) const OWNERS: usize = 256;
/// Codes of a server of which the same is true: it is the server that chooses them, out of 4,096.
pub(super) const CODES: usize = 8;
/// Names that are kept, the slowest.
pub(super) const NAMES: usize = 512;

/// What became of lookups.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    /// How long answers took.
    pub(super) answered: Histogram,
    /// Of these, those that say something else than that there is a name, or is none.
    pub(super) failed: u64,
    pub(super) unanswered: u64,
    /// How long answers took that came after their lookup was given up: counted as unanswered before.
    pub(super) late: Histogram,
    pub(super) twins: Twins,
    /// Lookups that were no first try, and those of them that were answered.
    pub(super) retries: u64,
    pub(super) retries_answered: u64,
    /// Over UDP: answers that were cut.
    pub(super) cut: u64,
    /// Lookups over TCP.
    pub(super) tcp: u64,
    /// Those of them for an answer that was cut, and how long they took that were answered.
    pub(super) fallbacks: u64,
    pub(super) fallbacks_answered: Histogram,
    /// Names found after others that do not exist, and lookups of those.
    pub(super) searched: u64,
    pub(super) misses: u64,
}

/// Lookups of one kind of address that were not answered, while those of the other kind were.
#[derive(Clone, Debug, Default)]
pub(super) struct Twins {
    pub(super) a: u64,
    pub(super) aaaa: u64,
    /// Until they were given up.
    pub(super) waited: Histogram,
}

impl Twins {
    pub(super) fn lost(&self) -> u64 {
        self.a + self.aaaa
    }
}

impl Tally {
    fn add(&mut self, lookup: &Lookup) {
        let Lookup { qtype, outcome, duration, transport, truncated, fallback, attempt, .. } = lookup;
        match outcome {
            Outcome::Answered => {
                self.answered.record(*duration);
                self.failed += u64::from(!matches!(lookup.rcode.as_deref(), Some("NOERROR" | "NXDOMAIN")));
            }
            Outcome::Unanswered => self.unanswered += 1,
            Outcome::Late => {
                // The lookup has been counted.
                self.late.record(*duration);
                return;
            }
        }
        let is_answered = *outcome == Outcome::Answered;
        if *attempt > 1 {
            self.retries += 1;
            self.retries_answered += u64::from(is_answered);
        }
        if lookup.lost_twin {
            let lost = if qtype == "A" { &mut self.twins.a } else { &mut self.twins.aaaa };
            *lost += 1;
            self.twins.waited.record(*duration);
        }
        self.cut += u64::from(*truncated && *transport == Transport::Udp);
        self.tcp += u64::from(*transport == Transport::Tcp);
        if *fallback {
            self.fallbacks += 1;
            if is_answered {
                self.fallbacks_answered.record(*duration);
            }
        }
        self.searched += u64::from(lookup.search_misses != 0);
        self.misses += u64::from(lookup.search_misses);
    }

    /// Answered in time or not.
    pub(super) fn lookups(&self) -> u64 {
        self.answered.count() + self.unanswered
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lookups() + self.late.count() == 0
    }
}

/// A server that processes of this host ask.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) tally: Tally,
    /// How long answers took by code.
    pub(super) codes: Bounded<Cow<'static, str>, Histogram>,
    /// Answers to questions for addresses.
    pub(super) a_answered: u64,
    pub(super) aaaa_answered: u64,
}

impl Default for Server {
    fn default() -> Self {
        Self { tally: Tally::default(), codes: Bounded::new(CODES), a_answered: 0, aaaa_answered: 0 }
    }
}

impl Server {
    fn add(&mut self, lookup: &Lookup) {
        self.tally.add(lookup);
        if lookup.outcome == Outcome::Answered {
            self.codes.row(lookup.rcode.clone().unwrap_or_default()).record(lookup.duration);
            self.a_answered += u64::from(lookup.qtype == "A");
            self.aaaa_answered += u64::from(lookup.qtype == "AAAA");
        }
    }

    pub(super) fn answered_with(&self, code: &str) -> u64 {
        self.codes.rows.get(code).map_or(0, Histogram::count)
    }
}

/// Who asks; at the server, who answers.
#[derive(Clone, Debug, Default)]
pub(super) struct Owner {
    pub(super) tally: Tally,
    pub(super) processes: Processes,
}

impl Owner {
    fn add(&mut self, lookup: &Lookup) {
        self.tally.add(lookup);
        self.processes.add(lookup.who.pid);
    }
}

/// A name that was slow.
#[derive(Clone, Debug, Default)]
pub(super) struct Name {
    pub(super) answered: Histogram,
    pub(super) unanswered: u64,
    /// For an answer, or for nothing.
    pub(super) longest: Duration,
}

/// The slowest names. Where there are more than there is room for, the one goes whose slowest lookup was the fastest: so the
/// slowest lookups' names are there, but what is known of a name may begin with its first slow one.
#[derive(Debug)]
pub(super) struct Names {
    most: usize,
    pub(super) rows: HashMap<String, Name, RandomState>,
    /// Some name has gone, or did not get in.
    pub(super) is_full: bool,
    /// No row's longest is below this.
    least: Duration,
}

impl Names {
    fn new(most: usize) -> Self {
        Self { most, rows: HashMap::default(), is_full: false, least: Duration::ZERO }
    }

    fn add(&mut self, lookup: &Lookup) {
        if !self.rows.contains_key(&lookup.name) && !self.makes_room(lookup.duration) {
            return;
        }
        let name = self.rows.entry_ref(&lookup.name).or_default();
        match lookup.outcome {
            Outcome::Answered => name.answered.record(lookup.duration),
            Outcome::Unanswered => name.unanswered += 1,
            // An answer as slow as that is what is looked for; the lookup has been counted.
            Outcome::Late => {}
        }
        name.longest = name.longest.max(lookup.duration);
    }

    /// Whether a name that took so long has a place.
    fn makes_room(&mut self, duration: Duration) -> bool {
        if self.rows.len() < self.most {
            return true;
        }
        self.is_full = true;
        if duration <= self.least {
            return false;
        }
        let fastest = self.rows.iter().min_by_key(|(_, name)| name.longest);
        let Some((fastest, longest)) = fastest.map(|(key, name)| (key.clone(), name.longest)) else {
            return false;
        };
        self.least = longest;
        if duration > longest {
            self.rows.remove(&fastest);
        }
        duration > longest
    }
}

/// The account of one run.
#[derive(Debug)]
pub struct Account {
    begun: Instant,
    /// Lookups were let through for how they ended or how long they took.
    pub(super) is_selective: bool,
    /// Lookups of processes of this host.
    pub(super) asked: Tally,
    pub(super) servers: Bounded<Option<SocketAddr>, Server>,
    pub(super) owners: Bounded<OwnerKey, Owner>,
    pub(super) names: Names,
    /// The same at servers of this host.
    pub(super) served: Tally,
    pub(super) answerers: Bounded<OwnerKey, Owner>,
    /// Questions that wait.
    pub(super) waiting: u64,
}

impl Account {
    /// That begins now. `is_selective`: of lookups that were chosen for how they ended or how long they took, so that they say
    /// nothing about shares.
    #[must_use]
    pub fn new(is_selective: bool) -> Self {
        Self {
            begun: Instant::now(),
            is_selective,
            asked: Tally::default(),
            servers: Bounded::new(SERVERS),
            owners: Bounded::new(OWNERS),
            names: Names::new(NAMES),
            served: Tally::default(),
            answerers: Bounded::new(OWNERS),
            waiting: 0,
        }
    }

    /// Since the beginning.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Whether there is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        self.asked.is_empty() && self.served.is_empty() && self.waiting == 0
    }

    /// An interval has ended, with so many questions waiting for their answer.
    pub fn interval(&mut self, waiting: u64) {
        self.waiting = waiting;
    }

    /// Takes an event in; those of other signals are none of its business.
    pub fn add(&mut self, event: &Event) {
        let Event::Lookup(lookup) = event else { return };
        let owner = OwnerKey::of(&lookup.who);
        match lookup.role {
            Role::Client => {
                self.asked.add(lookup);
                self.servers.row(lookup.peer).add(lookup);
                self.owners.row(owner).add(lookup);
                self.names.add(lookup);
            }
            Role::Server => {
                self.served.add(lookup);
                self.answerers.row(owner).add(lookup);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::owners::tests::who;
    use super::super::tests::{answered, late, served, unanswered, with_code};
    use super::*;

    const SERVER: &str = "10.96.0.10:53";

    fn add(account: &mut Account, lookup: Lookup) {
        account.add(&Event::Lookup(lookup));
    }

    #[test]
    fn each_lookup_counts_once() {
        let www = || answered("www.test", SERVER, 10);
        let mut account = Account::new(false);
        for lookup in [
            www(),
            with_code("NXDOMAIN", www()),
            with_code("SERVFAIL", www()),
            Lookup { attempt: 2, ..www() },
            Lookup { attempt: 3, ..unanswered(www()) },
            // Of the one before: no lookup of its own.
            late(Lookup { attempt: 3, ..answered("www.test", SERVER, 6_000) }),
            Lookup { qtype: "AAAA".into(), lost_twin: true, ..unanswered(www()) },
            Lookup { truncated: true, ..www() },
            Lookup { transport: Transport::Tcp, fallback: true, ..www() },
            Lookup { search_misses: 6, ..www() },
        ] {
            add(&mut account, lookup);
        }
        for lookup in [www(), unanswered(www())] {
            add(&mut account, served(who("dnsmasq", 9, "/"), lookup));
        }
        let Tally {
            answered,
            failed,
            unanswered,
            late,
            twins,
            retries,
            retries_answered,
            cut,
            tcp,
            fallbacks,
            ..
        } = &account.asked;
        assert_eq!((answered.count(), *unanswered, late.count(), account.asked.lookups()), (7, 2, 1, 9));
        assert_eq!((*failed, *retries, *retries_answered), (1, 2, 1));
        assert_eq!((twins.a, twins.aaaa, twins.waited.count()), (0, 1, 1));
        assert_eq!((*cut, *tcp, *fallbacks, account.asked.fallbacks_answered.count()), (1, 1, 1, 1));
        assert_eq!((account.asked.searched, account.asked.misses), (1, 6));
        assert_eq!((account.served.lookups(), account.served.unanswered), (2, 1));
        let server = &account.servers.rows[&Some(SERVER.parse().unwrap())];
        assert_eq!(server.tally.lookups(), 9, "those served here are no server's that is asked");
        assert_eq!((server.answered_with("NOERROR"), server.answered_with("SERVFAIL")), (5, 1));
        assert_eq!((server.a_answered, server.aaaa_answered), (7, 0));
    }

    /// Whatever is asked of whomever, by whomever, and whatever they answer.
    #[test]
    fn more_names_servers_owners_and_codes_than_there_is_room_for() {
        const LOOKUPS: u64 = 100_000;
        let mut account = Account::new(false);
        for number in 0..LOOKUPS {
            let server = format!("10.{}.{}.{}:53", number >> 16, number >> 8 & 255, number & 255);
            let lookup = Lookup {
                who: who(&format!("w{number}"), 7, "/"),
                rcode: Some(format!("RCODE{}", number % 4_096).into()),
                // Faster and slower ones in no order.
                duration: Duration::from_micros(number * 7_919 % LOOKUPS + 1),
                ..answered(&format!("n{number}.test"), &server, 1)
            };
            add(&mut account, served(lookup.who.clone(), lookup.clone()));
            add(&mut account, Lookup { peer: Some(SERVER.parse().unwrap()), ..lookup.clone() });
            add(&mut account, lookup);
        }
        assert_eq!(account.asked.lookups(), 2 * LOOKUPS);
        assert_eq!(account.served.lookups(), LOOKUPS);
        assert_eq!(account.servers.rows.len(), SERVERS);
        assert_eq!((account.owners.rows.len(), account.answerers.rows.len()), (OWNERS, OWNERS));
        let sum = |rows: &Bounded<OwnerKey, Owner>| {
            let counted: u64 = rows.rows.values().map(|owner| owner.tally.lookups()).sum();
            counted + rows.rest.tally.lookups()
        };
        assert_eq!((sum(&account.owners), sum(&account.answerers)), (2 * LOOKUPS, LOOKUPS));
        let servers = &account.servers;
        let counted: u64 = servers.rows.values().map(|server| server.tally.lookups()).sum();
        assert_eq!(counted + servers.rest.tally.lookups(), 2 * LOOKUPS);
        let codes = &servers.rows[&Some(SERVER.parse().unwrap())].codes;
        assert_eq!(codes.rows.len(), CODES);
        assert_eq!(codes.rows.values().map(Histogram::count).sum::<u64>() + codes.rest.count(), LOOKUPS);
        // The slowest names are exact.
        assert!(account.names.is_full);
        let mut longest: Vec<_> = account.names.rows.values().map(|name| name.longest.as_micros()).collect();
        longest.sort();
        let want: Vec<_> = (u128::from(LOOKUPS) - NAMES as u128 + 1..=u128::from(LOOKUPS)).collect();
        assert_eq!(longest, want);
    }

    #[test]
    fn a_name_is_as_slow_as_its_slowest_lookup() {
        let mut names = Names::new(2);
        for (name, ms) in [("a", 5), ("b", 7), ("a", 30), ("c", 6), ("d", 8), ("e", 8), ("a", 1)] {
            names.add(&answered(name, SERVER, ms));
        }
        names.add(&unanswered(answered("f", SERVER, 5_000)));
        let mut rows: Vec<_> =
            names.rows.iter().map(|(name, row)| (&**name, row.longest.as_millis(), row.unanswered)).collect();
        rows.sort();
        assert_eq!(rows, [("a", 30, 0), ("f", 5_000, 1)]);
        assert_eq!(names.rows["a"].answered.count(), 3);
    }
}
