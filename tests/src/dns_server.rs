//! A DNS server in the test's own process that answers as it is told, and writes down what it saw and when.
//!
//! Its sockets belong to the network namespace of the thread that starts it. Nothing here parses names the way probe
//! does: the two must agree, not share code.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use probe_user::kernel::clock::monotonic_ns;

use crate::probe::poll;

/// QTYPE of IPv4 addresses.
pub const A: u16 = 1;
/// QTYPE of IPv6 addresses.
pub const AAAA: u16 = 28;
const CNAME: u16 = 5;
/// RCODE of a name that does not exist.
pub const NXDOMAIN: u8 = 3;
/// RCODE of a server that failed.
pub const SERVFAIL: u8 = 2;

/// RFC 1035, 4.1.1.
const HEADER: usize = 12;
/// How often a thread without work looks whether it should end.
const IDLE: Duration = Duration::from_millis(20);

/// What becomes of a question.
#[derive(Clone, Debug)]
pub struct Script {
    /// How long after the question the answer is sent.
    pub delay: Duration,
    /// How many times; 0: never.
    pub times: usize,
    /// RCODE.
    pub rcode: u8,
    /// TC.
    pub truncated: bool,
    /// Records in the answer section.
    pub answers: u16,
    /// Names that the question's is an alias of, one of the next: CNAMEs before the answers.
    pub aliases: Vec<&'static str>,
    /// Addresses of the answers, which are as many as there are of the type asked for; none: one, of nobody in particular.
    pub addresses: Vec<IpAddr>,
    /// The question comes back in capital letters.
    pub shouts: bool,
    /// Sent before the answer, with the id of the question: what no resolver should see.
    pub first: Vec<Vec<u8>>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            times: 1,
            rcode: 0,
            truncated: false,
            answers: 1,
            aliases: Vec::new(),
            addresses: Vec::new(),
            shouts: false,
            first: Vec::new(),
        }
    }
}

impl Script {
    /// An answer after a while.
    #[must_use]
    pub fn after(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }

    /// No answer.
    #[must_use]
    pub fn never() -> Self {
        Self { times: 0, ..Self::default() }
    }

    /// An answer with these addresses.
    #[must_use]
    pub fn at(addresses: &[IpAddr]) -> Self {
        Self { addresses: addresses.to_vec(), ..Self::default() }
    }

    /// An answer with this code and nothing in it.
    #[must_use]
    pub fn rcode(rcode: u8) -> Self {
        Self { rcode, answers: 0, ..Self::default() }
    }
}

/// A question as it arrived, and when it was answered.
#[derive(Clone, Debug)]
pub struct Served {
    /// Socket that it came to.
    pub server: SocketAddr,
    /// Who asked.
    pub client: SocketAddr,
    /// Transaction id.
    pub id: u16,
    /// Name in lower case.
    pub name: String,
    /// QTYPE.
    pub qtype: u16,
    /// CLOCK_MONOTONIC nanoseconds.
    pub received_ns: u64,
    /// Just before and just after each answer was sent, CLOCK_MONOTONIC nanoseconds.
    pub answered_ns: Vec<(u64, u64)>,
}

