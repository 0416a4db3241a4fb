//! Lookups over UDP at a steady rate, and what a server counted of them, on loopback of a network namespace of its own: for
//! `cargo xtask bench dns`.
//!
//! Plain sends and receives, as resolvers make them. Nothing here retries, so that a count is a count.

mod message;
mod server;

use std::fmt;
use std::io::ErrorKind;
use std::net::{SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::thread::{CpuSet, UnshareFlags, sched_getaffinity, sched_setaffinity, unshare_unsafe};
use rustix::time::{ClockId, clock_gettime};

use crate::netns::Netns;
use message::{A, AAAA, DOMAIN};

/// Where the server listens; of 127.0.0.0/8, all of which loopback has.
const SERVER: &str = "127.0.0.2";
const CLIENT: &str = "127.0.0.1:0";
/// Sockets that lookups go out from in turn.
const SOCKETS: u64 = 128;
/// Names that repeat in the load that goes for numbers.
const NAMES: u64 = 10_000;
/// How long the client sleeps between bursts.
const TICK: Duration = Duration::from_micros(500);
/// Lookups sent before answers are looked for: what a machine that lags makes up for at once must fit the sockets.
const BURST: u64 = 32;
/// How long answers are waited for after the last question.
const PATIENCE: Duration = Duration::from_secs(2);
/// To and fro this often is one window; the middle one of many tells, which nothing came between.
const WINDOW: u16 = 100;
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// When answers are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// At once.
    AtOnce,
    /// After 0 to 20 ms, one after another differently.
    Later,
}

/// What came of a load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Questions sent.
    pub asked: u64,
    /// Answers that came.
    pub heard: u64,
    /// Questions that reached the server, by its own count.
    pub received: u64,
    /// Answers that it sent.
    pub answered: u64,
    /// From the first question to the last.
    pub took: Duration,
    /// Of both sides, the kernel's part with it.
    pub cpu: Duration,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { asked, heard, received, answered, took, cpu } = self;
        write!(f, "{asked} {heard} {received} {answered} {} {}", took.as_nanos(), cpu.as_nanos())
    }
}

/// Where loads run: a network namespace, and a CPU for each side.
#[derive(Debug)]
pub struct Place {
    netns: Netns,
    /// The same one twice where there is one only.
    cpus: [usize; 2],
}

impl Place {
    /// Makes one. The resolver of this process asks the server here from then on: call it before there are threads.
    ///
    /// # Errors
    ///
    /// Not root, or no namespace to be had.
    pub fn new() -> Result<Self> {
        resolve_here()?;
        let allowed = sched_getaffinity(None).context("cannot tell which CPUs are allowed")?;
        let mut allowed = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
        let first = allowed.next().context("no CPU is allowed")?;
        Ok(Self { netns: Netns::new()?, cpus: [first, allowed.next().unwrap_or(first)] })
    }

    /// A path that names the network namespace while this process lives.
    #[must_use]
    pub fn path(&self) -> String {
        self.netns.path()
    }

    /// Asks so many a second, A and AAAA of each name from one socket. The scheduler places both sides.
    ///
    /// # Errors
    ///
    /// A socket refuses.
    pub fn paced(&self, rate: u64, duration: Duration, answers: Answers) -> Result<Tally> {
        let total = u64::try_from(u128::from(rate) * duration.as_millis() / 1000)?;
        self.beside_server(answers, None, |server| {
            let mut asker = Asker::new(server, answers)?;
            let begun = Instant::now();
            let mut took = Duration::ZERO;
            while asker.asked < total && took < duration * 2 {
                took = begun.elapsed();
                let due = u64::try_from(u128::from(rate) * took.as_nanos() / 1_000_000_000)?.min(total);
                while asker.asked < due {
                    let until = due.min(asker.asked + BURST);
                    while asker.asked < until {
                        asker.ask()?;
                    }
                    asker.hear()?;
                }
                took = begun.elapsed();
                asker.hear()?;
                thread::sleep(TICK);
            }
            let deadline = Instant::now() + PATIENCE;
            while asker.heard < asker.asked && Instant::now() < deadline {
                thread::sleep(TICK);
                asker.hear()?;
            }
            Ok(Tally { asked: asker.asked, heard: asker.heard, took, ..Tally::default() })
        })
    }

