//! The end of `probe dns`: what it came to, by server and code, by owner and by name, and how that reads.

use std::cmp::Reverse;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use super::super::owners::OwnerKey;
use super::super::rows::{Bounded, TOP, beyond, more, sentences, table};
use super::super::text::{age, counted, cut, escape, seconds, share};
use super::account::{Account, Name, Owner, Server, Tally};
use super::reading::readings;
use crate::series::Histogram;

/// Rows of servers' codes.
const TOP_CODES: usize = 2 * TOP;
/// Characters of a name in a table.
const NAME: usize = 60;
/// Columns of numbers.
const NUMBERS: &[&str] =
    &["LOOKUPS", "ANSWERED", "FAILED", "UNANSWERED", "LATE", "SHARE", "P50", "P90", "P99", "MAX"];

/// Writes the summary: nothing, if nothing happened. `lost`: lookups that probe itself lost.
///
/// # Errors
///
/// What `out` returns.
pub fn write(out: &mut dyn Write, account: &Account, lasted: Duration, lost: u64) -> io::Result<()> {
    if account.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n── {} in {}", total(account), age(lasted))?;
    let oddities = oddities(&account.asked);
    if !oddities.is_empty() {
        writeln!(out, "{oddities}")?;
    }
    if account.is_selective {
        writeln!(out, "of those that --rcode and --slower-than let through: shares are of these alone")?;
    }
    if lost != 0 {
        writeln!(out, "lost: {}, by so many at most all figures are short", counted(lost, "record"))?;
    }
    if !account.asked.is_empty() {
        by_server(out, account)?;
        by_code(out, account)?;
        by_name(out, account)?;
        by_owner(out, "OWNER", &account.owners)?;
    }
    if !account.served.is_empty() {
        by_owner(out, "SERVED BY", &account.answerers)?;
    }
    sentences(out, &readings(account, lost))
}

fn total(account: &Account) -> String {
    let Account { asked, served, .. } = account;
    let mut parts = Vec::new();
    if !asked.is_empty() {
        parts.push(counted(asked.lookups(), "lookup"));
        let unanswered = asked.unanswered;
        parts.extend(happened([
            (asked.failed, format!("{} failed", asked.failed)),
            (unanswered, format!("{unanswered} unanswered ({})", share(unanswered, asked.lookups()))),
            (asked.late.count(), format!("{} answered late", asked.late.count())),
        ]));
    }
    parts.extend(happened([
        (served.lookups(), format!("{} served here", served.lookups())),
        (served.late.count(), format!("{} served late", served.late.count())),
        (account.waiting, format!("{} still waiting at the end", account.waiting)),
    ]));
    parts.join(", ")
}

/// What was odd about lookups; nothing, if nothing was.
fn oddities(asked: &Tally) -> String {
    let Tally { twins, retries, retries_answered, cut, tcp, fallbacks, searched, misses, .. } = asked;
    let parts = happened([
        (*retries, format!("{retries} asked again ({retries_answered} answered)")),
        (twins.lost(), counted(twins.lost(), "lost twin")),
        (*cut, format!("{} cut", counted(*cut, "answer"))),
        (*tcp, format!("{tcp} over TCP ({fallbacks} for a cut answer)")),
        (*misses, format!("{misses} of names that do not exist before {searched} found")),
    ]);
    parts.collect::<Vec<_>>().join(", ")
}

/// The texts whose count is not zero.
fn happened<const N: usize>(parts: [(u64, String); N]) -> impl Iterator<Item = String> {
    parts.into_iter().filter(|(count, _)| *count != 0).map(|(_, text)| text)
}

fn times(durations: &Histogram) -> [String; 4] {
    let of = |q| durations.quantile(q).map(seconds).unwrap_or_default();
    [of(0.5), of(0.9), of(0.99), durations.max().map(seconds).unwrap_or_default()]
}

/// What a row has after its name.
fn figures(tally: &Tally) -> [String; 10] {
    let Tally { answered, failed, unanswered, late, .. } = tally;
    let [p50, p90, p99, max] = times(answered);
    [
        tally.lookups().to_string(),
        answered.count().to_string(),
        failed.to_string(),
        unanswered.to_string(),
        share(*unanswered, tally.lookups()),
        late.count().to_string(),
        p50,
        p90,
        p99,
        max,
    ]
}

/// With the share that was not answered.
fn heading(what: &str) -> [&str; 11] {
    [what, "LOOKUPS", "ANSWERED", "FAILED", "UNANSWERED", "SHARE", "LATE", "P50", "P90", "P99", "MAX"]
}

