//! Names of processes, from /proc, remembered beyond their end.
//!
//! The kernel side reports a process with the time at which it began; pid and time together name it for good,
//! so that the name of whoever has the pid today is never given to yesterday's process.

use std::collections::HashMap;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use probe_common::wire::Owner;

/// /proc/PID/stat is some 300 bytes; more is not read.
const MAX_STAT: u64 = 4096;
/// Longest name of an executable that is kept; file names end at 255 bytes.
const MAX_EXECUTABLE: usize = 255;
/// Clock ticks of /proc last 10 ms on every architecture (USER_HZ is 100).
pub(crate) const TICK_NS: u64 = 10_000_000;

/// What a process is called. Bytes that are not UTF-8 are replaced; text sinks must escape the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessNames {
    /// Name of the leading thread.
    pub comm: Option<Arc<str>>,
    /// Base name of the executable file. Other users' need CAP_SYS_PTRACE; kernel threads have none.
    pub executable: Option<Arc<str>>,
}

impl ProcessNames {
    /// Takes what was read later. A process that has ended and was not waited for has its name still, and no executable.
    fn replace(&mut self, later: Self) {
        let before = std::mem::replace(self, later);
        if self.executable.is_none() && self.comm == before.comm {
            self.executable = before.executable;
        }
    }
}

/// Limits of [`Processes`].
#[derive(Clone, Copy, Debug)]
pub struct ProcessLimits {
    /// Processes remembered.
    pub entries: usize,
    /// After this time names are read again: a process that calls execve gets others.
    pub refresh: Duration,
    /// How long the names of a process that is gone are kept.
    pub linger: Duration,
}

impl Default for ProcessLimits {
    fn default() -> Self {
        Self { entries: 8_192, refresh: Duration::from_secs(10), linger: Duration::from_secs(300) }
    }
}

struct Known {
    names: ProcessNames,
    /// The name that the kernel side told last, of those that /proc did not confirm.
    told: Arc<str>,
    /// When /proc was last asked.
    read: Instant,
    /// When it was last found alive, or first looked for.
    alive: Instant,
    used: Instant,
}

/// Names of processes by pid and start time, bounded.
pub struct Processes {
    proc: PathBuf,
    limits: ProcessLimits,
    known: HashMap<(u32, u64), Known>,
    evicted: u64,
}

impl std::fmt::Debug for Processes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Processes")
            .field("entries", &self.known.len())
            .field("evicted", &self.evicted)
            .finish()
    }
}

impl Default for Processes {
    fn default() -> Self {
        Self::new(ProcessLimits::default())
    }
}

impl Processes {
    /// Nothing known yet; reads /proc.
    pub fn new(limits: ProcessLimits) -> Self {
        Self::at(Path::new("/proc"), limits)
    }

    /// Nothing known yet; reads another directory in place of /proc.
    pub fn at(proc: &Path, limits: ProcessLimits) -> Self {
        Self { proc: proc.to_owned(), limits, known: HashMap::new(), evicted: 0 }
    }

    /// Names of the process `tgid` that began `start_ns` after boot (CLOCK_BOOTTIME). Empty for a process that
    /// ended before anybody asked, for an unknown one (0), and where this process does not see the host's pids:
    /// nobody else's start time fits. `told` is the name of the leading thread as the kernel side noted it, now or long ago:
    /// one that is not known may be that of a program which it has run since.
    pub fn get(&mut self, tgid: u32, start_ns: u64, told: &str, now: Instant) -> ProcessNames {
        if tgid == 0 || start_ns == 0 {
            return ProcessNames::default();
        }
        let key = (tgid, start_ns);
        let since = |then: Instant| now.saturating_duration_since(then);
        if let Some(known) = self.known.get_mut(&key) {
            known.used = now;
            // Each is looked into once, though sockets from before and after an execve tell their names in turns.
            let news = known.names.comm.as_deref() != Some(told) && *known.told != *told;
            if news {
                known.told = told.into();
            }
            if news || since(known.read) >= self.limits.refresh {
                known.read = now;
                if let Some(names) = read_names(&self.proc, tgid, start_ns) {
                    known.alive = now;
                    known.names.replace(names);
                } else if news {
                    // It became another program before it ended; of which file, nobody knows any more.
                    let comm = (!told.is_empty()).then(|| told.into());
                    known.names = ProcessNames { comm, ..ProcessNames::default() };
                }
            }
            return known.names.clone();
        }
        if self.known.len() >= self.limits.entries {
            self.make_room(now);
        }
        let names = read_names(&self.proc, tgid, start_ns).unwrap_or_default();
        let known = Known { names: names.clone(), told: told.into(), read: now, alive: now, used: now };
        self.known.insert(key, known);
        names
    }