/// The server; it ends when it is dropped.
#[derive(Debug)]
pub struct DnsServer {
    log: Arc<Mutex<Vec<Served>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl DnsServer {
    /// Listens on these addresses. Names without a script are answered at once.
    ///
    /// # Errors
    ///
    /// An address is not to be had.
    pub fn start(addresses: &[SocketAddr], scripts: &[(&str, Script)]) -> Result<Self> {
        let scripts: HashMap<String, Script> =
            scripts.iter().map(|(name, script)| ((*name).to_owned(), script.clone())).collect();
        let scripts = Arc::new(scripts);
        let log = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for address in addresses {
            let socket =
                UdpSocket::bind(address).with_context(|| format!("cannot listen on {address}/udp"))?;
            let mut serving = Serving {
                socket,
                address: *address,
                scripts: Arc::clone(&scripts),
                log: Arc::clone(&log),
                due: BinaryHeap::new(),
            };
            let stop = Arc::clone(&stop);
            threads.push(
                std::thread::Builder::new()
                    .name(format!("dns {address}"))
                    .spawn(move || while !stop.load(Ordering::Relaxed) && serving.step().is_ok() {})?,
            );
        }
        Ok(Self { log, stop, threads })
    }

    /// Every question so far, in order of arrival.
    #[must_use]
    pub fn served(&self) -> Vec<Served> {
        lock(&self.log).clone()
    }

    /// The one question with this id that came to any of the sockets.
    ///
    /// # Errors
    ///
    /// There is none, or there are several.
    pub fn one(&self, id: u16) -> Result<Served> {
        let mut found: Vec<Served> = self.served().into_iter().filter(|served| served.id == id).collect();
        ensure!(found.len() == 1, "{} questions have id {id}", found.len());
        found.pop().context("just counted")
    }

    /// Waits until so many answers were sent.
    ///
    /// # Errors
    ///
    /// They were not within `deadline`.
    pub fn wait_answers(&self, count: usize, deadline: Duration) -> Result<()> {
        poll(&format!("{count} answers sent"), deadline, || {
            let sent: usize = lock(&self.log).iter().map(|served| served.answered_ns.len()).sum();
            Ok((sent >= count).then_some(()))
        })
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One socket's thread.
struct Serving {
    socket: UdpSocket,
    address: SocketAddr,
    scripts: Arc<HashMap<String, Script>>,
    log: Arc<Mutex<Vec<Served>>>,
    due: BinaryHeap<Reverse<Due>>,
}

/// An answer that waits for its time.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    at: Instant,
    /// Position in the log.
    entry: usize,
    to: SocketAddr,
    packet: Vec<u8>,
}

impl Serving {
    fn step(&mut self) -> io::Result<()> {
        let now = Instant::now();
        while let Some(Reverse(due)) = self.due.peek()
            && due.at <= now
        {
            let Some(Reverse(due)) = self.due.pop() else { break };
            let begun_ns = monotonic_ns();
            // Nobody may be there any more: the client's business.
            drop(self.socket.send_to(&due.packet, due.to));
            let ended_ns = monotonic_ns();
            if let Some(entry) = lock(&self.log).get_mut(due.entry) {
                entry.answered_ns.push((begun_ns, ended_ns));
            }
        }
        let wait = match self.due.peek() {
            Some(Reverse(due)) => due.at.saturating_duration_since(Instant::now()).min(IDLE),
            None => IDLE,
        };
        if wait.is_zero() {
            return Ok(());
        }
        self.socket.set_read_timeout(Some(wait))?;
        let mut packet = [0; 1500];
        match self.socket.recv_from(&mut packet) {
            Ok((len, from)) => {
                let received = (Instant::now(), monotonic_ns());
                self.take(packet.get(..len).unwrap_or_default(), from, received);
                Ok(())
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock
                        | io::ErrorKind::TimedOut
                        | io::ErrorKind::Interrupted
                        | io::ErrorKind::ConnectionRefused
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn take(&mut self, packet: &[u8], from: SocketAddr, (received, received_ns): (Instant, u64)) {
        let Some(question) = Question::parse(packet) else { return };
        let script = self.scripts.get(&question.name).cloned().unwrap_or_default();
        let entry = {
            let mut log = lock(&self.log);
            log.push(Served {
                server: self.address,
                client: from,
                id: question.id,
                name: question.name.clone(),
                qtype: question.qtype,
                received_ns,
                answered_ns: Vec::new(),
            });
            log.len() - 1
        };
        for nonsense in &script.first {
            let mut packet = nonsense.clone();
            for (byte, id) in packet.iter_mut().zip(question.id.to_be_bytes()) {
                *byte = id;
            }
            drop(self.socket.send_to(&packet, from));
        }
        let packet = question.answer(&script);
        for _ in 0..script.times {
            let due = Due { at: received + script.delay, entry, to: from, packet: packet.clone() };
            self.due.push(Reverse(due));
        }
    }
}

/// The question of a message, as far as the server needs it.
struct Question {
    id: u16,
    /// In lower case, labels joined by dots.
    name: String,
    qtype: u16,
    /// Name, type and class as they came.
    wire: Vec<u8>,
}

impl Question {
    fn parse(packet: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
        if word(2)? & 0x8000 != 0 || word(4)? != 1 {
            return None;
        }
        let mut labels = Vec::new();
        let mut at = HEADER;
        loop {
            let len = usize::from(*packet.get(at)?);
            if len == 0 {
                break;
            }
            labels.push(String::from_utf8_lossy(packet.get(at + 1..at + 1 + len)?).to_ascii_lowercase());
            at += 1 + len;
        }
        let end = at + 5;
        let wire = packet.get(HEADER..end)?.to_vec();
        Some(Self { id: word(0)?, name: labels.join("."), qtype: word(at + 1)?, wire })
    }

    fn answer(&self, script: &Script) -> Vec<u8> {
        // QR, RD, RA.
        let flags = 0x8180 | if script.truncated { 0x0200 } else { 0 } | u16::from(script.rcode & 0xf);
        let of_type = script.addresses.iter().filter(|address| address.is_ipv6() == (self.qtype == AAAA));
        let mut addresses: Vec<IpAddr> = of_type.copied().collect();
        if script.addresses.is_empty() {
            let nobody: IpAddr = if self.qtype == AAAA {
                Ipv6Addr::from([0x20; 16]).into()
            } else {
                Ipv4Addr::new(192, 0, 2, 1).into()
            };
            addresses = vec![nobody; usize::from(script.answers)];
        }
        let mut packet = Vec::new();
        for word in [self.id, flags, 1, (script.aliases.len() + addresses.len()) as u16, 0, 0] {
            packet.extend(word.to_be_bytes());
        }
        let wire = if script.shouts { self.wire.to_ascii_uppercase() } else { self.wire.clone() };
        packet.extend(wire);
        // A pointer to the question's name, and from then on to that of the last alias.
        let mut owner = HEADER;
        for alias in &script.aliases {
            record(&mut packet, owner, CNAME, &wire_name(alias.split('.').map(str::as_bytes)));
            owner = packet.len() - alias.len() - 2;
        }
        for address in addresses {
            match address {
                IpAddr::V4(v4) => record(&mut packet, owner, self.qtype, &v4.octets()),
                IpAddr::V6(v6) => record(&mut packet, owner, self.qtype, &v6.octets()),
            }
        }
        packet
    }
}

/// A record of the name at `owner`; class IN; a minute.
fn record(packet: &mut Vec<u8>, owner: usize, rtype: u16, data: &[u8]) {
    packet.extend((0xc000 | owner as u16).to_be_bytes());
    packet.extend(rtype.to_be_bytes());
    packet.extend([0, 1, 0, 0, 0, 60]);
    packet.extend((data.len() as u16).to_be_bytes());
    packet.extend(data);
}

/// A name on the wire.
fn wire_name<'a>(labels: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut wire: Vec<u8> = labels.flat_map(|label| [&[label.len() as u8], label].concat()).collect();
    wire.push(0);
    wire
}

/// A query as a stub resolver sends it.
#[must_use]
pub fn query(id: u16, name: &str, qtype: u16) -> Vec<u8> {
    let labels: Vec<&[u8]> = name.split('.').filter(|label| !label.is_empty()).map(str::as_bytes).collect();
    query_of(id, &labels, qtype)
}

/// A query for a name of any octets.
#[must_use]
pub fn query_of(id: u16, labels: &[&[u8]], qtype: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    // RD; one question.
    for word in [id, 0x0100, 1, 0, 0, 0] {
        packet.extend(word.to_be_bytes());
    }
    packet.extend(wire_name(labels.iter().copied()));
    packet.extend(qtype.to_be_bytes());
    packet.extend([0, 1]);
    packet
}
