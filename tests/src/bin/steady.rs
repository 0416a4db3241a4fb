//! What an ordinarily busy host does, for `cargo xtask bench steady`. Orders come on stdin, one a line; each is answered with one
//! line on stdout.
//!
//! `steady SYSCALLS LOOKUPS CONNECTIONS RETRANSMITS MILLISECONDS`: so many a second of each, by threads of their own, each in small
//! bursts. Answers with how many of each were made: calls of the thread that makes nothing else, lookups answered, connections,
//! segments that TCP sent again by the kernel's count (`RetransSegs`).

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use probe_common::testdrop::SYN;
use probe_tests::dns_load::{Answers, Place};
use probe_tests::drop::{Cgroup, Loss, RuleExt as _, lose};
use probe_tests::orders;
use socket2::{Domain, Socket, Type};

/// Between two bursts.
const TICK: Duration = Duration::from_millis(10);
/// How long a connection that nobody answers is kept: its first segment is sent again once, after a second (RFC 6298, 2.1).
const KEPT: Duration = Duration::from_millis(1500);

fn main() -> Result<()> {
    // Before there are threads.
    let lookups = Place::new()?;
    let cgroup = Cgroup::new()?;
    cgroup.add(std::process::id())?;
    // Where nothing arrives.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let silent_at = silent.local_addr()?;
    let mut loss = Loss::attach(&cgroup)?;
    loss.set(&[lose(SYN).sent_to(silent_at.port())])?;
    let obeyed = orders::obey(|words| match words {
        ["steady", syscalls, rate, connections, retransmits, milliseconds] => {
            let whole = Duration::from_millis(milliseconds.parse()?);
            let (syscalls, connections, retransmits) =
                (syscalls.parse()?, connections.parse()?, retransmits.parse()?);
            let before = retransmitted()?;
            let (called, connected, asked) = thread::scope(|scope| {
                let calling = scope.spawn(move || call(syscalls, whole));
                let connecting = scope.spawn(move || connect(connections, whole));
                let losing = scope.spawn(move || lose_some(retransmits, whole, silent_at));
                let asked = lookups.paced(rate.parse()?, whole, Answers::AtOnce)?;
                losing.join().ok().context("a thread panicked")??;
                let called = calling.join().ok().context("a thread panicked")??;
                let connected = connecting.join().ok().context("a thread panicked")??;
                anyhow::Ok((called, connected, asked))
            })?;
            ensure!(asked.asked == asked.heard, "of {} lookups {} had answers", asked.asked, asked.heard);
            Ok(format!("{called} {} {connected} {}", asked.heard, retransmitted()? - before))
        }
        _ => bail!("orders are: steady SYSCALLS LOOKUPS CONNECTIONS RETRANSMITS MILLISECONDS"),
    });
    // Who is in it cannot remove it.
    std::fs::write(cgroup.directory().with_file_name("cgroup.procs"), "0")
        .context("cannot leave the cgroup")?;
    obeyed
}

/// Does something so many times a second, in bursts.
fn pace(rate: u64, whole: Duration, mut once: impl FnMut(u64) -> Result<()>) -> Result<u64> {
    let (begun, mut done) = (Instant::now(), 0);
    loop {
        let elapsed = begun.elapsed().min(whole);
        let due = u64::try_from(u128::from(rate) * elapsed.as_micros() / 1_000_000)?;
        while done < due {
            once(done)?;
            done += 1;
        }
        if elapsed == whole {
            return Ok(done);
        }
        thread::sleep(TICK);
    }
}

/// Cheap calls of four kinds.
fn call(rate: u64, whole: Duration) -> Result<u64> {
    let (mut reader, mut writer) = std::io::pipe()?;
    pace(rate, whole, |number| {
        match number % 4 {
            0 => writer.write_all(b"x")?,
            1 => reader.read_exact(&mut [0])?,
            2 => {
                let _there = std::fs::metadata("/")?;
            }
            _ => {
                let _parent = rustix::process::getppid();
            }
        }
        Ok(())
    })
}

/// Connections with a request and its response.
fn connect(rate: u64, whole: Duration) -> Result<u64> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let mut message = [0; 64];
    pace(rate, whole, |_| {
        let mut client = TcpStream::connect(address)?;
        let (mut server, _) = listener.accept()?;
        client.write_all(&message)?;
        server.read_exact(&mut message)?;
        server.write_all(&message)?;
        Ok(client.read_exact(&mut message)?)
    })
}

/// Connections that are asked for in vain.
fn lose_some(rate: u64, whole: Duration, silent: SocketAddr) -> Result<()> {
    let mut kept = std::collections::VecDeque::new();
    pace(rate, whole, |_| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        ensure!(socket.connect(&silent.into()).is_err(), "somebody answers at {silent}");
        kept.push_back((Instant::now(), socket));
        while kept.front().is_some_and(|(since, _)| since.elapsed() >= KEPT) {
            kept.pop_front();
        }
        Ok(())
    })?;
    Ok(())
}

/// Of this network namespace, since it was made.
fn retransmitted() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/net/snmp")?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next().context("no Tcp")?, lines.next().context("no values of Tcp")?);
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    let (_, value) = pairs.find(|(name, _)| *name == "RetransSegs").context("no RetransSegs")?;
    Ok(value.parse()?)
}
