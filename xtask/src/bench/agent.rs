//! `probe run` by itself: how soon it sees something, how much memory it takes.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::median;
use super::tracer::Tracer;
use crate::process::say;

/// How long the agent idles before its memory is read.
const SETTLE: Duration = Duration::from_secs(5);

pub(super) fn run(probe: &Path, rounds: u32) -> Result<()> {
    let mut starts = Vec::new();
    for _ in 0..rounds {
        starts.push(first_event(probe)?);
    }
    say(format_args!(
        "from start to the first event: {:.0} ms (median of {rounds})",
        median(&mut starts) * 1e3
    ));

    let agent = Tracer::start(Command::new(probe).args(["run", "--interval", "1s"]), 17)?;
    thread::sleep(SETTLE);
    let status = agent.proc("status")?;
    let anonymous = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok())
        .context("/proc/PID/status has no RssAnon")?;
    say(format_args!("probe run, idle: anonymous memory {:.1} MiB", anonymous / 1024.0));
    say(format_args!("probe run: BPF maps, rings and programs {:.1} MiB", memlock(agent.pid())? / 1048576.0));
    Ok(())
}

/// Seconds from the start of `probe tcp` to the first line that it prints, while connections are made all the time.
fn first_event(probe: &Path) -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let stop = Arc::new(AtomicBool::new(false));
    let accepting = Arc::clone(&stop);
    let acceptor =
        thread::spawn(move || while !accepting.load(Ordering::Relaxed) && listener.accept().is_ok() {});
    let connecting = Arc::clone(&stop);
    let connector = thread::spawn(move || {
        while !connecting.load(Ordering::Relaxed) && TcpStream::connect(address).is_ok() {
            thread::sleep(Duration::from_millis(1));
        }
    });
    let begun = Instant::now();
    let mut child = Command::new(probe)
        .args(["tcp", "-o", "json", "--kind", "connect", "--count", "1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    let elapsed = begun.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    child.wait()?;
    // The last connection wakes the acceptor.
    let _refused = TcpStream::connect(address);
    let _joined = (acceptor.join(), connector.join());
    ensure!(!line.is_empty(), "probe tcp printed nothing");
    Ok(elapsed)
}

/// Bytes that the kernel charges a process for its BPF objects: the `memlock` of each map and program it holds, once.
fn memlock(pid: u32) -> Result<f64> {
    let mut seen = BTreeSet::new();
    let mut sum = 0.0;
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // Descriptors come and go meanwhile.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        let id = value("map_id:")
            .map(|id| ("map", id.to_owned()))
            .or_else(|| value("prog_id:").map(|id| ("prog", id.to_owned())));
        if let (Some(id), Some(bytes)) = (id, value("memlock:"))
            && seen.insert(id)
        {
            sum += bytes.parse::<f64>().unwrap_or(0.0);
        }
    }
    ensure!(sum > 0.0, "process {pid} holds no BPF map");
    Ok(sum)
}