/// Those asked most first.
fn servers(account: &Account) -> Vec<(&Option<SocketAddr>, &Server)> {
    let mut servers: Vec<_> = account.servers.rows.iter().collect();
    servers.sort_by_key(|(address, server)| (Reverse(server.tally.lookups()), **address));
    servers
}

fn by_server(out: &mut dyn Write, account: &Account) -> io::Result<()> {
    let mut table = table(heading("SERVER"), NUMBERS);
    let servers = servers(account);
    for (address, server) in servers.iter().take(TOP) {
        table.add_row([super::server(**address)].into_iter().chain(figures(&server.tally)));
    }
    writeln!(out, "\n{}", table.trim_fmt())?;
    rest(out, servers.iter().skip(TOP).map(|(_, server)| &server.tally))?;
    beyond(out, "server", servers.len(), account.servers.rest.tally.lookups(), "lookup")
}

/// What rows that are not shown come to.
fn rest<'a>(out: &mut dyn Write, rows: impl Iterator<Item = &'a Tally>) -> io::Result<()> {
    let (mut count, mut lookups, mut unanswered) = (0, 0, 0);
    for tally in rows {
        count += 1;
        lookups += tally.lookups();
        unanswered += tally.unanswered;
    }
    match count {
        0 => Ok(()),
        _ => writeln!(out, "… and {count} more with {}, {unanswered} unanswered", counted(lookups, "lookup")),
    }
}

fn by_code(out: &mut dyn Write, account: &Account) -> io::Result<()> {
    let mut rows = Vec::new();
    for (address, Server { tally, codes, .. }) in servers(account).into_iter().take(TOP) {
        let mut codes_of: Vec<(&str, &Histogram)> =
            codes.rows.iter().map(|(code, durations)| (&**code, durations)).collect();
        codes_of.sort_by_key(|(code, durations)| (Reverse(durations.count()), *code));
        if codes.rest.count() != 0 {
            codes_of.push(("others", &codes.rest));
        }
        rows.extend(codes_of.into_iter().map(|(code, durations)| (address, tally, code, durations)));
    }
    if rows.is_empty() {
        return Ok(());
    }
    let heading = ["ANSWERS OF", "CODE", "LOOKUPS", "SHARE", "P50", "P90", "P99", "MAX"];
    let mut table = table(heading, NUMBERS);
    for (address, tally, code, durations) in rows.iter().take(TOP_CODES) {
        let count = durations.count();
        let [p50, p90, p99, max] = times(durations);
        table.add_row([
            super::server(**address),
            (*code).to_owned(),
            count.to_string(),
            share(count, tally.answered.count()),
            p50,
            p90,
            p99,
            max,
        ]);
    }
    writeln!(out, "\n{}", table.trim_fmt())?;
    match rows.len().checked_sub(TOP_CODES) {
        Some(more @ 1..) => writeln!(out, "… and {more} more"),
        Some(0) | None => Ok(()),
    }
}

fn by_name(out: &mut dyn Write, account: &Account) -> io::Result<()> {
    let mut names: Vec<(&String, &Name)> = account.names.rows.iter().collect();
    names.sort_by_key(|(name, row)| (Reverse(row.longest), *name));
    let mut table = table(["SLOWEST NAMES", "LOOKUPS", "UNANSWERED", "P50", "MAX"], NUMBERS);
    for (name, Name { answered, unanswered, longest: _ }) in names.iter().take(TOP) {
        let [p50, _, _, max] = times(answered);
        table.add_row([
            cut(&escape(name), NAME).into_owned(),
            (answered.count() + unanswered).to_string(),
            unanswered.to_string(),
            p50,
            max,
        ]);
    }
    writeln!(out, "\n{}", table.trim_fmt())?;
    if account.names.is_full {
        // Which they are is certain, how often they were asked for is not.
        return writeln!(
            out,
            "of more names than the {} that are kept: figures of one may begin with its first slow lookup",
            names.len()
        );
    }
    more(out, names.len())
}

fn by_owner(out: &mut dyn Write, what: &str, owners: &Bounded<OwnerKey, Owner>) -> io::Result<()> {
    let mut rows: Vec<(String, &Tally)> =
        owners.rows.iter().map(|(key, owner)| (key.name(owner.processes), &owner.tally)).collect();
    rows.sort_by(|(a, left), (b, right)| right.lookups().cmp(&left.lookups()).then_with(|| a.cmp(b)));
    let mut table = table(heading(what), NUMBERS);
    for (name, tally) in rows.iter().take(TOP) {
        table.add_row([name.clone()].into_iter().chain(figures(tally)));
    }
    writeln!(out, "\n{}", table.trim_fmt())?;
    rest(out, rows.iter().skip(TOP).map(|(_, tally)| *tally))?;
    beyond(out, "owner", rows.len(), owners.rest.tally.lookups(), "lookup")
}