    /// Processes remembered.
    pub fn entries(&self) -> usize {
        self.known.len()
    }

    /// Processes forgotten before their time, because the limit was reached.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Forgets those that are long gone; if that is not enough, the eighth that nobody asked for the longest.
    fn make_room(&mut self, now: Instant) {
        let Self { proc: _, limits, known, evicted } = self;
        known.retain(|_, known| {
            let quiet = known.used.max(known.alive);
            now.saturating_duration_since(quiet) < limits.linger
        });
        let spare = limits.entries / 8 + 1;
        let target = limits.entries.saturating_sub(spare);
        if known.len() <= target {
            return;
        }
        let mut uses: Vec<Instant> = known.values().map(|known| known.used).collect();
        let surplus = known.len() - target;
        let (_, &mut last, _) = uses.select_nth_unstable(surplus - 1);
        let before = known.len();
        let mut left = surplus;
        known.retain(|_, known| {
            let goes = known.used <= last && left > 0;
            left -= usize::from(goes);
            !goes
        });
        *evicted += (before - known.len()) as u64;
    }
}

/// Names of a live process, if it is the one that began at that time.
fn read_names(proc: &Path, tgid: u32, start_ns: u64) -> Option<ProcessNames> {
    let directory = proc.join(tgid.to_string());
    let stat = read_limited(&directory.join("stat")).ok()?;
    let (comm, ticks) = parse_stat(&stat)?;
    // The kernel rounds down; one tick of grace for other roundings.
    if ticks.abs_diff(start_ns / TICK_NS) > 1 {
        return None;
    }
    let executable = std::fs::read_link(directory.join("exe")).ok().and_then(|path| {
        let name = path.file_name()?.as_bytes();
        let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
        text(name.get(..MAX_EXECUTABLE).unwrap_or(name))
    });
    Some(ProcessNames { comm: text(comm), executable })
}

/// Who has this id now, as /proc tells. Not to be asked for what is past: then it may be another's.
pub fn living(tgid: u32) -> Option<Owner> {
    let (comm, ticks) = read_limited(&Path::new("/proc").join(tgid.to_string()).join("stat"))
        .ok()
        .and_then(|stat| parse_stat(&stat).map(|(comm, ticks)| (comm.to_vec(), ticks)))?;
    let mut owner = Owner { start_ns: ticks * TICK_NS, tgid, ..Owner::UNKNOWN };
    for (slot, byte) in owner.comm.iter_mut().zip(comm) {
        *slot = byte;
    }
    Some(owner)
}

fn text(bytes: &[u8]) -> Option<Arc<str>> {
    (!bytes.is_empty()).then(|| String::from_utf8_lossy(bytes).into())
}

/// Name and start time (ticks since boot) from /proc/PID/stat: `1 (comm) S …`, where the name may hold blanks
/// and parentheses itself. Total over any bytes.
pub fn parse_stat(stat: &[u8]) -> Option<(&[u8], u64)> {
    let open = stat.iter().position(|&byte| byte == b'(')?;
    let close = stat.iter().rposition(|&byte| byte == b')')?;
    let comm = stat.get(open + 1..close)?;
    // Field 22 of proc_pid_stat(5); the first after the name is field 3.
    let start =
        stat.get(close + 1..)?.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).nth(19)?;
    Some((comm, std::str::from_utf8(start).ok()?.parse().ok()?))
}

