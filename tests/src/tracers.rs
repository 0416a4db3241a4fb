//! The peers of `probe syscalls`, as commands in front of another, and what they say: `strace -c`, `perf trace -s`, `perf stat`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

/// The Debian packages.
pub const PACKAGES: &str = "install strace and linux-perf";
/// perf asks tracefs, which need not be mounted: so it is, for itself alone.
const WITH_TRACEFS: &str = "[ -e /sys/kernel/tracing/events ] || mount -t tracefs none /sys/kernel/tracing";
const STAT: &str = r#"exec perf stat -x, -e raw_syscalls:sys_enter,raw_syscalls:sys_exit -o "$@""#;
/// In two steps: `perf trace -s` by itself now and then loses a call, and forgets what a thread did before it is told of the thread.
const TRACE: &str = r#"report=$1; shift; perf trace record -q -o "$report.data" "$@" && exec perf trace -s -i "$report.data" -o "$report""#;

/// What was counted of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Count {
    /// Calls that returned, as the tracer sees it.
    pub calls: i64,
    /// Those of them that failed.
    pub errors: i64,
    /// How long they took together.
    pub seconds: f64,
}

/// By name of the call.
pub type Counts = BTreeMap<String, Count>;

/// `strace`, following children, with the time on the wall; its table goes to `report`.
#[must_use]
pub fn strace(report: &Path) -> Command {
    let mut command = Command::new("strace");
    command.args(["-c", "-w", "-f", "-o"]).arg(report);
    command
}

/// `perf trace -s`, as [`strace`].
#[must_use]
pub fn perf_trace(report: &Path) -> Command {
    perf(TRACE, report)
}

/// `perf stat` of entries to calls and exits.
#[must_use]
pub fn perf_stat(report: &Path) -> Command {
    perf(STAT, report)
}

fn perf(script: &str, report: &Path) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &format!("{WITH_TRACEFS}; {script}"), "perf"]).arg(report);
    command
}

/// Reads the tables of `strace -c`: one for each ABI that was used. A name has one row in both.
///
/// # Errors
///
/// It says nothing.
pub fn read_strace(text: &str) -> Result<Counts> {
    let mut counts = Counts::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        // share, seconds, µs a call, calls[, errors], name
        let (calls, errors, name) = match words[..] {
            [_, _, _, calls, name] => (calls, "0", name),
            [_, _, _, calls, errors, name] => (calls, errors, name),
            _ => continue,
        };
        let (Ok(calls), Ok(errors)) = (calls.parse::<i64>(), errors.parse::<i64>()) else { continue };
        if name == "total" {
            continue;
        }
        let seconds: f64 = words.get(1).context("no seconds")?.parse()?;
        let count = counts.entry(name.to_owned()).or_default();
        *count = Count {
            calls: count.calls + calls,
            errors: count.errors + errors,
            seconds: count.seconds + seconds,
        };
    }
    (!counts.is_empty()).then_some(counts).with_context(|| format!("no table of strace: {text}"))
}

/// Reads the tables of `perf trace -s`, one a thread, added up by the name that the thread had last.
///
/// # Errors
///
/// It says nothing, or lost something.
pub fn read_perf_trace(text: &str) -> Result<BTreeMap<String, Counts>> {
    let mut tables: BTreeMap<String, Counts> = BTreeMap::new();
    let mut comm = None;
    for line in text.lines() {
        // a (15380), 66 events, 41.8%
        if let Some((head, _)) = line.split_once(" events, ")
            && let Some((name, _)) = head.rsplit_once(" (")
        {
            comm = Some(name.trim().to_owned());
            continue;
        }
        // name, calls, errors, total, least, mean and most in ms, deviation
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, calls, errors, total, _, _, _, _] = words[..] else { continue };
        let (Ok(calls), Ok(errors), Ok(total)) =
            (calls.parse::<i64>(), errors.parse::<i64>(), total.parse::<f64>())
        else {
            continue;
        };
        let comm = comm.clone().context("a row before the first table")?;
        let count = tables.entry(comm).or_default().entry(name.to_owned()).or_default();
        *count = Count {
            calls: count.calls + calls,
            errors: count.errors + errors,
            seconds: count.seconds + total / 1_000.0,
        };
    }
    anyhow::ensure!(!text.contains("LOST"), "perf lost something: {text}");
    (!tables.is_empty()).then_some(tables).with_context(|| format!("no table of perf trace: {text}"))
}

/// Reads entries and exits out of `perf stat -x,`.
///
/// # Errors
///
/// One is not there.
pub fn read_perf_stat(text: &str) -> Result<(i64, i64)> {
    let of = |event: &str| -> Result<i64> {
        let line =
            text.lines().find(|line| line.contains(event)).with_context(|| format!("no {event}: {text}"))?;
        Ok(line.split(',').next().context("no value")?.parse()?)
    };
    Ok((of("raw_syscalls:sys_enter")?, of("raw_syscalls:sys_exit")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_strace() {
        let text = "\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.000280          55         5           brk
 40.00    0.000278         277         1         1 close
------ ----------- ----------- --------- --------- ----------------
100.00    0.000558          69         6         1 total
System call usage summary for 32 bit mode:
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 77.47    0.000164          54         3         2 close
------ ----------- ----------- --------- --------- ----------------
100.00    0.000211          52         4         1 total
";
        let counts = read_strace(text).unwrap();
        let close = counts["close"];
        assert_eq!((counts.len(), close.calls, close.errors), (2, 4, 3));
        assert_eq!(counts["brk"], Count { calls: 5, errors: 0, seconds: 0.000_28 });
        assert!(read_strace("").is_err());
    }

    #[test]
    fn tables_of_perf() {
        let text = "
 Summary of events:

 two words (15380), 66 events, 41.8%

   syscall            calls  errors  total       min       avg       max       stddev
                                     (msec)    (msec)    (msec)    (msec)        (%)
   --------------- --------  ------ -------- --------- --------- ---------     ------
   clock_nanosleep        1      0    50.166    50.166    50.166    50.166      0.00%
   wait4                  2      1     2.149     0.215     1.074     1.933     79.96%


 two words (15381), 6 events, 3.8%

   syscall            calls  errors  total       min       avg       max       stddev
                                     (msec)    (msec)    (msec)    (msec)        (%)
   --------------- --------  ------ -------- --------- --------- ---------     ------
   wait4                  1      0     0.000     0.015     0.015     0.015      0.00%
";
        let tables = read_perf_trace(text).unwrap();
        let two = &tables["two words"];
        assert_eq!((tables.len(), two.len(), two["wait4"].calls, two["wait4"].errors), (1, 2, 3, 1));
        assert!((two["clock_nanosleep"].seconds - 0.050_166).abs() < 1e-9);
        let stat = "# started\n\n71,,raw_syscalls:sys_enter,1469239,100.00,,\n72,,raw_syscalls:sys_exit,1469239,100.00,,\n";
        assert_eq!(read_perf_stat(stat).unwrap(), (71, 72));
    }
}