    /// As fast as one thread goes with getaddrinfo(3), which asks for A and AAAA; it and the server each on a CPU of its own.
    ///
    /// # Errors
    ///
    /// A lookup failed.
    pub fn getaddrinfo(&self, duration: Duration) -> Result<Tally> {
        self.beside_server(Answers::AtOnce, Some(self.cpus), |_server| {
            let begun = Instant::now();
            let mut tally = Tally::default();
            while tally.took < duration {
                let name = format!("{}.{DOMAIN}", message::label(tally.asked % NAMES));
                let found = (name.as_str(), 0)
                    .to_socket_addrs()
                    .with_context(|| format!("{name}: does nsswitch.conf have dns for hosts?"))?;
                tally.asked += 1;
                tally.heard += u64::try_from(found.count().min(1))?;
                tally.took = begun.elapsed();
            }
            Ok(tally)
        })
    }

    /// A question there and an answer back, both ends on one thread of one CPU: nobody is woken, so little but the way of the
    /// packets is in it. Returns nanoseconds of CPU a packet, its send and its receive together.
    ///
    /// # Errors
    ///
    /// A socket refuses.
    pub fn ping_pong(&self, port: u16, connected: bool, duration: Duration) -> Result<f64> {
        let [cpu, _] = self.cpus;
        self.netns.run(|| {
            pin(cpu)?;
            let (client, server) = (UdpSocket::bind(CLIENT)?, UdpSocket::bind((SERVER, port))?);
            let (here, there) = (client.local_addr()?, server.local_addr()?);
            if connected {
                client.connect(there)?;
                server.connect(here)?;
            }
            let send = |from: &UdpSocket, to: SocketAddr, octets: &[u8]| {
                if connected { from.send(octets) } else { from.send_to(octets, to) }
            };
            let mut octets = [0; message::MOST];
            let mut receive = |at: &UdpSocket| {
                if connected {
                    at.recv(&mut octets)
                } else {
                    at.recv_from(&mut octets).map(|(length, _)| length)
                }
            };
            let mut question = Vec::new();
            message::question(&mut question, 0, 1, A);
            let mut answer = Vec::new();
            message::answer(&mut answer, &question);
            let mut windows = Vec::new();
            let begun = Instant::now();
            // The first is the warm-up.
            while begun.elapsed() < duration || windows.len() < 2 {
                // The thread never waits: that is time as it passes, but for what others do on this CPU.
                let window = cpu_time(ClockId::ThreadCPUTime);
                for id in 0..WINDOW {
                    message::number(&mut question, id);
                    message::number(&mut answer, id);
                    send(&client, there, &question)?;
                    ensure!(receive(&server)? == question.len(), "a question was cut short");
                    send(&server, here, &answer)?;
                    ensure!(receive(&client)? == answer.len(), "an answer was cut short");
                }
                let took = cpu_time(ClockId::ThreadCPUTime).saturating_sub(window);
                windows.push(took.as_secs_f64() * 1e9 / f64::from(WINDOW) / 2.0);
            }
            windows.remove(0);
            windows.sort_by(f64::total_cmp);
            windows.get(windows.len() / 2).copied().context("no window")
        })?
    }