/// Reads a file of /proc, which tells no size, up to a limit.
pub(crate) fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_STAT).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(comm: &str, ticks: u64) -> String {
        format!("7 ({comm}) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 {ticks} 9 9\n")
    }

    #[test]
    fn names_with_blanks_and_parentheses() {
        for comm in ["sh", "tmux: server", "a) S 1 (b", "((sd-pam))", ""] {
            let text = stat(comm, 123);
            assert_eq!(parse_stat(text.as_bytes()), Some((comm.as_bytes(), 123)), "{comm}");
        }
        for text in
            ["", "(", ")", ")(", "1 (a", "1 a) S", "1 (a) S 1 2 3", &stat("a", 1).replace(" 1 9 9", " x 9 9")]
        {
            assert_eq!(parse_stat(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn this_process_has_its_names() {
        let own = std::fs::read("/proc/self/stat").unwrap();
        let (_, ticks) = parse_stat(&own).unwrap();
        let start_ns = ticks * TICK_NS + 5_000_000;
        let pid = std::process::id();
        let mut processes = Processes::default();
        let names = processes.get(pid, start_ns, "", Instant::now());
        let executable = std::env::current_exe().unwrap();
        assert_eq!(names.executable.as_deref(), executable.file_name().and_then(|name| name.to_str()));
        assert!(names.comm.is_some());
        let other = processes.get(pid, start_ns + 10 * TICK_NS, "", Instant::now());
        assert_eq!(other, ProcessNames::default(), "another process had this pid");
        assert_eq!(processes.get(pid, 0, "", Instant::now()), ProcessNames::default());
    }

    #[test]
    fn names_outlive_the_process_follow_execve_and_are_limited() {
        let proc = std::env::temp_dir().join(format!("probe-proc-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&proc);
        let write = |pid: u32, comm: &str| {
            std::fs::create_dir_all(proc.join(pid.to_string())).unwrap();
            std::fs::write(proc.join(format!("{pid}/stat")), stat(comm, 100)).unwrap();
        };
        let limits = ProcessLimits { entries: 16, ..ProcessLimits::default() };
        let mut processes = Processes::at(&proc, limits);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut names = |pid, told: &str, now| {
            let names = processes.get(pid, 100 * TICK_NS, told, now);
            [names.comm, names.executable].map(|name| name.map(|name| name.to_string()).unwrap_or_default())
        };
        let exe = proc.join("7/exe");

        write(7, "before");
        std::os::unix::fs::symlink("/bin/first", &exe).unwrap();
        assert_eq!(names(7, "before", at(0)), ["before", "first"]);
        write(7, "after");
        assert_eq!(names(7, "before", at(9)), ["before", "first"]);
        assert_eq!(names(7, "before", at(10)), ["after", "first"]);
        // The kernel side tells a name that is news; the one from before tells nothing more, whoever comes in between.
        write(7, "last");
        std::fs::remove_file(&exe).unwrap();
        std::os::unix::fs::symlink("/bin/last", &exe).unwrap();
        assert_eq!(names(7, "last", at(11)), ["last", "last"]);
        assert_eq!(names(7, "before", at(11)), ["last", "last"]);
        write(7, "unheard");
        for _ in 0..2 {
            assert_eq!(names(7, "last", at(12)), ["last", "last"]);
            assert_eq!(names(7, "before", at(12)), ["last", "last"]);
        }
        write(7, "last");
        std::fs::remove_file(&exe).unwrap();
        assert_eq!(names(7, "last", at(30)), ["last", "last"], "ended, and not waited for");
        std::fs::remove_dir_all(proc.join("7")).unwrap();
        assert_eq!(names(7, "last", at(60)), ["last", "last"]);
        for pid in 100..200 {
            write(pid, "x");
            assert_eq!(names(pid, "x", at(61)), ["x", ""]);
            assert_eq!(names(7, "last", at(62)), ["last", "last"], "in use, so not forgotten");
        }
        assert!(processes.entries() <= 16);
        assert!(processes.evicted() > 0);
        std::fs::remove_dir_all(&proc).unwrap();
    }
}
