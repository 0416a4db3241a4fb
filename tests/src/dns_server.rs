//! A DNS server in the test's own process that answers as it is told, and writes down what it saw and when.
//!
//! Its sockets belong to the network namespace of the thread that starts it. Nothing here parses names the way probe
//! does: the two must agree, not share code.

mod message;
mod tcp;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use probe_user::kernel::clock::monotonic_ns;

use self::message::Question;
pub use self::message::{A, AAAA, NXDOMAIN, SERVFAIL, TXT, query, query_of};
pub use self::tcp::{framed, send_apart};
use crate::probe::poll;

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
    /// Upper eight bits of the code, in an OPT record (RFC 6891, 6.1.3); none: no such record.
    pub edns: Option<u8>,
    /// TC, over UDP.
    pub truncated: bool,
    /// Records in the answer section.
    pub answers: u16,
    /// Names that the question's is an alias of, one of the next: CNAMEs before the answers.
    pub aliases: Vec<&'static str>,
    /// Addresses of the answers, which are as many as there are of the type asked for; none: one, of nobody in particular.
    pub addresses: Vec<IpAddr>,
    /// Seconds that the answers may be kept, in turn; those beyond have a minute.
    pub ttls: Vec<u32>,
    /// The message is filled up with TXT records to so many octets; 0: it is not.
    pub octets: usize,
    /// Questions of any other type get no answer.
    pub only: Option<u16>,
    /// So many questions of a type get no answer before one does.
    pub ignored: usize,
    /// What becomes of an answer over TCP.
    pub stream: Stream,
    /// The question comes back in capital letters.
    pub shouts: bool,
    /// Sent before the answer, with the id of the question: what no resolver should see.
    pub first: Vec<Vec<u8>>,
}

/// How an answer goes into a TCP stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// In one write, its length first.
    Whole,
    /// Its length in a segment of its own.
    LengthApart,
    /// In segments of so many octets.
    Cut(usize),
    /// In one write together with the next that is not held.
    Held,
    /// With a length that is so much more than its own.
    Lie(i16),
    /// Not at all: the connection is closed instead.
    Close,
}

/// What a question came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A packet.
    Udp,
    /// A stream.
    Tcp,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            times: 1,
            rcode: 0,
            edns: None,
            truncated: false,
            answers: 1,
            aliases: Vec::new(),
            addresses: Vec::new(),
            ttls: Vec::new(),
            octets: 0,
            only: None,
            ignored: 0,
            stream: Stream::Whole,
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
    /// What it came by.
    pub transport: Transport,
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
    /// Just before and just after each answer was sent (what completes it, where that takes several writes), CLOCK_MONOTONIC
    /// nanoseconds.
    pub answered_ns: Vec<(u64, u64)>,
}

/// The server; it ends when it is dropped.
#[derive(Debug)]
pub struct DnsServer {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What its threads have in common.
#[derive(Debug)]
struct Shared {
    scripts: HashMap<String, Script>,
    log: Mutex<Vec<Served>>,
    stop: AtomicBool,
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Vec<Served>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Writes a question down. Its place in the log, and what becomes of it: nothing, where it gets no answer.
    fn take(&self, question: &Question, served: Served) -> (usize, Script) {
        let mut script = self.scripts.get(&question.name).cloned().unwrap_or_default();
        let mut log = self.log();
        let like_it = |before: &&Served| before.name == served.name && before.qtype == served.qtype;
        if script.only.is_some_and(|qtype| qtype != question.qtype)
            || (script.ignored != 0 && log.iter().filter(like_it).count() < script.ignored)
        {
            script.times = 0;
        }
        log.push(served);
        (log.len() - 1, script)
    }

    /// Notes that an answer was sent, or the last part of it.
    fn answered(&self, entry: usize, sent: (u64, u64)) {
        if let Some(entry) = self.log().get_mut(entry) {
            entry.answered_ns.push(sent);
        }
    }
}

/// The messages in [`Script::first`], as answers to a question.
fn with_id(nonsense: &[u8], id: u16) -> Vec<u8> {
    let mut packet = nonsense.to_vec();
    for (byte, id) in packet.iter_mut().zip(id.to_be_bytes()) {
        *byte = id;
    }
    packet
}

impl DnsServer {
    /// Listens on these addresses, for UDP and TCP. Names without a script are answered at once.
    ///
    /// # Errors
    ///
    /// An address is not to be had.
    pub fn start(addresses: &[SocketAddr], scripts: &[(&str, Script)]) -> Result<Self> {
        let scripts = scripts.iter().map(|(name, script)| ((*name).to_owned(), script.clone())).collect();
        let shared = Arc::new(Shared { scripts, log: Mutex::default(), stop: AtomicBool::new(false) });
        let mut server = Self { shared, threads: Vec::new() };
        for address in addresses {
            let socket =
                UdpSocket::bind(address).with_context(|| format!("cannot listen on {address}/udp"))?;
            let shared = Arc::clone(&server.shared);
            let due = BinaryHeap::new();
            let mut serving = Serving { socket, address: *address, shared, due };
            server.threads.push(
                std::thread::Builder::new()
                    .name(format!("dns {address}"))
                    .spawn(move || while !serving.shared.stopped() && serving.step().is_ok() {})?,
            );
            server.threads.push(tcp::listen(*address, Arc::clone(&server.shared))?);
        }
        Ok(server)
    }

    /// Every question so far, in order of arrival.
    #[must_use]
    pub fn served(&self) -> Vec<Served> {
        self.shared.log().clone()
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
            let sent: usize = self.shared.log().iter().map(|served| served.answered_ns.len()).sum();
            Ok((sent >= count).then_some(()))
        })
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

/// Whether a socket only had nothing to tell so far.
fn is_nothing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted | ConnectionRefused)
}

/// One UDP socket's thread.
struct Serving {
    socket: UdpSocket,
    address: SocketAddr,
    shared: Arc<Shared>,
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
            self.shared.answered(due.entry, (begun_ns, monotonic_ns()));
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
            Err(error) if is_nothing(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn take(&mut self, packet: &[u8], from: SocketAddr, (received, received_ns): (Instant, u64)) {
        let Some(question) = Question::parse(packet) else { return };
        let served = question.served((self.address, Transport::Udp), from, received_ns);
        let (entry, script) = self.shared.take(&question, served);
        for nonsense in &script.first {
            drop(self.socket.send_to(&with_id(nonsense, question.id), from));
        }
        let packet = question.answer(&script, Transport::Udp);
        for _ in 0..script.times {
            let due = Due { at: received + script.delay, entry, to: from, packet: packet.clone() };
            self.due.push(Reverse(due));
        }
    }
}
