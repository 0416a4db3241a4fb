//! What the calls of a run say to who has to act on them, in a sentence, and nothing where the numbers do not carry one.
//!
//! Subjects: calls that hang; limits that are reached; where time goes; calls without number; calls that fail; calls that sleep.
//! Rows that were chosen for their errors carry none that speaks of a share of all.

mod trouble;
mod words;

use std::cmp::Reverse;
use std::time::Duration;

use self::trouble::{fail, hang, limits};
use super::super::text::{age, is_most, percent, rate, seconds, too_much_is_missing};
use super::account::{Account, Tally, Whose, nanoseconds};
use super::off_cpu_text;
use super::summary::name;

/// So many sentences: what comes first hurts most.
const MOST: usize = 4;
/// Where time goes is worth a word from so many hundredths of one thread's on.
const WORK_PERCENT: u64 = 5;
/// It sleeps, or it does not: so many hundredths of its time without the CPU.
const SLEEPS_PERCENT: u64 = 80;
const BURNS_PERCENT: u64 = 20;
/// A call that sleeps is spoken of with so many hundredths of all time.
const SLEEPER_PERCENT: u64 = 25;
/// Calls without number: so many a second, so many hundredths of all that work, each so short.
const MANY_A_SECOND: u64 = 10_000;
const MANY_PERCENT: u64 = 50;
const SHORT: Duration = Duration::from_micros(2);
/// So many of a subject that can have several.
const SEVERAL: usize = 2;

/// `lost`: calls that probe itself lost.
pub(super) fn readings(account: &Account, lasted: Duration, lost: u64) -> Vec<String> {
    let calls = account.work.calls + account.waits.calls;
    if too_much_is_missing(lost, calls) {
        return Vec::new();
    }
    let mut said: Vec<String> = hang(account).into_iter().collect();
    said.extend(limits(account));
    if account.is_selective {
        said.extend(fail(account));
    } else {
        let (time, subject) = time(account, lasted).unzip();
        said.extend(time);
        said.extend(without_number(account, lasted));
        said.extend(fail(account));
        said.extend(sleep(account, lasted, subject));
        if said.is_empty() && calls != 0 {
            said.push(nothing(account, lasted));
        }
    }
    said.truncate(MOST);
    said
}

/// Whose they are, in words.
fn of(account: &Account, whose: &Whose) -> String {
    match whose {
        Whose::Host => "the host outside of containers".to_owned(),
        Whose::Nobody => "somebody who is not known".to_owned(),
        Whose::Owner(_) => account.owners.rows.get(whose).map(|owner| name(whose, owner)).unwrap_or_default(),
    }
}

// Where time goes.

/// What a sentence was about: a call, if one.
type Subject = Option<&'static str>;

fn has_work(account: &Account, lasted: Duration) -> bool {
    hundredths(account.work.time_ns, lasted.as_nanos()) >= WORK_PERCENT
}

fn hundredths(part: u128, all: u128) -> u64 {
    let ns = |ns: u128| u64::try_from(ns).unwrap_or(u64::MAX);
    percent(ns(part), ns(all))
}

fn is_most_time(part: &Tally, all: &Tally) -> bool {
    let ns = |tally: &Tally| u64::try_from(tally.time_ns).unwrap_or(u64::MAX);
    is_most(ns(part), ns(all))
}

/// "9.1s of 12.3s (74%)".
fn part(part: &Tally, all: &Tally) -> String {
    let hundredths = hundredths(part.time_ns, all.time_ns);
    format!("{} of the {} that calls were at work ({hundredths}%)", age(part.time()), age(all.time()))
}

/// Whether it sleeps or works, and so what helps.
fn how(tally: &Tally) -> String {
    match tally.off_cpu() {
        None => String::new(),
        Some(off) if off >= SLEEPS_PERCENT => {
            format!(
                "; {}: it waits, for a disk, a lock, a peer or its turn, and the kernel has little to do for it",
                off_cpu_text(off)
            )
        }
        Some(off) if off <= BURNS_PERCENT => {
            format!("; {}: it is the kernel that works, so fewer or cheaper calls help", off_cpu_text(off))
        }
        Some(off) => format!("; {}", off_cpu_text(off)),
    }
}