#[cfg(test)]
mod tests {
    use super::super::super::owners::tests::{CONTAINER, who};
    use super::super::account::{NAMES, SERVERS};
    use super::super::tests::{answered, late, served, unanswered, with_code};
    use super::*;
    use crate::signals::Event;
    use crate::signals::dns::{Lookup, Transport};

    const SERVER: &str = "10.96.0.10:53";

    fn written(account: &Account, lost: u64) -> String {
        let mut out = Vec::new();
        write(&mut out, account, Duration::from_millis(34_200), lost).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn of(lookups: impl IntoIterator<Item = Lookup>) -> Account {
        let mut account = Account::new(false);
        lookups.into_iter().for_each(|lookup| account.add(&Event::Lookup(lookup)));
        account
    }

    #[test]
    fn nothing_has_no_summary() {
        assert_eq!(written(&Account::new(false), 0), "");
        assert_eq!(written(&Account::new(true), 3), "");
    }

    #[test]
    fn only_what_happened_is_said() {
        let want = "
── 1 lookup in 34.2s

SERVER      LOOKUPS  ANSWERED  FAILED  UNANSWERED  SHARE  LATE     P50     P90     P99     MAX
10.96.0.10        1         1       0           0     0%     0  10.0ms  10.0ms  10.0ms  10.0ms

ANSWERS OF  CODE     LOOKUPS  SHARE     P50     P90     P99     MAX
10.96.0.10  NOERROR        1   100%  10.0ms  10.0ms  10.0ms  10.0ms

SLOWEST NAMES  LOOKUPS  UNANSWERED     P50     MAX
www.test             1           0  10.0ms  10.0ms

OWNER       LOOKUPS  ANSWERED  FAILED  UNANSWERED  SHARE  LATE     P50     P90     P99     MAX
curl[4711]        1         1       0           0     0%     0  10.0ms  10.0ms  10.0ms  10.0ms
";
        let text = written(&of([answered("www.test", SERVER, 10)]), 0);
        assert_eq!(text, want, "{text}");
    }

    #[test]
    fn everything_at_once() {
        let www = || answered("www.test", SERVER, 10);
        let dnsmasq = || who("dnsmasq", 9, "/");
        let inside = || Lookup { who: who("app", 12, CONTAINER), ..www() };
        let account = of([
            www(),
            Lookup { who: who("curl", 4_712, "/"), ..with_code("NXDOMAIN", www()) },
            with_code("SERVFAIL", answered("broken.test", "127.0.0.53:5353", 2_000)),
            Lookup { attempt: 2, ..inside() },
            Lookup { attempt: 3, ..unanswered(answered("silent.test", SERVER, 5_000)) },
            late(Lookup { attempt: 3, ..answered("silent.test", SERVER, 6_000) }),
            Lookup { qtype: "AAAA".into(), lost_twin: true, ..unanswered(inside()) },
            Lookup { truncated: true, ..www() },
            Lookup { transport: Transport::Tcp, fallback: true, ..www() },
            Lookup { search_misses: 6, ..inside() },
            served(dnsmasq(), www()),
            served(dnsmasq(), unanswered(www())),
            served(dnsmasq(), late(www())),
        ]);
        let want = "
── 9 lookups, 1 failed, 2 unanswered (22%), 1 answered late, 2 served here, 1 served late in 34.2s
2 asked again (1 answered), 1 lost twin, 1 answer cut, 1 over TCP (1 for a cut answer), 6 of names that do not exist before 1 found
lost: 1 record, by so many at most all figures are short

SERVER           LOOKUPS  ANSWERED  FAILED  UNANSWERED  SHARE  LATE     P50     P90     P99     MAX
10.96.0.10             8         6       0           2    25%     1  10.0ms  10.0ms  10.0ms  10.0ms
127.0.0.53:5353        1         1       1           0     0%     0   2.00s   2.00s   2.00s   2.00s

ANSWERS OF       CODE      LOOKUPS  SHARE     P50     P90     P99     MAX
10.96.0.10       NOERROR         5    83%  10.0ms  10.0ms  10.0ms  10.0ms
10.96.0.10       NXDOMAIN        1    17%  10.0ms  10.0ms  10.0ms  10.0ms
127.0.0.53:5353  SERVFAIL        1   100%   2.00s   2.00s   2.00s   2.00s

SLOWEST NAMES  LOOKUPS  UNANSWERED     P50     MAX
silent.test          1           1
broken.test          1           0   2.00s   2.00s
www.test             7           1  10.0ms  10.0ms

OWNER                 LOOKUPS  ANSWERED  FAILED  UNANSWERED  SHARE  LATE     P50     P90     P99     MAX
curl[…]                     6         5       1           1    17%     1  10.1ms   2.00s   2.00s   2.00s
3f37e9702f39 app[12]        3         2       0           1    33%     0  10.0ms  10.0ms  10.0ms  10.0ms

SERVED BY   LOOKUPS  ANSWERED  FAILED  UNANSWERED  SHARE  LATE     P50     P90     P99     MAX
dnsmasq[9]        2         1       0           1    50%     1  10.0ms  10.0ms  10.0ms  10.0ms
";
        let text = written(&account, 1);
        assert_eq!(text, want, "{text}");
    }

    #[test]
    fn what_was_chosen_says_so_and_only_servers_of_this_host_need_no_asker() {
        let mut account = Account::new(true);
        account.add(&Event::Lookup(served(who("unbound", 9, "/"), answered("www.test", SERVER, 10))));
        let text = written(&account, 0);
        assert!(
            text.starts_with(
                "\n── 1 served here in 34.2s\nof those that --rcode and --slower-than let through"
            ),
            "{text}"
        );
        assert!(
            !text.contains("SERVER ") && !text.contains("OWNER ") && text.contains("\nSERVED BY "),
            "{text}"
        );
    }

    #[test]
    fn long_tables_are_cut_and_say_so() {
        let mut account = Account::new(false);
        for number in 0..SERVERS + 20 {
            let (server, name) =
                (format!("10.0.{}.{}:53", number / 256, number % 256), format!("n{number:03}.test"));
            let comm = format!("w{number:03}");
            let lookup =
                Lookup { who: who(&comm, 1, "/"), ..answered(&name, &server, 1_000 - number as u64) };
            // The lower the number the more.
            for _ in 0..=(SERVERS + 20 - number) / 100 {
                account.add(&Event::Lookup(lookup.clone()));
            }
            account.add(&Event::Lookup(unanswered(lookup)));
        }
        let text = written(&account, 0);
        let rows = |heading: &str| {
            let rows = text.lines().skip_while(|line| !line.starts_with(heading)).skip(1);
            rows.take_while(|line| !line.is_empty()).map(str::to_owned).collect::<Vec<_>>()
        };
        for (heading, first, most) in [
            ("SERVER ", "10.0.0.0 ", TOP),
            ("ANSWERS OF", "10.0.0.0 ", TOP_CODES),
            ("SLOWEST NAMES", "n000.test ", TOP),
            ("OWNER ", "w000[1] ", TOP),
        ] {
            let rows = rows(heading);
            assert!(rows[0].starts_with(first), "{heading}: {text}");
            let told = rows.iter().filter(|row| !row.starts_with('…') && !row.starts_with("others")).count();
            assert!(told == TOP && told <= most, "{heading}: {text}");
        }
        assert_eq!(text.matches(" more with ").count(), 2, "{text}");
        for part in [
            "others, after the first 256 servers: 40 lookups\n",
            "others, after the first 256 owners: 40 lookups\n",
            "… and 266 more\n",
            "246 unanswered\n",
        ] {
            assert!(text.contains(part), "no {part:?}: {text}");
        }
    }

    #[test]
    fn names_that_are_gone_are_no_secret() {
        let names = |count: usize| (0..count).map(|number| answered(&format!("n{number}.test"), SERVER, 3));
        assert!(!written(&of(names(NAMES)), 0).contains("of more names"));
        assert!(written(&of(names(NAMES + 1)), 0).contains("of more names than the 512 that are kept"));
    }

    #[test]
    fn strangers_steer_no_terminal() {
        let hostile = "a\u{1b}[2J\n\u{202e}.example";
        let lookup = Lookup { who: who(hostile, 7, CONTAINER), ..unanswered(answered(hostile, SERVER, 1)) };
        let long = answered(&"\u{9b}".repeat(255), SERVER, 2);
        let text = written(&of([lookup.clone(), lookup.clone(), lookup.clone(), lookup, long]), 0);
        assert!(!text.contains(['\u{1b}', '\u{202e}', '\u{9b}']), "{text:?}");
        assert!(text.contains("\na\\u{1b}[2J\\u{a}\\u{202e}.example "), "{text}");
        assert!(text.contains("3f37e9702f39 a\\u{1b}[2J"), "{text}");
        assert!(text.contains("\\u{9b}\\u{9b…  "), "{text}");
    }
}
