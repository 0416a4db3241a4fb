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

use super::median;
use super::syscalls::PROGRAMS;
use super::tracer::Tracer;
use crate::process::{self, say};

/// How long requests are made in a round.
const REQUESTS: Duration = Duration::from_secs(3);
/// Octets of a request, and of its response.
const MESSAGE: usize = 64;

/// What runs beside the work.
const VARIANTS: [(&str, Option<&[&str]>); 4] = [
    ("nothing", None),
    ("nothing, once more", None),
    ("probe syscalls", Some(&[])),
    ("probe syscalls --latency-sample 16", Some(&["--latency-sample", "16"])),
];

pub(super) fn run(root: &Path, probe: &Path, rounds: u32) -> Result<()> {
    let target = root.join("target/bench-load");
    let mut builds = VARIANTS.map(|_| Vec::new());
    let mut requests = VARIANTS.map(|_| Vec::new());
    // Once before: what is fetched and cached is so for all.
    build(root, &target)?;
    for _ in 0..rounds {
        for (((_, flags), builds), requests) in VARIANTS.iter().zip(&mut builds).zip(&mut requests) {
            let tracer = match flags {
                Some(flags) => {
                    let mut command = Command::new(probe);
                    Some(Tracer::start(command.args(["syscalls", "-o", "json"]).args(*flags), PROGRAMS)?)
                }
                None => None,
            };
            builds.push(build(root, &target)?);
            requests.push(exchange()?);
            drop(tracer);
        }
    }
    std::fs::remove_dir_all(&target).with_context(|| format!("cannot remove {}", target.display()))?;
    say(format_args!("real work, {rounds} rounds, variants in turn"));
    say(format_args!("{:<38} {:>10} {:>8} {:>12} {:>8}", "", "build, s", "ratio", "requests/s", "ratio"));
    let (mut first_build, mut first_requests) = (f64::NAN, f64::NAN);
    for (at, (((name, _), builds), requests)) in
        VARIANTS.iter().zip(&mut builds).zip(&mut requests).enumerate()
    {
        let (seconds, rate) = (median(builds), median(requests));
        if at == 0 {
            (first_build, first_requests) = (seconds, rate);
        }
        say(format_args!(
            "{name:<38} {seconds:>10.2} {:>8.3} {rate:>12.0} {:>8.3}",
            seconds / first_build,
            rate / first_requests
        ));
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