/// One owner's one call has most of the time, or one call, or one owner: as far as there are others.
fn time(account: &Account, lasted: Duration) -> Option<(String, Subject)> {
    if !has_work(account, lasted) {
        return None;
    }
    let all = &account.work;
    let with_time = |tally: &Tally| tally.time_ns != 0;
    let working = || account.calls.rows.iter().filter(|((_, waits), call)| !waits && with_time(&call.tally));
    let owners = || account.owners.rows.iter().filter(|(_, owner)| with_time(&owner.work.tally));
    let (several_calls, several_owners) = (working().count() > 1, owners().count() > 1);
    let pair = account.pairs.rows.iter().max_by_key(|(_, tally)| tally.time_ns);
    if let Some(((whose, call), tally)) = pair
        && (several_calls || several_owners)
        && is_most_time(tally, all)
    {
        let text = format!("{} spends {} in {call}{}", of(account, whose), part(tally, all), how(tally));
        return Some((text, Some(call)));
    }
    let call = working().max_by_key(|(_, call)| call.tally.time_ns);
    if let Some(((call, _), spread)) = call
        && several_calls
        && is_most_time(&spread.tally, all)
    {
        let whose = if several_owners { ", for several owners" } else { "" };
        return Some((
            format!("{call} has {}{whose}{}", part(&spread.tally, all), how(&spread.tally)),
            Some(call),
        ));
    }
    let (whose, owner) = owners().max_by_key(|(_, owner)| owner.work.tally.time_ns)?;
    let tally = &owner.work.tally;
    (several_owners && several_calls && is_most_time(tally, all)).then(|| {
        (format!("{} has {}, in several calls{}", of(account, whose), part(tally, all), how(tally)), None)
    })
}

