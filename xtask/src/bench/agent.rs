//! `probe run` by itself: how soon it sees something, how much memory it takes.

use std::io::{BufRead as _, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

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

    let agent = Tracer::start(Command::new(probe).args(["run", "--interval", "1s"]), 19)?;
    thread::sleep(SETTLE);
    say(format_args!("probe run, idle: anonymous memory {:.1} MiB", agent.anonymous()?));
    say(format_args!("probe run: BPF maps, rings and programs {:.1} MiB", agent.memlock()?));
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