    /// Runs `client` beside a server, on CPUs where there are some, and adds what the server and the scheduler counted.
    fn beside_server(
        &self,
        answers: Answers,
        cpus: Option<[usize; 2]>,
        client: impl FnOnce(SocketAddr) -> Result<Tally> + Send,
    ) -> Result<Tally> {
        self.netns.run(|| {
            let socket = server::socket(SERVER)?;
            let address = socket.local_addr()?;
            let stop = AtomicBool::new(false);
            let before = cpu_time(ClockId::ProcessCPUTime);
            let (tally, served) = thread::scope(|scope| {
                let server = scope.spawn(|| {
                    cpus.map_or(Ok(()), |[_, cpu]| pin(cpu))?;
                    server::serve(&socket, answers, &stop)
                });
                let client = scope.spawn(|| {
                    cpus.map_or(Ok(()), |[cpu, _]| pin(cpu))?;
                    client(address)
                });
                let tally = client.join();
                stop.store(true, Ordering::Relaxed);
                (tally, server.join())
            });
            let tally = tally.ok().context("the client panicked")?.context("the client")?;
            let (received, answered) = served.ok().context("the server panicked")?.context("the server")?;
            Ok(Tally {
                received,
                answered,
                cpu: cpu_time(ClockId::ProcessCPUTime).saturating_sub(before),
                ..tally
            })
        })?
    }
}

/// The asking side: many connected sockets.
struct Asker {
    /// Each with the answers that it waits for.
    sockets: Vec<(UdpSocket, u64)>,
    asked: u64,
    heard: u64,
    /// Two questions have one name, or each its own.
    names: Answers,
    question: Vec<u8>,
}

impl Asker {
    fn new(server: SocketAddr, names: Answers) -> Result<Self> {
        let open = |_| -> Result<_> {
            let socket = UdpSocket::bind(CLIENT)?;
            socket.connect(server)?;
            socket.set_nonblocking(true)?;
            Ok((socket, 0))
        };
        let sockets = (0..SOCKETS).map(open).collect::<Result<_>>()?;
        Ok(Self { sockets, asked: 0, heard: 0, names, question: Vec::new() })
    }

    /// The next question.
    fn ask(&mut self) -> Result<()> {
        let pair = self.asked / 2;
        let name = match self.names {
            Answers::AtOnce => pair % NAMES,
            Answers::Later => self.asked,
        };
        let qtype = if self.asked.is_multiple_of(2) { A } else { AAAA };
        let id = u16::try_from(self.asked & 0xffff)?;
        message::question(&mut self.question, id, name, qtype);
        let socket = usize::try_from(pair % SOCKETS)?;
        let (socket, waiting) = self.sockets.get_mut(socket).context("no such socket")?;
        socket.send(&self.question)?;
        *waiting += 1;
        self.asked += 1;
        Ok(())
    }

    /// What has come meanwhile.
    fn hear(&mut self) -> Result<()> {
        let mut octets = [0; message::MOST];
        for (socket, waiting) in &mut self.sockets {
            while *waiting > 0 {
                match socket.recv(&mut octets) {
                    Ok(_) => {
                        *waiting -= 1;
                        self.heard += 1;
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }
}

/// Makes the resolver of this process ask [`SERVER`], whatever the host's asks.
#[expect(unsafe_code, reason = "unshare has no safe wrapper")]
fn resolve_here() -> Result<()> {
    // SAFETY: only the view of mounts parts, for this thread and those that it starts; no descriptor is affected.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.context("cannot make a mount namespace")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("cannot keep mounts to ourselves")?;
    let ours: PathBuf = std::env::temp_dir().join(format!("dns-load-resolv-{}.conf", std::process::id()));
    std::fs::write(&ours, format!("nameserver {SERVER}\n"))?;
    let mounted = mount_bind(&ours, RESOLV_CONF).with_context(|| format!("cannot mount over {RESOLV_CONF}"));
    std::fs::remove_file(&ours)?;
    mounted
}

/// What this thread, or this process, has used.
fn cpu_time(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    Duration::from_secs(part(time.tv_sec)) + Duration::from_nanos(part(time.tv_nsec))
}

/// Keeps this thread on a CPU.
fn pin(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    sched_setaffinity(None, &cpus).with_context(|| format!("cannot stay on CPU {cpu}"))
}
