//! TCP as fast as it goes, on loopback of a network namespace of its own, and how fast that was: for `cargo xtask bench tcp`.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::counters::Counters;
use crate::netns::Netns;

/// Goes before what is counted.
const WARM_UP: Duration = Duration::from_millis(200);
/// Nothing on loopback takes longer: a load that hangs tells nothing.
const PATIENCE: Duration = Duration::from_secs(20);
/// Octets of a write, and of a read, of the bulk load.
const WRITE: usize = 64 * 1024;
const READ: usize = 256 * 1024;
/// Every kernel has it, and unlike BBR it keeps no timers of its own.
const CONGESTION_CONTROL: &str = "reno";
const ANY_PORT: &str = "127.0.0.1:0";
/// What must not happen, by the kernel's own word: a load with such in it is another load.
const UNWANTED: [(&str, &str); 3] = [
    ("TcpOutRsts", "something was reset"),
    ("TcpEstabResets", "something was reset"),
    ("TcpExtTCPTimeWaitOverflow", "no room in TIME_WAIT: raise net.ipv4.tcp_max_tw_buckets"),
];

/// What is done over TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// One connection, one way, writes of 64 KiB. Counts octets.
    Bulk,
    /// One octet there and one back, without Nagle's delay. Counts round trips.
    PingPong,
    /// Connect, accept, close both ends, and again. Counts connections.
    ///
    /// The server's end closes first. So TIME_WAIT stays there, where the SYN of the next connection from the same port takes it
    /// over (RFC 6191): no port is ever used up. The threads are client and server of their own connections, each on its CPU:
    /// where the two ends close on two CPUs at once, kernels (6.18 is one) at times find neither the socket nor its TIME_WAIT, and
    /// answer with a reset.
    ConnectClose,
}

impl Load {
    /// Of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "bulk" => Some(Self::Bulk),
            "ping_pong" => Some(Self::PingPong),
            "connect_close" => Some(Self::ConnectClose),
            _ => None,
        }
    }
}

/// Where loads run: a network namespace, and a CPU for each end.
#[derive(Debug)]
pub struct Place {
    netns: Netns,
    /// The same one twice where there is one only.
    cpus: [usize; 2],
    /// Of [`Load::ConnectClose`]. They stay, so that there is never more in TIME_WAIT than ports for two.
    listeners: [TcpListener; 2],
}

impl Place {
    /// Makes one.
    ///
    /// # Errors
    ///
    /// Not root, or no namespace to be had.
    pub fn new() -> Result<Self> {
        let netns = Netns::new()?;
        netns
            .run(|| fs::write("/proc/sys/net/ipv4/tcp_congestion_control", CONGESTION_CONTROL))?
            .with_context(|| {
                format!("cannot choose {CONGESTION_CONTROL}: is /proc/sys mounted read-only?")
            })?;
        let listen = || TcpListener::bind(ANY_PORT);
        let listeners = netns.run(|| Ok::<_, io::Error>([listen()?, listen()?]))??;
        let allowed = sched_getaffinity(None).context("cannot tell which CPUs are allowed")?;
        let mut allowed = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
        let first = allowed.next().context("no CPU is allowed")?;
        Ok(Self { netns, cpus: [first, allowed.next().unwrap_or(first)], listeners })
    }

    /// Runs a load. Returns how many a second of what it counts.
    ///
    /// # Errors
    ///
    /// Something was refused or took too long, or the kernel counted what makes it another load: resets, or connections that had
    /// no room in TIME_WAIT.
    pub fn run(&self, load: Load, duration: Duration) -> Result<f64> {
        let before = Counters::read(&self.netns)?;
        let rate = self.netns.run(|| match load {
            Load::Bulk => self.bulk(duration),
            Load::PingPong => self.ping_pong(duration),
            Load::ConnectClose => self.connect_close(duration),
        })??;
        let after = Counters::read(&self.netns)?;
        for (counter, why) in UNWANTED {
            let rose = after.get(counter)? - before.get(counter)?;
            ensure!(rose == 0, "{load:?}: {counter} rose by {rose}: {why}");
        }
        Ok(rate)
    }