/// Other calls that have much time, and sleep.
fn sleep(account: &Account, lasted: Duration, said: Option<Subject>) -> Vec<String> {
    if !has_work(account, lasted) {
        return Vec::new();
    }
    let all = &account.work;
    let mut sleepers: Vec<(&'static str, &Tally, u64)> = account
        .calls
        .rows
        .iter()
        .filter(|((call, waits), _)| !waits && said.flatten() != Some(*call))
        .filter_map(|((call, _), spread)| Some((*call, &spread.tally, spread.tally.off_cpu()?)))
        .filter(|(_, tally, off)| {
            *off >= SLEEPS_PERCENT && hundredths(tally.time_ns, all.time_ns) >= SLEEPER_PERCENT
        })
        .collect();
    sleepers.sort_by_key(|(call, tally, _)| (Reverse(tally.time_ns), *call));
    let sentence = |(call, tally, off): (&str, &Tally, u64)| {
        let what = match call {
            "fsync" | "fdatasync" | "sync" | "syncfs" | "msync" | "sync_file_range" => {
                "it waits until the disk has what was written"
            }
            "flock" | "fcntl" => "it waits for a lock on a file",
            _ => "it waits, for a disk, a lock, a peer or its turn",
        };
        format!("{call} has {}; {}: {what}", part(tally, all), off_cpu_text(off))
    };
    sleepers.into_iter().take(SEVERAL).map(sentence).collect()
}

// Calls without number.

fn without_number(account: &Account, lasted: Duration) -> Option<String> {
    let all = account.work.calls;
    let (pair, tally) = account.pairs.rows.iter().max_by_key(|(_, tally)| tally.calls)?;
    let (whose, call) = pair;
    let mean = nanoseconds(tally.time_ns.checked_div(u128::from(tally.calls))?);
    let many = u128::from(tally.calls) * 1_000_000_000 >= u128::from(MANY_A_SECOND) * lasted.as_nanos();
    let short = tally.time_ns != 0 && mean <= SHORT;
    (many && short && percent(tally.calls, all) >= MANY_PERCENT).then(|| {
        let advice = match *call {
            "read" | "write" | "pread64" | "pwrite64" | "readv" | "writev" | "preadv" | "pwritev" | "recvfrom" | "sendto" | "recvmsg"
            | "sendmsg" => "so short that each moves little; larger buffers, or several in one call, save most of them",
            "clock_gettime" | "gettimeofday" | "time" | "getcpu" => {
                "which the vDSO answers without a call, unless the clock source \
                 (/sys/devices/system/clocksource/clocksource0/current_clocksource) or a sandbox does not let it"
            }
            "sched_yield" => "which waits by trying again; a lock that sleeps (futex) leaves the CPU to others",
            _ => "cheap alone, but not so many: what does not change can be kept, or asked for less often",
        };
        format!(
            "{} calls {call} {} times a second, {} each on average, {}% of all calls at work: {advice}",
            of(account, whose),
            rate(tally.calls, lasted),
            seconds(mean),
            percent(tally.calls, all)
        )
    })
}

// Nothing.

fn nothing(account: &Account, lasted: Duration) -> String {
    let work = &account.work;
    let several_owners = account.owners.rows.len() > 1;
    let why = if work.time_ns == 0 {
        String::new()
    } else if !has_work(account, lasted) {
        format!(", and all that worked took {} of {}", age(work.time()), age(lasted))
    } else if several_owners {
        ", and no owner and no call has most of the time".to_owned()
    } else {
        String::new()
    };
    format!("nothing stands out: no call hung, none reached a limit{why}")
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::super::owners::tests::{CONTAINER, who};
    use super::super::tests::{brought, failing, in_flight, off_cpu, row, waiting};
    use super::*;
    use crate::config::SyscallBy;
    use crate::signals::syscalls::Row;
    use crate::signals::{Event, Who};

    pub(super) const TEN: Duration = Duration::from_secs(10);

    pub(super) fn app() -> Who {
        who("app", 12, CONTAINER)
    }

    pub(super) fn other() -> Who {
        who("other", 13, "/")
    }

    pub(super) fn of_rows(rows: Vec<Row>) -> Account {
        let mut account = Account::new(SyscallBy::Process, false);
        account.interval(&brought(rows));
        account
    }

    pub(super) fn said(rows: Vec<Row>) -> Vec<String> {
        readings(&of_rows(rows), TEN, 0)
    }

    /// So many milliseconds in one call.
    fn busy(who: Who, syscall: &'static str, ms: u64) -> Row {
        row(who, syscall, 1, ms * 1_000)
    }

    /// What is said begins so; or nothing stands out.
    pub(super) fn check(what: &str, rows: Vec<Row>, want: Option<&str>) {
        let said = said(rows);
        match want {
            Some(want) => assert!(said[0].starts_with(want), "{what}: {said:?}"),
            None => assert!(said[0].starts_with("nothing stands out") && said.len() == 1, "{what}: {said:?}"),
        }
    }

    #[test]
    fn one_pair_one_call_one_owner_or_none() {
        for (what, rows, want) in [
            (
                "a pair has most",
                vec![busy(app(), "fsync", 750), busy(app(), "read", 100), busy(other(), "read", 150)],
                Some("3f37e9702f39 app[12] spends 750ms of the 1.00s that calls were at work (75%) in fsync"),
            ),
            ("not quite", vec![busy(app(), "fsync", 740), busy(other(), "read", 260)], None),
            (
                "a call has most, of several",
                vec![busy(app(), "fsync", 400), busy(other(), "fsync", 350), busy(other(), "read", 250)],
                Some("fsync has 750ms of the 1.00s that calls were at work (75%), for several owners"),
            ),
            (
                "an owner has most, in several calls",
                vec![busy(app(), "fsync", 400), busy(app(), "write", 350), busy(other(), "read", 250)],
                Some(
                    "3f37e9702f39 app[12] has 750ms of the 1.00s that calls were at work (75%), in several calls",
                ),
            ),
            ("there is only one", vec![busy(app(), "fsync", 750)], None),
            (
                "of one owner",
                vec![busy(app(), "fsync", 750), busy(app(), "read", 250)],
                Some("3f37e9702f39 app[12] spends 750ms"),
            ),
            (
                "one call",
                vec![busy(app(), "fsync", 750), busy(other(), "fsync", 250)],
                Some("3f37e9702f39 app[12] spends 750ms"),
            ),
            (
                "waiting is none",
                vec![
                    waiting(busy(app(), "futex", 9_000)),
                    busy(app(), "read", 600),
                    busy(other(), "write", 400),
                ],
                None,
            ),
            (
                "just enough in ten seconds",
                vec![busy(app(), "fsync", 499), busy(other(), "read", 1)],
                Some("3f37e9702f39 app[12] spends 499ms"),
            ),
            ("too little", vec![busy(app(), "fsync", 498), busy(other(), "read", 1)], None),
        ] {
            check(what, rows, want);
        }
    }

    #[test]
    fn who_sleeps_and_who_works() {
        for (off, want) in [
            (100, Some("100% off-cpu: it waits")),
            (80, Some("80% off-cpu: it waits")),
            (79, Some("; 79% off-cpu")),
            (21, Some("; 21% off-cpu")),
            (20, Some("20% off-cpu: it is the kernel that works")),
            (0, Some("0% off-cpu: it is the kernel that works")),
        ] {
            let said = said(vec![off_cpu(off, busy(app(), "fsync", 900)), busy(other(), "read", 100)]);
            assert!(want.is_some_and(|want| said[0].contains(want)), "{off}: {said:?}");
            assert_eq!(said[0].ends_with("off-cpu"), (21..80).contains(&off), "{said:?}");
        }
    }

    #[test]
    fn other_sleepers_are_named() {
        let rows = |sleeper: u64, off| {
            vec![
                busy(app(), "read", 600 - sleeper / 2),
                off_cpu(off, busy(other(), "fsync", sleeper)),
                busy(other(), "write", 400 - sleeper / 2),
            ]
        };
        check(
            "a quarter",
            rows(250, 80),
            Some(
                "fsync has 250ms of the 1.00s that calls were at work (25%); 80% off-cpu: it waits until the disk",
            ),
        );
        check("less", rows(248, 80), None);
        check("awake", rows(250, 79), None);
        // Who was spoken of is not named again.
        let said = said(vec![off_cpu(99, busy(app(), "fsync", 900)), busy(other(), "read", 100)]);
        assert_eq!(said.len(), 1, "{said:?}");
    }

    #[test]
    fn calls_without_number() {
        let many = |call, calls: u64, ns: u64| {
            let mut row = row(app(), call, 1, 0);
            row.durations = crate::series::Histogram::new();
            let mut counts = [0; probe_common::hist::BUCKETS];
            counts[probe_common::hist::bucket(ns)] = calls;
            row.durations.merge_counts(&counts, calls * ns, Some(ns));
            Row { calls, ..row }
        };
        let others = |calls| many("openat", calls, 100);
        for (what, rows, want) in [
            (
                "one call alone",
                vec![many("read", 100_000, 300)],
                Some(
                    "3f37e9702f39 app[12] calls read 10000 times a second, 300ns each on average, 100% of all calls at work: so short",
                ),
            ),
            ("a few less", vec![many("read", 99_999, 300)], None),
            ("not so short", vec![many("read", 100_000, 2_001)], None),
            ("as short", vec![many("read", 100_000, 2_000)], Some("3f37e9702f39 app[12] calls read")),
            (
                "half of all",
                vec![many("read", 100_000, 300), others(100_000)],
                Some("3f37e9702f39 app[12] calls "),
            ),
            (
                "the clock",
                vec![many("clock_gettime", 100_000, 300)],
                Some(
                    "3f37e9702f39 app[12] calls clock_gettime 10000 times a second, 300ns each on average, 100% of all calls at work: which the vDSO",
                ),
            ),
            (
                "something else",
                vec![many("getppid", 100_000, 300)],
                Some(
                    "3f37e9702f39 app[12] calls getppid 10000 times a second, 300ns each on average, 100% of all calls at work: cheap",
                ),
            ),
            (
                "a third each",
                vec![many("read", 100_000, 100), others(100_000), many("write", 100_000, 100)],
                None,
            ),
            (
                "not measured",
                vec![Row { durations: crate::series::Histogram::new(), ..many("read", 100_000, 300) }],
                None,
            ),
        ] {
            check(what, rows, want);
        }
    }

    #[test]
    fn what_was_chosen_or_lost_carries_no_shares() {
        let rows =
            || vec![failing(&[("ENOENT", 100)], busy(app(), "openat", 900)), busy(other(), "read", 100)];
        let mut account = Account::new(SyscallBy::Process, true);
        account.interval(&brought(rows()));
        let said = readings(&account, TEN, 0);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].starts_with("openat: 100 calls failed, with ENOENT, most of"), "{said:?}");
        let calls = account.work.calls;
        assert!(!readings(&of_rows(rows()), TEN, 0).is_empty());
        // Of two calls a tenth is none.
        assert!(readings(&of_rows(rows()), TEN, calls).is_empty());
    }

    #[test]
    fn nothing_is_said_to_stand_out_as_it_is() {
        let few = said(vec![busy(app(), "read", 10)]);
        assert_eq!(
            few,
            [
                "nothing stands out: no call hung, none reached a limit, and all that worked took 10.0ms of 10.0s"
            ]
        );
        let many = said(vec![busy(app(), "read", 500), busy(other(), "write", 500)]);
        assert_eq!(
            many,
            [
                "nothing stands out: no call hung, none reached a limit, and no owner and no call has most of the time"
            ]
        );
        let one = said(vec![busy(app(), "read", 900)]);
        assert_eq!(one, ["nothing stands out: no call hung, none reached a limit"]);
        assert!(said(Vec::new()).is_empty());
    }

    #[test]
    fn what_hurts_most_comes_first_and_not_too_much() {
        let mut account = of_rows(vec![
            failing(&[("EMFILE", 1)], row(app(), "accept4", 1, 1)),
            failing(&[("ENOSPC", 1)], row(app(), "write", 1, 1)),
            off_cpu(99, busy(app(), "fsync", 4_000)),
            failing(&[("ENOENT", 100)], row(app(), "openat", 100, 1)),
            failing(&[("EACCES", 100)], row(app(), "openat2", 100, 1)),
        ]);
        account.add(&Event::SyscallInFlight(in_flight("openat", 500, None)));
        let said = readings(&account, TEN, 0);
        let firsts: Vec<&str> = said.iter().filter_map(|text| text.split(' ').next()).collect();
        assert_eq!(firsts, ["1", "accept4", "write", "3f37e9702f39"], "{said:?}");
    }
}
