//! Calls that hang, limits that are reached, and calls that fail.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::super::super::owners::{self, owner};
use super::super::super::text::{counted, escape, is_most, percent};
use super::super::account::{Account, Tally};
use super::super::{about, so_far};
use super::words::{is_ordinary, limit, meaning, place};
use super::{SEVERAL, of};
use crate::signals::syscalls::InFlight;

/// Calls that fail: so many, and so many hundredths of the calls. Where EAGAIN is the end of what there is to read, every other
/// call ends so.
const ENOUGH_FAILED: u64 = 100;
const FAILED_PERCENT: u64 = 50;
const AGAIN_PERCENT: u64 = 75;

// Calls that hang.

pub(super) fn hang(account: &Account) -> Option<String> {
    let Account { hung, in_flight, hangs, .. } = account;
    let longest = hung.values().max_by_key(|call| (call.duration, call.tid));
    let Some(InFlight { who, syscall, duration, is_older, wchan, subject, .. }) = longest else {
        return (*in_flight != 0).then(|| {
            format!(
                "{} of work had not returned at the end for longer than allowed",
                counted(*in_flight, "call")
            )
        });
    };
    // Where most of them are, if they are in one place.
    let mut places: BTreeMap<(&str, Option<&str>), u64> = BTreeMap::new();
    for call in hung.values() {
        *places.entry((call.syscall, call.wchan.as_deref())).or_default() += 1;
    }
    let here = places.get(&(*syscall, wchan.as_deref())).copied().unwrap_or(0);
    let all = u64::try_from(hung.len()).unwrap_or(u64::MAX);
    let alike = if all > 1 && is_most(here, all) {
        format!(", {here} of them in the same place")
    } else {
        String::new()
    };
    let owner = owner(who, owners::OWNER);
    let file = about(subject);
    let file = if file.is_empty() { file } else { format!(" ({file})") };
    let at = wchan.as_deref().map(|wchan| {
        let meaning = place(wchan).map(|meaning| format!(": {meaning}")).unwrap_or_default();
        format!(", in {}{meaning}", escape(wchan))
    });
    let count = counted(*hangs, "call");
    let still = if *in_flight == 0 { String::new() } else { format!(", {in_flight} at the end still") };
    Some(format!(
        "{count} hung{still}{alike}; the longest for {}: {syscall} of {owner}{file}{}",
        so_far(*duration, *is_older),
        at.unwrap_or_default()
    ))
}

// Limits.