    fn bulk(&self, duration: Duration) -> Result<f64> {
        let (client, mut server) = pair()?;
        let full = AtomicBool::new(false);
        self.both(
            || {
                // Taken in, so that it closes at the end of this: the server reads until then.
                let mut client = client;
                let octets = vec![0; WRITE];
                while !full.load(Ordering::Relaxed) {
                    client.write_all(&octets)?;
                }
                Ok(())
            },
            || {
                let mut octets = vec![0; READ];
                let mut meter = Meter::new(duration);
                loop {
                    let read = server.read(&mut octets)?;
                    ensure!(read > 0, "the sender closed too soon");
                    if !meter.goes_on(u64::try_from(read)?, Instant::now()) {
                        break;
                    }
                }
                full.store(true, Ordering::Relaxed);
                // What is left unread would be answered with a reset.
                io::copy(&mut server, &mut io::sink())?;
                Ok(meter.rate())
            },
        )
        .map(|((), rate)| rate)
    }

    fn ping_pong(&self, duration: Duration) -> Result<f64> {
        let (client, mut server) = pair()?;
        self.both(
            || {
                let mut client = client;
                let mut octet = [0];
                let mut meter = Meter::new(duration);
                loop {
                    client.write_all(&octet)?;
                    client.read_exact(&mut octet)?;
                    if !meter.goes_on(1, Instant::now()) {
                        return Ok(meter.rate());
                    }
                }
            },
            || {
                let mut octet = [0];
                while server.read(&mut octet)? > 0 {
                    server.write_all(&octet)?;
                }
                Ok(())
            },
        )
        .map(|(rate, ())| rate)
    }

    fn connect_close(&self, duration: Duration) -> Result<f64> {
        let one = |listener: &TcpListener| -> Result<f64> {
            let address = listener.local_addr()?;
            let mut meter = Meter::new(duration);
            loop {
                let mut client = TcpStream::connect(address)?;
                let (server, _) = listener.accept()?;
                drop(server);
                let read = client.read(&mut [0])?;
                ensure!(read == 0, "the server sent something");
                drop(client);
                if !meter.goes_on(1, Instant::now()) {
                    return Ok(meter.rate());
                }
            }
        };
        let [first, second] = &self.listeners;
        self.both(|| one(first), || one(second)).map(|(first, second)| first + second)
    }

    /// Runs both, each on a thread of its CPU.
    fn both<C: Send, S: Send>(
        &self,
        client: impl FnOnce() -> Result<C> + Send,
        server: impl FnOnce() -> Result<S> + Send,
    ) -> Result<(C, S)> {
        let [of_client, of_server] = self.cpus;
        std::thread::scope(|scope| {
            let server = scope.spawn(move || pin(of_server).and_then(|()| server()));
            let client = scope.spawn(move || pin(of_client).and_then(|()| client()));
            let (client, server) = (join(client), join(server));
            Ok((client.context("the client")?, server.context("the server")?))
        })
    }
}

fn join<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().ok().context("a thread panicked")?
}

/// Keeps this thread on a CPU.
fn pin(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    sched_setaffinity(None, &cpus).with_context(|| format!("cannot stay on CPU {cpu}"))
}

/// The two ends of a connection.
fn pair() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind(ANY_PORT)?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    for end in [&client, &server] {
        end.set_nodelay(true)?;
        end.set_read_timeout(Some(PATIENCE))?;
        end.set_write_timeout(Some(PATIENCE))?;
    }
    Ok((client, server))
}

/// Counts for a while, after a warm-up.
#[derive(Debug)]
struct Meter {
    warm: Instant,
    duration: Duration,
    /// None: it is still warming up.
    begun: Option<Instant>,
    took: Duration,
    count: u64,
}

impl Meter {
    fn new(duration: Duration) -> Self {
        Self { warm: Instant::now() + WARM_UP, duration, begun: None, took: Duration::ZERO, count: 0 }
    }

    /// So many more. Returns whether there is time left.
    fn goes_on(&mut self, more: u64, now: Instant) -> bool {
        let Some(begun) = self.begun else {
            if now >= self.warm {
                self.begun = Some(now);
            }
            return true;
        };
        self.count += more;
        self.took = now.saturating_duration_since(begun);
        self.took < self.duration
    }

    /// How many a second.
    fn rate(&self) -> f64 {
        self.count as f64 / self.took.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_in_the_warm_up_is_not_counted() {
        let second = Duration::from_secs(1);
        let mut meter = Meter::new(second * 2);
        let warm = meter.warm;
        assert!(meter.goes_on(1000, warm - WARM_UP));
        // The one that ends the warm-up began in it.
        assert!(meter.goes_on(1000, warm));
        assert!(meter.goes_on(5, warm + second));
        assert!(!meter.goes_on(5, warm + second * 2));
        assert_eq!(meter.rate(), 5.0);
    }
}
