//! What the calls of a run say to who has to act on them, in a sentence, and nothing where the numbers do not carry one.
//!
//! Subjects: calls that hang; limits that are reached; where time goes; calls without number; calls that fail; calls that sleep.
//! Rows that were chosen for their errors carry none that speaks of a share of all.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use super::super::text::{age, counted, escape, is_most, percent, rate, seconds, too_much_is_missing};
use super::account::{Account, Tally, Whose, nanoseconds};
use super::summary::name;
use super::{about, off_cpu_text, so_far};
use crate::signals::syscalls::InFlight;

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
/// Calls that fail: so many, and so many hundredths of the calls. Where EAGAIN is the end of what there is to read, every other
/// call ends so.
const ENOUGH_FAILED: u64 = 100;
const FAILED_PERCENT: u64 = 50;
const AGAIN_PERCENT: u64 = 75;
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

// Calls that hang.

/// Where a call waits, and for whom. Functions are of the kernel's, from 5.10 on; the first that fits.
const PLACES: &[(&[&str], &str)] = &[
    (&["wait_for_partner", "fifo_open"], "nobody has opened the other end of the FIFO"),
    (&["pipe_read", "pipe_wait_readable", "anon_pipe_read", "fifo_pipe_read"], "nobody writes into the pipe"),
    (
        &["pipe_write", "pipe_wait_writable", "anon_pipe_write", "fifo_pipe_write"],
        "nobody reads what is in the pipe, and it is full",
    ),
    (&["request_wait_answer", "fuse_"], "the server of the FUSE file system does not answer"),
    (&["rpc_wait_bit_killable", "nfs_", "nfs4_"], "the NFS server does not answer"),
    (
        &["flock_lock_inode_wait", "posix_lock_inode_wait", "locks_lock_inode_wait", "fcntl_setlk"],
        "somebody else holds the lock on the file",
    ),
    (
        &["rwsem_down_", "__mutex_lock", "mutex_lock", "down_read", "down_write"],
        "another thread holds a lock of the kernel's",
    ),
    (
        &["jbd2_", "wait_transaction_locked", "xlog_", "xfs_log_"],
        "the file system's journal waits for the disk",
    ),
    (
        &[
            "folio_wait_bit_",
            "wait_on_page_bit_",
            "bit_wait_io",
            "submit_bio_wait",
            "blk_mq_get_tag",
            "blkdev_",
            "io_schedule",
            "wait_on_buffer",
        ],
        "the disk, or what stands for it, does not answer",
    ),
    (
        &["sk_stream_wait_memory", "sock_alloc_send_pskb", "sock_wait_for_wmem"],
        "the peer does not take what is sent",
    ),
    (
        &[
            "sk_wait_data",
            "tcp_recvmsg",
            "unix_stream_",
            "__skb_wait_for_more_packets",
            "inet_wait_for_connect",
        ],
        "the peer does not answer",
    ),
    (&["n_tty_read"], "nobody types at the terminal"),
];

/// What a place says. None: its name has to do.
fn place(wchan: &str) -> Option<&'static str> {
    let fits = |names: &[&str]| {
        names.iter().any(|name| if name.ends_with('_') { wchan.starts_with(name) } else { wchan == *name })
    };
    PLACES.iter().find(|(names, _)| fits(names)).map(|(_, meaning)| *meaning)
}

fn hang(account: &Account) -> Option<String> {
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
    let owner = super::super::owners::owner(who, super::super::owners::OWNER);
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

/// Errors that say that something is used up or broken, whoever gets them.
fn limit(call: &str, errno: &str) -> Option<&'static str> {
    match (call, errno) {
        ("inotify_init" | "inotify_init1", "EMFILE") => {
            Some("fs.inotify.max_user_instances is reached, or the process's limit of open files")
        }
        ("inotify_add_watch", "ENOSPC") => Some("fs.inotify.max_user_watches is reached"),
        ("epoll_ctl", "ENOSPC") => Some("fs.epoll.max_user_watches is reached"),
        (_, "EMFILE") => Some("it has as many files open as it may (ulimit -n, LimitNOFILE=), or leaks them"),
        (_, "ENFILE") => Some("the host has as many files open as fs.file-max lets it"),
        (
            "write" | "pwrite64" | "writev" | "pwritev" | "pwritev2" | "fallocate" | "ftruncate" | "open"
            | "openat" | "openat2" | "creat" | "mkdir" | "mkdirat" | "symlink" | "symlinkat" | "link"
            | "linkat" | "rename" | "renameat" | "renameat2" | "copy_file_range" | "sendfile" | "splice"
            | "fsync" | "fdatasync" | "close",
            "ENOSPC",
        ) => Some("the file system is full, of data or of inodes (df, df -i)"),
        (_, "EDQUOT") => Some("a quota is used up"),
        (
            "read" | "pread64" | "readv" | "write" | "pwrite64" | "writev" | "fsync" | "fdatasync"
            | "sync_file_range" | "msync" | "getdents64" | "openat" | "newfstatat" | "statx",
            "EIO",
        ) => {
            Some("a disk, a file system or a server of one reports an error (dmesg), or a terminal has gone")
        }
        _ => None,
    }
}