pub(super) fn limits(account: &Account) -> Vec<String> {
    let mut found: Vec<(u64, &str, &str, &'static str)> = Vec::new();
    for ((call, _), spread) in &account.calls.rows {
        for (errno, count) in &spread.tally.errors.rows {
            found.extend(limit(call, errno).map(|meaning| (*count, *call, &**errno, meaning)));
        }
    }
    found.sort_by_key(|(count, call, errno, _)| (Reverse(*count), *call, *errno));
    let sentence = |(count, call, errno, meaning): (u64, &str, &str, &str)| {
        let who = failing(account, call, errno).map(|who| format!(" of {who}")).unwrap_or_default();
        let times = counted(count, "time");
        format!("{call}{who} failed {times} with {errno}: {meaning}")
    };
    found.into_iter().take(SEVERAL).map(sentence).collect()
}

/// The owner who has most of an error.
fn failing(account: &Account, call: &str, errno: &str) -> Option<String> {
    let of_pair = |tally: &Tally| tally.errors.rows.get(errno).copied().unwrap_or(0);
    if account.owners.rows.len() < 2 {
        return None;
    }
    let pairs = || account.pairs.rows.iter().filter(|((_, name), _)| *name == call);
    let waiting = account.calls.rows.get(&(call, true)).map_or(0, |spread| of_pair(&spread.tally));
    let all = pairs().map(|(_, tally)| of_pair(tally)).sum::<u64>() + of_pair(&account.pairs.rest) + waiting;
    let ((whose, _), tally) = pairs().max_by_key(|(_, tally)| of_pair(tally))?;
    is_most(of_pair(tally), all).then(|| of(account, whose))
}

// Calls that fail.

pub(super) fn fail(account: &Account) -> Vec<String> {
    // A call may work at times and wait at others.
    let mut by_call: BTreeMap<&str, (u64, u64, BTreeMap<&str, u64>)> = BTreeMap::new();
    for ((call, _), spread) in &account.calls.rows {
        let (calls, failed, errors) = by_call.entry(call).or_default();
        let Tally { calls: more, errors: names, .. } = &spread.tally;
        *calls += more;
        *failed += names.rest;
        for (errno, count) in names.rows.iter().filter(|(errno, _)| !is_ordinary(call, errno)) {
            *failed += count;
            *errors.entry(errno).or_default() += count;
        }
    }
    let mut failing_calls: Vec<_> = by_call.into_iter().collect();
    failing_calls.sort_by_key(|(call, (_, failed, _))| (Reverse(*failed), *call));
    let mut explained = None;
    let sentence = |(call, (calls, failed, errors)): (&str, (u64, u64, BTreeMap<&str, u64>))| {
        let (errno, count) = errors.into_iter().max_by_key(|(errno, count)| (*count, Reverse(*errno)))?;
        let least = if errno == "EAGAIN" { AGAIN_PERCENT } else { FAILED_PERCENT };
        let often = account.is_selective || percent(failed, calls) >= least;
        let is_told =
            failed >= ENOUGH_FAILED && often && is_most(count, failed) && limit(call, errno).is_none();
        is_told.then(|| {
            let who = failing(account, call, errno).map(|who| format!(", most of {who}")).unwrap_or_default();
            // Once is enough.
            let meaning =
                meaning(call, errno).filter(|meaning| explained.replace(*meaning) != Some(*meaning));
            let meaning = meaning.map(|meaning| format!(": {meaning}")).unwrap_or_default();
            let share = if account.is_selective {
                format!("{} failed", counted(failed, "call"))
            } else {
                format!("{failed} of {calls} calls ({}%) failed", percent(failed, calls))
            };
            let with =
                if count == failed { format!("with {errno}") } else { format!("{count} with {errno}") };
            format!("{call}: {share}, {with}{who}{meaning}")
        })
    };
    failing_calls.into_iter().filter_map(sentence).take(SEVERAL).collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{failing, file, in_flight, row, waiting};
    use super::super::readings;
    use super::super::tests::{TEN, app, check, of_rows, other, said};
    use super::*;
    use crate::signals::Event;
    use crate::signals::syscalls::{Row, Summary};

    #[test]
    fn calls_that_fail() {
        let fails = |call, calls, errors: &[(&'static str, u64)]| {
            vec![failing(errors, row(app(), call, calls, 1)), row(other(), "getppid", 5, 1)]
        };
        for (what, rows, want) in [
            (
                "half",
                fails("openat", 200, &[("ENOENT", 100)]),
                Some(
                    "openat: 100 of 200 calls (50%) failed, with ENOENT, most of 3f37e9702f39 app[12]: names that do not exist",
                ),
            ),
            ("less than half", fails("openat", 203, &[("ENOENT", 100)]), None),
            ("few", fails("openat", 99, &[("ENOENT", 99)]), None),
            (
                "mostly one",
                fails("openat", 200, &[("ENOENT", 75), ("EACCES", 25)]),
                Some("openat: 100 of 200 calls (50%) failed, 75 with ENOENT"),
            ),
            ("not one", fails("openat", 200, &[("ENOENT", 74), ("EACCES", 26)]), None),
            ("the end of what there is to read", fails("read", 200, &[("EAGAIN", 148)]), None),
            (
                "asked again and again",
                fails("read", 200, &[("EAGAIN", 150)]),
                Some("read: 150 of 200 calls (75%) failed, with EAGAIN"),
            ),
            (
                "signals",
                fails("write", 200, &[("ERESTARTSYS", 150)]),
                Some(
                    "write: 150 of 200 calls (75%) failed, with ERESTARTSYS, most of 3f37e9702f39 app[12]: signals interrupt it",
                ),
            ),
            (
                "no name of its own",
                fails("write", 200, &[("EXDEV", 150)]),
                Some("write: 150 of 200 calls (75%) failed, with EXDEV, most of 3f37e9702f39 app[12]"),
            ),
            ("an answer like any other", fails("connect", 200, &[("EINPROGRESS", 200)]), None),
            (
                "a time that is up",
                vec![waiting(failing(&[("ETIMEDOUT", 200)], row(app(), "futex", 200, 1)))],
                None,
            ),
            (
                "another's",
                fails("futex", 200, &[("EAGAIN", 150)]),
                Some(
                    "futex: 150 of 200 calls (75%) failed, with EAGAIN, most of 3f37e9702f39 app[12]: what it was to wait for had changed",
                ),
            ),
        ] {
            check(what, rows, want);
        }
        // What two have in common is explained once.
        let of = |call| failing(&[("ENOENT", 100)], row(app(), call, 100, 1));
        let both = said(vec![of("access"), of("openat")]);
        assert!(both[0].contains("with ENOENT: names") && both[1].ends_with("with ENOENT"), "{both:?}");
        // Working and waiting calls of a name are one call, and no owner is named who is the only one.
        let of = |waits| Row { waits, ..failing(&[("EAGAIN", 80)], row(app(), "recvfrom", 100, 1)) };
        check(
            "both",
            vec![of(true), of(false)],
            Some("recvfrom: 160 of 200 calls (80%) failed, with EAGAIN: there was nothing"),
        );
    }

    #[test]
    fn limits_are_told_from_the_first_time_on() {
        for (call, errno, want) in [
            (
                "accept4",
                "EMFILE",
                Some("accept4 failed 1 time with EMFILE: it has as many files open as it may"),
            ),
            (
                "inotify_add_watch",
                "ENOSPC",
                Some("inotify_add_watch failed 1 time with ENOSPC: fs.inotify.max_user_watches"),
            ),
            ("write", "ENOSPC", Some("write failed 1 time with ENOSPC: the file system is full")),
            ("bpf", "ENOSPC", None),
            ("fsync", "EIO", Some("fsync failed 1 time with EIO: a disk")),
            ("ptrace", "EIO", None),
            ("write", "EDQUOT", Some("write failed 1 time with EDQUOT: a quota")),
            ("openat", "ENFILE", Some("openat failed 1 time with ENFILE: the host")),
        ] {
            check(errno, vec![failing(&[(errno, 1)], row(app(), call, 10, 1))], want);
        }
        let rows =
            vec![failing(&[("EMFILE", 200)], row(app(), "accept4", 200, 1)), row(other(), "read", 1, 1)];
        let said = said(rows);
        assert_eq!(said.len(), 1, "said once: {said:?}");
        assert!(
            said[0].starts_with("accept4 of 3f37e9702f39 app[12] failed 200 times with EMFILE"),
            "{said:?}"
        );
    }

    #[test]
    fn calls_that_hang() {
        let hang = |tid: u32, ms: u64, wchan: Option<&str>| {
            Event::SyscallInFlight(InFlight {
                tid,
                subject: file("/run/x"),
                ..in_flight("openat", ms, wchan)
            })
        };
        let fifo = Some("wait_for_partner");
        for (what, events, at_end, want) in [
            ("none", vec![], 0, None),
            ("none that was told of", vec![], 2, Some("2 calls of work had not returned at the end")),
            (
                "one",
                vec![hang(1, 500, fifo)],
                1,
                Some(
                    "1 call hung, 1 at the end still; the longest for 500ms: openat of postgres[4711] (/run/x), in wait_for_partner: nobody has opened the other end",
                ),
            ),
            (
                "gone",
                vec![hang(1, 500, None)],
                0,
                Some("1 call hung; the longest for 500ms: openat of postgres[4711] (/run/x)"),
            ),
            (
                "somewhere",
                vec![hang(1, 500, Some("do_something"))],
                0,
                Some(
                    "1 call hung; the longest for 500ms: openat of postgres[4711] (/run/x), in do_something",
                ),
            ),
            (
                "most in one place",
                vec![hang(1, 500, fifo), hang(2, 400, fifo), hang(3, 300, fifo), hang(4, 200, None)],
                0,
                Some("4 calls hung, 3 of them in the same place; the longest for 500ms"),
            ),
            (
                "not most",
                vec![hang(1, 500, fifo), hang(2, 400, None), hang(3, 300, fifo)],
                0,
                Some("3 calls hung; the longest"),
            ),
        ] {
            let mut account = of_rows(vec![row(app(), "getppid", 1, 1)]);
            account.interval(&Summary { in_flight: at_end, ..Summary::default() });
            events.iter().for_each(|event| account.add(event));
            let said = readings(&account, TEN, 0);
            match want {
                Some(want) => assert!(said[0].starts_with(want), "{what}: {said:?}"),
                None => assert!(said[0].starts_with("nothing"), "{what}: {said:?}"),
            }
        }
    }
}
