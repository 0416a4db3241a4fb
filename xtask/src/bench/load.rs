//! What tracing system calls takes from real work: a build with the compiler, and requests and responses over loopback at full load.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::spread;
use super::syscalls::{PROGRAMS, Tracing, empty};
use super::tracer::Tracer;
use crate::process::{self, say};

/// How long requests are made in a round.
const REQUESTS: Duration = Duration::from_secs(3);
/// Octets of a request, and of its response.
const MESSAGE: usize = 64;

/// What runs beside the work.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beside {
    Nothing,
    NothingAgain,
    Empty,
    Probe,
    Sampled,
    Counts,
}

impl Beside {
    const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::NothingAgain => "nothing, once more",
            Self::Empty => "empty programs where probe has its own",
            Self::Probe => "probe syscalls",
            Self::Sampled => "probe syscalls --latency-sample 16",
            Self::Counts => "probe syscalls --no-latency",
        }
    }

    fn start(self, root: &Path, probe: &Path) -> Result<Tracing> {
        let traced = |flags: &[&str]| {
            let mut command = Command::new(probe);
            let tracer = Tracer::start(command.args(["syscalls", "-o", "json"]).args(flags), PROGRAMS)?;
            Ok(Tracing::Process { _tracer: tracer })
        };
        match self {
            Self::Nothing | Self::NothingAgain => Ok(Tracing::None),
            Self::Empty => empty(
                root,
                &[("empty_enter", "sys_enter"), ("empty_exit", "sys_exit"), ("empty_switch", "sched_switch")],
            )
            .map(|ebpf| Tracing::Programs { _ebpf: ebpf }),
            Self::Probe => traced(&[]),
            Self::Sampled => traced(&["--latency-sample", "16"]),
            Self::Counts => traced(&["--no-latency"]),
        }
    }
}

pub(super) fn builds(root: &Path, probe: &Path, rounds: u32) -> Result<()> {
    let target = root.join("target/bench-load");
    // Once before: what is fetched and cached is so for all.
    build(root, &target)?;
    let beside = [Beside::Nothing, Beside::NothingAgain, Beside::Probe, Beside::Sampled];
    compare("a build, seconds", root, probe, rounds, &beside, || build(root, &target))?;
    std::fs::remove_dir_all(&target).with_context(|| format!("cannot remove {}", target.display()))
}

pub(super) fn requests(root: &Path, probe: &Path, rounds: u32) -> Result<()> {
    let beside = [
        Beside::Nothing,
        Beside::NothingAgain,
        Beside::Empty,
        Beside::Probe,
        Beside::Sampled,
        Beside::Counts,
    ];
    compare("requests over loopback, a second", root, probe, rounds, &beside, exchange)
}

/// Does the work beside each in turn, and says what came of it: the middle of all rounds, and its ratio to that beside nothing.
fn compare(
    what: &str,
    root: &Path,
    probe: &Path,
    rounds: u32,
    beside: &[Beside],
    work: impl Fn() -> Result<f64>,
) -> Result<()> {
    let mut figures: Vec<Vec<f64>> = vec![Vec::new(); beside.len()];
    for _ in 0..rounds {
        for (beside, figures) in beside.iter().zip(&mut figures) {
            let running = beside.start(root, probe)?;
            figures.push(work()?);
            drop(running);
        }
    }
    say(format_args!("{what}: {rounds} rounds, variants in turn"));
    say(format_args!("{:<42} {:>10} {:>10} {:>10} {:>8}", "", "min", "median", "max", "ratio"));
    let mut first = f64::NAN;
    for (beside, figures) in beside.iter().zip(&mut figures) {
        let (min, middle, max) = spread(figures);
        if *beside == Beside::Nothing {
            first = middle;
        }
        let ratio = middle / first;
        say(format_args!("{:<42} {min:>10.2} {middle:>10.2} {max:>10.2} {ratio:>8.3}", beside.name()));
    }
    Ok(())
}

/// Seconds that the compiler takes for this crate and what it depends on, from nothing.
fn build(root: &Path, target: &Path) -> Result<f64> {
    if target.exists() {
        std::fs::remove_dir_all(target).with_context(|| format!("cannot remove {}", target.display()))?;
    }
    let begun = Instant::now();
    let mut cargo = process::cargo();
    cargo.current_dir(root).env("CARGO_TARGET_DIR", target);
    cargo.args([
        "build",
        "--quiet",
        "--locked",
        "--offline",
        "--package",
        "probe-common",
        "--package",
        "xtask",
    ]);
    process::run(cargo.stdout(Stdio::null()))?;
    Ok(begun.elapsed().as_secs_f64())
}

/// Requests a second, of as many clients as there are CPUs, each with a server thread of its own.
fn exchange() -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicU64::new(0));
    let pairs = thread::available_parallelism()?.get();
    let mut threads = Vec::new();
    for _ in 0..pairs {
        let client = TcpStream::connect(address)?;
        let (server, _) = listener.accept()?;
        for stream in [&client, &server] {
            stream.set_nodelay(true)?;
        }
        threads.push(thread::spawn(move || answer(server)));
        let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
        threads.push(thread::spawn(move || ask(client, &stop, &done)));
    }
    let begun = Instant::now();
    thread::sleep(REQUESTS);
    let (count, elapsed) = (done.load(Ordering::Relaxed), begun.elapsed());
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().ok().context("a thread of the load panicked")??;
    }
    ensure!(count > 0, "no request was answered");
    Ok(count as f64 / elapsed.as_secs_f64())
}

fn ask(mut stream: TcpStream, stop: &AtomicBool, done: &AtomicU64) -> Result<()> {
    let mut message = [0; MESSAGE];
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Until the client goes.
fn answer(mut stream: TcpStream) -> Result<()> {
    let mut message = [0; MESSAGE];
    while stream.read_exact(&mut message).is_ok() {
        stream.write_all(&message)?;
    }
    Ok(())
}