fn limits(account: &Account) -> Vec<String> {
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

// Calls that fail.

/// Errors that are an answer like any other.
fn is_ordinary(call: &str, errno: &str) -> bool {
    matches!(
        (call, errno),
        ("connect", "EINPROGRESS")
            | ("futex" | "futex_wait" | "futex_waitv", "ETIMEDOUT")
            | ("rt_sigtimedwait" | "semtimedop", "EAGAIN")
            | ("wait4" | "waitid", "ECHILD")
            | ("ioctl", "ENOTTY")
            | ("readlink" | "readlinkat", "EINVAL")
    )
}

/// What an error says about who gets it time and again.
fn meaning(call: &str, errno: &str) -> Option<&'static str> {
    let is_restart = errno == "EINTR" || errno.starts_with("ERESTART");
    match (call, errno) {
        ("futex" | "futex_wait", "EAGAIN") => {
            Some("what it was to wait for had changed already: threads contend for a lock")
        }
        (_, "EAGAIN") => Some(
            "there was nothing to be had yet, and it was asked again instead of waited for (epoll, poll)",
        ),
        (_, "ENOENT") => Some(
            "names that do not exist, as where a search path is gone through (libraries, modules, headers, locales)",
        ),
        ("close", "EBADF") => Some(
            "it closes what is not open, as who closes all descriptors one by one (close_range does it in one call)",
        ),
        (_, "EBADF") => Some("it uses descriptors that are not open"),
        (_, "EACCES" | "EPERM") => {
            Some("it may not: permissions, capabilities, a security module or a sandbox")
        }
        (_, "ENOSYS") => Some("this kernel, or a sandbox, does not have it, and it is tried each time"),
        (_, "EPIPE" | "ECONNRESET") => Some("the other end has gone"),
        (_, "ECONNREFUSED") => Some("nobody listens there"),
        (_, "ETIMEDOUT") => Some("nobody answered in time"),
        _ if is_restart => Some("signals interrupt it: timers, profilers, children that end"),
        _ => None,
    }
}

fn fail(account: &Account) -> Vec<String> {
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
    let sentence = |(call, (calls, failed, errors)): (&str, (u64, u64, BTreeMap<&str, u64>))| {
        let (errno, count) = errors.into_iter().max_by_key(|(errno, count)| (*count, Reverse(*errno)))?;
        let least = if errno == "EAGAIN" { AGAIN_PERCENT } else { FAILED_PERCENT };
        let often = account.is_selective || percent(failed, calls) >= least;
        let is_told =
            failed >= ENOUGH_FAILED && often && is_most(count, failed) && limit(call, errno).is_none();
        is_told.then(|| {
            let who = failing(account, call, errno).map(|who| format!(", most of {who}")).unwrap_or_default();
            let meaning = meaning(call, errno).map(|meaning| format!(": {meaning}")).unwrap_or_default();
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
mod tests {
    use super::super::super::owners::tests::{CONTAINER, who};
    use super::super::tests::{brought, failing, file, in_flight, off_cpu, row, waiting};
    use super::*;
    use crate::config::SyscallBy;
    use crate::signals::syscalls::{Row, Summary};
    use crate::signals::{Event, Who};

    const TEN: Duration = Duration::from_secs(10);

    fn app() -> Who {
        who("app", 12, CONTAINER)
    }

    fn other() -> Who {
        who("other", 13, "/")
    }

    fn of_rows(rows: Vec<Row>) -> Account {
        let mut account = Account::new(SyscallBy::Process, false);
        account.interval(&brought(rows));
        account
    }

    fn said(rows: Vec<Row>) -> Vec<String> {
        readings(&of_rows(rows), TEN, 0)
    }

    /// So many milliseconds in one call.
    fn busy(who: Who, syscall: &'static str, ms: u64) -> Row {
        row(who, syscall, 1, ms * 1_000)
    }

    /// What is said begins so; or nothing stands out.
    fn check(what: &str, rows: Vec<Row>, want: Option<&str>) {
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
        for (wchan, want) in [
            ("fuse_simple_request", Some("the server of the FUSE file system does not answer")),
            ("folio_wait_bit_common", Some("the disk, or what stands for it, does not answer")),
            ("jbd2_log_wait_commit", Some("the file system's journal waits for the disk")),
            ("pipe_readable", None),
            ("wait_woken", None),
        ] {
            assert_eq!(place(wchan), want, "{wchan}");
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
